# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Charts: a configuration, curves of a training, a sweep with what can be had for nothing, a benchmark."""

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise
from typing import Any

from .drawing import Canvas
from .report import beaten_by

# Readable on a telephone, two of them beside each other elsewhere.
_WIDTH = 500.0
_SIZE = 13.0


def draw_configuration(
    kept: Sequence[float], entries: Sequence[float] | None = None, masses: Sequence[float] | None = None
) -> Canvas:
    """The share of word-vectors that leaves each encoder, as bars, and the learned configuration, as marks on them.

    Args:
        kept: L shares.
        entries: L shares that the configuration says; without them, as with counts in words, nothing is marked.
        masses: L masses, to be told.
    """
    left, right, height = 84.0, 106.0, 26.0
    room = _WIDTH - left - right
    canvas = Canvas(_WIDTH, 34 + len(kept) * height + 8, "Share of word-vectors that leaves each encoder")
    heads = [("kept", _WIDTH - 58)] + ([("mass", _WIDTH - 8)] if masses else [])
    for name, x in heads:
        canvas.text(x, 18, name, "soft", font_size=12, text_anchor="end")
    for number, share in enumerate(kept):
        y = 28 + number * height
        canvas.text(14, y + 14, f"encoder {number + 1}", "soft", font_size=12)
        canvas.add("rect", "track", x=left, y=y, width=room, height=height - 7, rx=3.0)
        canvas.add("rect", "mark", x=left, y=y, width=max(2.0, room * share), height=height - 7, rx=3.0)
        if entries is not None:
            x = left + room * entries[number]
            canvas.add("line", "warm-edge", x1=x, x2=x, y1=y - 2, y2=y + height - 5, stroke_width=2.5)
        canvas.text(_WIDTH - 58, y + 14, f"{share:.0%}", "ink", font_size=_SIZE, text_anchor="end")
        if masses:
            canvas.text(_WIDTH - 8, y + 14, f"{masses[number]:.1f}", "ink", font_size=_SIZE, text_anchor="end")
    if entries is not None:
        canvas.add("line", "warm-edge", x1=left, x2=left, y1=8, y2=22, stroke_width=2.5)
        canvas.text(left + 8, 19, "learned configuration", "soft", font_size=12)
    return canvas


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Args:
        name: written at its end.
        x: numbers.
        y: as many.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]


def draw_curves(curves: Sequence[Curve], title: str, x_name: str, y_name: str) -> Canvas:
    """Lines over one axis, each with its name at its end.

    Args:
        curves: at least one, with one point at least.
        title: what it shows, for those who cannot see it.
        x_name: of the horizontal axis.
        y_name: of the vertical axis.
    """
    right, line_height = 100.0, 14.0
    # Room for all names.
    height = max(250.0, 44 + line_height * (len(curves) + 1))
    canvas = Canvas(_WIDTH, height, title)
    values = [value for curve in curves for value in curve.y]
    across = (min(value for curve in curves for value in curve.x), max(value for curve in curves for value in curve.x))
    x_at, y_at = _axes(canvas, across, (0.0, max(values)), x_name, y_name, right, height)
    ends = _apart([y_at(curve.y[-1]) for curve in curves], line_height, height - 44)
    for colour, curve, end in zip(ramp(len(curves)), curves, ends, strict=True):
        points = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in zip(curve.x, curve.y, strict=True))
        canvas.add("polyline", points=points, fill="none", stroke=colour, stroke_width=2.0, stroke_linejoin="round")
        canvas.add("circle", cx=x_at(curve.x[-1]), cy=y_at(curve.y[-1]), r=3.0, fill=colour)
        canvas.add("rect", x=_WIDTH - right + 12, y=end - 4, width=10.0, height=4.0, rx=2.0, fill=colour)
        canvas.text(_WIDTH - right + 28, end + 2, curve.name, "ink", font_size=12)
    return canvas


