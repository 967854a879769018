"""Progress on standard error: how far, how fast, how long still."""

from __future__ import annotations

import random
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Display", "ProgressBar", "Speed", "announced", "clock"]

_QUIET_SECONDS = 2.0


class Display(ABC):
    """What is shown of a run that takes over two seconds.

    On a terminal it is redrawn in place. Anywhere else, such as in a log, a line is added every
    30 seconds, and a last one at the end where there were any.

    Args:
        enabled: Whether to show anything.
    """

    _REDRAW_SECONDS = 0.2
    _LINE_SECONDS = 30.0

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.started = self._last = time.monotonic()
        self._wait = _QUIET_SECONDS
        self._console: Console | None = None
        self._live: Any = None
        self._lines = 0

    @abstractmethod
    def table(self, width: int) -> RenderableType:
        """Return what a terminal of that many columns shows."""

    @abstractmethod
    def line(self) -> str:
        """Return the same in words."""

    def due(self) -> bool:
        """Return whether it is time to show something, so that a costly status is worth it."""
        return self.enabled and time.monotonic() - self._last >= self._wait

    def refresh(self) -> None:
        """Show the present state, where it is time."""
        if not self.due():
            return
        if self._console is None:
            self._start()
        if self._live is not None:
            self._draw()
        elif self.due():
            self._print()
        else:
            return
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        """Start the clock."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the display as it is at the end."""
        if self._live is not None:
            try:
                self._draw()
            finally:
                self._live.stop()
        elif self._lines:
            self._print()

    def _start(self) -> None:
        self._console = console = _console()
        from rich.live import Live

        if _redraws(console):
            self._wait = self._REDRAW_SECONDS
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()
        else:
            self._wait = self._LINE_SECONDS

    def _draw(self) -> None:
        assert self._console is not None
        self._live.update(self.table(self._console.width), refresh=True)

    def _print(self) -> None:
        self._lines += 1
        print(self.line(), file=sys.stderr, flush=True)


class ProgressBar(Display):
    """A progress bar of one run.

    Args:
        description: What is running.
        total: Number of steps.
        enabled: Whether to show anything.
        unit: What the steps are called.
        real_time: Of what is heard or seen as time passes: how many steps are a second of it. The
            speed is then also shown as a multiple of that.
    """

    def __init__(
        self,
        description: str,
        total: int,
        *,
        enabled: bool,
        unit: str = "steps",
        real_time: float | None = None,
    ) -> None:
        super().__init__(enabled=enabled)
        self.description = description
        self.total = total
        self.unit = unit
        self.real_time = real_time
        self.done = 0
        self._status = ""
        self._speed = Speed([0])

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
        if self.due():
            self._status = status
            self.refresh()

    def table(self, width: int) -> RenderableType:
        """Return one row with the bar."""
        from rich.progress_bar import ProgressBar as Bar
        from rich.table import Table

        (speed,) = self._speed([self.done])
        grid = Table.grid(padding=(0, 1))
        grid.add_row(
            self.description,
            Bar(self.total, self.done, width=min(40, max(10, width - 60))),
            f"{self.done}/{self.total}",
            self._status,
            self._rate(speed),
            clock(self.total - self.done, speed),
        )
        return grid

    def line(self) -> str:
        """Return the same in words."""
        (speed,) = self._speed([self.done])
        status = f", {self._status}" if self._status else ""
        return (
            f"{self.description}: {self.done} of {self.total} {self.unit}{status}, "
            f"{self._rate(speed)}, {clock(self.total - self.done, speed)} left"
        )

    def _rate(self, speed: float) -> str:
        number = f"{speed:.3g}" if speed < 1000 else f"{speed:,.0f}"
        shown = f"{number} {self.unit}/s"
        return f"{shown}, {speed / self.real_time:.2g} x real time" if self.real_time else shown


class Speed:
    """How many steps are made a second, of late.

    Args:
        done: Steps of each run at the start.
    """

    _SECONDS = 10.0

    def __init__(self, done: Sequence[int]) -> None:
        self._seen = deque([(time.monotonic(), list(done))])
        self._speeds = [0.0] * len(done)

    def __call__(self, done: Sequence[int]) -> list[float]:
        """Return the steps a second of each run; of one that has ended, its last speed.

        Args:
            done: Steps of each run by now.
        """
        now = time.monotonic()
        while len(self._seen) > 1 and now - self._seen[1][0] >= self._SECONDS:
            self._seen.popleft()
        before, steps = self._seen[0]
        seconds = max(now - before, 1e-9)
        for i, (count, latest) in enumerate(zip(done, self._seen[-1][1], strict=True)):
            if count > latest:
                self._speeds[i] = (count - steps[i]) / seconds
        self._seen.append((now, list(done)))
        return list(self._speeds)


def clock(steps: int, speed: float) -> str:
    """Return the time that so many steps take, in hours, minutes and seconds.

    Args:
        steps: Number of steps.
        speed: Steps a second.

    Example:
        >>> clock(7_300, 2.0)
        '1:00:50'
    """
    if steps and not speed:
        return "-:--:--"
    seconds = round(steps / speed) if steps else 0
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


@contextmanager
def announced(text: str, *, enabled: bool) -> Iterator[None]:
    """Say what is going on inside the block, if it takes over two seconds.

    Args:
        text: What is going on.
        enabled: Whether to say anything.
    """
    if not enabled:
        yield
        return
    shown: list[Any] = []

    def show() -> None:
        console = _console()
        if _redraws(console):
            shown.append(console.status(text))
            shown[0].start()
        else:
            print(text, file=sys.stderr, flush=True)

    timer = threading.Timer(_QUIET_SECONDS, show)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        for status in shown:
            status.stop()


def _console() -> Console:
    state = random.getstate()  # which rich draws from when it is loaded
    try:
        from rich.console import Console
    finally:
        random.setstate(state)
    return Console(stderr=True)


def _redraws(console: Console) -> bool:
    """Whether lines can be redrawn: rich alone takes a log for a terminal under FORCE_COLOR."""
    return console.is_jupyter or (console.is_interactive and sys.stderr.isatty())
