"""Whether a Hamiltonian sampler reaches all energies: their distribution and that of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.diagnostics import bfmi
from ppl_gen.report.density import estimate_density
from ppl_gen.report.figures.panel import Panel, plain_axes
from ppl_gen.report.styles import Style
from ppl_gen.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["panels"]

Array: TypeAlias = NDArray[np.float64]

_POINTS = 160


def panels(view: View, parameters: Sequence[str] | None = None) -> list[Panel]:
    """Return a picture for each method whose draws have an energy.

    Args:
        view: What was found.
        parameters: Not looked at: the energy is of whole draws.
    """
    found = []
    for method in view.methods:
        energy = view.assessment.sample_stats.get(method, {}).get("energy")
        if energy is None or energy.shape[1] < 4 or not np.isfinite(energy).all():
            continue
        if np.ptp(energy) == 0.0:
            continue
        found.append(
            Panel(
                title=method,
                kind=f"Densities of the energy of {method} and of its changes from draw to draw",
                caption=_caption(energy, view.assessment.thresholds.min_bfmi),
                draw=partial(_draw, energy, view.styles[method]),
                methods=[method],
            )
        )
    return found


def _caption(energy: Array, least: float) -> str:
    lowest = float(np.min(bfmi(energy)))
    if lowest < least:
        return (
            f"The changes (dashed) are much narrower than the energies (filled): E-BFMI is "
            f"{lowest:.2f}, below {least:g}, so that the tails are reached too seldom."
        )
    return (
        f"The changes (dashed) are wide enough for the energies (filled): E-BFMI is {lowest:.2f}, "
        f"not below {least:g}."
    )


def _draw(energy: Array, style: Style, axes: Axes, ink: str) -> None:
    centred = (energy - energy.mean(axis=1, keepdims=True)).ravel()
    changes = np.diff(energy, axis=1).ravel()
    both = np.concatenate([centred, changes])
    low, high = np.quantile(both, [0.002, 0.998])
    if high <= low or np.ptp(changes) == 0.0:
        low, high = low - 1.0, high + 1.0
    grid = np.linspace(low, high, _POINTS)
    filled = estimate_density(centred, low, high, _POINTS)
    axes.fill_between(grid, filled, color=style.colour, alpha=0.35, linewidth=0)
    if np.ptp(changes) > 0.0:
        dashed = estimate_density(changes, low, high, _POINTS)
        axes.plot(grid, dashed, color=ink, linestyle="--", linewidth=1.2)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("energy less its mean")
    plain_axes(axes, ink, left=False)
