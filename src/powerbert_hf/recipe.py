# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The three steps of the paper (section 3.3): fine-tune, search the configuration, re-train.

Each step is a function of a model and data. `run_recipe` chains them in a folder, skips what an earlier run finished
and goes on from the last checkpoint where one was interrupted.
"""

import copy
import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel, set_seed
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME

from .benchmark import benchmark, hardware
from .checkpoint import load_classifier
from .cost import predicted_speedup, share_kept
from .data import TaskData
from .files import whole_folder, write_json
from .labels import named_labels
from .retention import RetentionUnit, retention_config_from_mass, retention_mass
from .tasks import METRICS
from .trainer import PoWERTrainer, PoWERTrainingArguments

logger = logging.getLogger(__name__)

# Texts that a measured speed-up is taken on, drawn evenly over the lengths of the reported split.
_TIMED_INPUTS = 1024


@dataclass(frozen=True)
class TrainedStep:
    """What one step leaves behind.

    Args:
        model: the trained model, in evaluation mode.
        metrics: on the reported split, by name.
        history: the `Trainer`'s logs.
        masses: L masses, of the search only.
    """

    model: PreTrainedModel
    metrics: dict[str, float]
    history: list[dict[str, float]]
    masses: list[float] | None = None


@dataclass(frozen=True)
class RecipeResult:
    """What a recipe leaves behind.

    Args:
        model_dir: the folder of the final model.
        report: the content of `report.json`.
    """

    model_dir: Path
    report: dict[str, Any]


def fine_tune(model: str | Path | PreTrainedModel, data: TaskData, args: PoWERTrainingArguments) -> TrainedStep:
    """Step 1: train the model on the task, with all word-vectors.

    Args:
        model: a pre-trained checkpoint, see `load_classifier`.
        data: from `data.prepare_data`.
        args: of the training; `output_dir` takes the checkpoints.

    Raises:
        ValueError: for an architecture that is neither BERT nor ALBERT.
    """
    # A new head's first weights follow from the seed too.
    set_seed(args.seed)
    off = load_classifier(model, retention_config=None, retention_mode=None, **data.label_fields)
    return _train(off, data, args)


def search_configuration(
    model: str | Path | PreTrainedModel, data: TaskData, args: PoWERTrainingArguments, unit: RetentionUnit = "fraction"
) -> TrainedStep:
    """Step 2: train the fine-tuned model with Soft-extract, and read the configuration off the masses.

    Args:
        model: from step 1.
        data: from `data.prepare_data`.
        args: of the training, with `retention_lambda` and `retention_learning_rate`.
        unit: of the configuration: `"fraction"` of an example's own length, or `"words"` as in the paper.

    Returns:
        The model with the configuration set, not re-trained to it yet; metrics are those of that model.
    """
    length = data.retention_length
    soft = load_classifier(
        model, retention_config=None, retention_mode="soft", retention_unit=unit, retention_length=length
    )
    trainer = _trainer(soft, data, args)
    _run(trainer)
    masses = retention_mass(soft.retention_weights.detach().double().cpu()).tolist()
    if not all(map(math.isfinite, masses)):
        raise ValueError(f"The search must end in finite masses, got {masses}; lower the learning rate or lambda.")
    # Encoder L hands on [CLS] alone, whatever was learned there.
    soft.set_retention(retention_config_from_mass([*masses[:-1], 1.0], unit, length), unit=unit, length=length)
    return TrainedStep(soft.eval(), evaluate_model(soft, data, args), trainer.state.log_history, masses)


def retrain(model: str | Path | PreTrainedModel, data: TaskData, args: PoWERTrainingArguments) -> TrainedStep:
    """Step 3: train on with the configuration, word-vectors removed.

    Args:
        model: from step 2.
        data: from `data.prepare_data`.
        args: of the training.

    Raises:
        ValueError: for a model without a configuration.
    """
    return _train(load_classifier(model, retention_mode="hard"), data, args)


def evaluate_model(model: PreTrainedModel, data: TaskData, args: PoWERTrainingArguments) -> dict[str, float]:
    """All metrics of a model on the reported split.

    Args:
        model: a classifier.
        data: from `data.prepare_data`.
        args: batch size and device.
    """
    # `evaluate` would log, and `powerbert evaluate` prints nothing but its result.
    metrics = _trainer(model, data, args).predict(data.eval, metric_key_prefix="eval").metrics
    return {name: float(metrics[f"eval_{name}"]) for name in ("loss", *METRICS[data.problem_type])}


def check_labels(config: Any, data: TaskData) -> None:
    """Make sure that a trained model means by its label numbers what the data means.

    Args:
        config: the model's.
        data: from `data.prepare_data`, read with this configuration.

    Raises:
        ValueError: for other labels, or for labels without names where the data has nothing but names.
    """
    ours, theirs = data.label_names, named_labels(config)
    fits = config.num_labels == max(1, len(ours)) and (theirs == ours if theirs else not data.named_in_rows)
    if not fits:
        raise ValueError(
            f"The model must know the data's labels ({', '.join(ours) or 'a number'}), got "
            f"{', '.join(config.id2label.values())}; set `id2label` in its configuration, or train a head for them."
        )
    if config.problem_type not in (None, data.problem_type):
        raise ValueError(
            f"The model must have been trained for the data's kind of task ({data.problem_type}), got "
            f"`problem_type` {config.problem_type!r} in its configuration; train a head for it."
        )


def check_model(model: str | Path, data: TaskData, fine_tuned: bool) -> PreTrainedModel:
    """Make sure that the recipe can begin with a checkpoint, and load it.

    Args:
        model: a Hub id or a folder.
        data: from `data.prepare_data`.
        fine_tuned: it has been trained on the task already.

    Raises:
        ValueError: for a checkpoint that cannot be used, or that is not what `fine_tuned` says.
    """
    loaded = load_classifier(model, needs_head=fine_tuned, retention_config=None, retention_mode=None)
    if fine_tuned:
        check_labels(loaded.config, data)
    return loaded


def _trainer(model: PreTrainedModel, data: TaskData, args: PoWERTrainingArguments) -> PoWERTrainer:
    return PoWERTrainer(
        model=model,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.eval,
        processing_class=data.tokenizer,
        data_collator=DataCollatorWithPadding(data.tokenizer),
        compute_metrics=data.compute_metrics,
    )


def _run(trainer: PoWERTrainer) -> None:
    trainer.train(resume_from_checkpoint=_last_complete_checkpoint(trainer.args.output_dir))


def _last_complete_checkpoint(folder: str) -> str | None:
    for checkpoint in reversed(sort_checkpoints(folder)):
        if _is_complete(Path(checkpoint)):
            return checkpoint
        logger.info("%s is incomplete and will be written again", checkpoint)
    return None


def _is_complete(checkpoint: Path) -> bool:
    """Whether a training can go on from it: the `Trainer` writes it in place, and its state last.

    The formats tell a file that was cut short, so a power failure is noticed too.
    """
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        with safe_open(checkpoint / SAFE_WEIGHTS_NAME, framework="pt"):
            pass
    except (OSError, ValueError, SafetensorError):
        return False
    return all(is_zipfile(checkpoint / name) for name in (OPTIMIZER_NAME, SCHEDULER_NAME, "rng_state.pth"))


def _train(model: PreTrainedModel, data: TaskData, args: PoWERTrainingArguments) -> TrainedStep:
    trainer = _trainer(model, data, args)
    _run(trainer)
    # Saved as `None`, the mode follows from the configuration wherever the model is loaded.
    model.config.retention_mode = None
    return TrainedStep(model.eval(), evaluate_model(model, data, args), trainer.state.log_history)


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
    (metrics, logs, masses), and `report.json`. A step whose folder is there is not run again.

    Args:
        model: a Hub id or folder of a BERT or ALBERT checkpoint.
        data: from `data.prepare_data`.
        args: of all three trainings.
        unit: of the retention configuration.
        fine_tuned: `model` has been trained on the task already: step 1 only measures it.
        say: told what is going on, a line at a time.

    Raises:
        ValueError: for a model or a configuration that cannot be run.
    """
    root = Path(args.output_dir)

    def step(name: str, train: Callable[[PoWERTrainingArguments], TrainedStep]) -> dict[str, Any]:
        folder, checkpoints = root / name, root / "checkpoints" / name
        if not folder.is_dir():
            say(f"{name}: {'measuring' if name == 'fine_tuned' and fine_tuned else 'training'}")
            step_args = copy.copy(args)
            step_args.output_dir = str(checkpoints)
            # Upstream casts the model itself for these, and the model is saved afterwards.
            step_args.bf16_full_eval = step_args.fp16_full_eval = False
            _save_step(train(step_args), data, folder)
            shutil.rmtree(root / "checkpoints", ignore_errors=True)
        try:
            record = json.loads((folder / "step.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError) as error:
            raise ValueError(
                f"A finished step must have its record, got none that can be read in {folder / 'step.json'}; remove "
                f"{folder} to have the step done again."
            ) from error
        say(f"{name}: {data.metric} {record['metrics'][data.metric]:.4f}")
        return record

    def first(step_args: PoWERTrainingArguments) -> TrainedStep:
        if not fine_tuned:
            return fine_tune(model, data, step_args)
        stock = check_model(model, data, fine_tuned)
        vars(stock.config).update(data.label_fields)
        return TrainedStep(stock.eval(), evaluate_model(stock, data, step_args), [])

    base = step("fine_tuned", first)
    searched = step("searched", lambda args: search_configuration(root / "fine_tuned", data, args, unit))
    final = step("final", lambda args: retrain(root / "searched", data, args))
    # A run that was killed right after its last step left them.
    shutil.rmtree(root / "checkpoints", ignore_errors=True)

    say("measuring speed")
    ours = load_classifier(root / "final")
    report = {
        "model": model,
        "data": data.source,
        "metric": data.metric,
        "base": base["metrics"][data.metric],
        "final": final["metrics"][data.metric],
        "before_retraining": searched["metrics"][data.metric],
        "metrics": {name: record["metrics"] for name, record in (("base", base), ("final", final))},
        "retention_config": ours.config.retention_config,
        "retention_unit": ours.config.retention_unit,
        "retention_length": ours.config.retention_length,
        "masses": searched["masses"],
        **measure(ours, data, args.per_device_eval_batch_size),
        "training": {
            name: getattr(args, name)
            for name in (
                "num_train_epochs",
                "max_steps",
                "per_device_train_batch_size",
                "gradient_accumulation_steps",
                "learning_rate",
                "retention_learning_rate",
                "retention_lambda",
                "bf16",
                "seed",
            )
        },
        "hardware": hardware(),
    }
    write_json(root / "report.json", report)
    return RecipeResult(root / "final", report)


def measure(ours: PreTrainedModel, data: TaskData, batch_size: int) -> dict[str, Any]:
    """What the final model saves on the reported split: by arithmetic on all of it, by the clock on a sample.

    Args:
        ours: a classifier in hard mode.
        data: from `data.prepare_data`.
        batch_size: texts in a batch.

    Returns:
        `predicted_speedup`, `measured_speedup`, the share of word-vectors kept by encoder, and how it was measured.
    """
    lengths: Tensor = torch.tensor(data.eval["length"])
    columns = [name for name in data.tokenizer.model_input_names if name in data.eval.column_names]
    # `data.eval` is sorted by length, so every n-th row has its distribution.
    rows = range(0, len(data.eval), -(-len(data.eval) // _TIMED_INPUTS))
    features = data.eval.select(rows).select_columns(columns).to_list()
    ours = ours.to("cuda" if torch.cuda.is_available() else "cpu")
    timed = benchmark(ours, features, batch_size)
    return {
        "predicted_speedup": predicted_speedup(ours.config, lengths),
        "measured_speedup": timed.measured,
        "word_vectors_kept": share_kept(ours.config, lengths),
        "mean_length": lengths.double().mean().item(),
        "timing": timed.timing(),
    }


def _save_step(step: TrainedStep, data: TaskData, folder: Path) -> None:
    with whole_folder(folder) as partial:
        step.model.save_pretrained(partial)
        data.tokenizer.save_pretrained(partial)
        write_json(partial / "step.json", {"metrics": step.metrics, "masses": step.masses, "history": step.history})
