"""The recipe in one process and in two, at the same batch: masses, configuration, metric.

    python results/measure_processes.py --model ../shared/weights/minilm-l6 --dataset ../shared/data/mrpc

Each is `powerbert train` as it is typed, for two processes under `accelerate launch`; a run that is there is read, and
one that was interrupted goes on. Writes `processes.json`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from powerbert_hf.benchmark import hardware

COMMAND = ["-m", "powerbert_hf.cli", "train"]
LAUNCHERS = {
    1: [sys.executable, *COMMAND],
    2: [
        *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"),
        *COMMAND,
    ],
}


def run(processes: int, seed: int, options: argparse.Namespace, more: Sequence[str]) -> dict[str, Any]:
    """Train if need be, and say what came of it."""
    folder = options.work / f"{processes}-of-seed-{seed}"
    training = {
        "model": options.model,
        "dataset": options.dataset,
        "per-device-train-batch-size": options.batch // processes,
        "seed": seed,
        "output-dir": folder,
    }
    if not (folder / "report.json").is_file():
        typed = [part for name, value in training.items() for part in (f"--{name}", str(value))]
        subprocess.run([*LAUNCHERS[processes], *typed, *more], check=True, env={"OMP_NUM_THREADS": "1", **os.environ})
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    kept = ("metric", "base", "final", "masses", "retention_config", "predicted_speedup")
    return {"processes": processes, "seed": seed, **{name: report[name] for name in kept}}


def compared(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How far two processes are from one, seed by seed: the sum of the masses, and the metric after re-training."""
    of = {(one["processes"], one["seed"]): one for one in runs}
    seeds = sorted({seed for _, seed in of if {(1, seed), (2, seed)} <= set(of)})
    mass = [sum(of[2, seed]["masses"]) / sum(of[1, seed]["masses"]) - 1 for seed in seeds]
    final = [of[2, seed]["final"] - of[1, seed]["final"] for seed in seeds]
    return {"seeds": seeds, "difference_of_mass": mass, "difference_of_metric": final}


def main(options: argparse.Namespace, more: Sequence[str]) -> None:
    """All runs, one after the other; what is known is written after each."""
    runs = []
    for seed in options.seeds:
        for processes in LAUNCHERS:
            runs.append(run(processes, seed, options, more))
            found = {"options": list(more), "batch": options.batch, "hardware": hardware(), "runs": runs}
            options.output.write_text(json.dumps({**found, **compared(runs)}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--batch", type=int, default=16, help="rows in a step, of all processes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--work", type=Path, default=Path("runs/processes"))
    parser.add_argument("--output", type=Path, default=Path("results/processes.json"))
    main(*parser.parse_known_args())
