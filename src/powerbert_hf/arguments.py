# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The options of the command `powerbert`, and what they may be."""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import takewhile
from typing import Any

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
# What a recipe aims at, and how much of the loss its teacher has, where nothing is asked for.
_SPEEDUP = 2.0
_DISTILLATION = 0.9


@dataclass
class DataArguments:
    """Which data: a data set by name, or files."""

    dataset: str | None = field(default=None, metadata={"help": "Hub id, or a folder, of a data set."})
    subset: str | None = field(default=None, metadata={"help": "Configuration of the data set, such as mrpc of GLUE."})
    task: str | None = field(
        default=None,
        metadata={"help": "cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli or imdb; found by itself from names."},
    )
    train_file: str | None = field(default=None, metadata={"help": "csv, tsv, json, jsonl, parquet or arrow."})
    eval_file: str | None = field(default=None, metadata={"help": "The same; only reported, nothing is chosen by it."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "One column, or two for pairs."})
    label_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "Column of the labels: names or whole numbers are classes, floats a regression, lists of either "
            "(or of one 0 or 1 per class) several labels a text; so are several columns of 0 and 1, one per class."
        },
    )
    max_length: int | None = field(default=None, metadata={"help": "Truncate inputs to this many word-pieces."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Draw this many training rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Draw this many rows to report on."})
    streaming: bool = field(
        default=False,
        metadata={"help": "Read training rows while they are trained on, for --max-steps steps; nothing is cached."},
    )
    metric: str | None = field(
        default=None,
        metadata={"help": "The metric that counts, where not the usual one: accuracy, f1, spearmanr, ..."},
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise; for millions of rows."})


@dataclass
class ModelArguments:
    """Which model."""

    model: str = field(metadata={"help": "Hub id, or a folder, of a BERT or ALBERT checkpoint."})


@dataclass
class RecipeArguments(ModelArguments):
    """What to make faster, and how."""

    max_drop: float | None = field(
        default=None,
        metadata={
            "help": "In place of a speed-up: find the fastest that loses at most this many points, 100 times the "
            "metric, on the tuning split."
        },
    )
    paper: bool = field(
        default=False,
        metadata={
            "help": "Search as published: inputs padded to one length, counts in words, fixed lambda, Soft-extract "
            "that multiplies, nothing distilled."
        },
    )
    retention_unit: str | None = field(
        default=None,
        metadata={
            "help": "What a count means: a share of an input's length (default), or words.",
            "choices": ["fraction", "words"],
        },
    )
    fine_tuned: bool = field(
        default=False, metadata={"help": "The model is fine-tuned already: begin with the search."}
    )


@dataclass
class SweepArguments(ModelArguments):
    """What to make faster, and how much."""

    speedups: list[float] = field(
        default_factory=lambda: [1.5, 2.0, 3.0], metadata={"help": "Predicted, on the lengths of the tuning split."}
    )
    retention_unit: str = field(
        default="fraction",
        metadata={
            "help": "What a count means: a share of an input's length, or words.",
            "choices": ["fraction", "words"],
        },
    )
    fine_tuned: bool = field(
        default=False, metadata={"help": "The model is fine-tuned already: begin with the searches."}
    )
    plot: str | None = field(default=None, metadata={"help": "png or svg file that takes a picture."})


@dataclass
class BenchmarkArguments(ModelArguments):
    """What to measure the speed of, on what, against what."""

    retention_config: list[float] | None = field(
        default=None, metadata={"help": "What each encoder keeps, such as 1 0.9 0.7; the model's own if left out."}
    )
    retention_unit: str | None = field(
        default=None, metadata={"help": "Of these: fraction (default) or words.", "choices": ["fraction", "words"]}
    )
    lengths: list[str] | None = field(
        default=None,
        metadata={"help": "Random inputs as long as those of sst2, mrpc, rte or imdb, or of 8, 16, ... word-pieces."},
    )
    texts: str | None = field(default=None, metadata={"help": "Or a file: txt with one a line, csv, jsonl, ..."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "Of the file: one column, or two."})
    max_length: int | None = field(default=None, metadata={"help": "Truncate to N word-pieces; baseline a pads to N."})
    inputs: int = field(default=512, metadata={"help": "How many texts."})
    batch_sizes: list[int] = field(default_factory=lambda: [32], metadata={"help": "Texts in a batch."})
    dtypes: list[str] = field(
        default_factory=lambda: ["float32"],
        metadata={"help": "Of weights and arithmetic.", "choices": ["float32", "bfloat16", "float16"]},
    )
    device: str = field(default="cpu", metadata={"help": "Where it runs.", "choices": ["cpu", "cuda"]})
    threads: int | None = field(default=None, metadata={"help": "Of the CPU; torch's own choice if left out."})
    baselines: list[str] = field(
        default_factory=lambda: ["a", "b", "c"],
        metadata={
            "help": "a: stock, padded to N, in the order of arrival; b: padded to a batch's longest; c: sorted by "
            "length, always run; d: c under torch.compile, with ours beside it, which takes minutes.",
            "choices": ["a", "b", "c", "d"],
        },
    )
    smaller_model: str | None = field(default=None, metadata={"help": "Baseline e: Hub id or folder, run like c."})
    repeats: int = field(default=5, metadata={"help": "Timed passes of each; the median counts."})
    per_encoder: bool = field(default=False, metadata={"help": "Also measure each encoder by itself."})
    peak_memory: bool = field(default=False, metadata={"help": "Also measure what a pass holds beyond the weights."})
    seed: int = field(default=0, metadata={"help": "Of lengths, word-pieces, and weights where there are none."})
    output: str | None = field(default=None, metadata={"help": "json file that takes all numbers."})
    plot: str | None = field(default=None, metadata={"help": "png or svg file that takes a picture."})
    overwrite: bool = field(default=False, metadata={"help": "Replace these files."})


@dataclass
class PredictArguments(ModelArguments):
    """What to ask a model, and where its answers go."""

    input: list[str] = field(
        kw_only=True,
        metadata={
            "help": "A file: txt (a text a line), csv, tsv, json, jsonl, parquet or arrow; or several, a folder of "
            "them, a pattern such as 'rows/*.csv'."
        },
    )
    output: str = field(
        kw_only=True,
        metadata={
            "help": "csv or jsonl: a row for each row of the input, in its order; or a folder, which gets a file for "
            "each file. There what is done is not done again."
        },
    )
    rejected: str | None = field(
        default=None,
        metadata={
            "help": "csv or jsonl that takes, with number and reason, the rows that are missing, empty, not text or, "
            "without --max-length, over-long; of a folder it is the folder `rejected` in it."
        },
    )
    text_columns: list[str] | None = field(
        default=None, metadata={"help": "One column, or two for pairs; a single column of texts is found by itself."}
    )
    keep_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of the input that the output repeats, such as an id."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Truncate inputs to this many word-pieces."})
    batch_size: int = field(default=32, metadata={"help": "Inputs that the model reads at once."})
    window: int = field(
        default=8192, metadata={"help": "Rows in memory: they are sorted by length before they make batches."}
    )
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an output that is there already."})


@dataclass
class CalibrateArguments(ModelArguments):
    """Which model to make faster without training, on which texts, and what must stay."""

    texts: str = field(kw_only=True, metadata={"help": "A file, without labels: txt with one a line, csv, jsonl, ..."})
    output_dir: str | None = field(
        default=None, metadata={"help": "A new folder for the model with its configuration; nothing if left out."}
    )
    text_columns: list[str] | None = field(default=None, metadata={"help": "Of the file: one column, or two."})
    agreement: float = field(
        default=0.99, metadata={"help": "Share of predictions that must stay, shown at 95 %% confidence."}
    )
    inputs: int = field(default=4096, metadata={"help": "How many texts, at most; more show more, and take longer."})
    max_length: int | None = field(default=None, metadata={"help": "Truncate inputs to this many word-pieces."})
    batch_size: int = field(default=32, metadata={"help": "Inputs that the model reads at once."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16."})
    seed: int = field(default=0, metadata={"help": "Of the draws of texts."})


@dataclass
class InspectArguments(ModelArguments):
    """Whose words to look at: those of one text or pair, or of a file of texts."""

    text: str | None = field(default=None, metadata={"help": "A text; may follow the model without a name."})
    second_text: str | None = field(default=None, metadata={"help": "Of a pair; may follow the text without a name."})
    texts: str | None = field(default=None, metadata={"help": "Or a file: txt with one a line, csv, jsonl, ..."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "Of the file: one column, or two."})
    inputs: int = field(default=2048, metadata={"help": "How many texts of the file, at most, drawn by the seed."})
    max_length: int | None = field(default=None, metadata={"help": "Truncate inputs to this many word-pieces."})
    batch_size: int = field(default=32, metadata={"help": "Inputs that the model reads at once."})
    seed: int = field(default=0, metadata={"help": "Of the draw."})
    output: str | None = field(
        default=None,
        metadata={"help": "A page (html), the data (json) or, of a text, a picture (svg, png), in place of text."},
    )
    width: int | None = field(default=None, metadata={"help": "Columns of text; those of the terminal if left out."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an output that is there already."})


@dataclass
class ReportArguments:
    """Of which run, and where to."""

    run: str = field(metadata={"help": "The `--output-dir` of a `powerbert train` or `powerbert sweep`."})
    output: str | None = field(default=None, metadata={"help": "html; `report.html` in the run if left out."})
    examples: bool = field(default=True, metadata={"help": "Whether texts whose prediction changed are shown."})
    measure: bool = field(
        default=False, metadata={"help": "Time the models again, against all baselines, which may take minutes."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an output that is there already."})


@dataclass
class ExportArguments(ModelArguments):
    """What to write, and where."""

    output_dir: str = field(kw_only=True, metadata={"help": "A new folder: model.onnx, tokenizer, config.json."})
    int8: bool = field(default=False, metadata={"help": "Linear layers in int8, quantised dynamically."})
    stock: bool = field(
        default=False, metadata={"help": "Not ONNX: the weights as a plain BERT or ALBERT checkpoint."}
    )


@dataclass
class PublishArguments(ModelArguments):
    """What goes to the Hub, and who sees it: a model of this package, or the folder of a run."""

    repo: str = field(kw_only=True, metadata={"help": "user/name; a new repository is private."})
    public: bool = field(default=False, metadata={"help": "For everybody to see."})
    private: bool = field(default=False, metadata={"help": "The default, said."})
    with_code: bool = field(
        default=False, metadata={"help": "The modelling files too, for those without the plugin who trust them."}
    )
    retention_only: bool = field(
        default=False, metadata={"help": "The retention configuration by itself, without weights."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "A repository that holds something else holds nothing but this afterwards."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Show files and card, and send nothing."})


@dataclass
class ApplyArguments(ModelArguments):
    """Which model gets which retention configuration, and where it goes."""

    retention: str = field(
        kw_only=True, metadata={"help": "A Hub id, with @ and a revision if need be, a folder or a file."}
    )
    output_dir: str = field(kw_only=True, metadata={"help": "A new folder for the model with the configuration."})


@dataclass
class FindArguments:
    """Which retention configurations to look for on the Hub."""

    model: str | None = field(
        default=None, metadata={"help": "Hub id or folder: only those that fit this BERT or ALBERT; all if left out."}
    )
    limit: int = field(default=20, metadata={"help": "How many, at most."})


# Upstream takes any number for these and fails, or trains nothing, when a model has been loaded or even trained.
_RANGES: dict[str, tuple[float, float, str]] = {
    "per_device_train_batch_size": (1, sys.maxsize, "at least 1"),
    "per_device_eval_batch_size": (1, sys.maxsize, "at least 1"),
    "gradient_accumulation_steps": (1, sys.maxsize, "at least 1"),
    "learning_rate": (0, sys.float_info.max, "finite and at least 0"),
    "weight_decay": (0, sys.float_info.max, "finite and at least 0"),
    "seed": (0, 2**32 - 1, "from 0 to 2**32 - 1"),
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
        near = difflib.get_close_matches(name, options, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"`{parser.prog} --help` lists all."
        raise ValueError(f"There is no option {name}; {remedy}")
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
        published = task.search if task else {}
        for name in ("retention_lambda", "retention_learning_rate"):
            if getattr(args, name) is None:
                setattr(args, name, published.get(name))
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

    needed = [one for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]
    options = [f"--{one.name.replace('_', '-')} {one.name.upper()}" for one in needed if one.name not in unnamed]
    usage = " ".join(["powerbert", command, *(name.upper() for name in unnamed), *options, "[options]"])
    parser = HfArgumentParser(kind, prog=f"powerbert {command}", usage=usage, allow_abbrev=False)
    return _parse_all(parser, with_names(argv, unnamed))[0]


def with_names(argv: Sequence[str], names: Sequence[str] = ("model",)) -> list[str]:
    """What comes first without a name, the model above all, gets it; everything else has one.

    Example:
        >>> with_names(["my/model", "- a text", "--width=80"], ("model", "text", "second_text"))
        ['--model=my/model', '--text=- a text', '--width=80']
    """
    leading = list(takewhile(lambda word: not re.match(r"--?\w", word), argv))
    if len(leading) > len(names):
        raise ValueError(
            f"{', '.join(names)} may be given without a name, got {len(leading)} words; put a text into quotes."
        )
    return [*(f"--{name}={word}" for name, word in zip(names, leading, strict=False)), *argv[len(leading) :]]


def parse(command: str, argv: Sequence[str], kinds: list[type], require_output: bool = False) -> tuple[Any, ...]:
    """Parse options named as upstream names them, with dashes or underscores; a known task brings its defaults.

    Args:
        command: its name, for messages.
        argv: what was typed after it.
        kinds: dataclasses, the last `PoWERTrainingArguments`.
        require_output: refuse to go without `--output-dir`.

    Returns:
        An instance of each kind.

    Raises:
        ValueError: for an option that there is not, or a value that cannot be trained with.
    """
    import torch
    from accelerate.utils import get_cpu_distributed_information
    from transformers import HfArgumentParser

    from .tasks import TASKS, infer_task

    # Upstream's options fill pages: an error need not repeat them, `--help` does.
    usage = f"powerbert {command} --model MODEL {'--output-dir FOLDER ' if require_output else ''}[options]"
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
    # Where nothing is typed, a step takes as many rows in several processes as in one.
    rows, processes = defaults["per_device_train_batch_size"], get_cpu_distributed_information().world_size
    defaults["per_device_train_batch_size"] = max(1, rows // max(1, processes))
    # Upstream wants both to be said on a machine without an accelerator: the one for `--bf16`, the other not to warn.
    accelerated = torch.accelerator.is_available()
    parser.set_defaults(**defaults, task=task, use_cpu=not accelerated, dataloader_pin_memory=accelerated)
    if require_output:
        parser.set_defaults(output_dir=None)
    parsed = _parse_all(parser, argv)
    args = parsed[-1]
    if require_output and args.output_dir in (None, "trainer_output"):
        raise ValueError("`--output-dir` must be given: it takes the three models and the report.")
    for name, (low, high, meaning) in _RANGES.items():
        value = getattr(args, name)
        # Not `<` and `>`, which NaN passes.
        if not low <= value <= high:
            option = name.replace("_", "-")
            raise ValueError(f"`--{option}` must be {meaning}, got {value}; leave it out for the default.")
    if not (args.max_steps > 0 or 0 < args.num_train_epochs < math.inf):
        raise ValueError(f"`--num-train-epochs` must be above 0, got {args.num_train_epochs}; 3 is the default.")
    return tuple(parsed)
