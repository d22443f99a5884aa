# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The word-vectors' way through all encoders, for both backbones: a mask and a rule for each, and the loop.

Every forward makes its rules anew from the configuration, so a model keeps no state between calls, and ALBERT can
share one layer over all depths.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, is_tracing, logging

from .encoder import Extract, Kept, Rule, SoftExtract, ranking_attention
from .packing import Packed
from .retention import (
    RetentionMode,
    hiding_bias,
    retention_count,
    retention_mass,
    retention_penalty,
    soft_extract_weights,
)

logger = logging.get_logger(__name__)


@dataclass
class PoWERModelOutput(BaseModelOutputWithPooling):
    """`BaseModelOutputWithPooling` and what the elimination adds.

    Args:
        kept_positions (`tuple[Tensor]`, *optional*, with `output_kept_positions=True`):
            Per encoder (B, K), where K is the most that an example keeps: positions in the input of the word-vectors
            that leave it, ascending, -1 where an example keeps fewer. `hidden_states[j + 1]` has as many;
            `attentions[j]` has a row and a column for each that enters.
        retention_penalty (`Tensor`, *optional*, in soft mode):
            `sum_j j * mass(j)`.
        ranking_divergence (`Tensor`, *optional*, with `wanted_significance`):
            The mean over the encoders that rank, see `retention.ranking_divergence`.
    """

    kept_positions: tuple[Tensor, ...] | None = None
    retention_penalty: Tensor | None = None
    ranking_divergence: Tensor | None = None


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


