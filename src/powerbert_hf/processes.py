# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one model: one of them writes, and all learn what came of it."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch.distributed as dist
from accelerate.utils import gather_object, get_cpu_distributed_information

Result = TypeVar("Result")
# How gloo and NCCL say that a process at the other end is no more.
_GONE = re.compile("gloo|NCCL|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


class MainProcessFailed(RuntimeError):
    """The main process could not do what all wait for; it says why."""


def in_processes() -> bool:
    """Whether other processes train with this one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return not in_processes() or dist.get_rank() == 0


def on_main(work: Callable[[], Result]) -> Result:
    """Do something in the main process, while the others wait.

    Args:
        work: is called there, once; what it returns can be pickled.

    Returns:
        What it returned, in all processes.

    Raises:
        MainProcessFailed: in the others, where it raised something.
    """
    if not in_processes():
        return work()
    patient = _patient(dist.group.WORLD)
    outcome: list[Any] = [False, None]
    try:
        if is_main():
            outcome = [True, work()]
    finally:
        dist.broadcast_object_list(outcome, group=patient)
    if not outcome[0]:
        raise MainProcessFailed
    return outcome[1]


@contextmanager
def first_of_each_machine() -> Iterator[None]:
    """Do something in one process of each machine, then in the others, which find what it left in the cache."""
    if not in_processes():
        yield
        return
    patient, first = _patient(dist.group.WORLD), get_cpu_distributed_information().local_rank == 0
    if not first:
        dist.barrier(group=patient)
    try:
        yield
    finally:
        if first:
            dist.barrier(group=patient)


@cache
def _patient(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """The same processes, who wait for each other as long as it takes: gloo gives up after half an hour otherwise."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=30))


def lengths_of_all(lengths: Sequence[int]) -> list[int]:
    """The lengths of inputs that any process reads, so that all aim at one target.

    Args:
        lengths: of those that this process reads, a part of the data or all of it.

    Returns:
        In no order. Where each process reads all, each length as many times as there are processes.
    """
    if not in_processes():
        return list(lengths)
    return list(sum(gather_object([Counter(lengths)]), Counter()).elements())


@contextmanager
def others_needed() -> Iterator[None]:
    """Say in a sentence that another process is no more.

    Raises:
        ConnectionError: in place of what the library that connects them raises.
    """
    try:
        yield
    except RuntimeError as error:
        if not (in_processes() and _GONE.search(str(error))):
            raise
        raise ConnectionError(
            "Another process of this training is no more; start the same command again: it goes on from the last "
            "checkpoint."
        ) from error
