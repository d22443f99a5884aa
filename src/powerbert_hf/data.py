# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading the data of a task: a data set by name or files, its labels and splits, tokenised for a `Trainer`."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    IterableDataset,
    IterableDatasetDict,
    NamedSplit,
    Value,
    concatenate_datasets,
)
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedTokenizerBase

from .checkpoint import FETCH_AGAIN, hub_id, load_config, load_tokenizer, reading
from .labels import flat, named_labels, read_labels, some_of, warn_of_doubtful
from .tasks import METRICS, TASKS, ClassificationMetric, MultiLabelMetric, RegressionMetric, Task
from .texts import check_texts, choose_columns, input_limit, read_file, read_folder, tell_cut, tokenize

logger = logging.getLogger(__name__)

# Rows of a stream that say what labels mean, where nobody trains on it.
_LOOKED_AT = 2000
# The tuning split: a tenth of the training rows, no more than these.
_TUNING_ROWS = 2000
# Rows of it that may be exchanged, where a tenth is less, so that it has a row of each class.
_EXCHANGED = 3
# How the files of a folder become splits.
_BY_NAME = "name its files after their splits, as train.csv and test.csv, or pass `--train-file` and `--eval-file`"
# Of the texts that are to tell how others are answered, more than this share should not be trained on.
_SHARED = 0.05
# What the split to report is called, the first of these that there is.
_REPORTED = ("validation", "dev", "val", "valid", "eval", "test")


class PadToLength(DataCollatorWithPadding):
    """Pads to `max_length`, or to a batch's longest input: those that were not trained on may be longer."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """See `DataCollatorWithPadding`."""
        length = max(self.max_length or 0, *(len(row["input_ids"]) for row in features))
        return DataCollatorWithPadding(self.tokenizer, self.padding, length)(features)


@dataclass(frozen=True)
class TaskData:
    """Tokenised data, ready for a `Trainer`.

    Args:
        train: columns `input_ids`, ..., `labels`, `length`; a stream has no `length`.
        tune: rows of the training split that are not trained on: configurations are chosen by them.
        eval: sorted by length; its result is reported and nothing is chosen by it.
        eval_texts: the texts of these rows, in their columns.
        tokenizer: what made them.
        metric: the metric that counts.
        problem_type: as in a model's configuration.
        label_names: names by label number; empty for regression.
        named_in_rows: the rows say which class they mean, by a name, or a number that is no place among the
            classes.
        source: where the data came from, for the report.
        padded_to: word-pieces that all training inputs are padded to, as in the paper; `None` pads a batch to its
            longest.
    """

    train: Dataset | IterableDataset
    tune: Dataset
    eval: Dataset
    eval_texts: Dataset
    tokenizer: PreTrainedTokenizerBase
    metric: str
    problem_type: str
    label_names: tuple[str, ...]
    named_in_rows: bool
    source: dict[str, Any]
    padded_to: int | None = None

    @property
    def retention_length(self) -> int:
        """R: word-pieces of the longest training input, padded if it is; of a stream, where inputs are cut."""
        if isinstance(self.train, IterableDataset):
            return self.source["max_length"]
        return self.padded_to or max(self.train["length"])

    @property
    def collator(self) -> DataCollatorWithPadding:
        """For the `data_collator` of a `Trainer`."""
        if self.padded_to is None:
            return DataCollatorWithPadding(self.tokenizer)
        return PadToLength(self.tokenizer, padding="max_length", max_length=self.padded_to)

    @property
    def label_fields(self) -> dict[str, Any]:
        """What a model's configuration must say about the labels."""
        names = self.label_names or ("LABEL_0",)
        return {
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": self.problem_type,
        }

    @cached_property
    def digest(self) -> str:
        """Of inputs and labels, by which other data under the same name are found out."""
        return self._digest(self.train, self.tune, self.eval)

    @cached_property
    def eval_digest(self) -> str:
        """The same of the reported split alone."""
        return self._digest(self.eval)

    @staticmethod
    def _digest(*splits: Dataset | IterableDataset) -> str:
        found = hashlib.sha256()
        for split in splits:
            # A stream cannot be read in advance.
            if not isinstance(split, Dataset):
                continue
            for name in ("length", "labels"):
                found.update(np.asarray(split[name][:], dtype=np.float64).tobytes())
            for rows in split.select_columns("input_ids").with_format("arrow").iter(10_000):
                found.update(rows["input_ids"].combine_chunks().flatten().to_numpy().astype(np.int64).tobytes())
        return found.hexdigest()

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
            predictions=output.predictions.argmax(-1),
            references=output.label_ids,
            num_labels=output.predictions.shape[-1],
        )


