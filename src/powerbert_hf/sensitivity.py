# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""How much each encoder's word-vectors matter to a model's answers, and the configurations that follow from it.

Forward passes on unlabelled texts are enough. What is measured is how far the answers move from those at full
retention, by their total variation distance: the share that would change if answers were drawn from the distributions.
Of the likeliest answers themselves, on some hundred texts, hardly one changes; and a Kullback-Leibler divergence minds
most what moves far, which need not be what changes. `D_j(f)` is the distance of a model whose encoders from j on keep
a share f of the word-vectors, those before j all.

A configuration is then taken to lose `sum_j S(D_j(f_j)) - S(D_j(f_(j-1)))`: each encoder pays for the word-vectors
that end there, for those alone. `S(D) = -log(1 - D / D_max)` is close to `D / D_max` while that is small; but answers
cannot get further off than those that know nothing of the input, so where several encoders eliminate much, what they
leave over multiplies. Under this sum the best configuration for every cost is found exactly, by dynamic programming.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor
from transformers import PreTrainedModel

from .agreement import log_probabilities, logits, predicts_number, same_retention_after, unchanged
from .benchmark import Features, make_batches
from .cost import multiply_accumulates_of, predicted_speedup
from .retention import retention_count

logger = logging.getLogger(__name__)

# Shares that are measured, for every encoder; between them D is interpolated, monotonically.
_MEASURED = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
# D_max over the largest distance that was measured.
_FARTHEST = 1.05
# Shares that a configuration is made of.
_SHARES = tuple(round(1 - step * 0.025, 3) for step in range(37))
# Of partial configurations whose costs differ by less than this part of the whole, one is followed.
_RESOLUTION = 1 / 500
# Configurations of a path are this much faster one than the other.
_FASTER = 1.03


@dataclass(frozen=True)
class PathPoint:
    """A configuration of a path.

    Args:
        retention_config: L fractions.
        predicted_speedup: stock's multiply-accumulates over this configuration's, on the texts searched on.
        distance: of its answers, as the sum over encoders has it; a share, the mean over texts.
    """

    retention_config: list[float]
    predicted_speedup: float
    distance: float


class _Partial(NamedTuple):
    """The first encoders of a configuration; what they keep are places in `_SHARES`."""

    cost: float
    loss: float
    kept: tuple[int, ...]


def check_model(config: Any) -> None:
    """Refuse a model that has no predictions of its own to keep.

    Args:
        config: of a classifier of this package.

    Raises:
        ValueError: for a regression, or where word-vectors are eliminated already.
    """
    if predicts_number(config):
        raise ValueError(
            "Calibration keeps predicted classes as they are, got a model that predicts a number, of which it would "
            "have to know how far it may move; find a configuration by `powerbert train --fine-tuned`."
        )
    if config.active_retention_mode != "off":
        raise ValueError(
            "Calibration begins with a model that keeps all word-vectors, got one with `retention_config` "
            f"{config.retention_config} and `retention_mode` {config.retention_mode!r}; pass the model that was "
            "fine-tuned without."
        )


def comparison(
    model: PreTrainedModel, features: Features, batch_size: int = 32, bf16: bool = False
) -> tuple[Callable[[Sequence[float]], tuple[Tensor, float]], Tensor]:
    """Compare a model's answers under any configuration with those at full retention.

    Args:
        model: a classifier of this package, in evaluation mode.
        features: inputs as a tokenizer returns them, unpadded.
        batch_size: inputs that the model reads at once.
        bf16: compute in bfloat16.

    Returns:
        A function of a configuration in fractions, which the model has afterwards: whose prediction is the same, (N,)
        booleans from the shortest input to the longest, and the distance. And the logits at full retention.

    Raises:
        ValueError: for a model that does not answer with finite logits.
    """
    batches = make_batches(sorted(features, key=lambda row: len(row["input_ids"])), batch_size, model.device)
    config = model.config

    def answers(entries: Sequence[float]) -> Tensor:
        model.set_retention(entries, unit="fraction")
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            # Not every accelerator can count and compare all that is asked for below.
            return logits(model, batches).float().cpu()

    expected = answers([1.0] * config.num_encoders)
    if not expected.isfinite().all():
        raise ValueError("The model must answer with finite logits, got others; check its weights.")

    def compare(entries: Sequence[float]) -> tuple[Tensor, float]:
        found = answers(entries)
        given, wanted = (log_probabilities(each, config.problem_type).exp() for each in (found, expected))
        # Of several labels a text the sum.
        distance = (given - wanted).abs().sum().item() / 2
        return unchanged(found, expected, config.problem_type), distance / len(expected)

    return compare, expected


