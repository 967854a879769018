"""Pairs of parameters: where half and nine tenths of each method's draws are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.report.figures.panel import Panel, plain_axes
from ppl_gen.report.numbers import signed
from ppl_gen.report.styles import Style
from ppl_gen.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["panels", "worst_pairs"]

Array: TypeAlias = NDArray[np.float64]

_GRID = 48
_SHARES = (0.9, 0.5)
# How far from the middle of the reference the axes go, in its standard deviations.
_WIDEST = 5.0
_CANDIDATES = 40
_SHOWN = 4


def panels(view: View, parameters: Sequence[str] | None = None) -> list[Panel]:
    """Return pictures of the pairs whose correlation differs most from that of the reference.

    Args:
        view: What was found.
        parameters: Names of the parameters to choose pairs from, the first 40; None: the worst.
    """
    return [_panel(view, pair) for pair in worst_pairs(view, parameters)]


def worst_pairs(view: View, parameters: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Return pairs whose correlation differs most from that of the reference, the worst first.

    Without a reference, those that are correlated most.

    Args:
        view: What was found.
        parameters: Names of the parameters to choose pairs from, the first 40; None: the worst.
    """
    names = list(view.worst_first if parameters is None else parameters)[:_CANDIDATES]
    if len(names) < 2:
        return []
    draws = {name: view.draws(name) for name in names}
    methods = list(next(iter(draws.values())))
    tables = {
        method: _correlations(np.stack([draws[name][method].ravel() for name in names]))
        for method in methods
    }
    base = tables[view.reference] if view.reference in tables else np.zeros((len(names),) * 2)
    difference = np.max([np.abs(table - base) for table in tables.values()], axis=0)
    pairs = list(combinations(range(len(names)), 2))
    pairs.sort(key=lambda pair: -difference[pair])
    return [(names[i], names[j]) for i, j in pairs[:_SHOWN]]


def _correlations(draws: Array) -> Array:
    """Return correlations of rows; those of a row that does not vary are zero."""
    centred = draws - draws.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.square(centred).sum(axis=1, keepdims=True))
    unit = np.divide(centred, scale, out=np.zeros_like(centred), where=scale > 0.0)
    return np.asarray(unit @ unit.T)


def _panel(view: View, pair: tuple[str, str]) -> Panel:
    first, second = (view.draws(name) for name in pair)
    correlations = {
        method: float(
            _correlations(np.stack([first[method].ravel(), second[method].ravel()]))[0, 1]
        )
        for method in first
    }
    # The reference first.
    ordered = sorted(correlations, key=lambda name: name != view.reference)
    seen = ", ".join(f"{signed(correlations[name])} by {name}" for name in ordered)
    return Panel(
        title=f"{pair[0]} and {pair[1]}",
        kind=f"Where most draws of {pair[0]} (across) and {pair[1]} (up) are",
        caption=f"Correlation {seen}.",
        draw=partial(_draw, first, second, view.reference, view.styles),
        methods=view.methods,
        height=2.4,
    )


def _draw(
    first: Mapping[str, Array],
    second: Mapping[str, Array],
    reference: str | None,
    styles: Mapping[str, Style],
    axes: Axes,
    ink: str,
) -> None:
    across, up = _range(first, reference), _range(second, reference)
    # The reference first, so that lines are seen on it.
    for method in sorted(first, key=lambda name: name != reference):
        style = styles[method]
        x, y = first[method].ravel(), second[method].ravel()
        found = _shares(x, y, across, up)
        if found is None:
            axes.plot(x[:50], y[:50], style.marker, color=style.colour, markersize=2.5)
            continue
        density, levels = found
        x_grid, y_grid = (np.linspace(low, high, _GRID) for low, high in (across, up))
        if method == reference:
            alphas = [0.25, 0.35]
            for level, alpha in zip(levels, alphas, strict=True):
                axes.contourf(
                    x_grid, y_grid, density.T, [level, np.inf], colors=[style.colour], alpha=alpha
                )
        else:
            axes.contour(
                x_grid,
                y_grid,
                density.T,
                levels,
                colors=[style.colour],
                linestyles=[style.line],
                linewidths=1.3,
            )
    axes.set_xlim(*across)
    axes.set_ylim(*up)
    plain_axes(axes, ink)


def _range(draws: Mapping[str, Array], reference: str | None) -> tuple[float, float]:
    anchor = next(iter(draws.values())) if reference is None else draws[reference]
    centre = float(np.median(anchor))
    lower, upper = np.quantile(anchor, [0.25, 0.75])
    widest = _WIDEST * float((upper - lower) / 1.349 or np.ptp(anchor) or 1.0)
    ends = np.array([np.quantile(values, [0.005, 0.995]) for values in draws.values()])
    low, high = np.clip([ends[:, 0].min(), ends[:, 1].max()], centre - widest, centre + widest)
    margin = 0.08 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _shares(
    x: Array, y: Array, across: tuple[float, float], up: tuple[float, float]
) -> tuple[Array, list[float]] | None:
    """Return the density on the grid, and above which level each share of the draws is.

    None where the draws do not vary, or too few are in the picture.
    """
    from scipy.ndimage import gaussian_filter

    cells = [(high - low) / (_GRID - 1) for low, high in (across, up)]
    ranges = [
        (low - cell / 2, high + cell / 2)
        for (low, high), cell in zip((across, up), cells, strict=True)
    ]
    counts, _, _ = np.histogram2d(x, y, bins=_GRID, range=ranges)
    if counts.sum() < 20 or np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return None
    # Scott's rule, but no narrower than a cell.
    widths = [
        max(np.std(v) * len(v) ** (-1 / 6) / cell, 0.8)
        for v, cell in zip((x, y), cells, strict=True)
    ]
    density = gaussian_filter(counts, [min(width, 3.0) for width in widths], mode="constant")
    ordered = np.sort(density, axis=None)[::-1]
    inside = np.cumsum(ordered) / ordered.sum()
    levels = [float(ordered[np.searchsorted(inside, share)]) for share in _SHARES]
    return (density, levels) if 0.0 < levels[0] < levels[1] < ordered[0] else None
