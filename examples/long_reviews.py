"""Long reviews: where word-vectors cost most, and how much of a text a model still reads at a speed-up.

    python examples/long_reviews.py --model my/fine-tuned-bert --texts reviews.txt --output-dir faster

Takes a fine-tuned BERT or ALBERT classifier and a file of unlabelled texts, one a line. It tries gentler and harder
configurations without training, says for each how many predictions stay and what is saved by arithmetic and by the
clock, and saves the model with the hardest that keeps 99 % of them on these texts. `powerbert calibrate` searches
better, and shows what it says at 95 % confidence; `powerbert train` re-trains, and goes further. `--smoke` shows it on
generated texts.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import HfArgumentParser

from powerbert_hf.agreement import predicts_number
from powerbert_hf.benchmark import benchmark
from powerbert_hf.checkpoint import load_classifier, load_tokenizer
from powerbert_hf.demo import make_demo, make_reviews


@dataclass
class Options:
    """Which model, on which texts."""

    model: str | None = field(default=None, metadata={"help": "Hub id or folder of a fine-tuned classifier."})
    texts: str | None = field(default=None, metadata={"help": "A text a line."})
    output_dir: str = field(default="runs/long_reviews", metadata={"help": "Takes the faster model."})
    batch_size: int = field(default=16, metadata={"help": "Texts in a batch."})
    smoke: bool = field(default=False, metadata={"help": "On generated texts, with a model that has learned nothing."})


def main(options: Options) -> None:
    """Try configurations, from the gentlest, until too many predictions change."""
    if options.smoke:
        options.model = make_demo(Path(tempfile.mkdtemp()) / "demo")[0].removeprefix("--model=")
        texts = [text for text, _ in make_reviews(12, np.random.default_rng(1))]
    else:
        texts = [line for line in Path(options.texts).read_text(encoding="utf-8").splitlines() if line.strip()]
    model = load_classifier(options.model, needs_head=not options.smoke)
    if predicts_number(model.config):
        raise ValueError("Predictions that stay are those of classes, got a model of numbers; pass another.")
    tokenizer = load_tokenizer(options.model, model.config)
    features = [tokenizer(text, truncation=True) for text in texts]
    lengths = torch.tensor([len(row["input_ids"]) for row in features])
    encoders = model.config.num_encoders
    print(f"{len(texts)} texts of {lengths.float().mean():.0f} word-pieces on average, {lengths.max()} at most")
    chosen = [1.0] * encoders
    for last in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2):
        keep = [1 - (1 - last) * encoder / max(1, encoders - 1) for encoder in range(encoders)]
        model.set_retention(keep, unit="fraction")
        found = benchmark(model, features, options.batch_size, repeats=1)
        stay = found.agreement.unchanged
        print(
            f"keeping {keep[0]:.0%} to {last:.0%}: {stay:.1%} of predictions stay, {found.predicted:.2f}x predicted, "
            f"{found.measured:.2f}x measured"
        )
        if stay < 0.99:
            break
        chosen = keep
    model.set_retention(chosen, unit="fraction")
    model.save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
