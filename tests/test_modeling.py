"""What elimination does to a model, for both hosts: which word-vectors stay, and what must not depend on the batch."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import reference
from conftest import Host, without_dropout
from powerbert_hf import encoder, retention
from powerbert_hf.elimination import logger
from powerbert_hf.encoder import Kept, ranking_attention

HARD = {
    "words": {"retention_config": [8, 5, 3], "retention_unit": "words"},
    "fraction": {"retention_config": [0.7, 0.4, 0.2], "retention_unit": "fraction"},
}
SOFT = {unit: {"retention_mode": "soft", "retention_length": 10, "retention_unit": unit} for unit in HARD}


@pytest.fixture(params=HARD)
def unit(request):
    return request.param


def test_lengths_follow_the_configuration_and_cls_always_stays(host, batch, unit):
    ours = host.make("base", **HARD[unit])
    outputs = ours(**batch, output_hidden_states=True, output_kept_positions=True)
    widths = [reference.count(entry, 12, unit) for entry in ours.config.retention_config]
    assert [states.shape[1] for states in outputs.hidden_states] == [12, *widths]
    assert [kept.shape for kept in outputs.kept_positions] == [(5, width) for width in widths]
    before = [set(range(length)) for length in batch["attention_mask"].sum(1)]
    for kept, entry in zip(outputs.kept_positions, ours.config.retention_config, strict=True):
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            number = reference.count(entry, length, unit)
            positions = kept[row].tolist()
            assert positions[:number] == sorted(positions[:number])
            assert positions[number:] == [-1] * (len(positions) - number)
            assert positions[0] == 0
            assert set(positions[:number]) <= before[row]
            before[row] = set(positions[:number])


def test_fewer_word_vectors_than_were_given_are_pointed_out_once(host, batch, caplog):
    logger.warning_once.cache_clear()
    ours = host.make("base", **HARD["fraction"])
    ours(**batch, cls_only=True)
    ours(**batch, output_kept_positions=True)
    host.make("base", retention_mode="off")(**batch)
    assert caplog.text == ""
    for width in (12, 9):
        assert ours(**{name: part[:, :width] for name, part in batch.items()}).last_hidden_state.shape[1] < width
    assert caplog.text.count("A mean over them, as of SentenceTransformer, is no embedding") == 1


def test_shapes_are_told_of_tensors_without_numbers(host):
    ours = host.make(**HARD["fraction"])
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        inputs = torch.ones(2, 8, dtype=torch.long)
        assert ours(inputs).logits.shape == ours(inputs, attention_mask=inputs).logits.shape == (2, 2)


def test_inputs_that_share_a_row_are_told_apart_as_in_stock_or_refused(host, batch):
    seen = []

    def attend(*tensors, **kwargs):
        seen.append(kwargs.get("position_ids"))
        return sdpa_attention_forward(*tensors, **kwargs)

    AttentionInterface.register("seen", attend)
    ours = host.make(attn_implementation="seen")
    inputs, positions = batch["input_ids"][:1], torch.tensor([[*range(7), *range(5)]])
    ours(inputs, position_ids=positions)
    assert len(seen) == ours.config.num_encoders
    assert all(one is positions for one in seen)
    boundaries = torch.tensor([0, 7, 12], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"Each input must have a row of its own .*; pad them"):
        host.make(**HARD["words"])(inputs, cu_seq_lens_q=boundaries, cu_seq_lens_k=boundaries)


def test_kept_are_the_most_significant(host, batch):
    """From the model's own queries and keys, with the reference's significance and ranking."""
    ours = host.make("base", retention_config=[4, 4, 4])
    captured = {}
    attention = next(module for module in ours.modules() if hasattr(module, "attend"))

    def capture(name):
        def hook(module, inputs, output):
            # ALBERT calls the same module at every depth; the first is the one.
            captured.setdefault(name, output)

        return hook

    attention.query.register_forward_hook(capture("query"))
    attention.key.register_forward_hook(capture("key"))
    kept = ours(**batch, output_kept_positions=True).kept_positions[0]
    heads = {name: states.view(5, 12, 4, 8).transpose(1, 2) for name, states in captured.items()}
    for row, mask in enumerate(batch["attention_mask"].tolist()):
        scores = reference.significance(heads["query"][row].tolist(), heads["key"][row].tolist(), mask, 8**-0.5)
        expected = sorted(reference.rank(scores, mask)[: min(4, sum(mask))])
        assert [position for position in kept[row].tolist() if position >= 0] == expected


def test_an_example_has_the_same_logits_alone_and_in_any_padded_batch(host, batch, unit):
    ours = host.make(**HARD[unit])
    together = ours(**batch).logits
    wider = {name: torch.nn.functional.pad(values, (0, 9)) for name, values in batch.items()}
    torch.testing.assert_close(ours(**wider).logits, together, atol=1e-5, rtol=0)
    for row, length in enumerate(batch["attention_mask"].sum(1)):
        alone = ours(input_ids=batch["input_ids"][row : row + 1, :length]).logits
        torch.testing.assert_close(alone, together[row : row + 1], atol=1e-5, rtol=0)
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = ours(**{name: values[order] for name, values in batch.items()}).logits
    torch.testing.assert_close(shuffled, together[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("soft_extract", ["multiply", "hide"])
def test_soft_logits_do_not_depend_on_the_batch_either(host, batch, unit, soft_extract):
    ours = host.make(**SOFT[unit], retention_soft_extract=soft_extract)
    with torch.no_grad():
        ours.retention_weights.copy_(torch.linspace(1, 0, 10).expand(3, 10))
    together = ours(**batch).logits
    for row, length in enumerate(batch["attention_mask"].sum(1)):
        alone = ours(input_ids=batch["input_ids"][row : row + 1, :length]).logits
        torch.testing.assert_close(alone, together[row : row + 1], atol=1e-5, rtol=0)


def test_left_padding_keeps_position_0_and_all_real_ones_that_are_to_stay(host):
    ours = host.make("base", retention_config=[3, 2, 2])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    kept = ours(torch.tensor([[0, 0, 5, 6, 7]]), attention_mask=mask, output_kept_positions=True).kept_positions
    assert kept[0][0, 0] == 0
    assert set(kept[0][0, 1:].tolist()) <= {2, 3, 4}
    assert kept[0].shape == (1, 3)
    # It counts among them: of three real ones and itself, four stay.
    ours.set_retention([4, 4, 4])
    kept = ours(torch.tensor([[0, 0, 5, 6, 7]]), attention_mask=mask, output_kept_positions=True).kept_positions
    assert kept[0].tolist() == [[0, 2, 3, 4]]


@torch.no_grad()
@pytest.mark.parametrize("config", [[0.7, 0.4, 0.2], [4, 1, 1], [1, 1, 1]])
def test_position_0_is_attended_to_once_it_was_kept_whatever_its_mask_says(host, batch, config):
    """With a mask of its own alone, each attention implementation would make something else of it."""
    ours = host.make(retention_config=config, retention_unit="fraction" if config[0] < 1 else "words")
    flipped = {name: values.flip(1) for name, values in batch.items()}
    answers = []
    for attention in ("eager", "sdpa"):
        ours.set_attn_implementation(attention)
        answers.append(ours(**flipped).logits)
    torch.testing.assert_close(*answers, atol=1e-5, rtol=0)


# torch's own, from flex attention: what it imports, a flag of its mask that transformers 5.23 still passes, and
# that it is not compiled.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
@torch.no_grad()
def test_every_backend_keeps_the_same_and_says_the_same(host, batch, unit):
    ours = host.make(**HARD[unit])
    answers = {}
    # Flex attention in torch's reference: what it compiles for CPUs ends in NaN on some of them, stock's too.
    with torch.compiler.set_stance("force_eager"):
        for attention in ("eager", "sdpa", "flex_attention"):
            ours.set_attn_implementation(attention)
            answers[attention] = ours(**batch, output_kept_positions=True)
    for outputs in answers.values():
        torch.testing.assert_close(outputs.logits, answers["eager"].logits, atol=1e-5, rtol=0)
        for kept, wanted in zip(outputs.kept_positions, answers["eager"].kept_positions, strict=True):
            assert torch.equal(kept, wanted)


@pytest.mark.parametrize("asked_in", ["call", "config"])
def test_attentions_shrink_with_the_word_vectors_and_have_a_row_for_each(host, batch, asked_in):
    """Also where [CLS] alone goes on, which changes no answer."""
    ours = host.make(retention_config=[8, 5, 1], attn_implementation="eager")
    wanted = ours(**batch).logits
    ours.config.output_attentions = asked_in == "config"
    outputs = ours(**batch, **({"output_attentions": True} if asked_in == "call" else {}))
    assert [weights.shape[1:] for weights in outputs.attentions] == [(4, 12, 12), (4, 8, 8), (4, 5, 5)]
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    torch.testing.assert_close(outputs.logits, wanted, atol=1e-6, rtol=0)


def test_soft_and_hard_rank_the_same_word_vectors_first(host, batch):
    """In the first encoder, where nothing has been weighed down yet: weights of 1 and 0 are a soft Extract."""
    hard, soft = host.make("base", retention_config=[4, 4, 4]), host.make("base", **SOFT["words"])
    soft.load_state_dict(hard.state_dict(), strict=False)
    with torch.no_grad():
        soft.retention_weights.copy_((torch.arange(10) < 4).expand(3, 10))
    kept = hard(**batch, output_kept_positions=True).kept_positions[0]
    weighed = []
    # A hook that returned something would replace the output.
    hook = next(iter(soft.encoder.encoders())).attention.register_forward_hook(
        lambda *call: weighed.append(call[2][0])
    )
    soft(**batch)
    hook.remove()
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        stayed = weighed[0][row, :length].abs().sum(1).nonzero().flatten().tolist()
        assert [position for position in kept[row].tolist() if position >= 0] == stayed


@pytest.mark.parametrize(("soft_extract", "last"), [("multiply", 0), ("published", 3), ("hide", 0)])
def test_penalty_is_the_weighted_mass_with_the_last_encoders_as_in_the_paper(host, batch, soft_extract, last):
    ours = host.make(**SOFT["fraction"], retention_soft_extract=soft_extract)
    with torch.no_grad():
        ours.retention_weights.copy_(torch.tensor([[0.9], [0.5], [0.1]]).expand(3, 10))
    assert ours(**batch).retention_penalty.item() == pytest.approx(1 * 9 + 2 * 5 + last * 1)
    assert ours.base_model(**batch).retention_penalty.item() == pytest.approx(1 * 9 + 2 * 5 + 3 * 1)


def test_a_subclass_of_any_name_computes_its_loss(host, batch):
    ours = host.make(retention_config=[8, 5, 2])
    labels = torch.tensor([0, 1, 0, 1, 0])
    mine = type("Toxicity", (type(ours),), {})(ours.config).eval()
    mine.load_state_dict(ours.state_dict())
    assert torch.equal(mine(**batch, labels=labels).loss, ours(**batch, labels=labels).loss)


def test_embeddings_may_be_wrapped(host, batch):
    class Wrapper(torch.nn.Module):
        """As PEFT's, which has the weight alone."""

        def __init__(self, wrapped):
            super().__init__()
            self.wrapped, self.weight = wrapped, wrapped.weight

        def forward(self, ids):
            return self.wrapped(ids)

    ours = host.make(retention_config=[8, 5, 2])
    wanted = ours(**batch).logits
    ours.set_input_embeddings(Wrapper(ours.get_input_embeddings()))
    assert torch.equal(ours(**batch).logits, wanted)
    with pytest.raises(ValueError, match="must lie between 0 and"):
        ours(input_ids=torch.full((1, 4), ours.config.vocab_size))


