"""The largest importance weights: how heavy their tail is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ppl_gen.judge.findings import WeightFindings
from ppl_gen.judge.wording import number
from ppl_gen.report.figures.panel import Panel, plain_axes
from ppl_gen.report.numbers import listed
from ppl_gen.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["panels"]


def panels(view: View, parameters: Sequence[str] | None = None) -> list[Panel]:
    """Return one picture of all methods; none where no method has weights.

    Args:
        view: What was found.
        parameters: Not looked at: weights are of whole draws.
    """
    weights = {
        name: found for name, found in view.assessment.weights.items() if len(found.log_weights)
    }
    if not weights:
        return []

    def draw(axes: Axes, ink: str) -> None:
        _draw(view, weights, axes, ink)

    return [
        Panel(
            title="Tails of the importance weights",
            kind=f"The largest importance weights of {listed(list(weights))}, in descending order",
            caption="\n".join(_caption(name, found) for name, found in weights.items()),
            draw=draw,
            methods=list(weights),
            width=4.2,
            height=2.4,
        )
    ]


def _caption(method: str, found: WeightFindings) -> str:
    largest = float(np.exp(found.log_weights[0]))
    if found.pareto_k == -np.inf:
        return f"{method}: all of the largest weights are equal: they have no tail."
    low, high = found.interval
    k = (
        f"k-hat {found.pareto_k:.2f}"
        if np.isfinite(found.pareto_k)
        else "k-hat cannot be estimated"
    )
    if np.isfinite(low) and np.isfinite(high):
        k += f" ({low:.2f} to {high:.2f})"
    side = "below" if found.pareto_k < found.threshold else "above"
    return (
        f"{method}: {k}, {side} the threshold of {found.threshold:.2f}; the largest weight of "
        f"{found.draws:,} draws carries {number(100 * largest)} % of the whole."
    )


def _draw(view: View, weights: Mapping[str, WeightFindings], axes: Axes, ink: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for method, found in weights.items():
        style = view.styles[method]
        count = len(found.log_weights)
        # Evenly spread on the axis, which is logarithmic.
        places = np.unique(np.geomspace(1, count, 120).astype(int))
        # Over the average weight, so that methods of different numbers of draws compare.
        height = np.exp(found.log_weights[places - 1]) * found.draws
        shown = height > 0.0
        axes.plot(
            places[shown],
            height[shown],
            color=style.colour,
            linestyle=style.line,
            marker=style.marker,
            markevery=0.25,
            markersize=3.5,
            linewidth=1.4,
        )
    axes.axhline(1.0, color=ink, linewidth=0.5, linestyle=":")
    axes.set_xlabel("rank of the weight")
    axes.set_ylabel("times the average")
    plain_axes(axes, ink)
