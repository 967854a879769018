"""Whether data replicated from a fitted model look like those it was fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.judge.findings import PredictiveFit
from ppl_gen.report.figures.panel import Panel, plain_axes
from ppl_gen.report.numbers import listed
from ppl_gen.report.styles import Style
from ppl_gen.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["panels"]

Array: TypeAlias = NDArray[np.float64]

_POINTS = 100
_LINES = 12
# Data of so few different values are counted.
_DISCRETE = 12
# The picture is of the model, and much the same for each method that can be trusted.
_METHODS = 2
_SITES = 2


def panels(view: View, parameters: Sequence[str] | None = None) -> list[Panel]:
    """Return a picture of each observed site with replicated data, for the reference and another.

    Args:
        view: What was found.
        parameters: Not looked at: data are predicted by all of them.
    """
    found = []
    fits = view.assessment.fits
    for method in sorted(fits, key=lambda name: name != view.reference)[:_METHODS]:
        fit = fits[method]
        sites = [site for site in fit.replicated if site in fit.observed]
        for site in sites[:_SITES]:
            replicated = np.asarray(fit.replicated[site], dtype=float)
            observed = np.asarray(fit.observed[site], dtype=float)
            replicated = replicated.reshape(len(replicated), -1)[:_LINES]
            finite = np.isfinite(replicated).all() and np.isfinite(observed).all()
            if observed.size < 2 or replicated.size == 0 or not finite:
                continue
            found.append(
                Panel(
                    title=f"{site} by {method}",
                    kind=f"Observed {site} and data replicated from {method}",
                    caption=_caption(fit, site),
                    draw=partial(_draw, replicated, observed.ravel(), view.styles[method]),
                    methods=[method],
                )
            )
    return found


def _caption(fit: PredictiveFit, site: str) -> str:
    chances = fit.p_values.get(site, {})
    if not chances:
        return "Observed (dark) among replicated data (thin lines)."
    odd = [name for name, p in chances.items() if min(p, 1.0 - p) < 0.025]
    if odd:
        seen = listed([f"{name} (p = {chances[name]:.2g})" for name in odd])
        return f"The model does not reproduce the {seen} of the data."
    names = listed(list(chances))
    return f"Replicated data (thin) reproduce the {names} of those observed (dark)."


def _draw(replicated: Array, observed: Array, style: Style, axes: Axes, ink: str) -> None:
    values = np.unique(observed)
    if len(values) <= _DISCRETE and np.isin(replicated, values).all():
        _draw_counts(replicated, observed, values, style, axes, ink)
    else:
        _draw_functions(replicated, observed, style, axes, ink)


def _draw_counts(
    replicated: Array, observed: Array, values: Array, style: Style, axes: Axes, ink: str
) -> None:
    shares = (replicated[:, :, None] == values).mean(axis=1)
    low, high = np.quantile(shares, [0.05, 0.95], axis=0)
    places = np.arange(len(values))
    axes.bar(places, (observed[:, None] == values).mean(axis=0), color=ink, alpha=0.3, width=0.6)
    middle = shares.mean(axis=0)
    axes.errorbar(
        places,
        middle,
        [middle - np.minimum(low, middle), np.maximum(high, middle) - middle],
        fmt=style.marker,
        color=style.colour,
        markersize=4,
        linewidth=1.4,
    )
    plain_axes(axes, ink)
    axes.set_xticks(places, [f"{value:g}" for value in values])


def _draw_functions(replicated: Array, observed: Array, style: Style, axes: Axes, ink: str) -> None:
    """Draw distribution functions, which need no bandwidth and so suit any number of data."""
    for values in replicated:
        steps, shares = _function(values)
        axes.step(
            steps, shares, where="post", color=style.colour, linestyle="-", alpha=0.4, linewidth=0.7
        )
    steps, shares = _function(observed)
    axes.step(steps, shares, where="post", color=ink, linewidth=1.7)
    everything = np.concatenate([replicated.ravel(), observed])
    low, high = np.quantile(everything, [0.005, 0.995])
    low, high = min(low, float(observed.min())), max(high, float(observed.max()))
    margin = 0.05 * (high - low) or 1.0
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(0.0, 1.02)
    plain_axes(axes, ink)


def _function(values: Array) -> tuple[Array, Array]:
    shares = np.linspace(0.0, 1.0, min(len(values) + 1, _POINTS))
    ordered = np.sort(values)
    steps = ordered[np.minimum((shares * len(values)).astype(int), len(values) - 1)]
    return steps, np.minimum(shares + 1.0 / len(values), 1.0)
