# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Pages of their own, in HTML that needs no network: words that survive, a run, a sweep. Templates hold the words."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .card import trained_for
from .changes import Changes
from .charts import Curve, draw_configuration, draw_curves, draw_sweep
from .drawing import Canvas, attention_share, style_rules
from .inspection import Explanation, Word, legible
from .report import Run, beaten_by
from .retention_file import spell_entries
from .run_folder import name_of
from .survival import Survival
from .terminal import format_answer, what_is_left

# Points of a curve: more than these nobody sees.
_POINTS = 300


def explanation_page(explanations: Sequence[Explanation], model: str) -> str:
    """What a model keeps of texts, word by word.

    Args:
        explanations: from `inspection.explain`.
        model: its name.
    """
    return _page("explanations.html", f"Which words survive: {model}", model=model, explanations=explanations)


def survival_page(found: Survival, model: str) -> str:
    """What a model keeps of a data set.

    Args:
        found: from `survival.survival`.
        model: its name.
    """
    picture = draw_configuration(found.all.left, found.shares)
    title = f"Which words survive: {model}"
    return _page(
        "survival.html", title, model=model, found=found, configuration=_svg(picture), marked=bool(found.shares)
    )


def run_page(
    run: Run,
    changes: Changes | None = None,
    missing: str = "",
    measured: dict[str, Any] | None = None,
    measured_on: dict[str, Any] | None = None,
) -> str:
    """A training run.

    Args:
        run: from `report.read_run`.
        changes: from `changes.find_changes`; `None` leaves them out.
        missing: why.
        measured: rows of a `Measurement`, to be shown in place of what the run measured.
        measured_on: the `benchmark.hardware` of these.
    """
    report = run.report
    fraction = report["retention_unit"] == "fraction"
    kept = report["word_vectors_kept"]
    names = {"fine_tuned": "fine-tuned, all word-vectors", "searched": "searched, not re-trained", "final": "final"}
    data, training = report["data"], report["training"]
    timing = {"dtype": "float32", **report["timing"]}
    return _page(
        "run.html",
        f"{_data_name(data)}, {name_of(report['model'])}",
        report=report,
        kept=sum(kept) / len(kept),
        steps=[(names[name], step) for name, step in run.steps.items()],
        curves=[(caption, _svg(picture)) for caption, picture in run_curves(run)],
        configuration=_configuration(report),
        marked=fraction,
        entries=f"{'fractions' if fraction else 'words'}: {spell_entries(report['retention_config'])}",
        speed=_speed(report, measured),
        speed_caption=f"A pass over {timing['inputs']:,} texts in batches of {timing['batch_size']}, "
        f"{timing['dtype']}, sorted by length unless it says otherwise; the stock model has SDPA attention. Speed-ups "
        "are over stock sorted by length." + (f" Measured again, on {_machine(measured_on)}." if measured_on else ""),
        changes=changes,
        missing=missing,
        command=shlex.join(run.command),
        facts={
            "training rows": "a stream" if data["train_rows"] is None else f"{data['train_rows']:,}",
            "each step": trained_for(training),
            "seed": training["seed"],
            "asked for": _goal(report),
            **_hardware(report["hardware"]),
        }.items(),
    )


