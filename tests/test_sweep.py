"""Several speed-ups from one start, and the fastest that is good enough, on 64 rows and a tiny model."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from powerbert_hf import cli, steps, sweep
from powerbert_hf.report import read_run

FAST = ["--num-train-epochs=1", "--per-device-train-batch-size=16", "--learning-rate=1e-3", "--disable-tqdm=true"]


@pytest.fixture
def inputs(host, rows, tokenizer, tmp_path):
    host.make_stock().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    Dataset.from_list(rows).to_csv(tmp_path / "rows.csv")
    files = [f"--{split}-file={tmp_path / 'rows.csv'}" for split in ("train", "eval")]
    return [f"--model={tmp_path / 'model'}", *files, f"--output-dir={tmp_path / 'run'}", *FAST]


def test_a_sweep_does_not_begin_again_under_its_runs(inputs, tmp_path, capsys):
    assert cli.main(["sweep", *inputs, "--speedups", "1.5"]) == 0
    shutil.rmtree(tmp_path / "run" / "fine_tuned")
    assert cli.main(["sweep", *inputs, "--speedups", "1.5"]) == 2
    assert f"got {tmp_path / 'run' / 'speedup-1.5'} without" in capsys.readouterr().err


def test_a_sweep_has_a_run_for_each_speed_up_and_does_none_twice(inputs, tmp_path, capsys, monkeypatch):
    asked = [*inputs, "--speedups", "1.5", "2.5", f"--plot={tmp_path / 'curve.svg'}"]
    assert cli.main(["sweep", *asked]) == 0
    found = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert [run["training"]["speedup"] for run in found["runs"]] == [1.5, 2.5]
    for run in found["runs"]:
        # Six texts to tune on, of a few words each.
        assert run["tuning"]["predicted_speedup"] == pytest.approx(run["training"]["speedup"], rel=0.1)
        assert run["base"] == found["base"]
    assert len(found["baselines"]) == 3
    assert f"stock, padded to {found['runs'][0]['retention_length']}, arrival order" in found["baselines"]
    assert "asked for" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "curve.svg").read_text()
    assert read_run(tmp_path / "run" / "speedup-2.5").base == tmp_path / "run" / "fine_tuned"
    with monkeypatch.context() as inside:
        inside.chdir(tmp_path / "run" / "speedup-2.5")
        assert read_run(Path()).base == tmp_path / "run" / "fine_tuned"

    monkeypatch.setattr(steps.PoWERTrainer, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    assert cli.main(["sweep", *asked]) == 0
    # What an earlier version has written, with all options.
    record = tmp_path / "run" / "command.json"
    typed = json.loads(record.read_text())
    record.write_text(json.dumps({name: value for name, value in typed.items() if name != "data"}))
    # A picture that it has not drawn.
    (tmp_path / "mine.svg").write_text("mine")
    assert cli.main(["sweep", *inputs, "--speedups", "2.5", f"--plot={tmp_path / 'mine.svg'}"]) == 2
    # Another list, and no picture, in the same folder.
    assert cli.main(["sweep", *inputs, "--speedups", "2.5"]) == 0
    found = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert [run["training"]["speedup"] for run in found["runs"]] == [2.5]
    assert "1.5" not in json.loads(record.read_text())["typed"]
    capsys.readouterr()
    # How long processes wait for each other makes no other run.
    assert cli.main(["sweep", *inputs, "--speedups", "2.5", "--ddp-timeout=60"]) == 0
    assert cli.main(["sweep", *inputs, "--speedups", "2.5", "--seed=7"]) == 2
    assert "with another seed; choose another `--output-dir`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        ("mine.svg", "mine.svg is there already; choose another output, or remove it"),
        ("nowhere/curve.svg", "There is no folder nowhere for the output"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused_first(inputs, tmp_path, capsys, monkeypatch, plot, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.svg").write_text("mine")
    assert cli.main(["sweep", *inputs, f"--plot={plot}"]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "mine.svg").read_text() == "mine"
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_data(inputs, rows, tmp_path, capsys):
    assert cli.main(["train", *inputs, "--speedup=1.5"]) == 0
    Dataset.from_list(rows[1:]).to_csv(tmp_path / "rows.csv")
    capsys.readouterr()
    assert cli.main(["train", *inputs, "--speedup=1.5"]) == 2
    assert "A run goes on with what it began with" in capsys.readouterr().err
    # Of the same lengths, with the same labels.
    words = len(rows[1]["text"].split())
    for change in ({"text": " ".join(["good"] * words)}, {"label": "negative"}):
        changed = [rows[0], {**rows[1], **change}, *rows[2:]]
        assert changed != rows
        Dataset.from_list(changed).to_csv(tmp_path / "rows.csv")
        assert cli.main(["train", *inputs, "--speedup=1.5"]) == 2
        assert "got data with other texts or labels for" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_another_model_under_the_same_path(host, inputs, tmp_path, capsys):
    assert cli.main(["train", *inputs, "--speedup=1.5"]) == 0
    host.make_stock(seed=1).save_pretrained(tmp_path / "model")
    assert cli.main(["train", *inputs, "--speedup=1.5"]) == 2
    assert "got a model with other files for" in capsys.readouterr().err


@pytest.fixture
def unlike_one_answer(monkeypatch):
    """A model of a few steps is no better than that."""
    monkeypatch.setattr(sweep, "constant_metric", lambda data: -2.0)


def test_a_drop_that_one_answer_to_everything_stays_within_is_refused(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "search_and_retrain", lambda *args: pytest.fail("searched"))
    monkeypatch.setattr(sweep, "constant_metric", lambda data: 0.0)
    assert cli.main(["train", *inputs, "--max-drop=99"]) == 2
    tuning = json.loads((tmp_path / "run" / "fine_tuned" / "step.json").read_text())["tuning"]
    said = (
        f"one answer to every text would lose, got 99 where that is {100 * tuning['accuracy']:.2f} points of accuracy"
    )
    assert said in capsys.readouterr().err


def test_a_drop_of_a_model_that_has_learned_nothing_is_refused(inputs, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "search_and_retrain", lambda *args: pytest.fail("searched"))
    monkeypatch.setattr(sweep, "constant_metric", lambda data: 1.0)
    assert cli.main(["train", *inputs, "--max-drop=1"]) == 2
    assert "`max_drop` needs a fine-tuned model that has learned something" in capsys.readouterr().err


def test_the_fastest_within_a_drop_is_the_final_model(inputs, tmp_path, capsys, unlike_one_answer):
    """A drop of 100 points lets everything pass."""
    assert cli.main(["train", *inputs, "--max-drop=100"]) == 0
    run = tmp_path / "run"
    report = json.loads((run / "report.json").read_text())
    tried = [one["speedup"] for one in report["tried"]]
    assert len(tried) >= 2
    assert report["training"]["speedup"] == max(tried)
    final = AutoModelForSequenceClassification.from_pretrained(run / "final")
    assert final.config.retention_config == report["retention_config"]
    said = capsys.readouterr().out
    assert said.count("points of accuracy on the tuning split") == len(tried)
    # Why there is nothing faster, and what the promise is worth.
    assert re.search(r"the fastest that there is on these lengths has [0-9.]+x", said)
    assert "at most 100 asked for, on 6 rows" in said


def test_a_drop_of_just_as_much_is_good_enough(inputs, tmp_path, monkeypatch, unlike_one_answer):
    """In floats 0.91 less 0.9 is more than 0.01."""
    searched = sweep.search_and_retrain

    def losing(*args):
        report = searched(*args)
        return {**report, "tuning": {**report["tuning"], "base": 0.91, "final": 0.9}}

    monkeypatch.setattr(sweep, "search_and_retrain", losing)
    monkeypatch.setattr(sweep, "next_speedup", lambda tried, *limits: None if tried else 1.5)
    assert cli.main(["train", *inputs, "--max-drop=1"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    (tried,) = report["tried"]
    assert tried == {"speedup": 1.5, "predicted_speedup": report["tuning"]["predicted_speedup"], "drop": 1.0}


@pytest.mark.parametrize(
    ("reached", "asked", "chosen"),
    [
        # From 2.2, not good enough, halfway to the lowest by ratio, to 1.6, and up; then nothing lies between.
        (lambda speedup: 1.6 if speedup < 1.9 else 2.2, [2.0, 1.69, 1.88, 2.03], 1.6),
        # All are good: up to the fastest, though another has come out once more on the way.
        (lambda speedup: 1.7 if speedup < 3.1 else 3.2, [2.0, 2.49, 3.01, 3.31], 3.2),
    ],
)
def test_a_speed_up_that_comes_out_as_another_did_ends_nothing(
    inputs, tmp_path, capsys, monkeypatch, reached, asked, chosen
):
    """Of short texts few speed-ups can be had."""
    searched = sweep.search_and_retrain
    seen = []

    def coarse(*args):
        report = searched(*args)
        seen.append(args[3].speedup)
        found = reached(args[3].speedup)
        final = 0.7 if found == 2.2 else 0.9
        return {**report, "tuning": {**report["tuning"], "predicted_speedup": found, "base": 0.9, "final": final}}

    monkeypatch.setattr(sweep, "check_speedups", lambda *_: (1.3, 3.65))
    monkeypatch.setattr(sweep, "constant_metric", lambda data: -2.0)
    monkeypatch.setattr(sweep, "search_and_retrain", coarse)
    assert cli.main(["train", *inputs, "--max-drop=1"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert seen == asked
    assert report["tuning"]["predicted_speedup"] == chosen
    drops = {one["predicted_speedup"]: one["drop"] for one in report["tried"]}
    assert drops == {found: 20.0 if found == 2.2 else 0.0 for found in map(reached, asked)}
    said = capsys.readouterr().out
    again = len(asked) - len(drops)
    assert said.count("x once more") == again > 0
    assert f"0.00 points at {chosen:.2f}x" in said


def test_where_nothing_is_good_enough_it_says_what_was_tried(inputs, tmp_path, capsys, monkeypatch, unlike_one_answer):
    def worse(*args):
        return {"tuning": {"base": 0.9, "final": 0.8, "predicted_speedup": args[3].speedup}}

    monkeypatch.setattr(sweep, "search_and_retrain", worse)
    assert cli.main(["train", *inputs, "--max-drop=1"]) == 2
    said, error = capsys.readouterr()
    assert "`max_drop` must leave room for a configuration, got 1 where 10.00 points at" in error
    assert "allow more in the same folder" in error
    # What costs nothing.
    assert re.search(r"Untrained and with the same answers the fine-tuned model has 1\.[0-9]+x", error)
    # Six rows to tune on.
    assert "a row of the tuning split counts 16.7 points, more than the 1 that may be lost" in said


def test_a_drop_of_a_regression_on_few_rows_says_that_they_tell_little(inputs, rows, tmp_path, capsys, monkeypatch):
    Dataset.from_list([{**row, "label": len(row["text"]) / 7} for row in rows]).to_csv(tmp_path / "rows.csv")
    monkeypatch.setattr(sweep, "constant_metric", lambda data: 1.0)
    assert cli.main(["train", *inputs, "--max-drop=1"]) == 2
    assert "the tuning split has 6 rows, too few for a correlation" in capsys.readouterr().out


def test_a_drop_that_nothing_reaches_leaves_no_earlier_choice(
    inputs, tmp_path, capsys, monkeypatch, unlike_one_answer
):
    run = tmp_path / "run"
    assert cli.main(["train", *inputs, "--max-drop=100"]) == 0
    tried = {path.name for path in run.glob("speedup-*")}
    # The metric of six rows may stay, so that a loss is made up.
    monkeypatch.setattr(sweep, "_points", lambda gain: 10.0)
    assert cli.main(["train", *inputs, "--max-drop=1"]) == 2
    assert "`max_drop` must leave room" in capsys.readouterr().err
    assert not (run / "report.json").exists()
    assert not (run / "final").exists()
    assert all((run / name / "final").is_dir() for name in tried)


def test_another_drop_in_the_same_folder_chooses_anew(inputs, tmp_path, monkeypatch, unlike_one_answer):
    """Twice as fast loses nothing, anything faster 10 points."""
    searched = sweep.search_and_retrain
    losses = itertools.chain([0.0], itertools.repeat(0.1))

    def losing(*args):
        report = searched(*args)
        report["tuning"] = {**report["tuning"], "base": 0.9, "final": 0.9 - next(losses)}
        (args[4] / "report.json").write_text(json.dumps(report))
        return report

    monkeypatch.setattr(sweep, "search_and_retrain", losing)
    chosen = []
    for drop in ("--max-drop=50", "--max-drop=1"):
        assert cli.main(["train", *inputs, drop]) == 0
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        final = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "final")
        assert final.config.retention_config == report["retention_config"]
        chosen.append(report["training"]["speedup"])
    assert chosen[0] > chosen[1] == report["tried"][0]["speedup"]
    # One that somebody has removed is trained again before another choice is given up.
    shutil.rmtree(tmp_path / "run" / f"speedup-{chosen[0]:g}" / "final")
    assert cli.main(["train", *inputs, "--max-drop=50"]) == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text())["tried"]
    assert (tmp_path / "run" / f"speedup-{chosen[0]:g}" / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize("goal", ["--speedup=2", "--max-drop=1"])
def test_one_encoder_has_nothing_to_search(host, inputs, tmp_path, capsys, goal):
    host.stock(host.stock_config(**{**host.fields, "num_hidden_layers": 1})).save_pretrained(tmp_path / "model")
    assert cli.main(["train", *inputs, goal]) == 2
    assert "A search needs a model of two encoders or more, got one" in capsys.readouterr().err
    assert not (tmp_path / "run" / "fine_tuned").exists()
    assert not (tmp_path / "run" / "final").exists()


def test_speed_ups_to_try_close_in_on_the_fastest_that_is_good_enough():
    tried = {}
    while (speedup := sweep.next_speedup(tried, 1.0, 1.2, 9.0)) is not None:
        tried[speedup] = 0.0 if speedup <= 3.4 else 2.0
        assert len(tried) < 10
    good = max(speedup for speedup, drop in tried.items() if drop <= 1)
    assert 3.4 / 1.15 < good <= 3.4
    # A metric that is no number is not good enough.
    assert sweep.next_speedup({2.0: float("nan")}, 1.0, 1.2, 9.0) == pytest.approx((1.2 * 2) ** 0.5, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-drop=-1"], "`--max-drop` must lie between 0 and 100 points, got -1.0"),
        (["--max-drop=1", "--speedup=2"], "A search has one goal, got `--speedup` and `--max-drop`"),
        (["--paper", "--speedup=2"], "A search has one goal, got `--speedup` and `--paper`"),
        (["--paper", "--retention-unit=fraction"], "`--paper` counts words"),
        (["--speedup=1000"], "On these inputs `speedup` must lie above"),
    ],
)
def test_goals_that_contradict_each_other_are_refused_before_training(inputs, capsys, options, message):
    assert cli.main(["train", *inputs, *options]) == 2
    assert message in capsys.readouterr().err


def test_the_papers_way_is_in_words_padded_and_multiplies(inputs, tmp_path, monkeypatch):
    seen = []
    run = steps._run

    def look(trainer):
        seen.append((trainer.model.config, next(iter(trainer.get_train_dataloader()))["input_ids"].shape[1]))
        run(trainer)

    monkeypatch.setattr(steps, "_run", look)
    assert cli.main(["train", *inputs, "--paper", "--max-length=30"]) == 0
    assert [width for _, width in seen] == [30, 30, 30]
    soft = seen[1][0]
    assert (soft.retention_unit, soft.retention_length, soft.retention_soft_extract) == ("words", 30, "published")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert all(type(entry) is int for entry in report["retention_config"])
    assert report["training"]["speedup"] is None
    assert report["training"]["retention_lambda"] == 1e-3
    assert not report["training"]["distillation"]
