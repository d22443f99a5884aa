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


class Packed(NamedTuple):
    """Which word-vectors packed hidden states hold: those of each input in turn, inputs sorted by length."""

    lengths: list[int]
    """B numbers of word-vectors, never decreasing."""

    def starts(self) -> list[int]:
        """Where each input begins: the row of its [CLS]."""
        return [0, *accumulate(self.lengths[:-1])]


def pack(mask: Tensor) -> tuple[Packed, Tensor, Tensor]:
    """Where the real word-vectors of a padded batch go.

    Args:
        mask: (B, T) boolean, true where real; true at position 0.

    Returns:
        What the packed word-vectors hold; their rows in the padded batch seen as (B * T, ...); and (B,) the place of
        each input among the packed ones.
    """
    lengths = mask.sum(dim=1)
    order = lengths.argsort(stable=True)
    rows = torch.arange(mask.numel(), device=mask.device).view(mask.shape)[order]
    return Packed(lengths[order].tolist()), rows[mask[order]], order.argsort()


class Block(NamedTuple):
    """Neighbouring inputs, seen as a small padded batch."""

    inputs: slice
    """Which of the packed inputs these are."""
    rows: Tensor
    """(b, t) row of each word-vector; past the end of an input that of its last one."""
    real: Tensor | None
    """(b, t), false past the end of an input; `None` if all have one length."""

    @classmethod
    def of(cls, inputs: slice, lengths: Sequence[int], starts: Sequence[int], device: torch.device) -> "Block":
        """Some of the packed inputs, whose lengths and starts are given."""
        own = torch.tensor(lengths[inputs], device=device)[:, None]
        first = torch.tensor(starts[inputs], device=device)[:, None]
        steps = torch.arange(lengths[inputs][-1], device=device)
        alike = lengths[inputs][0] == lengths[inputs][-1]
        return cls(inputs, first + steps.clamp(max=own - 1), None if alike else steps < own)

    def heads_of(self, vectors: Tensor) -> Tensor:
        """(S, H, D/H) to (b * H, t, D/H)."""
        heads = vectors.shape[1]
        if len(self.rows) == 1:
            return vectors[self.rows[0, 0] : self.rows[0, -1] + 1].transpose(0, 1)
        rows = self.rows[:, None, :] * heads + torch.arange(heads)[:, None]
        return vectors.flatten(0, 1).index_select(0, rows.flatten()).view(-1, rows.shape[2], vectors.shape[2])


def blocks(packed: Packed, bytes_of_a_score: int) -> Iterator[Block]:
    """Part the inputs into blocks whose attention probabilities stay in the cache, or of one input.

    Args:
        packed: which word-vectors these are.
        bytes_of_a_score: of the scores of one query and one key, all heads.
    """
    lengths, starts = packed.lengths, packed.starts()
    first = 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or (stop + 1 - first) * lengths[stop] ** 2 * bytes_of_a_score > _BLOCK_BYTES:
            yield Block.of(slice(first, stop), lengths, starts, torch.device("cpu"))
            first = stop


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
    for block in blocks(packed, heads * key.element_size()):
        q = query[block.inputs].unsqueeze(2) if cls_only else block.heads_of(query).unflatten(0, (-1, heads))
        k, v = (block.heads_of(vectors).unflatten(0, (-1, heads)) for vectors in (key, value))
        mask = None if block.real is None else block.real[:, None, None, :]
        context = scaled_dot_product_attention(q, k, v, mask, scale=scale).transpose(1, 2)
        contexts.append(context.flatten(0, 1) if cls_only or block.real is None else context[block.real])
    return torch.cat(contexts)


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
        (S', H, D/H), the context of the word-vectors that stay, and (S',) their rows among the S, ascending.
    """
    if query.is_cuda:
        context, lse = varlen_attention(query, key, value, packed.lengths, packed.lengths, scale)
        received = significance_from_lse(query, key, lse, packed.lengths, scale)
        block = Block.of(slice(None), packed.lengths, packed.starts(), query.device)
        owner, position = _stay(block, received[block.rows], counts)
        rows = block.rows[owner, position]
        return context[rows], rows
    heads, size = key.shape[1:]
    contexts, kept = [], []
    for block in blocks(packed, heads * key.element_size()):
        context, received = _attend_block(block, query, key, value, scale)
        owner, position = _stay(block, received, counts[block.inputs])
        of_head = owner[:, None] * heads + torch.arange(heads)  # (S', H)
        picked = of_head * block.rows.shape[1] + position[:, None]
        contexts.append(context.index_select(0, picked.flatten()).view(-1, heads, size))
        kept.append(block.rows[owner, position])
    return torch.cat(contexts), torch.cat(kept)


def _stay(block: Block, received: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Extract on a block, from the significance (b, t): of which input, and where in it, each kept one is, (S',)."""
    width, device = counts[-1], received.device
    own = None if counts[0] == width else torch.tensor(counts, device=device)
    position = extract(rank(received, block.real), width, own)  # (b, K)
    owner = torch.arange(len(position), device=device)[:, None].expand_as(position)
    if own is None:
        return owner.flatten(), position.flatten()
    filled = torch.arange(width, device=device) < own[:, None]
    return owner[filled], position[filled]


def _attend_block(block: Block, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The context (b * H * t, D/H), and the significance (b, t)."""
    (inputs, width), heads = block.rows.shape, key.shape[1]
    q, k, v = (block.heads_of(vectors) for vectors in (query, key, value))
    # All at once, but for a long input: of that, as many heads as stay in the cache.
    at_once = len(q) if inputs > 1 else max(1, _BLOCK_BYTES // (width * width * key.element_size()))
    context = q.new_empty(q.shape)
    received = torch.zeros(inputs, width, dtype=torch.float32)
    for first in range(0, len(q), at_once):
        part = slice(first, first + at_once)
        scores = torch.baddbmm(q.new_empty(1, 1, 1), q[part], k[part].transpose(1, 2), beta=0, alpha=scale)
        if block.real is not None:
            scores.unflatten(0, (inputs, heads)).masked_fill_(
                ~block.real[:, None, None, :], torch.finfo(scores.dtype).min
            )
        attention = scores.softmax(dim=-1, dtype=torch.float32)
        received += attention_received(attention.unflatten(0, (inputs, -1)), block.real)
        torch.bmm(attention.to(v.dtype), v[part], out=context[part])
    return context.view(-1, context.shape[-1]), received
