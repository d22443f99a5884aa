# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a column of labels means: one class a text, several, or a number."""

import logging
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import compress
from math import isfinite
from statistics import fmean, pstdev
from typing import Any

import datasets
from datasets import Dataset

from .rows import said_rows

logger = logging.getLogger(__name__)

_HIDDEN = "-1 in all of its rows, which is how GLUE hides them"
# Classes that a message lists.
_SHOWN = 5
# More classes than this share of the rows are hardly classes.
_MANY = 0.2
# Where more than this share of the classes are numbers, the others may be mistyped ones, such as 3,5.
_MOST = 0.9
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?(e[+-]?\d+)?", re.IGNORECASE)
# Numbers that a mean squared error makes hard to learn.
_FAR = 20.0


def named_labels(config: Any, place_holders: bool = False) -> tuple[str, ...]:
    """The labels of a model in its own order; empty where they are upstream's place-holders.

    Args:
        config: of any classifier.
        place_holders: take them for names.
    """
    names = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    return () if not place_holders and all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def read_labels(
    train: Dataset,
    held_out: Dataset,
    column: str | Sequence[str],
    names: Sequence[str] = (),
    measure_only: bool = False,
    as_places: bool = True,
    whole: bool = True,
) -> tuple[list[Any], list[Any], tuple[str, ...], str]:
    """Labels as the model wants them: numbers from 0, floats for regression, rows of 0.0 and 1.0 for several labels.

    Args:
        train: the training split.
        held_out: the split to report.
        column: where the labels are. Names, whole numbers and truth values are classes; floats are a regression. Lists
            of names, of class numbers, or of one 0 or 1 per class (all as long) are several labels a text, and so are
            several columns of 0 and 1, one per class.
        names: the classes in the order of the model or the task, which holds if the data has no others.
        as_places: the model knows all of them: whole numbers that are not names themselves are places in that order,
            and the training split need not hold each.
        measure_only: nothing is trained, so one of the classes that the model knows is enough.
        whole: these are the splits, not some rows of a stream, of which it would be said again and again what kind
            of numbers they hold.

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
    own = "reported" if train is held_out else "training"
    training, reported = (
        _label_values(rows, columns, split, feature) for split, rows in ((own, train), ("reported", held_out))
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

    kinds = {type(label) for label in flat(training)}
    if len(kinds) > 1 or not kinds <= {str, int, float, bool} or (several and float in kinds):
        raise ValueError(
            f"{where} must hold names or whole numbers, or one float a row, all alike, got "
            f"{', '.join(sorted(kind.__name__ for kind in kinds))}, such as {training[0]}."
        )
    if kinds == {float}:
        if not all(isinstance(value, (int, float)) for value in reported):
            raise ValueError(f"{where} must hold numbers in both splits, got {reported[0]!r} in the reported split.")
        if whole and len(reported) > 1 and set(reported) == {-1.0}:
            raise ValueError(
                f"{where} must hold labels in the reported split, got {_HIDDEN}; pass an `--eval-file` that has them."
            )
        if whole and not measure_only and len(set(training)) == 1 < len(training):
            raise ValueError(
                f"{where} must hold numbers that differ, got {training[0]:g} in all rows of the training split; name "
                "another `--label-column`, or add rows."
            )
        if whole and all(value.is_integer() for value in training):
            logger.info("%s holds floats: a regression. Written as whole numbers, they are classes", where)
        return training, [float(value) for value in reported], (), "regression"

    if found is None:
        found = sorted(set(flat(training)))
    number = _numbers_in(found, names, as_places)
    if len(found) < 2 and not (measure_only and names and number is not None):
        raise ValueError(f"{where} must hold at least two classes, got only {found}; add rows of another class.")
    if number is None:
        number, names = {value: place for place, value in enumerate(found)}, [str(value) for value in found]
    # Also by what they are called: a file whose labels all look like numbers reads as numbers.
    number = {**{str(value): place for value, place in number.items()}, **number}
    reported = [[_known(one, number) for one in row] if several else _known(row, number) for row in reported]
    unknown = sorted({str(value) for value in flat(reported) if value not in number})
    if unknown:
        shown = some_of(unknown)
        raise ValueError(
            f"Every class must be in the training split, got {len(unknown)} that are only in the reported split "
            f"({shown}); add rows of them, or write numbers as floats for a regression."
        )

    def encode(value: Any) -> Any:
        if not several:
            return number[value]
        held = {number[one] for one in value}
        return [float(place in held) for place in range(len(names))]

    kind = "multi_label_classification" if several else "single_label_classification"
    return [encode(value) for value in training], [encode(value) for value in reported], tuple(names), kind


def warn_of_doubtful(column: str, values: Sequence[Any], labels: Sequence[Any], names: Sequence[str]) -> None:
    """Say of labels that they are hard to learn, or classes that are perhaps not meant to be, or not to be two.

    Args:
        column: where they are.
        values: what it holds.
        labels: from `read_labels`, of these.
        names: from `read_labels`; empty for a regression.
    """
    if not names:
        middle, spread = fmean(labels), pstdev(labels)
        if max(abs(middle), spread) > _FAR:
            logger.warning(
                "Column %r has a mean of %.3g and a standard deviation of %.3g: a model learns numbers of about 1 "
                "best, so scale them",
                column,
                middle,
                spread,
            )
        return
    if len({name.strip().lower() for name in names}) < len(names):
        logger.warning("Column %r holds classes that differ only in blanks or capitals: they are kept apart", column)
    classes = set(names)
    if joined := next((name for name in names if _is_joined(name, classes)), None):
        logger.warning(
            "Column %r holds %r, which is one class here: for several labels a text write lists in jsonl, or a column "
            "of 0 and 1 for each class",
            column,
            joined,
        )
    numbers = [name for name in names if _NUMBER.fullmatch(name)]
    many = str(values[0]) in names and len(names) > max(_SHOWN, len(values) * _MANY)
    if many and len(numbers) > _MOST * len(names):
        logger.warning(
            "Column %r holds %s, which are classes: %d in %d rows. Write them as floats for a regression",
            column,
            "whole numbers" if type(values[0]) is int else "numbers beside words or with commas",
            len(names),
            len(values),
        )


def _is_joined(name: str, classes: set[str]) -> bool:
    """Whether a class looks like several: a list that was written as text, or others with a sign between them."""
    parts = [part.strip() for part in re.split(r"[|;,]", name)]
    return (name.startswith("[") and name.endswith("]")) or (len(parts) > 1 and classes.issuperset(parts))


def _is_hidden(value: Any) -> bool:
    """-1 is how GLUE's test splits hide their labels."""
    return type(value) is int and value == -1


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        # As a csv file's empty field is.
        return not value.strip()
    return value is None or (isinstance(value, float) and not isfinite(value)) or _is_hidden(value)