def test_task_loss_reaches_the_retention_weights_of_all_encoders_but_the_last(host, batch, unit):
    ours = host.make(**SOFT[unit])
    ours(**batch, labels=torch.tensor([0, 1, 0, 1, 0])).loss.backward()
    reached = ours.retention_weights.grad.abs().sum(1) > 0
    assert reached.tolist() == [True, True, False]


# The name that all supported versions of transformers have; 5.23 has a newer one too.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("fields", [HARD["fraction"], SOFT["fraction"]], ids=["hard", "soft"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_gradients_equal_plain_ones(host, batch, fields, reentrant):
    ours = host.make(**fields)
    labels = torch.tensor([0, 1, 0, 1, 0])
    # Dropout off, yet in training mode: checkpointing works only there.
    without_dropout(ours)
    ours.train()
    plain = torch.autograd.grad(ours(**batch, labels=labels).loss, list(ours.parameters()), allow_unused=True)
    ours.gradient_checkpointing_enable({"use_reentrant": reentrant})
    ours.enable_input_require_grads()
    ours(**batch, labels=labels).loss.backward()
    for (name, parameter), wanted in zip(ours.named_parameters(), plain, strict=True):
        wanted = torch.zeros_like(parameter) if wanted is None else wanted
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5, msg=name)


