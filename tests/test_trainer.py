"""The loss term, the optimizer's group, the clamp, the logs; on a few steps of a tiny model."""

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding

from conftest import without_dropout
from powerbert_hf import PoWERTrainer, PoWERTrainingArguments

SOFT = {"retention_mode": "soft", "retention_length": 24, "retention_unit": "fraction"}


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
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
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
        model, dataset, tokenizer, tmp_path, max_steps=20, retention_lambda=1.0, retention_learning_rate=0.1
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


def test_default_rate_lets_a_weight_just_fall_from_1_to_0(host, dataset, tokenizer, tmp_path):
    trainer = make_trainer(host.make(**SOFT), dataset, tokenizer, tmp_path)
    trainer.create_optimizer_and_scheduler(num_training_steps=50)
    assert trainer.optimizer.param_groups[-1]["lr"] == pytest.approx(2 / 50)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_an_optimizer_of_the_users_own_keeps_its_rates(host, dataset, tokenizer, tmp_path):
    trainer = make_trainer(host.make(**SOFT), dataset, tokenizer, tmp_path)
    trainer.optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=3e-5)
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [3e-5]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulated_gradients_equal_those_of_one_batch(host, dataset, tokenizer, tmp_path, smoothing):
    """Texts of one length, so that a mean of means is the mean; no dropout, so that only the arithmetic counts."""
    ids = torch.randint(5, 20, (16, 10), generator=torch.Generator().manual_seed(0)).tolist()
    even = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 10] * 16, "labels": [0, 1] * 8})
    after = []
    for size, steps in ((16, 1), (8, 2), (4, 4)):
        model = host.make(**SOFT)
        without_dropout(model)
        trainer = make_trainer(
            model,
            even,
            tokenizer,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            retention_learning_rate=1.0,
            max_grad_norm=0.0,
            label_smoothing_factor=smoothing,
        )
        trainer.train()
        after.append({name: p.detach().clone() for name, p in model.named_parameters()})
    for other in after[1:]:
        for name, parameter in other.items():
            torch.testing.assert_close(parameter, after[0][name], atol=2e-6, rtol=1e-5, msg=name)


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


def test_resumed_search_ends_where_an_uninterrupted_one_does(host, dataset, tokenizer, tmp_path):
    fields = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "retention_learning_rate": 0.05}
    whole = make_trainer(host.make(**SOFT), dataset, tokenizer, tmp_path, **fields)
    whole.train()
    again = make_trainer(host.make(**SOFT), dataset, tokenizer, tmp_path, **fields)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for (name, found), (_, wanted) in zip(again.model.named_parameters(), whole.model.named_parameters(), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0, msg=name)


def test_hard_mode_trains_as_an_upstream_trainer_would(host, dataset, tokenizer, tmp_path):
    model = host.make(retention_config=[0.6, 0.4, 0.2], retention_unit="fraction")
    trainer = make_trainer(model, dataset, tokenizer, tmp_path, max_steps=3)
    trainer.train()
    assert "retention_penalty" not in trainer.state.log_history[0]
    assert len(trainer.optimizer.param_groups) == 2
    predictions = trainer.predict(dataset).predictions
    assert predictions.shape == (64, 2)


def test_predictions_in_soft_mode_are_the_logits_alone(host, dataset, tokenizer, tmp_path):
    trainer = make_trainer(host.make(**SOFT), dataset, tokenizer, tmp_path)
    assert trainer.predict(dataset).predictions.shape == (64, 2)


def test_retention_weights_in_half_precision_are_refused(host, dataset, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"must be trained in torch.float32, got torch.bfloat16"):
        make_trainer(host.make(**SOFT).bfloat16(), dataset, tokenizer, tmp_path)


@pytest.mark.parametrize("field", [{"retention_lambda": -1.0}, {"retention_learning_rate": 0.0}])
def test_unusable_arguments_are_refused(field, tmp_path):
    with pytest.raises(ValueError, match="must"):
        PoWERTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **field)
