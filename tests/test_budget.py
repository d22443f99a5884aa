"""A speed-up that is asked for is the one that comes out; masses move by what they are worth."""

import math
from types import SimpleNamespace

import pytest
import torch

from powerbert_hf import budget, cost, retention
from powerbert_hf.callbacks import HoldBudget

UNITS = ["fraction", "words"]
LENGTHS = torch.randint(4, 65, (500,), generator=torch.Generator().manual_seed(4))


def make_budget(host, speedup, unit="fraction", lengths=None, length=64, **sizes):
    fields = {**host.fields, "num_hidden_layers": 6, "max_position_embeddings": 64, **sizes}
    config = host.config(**fields, retention_unit=unit, retention_length=length)
    return budget.Budget(config, speedup, LENGTHS if lengths is None else lengths)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("speedup", [1.5, 2.0, 3.0, 5.0])
def test_scaled_masses_have_the_speed_up(host, unit, speedup):
    asked = make_budget(host, speedup, unit)
    generator = torch.Generator().manual_seed(5)
    for _ in range(5):
        masses = (1 + 63 * torch.rand(6, generator=generator)).sort(descending=True).values.tolist()
        config = asked.reach(masses)
        retention.check_retention_config(config, 6, unit, 64)
        mine = host.config(
            **{**host.fields, "num_hidden_layers": 6},
            retention_config=config,
            retention_unit=unit,
            retention_length=64,
        )
        assert cost.predicted_speedup(mine, LENGTHS) == pytest.approx(speedup, rel=0.03)


