# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The options of the command `powerbert`: a dataclass for each of its subcommands, and for what several share."""

import csv
from dataclasses import dataclass, field
from typing import Any, Self


def split_names(typed: str | list[str] | None) -> list[str] | None:
    """Names of columns, which may be parted by commas too; quotes keep a comma in a name, as in a csv file.

    Example:
        >>> split_names(["title,body", "topic"]), split_names("topic"), split_names('"Title, short"')
        (['title', 'body', 'topic'], ['topic'], ['Title, short'])
    """
    if isinstance(typed, str):
        typed = [typed]
    return [name for names in csv.reader(typed or []) for name in names] or None


class ColumnNames:
    """Options that may name columns with commas between them."""

    @classmethod
    def settled(cls, fields: dict[str, Any]) -> Self:
        """Options as a run has noted them: names are parted already, and one with a comma would be parted again."""
        options = cls()
        vars(options).update(fields)
        return options

    def __post_init__(self) -> None:
        for name in ("text_columns", "label_column", "keep_columns"):
            if hasattr(self, name):
                setattr(self, name, split_names(getattr(self, name)))


@dataclass
class DataArguments(ColumnNames):
    """Which data: a data set by name, or files."""

    dataset: str | None = field(default=None, metadata={"help": "Hub id, or a folder, of a data set."})
    subset: str | None = field(default=None, metadata={"help": "Configuration of the data set, such as mrpc of GLUE."})
    task: str | None = field(
        default=None,
        metadata={"help": "cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli or imdb; found by itself from names."},
    )
    train_file: str | None = field(default=None, metadata={"help": "csv, tsv, json, jsonl, parquet or arrow."})
    eval_file: str | None = field(default=None, metadata={"help": "The same; only reported, nothing is chosen by it."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "One column, or two for pairs."})
    label_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "Column of the labels: names or whole numbers are classes, floats a regression, lists of either "
            "(or of one 0 or 1 per class) several labels a text; so are several columns of 0 and 1, one per class."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Truncate inputs to this many word-pieces; of a trained model, say it again to measure it."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Draw this many training rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Draw this many rows to report on."})
    streaming: bool = field(
        default=False,
        metadata={"help": "Read training rows while they are trained on, for --max-steps steps; nothing is cached."},
    )
    metric: str | None = field(
        default=None,
        metadata={"help": "The metric that counts, where not the usual one: accuracy, f1, spearmanr, ..."},
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise; for millions of rows."})


@dataclass
class ModelArguments(ColumnNames):
    """Which model."""

    model: str = field(metadata={"help": "Hub id, or a folder, of a BERT or ALBERT checkpoint."})


@dataclass
class RecipeArguments(ModelArguments):
    """What to make faster, and how."""

    max_drop: float | None = field(
        default=None,
        metadata={
            "help": "In place of a speed-up: find the fastest that loses at most this many points, 100 times the "
            "metric, on the tuning split."
        },
    )
    paper: bool = field(
        default=False,
        metadata={
            "help": "Search as published: inputs padded to one length, counts in words, fixed lambda, Soft-extract "
            "that multiplies, nothing distilled."
        },
    )
    retention_unit: str | None = field(
        default=None,
        metadata={
            "help": "What a count means: a share of an input's length (default), or words.",
            "choices": ["fraction", "words"],
        },
    )
    fine_tuned: bool = field(
        default=False, metadata={"help": "The model is fine-tuned already: begin with the search."}
    )


@dataclass
class SweepArguments(ModelArguments):
    """What to make faster, and how much."""

    speedups: list[float] = field(
        default_factory=lambda: [1.5, 2.0, 3.0],
        metadata={
            "help": "Predicted, on the lengths of the tuning split. All that shall be in the table: those that are "
            "done already are not done again."
        },
    )
    retention_unit: str = field(
        default="fraction",
        metadata={
            "help": "What a count means: a share of an input's length, or words.",
            "choices": ["fraction", "words"],
        },
    )
    fine_tuned: bool = field(
        default=False, metadata={"help": "The model is fine-tuned already: begin with the searches."}
    )
    plot: str | None = field(default=None, metadata={"help": "png or svg file that takes a picture."})


@dataclass
class BenchmarkArguments(ModelArguments):
    """What to measure the speed of, on what, against what."""

    retention_config: list[float] | None = field(
        default=None, metadata={"help": "What each encoder keeps, such as 1 0.9 0.7; the model's own if left out."}
    )
    retention_unit: str | None = field(
        default=None, metadata={"help": "Of these: fraction (default) or words.", "choices": ["fraction", "words"]}
    )
    lengths: list[str] | None = field(
        default=None,
        metadata={"help": "Random inputs as long as those of sst2, mrpc, rte or imdb, or of 8, 16, ... word-pieces."},
    )
    texts: str | None = field(default=None, metadata={"help": "Or a file: txt with one a line, csv, jsonl, ..."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "Of the file: one column, or two."})
    max_length: int | None = field(default=None, metadata={"help": "Truncate to N word-pieces; baseline a pads to N."})
    inputs: int = field(default=512, metadata={"help": "How many texts."})
    batch_sizes: list[int] = field(default_factory=lambda: [32], metadata={"help": "Texts in a batch."})
    dtypes: list[str] = field(
        default_factory=lambda: ["float32"],
        metadata={"help": "Of weights and arithmetic.", "choices": ["float32", "bfloat16", "float16"]},
    )
    device: str = field(default="cpu", metadata={"help": "Where it runs.", "choices": ["cpu", "cuda"]})
    threads: int | None = field(default=None, metadata={"help": "Of the CPU; torch's own choice if left out."})
    baselines: list[str] = field(
        default_factory=lambda: ["a", "b", "c"],
        metadata={
            "help": "a: stock, padded to N, in the order of arrival; b: padded to a batch's longest; c: sorted by "
            "length, always run; d: c under torch.compile, with ours beside it, which takes minutes.",
            "choices": ["a", "b", "c", "d"],
        },
    )
    smaller_model: str | None = field(default=None, metadata={"help": "Baseline e: Hub id or folder, run like c."})
    repeats: int = field(default=5, metadata={"help": "Timed passes of each; the median counts."})
    per_encoder: bool = field(default=False, metadata={"help": "Also measure each encoder by itself."})
    peak_memory: bool = field(default=False, metadata={"help": "Also measure what a pass holds beyond the weights."})
    seed: int = field(default=0, metadata={"help": "Of lengths, word-pieces, and weights where there are none."})
    output: str | None = field(default=None, metadata={"help": "json file that takes all numbers."})
    plot: str | None = field(default=None, metadata={"help": "png or svg file that takes a picture."})
    overwrite: bool = field(default=False, metadata={"help": "Replace these files."})


@dataclass
class PredictArguments(ModelArguments):
    """What to ask a model, and where its answers go."""

    input: list[str] = field(
        kw_only=True,
        metadata={
            "help": "A file: txt (a text a line), csv, tsv, json, jsonl, parquet or arrow; or several, a folder of "
            "them, a pattern such as 'rows/*.csv'."
        },
    )
    output: str = field(
        kw_only=True,
        metadata={
            "help": "csv or jsonl: a row for each row of the input, in its order; or a folder, which gets a file for "
            "each file. There what is done is not done again."
        },
    )
    rejected: str | None = field(
        default=None,
        metadata={
            "help": "csv or jsonl that takes, with number and reason, the rows that are missing, empty, not text or, "
            "without --max-length, over-long; of a folder it is the folder `rejected` in it."
        },
    )
    text_columns: list[str] | None = field(
        default=None, metadata={"help": "One column, or two for pairs; a single column of texts is found by itself."}
    )
    keep_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of the input that the output repeats, such as an id."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Truncate inputs to this many word-pieces."})
    batch_size: int = field(default=32, metadata={"help": "Inputs that the model reads at once."})
    window: int = field(
        default=8192, metadata={"help": "Rows in memory: they are sorted by length before they make batches."}
    )
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an output that is there already."})


