# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What one encoder does, for both backbones: attention that also ranks, and a rule for the word-vectors it receives.

An encoder receives and hands on two things: `hidden_states`, and a [`Kept`] (padded) or [`Packed`] that says which
word-vectors these are. Its rule says what becomes of them: `None` (keep all), [`Extract`] or [`SoftExtract`].
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from .packing import Packed, attend_all, attend_and_rank
from .retention import (
    attention_received,
    extract,
    rank,
    ranking_divergence,
    significance,
    soft_extract,
    weights_by_position,
)


class Kept(NamedTuple):
    """Which word-vectors the hidden states hold."""

    mask: Tensor | None
    """(B, T), true where real; `None` if all are."""
    positions: Tensor | None
    """(B, T), the position in the input of each, -1 where not real; `None` if nobody asked."""
    weights: Tensor | None = None
    """(B, T) in [0, 1], how much Soft-extract has left of each; `None` is all of it."""
    wanted: Tensor | None = None
    """(B, T), the significance that a teacher gives each; `None` without one."""
    apart: tuple[Tensor, ...] = ()
    """How far from that the encoders so far have ranked, a scalar for each that did."""

    def divergence(self, received: Tensor) -> Tensor | None:
        """How far the significance (B, T) of an encoder is from what is wanted, see `retention.ranking_divergence`.

        `None` where nothing is wanted.

        [CLS] stays whatever its rank, so it does not count, and nor do word-vectors of which nothing is left.
        """
        if self.wanted is None:
            return None
        counted = torch.arange(received.shape[1], device=received.device).expand(received.shape) > 0
        if self.mask is not None:
            counted = counted & self.mask
        if self.weights is None:
            return ranking_divergence(received, self.wanted, counted)
        # Of what is partly left, as large a part of its attention is wanted.
        weights = self.weights.detach()
        return ranking_divergence(received, self.wanted * weights, counted & (weights > 0))

    def extract(self, order: Tensor, rule: "Extract", *vectors: Tensor) -> tuple["Kept", list[Tensor]]:
        """Keep what `rule` says of the word-vectors, and of each (B, T, D) in `vectors`."""
        kept = extract(order, rule.width, rule.counts)
        mask, positions, weights, wanted = (
            None if part is None else part.gather(1, kept)
            for part in (self.mask, self.positions, self.weights, self.wanted)
        )
        places = torch.arange(rule.width, device=kept.device)
        if mask is not None:
            # What stays at position 0 is attended to from here on, whatever its mask said.
            mask = mask | (places == 0)
        if rule.counts is not None:
            filled = places < rule.counts[:, None]
            mask = filled if mask is None else mask & filled
            positions = None if positions is None else positions.where(filled, -1)
        # Whole rows, not element by element: cheaper in ONNX.
        example = torch.arange(kept.shape[0], device=kept.device)[:, None]

        def rows(part: Tensor) -> Tensor:
            chosen = (kept + example * part.shape[1]).flatten()
            return part.flatten(0, 1).index_select(0, chosen).unflatten(0, kept.shape)

        return Kept(mask, positions, weights, wanted, self.apart), [rows(part) for part in vectors]

    def hide(self, order: Tensor, rule: "SoftExtract") -> "Kept":
        """Leave less of the word-vectors, as `rule` says; what an encoder has removed, no later one brings back."""
        left = weights_by_position(order, rule.rank_weights)
        return self._replace(weights=left if self.weights is None else torch.minimum(left, self.weights))


class Extract(NamedTuple):
    """Rule of an encoder in hard mode: the most significant word-vectors go on."""

    width: int
    """K, the most that an example keeps."""
    counts: Tensor | None
    """(B,), how many each example keeps; `None` if all keep `width`."""
    cls_only: bool = False
    """Whether [CLS] alone goes on and nobody asked for attentions, which needs no ranking and a single query."""

    def kept(self, packed: Packed) -> list[int]:
        """How many word-vectors each of the packed inputs keeps."""
        return [self.width] * len(packed.lengths) if self.counts is None else self.counts.tolist()


class SoftExtract(NamedTuple):
    """Rule of an encoder in soft mode: all go on, multiplied by the weight of their rank or hidden by it."""

    rank_weights: Tensor
    """(B, T)."""
    hide: bool
    """Whether they are hidden from later attention; else they are multiplied, as in the paper."""


class Ranking(NamedTuple):
    """What attention says of the word-vectors that an encoder received."""

    order: Tensor
    """(B, T), the positions by rank; of packed ones the rows that stay."""
    apart: Tensor | None = None
    """A scalar, see `Kept.divergence`; `None` without a teacher."""


Rule: TypeAlias = Extract | SoftExtract | None
AnyKept: TypeAlias = Kept | Packed


