# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Wall time against stock: the one protocol behind every measured speed-up.

Ours and the baseline run in turn, in one process, on the same batches, in the same dtype, with the same threads; the
median counts. The baseline is the fair one: the stock model, SDPA, batches sorted by length, padded to their longest.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Speedup:
    """A measured speed-up.

    Args:
        measured: median seconds of the stock model over those of ours.
        low: the smallest ratio of one pass to the baseline's pass beside it.
        high: the largest.
        seconds_stock: median seconds of a pass over all batches.
        seconds_ours: the same, of our model.
        difference_at_full_retention: largest difference of logits between ours, nothing eliminated, and stock.
        inputs: texts in a pass.
        batch_size: texts in a batch.
    """

    measured: float
    low: float
    high: float
    seconds_stock: float
    seconds_ours: float
    difference_at_full_retention: float
    inputs: int
    batch_size: int

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self)


def hardware() -> dict[str, Any]:
    """What the numbers were measured on."""
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": processor,
        "threads": torch.get_num_threads(),
        "accelerator": device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def sorted_batches(
    features: Sequence[dict[str, Any]], collate: Callable[[list], Batch], batch_size: int
) -> list[Batch]:
    """Batches of inputs of like length, each padded to its longest.

    Args:
        features: tokenised inputs, with `input_ids`.
        collate: pads a list of them.
        batch_size: inputs in a batch.

    Returns:
        The batches, shortest inputs first.
    """
    by_length = sorted(features, key=lambda feature: len(feature["input_ids"]))
    return [collate(by_length[start : start + batch_size]) for start in range(0, len(by_length), batch_size)]


def interleaved_seconds(
    passes: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each of several things to do, done in turn.

    Args:
        passes: what to time, by name. Each is run once before, untimed.
        repeats: how often each is timed.
        clock: seconds.

    Returns:
        `repeats` times for each name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for repeat in tqdm(range(repeats + 1), desc="measure speed", leave=False):
        for name, run in passes.items():
            start = clock()
            run()
            if repeat:
                seconds[name].append(clock() - start)
    return seconds


def measure_speedup(ours: PreTrainedModel, stock: nn.Module, batches: Sequence[Batch], repeats: int = 5) -> Speedup:
    """Time our model against the stock one.

    Args:
        ours: a classifier of this package, in hard mode.
        stock: the same weights as upstream's class.
        batches: what both run on.
        repeats: passes of each over all batches.

    Raises:
        ValueError: where our model with nothing eliminated does not answer as the stock model does: then its speed
            means nothing.
    """
    ours.eval()
    stock.eval()

    @torch.inference_mode()
    def run(model: nn.Module) -> Tensor:
        logits = [model(**batch).logits for batch in batches]
        if logits[0].is_cuda:
            torch.cuda.synchronize()
        return torch.cat(logits)

    config = ours.config
    kept, unit = config.retention_config, config.retention_unit
    ours.set_retention([1.0] * config.num_encoders, unit="fraction")
    try:
        difference = (run(ours) - run(stock)).abs().max().item()
    finally:
        ours.set_retention(kept, unit=unit)
    if not difference <= 1e-3:
        raise ValueError(
            "With nothing eliminated the model must answer as the stock model does, got logits that are "
            f"{difference:.2g} apart; compare the weights of the two before asking for their speed."
        )
    seconds = interleaved_seconds({"stock": lambda: run(stock), "ours": lambda: run(ours)}, repeats)
    ratios = [theirs / own for theirs, own in zip(seconds["stock"], seconds["ours"], strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return Speedup(
        measured=medians["stock"] / medians["ours"],
        low=min(ratios),
        high=max(ratios),
        seconds_stock=medians["stock"],
        seconds_ours=medians["ours"],
        difference_at_full_retention=difference,
        inputs=sum(len(batch["input_ids"]) for batch in batches),
        batch_size=len(batches[0]["input_ids"]),
    )
