# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The rows of a file as they stand there, one after the other: no type is guessed from those before."""

import csv
import glob
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import pyarrow
from pyarrow import parquet

from .checkpoint import reading

Row = dict[str, Any]
# Rows of a stream that are looked at before the others are read.
HEAD = 20_000
# Tables, and files that hold nothing but texts: by the ending of a file's name the reader of `datasets`.
_TABLES = {"csv": "csv", "tsv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet", "arrow": "arrow"}
_LINES = {"txt": "text"}
ENDINGS = sorted((*_TABLES, *_LINES))
# How a reader of `datasets` takes a file as it is.
READER_OPTIONS: dict[str, dict[str, Any]] = {
    # Only an empty field is a missing one: "None" and "NA" are words.
    "csv": {"keep_default_na": False, "na_values": [""], "index_col": False},
    # Where a column holds texts and numbers, it would make json of both. `None`, the other value that it knows, is
    # forgotten where it reads a folder.
    "json": {"on_mixed_types": "refuse"},
}
# Columns that a message lists.
_SHOWN = 30
_CODE = re.compile(r"0\d+")
_WHOLE = re.compile(r"[+-]?\d+")
# What to do with a file that cannot be read.
REPAIR = "repair or convert it, a text file to UTF-8"
# Characters that a field of csv may have; one that is longer began with a quotation mark that was not meant.
_LONGEST_FIELD = 2**24


@dataclass(frozen=True, repr=False)
class Misfit:
    """What stands in the columns of a row of csv that has more fields than the header: nobody knows what is what.

    Args:
        fields: all of the row.
    """

    fields: tuple[str, ...]

    def __repr__(self) -> str:
        return repr(list(self.fields))


def dataset_reader(path: str | Path, lines: bool = False) -> tuple[str, dict[str, Any]]:
    """How `datasets` reads a file: the first argument of `load_dataset`, and others.

    Args:
        path: of the file.
        lines: take txt too.

    Raises:
        ValueError: where there is no such file, or no reader for it.
    """
    readers = {**_TABLES, **(_LINES if lines else {})}
    ending = _ending(path)
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}; check the path.")
    if ending not in readers:
        raise ValueError(f"Files must end in {', '.join(sorted(readers))}, got {path}; convert it.")
    # Taken for a pattern otherwise.
    options: dict[str, Any] = {"data_files": glob.escape(str(path))}
    if readers[ending] == "csv":
        options["sep"] = "\t" if ending == "tsv" else ","
    return readers[ending], options | READER_OPTIONS.get(readers[ending], {})


def join_names(names: Iterable[str]) -> str:
    """Names of columns as they can be typed, the first of them where there are many.

    Example:
        >>> join_names(["Title, short", "topic"])
        '"Title, short", topic'
    """
    names = list(names)
    shown = [f'"{name}"' if "," in name else name for name in names[:_SHOWN]]
    return ", ".join([*shown, *([f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])])


def said_rows(places: Sequence[int]) -> str:
    """Which rows they are, for a message, counted from 1 and without a header.

    Args:
        places: of the rows, from 0, in their order.

    Example:
        >>> said_rows([4]), said_rows([4, 7])
        ('in row 5', 'the first in row 5')
    """
    return f"{'the first ' if len(places) > 1 else ''}in row {places[0] + 1}"


def check_table(path: str | Path, rows: int | None = None) -> dict[str, Any]:
    """Make sure that a file of csv or tsv has the rows that it seems to have; pandas would shift or swallow some.

    Args:
        path: of the file.
        rows: how many to look at; `None` for all.

    Returns:
        What else its reader has to know: which columns hold words, and 007 is one. A reader goes by some thousand rows
        at a time, and would make 7 of it, 250 of 250.00, or true of True, where all of these are numbers or truth
        values.

    Raises:
        ValueError: where a row has more fields than the header, or a quotation has no end.
    """
    if _ending(path) not in ("csv", "tsv"):
        return {}
    kinds: dict[str, set[str]] = {}
    for number, row in enumerate(islice(read_rows(path), rows), start=1):
        for column, found in row.items():
            if isinstance(found, Misfit):
                raise ValueError(
                    f"{path} must have {len(row)} fields a row, as its header has, got {len(found.fields)} in row "
                    f"{number}: {shortened(found)}; put a text with a separator in quotation marks."
                )
            kinds_here = kinds.setdefault(column, set())
            if found is not None and "word" not in kinds_here:
                kinds_here.add(_kind(found))
    words = {column: _as_it_stands for column, found in kinds.items() if "word" in found or len(found) > 1}
    return {"converters": words} if words else {}


