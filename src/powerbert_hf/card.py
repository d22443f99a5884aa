# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card: metadata and text, filled in from what is known of a model, a run or a configuration by itself."""

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData, constants, hf_hub_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.utils import SAFE_WEIGHTS_NAME
from yaml import YAMLError

from .checkpoint import hub_id
from .retention_file import RetentionFile, hub_reason, read_retention, spell_entries
from .run_folder import name_of
from .tasks import TASKS, hub_source

_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
# A card with one of these was written by a program, ours or `Trainer`.
_MARKS = ("<!-- Written by powerbert_hf.", "generated automatically according to")
# What `PreTrainedModel.push_to_hub` (transformers 5.23) fills the default card with, whose other fields are left open.
_DEFAULT = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)
# Metadata that stay true of a model whose weights have changed.
_LASTING = ("license", "license_name", "license_link", "base_model", "datasets", "language", "tags")
# Names of the Hub, where they differ from ours, with what tells them from others of that name.
_METRICS: dict[str, tuple[str, dict[str, Any]]] = {
    "pearson": ("pearsonr", {}),
    "f1_micro": ("f1", {"average": "micro"}),
    "f1_macro": ("f1", {"average": "macro"}),
    "subset_accuracy": ("accuracy", {}),
}
_CLASSES = {"bert": "PoWERBert", "albert": "PoWERAlbert"}
# Options of `powerbert train` and `sweep` whose value is a path, or may be one.
_PATHS = ("--output-dir", "--train-file", "--eval-file", "--plot")
_NAMES = ("--model", "--dataset")
_WIDTH = 100
_BAR = 40


@dataclass(frozen=True)
class Facts:
    """What is known of a model or a configuration, and told on its card.

    Args:
        place: what it is loaded from: a Hub id, or a folder for a card that is not published.
        retention: its configuration.
        report: `report.json` of the run that it is from.
        command: what was typed for this run.
        base: the name of the model that it was made from, where the configuration does not know a Hub id.
        license: metadata of the base model's card: `license`, `license_name`, `license_link`.
        with_code: its modelling files go along.
        weights: there is a model, not a configuration alone.
        metadata: of the card, known from elsewhere; before what follows from all this.
        hyperparameters: of a training that left no report.
    """

    place: str
    retention: RetentionFile
    report: dict[str, Any] | None = None
    command: list[str] | None = None
    base: str | None = None
    license: dict[str, Any] | None = None
    with_code: bool = False
    weights: bool = True
    metadata: dict[str, Any] | None = None
    hyperparameters: dict[str, Any] | None = None


def make_card(facts: Facts) -> ModelCard:
    """The card of a model or of a configuration by itself.

    Args:
        facts: what is known of it.

    Returns:
        A card whose metadata has `base_model`, `datasets`, `metrics`, `model-index` and `license` as far as they are
        known; it says what is not.
    """
    report, retention = facts.report, facts.retention
    data = ModelCardData(**{**_metadata(facts), **(facts.metadata or {})})
    data.eval_results = data.eval_results or None
    found_by = [*(data.tags or []), *fitting_tags(retention.backbone, retention.encoders)]
    data.tags = list(dict.fromkeys(found_by if facts.weights else [*found_by, "retention-configuration"]))
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        facts=facts,
        title=name_of(facts.place) if report is None else _title(facts),
        card_license=_listed(data.license_name or data.license),
        prefix=_CLASSES[retention.backbone],
        results=data.eval_results or [],
        report=report,
        trained_for=trained_for(report["training"]) if report else None,
        data=None if report is None else _reported_on(report),
        kept=None if report is None else report["word_vectors_kept"],
        share=None if report is None else sum(report["word_vectors_kept"]) / retention.encoders,
        metric=retention.metric or {},
        speedup=retention.speedup or {},
        picture=picture(retention),
        entries=spell_entries(retention.retention_config).split(),
        command=None if facts.command is None else shown_command(facts.command),
        hyperparameters=facts.hyperparameters or {},
        transformers=transformers_version,
    )


