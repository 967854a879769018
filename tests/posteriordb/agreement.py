"""Whether draws agree with reference draws, or with exact moments, within Monte Carlo error.

Each scalar is compared by its mean and by the logarithm of its standard deviation; one without a
finite variance by its quantiles instead. Each comparison gives a z-score: a difference divided by
the Monte Carlo standard error of both sides. What cannot be computed (draws that are constant or
not finite) has an infinite z.

The threshold is Bonferroni's: with `count` comparisons in the whole table, each may exceed it by
chance with probability `rate / count`, so that the table holds one false alarm or more with
probability at most `rate`, however the comparisons depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ppl_gen.diagnostics import ess_bulk, mcse_mean

__all__ = ["PROBABILITIES", "Comparison", "compare", "compare_exact", "threshold", "worst"]

Array = NDArray[np.float64]

PROBABILITIES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Comparison:
    """One statistic of one scalar, compared.

    Args:
        scalar: The scalar's name.
        statistic: "mean", "sd" or "quantile".
        z: The difference in its Monte Carlo standard errors; infinite where there is none.
    """

    scalar: str
    statistic: str
    z: float


def compare(
    draws: Mapping[str, Array],
    reference: Mapping[str, Array],
    without_moments: Collection[str] = (),
) -> list[Comparison]:
    """Compare draws with reference draws.

    Args:
        draws: Draws by scalar, (chain, draw).
        reference: Reference draws of the same scalars, (chain, draw).
        without_moments: The scalars that have no finite variance.

    Returns:
        For each scalar the mean and the sd, or the five quantiles of `PROBABILITIES`.
    """
    comparisons = []
    for name, known in reference.items():
        if name in without_moments:
            comparisons += [Comparison(name, "quantile", z) for z in _quantiles(draws[name], known)]
            continue
        ours, theirs = _moments(draws[name]), _moments(known)
        for statistic, a, b in zip(("mean", "sd"), ours, theirs, strict=True):
            z = _z(a[0] - b[0], math.hypot(a[1], b[1]))
            comparisons.append(Comparison(name, statistic, z))
    return comparisons


def compare_exact(
    draws: Mapping[str, Array], exact: Mapping[str, tuple[float, float]]
) -> list[Comparison]:
    """Compare draws with exact moments.

    Args:
        draws: Draws by scalar, (chain, draw).
        exact: Mean and sd of the same scalars.
    """
    comparisons = []
    for name, (mean, sd) in exact.items():
        for statistic, value, ours in zip(
            ("mean", "sd"), (mean, math.log(sd)), _moments(draws[name]), strict=True
        ):
            comparisons.append(Comparison(name, statistic, _z(ours[0] - value, ours[1])))
    return comparisons


def worst(comparisons: Iterable[Comparison], *statistics: str) -> float:
    """Return the largest |z| of some statistics, or of all; NaN where there is none."""
    sizes = [abs(c.z) for c in comparisons if not statistics or c.statistic in statistics]
    return max(sizes, default=math.nan)


def threshold(count: int, rate: float = 1e-3) -> float:
    """Return the largest |z| that chance allows.

    Args:
        count: Number of comparisons in the whole table.
        rate: Probability of one false alarm or more among them.
    """
    return float(stats.norm.isf(rate / (2 * count)))


def _moments(draws: Array) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the mean and the logarithm of the sd, each with its standard error."""
    mean = float(np.mean(draws))
    squares = (draws - mean) ** 2
    variance = float(np.mean(squares))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_sd = float(np.log(variance)) / 2
        error = float(mcse_mean(squares) / np.float64(2 * variance))
    return (mean, float(mcse_mean(draws))), (log_sd, error)


def _quantiles(draws: Array, reference: Array) -> list[float]:
    """Compare the fractions of draws on each side of the reference's quantiles.

    The fraction needs no density at the quantile, unlike the standard error of the quantile
    itself, and both say the same of where the quantile lies.
    """
    scores = []
    for probability in PROBABILITIES:
        quantile = np.quantile(reference, probability)
        below = [(values <= quantile).astype(np.float64) for values in (draws, reference)]
        error = math.sqrt(
            sum(probability * (1 - probability) / float(ess_bulk(side)) for side in below)
        )
        difference = float(np.mean(below[0])) - probability
        scores.append(_z(difference, error if np.isfinite(draws).all() else math.nan))
    return scores


def _z(difference: float, error: float) -> float:
    z = difference / error if error > 0 else math.nan
    return z if math.isfinite(z) else math.inf
