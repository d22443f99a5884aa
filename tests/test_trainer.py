"""The loss term, the optimizer's group, the clamp, the logs; on a few steps of a tiny model."""

import logging
import os
from functools import partial

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    trainer_pt_utils,
)
from transformers.utils import logging as transformers_logging

from conftest import Host, without_dropout
from powerbert_hf import PoWERTrainer, PoWERTrainingArguments
from powerbert_hf.callbacks import LeaveWhenTold
from powerbert_hf.cost import predicted_speedup
from powerbert_hf.retention import retention_mass
from powerbert_hf.stopping import Terminated
from powerbert_hf.trainer import distillation_loss

SOFT = {"retention_mode": "soft", "retention_length": 24, "retention_unit": "fraction"}
HARD = {"retention_config": [0.6, 0.4, 0.2], "retention_unit": "fraction"}
MODES = {"soft": SOFT, "hard": HARD, "off": {}}


@pytest.fixture
def dataset(tokenizer, rows):
    encoded = tokenizer([row["text"] for row in rows])
    return Dataset.from_dict({**encoded, "labels": [int(row["label"] == "positive") for row in rows]})


def make_trainer(model, dataset, tokenizer, folder, **fields):
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "seed": 0,
    }
    args = PoWERTrainingArguments(**{**defaults, **fields})
    return PoWERTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tokenizer,
        data_collator=None if tokenizer is None else DataCollatorWithPadding(tokenizer),
    )


def test_loss_is_task_loss_plus_lambda_times_penalty(host, batch, dataset, tokenizer, tmp_path):
    model = host.make(**SOFT)
    trainer = make_trainer(model, dataset, tokenizer, tmp_path, retention_lambda=0.01)
    inputs = {**batch, "labels": torch.tensor([0, 1, 0, 1, 0])}
    without_dropout(model)
    model.train()
    outputs = model(**inputs)
    expected = outputs.loss + 0.01 * (1 * 24 + 2 * 24)
    assert trainer.compute_loss(model, inputs).item() == pytest.approx(expected.item(), abs=1e-6)
    model.eval()
    # Evaluation reports the task's loss alone.
    assert trainer.compute_loss(model, inputs).item() == pytest.approx(outputs.loss.item(), abs=1e-6)


def test_retention_weights_have_a_group_of_their_own_without_decay(host, dataset, tokenizer, tmp_path):
    model = host.make(**SOFT)
    fields = {"weight_decay": 0.1, "retention_learning_rate": 0.03}
    optimizer = make_trainer(model, dataset, tokenizer, tmp_path, **fields).create_optimizer()
    *others, ours = optimizer.param_groups
    assert [id(parameter) for parameter in ours["params"]] == [id(model.retention_weights)]
    assert (ours["lr"], ours["weight_decay"]) == (0.03, 0.0)
    seen = [parameter for group in others for parameter in group["params"]]
    assert all(parameter is not model.retention_weights for parameter in seen)
    assert len(seen) + 1 == len(list(model.parameters()))
    assert {group["weight_decay"] for group in others} == {0.1, 0.0}


def test_masses_fall_and_weights_stay_in_range(host, dataset, tokenizer, tmp_path):
    model = host.make(**SOFT)
    trainer = make_trainer(
        model, dataset, tokenizer, tmp_path, max_steps=20, retention_lambda=100.0, retention_learning_rate=0.1
    )
    trainer.train()
    weights = model.retention_weights.detach()
    assert weights.min() >= 0
    assert weights.max() <= 1
    assert torch.equal(weights[:, 0], torch.ones(3))
    # Lambda outweighs the task: every weight but [CLS]'s falls to 0, in all encoders but the last.
    assert torch.equal(weights[:2, 1:], torch.zeros(2, 23))
    assert torch.equal(weights[2], torch.ones(24))


def test_logs_hold_the_parts_of_the_loss_and_the_masses(host, dataset, tokenizer, tmp_path):
    model = host.make(**SOFT)
    trainer = make_trainer(model, dataset, tokenizer, tmp_path, max_steps=2, retention_lambda=0.01, logging_steps=2)
    trainer.train()
    logged = trainer.state.log_history[0]
    # A Trainer's log rounds nothing, and both steps weigh the same.
    total = logged["task_loss"] + 0.01 * logged["retention_penalty"]
    assert logged["loss"] == pytest.approx(total, abs=1e-5)
    assert [logged[f"retention_mass_{encoder}"] for encoder in (1, 2, 3)] == pytest.approx(
        model.retention_weights.sum(1).tolist()
    )


def test_default_rate_lets_a_weight_just_fall_from_1_to_0_or_is_that_of_masses(host, dataset, tokenizer, tmp_path):
    for fields, steps, rate in (
        ({}, 50, 2 / 50),
        # Chance adds up by the root of the number of steps.
        ({"speedup": 2.0}, 200, 0.025),
        ({"speedup": 2.0}, 800, 0.0125),
        # Of few steps chance would decide.
        ({"speedup": 2.0}, 50, 0.025),
        ({"retention_learning_rate": 0.3}, 50, 0.3),
    ):
        trainer = make_trainer(host.make(**SOFT), dataset, tokenizer, tmp_path, **fields)
        trainer.create_optimizer_and_scheduler(num_training_steps=steps)
        assert trainer.optimizer.param_groups[-1]["lr"] == pytest.approx(rate)
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_an_optimizer_of_the_users_own_keeps_its_rates(host, dataset, tokenizer, tmp_path):
    trainer = make_trainer(host.make(**SOFT), dataset, tokenizer, tmp_path)
    trainer.optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=3e-5)
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [3e-5]


def rows_of_one_length():
    ids = torch.randint(5, 20, (16, 10), generator=torch.Generator().manual_seed(0)).tolist()
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 10] * 16, "labels": [0, 1] * 8})


def train_with_stock_trainer(model, dataset, tokenizer, folder):
    fields = {"max_steps": 3, "use_cpu": True, "dataloader_pin_memory": False, "disable_tqdm": True}
    args = TrainingArguments(output_dir=str(folder), save_strategy="no", **fields)
    Trainer(model, args, train_dataset=dataset, processing_class=tokenizer).train()


