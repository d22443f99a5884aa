"""A faster classifier with `PoWERTrainer`, from the first step to the last.

    python examples/fine_tune.py --model bert-base-uncased --train-file train.csv --output-dir faster

The csv file has the columns `text` and `label`. `--smoke` takes a few steps on generated texts.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from datasets import load_dataset
from transformers import AutoTokenizer, HfArgumentParser

from powerbert_hf import PoWERBertForSequenceClassification, PoWERTrainer, PoWERTrainingArguments
from powerbert_hf.demo import make_demo


@dataclass
class Options:
    """What to train, on what."""

    model: str = field(default="bert-base-uncased", metadata={"help": "Hub id or folder of a BERT checkpoint."})
    train_file: str | None = field(default=None, metadata={"help": "csv file with the columns text and label."})
    output_dir: str = field(default="runs/fine_tune", metadata={"help": "Takes the faster model."})
    epochs: float = field(default=3.0, metadata={"help": "Of each of the three steps."})
    smoke: bool = field(default=False, metadata={"help": "A few steps on generated texts."})


def main(options: Options) -> None:
    """Fine-tune, search the configuration, re-train."""
    if options.smoke:
        inputs = dict(option.lstrip("-").split("=") for option in make_demo(Path(tempfile.mkdtemp()) / "demo"))
        options.model, options.train_file, options.epochs = inputs["model"], inputs["eval-file"], 0.03
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    data = load_dataset("csv", data_files=options.train_file, split="train").class_encode_column("label")
    names = data.features["label"].names
    data = data.map(lambda row: tokenizer(row["text"], truncation=True), remove_columns="text")
    longest = max(len(ids) for ids in data["input_ids"])

    def train(
        model: PoWERBertForSequenceClassification,
        teacher: PoWERBertForSequenceClassification | None = None,
        learning_rate: float = 5e-5,
        **more: float,
    ) -> PoWERTrainer:
        args = PoWERTrainingArguments(
            tempfile.mkdtemp(),
            num_train_epochs=options.epochs,
            save_strategy="no",
            learning_rate=learning_rate,
            distillation=0.9,
            **more,
        )
        trainer = PoWERTrainer(model, args, train_dataset=data, processing_class=tokenizer, teacher=teacher)
        trainer.train()
        return trainer

    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    tuned = PoWERBertForSequenceClassification.from_pretrained(options.model, **labels)
    train(tuned)

    tuned.save_pretrained(options.output_dir)
    soft = {"retention_mode": "soft", "retention_soft_extract": "hide", "retention_unit": "fraction"}
    model = PoWERBertForSequenceClassification.from_pretrained(options.output_dir, retention_length=longest, **soft)
    model.set_retention(train(model, tuned, speedup=2.0).retention_config)

    train(model, tuned, learning_rate=0.3 * 5e-5)
    model.save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
