# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run and a sweep have left in their folders: read again, and told as text."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .inspection import legible
from .retention_file import RetentionFile, spell_entries
from .run_folder import speedup_folder


def format_report(report: dict[str, Any], model_dir: Path) -> str:
    """The table that ends a run: metric before and after, configuration, word-vectors kept, speed-ups.

    Args:
        report: the content of `report.json`.
        model_dir: the folder of the final model.

    Returns:
        Lines without a last line break.
    """
    fraction = report["retention_unit"] == "fraction"
    config = spell_entries(report["retention_config"])
    kept = report["word_vectors_kept"]
    timing, tuning, asked = report["timing"], report["tuning"], report["training"]["speedup"]
    # With a lambda nothing is asked for.
    wanted = "" if asked is None else f", {asked:g}x asked for"
    rows = [
        (f"{report['metric']}, all word-vectors", f"{report['base']:.4f}"),
        (f"{report['metric']}, final model", f"{report['final']:.4f}"),
        ("retention configuration", f"{config} ({'of an input' if fraction else 'word-vectors'})"),
        ("word-vectors kept", f"{' '.join(f'{share:.0%}' for share in kept)}, {sum(kept) / len(kept):.0%} overall"),
        ("predicted speed-up", f"{report['predicted_speedup']:.2f}x (multiply-accumulates, no padding)"),
        (
            "measured speed-up",
            f"{report['measured_speedup']:.2f}x ({timing['low']:.2f} to {timing['high']:.2f}; against stock SDPA on "
            f"batches of {timing['batch_size']} sorted by length)",
        ),
        (
            "on the tuning split",
            f"{tuning['predicted_speedup']:.2f}x predicted{wanted}; {report['metric']} {tuning['base']:.4f} before, "
            f"{tuning['final']:.4f} after",
        ),
    ]
    if "tried" in report:
        lost = ", ".join(f"{one['drop']:.2f} points at {one['predicted_speedup']:.2f}x" for one in report["tried"])
        asked_for = f"at most {report['max_drop']:g} asked for, on {tuning['rows']:,} rows"
        rows.append(("lost there", f"{lost}; {asked_for}"))
    reported = f"{report['data']['eval_rows']} rows of {report['mean_length']:.1f} word-pieces on average"
    rows.append(("reported on", f"{reported}, seed {report['training']['seed']}"))
    rows.append(("final model", str(model_dir)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def format_sweep(found: dict[str, Any]) -> str:
    """The table that ends a sweep: metric and speed-up of each run, the fastest last, and which are Pareto-optimal.

    Args:
        found: the content of `sweep.json`.

    Returns:
        Lines without a last line break.
    """
    header = ("asked for", "predicted", "measured", found["metric"], "points lost", "on the tuning split", "Pareto")
    behind = beaten_by(found)
    rows = [("all kept", "1.00x", "1.00x", f"{found['base']:.4f}", "", "", behind[0])]
    for run, beaten in zip(found["runs"], behind[1:], strict=True):
        tuning = run["tuning"]
        rows.append(
            (
                f"{run['training']['speedup']:g}x",
                f"{run['predicted_speedup']:.2f}x",
                f"{run['measured_speedup']:.2f}x",
                f"{run['final']:.4f}",
                f"{100 * (run['base'] - run['final']):.2f}",
                f"{100 * (tuning['base'] - tuning['final']):.2f} at {tuning['predicted_speedup']:.2f}x",
                beaten,
            )
        )
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join([*lines, *(f"{name}: {value:.2f}x" for name, value in found["baselines"].items())])


def beaten_by(found: dict[str, Any]) -> list[str]:
    """What of a sweep is Pareto-optimal: nothing is at least as fast and as good, and better in one of both.

    Args:
        found: the content of `sweep.json`.

    Returns:
        Of the fine-tuned model, run as stock sorted by length, and then of each run, `"front"` or `"behind 2x"`: the
        fastest of those that are better, by what was asked for.

    Example:
        >>> run = {"training": {"speedup": 2.0}, "measured_speedup": 1.9, "final": 0.91}
        >>> beaten_by({"base": 0.9, "runs": [run]})
        ['behind 2x', 'front']
    """
    runs = found["runs"]
    names = ["all kept", *(f"{run['training']['speedup']:g}x" for run in runs)]
    places = [(1.0, found["base"]), *((run["measured_speedup"], run["final"]) for run in runs)]
    # What is no number is worse than any.
    places = [(speed, -math.inf if math.isnan(metric) else metric) for speed, metric in places]
    better = [
        max((one, name) for one, name in zip(places, names, strict=True) if one[0] >= speed and one[1] >= metric)
        for speed, metric in places
    ]
    return ["front" if one == place else f"behind {name}" for place, (one, name) in zip(places, better, strict=True)]


def format_retentions(found: Sequence[tuple[str, RetentionFile]]) -> str:
    """The table of configurations that were found on the Hub.

    Args:
        found: Hub ids, and what their `retention.json` says.

    Returns:
        Lines without a last line break.
    """
    if not found:
        return "none found"
    rows: list[tuple[str, ...]] = [
        ("repository", "fits", "learned on", "metric", "base", "final", "predicted", "measured")
    ]
    for repo, one in found:
        metric, speedup = one.metric or {}, one.speedup or {}
        rows.append(
            (
                repo,
                f"{one.backbone}, {one.encoders} encoders",
                legible(one.task or ""),
                legible(str(metric.get("name", ""))),
                *(f"{metric[name]:.4f}" if name in metric else "" for name in ("base", "final")),
                *(f"{speedup[name]:.2f}x" if name in speedup else "" for name in ("predicted", "measured")),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


@dataclass(frozen=True)
class Run:
    """What a run has left in its folder.

    Args:
        folder: of the run.
        base: the folder of the fine-tuned model, which the runs of a sweep share.
        report: the content of `report.json`.
        steps: what each step has left in its `step.json`, by its name, in their order; of a run without its models
            what the report says of it.
        arguments: what was typed, as the options of `arguments`.
        command: what was typed.
    """

    folder: Path
    base: Path
    report: dict[str, Any]
    steps: dict[str, dict[str, Any]]
    arguments: dict[str, Any]
    command: list[str]


def read_run(folder: Path) -> Run:
    """Read what `powerbert train`, or one speed-up of `powerbert sweep`, has left in a folder.

    Args:
        folder: with a `report.json`.

    Raises:
        ValueError: where it is not a finished run, or has been changed.
    """
    report = read_json(folder / "report.json")
    inner = folder / speedup_folder(report["training"]["speedup"]) if "max_drop" in report else folder
    above = folder if (folder / "command.json").is_file() else folder.absolute().parent
    folders = {"fine_tuned": above / "fine_tuned", "searched": inner / "searched", "final": folder / "final"}
    command = read_json(above / "command.json")
    # The models may be somewhere else, or, that of the search, thrown away.
    steps = {
        name: read_json(folders[name] / "step.json") if folders[name].is_dir() else known
        for name, known in _reported_steps(report).items()
    }
    return Run(folder, folders["fine_tuned"], report, steps, command["arguments"], command["typed"])


def _reported_steps(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the report of a run knows of its steps, such as those in `results/`, whose models are somewhere else."""
    metric, tuning = report["metric"], report.get("tuning", {})
    metrics = {
        "fine_tuned": report["metrics"]["base"],
        "searched": {metric: report["before_retraining"]},
        "final": report["metrics"]["final"],
    }
    chosen_by = {"fine_tuned": tuning.get("base"), "searched": None, "final": tuning.get("final")}
    return {
        name: {
            "metrics": found,
            "tuning": {} if chosen_by[name] is None else {metric: chosen_by[name]},
            "history": [],
            "masses": report["masses"] if name == "searched" else None,
        }
        for name, found in metrics.items()
    }


def read_json(path: Path) -> dict[str, Any]:
    """What a finished run has written.

    Args:
        path: of the file.

    Raises:
        ValueError: where it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"A finished run must have a {path.name} that can be read, got none in {path.parent}; pass the "
            "`--output-dir` of a `powerbert train` or `sweep` that has ended."
        ) from error