@pytest.mark.parametrize("unit", UNITS)
def test_masses_that_grow_with_depth_have_the_speed_up(host, unit):
    """A later encoder gets no more than an earlier one has left: their counts would jump together."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(50):
        asked = make_budget(host, 4.5, unit, lengths=range(3, 17), length=16)
        masses = asked.hold(1.5 + 8 * torch.rand(6, generator=generator).double(), 1.0).tolist()
        config = asked.reach(masses)
        shares = 16.0 if unit == "fraction" else 1.0
        assert asked.predicted([entry * shares for entry in config]) == pytest.approx(4.5, rel=0.03), masses


@pytest.mark.parametrize(("length", "speedup"), [(3, 2.0), (3, 2.4), (5, 3.0)])
def test_equal_masses_do_not_jump_together(host, length, speedup):
    """All texts have the same few word-pieces: a word-vector of every encoder at once would be far too much."""
    asked = make_budget(host, speedup, lengths=[length] * 50, length=length, num_hidden_layers=3)
    reached = asked.predicted([entry * length for entry in asked.reach([2.0, 2.0, 2.0])])
    every = [[a, b, 1] for a in range(1, length + 1) for b in range(1, a + 1)]
    nearest = min(abs(asked.predicted(masses) / speedup - 1) for masses in every)
    assert abs(reached / speedup - 1) == pytest.approx(nearest, abs=0.01)


@pytest.mark.parametrize("unit", UNITS)
def test_smooth_cost_is_that_of_the_configuration_but_for_rounding(host, unit):
    asked = make_budget(host, 2.0, unit)
    for masses in ([64.0] * 6, [60.5, 50.5, 40.5, 30.5, 20.5, 10.5], [20.5, 10.5, 8.5, 6.5, 4.5, 2.5]):
        smooth = asked.cost(torch.tensor(masses).double()).item()
        assert smooth == pytest.approx(1 / asked.predicted(masses), rel=0.01)


@pytest.mark.parametrize("unit", UNITS)
def test_held_masses_cost_the_budget_which_falls_at_first(host, unit):
    asked = make_budget(host, 3.0, unit)
    masses = torch.full((6,), 64.0).double()
    costs = []
    for step in range(1, 11):
        masses = asked.hold(masses, step / 10)
        assert masses.min() >= 1
        assert masses.max() <= 64
        costs.append(asked.cost(masses).item())
    assert costs[3:] == pytest.approx([1 / 3] * 7, abs=1e-6)
    assert costs[:3] == sorted(costs[:3], reverse=True)
    # A third of the way.
    assert costs[0] > 0.6


def test_words_that_no_text_has_are_not_paid_for_in_masses(host):
    """One text of the corpus is far longer than the others: with masses from there on, nothing could be learned."""
    lengths = torch.randint(8, 31, (500,), generator=torch.Generator().manual_seed(7))
    sizes = {"max_position_embeddings": 512}
    near, far = (make_budget(host, 2.0, "words", lengths, length, **sizes) for length in (int(lengths.max()), 512))
    masses = far.hold(torch.full((6,), 512.0).double(), 1.0)
    assert torch.allclose(masses, near.hold(torch.full((6,), float(lengths.max())).double(), 1.0), rtol=1e-6)
    assert masses[4] > 4
    assert torch.allclose(far.ramp(masses).sum(dim=1), masses)
    assert ((far.ramp(masses) > 0) & (far.ramp(masses) < 1)).sum(dim=1).max() <= 2
    config = far.reach(masses.tolist())
    assert config == near.reach(masses.tolist())
    assert far.predicted(config) == pytest.approx(2.0, rel=0.03)


def test_the_last_encoder_whose_mass_means_nothing_has_that_of_the_one_before(host):
    asked = make_budget(host, 2.0)
    masses = torch.tensor([60.0, 50.0, 40.0, 30.0, 20.0, 64.0]).double()
    held = asked.hold(masses, 1.0)
    assert held[-1] == held[-2] < held[-3]
    assert torch.equal(held, asked.hold(masses.where(masses < 64, 1.0), 1.0))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("masses", [[30.0, 60.0, 20.0, 25.0, 10.0, 10.0], [24.0, 64.0, 18.0, 64.0, 64.0, 12.0]])
def test_what_an_earlier_encoder_has_removed_is_not_paid_for_again(host, unit, masses):
    """A search hides what its configuration removes, so the speed of the masses is that of the configuration."""
    asked = make_budget(host, 2.0, unit)
    held = asked.hold(torch.tensor(masses).double(), 1.0)
    assert asked.predicted(held.tolist()) == pytest.approx(2.0, rel=0.03)
    # What is wished for stays, and comes back as soon as the earlier encoder keeps more.
    assert held[1] > held[0]


def test_masses_that_the_loss_says_nothing_about_form_a_geometric_profile(host):
    shares = make_budget(host, 2.0).hold(torch.full((6,), 64.0).double(), 1.0) / 64
    torch.testing.assert_close(shares[:5], shares[0] ** torch.arange(1, 6))


@pytest.mark.parametrize("mass", [1.0, 1.2, 1.5, 3.9, 7.3, 9.1, 32.0, 60.5, 63.6, 64.0])
def test_a_ramp_has_its_mass_and_is_steep(host, mass):
    weights = make_budget(host, 2.0).ramp(torch.full((6,), mass).double())
    assert weights.shape == (6, 64)
    torch.testing.assert_close(weights.sum(1), torch.full((6,), mass).double(), atol=1e-9, rtol=0)
    assert torch.equal(weights, weights.sort(dim=1, descending=True).values)
    assert torch.equal(weights[:, 0], torch.ones(6).double())
    assert ((weights > 0) & (weights < 1)).sum(1).max() <= 4


@pytest.mark.parametrize("length", [64, 103])
def test_masses_that_are_read_off_their_weights_step_after_step_stay(host, length):
    asked = make_budget(host, 5.0, length=length, max_position_embeddings=128)
    masses = begun = asked.hold(torch.full((6,), float(length)).double(), 1.0)
    assert begun.min() < length / 8
    for _ in range(500):
        masses = asked.hold(retention.retention_mass(asked.ramp(masses).float().double()), 1.0)
    torch.testing.assert_close(masses, begun, atol=1e-3, rtol=0)


def test_steps_are_made_with_other_masses_nearby_once_the_budget_is_reached(host):
    asked = make_budget(host, 2.0)
    masses = torch.tensor([64.0, 50.0, 40.0, 20.0, 2.0, 1.5]).double()
    assert torch.equal(asked.scatter(masses, 299, 1000), masses)
    drawn = torch.stack([asked.scatter(masses, step, 1000) for step in range(300, 1000)])
    assert torch.equal(drawn[0], asked.scatter(masses, 300, 1000))
    assert drawn.min() >= 1.5
    assert drawn.max() <= 64
    # Away from the ends, by a factor as often as by its inverse, each encoder for itself.
    moved = (drawn / masses)[:, 1:4].log()
    torch.testing.assert_close(moved.mean(0), torch.zeros(3).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(moved.T.cov(), 0.15**2 * torch.eye(3).double(), atol=0.004, rtol=0)


def test_masses_do_not_wander_with_those_that_steps_are_made_with(host):
    asked = make_budget(host, 2.0)
    begun = asked.hold(torch.full((6,), 64.0).double(), 1.0)
    model = SimpleNamespace(retention_weights=torch.nn.Parameter(asked.ramp(begun).float()))
    callback, made_with = HoldBudget(asked), []
    callback.on_train_begin(None, None, None, model)
    for step in range(50, 100):
        state = SimpleNamespace(global_step=step, max_steps=100)
        with callback.moved(state):
            made_with.append(retention.retention_mass(model.retention_weights.detach().double()))
        # No gradient, and an optimizer that does nothing.
        model.retention_weights.grad = torch.zeros(6, 64)
        callback.on_pre_optimizer_step(None, state, None)
        callback.on_optimizer_step(None, state, None)
        masses = retention.retention_mass(model.retention_weights.detach().double())
        torch.testing.assert_close(masses, begun, atol=1e-3, rtol=0)
    assert (torch.stack(made_with).std(0) > 1).any()


def test_what_is_worth_more_than_it_costs_grows_at_the_cost_of_the_others(host):
    asked = make_budget(host, 2.0)
    weights = asked.ramp(torch.tensor([50.0, 40.0, 30.0, 20.0, 15.0, 10.0]).double())
    gradient = torch.zeros(6, 64)
    # The loss falls where encoder 2 keeps more, and does not care about the others.
    gradient[1] = -1.0
    change = asked.share_out(weights, gradient)
    assert change[1] < 0
    assert (change[[0, 2, 3, 4]] > 0).all()
    assert change.sum().item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("mass", [1.5, 3.3, 5.2, 9.4, 80.0, 247.0, 252.3])
def test_what_a_mass_is_worth_is_what_the_loss_changes_by(host, mass):
    """Of small masses and large ones one end of the ramp stays where it is, so ranks do not count alike."""
    asked = make_budget(host, 2.0, length=256, max_position_embeddings=256)
    masses = torch.tensor([240.0, 200.0, mass, 160.0, 120.0, 80.0]).double()
    worth = -1 / torch.arange(1, 257).double()
    change = asked.share_out(asked.ramp(masses), torch.nn.functional.one_hot(torch.tensor(2), 6)[:, None] * worth)

    def loss(by):
        return (worth * asked.ramp(masses * by)[2]).sum()

    # Widths are whole numbers, so the loss jumps by a little.
    far = min(1.2, (256 / mass) ** 0.9)
    wanted = (loss(far) - loss(1 / far)) / (2 * math.log(far))
    log_masses = masses.log().requires_grad_()
    (price,) = torch.autograd.grad(asked.cost(log_masses.exp()), log_masses)
    # Less what the budget takes back.
    torch.testing.assert_close(change[2] / (1 - price[2] / price.sum()), wanted, atol=0, rtol=0.15)


@pytest.mark.parametrize("mass", [1.0, 64.0])
def test_a_mass_at_its_end_is_worth_something_too(host, mass):
    asked = make_budget(host, 2.0)
    masses = torch.tensor([50.0, 40.0, 30.0, 20.0, 15.0, 10.0]).double()
    masses[0 if mass == 64 else 4] = mass
    gradient = torch.zeros(6, 64)
    gradient[masses == mass] = -1.0
    change = asked.share_out(asked.ramp(masses), gradient)
    assert change[masses == mass] < 0


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("missed", [0, 1, 4])
def test_refined_masses_lose_less_at_the_same_cost(host, unit, missed):
    asked = make_budget(host, 2.0, unit)
    masses = asked.hold(torch.full((6,), 64.0).double(), 1.0)
    worth = torch.full((6,), 0.1).double()
    worth[missed], worth[-1] = 3.0, 0.0
    asked_for = []

    def loss(config):
        asked_for.append(config)
        kept = torch.tensor(config).double() / (64 if unit == "words" else 1)
        return (-worth * kept.log()).sum().item()

    weights, before, after = asked.refine(masses, loss)
    assert len(asked_for) == asked.trials
    refined = retention.retention_mass(weights.double())
    # Of the configuration that is read off the weights.
    assert after == loss(asked.reach(refined.tolist())) < before
    assert before == pytest.approx(loss(asked.reach(masses.tolist())), abs=0.01)
    assert refined[missed] > masses[missed]
    assert asked.cost(refined.cummin(0).values).item() == pytest.approx(0.5, rel=0.01)


def test_masses_stay_as_they_are_where_every_other_loses_more(host):
    asked = make_budget(host, 2.0)
    masses = torch.tensor([50.0, 40.0, 30.0, 20.0, 15.0, 15.0]).double()
    masses = asked.hold(masses, 1.0)
    best = torch.tensor(asked.reach(masses.tolist()))
    for loss in (lambda config: (torch.tensor(config) - best).abs().sum().item(), lambda config: float("nan")):
        assert torch.equal(asked.refine(masses, loss)[0], asked.ramp(masses).float())


def test_what_a_mass_is_worth_is_set_against_what_it_costs(host):
    """Where the loss is the cost there is nothing to gain, though masses at R and equal ones are cut off."""
    asked = make_budget(host, 2.0)
    masses = asked.hold(torch.tensor([64.0, 64.0, 20.0, 20.0, 20.0, 20.0]).double(), 1.0)

    def loss(config):
        return -100 / asked.predicted([64 * share for share in config])

    weights, before, after = asked.refine(masses, loss)
    assert len({loss([share] * 6) for share in (0.2, 0.4, 0.8)}) == 3
    assert after == pytest.approx(before, rel=0.01)
    torch.testing.assert_close(weights, asked.ramp(masses).float(), atol=0.01, rtol=0)


def test_a_configuration_whose_loss_is_lost_is_passed_over(host):
    asked = make_budget(host, 2.0)
    masses = asked.hold(torch.full((6,), 64.0).double(), 1.0)
    found = []

    def loss(config):
        found.append(-math.log(config[1]))
        return found[-1] if len(found) != asked.trials - 2 else math.nan

    _, before, after = asked.refine(masses, loss)
    assert after == min(found[-2:]) < before


def test_masses_that_are_not_at_the_budget_are_brought_to_it(host):
    asked = make_budget(host, 2.0)
    weights, _, _ = asked.refine(torch.full((6,), 60.0).double(), lambda config: 1.0)
    assert asked.cost(retention.retention_mass(weights.double())).item() == pytest.approx(0.5, rel=0.01)


def test_a_search_whose_loss_is_lost_takes_any_other_that_is_not(host):
    asked = make_budget(host, 2.0)
    found = []

    def loss(config):
        found.append(-math.log(config[1]))
        return found[-1] if len(found) > 1 else math.nan

    _, before, after = asked.refine(torch.full((6,), 60.0).double(), loss)
    assert math.isnan(before)
    assert after == min(found[-3:])


@pytest.mark.parametrize("speedup", [1.01, 100.0])
def test_a_speed_up_that_nothing_has_is_refused(host, speedup):
    with pytest.raises(ValueError, match=r"On these inputs `speedup` must lie above 1.* and below .*, got"):
        make_budget(host, speedup)


def test_all_inputs_shorter_than_any_count_are_no_trouble(host):
    asked = make_budget(host, 1.5, "words", torch.tensor([4, 5, 5]))
    masses = asked.hold(torch.full((6,), 64.0).double(), 1.0)
    assert torch.isfinite(masses).all()
    assert asked.predicted(asked.reach(masses.tolist())) == pytest.approx(1.5, rel=0.1)


def hiding(host, unit, **fields):
    soft = {"retention_mode": "soft", "retention_length": 12, "retention_unit": unit, "retention_soft_extract": "hide"}
    return host.make(**soft, **fields)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_score_makes_up_for_a_weight_of_nothing(dtype):
    weights = torch.tensor([[1.0, 0.5, 1e-6, 0.0]], requires_grad=True)
    scores = torch.tensor([[0.0, 0.0, 30.0, 30.0]], dtype=dtype)
    attention = (scores + retention.hiding_bias(weights).to(dtype)).softmax(-1)
    torch.testing.assert_close(attention, torch.tensor([[2 / 3, 1 / 3, 0.0, 0.0]], dtype=dtype), atol=2e-3, rtol=0)
    assert attention[0, 2:].sum() == 0
    (gradient,) = torch.autograd.grad(attention[0, 0], weights)
    torch.testing.assert_close(gradient, torch.tensor([[2 / 9, -4 / 9, 0.0, 0.0]]), atol=5e-3, rtol=0)


COUNTS = [8, 5, 1]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hidden_word_vectors_are_as_good_as_removed(host, batch, unit, attention):
    """With weights of 0 and 1 the search sees what will be run, of inputs of every length."""
    soft = hiding(host, unit, attn_implementation=attention)
    entries = COUNTS if unit == "words" else [count / 12 for count in COUNTS]
    hard = host.make(retention_config=entries, retention_unit=unit)
    hard.load_state_dict(soft.state_dict(), strict=False)
    with torch.no_grad():
        soft.retention_weights.copy_(torch.arange(12) < torch.tensor(COUNTS)[:, None])
    torch.testing.assert_close(soft(**batch).logits, hard(**batch).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("unit", UNITS)
def test_gradients_of_hidden_word_vectors_are_finite_and_reach_all_encoders_but_the_last(host, batch, unit):
    soft = hiding(host, unit)
    with torch.no_grad():
        soft.retention_weights.copy_(torch.tensor([[1.0] * 8 + [0.5] * 2 + [0.0] * 2] * 3))
        soft.retention_weights[1, 5:] = 0.0
    soft(**batch, labels=torch.tensor([0, 1, 0, 1, 0])).loss.backward()
    gradient = soft.retention_weights.grad
    assert torch.isfinite(gradient).all()
    assert (gradient.abs().sum(1) > 0).tolist() == [True, True, False]


def test_half_hidden_word_vectors_take_half_the_attention_and_have_half_a_vote():
    generator = torch.Generator().manual_seed(6)
    query, key = torch.randn(2, 1, 2, 5, 4, generator=generator)
    weights = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0]])
    left = [0, 1, 3]
    found = retention.significance(query, key, weights=weights)[:, left]
    torch.testing.assert_close(found, retention.significance(query[:, :, left], key[:, :, left]), atol=1e-5, rtol=0)
    weights = torch.full((1, 5), 0.5)
    # All alike: nobody takes more than before, and all votes count half.
    torch.testing.assert_close(
        retention.significance(query, key, weights=weights), retention.significance(query, key) / 2
    )


# torch's own, from flex attention.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_attention_that_takes_no_numbers_is_refused(host, batch):
    soft = hiding(host, "words")
    soft.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="eager and sdpa attention take, got 'flex_attention'"):
        soft(**batch)


# The name that all supported versions of transformers have; 5.23 has a newer one too.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_reentrant_checkpointing_which_would_lose_gradients_is_refused(host, batch):
    soft = hiding(host, "words").train()
    soft.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant"):
        soft(**batch)
    soft.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    soft(**batch, labels=torch.tensor([0, 1, 0, 1, 0])).loss.backward()
    assert (soft.retention_weights.grad.abs().sum(1) > 0).tolist() == [True, True, False]


@torch.no_grad()
def test_what_an_encoder_has_hidden_no_later_one_brings_back(host, batch):
    soft, hard = hiding(host, "words"), host.make(retention_config=[5, 5, 1])
    soft.retention_weights.copy_(torch.arange(12) < torch.tensor([5, 9, 1])[:, None])
    torch.testing.assert_close(soft(**batch).logits, hard(**batch).logits, atol=2e-5, rtol=0)


@torch.no_grad()
def test_hidden_word_vectors_have_no_vote_with_any_attention(host):
    ids = torch.randint(1, 60, (64, 12), generator=torch.Generator().manual_seed(0))
    answers = []
    for attention in ("eager", "sdpa"):
        soft = hiding(host, "words", attn_implementation=attention)
        soft.retention_weights.copy_(torch.arange(12) < torch.tensor([8, 5, 1])[:, None])
        answers.append(soft(ids).logits)
    torch.testing.assert_close(*answers, atol=2e-5, rtol=0)


def test_only_configurations_that_can_be_run_are_tried(host):
    asked = make_budget(host, 2.0)
    tried = []

    def loss(config):
        retention.check_retention_config(config, 6, "fraction")
        tried.append(config)
        return 1.0

    asked.refine(asked.hold(torch.tensor([64.0, 64.0, 20.0, 20.0, 20.0, 20.0]).double(), 1.0), loss)
    assert len(tried) > 6
