# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run's `report.json` says, as text; what a sweep's says, as text and as a picture."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .retention_file import RetentionFile


def format_report(report: dict[str, Any], model_dir: Path) -> str:
    """The table that ends a run: metric before and after, configuration, word-vectors kept, speed-ups.

    Args:
        report: the content of `report.json`.
        model_dir: the folder of the final model.

    Returns:
        Lines without a last line break.
    """
    fraction = report["retention_unit"] == "fraction"
    config = " ".join(f"{entry:.3g}" for entry in report["retention_config"])
    kept = report["word_vectors_kept"]
    timing = report["timing"]
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
            "reported on",
            f"{report['data']['eval_rows']} rows of {report['mean_length']:.1f} word-pieces on average, seed "
            f"{report['training']['seed']}",
        ),
        ("final model", str(model_dir)),
    ]
    tuning, asked = report["tuning"], report["training"]["speedup"]
    if asked is not None:
        rows.insert(
            -2,
            (
                "on the tuning split",
                f"{tuning['predicted_speedup']:.2f}x predicted, {asked:g}x asked for; {report['metric']} "
                f"{tuning['base']:.4f} before, {tuning['final']:.4f} after",
            ),
        )
    if "tried" in report:
        lost = ", ".join(f"{one['drop']:.2f} points at {one['speedup']:g}x" for one in report["tried"])
        rows.insert(-2, ("lost there", f"{lost}; at most {report['max_drop']:g} asked for"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def format_sweep(found: dict[str, Any]) -> str:
    """The table that ends a sweep: metric and speed-up of each run, the fastest last.

    Args:
        found: the content of `sweep.json`.

    Returns:
        Lines without a last line break.
    """
    header = ("asked for", "predicted", "measured", found["metric"], "points lost", "on the tuning split")
    rows = [("all kept", "1.00x", "1.00x", f"{found['base']:.4f}", "", "")]
    for run in found["runs"]:
        tuning = run["tuning"]
        rows.append(
            (
                f"{run['training']['speedup']:g}x",
                f"{run['predicted_speedup']:.2f}x",
                f"{run['measured_speedup']:.2f}x",
                f"{run['final']:.4f}",
                f"{100 * (run['base'] - run['final']):.2f}",
                f"{100 * (tuning['base'] - tuning['final']):.2f} at {tuning['predicted_speedup']:.2f}x",
            )
        )
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join([*lines, *(f"{name}: {value:.2f}x" for name, value in found["baselines"].items())])


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
                one.task or "",
                str(metric.get("name", "")),
                *(f"{metric[name]:.4f}" if name in metric else "" for name in ("base", "final")),
                *(f"{speedup[name]:.2f}x" if name in speedup else "" for name in ("predicted", "measured")),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def check_matplotlib() -> None:
    """Refuse a picture where nothing can draw it.

    Raises:
        ImportError: with the command that installs it.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("`--plot` needs matplotlib, got none; run `pip install 'powerbert_hf[plot]'`.")


def plot_sweep(found: dict[str, Any], path: str) -> None:
    """Draw the metric against the measured speed-up, with the baselines, which have the fine-tuned model's metric.

    Args:
        found: the content of `sweep.json`.
        path: of the picture; its ending is the format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    runs = sorted(found["runs"], key=lambda run: run["measured_speedup"])
    axes.plot([run["measured_speedup"] for run in runs], [run["final"] for run in runs], "o-", label="ours")
    for run in runs:
        axes.annotate(
            f"{run['training']['speedup']:g}x",
            (run["measured_speedup"], run["final"]),
            textcoords="offset points",
            xytext=(5, 5),
        )
    for marker, (name, speedup) in zip("sD^v", found["baselines"].items(), strict=False):
        axes.plot(speedup, found["base"], marker, color="grey", label=name)
    axes.set_xlabel("measured speed-up over stock, sorted by length")
    axes.set_ylabel(found["metric"])
    axes.set_title(f"{found['model']} on {found['hardware']['processor']}", fontsize="small")
    axes.legend(fontsize="small", frameon=False)
    figure.savefig(path)
