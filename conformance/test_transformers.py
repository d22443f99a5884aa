"""Transformers' own common tests of models and configurations on our classes, and on stock BERT and ALBERT to compare.

Run by `make conformance`. Every entry of `RETENTION` is run for both backbones, base model and classifier. Nothing of
upstream's is overridden; what stock models skip is skipped here too, and `conftest.py` fails a run that skips more.
"""

import unittest

from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AlbertModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)

import powerbert_hf as power

CLASSES = {
    "StockBert": (BertConfig, BertModel, BertForSequenceClassification),
    "StockAlbert": (AlbertConfig, AlbertModel, AlbertForSequenceClassification),
    "Bert": (power.PoWERBertConfig, power.PoWERBertModel, power.PoWERBertForSequenceClassification),
    "Albert": (power.PoWERAlbertConfig, power.PoWERAlbertModel, power.PoWERAlbertForSequenceClassification),
}

RETENTION = {
    "Off": {},
    "SoftWords": {"retention_mode": "soft", "retention_length": 7},
    "SoftFraction": {"retention_mode": "soft", "retention_length": 5, "retention_unit": "fraction"},
    "HardWords": {"retention_config": [4, 2]},
    "HardFraction": {"retention_config": [0.7, 0.3], "retention_unit": "fraction"},
    "HardOneWord": {"retention_config": [1, 1]},
    "HardSmallestFraction": {"retention_config": [0.01, 0.01], "retention_unit": "fraction"},
}


class ModelTester:
    """What the common tests ask of a model: its size, a configuration, inputs."""

    batch_size, seq_length, is_training = 13, 7, True
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 99, 32, 2, 4

    def __init__(self, config_class, retention):
        self.config_class, self.retention = config_class, retention

    def get_config(self):
        extra = {"embedding_size": 16, "num_hidden_groups": 2} if issubclass(self.config_class, AlbertConfig) else {}
        return self.config_class(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
            max_position_embeddings=64,
            **extra,
            **self.retention,
        )

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.seq_length]
        inputs = {
            "input_ids": ids_tensor(shape, self.vocab_size),
            "token_type_ids": ids_tensor(shape, 2),
            "attention_mask": random_attention_mask(shape),
        }
        return self.get_config(), inputs


class Common(ModelTesterMixin):
    """Both classes of one backbone in one retention mode."""

    config_class = None
    retention: dict = {}

    def setUp(self):
        self.model_tester = ModelTester(self.config_class, self.retention)
        self.config_tester = ConfigTester(self, config_class=self.config_class, num_hidden_layers=2, **self.retention)

    def test_config(self):
        self.config_tester.run_common_tests()


def case(name, classes, retention):
    config_class, *model_classes = CLASSES[classes]
    fields = {"config_class": config_class, "all_model_classes": tuple(model_classes), "retention": retention}
    return type(name, (Common, unittest.TestCase), {**fields, "__module__": __name__})


for backbone in ("Bert", "Albert"):
    globals()[f"Stock{backbone}"] = case(f"Stock{backbone}", f"Stock{backbone}", {})
    for mode, fields in RETENTION.items():
        globals()[f"{backbone}{mode}"] = case(f"{backbone}{mode}", backbone, fields)