def test_set_retention_changes_a_live_model_and_refuses_without_harm(host, batch):
    ours = host.make(retention_config=[8, 5, 3])
    before = ours(**batch).logits
    with pytest.raises(ValueError, match="must not increase"):
        ours.set_retention([0.1, 0.2, 0.3], unit="fraction")
    for wrong in ({"length": 8.5}, {"length": "x"}, {"unit": 3}, {"config": "321"}):
        with pytest.raises(ValueError, match=r"^Field 'retention_[a-z]+' .*; pass another\.$"):
            ours.set_retention(**{"config": [3, 2, 1], "unit": "words", **wrong})
        assert ours.config.retention_config == [8, 5, 3]
    assert torch.equal(ours(**batch).logits, before)
    ours.set_retention(range(3, 0, -1), length=torch.tensor(20))
    assert (ours.config.retention_config, ours.config.retention_length) == ([3, 2, 1], 20)
    ours.set_retention((0.5, 0.25, 0.25), unit="fraction", length=20)
    assert ours.config.retention_length == 20
    assert [kept.shape[1] for kept in ours(**batch, output_kept_positions=True).kept_positions] == [6, 3, 1]
    ours.set_retention(None)
    assert ours.config.active_retention_mode == "off"
    soft = host.make(**SOFT["words"])
    soft.set_retention([8, 5, 3], unit="words")
    assert soft.retention_weights is None
    assert soft.config.active_retention_mode == "hard"


