# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Texts in, predictions out: read a window at a time, run in batches of like length, answered in the input's order."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice, tee
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, TextIO

import torch
from accelerate.utils import get_cpu_distributed_information
from torch import Tensor
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from .checkpoint import load_classifier, load_tokenizer
from .files import check_new, whole_file
from .rows import Misfit, Row, join_names, read_rows
from .texts import check_asked, choose_texts, input_limit, is_text, tell_cut

# That oneDNN may keep, see below.
_PROGRAMS = "64"
# Rows that tell which columns hold texts.
_HEAD = 100
# Columns of rows that are not answered.
_REJECTED = {"row", "reason", "found"}


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str | Sequence[str]],
    batch_size: int = 32,
    window: int = 8192,
    max_length: int | None = None,
    bf16: bool = False,
    reject: bool = False,
) -> Iterator[Row]:
    """Answers to texts, in their order; a window of them is in memory at a time.

    Args:
        model: a sequence classifier, of this package or upstream's; it is put into evaluation mode.
        tokenizer: the model's.
        texts: each a text, or each a pair of texts.
        batch_size: inputs that the model reads at once.
        window: texts that are sorted by length before they make batches.
        max_length: word-pieces to truncate to; `None` is what tokenizer and model take.
        bf16: compute in bfloat16.
        reject: go on where a text is missing, empty, no text, or over-long: of more word-pieces than the model takes,
            unless `max_length` says where to cut.

    Yields:
        For each text `{"label": name, "score": probability}`; for several labels a text `{"labels": names, "scores":
        probabilities}` of those above a half; for a regression, and any model with one output, `{"value": number}`,
        or `{"values": numbers}` for several;
        with `reject` for some `{"reason": "missing", "empty", "not text" or "over-long", "found": what was there}`.

    Raises:
        ValueError: for a size that is not at least 1, for a text that is not in a list, or where one is missing.
    """
    check_asked(texts, batch_size=batch_size, window=window)
    model.eval()
    collate, answer = DataCollatorWithPadding(tokenizer), answer_for(model.config)
    rest, done, cut, parts, limit = iter(texts), 0, 0, 0, None
    while part := list(islice(rest, window)):
        # The first input that is one says whether all are texts or pairs.
        parts = parts or next((_parts(text) for text in part if _is_input(text)), 0)
        found = [_reason(text, parts or _parts(part[0]), reject) for text in part]
        if not reject:
            _refuse(part, found, parts or _parts(part[0]), done)
        limit = limit or (input_limit(tokenizer, model.config, parts, max_length) if parts else None)
        asked = [text for text, reason in zip(part, found, strict=True) if reason is None]
        # Over-long texts are known by all of their word-pieces.
        cut_at = None if reject and max_length is None else limit
        features = _features(tokenizer, asked, parts, cut_at)
        fit = [row for row in features if limit is None or len(row["input_ids"]) <= limit]
        answers = map(answer, logits_of(model, fit, collate, batch_size, bf16))
        lengths = iter(len(row["input_ids"]) for row in features)
        for reason in found:
            if reason is None and (length := next(lengths)) > (limit or length):
                reason = {"reason": "over-long", "found": f"{length} word-pieces, {limit} fit"}
            yield reason or next(answers)
        done += len(part)
        cut += sum(len(row["input_ids"]) == cut_at for row in fit)
    tell_cut(cut, done, limit)


@dataclass(frozen=True)
class Answered:
    """What became of a file.

    Args:
        rows: that have an answer.
        rejected: that have none.
    """

    rows: int
    rejected: int


