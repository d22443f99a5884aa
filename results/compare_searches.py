"""What a search is worth: against other configurations of the same speed, and against the speed asked for.

    python results/compare_searches.py profiles runs/sweeps/mrpc-0
    python results/compare_searches.py defaults runs/sweeps/mrpc-0
    python results/compare_searches.py targets runs/sweeps/mrpc-0
    python results/compare_searches.py agreements runs/sweeps/mrpc-0

All begin with what a finished `powerbert sweep` left, and take its data, seed and arguments. `profiles` re-trains
from the fine-tuned weights alike, for every speed-up of the sweep, the learned configuration, a geometric one, the
learned one before it was refined, and the one on the path that `powerbert calibrate` searches. `defaults` searches and
re-trains with one default after the other as the paper has it; *one-rate* only re-trains what the sweep has searched,
*untaught* learns the fine-tuned model's answers and not its rankings.
`targets` searches for 1.5x, 2x, 3x and 5x at half and at double the epochs of the sweep, and re-trains nothing.
`agreements` calibrates the fine-tuned model on training rows that it was not trained on, and counts on the reported
split which predictions have stayed; of the sweep it needs that model alone. What is in the output already is not done
again.

Where a sweep drew some of the training rows, `profiles` also counts on `UNDRAWN` of the others at most: the reported
split of sst2 has too few rows to tell configurations of one speed apart.
"""

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import kl_div
from transformers import PreTrainedConfig, PreTrainedModel

from powerbert_hf.agreement import log_probabilities, logits
from powerbert_hf.arguments import CalibrateArguments, DataArguments, SweepArguments
from powerbert_hf.benchmark import make_batches
from powerbert_hf.budget import Budget
from powerbert_hf.calibration import calibrate
from powerbert_hf.checkpoint import load_classifier
from powerbert_hf.cost import predicted_speedup
from powerbert_hf.data import TaskData, load_data, load_splits
from powerbert_hf.files import write_json
from powerbert_hf.parsing import parse, settle_training
from powerbert_hf.run_folder import speedup_folder
from powerbert_hf.sensitivity import PathPoint, comparison, search_path
from powerbert_hf.steps import evaluate_model, retrain, search_configuration
from powerbert_hf.tasks import TASKS
from powerbert_hf.texts import tokenize_texts
from powerbert_hf.trainer import PoWERTrainingArguments

TARGETS = (1.5, 2.0, 3.0, 5.0)
AGREEMENTS = (0.99, 0.9875, 0.985)
WAYS = ("default", "untaught", "one-rate", "words", "multiply", "undistilled", "penalty")
# Of the training rows, to search the path of `calibrate` on.
TEXTS = 512
# Most training rows to count on that were not drawn.
UNDRAWN = 8000


def geometric(budget: Budget, encoders: int) -> list[float]:
    """Encoder j keeps the j-th power of what the first one keeps."""
    return budget.reach(budget.hold(torch.full((encoders,), float(budget.length)).double(), 1.0).tolist())


def unrefined(budget: Budget, step: Path, encoders: int) -> list[float]:
    """What the search had learned before word-vectors were moved once more, at its last log.

    Raises:
        ValueError: where masses were not logged.
    """
    history = json.loads((step / "step.json").read_text(encoding="utf-8"))["history"]
    last = next((entry for entry in reversed(history) if "retention_mass_1" in entry), None)
    if last is None:
        raise ValueError(f"{step} must have logged its masses; sweep again, with a lower `--logging-steps`.")
    return budget.reach([last[f"retention_mass_{encoder}"] for encoder in range(1, encoders + 1)])


def features_of(rows: Dataset, data: TaskData) -> list[dict[str, Any]]:
    """Rows as a tokenizer returns them, without their labels."""
    return rows.select_columns(
        [name for name in data.tokenizer.model_input_names if name in rows.column_names]
    ).to_list()


def typed(folder: Path) -> tuple[SweepArguments, DataArguments, PoWERTrainingArguments]:
    """What the sweep was asked for."""
    words = json.loads((folder / "command.json").read_text(encoding="utf-8"))["typed"][2:]
    sweep_args, data_args, args = parse("sweep", words, [SweepArguments, DataArguments, PoWERTrainingArguments])
    settle_training(sweep_args, args)
    args.save_strategy, args.output_dir = "no", str(folder / "compared")
    return sweep_args, data_args, args


def undrawn(folder: Path, data: TaskData) -> Dataset | None:
    """Training rows, with their labels, that the sweep drew neither to train on nor to tune on; `None` without any."""
    sweep_args, data_args, args = typed(folder)
    if data_args.max_train_samples is None:
        return None
    every_row = replace(data_args, max_train_samples=None)
    rows = load_data(every_row, sweep_args.model, args.seed, fine_tuned=sweep_args.fine_tuned).train
    drawn = {tuple(ids) for split in (data.train, data.tune) for ids in split["input_ids"]}
    others = [row for row, ids in enumerate(rows["input_ids"]) if tuple(ids) not in drawn]
    return rows.select(np.random.default_rng(0).permutation(others)[:UNDRAWN]) if others else None