def one_plain_step(host, mode, folder, **fields):
    """Loss and weights after a step of SGD, so that weights tell gradients.

    Texts of one length, so that a mean of means is the mean; no dropout, so that only the arithmetic counts.
    """
    model = without_dropout(host.make(**MODES[mode]))
    plain = {
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.1,
        "retention_learning_rate": 1.0,
        "max_grad_norm": 0.0,
    }
    trainer = make_trainer(model, rows_of_one_length(), None, folder, **plain, **fields)
    trainer.train()
    return trainer.state.log_history[0], {name: value.detach() for name, value in model.named_parameters()}


def assert_same_step(found, wanted):
    assert found[0]["loss"] == pytest.approx(wanted[0]["loss"], abs=1e-5)
    for name, value in wanted[1].items():
        torch.testing.assert_close(found[1][name], value, atol=2e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulated_gradients_equal_those_of_one_batch(host, mode, tmp_path, smoothing):
    def step(size, accumulated):
        return one_plain_step(
            host,
            mode,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            label_smoothing_factor=smoothing,
        )

    whole = step(16, 1)
    assert_same_step(step(8, 2), whole)
    assert_same_step(step(4, 4), whole)


def step_as_rank(rank, host, folder):
    os.environ.update(rank)
    heard = []
    handler = logging.Handler()
    handler.emit = heard.append
    logging.getLogger("powerbert_hf").addHandler(handler)
    for mode in MODES:
        step = one_plain_step(Host(host), mode, folder, per_device_train_batch_size=8, label_smoothing_factor=0.1)
        torch.save(step, f"{folder}/{mode}-{rank['RANK']}.pt")
    assert not heard
    train_with_stock_trainer(Host(host).make(**SOFT), rows_of_one_length(), None, folder)
    assert len(heard) == 1


def test_two_processes_train_as_one_does(host, start, as_rank, tmp_path):
    ranks = [start(step_as_rank, rank, host.name, tmp_path) for rank in as_rank]
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    for mode in MODES:
        wanted = one_plain_step(host, mode, tmp_path, per_device_train_batch_size=16, label_smoothing_factor=0.1)
        first, second = [torch.load(tmp_path / f"{mode}-{rank}.pt") for rank in "01"]
        assert_same_step(first, wanted)
        assert all(torch.equal(second[1][name], value) for name, value in first[1].items())
        if mode == "soft":
            # Of both processes' halves, not of one's.
            assert first[0]["task_loss"] == pytest.approx(wanted[0]["task_loss"], abs=1e-5)


def test_a_loss_of_the_users_own_is_accumulated_right(host, dataset, tokenizer, tmp_path):
    masses = []
    for steps in (1, 4):
        model = host.make(**SOFT)
        trainer = make_trainer(
            model,
            dataset,
            tokenizer,
            tmp_path,
            gradient_accumulation_steps=steps,
            max_steps=1,
            optim="sgd",
            retention_learning_rate=1.0,
            retention_lambda=0.01,
            max_grad_norm=0.0,
        )
        trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum() * 0
        trainer.train()
        masses.append(model.retention_weights.detach().sum(1))
    torch.testing.assert_close(masses[0], masses[1])
    torch.testing.assert_close(masses[0], torch.tensor([24 - 23 * 0.01, 24 - 23 * 0.02, 24.0]))


class RecordRates(TrainerCallback):
    def __init__(self):
        self.rates = {}

    def on_step_end(self, args, state, control, optimizer, **kwargs):
        self.rates[state.global_step] = [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("asked", [{"speedup": 2.0}, {"retention_lambda": 0.01}])
def test_gradients_of_hidden_word_vectors_do_not_keep_the_others_from_learning(host, tmp_path, asked):
    """That of one hidden nearly wholly can be large: with it in the norm, all else would be clipped away."""

    def trained(factor):
        model = without_dropout(host.make(**SOFT))
        model.retention_weights.register_hook(lambda gradient: gradient * factor)
        plain = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "retention_learning_rate": 1e-9}
        trainer = make_trainer(model, rows_of_one_length(), None, tmp_path, max_grad_norm=0.01, **plain, **asked)
        trainer.train()
        log = trainer.state.log_history[0]
        return {name: value for name, value in model.named_parameters() if "retention" not in name}, log["grad_norm"]

    (found, found_norm), (wanted, norm) = trained(1e8), trained(1.0)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=2e-6, rtol=1e-5, msg=name)
    assert found_norm == norm
    # And they are clipped.
    before = without_dropout(host.make(**SOFT)).state_dict()
    moved = torch.stack([(value - before[name]).norm() for name, value in wanted.items()]).norm()
    assert norm > 0.01
    assert 0 < moved <= 2 * 0.1 * 0.01 * 1.01


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_resumed_search_ends_where_an_uninterrupted_one_does(host, dataset, tokenizer, tmp_path, strategy):
    """Also in the middle of the second epoch, whose order must be found again; with dropout."""

    def search(checkpoint=None):
        fields = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 4, "retention_lambda": 0.01}
        trainer = make_trainer(
            host.make(**SOFT), dataset, tokenizer, tmp_path, train_sampling_strategy=strategy, **fields
        )
        trainer.add_callback(record := RecordRates())
        trainer.train(resume_from_checkpoint=checkpoint)
        return dict(trainer.model.named_parameters()), record.rates

    whole, rates = search()
    assert not torch.equal(whole[f"{host.name}.encoder.retention_weights"], torch.ones(3, 24))
    for checkpoint in (4, 8, 12):
        resumed, resumed_rates = search(str(tmp_path / f"checkpoint-{checkpoint}"))
        for name, wanted in whole.items():
            assert torch.equal(resumed[name], wanted), (checkpoint, name)
        assert resumed_rates == {step: rate for step, rate in rates.items() if step > checkpoint}


