"""What searches for a speed-up are worth, for results/README.md: `searches/` holds what sweeps left, a folder a seed.

`sweep.json` and `command.json` are of `powerbert sweep`; `profiles.json`, `defaults.json`, `targets.json` and
`agreements.json` of `compare_searches.py`. Seeds of one task, model and dtype belong together. A folder whose name
ends in a commit is of the search as it was there, any other of today's. `results/render.py` calls what is here.
"""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from powerbert_hf.run_folder import name_of

HERE = Path(__file__).parent / "searches"

Row = tuple[str, ...]


def mean_and_interval(differences: Sequence[float], unit: str) -> str:
    """Mean of paired differences with its 95 % interval by Student's t, where there is more than one."""
    if len(differences) == 1:
        return f"{differences[0]:+.2f} {unit}, one seed"
    mean, half = _mean_and_half(differences)
    return f"{mean:+.2f} {unit} ({mean - half:+.2f} to {mean + half:+.2f}, {len(differences)} seeds)"


def _mean_and_half(differences: Sequence[float]) -> tuple[float, float]:
    half = t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.mean(differences), half


def _shares(config: Sequence[int | float]) -> str:
    return ", ".join(f"{share:.3f}" if isinstance(share, float) else str(share) for share in config)


def _read(name: str) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """Files of that name with their seeds, by task and model."""
    found = defaultdict(list)
    for path in sorted(HERE.glob(f"*/{name}.json")):
        typed = json.loads(path.with_name("command.json").read_text(encoding="utf-8"))["arguments"]
        read = json.loads(path.read_text(encoding="utf-8"))
        group = f"{typed['data']['task']}, {name_of(typed['model']['model'])}"
        if typed["data"]["max_train_samples"] is not None:
            group += f", {typed['data']['max_train_samples']:,} rows"
        if typed["training"].get("bf16"):
            group += ", bfloat16"
        if commit := re.search("-([0-9a-f]{7})$", path.parent.name):
            group += f", {commit[1]}"
        found[group].append((typed["training"].get("seed", 42), read))
    return {group: sorted(ones, key=lambda one: one[0]) for group, ones in found.items()}


def sweeps() -> tuple[list[Row], list[str]]:
    """A row for each speed-up and seed, and for each speed-up the mean difference from the fine-tuned model."""
    rows = [("task and model", "asked for", "seed", "predicted", "metric", "fine-tuned", "final", "configuration")]
    said = []
    for group, ones in _read("sweep").items():
        differences = defaultdict(list)
        for seed, sweep in ones:
            for run in sweep["runs"]:
                asked = run["training"]["speedup"]
                predicted = f"{run['tuning']['predicted_speedup']:.2f}x, {run['predicted_speedup']:.2f}x"
                metrics = (f"{100 * run['tuning'][name]:.2f}, {100 * run[name]:.2f}" for name in ("base", "final"))
                config = _shares(run["retention_config"])
                rows.append((group, f"{asked:g}x", str(seed), predicted, run["metric"], *metrics, config))
                differences[asked].append(100 * (run["final"] - run["base"]))
        said += [
            f"{group}, {asked:g}x: {mean_and_interval(ones, 'points')}" for asked, ones in sorted(differences.items())
        ]
    return rows, said


def profiles() -> tuple[list[Row], list[str]]:
    """A row for each configuration, and how the learned ones differ from the others of their speed-up."""
    return _compared("profiles", "learned")


def defaults() -> tuple[list[Row], list[str]]:
    """A row for each way of searching, and how the default differs from the others."""
    return _compared("defaults", "default")


def _compared(file: str, ours: str) -> tuple[list[Row], list[str]]:
    rows = [("task and model", "asked for", "seed", "configuration", "predicted", "metric", "divergence")]
    said = []
    for group, ones in _read(file).items():
        differences, of_texts, undrawn = defaultdict(list), defaultdict(list), defaultdict(list)
        for seed, found in ones:
            for key, one in found.items():
                name, asked = key.split()
                splits = [split for split in ("tuning", "reported", "undrawn") if split in one]
                metrics = ", ".join(f"{100 * one[split]:.2f}" for split in splits)
                divergence = ", ".join(f"{np.mean(one[f'{split}_divergence']):.4f}" for split in splits)
                shown = f"{name}: {_shares(one['retention_config'])}"
                rows.append(
                    (group, f"{asked}x", str(seed), shown, f"{one['predicted_speedup']:.2f}x", metrics, divergence)
                )
                if name != ours:
                    best = found[f"{ours} {asked}"]
                    differences[asked, name].append(100 * (best["reported"] - one["reported"]))
                    pairs = zip(best["reported_divergence"], one["reported_divergence"], strict=True)
                    of_texts[asked, name].append([left - right for left, right in pairs])
                    if "undrawn" in one and "undrawn" in best:
                        undrawn[asked, name].append(100 * (best["undrawn"] - one["undrawn"]))
        for (asked, name), points in sorted(differences.items()):
            # The texts of all seeds are the same.
            mean, half = _mean_and_half(
                [statistics.mean(of_one) for of_one in zip(*of_texts[asked, name], strict=True)]
            )
            said.append(
                f"{group}, {asked}x, {ours} less {name}: {mean_and_interval(points, 'points')}; divergence "
                f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f} over the texts)"
            )
            if undrawn[asked, name]:
                said[-1] += f"; of rows that were not drawn {mean_and_interval(undrawn[asked, name], 'points')}"
    return rows, said


def targets() -> tuple[list[Row], list[str]]:
    """A row for each search, and the one that missed its speed-up most."""
    rows = [("task and model", "seed", "asked for", "steps", "predicted, tuning split", "predicted, reported split")]
    off = []
    for group, ones in _read("targets").items():
        for seed, found in ones:
            for key, one in found.items():
                steps = {"0.5": "half", "2": "double"}[key.split()[-1]]
                predicted = (f"{one[split]:.3f}x" for split in ("tuning", "reported"))
                rows.append((group, str(seed), f"{one['asked']:g}x", steps, *predicted))
                off.append(abs(one["tuning"] / one["asked"] - 1))
    return rows, [f"farthest from what was asked for, on the tuning split: {max(off):.1%}"] if off else []


def agreements() -> tuple[list[Row], list[str]]:
    """A row for each agreement that was asked for."""
    rows = [
        ("task and model", "seed", "asked for", "texts", "predicted", "stays, unseen texts", "metric", "configuration")
    ]
    for group, ones in _read("agreements").items():
        for seed, found in ones:
            for asked, one in found.items():
                rows.append(
                    (
                        group,
                        str(seed),
                        f"{100 * float(asked):g} %",
                        f"{one['searched']:,} and {one['tested']:,}",
                        f"{one['tuning']:.2f}x, {one['reported']:.2f}x",
                        f"{one['unchanged'] / one['texts']:.2%} of {one['texts']:,}",
                        f"{100 * one['base']:.2f}, {100 * one['calibrated']:.2f}",
                        _shares(one["retention_config"]),
                    )
                )
    return rows, []
