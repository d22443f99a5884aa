"""Your own csv file: split it, train on it, and look at what the faster model reads.

    python examples/own_csv.py --csv-file tickets.csv --text-column message --label-column team --output-dir runs/team

A tenth of the rows is held out and reported. The rest is `powerbert train`, which goes on where it was interrupted,
and `powerbert report`: `runs/team/report.html` shows what changed, class by class and word by word. `--smoke` takes a
few steps on generated texts.
"""

import hashlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from powerbert_hf import cli
from powerbert_hf.demo import make_demo
from powerbert_hf.texts import read_file


@dataclass
class Options:
    """Which file, and what is in it."""

    csv_file: str | None = field(default=None, metadata={"help": "csv file with a text and a label a row."})
    text_column: str = field(default="text", metadata={"help": "Its column of texts."})
    label_column: str = field(default="label", metadata={"help": "Its column of labels: names or numbers."})
    model: str = field(default="bert-base-uncased", metadata={"help": "Hub id or folder of a BERT or ALBERT."})
    speedup: float = field(default=2.0, metadata={"help": "Predicted speed-up to end at."})
    output_dir: str = field(default="runs/own", metadata={"help": "Takes the run; its `final/` is the faster model."})
    smoke: bool = field(default=False, metadata={"help": "A few steps on generated texts."})


def main(options: Options) -> int:
    """Split, train, report."""
    more = []
    if options.smoke:
        inputs = dict(option.lstrip("-").split("=") for option in make_demo(Path(tempfile.mkdtemp()) / "demo"))
        options.model, options.csv_file = inputs["model"], inputs["eval-file"]
        more = ["--max-steps=3", "--max-train-samples=60", "--max-eval-samples=30", "--disable-tqdm=true"]
    # Of another file it is another split, and another run.
    digest = hashlib.sha256(Path(options.csv_file).read_bytes()).hexdigest()[:8]
    folder = Path(f"{options.output_dir}-split-{digest}")
    # A run goes on with the rows that it began with.
    if not (Path(options.output_dir).is_dir() and folder.is_dir()):
        for name, rows in read_file(options.csv_file).train_test_split(0.1, seed=0).items():
            rows.to_csv(folder / f"{name}.csv")
    training = [
        f"--model={options.model}",
        f"--train-file={folder / 'train.csv'}",
        f"--eval-file={folder / 'test.csv'}",
        f"--text-columns={options.text_column}",
        f"--label-column={options.label_column}",
        f"--speedup={options.speedup}",
        f"--output-dir={options.output_dir}",
    ]
    return cli.main(["train", *training, *more]) or cli.main(["report", options.output_dir, "--overwrite"])


if __name__ == "__main__":
    raise SystemExit(main(HfArgumentParser(Options).parse_args_into_dataclasses()[0]))
