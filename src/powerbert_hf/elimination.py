# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The word-vectors' way through the encoders, for both backbones: attention that also ranks, rules, the loop.

The encoders hand two things on: `hidden_states`, and a [`Kept`] (padded) or [`Packed`] that says which word-vectors
these are. A rule tells each encoder what to do with them: `None` (keep all), [`Extract`] or [`SoftExtract`]. Every
forward makes its rules anew from the configuration, so a model keeps no state between calls, and ALBERT can share one
layer over all depths.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, is_tracing, logging

from .packing import Packed, attend_all, attend_and_rank
from .retention import (
    RetentionMode,
    attention_received,
    extract,
    rank,
    retention_count,
    retention_mass,
    retention_penalty,
    significance,
    soft_extract,
    soft_extract_weights,
)

logger = logging.get_logger(__name__)


class Kept(NamedTuple):
    """Which word-vectors the hidden states hold."""

    mask: Tensor | None
    """(B, T), true where real; `None` if all are."""
    positions: Tensor | None
    """(B, T), the position in the input of each, -1 where not real; `None` if nobody asked."""

    def extract(self, order: Tensor, rule: "Extract", *vectors: Tensor) -> tuple["Kept", list[Tensor]]:
        """Keep what `rule` says of the word-vectors, and of each (B, T, D) in `vectors`."""
        kept = extract(order, rule.width, rule.counts)
        mask, positions = [None if part is None else part.gather(1, kept) for part in self]
        if rule.counts is not None:
            filled = torch.arange(rule.width, device=kept.device) < rule.counts[:, None]
            mask = filled if mask is None else mask & filled
            positions = None if positions is None else positions.where(filled, -1)
        # Whole rows, not element by element: cheaper in ONNX.
        example = torch.arange(kept.shape[0], device=kept.device)[:, None]

        def rows(part: Tensor) -> Tensor:
            chosen = (kept + example * part.shape[1]).flatten()
            return part.flatten(0, 1).index_select(0, chosen).unflatten(0, kept.shape)

        return Kept(mask, positions), [rows(part) for part in vectors]


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
    """Rule of an encoder in soft mode: all go on, each times the weight of its rank."""

    rank_weights: Tensor
    """(B, T)."""


Rule: TypeAlias = Extract | SoftExtract | None
AnyKept: TypeAlias = Kept | Packed


@dataclass
class PoWERModelOutput(BaseModelOutputWithPooling):
    """`BaseModelOutputWithPooling` and what the elimination adds.

    Args:
        kept_positions (`tuple[Tensor]`, *optional*, with `output_kept_positions=True`):
            Per encoder (B, l_j): positions in the input of the word-vectors that leave it, ascending, -1 where an
            example keeps fewer. `hidden_states[j]` and `attentions[j]` shrink alike.
        retention_penalty (`Tensor`, *optional*, in soft mode):
            `sum_j j * mass(j)`.
    """

    kept_positions: tuple[Tensor, ...] | None = None
    retention_penalty: Tensor | None = None