def path_of(model: PreTrainedModel, data: TaskData) -> list[PathPoint]:
    """The configurations that `calibrate` would test, searched on training rows without their labels."""
    rows = np.random.default_rng(0).permutation(len(data.train))[:TEXTS]
    return search_path(model, features_of(data.train.select(rows), data))


def calibrated(budget: Budget, path: Callable[[], list[PathPoint]]) -> list[float]:
    """The one of a path that is as fast as is asked for."""
    nearest = min(path(), key=lambda point: abs(point.predicted_speedup - budget.speedup))
    return budget.reach([budget.length * share for share in nearest.retention_config])


def divergences(model: PreTrainedModel, base: PreTrainedModel, rows: Dataset, data: TaskData) -> list[float]:
    """Kullback-Leibler divergence of a model's answers from the fine-tuned model's, text by text.

    Of texts as few as those of a tuning split it tells more than their labels do.
    """
    batches = make_batches(features_of(rows, data), 32, model.device)
    models = model.eval(), base.to(model.device).eval()
    found, wanted = (log_probabilities(logits(one, batches), data.problem_type) for one in models)
    found = kl_div(found, wanted, log_target=True, reduction="none").flatten(1).sum(dim=1)
    return [round(text, 6) for text in found.tolist()]


def training(args: PoWERTrainingArguments, name: str, **fields: Any) -> PoWERTrainingArguments:
    """Arguments of one of many trainings, in a folder of its own: else it would go on from another's checkpoint."""
    own = copy.copy(args)
    for field, value in {"output_dir": str(Path(args.output_dir, name)), **fields}.items():
        setattr(own, field, value)
    return own


def outcome(
    model: PreTrainedModel, base: PreTrainedModel, data: TaskData, tuning: dict[str, Any], reported: dict[str, Any]
) -> dict[str, Any]:
    """What is kept of a model that was re-trained."""
    return {
        "retention_config": model.config.retention_config,
        "predicted_speedup": predicted_speedup(model.config, torch.tensor(data.eval["length"])),
        "tuning": tuning[data.metric],
        "reported": reported[data.metric],
        "tuning_divergence": divergences(model, base, data.tune, data),
        "reported_divergence": divergences(model, base, data.eval, data),
    }


def compare_profiles(folder: Path, data: TaskData, args: PoWERTrainingArguments, done: dict, save: Callable) -> None:
    """Re-train configurations of the same predicted speed-up from the same weights."""
    path = folder / "fine_tuned"
    base = load_classifier(path, retention_config=None, retention_mode=None)
    runs = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["runs"]
    # Minutes, and the same for every speed-up.
    searched_path, rest = cache(partial(path_of, base, data)), undrawn(folder, data)
    for name, run in product(("learned", "geometric", "calibrated", "unrefined"), runs):
        speedup = run["training"]["speedup"]
        found = done.get(f"{name} {speedup:g}")
        if found is not None and (rest is None or "undrawn" in found):
            continue
        fields = {field: run[field] for field in ("retention_unit", "retention_length")}
        model = load_classifier(path, retention_config=None, retention_mode=None, **fields)
        budget = Budget(model.config, speedup, data.tune["length"])
        encoders, step_2 = model.config.num_encoders, folder / speedup_folder(speedup) / "searched"
        profile = {
            # Not the sweep's final model, which goes on from the weights of the search, trained for longer.
            "learned": partial(run.get, "retention_config"),
            "geometric": partial(geometric, budget, encoders),
            "unrefined": partial(unrefined, budget, step_2, encoders),
            "calibrated": partial(calibrated, budget, searched_path),
        }[name]
        model.set_retention(profile(), unit=run["retention_unit"], length=run["retention_length"])
        # At the whole rate: no search has fitted these weights to any configuration.
        own = training(args, f"{name} {speedup:g}", retraining_learning_rate=None)
        step = retrain(model, data, own, teacher=path)
        done[f"{name} {speedup:g}"] = outcome(step.model, base, data, step.tuning, step.metrics)
        if rest is not None:
            done[f"{name} {speedup:g}"] |= {
                "undrawn_rows": len(rest),
                "undrawn": evaluate_model(step.model, data, own, rest)[data.metric],
                "undrawn_divergence": float(np.mean(divergences(step.model, base, rest, data))),
            }
        save()


