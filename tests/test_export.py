"""Models for other runtimes answer as they do here: ONNX at every batch size and length, int8, upstream's classes."""

import sys

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from conftest import Host
from powerbert_hf import cli, export
from test_bad_input import refused
from test_modeling import HARD, SOFT
from test_runtime import padded_batch

onnxruntime = pytest.importorskip("onnxruntime", reason="needs `powerbert_hf[onnx]`")
# torch's own, while it imports what tracing needs; onnxruntime's, of its own functions.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SHAPES = ((1, 1), (3, 1), (2, 2), (5, 3), (3, 5), (4, 9), (5, 12), (2, 40), (1, 64))
slow = pytest.mark.slow


@pytest.fixture
def folder(tokenizer, tmp_path, monkeypatch):
    """A tiny classifier, and the current folder."""
    monkeypatch.chdir(tmp_path)
    Host("bert").make(**HARD["fraction"]).save_pretrained("model")
    tokenizer.save_pretrained("model")
    return tmp_path


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def logits(asked, inputs):
    inputs = {"token_type_ids": torch.zeros_like(inputs["input_ids"]), **inputs}
    (found,) = asked.run(["logits"], {one.name: inputs[one.name].numpy() for one in asked.get_inputs()})
    return torch.from_numpy(found)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        pytest.param("bert", HARD["fraction"], id="bert-fraction"),
        pytest.param("bert", HARD["words"], id="bert-words", marks=slow),
        pytest.param("bert", {"retention_config": [50, 1, 1]}, id="bert-one", marks=slow),
        pytest.param("bert", {}, id="bert-off", marks=slow),
        pytest.param("albert", HARD["fraction"], id="albert-fraction", marks=slow),
        pytest.param("albert", HARD["words"], id="albert-words", marks=slow),
    ],
)
def test_onnx_runtime_gives_the_same_logits_at_every_batch_and_length(name, fields, tmp_path):
    """Padded inputs, single word-vectors, lengths below the counts; and eliminates word-vectors there, too."""
    ours = Host(name).make(**fields)
    difference = export.export_onnx(ours, tmp_path / "model.onnx")
    assert difference <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert ours.config._attn_implementation == "sdpa"
    asked = session(tmp_path / "model.onnx")
    assert [one.name for one in asked.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    with torch.no_grad():
        for size, length in SHAPES:
            inputs = padded_batch(size, length)
            torch.testing.assert_close(logits(asked, inputs), ours(**inputs).logits, atol=1e-4, rtol=0)
        everything = Host(name).make(retention_config=[1.0] * 3, retention_unit="fraction")
        moved = (everything(**inputs).logits - ours(**inputs).logits).abs().max()
    assert not fields or moved > 1e-3
    import onnx

    # The scores of each encoder once, for the context and for the significance.
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert kinds.count("Softmax") == 3


def test_a_regression_is_exact_by_the_size_of_its_numbers_and_no_other_file_is_touched(tmp_path):
    ours = Host("bert").make(num_labels=1, output_hidden_states=True, return_dict=False)
    ours.classifier.weight.data *= 3000
    for name in ("float_model.onnx", "model.onnx"):
        (tmp_path / name).write_text("mine")
    assert export.export_onnx(ours, tmp_path / "model.onnx", int8=True) < 0.5
    assert (tmp_path / "float_model.onnx").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2
    inputs = padded_batch(5, 12)
    assert logits(session(tmp_path / "model.onnx"), inputs).abs().max() > 100
    assert (ours.config.output_hidden_states, ours.config.return_dict) == (True, False)


def test_what_is_refused_leaves_the_file_that_is_there(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(ValueError, match=r"must be in float32 to be exported, got bfloat16; convert it"):
        export.export_onnx(Host("bert").make().bfloat16(), tmp_path / "model.onnx")
    monkeypatch.setattr(export, "_difference", lambda *args: 1.0)
    with pytest.raises(ValueError, match="must answer as the model does, got logits that are 1 apart"):
        export.export_onnx(Host("bert").make(), tmp_path / "model.onnx")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@slow
@pytest.mark.parametrize("name", ["bert", "albert"])
def test_int8_on_onnx_runtime_is_near(name, tmp_path):
    ours = Host(name).make(**HARD["fraction"])
    export.export_onnx(ours, tmp_path / "float.onnx")
    difference = export.export_onnx(ours, tmp_path / "int8.onnx", int8=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float.onnx", "int8.onnx"]
    assert 0 < difference < 0.5
    inputs = padded_batch(5, 12)
    exact, rounded = (logits(session(tmp_path / f"{kind}.onnx"), inputs) for kind in ("float", "int8"))
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, atol=0.5, rtol=0)
    import onnx

    kinds = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert "MatMulInteger" in kinds


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_int8_in_torch_runs_without_padding_and_eliminates(host, monkeypatch):
    """As a user would have it, in one line; torch 2.13 calls it deprecated."""
    ours = host.make(**HARD["fraction"])
    quantized = torch.ao.quantization.quantize_dynamic(ours, {torch.nn.Linear}, dtype=torch.qint8)
    linear = [module for module in quantized.modules() if "quantized.dynamic" in type(module).__module__]
    assert len(linear) >= 6
    packed_in = []
    encoder = quantized.base_model.encoder
    run = type(encoder).forward_packed
    monkeypatch.setattr(
        type(encoder),
        "forward_packed",
        lambda self, states, packed: packed_in.append(self) or run(self, states, packed),
    )
    inputs = padded_batch(5, 12)
    with torch.no_grad():
        found, wanted = quantized(**inputs).logits, ours(**inputs).logits
        assert packed_in == [encoder, ours.base_model.encoder]
        kept = quantized(**inputs, output_kept_positions=True).kept_positions
    assert [positions.shape[1] for positions in kept] == [9, 5, 1]
    assert 0 < (found - wanted).abs().mean() < 0.15
    torch.testing.assert_close(found, wanted, atol=0.5, rtol=0)


@slow
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_the_command_leaves_a_whole_folder(folder, capsys, int8):
    assert cli.main(["export", "model", "--output-dir=out", *(["--int8"] if int8 else [])]) == 0
    said, errors = capsys.readouterr()
    assert "out holds the model; on ONNX Runtime its logits are at most" in said
    assert len(said.splitlines()) == 1
    assert errors == ""
    assert {path.name for path in folder.iterdir()} == {"model", "out"}
    assert {path.name for path in (folder / "out").iterdir()} == {
        "config.json",
        "model.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    ours, tokenizer = AutoModelForSequenceClassification.from_pretrained("model"), AutoTokenizer.from_pretrained("out")
    inputs = tokenizer(["the film was good", "bad"], padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = ours(**inputs).logits
    found = logits(session("out/model.onnx"), dict(inputs))
    torch.testing.assert_close(found, wanted, atol=0.5 if int8 else 1e-4, rtol=0)


def test_stock_weights_are_a_checkpoint_of_upstreams_class(host, folder, tokenizer):
    ours = host.make(**HARD["fraction"])
    ours.save_pretrained("model")
    assert cli.main(["export", "model", "--output-dir=out", "--stock"]) == 0
    stock = AutoModelForSequenceClassification.from_pretrained("out")
    assert type(stock) is host.stock
    assert AutoTokenizer.from_pretrained("out")("good")["input_ids"] == tokenizer("good")["input_ids"]
    ours.set_retention(None)
    inputs = padded_batch(5, 12)
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs).logits, ours(**inputs).logits, atol=1e-5, rtol=0)


def test_an_export_that_answers_otherwise_is_refused_and_leaves_nothing(folder, capsys, monkeypatch):
    """As one would whose graph is wrong at some length."""
    monkeypatch.setattr(export, "_trace", lambda model, names: Written())
    monkeypatch.setattr(export, "_difference", lambda *_: 0.25)
    assert "logits that are 0.25 apart" in refused(capsys, folder, ["model", "--output-dir=run"], "export")
    monkeypatch.setattr(export, "_difference", lambda *_: float("nan"))
    assert "logits that are nan apart" in refused(capsys, folder, ["model", "--output-dir=run"], "export")


class Written:
    """What torch would have traced."""

    def save(self, path, external_data):
        path.write_bytes(b"onnx")


def test_input_that_cannot_be_used(folder, tokenizer, capsys, monkeypatch):
    Host("bert").make_stock("stock_base").save_pretrained("headless")
    tokenizer.save_pretrained("headless")
    cases = {
        ("headless", "--output-dir=run"): "must have a trained classification head, got none in headless",
        ("nowhere", "--output-dir=run"): "The configuration of nowhere cannot be used",
        ("model",): "the following arguments are required: --output",
        ("model", "--output-dir=model"): "model holds something else; choose another `--output-dir`",
        ("model", "--output-dir=run", "--stock", "--int8"): "got both; leave one out",
        ("model", "--output-dir=run", "--int4"): "There is no option --int4; did you mean --int8?",
    }
    for arguments, message in cases.items():
        assert message in refused(capsys, folder, list(arguments), "export")
    soft = Host("bert").make(**SOFT["fraction"])
    with pytest.raises(ValueError, match="in soft mode eliminates nothing yet"):
        export.export_onnx(soft, folder / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    sentence = refused(capsys, folder, ["model", "--output-dir=run"], "export")
    assert 'pip install "powerbert_hf[onnx]"' in sentence
    assert "onnxscript is missing" in sentence
