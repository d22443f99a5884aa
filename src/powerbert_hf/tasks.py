# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Data sets: GLUE's nine and IMDB by name, any other by its columns; their metrics, offline."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
from datasets import Dataset, DatasetDict
from transformers import EvalPrediction, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Readers of `datasets`, by the ending of a file's name.
_READERS = {"csv": "csv", "tsv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet", "arrow": "arrow"}


@dataclass(frozen=True)
class Task:
    """What is known of a data set before it is read.

    Args:
        text_columns: one column, or two for sentence pairs.
        metric: the metric that counts; the first of `METRICS` of its kind.
        label_names: names by label number; empty for regression.
        max_length: inputs are truncated to this many word-pieces, the paper's N; `None` takes the model's maximum.
        eval_split: the split that is reported.
        hyperparameters: published values, by the name of the training argument. Learning rates, lambda and batch
            size are IBM's (https://github.com/IBM/PoWER-BERT, README).
    """

    text_columns: tuple[str, ...]
    metric: str = "accuracy"
    label_names: tuple[str, ...] = ()
    max_length: int | None = None
    eval_split: str = "validation"
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    label_column: str = "label"


def _published(batch_size: int, rate: float, retention_rate: float, retention_lambda: float) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": batch_size,
        "learning_rate": rate,
        "retention_learning_rate": retention_rate,
        "retention_lambda": retention_lambda,
    }


_ENTAILMENT = ("entailment", "not_entailment")
_EQUIVALENT = ("not_equivalent", "equivalent")

TASKS: dict[str, Task] = {
    "cola": Task(
        ("sentence",),
        "matthews_correlation",
        ("unacceptable", "acceptable"),
        64,
        hyperparameters=_published(32, 2e-5, 1.5e-3, 7e-3),
    ),
    "sst2": Task(
        ("sentence",), "accuracy", ("negative", "positive"), 64, hyperparameters=_published(64, 3e-5, 5e-4, 2e-4)
    ),
    "mrpc": Task(("sentence1", "sentence2"), "f1", _EQUIVALENT, 128, hyperparameters=_published(64, 6e-5, 3e-3, 3e-3)),
    "stsb": Task(("sentence1", "sentence2"), "spearmanr", (), 64, hyperparameters=_published(64, 3e-5, 3e-3, 1e-3)),
    "qqp": Task(
        ("question1", "question2"),
        "f1",
        ("not_duplicate", "duplicate"),
        128,
        hyperparameters=_published(64, 3e-5, 1e-4, 3e-4),
    ),
    "mnli": Task(
        ("premise", "hypothesis"),
        "accuracy",
        ("entailment", "neutral", "contradiction"),
        128,
        eval_split="validation_matched",
        hyperparameters=_published(64, 3e-5, 2e-4, 1e-4),
    ),
    "qnli": Task(
        ("question", "sentence"), "accuracy", _ENTAILMENT, 128, hyperparameters=_published(16, 3e-5, 2e-4, 1.5e-4)
    ),
    "rte": Task(
        ("sentence1", "sentence2"), "accuracy", _ENTAILMENT, 256, hyperparameters=_published(16, 3e-5, 3e-3, 1e-3)
    ),
    # The paper leaves WNLI out, and its code IMDB: nothing is published for these two.
    "wnli": Task(("sentence1", "sentence2"), "accuracy", ("not_entailment", "entailment"), 128),
    "imdb": Task(("text",), "accuracy", ("neg", "pos"), 512, eval_split="test"),
}


class ClassificationMetric(evaluate.Metric):
    """`accuracy`, `f1` and `matthews_correlation`, computed with scikit-learn, without the network.

    `f1` is that of label 1 where there are two labels (GLUE), else the mean over labels.
    """

    def _info(self) -> evaluate.MetricInfo:
        values = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(description=self.__doc__, citation="", features=datasets.Features(values))

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        average = "binary" if max([1, *predictions, *references]) == 1 else "macro"
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1": float(f1_score(references, predictions, average=average, zero_division=0.0)),
            "matthews_correlation": float(matthews_corrcoef(references, predictions)),
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


METRICS = {
    "single_label_classification": ("accuracy", "f1", "matthews_correlation"),
    "regression": ("spearmanr", "pearson"),
}


@dataclass(frozen=True)
class TaskData:
    """Tokenised data, ready for a `Trainer`.

    Args:
        train: columns `input_ids`, ..., `labels`, `length`.
        eval: the same, sorted by length; its result is reported and nothing is chosen by it.
        tokenizer: what made them.
        metric: the metric that counts.
        problem_type: as in a model's configuration.
        label_names: names by label number; empty for regression.
        source: where the data came from, for the report.
    """

    train: Dataset
    eval: Dataset
    tokenizer: PreTrainedTokenizerBase
    metric: str
    problem_type: str
    label_names: tuple[str, ...]
    source: dict[str, Any]

    @property
    def retention_length(self) -> int:
        """R: word-pieces of the longest training input."""
        return max(self.train["length"])

    @property
    def label_fields(self) -> dict[str, Any]:
        """What a model's configuration must say about the labels."""
        names = self.label_names or ("LABEL_0",)
        return {
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": self.problem_type,
        }

    @property
    def compute_metrics(self) -> Callable[[EvalPrediction], dict[str, float]]:
        """For the `compute_metrics` of a `Trainer`."""
        if self.problem_type == "regression":
            return lambda output: RegressionMetric().compute(
                predictions=np.squeeze(output.predictions, -1), references=output.label_ids
            )
        return lambda output: ClassificationMetric().compute(
            predictions=output.predictions.argmax(-1), references=output.label_ids
        )


