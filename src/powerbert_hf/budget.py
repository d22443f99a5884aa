# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A speed-up that was asked for, turned into masses and into a configuration.

The search minimises the task's loss subject to a budget of multiply-accumulates. The multiplier of that constraint,
which the paper turns by hand as lambda, is solved for in every step, and the masses are brought to the budget after
it. So steps and learning rates decide how well the word-vectors are shared out over the encoders, but not what
speed-up comes out. As long as the loss says nothing, the profile is geometric: encoder j keeps the j-th power of what
the first one keeps.

What is learned so is what hidden word-vectors are worth, from batch to batch. At the end word-vectors are moved once
more, by what the configurations themselves lose on weights that have got used to one like them.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from .cost import multiply_accumulates, multiply_accumulates_of, stock_encoder_multiply_accumulates
from .retention import retention_config_from_mass, retention_mass

# Share of the search in which the budget falls from the stock model's cost to what was asked for.
_FALLING = 0.3
# Share of the search before which masses follow the budget alone. What a word-vector is worth while few are gone, and
# to weights that have not got used to that, is another matter.
LEARNING = 0.4
# Peak of the logarithms' learning rate in a search of `_FEWEST` steps, times their number: as it decays in a straight
# line from a tenth of the steps on, a mass can grow or fall by a factor of e in those that are left.
_LEARNING_RATE = 5.0
# Of fewer steps the rate is that of so many: Adam goes as far by chance as by a gradient that is there in each step.
_FEWEST = 200
# What rounding up adds on average.
_ROUNDED_UP = 0.5
# The gradient of a cost that nothing changes, such as that of counts beyond all inputs.
_FLAT = 1e-12
# Far enough to take a mass of 512 to 1 in the first encoder.
_FAR = 10.0
# Share of R over which the weights of a ramp fall.
_RAMP = 0.05
# Least mass that is learned: of a word-vector that is gone no gradient tells what it would be worth.
_LEAST = 1.5
# Change of a mass's logarithm that tells what it is worth, as a standard deviation what steps are made with, and the
# largest changes that are tried in the end.
_NUDGE = 0.15
_MOVES = (0.1, 0.2, 0.35)
# Share of the gains that an exchange must be worth to be one.
_NOTHING = 1e-6


def learning_rate(steps: int) -> float:
    """Peak of the learning rate of the masses' logarithms, for an optimizer that normalises gradients.

    It falls with the root of the number of steps. What gradients agree on adds up over the steps, what is nothing but
    chance over their root: so chance takes the logarithm of a mass 0.12 away in 200 steps and 0.11 in 1,250, as a
    standard deviation, but what is learned can take it 2.5 times as far. Falling with the number of steps itself, the
    rate would leave the masses of a long search near the geometric profile.

    Of fewer than 200 steps it is that of 200: they are too few for gradients to agree on much.
    """
    return _LEARNING_RATE / (_FEWEST * max(_FEWEST, steps)) ** 0.5


