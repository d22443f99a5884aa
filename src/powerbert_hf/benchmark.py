# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Wall time against stock: the one protocol behind every measured speed-up.

Ours and the baselines run in turn, in one process, on the same inputs, in the same dtype, with the same threads; the
median counts. Every speed-up is over baseline (c), the fair one: the stock model, SDPA, batches sorted by length, each
padded to its longest input. The paper's, (a), pads everything to N.
"""

import inspect
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .agreement import Agreement, Batch, compare, logits
from .cost import predicted_speedup

Features = Sequence[Mapping[str, Any]]


class Way(NamedTuple):
    """A way of running a model over the inputs."""

    model: str
    """`stock`, `smaller` or `ours`."""
    batches: str
    """`padded` to N and in the order of arrival, in the order of `arrival`, or `sorted` by length."""
    compiled: bool
    """By `torch.compile`."""
    description: str
    """With a place for N."""


WAYS = {
    "a": Way("stock", "padded", False, "stock, padded to {}, arrival order"),
    "b": Way("stock", "arrival", False, "stock, dynamic padding, arrival order"),
    "c": Way("stock", "sorted", False, "stock, sorted by length"),
    "d": Way("stock", "sorted", True, "stock, sorted by length, compiled"),
    "e": Way("smaller", "sorted", False, "smaller stock model, sorted by length"),
    "ours": Way("ours", "sorted", False, "ours, sorted by length"),
    "ours-arrival": Way("ours", "arrival", False, "ours, dynamic padding, arrival order"),
    "ours-compiled": Way("ours", "sorted", True, "ours, sorted by length, compiled"),
}


@dataclass(frozen=True)
class Row:
    """The time of one way of running.

    Args:
        description: of the way.
        seconds: of each pass over all inputs.
        median: of these.
        texts_per_second: inputs over the median.
        speedup: median seconds of (c) over these.
        low: the smallest ratio of (c)'s pass to the pass beside it.
        high: the largest.
    """

    description: str
    seconds: list[float]
    median: float
    texts_per_second: float
    speedup: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """A measured speed-up, and all that belongs to it.

    Args:
        rows: the times, by the name of the way.
        predicted: multiply-accumulates of stock over those of ours, on these lengths, padding not counted.
        realised: the measured speed-up of ours, sorted, over the predicted one.
        arrival_over_sorted: seconds of ours in the order of arrival over those sorted; `None` if not measured.
        agreement: how far the two models agree.
        inputs: texts in a pass.
        batch_size: texts in a batch.
        mean_length: word-pieces of a text.
        padded_to: N.
        dtype: of weights and arithmetic.
        device: `cpu` or `cuda`.
    """

    rows: dict[str, Row]
    predicted: float
    realised: float
    arrival_over_sorted: float | None
    agreement: Agreement
    inputs: int
    batch_size: int
    mean_length: float
    padded_to: int
    dtype: str
    device: str

    @property
    def measured(self) -> float:
        """The speed-up: ours, sorted, over (c)."""
        return self.rows["ours"].speedup

    def to_dict(self) -> dict[str, Any]:
        """All of it, for a file."""
        return asdict(self)

    def timing(self) -> dict[str, Any]:
        """What stands under `timing` in a run's `report.json`."""
        ours = self.rows["ours"]
        return {
            "measured": ours.speedup,
            "low": ours.low,
            "high": ours.high,
            "seconds_stock": self.rows["c"].median,
            "seconds_ours": ours.median,
            "difference_at_full_retention": self.agreement.at_full_retention,
            "inputs": self.inputs,
            "batch_size": self.batch_size,
            "dtype": self.dtype,
        }


