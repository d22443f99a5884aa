# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What becomes of SIGTERM, by which machines are taken away and jobs ended."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """SIGTERM has ended this process, as Ctrl-C would; `status` is what a shell expects then."""

    status = 128 + signal.SIGTERM


@contextmanager
def on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Act when SIGTERM comes, rather than die. Only the main thread can; in another nothing changes.

    Args:
        act: is called in the middle of whatever goes on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
