"""Whether ranks are shifted, or spread too much or too little: exact tests by normal scores.

The empirical distribution function shows any unevenness, and small ones late: among 500 ranks it
rarely shows a standard deviation that is a tenth too small. Sums of normal scores and of their
squares are the most powerful tests for just these two faults of a normal distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["RankScores", "rank_scores"]

Array = NDArray[np.float64]

# Scores are rounded to this part of a standard deviation, so that their sums have a distribution
# that can be computed; coarser, where there would be more sums than this.
_STEP = 0.02
_MOST_SUMS = 2**22


@dataclass(frozen=True, eq=False)
class RankScores:
    """How ranks differ from uniform ones in their place and spread, each of shape `batch`.

    Args:
        location: Chance that the sum of uniform ranks' scores is as far from zero.
        dispersion: Chance that the sum of their squares is as far from what is expected.
        error_of_mean: By how much the mean of the draws is too high, in their standard deviations,
            as far as they and the posterior are normal.
        sd_ratio: Standard deviation of the draws over that of the posterior, likewise. NaN where
            all ranks are the same.
    """

    location: Array
    dispersion: Array
    error_of_mean: Array
    sd_ratio: Array


def rank_scores(ranks: ArrayLike, max_rank: int) -> RankScores:
    """Test ranks of true values among draws for a shift and for a wrong spread.

    The score of a rank r of 0 ... R is the normal quantile at (r + 1/2) / (R + 1). The p-values are
    two-sided and exact: the distribution of a sum is the convolution of its terms'.

    Args:
        ranks: Ranks, shape `(size, *batch)`.
        max_rank: The largest rank that is possible, R.

    Returns:
        P-values, and the faults that would explain the ranks.

    Raises:
        ValueError: If there are no ranks, or some are not 0 ... `max_rank`.

    References:
        Validation of software for Bayesian models using posterior quantiles. Cook, Gelman and
        Rubin, 2006. Journal of Computational and Graphical Statistics 15(3), 675-692.
        Some nonparametric tests for scale. Klotz, 1962. Annals of Mathematical Statistics 33(2),
        498-512.

    Example:
        >>> even = np.arange(100).repeat(5)
        >>> found = rank_scores(even, 99)
        >>> float(found.location), float(found.sd_ratio.round(2))
        (1.0, 1.0)
        >>> found = rank_scores(np.clip(even, 10, 89), 99)  # never at the ends: draws too wide
        >>> bool(found.dispersion < 1e-3), float(found.sd_ratio.round(2))
        (True, 1.22)
    """
    from scipy.stats import norm

    found = np.asarray(ranks, dtype=np.int64)
    if found.ndim < 1 or len(found) == 0:
        raise ValueError(f"ranks: expected at least one, got shape {found.shape}.")
    if found.size and (found.min() < 0 or found.max() > max_rank):
        raise ValueError(f"ranks: expected 0 to {max_rank}, got {found.min()} to {found.max()}.")
    scores = norm.ppf((np.arange(max_rank + 1) + 0.5) / (max_rank + 1))
    taken = scores[found]
    # Of draws N(d, s) the scores of N(0, 1) have mean -d / s and standard deviation 1 / s, the
    # latter less by what the grid cuts off.
    spread = np.where(np.ptp(found, axis=0) > 0, taken.std(axis=0), np.nan)
    return RankScores(
        location=_two_sided(scores, found),
        dispersion=_two_sided(scores**2, found),
        error_of_mean=np.asarray(-taken.mean(axis=0)),
        sd_ratio=np.asarray(scores.std() / spread),
    )


def _two_sided(scores: Array, ranks: NDArray[np.int64]) -> Array:
    """Return the chance of sums of scores as far from the expected one, of uniform ranks."""
    from scipy.fft import irfft, next_fast_len, rfft

    size, reach = len(ranks), float(np.ptp(scores))
    step = max(_STEP, size * reach / _MOST_SUMS)
    whole = np.rint(scores / step).astype(np.int64)  # as symmetric as the scores
    whole -= whole.min()
    length = next_fast_len(size * int(whole.max()) + 1)
    one = np.bincount(whole, minlength=length) / len(scores)
    chance = np.maximum(irfft(rfft(one, length) ** size, length), 0.0)
    total = whole[ranks].sum(axis=0)
    below, above = np.cumsum(chance)[total], np.cumsum(chance[::-1])[length - 1 - total]
    return np.asarray(np.minimum(1.0, 2.0 * np.minimum(below, above)))
