"""With all word-vectors retained our models are transformers' BERT and ALBERT: outputs, gradients, checkpoints."""

import copy
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

TOLERANCE = 1e-5
FULL = {
    "off": {},
    "words": {"retention_config": [64, 64, 64]},
    "fraction": {"retention_config": [1.0, 1.0, 1.0], "retention_unit": "fraction"},
    "soft words": {"retention_mode": "soft", "retention_length": 12},
    "soft fraction": {"retention_mode": "soft", "retention_length": 7, "retention_unit": "fraction"},
}
for mode in ("soft words", "soft fraction"):
    FULL[f"{mode}, hidden"] = {**FULL[mode], "retention_soft_extract": "hide"}


def assert_close(found, wanted, name):
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=1e-4, msg=lambda said: f"{name}: {said}")


def gradients(model, batch):
    model(**batch, labels=torch.tensor([0, 1, 1, 0, 1])).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("mode", FULL)
def test_full_retention_equals_stock_in_logits_and_gradients(host, batch, mode, attention, tmp_path):
    stock = host.make_stock()
    stock.save_pretrained(tmp_path)
    stock.set_attn_implementation(attention)
    ours = host.classifier.from_pretrained(tmp_path, attn_implementation=attention, **FULL[mode]).eval()

    torch.testing.assert_close(ours(**batch).logits, stock(**batch).logits, atol=TOLERANCE, rtol=0)
    wanted, found = gradients(stock, batch), gradients(ours, batch)
    found = {name: gradient for name, gradient in found.items() if not name.endswith("retention_weights")}
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert_close(gradient, wanted[name], name)


@pytest.mark.parametrize("mode", ["words", "fraction"])
def test_extracting_all_word_vectors_changes_nothing(host, batch, mode, monkeypatch):
    """As in a traced graph, where the shortcut for encoders that drop nothing is not taken."""
    monkeypatch.setattr("powerbert_hf.elimination.is_tracing", lambda *_: True)
    stock = host.make_stock()
    # Entries that differ, or the second and third encoder would be skipped all the same.
    fields = {"words": {"retention_config": [64, 63, 62]}, "fraction": {**FULL["fraction"]}}[mode]
    if mode == "fraction":
        fields["retention_config"] = [1.0, 0.999, 0.998]
    ours = host.make(**fields)
    ours.load_state_dict(stock.state_dict())
    torch.testing.assert_close(ours(**batch).logits, stock(**batch).logits, atol=TOLERANCE, rtol=0)
    wanted, found = gradients(stock, batch), gradients(ours, batch)
    for name, gradient in found.items():
        assert_close(gradient, wanted[name], name)


@pytest.mark.parametrize("mode", FULL)
def test_full_retention_equals_the_stock_base_model_at_every_position(host, batch, mode):
    stock = host.make_stock("stock_base")
    ours = host.make("base", **FULL[mode])
    missing, unexpected = ours.load_state_dict(stock.state_dict(), strict=False)
    assert [name.rsplit(".")[-1] for name in missing] == ["retention_weights"] * mode.startswith("soft")
    assert unexpected == []
    wanted = stock(**batch, output_hidden_states=True)
    found = ours(**batch, output_hidden_states=True)
    torch.testing.assert_close(found.pooler_output, wanted.pooler_output, atol=TOLERANCE, rtol=0)
    for ours_states, stock_states in zip(found.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(ours_states, stock_states, atol=TOLERANCE, rtol=0)


def test_handing_on_cls_alone_after_the_last_encoder_changes_nothing(host, batch):
    """The base model passes all on, the head only [CLS]; the pooled output is the same."""
    ours = host.make(retention_config=[6, 4, 4])
    everything = ours.base_model(**batch).pooler_output
    torch.testing.assert_close(
        ours.base_model(**batch, cls_only=True).pooler_output, everything, atol=TOLERANCE, rtol=0
    )


def test_stock_checkpoint_loads_without_missing_or_unexpected_keys(host, tmp_path):
    host.make_stock().save_pretrained(tmp_path)
    for fields in FULL.values():
        _, info = host.classifier.from_pretrained(tmp_path, output_loading_info=True, **fields)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]


def test_base_checkpoint_loads_with_only_the_head_missing(host, tmp_path):
    host.make_stock("stock_base").save_pretrained(tmp_path)
    _, info = host.classifier.from_pretrained(tmp_path, output_loading_info=True, retention_config=[6, 4, 2])
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"]


