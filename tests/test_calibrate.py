"""Calibration: what it reports is so, nothing that was not shown is chosen, and what cannot be shown is refused."""

import gc
import json
import os
import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.stats import beta
from transformers import AutoModelForSequenceClassification

from conftest import WORDS, Host
from powerbert_hf import calibration, cli, sensitivity
from powerbert_hf.agreement import logits, unchanged
from powerbert_hf.calibration import agreement_bound, calibrate, divide, texts_needed
from powerbert_hf.cost import predicted_speedup
from powerbert_hf.texts import read_texts, tokenize_texts
from test_bad_input import refused

CLASSES = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}
HEADS = {"classes": CLASSES, "several labels": {**CLASSES, "problem_type": "multi_label_classification"}}

# `datasets` closes a file only when it has read to its end.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True)
def _collect():
    """Here, not in a test that expects no warnings."""
    yield
    gc.collect()


def make_features(inputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 24, (inputs,), generator=generator).tolist()
    return [{"input_ids": torch.randint(1, 60, (length,), generator=generator).tolist()} for length in lengths]


def make_texts(inputs):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 20, (inputs,), generator=generator).tolist()
    return [
        " ".join(WORDS[n] for n in torch.randint(len(WORDS), (length,), generator=generator).tolist())
        for length in lengths
    ]


@torch.no_grad()
def answers(model, features):
    return torch.cat([model(torch.tensor([row["input_ids"]])).logits for row in features])


def balanced(model, features):
    """With no class that most of the inputs have, which would agree with anything."""
    # Not at 0 itself, where rounding would decide.
    model.classifier.bias.data -= answers(model.eval(), features).median(dim=0).values - 1e-3
    return model


@pytest.mark.parametrize("head", HEADS)
def test_reported_numbers_are_those_of_the_model_that_is_left(host, head):
    features = make_features(300)
    model = balanced(host.make(**HEADS[head]), features)
    before = answers(model, features)
    # Asked for little, so that something is eliminated.
    found = calibrate(model, features, agreement=0.6)
    chosen = found.chosen
    assert model.config.retention_config == chosen.retention_config
    assert (model.config.retention_unit, model.config.retention_mode) == ("fraction", None)
    assert chosen.retention_config[1] < 1
    lengths = torch.tensor([len(row["input_ids"]) for row in features])
    assert chosen.predicted_speedup == pytest.approx(predicted_speedup(model.config, lengths))
    assert (found.searched, found.tested) == (150, 150)
    second = calibration.divide(300, seed=0)[1].tolist()
    same = unchanged(answers(model, features)[second], before[second], model.config.problem_type)
    assert chosen.agreement == pytest.approx(same.double().mean().item())
    assert chosen.bound == agreement_bound(int(same.sum()), 150) >= 0.6


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    agreement=st.floats(0.6, 0.95),
    inputs=st.integers(120, 200),
    seed=st.integers(0, 9),
    name=st.sampled_from(["bert", "albert"]),
)
def test_what_was_not_shown_is_not_chosen(agreement, inputs, seed, name):
    features = make_features(inputs, seed)
    found = calibrate(balanced(Host(name).make(**CLASSES), features), features, agreement=agreement, seed=seed)
    assert found.tried[0].retention_config[:-1] == [1.0] * 2
    assert found.tried[0].agreement == 1
    assert all(one.bound >= agreement for one in found.tried[:-1])
    passed = [one for one in found.tried if one.bound >= agreement]
    assert found.chosen is passed[-1]


def test_a_text_counts_once_however_often_it_is_there():
    features = make_features(150)
    with pytest.raises(ValueError, match="at least 598 different texts are needed, got 150"):
        calibrate(Host("bert").make(**CLASSES), features * 5)
    said = []
    found, wanted = (
        calibrate(balanced(Host("bert").make(**CLASSES), features), rows, 0.8, say=said.append)
        for rows in (features + features[::3], features)
    )
    assert found == wanted
    assert said.count("50 of 200 texts are there more than once, and count once") == 1


