"""`powerbert train` end to end on 64 rows and a tiny model: what it leaves, how it goes on, what it refuses."""

import json
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from statistics import fmean
from unittest.mock import MagicMock

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import (
    AlbertForTokenClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForTokenClassification,
    pipeline,
)

from conftest import WORDS, Host
from powerbert_hf import arguments, cli, parsing, recipe, run_folder, steps, tasks
from powerbert_hf.data import prepare_data
from powerbert_hf.trainer import PoWERTrainer

FAST = ["--num-train-epochs=1", "--per-device-train-batch-size=16", "--learning-rate=1e-3", "--disable-tqdm=true"]


@pytest.fixture
def inputs(host, rows, tokenizer, tmp_path):
    """Options of a run on a tiny checkpoint and two files."""
    host.make_stock().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    frame = Dataset.from_list(rows)
    frame.to_csv(tmp_path / "train.csv")
    frame.select(range(40)).to_csv(tmp_path / "eval.csv")
    return [
        f"--model={tmp_path / 'model'}",
        f"--train-file={tmp_path / 'train.csv'}",
        f"--eval_file={tmp_path / 'eval.csv'}",
        f"--output-dir={tmp_path / 'run'}",
        "--retention-lambda=0.1",
        *FAST,
    ]


def test_train_leaves_three_models_and_a_report(host, inputs, tmp_path, capsys):
    assert cli.main(["train", *inputs]) == 0
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        "command.json",
        "final",
        "fine_tuned",
        "report.json",
        "searched",
    ]
    printed = capsys.readouterr().out
    for row in ("accuracy, all word-vectors", "retention configuration", "predicted speed-up", "measured speed-up"):
        assert row in printed

    report = json.loads((run / "report.json").read_text())
    assert {
        "model",
        "metric",
        "base",
        "final",
        "retention_config",
        "retention_unit",
        "predicted_speedup",
        "measured_speedup",
    } <= set(report)
    assert report["metric"] == "accuracy"
    config = report["retention_config"]
    assert report["retention_unit"] == "fraction"
    assert config == sorted(config, reverse=True)
    assert config[-1] == 1 / report["retention_length"]
    # Lambda outweighs the task here, and each mass fell from where it began.
    assert all(mass < report["retention_length"] for mass in report["masses"][:2])
    assert report["predicted_speedup"] > 1

    final = AutoModelForSequenceClassification.from_pretrained(run / "final")
    assert type(final) is host.classifier
    assert final.config.retention_config == config
    assert final.config.id2label == {0: "negative", 1: "positive"}
    assert json.loads((run / "final" / "config.json").read_text())["retention_mode"] is None
    for name in ("fine_tuned", "searched"):
        assert AutoTokenizer.from_pretrained(run / name).model_max_length == 64
        stock = host.stock.from_pretrained(run / name, output_loading_info=True)
        assert not stock[1]["missing_keys"]
        assert not stock[1]["unexpected_keys"]
    for name, told in (("fine_tuned", "base"), ("searched", "before_retraining"), ("final", "final")):
        assert cli.main(["evaluate", str(run / name), f"--eval-file={tmp_path / 'eval.csv'}"]) == 0
        assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(report[told]), name


def test_speed_is_measured_on_inputs_of_all_lengths_in_no_order(tokenizer, monkeypatch):
    monkeypatch.setattr(recipe, "_TIMED_INPUTS", 20)
    frame = Dataset.from_dict({"text": [" ".join(WORDS[: 1 + n % 20]) for n in range(70)], "label": [0, 1] * 35})
    made = prepare_data(frame, frame, tokenizer, Host("bert").make_stock().config)
    lengths = [len(row["input_ids"]) for row in recipe.timed_features(made)]
    assert len(lengths) == 18
    assert lengths != sorted(lengths)
    assert fmean(lengths) == pytest.approx(fmean(made.eval["length"]), rel=0.1)


