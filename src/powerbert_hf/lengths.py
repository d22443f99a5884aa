# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Inputs to measure speed on: random word-pieces of real lengths. What they say matters to nobody's speed."""

from collections.abc import Sequence

import numpy as np

from .tasks import TASKS

# Quantiles 0, 1/32, ..., 1 of the word-pieces of an input of the development split (IMDB: test split), with the
# tokenizer of uncased BERT, truncated to the task's length.
# fmt: off
QUANTILES: dict[str, tuple[int, ...]] = {
    "sst2": (
        4, 9, 10, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 24, 25, 26, 27, 28, 29, 30, 31, 32, 34, 35, 36,
        39, 40, 42, 46, 55,
    ),
    "mrpc": (
        26, 31, 33, 36, 38, 40, 41, 42, 44, 45, 46, 47, 48, 49, 51, 52, 53, 55, 55, 57, 58, 59, 60, 61, 63, 64, 65,
        67, 68, 70, 73, 77, 86,
    ),
    "rte": (
        17, 26, 31, 33, 35, 36, 38, 39, 41, 42, 44, 46, 48, 49, 49, 52, 53, 54, 56, 59, 61, 65, 69, 74, 79, 84, 103,
        114, 126, 135, 150, 164, 253,
    ),
    "imdb": (
        10, 70, 91, 113, 136, 147, 154, 160, 166, 172, 178, 185, 193, 201, 210, 220, 230, 242, 255, 268, 284, 302,
        321, 347, 372, 404, 441, 488, 512, 512, 512, 512, 512,
    ),
}
# fmt: on


def draw_lengths(name: str, inputs: int, seed: int = 0) -> tuple[list[int], int]:
    """Lengths as a data set has them, in no order.

    One is drawn from each of `inputs` equal parts of the distribution, so that few draws have its mean too.

    Args:
        name: of `QUANTILES`, or a whole number, the length of all.
        inputs: how many.
        seed: of the draws.

    Returns:
        The lengths, and N, what the paper pads them to: the task's length, or the number itself.

    Raises:
        ValueError: for anything else.

    Example:
        >>> draw_lengths("8", 3)
        ([8, 8, 8], 8)
    """
    if name.isdecimal() and int(name) > 0:
        return [int(name)] * inputs, int(name)
    if name not in QUANTILES:
        raise ValueError(
            f"`--lengths` must be {', '.join(QUANTILES)} or whole numbers of word-pieces, got {name!r}; pass "
            "`--texts` to measure on texts of your own."
        )
    generator = np.random.default_rng(seed)
    drawn = (generator.permutation(inputs) + generator.random(inputs)) / inputs
    quantiles = QUANTILES[name]
    lengths = np.interp(drawn, np.linspace(0, 1, len(quantiles)), quantiles).round().astype(int)
    return lengths.tolist(), TASKS[name].max_length or max(quantiles)


def random_features(lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Inputs of these lengths, as a tokenizer returns them.

    Args:
        lengths: word-pieces of each input.
        vocab_size: word-pieces that there are.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    return [{"input_ids": generator.integers(vocab_size, size=length).tolist()} for length in lengths]
