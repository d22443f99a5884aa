# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Training rows that are read while they are trained on, of more data than can be written down here first."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, cast

import datasets
import numpy as np
import pyarrow
from datasets import Dataset, IterableDataset

from .checkpoint import load_config, load_tokenizer, reading
from .data import TaskData, load_splits, named_by_task, prepare_for
from .labels import flat, read_labels
from .rows import HEAD, REPAIR
from .tasks import TASKS
from .texts import check_texts

# Rows among which the next one is drawn.
_SHUFFLED = 10_000
# Rows that say what kind of labels these are, besides one of each class.
_SAMPLE = 100


def load_stream(options: Any, model: str, seed: int = 42, fine_tuned: bool = False) -> TaskData:
    """Read a training split as a stream, and prepare it for a model.

    The head of the stream is read first; a tenth of it becomes the tuning split. R is the length that inputs are cut
    at, because nobody knows the longest.

    Args:
        options: an `arguments.DataArguments`: which data.
        model: a Hub id or folder, with the tokenizer.
        seed: of the order of rows and of the tuning split.
        fine_tuned: see `prepare_data`.

    Raises:
        ValueError: for a model or data that cannot be used; while training, for a class that the head lacks.
    """
    config = load_config(model)
    tokenizer = load_tokenizer(model, config)
    task = TASKS[options.task] if options.task else None
    files = (options.dataset, options.subset, options.train_file, options.eval_file)
    train, held_out = load_splits(*files, task, streaming=True)
    # With `streaming=True` it always is one.
    stream = cast(IterableDataset, train)
    with reading("The training rows", REPAIR):
        # A tenth of them is the tuning split, and their labels are all that there may be.
        head = Dataset.from_list(list(stream.take(HEAD)), features=stream.features)
    data = prepare_for(options, tokenizer, config, head, held_out, seed, fine_tuned=fine_tuned)
    texts, labels = data.source["text_columns"], data.source["label_column"]
    columns = [labels] if isinstance(labels, str) else labels
    if fine_tuned:
        head = named_by_task(head, columns[0], task, config)
    sample, limit = _sample(head, columns), data.source["max_length"]

    # What else there is may be of any kind.
    features = datasets.Features({name: head.features[name] for name in (*texts, *columns)})

    def encode(rows: dict[str, list]) -> dict[str, list]:
        try:
            batch = Dataset.from_dict({name: rows[name] for name in features}, features=features)
            check_texts(batch, texts, whole=False)
            _, numbers, _, _ = read_labels(sample, batch, columns, data.label_names, whole=False)
        except (ValueError, TypeError, pyarrow.ArrowException) as error:
            raise ValueError(f"All rows of the stream must be like its first {len(head):,}: {error}") from error
        encoded = tokenizer(*(batch[name][:] for name in texts), truncation=True, max_length=limit)
        return {**encoded, "labels": numbers}

    first = data.train.remove_columns("length").to_iterable_dataset()
    rest = stream.skip(len(head)).map(encode, batched=True, remove_columns=head.column_names, features=first.features)
    whole = datasets.concatenate_datasets([first, rest]).shuffle(seed=seed, buffer_size=_SHUFFLED)

    def rows() -> Iterator[dict[str, Any]]:
        """Without an end, so that no process comes to one before the others."""
        for epoch in count():
            whole.set_epoch(epoch)
            yield from whole

    # Processes share out the rows of one generator; several files they would share out, tuning rows and all.
    endless = IterableDataset.from_generator(rows, features=first.features)
    return replace(data, train=endless, source={**data.source, "train_rows": None})


def _sample(head: Dataset, columns: Sequence[str]) -> Dataset:
    """Some rows with one of each class among them, by which the labels of others are understood."""
    known: set[Any] = set()
    chosen = []
    for row, label in enumerate(zip(*(head[name] for name in columns), strict=True)):
        new = {one for value in label for one in flat([value])} - known
        if row < _SAMPLE or (new and not any(isinstance(one, float) for one in new)):
            chosen.append(row)
            known |= new
    return head.select(np.array(chosen))
