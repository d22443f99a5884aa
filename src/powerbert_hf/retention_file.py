# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""`retention.json`: a retention configuration by itself, published, found and applied without weights.

Version 1 of the file is an object with these members; others are left alone.

    version            1
    backbone           "bert" or "albert": the family of the models that it fits
    encoders           L: how many encoders these have
    retention_config   L numbers, see [`RetentionConfig`]
    retention_unit     "words" or "fraction"
    retention_length   the longest input that it was learned on; may be missing, as all that follows
    base_model         the Hub id of the model that it was learned with
    task               what it was learned on: a data set, or a task of GLUE
    metric             name, base (all word-vectors kept), final (with the configuration), split, seed; of a
                       calibration inputs and bound too
    speedup            predicted, by multiply-accumulates; measured, by the clock
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import CONFIG_NAME

from .retention import check_retention_config

RETENTION_FILE = "retention.json"
_VERSION = 1
# What a member must be, where it is there.
_KINDS: dict[str, type] = {
    "backbone": str,
    "encoders": int,
    "retention_config": list,
    "retention_unit": str,
    "retention_length": int,
    "base_model": str,
    "task": str,
    "metric": dict,
    "speedup": dict,
}
# The same for what is in these two.
_NUMBERS = {"metric": ("base", "final", "inputs", "bound"), "speedup": ("predicted", "measured")}
_NEEDED = ("backbone", "encoders", "retention_config", "retention_unit")


@dataclass(frozen=True)
class RetentionFile:
    """The content of a `retention.json`, checked.

    Args:
        backbone: `"bert"` or `"albert"`.
        encoders: L.
        retention_config: L entries.
        retention_unit: `"words"` or `"fraction"`.
        retention_length: the longest input that it was learned on.
        base_model: the Hub id of the model that it was learned with.
        task: what it was learned on.
        metric: what it costs, see the module.
        speedup: what it saves, see the module.

    Raises:
        ValueError: for members of the wrong type, or a configuration that cannot be run.
    """

    backbone: str
    encoders: int
    retention_config: list[int | float]
    retention_unit: str
    retention_length: int | None = None
    base_model: str | None = None
    task: str | None = None
    metric: dict[str, Any] | None = None
    speedup: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if (value is not None or name in _NEEDED) and type(value) is not kind:
                raise ValueError(f"`{name}` must be {kind.__name__}, got {value!r}")
        for name, members in _NUMBERS.items():
            known = getattr(self, name) or {}
            for member in members:
                if member in known and type(known[member]) not in (int, float):
                    raise ValueError(f"`{member}` of `{name}` must be a number, got {known[member]!r}")
        if self.backbone not in ("bert", "albert"):
            raise ValueError(f"`backbone` must be bert or albert, got {self.backbone!r}")
        check_retention_config(self.retention_config, self.encoders, self.retention_unit)

    @classmethod
    def of(cls, config: Any, **more: Any) -> "RetentionFile":
        """That of a model.

        Args:
            config: a PoWER configuration in hard mode; any other is refused.
            more: members that the model does not know.

        Raises:
            ValueError: where it eliminates nothing.
        """
        mode = getattr(config, "active_retention_mode", "off")
        if mode != "hard":
            raise ValueError(
                "Only a model that eliminates word-vectors has a retention configuration to publish, got one in mode "
                f"{mode!r}; find one with `powerbert train` or `powerbert calibrate`."
            )
        return cls(
            *shape_of(config),
            list(config.retention_config),
            config.retention_unit,
            config.retention_length,
            **more,
        )

    def runs_as(self, other: "RetentionFile") -> bool:
        """Whether models of the same family run alike with both, whatever else is known of either."""
        return all(getattr(self, name) == getattr(other, name) for name in _NEEDED)

    def fields_for(self, config: Any, source: Any) -> dict[str, Any]:
        """What a model's configuration has to say to run with it.

        Args:
            config: the model's, stock or ours.
            source: where this one was read, for the message.

        Returns:
            Fields of [`RetentionConfig`].

        Raises:
            ValueError: for another family or number of encoders.
        """
        backbone, encoders = shape_of(config)
        if (self.backbone, self.encoders) != (backbone, encoders):
            raise ValueError(
                f"The retention configuration {source} is for {self.backbone} with {self.encoders} encoders, got a "
                f"model of type {backbone} with {encoders}; choose one that fits the model."
            )
        # Only a search asks for the length, and one of a model that takes no such input would find another.
        known = self.retention_length is not None and self.retention_length <= config.max_position_embeddings
        return {
            "retention_config": self.retention_config,
            "retention_unit": self.retention_unit,
            "retention_length": self.retention_length if known else None,
            "retention_mode": None,
        }

    def dumps(self) -> str:
        """The text of the file."""
        known = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return json.dumps({"version": _VERSION, **known}, indent=2) + "\n"

    def save(self, folder: str | os.PathLike) -> None:
        """Write the file.

        Args:
            folder: of a model, or one of its own.
        """
        Path(folder, RETENTION_FILE).write_text(self.dumps(), encoding="utf-8")