def _listed(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else value or ""


def fitting_tags(backbone: str, encoders: int) -> list[str]:
    """What a model or a configuration is found by on the Hub: this package, and what it fits.

    Args:
        backbone: `"bert"` or `"albert"`.
        encoders: L.

    Example:
        >>> fitting_tags("bert", 12)
        ['power-bert', 'bert-12-encoders']
    """
    return ["power-bert", f"{backbone}-{encoders}-encoders"]


def picture(retention: RetentionFile) -> str:
    """The configuration as bars, a line an encoder.

    Args:
        retention: the configuration.

    Example:
        >>> print(picture(RetentionFile("bert", 2, [1.0, 0.25], "fraction")))
        encoder 1  ████████████████████████████████████████  100 %
        encoder 2  ██████████                                 25 %
    """
    config = retention.retention_config
    full = 1.0 if retention.retention_unit == "fraction" else float(max(retention.retention_length or 0, *config))
    width = len(str(len(config)))
    lines = []
    for encoder, entry in enumerate(config, start=1):
        bar = "█" * max(1, round(_BAR * entry / full))
        lines.append(f"encoder {encoder:>{width}}  {bar:<{_BAR}}  {_entry(retention, entry):>5}")
    return "\n".join(lines)


def _entry(retention: RetentionFile, entry: float) -> str:
    return f"{100 * entry:.0f} %" if retention.retention_unit == "fraction" else str(entry)


def _title(facts: Facts) -> str:
    return f"{name_of(facts.base or facts.place)} on {data_of(facts.report or {})['name']}, on fewer word-vectors"


def data_of(report: dict[str, Any]) -> dict[str, Any]:
    """Which data a run is about.

    Args:
        report: its `report.json`.

    Returns:
        `id` of the Hub and `config` there, or `None`; a `name` to print, and the `split` that is reported.
    """
    data = report["data"]
    task = data.get("task")
    split = data.get("eval_split") or (Path(data["eval_file"]).name if data.get("eval_file") else None)
    own = TASKS[task].eval_split if task in TASKS else None
    if data["dataset"] is None:
        found, config, name = None, None, Path(data["train_file"]).name
    else:
        found, config = data["dataset_id"], data["subset"]
        if found is None and task is not None:
            # A folder that holds a known data set; what it calls otherwise may be rows of any split on the Hub.
            found, config = hub_source(task)
            if data.get("eval_split") not in (None, own):
                split = own = None
        name = task or " ".join(filter(None, (Path(data["dataset"]).name, config)))
    return {"id": found, "config": config, "name": name, "split": split or own}


def _reported_on(report: dict[str, Any]) -> dict[str, Any]:
    """The same of the split that is reported: a file of one's own is no part of a data set that was trained on."""
    data = report["data"]
    if data.get("eval_file") is None:
        return data_of(report)
    return {"id": None, "config": None, "name": Path(data["eval_file"]).name, "split": None}


def results_of(report: dict[str, Any]) -> list[EvalResult]:
    """The metrics of a run's final model, for the `model-index`.

    Args:
        report: its `report.json`.
    """
    data, seed = _reported_on(report), report["training"]["seed"]
    results = []
    # The one that counts comes first.
    names = dict.fromkeys([report["metric"], *report["metrics"]["final"]])
    for name in names:
        if name == "loss":
            continue
        kind, args = _METRICS.get(name, (name, {}))
        results.append(
            EvalResult(
                task_type="text-classification",
                task_name="Text Classification",
                dataset_type=data["id"] or data["name"],
                dataset_name=data["name"],
                dataset_config=data["config"],
                dataset_split=data["split"],
                metric_type=kind,
                metric_name=name,
                metric_value=report["metrics"]["final"][name],
                metric_args={**args, "seed": seed},
            )
        )
    return results


def _metadata(facts: Facts) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "base_model": facts.retention.base_model,
        "library_name": "transformers" if facts.weights else "powerbert_hf",
        "pipeline_tag": "text-classification" if facts.weights else None,
        **(facts.license or {}),
    }
    if facts.report is not None:
        results, data = results_of(facts.report), data_of(facts.report)
        metadata |= {
            "datasets": [data["id"]] if data["id"] else None,
            "metrics": list(dict.fromkeys(result.metric_type for result in results)),
            "model_name": name_of(facts.place) if hub_id(facts.place) else _title(facts),
            "eval_results": results,
        }
    return metadata


def shown_command(typed: list[str]) -> str:
    """A command as it can be shown to anybody: a file or folder by its name alone, no line wider than 100.

    Args:
        typed: its words.

    Example:
        >>> print(shown_command(["powerbert", "train", "--model", "/home/me/bert", "--output-dir=../runs/x"]))
        powerbert train --model bert --output-dir=runs/x
        >>> print(shown_command(["powerbert", "train", "my/own/bert", "--output-dir=../runs/x"]))
        powerbert train bert --output-dir=runs/x
        >>> print(shown_command(["powerbert", "train", "--model", "/home/me/x/fine_tuned", "--output-dir=../runs/y"]))
        powerbert train --model runs/x/fine_tuned --output-dir=runs/y
    """
    words, option = [], ""
    for place, word in enumerate(typed):
        if place == 2:
            # What stands first is the model.
            option = "--model"
        head, equals, value = word.partition("=")
        if word.startswith("--"):
            option = head.replace("_", "-")
            words.append(head + equals + shlex.quote(_shown(option, value)) if equals else head)
        else:
            words.append(shlex.quote(_shown(option, word)))
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) > _WIDTH - 3:
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines)


