# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' `Trainer`, with the retention penalty in the loss and a learning rate for the retention weights."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from .retention import clamp_retention_weights, retention_mass


@dataclass
class PoWERTrainingArguments(TrainingArguments):
    """`TrainingArguments` and what the search of a configuration needs.

    The paper tunes both per task (section 4), lambda in 1e-4 to 1e-3 and the rate in 1e-4 to 1e-2; IBM's published
    values are in `powerbert_hf.tasks`.

    Args:
        retention_lambda (`float`, *optional*, defaults to 1e-3):
            lambda in `loss + lambda * sum_j j * mass(j)`.
        retention_learning_rate (`float`, *optional*):
            Learning rate of the retention weights. Adam moves a weight by at most this much a step, so the number of
            steps bounds how far a mass can fall; `None` sets 2 divided by the number of steps, with which a weight can
            just fall from 1 to 0 while the rate decays linearly.
    """

    retention_lambda: float = field(
        default=1e-3, metadata={"help": "lambda in loss + lambda * sum_j j * mass(j), in the search."}
    )
    retention_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the retention weights; 2 / (number of steps) by default."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.retention_lambda < math.inf:
            raise ValueError(
                f"`retention_lambda` must not be negative or infinite, got {self.retention_lambda}; 1e-3 is usual."
            )
        if self.retention_learning_rate is not None and not 0 < self.retention_learning_rate < math.inf:
            raise ValueError(
                f"`retention_learning_rate` must be above 0 and finite, got {self.retention_learning_rate}; leave it "
                "out to have it follow from the number of steps."
            )


class ClampRetentionWeights(TrainerCallback):
    """Brings the retention weights back to [0, 1] after each optimizer step."""

    def on_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`; `model` is the unwrapped one."""
        clamp_retention_weights(model.retention_weights)


class EpochLengthGroupedSampler(LengthGroupedSampler):
    """`LengthGroupedSampler` whose order follows from seed and epoch alone.

    Upstream draws it from torch's global generator, whose state at the epoch's beginning is no longer known where a
    training is resumed in the middle of an epoch: some rows would come twice and others not at all.
    """

    def __init__(self, *args: Any, seed: int, **kwargs: Any) -> None:
        super().__init__(*args, generator=torch.Generator(), **kwargs)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.generator.manual_seed(self.seed + epoch)


class PoWERTrainer(Trainer):
    """`Trainer` for any mode. In soft mode it adds the penalty, trains the retention weights and logs the masses.

    In any other mode it is `Trainer`. The logs of soft mode hold, besides `loss`: `task_loss` and `retention_penalty`,
    averaged since the last log, the penalty without lambda, and `retention_mass_1` to `retention_mass_L`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._since_last_log: dict[str, list[Tensor]] = defaultdict(list)
        weights = self._retention_weights
        if weights is None:
            return
        if weights.dtype != torch.float32:
            raise ValueError(
                f"Retention weights must be trained in torch.float32, got {weights.dtype}; load the model in float32 "
                "and set `bf16=True` or `fp16=True` for mixed precision."
            )
        self.add_callback(ClampRetentionWeights())

    @property
    def _retention_weights(self) -> nn.Parameter | None:
        return getattr(self.model, "retention_weights", None)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochLengthGroupedSampler(sampler.batch_size, lengths=sampler.lengths, seed=seed)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Upstream's optimizer, with the retention weights in a group of their own, without weight decay."""
        created = self.optimizer is None
        optimizer = super().create_optimizer(model)
        # A wrapped model may hold another tensor than `self.model`, so the parameter is found by its name.
        named = (self.model if model is None else model).named_parameters()
        weights = [parameter for name, parameter in named if name.endswith("retention_weights")]
        if created and weights:
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if all(p is not w for w in weights)]
            rate = self.args.retention_learning_rate or self.args.learning_rate
            optimizer.add_param_group({"params": weights, "lr": rate, "weight_decay": 0.0, "retention": True})
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Upstream's schedule; by default the retention weights' learning rate follows from the number of steps."""
        if self.lr_scheduler is None and self.args.retention_learning_rate is None:
            for group in (optimizer or self.optimizer).param_groups:
                # An optimizer of the user's own has no such group and keeps its rates.
                if group.get("retention"):
                    group["lr"] = 2.0 / num_training_steps
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The task's loss and, while training in soft mode, `retention_lambda` times the penalty (paper, 3.3)."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        penalty = outputs.get("retention_penalty") if isinstance(outputs, dict) else None
        if penalty is not None and model.training:
            self._since_last_log["task_loss"].append(loss.detach())
            self._since_last_log["retention_penalty"].append(penalty.detach())
            term = self.args.retention_lambda * penalty
            # A loss of the user's own counts as divided by the whole accumulated batch and is not divided again.
            if self.compute_loss_func is not None:
                term = term / self.current_gradient_accumulation_steps
            loss = loss + term
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Upstream's log, with the parts of the loss and the masses beside the training loss."""
        weights = self._retention_weights
        if "loss" in logs and self._since_last_log and weights is not None:
            for name, values in self._since_last_log.items():
                # Over all processes, as the loss is.
                logs[name] = self.accelerator.reduce(torch.stack(values).mean(), reduction="mean").item()
            self._since_last_log.clear()
            for encoder, mass in enumerate(retention_mass(weights.detach()).tolist(), start=1):
                logs[f"retention_mass_{encoder}"] = mass
        super().log(logs, start_time)
