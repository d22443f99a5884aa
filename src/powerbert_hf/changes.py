# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What elimination changes in a model's answers: class by class, and the examples whose prediction is another one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel

from .agreement import log_probabilities, unchanged
from .data import TaskData
from .inspection import Explanation, explain
from .predict import answer_for, logits_of


@dataclass(frozen=True)
class ClassChange:
    """How one class fares.

    Args:
        name: of the class.
        rows: that have it.
        right_before: of these, how many the one model finds.
        right_after: how many the other one.
    """

    name: str
    rows: int
    right_before: int
    right_after: int


@dataclass(frozen=True)
class ExampleChange:
    """A row that two models answer differently.

    Args:
        explanation: what the second model kept of it, and its answer.
        before: the first model's answer.
        label: what the data say.
        right_before: whether that is the first model's answer.
        right_after: whether it is the second's; both `None` for a regression.
    """

    explanation: Explanation
    before: dict[str, Any]
    label: str
    right_before: bool | None = None
    right_after: bool | None = None


@dataclass(frozen=True)
class Changes:
    """What changed between two models on the reported split.

    Args:
        rows: of the split.
        changed: predictions that are others; `None` for a regression.
        classes: class by class; none for a regression.
        examples: of those that changed, or for a regression of all rows, the ones that moved furthest.
    """

    rows: int
    changed: int | None
    classes: list[ClassChange]
    examples: list[ExampleChange]


def find_changes(
    before: PreTrainedModel, after: PreTrainedModel, data: TaskData, examples: int = 12, batch_size: int = 32
) -> Changes:
    """Compare two models on the reported split.

    Args:
        before: a classifier.
        after: one of this package, with the same labels.
        data: from `data.prepare_data`, with their tokenizer.
        examples: rows to show, at most.
        batch_size: inputs that a model reads at once.
    """
    columns = [name for name in data.tokenizer.model_input_names if name in data.eval.column_names]
    features = data.eval.select_columns(columns).to_list()
    collate = DataCollatorWithPadding(data.tokenizer)
    first, second = (logits_of(model.eval(), features, collate, batch_size) for model in (before, after))
    gold, kind = torch.tensor(data.eval["labels"]), data.problem_type
    changed: int | None = None
    right: list[list[bool]] = []
    if kind == "regression":
        moved, rows = (second - first).abs().amax(dim=1), list(range(len(first)))
    else:
        probabilities = [log_probabilities(logits, kind).exp() for logits in (first, second)]
        moved = (probabilities[1] - probabilities[0]).abs().flatten(1).amax(dim=1)
        rows = (~unchanged(first, second, kind)).nonzero().flatten().tolist()
        changed = len(rows)
        right = [_found(logits, gold, kind).all(dim=1).tolist() for logits in (first, second)]
    shown = sorted(rows, key=lambda row: -moved[row].item())[:examples]
    texts = [list(data.eval_texts[row].values()) for row in shown]
    answer = answer_for(before.config)
    explanations = explain(after, data.tokenizer, texts, batch_size, data.source["max_length"])
    return Changes(
        len(first),
        changed,
        _classes(first, second, gold, data),
        [
            ExampleChange(
                explanation,
                answer(first[row]),
                _label(gold[row], data),
                *(found[row] for found in right),
            )
            for row, explanation in zip(shown, explanations, strict=True)
        ],
    )


def _found(logits: Tensor, gold: Tensor, kind: str) -> Tensor:
    """(B, 1), or (B, labels) with several labels a text: whether the model says what the data say."""
    if kind == "multi_label_classification":
        return (logits > 0) == (gold > 0)
    return (logits.argmax(dim=1) == gold)[:, None]


def _classes(first: Tensor, second: Tensor, gold: Tensor, data: TaskData) -> list[ClassChange]:
    if data.problem_type == "regression":
        return []
    several = data.problem_type == "multi_label_classification"
    found = [_found(logits, gold, data.problem_type) for logits in (first, second)]
    classes = []
    for number, name in enumerate(data.label_names):
        has = gold[:, number] > 0 if several else gold == number
        right: Sequence[int] = [int(one[has, number if several else 0].sum()) for one in found]
        classes.append(ClassChange(name, int(has.sum()), *right))
    return classes


def _label(gold: Tensor, data: TaskData) -> str:
    if data.problem_type == "regression":
        return f"{gold.item():.3f}"
    if data.problem_type == "multi_label_classification":
        names = [name for name, is_so in zip(data.label_names, gold.tolist(), strict=True) if is_so]
        return ", ".join(names) or "none of the labels"
    return data.label_names[int(gold)]
