# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""PoWER-BERT for Hugging Face Transformers: importing this package registers its models with the Auto classes."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from transformers import (
    AlbertTokenizer,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
)

from .configuration_powerbert import PoWERAlbertConfig, PoWERBertConfig
from .modeling_poweralbert import PoWERAlbertForSequenceClassification, PoWERAlbertModel
from .modeling_powerbert import PoWERBertForSequenceClassification, PoWERBertModel

if TYPE_CHECKING:
    from .steps import fine_tune, retrain, search_configuration
    from .trainer import PoWERTrainer, PoWERTrainingArguments

__version__ = version("powerbert_hf")

__all__ = [
    "PoWERAlbertConfig",
    "PoWERAlbertForSequenceClassification",
    "PoWERAlbertModel",
    "PoWERBertConfig",
    "PoWERBertForSequenceClassification",
    "PoWERBertModel",
    "PoWERTrainer",
    "PoWERTrainingArguments",
    "fine_tune",
    "retrain",
    "search_configuration",
]

# `Trainer` imports datasets, which someone who only loads a model need not wait for.
_LAZY = {
    "PoWERTrainer": "trainer",
    "PoWERTrainingArguments": "trainer",
    "fine_tune": "steps",
    "retrain": "steps",
    "search_configuration": "steps",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


for _config, _model, _classifier, _tokenizer in (
    (PoWERBertConfig, PoWERBertModel, PoWERBertForSequenceClassification, BertTokenizer),
    (PoWERAlbertConfig, PoWERAlbertModel, PoWERAlbertForSequenceClassification, AlbertTokenizer),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForSequenceClassification.register(_config, _classifier, exist_ok=True)
    AutoTokenizer.register(_config, tokenizer_class=_tokenizer, exist_ok=True)