def _kind(field: str) -> str:
    if field.lower() in ("true", "false"):
        return "truth value"
    try:
        number = float(field)
    except ValueError:
        return "word"
    return "word" if _CODE.fullmatch(field) or (_WHOLE.fullmatch(field) and abs(number) >= 2**63) else "number"


def _as_it_stands(field: str) -> str | None:
    return field or None


def _ending(path: str | Path) -> str:
    return Path(path).suffix.lstrip(".").lower()


def read_rows(path: str | Path) -> Iterator[Row]:
    """Read a file row by row.

    Args:
        path: txt with a text a line (column `text`), csv, tsv, json (one object a line, or a list of them), jsonl,
            parquet or arrow; texts in UTF-8.

    Yields:
        Values by column. Of csv and tsv all are texts, an empty field is `None`, and so is a row of one column that is
        an empty line; a row of too many fields has a [`Misfit`] in each column.

    Raises:
        ValueError: for a file that cannot be read; rows before its fault have been read by then.
    """
    dataset_reader(path, lines=True)
    with reading(str(path), REPAIR):
        yield from _READERS[_ending(path)](Path(path))


def _read_txt(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        for line in file:
            yield {"text": line.rstrip("\n")}


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_FIELD)
    with open(path, newline="", encoding="utf-8-sig") as file:
        # Strictly: without its end a quotation would swallow all rows that follow.
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            names = _names(next(rows, []))
            if len(names) == 1 and delimiter == "," and (other := re.search("[;\t]", names[0])):
                raise csv.Error(f"its header is parted by {other[0]!r}; part it by commas, or by tabs in a .tsv")
            for fields in rows:
                while len(fields) > len(names) and not fields[-1]:
                    fields.pop()
                if len(fields) > len(names):
                    yield dict.fromkeys(names, Misfit(tuple(fields)))
                elif fields or len(names) == 1:
                    fields += [""] * (len(names) - len(fields))
                    yield {name: field or None for name, field in zip(names, fields, strict=True)}
        except csv.Error as error:
            raise csv.Error(f"line {rows.line_num}: {error}") from None


def _read_tsv(path: Path) -> Iterator[Row]:
    for row in _read_csv(path, "\t"):
        for field in row.values():
            if isinstance(field, str) and "\n" in field and "\t" in field:
                raise csv.Error(f"a quotation spans tabs and lines, {shortened(field)}; double a mark that opens none")
        yield row


def _names(header: list[str]) -> list[str]:
    """The columns: one without a name gets one, and of those that share one the later ones a number, as in pandas."""
    names: list[str] = []
    for place, name in enumerate(header, start=1):
        name = name or f"column {place}"
        wanted = chain([name], map(f"{name}.{{}}".format, count(1)))
        names.append(next(one for one in wanted if one not in names))
    return names


def _read_jsonl(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"line {number}: {error}; {REPAIR}") from None
                yield _object(row, f"line {number}")


def _read_json(path: Path) -> Iterator[Row]:
    """A list is read whole; one object a line is what most programs write."""
    with open(path, encoding="utf-8-sig") as file:
        listed = next((line for line in file if line.strip()), "").lstrip().startswith("[")
    if not listed:
        yield from _read_jsonl(path)
        return
    for number, row in enumerate(json.loads(path.read_text(encoding="utf-8-sig")), start=1):
        yield _object(row, f"row {number}")


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise TypeError(f"{where} must be an object, got {type(row).__name__}")
    return row


def _read_parquet(path: Path) -> Iterator[Row]:
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            yield from batch.to_pylist()


def _read_arrow(path: Path) -> Iterator[Row]:
    with pyarrow.memory_map(str(path)) as source:
        try:
            batches = pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:
            file = pyarrow.ipc.open_file(source)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
        for batch in batches:
            yield from batch.to_pylist()


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "arrow": _read_arrow,
    "csv": _read_csv,
    "json": _read_json,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "tsv": _read_tsv,
    "txt": _read_txt,
}