def _shown(option: str, value: str) -> str:
    if option == "--output-dir":
        # Where models are kept is said by its last two folders, the first of which is a habit.
        return "/".join(("runs", Path(value).name))
    somewhere = Path(value).is_absolute() or value.startswith(("~", ".."))
    if option in _PATHS or ((somewhere or option in _NAMES) and hub_id(value) is None):
        name, run = Path(value).name, name_of(value)
        # A step of another run, whose own card shows where it is kept.
        return name if option != "--model" or run == name else f"runs/{run}/{name}"
    return value


def run_of(model: Path) -> Path | None:
    """The folder of the run that a model is the result of, or `None`.

    Args:
        model: the folder of a run, or its `final/`.
    """
    # Of `.` the name is that of the current folder.
    model = model.absolute()
    folder = model.parent if model.name == "final" else model
    return folder if (folder / "report.json").is_file() and (folder / "final" / "config.json").is_file() else None


def trained_for(training: dict[str, Any]) -> str:
    """How long a step of a run was trained, and on how many rows at a time.

    Args:
        training: of a `report.json`.

    Example:
        >>> trained_for({"num_train_epochs": 3.0, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4})
        '3 epochs in batches of 32'
    """
    steps = training.get("max_steps", -1)
    number, unit = (steps, "optimizer step") if steps > 0 else (training["num_train_epochs"], "epoch")
    long = f"{number:g} {unit}{'' if number == 1 else 's'}"
    rows = training["per_device_train_batch_size"] * training.get("gradient_accumulation_steps", 1)
    return f"{long} in batches of {rows * training.get('world_size', 1) * max(1, training.get('n_gpu', 1))}"


def known_of(model: str | Path, config: Any, place: str, card: str | None = None, **more: Any) -> Facts:
    """What files say of a model.

    Args:
        model: a Hub id, the folder of a model, or of a run.
        config: its PoWER configuration, in hard mode.
        place: see [`Facts`].
        card: the text of the one beside the model, from `card_of`.
        more: see [`Facts`].

    Raises:
        ValueError: for a model without a configuration, or a run whose report is of another one.
    """
    folder = Path(model)
    run = run_of(folder) if folder.is_dir() else None
    if run is not None:
        return _of_run(run, config, place, more)
    retention, told = RetentionFile.of(config), read_retention(model)
    metadata = _metadata_of(card)
    same = told.runs_as(retention)
    if not same:
        # The file is of another model, and so may be the card.
        told = retention
    if not (same and more.get("weights", True)):
        metadata = _lasting(metadata)
    base = told.base_model or _one(metadata.get("base_model")) or (hub_id(model) if model != place else None)
    license = {} if metadata.get("license") else license_of(base)
    return Facts(place, replace(told, base_model=base), base=base, license=license, metadata=metadata, **more)


def add_card(model: PreTrainedModel, folder: str | Path, repo: str) -> None:
    """Write card and `retention.json` beside what upstream's `push_to_hub` has saved of a model.

    A card of somebody's own stays. The report of a run is told only of the model that it is of. A model that
    eliminates nothing, or is no classifier, has upstream's card.

    Args:
        model: as it is in memory.
        folder: goes up.
        repo: `user/name`.
    """
    if model.config.active_retention_mode != "hard" or not hasattr(model, "classifier"):
        return
    path = Path(folder, "README.md")
    # Upstream has put the one that is on the Hub here, or a default.
    written = card_of(folder)
    if written is not None and is_own(written):
        RetentionFile.of(model.config, base_model=_one(_metadata_of(written).get("base_model"))).save(folder)
        return
    known = _lasting(_metadata_of(written))
    source = Path(model.name_or_path)
    if run_of(source) is not None and _same_model(model, source):
        facts = known_of(source, model.config, repo, metadata={"tags": known.get("tags")})
    else:
        base = hub_id(model.name_or_path) if model.name_or_path != repo else None
        if base is not None:
            known |= {"base_model": base, **license_of(base)}
        retention = RetentionFile.of(model.config, base_model=base or _one(known.get("base_model")))
        facts = Facts(repo, retention, metadata=known)
    path.write_text(str(make_card(facts)), encoding="utf-8")
    facts.retention.save(folder)


