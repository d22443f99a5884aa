# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The folder of a command that can go on where it was interrupted: who uses it, and what was typed."""

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .files import InUse, check_free, take, write_json

# Steps that are finished serve another goal as well; how rows are read and measured, and what is logged, changes no
# model.
_MAY_CHANGE = {"speedups", "max_drop", "plot", "num_proc", "per_device_eval_batch_size", "report_to"}
_MAY_CHANGE |= {"eval_accumulation_steps", "logging_steps", "logging_strategy", "logging_first_step"}
_MAY_CHANGE |= {"ddp_timeout", "log_level", "log_level_replica", "log_on_each_node", "run_name", "project"}
_MAY_CHANGE |= {f"trackio_{name}" for name in ("space_id", "bucket_id", "static_space_id")}
_MAY_CHANGE |= {
    f"dataloader_{name}"
    for name in ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "multiprocessing_context")
}
# Nor does it when checkpoints are written or the tuning split is looked at, unless a model is chosen by it, or a rate.
_WHEN_SAVED = {"save_strategy", "save_steps", "save_total_limit"}
_WHEN_SAVED |= {"do_eval", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start"}
# Schedules that go by a metric.
BY_METRIC = ("reduce_lr_on_plateau", "greedy")

# What a command's words do not tell.
_INPUTS = {"data": "data with other texts or labels", "model_files": "a model with other files"}

# What the steps leave there, each a model.
STEPS = ("fine_tuned", "searched", "final")


def name_of(model: str | Path) -> str:
    """What to call a model: its name, without whose it is or where it lies; a step of a run by the name of the run.

    Example:
        >>> name_of("google-bert/bert-base-uncased"), name_of("runs/sst2/fine_tuned"), name_of("final")
        ('bert-base-uncased', 'sst2', 'final')
    """
    path = Path(model)
    return (path.parent.name if path.name in STEPS else "") or path.name or str(model)


def speedup_folder(speedup: float) -> str:
    """The folder, in that of a sweep, of the run that was asked for a speed-up.

    Example:
        >>> speedup_folder(2.0)
        'speedup-2'
    """
    return f"speedup-{speedup:g}"


@contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Lock the folder of a run, where the system can; the lock ends with the process, however that ends.

    Args:
        folder: of a run; made if it is not there.

    Raises:
        ValueError: where another command is running in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            take(descriptor, folder)
        except InUse:
            raise ValueError(
                f"One command at a time can use an `--output-dir`, got a second one for {folder}; wait for the "
                "other, or choose another folder."
            ) from None
        yield
    finally:
        os.close(descriptor)


def check_folder(folder: Path, typed: dict[str, Any], option: str = "--output-dir") -> bool:
    """Whether the folder holds this very run already.

    Args:
        folder: of a run.
        typed: what makes two runs differ, by name.
        option: that named the folder, for the message.

    Raises:
        ValueError: where it holds something else.
    """
    record = folder / "command.json"
    files = {path.name for path in folder.rglob("*") if path.is_file()} if folder.is_dir() else None
    if files is not None and files <= {"command.json", "command.json.partial"}:
        # Its command was refused, or killed, before it trained anything.
        return False
    if record.is_file():
        try:
            earlier = json.loads(record.read_text(encoding="utf-8"))
            arguments, words = earlier["arguments"], " ".join(earlier["typed"])
        except (ValueError, RecursionError, LookupError, TypeError):
            raise ValueError(
                f"{folder} holds something else, or its {record.name} cannot be read; choose another `{option}`, or "
                "remove it."
            ) from None
        before, now = (_settled(one) for one in (arguments, json.loads(json.dumps(typed))))
        other = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if not other:
            return True
        raise ValueError(
            f"{folder} holds the run of another command ({words}), with another {', '.join(other)}; choose another "
            f"`{option}`, or remove it."
        )
    check_free(folder, option)
    return False


def typed_before(folder: Path) -> dict[str, Any]:
    """The options of the command whose run a folder holds, by name; empty where there is none that can be read.

    Args:
        folder: of a run.
    """
    try:
        return _by_name(json.loads((folder / "command.json").read_text(encoding="utf-8"))["arguments"])
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return {}


def check_inputs(folder: Path, digests: dict[str, str | None]) -> None:
    """Make sure that a run goes on with the data and the model that it began with.

    Args:
        folder: of a run.
        digests: those of now, by the names in `_INPUTS`; `None` where nothing is known.

    Raises:
        ValueError: for others under the same names.
    """
    known = json.loads((folder / "command.json").read_text(encoding="utf-8"))
    for name, digest in digests.items():
        if None not in (known.get(name), digest) and known[name] != digest:
            raise ValueError(
                f"A run goes on with what it began with, got {_INPUTS[name]} for {folder}; restore it, or choose "
                "another `--output-dir`."
            )


def _by_name(arguments: dict[str, Any]) -> dict[str, Any]:
    """Options, of whatever they are about."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        found |= value if isinstance(value, dict) else {name: value}
    return found


def _settled(arguments: dict[str, Any]) -> dict[str, Any]:
    """Options by name, less those that may change."""
    found = _by_name(arguments)
    chosen = found.get("load_best_model_at_end") or found.get("lr_scheduler_type") in BY_METRIC
    left_out = _MAY_CHANGE if chosen else _MAY_CHANGE | _WHEN_SAVED
    return {name: value for name, value in found.items() if name not in left_out}


def write_command(
    folder: Path, argv: list[str], typed: dict[str, Any], version: str, digests: dict[str, str | None] | None = None
) -> None:
    """Leave in the folder of a run what it is of, for [`check_folder`] and [`check_inputs`].

    Args:
        folder: of a run; made if it is not there.
        argv: the command, as it was typed.
        typed: what makes two runs differ, by name.
        version: of this package.
        digests: see [`check_inputs`].
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A token is nobody else's business.
    shown = [re.sub(r"(--\w*[-_]token=).*", r"\1...", word) for word in argv]
    for place in range(1, len(shown)):
        if re.fullmatch(r"--\w*[-_]token", shown[place - 1]):
            shown[place] = "..."
    record = {"typed": shown, "arguments": typed, "version": version, **(digests or {})}
    while True:
        try:
            return write_json(folder / "command.json", record)
        except InUse:
            # Another process of this very command is at it.
            time.sleep(0.05)