def test_groups_by_length_differ_by_epoch_and_hold_every_row_once(host, dataset, tokenizer, tmp_path):
    fields = {"train_sampling_strategy": "group_by_length", "seed": 5}
    first, second = [
        make_trainer(host.make(), dataset, tokenizer, tmp_path, **fields)._get_train_sampler() for _ in range(2)
    ]
    orders = []
    for epoch in (0, 1):
        first.set_epoch(epoch)
        second.set_epoch(epoch)
        orders.append(list(first))
        assert list(second) == orders[-1]
        assert sorted(orders[-1]) == list(range(64))
    assert orders[0] != orders[1]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "strategy",
    [
        "group_by_length",
        "random",
        pytest.param(
            "batch_rebalance",
            marks=pytest.mark.skipif(not hasattr(trainer_pt_utils, "BatchRebalanceSampler"), reason="a later version"),
        ),
    ],
)
def test_an_epoch_that_is_resumed_goes_on_in_its_own_order(dataset, tokenizer, tmp_path, processes, strategy):
    """As the `Trainer` does it, with what accelerate makes of a loader in one of two processes."""

    def prepared():
        trainer = make_trainer(Host("bert").make(), dataset, tokenizer, tmp_path, train_sampling_strategy=strategy)
        sampler = trainer._get_train_sampler()
        balanced = strategy == "batch_rebalance"
        batches = {"batch_sampler": sampler} if balanced else {"batch_size": 4, "sampler": sampler}
        stock = DataLoader(range(64), **batches)
        options = {"num_processes": processes, "process_index": processes - 1, "use_seedable_sampler": True}
        return trainer.callback_handler, prepare_data_loader(stock, put_on_device=False, **options), sampler

    _, loader, sampler = prepared()
    epochs = []
    for epoch in range(3):
        if strategy == "batch_rebalance":
            # As upstream does it, where nothing is skipped.
            sampler.set_epoch(epoch)
        epochs.append([batch.tolist() for batch in loader])
    assert epochs[0] != epochs[1] != epochs[2]
    handler, loader, _ = prepared()
    handler.train_dataloader = loader
    handler.on_epoch_begin(None, TrainerState(epoch=1 + 3 / len(epochs[1])), TrainerControl())
    rest = skip_first_batches(loader, 3)
    rest.set_epoch(1)
    assert [batch.tolist() for batch in rest] == epochs[1][3:]


def test_masses_are_learned_once_the_budget_is_reached(dataset, tokenizer, tmp_path):
    model = Host("bert").make(**SOFT, retention_soft_extract="hide")
    trainer = make_trainer(model, dataset, tokenizer, tmp_path, speedup=2.0, max_steps=10)
    seen = []

    class Record(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            seen.append(model.retention_weights.detach().double().sum(dim=1))

    trainer.add_callback(Record())
    trainer.train()
    masses = torch.full((3,), 24.0).double()
    for step in range(1, 11):
        masses = trainer._budget.hold(masses, step / 10)
        alike = torch.allclose(seen[step - 1], masses, atol=1e-3)
        assert alike == (step <= 4), step


@pytest.mark.parametrize("fields", [SOFT, HARD])
def test_arguments_without_our_fields_are_refused(dataset, tmp_path, fields):
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="must be `PoWERTrainingArguments`, got TrainingArguments"):
        PoWERTrainer(Host("bert").make(**fields), args, train_dataset=dataset)


@pytest.mark.parametrize("goal", [{"speedup": 1.5}, {"retention_lambda": 1.0}])
def test_frozen_retention_weights_are_refused(dataset, tokenizer, tmp_path, goal):
    model = Host("bert").make(**SOFT)
    for parameter in model.base_model.parameters():
        parameter.requires_grad = False
    with pytest.raises(ValueError, match="must be trained in a search, got frozen ones"):
        make_trainer(model, dataset, tokenizer, tmp_path, **goal)


def told_in_step_2(trainer):
    """Callbacks of a training that is told to leave then: one that tells it and notes what follows, and ours."""

    class Told(TrainerCallback):
        def __init__(self):
            self.saved, self.evaluated = [], []

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                trainer.accelerator.set_trigger()

        def on_save(self, args, state, control, **kwargs):
            self.saved.append(state.global_step)

        def on_evaluate(self, args, state, control, **kwargs):
            self.evaluated.append(state.global_step)

    callbacks = Told(), LeaveWhenTold(trainer.accelerator)
    for callback in callbacks:
        trainer.add_callback(callback)
    return callbacks


@pytest.mark.parametrize("strategy", ["epoch", "no"])
def test_told_to_leave_a_training_is_saved_once(dataset, tokenizer, tmp_path, strategy):
    """Not a second time over the only checkpoint that there is."""
    trainer = make_trainer(Host("bert").make(), dataset, tokenizer, tmp_path, save_strategy=strategy)
    told, leave = told_in_step_2(trainer)
    trainer.train()
    assert leave.told
    assert told.saved == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize(("evaluation", "measured"), [("epoch", []), ("steps", [1])])
def test_told_to_leave_a_training_that_saves_its_best_is_saved_unmeasured(
    dataset, tokenizer, tmp_path, evaluation, measured
):
    """Else upstream would save it again with a metric from amid an epoch, or not at all, after it had measured."""
    fields = {"save_strategy": "best", "metric_for_best_model": "loss", "eval_strategy": evaluation, "eval_steps": 1}
    trainer = make_trainer(Host("bert").make(), dataset, tokenizer, tmp_path, **fields)
    told, _ = told_in_step_2(trainer)
    trainer.train()
    assert told.evaluated == measured
    assert told.saved == [*measured, 2]


@pytest.fixture
def warned(caplog):
    """Upstream remembers over all calls what it has warned of once."""
    transformers_logging.warning_once.cache_clear()
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("powerbert_hf")]


@pytest.mark.parametrize("mode", MODES)
def test_the_stock_trainer_trains_any_mode_and_says_once_what_a_search_lacks(
    host, dataset, tokenizer, tmp_path, mode, warned
):
    model = host.make(**MODES[mode])
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    train_with_stock_trainer(model, dataset, tokenizer, tmp_path)
    assert all(not torch.equal(before[name], value) for name, value in model.named_parameters() if "bias" not in name)
    assert len(warned()) == (mode == "soft")
    assert all("are trained without their penalty" in line for line in warned())


def test_who_takes_the_penalty_is_not_warned(host, batch, dataset, tokenizer, tmp_path, warned):
    make_trainer(host.make(**SOFT), dataset, tokenizer, tmp_path, max_steps=1, label_smoothing_factor=0.1).train()
    model = host.make(**SOFT).train()
    for lam in (0.01, 0.0):
        outputs = model(**batch, labels=torch.tensor([0, 1, 0, 1, 0]))
        (outputs.loss + lam * outputs.retention_penalty).backward()
    # Nor who only reads a model's gradients.
    model.eval()(**batch).logits.sum().backward()
    assert not warned()
    model.train()(**batch).logits.sum().backward()
    assert len(warned()) == 1


