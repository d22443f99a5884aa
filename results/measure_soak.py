"""An hour of predictions with random lengths and batch sizes in one process: memory, and the same answers at the end.

    powerbert demo && python results/measure_soak.py --model runs/demo/final

Writes `soak.json`: memory every 30 seconds, and whether 100 texts are answered then as they were at the start. As in
`powerbert predict`, oneDNN keeps 64 programs; by default it keeps 1,024, and memory grows until there are as many.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from powerbert_hf.benchmark import hardware
from powerbert_hf.checkpoint import load_classifier, load_tokenizer
from powerbert_hf.predict import predict

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
KEPT, EVERY, WARM = 100, 30.0, 300.0


def texts_of(rng: np.random.Generator, words: list[str], count: int, longest: int) -> list[str]:
    """Texts of 1 word to more than fit."""
    return [" ".join(rng.choice(words, size=rng.integers(1, longest + 10))) for _ in range(count)]


def main(model: Path, minutes: float, output: Path) -> None:
    """Predict for so many minutes, and write what was found every time that memory is looked at."""
    torch.set_num_threads(1)
    classifier = load_classifier(model, needs_head=True)
    tokenizer = load_tokenizer(model, classifier.config)
    rng, words, longest = np.random.default_rng(0), sorted(tokenizer.get_vocab()), tokenizer.model_max_length
    kept = texts_of(rng, words, KEPT, longest)
    first = list(predict(classifier, tokenizer, kept))
    process, begun, predictions, calls = psutil.Process(), time.monotonic(), 0, 0
    curve: list[dict[str, float]] = []
    same = True
    while (now := time.monotonic() - begun) < 60 * minutes:
        if now >= EVERY * len(curve):
            memory = process.memory_info().rss / 2**20
            curve.append({"seconds": round(now, 1), "megabytes": round(memory, 1), "predictions": predictions})
            same &= list(predict(classifier, tokenizer, kept)) == first
            write(output, classifier, model, minutes, curve, calls, same)
        texts = texts_of(rng, words, int(rng.integers(1, 200)), longest)
        batch_size = int(rng.integers(1, 65))
        answered = sum(1 for _ in predict(classifier, tokenizer, texts, batch_size=batch_size))
        predictions, calls = predictions + answered, calls + 1
    same &= list(predict(classifier, tokenizer, kept)) == first
    write(output, classifier, model, minutes, curve, calls, same)


def write(
    output: Path, classifier: torch.nn.Module, model: Path, minutes: float, curve: list, calls: int, same: bool
) -> None:
    """What was found up to now; the trend is that of a straight line through the curve after a warm-up."""
    warm = [one for one in curve if one["seconds"] >= WARM]
    trend = None
    if len(warm) > 1:
        seconds, megabytes = (np.array([one[name] for one in warm]) for name in ("seconds", "megabytes"))
        trend = float(np.polyfit(seconds, megabytes, 1)[0] * 3600)
    found = {
        "model": f"{model.parent.name}/{model.name}",
        "minutes": minutes,
        "predictions": curve[-1]["predictions"],
        "calls": calls,
        "megabytes_an_hour": trend,
        "retention_config": classifier.config.retention_config,
        "same_answers": same,
        "programs_kept": os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"],
        "hardware": hardware(),
        "curve": curve,
    }
    output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/demo/final"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--output", type=Path, default=Path("results/soak.json"))
    options = parser.parse_args()
    main(options.model, options.minutes, options.output)
