"""What people do with stock BERT and ALBERT they can do with ours: compile, export, resize, cast, load, share."""

import pickle
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from test_modeling import HARD, SOFT

HIDDEN = {**SOFT["fraction"], "retention_soft_extract": "hide"}

# torch's own, while it imports what tracing needs.
TRACING = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
# Counts that fall to 1 for some lengths and not for others, that are 1, and that no input reaches.
CONFIGS = [
    pytest.param(HARD["fraction"], id="fraction"),
    *(
        pytest.param(fields, id=name, marks=pytest.mark.slow)
        for name, fields in {
            "words": HARD["words"],
            "steep": {"retention_config": [0.7, 0.1, 0.05], "retention_unit": "fraction"},
            "one": {"retention_config": [50, 1, 1]},
        }.items()
    ),
]


def padded_batch(size, length):
    """One input of each length from `length` down."""
    lengths = torch.arange(length, length - size, -1).clamp(min=1)
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {"input_ids": (torch.arange(size * length).view(size, length) % 50 + 1) * mask, "attention_mask": mask}


class CountingBackend:
    """Of `torch.compile`: runs the graph as it is, and counts the graphs."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@TRACING
@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=pytest.mark.slow)], ids=["default", "dynamic"])
@pytest.mark.parametrize("fields", CONFIGS)
def test_a_compiled_model_has_few_graphs_and_the_same_logits(host, fields, dynamic):
    ours, backend = host.make(**fields), CountingBackend()
    torch.compiler.reset()
    compiled = torch.compile(ours, backend=backend, dynamic=dynamic)
    with torch.no_grad():
        for length in (12, 30, 5, 9, 64, 2, 3, 40, 17, 22, 8, 6, 50, 33, 11, 4, 60, 7, 20, 10):
            inputs = padded_batch(4, length)
            torch.testing.assert_close(compiled(**inputs).logits, ours(**inputs).logits, atol=1e-5, rtol=0)
    assert backend.graphs <= 3


@TRACING
@pytest.mark.slow
@pytest.mark.parametrize("unit", HARD)
def test_inductor_compiles_the_same_logits(host, unit):
    ours = host.make(**HARD[unit])
    torch.compiler.reset()
    compiled = torch.compile(ours, dynamic=True)
    with torch.no_grad():
        for length in (12, 30, 5, 2, 40):
            inputs = padded_batch(4, length)
            torch.testing.assert_close(compiled(**inputs).logits, ours(**inputs).logits, atol=1e-5, rtol=0)


@TRACING
@pytest.mark.parametrize(
    "free",
    [
        pytest.param({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}, id="auto"),
        # With these torch refuses a graph that would not serve every size in the range.
        pytest.param({0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=64)}, id="named"),
    ],
)
@pytest.mark.parametrize("fields", CONFIGS)
def test_an_exported_model_serves_every_batch_and_length(host, fields, free):
    """Also lengths below the counts, and those whose count is 1 where the sample's was not."""
    ours = host.make(**fields)
    sample = padded_batch(5, 12)
    program = torch.export.export(ours, (), sample, dynamic_shapes=dict.fromkeys(sample, free), strict=False).module()
    for size, length in ((2, 40), (4, 9), (3, 5), (5, 3), (2, 2), (1, 12), (3, 1), (1, 1)):
        inputs = padded_batch(size, length)
        torch.testing.assert_close(program(**inputs).logits, ours(**inputs).logits, atol=1e-5, rtol=0)


@TRACING
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("unit", HARD)
def test_a_model_traced_by_torch_jit_serves_other_batches_and_lengths(host, unit):
    """As a traced stock model does."""
    ours = host.make(**HARD[unit])
    with torch.no_grad():
        traced = torch.jit.trace(ours, tuple(padded_batch(5, 12).values()), strict=False)
        for size, length in ((5, 12), (2, 30), (3, 20)):
            inputs = padded_batch(size, length)
            torch.testing.assert_close(traced(*inputs.values())["logits"], ours(**inputs).logits, atol=1e-5, rtol=0)


