r"""Is it the significance that makes elimination work? The same configuration with other word-vectors kept.

    python examples/selection_ablation.py --run runs/mrpc --output-dir ablation

Takes what `powerbert train` left of a BERT model, re-trains its configuration three times from the same fine-tuned
weights, with the data and seed of that run, and says how good each is on the tuning split and the reported one:

* significance: the word-vectors that receive most attention, as always;
* first: the first ones of the input (the paper's Head-WS);
* random: at positions drawn once, the same for all inputs (the paper's Rand-WS).

[CLS] is kept by all three. `--smoke` shows it on the demo's task, with a few steps.
"""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import HfArgumentParser

from powerbert_hf import PoWERTrainingArguments
from powerbert_hf.arguments import DataArguments
from powerbert_hf.checkpoint import load_classifier
from powerbert_hf.data import TaskData, load_data
from powerbert_hf.demo import make_demo
from powerbert_hf.encoder import Extract, Ranking
from powerbert_hf.modeling_powerbert import PoWERBertSelfAttention
from powerbert_hf.packing import Packed
from powerbert_hf.report import read_run
from powerbert_hf.retention import extract, rank
from powerbert_hf.steps import evaluate_model
from powerbert_hf.trainer import PoWERTrainer


@dataclass
class Options:
    """Which run, and where the three models go."""

    run: str | None = field(
        default=None, metadata={"help": "Folder of a finished run of a BERT, such as that of a sweep's speed-up."}
    )
    output_dir: str = field(default="ablation", metadata={"help": "Takes ablation.json."})
    epochs: float | None = field(default=None, metadata={"help": "Of each re-training; those of the run if left out."})
    smoke: bool = field(default=False, metadata={"help": "A few steps on generated texts."})


class StaticSelection(PoWERBertSelfAttention):
    """Self-attention whose word-vectors are ranked by where they are, whatever the text says."""

    scores: Tensor
    """(longest input,), the higher the earlier in the ranking."""

    def attend(
        self, hidden_states: Tensor, attention_mask: Any, kept: Any, rule: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """With padding: the rank of every word-vector."""
        context, weights, ranking = super().attend(hidden_states, attention_mask, kept, rule, *args, **kwargs)
        if isinstance(rule, Extract) and not rule.cls_only and not isinstance(kept, Packed):
            scores = self.scores[: hidden_states.shape[1]].expand(hidden_states.shape[:2])
            ranking = Ranking(rank(scores, kept.mask))
        return context, weights, ranking

    def attend_packed(self, hidden_states: Tensor, packed: Packed, rule: Any) -> Any:
        """Without padding: the rows that are kept."""
        if not isinstance(rule, Extract) or rule.cls_only:
            return super().attend_packed(hidden_states, packed, rule)
        context, weights, _ = super().attend_packed(hidden_states, packed, None)
        inputs = zip(packed.starts(), packed.lengths, rule.kept(packed), strict=True)
        rows = torch.cat([start + extract(rank(self.scores[None, :n]), kept)[0] for start, n, kept in inputs])
        return context[:, rows], weights, Ranking(rows)


def rank_by(model: torch.nn.Module, scores: Tensor) -> None:
    """Put a `StaticSelection` with the same weights in the place of every self-attention of a PoWER-BERT."""
    for layer in model.base_model.encoder.encoders():
        static = StaticSelection(model.config).train(model.training)
        static.load_state_dict(layer.attention.self.state_dict())
        static.register_buffer("scores", scores, persistent=False)
        layer.attention.self = static


def retrained(model: torch.nn.Module, data: TaskData, args: PoWERTrainingArguments) -> dict[str, float]:
    """Train on with the configuration; the metric on both splits."""
    trainer = PoWERTrainer(
        model, args, train_dataset=data.train, processing_class=data.tokenizer, data_collator=data.collator
    )
    trainer.train()
    splits = {"tuning": data.tune, "reported": data.eval}
    return {name: evaluate_model(model, data, args, split)[data.metric] for name, split in splits.items()}


def main(options: Options) -> None:
    """Re-train with each selection, print a table, write it down."""
    if options.smoke:
        inputs = dict(option.lstrip("-").split("=") for option in make_demo(Path(tempfile.mkdtemp()) / "demo"))
        start, config, unit = inputs["model"], [0.6, 0.4, 0.3, 0.1], "fraction"
        asked: dict[str, Any] = {"train_file": inputs["train-file"], "eval_file": inputs["eval-file"]}
        asked |= {"max_train_samples": 400, "max_eval_samples": 50}
        training = {"num_train_epochs": 0.5, "seed": 42}
    else:
        run = read_run(Path(options.run))
        if (backbone := run.report.get("backbone", "bert")) != "bert":
            raise ValueError(
                f"The other selections are written for BERT alone, got a run of {backbone}; pass another."
            )
        asked, start = run.arguments["data"], str(run.base)
        config, unit = run.report["retention_config"], run.report["retention_unit"]
        if asked.get("streaming"):
            raise ValueError("The rows must be read whole, got a run that streamed them; pass another.")
        wanted = ("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")
        wanted += ("learning_rate", "bf16", "seed")
        training = {name: run.report["training"][name] for name in wanted if name in run.report["training"]}
    if options.epochs is not None:
        training |= {"num_train_epochs": options.epochs, "max_steps": -1}

    data = load_data(DataArguments.settled(asked), start, training["seed"], fine_tuned=not options.smoke)
    args = PoWERTrainingArguments(
        f"{options.output_dir}/checkpoints",
        warmup_steps=0.1,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.accelerator.is_available(),
        **training,
    )
    found = {}
    for name in ("significance", "first", "random"):
        model = load_classifier(start, retention_config=config, retention_unit=unit, **data.label_fields)
        longest = model.config.max_position_embeddings
        if name == "first":
            rank_by(model, torch.arange(longest, 0, -1).float())
        elif name == "random":
            rank_by(model, torch.rand(longest, generator=torch.Generator().manual_seed(training["seed"])))
        found[name] = retrained(model, data, args)
        print(f"{name:<13} {data.metric}: {found[name]['tuning']:.4f} tuning, {found[name]['reported']:.4f} reported")
    output = Path(options.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "ablation.json").write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
