"""Distribution functions less that of the reference, with the band that chance alone stays in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.diagnostics import ecdf_band
from ppl_gen.judge.wording import percent
from ppl_gen.report.figures.panel import Panel, plain_axes
from ppl_gen.report.numbers import listed
from ppl_gen.report.styles import Style
from ppl_gen.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["panels"]

Array: TypeAlias = NDArray[np.float64]

_POINTS = 50
_GRID = np.arange(1, _POINTS) / _POINTS
# Probability that a right method leaves the band in one picture.
_ALPHA = 0.05
# The width of a band goes with one over the square root of the number of draws: those of more draws
# are taken from the one of so many, which keeps them quick.
_LARGEST = 500


def panels(view: View, parameters: Sequence[str]) -> list[Panel]:
    """Return a picture for each parameter; none where there is no reference.

    Args:
        view: What was found.
        parameters: Names of the parameters.
    """
    if not view.is_compared:
        return []
    return [_panel(view, parameter) for parameter in parameters]


@dataclass(frozen=True)
class _Difference:
    """The distribution function of one method less that of the reference, and its band."""

    curve: Array
    low: Array
    high: Array

    @property
    def leaves(self) -> bool:
        return bool(((self.curve < self.low) | (self.curve > self.high)).any())


def _panel(view: View, parameter: str) -> Panel:
    differences = _differences(view, parameter)

    def draw(axes: Axes, ink: str) -> None:
        _draw(differences, view.styles, axes, ink)

    return Panel(
        title=parameter,
        kind=f"Differences between the distribution functions of {parameter} by "
        f"{listed(view.others)} and that by {view.anchor}",
        caption=_caption(differences),
        draw=draw,
        methods=view.others,
    )


def _differences(view: View, parameter: str) -> dict[str, _Difference]:
    draws, rows = view.draws(parameter), view.rows(parameter)
    target = np.sort(draws[view.anchor].ravel())
    edges = np.quantile(target, _GRID)
    # Ties, as of a discrete quantity, give the reference itself a difference to the grid.
    own = np.searchsorted(target, edges, side="right") / len(target)
    worth = {name: _worth(rows[name], values.size) for name, values in draws.items()}
    differences = {}
    for method in view.others:
        values = np.sort(draws[method].ravel())
        curve = np.searchsorted(values, edges, side="right") / len(values) - own
        # As many draws as have the variance of the difference of both samples.
        size = 1.0 / (1.0 / worth[method] + 1.0 / worth[view.anchor])
        low, high = _band(max(int(size), 2))
        differences[method] = _Difference(curve, low, high)
    return differences


def _worth(row: Mapping[str, float], draws: int) -> float:
    """Return how many independent draws a method's are worth."""
    found = [row[name] for name in ("ess_bulk", "ess_tail") if np.isfinite(row[name])]
    return float(np.clip(min(found, default=draws), 1.0, draws))


@lru_cache(maxsize=256)
def _band(size: int) -> tuple[Array, Array]:
    exact = min(size, _LARGEST)
    low, high = ecdf_band(exact, _GRID, _ALPHA)
    narrower = np.sqrt(exact / size)
    return (low - _GRID) * narrower, (high - _GRID) * narrower


def _caption(differences: Mapping[str, _Difference]) -> str:
    words: list[str] = []
    for method, difference in differences.items():
        if difference.leaves:
            worst = int(np.abs(difference.curve).argmax())
            share, point = percent(_GRID[worst] + difference.curve[worst]), percent(_GRID[worst])
            words.append(
                f"{share} instead of {point}"
                if words
                else f"{share} of its draws are where {point} should be"
            )
            words[-1] = f"{method}: {words[-1]}"
    inside = [method for method, difference in differences.items() if not difference.leaves]
    if inside:
        words.append(f"{listed(inside)} {'stays' if len(inside) == 1 else 'stay'} in the band")
    return f"{'; '.join(words)}."


def _draw(
    differences: Mapping[str, _Difference], styles: Mapping[str, Style], axes: Axes, ink: str
) -> None:
    at = np.concatenate([[0.0], _GRID, [1.0]])
    widest = max(differences.values(), key=lambda difference: float(difference.high.max()))
    low, high = np.pad(widest.low, 1), np.pad(widest.high, 1)
    axes.fill_between(at, low, high, color="#8a8f98", alpha=0.3, linewidth=0)
    axes.axhline(0.0, color=ink, linewidth=0.5)
    for method, difference in differences.items():
        style = styles[method]
        curve = np.pad(difference.curve, 1)
        axes.plot(at, curve, color=style.colour, linestyle=style.line, linewidth=1.4)
    reach = max(float(np.abs(axes.get_ylim()).max()), 1e-3)
    axes.set_ylim(-reach, reach)
    axes.set_xlim(0.0, 1.0)
    plain_axes(axes, ink)
