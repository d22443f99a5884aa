# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What `powerbert inspect` and `powerbert report` do: read a model or a run, look, and write what was asked for."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .arguments import DataArguments, InspectArguments
from .benchmark import benchmark, hardware
from .changes import find_changes
from .charts import draw_configuration
from .checkpoint import load_classifier, load_tokenizer
from .data import TaskData, load_data
from .drawing import check_picture, draw_explanation, save_picture
from .files import whole_file, write_json
from .inspection import Explanation, explain
from .pages import explanation_page, run_page, survival_page, sweep_page
from .recipe import timed_features
from .report import Run, read_json, read_run
from .run_folder import name_of
from .survival import survival
from .terminal import format_explanation, format_survival
from .texts import check_asked, read_texts

# Columns of text where no terminal says how wide it is.
_COLUMNS = 100


def inspect_model(options: InspectArguments, colour: bool = False) -> str | None:
    """Look at what a model keeps of a text, a pair or a file of texts.

    Args:
        options: what to look at, and the output.
        colour: of text for a terminal.

    Returns:
        Text to print, or `None` where the output file holds it.

    Raises:
        ValueError: for options, a model or texts that cannot be used, before anything is written.
        ImportError: for a png where nothing can make one.
    """
    if (options.text is None) == (options.texts is None):
        raise ValueError("`powerbert inspect MODEL` takes a text or `--texts FILE`, got neither or both.")
    if options.text is None and options.second_text is not None:
        raise ValueError("`--second-text` goes with a text; pairs of a file are two `--text-columns`.")
    ending = "" if options.output is None else Path(options.output).suffix.lower()
    if options.output is not None and ending not in (".html", ".json"):
        check_picture(options.output)
    found = _look(options)
    one = isinstance(found, Explanation)
    if options.output is None:
        width = options.width or shutil.get_terminal_size((_COLUMNS, 24)).columns
        return format_explanation(found, width, colour) if one else format_survival(found)
    path, name = Path(options.output), name_of(options.model)
    if ending == ".json":
        write_json(path, found.to_dict())
    elif ending == ".html":
        _write(path, explanation_page([found], name) if one else survival_page(found, name))
    else:
        save_picture(draw_explanation(found) if one else draw_configuration(found.all.left, found.shares), str(path))
    return None


def _look(options: InspectArguments) -> Any:
    """An `Explanation` of a text, or a `Survival` over a file."""
    check_asked([], inputs=options.inputs, batch_size=options.batch_size)
    model = load_classifier(options.model, needs_head=True)
    tokenizer = load_tokenizer(options.model, model.config)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    if options.texts is None:
        pair = [text for text in (options.text, options.second_text) if text is not None]
        return explain(model, tokenizer, [pair], options.batch_size, options.max_length)[0]
    rows, columns = read_texts(options.texts, options.text_columns, options.inputs, options.seed)
    texts = zip(*(rows[name] for name in columns), strict=True)
    return survival(model, tokenizer, texts, options.batch_size, options.max_length)


def report_run(folder: Path, output: Path, examples: bool, measure: bool, say: Callable[[str], None]) -> None:
    """Write the page of a run or of a sweep.

    Args:
        folder: of either.
        output: the page.
        examples: show texts whose prediction changed.
        measure: time a run's model again, against stock padded and sorted.
        say: told what is going on, a line at a time.

    Raises:
        ValueError: for a folder that holds neither; data that cannot be read any more are said on the page.
    """
    if (folder / "sweep.json").is_file():
        _write(output, sweep_page(read_json(folder / "sweep.json")))
        return
    run = read_run(folder)
    changes, measured, measured_on, missing = None, None, None, ""
    try:
        data = _data_of(run)
    except ValueError as error:
        missing = f"What changed cannot be shown: {error}"
        say(missing)
    else:
        say(f"comparing the models on {len(data.eval):,} rows")
        before = load_classifier(run.base, retention_config=None, retention_mode=None)
        after = load_classifier(run.folder / "final")
        if torch.accelerator.is_available():
            before, after = (model.to(torch.accelerator.current_accelerator()) for model in (before, after))
        batch_size = run.report["timing"]["batch_size"]
        changes = find_changes(before, after, data, 12 if examples else 0, batch_size)
        if measure:
            say("measuring speed")
            ways, padded_to = ("a", "b", "c", "ours"), after.config.retention_length
            measured = benchmark(after, timed_features(data), batch_size, ways, padded_to=padded_to).rows
            measured_on = hardware(after.device)
    _write(output, run_page(run, changes, missing, measured, measured_on))


def _data_of(run: Run) -> TaskData:
    """The data of a run, read again.

    Raises:
        ValueError: where they cannot be read, or are others now, or where the models are gone.
    """
    for model in (run.base, run.folder / "final"):
        if not model.is_dir():
            raise ValueError(f"The models must be where the run has left them, got none in {model}; restore them.")
    options = DataArguments.settled(run.arguments["data"])
    data = load_data(options, str(run.base), run.report["training"]["seed"], measure_only=True)
    rows = run.report["data"]["eval_rows"]
    if len(data.eval) != rows:
        raise ValueError(f"The reported split must have the {rows} rows of the run, got {len(data.eval)}; restore it.")
    if run.report["data"].get("eval_digest") not in (None, data.eval_digest):
        raise ValueError("The reported split must hold the texts and labels of the run, got others; restore it.")
    return data


def _write(path: Path, page: str) -> None:
    with whole_file(path) as file:
        file.write(page)