def test_final_model_answers_in_a_new_process_through_auto_classes_and_pipeline(inputs, tmp_path):
    assert cli.main(["train", *inputs]) == 0
    code = (
        "import sys, json, powerbert_hf; from transformers import pipeline; "
        "ask = pipeline('text-classification', model=sys.argv[1]); "
        "print(json.dumps([type(ask.model).__name__, ask(['the film was good', 'bad'])]))"
    )
    out = subprocess.check_output([sys.executable, "-c", code, str(tmp_path / "run" / "final")], text=True)
    name, answers = json.loads(out.splitlines()[-1])
    assert name.startswith("PoWER")
    assert {answer["label"] for answer in answers} <= {"positive", "negative"}
    here = pipeline("text-classification", model=str(tmp_path / "run" / "final"))(["the film was good", "bad"])
    assert [answer["score"] for answer in here] == pytest.approx([answer["score"] for answer in answers], abs=1e-5)


def test_the_same_command_again_trains_nothing_and_another_is_refused(inputs, tmp_path, monkeypatch, capsys):
    assert cli.main(["train", *inputs]) == 0
    before = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()

    def no_training(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(PoWERTrainer, "train", no_training)
    # What changes no model may change.
    evaluated = ["--eval-strategy=steps", "--logging-steps=3", "--run-name=mine", "--project=ours"]
    for more in ([], ["--per-device-eval-batch-size=8", "--dataloader-num-workers=1"], evaluated):
        assert cli.main(["train", *inputs, *more]) == 0
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == before
    capsys.readouterr()
    assert cli.main(["train", *inputs, "--learning-rate=0.5"]) == 2
    assert "holds the run of another command" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_to_the_same_model(inputs, tmp_path, monkeypatch):
    """Stopped in the middle of the search: step 1 stands, and the search goes on from its last checkpoint."""
    inputs = [*inputs, "--num-train-epochs=2"]
    assert cli.main(["train", *inputs]) == 0
    wanted = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run")

    losses = []
    compute_loss = PoWERTrainer.compute_loss

    def interrupted(self, *args, **kwargs):
        losses.append(self.args.output_dir)
        if sum(folder.endswith("searched") for folder in losses) == 6:
            raise KeyboardInterrupt
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(PoWERTrainer, "compute_loss", interrupted)
    assert cli.main(["train", *inputs]) == 130
    assert (tmp_path / "run" / "fine_tuned").is_dir()
    assert not (tmp_path / "run" / "searched").exists()
    assert [path.name for path in (tmp_path / "run" / "checkpoints" / "searched").iterdir()] == ["checkpoint-4"]
    monkeypatch.setattr(PoWERTrainer, "compute_loss", compute_loss)
    written = (tmp_path / "run" / "fine_tuned" / "step.json").stat().st_mtime_ns
    # How often checkpoints are written may change.
    assert cli.main(["train", *inputs, "--save-strategy=steps", "--save-steps=3"]) == 0
    assert (tmp_path / "run" / "fine_tuned" / "step.json").stat().st_mtime_ns == written
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == wanted


def test_a_checkpoint_that_is_not_whole_is_passed_over(host, inputs, tmp_path, caplog):
    """Whichever of its files a kill or a power failure cut short, or left out."""
    folder = tmp_path / "run" / "checkpoints" / "fine_tuned"
    caplog.set_level("INFO", logger="powerbert_hf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "evaluate_model", interrupt)
        assert cli.main(["train", *inputs, "--save-strategy=steps", "--save-steps=1", "--save-total-limit=2"]) == 130
    last, before = str(folder / "checkpoint-4"), str(folder / "checkpoint-3")
    assert steps._last_complete_checkpoint(str(folder), 1) == last
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        file = folder / "checkpoint-4" / name
        content = file.read_bytes()
        for damaged in (content[: len(content) // 2], content[:-2], b"", None):
            caplog.clear()
            file.unlink() if damaged is None else file.write_bytes(damaged)
            assert steps._last_complete_checkpoint(str(folder), 1) == before, name
            assert caplog.messages == [f"{last} is incomplete and will be written again"]
        file.write_bytes(content)
    assert steps._last_complete_checkpoint(str(folder), 1) == last
    # What float16 adds.
    (folder / "checkpoint-4" / "scaler.pt").write_bytes(b"")
    assert steps._last_complete_checkpoint(str(folder), 1) == before
    assert steps._last_complete_checkpoint(str(tmp_path / "nowhere"), 1) is None


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_what_a_kill_leaves_behind_is_cleared_away(inputs, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    # The command was being written down.
    (run / "command.json.partial").write_text('{"typ')
    with monkeypatch.context() as patch:
        patch.setattr(steps, "evaluate_model", interrupt)
        assert cli.main(["train", *inputs]) == 130
    # A model was being saved.
    (run / "fine_tuned.partial").mkdir()
    (run / "fine_tuned.partial" / "model.safetensors").write_bytes(b"\0" * 8)
    with monkeypatch.context() as patch:
        # A step's folder had its name, its checkpoints were to be removed; at last the report was being written.
        patch.setattr(recipe.shutil, "rmtree", lambda *args, **kwargs: None)
        patch.setattr(recipe, "measure", interrupt)
        (run / "fine_tuned.partial" / "model.safetensors").unlink()
        assert cli.main(["train", *inputs]) == 130
    (run / "report.json.partial").write_text("{")
    assert {"checkpoints", "final", "report.json.partial"} <= {path.name for path in run.iterdir()}
    assert cli.main(["train", *inputs]) == 0
    names = ["command.json", "final", "fine_tuned", "report.json", "searched"]
    assert sorted(path.name for path in run.iterdir()) == names


def test_a_step_without_its_record_is_refused(inputs, tmp_path, capsys):
    assert cli.main(["train", *inputs]) == 0
    record = tmp_path / "run" / "searched" / "step.json"
    for damaged in (record.read_text()[:-10], None):
        capsys.readouterr()
        record.unlink() if damaged is None else record.write_text(damaged)
        assert cli.main(["train", *inputs]) == 2
        assert f"remove {record.parent} to have the step done again" in capsys.readouterr().err


def test_a_step_is_not_done_again_under_those_that_came_of_it(inputs, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["train", *inputs]) == 0
    for gone, left in (("fine_tuned", f"{run / 'searched'} and {run / 'final'}"), ("searched", f"{run / 'final'}")):
        (run / gone).rename(tmp_path / gone)
        assert cli.main(["train", *inputs]) == 2
        said = f"got {left} without {run / gone}; restore it, or remove what came of it too"
        assert said in capsys.readouterr().err
        (tmp_path / gone).rename(run / gone)
    shutil.rmtree(run / "final")
    assert cli.main(["train", *inputs]) == 0


def test_what_a_launcher_has_settled_makes_another_run(inputs, tmp_path, monkeypatch, capsys):
    """`accelerate launch --mixed_precision bf16` tells by the environment."""
    with monkeypatch.context() as launched:
        launched.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        assert cli.main(["train", *inputs]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["training"]["bf16"], report["training"]["fp16"]) == (True, False)
    assert cli.main(["train", *inputs]) == 2
    assert "with another mixed_precision" in capsys.readouterr().err


def test_report_times_a_run_against_all_baselines_where_asked_to(inputs, tmp_path):
    assert cli.main(["train", *inputs]) == 0
    assert cli.main(["report", str(tmp_path / "run"), "--measure"]) == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    longest = json.loads((tmp_path / "run" / "report.json").read_text())["retention_length"]
    for way in (f"padded to {longest}, arrival order", "dynamic padding, arrival order", "sorted by length"):
        assert page.count(f"stock, {way}") == 1
    assert "of 40 predictions" in page


def test_a_start_that_may_mislead_is_pointed_out(inputs, tmp_path, capsys, monkeypatch):
    """A PoWER-BERT that was trained to its configuration, and rows that it seems to know by heart."""

    def stop(*_):
        raise ValueError("far enough")

    assert cli.main(["train", *inputs]) == 0
    monkeypatch.setattr(recipe, "search_and_retrain", stop)
    start = [
        f"--model={tmp_path / 'run' / 'final'}",
        *inputs[1:],
        f"--output-dir={tmp_path / 'other'}",
        "--fine-tuned",
    ]
    capsys.readouterr()
    monkeypatch.setattr(recipe, "_KNOWN_BY_HEART", -1.0)
    assert cli.main(["train", *start]) == 2
    said = capsys.readouterr().out
    assert "the model's `retention_config` is set aside" in said
    assert "points higher on the tuning split, drawn of the training rows, than on the reported one" in said


def test_a_model_that_gives_all_texts_one_label_is_pointed_out(host, inputs, tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise ValueError("far enough")

    model = host.make_stock()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([9.0, -9.0]))
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(recipe, "search_and_retrain", stop)
    assert cli.main(["train", *inputs, "--max-steps=1"]) == 2
    assert "on the tuning split, where one answer to every text would reach 0.6667" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(4))
def test_a_tuning_split_of_one_label_is_pointed_out(inputs, capsys, monkeypatch, seed):
    """By f1, too, of which one answer to all texts has 0 where that label is the first of two."""

    def stop(*_):
        raise ValueError("far enough")

    monkeypatch.setattr(recipe, "search_and_retrain", stop)
    few = ["--max-steps=1", "--max-train-samples=12", "--metric=f1", f"--seed={seed}"]
    assert cli.main(["train", *inputs, *few]) == 2
    said = capsys.readouterr().out
    assert "the tuning split, 1 of the training rows, has one answer for all its texts, and tells nothing" in said
    assert "look whether" not in said
    assert "train longer" not in said


def test_what_a_tracker_draws_beside_the_checkpoints_stays(inputs, tmp_path, monkeypatch):
    def train(model, data, args):
        (Path(args.output_dir) / "runs" / "today").mkdir(parents=True)
        (Path(args.output_dir) / "runs" / "today" / "events").write_text("drawn")
        return steps.evaluate_step(steps.check_model(model, data, False), data, args, [])

    def stop(*_):
        raise ValueError("far enough")

    monkeypatch.setattr(recipe, "fine_tune", train)
    monkeypatch.setattr(recipe, "search_and_retrain", stop)
    assert cli.main(["train", *inputs]) == 2
    assert (tmp_path / "run" / "runs" / "fine_tuned" / "today" / "events").read_text() == "drawn"
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_each_training_has_a_run_of_its_own_at_a_tracker(inputs, tmp_path, monkeypatch):
    wandb, logs = MagicMock(__spec__=ModuleSpec("wandb", None), run=None), {}

    def init(name, **_):
        assert wandb.run is None
        wandb.run, logs[name] = MagicMock(), []
        wandb.run.finish = lambda: setattr(wandb, "run", None)
        wandb.log = logs[name].append

    wandb.init = init
    for name in ("wandb", "wandb.sdk", "wandb.sdk.lib", "wandb.sdk.lib.config_util"):
        monkeypatch.setitem(sys.modules, name, wandb)
    wandb.ConfigError = ZeroDivisionError
    assert cli.main(["train", *inputs, "--report-to=wandb", "--eval-strategy=epoch"]) == 0
    assert list(logs) == ["run-fine_tuned", "run-searched", "run-final"]
    assert wandb.run is None
    for name, points in logs.items():
        measured = [point["eval/accuracy"] for point in points if "eval/accuracy" in point]
        record = json.loads((tmp_path / "run" / name.removeprefix("run-") / "step.json").read_text())
        # Once an epoch on the tuning split; of the reported one nothing.
        assert measured == [entry["eval_accuracy"] for entry in record["history"] if "eval_accuracy" in entry]
        assert len(measured) == 1


def test_two_commands_do_not_share_a_folder(inputs, tmp_path, capsys):
    with run_folder.sole_use(tmp_path / "run"):
        assert cli.main(["train", *inputs]) == 2
    assert "One command at a time can use an `--output-dir`" in capsys.readouterr().err
    assert cli.main(["train", *inputs]) == 0


def test_a_fine_tuned_model_is_not_trained_on_all_word_vectors_again(host, inputs, tmp_path):
    stock = host.stock.from_pretrained(tmp_path / "model")
    stock.config.id2label = {0: "negative", 1: "positive"}
    stock.save_pretrained(tmp_path / "model")
    assert cli.main(["train", *inputs, "--fine-tuned"]) == 0
    kept = host.stock.from_pretrained(tmp_path / "run" / "fine_tuned")
    for name, weight in kept.state_dict().items():
        assert torch.equal(weight, stock.state_dict()[name]), name


def test_a_fine_tuned_model_keeps_its_order_of_labels(inputs, host, tmp_path):
    stock = host.stock.from_pretrained(tmp_path / "model")
    stock.config.id2label = {0: "Positive", 1: "Negative"}
    stock.save_pretrained(tmp_path / "model")
    assert cli.main(["train", *inputs, "--fine-tuned"]) == 0
    final = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "final")
    assert final.config.id2label == {0: "Positive", 1: "Negative"}


def test_a_fine_tuned_model_with_other_labels_is_refused(inputs, capsys, host, tmp_path):
    stock = host.stock.from_pretrained(tmp_path / "model")
    stock.config.id2label = {0: "spam", 1: "ham"}
    stock.save_pretrained(tmp_path / "model")
    assert cli.main(["train", *inputs, "--fine-tuned"]) == 2
    said = capsys.readouterr().err
    assert "must know the data's labels (negative, positive), got spam, ham, none of them negative, positive;" in said


def test_numbers_for_a_regression_are_to_be_floats(inputs, capsys, host, rows, tmp_path):
    host.make_stock(num_labels=1).save_pretrained(tmp_path / "model")
    for name in ("train", "eval"):
        Dataset.from_list([{**row, "label": len(row["text"]) % 2} for row in rows]).to_csv(tmp_path / f"{name}.csv")
    assert cli.main(["train", *inputs, "--fine-tuned"]) == 2
    assert "got a regression; write its numbers as floats, 1.0 for 1" in capsys.readouterr().err


def test_classes_are_to_be_whole_numbers(inputs, capsys, rows, tmp_path):
    for name in ("train", "eval"):
        Dataset.from_list([{**row, "label": len(row["text"]) % 2.0} for row in rows]).to_csv(tmp_path / f"{name}.csv")
    assert cli.main(["train", *inputs, "--fine-tuned"]) == 2
    said = capsys.readouterr().err
    assert "(a number), got LABEL_0, LABEL_1; write its classes as whole numbers, 1 for 1.0, or by name" in said


def test_a_fine_tuned_model_without_names_of_labels_or_without_a_head_is_refused(inputs, capsys, host, tmp_path):
    """Place-holders say nothing of what a number means, and a new head would make a poor base."""
    assert cli.main(["train", *inputs, "--fine-tuned"]) == 2
    assert "got LABEL_0, LABEL_1; set `id2label`" in capsys.readouterr().err
    labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    tokens = {"bert": BertForTokenClassification, "albert": AlbertForTokenClassification}[host.name]
    for kind in (host.stock_base, tokens):
        kind(host.stock_config(**host.fields, **labels)).save_pretrained(tmp_path / "model")
        assert cli.main(["train", *inputs, "--fine-tuned"]) == 2
        assert "classification head, got none" in capsys.readouterr().err


def test_rows_that_were_labelled_by_a_model_without_names(inputs, capsys, rows, tmp_path):
    """Their place-holders are the classes of what is trained on them, which goes on to know them."""
    for name, some in (("train", rows), ("eval", rows[:40])):
        labelled = [{**row, "label": f"LABEL_{int(row['label'] == 'positive')}"} for row in some]
        Dataset.from_list(labelled).to_csv(tmp_path / f"{name}.csv")
    assert cli.main(["train", *inputs]) == 0
    assert cli.main(["evaluate", str(tmp_path / "run" / "final"), f"--eval-file={tmp_path / 'eval.csv'}"]) == 0
    again = [f"--model={tmp_path / 'run' / 'fine_tuned'}", f"--output-dir={tmp_path / 'again'}"]
    assert cli.main(["train", *inputs, *again, "--fine-tuned"]) == 0


def test_an_incomplete_checkpoint_is_refused(inputs, capsys, host, tmp_path):
    """Rather than trained on from weights that were made up for it."""
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    assert cli.main(["train", *inputs]) == 2
    assert "missing or of another shape than its configuration says" in capsys.readouterr().err


def test_a_corrected_command_runs_after_one_that_was_refused(inputs, tmp_path):
    assert cli.main(["train", *inputs, "--text-columns=nothing"]) == 2
    assert not (tmp_path / "run").exists()
    assert cli.main(["train", *inputs, "--fine-tuned"]) == 2
    assert not (tmp_path / "run").exists()
    assert cli.main(["train", *inputs]) == 0


def test_tokens_are_not_written_down(inputs, tmp_path):
    assert cli.main(["train", *inputs, "--hub-token=hf_secret1", "--hub_token", "hf_secret2"]) == 0
    assert "hf_secret" not in (tmp_path / "run" / "command.json").read_text()


def test_models_of_either_library_can_be_given_as_they_are(host, batch):
    stock = host.make_stock()
    ours = recipe.load_classifier(stock, retention_config=[6, 4, 2])
    assert type(ours) is host.classifier
    ours.set_retention(None)
    assert torch.equal(ours.eval()(**batch).logits, stock(**batch).logits)
    other = recipe.load_classifier(stock, id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    assert other(**batch).logits.shape == (5, 3)


def test_what_else_a_checkpoint_would_return_is_left_out(inputs, host, tmp_path):
    stock = host.stock.from_pretrained(tmp_path / "model")
    stock.config.output_hidden_states, stock.config.return_dict = True, False
    stock.save_pretrained(tmp_path / "model")
    assert cli.main(["train", *inputs]) == 0


def test_memory_that_is_too_small_is_said_in_a_sentence(inputs, monkeypatch, capsys):
    def allocate(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(PoWERTrainer, "train", allocate)
    assert cli.main(["train", *inputs]) == 2
    assert "memory is too small; lower `--per-device-train-batch-size`" in capsys.readouterr().err


def test_the_paper_pads_to_the_longest_input_where_no_length_is_given(inputs, rows, tokenizer, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(recipe, "run_recipe", lambda _, data, *args, **named: seen.append(data) or 1 / 0)
    texts = [row["text"] for row in rows]
    # One that nothing is trained on is longer.
    longer = [{**rows[0], "text": " ".join(["good film"] * 25)}, *rows[1:3]]
    Dataset.from_list(longer).to_csv(tmp_path / "eval.csv")
    for options in ([], ["--max-length=30"]):
        with pytest.raises(ZeroDivisionError):
            cli.main(["train", *inputs, "--paper", *options])
    padded, given = seen
    assert padded.padded_to == max(padded.train["length"]) <= max(len(tokenizer(text)["input_ids"]) for text in texts)
    assert given.padded_to == 30
    columns = ["input_ids", "attention_mask", "labels"]
    batches = [padded.collator(split.select_columns(columns).to_list()) for split in (padded.train, padded.eval)]
    assert [batch["input_ids"].shape[1] for batch in batches] == [padded.padded_to, 52]


def test_words_are_a_unit_too(inputs, tmp_path):
    assert cli.main(["train", *inputs, "--retention-unit=words"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["retention_unit"] == "words"
    assert report["retention_config"][-1] == 1
    assert all(isinstance(count, int) for count in report["retention_config"])


def test_regression_and_pairs_train(host, rows, tokenizer, tmp_path, capsys):
    host.make_stock().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    pairs = [{"a, b": r["text"], "c": "the plot", "score": float(r["label"] == "positive")} for r in rows]
    Dataset.from_list(pairs).to_json(tmp_path / "rows.jsonl")
    path = str(tmp_path / "rows.jsonl")
    options = [f"--model={tmp_path / 'model'}", f"--train-file={path}", f"--eval-file={path}"]
    options += ["--text-columns", '"a, b",c', "--label-column=score", f"--output-dir={tmp_path / 'run'}"]
    assert cli.main(["train", *options, *FAST, "--label-smoothing-factor=0.1"]) == 2
    assert "is for one class a text, got labels of another kind (regression)" in capsys.readouterr().err
    assert cli.main(["train", *options, *FAST]) == 0
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    assert "cannot be shown" not in capsys.readouterr().out
    Dataset.from_list([{**pair, "score": 1 - pair["score"]} for pair in pairs]).to_json(tmp_path / "rows.jsonl")
    assert cli.main(["report", str(tmp_path / "run"), "--overwrite"]) == 0
    assert "must hold the texts and labels of the run, got others" in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["metric"] == "spearmanr"
    final = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "final")
    assert final.config.num_labels == 1
    assert final.config.problem_type == "regression"


def test_what_failed_before_its_first_checkpoint_claims_no_folder(inputs, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ImportError("You need to install something")

    with monkeypatch.context() as patch:
        patch.setattr(steps.PoWERTrainer, "train", fail)
        assert cli.main(["train", *inputs, "--optim=rmsprop"]) == 2
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoints", "command.json"]
    assert cli.main(["train", *inputs]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--eval-do-concat-batches=false"], "`--eval-do-concat-batches false` is not served"),
        (["--resume-from-checkpoint=nowhere"], "`--resume-from-checkpoint` is not served"),
        (["--lr-scheduler-type=warmup_stable_decay"], "missing 1 required positional argument: 'num_decay_steps'"),
        (['--lr-scheduler-kwargs={"power": 2}'], "`--lr-scheduler-type linear` does not go with"),
        (
            [
                "--lr-scheduler-type=polynomial",
                '--lr-scheduler-kwargs={"lr_end": 2e-4}',
                "--retraining-learning-rate=1e-4",
            ],
            "lr_end (0.0002) must be smaller than initial lr (0.0001); correct them",
        ),
        (["--report-to=wandb"], "`--report-to` cannot be served: WandbCallback requires wandb"),
        (["--save-only-model"], "leaves checkpoints that no training goes on from; leave it out"),
        (["--save-only-model", "--save-strategy=no"], "`--save-only-model` leaves checkpoints that no"),
        (
            ["--load-best-model-at-end", "--lr-scheduler-type=reduce_lr_on_plateau", "--eval-strategy=epoch"],
            "`--load-best-model-at-end` does not go with `--lr-scheduler-type reduce_lr_on_plateau`",
        ),
    ],
)
def test_what_would_fail_after_the_first_step_is_refused_before_it(inputs, tmp_path, capsys, options, message):
    assert cli.main(["train", *inputs, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_evaluate_measures_a_model_on_a_file(inputs, tmp_path, capsys):
    assert cli.main(["train", *inputs]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    capsys.readouterr()
    final, held_out = tmp_path / "run" / "final", tmp_path / "eval.csv"
    assert cli.main(["evaluate", str(final), f"--eval-file={held_out}", "--disable-tqdm=true"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["accuracy"] == pytest.approx(report["final"])
    assert printed["predicted_speedup"] == pytest.approx(report["predicted_speedup"])
    assert printed["rows"] == 40
    # A data set may hold nothing else.
    DatasetDict(test=Dataset.from_csv(str(held_out))).save_to_disk(tmp_path / "data")
    assert cli.main(["evaluate", str(final), f"--dataset={tmp_path / 'data'}", "--disable-tqdm=true"]) == 0
    assert json.loads(capsys.readouterr().out) == printed
    # What numbers in a file mean, the training split says, whatever the model's own order.
    order = ["positive", "negative"]
    named = Features(text=Value("string"), label=ClassLabel(names=order))
    DatasetDict(train=Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=named)).save_to_disk(
        tmp_path / "named"
    )
    numbered = Dataset.from_csv(str(held_out)).map(lambda row: {"label": str(order.index(row["label"]))})
    numbered.to_csv(tmp_path / "numbered.csv")
    sources = [f"--dataset={tmp_path / 'named'}", f"--eval-file={tmp_path / 'numbered.csv'}"]
    assert cli.main(["evaluate", str(final), *sources, "--disable-tqdm=true"]) == 0
    assert json.loads(capsys.readouterr().out) == printed
    (tmp_path / "other.csv").write_text("text,label\nthe film,spam\na film,ham\nit is,eggs\n")
    assert cli.main(["evaluate", str(final), f"--eval-file={tmp_path / 'other.csv'}", "--disable-tqdm=true"]) == 2
    assert "must know the data's labels (eggs, ham, spam), got negative, positive" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text-columns=nothing"], "There is no column 'nothing'; the data has text, label"),
        (["--task=squad"], "`--task` must be one of cola"),
        (["--train-file=nothing.csv"], "There is no file nothing.csv"),
        (["--retention-lambda=-1"], "`retention_lambda` must not be negative"),
        (["--max-steps=0"], "`--max-steps` must be at least 1, got 0"),
        (["--batch-eval-metrics=true"], "`--batch-eval-metrics` is not served"),
        (["--prediction-loss-only=true"], "`--prediction-loss-only` is not served"),
        (["--dataloader-drop-last=true"], "`--dataloader-drop-last` is not served"),
        (
            ["--eval-strategy=epoch", "--load-best-model-at-end=true", "--metric-for-best-model=acc"],
            "`--metric-for-best-model` must be one of loss, accuracy, f1, matthews_correlation here, got 'acc'",
        ),
    ],
)
def test_unusable_input_is_one_sentence_and_exit_2(inputs, options, message, tmp_path, capsys):
    assert cli.main(["train", *inputs, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "fine_tuned").exists()


def test_a_folder_with_something_else_is_left_alone(inputs, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    assert cli.main(["train", *inputs]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_other_architectures_are_refused(inputs, tmp_path, capsys):
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}))
    assert cli.main(["train", *inputs]) == 2
    assert "Only BERT and ALBERT models can be made faster here, got 'roberta'" in capsys.readouterr().err


def test_known_tasks_bring_their_published_hyperparameters(tmp_path, monkeypatch):
    from powerbert_hf.trainer import PoWERTrainingArguments

    kinds = [arguments.RecipeArguments, arguments.DataArguments, PoWERTrainingArguments]
    options = ["--model=m", "--dataset=nyu-mll/glue", "--subset=mrpc", f"--output_dir={tmp_path}"]

    def settled(*more):
        what, data, args = parsing.parse("train", [*options, *more], kinds)
        parsing.settle(what, args, tasks.TASKS[data.task])
        return what, args

    what, args = settled()
    assert (args.learning_rate, args.per_device_train_batch_size) == (6e-5, 64)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 4)
        assert settled("--use-cpu")[1].per_device_train_batch_size == 64
        patch.setattr(PoWERTrainingArguments, "n_gpu", property(lambda _: 4))
        assert settled()[1].per_device_train_batch_size == 16
        assert settled("--per-device-train-batch-size=64")[1].per_device_train_batch_size == 64
    assert parsing.parse("train", ["n", *options[1:]], kinds)[0].model == "n"
    assert args.save_strategy == "epoch"
    # Upstream's default may be asked for all the same.
    upstream = parsing.parse("train", [*options, "--output-dir=trainer_output"], kinds, require_output=True)
    assert upstream[-1].output_dir == "trainer_output"
    assert (settled("--save_steps=50")[1].save_strategy, settled("--save-steps=50")[1].save_steps) == ("steps", 50)
    assert settled("--save-steps=50", "--save-strategy=no")[1].save_strategy == "no"
    best = ["--load-best-model-at-end", "--eval-strategy=steps", "--eval-steps=50"]
    assert settled("--save-steps=50", *best)[1].load_best_model_at_end
    assert (what.retention_unit, args.speedup, args.retention_lambda) == ("fraction", 2.0, None)
    assert args.distillation > 0
    assert args.retraining_learning_rate == pytest.approx(0.3 * 6e-5)
    assert settled("--retraining-learning-rate=1e-5")[1].retraining_learning_rate == 1e-5
    what, args = settled("--paper")
    assert (what.retention_unit, args.speedup, args.distillation) == ("words", None, None)
    assert args.retraining_learning_rate is None
    assert (args.retention_learning_rate, args.retention_lambda) == (3e-3, 3e-3)
    _, args = settled("--paper", "--retention_learning_rate=1e-2")
    assert (args.retention_learning_rate, args.retention_lambda) == (1e-2, 3e-3)
    _, args = settled("--retention-lambda=0.1")
    assert (args.speedup, args.retention_lambda) == (None, 0.1)
