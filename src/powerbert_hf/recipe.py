# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The three steps chained in a folder: what each leaves behind, what is skipped, and the report at the end."""

import copy
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction, PreTrainedModel

from .benchmark import benchmark, hardware
from .budget import Budget
from .checkpoint import classifier_config, hub_id, load_classifier, load_config
from .cost import predicted_speedup, share_kept
from .data import TaskData
from .files import whole_folder, write_json
from .processes import on_main
from .retention import RetentionUnit
from .run_folder import STEPS
from .steps import TrainedStep, check_model, evaluate_step, fine_tune, retrain, search_configuration
from .trainer import PoWERTrainingArguments

logger = logging.getLogger(__name__)

# Two splits of the same data rarely differ by more than this of a metric.
_KNOWN_BY_HEART = 0.05
# Texts that a measured speed-up is taken on, drawn evenly over the lengths of the reported split.
_TIMED_INPUTS = 1024


@dataclass(frozen=True)
class RecipeResult:
    """What a recipe leaves behind.

    Args:
        model_dir: the folder of the final model.
        report: the content of `report.json`.
    """

    model_dir: Path
    report: dict[str, Any]


def run_recipe(
    model: str,
    data: TaskData,
    args: PoWERTrainingArguments,
    unit: RetentionUnit = "fraction",
    fine_tuned: bool = False,
    say: Callable[[str], None] = logger.info,
) -> RecipeResult:
    """All three steps, in `args.output_dir`.

    The folder gets `fine_tuned/`, `searched/` and `final/`, each a model with its tokenizer and its `step.json`
    (metrics, logs, masses), and `report.json`. A step whose folder is there is not run again. Of several processes the
    main one writes; all must see the folder.

    Args:
        model: a Hub id or folder of a BERT or ALBERT checkpoint.
        data: from `data.prepare_data`.
        args: of all three trainings.
        unit: of the retention configuration.
        fine_tuned: `model` has been trained on the task already: step 1 only measures it.
        say: told what is going on, a line at a time.

    Raises:
        ValueError: for a model, a speed-up or a configuration that cannot be run.
    """
    root = Path(args.output_dir)
    if args.speedup is not None:
        check_speedups(model, data, [args.speedup], unit)
    base = first_step(model, data, args, root, fine_tuned, say)
    return RecipeResult(root / "final", search_and_retrain(model, base, data, args, root, unit, say))


def check_speedups(
    model: str, data: TaskData, speedups: Sequence[float], unit: RetentionUnit = "fraction"
) -> tuple[float, float]:
    """Make sure that configurations have these speed-ups, before anything is trained.

    Args:
        model: a Hub id or folder.
        data: from `data.prepare_data`.
        speedups: predicted.
        unit: of the retention configuration.

    Returns:
        The speed-ups that any has: the lowest, with all word-vectors kept, and the highest, with one kept.

    Raises:
        ValueError: where none has one of them, or the model has one encoder alone.
    """
    config = classifier_config(
        model, retention_config=None, retention_mode=None, retention_unit=unit, retention_length=data.retention_length
    )
    limits = Budget(config, None, data.tune["length"]).limits
    if config.num_encoders == 1:
        raise ValueError(
            f"A search needs a model of two encoders or more, got one: it hands on [CLS] alone, a speed-up of "
            f"{limits[0]:.2f} that changes no answer; set its `retention_config` to [1]."
        )
    for speedup in speedups:
        Budget(config, speedup, data.tune["length"])
    return limits


def first_step(
    model: str,
    data: TaskData,
    args: PoWERTrainingArguments,
    root: Path,
    fine_tuned: bool = False,
    say: Callable[[str], None] = logger.info,
) -> Path:
    """Step 1 of a recipe, in `fine_tuned/` of a folder.

    Args:
        model: a Hub id or folder of a BERT or ALBERT checkpoint.
        data: from `data.prepare_data`.
        args: of the training.
        root: takes the step.
        fine_tuned: `model` has been trained on the task already: it is only measured.
        say: told what is going on, a line at a time.

    Returns:
        The folder of the model.
    """

    def measured(step_args: PoWERTrainingArguments) -> TrainedStep:
        stock = check_model(model, data, fine_tuned)
        vars(stock.config).update(data.label_fields)
        return evaluate_step(stock, data, step_args, [])

    train = measured if fine_tuned else lambda step_args: fine_tune(model, data, step_args)
    record = _step(root, "fine_tuned", train, data, args, say, "measuring" if fine_tuned else "training")
    # Of the tuning split, since somebody may choose by what is said here.
    found, constant = record["tuning"], constant_metric(data)
    if len(np.unique(data.tune["labels"], axis=0)) == 1:
        say(
            f"the tuning split, {len(data.tune)} of the training rows, has one answer for all its texts, and tells "
            "nothing; pass more rows"
        )
    elif found[data.metric] <= constant:
        remedy = "look whether model and labels are of these data" if fine_tuned else "train longer or at another rate"
        say(
            f"fine_tuned: {data.metric} is {found[data.metric]:.4g} on the tuning split, where one answer to every "
            f"text would reach {constant:.4g}; {remedy}, or take another `--metric`"
        )
    if fine_tuned and getattr(load_config(model), "retention_config", None) is not None:
        say(
            "fine_tuned: the model's `retention_config` is set aside, and with all word-vectors it is not what it was "
            "trained to be; the fine-tuned model of its run is a better start"
        )
    gain = found[data.metric] - record["metrics"][data.metric]
    if fine_tuned and gain > _KNOWN_BY_HEART:
        say(
            f"fine_tuned: {data.metric} is {100 * gain:.1f} points higher on the tuning split, drawn of the training "
            "rows, than on the reported one; if the model was trained on those rows, what it loses there will look "
            "larger than it is: pass others"
        )
    if fine_tuned and data.problem_type == "regression" and found["loss"] > np.var(data.tune["labels"]):
        say(
            "fine_tuned: the model's numbers are farther from the labels than the labels' mean is; if they are on "
            "another scale, scale the labels, or keep the model's by `--distillation 1`"
        )
    return root / "fine_tuned"


