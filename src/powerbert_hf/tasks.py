# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What is known of data sets by their name: GLUE's nine and IMDB; and metrics that need no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import evaluate


@dataclass(frozen=True)
class Task:
    """What is known of a data set before it is read.

    Args:
        text_columns: one column, or two for sentence pairs.
        metric: the metric that counts, one of `METRICS`.
        label_names: names by label number; empty for regression.
        max_length: inputs are truncated to this many word-pieces, the paper's N; `None` takes the model's maximum.
        eval_split: the split that is reported.
        hyperparameters: published values, by the name of the training argument: IBM's learning rate and batch size
            (https://github.com/IBM/PoWER-BERT, README).
        search: the same of the search: lambda and the retention weights' learning rate.
    """

    text_columns: tuple[str, ...]
    metric: str = "accuracy"
    label_names: tuple[str, ...] = ()
    max_length: int | None = None
    eval_split: str = "validation"
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, float] = field(default_factory=dict)


def _published(batch_size: int, rate: float, retention_rate: float, retention_lambda: float) -> dict[str, Any]:
    return {
        "hyperparameters": {"per_device_train_batch_size": batch_size, "learning_rate": rate},
        "search": {"retention_learning_rate": retention_rate, "retention_lambda": retention_lambda},
    }


_ENTAILMENT = ("entailment", "not_entailment")
_EQUIVALENT = ("not_equivalent", "equivalent")

TASKS: dict[str, Task] = {
    "cola": Task(
        ("sentence",),
        "matthews_correlation",
        ("unacceptable", "acceptable"),
        64,
        **_published(32, 2e-5, 1.5e-3, 7e-3),
    ),
    "sst2": Task(("sentence",), "accuracy", ("negative", "positive"), 64, **_published(64, 3e-5, 5e-4, 2e-4)),
    "mrpc": Task(("sentence1", "sentence2"), "f1", _EQUIVALENT, 128, **_published(64, 6e-5, 3e-3, 3e-3)),
    "stsb": Task(("sentence1", "sentence2"), "spearmanr", (), 64, **_published(64, 3e-5, 3e-3, 1e-3)),
    "qqp": Task(
        ("question1", "question2"),
        "f1",
        ("not_duplicate", "duplicate"),
        128,
        **_published(64, 3e-5, 1e-4, 3e-4),
    ),
    "mnli": Task(
        ("premise", "hypothesis"),
        "accuracy",
        ("entailment", "neutral", "contradiction"),
        128,
        eval_split="validation_matched",
        **_published(64, 3e-5, 2e-4, 1e-4),
    ),
    "qnli": Task(("question", "sentence"), "accuracy", _ENTAILMENT, 128, **_published(16, 3e-5, 2e-4, 1.5e-4)),
    "rte": Task(("sentence1", "sentence2"), "accuracy", _ENTAILMENT, 256, **_published(16, 3e-5, 3e-3, 1e-3)),
    # The paper leaves WNLI out, and its code IMDB: nothing is published for these two.
    "wnli": Task(("sentence1", "sentence2"), "accuracy", ("not_entailment", "entailment"), 128),
    "imdb": Task(("text",), "accuracy", ("neg", "pos"), 512, eval_split="test"),
}


def infer_task(dataset: str | None, subset: str | None) -> str | None:
    """The known task that a data set's name stands for, or `None`.

    Example:
        >>> infer_task("nyu-mll/glue", "mrpc"), infer_task("stanfordnlp/imdb", None), infer_task("ag_news", None)
        ('mrpc', 'imdb', None)
    """
    name = subset or Path(dataset or "").name
    return name if name in TASKS else None


def hub_source(task: str) -> tuple[str, str | None]:
    """The Hub id and the configuration of a known task's data set.

    Example:
        >>> hub_source("mrpc"), hub_source("imdb")
        (('nyu-mll/glue', 'mrpc'), ('stanfordnlp/imdb', None))
    """
    return ("stanfordnlp/imdb", None) if task == "imdb" else ("nyu-mll/glue", task)


class ClassificationMetric(evaluate.Metric):
    """`accuracy`, `f1` and `matthews_correlation`, computed with scikit-learn, without the network.

    `f1` is that of label 1 where there are two labels (GLUE), else the mean over labels. `num_labels` tells which,
    where the rows do not hold all of them.
    """

    def _info(self) -> evaluate.MetricInfo:
        values = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(description=self.__doc__, citation="", features=datasets.Features(values))

    def _compute(self, predictions: Sequence[int], references: Sequence[int], num_labels: int = 2) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        found = {*predictions, *references}
        # A few rows of a task with more labels may hold no others than 0 and 1.
        average = "binary" if max(num_labels - 1, *found) == 1 else "macro"
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1": float(f1_score(references, predictions, average=average, zero_division=0.0)),
            # With one label there is nothing to correlate: 0 by convention, of which scikit-learn warns.
            "matthews_correlation": float(matthews_corrcoef(references, predictions)) if len(found) > 1 else 0.0,
        }


class MultiLabelMetric(evaluate.Metric):
    """`f1_micro`, `f1_macro` and `subset_accuracy` (all labels of a text right), computed with scikit-learn.

    Predictions and references are rows of 0 and 1, one per label. `f1_micro` counts every label of every text alike,
    `f1_macro` is the mean over labels.
    """

    def _info(self) -> evaluate.MetricInfo:
        values = {name: datasets.List(datasets.Value("int64")) for name in ("predictions", "references")}
        return evaluate.MetricInfo(description=self.__doc__, citation="", features=datasets.Features(values))

    def _compute(self, predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score

        return {
            "f1_micro": float(f1_score(references, predictions, average="micro", zero_division=0.0)),
            "f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0.0)),
            "subset_accuracy": float(accuracy_score(references, predictions)),
        }


class RegressionMetric(evaluate.Metric):
    """`spearmanr` and `pearson`, computed with scipy, without the network."""

    def _info(self) -> evaluate.MetricInfo:
        values = {"predictions": datasets.Value("float32"), "references": datasets.Value("float32")}
        return evaluate.MetricInfo(description=self.__doc__, citation="", features=datasets.Features(values))

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        from scipy.stats import pearsonr, spearmanr

        if len(set(predictions)) == 1 or len(set(references)) == 1:
            return {"spearmanr": 0.0, "pearson": 0.0}
        return {
            "spearmanr": float(spearmanr(predictions, references).statistic),
            "pearson": float(pearsonr(predictions, references).statistic),
        }


# By the problem type of a model's configuration; the first counts.
METRICS = {
    "single_label_classification": ("accuracy", "f1", "matthews_correlation"),
    "multi_label_classification": ("f1_micro", "f1_macro", "subset_accuracy"),
    "regression": ("spearmanr", "pearson"),
}