def test_hard_mode_trains_as_an_upstream_trainer_would(host, dataset, tokenizer, tmp_path):
    trained = []
    for name in ("ours", "upstream"):
        model = host.make(retention_config=[0.6, 0.4, 0.2], retention_unit="fraction")
        trainer = make_trainer(model, dataset, tokenizer, tmp_path / name, max_steps=3)
        if name == "upstream":
            trainer = Trainer(model, trainer.args, trainer.data_collator, dataset, processing_class=tokenizer)
        trainer.train()
        assert "retention_penalty" not in trainer.state.log_history[0]
        trained.append((trainer.state.log_history[0]["loss"], model.state_dict()))
    (loss, ours), (upstream_loss, upstream) = trained
    assert loss == upstream_loss
    assert all(torch.equal(ours[name], weights) for name, weights in upstream.items())


@pytest.mark.parametrize("mode", MODES)
def test_predictions_are_the_logits_alone_whatever_else_the_model_returns(host, dataset, tokenizer, tmp_path, mode):
    model = host.make(**MODES[mode])
    predictions = make_trainer(model, dataset, tokenizer, tmp_path).predict(dataset).predictions
    batch = tokenizer.pad(dataset.remove_columns("labels")[:], return_tensors="pt")
    torch.testing.assert_close(torch.tensor(predictions), model(**batch).logits.detach(), atol=1e-5, rtol=0)


def test_replicas_of_a_data_parallel_model_are_logged_as_one(host, dataset, tokenizer, tmp_path, monkeypatch):
    """A last batch may have rows for fewer of them."""
    trainer, replicas = make_trainer(host.make(**SOFT), dataset, tokenizer, tmp_path), iter([3, 2])

    def of_replicas(*args, **kwargs):
        number = next(replicas)
        outputs = {"retention_penalty": torch.full((number,), 4.0)}
        return torch.arange(1.0, 1 + number), outputs

    monkeypatch.setattr(Trainer, "compute_loss", of_replicas)
    for _ in range(2):
        trainer.compute_loss(trainer.model.train(), {})
    logs = {"loss": 0.0}
    trainer.log(logs)
    assert (logs["task_loss"], logs["retention_penalty"]) == (1.75, 4.0)


def test_retention_weights_in_half_precision_are_refused(host, dataset, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"must be trained in torch.float32, got torch.bfloat16"):
        make_trainer(host.make(**SOFT).bfloat16(), dataset, tokenizer, tmp_path)


@pytest.mark.parametrize("field", [{"retention_lambda": -1.0}, {"retention_learning_rate": 0.0}])
def test_unusable_arguments_are_refused(field, tmp_path):
    with pytest.raises(ValueError, match=f"`{next(iter(field))}` must"):
        PoWERTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **field)


@pytest.mark.parametrize("steps", [6, 24])
@pytest.mark.parametrize("unit", ["fraction", "words"])
def test_a_search_has_the_speed_up_that_was_asked_for_whatever_the_steps(
    host, dataset, tokenizer, tmp_path, steps, unit
):
    model = host.make(**{**SOFT, "retention_unit": unit}, retention_soft_extract="hide")
    trainer = make_trainer(model, dataset, tokenizer, tmp_path, max_steps=steps, speedup=2.0)
    trainer.train()
    weights = model.retention_weights.detach()
    assert weights.min() >= 0
    assert weights.max() <= 1
    model.set_retention(trainer.retention_config)
    model.config.retention_mode = None
    lengths = torch.tensor([len(ids) for ids in dataset["input_ids"]])
    assert predicted_speedup(model.config, lengths) == pytest.approx(2.0, rel=0.03)


