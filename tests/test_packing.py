"""Inference without padding: the same numbers as the padded path, for every length, count, unit and backbone."""

import accelerate
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import SMALL, Host
from powerbert_hf import encoder, packing
from powerbert_hf.encoder import RankingAttentionMixin
from powerbert_hf.packing import Packed, attend_all, attend_and_rank, blocks, pack
from powerbert_hf.retention import extract, rank, significance
from powerbert_hf.varlen import significance_from_lse

TOLERANCE = 1e-5
LONGEST = SMALL["max_position_embeddings"]


def make_batch(lengths, generator=None):
    generator = generator or torch.Generator().manual_seed(4)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, SMALL["vocab_size"], mask.shape, generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask}


@torch.no_grad()
def both_paths(model, batch):
    """Logits on packed word-vectors, and on padded ones: positions can only be had of these."""
    return model(**batch).logits, model(**batch, output_kept_positions=True).logits


def configurations():
    entries = st.lists(st.integers(1, LONGEST), min_size=3, max_size=3)
    return entries.map(lambda counts: sorted(counts, reverse=True))


@torch.no_grad()
def smallest_gap(model, batch):
    """Of significance, between one that stays and one that goes: sums in another order may swap near ties."""
    outputs = model(**batch, output_hidden_states=True, output_kept_positions=True)
    attentions = [module for module in model.modules() if isinstance(module, RankingAttentionMixin)]
    mask, gaps = batch["attention_mask"].bool(), [1.0]
    for number, kept in enumerate(outputs.kept_positions):
        received = attentions[number % len(attentions)].significance_of(outputs.hidden_states[number], mask)
        order = rank(received, mask)
        for row, count in enumerate((kept >= 0).sum(dim=1).tolist()):
            if 1 < count < mask[row].sum():
                last, next_one = received[row, order[row, count - 1 : count + 1]]
                gaps.append((last - next_one).item())
        mask = kept >= 0
    return min(gaps)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, LONGEST), min_size=1, max_size=6),
    counts=configurations(),
    unit=st.sampled_from(["words", "fraction"]),
    name=st.sampled_from(["bert", "albert"]),
    block_bytes=st.sampled_from([1, 2**12, 2**21]),
    wasted=st.sampled_from([0, 50, 100_000]),
)
def test_packed_equals_padded(lengths, counts, unit, name, block_bytes, wasted):
    retained = [count / LONGEST for count in counts] if unit == "fraction" else counts
    model = Host(name).make(retention_config=retained, retention_unit=unit)
    assume(smallest_gap(model, make_batch(lengths)) > TOLERANCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_BLOCK_BYTES", block_bytes)
        patch.setattr(packing, "_WASTED_SCORES", wasted)
        calls = packed_calls(model, patch)
        packed, padded = both_paths(model, make_batch(lengths))
    assert len(calls) == 1
    torch.testing.assert_close(packed, padded, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("lengths", "ranked"), [([4], 1), ([12, 12], 1), ([12, 11], 2)])
def test_ranks_only_where_an_input_loses_word_vectors(host, monkeypatch, lengths, ranked):
    """Of 4, both entries keep 2; of 12, both 6; of 11, they keep 6 and 5."""
    calls = []
    run = encoder.attend_and_rank
    monkeypatch.setattr(encoder, "attend_and_rank", lambda *args: calls.append(1) or run(*args))
    model = host.make(retention_config=[0.5, 0.42, 0.2], retention_unit="fraction")
    packed, padded = both_paths(model, make_batch(lengths))
    assert len(calls) == ranked
    torch.testing.assert_close(packed, padded, atol=TOLERANCE, rtol=0)


def test_off_equals_stock_in_inference(host, batch):
    with torch.no_grad():
        ours, stock = host.make()(**batch).logits, host.make_stock()(**batch).logits
    torch.testing.assert_close(ours, stock, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("lengths", [[3, 9, 17, 30], [12], [13]])
def test_everything_that_enters_the_embeddings_is_packed(host, lengths):
    """A single input of a length that needs no rows added goes its own way."""
    model, batch = host.make(retention_config=[8, 5, 2]), make_batch(lengths)
    shape = batch["input_ids"].shape
    batch["token_type_ids"] = torch.randint(2, shape, generator=torch.Generator().manual_seed(5))
    batch["position_ids"] = torch.arange(shape[1]).flip(0)[None]
    packed, padded = both_paths(model, batch)
    torch.testing.assert_close(packed, padded, atol=TOLERANCE, rtol=0)
    ids = batch.pop("input_ids")
    batch["inputs_embeds"] = model.get_input_embeddings()(ids)
    torch.testing.assert_close(both_paths(model, batch)[0], packed, atol=TOLERANCE, rtol=0)


def packed_calls(model, monkeypatch):
    """A list that grows by one for every forward on packed word-vectors."""
    calls = []
    encoder = model.base_model.encoder
    run = encoder.forward_packed
    monkeypatch.setattr(encoder, "forward_packed", lambda *args: calls.append(1) or run(*args))
    return calls


def test_inference_is_packed_and_nothing_else_is(host, batch, monkeypatch):
    model = host.make(retention_config=[8, 5, 2], attn_implementation="eager")
    calls = packed_calls(model, monkeypatch)
    model(**batch)
    with torch.no_grad():
        model(**batch, output_hidden_states=True)
        model(**batch, output_attentions=True)
        model(**batch, output_kept_positions=True)
        model.config.output_hidden_states = True
        model(**batch)
        model.config.output_hidden_states = False
        model.train()(**batch)
        model.eval()
        left_padded = {name: values.flip(1) for name, values in batch.items()}
        model(**left_padded)
        assert not calls
        model(**batch)
        assert len(calls) == 1
        # PEFT's on its layers, of which one may want to know all rows; Captum's.
        layer, embeddings, shapes = list(model.base_model.encoder.encoders())[-1], model.base_model.embeddings, []
        for watch, hook in (
            (layer.register_forward_pre_hook, lambda *_: None),
            (layer.register_forward_hook, lambda *_: None),
            (embeddings.register_forward_hook, lambda *call: shapes.append(call[2].shape[:2])),
        ):
            handle = watch(hook)
            model(**batch)
            handle.remove()
        assert shapes == [batch["input_ids"].shape]
        # Compiled by itself, as `accelerate` compiles regions; wrapped, as `accelerate` sends weights to devices.
        layer.compile(backend="eager", dynamic=True)
        model(**batch)
        layer._compiled_call_impl = None
        model.base_model.encoder.forward = model.base_model.encoder.forward
        model(**batch)
        del model.base_model.encoder.forward
        layer.forward = layer.forward
        model(**batch)
        del layer.forward
        every = nn.modules.module.register_module_forward_hook(lambda *_: None)
        model(**batch)
        every.remove()
        assert len(calls) == 1
    with torch.inference_mode():
        model(input_ids=batch["input_ids"])
    assert len(calls) == 2


class OwnEmbedding(nn.Module):
    """Of which nobody says that it has weights by that name."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, numbers):
        return self.table(numbers)


@torch.no_grad()
def test_embeddings_of_ones_own_are_not_packed_and_answer_alike(host, batch):
    model = host.make(retention_config=[8, 5, 2])
    expected = model(**batch).logits
    model.set_input_embeddings(OwnEmbedding(model.get_input_embeddings()))
    torch.testing.assert_close(model(**batch).logits, expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(5, 15), (5, 9), (1, 12), (2, 12), (12,), (5, 1, 12)])
def test_a_mask_of_another_shape_is_never_packed(host, batch, shape):
    """Its rows would be those of other word-vectors. In off mode upstream decides what to make of it."""
    mask = torch.ones(shape, dtype=torch.long)
    mask[..., -1] = 0
    with pytest.raises(ValueError, match=r"must have shape \(batch, length\), here \(5, 12\), .*got \("):
        host.make(retention_config=[8, 5, 2])(batch["input_ids"], attention_mask=mask)

    def answer(model):
        try:
            return model(batch["input_ids"], attention_mask=mask).logits
        except (RuntimeError, IndexError) as error:
            return str(error)

    ours, stock = answer(host.make()), answer(host.make_stock())
    assert ours == stock if isinstance(stock, str) else torch.equal(ours, stock)


@torch.no_grad()
@pytest.mark.parametrize(
    "inputs",
    [
        {"input_ids": torch.ones(2, LONGEST + 1, dtype=torch.long)},
        {**make_batch([9, 3]), "input_ids": torch.full((2, 9), SMALL["vocab_size"])},
        {"input_ids": torch.ones(0, 7, dtype=torch.long)},
        {"input_ids": torch.ones(2, 0, dtype=torch.long)},
        {"input_ids": torch.ones(7, dtype=torch.long)},
    ],
    ids=["too long", "beyond the vocabulary", "no inputs", "no word-vectors", "no batch"],
)
def test_what_stock_refuses_is_refused_in_a_sentence(host, inputs):
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        host.make_stock()(**inputs)
    for ours in (host.make(), host.make(retention_config=[8, 5, 2])):
        with pytest.raises(ValueError, match=r"must (be|have|lie) .*, got .*; "):
            ours(**inputs)


@torch.no_grad()
def test_the_rank_does_not_follow_the_default_dtype(host):
    model, batch = host.make(retention_config=[40, 20, 9]), make_batch([64, 62, 50, 41])
    wanted = model(**batch).logits
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = model(**batch).logits
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, wanted)


def test_an_attention_of_the_users_own_is_called(host, batch, monkeypatch):
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask
    from transformers.models.bert.modeling_bert import eager_attention_forward

    called = []

    def own(*args, **kwargs):
        called.append(1)
        return eager_attention_forward(*args, **kwargs)

    AttentionInterface.register("own", own)
    AttentionMaskInterface.register("own", eager_mask)
    model = host.make(retention_config=[8, 5, 2], attn_implementation="own")
    with torch.no_grad():
        model(**batch)
    assert called


def test_half_precision_is_near_single_precision(host, batch):
    model = host.make(retention_config=[1.0, 1.0, 1.0], retention_unit="fraction")
    with torch.no_grad():
        expected = model(**batch).logits
        actual = model.to(torch.bfloat16)(**batch).logits
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_packs_too(host, monkeypatch, dtype, autocast):
    """All word-vectors of some inputs, and of others fewer; rows that fill the steps of matrix products among them."""
    wanted = host.make(retention_config=[8, 5, 2])
    model = wanted if autocast else host.make(retention_config=[8, 5, 2]).to(dtype)
    batch = make_batch([3, 30, 17, 5, 5])
    calls = packed_calls(model, monkeypatch)
    with torch.no_grad():
        exact = wanted(**batch, output_kept_positions=True).logits
        with torch.autocast("cpu", dtype, enabled=autocast):
            packed, padded = both_paths(model, batch)
    assert len(calls) == 1
    # As near to what is exact as the padded path, of which rounding keeps other word-vectors now and then.
    assert (packed.float() - exact).abs().median() < 0.3
    assert (packed.float() - padded.float()).abs().median() < 0.15


@pytest.mark.parametrize(("width", "dtype", "packs"), [(8, torch.bfloat16, 0), (8, torch.float32, 1)])
def test_a_short_input_alone_is_not_packed_in_half_precision(host, monkeypatch, width, dtype, packs):
    model = host.make(retention_config=[8, 5, 2]).to(dtype)
    calls = packed_calls(model, monkeypatch)
    with torch.no_grad():
        model(**make_batch([width]))
    assert len(calls) == packs


def test_an_answer_does_not_depend_on_its_batch(host):
    model = host.make(retention_config=[0.7, 0.5, 0.2], retention_unit="fraction")
    batch = make_batch([30, 3, 17, 1, 64])
    with torch.no_grad():
        together = model(**batch).logits
        for row, length in enumerate(batch["attention_mask"].sum(dim=1)):
            alone = model(**{name: values[row : row + 1, :length] for name, values in batch.items()}).logits
            torch.testing.assert_close(together[row : row + 1], alone, atol=TOLERANCE, rtol=0)


def test_pack_sorts_inputs_and_says_where_they_are():
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 0, 1, 1, 1]], dtype=torch.bool)
    packed, rows, places = pack(mask)
    assert packed.lengths == [1, 4, 5]
    assert packed.starts() == [0, 1, 5]
    assert rows[:10].tolist() == [5, 10, 12, 13, 14, 0, 1, 2, 3, 4]
    # Nobody reads the others: they are there because ten rows are slower than twelve.
    assert len(rows) == 12
    assert places.tolist() == [2, 0, 1]
    # So few are not slower than eight, or sixteen, except where each number of rows is compiled.
    assert [len(pack(mask[:, :3], dtype)[1]) for dtype in (torch.float32, torch.bfloat16)] == [6, 16]


@pytest.mark.parametrize(("wasted", "expected"), [(100_000, 3), (20, 6), (0, 7)])
def test_blocks_hold_every_input_once_fit_the_cache_and_waste_little(monkeypatch, wasted, expected):
    monkeypatch.setattr(packing, "_BLOCK_BYTES", 4000)
    monkeypatch.setattr(packing, "_WASTED_SCORES", wasted)
    lengths = sorted([1, 1, 2, 5, 9, 9, 9, 20, 21, 40])
    made = list(blocks(Packed(lengths), 2, 2))
    assert len(made) == expected
    assert [length for block in made for length in lengths[block.inputs]] == lengths
    for block in made:
        rows, real = block.rows(torch.device("cpu"))
        inputs, width = rows.shape
        scores = 2 * inputs * width**2
        assert inputs == 1 or scores * 2 <= 4000
        assert scores - 2 * sum(length**2 for length in block.lengths) <= wasted
        assert block.lengths == lengths[block.inputs]
        assert width == block.lengths[-1]
        assert (real is None) == (block.lengths[0] == width)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("lengths", [[9], [13, 13], [5, 9, 17]])
@pytest.mark.parametrize("config", [[0.7, 0.5, 0.3], [1.0, 0.5, 0.2]])
@torch.no_grad()
def test_rows_that_nobody_reads_change_no_answer_in_int8(host, monkeypatch, lengths, config):
    """Dynamic quantisation takes the range of activations from all rows."""
    model = host.make(retention_config=config, retention_unit="fraction")
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    batch = make_batch(lengths)
    logits = quantized(**batch).logits
    monkeypatch.setattr(packing, "surplus", lambda *_: 0)
    torch.testing.assert_close(quantized(**batch).logits, logits, atol=1e-6, rtol=0)


@torch.no_grad()
def test_replicas_of_data_parallel_answer_as_the_model(host):
    """`Trainer` evaluates on them where there are several GPUs; a replica has tensors, but no parameters."""
    model, batch = host.make(retention_config=[8, 5, 2]), make_batch([9, 12])
    modules = list(model.modules())
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    for module, copy in copies.items():
        copy._modules = {name: copies.get(child) for name, child in module._modules.items()}
        for name, parameter in module._parameters.items():
            if parameter is None:
                copy._parameters[name] = None
            else:
                setattr(copy, name, parameter.detach())
    assert not list(copies[model].parameters())
    torch.testing.assert_close(copies[model](**batch).logits, model(**batch).logits, atol=0, rtol=0)


@pytest.mark.parametrize("lengths", [[9], [9, 12]])
@torch.no_grad()
def test_offloaded_weights_answer_as_the_model(host, lengths):
    model, batch = host.make(retention_config=[8, 5, 2]), make_batch(lengths)
    expected = model(**batch).logits
    offloaded = accelerate.cpu_offload(model, execution_device="cpu")
    torch.testing.assert_close(offloaded(**batch).logits, expected, atol=TOLERANCE, rtol=0)


def heads_of(lengths, heads=3, size=8, seed=6):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(sum(lengths), heads, size, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("block_bytes", [1, 2**11, 2**21])
def test_blocked_significance_equals_the_reference(block_bytes, monkeypatch):
    """Per input: the same context, and the same word-vectors wherever the boundary is not all but a tie."""
    monkeypatch.setattr(packing, "_BLOCK_BYTES", block_bytes)
    lengths = [1, 2, 7, 7, 31, 63, 63]
    counts = [1, 1, 3, 3, 10, 20, 20]
    query, key, value = heads_of(lengths)
    context, rows = attend_and_rank(query, key, value, Packed(lengths), counts, 0.5)
    everything = attend_all(query, key, value, Packed(lengths), 0.5)
    starts, done, sure = Packed(lengths).starts(), 0, 0
    for start, length, count in zip(starts, lengths, counts, strict=True):
        own = slice(start, start + length)
        q, k, v = (vectors[own].transpose(0, 1)[None] for vectors in (query, key, value))
        expected = ((q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v)[0].transpose(0, 1)
        torch.testing.assert_close(everything[own], expected, atol=TOLERANCE, rtol=0)
        kept = rows[done : done + count]
        torch.testing.assert_close(context[done : done + count], expected[kept - start], atol=TOLERANCE, rtol=0)
        received = significance(q, k, scale=0.5)
        in_order = received[0, rank(received)[0]]
        if count == length or in_order[count - 1] - in_order[count] > 1e-6:
            sure += 1
            assert (kept - start).tolist() == extract(rank(received), count)[0].tolist()
        done += count
    assert len(rows) == -(-done // 4) * 4
    assert sure >= len(lengths) - 1


def attention_with_lse(query, key, value, queries, keys, scale):
    """What `varlen_attention` returns, on any device."""
    contexts, lses, first_query, first_key = [], [], 0, 0
    for own_queries, own_keys in zip(queries, keys, strict=True):
        q = query[first_query : first_query + own_queries].transpose(0, 1)
        k, v = (vectors[first_key : first_key + own_keys].transpose(0, 1) for vectors in (key, value))
        scores = q.double() @ k.double().transpose(-1, -2) * scale
        contexts.append((scores.softmax(-1) @ v.double()).transpose(0, 1))
        lses.append(scores.logsumexp(-1))
        first_query, first_key = first_query + own_queries, first_key + own_keys
    return torch.cat(contexts).to(value.dtype), torch.cat(lses, dim=-1).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_significance_from_lse_equals_the_reference(dtype):
    lengths = [1, 2, 7, 31, 63]
    query, key, value = (vectors.to(dtype) for vectors in heads_of(lengths))
    _, lse = attention_with_lse(query, key, value, lengths, lengths, 0.5)
    received = significance_from_lse(query, key, lse, lengths, 0.5, attention_with_lse)
    for start, length in zip(Packed(lengths).starts(), lengths, strict=True):
        q, k = (vectors[start : start + length].float().transpose(0, 1)[None] for vectors in (query, key))
        expected = significance(q, k, scale=0.5)[0]
        torch.testing.assert_close(received[start : start + length], expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_numbers_of_rows_that_are_slow_are_made_more():
    """One row is another product; of five to eight nothing is won."""
    cpu = torch.device("cpu")
    added = [packing.surplus(rows, torch.float32, cpu) for rows in range(1, 14)]
    assert added == [0, 2, 1, 0, 0, 0, 0, 0, 3, 2, 1, 0, 3]
    assert [packing.surplus(rows, torch.bfloat16, cpu) for rows in (1, 2, 16, 17)] == [0, 14, 0, 15]
    assert packing.surplus(3, torch.float32, torch.device("cuda")) == 0


@pytest.mark.parametrize("width", [1, 2, 9, 64])
def test_a_few_word_vectors_are_ranked_as_many_are(width):
    """Ties and what is no number among them."""
    generator = torch.Generator().manual_seed(width)
    received = torch.randint(0, 4, (1, width), generator=generator).float()
    received[0, torch.randint(0, width, (3,), generator=generator)] = torch.tensor([float("nan"), float("inf"), 0.0])
    for count in range(1, width + 1):
        expected = extract(rank(received), count)[0]
        assert packing._first(received, count).tolist() == expected.tolist()


class Steered(nn.Module):
    """Somebody's own, which adds to the [CLS] of each text."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        outputs = self.module(*inputs).clone()
        outputs[:, 0] += 3.0
        return outputs


@pytest.mark.parametrize("fields", [{}, {"retention_config": [8, 5, 2]}], ids=["off", "hard"])
def test_a_module_of_ones_own_inside_an_encoder_sees_padded_inputs(host, batch, fields):
    model = host.make(**fields)
    layer = next(iter(model.base_model.encoder.encoders()))
    name = "output" if host.name == "bert" else "full_layer_layer_norm"
    setattr(layer, name, Steered(getattr(layer, name)))
    with torch.no_grad():
        answers = model(**batch).logits
    torch.testing.assert_close(answers, model(**batch).logits, atol=1e-5, rtol=0)


class OwnLinear(nn.Linear):
    pass


def test_a_linear_layer_of_anybodys_takes_packed_word_vectors(host, batch, monkeypatch):
    model = host.make(retention_config=[8, 5, 2])
    calls = packed_calls(model, monkeypatch)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                own = OwnLinear(child.in_features, child.out_features)
                own.load_state_dict(child.state_dict())
                setattr(module, name, own)
    with torch.no_grad():
        answers = model(**batch).logits
    assert len(calls) == 1
    torch.testing.assert_close(answers, model(**batch).logits, atol=1e-5, rtol=0)


class MeanPooler(nn.Module):
    def forward(self, hidden_states):
        return hidden_states.mean(dim=1)


def test_whoever_reads_all_word_vectors_in_off_mode_gets_them():
    model, batch = Host("bert").make(), {"input_ids": torch.arange(1, 13).view(2, 6)}
    seen = []
    handle = model.bert.register_forward_hook(lambda *call: seen.append(call[2].last_hidden_state.shape[1]))
    with torch.no_grad():
        model(**batch)
    assert seen == [6]
    handle.remove()
    model.bert.pooler = MeanPooler()
    with torch.no_grad():
        answers = model(**batch).logits
    torch.testing.assert_close(answers, model(**batch).logits, atol=1e-5, rtol=0)


def test_encoders_that_were_dropped_are_gone_in_off_mode_and_must_be_said_in_others(batch):
    model = Host("bert").make()
    stock = model.to_stock()
    for one in (stock.bert, model.bert):
        one.encoder.layer = one.encoder.layer[:2]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(model(**batch).logits, stock(**batch).logits, atol=1e-5, rtol=0)
            model.set_retention([8, 5, 2], unit="words")
            with pytest.raises(ValueError, match="as many encoders as its configuration says, 3, got 2"):
                model(**batch)
            model.set_retention(None)
