"""Intervals of the parameters, on the scale of the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ppl_gen.report.figures.panel import Panel, plain_axes
from ppl_gen.report.numbers import listed
from ppl_gen.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["panels"]

Array = NDArray[np.float64]

_SHOWN = 20
# How far from the middle of the reference the axis goes, in its standard deviations.
_WIDEST = 6.0
_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def panels(view: View, parameters: Sequence[str]) -> list[Panel]:
    """Return one picture of the first 20 parameters, each in units of its reference.

    Args:
        view: What was found.
        parameters: Names of the parameters.
    """
    shown = list(parameters)[:_SHOWN]
    if not shown:
        return []
    intervals = {name: _intervals(view, name) for name in shown}
    rows = len(shown) * (len(view.methods) + 1)

    def draw(axes: Axes, ink: str) -> None:
        _draw(view, intervals, axes, ink)

    return [
        Panel(
            title="Intervals",
            kind=f"Intervals of {listed(shown[:3])}{' and others' * (len(shown) > 3)} by method",
            caption=_caption(view, intervals),
            draw=draw,
            methods=view.methods,
            width=4.6,
            height=0.55 + 0.095 * rows,
        )
    ]


def _intervals(view: View, parameter: str) -> dict[str, Array]:
    """Return quantiles by method, less the mean and over the sd of the reference."""
    draws = view.draws(parameter)
    unit = draws[view.anchor]
    centre, scale = unit.mean(), unit.std() or 1.0
    return {method: (np.quantile(v, _LEVELS) - centre) / scale for method, v in draws.items()}


def _caption(view: View, intervals: Mapping[str, Mapping[str, Array]]) -> str:
    unit = (
        f"Median, middle half and 5 to 95 % interval of each parameter, less the mean of "
        f"{view.anchor} and in its standard deviations."
    )
    if not view.is_compared:
        return unit
    anchor, seen = view.anchor, []
    for method in view.others:
        ratios = {
            name: (q[method][-1] - q[method][0]) / width
            for name, q in intervals.items()
            if (width := q[anchor][-1] - q[anchor][0]) > 0.0
        }
        if not ratios:
            continue
        worst = max(ratios, key=lambda name: abs(np.log(max(ratios[name], 1e-12))))
        seen.append(f"{method} {ratios[worst]:.2g} times as wide in {worst}")
    return f"{unit} Furthest from the width of {anchor}: {'; '.join(seen)}." if seen else unit


def _draw(view: View, intervals: Mapping[str, Mapping[str, Array]], axes: Axes, ink: str) -> None:

    ends = np.array([q[[0, -1]] for by in intervals.values() for q in by.values()])
    low = float(np.clip(ends[:, 0].min() - 0.2, -_WIDEST, -1.9))
    high = float(np.clip(ends[:, 1].max() + 0.2, 1.9, _WIDEST))
    step = len(view.methods) + 1
    for place, by_method in enumerate(intervals.values()):
        for offset, method in enumerate(view.legend):
            style, q = view.styles[method], by_method[method]
            height = -(place * step + offset)
            far = q[2] < low or q[2] > high
            if far:
                left = q[2] < low
                axes.text(
                    low if left else high,
                    height,
                    f"\N{LEFTWARDS ARROW} {method}" if left else f"{method} \N{RIGHTWARDS ARROW}",
                    color=ink,
                    fontsize=7,
                    ha="left" if left else "right",
                    va="center",
                    parse_math=False,
                )
                continue
            axes.plot(
                q[[0, 4]], [height] * 2, color=style.colour, linestyle=style.line, linewidth=1.0
            )
            axes.plot(
                q[[1, 3]], [height] * 2, color=style.colour, linewidth=3.0, solid_capstyle="butt"
            )
            axes.plot(q[2], height, style.marker, color=style.colour, markersize=3.6)
    centre = (len(view.methods) - 1) / 2
    axes.axvline(0.0, color=ink, linewidth=0.5, linestyle=":", zorder=0)
    axes.set_xlim(low, high)
    axes.set_ylim(-step * len(intervals) + 0.4, 0.6)
    plain_axes(axes, ink)
    axes.spines["left"].set_visible(False)
    places = [-(place * step + centre) for place in range(len(intervals))]
    axes.set_yticks(places, [_short(name) for name in intervals])
    for label in axes.get_yticklabels():
        label.set(parse_math=False, color=ink)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"standard deviations of {_short(view.anchor)}", parse_math=False)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:12]}\N{HORIZONTAL ELLIPSIS}{name[-11:]}"