class RankingAttentionMixin:
    """Self-attention of either host that also ranks the word-vectors, with any attention implementation."""

    config: Any
    training: bool
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_head_size: int
    scaling: float

    def attend(
        self,
        hidden_states: Tensor,
        attention_mask: Any,
        kept: AnyKept,
        rule: Rule,
        dropout: float,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
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
            positions by rank (B, T) where `rule` needs them. Q is 1 where the rule keeps [CLS] alone, else T.
        """
        if isinstance(kept, Packed):
            return self.attend_packed(hidden_states, kept, rule)
        cls_only = isinstance(rule, Extract) and rule.cls_only
        queried = hidden_states[:, :1] if cls_only else hidden_states

        def heads(projection: nn.Module, states: Tensor) -> Tensor:
            return projection(states).view(*states.shape[:-1], -1, self.attention_head_size).transpose(1, 2)

        query = heads(self.query, queried)
        key, value = heads(self.key, hidden_states), heads(self.value, hidden_states)
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
        order = None
        if cls_only:
            order = torch.zeros(queried.shape[:2], dtype=torch.long, device=queried.device)
        elif rule is not None:
            exact = not self.training and weights is not None and weights.dtype == torch.float32
            if exact and self.config._attn_implementation == "eager":
                received = attention_received(weights, kept.mask)
            else:
                received = significance(query, key, kept.mask, self.scaling)
            order = rank(received, kept.mask)
        return context.reshape(*queried.shape[:-1], -1).contiguous(), weights, order

    def attend_packed(self, hidden_states: Tensor, packed: Packed, rule: Rule) -> tuple[Tensor, None, Tensor | None]:
        """The same for packed word-vectors (1, S, D), without gradient: context of those that stay, and their rows."""
        states = hidden_states[0]
        rows = None
        if isinstance(rule, Extract) and rule.cls_only:
            rows = torch.tensor(packed.starts(), device=states.device)

        def heads(projection: nn.Module, states: Tensor) -> Tensor:
            return projection(states).unflatten(-1, (-1, self.attention_head_size))

        query = heads(self.query, states if rows is None else states[rows])
        key, value = heads(self.key, states), heads(self.value, states)
        if isinstance(rule, Extract) and rows is None:
            context, rows = attend_and_rank(query, key, value, packed, rule.kept(packed), self.scaling)
        else:
            context = attend_all(query, key, value, packed, self.scaling)
        return context.flatten(1)[None], None, rows


def retain(
    project: Callable[[Tensor, Tensor], Tensor],
    context: Tensor,
    residual: Tensor,
    order: Tensor | None,
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
        order: (B, T) from `attend`.
        kept: which word-vectors the encoder received.
        rule: what to do with them.

    Returns:
        (B, K, D), and which word-vectors these are.
    """
    if rule is None or order is None:
        return project(context, residual), kept
    if isinstance(rule, SoftExtract):
        return soft_extract(project(context, residual), order, rule.rank_weights), kept
    if isinstance(kept, Packed):
        return project(context, residual.index_select(1, order)), Packed(rule.kept(kept))
    kept, (context, residual) = kept.extract(order, rule, context, residual)
    return project(context, residual), kept


def warn_if_left_out(penalty: Tensor, weights: Tensor) -> None:
    """Warn, once, when a backward pass trains the retention weights without the penalty.

    Args:
        penalty: scalar, computed from `weights`.
        weights: (L, R), not a leaf: all gradients of one forward meet in it, that of the penalty among them.
    """
    arrived: list[Tensor] = []

    def take(gradient: Tensor | None) -> None:
        # Through DDP, an output that the loss leaves out gets `None`.
        if gradient is not None:
            arrived.append(gradient)

    def look(_: Tensor) -> None:
        if not arrived:
            logger.warning_once(
                "The retention weights of a model in soft mode are trained without their penalty, so nothing drives "
                "them down. `PoWERTrainer` adds it, keeps the weights in [0, 1] and gives them a learning rate of "
                "their own; the stock `Trainer` does none of these. In a loop of your own, add "
                "`outputs.retention_penalty`, times lambda, to the loss, and call "
                "`retention.clamp_retention_weights` after each step."
            )

    penalty.register_hook(take)
    weights.register_hook(look)


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


class RetentionEncoderMixin:
    """The way of the word-vectors through all encoders of either host."""

    config: Any
    training: bool
    retention_weights: nn.Parameter | None
    register_parameter: Callable[[str, nn.Parameter | None], None]

    def add_retention_weights(self) -> None:
        """Create `r` (L, R) in soft mode. In fp32: in bf16 five hundred Adam steps of 5e-4 leave it at 1."""
        weights = None
        if self.config.active_retention_mode == "soft":
            weights = nn.Parameter(
                torch.ones(self.config.num_encoders, self.config.retention_length, dtype=torch.float32)
            )
            # The model's `post_init` collects it.
            self._keep_in_fp32_modules_strict = {"retention_weights"}
        self.register_parameter("retention_weights", weights)

    def encoders(self) -> Iterable[nn.Module]:
        """The L encoders in order; ALBERT's is the same module again and again."""
        raise NotImplementedError

    def rules(
        self,
        mode: RetentionMode,
        weights: Tensor | None,
        lengths: Tensor | None,
        width: int,
        cls_only: bool,
        all_queries: bool = False,
    ) -> Iterator[Rule]:
        """What each encoder does with its word-vectors.

        Args:
            mode: the resolved one.
            weights: `r` (L, R), in soft mode.
            lengths: (B,), real word-vectors of each input; `None`, but not in soft mode, if all fill the width.
            width: T of the input.
            cls_only: whether only [CLS] is read after the last encoder.
            all_queries: whether attentions are asked for, which have a row per word-vector that enters.
        """
        unit = self.config.retention_unit
        last = self.config.num_encoders - 1
        # A traced graph would be tied to what a width is compared with.
        tracing = is_tracing() and width > 1
        if mode == "soft" and weights is None:
            raise ValueError(
                "A model in soft mode needs retention weights, got none: it was built in another mode; load it with "
                '`retention_mode="soft"`.'
            )
        previous = None
        for encoder in range(self.config.num_encoders):
            if mode == "off":
                yield None
            elif cls_only and encoder == last:
                yield Extract(1, None, not all_queries)
            elif mode == "soft" and weights is not None and lengths is not None:
                yield SoftExtract(soft_extract_weights(weights[encoder], lengths, width, unit))
            else:
                entry = self.config.retention_config[encoder]
                kept = retention_count(entry, width, unit)
                one = unit == "words" and entry == 1 if tracing else kept == 1
                if entry == previous or (not tracing and kept == width):
                    yield None
                elif one:
                    yield Extract(1, None, not all_queries)
                else:
                    kept = torch.sym_max(kept, 2) if tracing else kept
                    yield Extract(kept, None if lengths is None else retention_count(entry, lengths, unit))
                previous = entry

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        cls_only: bool = False,
        output_kept_positions: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PoWERModelOutput:
        """`BertEncoder.forward`, `AlbertTransformer.forward` (transformers 5.23), with a mask and a rule per encoder.

        Args:
            hidden_states: (B, T, D), the embeddings.
            attention_mask: (B, T), nonzero where real; `None` if all are.
            cls_only: whether only [CLS] is read of the result.
            output_kept_positions: whether to return which word-vectors leave each encoder.
            kwargs: for the attention implementation.

        Raises:
            ValueError: for a mask that is not (B, T), or for soft mode without retention weights.
        """
        batch_size, width = hidden_states.shape[:2]
        mode = self.config.active_retention_mode
        mask, lengths, positions = attention_mask, None, None
        if mode != "off" or output_kept_positions:
            if mask is not None and mask.dim() != 2:
                raise ValueError(
                    "`attention_mask` must have shape (batch, length) to eliminate word-vectors, got "
                    f"{tuple(mask.shape)}; pass the tokenizer's mask."
                )
            if mask is not None:
                mask = mask.to(hidden_states.device, torch.bool)
                if not is_tracing() and mask.all():
                    mask = None
            elif is_tracing():
                mask = torch.ones(batch_size, width, dtype=torch.bool, device=hidden_states.device)
            if mask is not None:
                # Position 0 stays whatever its mask says, so it counts.
                lengths = mask.sum(dim=1) + ~mask[:, 0]
            elif mode == "soft":
                lengths = torch.full((batch_size,), width, device=hidden_states.device)
            if output_kept_positions:
                positions = torch.arange(width, device=hidden_states.device).expand(batch_size, -1)
                if mask is not None:
                    positions = positions.where(mask | (positions == 0), -1)
        if mask is not None and mode == "hard" and torch.compiler.is_exporting():
            # torch asks of every size whether it is 1, and ties the graph to the answer. It is no for every length if
            # one more word-vector joins that is not real, and if two at least leave each encoder (see `rules`).
            mask = nn.functional.pad(mask, (0, 1))
            hidden_states = nn.functional.pad(hidden_states, (0, 0, 0, 1))
            positions = None if positions is None else nn.functional.pad(positions, (0, 1), value=-1)

        weights: Tensor | None = self.retention_weights if mode == "soft" else None
        penalty = None
        if weights is not None:
            # In float32 whatever the model was cast to, and no leaf, so that the gradients of a forward meet in it.
            weights = weights.float().view_as(weights)
            penalty = retention_penalty(retention_mass(weights[:-1] if cls_only else weights))
            if self.training and penalty.requires_grad and not is_tracing():
                warn_if_left_out(penalty, weights)

        kept, kept_positions = Kept(mask, positions), []
        all_queries = kwargs.get("output_attentions", self.config.output_attentions)
        rules = self.rules(mode, weights, lengths, width, cls_only, all_queries)
        backend_mask = mask_made_for = None
        for encoder, rule in zip(self.encoders(), rules, strict=True):
            queried = hidden_states[:, :1] if isinstance(rule, Extract) and rule.cls_only else hidden_states
            if mask_made_for is not kept or queried is not hidden_states:
                backend_mask = create_bidirectional_mask(
                    config=self.config,
                    inputs_embeds=queried,
                    attention_mask=kept.mask,
                    encoder_hidden_states=hidden_states,
                )
                mask_made_for = kept
            # All positional: gradient checkpointing sees only these, and the hooks take hidden states from the first.
            hidden_states, kept = encoder(hidden_states, backend_mask, kept, rule, **kwargs)
            kept_positions.append(kept.positions)

        return PoWERModelOutput(
            last_hidden_state=hidden_states,
            kept_positions=tuple(kept_positions) if output_kept_positions else None,
            retention_penalty=penalty,
        )

    def forward_packed(self, hidden_states: Tensor, packed: Packed) -> Tensor:
        """The same for packed embeddings, (1, S, D), if only [CLS] is read of the result: (B, 1, D)."""
        mode, lengths = self.config.active_retention_mode, torch.tensor(packed.lengths)
        rules = self.rules(mode, None, lengths, packed.lengths[-1], cls_only=True)
        for encoder, rule in zip(self.encoders(), rules, strict=True):
            hidden_states, packed = encoder(hidden_states, None, packed, rule)
        return hidden_states[0, packed.starts()][:, None]
