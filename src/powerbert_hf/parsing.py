# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What was typed, as `arguments`: parsed, with the defaults of a task and a goal, and refused where it cannot be."""

import argparse
import difflib
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from itertools import takewhile
from pathlib import Path
from typing import Any

from .arguments import DataArguments, RecipeArguments, SweepArguments

# Arguments of a training that the recipe sets in place of upstream's defaults.
_TRAINING_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32,
    "learning_rate": 3e-5,
    "warmup_steps": 0.1,
    "train_sampling_strategy": "group_by_length",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 20,
}
# What a recipe aims at, how much of the loss its teacher has, and how much of the learning rate its re-training, where
# nothing is asked for.
_SPEEDUP = 2.0
_DISTILLATION = 0.9
_RETRAINING = 0.3
# Upstream takes any number for these and fails, or trains nothing, when a model has been loaded or even trained.
_RANGES: dict[str, tuple[float, float, str]] = {
    "per_device_train_batch_size": (1, sys.maxsize, "at least 1"),
    "per_device_eval_batch_size": (1, sys.maxsize, "at least 1"),
    "gradient_accumulation_steps": (1, sys.maxsize, "at least 1"),
    "learning_rate": (0, sys.float_info.max, "finite and at least 0"),
    "weight_decay": (0, sys.float_info.max, "finite and at least 0"),
    "seed": (0, 2**32 - 1, "from 0 to 2**32 - 1"),
}
# What is typed for an option, and is not like it.
_MEANT = {
    "--batch-size": ("--per-device-train-batch-size", "--per-device-eval-batch-size"),
    "--device": ("--use-cpu",),
    "--group-by-length": ("--train-sampling-strategy",),
    "--label": ("--label-column",),
    "--labels": ("--label-column",),
    "--lr": ("--learning-rate",),
}


def _parse_all(parser: Any, argv: Sequence[str]) -> list[Any]:
    """An instance of each of the parser's dataclasses.

    Raises:
        ValueError: for an option that there is not.
    """
    *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        name = unknown[0].partition("=")[0].replace("_", "-")
        options = [option for action in parser._actions for option in action.option_strings if "_" not in option]
        near = [option for option in _MEANT.get(name, ()) if option in options]
        near = near or difflib.get_close_matches(name, options, n=1)
        remedy = f"did you mean {' or '.join(near)}?" if near else f"`{parser.prog} --help` lists all."
        raise ValueError(f"There is no option {name}; {remedy}")
    for one in parsed:
        # A shell ends the name of a folder with a slash, and that is no other folder.
        for name in ("model", "dataset"):
            if (path := getattr(one, name, None)) and Path(path).is_dir():
                setattr(one, name, path.rstrip(os.sep) or path)
    return parsed


def settle(recipe_args: RecipeArguments, args: Any, task: Any) -> None:
    """Fill in what was not typed of a recipe: in the paper's way, or in ours.

    Args:
        recipe_args: what to do; changed.
        args: `PoWERTrainingArguments`; changed.
        task: a `Task`, or `None` for other data.

    Raises:
        ValueError: for options that contradict each other.
    """
    goals = {
        "--speedup": args.speedup is not None,
        "--max-drop": recipe_args.max_drop is not None,
        "--retention-lambda": args.retention_lambda is not None and not recipe_args.paper,
        "--paper": recipe_args.paper,
    }
    if sum(goals.values()) > 1:
        chosen = " and ".join(f"`{option}`" for option, typed in goals.items() if typed)
        raise ValueError(f"A search has one goal, got {chosen}; choose one.")
    if recipe_args.max_drop is not None and not 0 <= recipe_args.max_drop <= 100:
        raise ValueError(f"`--max-drop` must lie between 0 and 100 points, got {recipe_args.max_drop}; 1 is usual.")
    if recipe_args.paper:
        if recipe_args.retention_unit == "fraction":
            raise ValueError("`--paper` counts words, got `--retention-unit fraction`; leave one out.")
        from .trainer import USUAL_LAMBDA

        published = {"retention_lambda": USUAL_LAMBDA, **(task.search if task else {})}
        for name, value in published.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
        recipe_args.retention_unit = "words"
        return
    recipe_args.retention_unit = recipe_args.retention_unit or "fraction"
    if not any(goals.values()):
        args.speedup = _SPEEDUP
    settle_training(recipe_args, args)


def settle_training(what: Any, args: Any) -> None:
    """Fill in what was not typed of trainings in our way.

    Args:
        what: a `SweepArguments` or `RecipeArguments`.
        args: `PoWERTrainingArguments`; changed.

    Raises:
        ValueError: where a sweep has another goal too.
    """
    if isinstance(what, SweepArguments) and (args.speedup, args.retention_lambda) != (None, None):
        raise ValueError("A sweep takes `--speedups`, got `--speedup` or `--retention-lambda`; leave it out.")
    if args.distillation is None:
        args.distillation = _DISTILLATION
    if args.retraining_learning_rate is None and args.learning_rate:
        args.retraining_learning_rate = _RETRAINING * args.learning_rate


def settle_stream(data_args: DataArguments, args: Any) -> None:
    """What follows for a training whose rows are a stream: nobody knows how many there are.

    Args:
        data_args: which data.
        args: `PoWERTrainingArguments`; changed.

    Raises:
        ValueError: without a number of steps, or with options that need to know all rows.
    """
    if args.max_steps <= 0:
        raise ValueError(f"`--streaming` needs `--max-steps`, got {args.max_steps}: a stream does not say its length.")
    if data_args.max_train_samples is not None:
        raise ValueError("`--streaming` draws no rows, got `--max-train-samples`; say `--max-steps` alone.")
    args.train_sampling_strategy = "sequential"
    # Batches of several lengths cannot be sent out by one process: each reads the stream.
    args.accelerator_config.dispatch_batches = False
    if args.save_strategy == "epoch":
        args.save_strategy, args.save_steps = "steps", min(args.save_steps, args.max_steps)
    if args.eval_strategy == "epoch":
        args.eval_strategy, args.eval_steps = "steps", args.save_steps


