"""`retention.py` against the reference, forward and backward, at odd sizes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from powerbert_hf import retention

SIZES = [1, 2, 7, 63]


def masks(width):
    """All real, all but the last, and only the first."""
    lengths = torch.tensor([width, max(1, width - 1), 1])
    return torch.arange(width) < lengths[:, None]


@pytest.mark.parametrize("width", SIZES)
def test_significance_equals_reference(width):
    torch.manual_seed(width)
    query, key = torch.randn(2, 3, 2, width, 4)
    mask = masks(width)
    result = retention.significance(query, key, mask, scale=0.7)
    expected = [
        reference.significance(q.tolist(), k.tolist(), m.tolist(), 0.7)
        for q, k, m in zip(query, key, mask, strict=True)
    ]
    torch.testing.assert_close(result, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_significance_and_its_gradient_do_not_see_padding():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 9, 4, requires_grad=True)
    alone = retention.significance(query[:, :, :5], key[:, :, :5])
    padded = retention.significance(query, key, torch.arange(9)[None] < 5)
    torch.testing.assert_close(padded[:, :5], alone, atol=1e-6, rtol=0)
    assert torch.equal(padded[:, 5:], torch.zeros(1, 4))
    worth = torch.arange(5.0)
    wanted = torch.autograd.grad((alone * worth).sum(), (query, key))
    found = torch.autograd.grad((padded[:, :5] * worth).sum(), (query, key))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert all(gradient.abs().max() > 0.01 for gradient in found)


def test_significance_of_half_precision_is_summed_in_float32():
    """A sum over hundreds of rows in bf16 would be wrong in its third digit; only the scores are that coarse."""
    torch.manual_seed(0)
    query, key = (torch.randn(1, 2, 300, 4).bfloat16() for _ in range(2))
    result = retention.significance(query, key)
    assert result.dtype == torch.float32
    scores = (query @ key.transpose(-1, -2) * 4**-0.5).double()
    attention = scores.softmax(-1).sum(1) * (1 - torch.eye(300))
    torch.testing.assert_close(result, attention.sum(1).float(), atol=1e-4, rtol=1e-4)


def test_overflow_in_the_significance_does_not_unseat_cls():
    assert retention.rank(torch.tensor([[0.5, float("nan"), 0.2]])).tolist() == [[0, 2, 1]]


@pytest.mark.parametrize("width", SIZES)
def test_rank_equals_reference_with_ties(width):
    torch.manual_seed(width)
    # Few distinct values, so that ties are common.
    scores = torch.randint(4, (3, width)) / 4.0
    mask = masks(width)
    expected = [reference.rank(s.tolist(), m.tolist()) for s, m in zip(scores, mask, strict=True)]
    assert retention.rank(scores, mask).tolist() == expected


def test_rank_keeps_cls_first_even_where_its_mask_is_false():
    # A real word-vector that nobody attends to comes before one that is not real.
    order = retention.rank(torch.tensor([[0.5, 0.0, 0.0]]), torch.tensor([[True, False, True]]))
    assert order.tolist() == [[0, 2, 1]]
    order = retention.rank(torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([[False, True, True]]))
    assert order.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("width", SIZES)
def test_extract_keeps_the_most_significant_in_ascending_order(width):
    torch.manual_seed(width)
    scores, mask = torch.rand(3, width), masks(width)
    order = retention.rank(scores, mask)
    for kept_width in {1, (width + 1) // 2, width}:
        counts = mask.sum(1).clamp(max=kept_width)
        kept = retention.extract(order, kept_width, counts)
        for row, number in enumerate(counts.tolist()):
            expected = sorted(reference.rank(scores[row].tolist(), mask[row].tolist())[:number])
            assert kept[row, :number].tolist() == expected
            # The rest is filled with positions that are not kept, each once.
            assert len(set(kept[row].tolist())) == kept_width
        same = retention.extract(order, kept_width)
        assert torch.equal(same, same.sort(dim=1).values)
        assert torch.equal(same[:, 0], torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("unit", ["words", "fraction"])
@pytest.mark.parametrize(("entries", "width"), [(1, 1), (5, 3), (5, 7), (7, 63), (64, 63)])
def test_soft_extract_equals_reference_forward_and_backward(unit, entries, width):
    torch.manual_seed(entries)
    mask = masks(width)
    lengths = mask.sum(1)
    scores, vectors = torch.rand(3, width), torch.randn(3, width, 2, requires_grad=True)
    weights = torch.rand(entries, requires_grad=True)
    order = retention.rank(scores, mask)
    upstream = torch.randn(3, width, 2)

    result = retention.soft_extract(vectors, order, retention.soft_extract_weights(weights, lengths, width, unit))
    gradients = torch.autograd.grad(result, (vectors, weights), upstream, allow_unused=True)

    expected = torch.zeros(3, width, 2)
    for row in range(3):
        for place, position in enumerate(reference.rank(scores[row].tolist(), mask[row].tolist())):
            factor = reference.rank_weight(list(weights), place, int(lengths[row]), unit)
            expected[row, position] = vectors[row, position] * factor
    expected_gradients = torch.autograd.grad(expected, (vectors, weights), upstream, allow_unused=True)

    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        wanted = torch.zeros_like(gradient) if wanted is None else wanted
        torch.testing.assert_close(gradient, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("unit", ["words", "fraction"])
def test_weights_of_one_leave_every_rank_at_one(unit):
    weights = retention.soft_extract_weights(torch.ones(128), torch.arange(1, 301), 300, unit)
    torch.testing.assert_close(weights, torch.ones(300, 300), atol=5e-7, rtol=0)


def test_a_weight_of_nearly_nothing_is_not_less_than_nothing():
    # Differences of running sums: what rounding leaves may have the wrong sign, and then has no logarithm.
    nearly_nothing = torch.logspace(-7, -4, 100)[:, None]
    ramps = torch.cat([torch.ones(100, 40), torch.linspace(1, 0.04, 24).expand(100, -1), nearly_nothing], dim=1)
    lengths = torch.arange(1, 104)
    for ramp in torch.nn.functional.pad(ramps, (0, 38)):
        weights = retention.soft_extract_weights(ramp, lengths, 103, "fraction")
        assert weights.min() >= 0
        assert retention.hiding_bias(weights).isfinite().all()


@pytest.mark.parametrize("length", [1, 3, 30, 97])
def test_fractions_conserve_mass_at_every_length(length):
    torch.manual_seed(0)
    weights = torch.rand(30, dtype=torch.float64)
    by_rank = retention.soft_extract_weights(weights, torch.tensor([length]), length, "fraction")[0]
    # [CLS] weighs 1 whatever the weights of its share are.
    share_of_cls = sum(min(1.0, max(0.0, 30 / length - entry)) * weights[entry] for entry in range(30)) * length / 30
    assert math.isclose(by_rank.sum() - 1 + share_of_cls, weights.sum() * length / 30, rel_tol=1e-9)


@pytest.mark.parametrize("unit", ["words", "fraction"])
@given(entries=st.integers(1, 128), data=st.data())
def test_hidden_are_those_that_extract_removes(unit, entries, data):
    count, length = data.draw(st.integers(1, entries)), data.draw(st.integers(1, 300))
    weights = (torch.arange(entries) < count).double()
    if unit == "words" and count == entries:
        # None of the entries says that an input longer than any of the training data loses something.
        length = min(length, entries)
    entry = count if unit == "words" else count / entries
    kept = retention.retention_count(entry, length, unit)
    by_rank = retention.soft_extract_weights(weights, torch.tensor([length]), length, unit, "hide")[0]
    assert torch.equal(by_rank, (torch.arange(length) < kept).double())


@given(entry=st.floats(1e-4, 1.0), length=st.integers(1, 4096))
def test_fraction_counts_equal_reference(entry, length):
    expected = reference.count(entry, length, "fraction")
    assert retention.retention_count(entry, length, "fraction") == expected
    for dtype in (torch.int32, torch.int64):
        assert retention.retention_count(entry, torch.tensor([length], dtype=dtype), "fraction").tolist() == [expected]


@given(entry=st.integers(1, 600), length=st.integers(1, 600))
def test_word_counts_equal_reference(entry, length):
    expected = reference.count(entry, length, "words")
    assert retention.retention_count(entry, length, "words") == expected
    assert retention.retention_count(entry, torch.tensor([length]), "words").tolist() == [expected]


@given(numerator=st.integers(1, 512), factor=st.integers(1, 8))
def test_a_learned_count_means_itself_at_the_learned_length(numerator, factor):
    """Of R word-vectors, l / R is l, though l / R is rarely a binary number."""
    for length in {numerator, 512}:
        assert retention.retention_count(numerator / length, length, "fraction") == numerator
        assert retention.retention_count(numerator / length, factor * length, "fraction") == factor * numerator


def test_mass_penalty_and_their_gradient():
    weights = torch.rand(3, 5, requires_grad=True)
    mass = retention.retention_mass(weights)
    penalty = retention.retention_penalty(mass)
    assert math.isclose(penalty.item(), sum(j * sum(row) for j, row in enumerate(weights.tolist(), 1)), rel_tol=1e-5)
    (gradient,) = torch.autograd.grad(penalty, weights)
    assert torch.equal(gradient, torch.tensor([[1.0], [2.0], [3.0]]).expand(3, 5))


@settings(max_examples=200)
@given(masses=st.lists(st.floats(0, 64), min_size=1, max_size=12), unit=st.sampled_from(["words", "fraction"]))
def test_configuration_equals_reference_and_can_be_run(masses, unit):
    config = retention.retention_config_from_mass(masses, unit, 64)
    assert config == reference.configuration(masses, unit, 64)
    retention.check_retention_config(config, len(masses), unit, 64)


def test_clamp_keeps_weights_in_range_and_cls_at_one():
    weights = torch.tensor([[0.2, -0.5, 1.5], [1.0, 0.25, 0.0]], requires_grad=True)
    retention.clamp_retention_weights(weights)
    assert weights.tolist() == [[1.0, 0.0, 1.0], [1.0, 0.25, 0.0]]


@pytest.mark.parametrize(
    ("config", "unit", "message"),
    [
        ([3, 2], "words", r"one entry per encoder \(3\), got 2"),
        ([1, 2, 3], "words", "must not increase, got 2 for encoder 2 after 1"),
        ([3, 2, 0], "words", "at least 1, got 0 for encoder 3"),
        ([3, 2, -1], "words", "at least 1, got -1"),
        ([3.0, 2, 1], "words", "got 3.0 for encoder 1"),
        ([True, 1, 1], "words", "got True"),
        ([65, 2, 1], "words", r"longest input \(64\), got 65"),
        ([1.1, 0.5, 0.2], "fraction", "at most 1, got 1.1"),
        ([0.5, 0.2, 0.0], "fraction", "above 0 .* got 0.0 for encoder 3"),
        ([0.5, float("nan"), 0.1], "fraction", "got nan for encoder 2"),
        (["a", "b", "c"], "fraction", "got 'a'"),
        ("321", "words", "must be a list"),
        ([3, 2, 1], "percent", "`retention_unit` must be one of words, fraction, got 'percent'"),
    ],
)
def test_unusable_configurations_are_refused_in_one_sentence(config, unit, message):
    with pytest.raises(ValueError, match=message):
        retention.check_retention_config(config, 3, unit, 64)


def test_rankings_are_apart_by_the_divergence_of_shares_among_those_that_count():
    received = torch.tensor([[9.0, 1.0, 3.0, 5.0], [9.0, 2.0, 2.0, 5.0], [1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    wanted = torch.tensor([[7.0, 2.0, 2.0, 0.0], [0.0, 30.0, 10.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    counted = torch.tensor([[False, True, True, False], [False, True, True, False], [False] * 4])
    found = retention.ranking_divergence(received, wanted, counted)
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    second = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert found.item() == pytest.approx((first + second) / 2, abs=1e-6)
    found.backward()
    assert received.grad.isfinite().all()
    assert (received.grad != 0).tolist() == counted.tolist()
    assert retention.ranking_divergence(received, 3 * received, counted).item() == pytest.approx(0, abs=1e-6)
    assert retention.ranking_divergence(received, wanted, counted & False).item() == 0