def test_as_many_different_texts_are_drawn_as_there_are():
    texts = make_texts(90)
    said = []
    rows = Dataset.from_dict({"text": texts * 3 + ["plot"] * 500})
    assert len({*texts, "plot"}) == 91
    drawn = calibration._drawn(rows, 80, 0, said.append)["text"]
    assert len({*drawn}) == len(drawn) == 80
    assert said.pop() == "679 of 770 texts are there more than once, and count once"
    assert {*calibration._drawn(rows, 100, 0, said.append)["text"]} == {*texts, "plot"}
    assert said.pop().startswith("679 of 770 texts")
    # However often it is there, one is drawn as often as another.
    often = Dataset.from_dict({"text": texts[:45] * 30 + texts[45:]})
    drawn = [text for seed in range(40) for text in calibration._drawn(often, 20, seed, said.append)["text"]]
    assert sum(text in texts[:45] for text in drawn) / len(drawn) == pytest.approx(0.5, abs=0.06)
    said.clear()
    # Where no text is there twice, those of the seed, in their order.
    drawn = calibration._drawn(Dataset.from_dict({"text": texts}), 20, 7, said.append)["text"]
    assert drawn == [texts[row] for row in sorted(np.random.default_rng(7).permutation(90)[:20])]
    assert not said


def test_seed_decides_and_batches_do_not():
    features = make_features(200)
    first, again, other = (
        calibrate(balanced(Host("bert").make(**CLASSES), features), features, 0.8, batch_size, seed=seed)
        for batch_size, seed in ((32, 0), (7, 0), (32, 1))
    )
    # Sums of other batches may differ in their last bits, and a configuration hang on these.
    assert abs(len(first.tried) - len(again.tried)) <= 1
    for one, same in [*zip(first.tried, again.tried, strict=False), (first.chosen, again.chosen)]:
        assert one.predicted_speedup == pytest.approx(same.predicted_speedup, rel=0.05)
        assert one.agreement == pytest.approx(same.agreement, abs=0.05)
    assert first != other


# The last one is what 58 texts can show, by a formula that is off in its last bit.
@pytest.mark.parametrize("agreement", [0.5, 0.9, 0.99, 0.995, 0.999, 0.05 ** (1 / 58)])
def test_fewest_texts_are_those_that_can_show_it(agreement):
    needed = texts_needed(agreement)
    tested, too_few = (len(divide(texts, 0)[1]) for texts in (needed, needed - 2))
    assert agreement_bound(tested, tested) >= agreement > agreement_bound(too_few, too_few)
    assert agreement_bound(tested - 1, tested) == pytest.approx(beta.ppf(0.05, tested - 1, 2))


@pytest.mark.parametrize("texts", [59, 100, 598, 1100, 1150, 4095])
def test_the_agreement_that_is_named_in_a_refusal_can_be_shown(texts):
    with pytest.raises(ValueError, match="different texts are needed") as refusal:
        calibrate(Host("bert").make(**CLASSES), [{"input_ids": [n]} for n in range(texts)], agreement=0.9999)
    named = float(re.search(r"`agreement`: ([0-9.]+) would", str(refusal.value))[1])
    assert texts_needed(named) <= texts


def test_one_encoder_has_nothing_to_lower():
    model = Host("bert")
    model.fields["num_hidden_layers"] = 1
    found = calibrate(model.make(**CLASSES), make_features(60), agreement=0.9)
    longest = max(len(row["input_ids"]) for row in make_features(60))
    assert [one.retention_config for one in found.tried] == [[1 / longest]]


def test_bf16_is_compared_with_bf16(monkeypatch):
    model, computed_in = Host("bert").make(**CLASSES), []

    def look(*args):
        computed_in.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return logits(*args)

    monkeypatch.setattr(sensitivity, "logits", look)
    found = calibrate(model, make_features(60), agreement=0.9, bf16=True)
    assert len(computed_in) > 2
    assert set(computed_in) == {torch.bfloat16}
    assert found.tried[0].agreement == 1
    assert model.dtype == torch.float32


