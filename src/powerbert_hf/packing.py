# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Padding-free inference: the word-vectors of a batch one after the other, (1, S, D), and attention over them.

What acts on each word-vector alone (embeddings, projections, LayerNorm, feed-forward network) takes packed
word-vectors as they are. Only attention has to know which of them belong together. On a CPU it sees blocks, a few
inputs of like length or a few heads of a long one, small enough for the attention probabilities to stay in the cache:
they are needed twice, for the context and for the significance. On CUDA it is torch's variable-length flash attention,
which never holds them; there the significance is the log-sum-exp of a second pass, queries and keys swapped.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .retention import attention_received, extract, rank
from .varlen import significance_from_lse, varlen_attention

# Bytes of attention probabilities that are worked on at once.
_BLOCK_BYTES = 2**21
# Word-vectors of an input that are ranked faster one by one than by the operators that rank many.
_FEW = 64
# Scores of padding that take as long as the calls for one more block.
_WASTED_SCORES = 100_000
# In half precision a CPU's matrix product is compiled for every new number of rows, which costs as much as running it;
# in float32 one of two or three rows above a multiple of four takes longer than one of the next multiple; from five to
# eight rows it does not, or by less than adding them.
_HALF_ROW_STEP, _ROW_STEP, _ENOUGH_ROWS = 16, 4, range(5, 9)


class Packed(NamedTuple):
    """Which word-vectors packed hidden states hold: those of each input in turn, inputs sorted by length."""

    lengths: list[int]
    """B numbers of word-vectors, never decreasing."""

    def starts(self) -> list[int]:
        """Where each input begins: the row of its [CLS]."""
        return [0, *accumulate(self.lengths[:-1])]


