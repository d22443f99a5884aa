"""Publish a faster model: it is a Transformers model, so `push_to_hub` does it.

    python examples/publish.py --model runs/demo/final --repo user/faster

Whoever runs `import powerbert_hf` loads it by its name, with the Auto classes and `pipeline`. `--smoke` publishes
nothing: it saves to a folder what would be pushed, and loads it as a reader would.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser

from powerbert_hf.demo import make_demo


@dataclass
class Options:
    """What to publish, and where."""

    model: str | None = field(default=None, metadata={"help": "Folder of a faster model, such as `final/` of a run."})
    repo: str | None = field(default=None, metadata={"help": "Name on the Hub, such as user/faster."})
    private: bool = field(default=True, metadata={"help": "Let nobody else see a new repository yet."})
    output_dir: str = field(default="published", metadata={"help": "Takes what `--smoke` would push."})
    smoke: bool = field(default=False, metadata={"help": "Push nothing."})


def main(options: Options) -> None:
    """Load, push both model and tokenizer."""
    if options.smoke:
        from powerbert_hf import PoWERBertForSequenceClassification

        options.model = make_demo(Path(tempfile.mkdtemp()) / "demo")[0].removeprefix("--model=")
        model = PoWERBertForSequenceClassification.from_pretrained(options.model, retention_config=[64, 32, 16, 1])
    else:
        model = AutoModelForSequenceClassification.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    for part in (model, tokenizer):
        if options.smoke:
            part.save_pretrained(options.output_dir)
        else:
            part.push_to_hub(options.repo, private=options.private)
    if options.smoke:
        loaded = AutoModelForSequenceClassification.from_pretrained(options.output_dir)
        print("would publish", type(loaded).__name__, loaded.config.retention_config)


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
