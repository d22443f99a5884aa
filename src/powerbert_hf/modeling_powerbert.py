# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""PoWER-BERT: transformers' BERT, and where word-vectors leave it. Parameter names are upstream's."""

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.models.bert.modeling_bert import (
    BertAttention,
    BertEncoder,
    BertForSequenceClassification,
    BertLayer,
    BertModel,
    BertPreTrainedModel,
    BertSelfAttention,
)

from .configuration_powerbert import PoWERBertConfig
from .elimination import RetentionEncoderMixin
from .encoder import AnyKept, RankingAttentionMixin, Rule, feed_forward, retain
from .modeling_power import RetentionBaseModelMixin, RetentionSequenceClassifierMixin


class PoWERBertSelfAttention(RankingAttentionMixin, BertSelfAttention):
    """Identical to `BertSelfAttention`, except that it also ranks the word-vectors."""

    def forward(self, hidden_states: Tensor, attention_mask: Any, kept: AnyKept, rule: Rule, **kwargs: Any) -> tuple:
        """See `RankingAttentionMixin.attend`."""
        return self.attend(hidden_states, attention_mask, kept, rule, self.dropout.p, **kwargs)


class PoWERBertAttention(BertAttention):
    """Identical to `BertAttention`, except that only the kept word-vectors go through the output projection."""

    def __init__(self, config: PoWERBertConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx=layer_idx)
        self.self = PoWERBertSelfAttention(config, layer_idx=layer_idx)

    def forward(
        self, hidden_states: Tensor, attention_mask: Any, kept: AnyKept, rule: Rule, **kwargs: Any
    ) -> tuple[Tensor, AnyKept]:
        """(B, T, D) to (B, K, D), and which word-vectors these are."""
        context, _, ranking = self.self(hidden_states, attention_mask, kept, rule, **kwargs)
        return retain(self.output, context, hidden_states, ranking, kept, rule)


class PoWERBertLayer(BertLayer):
    """Identical to `BertLayer`, except that fewer word-vectors leave it than enter."""

    def __init__(self, config: PoWERBertConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx=layer_idx)
        self.attention = PoWERBertAttention(config, layer_idx)

    def forward(
        self, hidden_states: Tensor, attention_mask: Any, kept: AnyKept, rule: Rule, **kwargs: Any
    ) -> tuple[Tensor, AnyKept]:
        """`BertLayer.forward` (transformers 5.23) of an encoder: (B, T, D) to (B, K, D), and which these are."""
        attended, kept = self.attention(hidden_states, attention_mask, kept, rule, **kwargs)
        return feed_forward(self.feed_forward_chunk, self.chunk_size_feed_forward, attended), kept


class PoWERBertEncoder(RetentionEncoderMixin, BertEncoder):
    """Identical to `BertEncoder`, except that every layer gets a mask and a rule of its own."""

    def __init__(self, config: PoWERBertConfig) -> None:
        super().__init__(config)
        self.layer = nn.ModuleList(PoWERBertLayer(config, index) for index in range(config.num_hidden_layers))
        self.add_retention_weights()

    def encoders(self) -> Iterable[nn.Module]:
        """Each layer once."""
        return self.layer


class PoWERBertPreTrainedModel(BertPreTrainedModel):
    """Identical to `BertPreTrainedModel`, except for its configuration."""

    config: PoWERBertConfig
    _no_split_modules: ClassVar[list[str]] = ["BertEmbeddings", "PoWERBertLayer"]


class PoWERBertModel(RetentionBaseModelMixin, PoWERBertPreTrainedModel, BertModel):
    """`BertModel` whose encoders keep what the retention configuration says; with all retained it is upstream's."""

    def replace_modules(self) -> None:
        """The encoders."""
        self.encoder = PoWERBertEncoder(self.config)

    def pool(self, hidden_states: Tensor) -> Tensor | None:
        """(B, K, D) to (B, D)."""
        return None if self.pooler is None else self.pooler(hidden_states)


class PoWERBertForSequenceClassification(
    RetentionSequenceClassifierMixin, PoWERBertPreTrainedModel, BertForSequenceClassification
):
    """`BertForSequenceClassification` on [`PoWERBertModel`]; encoder L hands on [CLS] alone."""

    upstream_class = BertForSequenceClassification

    def replace_modules(self) -> None:
        """The base model."""
        self.bert = PoWERBertModel(self.config)
