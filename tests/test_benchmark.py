"""The protocol, on a clock of our own: what is timed, in which order, and when no number is given."""

import itertools

import pytest
import torch

from powerbert_hf import benchmark


def test_passes_take_turns_and_the_first_round_is_not_timed():
    ticks = itertools.count()
    order = []
    seconds = benchmark.interleaved_seconds(
        {"stock": lambda: order.append("stock"), "ours": lambda: order.append("ours")},
        repeats=3,
        clock=lambda: float(next(ticks)),
    )
    assert order == ["stock", "ours"] * 4
    assert seconds == {"stock": [1.0] * 3, "ours": [1.0] * 3}


def test_batches_are_sorted_by_length_and_complete():
    features = [{"input_ids": [number] * number} for number in (5, 1, 4, 2, 3)]
    batches = benchmark.sorted_batches(features, lambda rows: [row["input_ids"][0] for row in rows], 2)
    assert batches == [[1, 2], [3, 4], [5]]


def test_measured_speedup_reports_both_sides_and_leaves_the_model_as_it_was(host, batch):
    ours = host.make(retention_config=[6, 4, 2])
    speedup = benchmark.measure_speedup(ours, ours.to_stock(), [batch, batch], repeats=3)
    assert speedup.measured == pytest.approx(speedup.seconds_stock / speedup.seconds_ours)
    assert speedup.low <= speedup.high
    assert (speedup.inputs, speedup.batch_size) == (10, 5)
    assert speedup.difference_at_full_retention < 1e-5
    assert ours.config.retention_config == [6, 4, 2]
    assert ours.config.retention_unit == "words"


def test_no_speed_is_reported_of_a_model_that_is_not_the_stock_one(host, batch):
    ours = host.make(retention_config=[6, 4, 2])
    other = ours.to_stock()
    with torch.no_grad():
        other.classifier.bias.add_(0.1)
    with pytest.raises(ValueError, match="must answer as the stock model does"):
        benchmark.measure_speedup(ours, other, [batch])
