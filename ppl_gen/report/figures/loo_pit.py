"""Whether each observation is where the others predict it: of the model, not of the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.diagnostics import ecdf_band, uniformity
from ppl_gen.report.figures.panel import Panel, plain_axes
from ppl_gen.report.numbers import count, listed
from ppl_gen.report.styles import Style
from ppl_gen.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["panels"]

Array: TypeAlias = NDArray[np.float64]

_ALPHA = 0.05
_POINTS = 40
# Beyond this the band is that of fewer observations, narrowed, which keeps it quick.
_LARGEST = 500


def panels(view: View, parameters: Sequence[str] | None = None) -> list[Panel]:
    """Return a picture for each observed site, of all methods that have its transforms.

    Args:
        view: What was found.
        parameters: Not looked at: observations are predicted by all of them.
    """
    sites: dict[str, dict[str, Array]] = {}
    for method, fit in view.assessment.fits.items():
        for site, values in fit.loo_pit.items():
            finite = np.asarray(values, dtype=float)[np.isfinite(values)]
            if len(finite) >= 5:
                sites.setdefault(site, {})[method] = np.clip(finite, 0.0, 1.0)
    return [
        Panel(
            title=site,
            kind=f"LOO-PIT of {site}: distribution functions less that of uniform numbers",
            caption=_caption(values),
            draw=partial(_draw, values, view.styles),
            methods=list(values),
        )
        for site, values in sites.items()
    ]


def _caption(values: Mapping[str, Array]) -> str:
    chances = {method: float(uniformity(pit[:_LARGEST])) for method, pit in values.items()}
    uneven = [method for method, chance in chances.items() if chance < _ALPHA]
    size = max(len(pit) for pit in values.values())
    if not uneven:
        return f"{count(size, 'observation')}, spread as evenly as the model says they should be."
    worst = min(uneven, key=lambda method: chances[method])
    pit = values[worst]
    shift = (float(pit.mean()) - 0.5) * np.sqrt(12 * len(pit))
    if abs(shift) > 3.0:
        fault = f"the model predicts too {'low' if shift > 0 else 'high'} values"
    else:
        wide = float(pit.var()) < 1 / 12
        fault = f"the model's predictions are too {'wide' if wide else 'narrow'}"
    return (
        f"{count(size, 'observation')}, spread unevenly under {listed(uneven)} (p = "
        f"{chances[worst]:.2g}): {fault}. That is the model's fault, whatever the method."
    )


def _draw(values: Mapping[str, Array], styles: Mapping[str, Style], axes: Axes, ink: str) -> None:
    size = max(len(pit) for pit in values.values())
    exact = min(size, _LARGEST)
    parts = max(min(_POINTS, size), 2)
    grid = np.arange(1, parts) / parts
    low, high = (edge - grid for edge in ecdf_band(exact, grid, _ALPHA))
    narrower = np.sqrt(exact / size)
    at = np.concatenate([[0.0], grid, [1.0]])
    axes.fill_between(
        at, np.pad(low * narrower, 1), np.pad(high * narrower, 1), color="#8a8f98", alpha=0.3, lw=0
    )
    axes.axhline(0.0, color=ink, linewidth=0.5)
    for method, pit in values.items():
        style = styles[method]
        curve = np.searchsorted(np.sort(pit), grid, side="right") / len(pit) - grid
        curve = np.pad(curve, 1)
        axes.plot(at, curve, color=style.colour, linestyle=style.line, linewidth=1.4)
    reach = max(float(np.abs(axes.get_ylim()).max()), 1e-3)
    axes.set_ylim(-reach, reach)
    axes.set_xlim(0.0, 1.0)
    plain_axes(axes, ink)
