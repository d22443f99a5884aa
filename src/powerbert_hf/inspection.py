# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Which words survive: what a model keeps of a text, encoder by encoder, as data to print or draw."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from reprlib import repr as shortened
from typing import Any

import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from .encoder import ranking_attention
from .predict import answer_for
from .texts import check_asked, input_limit, is_text

# What a text may say but must not do to a terminal or a page: turn the direction of all that follows.
_OVERRIDES = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


@dataclass(frozen=True)
class Word:
    """A word of a text, or a token that stands for none.

    Args:
        text: as it was written; characters that control a terminal are replaced.
        part: `first` or `second` text, or the token itself, such as `[CLS]`.
        positions: of its word-pieces in the input.
        pieces: what each of these stands for of `text`.
    """

    text: str
    part: str
    positions: tuple[int, ...]
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """What a model has kept of a text, or of a pair of texts.

    Args:
        tokens: T word-pieces, as the tokenizer calls them.
        words: these joined to words, in their order.
        kept: for each encoder the positions that leave it, ascending.
        significance: for each encoder the attention that the word-vectors of `entered` receive in it.
        answer: as [`predict`] gives it.
        cut: whether the text was longer than the model takes, so that its end is missing.
    """

    tokens: list[str]
    words: list[Word]
    kept: list[list[int]]
    significance: list[list[float]]
    answer: dict[str, Any]
    cut: bool = False

    @property
    def entered(self) -> list[list[int]]:
        """For each encoder the positions that enter it, ascending."""
        return [list(range(len(self.tokens))), *self.kept[:-1]]

    @cached_property
    def depths(self) -> list[int]:
        """For each position how many encoders its word-vector leaves."""
        left = [set(kept) for kept in self.kept]
        return [sum(position in kept for kept in left) for position in range(len(self.tokens))]

    def depth(self, word: Word) -> int:
        """How many encoders a word leaves: the last of its word-pieces counts."""
        return max(self.depths[position] for position in word.positions)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for a file."""
        rounded = [[round(value, 4) for value in row] for row in self.significance]
        return {**asdict(self), "significance": rounded}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Explanation":
        """What `to_dict` has made, also of it as a file."""
        words = [
            Word(word["text"], word["part"], tuple(word["positions"]), tuple(word["pieces"]))
            for word in content["words"]
        ]
        return cls(**{**content, "words": words})


def explain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str | Sequence[str]],
    batch_size: int = 32,
    max_length: int | None = None,
) -> list[Explanation]:
    """Which words of texts survive in which encoder.

    Args:
        model: a classifier of this package; it is put into evaluation mode. In off mode all survives.
        tokenizer: the model's.
        texts: each a text, or each a pair of texts.
        batch_size: inputs that the model reads at once.
        max_length: word-pieces to truncate to; `None` is what tokenizer and model take.

    Returns:
        An explanation of each text, in their order.

    Raises:
        ValueError: for a model that removes nothing yet (soft mode) or is not of this package, for texts that are
            none, or a length that cannot be.
    """
    if getattr(model.config, "active_retention_mode", "soft") == "soft":
        raise ValueError(
            "A model must be one of this package, in hard mode, to look at what it removes, got "
            f"{type(model).__name__} in mode {getattr(model.config, 'active_retention_mode', None)!r}; load it with a "
            "`PoWER...` class, or set its configuration with `set_retention`."
        )
    check_asked(texts, batch_size=batch_size)
    texts = [[text] if isinstance(text, str) else text for text in texts]
    if not texts:
        return []
    for number, parts in enumerate(texts, start=1):
        if not (isinstance(parts, list | tuple) and len(parts) == len(texts[0]) and all(map(is_text, parts))):
            raise ValueError(f"All texts must be one, or all two, got {shortened(parts)} as number {number}.")
    model.eval()
    limit = input_limit(tokenizer, model.config, len(texts[0]), max_length)
    inputs = tokenizer(*map(list, zip(*texts, strict=True)), truncation=True, max_length=limit)
    order = sorted(range(len(texts)), key=lambda row: len(inputs["input_ids"][row]))
    found: dict[int, Explanation] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        features = [{name: values[row] for name, values in inputs.items()} for row in rows]
        looks = _look(model, DataCollatorWithPadding(tokenizer)(features).to(model.device))
        for row, (kept, significance, answer) in zip(rows, looks, strict=True):
            tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][row])
            words = _words(tokenizer, inputs, row, texts[row], tokens)
            cut = bool(inputs.is_fast and inputs.encodings[row].overflowing)
            found[row] = Explanation(tokens, words, kept, significance, answer, cut)
    return [found[row] for row in range(len(texts))]


@torch.inference_mode()
def _look(model: PreTrainedModel, batch: Any) -> Iterator[tuple[list[list[int]], list[list[float]], dict[str, Any]]]:
    """Of each input the positions that leave each encoder, the significance of those that enter it, and the answer."""
    outputs = model(**batch, output_kept_positions=True, output_hidden_states=True)
    width = batch["input_ids"].shape[1]
    places = torch.arange(width, device=model.device).expand(len(batch["input_ids"]), -1)
    entered = [places.where(batch["attention_mask"].bool(), -1), *outputs.kept_positions[:-1]]
    received = []
    for encoder, states, positions in zip(
        model.base_model.encoder.encoders(), outputs.hidden_states, entered, strict=False
    ):
        received.append(ranking_attention(encoder).significance_of(states, positions >= 0))
    answer = answer_for(model.config)
    for row, logits in enumerate(outputs.logits.float().cpu()):
        yield (
            [kept[row][kept[row] >= 0].tolist() for kept in outputs.kept_positions],
            [values[row][there[row] >= 0].tolist() for values, there in zip(received, entered, strict=True)],
            answer(logits),
        )


def _words(tokenizer: Any, inputs: Any, row: int, texts: Sequence[str], tokens: Sequence[str]) -> list[Word]:
    """The words of an input, from where the tokenizer says that its word-pieces come from."""
    if inputs.is_fast:
        pieces = _pieces(inputs.encodings[row], texts)
    else:
        second = inputs.get("token_type_ids", [[0] * len(tokens)] * (row + 1))[row]
        pieces = _marked_pieces(tokens, second, tokenizer.all_special_tokens)
    words = []
    for (_, part), group in groupby(enumerate(pieces), key=lambda one: one[1][0]):
        positions, surfaces = zip(*((position, surface) for position, (_, surface) in group), strict=True)
        text = "".join(surfaces)
        words.append(Word(text or part, part, positions, surfaces))
    return words


def _pieces(encoding: Any, texts: Sequence[str]) -> Iterator[tuple[tuple[Any, str], str]]:
    """For each word-piece a key that tells words apart, with its part, and what it stands for in the text."""
    done = 0
    places = zip(encoding.tokens, encoding.word_ids, encoding.sequence_ids, encoding.offsets, strict=True)
    for position, (token, word, sequence, (start, end)) in enumerate(places):
        if sequence is None:
            done = 0
            yield (("special", position), token), legible(token)
            continue
        # SentencePiece's mark of a new word stands for nothing, though it has the place of the first character.
        surface = "" if token == "▁" else texts[sequence][max(start, done) : end]
        done = done if token == "▁" else end
        yield ((sequence, word), ("first", "second")[sequence]), legible(surface.strip())


def _marked_pieces(
    tokens: Sequence[str], second: Sequence[int], special: Sequence[str]
) -> Iterator[tuple[tuple[Any, str], str]]:
    """The same of a tokenizer that does not say where its word-pieces come from, by their marks."""
    word = 0
    for token, place in zip(tokens, second, strict=True):
        is_special = token in special
        word += is_special or not token.startswith("##")
        part = token if is_special else ("first", "second")[place]
        yield (word, part), legible(token if is_special else token.removeprefix("##").strip("▁"))


def legible(text: str) -> str:
    """A text that does nothing where it is shown: control characters and turns of direction are replaced.

    Example:
        >>> legible("red" + chr(27) + "[31m")
        'red�[31m'
    """
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" or c in _OVERRIDES else c for c in text)
