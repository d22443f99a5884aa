"""Hostile input: whatever stands in a configuration, a batch or a model folder, an answer or a sentence comes out.

Some cases of each target run with the fast tests, 10,000 with `make fuzz`, which leaves the counts in `results/`.
A new target is a function `test_...` with a `@fuzzed`; it tells `settled` how each case ended.
"""

import json
import os
import pickle
import re
import resource
import struct
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import SMALL, Host
from powerbert_hf import PoWERBertForSequenceClassification
from powerbert_hf.checkpoint import load_classifier, load_config, load_tokenizer
from powerbert_hf.retention import check_retention_config
from powerbert_hf.retention_file import RETENTION_FILE, read_retention

CASES = int(os.environ.get("FUZZ_CASES", "40"))
# What a case may take beyond what the libraries have taken already.
ROOM = 2**31
COUNTS = defaultdict(Counter)

fuzzed = settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    derandomize=CASES <= 40,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module", autouse=True)
def _counts():
    """Written where `make fuzz` asks for them."""
    yield
    if "FUZZ_OUTPUT" in os.environ:
        Path(os.environ["FUZZ_OUTPUT"]).write_text(json.dumps(COUNTS, indent=2) + "\n")


@pytest.fixture(autouse=True)
def _little_memory():
    """A number in a file that asks for memory ends in a `MemoryError`, which is no sentence."""
    if sys.platform != "linux":
        yield
        return
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def settled(target, work):
    """Run a case: it ends well, or in a `ValueError` that says something."""
    said = ""
    try:
        work()
    except ValueError as error:
        # Other kinds are caught nowhere; a bare word is no sentence.
        said = str(error) or "nothing"
    assert not said or re.search(r"\w+ \w+ \w+", said), said
    # What reads a checkpoint makes a sentence of whatever is raised there, of too little memory too.
    assert not re.search("MemoryError|bad_alloc|allocat", said), said
    COUNTS[target]["refused" if said else "accepted"] += 1