def draw_sweep(found: dict[str, Any]) -> Canvas:
    """The metric against the measured speed-up, and what can be had for nothing, with the fine-tuned model's metric.

    A line joins what is Pareto-optimal, see [`report.beaten_by`].

    Args:
        found: the content of `sweep.json`.
    """
    runs = found["runs"]
    plot, right, line_height = 300.0, 16.0, 20.0
    canvas = Canvas(_WIDTH, plot + line_height * (1 + len(found["baselines"])) + 14, f"{found['metric']} by speed-up")
    speeds = [*found["baselines"].values(), *(run["measured_speedup"] for run in runs)]
    metrics = [100 * value for value in (found["base"], *(run["final"] for run in runs))]
    margin = max(1.0, 0.25 * (max(metrics) - min(metrics)))
    x_at, y_at = _axes(
        canvas,
        (0.0, 1.08 * max(speeds)),
        (min(metrics) - margin, max(metrics) + margin),
        "measured speed-up over stock, sorted by length",
        f"{found['metric']} on the reported split, %",
        right,
        plot,
    )
    base = y_at(100 * found["base"])
    canvas.add("line", "rule", x1=x_at(0), x2=_WIDTH - right, y1=base, y2=base, stroke_dasharray="2 4")
    points = [(x_at(run["measured_speedup"]), y_at(100 * run["final"])) for run in runs]
    best = [beaten == "front" for beaten in beaten_by(found)]
    front = sorted(compress([(x_at(1.0), base), *points], best))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in front)
    canvas.add("polyline", "edge", points=line, fill="none", stroke_width=2.0)
    for (x, y), run, on_front in zip(points, runs, best[1:], strict=True):
        canvas.add("circle", "mark" if on_front else "faint", cx=x, cy=y, r=5.0)
        canvas.text(x, y - 11, f"{run['measured_speedup']:.2f}x", "ink", font_size=12, text_anchor="middle")
    canvas.add("circle", "mark", cx=64.0, cy=plot + 16, r=5.0)
    legend = "ours, re-trained to each configuration"
    if not all(best[1:]):
        legend += "; grey: behind another"
    if len(front) > 1:
        legend += "; line: the Pareto front"
    canvas.text(80, plot + 20, legend, "ink", font_size=12)
    at, low = -math.inf, base
    for number, (name, speed) in enumerate(found["baselines"].items(), start=1):
        key = plot + 16 + number * line_height
        # Of two that would cover each other, one goes below the line.
        low = low + 17 if abs(x_at(speed) - at) < 16 else base
        at = x_at(speed)
        for x, y in ((at, low), (64.0, key)):
            canvas.add("circle", "warm", cx=x, cy=y, r=7.0)
            canvas.text(x, y + 4, str(number), "paper", font_size=11, text_anchor="middle", font_weight="bold")
        canvas.text(80, key + 4, name, "ink", font_size=12)
    return canvas


