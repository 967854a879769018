"""Progress bars: how far, how fast, how long still."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

__all__ = ["ProgressBar"]


class ProgressBar:
    """A progress bar on standard error, drawn only when a run takes over two seconds.

    Args:
        description: What is running.
        total: Number of steps.
        enabled: Whether to show anything.
    """

    _QUIET_SECONDS = 2.0
    _REFRESH_SECONDS = 0.2

    def __init__(self, description: str, total: int, *, enabled: bool) -> None:
        self.description = description
        self.total = total
        self.enabled = enabled
        self.done = 0
        self.started = self._drawn = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> ProgressBar:
        """Start the clock."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it was at the end."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
            self._bar.stop()

    def advance(self, status: str = "") -> None:
        """Count one step.

        Args:
            status: What to show beside the bar, such as the loss.
        """
        self.update(self.done + 1, status)

    def update(self, done: int, status: str = "") -> None:
        """Set the number of steps made.

        Args:
            done: Number of steps.
            status: What to show beside the bar.
        """
        self.done = done
        if not self.enabled:
            return
        now = time.monotonic()
        if now - self.started < self._QUIET_SECONDS or now - self._drawn < self._REFRESH_SECONDS:
            return
        self._drawn = now
        if self._bar is None:
            self._start()
        speed = f"{self.done / (now - self.started):.3g} steps/s"
        self._bar.update(self._task, completed=self.done, status=status, speed=speed)

    def due(self) -> bool:
        """Return whether the next `advance` may draw, so that a costly status is worth it."""
        return self.enabled and time.monotonic() - self._drawn >= self._REFRESH_SECONDS

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[status]}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task(
            self.description, total=self.total, status="", speed="", completed=self.done
        )