def constant_metric(data: TaskData) -> float:
    """What the best of models would reach on the tuning split that give every text the same answer.

    Args:
        data: from `data.prepare_data`; its metric counts.
    """
    if data.problem_type == "regression":
        return 0.0
    labels = np.array(data.tune["labels"])
    found, counts = np.unique(labels, axis=0, return_counts=True)
    if data.problem_type == "multi_label_classification":
        # One of these has the best subset accuracy, one the best f1 over all classes alike, and one the best f1 over
        # all answers: of the most frequent labels so many that the f1 is highest.
        share = labels.mean(axis=0)
        order = np.argsort(-share)
        of_so_many = share[order].cumsum() / (np.arange(len(share)) + 1 + share.sum())
        frequent = np.isin(np.arange(len(share)), order[: of_so_many.argmax() + 1])
        answers = [found[counts.argmax()], np.ones(len(share)), frequent]
    else:
        # The f1 of two classes is that of the second one; of more, the commonest is the best by any metric.
        classes = found if len(data.label_names) == 2 else found[[counts.argmax()]]
        answers = [np.arange(len(data.label_names)) == label for label in classes]
    # Logits, of which those below 0 say no.
    wanted = (np.tile(2.0 * answer - 1, (len(labels), 1)) for answer in answers)
    return max(data.compute_metrics(EvalPrediction(logits, labels))[data.metric] for logits in wanted)