def test_a_resumed_search_for_a_speed_up_is_the_uninterrupted_one(dataset, tokenizer, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    def searching(folder):
        model = without_dropout(Host("bert").make(**SOFT, retention_soft_extract="hide"))
        fields = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "speedup": 2.0}
        return make_trainer(model, dataset, tokenizer, folder, **fields)

    whole, first, second = (searching(tmp_path / name) for name in ("whole", "parts", "parts"))
    whole.train()
    first.add_callback(Stop())
    first.train()
    second.train(resume_from_checkpoint=True)
    torch.testing.assert_close(second.model.retention_weights, whole.model.retention_weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize("share", [0.75, None])
def test_a_search_ends_with_the_loss_of_what_will_be_run(host, dataset, tokenizer, tmp_path, share):
    """The teacher has its part of it; what is logged is the loss of the configuration, on the training rows.

    Each row counts as much as any other, those of a last, smaller batch too.
    """
    model = host.make(**SOFT, retention_soft_extract="hide")
    dataset = dataset.select(range(33))
    fields = {"speedup": 2.0, "max_steps": 8, "distillation": share, "label_smoothing_factor": 0.1}
    trainer = make_trainer(model, dataset, tokenizer, tmp_path, **fields)
    trainer.teacher = teacher = None if share is None else host.make_stock()
    trainer.train()
    logged = trainer.state.log_history[-1]
    assert logged["refined_to"] <= logged["refined_from"]
    assert model.config.active_retention_mode == "soft"
    assert model.config.retention_config is None
    masses = model.retention_weights.double().sum(dim=1)
    assert trainer._budget.cost(masses.detach()).item() == pytest.approx(0.5, rel=0.01)
    model.set_retention(trainer.retention_config)
    losses, rows = [], []
    for inputs in trainer.get_train_dataloader():
        labels = inputs.pop("labels")
        with torch.no_grad():
            answers = model.eval()(**inputs).logits
            loss = nn.functional.cross_entropy(answers, labels, label_smoothing=0.1)
            if teacher is not None:
                wanted = teacher.eval()(**inputs).logits.log_softmax(-1)
                far = (wanted.exp() * (wanted - answers.log_softmax(-1))).sum(-1).mean()
                loss = 0.25 * loss + 0.75 * far
        losses.append(loss.item() * len(labels))
        rows.append(len(labels))
    assert min(rows) < 8
    assert sum(losses) / sum(rows) == pytest.approx(logged["refined_to"], abs=1e-6)


def test_a_search_that_was_stopped_is_not_refined(dataset, tokenizer, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    trainer = make_trainer(Host("bert").make(**SOFT), dataset, tokenizer, tmp_path, speedup=2.0, max_steps=4)
    trainer.add_callback(Stop())
    trainer.train()
    assert not any("refined_to" in entry for entry in trainer.state.log_history)


class Wrapped(nn.Module):
    """A head of the user's own around a soft model."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.config = model, model.config

    def forward(self, input_ids, attention_mask, labels):
        return dict(self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels))


class Reaching(Wrapped):
    @property
    def retention_weights(self):
        return self.inner.retention_weights


def test_a_soft_model_inside_another_is_searched_or_refused(host, dataset, tokenizer, tmp_path):
    soft = {**SOFT, "retention_soft_extract": "hide"}
    with pytest.raises(ValueError, match=r"got a Wrapped that only holds .* property `retention_weights`"):
        make_trainer(Wrapped(host.make(**soft)), dataset, tokenizer, tmp_path, speedup=1.5)
    trainer = make_trainer(Reaching(host.make(**soft)), dataset, tokenizer, tmp_path, speedup=1.5, max_steps=8)
    trainer.train()
    masses = retention_mass(trainer.model.retention_weights.detach().double())
    assert trainer._budget.cost(masses).item() == pytest.approx(1 / 1.5, rel=0.01)


@pytest.mark.parametrize("goal", [{"speedup": 1.5}, {"retention_lambda": 0.1}])
def test_what_has_changed_since_a_trainer_was_built_is_refused(host, dataset, tokenizer, tmp_path, goal):
    def built(**fields):
        return make_trainer(host.make(**SOFT, **fields), dataset, tokenizer, tmp_path, max_steps=2, **goal)

    trainer = built()
    trainer.model.requires_grad_(False)
    with pytest.raises(ValueError, match="got frozen ones"):
        trainer.train()
    trainer = built()
    trainer.model.bfloat16()
    with pytest.raises(ValueError, match=r"must be trained in torch.float32, got torch.bfloat16"):
        trainer.train()
    trainer = built()
    trainer.train()
    trainer.model.set_retention([0.9, 0.5, 0.1])
    trainer.model_wrapped = trainer.model = host.make(**HARD)
    with pytest.raises(ValueError, match="got another mode; build a new one"):
        trainer.train()
    trainer = built()
    trainer.args.speedup = 1.7
    with pytest.raises(ValueError, match=r"got another `speedup` \(1.7\), or `retention_length` \(24\)"):
        trainer.train()


def test_a_second_training_has_the_rate_and_the_logs_of_its_own(dataset, tokenizer, tmp_path):
    trainer = make_trainer(
        Host("bert").make(**SOFT), dataset, tokenizer, tmp_path, max_steps=3, logging_steps=2, retention_lambda=0.1
    )
    trainer.train()
    trainer.args.max_steps, trainer.args.logging_steps = 40, 1
    rates = []

    class See(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer, **kwargs):
            rates.extend(group["lr"] for group in optimizer.param_groups if group.get("retention"))

    trainer.add_callback(See())
    trainer.train()
    assert rates[0] == pytest.approx(2 / 40)
    first = next(entry for entry in trainer.state.log_history if "task_loss" in entry)
    assert first["loss"] == pytest.approx(first["task_loss"] + 0.1 * first["retention_penalty"], rel=1e-4)


@pytest.mark.parametrize("scaled", [None, False, "by the model"])
def test_parts_of_the_loss_add_up_where_a_loss_of_ones_own_is_accumulated(dataset, tokenizer, tmp_path, scaled):
    def by_items(outputs, labels, num_items_in_batch=None):
        loss = nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum" if scaled is None else "mean")
        return loss / num_items_in_batch if scaled is None else loss

    model = without_dropout(Host("bert").make(**SOFT))
    trainer = make_trainer(
        model,
        dataset,
        tokenizer,
        tmp_path,
        max_steps=2,
        gradient_accumulation_steps=4,
        retention_lambda=0.1,
        distillation=0.5,
    )
    trainer.teacher = without_dropout(Host("bert").make_stock())
    if scaled == "by the model":
        trainer.model_accepts_loss_kwargs = True
    else:
        trainer.compute_loss_func = by_items
        trainer.loss_is_scaled_for_ga = scaled
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "task_loss" in entry)
    assert entry["loss"] == pytest.approx(entry["task_loss"] + 0.1 * entry["retention_penalty"], rel=1e-4)
    # The penalty of weights of 1 is 24 * (1 + 2): the last encoder counts for nothing.
    assert entry["retention_penalty"] == pytest.approx(72)


def test_parts_of_the_loss_are_found_where_the_configuration_asks_for_tuples(dataset, tokenizer, tmp_path):
    model, teacher = Host("bert").make(**SOFT, return_dict=False), Host("bert").make_stock(return_dict=False)
    args = {"max_steps": 2, "retention_lambda": 0.1, "distillation": 0.5, "output_dir": str(tmp_path)}
    trainer = PoWERTrainer(
        model,
        PoWERTrainingArguments(**args, use_cpu=True, logging_steps=1, disable_tqdm=True, save_strategy="no"),
        train_dataset=dataset,
        processing_class=tokenizer,
        teacher=teacher,
    )
    trainer.train()
    assert trainer.state.log_history[0]["retention_penalty"] == pytest.approx(72)


def test_an_optimizer_with_weights_of_its_own_is_refused(dataset, tokenizer, tmp_path):
    class ScheduleFree(torch.optim.SGD):
        def train(self):
            """As schedulefree's."""

    model = Host("bert").make(**SOFT)
    trainer = make_trainer(model, dataset, tokenizer, tmp_path, max_steps=1)
    trainer.optimizer = ScheduleFree(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="got ScheduleFree, which keeps another copy of the weights"):
        trainer.train()


def test_a_search_does_not_go_on_from_an_adapter_alone(dataset, tokenizer, tmp_path):
    fields = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_trainer(Host("bert").make(**SOFT), dataset, tokenizer, tmp_path, **fields).train()
    checkpoint = tmp_path / "checkpoint-2"
    (checkpoint / "model.safetensors").rename(checkpoint / "adapter_model.safetensors")
    trainer = make_trainer(Host("bert").make(**SOFT), dataset, tokenizer, tmp_path, **fields)
    with pytest.raises(ValueError, match=r"holds its retention weights, got .*checkpoint-2 without"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_a_stream_without_an_end_has_no_lengths(dataset, tokenizer, tmp_path):
    endless = dataset.to_iterable_dataset().repeat(None)
    with pytest.raises(ValueError, match="needs the `lengths` of inputs"):
        make_trainer(Host("bert").make(**SOFT), endless, tokenizer, tmp_path, speedup=1.5, max_steps=2)


def test_a_checkpoint_of_the_oldest_names_resumes_with_all_of_its_weights(host, dataset, tokenizer, tmp_path):
    """`bert-base-uncased` calls the weights of LayerNorm gamma and beta."""
    host.make_stock().save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weight
        for name, weight in weights.items()
    }
    assert renamed.keys() != weights.keys()
    save_file(renamed, tmp_path / "model" / "model.safetensors", {"format": "pt"})

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    def training(folder):
        model = host.classifier.from_pretrained(tmp_path / "model")
        fields = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
        return make_trainer(without_dropout(model), dataset, tokenizer, folder, **fields)

    whole, first, second = (training(tmp_path / name) for name in ("whole", "parts", "parts"))
    whole.train()
    first.add_callback(Stop())
    first.train()
    assert load_file(tmp_path / "parts" / "checkpoint-2" / "model.safetensors").keys() == weights.keys()
    second.train(resume_from_checkpoint=True)
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], weight, atol=1e-6, rtol=0, msg=name)


