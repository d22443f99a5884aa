"""The three steps as functions, with models as they are; and a training that is ended, from without or by its loss."""

import os
import signal
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from conftest import Host
from powerbert_hf import PoWERTrainer, PoWERTrainingArguments, fine_tune, retrain, search_configuration
from powerbert_hf.budget import Budget
from powerbert_hf.checkpoint import load_classifier
from powerbert_hf.data import prepare_data
from powerbert_hf.recipe import constant_metric, predicted_speedup
from powerbert_hf.stopping import Terminated


@pytest.fixture
def stock():
    return Host("bert").make_stock()


@pytest.fixture
def task(rows, tokenizer, stock):
    return prepare_data(Dataset.from_list(rows), Dataset.from_list(rows[:16]), tokenizer, stock.config)


@pytest.fixture
def arguments(tmp_path):
    def arguments(folder="run", **fields):
        defaults = {"max_steps": 4, "learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
        return PoWERTrainingArguments(str(tmp_path / folder), **{**defaults, "distillation": 0.9, **fields})

    return arguments


def test_models_go_from_step_to_step_as_they_are(stock, task, arguments):
    tuned = fine_tune(stock, task, arguments("1")).model
    assert tuned.config.active_retention_mode == "off"
    before = {name: weights.clone() for name, weights in tuned.state_dict().items()}
    searched = search_configuration(tuned, task, arguments("2", speedup=1.5))
    assert len(searched.masses) == 3
    final = retrain(searched.model, task, arguments("3"), teacher=tuned)
    assert final.model.config.retention_config == searched.model.config.retention_config
    assert predicted_speedup(final.model.config, torch.tensor(task.tune["length"])) == pytest.approx(1.5, rel=0.1)
    # A teacher is not trained, and the first step's model is not the second one's.
    assert all(torch.equal(before[name], weights) for name, weights in tuned.state_dict().items())


def test_steps_learn_from_the_fine_tuned_model_and_choose_by_the_tuning_split(stock, task, arguments, monkeypatch):
    trained, make, train = [], PoWERTrainer.__init__, PoWERTrainer.train
    lengths = {}

    def look(self, *args, **named):
        make(self, *args, **named)
        lengths[self] = named.get("lengths")

    monkeypatch.setattr(PoWERTrainer, "__init__", look)
    monkeypatch.setattr(PoWERTrainer, "train", lambda self, **named: trained.append(self) or train(self, **named))
    tuned = fine_tune(stock, task, arguments("1")).model
    searched = search_configuration(tuned, task, arguments("2", speedup=1.5))
    retrain(searched.model, task, arguments("3"), teacher=tuned)
    assert [trainer.teacher is None for trainer in trained] == [True, False, False]
    assert all(trainer.eval_dataset is task.tune for trainer in trained)
    for trainer in trained[1:]:
        assert trainer.teacher.config.active_retention_mode == "off"
        assert torch.equal(trainer.teacher.classifier.weight, tuned.classifier.weight)
    assert list(lengths[trained[1]]) == list(task.tune["length"])


def test_a_head_that_begins_anew_follows_from_the_seed(task, arguments, tmp_path):
    Host("bert").make_stock("stock_base").save_pretrained(tmp_path / "base")
    heads = []
    for number in (1, 2):
        torch.manual_seed(number)
        heads.append(fine_tune(tmp_path / "base", task, arguments(str(number))).model.classifier.weight)
    assert torch.equal(*heads)


def test_steps_do_not_go_on_from_each_others_checkpoints(stock, task, arguments):
    args = arguments(speedup=1.5)
    tuned = fine_tune(stock, task, args).model
    for step in (
        lambda: search_configuration(tuned, task, args),
        lambda: retrain(
            load_classifier(stock, retention_config=[1.0, 0.5, 0.5], retention_unit="fraction"), task, args
        ),
    ):
        with pytest.raises(ValueError, match=r"Each step needs an `output_dir` of its own, got .*run, which holds"):
            step()


def test_models_are_measured_in_bfloat16_and_stay_as_they_were_trained(stock, task, arguments):
    assert fine_tune(stock, task, arguments(bf16_full_eval=True)).model.dtype == torch.float32


def test_re_training_has_a_learning_rate_of_its_own(stock, task, arguments):
    hard = load_classifier(stock, retention_config=[1.0, 0.5, 0.5], retention_unit="fraction")

    def rates(**fields):
        step = retrain(hard, task, arguments("lower" if fields else "usual", **fields))
        return [entry["learning_rate"] for entry in step.history if "learning_rate" in entry]

    assert rates(retraining_learning_rate=2e-4) == pytest.approx([0.2 * rate for rate in rates()])


def test_what_has_no_configuration_is_not_re_trained(stock, task, arguments):
    with pytest.raises(ValueError, match=r'`retention_config` must be set when `retention_mode` is "hard", got None'):
        retrain(stock, task, arguments())


@pytest.mark.parametrize(
    ("fields", "asked", "used"),
    [
        ({"speedup": 1.5}, None, "hide"),
        ({"speedup": 1.5}, "multiply", "multiply"),
        ({"retention_lambda": 1e-3}, None, "multiply"),
        ({"retention_lambda": 1e-3}, "hide", "hide"),
    ],
)
def test_how_a_search_removes_word_vectors(stock, task, arguments, monkeypatch, fields, asked, used):
    class Seen(Exception):
        pass

    def look(trainer, **_):
        assert trainer.model.config.retention_soft_extract == used
        raise Seen

    monkeypatch.setattr(PoWERTrainer, "train", look)
    with pytest.raises(Seen):
        search_configuration(stock, task, arguments(**fields), soft_extract=asked)


@pytest.mark.parametrize(
    "best",
    [
        {"load_best_model_at_end": True},
        {"metric_for_best_model": "loss", "greater_is_better": True},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "greater_is_better": True},
        {"metric_for_best_model": "loss", "greater_is_better": True, "save_strategy": "best"},
    ],
)
def test_the_best_model_of_a_search_is_its_last(stock, task, arguments, monkeypatch, best):
    """The best on the tuning split would be one that has lost few word-vectors yet."""
    monkeypatch.setattr(Trainer, "_load_best_model", lambda trainer: pytest.fail("an earlier model was taken"))
    # Of a loss that only falls, the highest is the first.
    often = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    args = arguments(**{"speedup": 1.5, "learning_rate": 1e-2, "save_total_limit": 1, **often, **best})
    found = []
    monkeypatch.setattr(Budget, "refine", lambda *_: found.append(get_last_checkpoint(args.output_dir)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        search_configuration(stock, task, args)
    assert [Path(checkpoint).name for checkpoint in found] == ["checkpoint-4"]
    assert args.save_total_limit == 1
    assert args.save_strategy == best.get("save_strategy", "steps")
    assert args.load_best_model_at_end == best.get("load_best_model_at_end", False)


def test_a_speed_up_between_whole_counts_is_pointed_out(stock, tokenizer, arguments, caplog):
    """Of three word-vectors each encoder keeps one, two or three."""
    texts = Dataset.from_list([{"text": word, "label": n % 2} for n, word in enumerate(["good", "bad"] * 16)])
    task = prepare_data(texts, texts, tokenizer, stock.config)
    search_configuration(stock, task, arguments(speedup=1.7))
    assert "no configuration like the one found has a speed-up of 1.7: it has 1." in caplog.text


@pytest.mark.parametrize("saved", [False, True])
def test_a_loss_that_is_lost_ends_a_training_before_the_weights(stock, task, arguments, monkeypatch, saved):
    compute_loss, steps = PoWERTrainer.compute_loss, []

    def lost(trainer, *args, **kwargs):
        steps.append(1)
        return compute_loss(trainer, *args, **kwargs) * (float("nan") if len(steps) == 3 else 1.0)

    monkeypatch.setattr(PoWERTrainer, "compute_loss", lost)
    args = arguments(save_strategy="steps", save_steps=2 if saved else 100)
    with pytest.raises(ValueError, match="must be finite, got nan in step 3 of 4") as refusal:
        fine_tune(stock, task, args)
    said = f"{get_last_checkpoint(args.output_dir)} is from before." if saved else "No checkpoint had been written."
    assert str(refusal.value).endswith(said)


@pytest.mark.parametrize("best", [False, True])
def test_sigterm_ends_a_training_with_a_checkpoint_that_it_goes_on_from(stock, task, arguments, monkeypatch, best):
    fields = {}
    if best:
        # The highest loss is that of the first step.
        often = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
        fields = {**often, "load_best_model_at_end": True, "greater_is_better": True, "save_total_limit": 1}
    wanted = fine_tune(stock, task, arguments("undisturbed", **fields)).model.state_dict()
    compute_loss, steps = PoWERTrainer.compute_loss, []

    def told(trainer, model, *args, **kwargs):
        steps.extend([1] * model.training)
        if len(steps) == 2 and model.training:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute_loss(trainer, model, *args, **kwargs)

    monkeypatch.setattr(PoWERTrainer, "compute_loss", told)
    with pytest.raises(Terminated, match="after step 2 of 4; the same command goes on from") as leave:
        fine_tune(stock, task, arguments(**fields))
    assert leave.value.status == 128 + signal.SIGTERM
    assert str(leave.value).endswith("checkpoint-2")
    found = fine_tune(stock, task, arguments(**fields)).model.state_dict()
    assert len(steps) == 4
    assert all(torch.equal(found[name], weights) for name, weights in wanted.items())


def test_the_last_checkpoint_is_there_until_the_step_is_saved(stock, task, arguments):
    often = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    args = arguments(**often, metric_for_best_model="loss", greater_is_better=True, save_total_limit=1)
    fine_tune(stock, task, args)
    assert Path(get_last_checkpoint(args.output_dir)).name == "checkpoint-4"


def test_told_after_its_last_step_a_training_does_not_promise_a_checkpoint(stock, task, arguments, monkeypatch):
    evaluate = PoWERTrainer.evaluate

    def told(trainer, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(trainer, *args, **kwargs)

    monkeypatch.setattr(PoWERTrainer, "evaluate", told)
    with pytest.raises(Terminated, match="told to leave after step 4 of 4; no checkpoint had been written"):
        fine_tune(stock, task, arguments(save_strategy="no", eval_strategy="steps", eval_steps=4))


def test_a_training_that_goes_on_saves_as_often_as_is_asked_for_now(stock, task, arguments, monkeypatch):
    compute_loss, steps = PoWERTrainer.compute_loss, []

    def interrupted(trainer, *args, **kwargs):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return compute_loss(trainer, *args, **kwargs)

    monkeypatch.setattr(PoWERTrainer, "compute_loss", interrupted)
    saved = {"save_strategy": "steps", "max_steps": 5}
    with pytest.raises(KeyboardInterrupt):
        fine_tune(stock, task, arguments(save_steps=2, **saved))
    args = arguments(save_steps=1, **saved)
    fine_tune(stock, task, args)
    names = sorted(path.name for path in Path(args.output_dir).glob("checkpoint-*"))
    assert names == [f"checkpoint-{step}" for step in (2, 3, 4, 5)]


def labelled(tokenizer, labels, metric=None, **fields):
    frame = Dataset.from_list([{"text": "good film", "label": label} for label in labels])
    task = prepare_data(frame, frame, tokenizer, Host("bert").make_stock(**fields).config, metric=metric)
    return type(task)(**{**vars(task), "tune": task.eval})


@pytest.mark.parametrize(
    ("labels", "metric", "expected"),
    [
        (["no"] * 3 + ["yes"], "accuracy", 0.75),
        # All "yes": one of four right, all found.
        (["no"] * 3 + ["yes"], "f1", 0.4),
        (["no"] * 3 + ["yes"], "matthews_correlation", 0.0),
        (["a", "b", "b", "c", "d", "d", "d"], "accuracy", 3 / 7),
        ([["a"], ["a"], ["a", "b"], []], "subset_accuracy", 0.5),
        # Everything to all: four of eight right, all four found.
        ([["a"], ["a"], ["b"], ["b"]], "f1_micro", 2 / 3),
        # Micro: the first label alone, 9 of 20 right, 9 of 20 found; macro: everything to all.
        ([["a"]] * 9 + [[name] for name in "bcdefghijkl"], "f1_micro", 0.45),
        ([["a"]] * 2 + [["b"]], "f1_macro", (4 / 5 + 2 / 4) / 2),
        ([["a"]] * 4 + [["b"]] * 3 + [["c"]] * 3, "subset_accuracy", 0.4),
        ([0.5, 1.5, 2.5], None, 0.0),
    ],
)
def test_what_one_answer_to_every_text_would_reach(tokenizer, labels, metric, expected):
    assert constant_metric(labelled(tokenizer, labels, metric)) == pytest.approx(expected)