def search_path(
    model: PreTrainedModel,
    features: Features,
    batch_size: int = 32,
    bf16: bool = False,
    say: Callable[[str], None] = logger.info,
) -> list[PathPoint]:
    """The configurations that change a model's answers least, one for every speed-up.

    Args:
        model: a classifier of this package that keeps all word-vectors, fine-tuned; it is put into evaluation mode.
        features: inputs as a tokenizer returns them, unpadded; some hundreds.
        batch_size: inputs that the model reads at once.
        bf16: compute in bfloat16.
        say: told what is going on, a line at a time.

    Returns:
        From full retention on, each at least 3 % faster than the one before. Encoder L hands on [CLS] alone, whatever
        its entry: it is the smallest that makes a difference to any of the inputs, one over the longest.

    Raises:
        ValueError: for a model that predicts a number, or eliminates word-vectors already.

    Example:
        >>> path = search_path(model, features)  # doctest: +SKIP
        >>> twice = next(point for point in path if point.predicted_speedup >= 2)  # doctest: +SKIP
    """
    check_model(model.config)
    last = model.config.num_encoders - 1
    lengths = torch.tensor([len(row["input_ids"]) for row in features])
    smallest = 1 / int(lengths.max())

    def whole(shares: Sequence[float]) -> list[float]:
        return [*shares, min([*shares[-1:], smallest])]

    model.eval()
    with same_retention_after(model):
        compare, _ = comparison(model, features, batch_size, bf16)
        measured = np.zeros((last, 1 + len(_MEASURED)))
        for encoder in range(last):
            for place, share in enumerate(_MEASURED, start=1):
                measured[encoder, place] = compare(whole([1.0] * encoder + [share] * (last - encoder)))[1]
            said = ", ".join(f"{measured[encoder, place]:.2g} at {_MEASURED[place - 1]:.0%}" for place in (2, 4, 6, 8))
            say(f"searching: encoder {encoder + 1} of {last}: answers move by {said}")
        measured = np.maximum.accumulate(measured, axis=1)
        farthest = _FARTHEST * measured.max(initial=0.0) or 1.0
        losses = -np.log1p(-measured / farthest)
        shares = [*_MEASURED[::-1], 1.0]
        curves = [PchipInterpolator(shares, encoder_losses[::-1])(_SHARES) for encoder_losses in losses]
        path: list[PathPoint] = []
        for found in _best(model.config, curves, lengths):
            config = whole([_SHARES[place] for place in found.kept])
            model.set_retention(config, unit="fraction")
            speedup = predicted_speedup(model.config, lengths)
            if not path or speedup >= _FASTER * path[-1].predicted_speedup:
                path.append(PathPoint(config, speedup, -farthest * np.expm1(-found.loss).item()))
    slowest, fastest = path[0].predicted_speedup, path[-1].predicted_speedup
    say(f"searching: {len(path)} configurations, {slowest:.2f}x to {fastest:.2f}x predicted")
    return path


def _best(config: Any, curves: Sequence[np.ndarray], lengths: Tensor) -> list[_Partial]:
    """The configurations that no other beats in both cost and loss, the costliest, full retention, first.

    Args:
        config: the model's, of which only the sizes count.
        curves: (L - 1, shares) `S(D_j)`, never falling with the place of the share.
        lengths: (N,) integers, real word-vectors of each input.
    """
    counts = [retention_count(share, lengths, "fraction") for share in _SHARES]
    one = torch.ones_like(lengths)

    def cost_of(received: Tensor, queried: Tensor, kept: Tensor) -> int:
        return int(multiply_accumulates_of(config, received, queried, kept).sum())

    places = range(len(_SHARES))
    cost = {(a, b): cost_of(counts[a], counts[a], counts[b]) for a in places for b in places[a:]}
    last = [cost_of(count, one, one) for count in counts]
    resolution = _RESOLUTION * (len(curves) * cost[0, 0] + last[0])
    fronts = {0: [_Partial(0, 0.0, ())]}
    for curve in curves:
        fronts = {
            b: _front(
                (
                    _Partial(part.cost + cost[a, b], part.loss + float(curve[b] - curve[a]), (*part.kept, b))
                    for a, front in fronts.items()
                    if a <= b
                    for part in front
                ),
                resolution,
            )
            for b in places
        }
    ends = (part._replace(cost=part.cost + last[b]) for b, front in fronts.items() for part in front)
    found = _front(ends, resolution)[::-1]
    full = _Partial(len(curves) * cost[0, 0] + last[0], 0.0, (0,) * len(curves))
    return [full, *(part for part in found if part.cost < full.cost)]


def _front(parts: Iterable[_Partial], resolution: float) -> list[_Partial]:
    """Those that no cheaper one equals in loss, by rising cost, at most one in each interval of costs."""
    best: dict[int, _Partial] = {}
    for part in parts:
        place = int(part.cost // resolution)
        if place not in best or part.loss < best[place].loss:
            best[place] = part
    front: list[_Partial] = []
    for place in sorted(best):
        if not front or best[place].loss < front[-1].loss:
            front.append(best[place])
    return front