@pytest.mark.parametrize(
    ("fields", "options", "inputs", "message"),
    [
        (CLASSES, {}, 597, "at least 598 different texts are needed, got 597"),
        (
            CLASSES,
            {"agreement": 0.95},
            100,
            "at least 118 different texts are needed, got 100; .*: 0.941 would need all",
        ),
        (CLASSES, {"agreement": 1.0}, 600, "`agreement` must lie between 0 and 1, both excluded, got 1.0"),
        (CLASSES, {"agreement": 0}, 600, "got 0"),
        (CLASSES, {"agreement": float("nan")}, 600, "got nan"),
        ({**CLASSES, "retention_mode": "off", "retention_config": [9, 5, 2]}, {"batch_size": 0}, 600, "got 0"),
        (CLASSES, {"batch_size": 0}, 600, "`batch_size` must be at least 1, got 0"),
        ({"num_labels": 1}, {}, 600, "got a model that predicts a number"),
        ({"num_labels": 2, "problem_type": "regression"}, {}, 600, "got a model that predicts a number"),
        ({"retention_config": [9, 5, 2]}, {}, 600, r"got one with `retention_config` \[9, 5, 2\]"),
        ({"retention_mode": "soft", "retention_length": 9}, {}, 600, "and `retention_mode` 'soft'"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_and_stays(fields, options, inputs, message):
    model = Host("bert").make(**fields)
    before = model.config.to_dict()
    with pytest.raises(ValueError, match=message):
        calibrate(model, make_features(inputs), **options)
    assert model.config.to_dict() == before


def test_a_model_without_answers_is_refused_and_stays():
    model = Host("bert").make(**CLASSES, retention_config=[9, 5, 2], retention_mode="off")
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    before = model.config.to_dict()
    with pytest.raises(ValueError, match="finite logits"):
        calibrate(model, make_features(60), agreement=0.9)
    assert model.config.to_dict() == before


@pytest.mark.parametrize("head", HEADS)
def test_what_one_answer_to_everything_would_reach_is_no_agreement(head):
    model = Host("bert").make(**HEADS[head])
    torch.nn.init.constant_(model.classifier.weight, 0.0)
    model.classifier.bias.data.copy_(torch.tensor([1.0, -1.0, -1.0]))
    with pytest.raises(
        ValueError, match=r"one answer to every text would reach, got 0.9 where 100.00% of the predict"
    ):
        calibrate(model, make_features(60), agreement=0.9)
    assert model.config.active_retention_mode == "off"


@pytest.fixture
def folder(tokenizer, tmp_path, monkeypatch):
    """A tiny stock classifier and texts, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Host("bert").make_stock(**CLASSES).save_pretrained("model")
    tokenizer.save_pretrained("model")
    (tmp_path / "texts.txt").write_text("\n".join(make_texts(130)))
    return tmp_path


def test_command_end_to_end(folder, tokenizer, capsys):
    assert cli.main(["calibrate", "model", "--texts=texts.txt", "--agreement=0.8", "--output-dir=fast"]) == 0
    out = capsys.readouterr().out
    config = json.loads((folder / "fast" / "config.json").read_text())
    assert config["retention_mode"] is None
    assert config["retention_unit"] == "fraction"
    spelled = " ".join(f"{entry:.3g}" for entry in config["retention_config"])
    assert f"\nretention_config {spelled} (of an input)\n" in out
    assert "testing: 1 1 0.0" in out
    assert "of 65 predictions are those at full retention" in out
    model = AutoModelForSequenceClassification.from_pretrained("fast")
    ours = Host("bert").make(**CLASSES)
    features = tokenize_texts(*read_texts("texts.txt"), tokenizer, ours.config)
    found = calibrate(ours, features, 0.8)
    assert found.chosen.retention_config == config["retention_config"]
    torch.testing.assert_close(answers(model, features), answers(ours, features))
    assert not (folder / "fast.partial").exists()
    capsys.readouterr()
    assert cli.main(["publish", "fast", "--repo=user/fast", "--dry-run"]) == 0
    card = capsys.readouterr().out
    assert (
        f"{100 * found.chosen.agreement:.2f} % of 65 predictions are those of the model with all word-vectors" in card
    )
    # No more than what was asked for: it was chosen of several on the same texts.
    assert "at least\n80.00 %, at 95 % confidence (`powerbert calibrate`, seed 0" in card


@pytest.mark.parametrize("link", [False, True])
def test_an_empty_folder_that_is_there_is_filled(folder, monkeypatch, link):
    (folder / "there").mkdir()
    if link:
        (folder / "link").symlink_to("there")
    # Left by a process that was killed.
    (folder / "there" / ".partial").mkdir()
    monkeypatch.chdir(folder / "there")
    options = ["--texts=../texts.txt", "--agreement=0.8", f"--output-dir={'../link' if link else '.'}"]
    assert cli.main(["calibrate", "../model", *options]) == 0
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.glob("there/*")}
    assert not (folder / "there" / ".partial").exists()


def test_where_nothing_can_be_written_is_known_before_the_search(folder, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(folder))
    monkeypatch.setattr(calibration, "load_classifier", lambda *args, **kwargs: pytest.fail("loaded"))
    assert cli.main(["calibrate", "model", "--texts=texts.txt", "--output-dir=a/b"]) == 2
    assert f"a/b cannot be written: {folder} does not allow it; choose another" in capsys.readouterr().err


def test_weights_are_written_in_the_dtype_that_they_were_read_in(folder):
    Host("bert").make_stock(**CLASSES).half().save_pretrained("model")
    assert cli.main(["calibrate", "model", "--texts=texts.txt", "--agreement=0.8", "--output-dir=fast"]) == 0
    kept, read = (load_file(folder / name / "model.safetensors") for name in ("fast", "model"))
    assert {weight.dtype for weight in kept.values()} == {torch.float16}
    assert all(torch.equal(weight, read[name]) for name, weight in kept.items())


def test_command_writes_nothing_unless_asked_and_reads_pairs(folder, capsys):
    texts = make_texts(260)
    pairs = [f"{one},{two},yes" for one, two in zip(texts[::2], texts[1::2], strict=True)]
    (folder / "pairs.csv").write_text("\n".join(["one,two,label", *pairs]))
    before = sorted(folder.rglob("*"))
    options = ["--texts=pairs.csv", "--text-columns=one,two", "--agreement=0.8", "--inputs=120", "--bf16"]
    assert cli.main(["calibrate", "model", *options]) == 0
    assert "of 60 predictions are those at full retention" in capsys.readouterr().out
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--texts=no.txt"], "There is no file no.txt"),
        (["--texts=texts.txt"], "at least 598 different texts are needed, got 130"),
        (["--texts=texts.txt", "--inputs=100"], "`--inputs` must be at least 598 for an agreement of 0.99, got 100"),
        (["--texts=texts.txt", "--agreement=1"], "`agreement` must lie between 0 and 1"),
        (["--texts=texts.txt", "--agreement=0.8", "--max-length=2"], "`max_length` must lie between 3"),
        (["--texts=texts.txt", "--output-dir=model"], "model holds something else"),
        (["--texts=texts.txt", "--agremeent=0.8"], "did you mean --agreement?"),
        (["--texts=empty.txt"], "empty.txt must hold texts, one a line, got none"),
        (["--texts=rows.csv"], "Name one or two `--text-columns`; the data has one, two."),
    ],
)
def test_command_refuses_in_one_sentence(folder, capsys, options, message):
    (folder / "empty.txt").write_text("\n \n")
    (folder / "rows.csv").write_text("one,two\na film,the cast\n")
    assert message in refused(capsys, folder, ["model", *options], command="calibrate")


def test_a_missing_text_is_named_by_its_row_of_the_file(folder, capsys):
    rows = [{"text": text} for text in make_texts(200)]
    rows[150]["text"] = rows[180]["text"] = None
    Dataset.from_list(rows).to_json("rows.jsonl")
    said = refused(capsys, folder, ["model", "--texts=rows.jsonl", "--agreement=0.8", "--inputs=60"], "calibrate")
    assert "got 2 rows without, the first in row 151" in said


def test_texts_that_are_alike_once_cut_are_made_up_for_by_more(folder, capsys):
    options = ["model", "--texts=texts.txt", "--agreement=0.8", "--inputs=100", "--max-length=3"]
    assert "draw more by `--inputs`, or cut later by `--max-length`" in refused(capsys, folder, options, "calibrate")


def test_command_refuses_a_model_without_a_head(folder, capsys):
    Host("bert").make_stock("stock_base").save_pretrained("model")
    assert "trained classification head" in refused(capsys, folder, ["model", "--texts=texts.txt"], "calibrate")


def test_no_text_is_searched_on_and_tested_on(monkeypatch):
    searched_on, search = [], calibration.search_path

    def look(model, features, *more):
        searched_on.append(features)
        return search(model, features, *more)

    monkeypatch.setattr(calibration, "search_path", look)
    features = make_features(120)
    found = calibrate(balanced(Host("bert").make(**CLASSES), features), features, 0.6)
    first, second = divide(120, 0)
    assert set(first).isdisjoint(second)
    assert searched_on == [[features[row] for row in first]]
    assert (found.searched, found.tested) == (len(first), len(second))