class FilePredictor:
    """A model that answers files: see [`predict_file`] for all arguments.

    Raises:
        ValueError: for a model, or a size, that cannot be used.
    """

    def __init__(
        self,
        model: str | Path,
        text_columns: Sequence[str] | None = None,
        keep_columns: Sequence[str] | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        window: int = 8192,
        bf16: bool = False,
    ) -> None:
        check_asked([], batch_size=batch_size, window=window)
        self.text_columns, self.keep_columns = text_columns, keep_columns or ()
        self.options: dict[str, Any] = {"batch_size": batch_size, "window": window}
        self.options |= {"max_length": max_length, "bf16": bf16}
        # Heard by a process that has computed nothing yet: hardly two batches have as many word-vectors, and for each
        # number of them oneDNN keeps a program, some hundred megabytes in all.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _PROGRAMS)
        self.classifier = load_classifier(model, needs_head=True)
        config = self.classifier.config
        self.columns = list(answer_for(config)(torch.zeros(config.num_labels)))
        if taken := sorted({*self.columns, *_REJECTED}.intersection(self.keep_columns)):
            raise ValueError(
                f"`--keep-columns` must leave room for the answer, got {taken[0]}, which an answer or a rejected row "
                "has; rename it in the input."
            )
        self.tokenizer = load_tokenizer(model, config)
        self.classifier.to(_device())

    def choose_columns(self, sources: Iterable[Path]) -> None:
        """Settle which columns hold texts, by the first file that can be read and has rows.

        Args:
            sources: of rows.

        Raises:
            ValueError: for columns, or a length, that cannot be used.
        """
        for source in sources:
            try:
                head = _first_rows(source)
            except ValueError:
                # Whose turn it is to answer it will say so.
                continue
            if texts := _choose_columns(head, self.text_columns, self.keep_columns):
                self.text_columns = texts
                input_limit(self.tokenizer, self.classifier.config, len(self.text_columns), self.options["max_length"])
                return

    def answer(self, source: Path, target: Path, rejected: Path | None = None) -> Answered:
        """Answer every row of a file in another, which is either complete or not there; see [`predict_file`].

        A file of which no row is answered leaves one without rows, in csv with the columns.

        Args:
            source: of rows.
            target: of answers; replaced.
            rejected: of rows that cannot be answered; replaced, and removed where there are none.

        Raises:
            ValueError: for a file, columns or texts that cannot be used; the target stays as it was.
        """
        texts = _choose_columns(_first_rows(source), self.text_columns, self.keep_columns) or []
        _check_rows(source, texts, all_answered=rejected is None)
        to_read, to_keep = tee(read_rows(source))
        answers = predict(
            self.classifier, self.tokenizer, _texts_of(to_read, texts), **self.options, reject=rejected is not None
        )
        rows_done = rejected_done = 0
        # The answers first: the other branch of `tee` then holds what a window holds, and no row too many.
        shown = tqdm(zip(answers, to_keep, strict=False), desc=source.name, unit=" rows", disable=None)
        with ExitStack() as files:
            # Opened first, it gets its name last: where the answers are there, nothing is missing.
            file = files.enter_context(whole_file(target))
            for number, (answer, row) in enumerate(shown, start=1):
                to_repeat = {name: row.get(name) for name in self.keep_columns}
                if rejected is None or "reason" not in answer:
                    write_row(file, target, {**to_repeat, **answer}, rows_done == 0)
                    rows_done += 1
                    continue
                if rejected_done == 0:
                    rejected.parent.mkdir(exist_ok=True)
                    side = files.enter_context(whole_file(rejected))
                write_row(side, rejected, {"row": number, **answer, **to_repeat}, rejected_done == 0)
                rejected_done += 1
            if rows_done == 0 and target.suffix.lower() == ".csv":
                csv.writer(file).writerow([*self.keep_columns, *self.columns])
            if rejected is not None and rejected_done == 0:
                rejected.unlink(missing_ok=True)
        return Answered(rows_done, rejected_done)


