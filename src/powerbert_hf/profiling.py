# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Where a model's time goes, and how much memory a pass takes: in passes of their own, as asking costs time."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel
from transformers.models.albert.modeling_albert import AlbertLayer
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

from .agreement import synchronize


@torch.inference_mode()
def encoder_seconds(
    models: Mapping[str, PreTrainedModel],
    batches: Sequence[Mapping[str, Tensor]],
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time in each encoder, with the mask that is made for it, the models in turn.

    Args:
        models: BERT or ALBERT by name, stock or ours.
        batches: what they run on.
        repeats: timed passes over all batches, after one that is not.
        clock: seconds.

    Returns:
        For each name L medians, in seconds of a pass over all batches.
    """
    passes: dict[str, list[list[float]]] = {name: [] for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            passes[name].append(_one_pass(model, batches, clock))
    return {
        name: [statistics.median(seconds) for seconds in zip(*timed[1:], strict=True)]
        for name, timed in passes.items()
    }


def _one_pass(
    model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], clock: Callable[[], float]
) -> list[float]:
    moments: list[float] = []

    def note(module: nn.Module, *_: object) -> None:
        synchronize(model.device)
        moments.append(clock())

    # What comes before the first encoder, and the encoders; ALBERT's is one module that is called again and again, so
    # they are told apart by the order of the calls. No hooks on what comes in: with those nothing is packed.
    timed = [
        module
        for name, module in model.named_modules()
        if isinstance(module, (BertEmbeddings, BertLayer, AlbertLayer)) or name.endswith("embedding_hidden_mapping_in")
    ]
    hooks = [module.register_forward_hook(note) for module in timed]
    try:
        for batch in batches:
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.tensor(moments, dtype=torch.float64).view(len(batches), -1).diff(dim=1).sum(dim=0).tolist()


@torch.inference_mode()
def peak_memory(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> int:
    """Bytes that a forward pass holds at once, beyond weights and inputs, as torch's allocators count them.

    Args:
        model: any model.
        batch: what it runs on.
    """
    model(**batch)
    if model.device.type == "cuda":
        synchronize(model.device)
        before = torch.cuda.memory_allocated(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        model(**batch)
        synchronize(model.device)
        return torch.cuda.max_memory_allocated(model.device) - before
    # A process' resident memory never shrinks again, so it cannot compare two models; the allocations of each can.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(**batch)
    held = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
