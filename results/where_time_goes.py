r"""Where the time of a pass goes, and how far it is from the machine's limit.

    python results/where_time_goes.py --model FOLDER --retention-config 0.5 0.3 0.1 --lengths imdb --batch-size 8 \
        --output results/time/imdb.json

The limit is the arithmetic at the rate of a large matrix product, measured here in the same dtype. FOLDER may hold
only a `config.json`.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import HfArgumentParser, PreTrainedModel

from powerbert_hf.arguments import BenchmarkArguments
from powerbert_hf.benchmark import Batch, hardware, interleaved_seconds, make_batches
from powerbert_hf.cost import multiply_accumulates, stock_encoder_multiply_accumulates
from powerbert_hf.lengths import draw_lengths, random_features
from powerbert_hf.speed import load_ours

# By the beginning of an operator's name; the first that fits counts, and what fits none is "other".
KINDS = {
    "projections and feed-forward": ("aten::addmm", "aten::mm", "aten::linear"),
    "attention, products": ("aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product"),
    "attention, softmax": ("aten::_softmax", "aten::softmax", "aten::masked_fill"),
    "significance and ranking": ("aten::sum", "aten::sort", "aten::nan_to_num", "aten::nonzero"),
    "gathering": ("aten::index", "aten::gather", "aten::cat", "aten::copy_", "aten::constant_pad", "aten::fill_"),
    "activation, LayerNorm, residual": ("aten::gelu", "aten::native_layer_norm", "aten::add", "aten::mul"),
    "embeddings": ("aten::embedding",),
}


@dataclass
class Options:
    """What to profile."""

    model: str = field(metadata={"help": "Folder with a config.json."})
    lengths: str = field(metadata={"help": "sst2, mrpc, rte, imdb, or a number of word-pieces."})
    batch_size: int
    retention_config: list[float]
    output: str
    inputs: int = 64
    dtype: str = "float32"
    repeats: int = 5


def seconds(run: Callable[[], object], repeats: int) -> float:
    """The median of some runs, after one that does not count."""
    return statistics.median(interleaved_seconds({"run": run}, repeats)["run"])


def product_rate(hidden: int, forward: int, dtype: torch.dtype) -> float:
    """Multiply-accumulates a second of the feed-forward network's product on 2048 word-vectors."""
    left, right = torch.randn(2048, hidden, dtype=dtype), torch.randn(hidden, forward, dtype=dtype)
    return 2048 * hidden * forward / seconds(lambda: left @ right, 20)


def one_pass(model: PreTrainedModel, batches: Sequence[Batch]) -> None:
    """Run the model on all batches."""
    for batch in batches:
        model(**batch)


def by_kind(model: PreTrainedModel, batches: Sequence[Batch]) -> dict[str, float]:
    """Seconds of a pass by kind of operator, and outside of all of them."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        one_pass(model, batches)
        total = time.perf_counter() - start
    kinds = dict.fromkeys([*KINDS, "other operators"], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), "other operators")
        kinds[kind] += event.self_cpu_time_total / 1e6
    kinds["between operators"] = total - sum(kinds.values())
    return kinds


@torch.inference_mode()
def main(options: Options) -> None:
    """Measure the limit, a pass, and its parts."""
    dtype = getattr(torch, options.dtype)
    ours, _ = load_ours(BenchmarkArguments(model=options.model, retention_config=options.retention_config))
    config = ours.config
    lengths, _ = draw_lengths(options.lengths, options.inputs)
    batches = make_batches(random_features(sorted(lengths), config.vocab_size), options.batch_size)
    rate = product_rate(config.hidden_size, config.intermediate_size, dtype)
    found = {"hardware": hardware(), "options": vars(options), "products_per_second": rate, "models": {}}
    all_lengths = torch.tensor(lengths)
    costs = {
        "stock": config.num_encoders * stock_encoder_multiply_accumulates(config, all_lengths),
        "ours": multiply_accumulates(config, all_lengths),
    }
    for name, model in (("stock", ours.to_stock()), ("ours", ours)):
        model = model.to(dtype).eval()
        products = costs[name].sum().item()
        found["models"][name] = {
            "multiply_accumulates": products,
            "seconds": seconds(partial(one_pass, model, batches), options.repeats),
            "limit_seconds": products / rate,
            "seconds_by_kind": by_kind(model, batches),
        }
    Path(options.output).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