class RankingAttentionMixin:
    """Self-attention of either host that also ranks the word-vectors, with any attention implementation."""

    config: Any
    training: bool
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_head_size: int
    scaling: float

    def heads(self, projection: nn.Module, states: Tensor) -> Tensor:
        """(..., D) projected, to (..., H, D / H)."""
        return projection(states).unflatten(-1, (-1, self.attention_head_size))

    def attend(
        self,
        hidden_states: Tensor,
        attention_mask: Any,
        kept: AnyKept,
        rule: Rule,
        dropout: float,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Ranking | None]:
        """`BertSelfAttention.forward`, the first half of `AlbertAttention.forward` (transformers 5.23), and a rank.

        The significance comes from queries and keys, or, for free, from eager's weights where neither dropout nor
        rounding has touched them; sdpa and flash return none, flex something else.

        Args:
            hidden_states: (B, T, D).
            attention_mask: what the attention implementation takes, for T keys and the queries that `rule` leaves.
            kept: which word-vectors these are.
            rule: what this encoder does with them.
            dropout: of the attention weights, while training.
            kwargs: for the attention implementation.

        Returns:
            The context (B, Q, D), the attention weights (B, H, Q, T) where the implementation has them, and the
            ranking where `rule` needs it. Q is 1 where the rule keeps [CLS] alone, else T.
        """
        if isinstance(kept, Packed):
            return self.attend_packed(hidden_states, kept, rule)
        cls_only = isinstance(rule, Extract) and rule.cls_only
        queried = hidden_states[:, :1] if cls_only else hidden_states
        query = self.heads(self.query, queried).transpose(1, 2)
        key, value = (self.heads(part, hidden_states).transpose(1, 2) for part in (self.key, self.value))
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        ranking = None
        if cls_only:
            ranking = Ranking(torch.zeros(queried.shape[:2], dtype=torch.long, device=queried.device))
        elif rule is not None:
            exact = not self.training and weights is not None and weights.dtype == torch.float32
            left = None if kept.weights is None else kept.weights.detach()
            # Only what a teacher is compared with has a gradient.
            with torch.set_grad_enabled(kept.wanted is not None and torch.is_grad_enabled()):
                if exact and self.config._attn_implementation == "eager":
                    received = attention_received(weights, kept.mask, left)
                else:
                    received = significance(query, key, kept.mask, self.scaling, left)
            ranking = Ranking(rank(received.detach(), kept.mask), kept.divergence(received))
        return context.reshape(*queried.shape[:-1], -1).contiguous(), weights, ranking

    def significance_of(self, hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
        """What `attend` ranks by where nothing is hidden, for whoever wants to look at it.

        Args:
            hidden_states: (B, T, D), what the encoder receives.
            mask: (B, T), true where real; `None` if all are.

        Returns:
            (B, T), see `retention.significance`.
        """
        query, key = (self.heads(part, hidden_states).transpose(1, 2) for part in (self.query, self.key))
        return significance(query, key, mask, self.scaling)

    def attend_packed(self, hidden_states: Tensor, packed: Packed, rule: Rule) -> tuple[Tensor, None, Ranking | None]:
        """The same for packed word-vectors (1, S, D), without gradient: context of those that stay, and their rows."""
        states = hidden_states[0]
        rows = None
        if isinstance(rule, Extract) and rule.cls_only:
            rows = torch.tensor(packed.starts(), device=states.device)
        if packed.lengths[-1] == 1:
            # A word-vector by itself attends to itself, whatever the scores.
            context = self.value(states if rows is None else states[rows])
            return context[None], None, None if rows is None else Ranking(rows)
        query = self.heads(self.query, states if rows is None else states[rows])
        key, value = self.heads(self.key, states), self.heads(self.value, states)
        if isinstance(rule, Extract) and rows is None:
            context, rows = attend_and_rank(query, key, value, packed, rule.kept(packed), self.scaling)
        else:
            context = attend_all(query, key, value, packed, self.scaling)
        return context.flatten(1)[None], None, None if rows is None else Ranking(rows)


def ranking_attention(encoder: nn.Module) -> Any:
    """The [`RankingAttentionMixin`] of an encoder of either host."""
    return next(module for module in encoder.modules() if isinstance(module, RankingAttentionMixin))


def retain(
    project: Callable[[Tensor, Tensor], Tensor],
    context: Tensor,
    residual: Tensor,
    ranking: Ranking | None,
    kept: AnyKept,
    rule: Rule,
) -> tuple[Tensor, AnyKept]:
    """From the context to the word-vectors that enter the feed-forward network.

    `project` is the rest of the host's attention: output projection, residual, LayerNorm. It acts on each word-vector
    alone, so Extract comes before it and saves its work; Soft-extract comes after it, as in the paper.

    Args:
        project: takes context and residual, both (B, K, D), to (B, K, D).
        context: (B, Q, D) from `attend`.
        residual: (B, T, D), the encoder's input.
        ranking: from `attend`.
        kept: which word-vectors the encoder received.
        rule: what to do with them.

    Returns:
        (B, K, D), and which word-vectors these are.
    """
    if rule is None or ranking is None:
        return project(context, residual), kept
    order = ranking.order
    if isinstance(kept, Packed):
        # Soft mode trains, and only inference packs.
        return project(context, residual.index_select(1, order)), Packed(cast(Extract, rule).kept(kept))
    if ranking.apart is not None:
        kept = kept._replace(apart=(*kept.apart, ranking.apart))
    if isinstance(rule, SoftExtract):
        if not rule.hide:
            return soft_extract(project(context, residual), order, rule.rank_weights), kept
        return project(context, residual), kept.hide(order, rule)
    kept, (context, residual) = kept.extract(order, rule, context, residual)
    return project(context, residual), kept


def feed_forward(forward: Callable[[Tensor], Tensor], chunk_size: int, hidden_states: Tensor) -> Tensor:
    """Upstream's `apply_chunking_to_forward`, for every K: how many word-vectors are left, the user cannot know.

    Args:
        forward: takes (B, K, D) to (B, K, D), each word-vector alone.
        chunk_size: how many word-vectors to take at a time, which saves memory; 0 takes all.
        hidden_states: (B, K, D).

    Returns:
        (B, K, D).
    """
    if chunk_size == 0:
        return forward(hidden_states)
    return torch.cat([forward(chunk) for chunk in hidden_states.split(chunk_size, dim=1)], dim=1)
