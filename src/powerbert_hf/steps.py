# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The three steps of the paper (section 3.3): fine-tune, search the configuration, re-train.

Each is a function of a model and data, and goes on from its last checkpoint where it was interrupted: `output_dir`
holds those of one step on one set of data.
"""

import copy
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, get_scheduler, set_seed
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME

from .agreement import predicts_number
from .callbacks import LeaveWhenTold, ObeyNewSteps, goes_on_from
from .checkpoint import load_classifier
from .configuration_powerbert import RETENTION_FIELDS
from .cost import predicted_speedup
from .data import TaskData
from .files import writing
from .labels import named_labels, some_of
from .processes import on_main
from .retention import RetentionSoftExtract, RetentionUnit, retention_mass
from .run_folder import BY_METRIC
from .stopping import Terminated, on_sigterm
from .tasks import METRICS
from .trainer import PoWERTrainer, PoWERTrainingArguments, check_not_sharded

logger = logging.getLogger(__name__)

# How far from the speed-up asked for is worth a word.
_NEAR = 0.03


@dataclass(frozen=True)
class TrainedStep:
    """What one step leaves behind.

    Args:
        model: the trained model, in evaluation mode.
        metrics: on the reported split, by name.
        tuning: the same on the tuning split.
        history: the `Trainer`'s logs.
        masses: L masses, of the search only.
    """

    model: PreTrainedModel
    metrics: dict[str, float]
    tuning: dict[str, float]
    history: list[dict[str, float]]
    masses: list[float] | None = None


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
    model: str | Path | PreTrainedModel,
    data: TaskData,
    args: PoWERTrainingArguments,
    unit: RetentionUnit = "fraction",
    soft_extract: RetentionSoftExtract | None = None,
) -> TrainedStep:
    """Step 2: train the fine-tuned model with Soft-extract, and read the configuration off the masses.

    With `args.retention_lambda` as published. With `args.speedup` the configuration has that predicted speed-up on the
    lengths of the tuning split: word-vectors are hidden, the masses are held to the speed-up while they are learned,
    refined at the end, and scaled by the little that rounding counts has cost.

    Args:
        model: from step 1; `args.distillation` takes its answers for a teacher's.
        data: from `data.prepare_data`.
        args: of the training, with `speedup` or `retention_lambda`.
        unit: of the configuration: `"fraction"` of an example's own length, or `"words"` as in the paper.
        soft_extract: how; `None` hides word-vectors for a speed-up, multiplies them with lambda, and does what is
            published where inputs are padded to one length.

    Returns:
        The model with the configuration set, not re-trained to it yet; metrics are those of that model.

    Raises:
        ValueError: for a speed-up that cannot be reached, or masses that are not finite.
    """
    length = data.retention_length
    # Inputs padded to one length are the paper's.
    published: RetentionSoftExtract = "multiply" if data.padded_to is None else "published"
    soft_extract = soft_extract or (published if args.speedup is None else "hide")
    soft = load_classifier(
        model,
        retention_config=None,
        retention_mode="soft",
        retention_unit=unit,
        retention_length=length,
        retention_soft_extract=soft_extract,
    )
    if args.metric_for_best_model is not None:
        args = copy.copy(args)
        # It is said for the other two steps: the best of a search hides nothing yet.
        args.load_best_model_at_end = False
        if args.save_strategy == "best":
            args.save_strategy, args.save_steps = args.eval_strategy, args.eval_steps
    trainer = _trainer(soft, data, args, teacher=_teacher(model, args), lengths=data.tune["length"])
    _run(trainer)
    masses = retention_mass(soft.retention_weights.detach()).tolist()
    soft.set_retention(trainer.retention_config, unit=unit, length=length)
    found = predicted_speedup(soft.config, torch.tensor(data.tune["length"]))
    if args.speedup is not None and abs(found / args.speedup - 1) > _NEAR:
        logger.warning(
            "Counts are whole, and on inputs as short as these no configuration like the one found has a speed-up of "
            "%g: it has %.2f",
            args.speedup,
            found,
        )
    return evaluate_step(soft, data, args, trainer.state.log_history, masses)


def retrain(
    model: str | Path | PreTrainedModel,
    data: TaskData,
    args: PoWERTrainingArguments,
    teacher: str | Path | PreTrainedModel | None = None,
) -> TrainedStep:
    """Step 3: train on with the configuration, word-vectors removed.

    Args:
        model: from step 2.
        data: from `data.prepare_data`.
        args: of the training; the learning rate is `retraining_learning_rate`, if that is set.
        teacher: from step 1, for `args.distillation`.

    Raises:
        ValueError: for a model without a configuration.
    """
    if args.retraining_learning_rate is not None:
        args = copy.copy(args)
        args.learning_rate = args.retraining_learning_rate
    return _train(load_classifier(model, retention_mode="hard"), data, args, _teacher(teacher, args))


def _teacher(model: str | Path | PreTrainedModel | None, args: PoWERTrainingArguments) -> PreTrainedModel | None:
    if model is None or not args.distillation:
        return None
    return load_classifier(model, retention_config=None, retention_mode=None)


def evaluate_model(
    model: PreTrainedModel, data: TaskData, args: PoWERTrainingArguments, split: Dataset | None = None
) -> dict[str, float]:
    """All metrics of a model on the reported split.

    Args:
        model: a classifier.
        data: from `data.prepare_data`.
        args: batch size and device.
        split: another split of `data`.
    """
    args = copy.copy(args)
    # To a tracker the reported split would be the tuning split's next point.
    args.report_to = []
    # `evaluate` would log, and `powerbert evaluate` prints nothing but its result.
    metrics = _trainer(model, data, args).predict(split or data.eval, metric_key_prefix="eval").metrics
    return {name: float(metrics[f"eval_{name}"]) for name in ("loss", *METRICS[data.problem_type])}


def check_labels(config: Any, data: TaskData) -> None:
    """Make sure that a trained model means by its label numbers what the data means.

    Args:
        config: the model's.
        data: from `data.prepare_data`, read with this configuration.

    Raises:
        ValueError: for other labels, or for labels without names where the data has nothing but names.
    """
    ours, regression = data.label_names, data.problem_type == "regression"
    known = some_of([str(name) for name in config.id2label.values()])

    def unknown(got: str, remedy: str) -> ValueError:
        return ValueError(
            f"The model must know the data's labels ({some_of(ours) or 'a number'}), got {got}; {remedy}."
        )

    if regression and config.num_labels > 1:
        raise unknown(known, "write its classes as whole numbers, 1 for 1.0, or by name, or train a head for numbers")
    if not regression and config.num_labels == 1 and predicts_number(config):
        raise unknown("a regression", "write its numbers as floats, 1.0 for 1, or train a head for classes")
    # Place-holders are names where the rows have them, too: a model without names may have labelled those.
    theirs = named_labels(config, place_holders=ours == named_labels(config, place_holders=True))
    # What a regression calls its number is no class.
    if not regression and (config.num_labels != len(ours) or (theirs != ours if theirs else data.named_in_rows)):
        lacking = [name for name in ours if name not in theirs] if theirs else []
        but = f", none of them {some_of(lacking)}" if lacking else ""
        raise unknown(known + but, "set `id2label` in its configuration, or train a head for them")
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


def check_training(args: PoWERTrainingArguments, data: TaskData) -> None:
    """Refuse what a training or a measurement would stumble over, perhaps only once its first epoch is done.

    Args:
        args: of the training.
        data: from `data.prepare_data`.

    Raises:
        ValueError: for arguments that do not go with the data.
    """
    if args.label_smoothing_factor and data.problem_type != "single_label_classification":
        raise ValueError(
            "`--label-smoothing-factor` is for one class a text, got labels of another kind "
            f"({data.problem_type}); leave it out."
        )
    for name in ("batch_eval_metrics", "prediction_loss_only", "dataloader_drop_last"):
        if getattr(args, name):
            option = name.replace("_", "-")
            raise ValueError(f"`--{option}` is not served: metrics are those of a whole split; leave it out.")
    if args.label_names not in (None, ["labels"]):
        raise ValueError(
            f"`--label-names {' '.join(args.label_names)}` is not served: of the data the labels are `--label-column`."
        )
    if args.save_strategy == "best" and args.eval_strategy == "no":
        raise ValueError("`--save-strategy best` needs an `--eval-strategy`, got no; say epoch or steps.")
    if args.resume_from_checkpoint:
        raise ValueError(
            "`--resume-from-checkpoint` is not served: the same command goes on by itself, from the last checkpoint "
            "in its folder; leave it out."
        )
    # Upstream makes a schedule, and looks for what reports, only once a step begins.
    schedule = args.lr_scheduler_type.value
    try:
        for rate in (args.learning_rate, args.retraining_learning_rate or args.learning_rate):
            toy = torch.optim.SGD([torch.zeros(1)], lr=rate)
            get_scheduler(schedule, toy, 0, 1, args.lr_scheduler_kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`--lr-scheduler-type {schedule}` does not go with `--lr-scheduler-kwargs {args.lr_scheduler_kwargs}`: "
            f"{error}; correct them."
        ) from error
    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    except RuntimeError as error:
        raise ValueError(f"`--report-to` cannot be served: {error}") from error
    if not args.eval_do_concat_batches:
        raise ValueError(
            "`--eval-do-concat-batches false` is not served: metrics are those of a whole split; leave it out."
        )
    if args.save_only_model:
        raise ValueError("`--save-only-model` leaves checkpoints that no training goes on from; leave it out.")
    if args.load_best_model_at_end and args.lr_scheduler_type.value in BY_METRIC:
        raise ValueError(
            f"`--load-best-model-at-end` does not go with `--lr-scheduler-type {args.lr_scheduler_type.value}`: a "
            "search, which ends with its last step, has no metric for the schedule then; leave one of them out."
        )
    known = ("loss", *METRICS[data.problem_type])
    best = args.metric_for_best_model
    if best is not None and best.removeprefix("eval_") not in known:
        raise ValueError(f"`--metric-for-best-model` must be one of {', '.join(known)} here, got {best!r}.")


def check_search(args: PoWERTrainingArguments) -> None:
    """Refuse before the first step what only the search would stumble over.

    Args:
        args: of all three steps.

    Raises:
        ValueError: for arguments that no search takes.
    """
    kwargs = args.gradient_checkpointing_kwargs or {}
    if not isinstance(kwargs, dict):
        raise ValueError(f"`--gradient-checkpointing-kwargs` must be an object in json, got {kwargs!r}; leave it out.")
    # Where anything of them comes to torch, it has checkpointing reentrant unless they say otherwise.
    to_torch = kwargs.keys() - {"every_n_layers", "offload"}
    if args.gradient_checkpointing and to_torch and kwargs.get("use_reentrant", True):
        raise ValueError(
            "`--gradient-checkpointing-kwargs` must say `use_reentrant` is false if they say anything to torch, which "
            "takes it for true: a search would lose the gradients of its retention weights."
        )
    if args.optim.startswith("schedule_free"):
        raise ValueError(
            f"`--optim {args.optim.value}` keeps another copy of the weights, and a search sets its retention weights "
            "anew after each step; take another."
        )


def _trainer(model: PreTrainedModel, data: TaskData, args: PoWERTrainingArguments, **more: Any) -> PoWERTrainer:
    check_training(args, data)
    if args.metric_for_best_model is not None and args.save_total_limit == 1:
        # The last one would be removed for the best, before the step is refined, measured and saved.
        args = copy.copy(args)
        args.save_total_limit = 2
    # What else some checkpoints ask for, nobody reads: it would be gathered of whole splits.
    model.config.output_hidden_states = model.config.output_attentions = False
    trainer = PoWERTrainer(
        model=model,
        args=args,
        train_dataset=data.train,
        # Nothing may be chosen by the split that is reported, an epoch neither.
        eval_dataset=data.tune,
        processing_class=data.tokenizer,
        data_collator=data.collator,
        compute_metrics=data.compute_metrics,
        **more,
    )
    check_not_sharded(trainer)
    return trainer


def _run(trainer: PoWERTrainer) -> None:
    """Train to the end, from the last checkpoint if there is one.

    Raises:
        Terminated: where a process was told to leave; what it says tells whether there is a checkpoint.
    """
    args = trainer.args
    trainer.add_callback(LeaveWhenTold(trainer.accelerator))
    trainer.add_callback(ObeyNewSteps())
    last = on_main(lambda: _last_complete_checkpoint(args.output_dir, args.world_size))
    if last is not None:
        _check_goes_on(trainer.model.config, last)
    tracked = _tracked_run()
    with writing(args.output_dir), on_sigterm(trainer.accelerator.set_trigger):
        trainer.train(resume_from_checkpoint=last)
    if tracked is None and (opened := _tracked_run()) is not None:
        # Upstream leaves it open, and would log the next step into it.
        opened.finish()
    # Told by whatever means, half of a training is not one.
    told = trainer.accelerator.check_trigger()
    if told or trainer.state.global_step < trainer.state.max_steps:
        raise Terminated(
            f"told to leave after step {trainer.state.global_step} of {trainer.state.max_steps}; "
            f"{goes_on_from(args.output_dir)}"
        )


def _tracked_run() -> Any:
    """The open run of W&B, if there is one."""
    return getattr(sys.modules.get("wandb"), "run", None)


def _check_goes_on(config: Any, checkpoint: str) -> None:
    """Refuse the checkpoint of another step: a training that is at its end would return that step's model."""
    saved = type(config).from_pretrained(checkpoint)
    if other := [name for name in sorted(RETENTION_FIELDS) if getattr(saved, name) != getattr(config, name)]:
        raise ValueError(
            f"Each step needs an `output_dir` of its own, got {Path(checkpoint).parent}, which holds checkpoints of "
            f"another one, with another {', '.join(other)}; choose another folder."
        )