@dataclass
class CalibrateArguments(ModelArguments):
    """Which model to make faster without training, on which texts, and what must stay."""

    texts: str = field(kw_only=True, metadata={"help": "A file, without labels: txt with one a line, csv, jsonl, ..."})
    output_dir: str | None = field(
        default=None, metadata={"help": "A new folder for the model with its configuration; nothing if left out."}
    )
    text_columns: list[str] | None = field(default=None, metadata={"help": "Of the file: one column, or two."})
    agreement: float = field(
        default=0.99, metadata={"help": "Share of predictions that must stay, shown at 95 %% confidence."}
    )
    inputs: int = field(default=4096, metadata={"help": "How many texts, at most; more show more, and take longer."})
    max_length: int | None = field(default=None, metadata={"help": "Truncate inputs to this many word-pieces."})
    batch_size: int = field(default=32, metadata={"help": "Inputs that the model reads at once."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16."})
    seed: int = field(default=0, metadata={"help": "Of the draws of texts."})


@dataclass
class InspectArguments(ModelArguments):
    """Whose words to look at: those of one text or pair, or of a file of texts."""

    text: str | None = field(default=None, metadata={"help": "A text; may follow the model without a name."})
    second_text: str | None = field(default=None, metadata={"help": "Of a pair; may follow the text without a name."})
    texts: str | None = field(default=None, metadata={"help": "Or a file: txt with one a line, csv, jsonl, ..."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "Of the file: one column, or two."})
    inputs: int = field(default=2048, metadata={"help": "How many texts of the file, at most, drawn by the seed."})
    max_length: int | None = field(default=None, metadata={"help": "Truncate inputs to this many word-pieces."})
    batch_size: int = field(default=32, metadata={"help": "Inputs that the model reads at once."})
    seed: int = field(default=0, metadata={"help": "Of the draw."})
    output: str | None = field(
        default=None,
        metadata={"help": "A page (html), the data (json) or a picture (svg, png), in place of text."},
    )
    width: int | None = field(default=None, metadata={"help": "Columns of text; those of the terminal if left out."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an output that is there already."})


@dataclass
class ReportArguments:
    """Of which run, and where to."""

    run: str = field(metadata={"help": "The `--output-dir` of a `powerbert train` or `powerbert sweep`."})
    output: str | None = field(default=None, metadata={"help": "html; `report.html` in the run if left out."})
    examples: bool = field(default=True, metadata={"help": "Whether texts whose prediction changed are shown."})
    measure: bool = field(
        default=False,
        metadata={"help": "Of a run: time the model again, against stock padded and sorted, which may take minutes."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an output that is there already."})


@dataclass
class ExportArguments(ModelArguments):
    """What to write, and where."""

    output_dir: str = field(kw_only=True, metadata={"help": "A new folder: model.onnx, tokenizer, config.json."})
    int8: bool = field(default=False, metadata={"help": "Linear layers in int8, quantised dynamically."})
    stock: bool = field(
        default=False, metadata={"help": "Not ONNX: the weights as a plain BERT or ALBERT checkpoint."}
    )


@dataclass
class PublishArguments(ModelArguments):
    """What goes to the Hub, and who sees it."""

    model: str = field(metadata={"help": "Folder of a run, or of a model of this package; or the Hub id of such."})
    repo: str = field(kw_only=True, metadata={"help": "user/name; a new repository is private."})
    public: bool = field(default=False, metadata={"help": "For everybody to see."})
    private: bool = field(default=False, metadata={"help": "The default, said."})
    with_code: bool = field(
        default=False, metadata={"help": "The modelling files too, for those without the plugin who trust them."}
    )
    retention_only: bool = field(
        default=False, metadata={"help": "The retention configuration by itself, without weights."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "A repository that holds something else holds nothing but this afterwards."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Show files and card, and send nothing."})


@dataclass
class ApplyArguments(ModelArguments):
    """Which model gets which retention configuration, and where it goes."""

    retention: str = field(
        kw_only=True, metadata={"help": "A Hub id, with @ and a revision if need be, a folder or a file."}
    )
    output_dir: str = field(kw_only=True, metadata={"help": "A new folder for the model with the configuration."})


@dataclass
class FindArguments:
    """Which retention configurations to look for on the Hub."""

    model: str | None = field(
        default=None, metadata={"help": "Hub id or folder: only those that fit this BERT or ALBERT; all if left out."}
    )
    limit: int = field(default=20, metadata={"help": "How many, at most."})
