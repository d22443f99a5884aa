# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What survives, as text: of a sentence word by word, of a data set as tables."""

import unicodedata
from collections.abc import Iterator, Sequence

from .inspection import Explanation, Word, legible
from .survival import Fate, Survival

GONE = "·"
# Display columns that a word may take before it is shortened.
_LONGEST = 24
# Words of each end of the list that a table shows.
_WORDS = 10
_DIM, _STRONG, _PLAIN = "\x1b[2m", "\x1b[1;36m", "\x1b[0m"


def columns(text: str) -> int:
    """Columns of a terminal that a text takes.

    Example:
        >>> columns("film"), columns("日本"), columns("e\u0301")
        (4, 4, 1)
    """
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def shortened(text: str, limit: int = _LONGEST) -> str:
    """A word no wider than `limit`, its end cut.

    Example:
        >>> shortened("incomprehensible", 8)
        'incompr…'
    """
    if columns(text) <= limit:
        return text
    while columns(text) >= limit:
        text = text[:-1]
    return f"{text}…"


def what_is_left(word: Word, kept: set[int]) -> str:
    """A word without those of its word-pieces that are gone; empty if all are.

    Args:
        word: of an explanation.
        kept: positions that are left.

    Example:
        >>> what_is_left(Word("joyful", "first", (3, 4), ("joy", "ful")), {3})
        'joy·'
    """
    if kept.isdisjoint(word.positions):
        return ""
    if kept.issuperset(word.positions):
        return word.text
    pieces = zip(word.positions, word.pieces, strict=True)
    return "".join(piece if position in kept else GONE for position, piece in pieces)


def strong_words(explanation: Explanation, encoder: int) -> set[int]:
    """Positions of the most significant third of the word-vectors that enter an encoder."""
    received = explanation.significance[encoder]
    order = sorted(range(len(received)), key=lambda place: -received[place])
    return {explanation.entered[encoder][place] for place in order[: max(1, len(order) // 3)]}


def format_explanation(explanation: Explanation, width: int = 100, colour: bool = False) -> str:
    """An explanation as rows, one an encoder, of the words that leave it, each in its column.

    Args:
        explanation: from `inspection.explain`.
        width: display columns; what does not fit goes on below.
        colour: mark, by a terminal's codes, the words that received most attention in the encoder that they left.

    Returns:
        Lines without a last line break.
    """
    everything = set(range(len(explanation.tokens)))
    rows = [("in", everything), *((f"encoder {n}", set(kept)) for n, kept in enumerate(explanation.kept, start=1))]
    names = [f" {name:<{len(rows[-1][0])}} {len(kept):>{len(str(len(everything)))}} " for name, kept in rows]
    lines = []
    for block in _blocks(explanation.words, width - len(names[0])):
        for number, (name, (_, kept)) in enumerate(zip(names, rows, strict=True)):
            strong = strong_words(explanation, number - 1) if colour and number else set()
            cells = [_cell(word, kept, strong, colour) for word in block]
            lines.append(f"{_DIM}{name}{_PLAIN} {' '.join(cells)}" if colour else f"{name} {' '.join(cells)}".rstrip())
        lines.append("")
    lines.append(f" classifier: {format_answer(explanation.answer)}")
    if explanation.cut:
        lines.append(" The end of the text is cut.")
    return "\n".join(lines)


def format_answer(answer: dict) -> str:
    """A prediction in few words.

    Example:
        >>> format_answer({"label": "good", "score": 0.984})
        'good (98.4%)'
        >>> format_answer({"values": [0.5, -2.0]})
        '0.500, -2.000'
    """
    if "label" not in answer and "labels" not in answer:
        return ", ".join(f"{value:.3f}" for value in answer.get("values") or [answer["value"]])
    pairs = zip(answer["labels"], answer["scores"], strict=True) if "labels" in answer else [tuple(answer.values())]
    return ", ".join(f"{legible(str(name))} ({score:.1%})" for name, score in pairs) or "none of the labels"


def _blocks(words: Sequence[Word], width: int) -> Iterator[list[Word]]:
    """Words that fit beside each other."""
    block: list[Word] = []
    used = 0
    for word in words:
        needed = 1 + columns(shortened(word.text))
        if block and used + needed > width:
            yield block
            block, used = [], 0
        block.append(word)
        used += needed
    yield block


def _cell(word: Word, kept: set[int], strong: set[int], colour: bool) -> str:
    width = columns(shortened(word.text))
    left = shortened(what_is_left(word, kept), width)
    if not left:
        before = (width - 1) // 2
        dot = f"{_DIM}{GONE}{_PLAIN}" if colour else GONE
        return f"{' ' * before}{dot}{' ' * (width - 1 - before)}"
    padded = left + " " * (width - columns(left))
    return f"{_STRONG}{padded}{_PLAIN}" if strong.intersection(word.positions) else padded


def format_survival(found: Survival) -> str:
    """What survives of a data set: shares by encoder, of all, by part, by place, and of words.

    Args:
        found: from `survival.survival`.

    Returns:
        Lines without a last line break.
    """
    encoders = [str(encoder) for encoder in range(1, len(found.all.left) + 1)]
    head = ("share left after encoder", "of", *encoders, "mean depth")
    entries = found.retention_config
    config = []
    if entries is not None:
        shown = [f"{entry:.0%}" if found.retention_unit == "fraction" else str(entry) for entry in entries]
        config = [("configuration", "", *shown, "")]
    deepest, first = found.words[:_WORDS], found.words[_WORDS:][-_WORDS:]
    groups = [
        [*config, _row("all word-vectors", found.all)],
        [_row(part.name if part.name.startswith("[") else f"{part.name} text", part) for part in found.parts],
        [_row(f"tenth {tenth.name} of the input", tenth) for tenth in found.tenths],
        [_row(shortened(word.name), word) for word in deepest],
        [_row(shortened(word.name), word) for word in first],
    ]
    titles = ("", "by part", "by place", "words that stay longest", "words that go first")
    rows = [head, *(row for group in groups for row in group)]
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]

    def line(row: tuple[str, ...]) -> str:
        name, *rest = zip(row, widths, strict=True)
        return "  ".join([name[0] + " " * (name[1] - columns(name[0])), *(cell.rjust(width) for cell, width in rest)])

    lines = [f"{found.texts:,} texts", line(head)]
    for title, group in zip(titles, groups, strict=True):
        if group:
            lines += ["", title] if title else []
            lines += [line(row) for row in group]
    return "\n".join(lines)


def _row(name: str, fate: Fate) -> tuple[str, ...]:
    return name, f"{fate.count:,}", *(f"{share:.0%}" for share in fate.left), f"{fate.depth:.1f}"
