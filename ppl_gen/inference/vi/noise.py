"""Noise that expectations under a normal distribution are taken over."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["standard_noise", "whitened"]

Array: TypeAlias = NDArray[np.float64]

_MOST_SOBOL = 100


def standard_noise(generator: np.random.Generator, size: int, dim: int) -> Array:
    """Return noise of the standard normal, (size, dim), with moments as exact as can be.

    Half of it is a scrambled Sobol sequence, or of many dimensions, where that has no advantage,
    independent numbers; the other half is its mirror image, so that all odd moments are exact.
    With more draws than dimensions it is whitened, so that the covariance is as well, with fewer
    only the variances are.
    """
    from scipy import special, stats

    half = size // 2
    if dim <= _MOST_SOBOL:
        points = stats.qmc.Sobol(dim, scramble=True, rng=generator).random(half)
        noise = special.ndtri(np.clip(points, 1e-12, 1 - 1e-12))
    else:
        noise = generator.standard_normal((half, dim))
    if half >= 2 * dim:
        noise = whitened(noise)
    else:
        noise = noise / np.sqrt(np.square(noise).mean(axis=0))
    return np.concatenate([noise, -noise])


def whitened(noise: Array) -> Array:
    """Return noise, shape `(*batch, n, dim)`, made to have the identity as its second moments."""
    upper = np.linalg.qr(noise, mode="r")
    signs = np.sign(np.diagonal(upper, axis1=-2, axis2=-1))
    lower = np.swapaxes(upper * signs[..., None], -1, -2)
    white = np.linalg.solve(lower, np.swapaxes(noise, -1, -2))
    return np.asarray(np.swapaxes(white, -1, -2) * math.sqrt(noise.shape[-2]))