def parse_for_model(command: str, argv: Sequence[str], kind: type, unnamed: Sequence[str] = ("model",)) -> Any:
    """Parse the options of a command that trains nothing; few arguments, such as the model, need no name.

    Args:
        command: its name, for messages.
        argv: what was typed after it.
        kind: a dataclass of options, such as [`PredictArguments`].
        unnamed: fields of it that may come first without a name.

    Returns:
        An instance of it.

    Raises:
        ValueError: for an option that there is not.
    """
    from transformers import HfArgumentParser

    needed = [one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]
    words = [name.upper() if name in needed else f"[{name.upper()}]" for name in unnamed]
    options = [f"--{name.replace('_', '-')} {name.upper()}" for name in needed if name not in unnamed]
    usage = " ".join(["powerbert", command, *words, *options, "[options]"])
    parser = HfArgumentParser(kind, prog=f"powerbert {command}", usage=usage, allow_abbrev=False)
    return _parse_all(parser, with_names(argv, unnamed))[0]


def with_names(argv: Sequence[str], names: Sequence[str] = ("model",)) -> list[str]:
    """What comes first without a name, the model above all, gets it; everything else has one.

    Example:
        >>> with_names(["my/model", "-5 degrees", "--width=80"], ("model", "text", "second_text"))
        ['--model=my/model', '--text=-5 degrees', '--width=80']
    """
    # The name of an option has no blanks.
    leading = list(takewhile(lambda word: not re.match(r"--?\w\S*(=|$)", word), argv))
    if len(leading) > len(names):
        remedy = "put a text into quotes" if "text" in names else "put the name of an option before each other"
        raise ValueError(f"{', '.join(names)} may be given without a name, got {len(leading)} words; {remedy}.")
    return [*(f"--{name}={word}" for name, word in zip(names, leading, strict=False)), *argv[len(leading) :]]


def parse(command: str, argv: Sequence[str], kinds: list[type], require_output: bool = False) -> tuple[Any, ...]:
    """Parse options named as upstream names them, with dashes or underscores; a known task brings its defaults.

    Args:
        command: its name, for messages.
        argv: what was typed after it; the model, if it comes first, needs no name.
        kinds: dataclasses, the last `PoWERTrainingArguments`.
        require_output: refuse to go without `--output-dir`.

    Returns:
        An instance of each kind.

    Raises:
        ValueError: for an option that there is not, or a value that cannot be trained with.
    """
    import torch
    from transformers import HfArgumentParser

    from .tasks import TASKS, infer_task

    argv = with_names(argv)
    # Upstream's options fill pages: an error need not repeat them, `--help` does.
    usage = f"powerbert {command} MODEL {'--output-dir FOLDER ' if require_output else ''}[options]"
    named: dict[str, Any] = {"prog": f"powerbert {command}", "usage": usage, "allow_abbrev": False}
    first = HfArgumentParser(DataArguments, add_help=False, **named)
    data_args, _ = first.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    task = data_args.task or infer_task(data_args.dataset, data_args.subset)
    if task is not None and task not in TASKS:
        raise ValueError(f"`--task` must be one of {', '.join(TASKS)}, got {task!r}; leave it out for your own data.")
    parser = HfArgumentParser(kinds, **named)
    for action in parser._actions:
        if action.dest == "push_to_hub":
            action.help = "Publish the final model when the run has ended; see `--hub-model-id`."
        if SweepArguments in kinds and action.dest in ("speedup", "retention_lambda", "push_to_hub"):
            action.help = argparse.SUPPRESS
    defaults = {**_TRAINING_DEFAULTS, **(TASKS[task].hyperparameters if task else {})}
    typed = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, **named)
    for option in ("--output-dir", "--per-device-train-batch-size", "--save-steps"):
        typed.add_argument(option, option[:2] + option[2:].replace("-", "_"))
    said = vars(typed.parse_known_args(argv)[0])
    if "save_steps" in said:
        defaults["save_strategy"] = "steps"
    # Upstream wants both to be said on a machine without an accelerator: the one for `--bf16`, the other not to warn.
    accelerated = torch.accelerator.is_available()
    parser.set_defaults(**defaults, task=task, use_cpu=not accelerated, dataloader_pin_memory=accelerated)
    parsed = _parse_all(parser, argv)
    args = parsed[-1]
    if "per_device_train_batch_size" not in said:
        # A step takes as many rows in several processes, or on several GPUs of one, as on one.
        processes = 1 if args.accelerator_config.split_batches else args.world_size
        together = max(1, processes, args.n_gpu)
        args.per_device_train_batch_size = max(1, args.per_device_train_batch_size // together)
    if require_output and "output_dir" not in said:
        raise ValueError("`--output-dir` must be given: it takes the three models and the report.")
    for name, (low, high, meaning) in _RANGES.items():
        value = getattr(args, name)
        # Not `<` and `>`, which NaN passes.
        if not low <= value <= high:
            option = name.replace("_", "-")
            raise ValueError(f"`--{option}` must be {meaning}, got {value}; leave it out for the default.")
    if args.max_steps == 0:
        raise ValueError("`--max-steps` must be at least 1, got 0; leave it out to train for `--num-train-epochs`.")
    if not (args.max_steps > 0 or 0 < args.num_train_epochs < math.inf):
        raise ValueError(f"`--num-train-epochs` must be above 0, got {args.num_train_epochs}; 3 is the default.")
    return tuple(parsed)
