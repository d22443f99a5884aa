"""What a search is worth: against other configurations of the same speed, and against the speed asked for.

    python results/compare_searches.py profiles runs/sweeps/mrpc-0
    python results/compare_searches.py targets runs/sweeps/mrpc-0

Both begin with what a finished `powerbert sweep` left, and take its data, seed and arguments. `profiles` re-trains
from the fine-tuned weights, for every speed-up of the sweep, the learned configuration, a geometric one, and the one
on the path that `powerbert calibrate` searches. `targets` searches for 1.5x, 2x, 3x and 5x at half and at double the
epochs of the sweep, and re-trains nothing. What is in the output already is not done again.
"""

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from powerbert_hf.arguments import DataArguments, SweepArguments, parse, settle_training
from powerbert_hf.budget import Budget
from powerbert_hf.checkpoint import load_classifier
from powerbert_hf.cost import predicted_speedup
from powerbert_hf.data import TaskData, load_data
from powerbert_hf.files import write_json
from powerbert_hf.sensitivity import search_path
from powerbert_hf.steps import retrain, search_configuration
from powerbert_hf.trainer import PoWERTrainingArguments

TARGETS = (1.5, 2.0, 3.0, 5.0)
# Of the tuning split, to search the path of `calibrate` on.
TEXTS = 512


def geometric(budget: Budget, encoders: int) -> list[float]:
    """Encoder j keeps the j-th power of what the first one keeps."""
    return budget.reach(budget.hold(torch.full((encoders,), float(budget.length)).double(), 1.0).tolist())


def calibrated(budget: Budget, model: Any, data: TaskData) -> list[float]:
    """The configuration of the path that `calibrate` searches, on texts of the tuning split, without their labels."""
    columns = [name for name in data.tokenizer.model_input_names if name in data.tune.column_names]
    features = data.tune.select_columns(columns).to_list()[:TEXTS]
    path = search_path(model, features)
    nearest = min(path, key=lambda point: abs(point.predicted_speedup - budget.speedup))
    return budget.reach([budget.length * share for share in nearest.retention_config])


def compare_profiles(folder: Path, data: TaskData, args: PoWERTrainingArguments, done: dict, save: Callable) -> None:
    """Re-train configurations of the same predicted speed-up from the same weights."""
    base = folder / "fine_tuned"
    for run in json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["runs"]:
        speedup, unit, length = run["training"]["speedup"], run["retention_unit"], run["retention_length"]
        model = load_classifier(base, retention_config=None, retention_mode=None).eval()
        model.config.retention_unit, model.config.retention_length = unit, length
        budget = Budget(model.config, speedup, data.tune["length"])
        profiles: dict[str, Callable[[], list]] = {
            "learned": lambda run=run: run["retention_config"],
            "geometric": lambda budget=budget, model=model: geometric(budget, model.config.num_encoders),
            "calibrated": lambda budget=budget, model=model: calibrated(budget, model, data),
        }
        for name, profile in profiles.items():
            if f"{name} {speedup:g}" in done:
                continue
            config = profile()
            start = load_classifier(base, retention_config=config, retention_unit=unit, retention_length=length)
            trained = retrain(start, data, args, teacher=base)
            done[f"{name} {speedup:g}"] = {
                "retention_config": config,
                "tuning": trained.tuning[data.metric],
                "reported": trained.metrics[data.metric],
                "predicted_speedup": predicted_speedup(trained.model.config, torch.tensor(data.eval["length"])),
            }
            save()


def check_targets(folder: Path, data: TaskData, args: PoWERTrainingArguments, done: dict, save: Callable) -> None:
    """Search for several speed-ups with fewer and more steps."""
    for speedup in TARGETS:
        for times in (0.5, 2.0):
            if f"{speedup:g} at {times:g}" in done:
                continue
            own = copy.copy(args)
            own.speedup, own.num_train_epochs = speedup, times * args.num_train_epochs
            found = search_configuration(folder / "fine_tuned", data, own).model.config
            done[f"{speedup:g} at {times:g}"] = {
                "asked": speedup,
                "epochs": own.num_train_epochs,
                "tuning": predicted_speedup(found, torch.tensor(data.tune["length"])),
                "reported": predicted_speedup(found, torch.tensor(data.eval["length"])),
                "retention_config": found.retention_config,
            }
            save()


def main(what: str, folder: Path) -> None:
    """Do what is not done yet."""
    typed = json.loads((folder / "command.json").read_text(encoding="utf-8"))["typed"]
    sweep_args, data_args, args = parse("sweep", typed[2:], [SweepArguments, DataArguments, PoWERTrainingArguments])
    settle_training(sweep_args, args)
    args.save_strategy, args.output_dir = "no", str(folder / "compared")
    data = load_data(data_args, sweep_args.model, args.seed, fine_tuned=sweep_args.fine_tuned)
    output = folder / f"{what}.json"
    done: dict[str, Any] = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    compare = {"profiles": compare_profiles, "targets": check_targets}[what]
    compare(folder, data, args, done, lambda: write_json(output, done))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["profiles", "targets"])
    parser.add_argument("sweep", type=Path, help="folder of a finished `powerbert sweep`")
    options = parser.parse_args()
    main(options.what, options.sweep)