def load_splits(
    dataset: str | None = None,
    subset: str | None = None,
    train_file: str | None = None,
    eval_file: str | None = None,
    task: Task | None = None,
    streaming: bool = False,
    measure_only: bool = False,
) -> tuple[Dataset | IterableDataset | None, Dataset]:
    """Read the training split and the split to report.

    Args:
        dataset: a Hub id, or a folder of files or of a saved data set.
        subset: the configuration of a Hub data set, such as `mrpc` of GLUE.
        train_file: csv, tsv, json, jsonl, parquet or arrow; in place of `dataset`.
        eval_file: the same; in place of the data set's own split.
        task: names the split to report.
        streaming: the training split is read as it is iterated over.
        measure_only: there need not be a training split; without one `None` is returned.

    Raises:
        ValueError: where nothing is to be read, or a split is missing.
    """
    if dataset is None and (train_file is not None or measure_only):
        if eval_file is None:
            raise ValueError("`--train-file` needs an `--eval-file` to report on; split one off your data.")
        train = None if train_file is None else read_file(train_file, streaming=streaming)
        return train, read_file(eval_file)
    if dataset is None or train_file is not None:
        raise ValueError("Pass either `--dataset` or `--train-file` (with `--eval-file`), got both or neither.")
    folder = Path(dataset)
    if folder.is_file():
        option = "`--eval-file`" if measure_only else "`--train-file`, with an `--eval-file` to report on"
        raise ValueError(f"`--dataset` takes a Hub id or a folder, got the file {dataset}; pass it as {option}.")
    of_train: list[Path] = []
    with reading(f"The data set {dataset}", FETCH_AGAIN):
        if (folder / "state.json").is_file():
            if eval_file is None:
                raise ValueError(
                    "it is a single split; pass an `--eval-file` to report on, or save a `DatasetDict` of `train` and "
                    "`validation`"
                )
            splits = DatasetDict(train=datasets.load_from_disk(dataset).with_format(None))
        elif (folder / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(dataset).with_format(None)
        elif folder.is_dir():
            splits, of_train = read_folder(dataset, subset, streaming)
        else:
            splits = datasets.load_dataset(dataset, subset, streaming=streaming)
    if not isinstance(splits, DatasetDict | IterableDatasetDict) or not (measure_only or "train" in splits):
        raise ValueError(f"Data set {dataset!r} must have a split `train`, got {list(splits)}; pass `--train-file`.")
    train = splits.get("train")
    if streaming and isinstance(train, Dataset):
        train = train.to_iterable_dataset()
    if eval_file is not None:
        if Path(eval_file).resolve() in of_train:
            raise ValueError(
                f"`--eval-file` must hold other rows than those trained on, got {eval_file}, one of the "
                f"{len(of_train)} files that make up the split `train` of {dataset}; {_BY_NAME}."
            )
        return train, read_file(eval_file)
    for name in dict.fromkeys([task.eval_split if task else "validation", *_REPORTED]):
        if name in splits:
            held_out = splits[name]
            if isinstance(held_out, IterableDataset):
                held_out = Dataset.from_list(list(held_out), features=held_out.features)
            if str(held_out.split) != name:
                # `train_test_split` leaves on both parts what the whole was called.
                held_out = concatenate_datasets([held_out], split=NamedSplit(name))
            return train, held_out
    remedy = _BY_NAME if of_train else "pass `--eval-file`"
    raise ValueError(f"Data set {dataset!r} has no split to report on, got {list(splits)}; {remedy}.")


def prepare_data(
    train: Dataset | None,
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
    num_proc: int | None = None,
    fine_tuned: bool = False,
    metric: str | None = None,
) -> TaskData:
    """From two raw splits to what a recipe trains on.

    Args:
        train: the training split; `None`, with `measure_only`, where there is none.
        held_out: the split to report.
        tokenizer: the model's.
        config: the model's: its label names, where it has any and the data has the same, give the labels their
            numbers, but for those of a known task that it has yet to be trained on.
        task: brings columns, metric, names and length where it is known.
        text_columns: one, or two for pairs.
        label_column: where the labels are; several columns of 0 and 1 for texts with several labels.
        max_length: word-pieces to truncate to; at most what tokenizer and model take.
        max_train_samples: rows to draw of the training split.
        max_eval_samples: rows to draw of the split to report.
        seed: of these draws, and of the tuning split.
        source: kept for the report.
        measure_only: nothing is trained: see `read_labels`; only the split to report is tokenised, for all three.
        num_proc: see `tokenize`.
        fine_tuned: the model has been trained on the task already, so that whole numbers are its labels' numbers, or
            those of a known task that has the same labels.
        metric: the one that counts, of those in `METRICS`.

    Raises:
        ValueError: for columns, labels or texts that cannot be used, too few rows, or a metric of another kind of
            task.
    """
    for name, value in (("max_train_samples", max_train_samples), ("max_eval_samples", max_eval_samples)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}; leave it out to take all.")
    train = held_out if train is None else train
    texts, columns = choose_columns(train, text_columns, label_column, task)
    try:
        choose_columns(held_out, texts, columns, task)
    except ValueError as error:
        raise ValueError(f"The split to report must have the columns of the training split: {error}") from error
    for split in [held_out] if measure_only else [train, held_out]:
        check_texts(split, texts)
    limit = input_limit(tokenizer, config, len(texts), max_length, task.max_length if task else None)
    of_task = task.label_names if task else ()
    if fine_tuned or measure_only:
        alone = train is held_out
        held_out = named_by_task(held_out, columns[0], task, config)
        train = held_out if alone else named_by_task(train, columns[0], task, config)
        unnamed = of_task if len(of_task) == config.num_labels else named_labels(config, place_holders=True)
        expected, as_places = named_labels(config) or unnamed, True
    else:
        # Numbers are no places among labels that a model has of something else.
        expected, as_places = of_task or named_labels(config), bool(of_task)
    found = read_labels(train, held_out, columns, expected, measure_only, as_places)
    train_labels, eval_labels, names, problem_type = found
    if not measure_only and len(columns) == 1:
        warn_of_doubtful(columns[0], train[columns[0]], train_labels, names)
    known = METRICS[problem_type]
    if task is not None and task.metric in METRICS["regression"] and problem_type != "regression":
        raise ValueError(f"The labels of a regression must be floats, got others in {columns[0]!r}; write them so.")
    metric = metric or (task.metric if task and task.metric in known else known[0])
    if metric not in known:
        raise ValueError(f"`--metric` must be one of {', '.join(known)} for these labels, got {metric!r}.")
    if metric == "f1" and len(names) == 2 and not of_task:
        logger.info("f1 is that of the label %r", names[1])

    def inputs(split: Dataset, labels: Sequence[Any], rows: np.ndarray) -> Dataset:
        return tokenize(split.select(rows), texts, [labels[row] for row in rows], tokenizer, limit, num_proc)

    reported_rows = np.sort(np.random.default_rng(seed).permutation(len(held_out))[:max_eval_samples])
    if measure_only:
        trained_on = tuned_on = reported = inputs(held_out, eval_labels, reported_rows)
        splits = [reported]
    else:
        rest, tune = _draw(train_labels, problem_type, max_train_samples, seed)
        trained_on, tuned_on = (inputs(train, train_labels, np.sort(rows)) for rows in (rest, tune))
        reported = inputs(held_out, eval_labels, reported_rows)
        splits = [trained_on, tuned_on, reported]
        logger.info(
            "%s; %d rows to train on, %d to choose by, %d to report on",
            f"{len(names)} classes ({some_of(names)})" if names else "labels are numbers: a regression",
            *map(len, splits),
        )
        _warn_of_shared(trained_on, {"choose by": tuned_on, "report on": reported})
    cut = sum(length == limit for split in splits for length in split["length"])
    tell_cut(cut, sum(map(len, splits)), limit)
    by_length = np.argsort(reported["length"], kind="stable")
    return TaskData(
        train=trained_on,
        tune=tuned_on,
        eval=reported.select(by_length),
        eval_texts=held_out.select_columns(texts).select(reported_rows[by_length]),
        tokenizer=tokenizer,
        metric=metric,
        problem_type=problem_type,
        label_names=names,
        named_in_rows=len(columns) > 1 or any(_is_name(label, len(names)) for label in flat(train[columns[0]])),
        source={
            **(source or {}),
            "text_columns": texts,
            "label_column": columns[0] if len(columns) == 1 else columns,
            "max_length": limit,
            "train_rows": len(trained_on),
            "tuning_rows": len(tuned_on),
            "eval_rows": len(reported),
        },
    )


def _is_name(label: Any, classes: int) -> bool:
    """Whether a label says itself which class it is: a number does, where it is no place among so many."""
    return isinstance(label, str) or (type(label) is int and not 0 <= label < classes)


def named_by_task(split: Dataset, column: str, task: Task | None, config: Any) -> Dataset:
    """Class numbers of a known task as what they mean there: a model may have the same labels in another order.

    Args:
        split: of rows.
        column: of their labels, with or without names.
        task: the known one, if it is one.
        config: of a model that has been trained on it.
    """
    names, feature = task.label_names if task else (), split.features[column]
    theirs = {name.lower() for name in named_labels(config)}
    if not names or {name.lower() for name in names} != theirs:
        return split
    if not isinstance(feature, Value) or not feature.dtype.startswith(("int", "uint")):
        return split
    return split.cast_column(column, ClassLabel(names=list(names)))


def _warn_of_shared(trained_on: Dataset, others: Mapping[str, Dataset]) -> None:
    """Say of splits, by what they are for, that they hold copies of what is trained on."""
    wanted = {tuple(ids) for split in others.values() for ids in split["input_ids"]}
    seen = {key for batch in trained_on.iter(1000) for key in map(tuple, batch["input_ids"]) if key in wanted}
    for purpose, split in others.items():
        shared = sum(tuple(ids) in seen for ids in split["input_ids"])
        if shared > _SHARED * len(split):
            logger.warning(
                "%d of the %d texts to %s are trained on, too: of other texts they tell little; drop the copies",
                shared,
                len(split),
                purpose,
            )


def _draw(
    labels: Sequence[Any], problem_type: str, max_samples: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a training split to train on, and rows of it to tune on.

    Raises:
        ValueError: where there is only one.
    """
    if len(labels) < 2:
        raise ValueError("The training split must hold at least 2 rows, one of them to tune on, got 1; add more.")
    wanted = max_samples or len(labels)
    tuning_rows = max(1, min(_TUNING_ROWS, min(len(labels), wanted) // 10))
    drawn = np.random.default_rng(seed).permutation(len(labels))[: tuning_rows + wanted]
    if problem_type == "single_label_classification":
        drawn = _with_each_class(drawn, np.asarray(labels), tuning_rows)
    return drawn[tuning_rows:], drawn[:tuning_rows]


def _with_each_class(drawn: np.ndarray, labels: np.ndarray, first: int) -> np.ndarray:
    """A draw of rows, of whose first ones some are exchanged for classes that would not be among them.

    Only where classes are there to spare: no more than one row of each is brought there, none is taken from where it
    is the only one, and of each class a row is left to train on. Where more than a tenth would be exchanged, or three
    rows, no more are brought there: of many classes none would be as common there as it is.
    """
    drawn = drawn.copy()
    for label in np.setdiff1d(labels[drawn[:first]], labels[drawn[first:]]):
        left, counts = np.unique(labels[drawn[first:]], return_counts=True)
        if counts.max() > 1:
            place = np.flatnonzero(labels[drawn[:first]] == label)[0]
            spare = first + np.flatnonzero(labels[drawn[first:]] == left[counts.argmax()])[0]
            drawn[[place, spare]] = drawn[[spare, place]]
    numbers, counts = np.unique(labels[drawn], return_counts=True)
    missing = [label for label in numbers[counts > 1] if label not in labels[drawn[:first]]]
    for label in missing if len(missing) <= max(_EXCHANGED, first // 10) else []:
        there, counts = np.unique(labels[drawn[:first]], return_counts=True)
        if counts.max() > 1:
            last = np.flatnonzero(labels[drawn[:first]] == there[counts.argmax()])[-1]
            place = np.flatnonzero(labels[drawn] == label)[0]
            drawn[[last, place]] = drawn[[place, last]]
    return drawn


def source_of(options: Any, held_out: Dataset) -> dict[str, Any]:
    """Where data come from, for a report.

    Args:
        options: an `arguments.DataArguments`.
        held_out: the split to report.

    Returns:
        What was typed; the `dataset_id`, its name on the Hub, or `None` for a folder of this machine; and the
        `eval_split`, the name of the split to report, or `None` for a file.
    """
    typed = {name: getattr(options, name) for name in ("dataset", "subset", "task", "train_file", "eval_file")}
    split = None if options.eval_file or held_out.split is None else str(held_out.split)
    return {**typed, "dataset_id": hub_id(options.dataset or ""), "eval_split": split}


def load_data(
    options: Any, model: str, seed: int = 42, measure_only: bool = False, fine_tuned: bool = False
) -> TaskData:
    """Read two splits and prepare them for a model.

    Args:
        options: an `arguments.DataArguments`: which data.
        model: a Hub id or folder, with the tokenizer.
        seed: see `prepare_data`.
        measure_only: see `prepare_data`.
        fine_tuned: see `prepare_data`.

    Raises:
        ValueError: for a model or data that cannot be used.
    """
    config = load_config(model)
    task = TASKS[options.task] if options.task else None
    files = (options.dataset, options.subset, options.train_file, options.eval_file)
    train, held_out = load_splits(*files, task, measure_only and options.streaming, measure_only)
    if isinstance(train, IterableDataset):
        train = Dataset.from_list(list(train.take(_LOOKED_AT)), features=train.features)
    return prepare_for(options, load_tokenizer(model, config), config, train, held_out, seed, measure_only, fine_tuned)


def prepare_for(
    options: Any,
    tokenizer: Any,
    config: Any,
    train: Dataset | None,
    held_out: Dataset,
    seed: int,
    measure_only: bool = False,
    fine_tuned: bool = False,
) -> TaskData:
    """[`prepare_data`] as an `arguments.DataArguments` says it."""
    return prepare_data(
        train,
        held_out,
        tokenizer,
        config,
        TASKS[options.task] if options.task else None,
        options.text_columns,
        options.label_column,
        options.max_length,
        options.max_train_samples,
        options.max_eval_samples,
        seed,
        source_of(options, held_out),
        measure_only,
        options.num_proc,
        fine_tuned,
        options.metric,
    )