def test_the_mode_of_a_live_soft_model_can_be_changed_and_back(host, batch):
    ours = host.make(**SOFT["words"], retention_config=[8, 5, 3])
    assert ours(**batch).retention_penalty is not None
    ours.config.retention_mode = "hard"
    outputs = ours(**batch, output_kept_positions=True)
    assert [kept.shape[1] for kept in outputs.kept_positions] == [8, 5, 1]
    assert outputs.retention_penalty is None
    hard = host.make(retention_config=[8, 5, 3])
    hard.config.retention_mode = "soft"
    with pytest.raises(ValueError, match='load it with `retention_mode="soft"`'):
        hard(**batch)


def test_a_mask_of_four_dimensions_is_refused(host, batch):
    ours = host.make(retention_config=[8, 5, 3])
    with pytest.raises(ValueError, match=r"must have shape \(batch, length\).*got \(5, 1, 12, 12\)"):
        ours(batch["input_ids"], attention_mask=torch.ones(5, 1, 12, 12))


def test_input_shorter_than_every_count_is_the_stock_model(host):
    ours = host.make(retention_config=[8, 5, 3])
    input_ids = torch.tensor([[4, 5, 6]])
    torch.testing.assert_close(ours(input_ids).logits, ours.to_stock()(input_ids).logits, atol=1e-5, rtol=0)


def test_inputs_embeds_and_token_types(host, batch):
    ours = host.make(**HARD["fraction"])
    embeds = ours.get_input_embeddings()(batch["input_ids"])
    mask = batch["attention_mask"]
    torch.testing.assert_close(ours(inputs_embeds=embeds, attention_mask=mask).logits, ours(**batch).logits)
    types = torch.ones_like(mask)
    assert not torch.allclose(ours(**batch, token_type_ids=types).logits, ours(**batch).logits)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        ours()