def _same_model(model: PreTrainedModel, folder: Path) -> bool:
    """Whether weights and retention configuration are still those that lie there."""
    saved = folder / SAFE_WEIGHTS_NAME
    if not saved.is_file() or not read_retention(folder).runs_as(RetentionFile.of(model.config)):
        return False
    weights, ours = load_file(saved), model.state_dict()
    return weights.keys() == ours.keys() and all(
        torch.equal(weight.to(ours[name].dtype), ours[name].cpu()) for name, weight in weights.items()
    )


def _of_run(run: Path, config: Any, place: str, more: dict[str, Any]) -> Facts:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    if report["retention_config"] != config.retention_config:
        raise ValueError(
            f"The report of a run must be of its model, got another retention configuration in {run / 'report.json'}; "
            "publish a model of your own from a folder of its own."
        )
    # A sweep has one for all its runs.
    records = [folder / "command.json" for folder in (run, run.parent)]
    typed = next((json.loads(path.read_text(encoding="utf-8"))["typed"] for path in records if path.is_file()), None)
    # A name that was a folder's when it was trained is nobody's on the Hub.
    folder = report["model"] if Path(report["model"]).is_dir() else None
    return facts_of_report(report, typed, place, license=license_of(report["base_model"] or folder), **more)


def facts_of_report(report: dict[str, Any], typed: list[str] | None, place: str, **more: Any) -> Facts:
    """What a run's files say.

    Args:
        report: `report.json`.
        typed: what `command.json` has.
        place: see [`Facts`].
        more: see [`Facts`].
    """
    base, data = report["base_model"], data_of(report)
    retention = RetentionFile(
        report["backbone"],
        len(report["retention_config"]),
        report["retention_config"],
        report["retention_unit"],
        report["retention_length"],
        base_model=base,
        task=data["name"],
        metric={
            "name": report["metric"],
            "base": report["base"],
            "final": report["final"],
            "split": data["split"],
            "seed": report["training"]["seed"],
        },
        speedup={"predicted": report["predicted_speedup"], "measured": report["measured_speedup"]},
    )
    return Facts(place, retention, report, typed, base or name_of(report["model"]), **more)


def license_of(base: str | None) -> dict[str, Any]:
    """What a base model's card says of its license.

    Args:
        base: a Hub id or a folder.

    Returns:
        `license`, with `license_name` and `license_link` where it is none of the usual ones; empty if it is not known.

    Raises:
        ValueError: where the Hub cannot be asked.
    """
    if base is None:
        return {}
    data = _metadata_of(card_of(base))
    found = {name: data[name] for name in ("license", "license_name", "license_link") if data.get(name)}
    link = found.get("license_link")
    if link is not None and "://" not in link and not Path(base).is_dir():
        # There, it is the name of a file.
        found["license_link"] = f"{constants.ENDPOINT}/{base}/blob/main/{link}"
    return found


def card_of(model: str | Path, token: str | None = None) -> str | None:
    """The text of the card beside a model, or `None`.

    Args:
        model: a Hub id or a folder.
        token: of the Hub.

    Raises:
        ValueError: where it is not known whether there is one, because the Hub cannot be reached; offline, only what
            is in the cache is known.
    """
    path = Path(model, "README.md")
    if not Path(model).is_dir():
        try:
            path = Path(hf_hub_download(str(model), "README.md", token=token))
        except (RemoteEntryNotFoundError, RepositoryNotFoundError, HFValidationError):
            return None
        except (LocalEntryNotFoundError, HTTPError) as error:
            if constants.HF_HUB_OFFLINE:
                return None
            raise ValueError(f"The card of {model} cannot be read: {hub_reason(error) or error}.") from error
    return path.read_text(encoding="utf-8") if path.is_file() else None


def is_own(card: str) -> bool:
    """Whether a card is somebody's own: then it is left as it is.

    Args:
        card: its text.
    """
    if any(mark in card for mark in _MARKS):
        return False
    default = ModelCard.from_template(ModelCardData(), model_description=_DEFAULT)
    read = _read(card)
    return read is None or read.text.strip() != default.text.strip()


def _read(card: str) -> ModelCard | None:
    """A card with its metadata; `None` where these are not what they should be."""
    try:
        return ModelCard(card, ignore_metadata_errors=True)
    except (ValueError, YAMLError):
        return None


def _metadata_of(card: str | None) -> dict[str, Any]:
    read = None if card is None else _read(card)
    return {} if read is None else read.data.to_dict()


def _lasting(metadata: dict[str, Any]) -> dict[str, Any]:
    return {name: metadata[name] for name in _LASTING if metadata.get(name)}


def _one(base: Any) -> str | None:
    """The base model, where a card names one."""
    return base if isinstance(base, str) else None