@TRACING
@pytest.mark.slow
def test_an_exported_model_may_take_no_mask_and_one_whose_sample_had_a_count_of_1_takes_more(host):
    ours = host.make(retention_config=[0.5, 0.4, 0.2], retention_unit="fraction")
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    sample = {"input_ids": padded_batch(2, 2)["input_ids"]}
    program = torch.export.export(ours, (), sample, dynamic_shapes={"input_ids": free}, strict=False).module()
    for size, length in ((2, 30), (3, 5), (1, 1)):
        input_ids = torch.arange(size * length).view(size, length) % 50 + 1
        torch.testing.assert_close(program(input_ids=input_ids).logits, ours(input_ids).logits, atol=1e-5, rtol=0)


@TRACING
@pytest.mark.slow
def test_an_exported_base_model_hands_on_two_word_vectors_at_least(host):
    """The one difference that export makes: where one is left, another that is not real comes with it."""
    ours = host.make("base", **HARD["fraction"])
    sample = padded_batch(5, 12)
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(ours, (), sample, dynamic_shapes=dict.fromkeys(sample, free), strict=False).module()
    for size, length, kept in ((2, 30, 6), (3, 5, 1), (1, 1, 1)):
        inputs = padded_batch(size, length)
        found, wanted = program(**inputs), ours(**inputs)
        assert wanted.last_hidden_state.shape[1] == kept
        assert found.last_hidden_state.shape[1] == max(2, kept)
        torch.testing.assert_close(found.pooler_output, wanted.pooler_output, atol=1e-5, rtol=0)
        longest = found.last_hidden_state[0, :kept]
        torch.testing.assert_close(longest, wanted.last_hidden_state[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("fields", [*HARD.values(), SOFT["fraction"], HIDDEN], ids=[*HARD, "soft", "hidden"])
def test_threads_that_share_a_model_get_the_answers_of_one(host, fields):
    ours = host.make(**fields)
    asked = [padded_batch(5, 12), padded_batch(3, 6), padded_batch(2, 30), padded_batch(1, 1)]
    with torch.no_grad():
        wanted = [ours(**inputs, output_kept_positions=True, output_hidden_states=True) for inputs in asked]
    wrong, start = [], threading.Barrier(len(asked))

    def ask(inputs, answer):
        start.wait()
        with torch.no_grad():
            for _ in range(25):
                found = ours(**inputs, output_kept_positions=True, output_hidden_states=True)
                # Packed, where the mode allows it.
                alone = ours(**inputs).logits
                same = all(torch.allclose(logits, answer.logits, atol=1e-5) for logits in (found.logits, alone))
                for name in ("kept_positions", "hidden_states"):
                    pairs = zip(getattr(found, name), getattr(answer, name), strict=True)
                    same = same and all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)
                wrong.extend([] if same else [inputs["input_ids"].shape])

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(asked, wanted, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("chunk_size", [1, 5, 100])
def test_feed_forward_chunks_of_any_size_change_nothing(host, batch, chunk_size):
    """Upstream's must divide the length, which differs between encoders here."""
    ours = host.make(**HARD["words"])
    chunked = host.make(**HARD["words"], chunk_size_feed_forward=chunk_size)
    torch.testing.assert_close(chunked(**batch).logits, ours(**batch).logits, atol=1e-6, rtol=0)
    calls = []
    layer = next(iter(chunked.base_model.encoder.encoders()))
    dense = layer.intermediate.dense if host.name == "bert" else layer.ffn
    dense.register_forward_hook(lambda *call: calls.append(call[1][0].shape[1]))
    chunked.base_model(**batch)
    assert calls[: -(-8 // chunk_size)] == {1: [1] * 8, 5: [5, 3], 100: [8]}[chunk_size]


def test_hidden_states_of_chosen_encoders(host, batch):
    ours = host.make(**HARD["words"])
    everything = ours(**batch, output_hidden_states=True).hidden_states
    assert [states.shape[1] for states in everything] == [12, 8, 5, 1]
    stock = host.make_stock()
    for chosen in (2, [0, 3], -1):
        found = ours(**batch, output_hidden_states=chosen).hidden_states
        # Those that stock gives; before transformers 5.23 that is all of them, whatever is asked for.
        given = [states is not None for states in stock(**batch, output_hidden_states=chosen).hidden_states]
        assert [states is not None for states in found] == given
        for states, expected in zip(found, everything, strict=True):
            assert states is None or torch.equal(states, expected)


def test_token_embeddings_and_head_are_resized(host, batch, tmp_path):
    ours = host.make(**HARD["fraction"])
    before = ours(**batch).logits
    ours.resize_token_embeddings(70)
    torch.testing.assert_close(ours(**batch).logits, before)
    assert ours(torch.full((1, 3), 69)).logits.shape == (1, 2)
    ours.save_pretrained(tmp_path)
    assert host.classifier.from_pretrained(tmp_path).config.vocab_size == 70
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        host.classifier.from_pretrained(tmp_path, num_labels=5)
    wider = host.classifier.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True).eval()
    assert wider(**batch).logits.shape == (5, 5)
    torch.testing.assert_close(wider.base_model(**batch).pooler_output, ours.base_model(**batch).pooler_output)


def test_attention_implementation_is_chosen_at_load_and_on_a_live_model(host, batch, tmp_path):
    host.make(**HARD["fraction"]).save_pretrained(tmp_path)
    eager = host.classifier.from_pretrained(tmp_path, attn_implementation="eager").eval()
    sdpa = host.classifier.from_pretrained(tmp_path).eval()
    assert (eager.config._attn_implementation, sdpa.config._attn_implementation) == ("eager", "sdpa")
    assert all(weights is not None for weights in eager(**batch, output_attentions=True).attentions)
    torch.testing.assert_close(sdpa(**batch).logits, eager(**batch).logits, atol=1e-5, rtol=0)
    sdpa.set_attn_implementation("eager")
    assert torch.equal(sdpa(**batch).logits, eager(**batch).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "fields",
    [*HARD.values(), *SOFT.values(), HIDDEN],
    ids=["words", "fraction", "soft", "soft fraction", "hidden"],
)
def test_half_precision_at_load_and_on_a_live_model(host, batch, tmp_path, fields, dtype):
    ours = host.make(**fields)
    if ours.retention_weights is not None:
        with torch.no_grad():
            ours.retention_weights.copy_(torch.linspace(1, 0, 10).expand(3, 10))
    ours.save_pretrained(tmp_path)
    loaded = host.classifier.from_pretrained(tmp_path, dtype=dtype).eval()
    for name, parameter in loaded.named_parameters():
        # Training would not move weights of half precision; `PoWERTrainer` refuses such a model.
        assert parameter.dtype == (torch.float32 if name.endswith("retention_weights") else dtype)
    wanted = ours(**batch).logits
    found, cast = loaded(**batch).logits, ours.to(dtype)(**batch)
    for logits in (found, cast.logits):
        assert logits.dtype == dtype
        assert (logits.float() - wanted).abs().median() < (0.3 if dtype == torch.bfloat16 else 0.1)
    if ours.retention_weights is not None:
        assert cast.retention_penalty.item() == pytest.approx(15, rel=0.01)


def test_a_configuration_may_ask_for_gradient_checkpointing(host, batch):
    """As old checkpoints do; upstream takes the field out, so that it is not saved again."""
    ours = host.make(**HARD["words"], gradient_checkpointing=True).train()
    assert all(layer.gradient_checkpointing for layer in ours.base_model.encoder.encoders())
    assert not hasattr(ours.config, "gradient_checkpointing")
    ours(**batch, labels=torch.tensor([0, 1, 0, 1, 0])).loss.backward()
    without = host.make(**HARD["words"], gradient_checkpointing=False)
    assert not any(layer.gradient_checkpointing for layer in without.base_model.encoder.encoders())


def test_another_retention_length_than_the_checkpoints_is_refused(host, tmp_path):
    soft = host.make(**SOFT["words"])
    soft.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`retention_length` must be .*\(10\), got 9; leave it out"):
        host.classifier.from_pretrained(tmp_path, retention_length=9)
    again = host.classifier.from_pretrained(tmp_path, retention_length=9, ignore_mismatched_sizes=True)
    assert torch.equal(again.retention_weights, torch.ones(3, 9))


def test_old_checkpoints_are_read_and_what_they_say_is_not_run(host, batch, tmp_path):
    ours = host.make(**HARD["words"])
    ours.config.save_pretrained(tmp_path)
    torch.save(ours.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = host.classifier.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**batch).logits, ours(**batch).logits)

    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was_run",)

    torch.save({**ours.state_dict(), "classifier.bias": Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        host.classifier.from_pretrained(tmp_path)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"\xff" * 100])
def test_damaged_weights_are_refused(host, tmp_path, damage):
    host.make(**HARD["words"]).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(SafetensorError, match="Error while deserializing header"):
        host.classifier.from_pretrained(tmp_path)
