r"""Make a reranker faster: a cross-encoder that scores pairs of query and passage, on fewer word-vectors.

    python examples/reranker.py --model cross-encoder/ms-marco-MiniLM-L6-v2 --pairs-file pairs.csv --output-dir faster

Takes a BERT or ALBERT cross-encoder with one label, and a csv file with the columns `query` and `passage`; without a
file, a few pairs of its own. It says how well the faster model's ranking of each query's passages agrees with the
original's, and how long both take, and saves a model that `CrossEncoder("faster")` loads after `import powerbert_hf`.
It needs `pip install sentence-transformers`.

The configuration is a guess. `powerbert train` learns one on your pairs, from a column of scores: a person's, or the
original's own logits, which need nobody to label anything.

    powerbert train --model my/reranker --fine-tuned --train-file train.csv --eval-file held_out.csv \
        --text-columns query passage --label-column score --output-dir runs/reranker

`--smoke` shows it on a tiny model, untrained, so neither its ranking nor its speed means anything.
"""

import tempfile
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from datasets import Dataset, load_dataset
from scipy.stats import kendalltau
from sentence_transformers import CrossEncoder
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    HfArgumentParser,
)

from powerbert_hf.benchmark import benchmark
from powerbert_hf.checkpoint import load_classifier

PAIRS = {
    "why is the sky blue": [
        "Sunlight is scattered by the molecules of air, and blue light more than red because its waves are shorter.",
        "The sky over the harbour was grey all week.",
        "Blue is a popular colour for walls.",
        "At sunset light travels through more air, so little blue is left of it and the sky looks red.",
    ],
    "how long do I boil an egg": [
        "Six minutes in boiling water leave the yolk soft, ten make it hard; start with eggs at room temperature.",
        "Hens lay fewer eggs in winter, when days are short.",
        "Water boils at a lower temperature in the mountains.",
    ],
}
# A share of each pair's word-vectors, from the first encoder to the last.
KEEP = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


@dataclass
class Options:
    """Which reranker, on what."""

    model: str | None = field(default=None, metadata={"help": "Hub id or folder of a cross-encoder with one label."})
    pairs_file: str | None = field(default=None, metadata={"help": "csv file with the columns query and passage."})
    keep: list[float] | None = field(default=None, metadata={"help": "Share of word-vectors kept, per encoder."})
    batch_size: int = field(default=32, metadata={"help": "Pairs in a batch."})
    output_dir: str = field(default="runs/reranker", metadata={"help": "Takes the faster model."})
    smoke: bool = field(default=False, metadata={"help": "On a tiny model made on the spot."})


def make_tiny(folder: str) -> str:
    """An untrained cross-encoder that knows the words of our own pairs."""
    words = sorted({w for query, passages in PAIRS.items() for w in " ".join([query, *passages]).lower().split()})
    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), num_labels=1, initializer_range=0.3, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizer(vocab=vocabulary, model_max_length=128).save_pretrained(folder)
    return folder


def main(options: Options) -> None:
    """Score all pairs with both models, compare, save the faster one."""
    name = make_tiny(tempfile.mkdtemp()) if options.smoke else options.model
    loading = {"device": "cpu" if options.smoke else None, "model_kwargs": {"dtype": torch.float32}}
    stock, faster = CrossEncoder(name, **loading), CrossEncoder(name, **loading)
    if stock.num_labels != 1:
        raise SystemExit(f"A reranker has one label, got {stock.num_labels} from {name}; choose another model.")
    encoders = stock.model.config.num_hidden_layers
    keep = options.keep or [KEEP[encoder * len(KEEP) // encoders] for encoder in range(encoders)]
    ours = load_classifier(name, needs_head=True, retention_config=keep, retention_unit="fraction").to(stock.device)

    if options.pairs_file:
        data = load_dataset("csv", data_files=options.pairs_file, split="train")
    else:
        data = Dataset.from_list([{"query": q, "passage": p} for q, passages in PAIRS.items() for p in passages])
    pairs = list(zip(data["query"], data["passage"], strict=True))
    rows = defaultdict(list)
    for row, (query, _) in enumerate(pairs):
        rows[query].append(row)
    several = [places for places in rows.values() if len(places) > 1]
    if not several:
        raise SystemExit("A ranking needs two passages of the same query or more, got one of each; add some.")

    features = [stock.tokenizer(*pair, truncation=True) for pair in pairs]
    speed = benchmark(ours, features, options.batch_size, stock=stock.model)
    faster[0].model = ours
    before, after = (encoder.predict(pairs, batch_size=options.batch_size) for encoder in (stock, faster))
    best = [before[places].argmax() == after[places].argmax() for places in several]
    order = [kendalltau(before[places], after[places]).statistic for places in several]
    print(f"{len(pairs)} pairs of {len(rows)} queries; share of word-vectors kept, per encoder: {keep}")
    print(
        f"same passage first: {sum(best)} of {len(best)} queries; Kendall's tau, mean: {sum(order) / len(order):.2f}"
    )
    seconds = {name: row.median for name, row in speed.rows.items()}
    print(f"seconds: {seconds['c']:.3f} stock, {seconds['ours']:.3f} ours, {speed.measured:.2f}x")
    faster.save_pretrained(options.output_dir)


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
