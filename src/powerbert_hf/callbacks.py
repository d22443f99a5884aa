# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What happens at each step of a training, besides the step: retention weights are held, and it may end early."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from .budget import LEARNING, Budget
from .retention import clamp_retention_weights, retention_mass


class ClampRetentionWeights(TrainerCallback):
    """Brings the retention weights back to [0, 1] after each optimizer step."""

    def on_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`; `model` is the unwrapped one."""
        clamp_retention_weights(model.retention_weights)


def finite_masses(retention_weights: Tensor) -> list[float]:
    """The masses of a search that has not diverged.

    Args:
        retention_weights: (L, R).

    Raises:
        ValueError: where one is not finite.
    """
    masses = retention_mass(retention_weights.detach().cpu().double()).tolist()
    if not all(map(math.isfinite, masses)):
        raise ValueError(f"The search must end in finite masses, got {masses}; lower the learning rate or lambda.")
    return masses


class HoldBudget(TrainerCallback):
    """Learns masses that have a budget, which falls as the training goes on, rather than each weight by itself.

    From four tenths of the steps on, all weights of an encoder get one gradient, so the optimizer moves them alike: by
    the logarithm of the factor that its mass grows by. The masses are then brought to the budget and the weights made
    anew from them. Once the budget is reached, a step itself is made with masses near them, see [`Budget.scatter`].
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`; `model` is the unwrapped one."""
        self.weights = model.retention_weights

    def _move(self, state: Any) -> None:
        """Make the weights of masses near those that are held, alike throughout a step."""
        self.kept = self.weights.detach().cpu().double()
        masses = self.budget.scatter(retention_mass(self.kept), state.global_step, state.max_steps)
        self._set(self.budget.ramp(masses))

    def _set(self, weights: Tensor) -> None:
        with torch.no_grad():
            self.weights.copy_(weights)

    @contextmanager
    def moved(self, state: Any) -> Iterator[None]:
        """A forward and a backward pass with other masses: whatever ends it, those that are held are back after it."""
        # Else the loss would be said not to be finite.
        finite_masses(self.weights)
        self._move(state)
        try:
            yield
        finally:
            self._set(self.kept)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Turn the gradient of the weights, which is that of all processes by now, into that of the masses."""
        self._move(state)
        self.before = self.weights.detach().cpu().double()
        if state.global_step < LEARNING * state.max_steps:
            # Nor shall the optimizer remember it.
            self.weights.grad = None
            return
        gradient = self.budget.share_out(self.before, self.weights.grad)
        self.weights.grad.copy_(gradient[:, None].expand_as(self.weights))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Turn the step of the weights into one of the masses."""
        if state.global_step >= state.max_steps:
            # Resumed at its end, see [`EndWithLastStep`].
            self._set(self.kept)
            return
        finite_masses(self.weights)
        growth = (self.weights.detach().cpu().double() - self.before)[:, -1]
        masses = retention_mass(self.kept) * growth.exp()
        masses = self.budget.hold(masses, (state.global_step + 1) / state.max_steps)
        self._set(self.budget.ramp(masses))


class BeforeTraining(TrainerCallback):
    """Looks at a training that begins.

    Args:
        begin: does it, and may refuse.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self.begin = begin

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        self.begin()


class RefineMasses(TrainerCallback):
    """Refines the masses of a search that has come to its end.

    Args:
        refine: does it.
    """

    def __init__(self, refine: Callable[[], None]) -> None:
        self.refine = refine

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        # Unless it was told to stop before.
        if state.global_step >= state.max_steps:
            self.refine()


class ObeyNewSteps(TrainerCallback):
    """Logs, saves and measures as often as is asked for now: a checkpoint has it as it was asked for then."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        state.compute_steps(args, state.max_steps)


class EndWithLastStep(TrainerCallback):
    """Lets a training that is resumed at its end move no further, where upstream takes a step more."""

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        if state.global_step >= state.max_steps:
            for group in optimizer.param_groups:
                group["lr"] = 0.0


class TellSamplerEpoch(TrainerCallback):
    """Tells the sampler which epoch begins.

    Where an epoch of several processes is resumed, `skip_first_batches` of accelerate puts a third sampler of batches
    around the two that there are, and the loader's own `set_epoch` does not reach that deep: every epoch but the first
    would go on with rows in the first one's order, some twice and others never.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        batches: Any = getattr(train_dataloader, "batch_sampler", None)
        while hasattr(batches, "batch_sampler"):
            batches = batches.batch_sampler
        # One that balances batches draws them itself.
        samplers: list[Any] = [batches, getattr(batches, "sampler", None)]
        for one in samplers:
            if hasattr(one, "set_epoch"):
                one.set_epoch(int(state.epoch or 0))


class LeaveWhenTold(TrainerCallback):
    """Ends a training with a checkpoint after the step in which any of its processes was told to leave.

    Upstream's `enable_jit_checkpoint` does not ask the other processes, and saves in the middle of a step.

    Args:
        accelerator: of the training; `set_trigger` tells it.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.told = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        if self.accelerator.check_trigger():
            self.told = control.should_save = control.should_training_stop = True
            # There may not be the time, and the best checkpoint so far would be the only one that is written.
            control.should_evaluate = False
            # What comes after the last step is to learn of it too.
            self.accelerator.set_trigger()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the checkpoint: where it keeps one alone, upstream would remove it at the end for the best one.

        That it is not the best is written there already.
        """
        if self.told:
            state.best_model_checkpoint = None

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`; upstream would write the checkpoint again, over the only one that there is."""
        if self.told:
            control.should_save = control.should_evaluate = False


def goes_on_from(folder: str) -> str:
    """What becomes of a training that was told to leave, as its last words have it.

    Args:
        folder: of its checkpoints.
    """
    last = get_last_checkpoint(folder) if Path(folder).is_dir() else None
    return f"the same command goes on from {last}" if last else "no checkpoint had been written"


class FiniteGradients(TrainerCallback):
    """Ends a training whose loss is lost, before it spoils the weights, in all processes alike.

    Args:
        accelerator: of the training; its scaler tells what to expect in float16.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """See `TrainerCallback`; `model` is the unwrapped one.

        Raises:
            ValueError: where a gradient is not finite.
        """
        # In float16 a gradient may be infinite: the step is skipped then, and the loss scaled down, if not to nothing.
        scaler = self.accelerator.scaler
        if args.fp16 if scaler is None else scaler.get_scale() >= 1:
            return
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if torch.isfinite(norm):
            return
        last = get_last_checkpoint(args.output_dir)
        raise ValueError(
            f"The loss and its gradient must be finite, got {norm.item()} in step {state.global_step + 1} of "
            f"{state.max_steps} (epoch {state.epoch or 0:.2f}); lower the learning rate, or look for such numbers in "
            f"the labels. {f'{last} is from before.' if last else 'No checkpoint had been written.'}"
        )