def test_outputs_as_tuple_follow_the_fields(host, batch):
    ours = host.make(**SOFT["words"])
    loss_first = ours(**batch, labels=torch.tensor([0, 1, 0, 1, 0]), return_dict=False)
    assert len(loss_first) == 3
    assert loss_first[1].shape == (5, 2)


def test_dtypes(host, batch, unit):
    wanted = host.make(**HARD[unit])(**batch).logits
    for dtype, tolerance in ((torch.bfloat16, 0.3), (torch.float16, 0.1)):
        found = host.make(**HARD[unit]).to(dtype)(**batch).logits
        assert found.dtype == dtype
        assert (found.float() - wanted).abs().median() < tolerance


def test_grouped_and_repeated_albert_layers():
    from conftest import Host

    ours = Host("albert").make("base", num_hidden_groups=3, inner_group_num=2, retention_config=[9, 8, 7, 6, 5, 4])
    outputs = ours(torch.ones(1, 12, dtype=torch.long), output_hidden_states=True)
    assert [states.shape[1] for states in outputs.hidden_states] == [12, 9, 8, 7, 6, 5, 4]


def test_a_configuration_that_was_set_by_hand_is_checked_before_it_runs(host, batch):
    """What `set_retention` would have said."""
    for config, message in (
        ([0.9, 0.8, 0.7], "in words must hold integers of at least 1, got 0.9"),
        ([9, 4], r"one entry per encoder \(3\), got 2"),
        ([2, 8, 9], "must not increase"),
    ):
        model = host.make(retention_config=[9, 4, 1])
        model.config.retention_config = config
        with pytest.raises(ValueError, match=message), torch.no_grad():
            model(**batch)
        with pytest.raises(ValueError, match=message):
            model(**batch)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, lambda shares: list(np.array(shares))])
def test_arrays_are_configurations(host, kind):
    model = host.make()
    model.set_retention(kind([0.75, 0.5, 0.25]), "fraction")
    assert model.config.retention_config == [0.75, 0.5, 0.25]
    assert {type(entry) for entry in model.config.retention_config} == {float}


def test_the_ranking_has_no_gradient(host, batch, monkeypatch):
    seen = []
    monkeypatch.setattr(
        encoder, "rank", lambda received, mask: seen.append(received) or retention.rank(received, mask)
    )
    host.make(retention_config=[8, 5, 3])(**batch)
    assert [received.requires_grad for received in seen] == [False, False]


