"""Whether chains disagree, or are too short for R-hat to show that they agree."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.diagnostics.mcmc import mcse_mean
from ppl_gen.diagnostics.nested import nested_rhat

__all__ = ["disagree", "nested_by_start"]

Array: TypeAlias = NDArray[np.float64]

# How often chains that agree, as short as they are, may be said not to.
_FALSE_ALARM = 0.01
# So many chains, or more, of fewer draws are many short ones.
_MANY, _SHORT = 16, 100
_LEAST = 10
_SUPERCHAINS = 4


def disagree(draws: Array) -> bool:
    """Return whether halves of chains differ by more than their own lengths explain.

    R-hat is large where chains are in different places, and where each of them is worth so few
    draws that their means are not known. How well the mean of half a chain is known is told by its
    own autocorrelation: what the means differ by beyond that, no longer run makes good.

    Args:
        draws: Scalars whose R-hat is too large, (chain, draw, scalar).
    """
    from scipy.stats import f, t

    half = draws.shape[1] // 2
    if half < 4 or not draws.shape[2]:
        return False
    # As for R-hat: locations by the draws, spreads by how far they are from the median.
    folded = np.abs(draws - np.median(draws, axis=(0, 1)))
    scores = _normal_scores(np.concatenate([draws, folded], axis=2))
    halves = np.concatenate([scores[:, :half], scores[:, -half:]])
    errors = np.stack([mcse_mean(each[None]) for each in halves])
    between = halves.mean(axis=1).var(axis=0, ddof=1)
    known = np.square(np.where(np.isnan(errors), 0.0, errors)).mean(axis=0)
    count, level = len(halves), _FALSE_ALARM / scores.shape[2]
    if (between > f.isf(level, count - 1, count) * known).any():
        return True
    if len(draws) < _MANY:
        return False
    # One that is somewhere else is lost in the variance of so many.
    farthest = np.abs(halves.mean(axis=1) - halves.mean(axis=(0, 1))).max(axis=0)
    return bool((farthest > t.isf(level / (2 * count), count) * np.sqrt(known)).any())


def nested_by_start(draws: Array) -> Array:
    """Return the nested R-hat of many short chains, which is small once they forgot their starts.

    Of chains of few draws R-hat stays above 1.01 however well they mix, for no chain's mean is
    known. Chains whose first draws are alike make a superchain here, of which the second halves are
    looked at: where these still depend on the first draw, superchains differ. A drift of all chains
    together shows in the nested R-hat of all first halves against all second ones. The larger of
    both is taken.

    Unlike in the paper chains of a superchain have not started at the same point: where they are
    when warm-up ends takes its place.

    Args:
        draws: (chain, draw, scalar).

    Returns:
        One for each scalar, (scalar,); NaN where these are not many short chains.

    References:
        Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman (2022), Nested R-hat,
        arXiv:2110.13017.
    """
    chains, count, scalars = draws.shape
    if chains < _MANY or not _LEAST <= count < _SHORT:
        return np.full(scalars, np.nan)
    half = count // 2
    # Superchains are of equal size: what is left over is chosen by no value.
    whole = draws[: chains - chains % _SUPERCHAINS]
    order = np.argsort(whole[:, 0], axis=0, kind="stable")
    later = np.take_along_axis(whole[:, -half:], order[:, None, :], axis=0)
    both = np.concatenate([draws[:, :half], draws[:, -half:]])
    return np.maximum(nested_rhat(later, _SUPERCHAINS), nested_rhat(both, 2))


def _normal_scores(draws: Array) -> Array:
    """Return the normal quantiles of the ranks of each scalar, (chain, draw, scalar)."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    flat = draws.reshape(-1, draws.shape[2])
    ranks = rankdata(flat, axis=0)
    return np.asarray(ndtri((ranks - 3 / 8) / (len(flat) + 1 / 4))).reshape(draws.shape)