def test_the_teacher_computes_in_the_precision_that_is_trained_in(host, dataset, tokenizer, tmp_path):
    seen = set()

    def see(module, args, output):
        seen.add(output.dtype)

    trainer = make_trainer(host.make(**SOFT), dataset, tokenizer, tmp_path, max_steps=1, bf16=True, distillation=0.5)
    trainer.teacher = host.make_stock()
    for module in trainer.teacher.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(see)
    trainer.train()
    assert seen == {torch.bfloat16}


class Seen:
    """Inputs that a model was given to refine masses on, one after another."""

    def __init__(self, model):
        self.rows = []
        model.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, model, args, inputs):
        if model.config.active_retention_mode == "hard":
            self.rows.append(inputs["attention_mask"].sum(dim=1).tolist())


@pytest.mark.parametrize(("steps", "batches"), [(20, 8), (3, 3)])
def test_masses_are_refined_on_rows_drawn_at_random_as_many_as_were_trained_on(
    tokenizer, tmp_path, monkeypatch, steps, batches
):
    monkeypatch.setattr("powerbert_hf.trainer._REFINED_ROWS", 16)
    ids = [[5] * length for length in range(2, 42)]
    many = Dataset.from_dict({"input_ids": ids, "labels": [0, 1] * 20})
    fields = {"speedup": 2.0, "max_steps": steps, "train_sampling_strategy": "group_by_length"}
    fields["per_device_train_batch_size"] = 2
    seen = []
    for name in ("one", "other"):
        trainer = make_trainer(Host("bert").make(**SOFT), many, tokenizer, tmp_path / name, **fields)
        rows = Seen(trainer.model).rows
        trainer.train()
        assert len(rows) == batches * trainer._budget.trials
        assert rows[:batches] * trainer._budget.trials == rows
        seen.append(rows[:batches])
    # Grouped by length, each batch would hold near neighbours, and the first one the longest of all.
    assert sum(max(batch) - min(batch) for batch in seen[0]) / batches > 8
    assert 41 not in seen[0][0]
    assert seen[0] == seen[1]


def test_a_loss_of_the_users_own_refines_masses_too(dataset, tokenizer, tmp_path):
    def own_loss(outputs, labels, num_items_in_batch):
        return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    def searching():
        model = without_dropout(Host("bert").make(**SOFT, retention_soft_extract="hide"))
        fields = {"speedup": 2.0, "max_steps": 2, "save_strategy": "steps", "save_steps": 2}
        trainer = make_trainer(model, dataset, tokenizer, tmp_path, **fields)
        trainer.compute_loss_func = own_loss
        return trainer

    first, second = searching(), searching()
    first.train()
    # Its last checkpoint is from before, so that it is refined again.
    second.train(resume_from_checkpoint=True)
    for trainer in (first, second):
        assert 0 < trainer.state.log_history[-1]["refined_to"] < 2
    torch.testing.assert_close(second.model.retention_weights, first.model.retention_weights, atol=1e-6, rtol=0)


def test_who_reports_on_a_search_sees_refined_masses(dataset, tokenizer, tmp_path):
    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            self.last = logs

        def on_train_end(self, args, state, control, model, **kwargs):
            self.logged, self.weights = self.last, model.retention_weights.detach().clone()

    trainer = make_trainer(Host("bert").make(**SOFT), dataset, tokenizer, tmp_path, speedup=2.0, max_steps=2)
    tracker = Tracker()
    # As those of `report_to` do, it comes before all that are added later.
    trainer.callback_handler.callbacks.insert(1, tracker)
    trainer.train()
    assert set(tracker.logged) >= {"refined_from", "refined_to"}
    assert torch.equal(tracker.weights, trainer.model.retention_weights)
    assert trainer.model.training


def masses_of(model):
    return retention_mass(model.retention_weights.detach().double())


