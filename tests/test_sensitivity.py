"""The path of configurations: from full retention to fast, the best at its cost by the sum that it is found by."""

import itertools

import numpy as np
import pytest
import torch

from conftest import Host
from powerbert_hf import sensitivity
from powerbert_hf.cost import multiply_accumulates, predicted_speedup
from powerbert_hf.sensitivity import comparison, search_path

FEATURES = [{"input_ids": torch.arange(1, length + 1).tolist()} for length in (4, 30, 9, 17, 12, 23)]
LENGTHS = torch.tensor([len(row["input_ids"]) for row in FEATURES])


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_path_runs_from_full_retention_to_fast(host, problem_type):
    model = host.make(num_labels=3, problem_type=problem_type, retention_unit="words")
    path = search_path(model.train(), FEATURES)
    # Encoder L hands on [CLS] alone, whatever its entry.
    assert path[0].retention_config == [1.0, 1.0, 1 / 30]
    assert path[0].distance == 0
    for gentle, fast in itertools.pairwise(path):
        assert fast.predicted_speedup >= 1.03 * gentle.predicted_speedup
        assert fast.distance >= gentle.distance
    assert path[-1].predicted_speedup > 2
    assert not model.training
    assert (model.config.retention_config, model.config.retention_unit) == (None, "words")
    for point in path:
        model.set_retention(point.retention_config, unit="fraction")
        assert point.predicted_speedup == predicted_speedup(model.config, LENGTHS)


def test_no_other_configuration_loses_less_at_the_cost(monkeypatch):
    """All there are with five shares and three encoders, whatever the curves."""
    monkeypatch.setattr(sensitivity, "_SHARES", (1.0, 0.8, 0.6, 0.4, 0.2))
    monkeypatch.setattr(sensitivity, "_RESOLUTION", 1e-9)
    model = Host("bert").make()
    for seed in range(5):
        curves = np.random.default_rng(seed).random((2, 5)).cumsum(axis=1)
        curves -= curves[:, :1]
        every = {}
        for kept in itertools.combinations_with_replacement(range(5), 2):
            shares = [sensitivity._SHARES[place] for place in kept]
            model.set_retention([*shares, shares[-1]], unit="fraction")
            cost = multiply_accumulates(model.config, LENGTHS).sum().item()
            every[kept] = cost, curves[0, kept[0]] + curves[1, kept[1]] - curves[1, kept[0]]
        best = {
            kept
            for kept, (cost, loss) in every.items()
            if not any(c <= cost and d <= loss for other, (c, d) in every.items() if other != kept)
        }
        found = sensitivity._best(model.config, curves, LENGTHS)
        assert {one.kept for one in found} == best
        assert [one.cost for one in found] == sorted((every[one.kept][0] for one in found), reverse=True)
        assert [one.loss for one in found] == pytest.approx([every[one.kept][1] for one in found])


def test_encoders_that_matter_less_keep_less():
    """Where the first encoder's word-vectors are all and the second's nothing, only the second's go."""
    model = Host("bert").make()
    curves = np.array([np.linspace(0, 1, 37), np.zeros(37)])
    slowest, *others = sensitivity._best(model.config, curves, LENGTHS)
    assert slowest.kept == (0, 0)
    assert others[0].kept == (0, 36)
    assert others[0].loss == 0


def test_distance_and_unchanged_predictions_are_those_of_the_logits(host):
    model = host.make(num_labels=3)
    compare, answers = comparison(model, FEATURES, batch_size=2)
    same, distance = compare([0.8, 0.4, 0.2])
    by_length = sorted(FEATURES, key=lambda row: len(row["input_ids"]))

    @torch.no_grad()
    def distribution():
        return torch.cat([model(torch.tensor([row["input_ids"]])).logits for row in by_length]).softmax(dim=1)

    kept = distribution()
    model.set_retention(None)
    full = distribution()
    torch.testing.assert_close(answers.softmax(dim=1), full)
    assert same.tolist() == (kept.argmax(1) == full.argmax(1)).tolist()
    assert distance == pytest.approx((full - kept).abs().sum(1).mean().item() / 2, rel=1e-4)
    assert compare([1.0] * 3)[1] == pytest.approx(0, abs=1e-6)


def test_each_encoder_is_measured_alone_and_the_path_adds_up_what_was_found(monkeypatch):
    """Two encoders whose word-vectors mean more and less, and a share at which less moves than at a higher one."""
    asked = []

    def moved(encoder, share):
        return (0.4, 0.1)[encoder] * (1 - share) * (0.5 if share == 0.4 else 1)

    def compare(entries):
        asked.append(entries)
        return None, moved(int(entries[0] == 1), min(entries[:2]))

    monkeypatch.setattr(sensitivity, "comparison", lambda *_: (compare, None))
    path = search_path(Host("bert").make(num_labels=3), FEATURES)
    shares = sensitivity._MEASURED
    assert asked == [[*[1.0] * e, *[s] * (2 - e), min(s, 1 / 30)] for e in range(2) for s in shares]
    # What fewer word-vectors move, so do fewer still.
    rising = [np.maximum.accumulate([moved(e, s) for s in shares]) for e in range(2)]
    farthest = sensitivity._FARTHEST * max(map(max, rising))
    loss = [{1.0: 0.0, **dict(zip(shares, -np.log(1 - one / farthest), strict=True))} for one in rising]
    known = [point for point in path if set(point.retention_config[:2]) <= {1.0, *shares}]
    assert len(known) > 2
    for point in known:
        first, second, _ = point.retention_config
        total = loss[0][first] + loss[1][second] - loss[1][first]
        assert point.distance == pytest.approx(farthest * (1 - np.exp(-total)))
