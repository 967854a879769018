"""An end to what takes too long, by the way that Ctrl-C takes."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from types import TracebackType
from typing import Self

__all__ = ["Deadline"]

_PAUSE = 0.001
_PAUSES = 20


class Deadline:
    """Interrupts the block after some seconds, as Ctrl-C would: chains keep what they have then.

    What ends by it ends with a `KeyboardInterrupt`, which the block lets through: `passed` says
    whose it is. Only the main thread can be interrupted; in another one, or where the program has
    a handler of its own for Ctrl-C, nothing happens.

    Args:
        seconds: How long the block may take.
    """

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._over = False
        self._lock = threading.Lock()
        self._timer = threading.Timer(max(seconds, 0.0), self._ring)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        """Start the clock."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the clock; an interrupt that is on its way arrives here."""
        try:
            with self._lock:
                self._over = True
            self._timer.cancel()
            if self._timer.is_alive():
                self._timer.join()
            if self.passed:
                for _ in range(_PAUSES):  # where it was taken note of already, none comes
                    time.sleep(_PAUSE)
        except KeyboardInterrupt:
            if not self.passed:
                raise

    def _ring(self) -> None:
        with self._lock:
            if not self._over:
                self.passed = True
                _thread.interrupt_main()