def shape_of(config: Any) -> tuple[str, int]:
    """Family and number of encoders of a model.

    Args:
        config: stock or ours.
    """
    encoders = config.num_hidden_layers * getattr(config, "inner_group_num", 1)
    return config.model_type.removeprefix("power"), encoders


def final_model(folder: str | os.PathLike) -> Path | None:
    """The model that the folder of a run holds, for whoever has named that folder in its place."""
    final = Path(folder, "final")
    return final if (final / CONFIG_NAME).is_file() else None


def spell_entries(config: Sequence[int | float]) -> str:
    """The entries of a retention configuration as they are shown: counts whole, fractions to three digits."""
    return " ".join(f"{entry:.3g}" if isinstance(entry, float) else str(entry) for entry in config)


def read_retention(source: str | os.PathLike, **download: Any) -> RetentionFile:
    """Read a configuration: a `retention.json`, or else that of a model of this package.

    Args:
        source: a file, a folder, or a Hub id, which may end in `@` and a branch, tag or commit.
        download: for `hf_hub_download`: `token`, `cache_dir`, `force_download`, `local_files_only`.

    Raises:
        ValueError: where none can be read, in one sentence.
    """
    try:
        return _parsed(json.loads(_found(str(source), download).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, HTTPError, EntryNotFoundError) as error:
        reason = hub_reason(error) or " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"The retention configuration {source} cannot be used: {reason}.") from error


def _found(source: str, download: dict[str, Any]) -> Path:
    """The file of a configuration; fetched, if it is on the Hub."""
    names = (RETENTION_FILE, CONFIG_NAME)
    if os.path.exists(source):
        files = [Path(source)] if os.path.isfile(source) else [Path(source, name) for name in names]
        for path in files:
            if path.is_file():
                return path
        final = final_model(source)
        hint = "" if final is None else f"; did you mean {final}?"
        raise ValueError(f"the folder holds neither {' nor '.join(names)}{hint}")
    repo, _, revision = source.partition("@")
    unknown: Exception | None = None
    for name in names:
        try:
            return Path(hf_hub_download(repo, name, revision=revision or None, **download))
        except LocalEntryNotFoundError as error:
            # Whether the Hub has it is not known, but the other one may be in the cache.
            unknown = unknown or error
        except EntryNotFoundError:
            continue
    raise unknown or ValueError(f"the repository holds neither {' nor '.join(names)}")


def _parsed(content: Any) -> RetentionFile:
    if not isinstance(content, dict):
        raise ValueError(f"it must be a JSON object, got {type(content).__name__}")
    if "model_type" in content and "version" not in content:
        return _of_model(content)
    if content.get("version") != _VERSION:
        raise ValueError(
            f"its `version` must be {_VERSION}, got {content.get('version')!r}; a newer one needs a newer powerbert_hf"
        )
    missing = [name for name in _NEEDED if name not in content]
    if missing:
        raise ValueError(f"it must have a `{missing[0]}`, got none")
    return RetentionFile(**{name: content[name] for name in _KINDS if name in content})


def _of_model(content: Mapping[str, Any]) -> RetentionFile:
    config, kind = content.get("retention_config"), content["model_type"]
    if not isinstance(config, list):
        raise ValueError(f"it is a model of type {kind!r} without a `retention_config`")
    mode = content.get("retention_mode")
    if mode in ("off", "soft"):
        raise ValueError(f"it is a model in {mode} mode, which does not run with its `retention_config`")
    unit, length = content.get("retention_unit", "words"), content.get("retention_length")
    return RetentionFile(str(kind).removeprefix("power"), len(config), config, unit, length)


def hub_reason(error: BaseException | None) -> str | None:
    """What went wrong on the Hub, in a few words with a remedy, or `None` for an error that is not the Hub's.

    Args:
        error: what was raised; those that caused it are looked at too.
    """
    if error is None:
        return None
    status = getattr(getattr(error, "response", None), "status_code", None)
    # From the particular to the general: these are subclasses of each other.
    if isinstance(error, HFValidationError):
        return "there is no such file or folder, and no repository can have this name; check it"
    if isinstance(error, GatedRepoError):
        return "access to the repository is gated; ask for it on its page, then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "there is no such file, folder or repository, or it is private and the token does not open it; check the "
            "name, or log in with `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision; check the name of the branch, tag or commit"
    if status == 401:
        return "the Hub does not accept the token; log in with `hf auth login --force`, or correct HF_TOKEN"
    if status == 403:
        return "the token does not give the right to this; use one that does, or a repository of your own"
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub is not asked while HF_HUB_OFFLINE is set; unset it"
    if status == 400 or (isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)):
        # What was wrong with the request, or which file is not there, whoever asked says better.
        return None
    if isinstance(error, HfHubHTTPError):
        return f"the Hub answers with status {status}; try again later"
    if isinstance(error, HTTPError):
        return "the connection to the Hub broke off, or there is none; try again"
    found = hub_reason(error.__cause__) or hub_reason(error.__context__)
    if found is None and isinstance(error, LocalEntryNotFoundError):
        return "it is not in the cache, and the Hub cannot be reached; try again when it can"
    return found
