# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading data: a data set by name or files, its columns and labels, tokenised for a `Trainer`."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from math import isfinite
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, DatasetDict
from transformers import EvalPrediction, PreTrainedTokenizerBase

from .checkpoint import reading
from .tasks import METRICS, ClassificationMetric, MultiLabelMetric, RegressionMetric, Task

logger = logging.getLogger(__name__)

# Readers of `datasets`, by the ending of a file's name.
_READERS = {"csv": "csv", "tsv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet", "arrow": "arrow"}


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
        named_in_rows: the rows hold names, not numbers that could be anybody's.
        source: where the data came from, for the report.
    """

    train: Dataset
    eval: Dataset
    tokenizer: PreTrainedTokenizerBase
    metric: str
    problem_type: str
    label_names: tuple[str, ...]
    named_in_rows: bool
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
        if self.problem_type == "multi_label_classification":
            # A logit above 0 is a probability above a half.
            return lambda output: MultiLabelMetric().compute(
                predictions=(output.predictions > 0).astype(int), references=output.label_ids.astype(int)
            )
        return lambda output: ClassificationMetric().compute(
            predictions=output.predictions.argmax(-1), references=output.label_ids
        )


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
    with reading(f"The data set {dataset}", "check its name or folder, or fetch it again"):
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
    options: dict[str, Any] = {}
    if _READERS[ending] == "csv":
        # Only an empty field is a missing one: "None" and "NA" are words.
        options = {"sep": "\t" if ending == "tsv" else ",", "keep_default_na": False, "na_values": [""]}
    try:
        with reading(path, "repair or convert it, a text file to UTF-8"):
            return datasets.load_dataset(_READERS[ending], data_files=path, split="train", **options)
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise ValueError(f"{path} must hold rows, got none; pass a file with rows.") from error


def choose_columns(
    dataset: Dataset,
    text_columns: Sequence[str] | None,
    label_column: str | Sequence[str] | None,
    task: Task | None,
) -> tuple[list[str], list[str]]:
    """The columns of texts and of labels: those asked for, else the task's, else the only ones that it can be.

    Raises:
        ValueError: for a column that is not there, or where several could be meant.
    """
    columns = dataset.column_names
    if label_column is None:
        label_column = "labels" if "labels" in columns and "label" not in columns else "label"
    labels = [label_column] if isinstance(label_column, str) else list(label_column)
    chosen = list(text_columns or (task.text_columns if task else ()))
    if not chosen:
        strings = [
            n for n, kind in dataset.features.items() if getattr(kind, "dtype", "") in ("string", "large_string")
        ]
        chosen = [name for name in strings if name not in labels]
        if len(chosen) != 1:
            raise ValueError(f"Name one or two `--text-columns`; the data has {', '.join(columns)}.")
    for name in [*chosen, *labels]:
        if name not in columns:
            raise ValueError(
                f"There is no column {name!r}; the data has {', '.join(columns)}. Name `--text-columns` and "
                "`--label-column`."
            )
    if len(chosen) > 2:
        raise ValueError(f"A model reads one or two texts, got `--text-columns` {' '.join(chosen)}.")
    if not set(chosen).isdisjoint(labels):
        raise ValueError(f"A label must not be a text, got {' '.join(chosen)} and {' '.join(labels)}; name others.")
    return chosen, labels


def named_labels(config: Any) -> tuple[str, ...]:
    """The labels of a model in its own order; empty where they are upstream's place-holders.

    Args:
        config: of any classifier.
    """
    names = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    return () if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def read_labels(
    train: Dataset,
    held_out: Dataset,
    column: str | Sequence[str],
    names: Sequence[str] = (),
    measure_only: bool = False,
) -> tuple[list[Any], list[Any], tuple[str, ...], str]:
    """Labels as the model wants them: numbers from 0, floats for regression, rows of 0.0 and 1.0 for several labels.

    Args:
        train: the training split.
        held_out: the split to report.
        column: where the labels are. Names, whole numbers and truth values are classes; floats are a regression. Lists
            of names, of class numbers, or of one 0 or 1 per class (all as long) are several labels a text, and so are
            several columns of 0 and 1, one per class.
        names: the classes in the order of the model or the task, which holds if the data has no others. Whole numbers
            that are not names themselves are places in that order.
        measure_only: nothing is trained, so one of the classes that the model knows is enough.

    Returns:
        The labels of both splits, the names by number, and the problem type.

    Raises:
        ValueError: for missing labels, labels of different kinds, a single class, or a class that is only in the split
            to report.
    """
    columns = [column] if isinstance(column, str) else list(column)
    where = f"Column {', '.join(map(repr, columns))}"
    feature = train.features[columns[0]]
    feature = getattr(feature, "feature", feature)
    training, reported = (
        _label_values(rows, columns, split, feature) for split, rows in (("training", train), ("reported", held_out))
    )
    several = isinstance(training[0], list)
    if any(isinstance(value, list) != several for value in [*training, *reported]):
        raise ValueError(f"{where} must hold one label a row, or a list in every row of both splits, got both.")
    found = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    if several and (len(columns) > 1 or _are_indicators(training, len(training[0]))):
        found = columns if len(columns) > 1 else list(range(len(training[0])))
        if not (_are_indicators(training, len(found)) and _are_indicators(reported, len(found))):
            raise ValueError(f"{where} must hold {len(found)} values in every row of both splits, all of them 0 or 1.")
        training, reported = ([list(compress(found, row)) for row in rows] for rows in (training, reported))
        # Places in a longer list of names would be other classes.
        names = names if len(names) == len(found) else ()

    kinds = {type(label) for label in _flat(training)}
    if len(kinds) > 1 or not kinds <= {str, int, float, bool} or (several and float in kinds):
        raise ValueError(
            f"{where} must hold names or whole numbers, or one float a row, all alike, got "
            f"{', '.join(sorted(kind.__name__ for kind in kinds))}, such as {training[0]}."
        )
    if kinds == {float}:
        if not all(isinstance(value, (int, float)) for value in reported):
            raise ValueError(f"{where} must hold numbers in both splits, got {reported[0]!r} in the reported split.")
        if all(value.is_integer() for value in training):
            logger.info("%s holds floats: a regression. Written as whole numbers, they are classes", where)
        return training, [float(value) for value in reported], (), "regression"

    if found is None:
        found = sorted(set(_flat(training)))
    number = _numbers_in(found, names)
    if len(found) < 2 and not (measure_only and names and number is not None):
        raise ValueError(f"{where} must hold at least two classes, got only {found}; add rows of another class.")
    if number is None:
        number, names = {value: place for place, value in enumerate(found)}, [str(value) for value in found]
    if kinds == {str}:
        # A file whose names all look like numbers reads as numbers.
        reported = [[str(one) for one in row] if several else str(row) for row in reported]
    unknown = sorted({str(value) for value in _flat(reported) if value not in number})
    if unknown:
        raise ValueError(f"Classes {', '.join(unknown)} are in the reported split but not in the training split.")

    def encode(value: Any) -> Any:
        if not several:
            return number[value]
        places = {number[one] for one in value}
        return [float(place in places) for place in range(len(names))]

    kind = "multi_label_classification" if several else "single_label_classification"
    return [encode(value) for value in training], [encode(value) for value in reported], tuple(names), kind


def _label_values(rows: Dataset, columns: Sequence[str], split: str, feature: Any) -> list[Any]:
    """The labels of a split as its rows mean them: names where a number stands for one."""
    values = list(rows[columns[0]])
    if len(columns) > 1:
        values = [list(row) for row in zip(*(rows[name] for name in columns), strict=True)]
    if not values:
        raise ValueError(f"The {split} split is empty; pass a file with rows.")
    # -1 is how GLUE's test splits hide their labels.
    missing = sum(
        value is None or (type(value) is int and value == -1) or (isinstance(value, float) and not isfinite(value))
        for value in _flat(values)
    )
    if missing:
        raise ValueError(f"Every row needs a label, got {missing} without in the {split} split; drop these rows.")
    # Numbers mean what their own split says, or else what the training split says.
    own = rows.features[columns[0]]
    meant = next((f for f in (getattr(own, "feature", own), feature) if isinstance(f, datasets.ClassLabel)), None)

    def name(value: Any) -> Any:
        if meant is None or not isinstance(value, int):
            return value
        if not 0 <= value < len(meant.names):
            raise ValueError(
                f"Class numbers must lie between 0 and {len(meant.names) - 1}, as the {split} split's {columns[0]!r} "
                f"says, got {value}; correct them."
            )
        return meant.names[value]

    return [[name(one) for one in value] if isinstance(value, list) else name(value) for value in values]


def _are_indicators(rows: Sequence[list[Any]], width: int) -> bool:
    """Whether each row says 0 or 1 for each of several classes."""
    return width > 1 and all(len(row) == width and all(one in (0, 1) for one in row) for row in rows)


def _flat(values: Sequence[Any]) -> list[Any]:
    return [one for value in values for one in (value if isinstance(value, list) else [value])]


def _numbers_in(found: Sequence[Any], names: Sequence[str]) -> dict[Any, int] | None:
    """The place of each class in `names`: by its exact name, by its name in any case of letters, or as a place."""
    for spell in (str, lambda value: str(value).lower()):
        places = {spell(name): place for place, name in enumerate(names)}
        if len(places) == len(names) and all(spell(value) in places for value in found):
            return {value: places[spell(value)] for value in found}
    if all(isinstance(value, int) and 0 <= value < len(names) for value in found):
        # Also classes that the training split happens to lack.
        return {place: place for place in range(len(names))}
    return None


def tokenize(
    dataset: Dataset, text_columns: Sequence[str], labels: Sequence[Any], tokenizer: Any, max_length: int
) -> Dataset:
    """Tokenise texts, unpadded, and add `labels` and `length`. An empty text is one; a missing one is not.

    Raises:
        ValueError: where a text is missing, or all are empty.
    """
    for name in text_columns:
        missing = sum(not isinstance(text, str) for text in dataset[name])
        if missing:
            raise ValueError(f"Column {name!r} must hold texts, got {missing} rows without; drop or fill them.")
    if not any(text.strip() for name in text_columns for text in dataset[name]):
        raise ValueError(f"Column {', '.join(map(repr, text_columns))} must hold texts, got only empty ones.")

    def encode(rows: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(*(rows[name] for name in text_columns), truncation=True, max_length=max_length)
        return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]]}

    encoded = dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc="tokenise")
    return encoded.add_column("labels", list(labels))


def prepare_data(
    train: Dataset,
    held_out: Dataset,
    tokenizer: Any,
    config: Any,
    task: Task | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | Sequence[str] | None = None,
    max_length: int | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    seed: int = 42,
    source: dict[str, Any] | None = None,
    measure_only: bool = False,
) -> TaskData:
    """From two raw splits to what a recipe trains on.

    Args:
        train: the training split.
        held_out: the split to report.
        tokenizer: the model's.
        config: the model's: its label names, where it has any, give the labels their numbers.
        task: brings columns, metric, names and length where it is known.
        text_columns: one, or two for pairs.
        label_column: where the labels are; several columns of 0 and 1 for texts with several labels.
        max_length: word-pieces to truncate to; at most what tokenizer and model take.
        max_train_samples: rows to draw of the training split.
        max_eval_samples: rows to draw of the split to report.
        seed: of these draws.
        source: kept for the report.
        measure_only: nothing is trained: see `read_labels`; only the split to report is tokenised, for both.

    Raises:
        ValueError: for columns, labels or texts that cannot be used.
    """
    for name, value in (("max_train_samples", max_train_samples), ("max_eval_samples", max_eval_samples)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}; leave it out to take all.")
    texts, columns = choose_columns(train, text_columns, label_column, task)
    choose_columns(held_out, texts, columns, task)
    if len(texts) > config.type_vocab_size and "token_type_ids" in tokenizer.model_input_names:
        raise ValueError(
            f"A model that reads two texts must have a `type_vocab_size` of 2, got {config.type_vocab_size} in its "
            "configuration; join the texts into one column."
        )
    longest = min(tokenizer.model_max_length, config.max_position_embeddings)
    shortest = tokenizer.num_special_tokens_to_add(pair=len(texts) > 1) + len(texts)
    if max_length is not None and not shortest <= max_length <= longest:
        raise ValueError(
            f"`max_length` must lie between {shortest}, one word-piece a text, and {longest}, what the model takes, "
            f"got {max_length}; leave it out for the longest."
        )
    limit = min(max_length or (task and task.max_length) or longest, longest)
    expected = named_labels(config) or (task.label_names if task else ())
    train_labels, eval_labels, names, problem_type = read_labels(train, held_out, columns, expected, measure_only)
    splits = []
    wanted = [(train, train_labels, max_train_samples), (held_out, eval_labels, max_eval_samples)]
    for split, labels, rows in wanted[measure_only:]:
        if rows is not None and rows < len(split):
            drawn = np.random.default_rng(seed).permutation(len(split))[:rows]
            split, labels = split.select(drawn), [labels[row] for row in drawn]
        splits.append(tokenize(split, texts, labels, tokenizer, limit))
    cut = sum(length == limit for split in splits for length in split["length"])
    if cut:
        logger.info(
            "%d of %d inputs fill or exceed %d word-pieces and are cut there", cut, sum(map(len, splits)), limit
        )
    known = METRICS[problem_type]
    return TaskData(
        train=splits[0],
        eval=splits[-1].select(np.argsort(splits[-1]["length"], kind="stable")),
        tokenizer=tokenizer,
        metric=task.metric if task and task.metric in known else known[0],
        problem_type=problem_type,
        label_names=names,
        named_in_rows=len(columns) > 1 or any(isinstance(label, str) for label in _flat(train[columns[0]])),
        source={
            **(source or {}),
            "text_columns": texts,
            "label_column": columns[0] if len(columns) == 1 else columns,
            "max_length": limit,
            "train_rows": len(splits[0]),
            "eval_rows": len(splits[-1]),
        },
    )