def search_and_retrain(
    model: str,
    base: Path,
    data: TaskData,
    args: PoWERTrainingArguments,
    root: Path,
    unit: RetentionUnit = "fraction",
    say: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Steps 2 and 3 of a recipe, in `searched/` and `final/` of a folder, and its `report.json`.

    Args:
        model: what step 1 began with, for the report.
        base: the folder of step 1.
        data: from `data.prepare_data`.
        args: of both trainings.
        root: takes the steps; may hold the first one too.
        unit: of the retention configuration.
        say: told what is going on, a line at a time.

    Returns:
        The content of `report.json`.
    """
    fine_tuned = read_step(base)
    searched = _step(
        root,
        "searched",
        lambda step_args: search_configuration(base, data, step_args, unit),
        data,
        args,
        say,
    )
    final = _step(
        root, "final", lambda step_args: retrain(root / "searched", data, step_args, teacher=base), data, args, say
    )
    say("measuring speed")
    return on_main(lambda: _report(model, data, args, root, fine_tuned, searched, final))


def _report(
    model: str,
    data: TaskData,
    args: PoWERTrainingArguments,
    root: Path,
    fine_tuned: dict[str, Any],
    searched: dict[str, Any],
    final: dict[str, Any],
) -> dict[str, Any]:
    """Measure the final model, and write `report.json`."""
    # A run that was killed right after its last step left them.
    shutil.rmtree(root / "checkpoints", ignore_errors=True)
    ours = load_classifier(root / "final")
    steps = {"base": fine_tuned, "final": final}
    report = {
        "model": model,
        "base_model": hub_id(model),
        "backbone": ours.config.upstream_model_type,
        "data": {**data.source, "eval_digest": data.eval_digest},
        "metric": data.metric,
        "base": fine_tuned["metrics"][data.metric],
        "final": final["metrics"][data.metric],
        "before_retraining": searched["metrics"][data.metric],
        "metrics": {name: record["metrics"] for name, record in steps.items()},
        "tuning": {
            "rows": len(data.tune),
            **{name: record["tuning"][data.metric] for name, record in steps.items()},
            "predicted_speedup": predicted_speedup(ours.config, torch.tensor(data.tune["length"])),
        },
        "retention_config": ours.config.retention_config,
        "retention_unit": ours.config.retention_unit,
        "retention_length": ours.config.retention_length,
        "masses": searched["masses"],
        **measure(ours, data, args),
        "training": {
            name: getattr(args, name)
            for name in (
                "num_train_epochs",
                "max_steps",
                "world_size",
                "n_gpu",
                "per_device_train_batch_size",
                "gradient_accumulation_steps",
                "learning_rate",
                "speedup",
                "retention_learning_rate",
                "retraining_learning_rate",
                "retention_lambda",
                "distillation",
                "ranking_distillation",
                "seed",
            )
        }
        # A launcher may have settled it.
        | {name: args.mixed_precision == name for name in ("bf16", "fp16")}
        # A model that is only measured has no history.
        | {"fine_tuned_before": not fine_tuned["history"]},
        "hardware": hardware(args.device),
    }
    write_json(root / "report.json", report)
    return report


def read_step(folder: Path) -> dict[str, Any]:
    """What a finished step has left in its `step.json`.

    Raises:
        ValueError: where it cannot be read.
    """
    try:
        return json.loads((folder / "step.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(
            f"A finished step must have its record, got none that can be read in {folder / 'step.json'}; remove "
            f"{folder} to have the step done again."
        ) from error


def _step(
    root: Path,
    name: str,
    train: Callable[[PoWERTrainingArguments], TrainedStep],
    data: TaskData,
    args: PoWERTrainingArguments,
    say: Callable[[str], None],
    doing: str = "training",
) -> dict[str, Any]:
    """Run a step that has not been finished, and read what it left."""
    folder = root / name
    if on_main(lambda: _is_to_be_done(folder)):
        say(f"{name}: {doing}")
        step_args = copy.copy(args)
        step_args.output_dir = str(root / "checkpoints" / name)
        # Trackers have a run for each training, and go on with it by its name.
        step_args.run_name = f"{args.run_name or root.name}-{name}"
        step = train(step_args)
        on_main(lambda: _save_step(step, data, folder))
    record = read_step(folder)
    reported, tuning = (record[split][data.metric] for split in ("metrics", "tuning"))
    say(f"{name}: {data.metric} {reported:.4f} on the reported split, {tuning:.4f} on the tuning split")
    return record


def _is_to_be_done(folder: Path) -> bool:
    """Whether a step is still to be done, of which nothing has come yet.

    Raises:
        ValueError: where others have: they would stand beside what they are not of.
    """
    if folder.is_dir():
        return False
    later = [folder.parent / name for name in STEPS[STEPS.index(folder.name) + 1 :]]
    if folder.name == STEPS[0]:
        later += sorted(folder.parent.glob("speedup-*"))
    if left := [str(path) for path in later if path.is_dir()]:
        raise ValueError(
            f"Each step goes on from the one before, got {' and '.join(left)} without {folder}; restore it, or remove "
            "what came of it too."
        )
    return True


def measure(ours: PreTrainedModel, data: TaskData, args: PoWERTrainingArguments) -> dict[str, Any]:
    """What the final model saves on the reported split: by arithmetic on all of it, by the clock on a sample.

    Args:
        ours: a classifier in hard mode.
        data: from `data.prepare_data`.
        args: batch size and device.

    Returns:
        `predicted_speedup`, `measured_speedup`, the share of word-vectors kept by encoder, and how it was measured.
    """
    lengths: Tensor = torch.tensor(data.eval["length"])
    timed = benchmark(ours.to(args.device), timed_features(data), args.per_device_eval_batch_size)
    return {
        "predicted_speedup": predicted_speedup(ours.config, lengths),
        "measured_speedup": timed.measured,
        "word_vectors_kept": share_kept(ours.config, lengths),
        "mean_length": lengths.double().mean().item(),
        "timing": timed.timing(),
    }


def timed_features(data: TaskData) -> list[dict[str, Any]]:
    """Inputs to measure speed on, a sample of the reported split.

    Args:
        data: from `data.prepare_data`.

    Returns:
        A row of `input_ids`, ... each, in an order that has nothing to do with their lengths.
    """
    columns = [name for name in data.tokenizer.model_input_names if name in data.eval.column_names]
    # `data.eval` is sorted by length, so every n-th row has its distribution.
    rows = np.arange(0, len(data.eval), -(-len(data.eval) // _TIMED_INPUTS))
    return data.eval.select(np.random.default_rng(0).permutation(rows)).select_columns(columns).to_list()


def _save_step(step: TrainedStep, data: TaskData, folder: Path) -> None:
    """Write the folder of a step, and remove what it took to get there, but for the logs of a tracker."""
    checkpoints = folder.parent / "checkpoints"
    # Where TensorBoard's lie, unless it is told otherwise.
    if (logs := checkpoints / folder.name / "runs").is_dir():
        shutil.copytree(logs, folder.parent / "runs" / folder.name, dirs_exist_ok=True)
    with whole_folder(folder) as partial:
        step.model.save_pretrained(partial)
        data.tokenizer.save_pretrained(partial)
        record = {name: getattr(step, name) for name in ("metrics", "tuning", "masses", "history")}
        write_json(partial / "step.json", record)
    shutil.rmtree(checkpoints, ignore_errors=True)
