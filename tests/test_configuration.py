"""Configurations: every wrong field is refused where it is set, every right one comes back from disk."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"retention_config": [3, 2]}, r"one entry per encoder \(3\), got 2"),
        ({"retention_config": [65, 2, 1]}, r"longest input \(64\), got 65"),
        ({"retention_config": []}, r"one entry per encoder \(3\), got 0"),
        ({"retention_config": [1, 2, 3]}, "must not increase, got 2 for encoder 2 after 1"),
        ({"retention_config": [3, 2, 0]}, "integers of at least 1, got 0 for encoder 3"),
        ({"retention_config": [-3, -4, -5]}, "integers of at least 1, got -3 for encoder 1"),
        ({"retention_config": [0.5, 0.2, 0.1]}, "in words must hold integers"),
        *(
            ({"retention_config": [wrong] * 3, "retention_unit": "fraction"}, f"at most 1, got {wrong} for encoder 1")
            for wrong in (0.0, -0.5, 1.5, 2, float("nan"), float("inf"))
        ),
        ({"retention_config": [0.1, 0.2, 0.3], "retention_unit": "fraction"}, "must not increase, got 0.2"),
        ({"retention_unit": "percent"}, "got 'percent'"),
        ({"retention_mode": "medium"}, "must be None or one of off, soft, hard, got 'medium'"),
        ({"retention_mode": "hard"}, "`retention_config` must be set"),
        ({"retention_mode": "soft"}, "`retention_length` must be set"),
        ({"retention_mode": "soft", "retention_length": 65}, "between 1 and the model's longest input .64., got 65"),
        ({"retention_length": 0}, "got 0"),
    ],
)
def test_contradictory_fields_are_refused(host, fields, message):
    with pytest.raises(ValueError, match=message):
        host.config(**host.fields, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"retention_config": "321"},
        {"retention_config": 3},
        {"retention_config": (3, 2, 1)},
        {"retention_config": [3, "2", 1]},
        {"retention_config": [3, None, 1]},
        {"retention_unit": 1},
        {"retention_length": 1.5},
        {"retention_mode": 1},
    ],
)
def test_wrong_types_are_refused(host, fields):
    with pytest.raises(StrictDataclassFieldValidationError):
        host.config(**host.fields, **fields)


def test_a_contradiction_made_later_is_refused_on_saving_and_on_building(host, tmp_path):
    config = host.config(**host.fields)
    config.retention_config = [1, 2, 3]
    with pytest.raises(StrictDataclassClassValidationError, match="must not increase"):
        config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must not increase"):
        host.classifier(config)


def test_upstreams_configuration_is_converted_by_its_fields_and_refused_as_it_is(host):
    upstream = host.stock_config(**host.fields)
    assert host.config(**upstream.to_dict()).model_type == host.config.model_type
    for model in (host.base, host.classifier):
        with pytest.raises(ValueError, match=rf"needs a {host.config.__name__}, got a {host.stock_config.__name__}"):
            model(upstream)


def test_a_published_configuration_is_not_taken_for_a_field(host):
    with pytest.raises(ValueError, match="for `from_pretrained`, got it in a constructor; pass it there"):
        host.config(**host.fields, retention="user/configuration")


@pytest.mark.parametrize("field", ["is_decoder", "add_cross_attention"])
def test_decoders_are_refused_when_made_and_when_loaded(field, tmp_path):
    from conftest import Host

    host = Host("bert")
    with pytest.raises(ValueError, match="encoders only"):
        host.config(**host.fields, **{field: True})
    host.make_stock().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="encoders only"):
        host.classifier.from_pretrained(tmp_path, **{field: True})


def test_fields_come_back_from_disk(host, tmp_path):
    config = host.config(
        **host.fields, retention_config=[1, 0.5, 0.25], retention_unit="fraction", retention_length=40
    )
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is host.config
    upstreams_own = ("transformers_version", "_name_or_path")
    assert {k: v for k, v in again.to_dict().items() if k not in upstreams_own} == {
        k: v for k, v in config.to_dict().items() if k not in upstreams_own
    }
    assert again.retention_config == [1, 0.5, 0.25]
    assert again.active_retention_mode == "hard"


def test_an_unset_mode_is_saved_unset_and_resolved_when_read(host, tmp_path):
    config = host.config(**host.fields)
    assert config.active_retention_mode == "off"
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["retention_mode"] is None
    with_config = host.config.from_pretrained(tmp_path, retention_config=[3, 2, 1])
    assert with_config.active_retention_mode == "hard"
    assert host.config(**host.fields, retention_config=[3, 2, 1], retention_mode="off").active_retention_mode == "off"


def test_other_backbones_are_refused(host, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(ValueError, match="got 'roberta'"):
        host.classifier.from_pretrained(tmp_path)


def test_upstream_checkpoints_load_without_a_warning(host, tmp_path, upstream_warnings):
    host.stock_config(**host.fields).save_pretrained(tmp_path)
    config = host.config.from_pretrained(tmp_path)
    assert config.model_type == host.config.model_type
    assert upstream_warnings == []
    # The fixture does hear of what upstream says of a type that it does not expect.
    host.stock_config.from_pretrained(tmp_path, model_type="other")
    assert len(upstream_warnings) == 2
