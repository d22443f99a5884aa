# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The command `powerbert`: parse, call the library, print."""

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from glob import has_magic
from pathlib import Path
from typing import Any

from . import __version__
from .arguments import (
    ApplyArguments,
    BenchmarkArguments,
    CalibrateArguments,
    DataArguments,
    ExportArguments,
    FindArguments,
    InspectArguments,
    ModelArguments,
    PredictArguments,
    PublishArguments,
    RecipeArguments,
    ReportArguments,
    SweepArguments,
)
from .parsing import parse, parse_for_model, settle, settle_stream, settle_training
from .run_folder import check_folder, check_inputs, sole_use, typed_before, write_command
from .stopping import Terminated, on_sigterm

# What to do where the memory of an accelerator is too small, by command.
_LOWER = {
    "train": "lower `--per-device-train-batch-size`, with `--gradient-accumulation-steps` for as many rows a step, or "
    "`--max-length`, in another `--output-dir`",
    "evaluate": "lower `--per-device-eval-batch-size`",
    "benchmark": "lower `--batch-sizes`",
    "report": "hide the accelerator, or use one with more",
}
_LOWER["sweep"] = _LOWER["train"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 2 for input that it cannot use, 130 if interrupted, 143 by SIGTERM."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "train": _train,
        "sweep": _sweep,
        "evaluate": _evaluate,
        "calibrate": _calibrate,
        "predict": _predict,
        "inspect": _inspect,
        "report": _report,
        "benchmark": _benchmark,
        "export": _export,
        "publish": _publish,
        "find": _find,
        "apply": _apply,
        "demo": _demo,
    }
    parser = argparse.ArgumentParser(
        prog="powerbert",
        description="Your own BERT or ALBERT classifier, on fewer word-vectors.",
        epilog="`powerbert COMMAND --help` lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"powerbert {__version__}")
    parser.add_argument(
        "command",
        choices=commands,
        help="train: fine-tune, search the configuration, re-train; sweep: the same for several speed-ups; "
        "evaluate: measure a model; "
        "calibrate: find a configuration without training; "
        "predict: label the texts of a file; inspect: show which words survive; report: a page of a run or sweep; "
        "benchmark: time a model against stock; export: to ONNX; "
        "publish: to the Hub; find: retention configurations there; apply: one to a model; "
        "demo: train on a small generated task",
    )
    known = parser.parse_args(argv[:1])
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("powerbert_hf").setLevel(logging.INFO)
    try:
        with on_sigterm(_terminate):
            commands[known.command](argv[1:])
    except (ValueError, OSError, ImportError) as error:
        # Of these families is whatever a user's input can cause; anything else is a bug, and shows where.
        print(f"powerbert {known.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        said = str(stop) or "interrupted; the same command goes on with a training, or with answers in a folder"
        print(f"powerbert {known.command}: {said}", file=sys.stderr)
        return getattr(stop, "status", 130)
    except RuntimeError as error:
        from torch import OutOfMemoryError

        from .processes import MainProcessFailed

        if isinstance(error, OutOfMemoryError):
            remedy = _LOWER.get(known.command, "lower `--batch-size`")
            print(f"powerbert {known.command}: the accelerator's memory is too small; {remedy}.", file=sys.stderr)
        elif not isinstance(error, MainProcessFailed):
            raise
        return 2
    return 0


def _terminate() -> None:
    raise Terminated("terminated; the same command goes on with a training, or with answers in a folder")


def _say(line: str) -> None:
    from .processes import is_main

    if is_main():
        print(line, flush=True)


def _train(argv: list[str]) -> None:
    from .tasks import TASKS

    recipe_args, data_args, args = _parse_training("train", argv, RecipeArguments)
    settle(recipe_args, args, TASKS.get(data_args.task))
    run_training(recipe_args, data_args, args, ["powerbert", "train", *argv])


def _sweep(argv: list[str]) -> None:
    from .charts import draw_sweep
    from .drawing import check_picture, save_picture
    from .files import check_new
    from .processes import is_main
    from .report import format_sweep

    sweep_args, data_args, args = _parse_training("sweep", argv, SweepArguments)
    settle_training(sweep_args, args)
    if sweep_args.plot is not None:
        check_picture(sweep_args.plot)
        # The sweep that drew it draws it again.
        its_own = typed_before(Path(args.output_dir)).get("plot") == sweep_args.plot
        check_new(Path(sweep_args.plot), overwrite=its_own or None)
    with _training(sweep_args, data_args, args, ["powerbert", "sweep", *argv]) as data:
        from .sweep import sweep

        found = sweep(
            sweep_args.model,
            data,
            args,
            sweep_args.speedups,
            sweep_args.retention_unit,
            sweep_args.fine_tuned,
            _say,
        )
    _say(f"\n{format_sweep(found)}")
    if sweep_args.plot is not None and is_main():
        save_picture(draw_sweep(found), sweep_args.plot)


def _say_if_alone() -> None:
    """Without a GPU `accelerate launch --num_processes 2` starts one process, and says nothing."""
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        _say("`accelerate launch` has started one process only; without GPUs it needs `--multi_gpu` to start more")


def _parse_training(command: str, argv: list[str], kind: type) -> tuple[Any, ...]:
    from .trainer import PoWERTrainingArguments

    _say_if_alone()
    return parse(command, argv, [kind, DataArguments, PoWERTrainingArguments], require_output=True)


def run_training(recipe_args: RecipeArguments, data_args: DataArguments, args: Any, argv: list[str]) -> None:
    """`powerbert train`, with arguments that have been parsed and settled.

    Args:
        recipe_args: the model, and what to do with it.
        data_args: the data.
        args: `PoWERTrainingArguments`.
        argv: what was typed.

    Raises:
        ValueError: for input that cannot be used, before anything is trained; or where nothing is fast enough within
            `max_drop`.
    """
    from .processes import is_main
    from .report import format_report

    # The final model, by us: not each step, by the `Trainer`.
    push, args.push_to_hub = args.push_to_hub, False
    if push:
        from .hub import check_access, check_repo, publish

        check_repo(args.hub_model_id, "--hub-model-id")
        # A finished run may have been published already.
        check_access(args.hub_model_id, args.hub_token, new=not (Path(args.output_dir) / "report.json").is_file())
    with _training(recipe_args, data_args, args, argv) as data:
        from .recipe import run_recipe
        from .sweep import fastest_within

        if recipe_args.paper:
            known = data_args.max_length is not None or data_args.task is not None
            data = replace(data, padded_to=data.source["max_length"] if known else data.retention_length)
        named: dict[str, Any] = {"unit": recipe_args.retention_unit, "fine_tuned": recipe_args.fine_tuned, "say": _say}
        if recipe_args.max_drop is None:
            result = run_recipe(recipe_args.model, data, args, **named)
        else:
            result = fastest_within(recipe_args.model, data, args, recipe_args.max_drop, **named)
    _say(f"\n{format_report(result.report, result.model_dir)}\n")
    if push and is_main():
        public = args.hub_private_repo is False
        publish(args.output_dir, args.hub_model_id, public, token=args.hub_token, say=_say)


@contextmanager
def _training(what: Any, data_args: DataArguments, args: Any, argv: list[str]) -> Iterator[Any]:
    """The data of a training that may begin, or go on, in its folder, which nobody else uses meanwhile."""
    from .checkpoint import digest_of
    from .processes import first_of_each_machine, on_main, others_needed
    from .steps import check_model, check_search, check_training

    if args.push_to_hub:
        raise ValueError(
            f"`powerbert {argv[1]}` publishes nothing, got `--push-to-hub`; choose a run, and `powerbert publish` it."
        )
    if data_args.streaming:
        settle_stream(data_args, args)
    typed = {"model": asdict(what), "data": asdict(data_args), "training": _settings(args)}
    if args.world_size > 1:
        typed["processes"] = args.world_size
    if args.n_gpu > 1:
        typed["gpus"] = args.n_gpu
    folder = Path(args.output_dir)
    with ExitStack() as held:
        held.enter_context(others_needed())
        going_on = on_main(lambda: check_folder(folder, typed))
        # Tokenised once a machine: the other processes read what the first one has left in the cache.
        with first_of_each_machine():
            data = _load_data(data_args, what.model, args.seed, fine_tuned=what.fine_tuned)
        digests = {"data": data.digest, "model_files": digest_of(what.model)}
        if going_on:
            on_main(lambda: check_inputs(folder, digests))
        else:
            check_model(what.model, data, what.fine_tuned)
        check_training(args, data)
        check_search(args)

        def begin() -> None:
            held.enter_context(sole_use(folder))
            # Also of a run that goes on: what may change may have changed.
            write_command(folder, argv, typed, __version__, digests)

        on_main(begin)
        if going_on:
            _say(f"going on with the run in {folder}")
        yield data


def _evaluate(argv: list[str]) -> None:
    import torch

    from .checkpoint import load_classifier
    from .cost import predicted_speedup, share_kept
    from .steps import check_labels, evaluate_model
    from .trainer import PoWERTrainingArguments

    kinds = [ModelArguments, DataArguments, PoWERTrainingArguments]
    model_args, data_args, args = parse("evaluate", argv, kinds)
    if data_args.dataset is None and data_args.train_file is None and data_args.eval_file is None:
        raise ValueError("Pass either `--dataset` or `--eval-file`, got neither.")
    if args.push_to_hub:
        # A `Trainer` would make the repository, and nothing would come into it.
        raise ValueError("`powerbert evaluate` publishes nothing, got `--push-to-hub`; say it to `powerbert publish`.")
    classifier = load_classifier(model_args.model, needs_head=True)
    data = _load_data(data_args, model_args.model, args.seed, measure_only=True)
    check_labels(classifier.config, data)
    lengths = torch.tensor(data.eval["length"])
    kept = share_kept(classifier.config, lengths)
    with tempfile.TemporaryDirectory() as folder:
        # A `Trainer` makes its output folder even if nothing goes there.
        args.output_dir = folder
        metrics = evaluate_model(classifier, data, args)
    result = {
        **metrics,
        "rows": len(data.eval),
        "mean_length": lengths.double().mean().item(),
        "word_vectors_kept": sum(kept) / len(kept),
        "predicted_speedup": predicted_speedup(classifier.config, lengths),
    }
    _say(json.dumps(result, indent=2))


def _benchmark(argv: list[str]) -> None:
    options = parse_for_model("benchmark", argv, BenchmarkArguments)
    from .charts import draw_speeds
    from .drawing import save_picture
    from .files import write_json
    from .speed import run_benchmarks
    from .speed_report import format_measurement, format_setting

    command = {"command": ["powerbert", "benchmark", *argv], "version": __version__}
    found = run_benchmarks(options)
    setting, measurements = next(found), []
    _say(format_setting(setting))
    for measurement in found:
        measurements.append(measurement)
        _say(f"\n{format_measurement(measurement)}")
        if options.output is not None:
            # Each time: a later one may be refused, or nobody wait for it.
            write_json(Path(options.output), {**command, **setting, "measurements": measurements})
    if options.plot is not None:
        save_picture(draw_speeds(setting, measurements), options.plot)


def _predict(argv: list[str]) -> None:
    options = parse_for_model("predict", argv, PredictArguments)
    from accelerate.utils import get_cpu_distributed_information

    from .checkpoint import digest_of
    from .predict import FilePredictor, predict_file
    from .shards import find_shards, predict_shards

    _quiet_datasets()
    fields = asdict(options)
    model, inputs, output = (fields.pop(name) for name in ("model", "input", "output"))
    if Path(output).suffix and not Path(output).is_dir() and not output.endswith("/"):
        if len(inputs) > 1 or Path(inputs[0]).is_dir() or (has_magic(inputs[0]) and not Path(inputs[0]).exists()):
            raise ValueError(f"Several files need a folder for the output, got {output}; leave out its ending.")
        if get_cpu_distributed_information().world_size > 1:
            raise ValueError(f"Several processes need a folder for the output, got {output}; leave out its ending.")
        done = predict_file(model, inputs[0], output, **fields)
        aside = f", {done.rejected} rejected in {options.rejected}" if done.rejected else ""
        _say(f"{done.rows} rows answered in {output}{aside}")
        return
    if fields.pop("rejected") is not None or fields.pop("overwrite"):
        raise ValueError("`--rejected` and `--overwrite` are for an output that is one file; leave them out.")
    _say_if_alone()
    shards = find_shards(inputs, output)
    # What makes other answers; where the rows are may change from day to day.
    typed = {"model": model, **{name: fields[name] for name in ("text_columns", "keep_columns", "max_length", "bf16")}}
    # Another model may have taken the place of the one that has answered.
    typed["model_files"] = digest_of(model)
    folder = Path(output)
    if not check_folder(folder, typed, "--output"):
        write_command(folder, ["powerbert", "predict", *argv], typed, __version__)
    predict_shards(shards, lambda: FilePredictor(model, **fields), _say)


def _inspect(argv: list[str]) -> None:
    options = parse_for_model("inspect", argv, InspectArguments, ("model", "text", "second_text"))
    from .files import check_new
    from .looking import inspect_model

    if options.output is not None:
        check_new(Path(options.output), options.overwrite)
    _quiet_datasets()
    shown = inspect_model(options, colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    _say(f"{options.output} holds what survives" if shown is None else shown)


def _report(argv: list[str]) -> None:
    options = parse_for_model("report", argv, ReportArguments, ("run",))
    from .files import check_new
    from .looking import report_run
    from .report import read_json

    output = Path(options.output or Path(options.run) / "report.html")
    if output.suffix.lower() != ".html":
        raise ValueError(f"A report must end in .html, got {output}; choose another name.")
    if not any(Path(options.run, name).is_file() for name in ("report.json", "sweep.json")):
        # It says what the folder lacks.
        read_json(Path(options.run, "report.json"))
    check_new(output, options.overwrite)
    _quiet_datasets()
    report_run(Path(options.run), output, options.examples, options.measure, _say)
    _say(f"{output} holds the report")


def _calibrate(argv: list[str]) -> None:
    options = parse_for_model("calibrate", argv, CalibrateArguments)
    from .calibration import calibrate_folder, format_calibration

    _quiet_datasets()
    found = calibrate_folder(**asdict(options), say=_say)
    _say(f"\n{format_calibration(found)}")
    if options.output_dir is not None:
        _say(f"{options.output_dir} holds the model with this configuration")


def _export(argv: list[str]) -> None:
    options = parse_for_model("export", argv, ExportArguments)
    from .export import export_folder

    # It warns of what it would need for images.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    difference = export_folder(options.model, options.output_dir, options.int8, options.stock)
    checked = (
        "" if difference is None else f"; on ONNX Runtime its logits are at most {difference:.1g} off the model's"
    )
    _say(f"{options.output_dir} holds the model{checked}")


def _publish(argv: list[str]) -> None:
    options = parse_for_model("publish", argv, PublishArguments)
    if options.public and options.private:
        raise ValueError("A repository is seen by everybody or not, got `--public` and `--private`; leave one out.")
    from .hub import publish

    fields = asdict(options)
    del fields["private"]
    publish(fields.pop("model"), fields.pop("repo"), **fields, say=_say)


def _find(argv: list[str]) -> None:
    options = parse_for_model("find", argv, FindArguments)
    from .hub import find_retentions
    from .report import format_retentions

    _say(format_retentions(list(find_retentions(options.model, options.limit))))


def _apply(argv: list[str]) -> None:
    options = parse_for_model("apply", argv, ApplyArguments)
    from .hub import apply_folder
    from .retention_file import spell_entries

    found = apply_folder(options.model, options.retention, options.output_dir)
    config = spell_entries(found.retention_config)
    _say(f"{options.output_dir} holds the model with retention_config {config} ({found.retention_unit})")
    _say("how it does on your data, `powerbert evaluate` says; how much faster it is, `powerbert benchmark`")


def _demo(argv: list[str]) -> None:
    from .demo import make_demo

    parser = argparse.ArgumentParser(prog="powerbert demo", description="All three steps on a small generated task.")
    parser.add_argument("--output-dir", default="runs/demo", help="default: runs/demo")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    folder = Path(options.output_dir)
    # The working folder has a name only in full.
    folder = folder if folder.name else folder.absolute()
    inputs = make_demo(folder.with_name(f"{folder.name}-inputs"), options.seed)
    training = [f"--output-dir={folder}", f"--seed={options.seed}", *inputs]
    _say(f"powerbert train {' '.join(training)}")
    _train(training)


def _settings(args: Any) -> dict[str, Any]:
    """The arguments of a training that make two runs differ."""
    from .trainer import PoWERTrainingArguments

    # Upstream's join the processes anew each time, and all have the state of the last: on the same device, then.
    plain = PoWERTrainingArguments(output_dir=args.output_dir, use_cpu=args.use_cpu).to_dict() | {"use_cpu": False}
    volatile = {"output_dir", "run_name", "disable_tqdm"}
    volatile |= {"push_to_hub", "hub_token", "hub_model_id", "hub_private_repo"}
    found = {name: value for name, value in args.to_dict().items() if name not in volatile and plain[name] != value}
    if args.mixed_precision != "no" and not (args.bf16 or args.fp16):
        # By a launcher, for no field has it.
        found["mixed_precision"] = args.mixed_precision
    return found


def _load_data(
    data_args: DataArguments, model: str, seed: int, measure_only: bool = False, fine_tuned: bool = False
) -> Any:
    from .data import load_data
    from .streaming import load_stream

    _quiet_datasets()
    if data_args.streaming and not measure_only:
        return load_stream(data_args, model, seed, fine_tuned)
    return load_data(data_args, model, seed, measure_only, fine_tuned)


def _quiet_datasets() -> None:
    """What it logs as an error it raises too. It sets its level when it is imported, so not any earlier."""
    logging.getLogger("datasets").setLevel(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(main())
