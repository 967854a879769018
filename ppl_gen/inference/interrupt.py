"""Ctrl-C that waits for a moment at which a run can be gone on with."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["deferred_interrupt"]


@contextmanager
def deferred_interrupt(note: Callable[[], None]) -> Iterator[None]:
    """Have the first Ctrl-C inside the block noted; a second one stops at once.

    In another thread than the main one, or where the program has a handler of its own, nothing is
    changed.

    Args:
        note: Called at the first one.
    """
    noted = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if noted:
            signal.default_int_handler(number, frame)
        noted = True
        note()

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) != signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
