"""The marginal distributions of the methods, drawn over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ppl_gen.report.captions import errors_in_words
from ppl_gen.report.density import estimate_density
from ppl_gen.report.figures.panel import Panel, plain_axes
from ppl_gen.report.numbers import listed
from ppl_gen.report.styles import Style
from ppl_gen.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_densities", "panels"]

Array = NDArray[np.float64]

_POINTS = 160
# How far from the reference's median, in its (robust) standard deviations, an axis may go.
_WIDEST = 8.0
# How much taller than the reference another method may make the picture.
_TALLEST = 3.0


def panels(view: View, parameters: Sequence[str]) -> list[Panel]:
    """Return a picture for each parameter, the reference filled.

    Args:
        view: What was found.
        parameters: Names of the parameters.
    """
    return [
        Panel(
            title=parameter,
            kind=f"Densities of {parameter} by {listed(view.methods)}",
            caption=errors_in_words(view, parameter),
            draw=partial(draw_densities, view.draws(parameter), view.reference, view.styles),
            methods=view.methods,
        )
        for parameter in parameters
    ]


def draw_densities(
    draws: Mapping[str, Array],
    reference: str | None,
    styles: Mapping[str, Style],
    axes: Axes,
    ink: str,
) -> None:
    """Draw the densities of one parameter: the reference filled, the others as lines.

    The axis holds the middle 99.8 % of each method, unless that is so far from the reference (or,
    without one, from the first) that it would squeeze it: a method that lies outside is then named
    at the edge.

    Args:
        draws: Draws by method, in any shape.
        reference: The method that is drawn filled; None for none.
        styles: How each method is drawn.
        axes: Where to draw.
        ink: Colour of axis and text.
    """
    anchor = reference if reference is not None else next(iter(draws))
    low, high = _range(draws, anchor)
    grid = np.linspace(low, high, _POINTS)
    peaks: dict[str, float] = {}
    # The reference first, so that lines are seen on it.
    for method in sorted(draws, key=lambda name: name != reference):
        style, values = styles[method], draws[method]
        if np.ptp(values) == 0.0:
            where = float(values.flat[0])
            axes.axvline(where, color=style.colour, linestyle=style.line, linewidth=1.5)
            continue
        density = estimate_density(values, low, high, _POINTS)
        peaks[method] = float(density.max())
        if method == reference:
            axes.fill_between(grid, density, color=style.colour, alpha=0.35, linewidth=0)
        axes.plot(grid, density, color=style.colour, linestyle=style.line, linewidth=1.5)
    tallest = max(peaks.values(), default=1.0)
    own = peaks.get(anchor, 0.0)
    top = min(tallest, _TALLEST * own) if own > 0.0 else tallest
    axes.set_ylim(0.0, 1.08 * (top or 1.0))
    axes.set_xlim(low, high)
    plain_axes(axes, ink, left=False)
    _name_what_is_outside(draws, low, high, axes, ink)


def _range(draws: Mapping[str, Array], anchor: str) -> tuple[float, float]:
    """Return the ends of the axis: all methods where they fit, the anchor in any case."""
    centre = float(np.median(draws[anchor]))
    lower, upper = np.quantile(draws[anchor], [0.25, 0.75])
    # The interquartile range, as a heavy tail has no standard deviation to speak of.
    widest = _WIDEST * float((upper - lower) / 1.349 or np.ptp(draws[anchor]) or np.inf)
    ends = np.array([np.quantile(values, [0.001, 0.999]) for values in draws.values()])
    low, high = np.clip([ends[:, 0].min(), ends[:, 1].max()], centre - widest, centre + widest)
    margin = 0.03 * (high - low) or max(abs(low), 1.0) * 0.05
    return float(low - margin), float(high + margin)


def _name_what_is_outside(
    draws: Mapping[str, Array], low: float, high: float, axes: Axes, ink: str
) -> None:
    """Write the names of methods that have most of their draws beyond an end of the axis."""
    height = 0.92
    for method, values in draws.items():
        below, above = float((values < low).mean()), float((values > high).mean())
        if max(below, above) <= 0.5:
            continue
        left = below > above
        axes.text(
            0.02 if left else 0.98,
            height,
            f"\N{LEFTWARDS ARROW} {method}" if left else f"{method} \N{RIGHTWARDS ARROW}",
            color=ink,
            fontsize=8,
            ha="left" if left else "right",
            va="top",
            transform=axes.transAxes,
            parse_math=False,
        )
        height -= 0.13