def surplus(rows: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many rows to add to `rows`, for nobody to read, because their number is a slow one."""
    if device.type != "cpu" or rows == 1 or (dtype == torch.float32 and rows in _ENOUGH_ROWS):
        return 0
    return -rows % (_ROW_STEP if dtype == torch.float32 else _HALF_ROW_STEP)


def pack(mask: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Packed, Tensor, Tensor]:
    """Where the real word-vectors of a padded batch go.

    Args:
        mask: (B, T) boolean, true where real; true at position 0.
        dtype: of the matrix products.

    Returns:
        What the packed word-vectors hold; (S,) their rows in the padded batch seen as (B * T, ...), and after them
        perhaps some that nobody reads; and (B,) the place of each input among the packed ones.
    """
    lengths = mask.sum(dim=1)
    order = lengths.argsort(stable=True)
    rows = torch.arange(mask.numel(), device=mask.device).view(mask.shape)[order]
    rows = rows[mask[order]]
    rows = _joined([rows], surplus(len(rows), dtype, mask.device))
    return Packed(lengths[order].tolist()), rows, order.argsort()


class Block(NamedTuple):
    """Neighbouring inputs, seen as a small padded batch."""

    inputs: slice
    """Which of the packed inputs these are."""
    starts: list[int]
    """Row where each begins."""
    lengths: list[int]
    """Word-vectors of each."""

    def rows(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Row of each word-vector (b, t), past an input's end that of its last one; and where that is not so."""
        starts, lengths = torch.tensor([self.starts, self.lengths], device=device)[..., None]
        steps = torch.arange(self.lengths[-1], device=device)
        real = None if self.lengths[0] == self.lengths[-1] else steps < lengths
        return starts + steps.clamp(max=lengths - 1), real

    def heads_of(self, rows: Tensor | None, *packed: Tensor) -> list[Tensor]:
        """Each (S, H, D/H) to (b * H, t, D/H); `rows` as above, or `None` for a single input."""
        if rows is None:
            return [vectors[self.starts[0] : self.starts[0] + self.lengths[0]].transpose(0, 1) for vectors in packed]
        heads, size = packed[0].shape[1:]
        of_head = (rows[:, None, :] * heads + torch.arange(heads, device=rows.device)[:, None]).flatten()
        return [vectors.view(-1, size).index_select(0, of_head).view(-1, rows.shape[1], size) for vectors in packed]


def blocks(packed: Packed, heads: int, bytes_of_a_score: int) -> Iterator[Block]:
    """Part the inputs into blocks whose attention probabilities stay in the cache and are few of padding.

    Args:
        packed: which word-vectors these are.
        heads: H.
        bytes_of_a_score: of one query, one key and one head.

    Yields:
        Blocks of one input, or of as many as fit.
    """
    lengths, starts = packed.lengths, packed.starts()
    first = real = 0
    for stop, length in enumerate(lengths):
        scores, real = (stop + 1 - first) * heads * length**2, real + heads * length**2
        if stop > first and (scores * bytes_of_a_score > _BLOCK_BYTES or scores - real > _WASTED_SCORES):
            yield Block(slice(first, stop), starts[first:stop], lengths[first:stop])
            first, real = stop, heads * length**2
    yield Block(slice(first, len(lengths)), starts[first:], lengths[first:])


def attend_all(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scale: float) -> Tensor:
    """Attention within each input, where nothing is ranked.

    Args:
        query: (S, H, D/H), or (B, H, D/H) of [CLS] alone.
        key: (S, H, D/H).
        value: (S, H, D/H).
        packed: which word-vectors these are.
        scale: factor on the scores before the softmax.

    Returns:
        The context, of the shape of `query`.
    """
    cls_only, heads = len(query) < len(key), key.shape[1]
    if query.is_cuda:
        queried = [1] * len(query) if cls_only else packed.lengths
        return varlen_attention(query, key, value, queried, packed.lengths, scale)[0]
    contexts = []
    for block in blocks(packed, heads, key.element_size()):
        rows, real = (None, None) if len(block.lengths) == 1 else block.rows(key.device)
        wanted = (key, value) if cls_only else (key, value, query)
        k, v, *rest = (vectors.unflatten(0, (-1, heads)) for vectors in block.heads_of(rows, *wanted))
        q = query[block.inputs].unsqueeze(2) if cls_only else rest[0]
        mask = None if real is None else real[:, None, None, :]
        context = scaled_dot_product_attention(q, k, v, mask, scale=scale).transpose(1, 2)
        contexts.append(context.flatten(0, 1) if cls_only or real is None else context[real])
    unread = 0 if cls_only else len(query) - sum(packed.lengths)
    return _joined(contexts, unread)


def attend_and_rank(
    query: Tensor, key: Tensor, value: Tensor, packed: Packed, counts: Sequence[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Attention within each input, and Extract: the context of the word-vectors that stay.

    Args:
        query: (S, H, D/H).
        key: (S, H, D/H).
        value: (S, H, D/H).
        packed: which word-vectors these are.
        counts: B numbers of word-vectors that stay, never decreasing.
        scale: factor on the scores before the softmax.

    Returns:
        (S', H, D/H), the context of the word-vectors that stay, and (S',) their rows among the S, ascending; at the
        end of both perhaps some that nobody reads.
    """
    if query.is_cuda:
        context, lse = varlen_attention(query, key, value, packed.lengths, packed.lengths, scale)
        received = significance_from_lse(query, key, lse, packed.lengths, scale)
        all_rows, real = Block(slice(None), packed.starts(), packed.lengths).rows(query.device)
        kept = all_rows[_stay(received[all_rows], real, counts)]
        return context[kept], kept
    heads, size = key.shape[1:]
    contexts, kept_rows = [], []
    for block in blocks(packed, heads, key.element_size()):
        rows, real = (None, None) if len(block.lengths) == 1 else block.rows(key.device)
        q, k, v = block.heads_of(rows, query, key, value)
        context, received = _attend_block(q, k, v, real, block, scale)
        if rows is None:
            place = _first(received, counts[block.inputs][0])
            contexts.append(context.index_select(1, place).transpose(0, 1))
            kept_rows.append(place + block.starts[0])
        else:
            width = rows.shape[1]
            place = _stay(received, real, counts[block.inputs]).flatten().nonzero().squeeze(1)
            # Of (b, H, t), what belongs to each that stays: (S', H).
            of_head = torch.arange(heads, device=place.device) * width
            picked = (place + place // width * ((heads - 1) * width))[:, None] + of_head
            contexts.append(context.view(-1, size).index_select(0, picked.flatten()).view(-1, heads, size))
            kept_rows.append(rows.flatten().index_select(0, place))
    unread = surplus(sum(counts), key.dtype, key.device)
    return _joined(contexts, unread), _joined(kept_rows, unread)


def _joined(parts: list[Tensor], unread: int) -> Tensor:
    """The rows of all parts, and the first one again, for nobody to read: int8 takes its range from all of them."""
    if unread:
        parts.append(parts[0][:1].expand(unread, *parts[0].shape[1:]))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend_block(
    query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, block: Block, scale: float
) -> tuple[Tensor, Tensor]:
    """From (b * H, t, D/H) the context of this shape, and the significance (b, t)."""
    (rows, width, _), inputs = query.shape, len(block.lengths)
    # All at once, but for a long input: of that, as many heads as stay in the cache.
    at_once = rows if inputs > 1 else max(1, _BLOCK_BYTES // (width * width * key.element_size()))
    contexts, received = [], []
    for first in range(0, rows, at_once):
        part = slice(first, first + at_once)
        scores = torch.baddbmm(query.new_empty(1, 1, 1), query[part], key[part].transpose(1, 2), beta=0, alpha=scale)
        if real is not None:
            # Up to the shortest, all are real.
            beyond, lowest = slice(block.lengths[0], None), torch.finfo(scores.dtype).min
            scores.unflatten(0, (inputs, -1))[..., beyond].masked_fill_(~real[:, None, None, beyond], lowest)
        attention = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        received.append(attention_received(attention.unflatten(0, (inputs, -1)), real))
        contexts.append(torch.bmm(attention.to(value.dtype), value[part]))
    if len(contexts) == 1:
        return contexts[0], received[0]
    return torch.cat(contexts), torch.stack(received).sum(dim=0)


def _first(received: Tensor, count: int) -> Tensor:
    """Extract, from the significance (1, t) of a single input: (count,) places, ascending."""
    if received.shape[1] > _FEW:
        return extract(rank(received), count)[0]
    votes = received[0].nan_to_num(nan=0.0).tolist()
    # Of equals the earlier first, as in `rank`; [CLS] before all.
    order = sorted(range(1, len(votes)), key=votes.__getitem__, reverse=True)
    return torch.tensor([0, *sorted(order[: count - 1])], device=received.device)


def _stay(received: Tensor, real: Tensor | None, counts: Sequence[int]) -> Tensor:
    """Extract, from the significance (b, t): true where a word-vector is among the first of its input by rank."""
    ranks = torch.arange(received.shape[1], device=received.device)
    first = ranks < torch.tensor(counts, device=received.device)[:, None]
    return torch.zeros_like(first).scatter_(1, rank(received, real), first)
