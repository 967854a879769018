"""What a terminal shows while chains run: a line for each, or one for many."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import torch

from ppl_gen.core.progress import Display, Speed, clock
from ppl_gen.inference.mcmc.state import Kernel, State

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["ChainProgress"]

# Of more chains, only the least, the median and the largest number are shown.
_MOST_LINES = 4
_WIDEST_BAR = 40
_NARROWEST_BAR = 8


class _Now(NamedTuple):
    """How far each chain is."""

    made: list[int]
    divergences: list[int]
    step_sizes: list[float]
    speeds: list[float]


class ChainProgress(Display):
    """How far chains are, their divergences, step sizes and speeds.

    Args:
        description: What is running.
        state: The chains, which advance in other threads.
        chains: Number of chains of it that run.
        draws: Number of draws that each keeps in the end.
        enabled: Whether to show anything.
    """

    def __init__(
        self, description: str, state: State, chains: int, draws: int, *, enabled: bool
    ) -> None:
        super().__init__(enabled=enabled)
        self.description = description
        self.state = state
        self.chains = chains
        self.total = state.warmup + draws * state.thinning
        self._speed = Speed(self._of(state.transition))

    def table(self, width: int) -> RenderableType:
        """Return a table with a row for each chain, or with one for many."""
        from rich.progress_bar import ProgressBar as Bar
        from rich.table import Table

        head, rows = self._head(), self._rows()
        columns = list(zip(head, *(cells for _, cells in rows), strict=True))
        # Each column has a space on its right.
        used = sum(max(map(len, column)) + 1 for column in columns)
        bar = min(width - used - 1, _WIDEST_BAR)
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(no_wrap=True)
        if bar >= _NARROWEST_BAR:
            grid.add_column(width=bar)
        for _ in head[1:]:
            grid.add_column(no_wrap=True, justify="right")

        def add(cells: list[str], middle: RenderableType) -> None:
            grid.add_row(cells[0], *([middle] if bar >= _NARROWEST_BAR else []), *cells[1:])

        add(head, "")
        for share, cells in rows:
            add(cells, Bar(1.0, share, width=bar))
        return grid

    def line(self) -> str:
        """Return the same of all chains together, in words."""
        name, _, total, *head = self._head()
        _, (chains, phase, made, *cells) = self._together(self._now())
        rest = ", ".join(f"{h} {c}" for h, c in zip(head, cells, strict=True))
        return f"{name}: {chains} {phase.strip()}, {made} {total}, {rest}"

    def update(self) -> None:
        """Show how far the chains are, where it is time."""
        self.refresh()

    def _of(self, tensor: torch.Tensor) -> list[int]:
        return [int(value) for value in tensor[: self.chains].tolist()]

    def _now(self) -> _Now:
        made = self._of(self.state.transition)
        return _Now(
            made=made,
            divergences=self._of(self.state.divergences),
            step_sizes=self.state.step_size[: self.chains].tolist(),
            speeds=self._speed(made),
        )

    def _head(self) -> list[str]:
        numbers = ["divergences", "step size", "draws/s", "time left"]
        return [self.description, "", f"of {self.total} draws", *numbers[self._unasked :]]

    @property
    def _unasked(self) -> int:
        """Number of the columns of numbers that are left out: a random walk cannot diverge."""
        return int(self.state.kernel == Kernel.RANDOM_WALK)

    def _rows(self) -> list[tuple[float, list[str]]]:
        """Return the share done and the cells of each row."""
        now = self._now()
        if self.chains > _MOST_LINES:
            return [self._together(now)]
        rows = []
        for i, (made, diverged, step_size, speed) in enumerate(zip(*now, strict=True)):
            left = clock(self.total - made, speed)
            numbers = [str(diverged), f"{step_size:#.3g}", _short(speed), left]
            cells = [f"chain {i + 1}", self._phase(made), str(made), *numbers[self._unasked :]]
            rows.append((made / self.total, cells))
        return rows

    def _together(self, now: _Now) -> tuple[float, list[str]]:
        """Return the share done and the cells of one row for all chains."""
        made = now.made
        last = min(range(self.chains), key=made.__getitem__)
        numbers = [
            str(sum(now.divergences)),
            _spread(now.step_sizes, "#.2g"),
            _short(sum(now.speeds)),
            clock(self.total - made[last], now.speeds[last]),
        ]
        cells = [
            "1 chain" if self.chains == 1 else f"{self.chains} chains",
            self._phase(made[last]),
            _spread(made, ".0f"),
            *numbers[self._unasked :],
        ]
        return sum(made) / (self.total * self.chains), cells

    def _phase(self, made: int) -> str:
        if made >= self.total:
            return "    done"  # as wide, so that the bar keeps its width
        return " warm-up" if made < self.state.warmup else "sampling"


def _spread(values: Sequence[float], form: str) -> str:
    """Return the least, the median and the largest, or one where they look the same."""
    texts = [f"{value:{form}}" for value in (min(values), median(values), max(values))]
    return texts[0] if texts[0] == texts[2] else "<".join(texts)


def _short(speed: float) -> str:
    return f"{speed / 1000:.3g}k" if speed >= 1000 else f"{speed:.3g}"
