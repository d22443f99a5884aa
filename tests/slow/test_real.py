"""Real weights on real texts: what holds for the small models of the other tests holds for these.

They lie beside the project, not in it: `POWERBERT_SHARED` names their folder (`weights/minilm-l6`, `data/mrpc`, ...).
"""

import os
from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from powerbert_hf.recipe import load_classifier

SHARED = Path(os.environ.get("POWERBERT_SHARED", Path(__file__).parents[3] / "shared"))
HARD = {"retention_unit": "fraction"}

pytestmark = pytest.mark.slow


@pytest.fixture(params=["minilm-l6", "albert-l12-h384"])
def checkpoint(request):
    folder = SHARED / "weights" / request.param
    if not folder.is_dir():
        pytest.skip(f"no weights in {folder}; set POWERBERT_SHARED")
    return folder


@pytest.fixture
def texts(checkpoint):
    rows = datasets.load_dataset("parquet", data_files=str(SHARED / "data" / "mrpc" / "dev.parquet"), split="train")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return tokenizer(rows["sentence1"][:24], rows["sentence2"][:24], padding=True, return_tensors="pt")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_full_retention_equals_stock(checkpoint, texts, attention):
    torch.manual_seed(0)
    stock = AutoModelForSequenceClassification.from_pretrained(checkpoint, attn_implementation=attention).eval()
    ours = load_classifier(stock, retention_config=[1.0] * stock.config.num_hidden_layers, **HARD).eval()
    ours.set_attn_implementation(attention)
    torch.testing.assert_close(ours(**texts).logits, stock(**texts).logits, atol=1e-5, rtol=0)
    for model in (stock, ours):
        model(**texts, labels=torch.arange(24) % 2).loss.backward()
    for (name, found), wanted in zip(ours.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("unit", ["words", "fraction"])
def test_a_text_has_the_same_logits_alone_and_padded(checkpoint, texts, unit):
    layers = load_classifier(checkpoint).config.num_hidden_layers
    shares = [0.9 - 0.7 * encoder / layers for encoder in range(layers)]
    config = shares if unit == "fraction" else [int(60 * share) for share in shares]
    ours = load_classifier(checkpoint, retention_config=config, retention_unit=unit).eval()
    with torch.no_grad():
        together = ours(**texts).logits
        for row in range(24):
            length = int(texts["attention_mask"][row].sum())
            alone = ours(**{name: values[row : row + 1, :length] for name, values in texts.items()}).logits
            torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)
