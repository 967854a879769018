"""How the objective of each optimisation went."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.report.figures.panel import Panel, plain_axes
from ppl_gen.report.numbers import count
from ppl_gen.report.styles import Style
from ppl_gen.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["panels"]

Array: TypeAlias = NDArray[np.float64]

_BLOCKS = 150
# Fewer values have no tenths to be averaged.
_FEW = 20


def panels(view: View, parameters: Sequence[str] | None = None) -> list[Panel]:
    """Return a picture for each method with a history.

    Args:
        view: What was found.
        parameters: Not looked at: the objective is of all of them.
    """
    found = []
    for method in view.methods:
        history = view.assessment.histories.get(method)
        if history is None or not np.isfinite(history).any():
            continue
        found.append(
            Panel(
                title=method,
                kind=f"The ELBO of {method} by step",
                caption=_caption(-history),
                draw=partial(_draw, -history, view.styles[method]),
                methods=[method],
            )
        )
    return found


def _caption(objective: Array) -> str:
    finite = objective[np.isfinite(objective)]
    text = _few(finite) if len(finite) < _FEW else _many(finite, len(objective))
    lost = len(objective) - len(finite)
    return f"{text}; {count(lost, 'value')} not finite." if lost else f"{text}."


def _few(values: Array) -> str:
    """Say what there is of an objective that was kept too seldom to show a course."""
    if len(values) == 1:
        return f"One value was kept, {values[0]:.5g} nats: it shows no course"
    ends = f"{values[0]:.5g} nats at the first, {values[-1]:.5g} at the last"
    if len(values) == 2:
        return f"Two values were kept: {ends}. They show no course"
    return f"{count(len(values), 'value')} were kept: {ends}, {values[-2]:.5g} at the one before"


def _many(values: Array, steps: int) -> str:
    tenth = len(values) // 10
    last, before = values[-tenth:].mean(), values[-2 * tenth : -tenth].mean()
    side = "more" if last >= before else "less"
    return (
        f"{count(steps, 'step')}; {last:.5g} nats on average over the last tenth, "
        f"{abs(last - before):.2g} {side} than in the tenth before"
    )


def _draw(objective: Array, style: Style, axes: Axes, ink: str) -> None:
    steps = np.arange(1, len(objective) + 1)
    keep = np.isfinite(objective)
    steps, values = steps[keep], objective[keep]
    if len(values) < _FEW:
        axes.plot(steps, values, marker=style.marker, color=style.colour, linestyle=style.line)
        axes.set_xlabel("value that was kept")
        plain_axes(axes, ink)
        axes.set_xticks(np.unique(np.linspace(1, len(objective), 5).astype(int)))
        return
    # Means of blocks that are as wide as each other on the axis, which is logarithmic.
    edges = np.unique(np.geomspace(1, len(values), _BLOCKS).astype(int)) - 1
    counts = np.diff(np.append(edges, len(values)))
    means = np.add.reduceat(values, edges) / counts
    lowest = np.minimum.reduceat(values, edges)
    highest = np.maximum.reduceat(values, edges)
    axes.set_xscale("log")
    axes.fill_between(steps[edges], lowest, highest, color=style.colour, alpha=0.2, linewidth=0)
    axes.plot(steps[edges], means, color=style.colour, linestyle=style.line, linewidth=1.4)
    # The first steps are so far below that the last ones would be a flat line.
    half = values[len(values) // 2 :]
    spread = max(float(half.max() - np.quantile(half, 0.05)), 1e-6 * abs(float(half[-1])), 1e-12)
    bottom = max(float(values.min()), float(half.min()) - 6.0 * spread)
    axes.set_ylim(bottom - 0.3 * spread, float(values.max()) + 0.3 * spread)
    axes.set_xlabel("step")
    plain_axes(axes, ink)
