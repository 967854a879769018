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
# A method that evaluates its objective so seldom has no steps to be averaged.
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
        if history is None or np.isfinite(history).sum() < 2:
            continue
        found.append(
            Panel(
                title=method,
                kind=f"The ELBO of {method} by step",
                caption=_caption(-history),
                draw=partial(_draw, -history, view.styles[method]),
            )
        )
    return found


def _caption(objective: Array) -> str:
    finite = objective[np.isfinite(objective)]
    if len(finite) < _FEW:
        change = abs(finite[-1] - finite[-2])
        return (
            f"{count(len(finite), 'evaluation')}; {finite[-1]:.5g} nats at the last, "
            f"{change:.2g} from the one before."
        )
    tenth = max(len(finite) // 10, 1)
    last, before = finite[-tenth:], finite[-2 * tenth : -tenth]
    lost = len(objective) - len(finite)
    text = f"{count(len(objective), 'step')}; {last.mean():.5g} nats on average over the last tenth"
    if len(before):
        change = last.mean() - before.mean()
        text += (
            f", {abs(change):.2g} {'more' if change >= 0.0 else 'less'} than in the tenth before"
        )
    return f"{text}; {count(lost, 'value')} not finite." if lost else f"{text}."


def _draw(objective: Array, style: Style, axes: Axes, ink: str) -> None:
    steps = np.arange(1, len(objective) + 1)
    keep = np.isfinite(objective)
    steps, values = steps[keep], objective[keep]
    if len(values) < _FEW:
        axes.plot(steps, values, style.marker, color=style.colour, linestyle=style.line)
        axes.set_xlabel("evaluation")
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
