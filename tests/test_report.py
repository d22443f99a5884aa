"""Pages of runs and sweeps, and what they say changed; README's figures are what their files say."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from powerbert_hf import PoWERTrainer, PoWERTrainingArguments, cli
from powerbert_hf.changes import find_changes
from powerbert_hf.charts import Curve, draw_configuration, draw_curves, draw_sweep
from powerbert_hf.cost import predicted_speedup
from powerbert_hf.data import prepare_data
from powerbert_hf.drawing import Canvas, save_picture
from powerbert_hf.pages import run_curves, run_page, sweep_page
from powerbert_hf.predict import logits_of
from powerbert_hf.report import beaten_by, format_report, format_sweep, read_run

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "docs" / "figures"


@pytest.fixture
def compared(host, rows, own_tokenizer):
    """Two models that differ in what they keep, their data, and what changed."""
    data = Dataset.from_list(rows)
    before, after = host.make(), host.make(retention_config=[0.6, 0.3, 0.1], retention_unit="fraction")
    task = prepare_data(data, data, own_tokenizer, before.config, measure_only=True)
    features = task.eval.select_columns(["input_ids", "attention_mask"]).to_list()
    logits = logits_of(before, features, task.collator, 8)
    for model in (before, after):
        vars(model.config).update(task.label_fields)
        # Half of the rows are on either side of the boundary, so that some cross it.
        model.classifier.bias.data[0] -= (logits[:, 0] - logits[:, 1]).quantile(0.47)
    return before, after, task, find_changes(before, after, task, examples=3)


def test_what_changed_is_counted_class_by_class_and_shown_with_its_text(compared, rows, own_tokenizer):
    before, after, task, changes = compared
    answers = {}
    for name, model in (("before", before), ("after", after)):
        with torch.no_grad():
            logits = [model(**own_tokenizer(row["text"], return_tensors="pt")).logits[0] for row in rows]
        answers[name] = [task.label_names[int(one.argmax())] for one in logits]
    changed = [n for n in range(len(rows)) if answers["before"][n] != answers["after"][n]]
    assert changed
    assert (changes.rows, changes.changed) == (64, len(changed))
    for one in changes.classes:
        mine = [n for n, row in enumerate(rows) if row["label"] == one.name]
        assert one.rows == len(mine)
        assert one.right_before == sum(answers["before"][n] == one.name for n in mine)
        assert one.right_after == sum(answers["after"][n] == one.name for n in mine)
    for one in changes.examples:
        text = " ".join(word.text for word in one.explanation.words if word.part == "first")
        n = [row["text"] for row in rows].index(text)
        assert n in changed
        assert (one.before["label"], one.explanation.answer["label"]) == (answers["before"][n], answers["after"][n])
        assert one.label == rows[n]["label"]
        assert (one.right_before, one.right_after) == (
            answers["before"][n] == one.label,
            answers["after"][n] == one.label,
        )


@pytest.mark.parametrize("kind", ["regression", "several labels"])
def test_what_changed_of_other_kinds_of_tasks(host, rows, own_tokenizer, kind):
    for n, row in enumerate(rows):
        row["label"] = float(n) / 7 if kind == "regression" else [["a"], ["a", "b"], ["b"]][n % 3]
    data = Dataset.from_list(rows)
    labels = {"num_labels": 1} if kind == "regression" else {"num_labels": 2}
    before = host.make(**labels)
    after = host.make(retention_config=[0.6, 0.3, 0.1], retention_unit="fraction", **labels)
    task = prepare_data(data, data, own_tokenizer, before.config, measure_only=True)
    for model in (before, after):
        vars(model.config).update(task.label_fields)
    changes = find_changes(before, after, task, examples=4)
    assert len(changes.examples) == 4 or kind != "regression"
    if kind == "regression":
        assert (changes.changed, changes.classes) == (None, [])
        moved = [abs(one.before["value"] - one.explanation.answer["value"]) for one in changes.examples]
        assert moved == sorted(moved, reverse=True)
    else:
        assert [(one.name, one.rows) for one in changes.classes] == [("a", 43), ("b", 42)]
    page = run_page(read_run(FIGURES / "run"), changes)
    assert "What changed" in page


def test_the_page_of_a_run_says_what_its_files_say(compared):
    run = read_run(FIGURES / "run")
    page = run_page(run, compared[3])
    report = run.report
    for said in (
        f"{100 * report['final']:.2f}",
        f"{100 * report['base']:.2f}",
        f"{report['measured_speedup']:.2f}x",
        f"{report['timing']['seconds_stock']:.3g}",
        *(f"{share:.0%}" for share in report["word_vectors_kept"]),
        *(f"{mass:.1f}" for mass in report["masses"]),
        f"{compared[3].changed} of 64 predictions",
    ):
        assert said in page
    assert page.count("<svg") == len(run_curves(run)) + 1
    without = run_page(run, dataclasses.replace(compared[3], examples=[]))
    assert "Words dropped" in page
    assert "Words dropped" not in without


def test_what_is_measured_again_is_told_with_its_machine(compared):
    run = read_run(FIGURES / "run")
    row = SimpleNamespace(description="ours, again", median=2.0, texts_per_second=32.0, speedup=1.5)
    there = {"processor": "another", "threads": 3, "torch": "2.13.0", "transformers": "5.23.0"}
    page = run_page(run, measured={"ours": row}, measured_on=there)
    assert "Measured again, on another, 3 threads, accelerator none." in page
    assert "ours, again" in page
    assert "Measured again" not in run_page(run)
    assert "in three steps" in page
    run.report["training"]["fine_tuned_before"] = True
    assert "A run that began with a fine-tuned model" in run_page(run)


def test_curves_hold_the_logs_and_the_speed_up_where_it_was_logged():
    run = read_run(FIGURES / "run")
    captions = [caption for caption, _ in run_curves(run)]
    assert captions[:2] == ["Task loss of each step", "What each encoder keeps in the search"]
    for row in run.steps["searched"]["history"]:
        row["predicted_speedup"] = 1.5
    assert len(run_curves(run)) > len([caption for caption in captions if "speed-up" not in caption])
    for step in run.steps.values():
        step["history"] = []
    assert run_curves(run) == []


def test_a_run_that_is_not_there_is_not_the_output(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 2
    assert "A finished run must have a report.json that can be read, got none in" in capsys.readouterr().err


def test_a_run_whose_data_are_gone_says_so_and_shows_the_rest(tmp_path, capsys):
    shutil.copytree(FIGURES / "run", tmp_path / "run")
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "What changed cannot be shown" in page
    assert "Three steps" in page
    assert cli.main(["report", str(tmp_path / "run")]) == 2
    assert "pass `--overwrite`" in capsys.readouterr().err
    (tmp_path / "run" / "searched" / "step.json").unlink()
    assert cli.main(["report", str(tmp_path / "run"), "--overwrite"]) == 2
    assert "A finished run must have a step.json" in capsys.readouterr().err
    # Thrown away, for it is the size of the other two.
    shutil.rmtree(tmp_path / "run" / "searched")
    assert cli.main(["report", str(tmp_path / "run"), "--overwrite"]) == 0
    assert "Three steps" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [path.parent.name for path in ROOT.glob("results/*/report.json")])
def test_a_run_without_its_models_has_a_page_of_what_its_report_says(name, tmp_path):
    shutil.copytree(ROOT / "results" / name, tmp_path / name)
    assert cli.main(["report", str(tmp_path / name)]) == 0
    page = (tmp_path / name / "report.html").read_text(encoding="utf-8")
    report = read_run(ROOT / "results" / name).report
    for value in (report["base"], report["before_retraining"], report["final"]):
        assert f"<td>{100 * value:.2f}</td>" in page
    assert "got none in" in page
    assert page.count("<svg") == 1


def test_the_page_of_a_sweep_shows_each_run_and_each_baseline(tmp_path):
    shutil.copytree(FIGURES / "sweep", tmp_path / "sweep")
    assert cli.main(["report", str(tmp_path / "sweep")]) == 0
    page = (tmp_path / "sweep" / "report.html").read_text(encoding="utf-8")
    found = json.loads((FIGURES / "sweep" / "sweep.json").read_text())
    assert page == sweep_page(found)
    for run in found["runs"]:
        assert f"{run['measured_speedup']:.2f}x" in page
    for name in found["baselines"]:
        assert page.count(name) >= 2


def test_pictures_are_well_formed_and_stay_inside():
    sweep = json.loads((FIGURES / "sweep" / "sweep.json").read_text())
    one = {**sweep, "runs": sweep["runs"][:1]}
    shown = [
        draw_configuration([1.0, 0.5, 0.01], [1.0, 0.4, 0.01], [9, 5, 1]),
        draw_configuration([0.5]),
        draw_curves([Curve(f"encoder {n}", [1, 2, 3], [1.0, 0.5, 0.5]) for n in range(24)], "t", "x", "y"),
        draw_curves([Curve("one", [1], [0.0])], "t", "x", "y"),
        draw_sweep(sweep),
        draw_sweep(one),
    ]
    for canvas in shown:
        for element in ElementTree.fromstring(canvas.file()).iter():
            for name, most in (("x", canvas.width), ("cx", canvas.width), ("y", canvas.height), ("cy", canvas.height)):
                assert 0 <= float(element.get(name, 0)) <= most


def test_what_is_printed_is_what_the_report_says():
    folder = ROOT / "results" / "mrpc-minilm-l6"
    run = json.loads((folder / "report.json").read_text())
    lines = dict(line.split("  ", 1) for line in format_report(run, folder).splitlines())
    assert lines["f1, all word-vectors"].strip() == f"{run['base']:.4f}"
    assert lines["f1, final model"].strip() == f"{run['final']:.4f}"
    tuning = run["tuning"]
    assert f"{tuning['base']:.4f} before, {tuning['final']:.4f} after" in lines["on the tuning split"]
    sweep = format_sweep({"metric": "f1", "base": run["base"], "runs": [run], "baselines": {}})
    assert f"{100 * (run['base'] - run['final']):.2f}" in sweep.splitlines()[-1].split()
    # Where nothing was asked for, the figures that a choice may be made by are there too.
    run["training"]["speedup"] = None
    lines = dict(line.split("  ", 1) for line in format_report(run, folder).splitlines())
    said = f"{tuning['predicted_speedup']:.2f}x predicted; f1 {tuning['base']:.4f} before, {tuning['final']:.4f} after"
    assert lines["on the tuning split"].strip() == said
    run |= {"retention_unit": "words", "retention_config": [1024, 512, 1]}
    lines = dict(line.split("  ", 1) for line in format_report(run, folder).splitlines())
    assert lines["retention configuration"].strip() == "1024 512 1 (word-vectors)"


def test_the_pareto_front_is_of_what_nothing_beats():
    places = [(1.5, 1.4, 0.88), (2.0, 1.9, 0.89), (3.0, 2.5, 0.85), (4.0, 2.5, 0.85), (5.0, 2.4, 0.84)]
    runs = [
        {"training": {"speedup": asked}, "measured_speedup": measured, "predicted_speedup": asked, "final": final}
        | {"base": 0.9, "tuning": {"base": 0.9, "final": final, "predicted_speedup": asked}}
        for asked, measured, final in places
    ]
    found = {"metric": "f1", "base": 0.9, "baselines": {}, "runs": runs}
    assert beaten_by(found) == ["front", "behind 2x", "front", "front", "front", "behind 4x"]
    # What is no number is behind all that are as fast, and before none.
    runs[3]["final"] = float("nan")
    assert beaten_by(found) == ["front", "behind 2x", "front", "front", "behind 3x", "behind 3x"]
    runs[3]["final"] = 0.85
    # A run may be better than what it began with.
    assert beaten_by({**found, "base": 0.87})[0] == "behind 2x"

    table = format_sweep(found).splitlines()
    assert [line.split("x", 1)[0].strip() for line in table if line.endswith("front")][1:] == ["2", "3", "4"]
    line = ElementTree.fromstring(draw_sweep(found).file()).find(".//{*}polyline").get("points").split()
    circles = [
        f"{float(one.get('cx')):.1f}"
        for one in ElementTree.fromstring(draw_sweep(found).file()).iter()
        if one.tag.endswith("circle") and one.get("r") == "5"
    ]
    # From the fine-tuned model, past 1.5x and 5x, through the others from slow to fast.
    assert len(line) == 4
    assert [point.split(",")[0] for point in line][1:] == circles[1:4]


def test_readmes_figures_are_what_their_files_say():
    subprocess.run([sys.executable, str(ROOT / "docs" / "figures.py"), "--check"], check=True)


@pytest.mark.parametrize("goal", [{"speedup": 1.5}, {"retention_lambda": 1e-3}])
def test_masses_and_speed_up_reach_the_trackers_as_scalars(host, rows, own_tokenizer, tmp_path, goal):
    """`on_log` is where those of TensorBoard, trackio and W&B listen."""
    logged = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            logged.append(dict(logs))

    data = Dataset.from_list([{**own_tokenizer(row["text"]), "labels": n % 2} for n, row in enumerate(rows)])
    lengths = [len(ids) for ids in data["input_ids"]]
    soft = host.make(
        retention_mode="soft",
        retention_soft_extract="hide" if "speedup" in goal else "multiply",
        retention_unit="fraction",
        retention_length=max(lengths),
    )
    args = PoWERTrainingArguments(
        str(tmp_path), max_steps=4, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, **goal
    )
    trainer = PoWERTrainer(
        soft, args, train_dataset=data, processing_class=own_tokenizer, lengths=lengths, callbacks=[Tracker()]
    )
    trainer.train()
    steps = [logs for logs in logged if "loss" in logs]
    assert len(steps) == 4
    for logs in steps:
        names = {"task_loss", "retention_penalty", "predicted_speedup", *(f"retention_mass_{n}" for n in (1, 2, 3))}
        assert all(type(logs[name]) is float for name in names)
    soft.set_retention(trainer.retention_config)
    reached = predicted_speedup(soft.config, torch.tensor(lengths))
    assert steps[-1]["predicted_speedup"] == pytest.approx(reached, rel=0.15)
    assert steps[-1]["predicted_speedup"] >= steps[0]["predicted_speedup"]


def test_a_png_is_whole_or_not_there(tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    canvas, picture = Canvas(10, 10, "nothing"), tmp_path / "a.png"
    save_picture(canvas, str(picture))
    whole = picture.read_bytes()
    assert whole.startswith(b"\x89PNG")

    def fail(_):
        raise OSError("no room")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no room"):
        save_picture(canvas, str(picture))
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [whole]