def infer_task(dataset: str | None, subset: str | None) -> str | None:
    """The known task that a data set's name stands for, or `None`.

    Example:
        >>> infer_task("nyu-mll/glue", "mrpc"), infer_task("stanfordnlp/imdb", None), infer_task("ag_news", None)
        ('mrpc', 'imdb', None)
    """
    name = subset or Path(dataset or "").name
    return name if name in TASKS else None


def load_splits(
    dataset: str | None = None,
    subset: str | None = None,
    train_file: str | None = None,
    eval_file: str | None = None,
    task: Task | None = None,
) -> tuple[Dataset, Dataset]:
    """Read the training split and the split to report.

    Args:
        dataset: a Hub id, or a folder of files or of a saved data set.
        subset: the configuration of a Hub data set, such as `mrpc` of GLUE.
        train_file: csv, tsv, json, jsonl, parquet or arrow; in place of `dataset`.
        eval_file: the same; in place of the data set's own split.
        task: names the split to report.

    Raises:
        ValueError: where nothing is to be read, or a split is missing.
    """
    if dataset is None and train_file is not None:
        if eval_file is None:
            raise ValueError("`--train-file` needs an `--eval-file` to report on; split one off your data.")
        return _read_file(train_file), _read_file(eval_file)
    if dataset is None or train_file is not None:
        raise ValueError("Pass either `--dataset` or `--train-file` (with `--eval-file`), got both or neither.")
    folder = Path(dataset)
    if (folder / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(dataset)
    else:
        splits = datasets.load_dataset(str(folder) if folder.is_dir() else dataset, subset)
    if not isinstance(splits, DatasetDict) or "train" not in splits:
        raise ValueError(f"Data set {dataset!r} must have a split `train`, got {list(splits)}; pass `--train-file`.")
    if eval_file is not None:
        return splits["train"], _read_file(eval_file)
    for name in dict.fromkeys([task.eval_split if task else "validation", "validation", "test"]):
        if name in splits:
            return splits["train"], splits[name]
    raise ValueError(f"Data set {dataset!r} has no split to report on, got {list(splits)}; pass `--eval-file`.")


def _read_file(path: str) -> Dataset:
    ending = Path(path).suffix.lstrip(".").lower()
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}; check the path.")
    if ending not in _READERS:
        raise ValueError(f"Files must end in {', '.join(sorted(_READERS))}, got {path}; convert it.")
    more = {"sep": "\t"} if ending == "tsv" else {}
    return datasets.load_dataset(_READERS[ending], data_files=path, split="train", **more)


def choose_columns(
    dataset: Dataset, text_columns: Sequence[str] | None, label_column: str | None, task: Task | None
) -> tuple[list[str], str]:
    """The columns to read: those asked for, else the task's, else the only ones that it can be.

    Raises:
        ValueError: for a column that is not there, or where several could be meant.
    """
    columns = dataset.column_names
    if label_column is None:
        label_column = (
            task.label_column if task else next((name for name in ("label", "labels") if name in columns), "")
        )
    chosen = list(text_columns or (task.text_columns if task else ()))
    if not chosen:
        strings = [
            n for n, kind in dataset.features.items() if getattr(kind, "dtype", "") in ("string", "large_string")
        ]
        chosen = [name for name in strings if name != label_column]
        if len(chosen) not in (1, 2):
            raise ValueError(f"Name one or two `--text-columns`; the data has {', '.join(columns)}.")
    for name in [*chosen, label_column]:
        if name not in columns:
            raise ValueError(
                f"There is no column {name!r}; the data has {', '.join(columns)}. Name `--text-columns` and "
                "`--label-column`."
            )
    if len(chosen) > 2:
        raise ValueError(f"A model reads one or two texts, got `--text-columns` {' '.join(chosen)}.")
    return chosen, label_column


