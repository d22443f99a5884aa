# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Which words, parts and places of a data set survive how deep."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .inspection import Explanation, explain
from .texts import check_asked

# Texts that are looked at before they are forgotten.
_WINDOW = 1024
# Parts of an input's length.
_TENTHS = 10


@dataclass(frozen=True)
class Fate:
    """What became of one kind of word-vector, over a data set.

    Args:
        name: the word, or the part of the input.
        count: how many there were.
        left: for each encoder the share of them that leaves it.
    """

    name: str
    count: int
    left: list[float]

    @property
    def depth(self) -> float:
        """How many encoders they leave, on average."""
        return sum(self.left)


@dataclass(frozen=True)
class Survival:
    """What a model has kept of a data set.

    Args:
        texts: how many.
        all: of all word-vectors.
        parts: of [CLS], [SEP], first and second text.
        tenths: of the first tenth of an input's length to the last.
        words: of those that came often enough, the deepest first.
        retention_config: of the model; `None` keeps all.
        retention_unit: of its entries.
    """

    texts: int
    all: Fate
    parts: list[Fate]
    tenths: list[Fate]
    words: list[Fate]
    retention_config: list[float] | None
    retention_unit: str

    @property
    def shares(self) -> list[float] | None:
        """The configuration, where its entries are shares of an input."""
        return self.retention_config if self.retention_unit == "fraction" else None

    def to_dict(self) -> dict[str, Any]:
        """All of it, for a file."""
        return asdict(self)


def survival(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str | Sequence[str]],
    batch_size: int = 32,
    max_length: int | None = None,
    at_least: int = 5,
) -> Survival:
    """Which words, parts and places of the texts of a data set survive how deep; a window of them is in memory.

    Args:
        model: see [`explain`].
        tokenizer: see [`explain`].
        texts: see [`explain`].
        batch_size: see [`explain`].
        max_length: see [`explain`].
        at_least: times that a word must have come to be listed.

    Raises:
        ValueError: where there are no texts, and as [`explain`] does.
    """
    check_asked(texts, batch_size=batch_size)
    rest, done = iter(texts), 0
    encoders = model.config.num_encoders
    counts: dict[tuple[str, Any], list[int]] = defaultdict(lambda: [0] * (encoders + 1))
    with tqdm(desc="inspect", unit=" texts", disable=None) as progress:
        while window := list(islice(rest, _WINDOW)):
            for explanation in explain(model, tokenizer, window, batch_size, max_length):
                for kind, depth in _fates(explanation):
                    counts[kind][depth] += 1
            done += len(window)
            progress.update(len(window))
    if not done:
        raise ValueError("There must be texts to look at, got none; pass some.")

    def fate(kind: tuple[str, Any], name: str) -> Fate:
        times = counts[kind]
        count = sum(times)
        return Fate(name, count, [sum(times[encoder:]) / max(1, count) for encoder in range(1, encoders + 1)])

    def fates(what: str) -> list[Fate]:
        return [fate(kind, str(kind[1])) for kind in counts if kind[0] == what]

    words = [word for word in fates("word") if word.count >= at_least]
    return Survival(
        done,
        fate(("all", None), "all"),
        fates("part"),
        # Short texts have no word-vector in some of them.
        [fate(kind, str(kind[1] + 1)) for tenth in range(_TENTHS) if (kind := ("tenth", tenth)) in counts],
        sorted(words, key=lambda word: (-word.depth, -word.count, word.name)),
        model.config.retention_config,
        model.config.retention_unit,
    )


def _fates(explanation: Explanation) -> Iterator[tuple[tuple[str, Any], int]]:
    """What each word-vector, and each word, counts for, and how many encoders it leaves."""
    depths = explanation.depths
    for word in explanation.words:
        for position in word.positions:
            yield ("all", None), depths[position]
            yield ("part", word.part), depths[position]
            yield ("tenth", position * _TENTHS // len(depths)), depths[position]
        if word.part in ("first", "second"):
            yield ("word", word.text.casefold()), max(depths[position] for position in word.positions)
