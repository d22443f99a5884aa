# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Texts of a file, which of its columns they are in, and the inputs that a tokenizer makes of them."""

import glob
import logging
import re
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, IterableDataset, Value

from .checkpoint import reading
from .rows import HEAD, READER_OPTIONS, REPAIR, check_table, dataset_reader, join_names, said_rows
from .tasks import Task

logger = logging.getLogger(__name__)

_SURROGATE = re.compile("[\ud800-\udfff]")
# How a reader of `datasets` takes a file as one piece, however long it is; json counts bytes.
_AT_ONCE: dict[str, dict[str, Any]] = {
    "csv": {"chunksize": sys.maxsize, "engine": "python"},
    "json": {"chunksize": 2**31 - 1},
}


def read_file(path: str, lines: bool = False, streaming: bool = False) -> Dataset | IterableDataset:
    """Read a table: csv, tsv, json, jsonl, parquet or arrow.

    Args:
        path: of the file.
        lines: take txt too, a text a line.
        streaming: read it as it is iterated over; of csv and tsv only the first 20,000 rows are looked through.

    Raises:
        ValueError: for another kind of file, or for one that cannot be read or holds no rows.
    """
    reader, options = dataset_reader(path, lines)
    options |= check_table(path, HEAD if streaming else None)
    try:
        with reading(path, REPAIR):
            rows = _load(reader, reader, streaming, {**options, "split": "train"})
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise ValueError(f"{path} must hold rows, got none; pass a file with rows.") from error
    features = rows.features if reader == "json" else None
    if features and not any(isinstance(kind, Value) for kind in features.values()):
        raise ValueError(
            f"{path} must hold an object for each row, got one of columns; pandas writes such rows by "
            '`to_json(path, orient="records", lines=True)`.'
        )
    return rows


def read_folder(folder: str, subset: str | None = None, streaming: bool = False) -> tuple[Any, list[Path]]:
    """Read the splits of a folder, as `datasets` tells them apart, each file as [`read_file`] does.

    Args:
        folder: of files; its `README.md` may say which are which.
        subset: of them, where there are several.
        streaming: see [`read_file`].

    Returns:
        A `DatasetDict`, or an `IterableDatasetDict`, and the files of its split `train`.

    Raises:
        ValueError: for a file that cannot be read, or a path that is a pattern.
    """
    # By its whole name: upstream reads one off its last part, which `.` lacks.
    folder = str(Path(folder).resolve())
    if glob.has_magic(folder):
        raise ValueError(f"`datasets` takes *, ? and [ in the path of a folder for a pattern, got {folder}; move it")
    builder = datasets.load_dataset_builder(folder, subset)
    separator = getattr(builder.config, "sep", None)
    options = dict(READER_OPTIONS.get(builder.name, {}))
    for path in chain.from_iterable((builder.config.data_files or {}).values()):
        if separator == {".csv": ",", ".tsv": "\t"}.get(Path(path).suffix.lower(), ""):
            found = check_table(path, HEAD if streaming else None)
            options["converters"] = {**options.get("converters", {}), **found.get("converters", {})}
    of_train = [Path(path) for path in (builder.config.data_files or {}).get("train", [])]
    return _load(folder, builder.name, streaming, {**options, "name": subset}), of_train


def _load(source: str, reader: str, streaming: bool, options: dict[str, Any]) -> Any:
    try:
        return datasets.load_dataset(source, streaming=streaming, **options)
    except (ValueError, datasets.exceptions.DatasetGenerationError):
        if streaming or reader not in _AT_ONCE:
            raise
        # What type a column has, `datasets` tells by its first rows, and later ones need not fit.
        return datasets.load_dataset(source, streaming=streaming, **{**options, **_AT_ONCE[reader]})