def test_rankings_are_compared_where_word_vectors_are_ranked(host, batch):
    """Encoder 1 ranks all, encoder 2 what is left, encoder 3 nothing."""
    ours = host.make(retention_config=[8, 5, 3])
    wanted = torch.rand(5, 12, generator=torch.Generator().manual_seed(7)) + 0.1
    outputs = ours(**batch, wanted_significance=wanted, output_kept_positions=True, output_hidden_states=True)
    entered = torch.arange(12).where(batch["attention_mask"].bool(), -1), outputs.kept_positions[0]
    expected = []
    for layer, states, positions in zip(
        ours.base_model.encoder.encoders(), outputs.hidden_states, entered, strict=False
    ):
        received = ranking_attention(layer).significance_of(states, positions >= 0)
        rows = []
        for row in range(5):
            there = positions[row] > 0
            aim, given = wanted[row, positions[row][there]], received[row, there]
            aim, given = aim / aim.sum(), given / given.sum()
            rows += [(aim * (aim / given).log()).sum()] if there.any() else []
        expected.append(torch.stack(rows).mean())
    assert outputs.ranking_divergence.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)
    attention = ranking_attention(next(iter(ours.base_model.encoder.encoders())))
    (gradient,) = torch.autograd.grad(outputs.ranking_divergence, attention.query.weight)
    assert gradient.abs().max() > 0
    assert ours(**batch).ranking_divergence is None
    assert host.make()(**batch, wanted_significance=wanted).ranking_divergence is None


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "fields",
    [HARD["fraction"], {**SOFT["fraction"], "retention_soft_extract": "hide"}],
    ids=["hard", "hide"],
)
def test_checkpointing_keeps_the_gradients_of_rankings_or_is_refused(host, batch, fields):
    ours = without_dropout(host.make(**fields)).train()
    wanted = torch.rand(5, 12, generator=torch.Generator().manual_seed(7)) + 0.1

    def gradients():
        apart = ours(**batch, wanted_significance=wanted).ranking_divergence
        return torch.autograd.grad(apart, list(ours.parameters()), allow_unused=True)

    plain = gradients()
    assert any(gradient is not None and gradient.any() for gradient in plain)
    ours.gradient_checkpointing_enable({"use_reentrant": False})
    for found, expected in zip(gradients(), plain, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    ours.gradient_checkpointing_enable({"use_reentrant": True})
    ours.enable_input_require_grads()
    with pytest.raises(ValueError, match="use_reentrant"):
        ours(**batch, wanted_significance=wanted)
    for layer in ours.base_model.encoder.encoders():
        attention = ranking_attention(layer)
        attention.query.requires_grad_(False), attention.key.requires_grad_(False)
    with pytest.raises(ValueError, match="use_reentrant"):
        ours(**batch, wanted_significance=wanted)


def test_rankings_of_what_is_frozen_have_no_gradient(batch):
    ours = Host("bert").make(retention_config=[8, 5, 3])
    ours.requires_grad_(False)
    ours.base_model.encoder.layer[2].requires_grad_(True)
    wanted = torch.rand(5, 12, generator=torch.Generator().manual_seed(7)) + 0.1
    outputs = ours(**batch, labels=torch.tensor([0, 1, 0, 1, 0]), wanted_significance=wanted)
    assert outputs.ranking_divergence > 0
    (outputs.loss + outputs.ranking_divergence).backward()
    assert ours.base_model.encoder.layer[2].output.dense.weight.grad.any()


def test_of_what_is_partly_left_as_large_a_part_of_its_attention_is_wanted():
    wanted = torch.tensor([[1.0, 5.0, 3.0, 2.0]])
    weights = torch.tensor([[1.0, 1.0, 0.5, 5e-5]])
    kept = Kept(None, None, weights, wanted)
    assert kept.divergence(7 * weights * wanted).item() == pytest.approx(0.0, abs=1e-6)
    assert kept.divergence(7 * wanted).item() > 0.1


def test_what_is_hidden_is_not_ranked(host, batch):
    """A soft model that hides says what the hard one says."""
    wanted = torch.rand(5, 12, generator=torch.Generator().manual_seed(7)) + 0.1
    hard = host.make(retention_config=[8, 5, 3])
    soft = host.make(retention_mode="soft", retention_length=12, retention_soft_extract="hide")
    soft.load_state_dict(hard.state_dict(), strict=False)
    with torch.no_grad():
        soft.retention_weights.copy_(torch.arange(12) < torch.tensor([[8], [5], [1]]))
    expected, found = (model(**batch, wanted_significance=wanted).ranking_divergence for model in (hard, soft))
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    # What is hidden here, no later encoder has ranked by.
    found.backward()
    assert soft.retention_weights.grad is None or not soft.retention_weights.grad.any()


def test_masses_learn_by_rankings_only_what_hiding_does_to_later_encoders(host, batch):
    """Encoder 3 ranks by hidden states that encoder 2 has made of what encoder 1 has hidden."""
    wanted = torch.rand(5, 12, generator=torch.Generator().manual_seed(7)) + 0.1
    fields = {"retention_mode": "soft", "retention_length": 12, "retention_soft_extract": "hide"}
    soft = host.classifier(host.config(**{**host.fields, **fields, "num_hidden_layers": 4}))
    with torch.no_grad():
        soft.retention_weights.fill_(0.5)
    soft(**batch, wanted_significance=wanted).ranking_divergence.backward()
    assert soft.retention_weights.grad.any(dim=1).tolist() == [True, False, False, False]