def test_a_step_that_breaks_off_leaves_the_masses_that_are_held(dataset, tokenizer, tmp_path):
    class Breaking(PoWERTrainer):
        def compute_loss(self, *args, **kwargs):
            made_with.append(masses_of(self.model))
            if self.state.global_step == 5:
                raise KeyboardInterrupt
            return super().compute_loss(*args, **kwargs)

    class Ends(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            held.append(masses_of(model))

    made_with, held = [], []
    model = Host("bert").make(**SOFT)
    args = make_trainer(model, dataset, tokenizer, tmp_path, speedup=2.0, max_steps=8).args
    trainer = Breaking(model, args, train_dataset=dataset, processing_class=tokenizer, callbacks=[Ends()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert (made_with[-1] - held[-1]).abs().max() > 0.1
    assert torch.equal(masses_of(model), held[-1])


def test_rows_that_are_no_step_leave_the_masses_that_are_held(dataset, tokenizer, tmp_path):
    """The last rows of a stream may be fewer than a step accumulates; upstream leaves them out."""

    class Rows(IterableDataset):
        def __iter__(self):
            # Three batches, of which two make a step.
            return iter(dataset.select(range(24)).to_list())

    class Seen(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            at_steps.append(masses_of(model))

        def on_epoch_end(self, args, state, control, model, **kwargs):
            at_epochs.append((len(at_steps), masses_of(model)))

    at_steps, at_epochs = [], []
    model = Host("bert").make(**SOFT)
    fields = {"speedup": 2.0, "max_steps": 10, "gradient_accumulation_steps": 2}
    args = make_trainer(model, dataset, tokenizer, tmp_path, **fields).args
    lengths = [len(ids) for ids in dataset["input_ids"]]
    trainer = PoWERTrainer(model, args, train_dataset=Rows(), processing_class=tokenizer, lengths=lengths)
    trainer.add_callback(Seen())
    trainer.train()
    # Without the last one, after which masses are refined.
    for steps, masses in at_epochs[:-1]:
        assert torch.equal(masses, at_steps[steps - 1])
    assert len(at_epochs) > 5


@pytest.mark.parametrize("when", ["in the last step", "while refining"])
def test_told_to_leave_a_search_at_its_end_goes_on_from_there(dataset, tokenizer, tmp_path, when):
    class Told(TrainerCallback):
        def __init__(self, tell):
            self.tell = tell

        def on_step_begin(self, args, state, control, **kwargs):
            if when == "in the last step" and state.global_step == 1:
                self.tell()

        def on_train_begin(self, args, state, control, model, **kwargs):
            def hear(model, inputs):
                if when == "while refining" and model.config.active_retention_mode == "hard":
                    self.tell()

            model.register_forward_pre_hook(hear)

    def searching(folder):
        model = without_dropout(Host("bert").make(**SOFT, retention_soft_extract="hide"))
        fields = {"speedup": 2.0, "max_steps": 2, "save_strategy": "steps", "save_steps": 2}
        return make_trainer(model, dataset, tokenizer, folder, **fields)

    whole, first, second = (searching(tmp_path / name) for name in ("whole", "parts", "parts"))
    whole.train()
    for callback in (Told(first.accelerator.set_trigger), LeaveWhenTold(first.accelerator)):
        first.add_callback(callback)
    with pytest.raises(Terminated, match="told to leave while the masses were refined; the same command goes on"):
        first.train()
    assert first.model.config.active_retention_mode == "soft"
    second.train(resume_from_checkpoint=True)
    torch.testing.assert_close(second.model.retention_weights, whole.model.retention_weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_a_training_that_is_resumed_at_its_end_trains_no_further(dataset, tokenizer, tmp_path, mode):
    """Upstream takes a step more, in an epoch that has rows left."""

    def training():
        model = without_dropout(Host("bert").make(**MODES[mode]))
        fields = {"max_steps": 5, "lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 5}
        return make_trainer(model, dataset, tokenizer, tmp_path, **fields)

    whole, again = training(), training()
    whole.train()
    wanted = {name: value.clone() for name, value in whole.model.state_dict().items()}
    again.train(resume_from_checkpoint=True)
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_a_search_without_rows_left_says_that_it_is_not_refined(dataset, tokenizer, tmp_path, warned):
    class Once(IterableDataset):
        def __init__(self):
            self.rows = iter(dataset.to_list())

        def __iter__(self):
            yield from self.rows

    # As many steps as take all rows.
    fields = {"speedup": 2.0, "max_steps": 8}
    trainer = make_trainer(Host("bert").make(**SOFT), dataset, tokenizer, tmp_path, **fields)
    trainer.train_dataset = Once()
    trainer.train()
    assert "no training rows are left to refine" in warned()[-1]
    assert not any("refined_to" in entry for entry in trainer.state.log_history)


def test_lengths_that_nobody_gave_are_those_of_the_training_data(dataset, tokenizer, tmp_path):
    model = Host("bert").make(**SOFT)
    trainer = make_trainer(model, dataset, tokenizer, tmp_path, speedup=2.0)
    lengths = torch.tensor([len(ids) for ids in dataset["input_ids"]])
    for masses in ([24.0, 24.0, 24.0], [12.3, 5.0, 5.0]):
        model.config.retention_mode, model.config.retention_config = "hard", trainer._budget.configuration(masses)
        wanted = pytest.approx(predicted_speedup(model.config, lengths))
        assert trainer._predicted(masses) == wanted
        model.config.retention_mode, model.config.retention_config = "soft", None
    # Those of what they are padded with do not count.
    padded = dataset.map(lambda row: tokenizer.pad(row, padding="max_length", max_length=24))
    assert {len(ids) for ids in padded["input_ids"]} == {24}
    trainer = make_trainer(model, padded, tokenizer, tmp_path, speedup=2.0)
    assert trainer._predicted(masses) == wanted
    with pytest.raises(ValueError, match="needs the `lengths` of inputs"):
        make_trainer(model, list(dataset), tokenizer, tmp_path, speedup=2.0)


def test_a_teacher_has_its_share_of_the_loss(host, batch, dataset, tmp_path):
    model, teacher = without_dropout(host.make(**HARD)), host.make_stock()
    args = PoWERTrainingArguments(str(tmp_path), distillation=0.75, use_cpu=True)
    trainer = PoWERTrainer(model, args, train_dataset=dataset, teacher=teacher)
    inputs = {**batch, "labels": torch.tensor([0, 1, 0, 1, 0])}
    model.train()
    outputs = model(**inputs)
    wanted, given = (logits.log_softmax(-1) for logits in (teacher(**batch).logits, outputs.logits))
    far = (wanted.exp() * (wanted - given)).sum(-1).mean()
    assert far > 1e-3
    expected = 0.25 * outputs.loss + 0.75 * far
    assert trainer.compute_loss(model, inputs).item() == pytest.approx(expected.item(), abs=1e-5)
    model.eval()
    assert trainer.compute_loss(model, inputs).item() == pytest.approx(outputs.loss.item(), abs=1e-5)


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_a_teacher_of_this_package_teaches_what_to_rank_by(host, batch, dataset, tmp_path, mode):
    model, teacher = without_dropout(host.make(**MODES[mode])), host.make()
    args = PoWERTrainingArguments(str(tmp_path), distillation=0.75, retention_lambda=0.0, use_cpu=True)
    trainer = PoWERTrainer(model, args, train_dataset=dataset, teacher=teacher)
    inputs = {**batch, "labels": torch.tensor([0, 1, 0, 1, 0])}
    answers = teacher(**batch, output_hidden_states=True)
    wanted = teacher.significance_of_all(answers.hidden_states, batch["attention_mask"])
    model.train()
    outputs = model(**inputs, wanted_significance=wanted)
    assert outputs.ranking_divergence > 1e-4
    far = distillation_loss(outputs.logits, answers.logits, "single_label_classification") + outputs.ranking_divergence
    expected = 0.25 * outputs.loss + 0.75 * far
    assert trainer.compute_loss(model, inputs).item() == pytest.approx(expected.item(), abs=1e-5)
    untaught = trainer.compute_loss(model, inputs).item() - 0.75 * outputs.ranking_divergence.item()
    args.ranking_distillation = False
    assert trainer.compute_loss(model, inputs).item() == pytest.approx(untaught, abs=1e-5)
    args.ranking_distillation = True
    # One that eliminates something cannot tell.
    teacher.set_retention([0.9, 0.8, 0.1], unit="fraction")
    assert trainer._ask_teacher(inputs, ranking=True)[1] is None


class Explicit(Reaching):
    """Takes what it names."""

    def forward(self, input_ids, attention_mask, token_type_ids, labels=None, return_dict=True):
        return self.inner(input_ids, attention_mask, token_type_ids, labels=labels)


def test_models_and_teachers_that_know_nothing_of_rankings_have_the_answers(host, dataset, tokenizer, tmp_path):
    def logged(model, teacher):
        fields = {"max_steps": 2, "logging_steps": 1, "distillation": 0.5, "retention_lambda": 0.0}
        trainer = make_trainer(without_dropout(model), dataset, tokenizer, tmp_path, **fields)
        trainer.teacher = without_dropout(teacher)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    expected = logged(host.make(**SOFT), host.make_stock())
    assert logged(Explicit(host.make(**SOFT)), host.make()) == pytest.approx(expected, abs=1e-5)
    assert logged(host.make(**SOFT), Explicit(host.make())) == pytest.approx(expected, abs=1e-5)
    assert logged(host.make(**SOFT), host.make()) != pytest.approx(expected, abs=1e-5)


def test_a_teacher_that_does_not_say_its_kind_of_task_has_the_models(host, batch, dataset, tmp_path):
    model, teacher = without_dropout(host.make(**HARD)), host.make_stock()
    model.config.problem_type = "multi_label_classification"
    args = PoWERTrainingArguments(str(tmp_path), distillation=1.0, use_cpu=True)
    trainer = PoWERTrainer(model, args, train_dataset=dataset, teacher=teacher)
    model.train()
    far = distillation_loss(model(**batch).logits, teacher(**batch).logits, "multi_label_classification")
    inputs = {**batch, "labels": torch.tensor([[0.0, 1.0]] * 5)}
    assert trainer.compute_loss(model, inputs).item() == pytest.approx(far.item(), abs=1e-5)


def test_distance_to_a_teacher_fits_the_kind_of_task():
    wanted = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    answers = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    for kind in ("single_label_classification", "multi_label_classification", "regression", None):
        assert distillation_loss(wanted, wanted, kind).item() == pytest.approx(0.0, abs=1e-6)
        assert distillation_loss(answers, wanted, kind) > 0.1
    yes, no = wanted.sigmoid(), 1 - wanted.sigmoid()
    expected = (yes * (yes / answers.sigmoid()).log() + no * (no / (1 - answers.sigmoid())).log()).mean()
    torch.testing.assert_close(distillation_loss(answers, wanted, "multi_label_classification"), expected)
    torch.testing.assert_close(distillation_loss(answers, wanted, "regression"), ((answers - wanted) ** 2).mean())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"speedup": 1.0}, "`speedup` must be above 1"),
        ({"speedup": 2.0, "retention_lambda": 0.1}, "either `speedup` or `retention_lambda`"),
        ({"distillation": 1.5}, "`distillation` must lie between 0 and 1"),
    ],
)
def test_goals_that_make_no_sense_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        PoWERTrainingArguments(str(tmp_path), **fields)


@pytest.mark.parametrize("goal", [{"speedup": 2.0}, {"retention_lambda": 0.01}])
def test_a_search_that_would_end_with_an_earlier_model_is_refused(dataset, tokenizer, tmp_path, goal):
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    trainer = partial(make_trainer, dataset=dataset, tokenizer=tokenizer, folder=tmp_path, **best, **goal)
    with pytest.raises(ValueError, match="`load_best_model_at_end` must be False in a search, got True"):
        trainer(Host("bert").make(**SOFT))
    # Of any other training it may be the best.
    trainer(Host("bert").make(**HARD))


@pytest.mark.parametrize("soft_extract", ["multiply", "published"])
def test_nothing_was_learned_of_the_last_encoder_but_where_it_is_published(dataset, tokenizer, tmp_path, soft_extract):
    model = Host("bert").make(**SOFT, retention_soft_extract=soft_extract)
    trainer = make_trainer(model, dataset, tokenizer, tmp_path, retention_lambda=0.01)
    assert trainer.retention_config == [1.0, 1.0, 1.0 if soft_extract == "published" else 1 / 24]


def test_a_search_for_a_speed_up_has_no_penalty_in_its_loss(dataset, tokenizer, tmp_path):
    model = Host("bert").make(**SOFT, retention_soft_extract="hide")
    trainer = make_trainer(model, dataset, tokenizer, tmp_path, max_steps=2, speedup=2.0)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(logged["task_loss"], abs=1e-5)


def test_in_float16_a_loss_that_is_lost_ends_a_training_too(dataset, tokenizer, tmp_path):
    """Gradients may be infinite there, the loss is scaled down then; but not to nothing."""
    trainer = make_trainer(Host("bert").make(), dataset, tokenizer, tmp_path, num_train_epochs=8)
    trainer.accelerator.scaler, trainer.accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=4.0), True
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum() * float("nan")
    with pytest.raises(ValueError, match=r"must be finite, got .* in step 4 of 64"):
        trainer.train()


def test_only_a_search_has_a_configuration(dataset, tokenizer, tmp_path):
    trainer = make_trainer(Host("bert").make(), dataset, tokenizer, tmp_path)
    with pytest.raises(ValueError, match="learned in soft mode"):
        _ = trainer.retention_config