numbers = (
    st.integers(-3, 70)
    | st.sampled_from([0, 10**6, 10**9, 2**31, 2**63, -(2**63), 10**30])
    | st.floats()
    | st.sampled_from([1e-300, 0.5, 1.0, 1.5])
)
junk = st.none() | st.booleans() | numbers | st.text(max_size=8)
anything = st.recursive(
    junk, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@fuzzed
@given(
    config=st.lists(junk, max_size=5) | st.lists(st.integers(1, 64), min_size=3, max_size=3) | anything,
    encoders=st.integers(0, 4),
    unit=st.sampled_from(["words", "fraction"]) | st.text(max_size=6),
    longest=st.none() | st.integers(1, 64),
)
def test_retention_configurations(config, encoders, unit, longest):
    settled("retention configurations", lambda: check_retention_config(config, encoders, unit, longest))


FIELDS = [
    *SMALL,
    *("retention_config", "retention_unit", "retention_length", "retention_mode", "retention_soft_extract"),
    *("num_labels", "id2label", "label2id", "problem_type", "type_vocab_size", "pad_token_id", "hidden_act"),
    *("layer_norm_eps", "hidden_dropout_prob", "initializer_range", "num_hidden_groups", "inner_group_num"),
    *("embedding_size", "is_decoder", "chunk_size_feed_forward", "architectures", "dtype", "torch_dtype", "auto_map"),
    *(
        "_attn_implementation",
        "attn_implementation",
        "quantization_config",
        "transformers_version",
        "tie_word_embeddings",
    ),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny model of each host, and where a case may write."""
    made = {}
    for name in ("bert", "albert"):
        folder = made[name] = tmp_path_factory.mktemp(name)
        Host(name).make(retention_config=[0.8, 0.5, 0.3], retention_unit="fraction").save_pretrained(folder)
    return made


@fuzzed
@given(
    name=st.sampled_from(["bert", "albert"]),
    model_type=st.sampled_from(["bert", "albert", "powerbert", "poweralbert"]) | junk,
    changes=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), anything, max_size=3),
    whole=st.booleans(),
)
def test_config_json(folders, name, model_type, changes, whole):
    path = folders[name] / "config.json"
    before = path.read_text()
    fields = {**json.loads(before), **({} if whole else {"model_type": model_type}), **changes}
    path.write_text(json.dumps(fields))
    try:
        # All of loading: what a number asks for is taken where the model is built.
        settled("config.json", lambda: load_classifier(folders[name]))
    finally:
        path.write_text(before)


@pytest.fixture(scope="module")
def models():
    kinds = ({}, {"retention_config": [0.8, 0.5, 0.3], "retention_unit": "fraction"}, {"retention_config": [9, 4, 1]})
    return [Host(name).make(**kind) for name in ("bert", "albert") for kind in kinds]


@fuzzed
@given(
    which=st.integers(0, 5),
    rows=st.integers(0, 3),
    width=st.integers(0, 66),
    low=st.sampled_from([0, 0, 0, -1]),
    high=st.sampled_from([SMALL["vocab_size"] - 1] * 3 + [SMALL["vocab_size"], 2**62]),
    mask=st.sampled_from(["none", "bits", "bool", "float", "zeros", "left", "wide", "three"]),
    seed=st.integers(0, 2**32),
    kept=st.booleans(),
)
def test_masks_and_token_ids(models, which, rows, width, low, high, mask, seed, kept):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(low, high + 1, (rows, width), generator=generator)
    bits = torch.randint(0, 2, (rows, width), generator=generator)
    masks = {
        "none": None,
        "bits": bits,
        "bool": bits.bool(),
        "float": bits.float(),
        "zeros": torch.zeros_like(bits),
        "left": torch.arange(width).expand(rows, -1) >= width // 2,
        "wide": torch.ones(rows, width + 1),
        "three": torch.ones(rows, 1, width),
    }

    def ask():
        with torch.no_grad():
            logits = models[which](ids, attention_mask=masks[mask], output_kept_positions=kept).logits
        assert logits.shape == (rows, 2)
        assert logits.isfinite().all()

    settled("masks and token ids", ask)


@fuzzed
@given(
    name=st.sampled_from(["bert", "albert"]),
    way=st.sampled_from(["cut", "flip", "header", "shape", "length", "kind"]),
    place=st.floats(0, 1, exclude_max=True),
    value=numbers,
    byte=st.integers(0, 255),
)
def test_weights(folders, name, way, place, value, byte):
    path = folders[name] / "model.safetensors"
    before = path.read_bytes()
    size = struct.unpack("<Q", before[:8])[0]
    header, data = json.loads(before[8 : 8 + size]), before[8 + size :]
    names = sorted(entry for entry in header if entry != "__metadata__")
    entry = header[names[int(place * len(names))]]
    if way == "shape":
        entry["shape"] = [*entry["shape"][1:], value]
    elif way == "length":
        entry["data_offsets"] = [entry["data_offsets"][0], value]
    elif way == "kind":
        entry["dtype"] = ["F16", "I64", "BOOL", "F8_E4M3", "nothing"][byte % 5]
    changed = json.dumps(header).encode()
    whole = struct.pack("<Q", len(changed)) + changed + data
    if way == "cut":
        whole = before[: int(place * len(before))]
    elif way == "flip":
        at = int(place * len(before))
        whole = before[:at] + bytes([byte]) + before[at + 1 :]
    elif way == "header":
        at = int(place * (size + 8))
        whole = before[:at] + bytes([byte]) + before[at + 1 :]
    path.write_bytes(whole)
    try:
        settled("model folders", lambda: load_classifier(folders[name]))
    finally:
        path.write_bytes(before)


RETENTION = {
    "version": 1,
    "backbone": "bert",
    "encoders": 3,
    "retention_config": [0.8, 0.5, 0.3],
    "retention_unit": "fraction",
    "retention_length": 64,
    "base_model": "user/model",
    "task": "sst2",
    "metric": {"name": "accuracy", "base": 0.9, "final": 0.89, "split": "validation", "seed": 0},
    "speedup": {"predicted": 2.0, "measured": 1.8},
}
OF_MODEL = ("model_type", "retention_mode", "num_hidden_layers")


@fuzzed
@given(
    changes=st.dictionaries(st.sampled_from([*RETENTION, *OF_MODEL]) | st.text(max_size=6), anything, max_size=3),
    gone=st.sets(st.sampled_from(sorted(RETENTION)), max_size=2),
    whole=anything,
    way=st.sampled_from(["members", "members", "members", "whole", "cut", "flip", "deep"]),
    place=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
)
def test_retention_files(folders, changes, gone, whole, way, place, byte):
    fields = {name: value for name, value in RETENTION.items() if name not in gone} | changes
    content = json.dumps(whole if way == "whole" else fields).encode()
    at = int(place * len(content))
    if way == "cut":
        content = content[:at]
    elif way == "flip":
        content = content[:at] + bytes([byte]) + content[at + 1 :]
    elif way == "deep":
        content = (b"[", b'{"metric":')[byte % 2] * 100_000
    path = folders["bert"] / RETENTION_FILE
    path.write_bytes(content)

    def ask():
        found = read_retention(path)
        # What is accepted can be written, read again, and run.
        path.write_text(found.dumps())
        assert read_retention(path).retention_config == found.retention_config
        model = PoWERBertForSequenceClassification.from_pretrained(folders["bert"], retention=str(path))
        assert model.config.retention_config == found.retention_config

    try:
        settled("retention files", ask)
    finally:
        path.unlink()


class Trap:
    """What pickle calls when it reads it."""

    def __reduce__(self):
        return (open, ("trap.txt", "w"))


def test_nothing_in_a_model_folder_is_run(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Host("bert").make().save_pretrained("model")
    tokenizer.save_pretrained("model")
    weights = Path("model/model.safetensors").read_bytes()
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        torch.save({"classifier.weight": Trap()}, f"model/{name}")
    Path("model/evil.py").write_text("open('trap.txt', 'w')\n")
    for name in ("config.json", "tokenizer_config.json"):
        fields = json.loads(Path("model", name).read_text())
        fields["auto_map"] = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Slow", "evil.Fast"]}
        Path("model", name).write_text(json.dumps(fields))
    model = load_classifier("model")
    load_tokenizer("model", model.config)
    Path("model/model.safetensors").unlink()
    with pytest.raises(ValueError, match="The checkpoint model cannot be used"):
        load_classifier("model")
    with open("model/pytorch_model.bin", "wb") as file:
        pickle.dump(Trap(), file)
    with pytest.raises(ValueError, match="The checkpoint model cannot be used"):
        load_classifier("model")
    assert not Path("trap.txt").exists()
    Path("model/model.safetensors").write_bytes(weights)
    assert load_config("model").model_type == "powerbert"


@pytest.mark.parametrize("model_type", ["bert", "powerbert"])
@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": 10**9, "num_attention_heads": 1},
        {"num_hidden_layers": 10**6, "retention_config": None},
        {"retention_length": 10**9},
        {"retention_length": 10**9, "max_position_embeddings": 10**9, "retention_mode": "soft"},
        {"vocab_size": 10**10},
        {"num_labels": 10**9},
        {"intermediate_size": 10**10},
        {"type_vocab_size": 10**10},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_number_in_a_file_takes_no_memory(tmp_path, model_type, fields):
    Host("bert").make().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": model_type, **fields}))
    with pytest.raises(ValueError, match=r"speaks of [\d,]+ weights|must have|must lie"):
        load_classifier(tmp_path)