def at_least_two(kept: Any, width: Any) -> Any:
    """The width that a traced encoder leaves, as each way of tracing takes it.

    Args:
        kept: the width by the count; symbolic, or for torch.jit a tensor.
        width: T, what `kept` cannot exceed.
    """
    if isinstance(kept, Tensor):
        return kept.clamp(min=2)
    kept = torch.sym_max(kept, 2)
    if torch.compiler.is_exporting():
        # torch compares sizes with each other, of a formula in T cannot tell the outcome for every T, and then refuses
        # a `Dim` with a name. Of a number that is read from a tensor it knows what is checked here, and no more.
        kept = torch.scalar_tensor(kept, dtype=torch.long).item()
        torch._check(kept >= 2)
        torch._check(kept <= width + 1)
    return kept


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

    def _ruled(self, rules: Iterator[Rule]) -> Iterable[tuple[nn.Module, Rule]]:
        """Each encoder with its rule; in off mode upstream takes as many as there are, too.

        Raises:
            ValueError: for another number of encoders than the configuration's.
        """
        encoders, wanted = list(self.encoders()), self.config.num_encoders
        if self.config.active_retention_mode != "off" and len(encoders) != wanted:
            raise ValueError(
                f"A model must have as many encoders as its configuration says, {wanted}, got {len(encoders)}; set "
                "`config.num_hidden_layers`, and the retention configuration anew."
            )
        return zip(encoders, rules, strict=False)

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
        if not is_tracing():
            # Whoever sets a field of the configuration is told here what `set_retention` would have said.
            self.config.validate_retention()
        how = self.config.retention_soft_extract
        if mode == "off":
            yield from repeat(None)
        previous, left = None, width
        for encoder in range(self.config.num_encoders):
            if cls_only and encoder == last:
                yield Extract(1, None, not all_queries)
            elif mode == "soft" and weights is not None and lengths is not None:
                rank_weights = soft_extract_weights(weights[encoder], lengths, width, unit, how)
                yield SoftExtract(rank_weights, how == "hide")
            else:
                entry = self.config.retention_config[encoder]
                kept = retention_count(entry, width, unit)
                one = unit == "words" and entry == 1 if tracing else kept == 1
                # Of inputs of unequal length, one may lose word-vectors where the longest keeps all that it has left.
                if entry == previous or (not tracing and kept == (left if lengths is None else width)):
                    yield None
                elif one:
                    yield Extract(1, None, not all_queries)
                else:
                    kept = at_least_two(kept, width) if tracing else kept
                    yield Extract(kept, None if lengths is None else retention_count(entry, lengths, unit))
                previous, left = entry, kept

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        cls_only: bool = False,
        output_kept_positions: bool = False,
        wanted_significance: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PoWERModelOutput:
        """`BertEncoder.forward`, `AlbertTransformer.forward` (transformers 5.23), with a mask and a rule per encoder.

        Args:
            hidden_states: (B, T, D), the embeddings.
            attention_mask: (B, T), nonzero where real; `None` if all are.
            cls_only: whether only [CLS] is read of the result.
            output_kept_positions: whether to return which word-vectors leave each encoder.
            wanted_significance: (B, T), of a teacher, see [`PoWERModelOutput`].
            kwargs: for the attention implementation.

        Raises:
            ValueError: where word-vectors are eliminated or positions asked for, for a mask that is not (B, T), a
                configuration that does not fit the model, soft mode without retention weights, or an attention
                implementation that cannot hide what soft mode hides.
        """
        width = hidden_states.shape[1]
        mode = self.config.active_retention_mode
        mask, lengths, positions = attention_mask, None, None
        if mode != "off" or output_kept_positions:
            mask, lengths = self._real(hidden_states, attention_mask, mode)
        if output_kept_positions:
            positions = torch.arange(width, device=hidden_states.device).expand(hidden_states.shape[0], -1)
            if mask is not None:
                positions = positions.where(mask | (positions == 0), -1)
        if mask is not None and mode == "hard" and torch.compiler.is_exporting():
            # torch asks of every size whether it is 1, and ties the graph to the answer. It is no for every length if
            # one more word-vector joins that is not real, and if two at least leave each encoder (see `rules`).
            mask = nn.functional.pad(mask, (0, 1))
            hidden_states = nn.functional.pad(hidden_states, (0, 0, 0, 1))
            positions = None if positions is None else nn.functional.pad(positions, (0, 1), value=-1)

        weights, penalty = self._learned(cls_only) if mode == "soft" else (None, None)
        kept, kept_positions = Kept(mask, positions, wanted=wanted_significance), []
        all_queries = kwargs.get("output_attentions", self.config.output_attentions)
        rules = self.rules(mode, weights, lengths, width, cls_only, all_queries)
        backend_mask = mask_made_for = None
        for encoder, rule in self._ruled(rules):
            queried = hidden_states[:, :1] if isinstance(rule, Extract) and rule.cls_only else hidden_states
            if mask_made_for is not kept or queried is not hidden_states:
                if kept.weights is None:
                    backend_mask = create_bidirectional_mask(
                        config=self.config,
                        inputs_embeds=queried,
                        attention_mask=kept.mask,
                        encoder_hidden_states=hidden_states,
                    )
                else:
                    hiding = self._hiding_mask(kept.weights, kept.mask, hidden_states.dtype)
                    backend_mask = hiding.expand(-1, 1, queried.shape[1], -1)
                mask_made_for = kept
            # All positional: gradient checkpointing sees only these, and the hooks take hidden states from the first.
            entered, ranked = hidden_states, len(kept.apart)
            hidden_states, kept = encoder(hidden_states, backend_mask, kept, rule, **kwargs)
            if torch.is_grad_enabled():
                self._check_reentrant(encoder, entered, kept, len(kept.apart) > ranked)
            kept_positions.append(kept.positions)
        if not (cls_only or output_kept_positions or is_tracing(hidden_states)) and hidden_states.shape[1] < width:
            logger.warning_once(
                "The last encoder leaves fewer word-vectors than entered the first one, and of an input shorter than "
                "others of its batch not all of these are real: read [CLS], at position 0, or ask for "
                "`output_kept_positions=True`, which says which they are. A mean over them, as of "
                "SentenceTransformer, is no embedding."
            )

        return PoWERModelOutput(
            last_hidden_state=hidden_states,
            kept_positions=tuple(kept_positions) if output_kept_positions else None,
            retention_penalty=penalty,
            ranking_divergence=torch.stack(kept.apart).mean() if kept.apart else None,
        )

    def _real(
        self, hidden_states: Tensor, mask: Tensor | None, mode: RetentionMode
    ) -> tuple[Tensor | None, Tensor | None]:
        """The mask (B, T) that eliminates, `None` if all are real, and the lengths (B,); see [`rules`].

        Raises:
            ValueError: for a mask that is not (B, T).
        """
        batch_size, width = hidden_states.shape[:2]
        if mask is not None and mask.shape != (batch_size, width):
            raise ValueError(
                f"`attention_mask` must have shape (batch, length), here {(batch_size, width)}, to eliminate "
                f"word-vectors, got {tuple(mask.shape)}; pass the tokenizer's mask."
            )
        if mask is not None:
            mask = mask.to(hidden_states.device, torch.bool)
            if not is_tracing(mask) and mask.all():
                mask = None
        elif is_tracing():
            mask = torch.ones(batch_size, width, dtype=torch.bool, device=hidden_states.device)
        if mask is not None:
            # Position 0 stays whatever its mask says, so it counts.
            return mask, mask.sum(dim=1) + ~mask[:, 0]
        return None, torch.full((batch_size,), width, device=hidden_states.device) if mode == "soft" else None

    def _learned(self, cls_only: bool) -> tuple[Tensor | None, Tensor | None]:
        """`r` (L, R) in soft mode, and its penalty where there is something to learn from."""
        if self.retention_weights is None:
            return None, None
        # In float32 whatever the model was cast to, and no leaf, so that the gradients of a forward meet in it.
        weights = self.retention_weights.float().view_as(self.retention_weights)
        if self.config.retention_soft_extract == "hide":
            self._check_attention()
        # A batched pipeline shares out whatever else is in an output among its rows.
        if not torch.is_grad_enabled():
            return weights, None
        published = self.config.retention_soft_extract == "published"
        penalty = retention_penalty(retention_mass(weights if published or not cls_only else weights[:-1]))
        if self.training and penalty.requires_grad and not is_tracing():
            warn_if_left_out(penalty, weights)
        return weights, penalty

    def _check_reentrant(self, encoder: nn.Module, entered: Tensor, kept: Kept, ranked: bool) -> None:
        """Refuse what an encoder leaves besides its hidden states without a gradient, unless nobody wants one."""
        weights = self.retention_weights
        hidden = kept.weights is not None and not kept.weights.requires_grad
        lost = hidden and weights is not None and weights.requires_grad
        if ranked and not kept.apart[-1].requires_grad:
            attention = ranking_attention(encoder)
            learned = [entered, *attention.query.parameters(), *attention.key.parameters()]
            lost = lost or any(part.requires_grad for part in learned)
        if lost:
            raise ValueError(
                "Gradient checkpointing must not be reentrant where word-vectors are hidden, or ranked by a teacher, "
                "or the gradients of retention weights and rankings are lost; set "
                '`gradient_checkpointing_kwargs={"use_reentrant": False}`.'
            )

    def _check_attention(self) -> None:
        if self.config._attn_implementation not in ("eager", "sdpa"):
            raise ValueError(
                "Soft mode hides word-vectors by numbers added to attention scores, which eager and sdpa attention "
                f'take, got {self.config._attn_implementation!r}; load the model with `attn_implementation="sdpa"`.'
            )

    def _hiding_mask(self, weights: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(B, 1, 1, T), what to add to attention scores."""
        bias = hiding_bias(weights).to(dtype)
        if mask is not None:
            bias = bias.masked_fill(~mask, torch.finfo(dtype).min)
        return bias[:, None, None, :]

    def forward_packed(self, hidden_states: Tensor, packed: Packed) -> Tensor:
        """The same for packed embeddings, (1, S, D), if only [CLS] is read of the result: (B, 1, D)."""
        width = packed.lengths[-1]
        lengths = None if packed.lengths[0] == width else torch.tensor(packed.lengths)
        rules = self.rules(self.config.active_retention_mode, None, lengths, width, cls_only=True)
        for encoder, rule in self._ruled(rules):
            hidden_states, packed = encoder(hidden_states, None, packed, rule)
        return hidden_states[0, packed.starts()][:, None]