def hardware(device: torch.device | None = None) -> dict[str, Any]:
    """What the numbers were measured on.

    Args:
        device: of the model; `None` is the one that torch takes by itself.
    """
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    if device is None and torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
    accelerator = "none" if device is None or device.type == "cpu" else device.type
    if accelerator == "cuda":
        accelerator = torch.cuda.get_device_name(device)
    return {
        # What is fast in which dtype hangs on this more than on the name.
        "processor": f"{processor}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def make_batches(features: Features, batch_size: int, device: Any = None, width: int | None = None) -> list[Batch]:
    """Batches of neighbouring inputs, padded on the right.

    Args:
        features: tokenised inputs: lists, one of them `input_ids`.
        batch_size: inputs in a batch.
        device: takes them.
        width: pad to this; `None` pads each batch to its longest input.
    """

    def pad(rows: Features) -> Batch:
        lengths = [len(row["input_ids"]) for row in rows]
        longest = max(lengths) if width is None else width
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        columns["attention_mask"] = [[1] * length for length in lengths]
        # What stands under a mask of 0 is read by nobody.
        return {
            name: torch.tensor([[*value, *[0] * (longest - len(value))] for value in values], device=device)
            for name, values in columns.items()
        }

    return [pad(features[start : start + batch_size]) for start in range(0, len(features), batch_size)]


def _without_padding(row: Mapping[str, Any]) -> Mapping[str, Any]:
    real = row.get("attention_mask", [1])
    return row if all(real) else {name: [*compress(values, real)] for name, values in row.items()}


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
    with tqdm(total=(repeats + 1) * len(passes), desc="measure speed", leave=False) as progress:
        for repeat in range(repeats + 1):
            for name, run in passes.items():
                start = clock()
                run()
                if repeat:
                    seconds[name].append(clock() - start)
                progress.update()
    return seconds


def benchmark(
    ours: PreTrainedModel,
    features: Features,
    batch_size: int = 32,
    ways: Sequence[str] = ("c", "ours"),
    stock: PreTrainedModel | None = None,
    smaller: PreTrainedModel | None = None,
    padded_to: int | None = None,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Time our model against the stock one, in the dtype and on the device that ours is in.

    Args:
        ours: a classifier of this package, in hard mode.
        features: tokenised inputs in the order of arrival: lists, one of them `input_ids`, truncated; padding under
            their mask is cut off.
        batch_size: texts in a batch.
        ways: of running, by their names in `WAYS`; `c` and `ours` are among them always.
        stock: upstream's class, brought to the dtype and device of ours; `None` is `ours.to_stock()`.
        smaller: the model of (e), brought there too.
        padded_to: N of (a), at least the longest input, which `None` stands for.
        repeats: timed passes of each over all inputs.
        clock: seconds.

    Raises:
        ValueError: where ours eliminates nothing, or with nothing eliminated does not answer as the stock model does;
            for a way that there is not, or that lacks its model.
    """
    if unknown := [way for way in ways if way not in WAYS or (WAYS[way].model == "smaller" and smaller is None)]:
        raise ValueError(f"Ways of running are {', '.join(WAYS)}, `e` with a `smaller` model, got {unknown[0]!r}.")
    if ours.config.active_retention_mode != "hard":
        raise ValueError(
            "A speed-up is that of a retention configuration, got a model "
            f'with `retention_mode` "{ours.config.active_retention_mode}"; call `set_retention` on it.'
        )
    models = {"ours": ours, "stock": ours.to_stock() if stock is None else stock, "smaller": smaller}
    models = {name: model.to(ours.device, ours.dtype).eval() for name, model in models.items() if model is not None}
    features = [_without_padding(row) for row in features]
    lengths = torch.tensor([len(row["input_ids"]) for row in features])
    padded_to = max(padded_to or 0, int(lengths.max()))
    by_length = [features[row] for row in lengths.argsort(stable=True).tolist()]
    batches = {
        "padded": make_batches(features, batch_size, ours.device, padded_to) if "a" in ways else [],
        "arrival": make_batches(features, batch_size, ours.device),
        "sorted": make_batches(by_length, batch_size, ours.device),
    }
    agreement = compare(ours, models["stock"], batches["sorted"])

    def one_pass(way: Way) -> Callable[[], Tensor]:
        # DistilBERT takes no `token_type_ids`.
        taken = inspect.signature(models[way.model].forward).parameters
        usable = [{name: values for name, values in batch.items() if name in taken} for batch in batches[way.batches]]
        model: Any = models[way.model]
        if way.compiled:
            model = torch.compile(model, dynamic=True)
        return partial(logits, model, usable)

    chosen = {name: way for name, way in WAYS.items() if name in {*ways, "c", "ours"}}
    seconds = interleaved_seconds({name: one_pass(way) for name, way in chosen.items()}, repeats, clock)
    rows = {}
    for name, timed in seconds.items():
        ratios = [fair / own for fair, own in zip(seconds["c"], timed, strict=True)]
        median = statistics.median(timed)
        rows[name] = Row(
            description=chosen[name].description.format(padded_to),
            seconds=timed,
            median=median,
            texts_per_second=len(features) / median,
            speedup=statistics.median(seconds["c"]) / median,
            low=min(ratios),
            high=max(ratios),
        )
    predicted = predicted_speedup(ours.config, lengths)
    arrival = rows.get("ours-arrival")
    return Measurement(
        rows=rows,
        predicted=predicted,
        realised=rows["ours"].speedup / predicted,
        arrival_over_sorted=arrival.median / rows["ours"].median if arrival else None,
        agreement=agreement,
        inputs=len(features),
        batch_size=batch_size,
        mean_length=lengths.double().mean().item(),
        padded_to=padded_to,
        dtype=str(ours.dtype).removeprefix("torch."),
        device=ours.device.type,
    )