def draw_speeds(setting: dict[str, Any], measurements: Sequence[dict[str, Any]]) -> Canvas:
    """How many times as fast as stock on batches sorted by length each way is, and what was predicted for ours.

    Args:
        setting: the first of `speed.run_benchmarks`.
        measurements: the others.
    """
    left, right, top, line, head = 210.0, 52.0, 12.0, 19.0, 30.0
    groups = [head + line * len(found["rows"]) for found in measurements]
    bottom = top + sum(groups) + 8
    title = f"{setting['model']} on {setting['hardware']['processor']}"
    canvas = Canvas(_WIDTH, bottom + 62, f"Speed-up over stock, sorted by length: {title}")
    speeds = [row["high"] for found in measurements for row in found["rows"].values()]
    most = max(1.0, *speeds, *(found["predicted"] for found in measurements))

    def x_at(speedup: float) -> float:
        return left + (_WIDTH - left - right) * speedup / most

    for value in ticks(0, most):
        canvas.add("line", "rule", x1=x_at(value), x2=x_at(value), y1=top, y2=bottom)
        canvas.text(x_at(value), bottom + 14, f"{value:g}x", "soft", font_size=11, text_anchor="middle")
    canvas.add("line", "edge", x1=x_at(1), x2=x_at(1), y1=top, y2=bottom, stroke_dasharray="2 4")
    y = top
    for found, height in zip(measurements, groups, strict=True):
        name = f"{found['lengths']}, {found['dtype']}, batches of {found['batch_size']}"
        canvas.text(14, y + 18, name, "ink", font_size=12, font_weight="bold")
        for number, (way, row) in enumerate(found["rows"].items()):
            place = y + head - 6 + number * line
            canvas.text(left - 8, place + 12, row["description"], "soft", font_size=11, text_anchor="end")
            bar = {"x": left, "y": place + 2, "width": x_at(row["speedup"]) - left, "height": line - 6}
            canvas.add("rect", "mark" if way.startswith("ours") else "faint", **bar)
            middle = place + line / 2 - 1
            canvas.add("line", "warm-edge", x1=x_at(row["low"]), x2=x_at(row["high"]), y1=middle, y2=middle)
            end = max(row["high"], found["predicted"]) if way == "ours" else row["high"]
            canvas.text(x_at(end) + 6, place + 12, f"{row['speedup']:.2f}x", "ink", font_size=11)
            if way == "ours":
                at = x_at(found["predicted"])
                canvas.add("line", "warm-edge", x1=at, x2=at, y1=place, y2=place + line - 2, stroke_width=3.0)
        y += height
    canvas.add("line", "warm-edge", x1=17.0, x2=17.0, y1=bottom + 26, y2=bottom + 40, stroke_width=3.0)
    canvas.text(26, bottom + 37, "predicted for ours; thin: lowest to highest ratio", "soft", font_size=11)
    canvas.text(14, bottom + 54, f"speed-up over stock, sorted by length; {title}", "soft", font_size=11)
    return canvas


def _axes(
    canvas: Canvas,
    across: tuple[float, float],
    up: tuple[float, float],
    x_name: str,
    y_name: str,
    right: float,
    height: float,
) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Draw axes in the upper part of a picture, and return where numbers lie on them."""
    left, top, bottom = 56.0, 30.0, height - 44.0
    width = canvas.width - right - left

    def on(value: float, ends: tuple[float, float]) -> float:
        return (value - ends[0]) / ((ends[1] - ends[0]) or 1.0)

    def x_at(value: float) -> float:
        return left + width * on(value, across)

    def y_at(value: float) -> float:
        return bottom - (bottom - top) * on(value, up)

    canvas.text(14, 17, y_name, "soft", font_size=12)
    canvas.text(left + width, height - 8, x_name, "soft", font_size=12, text_anchor="end")
    for value in ticks(*up):
        canvas.add("line", "rule", x1=left, x2=left + width, y1=y_at(value), y2=y_at(value))
        canvas.text(left - 8, y_at(value) + 4, f"{value:g}", "soft", font_size=11, text_anchor="end")
    for value in ticks(*across, most=8):
        canvas.text(x_at(value), bottom + 18, f"{value:g}", "soft", font_size=11, text_anchor="middle")
    return x_at, y_at


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two.

    Example:
        >>> ticks(0, 1.3)
        [0.0, 0.5, 1.0]
        >>> ticks(84.2, 87.1)
        [85.0, 86.0, 87.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(step * n, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def ramp(number: int) -> list[str]:
    """Colours from the first encoder's to the last's, to be told apart on white and on black.

    Example:
        >>> ramp(2)
        ['#1e998c', '#c05dc0']
    """
    colours = []
    for place in range(number):
        share = place / max(1, number - 1)
        hue, light, full = 0.482 + share * (0.8333 - 0.482), 0.36 + 0.2 * share, 0.67 - 0.23 * share
        rgb = colorsys.hls_to_rgb(hue, light, full)
        colours.append("#" + "".join(f"{round(255 * part):02x}" for part in rgb))
    return colours


def _apart(places: Sequence[float], gap: float, last: float) -> list[float]:
    """Places moved so that none is nearer than `gap` to another."""
    order = sorted(range(len(places)), key=lambda n: places[n])
    moved = list(places)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    over = moved[order[-1]] - last
    if over > 0:
        moved[order[-1]] = last
        for after, before in pairwise(reversed(order)):
            moved[before] = min(moved[before], moved[after] - gap)
    return moved
