"""`retention.json`: what it holds comes back, and one that cannot be used is refused in a sentence."""

import json

import pytest

from conftest import Host
from powerbert_hf.card import Facts, data_of, facts_of_report, make_card, picture, shown_command
from powerbert_hf.retention_file import RetentionFile, hub_reason, read_retention

FITS = {"backbone": "bert", "encoders": 3, "retention_config": [0.9, 0.5, 0.3], "retention_unit": "fraction"}


def test_what_is_written_is_read_from_file_folder_and_model(host, tmp_path):
    known = {
        "base_model": "some/base",
        "task": "mrpc",
        "metric": {"name": "f1", "base": 0.9},
        "speedup": {"measured": 2},
    }
    model = host.make(retention_config=[6, 4, 2], retention_length=32)
    told = RetentionFile.of(model.config, **known)
    path = tmp_path / "retention.json"
    path.write_text(told.dumps())
    assert json.loads(path.read_text())["version"] == 1
    assert read_retention(path) == read_retention(tmp_path) == told
    model.save_pretrained(tmp_path / "model")
    assert read_retention(tmp_path / "model") == RetentionFile.of(model.config)
    assert RetentionFile.of(model.config) == RetentionFile(host.name, 3, [6, 4, 2], "words", 32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expecting property name"),
        ("[1]", "it must be a JSON object, got list"),
        ({"version": 2}, "its `version` must be 1, got 2; a newer one needs a newer powerbert_hf"),
        ({"version": None}, "its `version` must be 1, got None"),
        ({"backbone": "roberta"}, "`backbone` must be bert or albert, got 'roberta'"),
        ({"encoders": "3"}, "`encoders` must be int, got '3'"),
        ({"encoders": True}, "`encoders` must be int, got True"),
        ({"encoders": 4}, "must have one entry per encoder (4), got 3"),
        ({"retention_config": [0.3, 0.5, 0.9]}, "must not increase, got 0.5 for encoder 2"),
        ({"retention_config": [2, 1, 1]}, "above 0 and at most 1, got 2"),
        ({"retention_config": None}, "`retention_config` must be list, got None"),
        ({"retention_unit": "percent"}, "`retention_unit` must be one of words, fraction"),
        ({"retention_length": 1.5}, "`retention_length` must be int, got 1.5"),
        ({"metric": "f1"}, "`metric` must be dict, got 'f1'"),
        ({"metric": {"name": "f1", "base": "0.9"}}, "`base` of `metric` must be a number, got '0.9'"),
        ({"speedup": {"predicted": None}}, "`predicted` of `speedup` must be a number, got None"),
        ({"retention_unit": ...}, "it must have a `retention_unit`, got none"),
        ({"version": ..., "model_type": "bert"}, "it is a model of type 'bert' without a `retention_config`"),
    ],
)
def test_refused(tmp_path, content, message):
    path = tmp_path / "retention.json"
    if isinstance(content, dict):
        content = {name: value for name, value in {"version": 1, **FITS, **content}.items() if value is not ...}
        if "model_type" in content:
            del content["retention_config"]
        content = json.dumps(content)
    path.write_text(content)
    with pytest.raises(ValueError, match=r"The retention configuration .* cannot be used: ") as raised:
        read_retention(path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_it_is_one_of_two_ways_to_give_a_configuration(host, tmp_path):
    host.make_stock().save_pretrained(tmp_path)
    (tmp_path / "retention.json").write_text(RetentionFile(**{**FITS, "backbone": host.name}).dumps())
    with pytest.raises(ValueError, match=r"got `retention` .* and `retention_config`; leave one out"):
        host.classifier.from_pretrained(tmp_path, retention=tmp_path, retention_config=[1.0, 1.0, 1.0])
    for field, value in {"retention": tmp_path, "retention_config": [1.0, 1.0, 1.0]}.items():
        with pytest.raises(ValueError, match=f"`{field}` is read with .* got a `config` beside it"):
            host.classifier.from_pretrained(tmp_path, config=host.config(**host.fields), **{field: value})


def test_it_fits_a_model_that_is_loaded_with_fewer_encoders(host, tmp_path):
    host.stock_config(**{**host.fields, "num_hidden_layers": 4}).save_pretrained(tmp_path)
    (tmp_path / "retention.json").write_text(RetentionFile(**{**FITS, "backbone": host.name}).dumps())
    config = host.config.from_pretrained(tmp_path, num_hidden_layers=3, retention=tmp_path)
    assert config.retention_config == [0.9, 0.5, 0.3]


def test_a_length_beyond_the_models_is_left_out(host, tmp_path):
    host.make_stock().save_pretrained(tmp_path)
    told = RetentionFile(**{**FITS, "backbone": host.name, "retention_length": 512})
    (tmp_path / "retention.json").write_text(told.dumps())
    config = host.config.from_pretrained(tmp_path, retention=tmp_path)
    assert (config.retention_config, config.retention_length) == ([0.9, 0.5, 0.3], None)


def test_errors_that_are_not_the_hubs_have_no_reason_of_it():
    assert hub_reason(ValueError("x")) is None
    assert hub_reason(OSError("disk")) is None


def test_commands_are_shown_without_paths_and_with_hub_ids():
    typed = "powerbert train --model=/home/me/bert --dataset nyu-mll/glue --train_file ../a/b.csv --text-columns a b"
    assert shown_command(typed.split()) == (
        "powerbert train --model=bert --dataset nyu-mll/glue --train_file b.csv --text-columns a b"
    )
    assert shown_command(
        ["powerbert", "train", "--hub-token", "...", "--label-column", "a b", "--output-dir", "/x/y"]
    ) == ("powerbert train --hub-token ... --label-column 'a b' --output-dir runs/y")


def test_the_picture_of_counts_is_drawn_to_the_longest_input():
    lines = picture(RetentionFile("bert", 2, [32, 8], "words", 64)).splitlines()
    assert [line.count("█") for line in lines] == [20, 5]
    assert [line.split()[-1] for line in lines] == ["32", "8"]
    card = make_card(Facts("user/long", RetentionFile("bert", 2, [1024, 1001], "words")))
    assert "| 1 | 1024 |" in card.text
    assert "| 2 | 1001 |" in card.text


@pytest.mark.parametrize(("split", "told"), [("validation", None), ("test", "test"), (None, "test")])
def test_the_split_of_a_copy_is_that_of_the_hub_only_under_its_name(split, told):
    data = {"dataset": "../copies/imdb", "dataset_id": None, "subset": None, "task": "imdb", "eval_split": split}
    assert data_of({"data": data}) == {"id": "stanfordnlp/imdb", "config": None, "name": "imdb", "split": told}


def test_a_card_of_your_own_files_names_them_without_the_place_where_they_are():
    numbers = {"loss": 0.5, "f1_micro": 0.25, "f1_macro": 0.125}
    report = {
        "model": "/home/me/models/mine",
        "base_model": None,
        "backbone": "bert",
        "data": {
            **{"dataset": None, "subset": None, "task": None, "train_file": "/home/me/train.csv"},
            **{"eval_file": "/home/me/held.csv", "eval_split": None, "train_rows": 9, "eval_rows": 5},
            "dataset_id": None,
        },
        "metric": "f1_micro",
        "base": 0.5,
        "final": 0.25,
        "metrics": {"base": numbers, "final": numbers},
        "retention_config": [16, 8, 1],
        "retention_unit": "words",
        "retention_length": 32,
        "predicted_speedup": 2.0,
        "measured_speedup": 1.5,
        "word_vectors_kept": [0.5, 0.25, 0.125],
        "mean_length": 20.0,
        "timing": {"low": 1.25, "high": 1.75, "batch_size": 32, "dtype": "float32"},
        "training": {
            **{"num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-3},
            **{"seed": 7, "bf16": False, "retention_lambda": 1e-3},
        },
        "hardware": dict.fromkeys(("processor", "threads", "accelerator", "torch", "transformers"), "some"),
    }
    card = make_card(facts_of_report(report, ["powerbert", "train", "--model", "/home/me/models/mine"], "user/mine"))
    assert "/home" not in str(card)
    assert card.data.base_model is None
    assert card.data.datasets is None
    assert card.data.license is None
    assert "The license of the base model is not known here" in card.text
    assert card.data.metrics == ["f1"]
    first, second = card.data.eval_results
    assert (first.dataset_name, first.dataset_type, first.dataset_split) == ("held.csv", "held.csv", None)
    assert (first.metric_type, first.metric_name, first.metric_value) == ("f1", "f1_micro", 0.25)
    assert first.metric_args == {"average": "micro", "seed": 7}
    assert second.metric_args == {"average": "macro", "seed": 7}
    assert "| 1 | 16 | 50.0 % |" in card.text
    assert "of the three steps (fine-tune, search,\nre-train)" in card.text
    # A file of one's own is no part of the data set that was trained on; a model fine-tuned before is no step.
    report["data"] |= {"dataset": "some/topics", "dataset_id": "some/topics", "train_file": None}
    report["training"]["fine_tuned_before"] = True
    card = make_card(facts_of_report(report, None, "user/mine"))
    assert card.data.datasets == ["some/topics"]
    first = card.data.eval_results[0]
    assert (first.dataset_name, first.dataset_type, first.dataset_split) == ("held.csv", "held.csv", None)
    assert "On held.csv: 5 texts" in card.text
    card = make_card(facts_of_report(report, ["powerbert", "train"], "user/mine"))
    assert "of the two steps (search,\nre-train)" in card.text


def test_the_folder_of_a_run_is_told_from_its_model(tmp_path):
    with pytest.raises(ValueError, match=r"holds neither retention\.json nor config\.json\.$"):
        read_retention(tmp_path)
    Host("bert").make(retention_config=[8, 5, 2]).save_pretrained(tmp_path / "final")
    with pytest.raises(ValueError, match=r"nor config\.json; did you mean .*final[?]"):
        read_retention(tmp_path)
    assert read_retention(tmp_path / "final").retention_config == [8, 5, 2]