def read_labels(
    train: Dataset, held_out: Dataset, column: str, names: Sequence[str] = ()
) -> tuple[list[Any], list[Any], tuple[str, ...], str]:
    """Labels as the model wants them: numbers from 0, or floats for regression.

    Args:
        train: the training split.
        held_out: the split to report.
        column: where the labels are. Class numbers, whole numbers or strings are classes; floats are a regression.
        names: the classes in the order of the model or the task. It holds where the data has no other classes, in any
            case of letters; else the data's own order does, strings sorted.

    Returns:
        The labels of both splits, the names by number, and the problem type.

    Raises:
        ValueError: for missing labels, a single class, or a class that is only in the split to report.
    """
    raw = {"training": list(train[column]), "reported": list(held_out[column])}
    for split, values in raw.items():
        if not values:
            raise ValueError(f"The {split} split is empty; pass a file with rows.")
        # -1 is how GLUE's test splits hide their labels; NaN is the only value that differs from itself.
        missing = sum(value is None or value != value or (value == -1 and type(value) is int) for value in values)
        if missing:
            raise ValueError(f"Every row needs a label, got {missing} without in the {split} split; drop these rows.")
    if isinstance(raw["training"][0], float):
        return raw["training"], raw["reported"], (), "regression"
    classes = sorted(set(raw["training"]))
    if len(classes) < 2:
        raise ValueError(f"Column {column!r} must hold at least two classes, got only {classes}.")
    feature = train.features[column]
    if isinstance(feature, datasets.ClassLabel):
        spelled = dict(enumerate(feature.names))
    elif isinstance(classes[0], int) and classes[0] >= 0 and classes[-1] < len(names):
        spelled = dict(enumerate(names))
    else:
        spelled = {value: str(value) for value in classes}
    order = {name.lower(): number for number, name in enumerate(names)}
    if all(name.lower() in order for name in spelled.values()):
        number = {value: order[name.lower()] for value, name in spelled.items()}
    else:
        number = {value: position for position, value in enumerate(spelled)}
        names = list(spelled.values())
    unknown = sorted({str(value) for value in raw["reported"] if value not in number})
    if unknown:
        raise ValueError(f"Classes {', '.join(unknown)} are in the reported split but not in the training split.")
    labels = [[number[value] for value in values] for values in raw.values()]
    return labels[0], labels[1], tuple(names), "single_label_classification"


def tokenize(
    dataset: Dataset, text_columns: Sequence[str], labels: Sequence[Any], tokenizer: Any, max_length: int
) -> Dataset:
    """Tokenise texts, unpadded, and add `labels` and `length`.

    Raises:
        ValueError: where a text is missing.
    """
    for name in text_columns:
        missing = sum(not isinstance(text, str) for text in dataset[name])
        if missing:
            raise ValueError(f"Column {name!r} must hold texts, got {missing} rows without; drop or fill them.")

    def encode(rows: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(*(rows[name] for name in text_columns), truncation=True, max_length=max_length)
        return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]]}

    encoded = dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc="tokenise")
    at_limit = sum(length == max_length for length in encoded["length"])
    if at_limit:
        logger.info(
            "%d of %d inputs fill or exceed %d word-pieces and are cut there", at_limit, len(encoded), max_length
        )
    return encoded.add_column("labels", list(labels))


def prepare_data(
    train: Dataset,
    held_out: Dataset,
    tokenizer: Any,
    task: Task | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    max_length: int | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    label_names: Sequence[str] = (),
    seed: int = 42,
    source: dict[str, Any] | None = None,
) -> TaskData:
    """From two raw splits to what a recipe trains on.

    Args:
        train: the training split.
        held_out: the split to report.
        tokenizer: the model's.
        task: brings columns, metric, names and length where it is known.
        text_columns: one, or two for pairs.
        label_column: where the labels are.
        max_length: word-pieces to truncate to; at most the tokenizer's maximum.
        max_train_samples: rows to draw of the training split.
        max_eval_samples: rows to draw of the split to report.
        label_names: the model's, which give the labels their numbers; the task's by default.
        seed: of these draws.
        source: kept for the report.

    Raises:
        ValueError: for columns, labels or texts that cannot be used.
    """
    texts, label_column = choose_columns(train, text_columns, label_column, task)
    choose_columns(held_out, texts, label_column, task)
    expected = label_names or (task.label_names if task else ())
    train_labels, eval_labels, names, problem_type = read_labels(train, held_out, label_column, expected)
    limit = min(max_length or (task and task.max_length) or 512, tokenizer.model_max_length)
    splits = []
    for split, labels, rows in ((train, train_labels, max_train_samples), (held_out, eval_labels, max_eval_samples)):
        if rows is not None and rows < len(split):
            drawn = np.random.default_rng(seed).permutation(len(split))[:rows]
            split, labels = split.select(drawn), [labels[row] for row in drawn]
        splits.append(tokenize(split, texts, labels, tokenizer, limit))
    known = METRICS[problem_type]
    return TaskData(
        train=splits[0],
        eval=splits[1].select(np.argsort(splits[1]["length"], kind="stable")),
        tokenizer=tokenizer,
        metric=task.metric if task and task.metric in known else known[0],
        problem_type=problem_type,
        label_names=names,
        source={
            **(source or {}),
            "text_columns": texts,
            "label_column": label_column,
            "max_length": limit,
            "train_rows": len(splits[0]),
            "eval_rows": len(splits[1]),
        },
    )
