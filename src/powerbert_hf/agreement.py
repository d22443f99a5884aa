# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether our model with nothing eliminated is the stock one, and how it answers with something eliminated."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .configuration_powerbert import RETENTION_FIELDS

Batch = dict[str, Tensor]

# What full retention may differ by from stock, in float32; relatively to logits above 1, such as a regression's.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Agreement:
    """How ours and stock agree, on the same batches in the same dtype.

    Args:
        at_full_retention: largest difference of logits between ours, nothing eliminated, and stock.
        rounding: largest difference of logits between stock and stock in float32 with the same weights.
        changed_by: largest difference of logits between ours and stock.
        unchanged: share of predictions that are those of stock; `None` for regression.
        correlation: of the two models' values (Pearson), for regression; `None` otherwise, or where it is undefined.
    """

    at_full_retention: float
    rounding: float
    changed_by: float
    unchanged: float | None
    correlation: float | None


@torch.inference_mode()
def logits(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """(inputs, labels) of all batches, once the device has computed them."""
    parts = [model(**batch).logits for batch in batches]
    synchronize(parts[0].device)
    return torch.cat(parts)


def synchronize(device: torch.device) -> None:
    """Wait for what an accelerator has yet to compute; a CPU has computed all."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def predicts_number(config: Any) -> bool:
    """Whether a classifier is a regression: by what it was trained for, or by having a single output for one class.

    Args:
        config: of any classifier.
    """
    alone = config.num_labels == 1 and config.problem_type != "multi_label_classification"
    return alone or config.problem_type == "regression"


def unchanged(answers: Tensor, expected: Tensor, problem_type: str | None) -> Tensor:
    """Whose prediction is the same: the class, or with several labels a text each of them.

    Args:
        answers: (B, labels) logits.
        expected: (B, labels) logits.
        problem_type: of the model's configuration, not a regression's.

    Returns:
        (B,) booleans.

    Example:
        >>> unchanged(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([[0.0, 9.0], [0.0, 9.0]]), None)
        tensor([ True, False])
    """
    return (_predictions(answers, problem_type) == _predictions(expected, problem_type)).all(dim=1)


def commonest(answers: Tensor, problem_type: str | None) -> int:
    """How many inputs have the most frequent prediction: as many as agree with one answer to all of them.

    Args:
        answers: (B, labels) logits.
        problem_type: of the model's configuration, not a regression's.

    Example:
        >>> commonest(torch.tensor([[1.0, 2.0], [2.0, 1.0], [0.0, 9.0]]), None)
        2
    """
    return int(_predictions(answers, problem_type).unique(dim=0, return_counts=True)[1].max())


def _predictions(answers: Tensor, problem_type: str | None) -> Tensor:
    """(B, 1) classes, or with several labels a text (B, labels) booleans."""
    return answers > 0 if problem_type == "multi_label_classification" else answers.argmax(dim=1, keepdim=True)


def log_probabilities(logits: Tensor, problem_type: str | None) -> Tensor:
    """Logarithms of a classifier's distributions: one over the classes, or with several labels one for each label.

    Args:
        logits: (B, labels).
        problem_type: of the model's configuration, not a regression's.

    Returns:
        (B, labels), or with several labels (B, labels, 2): yes and no.
    """
    if problem_type == "multi_label_classification":
        logits = torch.stack([logits, torch.zeros_like(logits)], dim=-1)
    return logits.log_softmax(dim=-1)


@contextmanager
def same_retention_after(model: PreTrainedModel) -> Iterator[None]:
    """Whatever configuration is set meanwhile, afterwards the model has its own again, one that is off too.

    Retention weights that it has learned are put back, too.

    Args:
        model: of this package, in hard mode or off.
    """
    before = {name: getattr(model.config, name) for name in RETENTION_FIELDS}
    learned = model.retention_weights
    try:
        yield
    finally:
        model.base_model.encoder.register_parameter("retention_weights", learned)
        for name, value in before.items():
            setattr(model.config, name, value)


def compare(ours: PreTrainedModel, stock: PreTrainedModel, batches: Sequence[Batch]) -> Agreement:
    """How ours and stock agree, and whether ours with nothing eliminated is stock at all.

    In float32 logits may differ by 1e-3, or a thousandth of the largest. In half precision nobody's are right: stock's
    own are off by what it makes of the same weights in float32. Ours may be off from that by twice as much, besides.

    Args:
        ours: a classifier of this package, in hard mode.
        stock: upstream's class, of the same dtype.
        batches: what both run on.

    Raises:
        ValueError: where our model with nothing eliminated does not answer as the stock model does: then its speed
            means nothing.
    """
    expected, answers = logits(stock, batches).float(), logits(ours, batches).float()
    exact = expected if stock.dtype == torch.float32 else logits(copy.deepcopy(stock).float(), batches)
    config = ours.config
    with same_retention_after(ours):
        ours.set_retention([1.0] * config.num_encoders, unit="fraction")
        full = logits(ours, batches).float()

    def apart(left: Tensor, right: Tensor) -> float:
        return (left - right).abs().max().item()

    rounding, off = apart(expected, exact), apart(full, exact)
    allowed = TOLERANCE * max(1.0, expected.abs().max().item()) + 2 * rounding
    # Not `>`, which NaN passes.
    if not off <= allowed:
        raise ValueError(
            "With nothing eliminated the model must answer as the stock model does, got logits that are "
            f"{off:.2g} apart, of at most {allowed:.2g} in {str(stock.dtype).removeprefix('torch.')}; compare the "
            "weights of the two before asking for their speed."
        )
    same = correlation = None
    if predicts_number(config):
        if expected.numel() > 1:
            pearson = torch.corrcoef(torch.stack([answers.flatten(), expected.flatten()]))[0, 1].item()
            correlation = None if math.isnan(pearson) else pearson
    else:
        # Not the mean in float64, which not every accelerator has.
        same = int(unchanged(answers, expected, config.problem_type).sum()) / len(expected)
    return Agreement(apart(full, expected), rounding, apart(answers, expected), same, correlation)
