"""Whether draws are those of the model's density, by its gradient: seen at once, but not how far.

Draws and gradients are turned to coordinates in which the draws are uncorrelated: what is narrow
in one direction would outweigh all others.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.diagnostics.stein import stein_discrepancy
from ppl_gen.diagnostics.two_samples import Distance
from ppl_gen.judge.findings import Grade, Reason

__all__ = ["of_stein", "stein_of"]

Array: TypeAlias = NDArray[np.float64]

# Draws that are looked at: a fifth of a second.
_DRAWS = 1000
# Beyond so many coordinates it says little; with fewer draws for each they have no covariance.
_MOST_COORDINATES = 100
_DRAWS_PER_COORDINATE = 5
# What chance does in one case of so many is taken for a difference.
_CLEAR = 0.01


def stein_of(points: Array, gradients: Array, seed: int) -> Distance | None:
    """Return the squared kernel Stein discrepancy of independent draws.

    Args:
        points: Unconstrained draws of the approximation, (draw, dim).
        gradients: Of the model's log density there, (draw, dim).
        seed: Of its null distribution.

    Returns:
        The discrepancy; None of too many coordinates, or where a gradient is not finite.
    """
    points, gradients = points[:_DRAWS], gradients[:_DRAWS]
    count, dim = points.shape
    if dim > _MOST_COORDINATES or count < _DRAWS_PER_COORDINATE * dim:
        return None
    if not np.isfinite(gradients).all() or (np.ptp(points, axis=0) == 0).any():
        return None
    spread = points.std(axis=0)
    scaled = (points - points.mean(axis=0)) / spread
    values, vectors = np.linalg.eigh(scaled.T @ scaled / count)
    root = vectors * np.sqrt(np.maximum(values, 1e-12))
    return stein_discrepancy(
        scaled @ vectors / np.sqrt(np.maximum(values, 1e-12)), gradients * spread @ root, seed=seed
    )


def of_stein(found: Distance) -> Reason:
    """Return what it says: of a difference it does not tell the size, which decides.

    Args:
        found: The discrepancy.
    """
    differ = found.p_value <= _CLEAR
    told = "tells" if differ else "does not tell"
    return Reason(
        "stein",
        "kernel Stein discrepancy",
        found.value,
        found.floor,
        Grade.AMBER if differ else Grade.GREEN,
        f"a kernel Stein test of {found.draws[0]:,} draws {told} them from the model's posterior "
        f"(p = {found.p_value:.2g}){', and not how far they are off' if differ else ''}",
    )