def choose_texts(
    columns: Sequence[str], holding_texts: Sequence[str], text_columns: Sequence[str] | None
) -> list[str]:
    """The columns of texts: those asked for, else the only one that it can be.

    Args:
        columns: all there are.
        holding_texts: of these, where no column was asked for.
        text_columns: asked for; one, or two for pairs.

    Raises:
        ValueError: for a column that is not there, or where several could be meant.
    """
    chosen = list(text_columns or holding_texts)
    there = f"the data has {join_names(columns)}."
    if not text_columns and len(chosen) != 1:
        raise ValueError(f"Name one or two `--text-columns`; {there}")
    if len(chosen) > 2:
        raise ValueError(f"A model reads one or two texts, got `--text-columns` {' '.join(chosen)}.")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"A pair needs two columns, got `--text-columns` {' '.join(chosen)}; name each once.")
    for name in chosen:
        if name not in columns:
            raise ValueError(f"There is no column {name!r}; {there} Name `--text-columns`.")
    return chosen


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
    # First: a label under another name would be taken for a text.
    for name in labels:
        if name not in columns:
            raise ValueError(
                f"There is no column {name!r}; the data has {join_names(columns)}. Name the `--label-column`."
            )
    strings = [n for n, kind in dataset.features.items() if getattr(kind, "dtype", "") in ("string", "large_string")]
    asked = text_columns or (task.text_columns if task else None)
    chosen = choose_texts(columns, [name for name in strings if name not in labels], asked)
    if not set(chosen).isdisjoint(labels):
        raise ValueError(f"A label must not be a text, got {' '.join(chosen)} and {' '.join(labels)}; name others.")
    return chosen, labels


def input_limit(
    tokenizer: Any, config: Any, texts: int, max_length: int | None = None, default: int | None = None
) -> int:
    """How many word-pieces an input may have; longer ones are cut.

    Args:
        tokenizer: the model's.
        config: the model's.
        texts: of an input, 1 or 2.
        max_length: what was asked for.
        default: if nothing was; at most what tokenizer and model take.

    Raises:
        ValueError: for a length that leaves no room or that the model does not take, for two texts where it reads
            one, or for a tokenizer that pads on the left.
    """
    if tokenizer.padding_side != "right":
        raise ValueError(
            f"A tokenizer must pad on the right, since a classifier reads [CLS] at position 0, got `padding_side` "
            f"{tokenizer.padding_side!r}; set it to 'right'."
        )
    segments = "token_type_ids" in tokenizer.model_input_names
    if texts > config.type_vocab_size and segments:
        raise ValueError(
            f"A model that reads two texts must have a `type_vocab_size` of 2, got {config.type_vocab_size} in its "
            "configuration; join the texts into one column."
        )
    # A model of this package was trained with what it has.
    if texts > 1 and config.type_vocab_size > 1 and not segments and not config.model_type.startswith("power"):
        logger.warning(
            "The tokenizer, as ALBERT's in transformers 5, does not say which of the two texts a word-piece is of. To "
            "train with that, or for a model that was, add `token_type_ids` to `model_input_names` in its "
            "`tokenizer_config.json`; for a model that was trained without, leave it"
        )
    longest = min(tokenizer.model_max_length, config.max_position_embeddings)
    whose = "model" if longest == config.max_position_embeddings else "model's tokenizer"
    shortest = tokenizer.num_special_tokens_to_add(pair=texts > 1) + texts
    if max_length is not None and not shortest <= max_length <= longest:
        raise ValueError(
            f"`max_length` must lie between {shortest}, one word-piece a text, and {longest}, what the {whose} takes, "
            f"got {max_length}; leave it out for the longest."
        )
    return min(max_length or default or longest, longest)


def is_text(value: Any) -> bool:
    """Whether it is a text that can be written down; JSON may hold half a surrogate pair, as of an emoji cut."""
    return isinstance(value, str) and not _SURROGATE.search(value)


def check_asked(texts: Any, **sizes: int) -> None:
    """Make sure that what a model is asked is several texts, and that batches of them can be made.

    Args:
        texts: whatever was passed for them.
        sizes: by the names of their arguments.

    Raises:
        ValueError: for a single text, which would be taken for its characters, or a size below 1.
    """
    if isinstance(texts, str):
        raise ValueError(f"`texts` must be several, got one: {shortened(texts)}; pass a list that holds it.")
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}; 32 is usual for a batch.")


def tell_cut(cut: int, inputs: int, limit: int | None) -> None:
    """Say how many inputs are as long as they may be, if any."""
    if cut:
        logger.info("%d of %d inputs fill or exceed %d word-pieces and are cut there", cut, inputs, limit)


