"""Measure int8 in PyTorch, and float32 and int8 in ONNX Runtime, ours against stock, as `results/README.md` shows it.

    python results/measure_runtimes.py --output results/runtimes.json

Batches of 8 sorted by length, lengths of rte, the paper's configuration for RTE as fractions, two threads.
"""

import argparse
import json
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from measure_speed import MODELS, RTE
from torch import nn
from transformers import PreTrainedModel

from powerbert_hf.benchmark import Batch, hardware, interleaved_seconds, make_batches
from powerbert_hf.checkpoint import load_classifier
from powerbert_hf.cost import predicted_speedup
from powerbert_hf.export import export_onnx
from powerbert_hf.lengths import draw_lengths, random_features
from powerbert_hf.modeling_powerbert import PoWERBertForSequenceClassification

THREADS, INPUTS, BATCH_SIZE, REPEATS = 2, 64, 8, 5


def in_torch(model: nn.Module, batches: list[Batch]) -> Callable[[], object]:
    """A pass over all batches."""

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            model(**batch)

    return run


def in_onnxruntime(model: PreTrainedModel, int8: bool, batches: list[Batch]) -> Callable[[], object]:
    """A pass over all batches, of the exported model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, path, int8)
        session = onnxruntime.InferenceSession(str(path), options)
    names = {given.name for given in session.get_inputs()}
    feeds = [
        {name: values.numpy() for name, values in batch.items() if name in names}
        | ({"token_type_ids": 0 * batch["input_ids"].numpy()} if "token_type_ids" in names else {})
        for batch in batches
    ]

    def run() -> None:
        for feed in feeds:
            session.run(None, feed)

    return run


WAYS: dict[str, Callable[[PreTrainedModel, list[Batch]], Callable[[], object]]] = {
    "PyTorch int8": lambda model, batches: in_torch(
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8), batches
    ),
    "ONNX Runtime float32": lambda model, batches: in_onnxruntime(model, False, batches),
    "ONNX Runtime int8": lambda model, batches: in_onnxruntime(model, True, batches),
}


def main(output: Path) -> None:
    """Measure each way, ours and stock in turn."""
    # Of torch.ao, that it will move.
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(THREADS)
    lengths, _ = draw_lengths("rte", INPUTS)
    found = {"hardware": hardware(), "onnxruntime": onnxruntime.__version__, "configuration": RTE, "models": {}}
    for name in ("minilm-l6", "bert-base"):
        config, keep = MODELS[name]
        torch.manual_seed(0)
        stock = PoWERBertForSequenceClassification.upstream_class(config).eval()
        ours = load_classifier(stock, retention_config=keep, retention_unit="fraction").eval()
        batches = make_batches(random_features(sorted(lengths), config.vocab_size), BATCH_SIZE)
        predicted = predicted_speedup(ours.config, torch.tensor(lengths))
        found["models"][name] = {"predicted": predicted, "ways": {}}
        for way, prepare in WAYS.items():
            seconds = interleaved_seconds({"stock": prepare(stock, batches), "ours": prepare(ours, batches)}, REPEATS)
            medians = {side: statistics.median(values) for side, values in seconds.items()}
            found["models"][name]["ways"][way] = {"seconds": seconds, "speedup": medians["stock"] / medians["ours"]}
            output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            print(
                name, way, {k: round(v, 4) for k, v in medians.items()}, f"{medians['stock'] / medians['ours']:.2f}x"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/runtimes.json"))
    main(parser.parse_args().output)
