"""Whether the chains of a run agree: ranks of each chain's draws among those of all."""

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

_BINS = 20


def panels(view: View, parameters: Sequence[str] | None = None) -> list[Panel]:
    """Return a picture for each method with several chains, of its parameter of highest R-hat.

    Args:
        view: What was found.
        parameters: Names of the parameters among which it is chosen; None: all.
    """
    found = []
    for method in view.methods:
        r_hats = view.column(method, "r_hat")
        if parameters is not None:
            r_hats = r_hats[list(parameters)]
        r_hats = r_hats[np.isfinite(r_hats)]
        if r_hats.empty:
            continue
        worst = str(r_hats.idxmax())
        draws = view.draws(worst)[method]
        if len(draws) < 2:
            continue
        histograms = _histograms(draws)
        found.append(
            Panel(
                title=f"{method}: {worst}",
                kind=f"Rank histograms of the chains of {method} in {worst}",
                caption=_caption(histograms, draws.shape, float(r_hats[worst]), worst),
                draw=partial(_draw, histograms, view.styles[method]),
                methods=[method],
            )
        )
    return found


def _histograms(draws: Array) -> Array:
    """Return the share of each chain's ranks in each bin over the expected one, (chain, bin)."""
    from scipy.stats import rankdata

    ranks = rankdata(draws, method="average").reshape(draws.shape)
    bins = np.minimum((ranks - 0.5) * _BINS / draws.size, _BINS - 1).astype(int)
    counts = np.stack([np.bincount(chain, minlength=_BINS) for chain in bins])
    return np.asarray(counts * _BINS / draws.shape[1])


def _caption(histograms: Array, shape: tuple[int, ...], r_hat: float, parameter: str) -> str:
    chain, place = np.unravel_index(np.abs(histograms - 1.0).argmax(), histograms.shape)
    value = histograms[chain, place]
    end = "lowest" if place < _BINS / 3 else "highest" if place >= 2 * _BINS / 3 else "middle"
    return (
        f"{count(shape[0], 'chain')} of {count(shape[1], 'draw')}. R-hat of {parameter} is the "
        f"highest here: {r_hat:.3f}. The most uneven, drawn bold: chain {chain}, with "
        f"{value:.2g} times its share of the {end} ranks."
    )


def _draw(histograms: Array, style: Style, axes: Axes, ink: str) -> None:
    at = np.arange(_BINS + 1) / _BINS
    furthest = int(np.abs(histograms - 1.0).max(axis=1).argmax())
    for place, chain in enumerate(histograms):
        bold = place == furthest
        width, strength = (1.6, 1.0) if bold else (0.7, 0.6)
        axes.stairs(chain, at, baseline=None, color=style.colour, linewidth=width, alpha=strength)
    axes.axhline(1.0, color=ink, linewidth=0.5)
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, max(2.0, 1.1 * float(histograms.max())))
    axes.set_xlabel("rank among all chains")
    plain_axes(axes, ink)