def _label_values(rows: Dataset, columns: Sequence[str], split: str, feature: Any) -> list[Any]:
    """The labels of a split as its rows mean them: names where a number stands for one."""
    values = list(rows[columns[0]])
    if len(columns) > 1:
        values = [list(row) for row in zip(*(rows[name] for name in columns), strict=True)]
    if not values:
        raise ValueError(f"The {split} split is empty; pass a file with rows.")
    if without := [place for place, value in enumerate(values) if any(map(_is_missing, flat([value])))]:
        hidden = [place for place in without if any(map(_is_hidden, flat([values[place]])))]
        if len(without) == len(values) > 1:
            got = _HIDDEN if len(hidden) == len(values) else "none"
            remedy = "an `--eval-file` that has them" if split == "reported" else "rows that have them"
            raise ValueError(f"The {split} split must hold labels, got {got}; pass {remedy}.")
        if hidden:
            raise ValueError(
                f"Every row needs a label, and -1 is how GLUE hides one, got {len(hidden)} of these in the {split} "
                f"split, {said_rows(hidden)}; write the class -1 as a word, the numbers of a regression as floats, or "
                "drop these rows."
            )
        raise ValueError(
            f"Every row needs a label, got {len(without)} without in the {split} split, {said_rows(without)}; drop "
            "these rows."
        )
    # Numbers mean what their own split says, or else what the training split says; in several columns no or yes.
    own = rows.features[columns[0]]
    said = (getattr(own, "feature", own), feature) if len(columns) == 1 else ()
    meant = next((f for f in said if isinstance(f, datasets.ClassLabel)), None)

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


def _known(value: Any, number: Mapping[Any, int]) -> Any:
    return value if isinstance(value, Hashable) and value in number else str(value)


def _are_indicators(rows: Sequence[list[Any]], width: int) -> bool:
    """Whether each row says 0 or 1 for each of several classes."""
    return width > 1 and all(len(row) == width and all(one in (0, 1) for one in row) for row in rows)


def some_of(names: Sequence[str]) -> str:
    """The first few names, for a sentence."""
    return ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])])


def flat(values: Iterable[Any]) -> list[Any]:
    """The labels of rows that hold one each, or a list."""
    return [one for value in values for one in (value if isinstance(value, list) else [value])]


def _numbers_in(found: Sequence[Any], names: Sequence[str], as_places: bool) -> dict[Any, int] | None:
    """The place of each class in `names`: by its exact name, by its name in any case of letters, or as a place."""
    for spell in (str, lambda value: str(value).lower()):
        places = {spell(name): place for place, name in enumerate(names)}
        if len(places) == len(names) and all(spell(value) in places for value in found):
            # Also classes that the training split happens to lack.
            lacking = places if as_places else {}
            return {**lacking, **{value: places[spell(value)] for value in found}}
    if as_places and all(isinstance(value, int) and 0 <= value < len(names) for value in found):
        return {place: place for place in range(len(names))}
    return None