def _last_complete_checkpoint(folder: str, processes: int) -> str | None:
    for checkpoint in reversed(sort_checkpoints(folder)):
        if _is_complete(Path(checkpoint), processes):
            return checkpoint
        logger.info("%s is incomplete and will be written again", checkpoint)
    return None


def _is_complete(checkpoint: Path, processes: int) -> bool:
    """Whether a training of so many processes can go on from it: the `Trainer` writes it in place, and its state last.

    The formats tell a file that was cut short, so a power failure is noticed too.
    """
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        with safe_open(checkpoint / SAFE_WEIGHTS_NAME, framework="pt"):
            pass
    except (OSError, ValueError, SafetensorError):
        return False
    ranks = [""] if processes == 1 else [f"_{rank}" for rank in range(processes)]
    names = [OPTIMIZER_NAME, SCHEDULER_NAME, *(f"rng_state{rank}.pth" for rank in ranks)]
    if (checkpoint / SCALER_NAME).exists():
        # Of float16 alone.
        names.append(SCALER_NAME)
    return all(is_zipfile(checkpoint / name) for name in names)


def _train(
    model: PreTrainedModel, data: TaskData, args: PoWERTrainingArguments, teacher: PreTrainedModel | None = None
) -> TrainedStep:
    trainer = _trainer(model, data, args, teacher=teacher)
    _run(trainer)
    # Saved as `None`, the mode follows from the configuration wherever the model is loaded.
    model.config.retention_mode = None
    return evaluate_step(model, data, args, trainer.state.log_history)


def evaluate_step(
    model: PreTrainedModel,
    data: TaskData,
    args: PoWERTrainingArguments,
    history: list[dict[str, float]],
    masses: list[float] | None = None,
) -> TrainedStep:
    """A step whose training is done: what is left is to measure its model.

    Args:
        model: a classifier, in its final mode.
        data: from `data.prepare_data`.
        args: batch size and device.
        history: the `Trainer`'s logs.
        masses: see [`TrainedStep`].
    """
    args = copy.copy(args)
    # Upstream casts the model itself for these, and somebody saves it afterwards.
    args.bf16_full_eval = args.fp16_full_eval = False
    reported, tuning = (evaluate_model(model, data, args, split) for split in (data.eval, data.tune))
    return TrainedStep(model.eval(), reported, tuning, history, masses)