def predict_file(
    model: str | Path,
    source: str | Path,
    target: str | Path,
    text_columns: Sequence[str] | None = None,
    keep_columns: Sequence[str] | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
    window: int = 8192,
    bf16: bool = False,
    overwrite: bool = False,
    rejected: str | Path | None = None,
) -> Answered:
    """Answer every row of a file in another, which is either complete or not there; of neither all is in memory.

    Args:
        model: a Hub id or a folder: BERT or ALBERT, stock or ours, with a classification head.
        source: txt with a text a line, csv, tsv, json, jsonl, parquet or arrow.
        target: csv or jsonl; has the kept columns and what [`predict`] yields, in csv several labels as a JSON list.
        text_columns: one, or two for pairs; `None` where there is but one column of texts.
        keep_columns: of the source, to be repeated.
        max_length: see [`predict`].
        batch_size: see [`predict`].
        window: see [`predict`].
        bf16: see [`predict`].
        overwrite: replace a target that is there.
        rejected: csv or jsonl; takes the rows that [`predict`] rejects, with their number, from 1, and the kept
            columns. `None` refuses the source for the first that is missing or not text; an empty one is answered,
            one that is too long is cut.

    Raises:
        ValueError: for files, columns, texts or a model that cannot be used; the target stays as it was.
    """
    source, target = Path(source), Path(target)
    outputs = [target, *([] if rejected is None else [Path(rejected)])]
    if len({path.resolve() for path in (source, *outputs)}) <= len(outputs):
        raise ValueError(
            f"Input, output and rejected rows each need a file of their own, got {source}, "
            f"{' and '.join(map(str, outputs))}; choose another name."
        )
    for path in outputs:
        if path.suffix.lower() not in WRITERS:
            raise ValueError(
                f"The output must end in {' or '.join(WRITERS)}, or be a folder, got {path}; choose another name."
            )
        check_new(path, overwrite)
    # Before a model is loaded.
    if _choose_columns(_first_rows(source), text_columns, keep_columns or ()) is None:
        raise ValueError(f"{source} must hold rows, got none; pass a file with rows.")
    predictor = FilePredictor(model, text_columns, keep_columns, max_length, batch_size, window, bf16)
    return predictor.answer(source, target, None if rejected is None else Path(rejected))


