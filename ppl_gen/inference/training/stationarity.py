"""Whether a sequence of iterates still goes somewhere, for many coordinates at once."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "effective_sizes", "split_rhat"]

Array: TypeAlias = NDArray[np.float64]

_BATCHES = 20


def split_rhat(iterates: Array) -> Array:
    r"""Return the R-hat of each coordinate, the halves of the sequence taken for two chains.

    .. math::
        \hat R^2 = \frac{n - 1}{n} + \frac{B}{W},

    with the variances B of the means of both halves and W within them. It is the plain one of
    moments: iterates of an optimiser have no heavy tails that ranks would have to tame.

    Args:
        iterates: The sequence, (n, coordinates), of at least 4.

    Returns:
        One number for each coordinate, (coordinates,); 1 where a coordinate does not move at all.

    References:
        Vehtari et al. (2021), Rank-Normalization, Folding, and Localization: An Improved R-hat,
        arXiv:1903.08008.
    """
    n = len(iterates) // 2
    halves = np.stack([iterates[-2 * n : -n], iterates[-n:]])
    within = halves.var(1, ddof=1).mean(0)
    between = halves.mean(1).var(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rhat = np.sqrt((n - 1) / n + between / within)
    return np.where(between == 0, 1.0, rhat)


def effective_sizes(iterates: Array) -> Array:
    """Return how many independent iterates the mean of each coordinate is worth.

    By the variance of the means of 20 batches.

    Args:
        iterates: The sequence, (n, coordinates), of at least 40.

    Returns:
        One number for each coordinate, (coordinates,); n where a coordinate does not move at all.
    """
    length = len(iterates) // _BATCHES
    used = iterates[-length * _BATCHES :]
    means = used.reshape(_BATCHES, length, -1).mean(1)
    of_means, of_all = means.var(0, ddof=1), used.var(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = _BATCHES * of_all / of_means
    return np.where(of_means == 0, float(len(used)), np.minimum(sizes, len(used)))
