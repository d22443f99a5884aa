# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Configurations of PoWER-BERT and PoWER-ALBERT: upstream's, and five fields that say which word-vectors stay."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, get_args

from huggingface_hub.dataclasses import strict
from transformers import AlbertConfig, BertConfig, PreTrainedConfig

from .retention import RetentionMode, RetentionSoftExtract, check_retention_config
from .retention_file import read_retention, shape_of

# What a retention configuration has to fit.
_SIZES = ("num_hidden_layers", "inner_group_num", "max_position_embeddings")
# An encoder takes memory before there are weights for it: more than any model has are a mistake, or a trap.
_MOST_ENCODERS = 1000


@strict
class RetentionConfig(PreTrainedConfig):
    """The fields that both backbones add to upstream's configuration.

    `from_pretrained` of a configuration or of a model takes `retention` too, in place of `retention_config` and its
    unit: a configuration by itself, see [`retention_file`].

    Args:
        retention_config (`list[int | float]`, *optional*):
            How many word-vectors each encoder keeps, one entry per encoder, never increasing. `None` keeps all.
        retention_unit (`str`, *optional*, defaults to `"words"`):
            What an entry means: `"words"`, a count, or `"fraction"`, a share of the example's own length.
        retention_length (`int`, *optional*):
            The longest input of the training data; the number of weights that each encoder learns in soft mode.
        retention_mode (`str`, *optional*):
            `"off"` is the stock model, `"soft"` weighs word-vectors by rank to learn a configuration, `"hard"` removes
            them. `None` means hard with a configuration and off without, and is saved as `None`, so that a model saved
            without a configuration can be loaded with one.
        retention_soft_extract (`str`, *optional*, defaults to `"multiply"`):
            What soft mode does with a word-vector of weight w. `"multiply"`: it is multiplied by w (paper, section
            3.3). `"published"`: the same, and the penalty moves the last encoder's weights too, which a classifier
            never reads. `"hide"`: all later encoders attend to it, and count its votes in the significance, w times
            as much; with weights of 0 and 1 that is hard mode. For searches for a speed-up: an input shorter than
            `retention_length` does not read every weight, and lambda would lower the others whether the task needs
            them or not.

    Raises:
        ValueError: on construction, for fields that contradict each other or the backbone. A field of the wrong type,
            a tuple for a list too, is upstream's `StrictDataclassFieldValidationError`.
    """

    retention_config: list[int | float] | None = None
    retention_unit: str = "words"
    retention_length: int | None = None
    retention_mode: str | None = None
    retention_soft_extract: str = "multiply"

    upstream_model_type: ClassVar[str] = ""
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["kept_positions", "retention_penalty", "ranking_divergence"]

    def __post_init__(self, **kwargs: Any) -> None:
        # An upstream configuration as a dictionary brings its own type along.
        kwargs.pop("model_type", None)
        if "retention" in kwargs:
            raise ValueError(
                "`retention` names a published configuration for `from_pretrained`, got it in a constructor; pass it "
                "there, or a `retention_config` here."
            )
        super().__post_init__(**kwargs)
        self.validate_retention()

    @property
    def active_retention_mode(self) -> RetentionMode:
        """`retention_mode`, with `None` resolved."""
        if self.retention_mode is None:
            return "off" if self.retention_config is None else "hard"
        return self.retention_mode  # type: ignore[return-value]

    @property
    def num_encoders(self) -> int:
        """L: how many times a word-vector goes through an encoder (ALBERT repeats its inner group)."""
        return shape_of(self)[1]

    def validate_retention(self) -> None:
        """Check the fields together; strict configurations also run this when they are saved.

        Raises:
            ValueError: with the rule, the value received and the remedy.
        """
        if getattr(self, "is_decoder", False) or getattr(self, "add_cross_attention", False):
            raise ValueError(
                "Word-vectors are eliminated in encoders only, got `is_decoder=True` or `add_cross_attention=True`; "
                "set both to `False`."
            )
        if not 1 <= self.num_encoders <= _MOST_ENCODERS:
            raise ValueError(
                f"A model must have 1 to {_MOST_ENCODERS} encoders, got {self.num_encoders}; correct "
                "`num_hidden_layers`."
            )
        max_length = self.max_position_embeddings
        check_retention_config(self.retention_config, self.num_encoders, self.retention_unit, max_length)
        if self.retention_length is not None and not 1 <= self.retention_length <= max_length:
            raise ValueError(
                f"`retention_length` must lie between 1 and the model's longest input ({max_length}), got "
                f"{self.retention_length}; truncate the inputs to a length in that range."
            )
        if self.retention_mode is not None and self.retention_mode not in get_args(RetentionMode):
            raise ValueError(
                f"`retention_mode` must be None or one of {', '.join(get_args(RetentionMode))}, got "
                f"{self.retention_mode!r}."
            )
        if self.retention_soft_extract not in get_args(RetentionSoftExtract):
            raise ValueError(
                f"`retention_soft_extract` must be one of {', '.join(get_args(RetentionSoftExtract))}, got "
                f"{self.retention_soft_extract!r}."
            )
        if self.retention_mode == "hard" and self.retention_config is None:
            raise ValueError(
                '`retention_config` must be set when `retention_mode` is "hard", got None; pass a list or run '
                "`search_configuration`."
            )
        if self.retention_mode == "soft" and self.retention_length is None:
            raise ValueError(
                '`retention_length` must be set when `retention_mode` is "soft", got None; pass the length of the '
                "longest training input."
            )

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """Read the file of this backbone or of its upstream one, whose checkpoints are ours with all retained.

        Mirrors `PreTrainedConfig.get_config_dict` (transformers 5.23); only the model type is looked at.

        Raises:
            ValueError: for any other backbone.
        """
        asked = dict(kwargs)
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        found = config_dict.get("model_type", cls.upstream_model_type)
        if found not in (cls.upstream_model_type, cls.model_type):
            raise ValueError(
                f"{cls.__name__} needs a checkpoint of type {cls.upstream_model_type!r} or {cls.model_type!r}, got "
                f"{found!r} from {pretrained_model_name_or_path}; PoWERBert classes are for BERT, PoWERAlbert ones "
                "for ALBERT."
            )
        # Here, where it is still known with which token.
        download = {name: asked[name] for name in ("token", "cache_dir", "local_files_only") if asked.get(name)}
        return cls._with_retention({**config_dict, "model_type": cls.model_type}, kwargs, download)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """`PreTrainedConfig.from_dict`; the Auto classes bring `retention` here, but no token and the like."""
        try:
            config_dict, kwargs = cls._with_retention(config_dict, kwargs, {})
        except ValueError as error:
            # What it holds is wrong, wherever it comes from.
            if error.__cause__ is None or isinstance(error.__cause__, ValueError):
                raise
            raise ValueError(
                f"{error} An Auto class hands on no `token`, `cache_dir` or `local_files_only`: where it needs one, "
                f"load the model by its own class, such as {cls.__name__.replace('Config', 'Model')}, or log in."
            ) from error
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def _with_retention(
        cls, config_dict: dict[str, Any], kwargs: dict[str, Any], download: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both dictionaries, with the configuration that `retention` names in the first and no longer in the second.

        Without what the first says of code beside the checkpoint, unless this is that code: no model that is saved
        from here would have it beside it.

        Raises:
            ValueError: for one that cannot be read or does not fit, or for two.
        """
        if cls._auto_class is None:
            config_dict = {name: value for name, value in config_dict.items() if name != "auto_map"}
        kwargs = dict(kwargs)
        source = kwargs.pop("retention", None)
        if source is None:
            if kwargs.get("retention_config") is not None:
                # As with `retention` and `set_retention`: whoever gives one wants it run.
                config_dict = {**config_dict, "retention_mode": None}
            return config_dict, kwargs
        if kwargs.get("retention_config") is not None:
            raise ValueError(
                f"A model has one retention configuration, got `retention` ({source}) and `retention_config`; leave "
                "one out."
            )
        config_dict = {**config_dict, **{name: kwargs[name] for name in _SIZES if name in kwargs}}
        plain = cls(**{**config_dict, "retention_config": None, "retention_mode": None})
        return {**config_dict, **read_retention(source, **download).fields_for(plain, source)}, kwargs


# What a configuration of ours has more than upstream's.
RETENTION_FIELDS = {one.name for one in fields(RetentionConfig)} - {one.name for one in fields(PreTrainedConfig)}


@strict
class PoWERBertConfig(RetentionConfig, BertConfig):
    """`BertConfig` and the retention fields of [`RetentionConfig`]."""

    model_type = "powerbert"
    upstream_model_type: ClassVar[str] = "bert"


@strict
class PoWERAlbertConfig(RetentionConfig, AlbertConfig):
    """`AlbertConfig` and the retention fields of [`RetentionConfig`]."""

    model_type = "poweralbert"
    upstream_model_type: ClassVar[str] = "albert"