def check_texts(dataset: Dataset, text_columns: Sequence[str], whole: bool = True) -> None:
    """Make sure that there are texts. An empty text is one; a missing one is not.

    Args:
        dataset: of rows.
        text_columns: of them.
        whole: these are all, not some rows of a stream, which may happen to be empty.

    Raises:
        ValueError: where a text is missing, or all are empty.
    """
    for name in text_columns:
        without = {place: text for place, text in enumerate(dataset[name]) if not isinstance(text, str)}
        other = next((text for text in without.values() if text is not None), None)
        if other is not None:
            raise ValueError(
                f"Column {name!r} must hold texts, got {type(other).__name__} in some rows, such as {other!r}; write "
                "them as texts, in jsonl or parquet."
            )
        if without:
            raise ValueError(
                f"Column {name!r} must hold texts, got {len(without)} rows without, {said_rows(list(without))}; drop "
                "or fill them."
            )
    if whole and not any(text.strip() for name in text_columns for text in dataset[name]):
        raise ValueError(f"Column {', '.join(map(repr, text_columns))} must hold texts, got only empty ones.")


def tokenize(
    dataset: Dataset,
    text_columns: Sequence[str],
    labels: Sequence[Any],
    tokenizer: Any,
    max_length: int,
    num_proc: int | None = None,
) -> Dataset:
    """Tokenise texts, unpadded, and add `labels` and `length`; of files it is done once, and read from the cache then.

    Args:
        dataset: of texts.
        text_columns: of them.
        labels: one a row.
        tokenizer: the model's.
        max_length: word-pieces to truncate to.
        num_proc: processes that do it; `None` is this one.
    """
    # A tokenizer remembers how it was asked last; the cache knows it again only in the same state.
    tokenizer("", truncation=True, max_length=max_length)

    def encode(rows: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(*(rows[name] for name in text_columns), truncation=True, max_length=max_length)
        return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]]}

    # Another column of a name that comes out of this would give it its type.
    texts = dataset.select_columns(list(text_columns))
    encoded = texts.map(encode, batched=True, remove_columns=texts.column_names, num_proc=num_proc, desc="tokenise")
    return encoded.add_column("labels", list(labels))


def read_texts(
    path: str | Path, text_columns: Sequence[str] | None = None, rows: int | None = None, seed: int = 0
) -> tuple[Dataset, list[str]]:
    """Read the texts of a file, in its order; no labels are needed.

    Args:
        path: txt with a text a line, empty lines left out, csv, tsv, json, jsonl, parquet or arrow.
        text_columns: one, or two for pairs; `None` where there is but one column of texts, labels not counted.
        rows: to draw, at most.
        seed: of the draw.

    Returns:
        The rows, and the names of their columns of texts.

    Raises:
        ValueError: for a file or columns that cannot be used, or where a text is missing.
    """
    data = read_file(str(path), lines=True)
    if Path(path).suffix.lower() == ".txt":
        data = data.filter(str.strip, input_columns="text")
        if not len(data):
            raise ValueError(f"{path} must hold texts, one a line, got none; pass a file with texts.")
    labels = [name for name in ("label", "labels") if name in data.column_names and not text_columns]
    columns, _ = choose_columns(data, text_columns, labels, None)
    # Of all rows: those that are drawn have other places.
    check_texts(data, columns)
    return data.select(np.sort(np.random.default_rng(seed).permutation(len(data))[:rows])), columns


def tokenize_texts(
    data: Dataset, text_columns: Sequence[str], tokenizer: Any, config: Any, max_length: int | None = None
) -> list[dict[str, list[int]]]:
    """Tokenise texts, unpadded.

    Args:
        data: from [`read_texts`].
        text_columns: from there too.
        tokenizer: the model's.
        config: the model's.
        max_length: word-pieces to truncate to; `None` is what tokenizer and model take.

    Raises:
        ValueError: for a length that cannot be.
    """
    limit = input_limit(tokenizer, config, len(text_columns), max_length)
    tokens = tokenize(data, text_columns, [0] * len(data), tokenizer, limit)
    names = [name for name in tokenizer.model_input_names if name in tokens.column_names]
    return tokens.select_columns(names).to_list()