class Budget:
    """The speed-up that a search must reach, on inputs of given lengths.

    Args:
        config: a PoWER configuration, with a retention length and unit.
        speedup: predicted; `None` asks for none yet.
        lengths: (B,) integers, real word-vectors of inputs such as those that the model will see.

    Raises:
        ValueError: for a speed-up that no configuration has on these lengths.
    """

    def __init__(self, config: Any, speedup: float | None, lengths: Sequence[int] | Tensor) -> None:
        self.length = config.retention_length
        self._config = copy.copy(config)
        self._config.retention_mode = "hard"
        self._lengths, times = torch.as_tensor(lengths).unique(return_counts=True)
        self._inputs, self._times = self._lengths.double(), times.double()
        # Words that none of these inputs has cost nothing, and nothing is learned of them.
        self._most = float(self.length)
        if config.retention_unit == "words":
            self._most = min(self._most, self._inputs.max().item())
        self._widest = max(1, int(_RAMP * self._most))
        self._stock = config.num_encoders * stock_encoder_multiply_accumulates(config, self._inputs) @ self._times
        all_kept = [float(self.length)] * config.num_encoders
        self.limits = self.predicted(all_kept), self.predicted([1.0] * config.num_encoders)
        if speedup is not None and not self.limits[0] < speedup < self.limits[1]:
            raise ValueError(
                f"On these inputs `speedup` must lie above {self.limits[0]:.2f}, with all word-vectors kept, and "
                f"below {self.limits[1]:.2f}, with one kept by each encoder, got {speedup}; choose another."
            )
        self.speedup = speedup or self.limits[0]
        self._lossless = self.cost(torch.tensor(all_kept).double()).item()

    def configuration(self, masses: Sequence[float]) -> list[int] | list[float]:
        """The configuration that L masses stand for; encoder L hands on [CLS] alone, whatever was learned there."""
        return retention_config_from_mass([*masses[:-1], 1.0], self._config.retention_unit, self.length)

    def predicted(self, masses: Sequence[float]) -> float:
        """The predicted speed-up of that configuration."""
        self._config.retention_config = self.configuration(masses)
        # Each length once: there may be millions of inputs.
        return (self._stock / (multiply_accumulates(self._config, self._lengths).double() @ self._times)).item()

    def cost(self, masses: Tensor) -> Tensor:
        """Share of the stock model's multiply-accumulates, as a smooth function of the masses.

        Args:
            masses: (L,) in float64.

        Returns:
            A scalar. Masses are rounded up, and so are the counts that fractions make of lengths; the half that each
            adds on average is counted. Each mass counts by itself, though an encoder has no more than an earlier one
            has left: else all of a saving would seem to come from the earliest.
        """
        kept = masses[:-1, None] + _ROUNDED_UP
        if self._config.retention_unit == "fraction":
            kept = kept / self.length * self._inputs + _ROUNDED_UP
        kept = torch.minimum(kept, self._inputs)
        received, one = torch.cat([self._inputs[None], kept]), torch.ones_like(self._inputs)[None]
        queried = torch.cat([received[:-1], one])
        return multiply_accumulates_of(self._config, received, queried, torch.cat([kept, one])).sum(dim=0) @ (
            self._times / self._stock
        )

    def ramp(self, masses: Tensor) -> Tensor:
        """Retention weights that say of nearly every rank whether it stays, for masses that can be anything.

        Weights of one half everywhere would have the mass of a configuration that keeps half, and hide nothing from
        anyone.

        Args:
            masses: (L,), from 1 to R.

        Returns:
            (L, R): 1 below the mass, 0 beyond it, falling in a straight line between, over a twentieth of R at most.
            They add up to the masses exactly: masses are read off their weights again in each step of a search, and
            would creep otherwise.
        """
        masses = masses[:, None]
        # [CLS] stays above the ramp. Over a whole number of ranks, what is cut off at its ends is as much as is added.
        width = torch.minimum(masses - 1, self.length - masses).mul(2).floor().clamp(min=1, max=self._widest)
        ranks = torch.arange(self.length, dtype=masses.dtype) + 0.5
        return (0.5 + (masses - ranks) / width).clamp(0.0, 1.0)

    def share_out(self, retention_weights: Tensor, gradient: Tensor) -> Tensor:
        """Which encoders gain more from a word-vector than it costs, compared with the others.

        Args:
            retention_weights: (L, R), a `ramp`.
            gradient: (L, R), of the loss.

        Returns:
            (L,): what a relative change of each mass changes of the loss, less the constraint's multiplier times
            what it changes of the cost. Encoder L has no say.
        """
        # In this order: not every accelerator has float64.
        weights = retention_weights.cpu().double()
        masses = retention_mass(weights)
        on_ramp = (weights > 0) & (weights < 1)
        # Of a mass of 1 or R the ramp lies between two ranks: the rank that would come next tells, or the last one.
        next_rank = masses.round().clamp(max=self.length - 1).long()
        on_ramp |= (torch.arange(self.length) == next_rank[:, None]) & ~on_ramp.any(dim=1, keepdim=True)
        # A ramp at its widest moves as it is. One end of a narrower one stays at [CLS], or at R: ranks grow by as much
        # as they are away from it.
        narrow = masses[:, None] < 1 + self._widest / 2, masses[:, None] > self.length - self._widest / 2
        growth = (1 - weights).where(narrow[0], weights.where(narrow[1], 1.0)) * on_ramp
        gain = (gradient.cpu().double() * growth).sum(dim=1) / growth.sum(dim=1) * masses
        with torch.enable_grad():
            masses = masses.detach().requires_grad_()
            (price,) = torch.autograd.grad(self.cost(masses), masses)
        gain[-1] = 0.0
        return _exchanged(gain, price * masses.detach() + _FLAT)

    @torch.no_grad()
    def hold(self, masses: Tensor, progress: float) -> Tensor:
        """Bring masses to the budget: encoder j's by a power of j, which is the paper's penalty for relative changes.

        The budget falls in the first three tenths of the steps, from four tenths on the masses are learned.

        Encoder L hands on [CLS] alone, so nothing is learned there: its mass is that of the encoder before.

        Args:
            masses: (L,).
            progress: share of the steps that are done.

        Returns:
            (L,), from 1.5 to R, or to the longest input.
        """
        budget = self._lossless + min(1.0, progress / _FALLING) * (1 / self.speedup - self._lossless)
        depth = torch.arange(1, masses.shape[0] + 1, dtype=masses.dtype)

        def moved(by: float) -> Tensor:
            return self._grown(masses, -by * depth)

        def left(masses: Tensor) -> Tensor:
            # What an encoder has removed, no later one has to pay for, nor can bring back.
            return masses.cummin(dim=0).values

        held = moved(_root(lambda by: self.cost(left(moved(by))).item() - budget, -_FAR, _FAR))
        if len(held) > 1:
            held[-1] = held[-2]
        return held

    @torch.no_grad()
    def scatter(self, masses: Tensor, step: int, steps: int) -> Tensor:
        """Masses near these, others in each step, once the budget is reached.

        Weights get used to what [`refine`] will try, and gradients are those of a neighbourhood: counts are whole, so
        what a short text keeps jumps with the masses.

        Args:
            masses: (L,).
            step: those that are done. What is drawn follows from it alone, in all processes and wherever a training
                goes on.
            steps: those of the search.

        Returns:
            (L,), from 1.5 to R, or to the longest input; the masses themselves while the budget falls.
        """
        if step < _FALLING * steps:
            return masses
        drawn = torch.randn(len(masses), generator=torch.Generator().manual_seed(step), dtype=masses.dtype)
        return self._grown(masses, _NUDGE * drawn)

    def _grown(self, masses: Tensor, by: Tensor) -> Tensor:
        """Masses times e to the power of `by`, as far as they are learned: from 1.5 to R, or to the longest input."""
        return (masses.clamp(max=self._most) * by.exp()).clamp(_LEAST, self._most)

    @property
    def trials(self) -> int:
        """Losses that [`refine`] asks for."""
        return 1 + 2 * (self._config.num_encoders - 1) + len(_MOVES)

    def refine(self, masses: Tensor, loss: Callable[[Sequence[float]], float]) -> tuple[Tensor, float, float]:
        """Move word-vectors from encoder to encoder, at the same cost, where less is lost by it.

        Each mass is nudged both ways to see what it is worth, then all are moved against that, by as much as helps.

        Args:
            masses: (L,) in float64.
            loss: of a configuration, on weights that are used to one like it.

        Returns:
            (L, R) a `ramp` of masses at the budget in float32, the loss before, and the loss of these.
        """

        def held(masses: Tensor) -> tuple[Tensor, Tensor, float]:
            # The configuration is read off the weights, which are float32.
            weights = self.ramp(self.hold(masses, 1.0)).float()
            masses = retention_mass(weights.double())
            return weights, masses, loss(self.reach(masses.tolist()))

        kept, masses, before = held(masses)
        gain, price = torch.zeros_like(masses), torch.full_like(masses, _FLAT)
        for encoder in range(len(masses) - 1):
            losses, costs = [], []
            for by in (_NUDGE, -_NUDGE):
                other = masses.clone()
                other[encoder] *= math.exp(by)
                nudged = other.clamp(max=float(self.length)).tolist()
                losses.append(loss(self.configuration(nudged)))
                # That of the configuration too: the mass may be cut off by its neighbours', or cut off theirs.
                costs.append(1 / self.predicted(nudged))
            gain[encoder] = losses[0] - losses[1]
            price[encoder] += costs[0] - costs[1]
        # A configuration whose loss is not finite says nothing.
        gain = gain.nan_to_num(0.0, 0.0, 0.0)
        away = _exchanged(gain, price)
        # What is left of gains where no exchange helps is no direction.
        away /= max(away.abs().max().item(), _NOTHING * gain.abs().max().item(), _FLAT)
        tried = [held(masses * torch.exp(-by * away)) for by in _MOVES]
        # Nor is it better than any other.
        best, _, after = min(tried, key=lambda one: one[2] if math.isfinite(one[2]) else math.inf)
        return (best, before, after) if math.isfinite(after) and not after >= before else (kept, before, before)

    def reach(self, masses: Sequence[float]) -> list[int] | list[float]:
        """Scale masses until the predicted speed-up of their configuration is as near as can be to the one asked for.

        Args:
            masses: L of them.
        """
        length = float(self.length)
        # An encoder has no more than an earlier one has left: masses that grow would have one count, and jump at once.
        masses = np.minimum.accumulate(masses).tolist()

        def scaled(by: float) -> list[float]:
            return [min(length, by * mass) for mass in masses]

        # No scale takes a mass above R or below 1 word-vector.
        low, high = 1 / max(masses), length / min(masses[:-1])
        by = _root(lambda by: self.speedup - self.predicted(scaled(by)), low, high)
        # Counts are whole, so the speed-up jumps there. The first encoders take the larger one, the rest the smaller.
        more, fewer = scaled(by * (1 + 1e-9)), scaled(by * (1 - 1e-9))
        between = [more[:encoder] + fewer[encoder:] for encoder in range(len(more) + 1)]
        return self.configuration(min(between, key=lambda one: abs(self.predicted(one) - self.speedup)))


def _exchanged(gain: Tensor, price: Tensor) -> Tensor:
    """(L,): gains less the constraint's multiplier times prices: zeros where no exchange gains anything."""
    return gain - price * (gain.sum() / price.sum())


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where an increasing or decreasing function crosses zero; the nearer end if it does not."""
    ends = function(low), function(high)
    if ends[0] * ends[1] > 0:
        return low if abs(ends[0]) < abs(ends[1]) else high
    return float(brentq(function, low, high, xtol=1e-10))
