# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""PoWER-ALBERT: transformers' ALBERT, and where word-vectors leave it. Parameter names are upstream's.

One layer serves many depths here: what belongs to a depth, its rule, is passed to the layer and never kept on it.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.albert.modeling_albert import (
    AlbertAttention,
    AlbertForSequenceClassification,
    AlbertLayer,
    AlbertModel,
    AlbertPreTrainedModel,
    AlbertTransformer,
)

from .configuration_powerbert import PoWERAlbertConfig
from .elimination import PoWERModelOutput, RetentionEncoderMixin
from .encoder import AnyKept, RankingAttentionMixin, Rule, feed_forward, retain
from .modeling_power import RetentionBaseModelMixin, RetentionSequenceClassifierMixin
from .packing import Packed


class PoWERAlbertAttention(RankingAttentionMixin, AlbertAttention):
    """Identical to `AlbertAttention`, except that only the kept word-vectors go through the output projection."""

    def project(self, context: Tensor, residual: Tensor) -> Tensor:
        """The second half of `AlbertAttention.forward` (transformers 5.23), on (B, K, D)."""
        return self.LayerNorm(residual + self.output_dropout(self.dense(context)))

    def forward(
        self, hidden_states: Tensor, attention_mask: Any, kept: AnyKept, rule: Rule, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, AnyKept]:
        """(B, T, D) to (B, K, D), the attention weights where there are any, and which word-vectors these are."""
        context, weights, ranking = self.attend(
            hidden_states, attention_mask, kept, rule, self.attention_dropout.p, **kwargs
        )
        output, kept = retain(self.project, context, hidden_states, ranking, kept, rule)
        return output, weights, kept


class PoWERAlbertLayer(GradientCheckpointingLayer, AlbertLayer):
    """Identical to `AlbertLayer`, except that fewer word-vectors leave it than enter, and that it checkpoints."""

    def __init__(self, config: PoWERAlbertConfig) -> None:
        super().__init__(config)
        self.attention = PoWERAlbertAttention(config)

    def forward(
        self, hidden_states: Tensor, attention_mask: Any, kept: AnyKept, rule: Rule, **kwargs: Any
    ) -> tuple[Tensor, AnyKept]:
        """`AlbertLayer.forward` (transformers 5.23): (B, T, D) to (B, K, D), and which word-vectors these are."""
        attended, _, kept = self.attention(hidden_states, attention_mask, kept, rule, **kwargs)
        output = feed_forward(self.ff_chunk, self.chunk_size_feed_forward, attended)
        return self.full_layer_layer_norm(output + attended), kept


class PoWERAlbertTransformer(RetentionEncoderMixin, AlbertTransformer):
    """Identical to `AlbertTransformer`, except that every depth gets a mask and a rule of its own."""

    def __init__(self, config: PoWERAlbertConfig) -> None:
        super().__init__(config)
        for group in self.albert_layer_groups:
            group.albert_layers = nn.ModuleList(PoWERAlbertLayer(config) for _ in range(config.inner_group_num))
        self.add_retention_weights()

    def encoders(self) -> Iterator[nn.Module]:
        """The layers of the group that `AlbertTransformer.forward` (transformers 5.23) takes at each depth."""
        depths_per_group = self.config.num_hidden_layers / self.config.num_hidden_groups
        for depth in range(self.config.num_hidden_layers):
            yield from self.albert_layer_groups[int(depth / depths_per_group)].albert_layers

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> PoWERModelOutput:
        """See `RetentionEncoderMixin.forward`; ALBERT's embeddings (B, T, E) are narrower than its encoders."""
        return super().forward(self.embedding_hidden_mapping_in(hidden_states), *args, **kwargs)

    def forward_packed(self, hidden_states: Tensor, packed: Packed) -> Tensor:
        """See `RetentionEncoderMixin.forward_packed`."""
        return super().forward_packed(self.embedding_hidden_mapping_in(hidden_states), packed)


class PoWERAlbertPreTrainedModel(AlbertPreTrainedModel):
    """Identical to `AlbertPreTrainedModel`, except for its configuration and gradient checkpointing."""

    config: PoWERAlbertConfig
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["AlbertEmbeddings", "PoWERAlbertLayer"]


class PoWERAlbertModel(RetentionBaseModelMixin, PoWERAlbertPreTrainedModel, AlbertModel):
    """`AlbertModel` whose encoders keep what the retention configuration says; with all retained it is upstream's."""

    def replace_modules(self) -> None:
        """The encoders."""
        self.encoder = PoWERAlbertTransformer(self.config)

    def pool(self, hidden_states: Tensor) -> Tensor | None:
        """(B, K, D) to (B, D)."""
        return None if self.pooler is None else self.pooler_activation(self.pooler(hidden_states[:, 0]))


class PoWERAlbertForSequenceClassification(
    RetentionSequenceClassifierMixin, PoWERAlbertPreTrainedModel, AlbertForSequenceClassification
):
    """`AlbertForSequenceClassification` on [`PoWERAlbertModel`]; encoder L hands on [CLS] alone."""

    upstream_class = AlbertForSequenceClassification

    def replace_modules(self) -> None:
        """The base model."""
        self.albert = PoWERAlbertModel(self.config)
