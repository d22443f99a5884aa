"""Search and re-train with Trainers of your own: from a fine-tuned BERT classifier to a faster one.

    python examples/with_your_own_trainer.py --model my/fine-tuned-bert --train-file train.csv --output-dir faster

The csv file has the columns `text` and `label` (a number). `powerbert train --fine-tuned` does this and
more in one line: the fine-tuned model teaches, re-training has 0.3 of the learning rate, rows are held back to choose
by, and what came of it is measured. This is for those who have a training script already. `--smoke` shows it on a few
texts of the demo's generated task.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from datasets import load_dataset
from transformers import AutoTokenizer, HfArgumentParser, Trainer, TrainingArguments

from powerbert_hf import PoWERBertForSequenceClassification, PoWERTrainer, PoWERTrainingArguments
from powerbert_hf.demo import make_demo


@dataclass
class Options:
    """What to make faster."""

    model: str | None = field(default=None, metadata={"help": "Hub id or folder of a fine-tuned BERT classifier."})
    train_file: str | None = field(default=None, metadata={"help": "csv file with the columns text and label."})
    output_dir: str = field(default="runs/with_your_own_trainer", metadata={"help": "Takes the faster model."})
    epochs: float = field(default=3.0, metadata={"help": "Of the search, and of the re-training."})
    smoke: bool = field(default=False, metadata={"help": "A few steps on generated texts."})


def main(options: Options) -> None:
    """Search, set the configuration, re-train, save."""
    if options.smoke:
        inputs = dict(option.lstrip("-").split("=") for option in make_demo(Path(tempfile.mkdtemp()) / "demo"))
        options.model, options.train_file, options.epochs = inputs["model"], inputs["train-file"], 0.05
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    data = load_dataset("csv", data_files=options.train_file, split="train")
    if options.smoke:
        data = data.class_encode_column("label")
    data = data.map(lambda row: tokenizer(row["text"], truncation=True), remove_columns="text")
    longest = max(len(ids) for ids in data["input_ids"])
    common = {"num_train_epochs": options.epochs, "train_sampling_strategy": "group_by_length", "save_strategy": "no"}

    model = PoWERBertForSequenceClassification.from_pretrained(
        options.model,
        retention_mode="soft",
        retention_soft_extract="hide",
        retention_unit="fraction",
        retention_length=longest,
    )
    args = PoWERTrainingArguments(f"{options.output_dir}/search", speedup=2.0, **common)
    trainer = PoWERTrainer(model, args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    model.set_retention(trainer.retention_config)
    print("retention configuration:", [round(entry, 3) for entry in model.config.retention_config])

    args = TrainingArguments(f"{options.output_dir}/retrain", **common)
    Trainer(model, args, train_dataset=data, processing_class=tokenizer).train()
    model.save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