def test_our_model_loads_into_the_stock_class(host, batch, tmp_path):
    ours = host.make(retention_config=[6, 4, 1])
    ours.save_pretrained(tmp_path)
    stock, info = host.stock.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours.set_retention(None)
    assert torch.equal(stock.eval()(**batch).logits, ours(**batch).logits)
    assert torch.equal(ours.to_stock()(**batch).logits, stock(**batch).logits)
    assert type(ours.to_stock()) is host.stock
    assert "PoWER" not in str(ours.to_stock().config.to_dict())


def test_soft_checkpoint_loads_hard_without_a_word(host, tmp_path, upstream_warnings):
    soft = host.make(retention_mode="soft", retention_length=12)
    with torch.no_grad():
        soft.retention_weights.fill_(0.5)
    soft.save_pretrained(tmp_path)
    again = host.classifier.from_pretrained(tmp_path)
    assert torch.equal(again.retention_weights, soft.retention_weights)
    hard, info = host.classifier.from_pretrained(
        tmp_path, retention_mode=None, retention_config=[4, 2, 1], output_loading_info=True
    )
    assert hard.retention_weights is None
    for said in ({}, {"retention_unit": "words"}):
        again = host.classifier.from_pretrained(tmp_path, retention_config=[4, 2, 1], **said)
        assert again.config.active_retention_mode == "hard"
    again = host.classifier.from_pretrained(tmp_path, retention_config=[4, 2, 1], retention_mode="off")
    assert again.config.active_retention_mode == "off"
    assert not info["unexpected_keys"]
    assert upstream_warnings == []


def test_retention_weights_of_a_stock_checkpoint_start_at_one_and_stay_in_float32(host, tmp_path):
    host.make_stock().save_pretrained(tmp_path)
    soft = host.classifier.from_pretrained(tmp_path, retention_mode="soft", retention_length=9, dtype=torch.bfloat16)
    assert soft.classifier.weight.dtype == torch.bfloat16
    assert soft.retention_weights.dtype == torch.float32
    assert torch.equal(soft.retention_weights, torch.ones(3, 9))


def test_auto_classes_load_what_was_saved(host, batch, tmp_path):
    ours = host.make(retention_config=[6, 4, 2])
    ours.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(loaded) is host.classifier
    assert torch.equal(loaded(**batch).logits, ours(**batch).logits)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is host.base
    assert base.config.retention_config == [6, 4, 2]


def test_auto_tokenizer_knows_our_configurations(host, tokenizer, tmp_path):
    """Also where a folder does not name the class of its tokenizer, as many older ones do not."""
    assert TOKENIZER_MAPPING[host.config].__name__ == {"bert": "BertTokenizer", "albert": "AlbertTokenizer"}[host.name]
    if host.name == "bert":
        host.config(**host.fields).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "tokenizer_config.json").unlink()
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert type(loaded).__name__ == "BertTokenizer"
        assert loaded("the film")["input_ids"] == tokenizer("the film")["input_ids"]


def test_new_weights_are_drawn_as_upstream_draws_them(host):
    torch.manual_seed(0)
    ours = host.classifier(host.config(**host.fields))
    stock = host.stock(host.stock_config(**host.fields))
    for (name, found), (stock_name, wanted) in zip(ours.named_parameters(), stock.named_parameters(), strict=True):
        assert name == stock_name
        assert abs(found.std() - wanted.std()) < 0.008, name
        assert abs(found.mean() - wanted.mean()) < 0.01, name


def test_import_needs_no_data_or_plotting_library():
    """Beyond what transformers' models need, which in its older versions is sklearn, and so pandas."""
    code = (
        "import sys, transformers.modeling_utils, transformers.models.bert.modeling_bert, "
        "transformers.models.auto.modeling_auto; before = set(sys.modules); import powerbert_hf; "
        "print([name for name in ('datasets', 'evaluate', 'pandas', 'sklearn', 'matplotlib') "
        "if name in sys.modules.keys() - before])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_configurations_are_not_shared_between_copies(host):
    ours = host.make(retention_config=[6, 4, 2])
    other = copy.deepcopy(ours)
    other.set_retention([3, 2, 1])
    assert ours.config.retention_config == [6, 4, 2]