def compare_defaults(folder: Path, data: TaskData, args: PoWERTrainingArguments, done: dict, save: Callable) -> None:
    """Search and re-train with one default after the other as the paper has it."""
    path = folder / "fine_tuned"
    base = load_classifier(path, retention_config=None, retention_mode=None)
    runs = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["runs"]
    task = TASKS.get(runs[0]["data"]["task"])
    published = task.search if task else {}
    for name, run in product(WAYS, runs):
        speedup = run["training"]["speedup"]
        # There is no penalty without a published lambda.
        if f"{name} {speedup:g}" in done or (name == "penalty" and not published):
            continue
        if name == "default":
            final = load_classifier(folder / speedup_folder(speedup) / "final")
            tuning, reported = ({data.metric: one["final"]} for one in (run["tuning"], run))
        elif name == "one-rate":
            own = training(args, f"{name} {speedup:g}", retraining_learning_rate=None)
            step = retrain(folder / speedup_folder(speedup) / "searched", data, own, teacher=path)
            final, tuning, reported = step.model, step.tuning, step.metrics
        else:
            unit = "words" if name == "words" else run["retention_unit"]
            fields = {
                "undistilled": {"distillation": 0.0},
                "untaught": {"ranking_distillation": False},
                "penalty": {"speedup": None, **published},
            }.get(name, {})
            own = training(args, f"{name} {speedup:g} searched", **{"speedup": speedup, **fields})
            soft_extract = "multiply" if name == "multiply" else None
            searched = search_configuration(path, data, own, unit=unit, soft_extract=soft_extract)
            if name == "penalty":
                # What is learned with a fixed lambda has any speed-up: the masses are scaled to this one.
                budget = Budget(searched.model.config, speedup, data.tune["length"])
                searched.model.set_retention(budget.reach(searched.masses))
            own = training(args, f"{name} {speedup:g} final", **{"speedup": speedup, **fields})
            step = retrain(searched.model, data, own, teacher=path)
            final, tuning, reported = step.model, step.tuning, step.metrics
        done[f"{name} {speedup:g}"] = outcome(final, base, data, tuning, reported)
        save()


def check_targets(folder: Path, data: TaskData, args: PoWERTrainingArguments, done: dict, save: Callable) -> None:
    """Search for several speed-ups with fewer and more steps."""
    for speedup in TARGETS:
        for times in (0.5, 2.0):
            key = f"{speedup:g} at {times:g}"
            if key in done:
                continue
            steps = int(times * args.max_steps) if args.max_steps > 0 else args.max_steps
            own = training(args, key, speedup=speedup, num_train_epochs=times * args.num_train_epochs, max_steps=steps)
            found = search_configuration(folder / "fine_tuned", data, own).model.config
            done[key] = {
                "asked": speedup,
                **({"max_steps": steps} if steps > 0 else {"epochs": own.num_train_epochs}),
                "tuning": predicted_speedup(found, torch.tensor(data.tune["length"])),
                "reported": predicted_speedup(found, torch.tensor(data.eval["length"])),
                "retention_config": found.retention_config,
            }
            save()


def untrained(data: TaskData, config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Rows of the training split that are not among those trained on, as many as `calibrate` takes."""
    most = CalibrateArguments.inputs
    rows, _ = load_splits(*(data.source[name] for name in ("dataset", "subset", "train_file", "eval_file")))
    trained_on = {tuple(ids) for ids in data.train["input_ids"]}
    rows = rows.shuffle(seed=0).select(range(min(len(rows), len(trained_on) + 2 * most)))
    inputs = tokenize_texts(rows, data.source["text_columns"], data.tokenizer, config, data.source["max_length"])
    return [row for row in inputs if tuple(row["input_ids"]) not in trained_on][:most]


def check_agreements(folder: Path, data: TaskData, args: PoWERTrainingArguments, done: dict, save: Callable) -> None:
    """Calibrate on rows that the model was not trained on, and look at the reported split."""
    model = load_classifier(folder / "fine_tuned", retention_config=None, retention_mode=None)
    unseen, texts = features_of(data.eval, data), untrained(data, model.config)
    base = evaluate_model(model, data, args)[data.metric]
    for agreement in AGREEMENTS:
        if f"{agreement:g}" in done:
            continue
        found = calibrate(model, texts, agreement, say=print)
        config = found.chosen.retention_config
        calibrated = evaluate_model(model, data, args)[data.metric]
        predicted = predicted_speedup(model.config, torch.tensor(data.eval["length"]))
        same, _ = comparison(model, unseen)[0](config)
        model.set_retention(None)
        done[f"{agreement:g}"] = {
            "searched": found.searched,
            "tested": found.tested,
            "agreement": found.chosen.agreement,
            "retention_config": config,
            "tuning": found.chosen.predicted_speedup,
            "reported": predicted,
            "texts": len(unseen),
            "unchanged": int(same.sum()),
            "metric": data.metric,
            "base": base,
            "calibrated": calibrated,
        }
        save()


def main(what: str, folder: Path) -> None:
    """Do what is not done yet."""
    sweep_args, data_args, args = typed(folder)
    data = load_data(data_args, sweep_args.model, args.seed, fine_tuned=sweep_args.fine_tuned)
    output = folder / f"{what}.json"
    done: dict[str, Any] = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    WHAT[what](folder, data, args, done, lambda: write_json(output, done))


WHAT = {
    "profiles": compare_profiles,
    "defaults": compare_defaults,
    "targets": check_targets,
    "agreements": check_agreements,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(WHAT))
    parser.add_argument("sweep", type=Path, help="folder of a finished `powerbert sweep`")
    options = parser.parse_args()
    main(options.what, options.sweep)
