# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Several speed-ups from one fine-tuned model: to choose from, or to find the fastest that is good enough."""

import copy
import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .benchmark import benchmark
from .checkpoint import load_classifier
from .data import TaskData
from .files import whole_folder, write_json
from .processes import on_main
from .recipe import (
    RecipeResult,
    check_speedups,
    constant_metric,
    first_step,
    read_step,
    search_and_retrain,
    timed_features,
)
from .retention import RetentionUnit
from .run_folder import speedup_folder
from .trainer import PoWERTrainingArguments

logger = logging.getLogger(__name__)

# The first speed-up that is tried, and the factor to the next one where it is good enough.
_FIRST, _FASTER = 2.0, 1.5
# Rows of which a correlation tells next to nothing.
_FEW = 30
# Good enough and not good enough are not told apart any further than by this factor.
_NEAR = 1.15


def sweep(
    model: str,
    data: TaskData,
    args: PoWERTrainingArguments,
    speedups: Sequence[float],
    unit: RetentionUnit = "fraction",
    fine_tuned: bool = False,
    say: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Search and re-train for each of several speed-ups, in folders of `args.output_dir`, and write `sweep.json`.

    What is there is not done again.

    Args:
        model: a Hub id or folder of a BERT or ALBERT checkpoint.
        data: from `data.prepare_data`.
        args: of all trainings.
        speedups: predicted, on the lengths of the tuning split.
        unit: of the retention configurations.
        fine_tuned: `model` has been trained on the task already.
        say: told what is going on, a line at a time.

    Returns:
        The content of `sweep.json`: the metric, its `base`, the `baselines` as speed-ups over stock sorted by length,
        and `runs`, a `report.json` each.

    Raises:
        ValueError: for a model that cannot be run, or a speed-up that cannot be reached.
    """
    root = Path(args.output_dir)
    check_speedups(model, data, speedups, unit)
    base = first_step(model, data, args, root, fine_tuned, say)
    runs = [_run(model, root, base, data, args, speedup, unit, say) for speedup in sorted(set(speedups))]
    say("measuring baselines")
    return on_main(lambda: _compare(model, root, runs, data, args))


def _compare(
    model: str, root: Path, runs: list[dict[str, Any]], data: TaskData, args: PoWERTrainingArguments
) -> dict[str, Any]:
    """Time the baselines beside the slowest run, and write `sweep.json`."""
    ours = load_classifier(root / speedup_folder(runs[0]["training"]["speedup"]) / "final")
    ways, batch_size = ("a", "b", "c", "ours"), args.per_device_eval_batch_size
    timed = benchmark(
        ours.to(args.device), timed_features(data), batch_size, ways, padded_to=data.retention_length, repeats=3
    )
    baselines = {row.description: row.speedup for name, row in timed.rows.items() if name != "ours"}
    found = {
        "model": model,
        "metric": data.metric,
        "base": runs[0]["base"],
        "baselines": baselines,
        "hardware": runs[0]["hardware"],
        "runs": runs,
    }
    write_json(root / "sweep.json", found)
    return found


def fastest_within(
    model: str,
    data: TaskData,
    args: PoWERTrainingArguments,
    max_drop: float,
    unit: RetentionUnit = "fraction",
    fine_tuned: bool = False,
    say: Callable[[str], None] = logger.info,
) -> RecipeResult:
    """The fastest configuration that loses no more than some points on the tuning split, in `args.output_dir`.

    Speed-ups are tried in folders of their own: 2, and from there up by half as much again or down, until two that are
    near each other have it between them, by the speed-ups that they have reached. `final/` becomes a copy of the best
    one's.

    Args:
        model: a Hub id or folder of a BERT or ALBERT checkpoint.
        data: from `data.prepare_data`.
        args: of all trainings.
        max_drop: points, 100 times the metric, below the fine-tuned model.
        unit: of the retention configurations.
        fine_tuned: `model` has been trained on the task already.
        say: told what is going on, a line at a time.

    Raises:
        ValueError: where no configuration is good enough; it says what was tried.
    """
    root = Path(args.output_dir)
    lowest, highest = check_speedups(model, data, [], unit)
    point = 100 / len(data.tune)
    if point > max_drop and data.problem_type != "regression":
        say(f"a row of the tuning split counts {point:.1f} points, more than the {max_drop:g} that may be lost")
    if data.problem_type == "regression" and len(data.tune) < _FEW:
        say(f"the tuning split has {len(data.tune)} rows, too few for a correlation to tell what is lost; pass more")
    base = first_step(model, data, args, root, fine_tuned, say)
    most = _points(read_step(base)["tuning"][data.metric] - constant_metric(data))
    if most <= 0:
        raise ValueError(
            f"`max_drop` needs a fine-tuned model that has learned something, got one whose {data.metric} on the "
            "tuning split one answer to every text would reach; train longer or at another rate, in another folder, "
            "or take another `--metric`."
        )
    if most <= max_drop:
        raise ValueError(
            f"`max_drop` must be less than one answer to every text would lose, got {max_drop:g} where that is "
            f"{most:.2f} points of {data.metric} on the tuning split; allow less, or take another `--metric` "
            "or train longer in another folder."
        )
    tried: dict[float, float] = {}
    reports: dict[float, dict[str, Any]] = {}
    # What comes out as another did is as good, and not asked for again.
    repeated: dict[float, float] = {}
    while (asked := next_speedup(tried | repeated, max_drop, lowest, highest)) is not None:
        report = _run(model, root, base, data, args, asked, unit, say)
        # On short texts, whose counts are few, that need not be what was asked for.
        reached = report["tuning"]["predicted_speedup"]
        if reached in tried:
            say(f"{asked:g}x comes out as {reached:.2f}x once more")
            repeated[asked] = tried[reached]
            continue
        lost = _points(report["tuning"]["base"] - report["tuning"]["final"])
        tried[reached], reports[reached] = lost, report
        say(f"{reached:.2f}x, {asked:g}x asked for, loses {lost:.2f} points of {data.metric} on the tuning split")
    good = [speedup for speedup, drop in tried.items() if drop <= max_drop]
    if not good:
        on_main(lambda: _forget(root))
        shown = ", ".join(f"{drop:.2f} points at {speedup:.2f}x" for speedup, drop in sorted(tried.items()))
        raise ValueError(
            f"`max_drop` must leave room for a configuration, got {max_drop:g} where {shown} were lost; allow more "
            "in the same folder, or train for longer or at another rate in another. Untrained and with the same "
            f"answers the fine-tuned model has {lowest:.2f}x, by `retention_config` 1 for each encoder, in fractions."
        )
    chosen = max(good)
    if chosen == max(tried):
        say(f"the fastest that there is on these lengths has {highest:.2f}x")
    asked = reports[chosen]["training"]["speedup"]
    report = {
        **reports[chosen],
        "max_drop": max_drop,
        "tried": [
            {"speedup": reports[speedup]["training"]["speedup"], "predicted_speedup": speedup, "drop": drop}
            for speedup, drop in sorted(tried.items())
        ],
    }

    def choose() -> None:
        known = (root / "report.json").is_file() and json.loads((root / "report.json").read_text(encoding="utf-8"))
        if not known or known["training"]["speedup"] != asked:
            _forget(root)
        if not (root / "final").is_dir():
            with whole_folder(root / "final") as partial:
                shutil.copytree(root / speedup_folder(asked) / "final", partial, dirs_exist_ok=True)
        write_json(root / "report.json", report)

    on_main(choose)
    return RecipeResult(root / "final", report)


def _forget(root: Path) -> None:
    """Remove what another `max_drop` has chosen; each model that was tried is in its own folder, too."""
    # The report first: it is not to stand beside another model.
    (root / "report.json").unlink(missing_ok=True)
    shutil.rmtree(root / "final", ignore_errors=True)


def next_speedup(tried: dict[float, float], max_drop: float, lowest: float, highest: float) -> float | None:
    """The speed-up to try next, or `None` where the fastest that is good enough is known well enough.

    Args:
        tried: points lost, by the speed-up that was reached.
        max_drop: points that may be lost.
        lowest: speed-up with all word-vectors kept.
        highest: speed-up with one kept by each encoder.

    Example:
        >>> next_speedup({}, 1.0, 1.2, 12.0)
        2.0
        >>> next_speedup({2.0: 0.4}, 1.0, 1.2, 12.0)
        3.0
        >>> next_speedup({2.0: 0.4, 3.0: 2.5}, 1.0, 1.2, 12.0)
        2.45
        >>> next_speedup({2.0: 0.4, 2.45: 0.9, 2.7: 1.1}, 1.0, 1.2, 12.0)
    """
    good = max((speedup for speedup, drop in tried.items() if drop <= max_drop), default=lowest)
    # One that is no number is not good enough.
    bad = min((speedup for speedup, drop in tried.items() if not drop <= max_drop), default=highest)
    if bad / good < _NEAR:
        return None
    middle = round(math.sqrt(good * bad), 2)
    if not tried:
        return min(_FIRST, middle)
    return min(round(good * _FASTER, 2), middle) if bad == highest else middle


def _points(lost: float) -> float:
    """A loss in points, less what floats add: 0.91 less 0.9 is somewhat more than 0.01."""
    return round(100 * lost, 6)


def _run(
    model: str,
    root: Path,
    base: Path,
    data: TaskData,
    args: PoWERTrainingArguments,
    speedup: float,
    unit: RetentionUnit,
    say: Callable[[str], None],
) -> dict[str, Any]:
    folder = root / speedup_folder(speedup)
    if on_main(lambda: (folder / "report.json").is_file() and (folder / "final").is_dir()):
        return json.loads((folder / "report.json").read_text(encoding="utf-8"))
    say(f"{speedup:g}x faster, in {folder.name}:")
    run_args = copy.copy(args)
    run_args.speedup, run_args.retention_lambda = speedup, None
    run_args.run_name = f"{args.run_name or root.name}-{folder.name}"
    return search_and_retrain(model, base, data, run_args, folder, unit, say)