def _texts_of(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[Any]:
    for row in rows:
        yield row.get(columns[0]) if len(columns) == 1 else [row.get(name) for name in columns]


def _check_rows(source: Path, columns: Sequence[str], all_answered: bool) -> None:
    """Read a file to its end, before answers are computed that would be lost where it cannot be read.

    Args:
        source: of rows.
        columns: of texts.
        all_answered: whether every row must hold a text that can be answered.

    Raises:
        ValueError: for what cannot be read, or answered.
    """
    rows = tqdm(read_rows(source), desc=f"check {source.name}", unit=" rows", disable=None, leave=False)
    parts = 0
    for before, text in enumerate(_texts_of(rows, columns)):
        parts = parts or _parts(text)
        if all_answered:
            _refuse([text], [_reason(text, parts, no_empty=False)], parts, before)


def _device() -> torch.device:
    """Of this process: on a machine with several accelerators each has its own."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    place = get_cpu_distributed_information().local_rank % torch.accelerator.device_count()
    return torch.device(f"{torch.accelerator.current_accelerator()}:{place}")


def _refuse(texts: Sequence[Any], found: Sequence[Row | None], parts: int, before: int) -> None:
    """Say which is the first text that cannot be answered.

    Raises:
        ValueError: where there is one.
    """
    for number, (text, reason) in enumerate(zip(texts, found, strict=True), before + 1):
        if reason is not None:
            wanted = "a text" if parts == 1 else "two texts"
            raise ValueError(
                f"Row {number} must hold {wanted}, got {shortened(text)}; fill or drop it, or have it put aside by "
                "`--rejected`."
            )


def _reason(text: Any, parts: int, no_empty: bool) -> Row | None:
    """Why a text cannot be answered, as far as can be said before it is tokenised."""
    pieces: Sequence[Any] = [text] if parts == 1 else text if isinstance(text, (tuple, list)) else [None]
    if all(map(is_text, pieces)) and _parts(text) == parts:
        if no_empty and not any(piece.strip() for piece in pieces):
            return {"reason": "empty", "found": shortened(text)}
        return None
    reason = "missing" if any(piece is None for piece in pieces) else "not text"
    return {"reason": reason, "found": shortened(text)}


def _features(tokenizer: Any, texts: Sequence[Any], parts: int, limit: int | None) -> list[Row]:
    """The inputs of a model, unpadded, cut at a limit."""
    if not texts:
        return []
    columns = [texts] if parts == 1 else [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, truncation=limit is not None, max_length=limit, verbose=False)
    return [{name: values[row] for name, values in encoded.items()} for row in range(len(texts))]


def _parts(text: Any) -> int:
    return len(text) if isinstance(text, (tuple, list)) else 1


def _is_input(text: Any) -> bool:
    """Whether it is a text, or a pair of them."""
    return is_text(text) or (isinstance(text, (tuple, list)) and len(text) == 2 and all(map(is_text, text)))


@torch.inference_mode()
def logits_of(
    model: PreTrainedModel,
    features: Sequence[Row],
    collate: Callable[[list[Row]], Any],
    batch_size: int,
    bf16: bool = False,
) -> Tensor:
    """What a model says of tokenised inputs.

    Args:
        model: a classifier, in evaluation mode.
        features: N inputs, unpadded.
        collate: makes a batch of some.
        batch_size: inputs that the model reads at once.
        bf16: compute in bfloat16.

    Returns:
        (N, labels) in float32 on the CPU, in the order of the features.
    """
    order = sorted(range(len(features)), key=lambda row: len(features[row]["input_ids"]))
    if not features:
        return torch.empty(0, model.config.num_labels)
    logits = []
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        for start in range(0, len(order), batch_size):
            batch = collate([features[row] for row in order[start : start + batch_size]])
            logits.append(model(**batch.to(model.device)).logits)
    return torch.cat(logits).float().cpu()[torch.tensor(order).argsort()]


def answer_for(config: Any) -> Callable[[Tensor], Row]:
    """What a row of logits says, see [`predict`].

    Args:
        config: the model's.

    Returns:
        A function of (labels,) logits.
    """
    names = [config.id2label[number] for number in range(config.num_labels)]

    def several(logits: Tensor) -> Row:
        found = [(name, score) for name, score in zip(names, logits.sigmoid().tolist(), strict=True) if score > 0.5]
        return {"labels": [name for name, _ in found], "scores": [score for _, score in found]}

    def one(logits: Tensor) -> Row:
        score, number = logits.softmax(dim=0).max(dim=0)
        return {"label": names[int(number)], "score": score.item()}

    if config.problem_type == "multi_label_classification":
        return several
    if len(names) == 1:
        return lambda logits: {"value": logits.item()}
    return one if config.problem_type != "regression" else lambda logits: {"values": logits.tolist()}


def _first_rows(source: Path) -> list[Row]:
    """Those that tell which columns there are."""
    return list(islice(read_rows(source), _HEAD))


def _choose_columns(
    head: Sequence[Row], text_columns: Sequence[str] | None, keep_columns: Sequence[str]
) -> list[str] | None:
    """The columns of texts; `None` of no rows.

    Raises:
        ValueError: for a column that is not there, or where several could be meant.
    """
    if not head:
        return None
    columns = list(dict.fromkeys(name for row in head for name in row))
    # Those of a file that a model was measured on: its labels are no texts. What is missing up to here may be one.
    holding = [name for name in columns if name not in ("label", "labels")]
    found = {name: [row[name] for row in head if not isinstance(row.get(name), Misfit | None)] for name in holding}
    holding = [name for name, values in found.items() if not values or any(isinstance(v, str) for v in values)]
    if len(holding) > 1:
        # Of csv numbers come as texts too.
        holding = [name for name in holding if not found[name] or not all(map(_is_number, found[name]))]
    texts = choose_texts(columns, holding, text_columns)
    for name in keep_columns:
        if name not in columns:
            raise ValueError(f"There is no column {name!r}; the data has {join_names(columns)}.")
    return texts


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def write_row(file: TextIO, path: Path, row: Row, first: bool) -> None:
    """Write a row as the ending of a file's name says.

    Args:
        file: to write to.
        path: its name.
        row: values by column.
        first: whether it is the file's first.
    """
    WRITERS[path.suffix.lower()](file, row, first)


def _write_csv(file: TextIO, row: Row, first: bool) -> None:
    writer = csv.writer(file)
    if first:
        writer.writerow(row)
    writer.writerow(
        json.dumps(v, ensure_ascii=False, default=str) if isinstance(v, list | dict) else v for v in row.values()
    )


def _write_jsonl(file: TextIO, row: Row, first: bool) -> None:
    file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


WRITERS: dict[str, Callable[[TextIO, Row, bool], None]] = {".csv": _write_csv, ".jsonl": _write_jsonl}
