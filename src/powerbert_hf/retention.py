# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""PoWER-BERT: progressive word-vector elimination, as functions on tensors.

Goyal et al., *PoWER-BERT: Accelerating BERT Inference via Progressive Word-vector Elimination*, ICML 2020
(https://arxiv.org/abs/2001.08950). Between self-attention and feed-forward network of every encoder the word-vectors
that receive little attention are dropped. This file is the whole method; it knows torch and nothing else.

=====================  =========================  ============================================================
paper                  here                       shape and meaning
=====================  =========================  ============================================================
`Sig(w)`               `significance`             (B, T) attention that each word-vector receives
sort by `Sig`          `rank`                     (B, T) positions, most significant first
Extract                `extract`                  (B, K) positions that stay, ascending
Soft-extract           `soft_extract`             (B, T, D) word-vectors, each times the weight of its rank
`r_j`                  `retention_weights`        (L, R) one learned weight in [0, 1] per encoder and rank
`mass(j; r)`           `retention_mass`           (L,) how many word-vectors encoder j is worth
`sum_j j * mass(j)`    `retention_penalty`        () the term that training adds, times lambda
`l_j`                  `retention_config`         L counts, or L fractions of the input's own length
=====================  =========================  ============================================================

`B` batch, `T` word-vectors that enter an encoder, `K` that leave it, `H` heads, `D` hidden size, `L` encoders,
`R` the retention length: the longest input of the training data. Masks are boolean, true where a word-vector is real.

Where the paper and IBM's code (https://github.com/IBM/PoWER-BERT) leave room or differ, this file decides:

* Padded rows do not vote in the significance (the code counts them): an answer must not depend on its batch.
* [CLS], position 0, always takes rank 0 and stays, in Extract (as the code) and in Soft-extract (unlike the code).
* Equal significance: the lower position first. Kept word-vectors stay in ascending order.
* Counts round the mass up (paper), never below 1; the code rounds down.
* The ranking has no gradient, in the paper, in the code and here. What it ranks by can learn from a teacher all the
  same (`ranking_divergence`).
* Soft-extract multiplies, as in the paper, or hides (`hiding_bias`): later encoders attend to a word-vector of weight
  w only w times as much. Searches for a speed-up hide.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args, overload

import torch
from torch import Tensor

RetentionUnit = Literal["words", "fraction"]
RetentionMode = Literal["off", "soft", "hard"]
RetentionSoftExtract = Literal["multiply", "published", "hide"]

# Fractions are counted in integers of 2**-40, so that one formula is exact for Python integers, for tensors on any
# device, and for the symbolic sizes of torch.export. In bf16 a plain ceil(f * n) is wrong for a third of all pairs.
_ONE = 1 << 40
# ceil(f * n) must not round up because a fraction such as 7/30 is not a binary number.
_COUNT_SLACK = 1e-6
_MASS_SLACK = 1e-4
# A weight below this counts as 0: a high score could make up for any other, and the gradient of a weight can be a
# quarter of one over it.
_NOTHING_LEFT = 1e-4
# The least attention, so that its logarithm is finite; the logarithm of word-vectors that do not count: a share of 0.
_NO_ATTENTION = 1e-9
_NO_SHARE = -1e4
# Further right than any position. A constant: not every exporter can multiply by a symbolic size.
_BEYOND = 1 << 32


def significance(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Attention that every word-vector receives from the other ones, summed over heads (paper, section 3.2).

    Args:
        query: (B, H, T, D/H).
        key: (B, H, T, D/H).
        mask: (B, T), true where a word-vector is real; `None` if all are. Others neither vote nor receive.
        scale: factor on the scores before the softmax; `None` is one over the root of the head size.
        weights: (B, T) in [0, 1], how much of each word-vector is left (Soft-extract); `None` is all of it.

    Returns:
        (B, T) in float32. A word-vector's attention to itself is not counted. Scores are multiplied
        in the dtype of `query`, as eager attention does; softmax and sums are in float32.

    Example:
        With all-zero queries every row attends evenly: each of 4 word-vectors gets 1/4 from each of 3 others and head.

        >>> zeros = torch.zeros(1, 2, 4, 8)
        >>> significance(zeros, zeros)
        tensor([[1.5000, 1.5000, 1.5000, 1.5000]])
        >>> significance(zeros, zeros, torch.tensor([[True, True, False, False]]))
        tensor([[1., 1., 0., 0.]])
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ key.transpose(-1, -2) * scale  # (B, H, T, T)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
    if weights is not None:
        scores = scores + hiding_bias(weights)[:, None, None, :]
    return attention_received(scores.softmax(dim=-1, dtype=torch.float32), mask, weights)


def attention_received(attention: Tensor, mask: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """The significance, from attention probabilities that have been computed already.

    Args:
        attention: (B, H, T, T), rows sum to 1.
        mask: (B, T), true where a word-vector is real; `None` if all are. Rows of others do not vote.
        weights: (B, T) in [0, 1], how much each row's vote counts; `None` is 1.

    Returns:
        (B, T) in float32.

    Example:
        >>> attention_received(torch.tensor([[[[0.25, 0.75], [0.5, 0.5]]]]))
        tensor([[0.5000, 0.7500]])
    """
    not_counted = torch.eye(attention.shape[-1], dtype=torch.bool, device=attention.device)
    if mask is not None:
        not_counted = not_counted | ~mask[:, :, None]
    votes = attention.sum(dim=1, dtype=torch.float32).masked_fill(not_counted, 0.0)
    return votes.sum(dim=1) if weights is None else (votes * weights[:, :, None]).sum(dim=1)


def hiding_bias(weights: Tensor) -> Tensor:
    """What to add to attention scores so that a key takes `weights` times the attention that it would take.

    Args:
        weights: (B, T) in [0, 1].

    Returns:
        (B, T), finite. A weight of 1e-4 or less takes none, whatever the score, and has no gradient.

    Example:
        >>> scores = torch.zeros(1, 2) + hiding_bias(torch.tensor([[1.0, 0.5]]))
        >>> scores.softmax(-1)
        tensor([[0.6667, 0.3333]])
    """
    left = weights > _NOTHING_LEFT
    return weights.where(left, 1.0).log().where(left, torch.finfo(weights.dtype).min)


def ranking_divergence(received: Tensor, wanted: Tensor, counted: Tensor) -> Tensor:
    """How far the attention that word-vectors receive is from what a teacher gives them, as shares of it.

    The ranking has no gradient, but what it ranks by has: so encoders learn which word-vectors later ones will need.
    Distilled rankings are those of ToP (Li et al., KDD 2023, https://arxiv.org/abs/2306.14393), by another loss.

    Args:
        received: (B, T) significance, from `significance`.
        wanted: (B, T), the teacher's, of any scale.
        counted: (B, T), true for the word-vectors that are ranked; rows without any count for nothing.

    Returns:
        A scalar, the mean Kullback-Leibler divergence of the teacher's shares. Zero for equal ones.

    Example:
        >>> received = torch.tensor([[9.0, 1.0, 3.0]])
        >>> ranking_divergence(received, 2 * received, torch.tensor([[False, True, True]])).item()
        0.0
    """
    given, aim = (
        part.float().clamp(min=_NO_ATTENTION).log().masked_fill(~counted, _NO_SHARE).log_softmax(dim=1)
        for part in (received, wanted)
    )
    apart = (aim.exp() * (aim - given)).masked_fill(~counted, 0.0)
    return apart.sum() / counted.any(dim=1).sum().clamp(min=1)


def rank(significance: Tensor, mask: Tensor | None = None) -> Tensor:
    """Positions of the word-vectors, the most significant first.

    [CLS] (position 0) takes rank 0 whatever its significance or mask, word-vectors that are not real come last, and
    equal significance goes to the lower position.

    Args:
        significance: (B, T), not negative.
        mask: (B, T), true where a word-vector is real; `None` if all are.

    Returns:
        (B, T) integers: entry k of a row is the position whose rank is k.

    Example:
        >>> rank(torch.tensor([[0.1, 0.5, 0.9, 0.5]]))
        tensor([[0, 2, 1, 3]])
        >>> rank(torch.tensor([[0.1, 0.5, 0.9, 0.5]]), torch.tensor([[True, True, False, True]]))
        tensor([[0, 1, 3, 2]])
    """
    # Half precision can overflow to NaN, which would sort before [CLS].
    significance = significance.nan_to_num(nan=0.0)
    if mask is not None:
        significance = significance.masked_fill(~mask, -1.0)
    is_cls = torch.arange(significance.shape[1], device=significance.device) == 0
    return significance.masked_fill(is_cls, torch.inf).sort(dim=1, descending=True, stable=True).indices


def extract(order: Tensor, width: int, counts: Tensor | None = None) -> Tensor:
    """Positions that Extract keeps, ascending, so that position 0 is still [CLS] (paper, section 3.2).

    Args:
        order: (B, T) from `rank`.
        width: K, columns of the result: the largest number of word-vectors that an example keeps.
        counts: (B,) how many each example keeps, at most `width`; `None` if all keep `width`.

    Returns:
        (B, K) integers. An example that keeps fewer has its positions in the first `counts` columns; what the
        remaining columns hold is a position of it that is *not* kept, to be masked.

    Example:
        >>> extract(torch.tensor([[0, 3, 1, 2]]), 3)
        tensor([[0, 1, 3]])
        >>> extract(torch.tensor([[0, 3, 1, 2]]), 3, torch.tensor([2]))
        tensor([[0, 3, 1]])
    """
    # Not a slice: a traced one insists for ever that its width is below the length it was traced with.
    kept = order.index_select(1, torch.arange(width, device=order.device))
    if counts is None:
        return kept.sort(dim=1).values
    # Surplus positions are sorted as if they lay further right than any other, so they stay in their columns.
    shift = _BEYOND * (torch.arange(width, device=order.device) >= counts[:, None])
    return (kept + shift).sort(dim=1).values - shift


def soft_extract(hidden_states: Tensor, order: Tensor, rank_weights: Tensor) -> Tensor:
    """Multiply every word-vector by the weight of its rank (paper, section 3.3).

    Args:
        hidden_states: (B, T, D), after the attention's LayerNorm.
        order: (B, T) from `rank`.
        rank_weights: (B, T) from `soft_extract_weights`.

    Returns:
        (B, T, D). The gradient reaches `hidden_states` and `rank_weights`, not the ranking.

    Example:
        >>> vectors = torch.tensor([[[1.0], [10.0], [100.0]]])
        >>> soft_extract(vectors, torch.tensor([[0, 2, 1]]), torch.tensor([[1.0, 0.5, 0.1]])).flatten()
        tensor([ 1.,  1., 50.])
    """
    return hidden_states * weights_by_position(order, rank_weights).to(hidden_states.dtype)[..., None]


def weights_by_position(order: Tensor, rank_weights: Tensor) -> Tensor:
    """The weight of every word-vector, from the weight of its rank.

    Args:
        order: (B, T) from `rank`.
        rank_weights: (B, T) from `soft_extract_weights`.

    Returns:
        (B, T). The gradient reaches `rank_weights`, not the ranking.

    Example:
        >>> weights_by_position(torch.tensor([[0, 2, 1]]), torch.tensor([[1.0, 0.5, 0.1]]))
        tensor([[1.0000, 0.1000, 0.5000]])
    """
    return torch.zeros_like(rank_weights).scatter(1, order, rank_weights)


def soft_extract_weights(
    weights: Tensor,
    lengths: Tensor,
    width: int,
    unit: RetentionUnit,
    soft_extract: RetentionSoftExtract = "multiply",
) -> Tensor:
    """Weight of every rank, for examples of given lengths.

    In `"words"` rank k weighs `r_j[k]`, whatever the length (the paper). In `"fraction"` the R entries are stretched
    over the example's n ranks: rank k weighs the mean of `r_j` between `k * R / n` and `(k + 1) * R / n`, so an
    example's weights add up to the same share of its length as `r_j` of R. Where word-vectors are hidden, rank k
    takes the weight of one entry, `r_j[k * R // n]`. With weights of 1 below a whole mass and 0 from there on, as many
    ranks weigh 1 as Extract keeps, which rounds up, so a model gets used to what will be left of a short text too; a
    mean would leave a part of the last one. Not every entry is read for a short input, so this is for weights that are
    made from a mass, not learned each by itself. Rank 0, [CLS], weighs 1; so do the ranks of padding, which nobody
    reads.

    Args:
        weights: (R,), one encoder's `r_j`.
        lengths: (B,) integers, real word-vectors of each example, all at least 1.
        width: T, columns of the result.
        unit: `"words"` or `"fraction"`.
        soft_extract: `"hide"`, or another.

    Returns:
        (B, T), in the dtype of `weights`.

    Example:
        >>> r = torch.tensor([1.0, 1.0, 0.5, 0.1])
        >>> soft_extract_weights(r, torch.tensor([2]), 3, "words")
        tensor([[1., 1., 1.]])
        >>> soft_extract_weights(r, torch.tensor([2]), 3, "fraction")
        tensor([[1.0000, 0.3000, 1.0000]])
        >>> soft_extract_weights(r, torch.tensor([2]), 3, "fraction", "hide")
        tensor([[1.0000, 0.5000, 1.0000]])
    """
    ranks = torch.arange(width, device=weights.device)[None, :]
    lengths = lengths[:, None]
    last = weights.shape[0] - 1
    if unit == "words":
        by_rank = weights[ranks.clamp(max=last)].expand(lengths.shape[0], -1)
    elif soft_extract == "hide":
        by_rank = weights[(ranks * weights.shape[0] // lengths).clamp(max=last)]
    else:
        running = torch.cat([weights.new_zeros(1), weights.cumsum(0)])

        def up_to(rank: Tensor) -> tuple[Tensor, Tensor]:
            # Whole entries of `r_j` below rank * R / n, and the part of the entry that it falls into. Integers keep
            # the boundary exact: as floats, a long r_j of ones would give weights that are visibly not 1.
            boundary = rank.clamp(max=lengths) * weights.shape[0]
            entry = boundary // lengths
            return running[entry], weights[entry.clamp(max=last)] * (boundary % lengths) / lengths

        (whole, part), (next_whole, next_part) = up_to(ranks), up_to(ranks + 1)
        # Rounding may leave of nearly nothing less than nothing.
        by_rank = ((next_whole - whole + next_part - part) * lengths / weights.shape[0]).clamp(min=0.0)
    return by_rank.where((ranks > 0) & (ranks < lengths), 1.0)


@overload
def retention_count(entry: float, length: int, unit: RetentionUnit) -> int: ...
@overload
def retention_count(entry: float, length: Tensor, unit: RetentionUnit) -> Tensor: ...
def retention_count(entry: float, length: int | Tensor, unit: RetentionUnit) -> int | Tensor:
    """How many of `length` word-vectors an encoder keeps: the one function behind every count.

    Args:
        entry: the encoder's entry of the retention configuration.
        length: real word-vectors of the *original* input, at least 1; an integer, symbolic or not, or integer tensor.
        unit: `"words"` keeps `min(length, entry)`, `"fraction"` keeps `max(1, ceil(entry * length - 1e-6))`.

    Returns:
        The count, of the type of `length`.

    Example:
        >>> retention_count(8, 12, "words"), retention_count(0.25, 9, "fraction")
        (8, 3)
        >>> retention_count(0.5, torch.tensor([1, 4, 5]), "fraction")
        tensor([1, 2, 3])
    """
    if isinstance(length, Tensor):
        length = length.long()
    if unit == "words":
        wanted: int | Tensor = int(entry)
    else:
        wanted = (round(entry * _ONE) * length + (_ONE - 1 - round(_COUNT_SLACK * _ONE))) // _ONE
    if isinstance(length, Tensor):
        return length.clamp(max=wanted) if isinstance(wanted, int) else wanted.clamp(min=1)
    return torch.sym_min(length, torch.sym_max(wanted, 1))


def retention_mass(retention_weights: Tensor) -> Tensor:
    """Word-vectors' worth of every encoder: `mass(j) = sum_k r_j[k]` (paper, section 3.3).

    Args:
        retention_weights: (L, R).

    Returns:
        (L,).

    Example:
        >>> retention_mass(torch.tensor([[1.0, 1.0, 0.5], [1.0, 0.25, 0.0]]))
        tensor([2.5000, 1.2500])
    """
    return retention_weights.sum(dim=-1)


def retention_penalty(mass: Tensor) -> Tensor:
    """The term that training adds to the task's loss, times lambda: `sum_j j * mass(j)` (paper, section 3.3).

    Args:
        mass: (L,) from `retention_mass`, or its first encoders; j counts from 1.

    Returns:
        A scalar.

    Example:
        >>> retention_penalty(torch.tensor([2.5, 1.25]))
        tensor(5.)
    """
    return (mass * torch.arange(1, mass.shape[0] + 1, device=mass.device)).sum()


@torch.no_grad()
def clamp_retention_weights(retention_weights: Tensor) -> None:
    """Bring the weights back to [0, 1], in place; [CLS]'s column, which no loss but the penalty moves, back to 1.

    Args:
        retention_weights: (L, R), after an optimizer step.

    Example:
        >>> r = torch.tensor([[0.9, 1.2, -0.1]])
        >>> clamp_retention_weights(r)
        >>> r
        tensor([[1., 1., 0.]])
    """
    retention_weights.clamp_(0.0, 1.0)
    retention_weights[:, 0] = 1.0


def retention_config_from_mass(mass: Sequence[float], unit: RetentionUnit, length: int) -> list[int] | list[float]:
    """The configuration that masses stand for: `l_j = ceil(mass(j))`, at least 1, never increasing with j.

    Args:
        mass: L masses.
        unit: `"words"` returns the counts, `"fraction"` the counts divided by `length`.
        length: R, the retention length.

    Returns:
        L entries.

    Example:
        >>> retention_config_from_mass([6.2, 3.00001, 3.4, 0.0], "words", 8)
        [7, 3, 3, 1]
        >>> retention_config_from_mass([6.2, 3.00001, 3.4, 0.0], "fraction", 8)
        [0.875, 0.375, 0.375, 0.125]
    """
    counts: list[int] = []
    for encoder_mass in mass:
        count = max(1, math.ceil(encoder_mass - _MASS_SLACK))
        counts.append(min([count, *counts[-1:]]))
    return counts if unit == "words" else [count / length for count in counts]


def check_retention_config(
    config: Sequence[int | float] | None, num_encoders: int, unit: str, max_length: int | None = None
) -> None:
    """Refuse a retention configuration that cannot be run.

    Args:
        config: one entry per encoder, or `None`, which is accepted.
        num_encoders: L.
        unit: the unit of the entries.
        max_length: the longest input of the model, which no count may exceed; `None` does not check it.

    Raises:
        ValueError: with the rule, the value received and the remedy.

    Example:
        >>> check_retention_config([8, 4], 2, "words")
        >>> check_retention_config([4, 8], 2, "words")
        Traceback (most recent call last):
        ...
        ValueError: `retention_config` must not increase, got 8 for encoder 2 after 4 for encoder 1; sort it.
    """
    if unit not in get_args(RetentionUnit):
        raise ValueError(f"`retention_unit` must be one of {', '.join(get_args(RetentionUnit))}, got {unit!r}.")
    if config is None:
        return
    if isinstance(config, str) or not isinstance(config, Sequence):
        raise ValueError(f"`retention_config` must be a list with one entry per encoder, got {config!r}.")
    if len(config) != num_encoders:
        raise ValueError(
            f"`retention_config` must have one entry per encoder ({num_encoders}), got {len(config)}: {list(config)}."
        )
    for encoder, entry in enumerate(config, start=1):
        if unit == "words":
            if type(entry) is not int or entry < 1:
                raise ValueError(
                    f"`retention_config` in words must hold integers of at least 1, got {entry!r} for encoder "
                    f'{encoder}; use `retention_unit="fraction"` for shares of the input.'
                )
            if max_length is not None and entry > max_length:
                raise ValueError(
                    f"`retention_config` must not exceed the model's longest input ({max_length}), got {entry} for "
                    f"encoder {encoder}; lower it."
                )
        elif type(entry) not in (int, float) or not 0 < entry <= 1:
            raise ValueError(
                f"`retention_config` in fractions must hold numbers above 0 and at most 1, got {entry!r} for encoder "
                f'{encoder}; use `retention_unit="words"` for counts.'
            )
        if encoder > 1 and entry > config[encoder - 2]:
            raise ValueError(
                f"`retention_config` must not increase, got {entry} for encoder {encoder} after "
                f"{config[encoder - 2]} for encoder {encoder - 1}; sort it."
            )