def run_curves(run: Run) -> list[tuple[str, Canvas]]:
    """Pictures of a run's trainings, each with its caption; of what was not logged there is none."""
    pictures = []

    def logged(step: str, name: str, label: str) -> list[Curve]:
        rows = [row for row in run.steps[step]["history"] if name in row]
        rows = rows[:: -(-len(rows) // _POINTS) or 1]
        return [Curve(label, [row["step"] for row in rows], [row[name] for row in rows])] if rows else []

    labels = {"fine_tuned": "fine-tuning", "searched": "search", "final": "re-training"}
    losses = []
    for step in run.steps:
        # In a search `loss` has the penalty too, where there is one.
        losses += logged(step, "task_loss", labels[step]) or logged(step, "loss", labels[step])
    if losses:
        pictures.append(("Task loss of each step", draw_curves(losses, "Task loss", "step", "loss")))
    masses = []
    for encoder in range(1, len(run.report["masses"]) + 1):
        masses += logged("searched", f"retention_mass_{encoder}", f"encoder {encoder}")
    if masses:
        pictures.append(
            ("What each encoder keeps in the search", draw_curves(masses, "Masses in the search", "step", "mass"))
        )
    for name, label, caption in (
        ("retention_penalty", "penalty", "Penalty: the sum over encoders j of j times the mass"),
        (
            "predicted_speedup",
            "speed-up",
            "Predicted speed-up of the configuration that the masses stand for",
        ),
    ):
        if curves := logged("searched", name, label):
            pictures.append((caption, draw_curves(curves, caption, "step", label)))
    return pictures


def sweep_page(found: dict[str, Any]) -> str:
    """Several speed-ups from one fine-tuned model.

    Args:
        found: the content of `sweep.json`.
    """
    return _page(
        "sweep.html",
        f"Speed-ups of {name_of(found['model'])}",
        model=name_of(found["model"]),
        found=found,
        picture=_svg(draw_sweep(found)),
        pareto=beaten_by(found),
        configurations=[(run["training"]["speedup"], _configuration(run)) for run in found["runs"]],
        facts=_hardware(found["hardware"]).items(),
    )


def _configuration(report: dict[str, Any]) -> Markup:
    """The picture of what a run keeps, with its fractions as marks."""
    fractions = report["retention_config"] if report["retention_unit"] == "fraction" else None
    return _svg(draw_configuration(report["word_vectors_kept"], fractions, report["masses"]))


def _page(template: str, title: str, **content: Any) -> str:
    """Fill a template; whatever a text says, it is only text there."""
    environment = Environment(
        loader=PackageLoader("powerbert_hf"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        format_answer=format_answer,
        legible=legible,
        what_is_left=lambda word, kept: what_is_left(word, set(kept)),
        shares=attention_share,
        tenth=_tenth,
        received=_received,
        dropped_words=dropped_words,
        percent=lambda share: f"{100 * share:.2f}",
        rules=Markup(style_rules()),
    )
    return environment.get_template(template).render(title=legible(title), **content)


def _tenth(word: Word, shares: dict[int, float]) -> int:
    return round(10 * max(shares.get(position, 0.0) for position in word.positions))


def _received(explanation: Explanation, position: int) -> str:
    """The significance of a word-vector in each encoder that it enters."""
    return " ".join(
        f"{values[entered.index(position)]:.2f}"
        for entered, values in zip(explanation.entered, explanation.significance, strict=True)
        if position in entered
    )


def dropped_words(explanation: Explanation) -> list[tuple[int, list[str]]]:
    """For each encoder the words that enter it and do not leave it, in their order; [CLS] and its like left out.

    Args:
        explanation: from `inspection.explain`.
    """
    words = [(explanation.depth(word), word.text) for word in explanation.words if word.part in ("first", "second")]
    # After the last encoder only [CLS] is left of any text.
    return [
        (encoder + 1, [text for depth, text in words if depth == encoder])
        for encoder in range(len(explanation.kept) - 1)
    ]


def _machine(hardware: dict[str, Any]) -> str:
    # Older runs have not said it.
    accelerator = hardware.get("accelerator", "none")
    return f"{hardware['processor']}, {hardware['threads']} threads, accelerator {accelerator}"


def _hardware(hardware: dict[str, Any]) -> dict[str, str]:
    return {
        "processor": _machine(hardware),
        "versions": f"torch {hardware['torch']}, transformers {hardware['transformers']}",
    }


def _speed(report: dict[str, Any], measured: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Rows of the table, ours last."""
    if measured is not None:
        return [
            {
                "name": row.description,
                "seconds": row.median,
                "texts": row.texts_per_second,
                "speedup": row.speedup,
            }
            for row in measured.values()
        ]
    timing = report["timing"]
    rows = [("stock", timing["seconds_stock"], 1.0), ("final", timing["seconds_ours"], report["measured_speedup"])]
    return [
        {"name": name, "seconds": seconds, "texts": timing["inputs"] / seconds, "speedup": speedup}
        for name, seconds, speedup in rows
    ]


def _goal(report: dict[str, Any]) -> str:
    training = report["training"]
    if "max_drop" in report:
        return f"the fastest that loses at most {report['max_drop']:g} points"
    # An older run's has none.
    if training.get("speedup") is not None:
        return f"a predicted speed-up of {training['speedup']:g}"
    return f"lambda {training['retention_lambda']}"


def _data_name(data: dict[str, Any]) -> str:
    named = (data[name] for name in ("task", "subset", "dataset", "train_file"))
    return Path(next((name for name in named if name), "data")).stem


def _svg(picture: Canvas) -> Markup:
    return Markup(picture.inline())
