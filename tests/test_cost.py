"""Multiply-accumulates against a plain sum over encoders, and against what torch counts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import reference
from conftest import Host
from powerbert_hf import cost

CONFIG = Host("bert").config(**Host("bert").fields, retention_config=[0.6, 0.4, 0.2], retention_unit="fraction")


@given(st.lists(st.integers(1, 64), min_size=1, max_size=8), st.booleans())
def test_cost_equals_reference(lengths, cls_only):
    expected = []
    for length in lengths:
        counts = [reference.count(entry, length, "fraction") for entry in CONFIG.retention_config]
        if cls_only:
            counts[-1] = 1
        expected.append(reference.multiply_accumulates(counts, length, 32, 64, cls_only))
    assert cost.multiply_accumulates(CONFIG, torch.tensor(lengths), cls_only).tolist() == expected
    stock = sum(reference.multiply_accumulates([length] * 3, length, 32, 64, False) for length in lengths)
    assert cost.predicted_speedup(CONFIG, torch.tensor(lengths), cls_only) == pytest.approx(stock / sum(expected))


@pytest.mark.parametrize("padded", [True, False])
def test_cost_is_what_torch_counts(padded):
    """Of two unpadded texts; torch sees the pooler and the classifier too, the significance costs no product."""
    host = Host("bert")
    model = host.make(retention_config=[10, 6, 3], attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.ones(2, 12, dtype=torch.long), output_kept_positions=padded)
    pooler_and_classifier = 32 * 32 + 32 * 2
    # Packed, the last encoder's one query goes to flash attention, which torch does not count on a CPU.
    not_seen = 0 if padded else 2 * 6 * 32
    expected = cost.multiply_accumulates(model.config, torch.tensor([12])).item()
    assert counter.get_total_flops() / 2 / 2 == expected + pooler_and_classifier - not_seen


def test_what_an_input_costs_does_not_depend_on_others():
    lengths = list(range(1, 40))
    alone = [cost.multiply_accumulates(CONFIG, torch.tensor([length])).item() for length in lengths]
    assert cost.multiply_accumulates(CONFIG, torch.tensor(lengths)).tolist() == alone


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_lengths_are_integers_of_any_kind(dtype):
    lengths = [200, 128]
    config = Host("bert").config(**{**Host("bert").fields, "hidden_size": 768, "intermediate_size": 3072})
    config.retention_config, config.retention_unit = [0.6, 0.4, 0.2], "fraction"
    expected = cost.predicted_speedup(config, torch.tensor(lengths))
    assert cost.predicted_speedup(config, torch.tensor(lengths, dtype=dtype)) == expected > 1


def test_share_kept_counts_word_vectors_not_averages():
    lengths = torch.tensor([10, 30])
    assert cost.share_kept(CONFIG, lengths) == pytest.approx([24 / 40, 16 / 40, 2 / 40])


def test_stock_model_costs_what_it_costs():
    off = Host("bert").config(**Host("bert").fields)
    assert cost.predicted_speedup(off, torch.tensor([5, 20])) == 1.0
    assert cost.share_kept(off, torch.tensor([5, 20])) == [1.0, 1.0, 1.0]
