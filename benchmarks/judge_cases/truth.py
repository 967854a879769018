"""What an approximation is truly worth, from its exact errors alone.

The judge's thresholds say where an error becomes too large: 0.3 standard deviations for means and
medians, 25 % for standard deviations, and for the 5 % and 95 % quantiles 0.41 standard deviations,
which is what an error of 25 % makes of those of a normal. Errors near them are counted apart: the
margin is what the smallest reference that is good enough, one worth 400 draws, can tell, which is
two standard errors.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from judge_cases.distributions import PROBABILITIES, Array, Distribution, Moments

_MIN_ESS = 400
_NORMAL = NormalDist()
_OUTER = _NORMAL.inv_cdf(0.95)
# Where red begins, as in `ppl_gen.judge.Thresholds`.
RED = {"mean": 0.3, "sd": 0.25, "median": 0.3, "tail": 0.25 * _OUTER, "joint": 0.25}
# Where green ends.
GREEN = {"mean": 0.1, "sd": 0.1, "median": 0.1, "tail": 0.1 * _OUTER, "joint": 0.1}
# Two standard errors of each, of a normal.
MARGIN = {
    "mean": 2 / _MIN_ESS**0.5,
    "sd": 2 / (2 * _MIN_ESS) ** 0.5,
    "median": 2 * (0.5 / _NORMAL.pdf(0.0)) / _MIN_ESS**0.5,
    "tail": 2 * ((0.05 * 0.95) ** 0.5 / _NORMAL.pdf(_OUTER)) / _MIN_ESS**0.5,
    "joint": 2 / (2 * _MIN_ESS) ** 0.5,
}


class Label(enum.Enum):
    """What an approximation may truly be used for."""

    RIGHT = "right"  # every error is green
    FAIR = "fair"  # none is red, by more than the margin
    MEANS_ONLY = "means only"  # no mean is red, something else is, both by more than the margin
    WRONG = "wrong"  # a mean is red by more than the margin
    NEAR = "near a threshold"


@dataclass(frozen=True)
class Errors:
    """The worst errors over all parameters.

    Args:
        mean: Of a mean, in standard deviations of the posterior.
        sd: Of a standard deviation, relative.
        median: Of a median, in standard deviations of the posterior.
        tail: Of a 5 % or 95 % quantile, in standard deviations of the posterior.
        joint: Of the standard deviation, relative, of the sum or the difference of two standardised
            parameters, or of their absolute deviations.
    """

    mean: float
    sd: float
    median: float
    tail: float
    joint: float

    @property
    def of_means(self) -> float:
        """The error of means, in margins beyond the start of red."""
        return self._beyond("mean")

    @property
    def of_others(self) -> float:
        """The largest of all others, in margins beyond the start of red."""
        return max(self._beyond(name) for name in ("sd", "median", "tail", "joint"))

    def _beyond(self, name: str) -> float:
        return float((getattr(self, name) - RED[name]) / MARGIN[name])

    def label(self, margin: float = 1.0) -> Label:
        """Return what these errors leave to be used.

        Args:
            margin: Part of each margin that counts as near a threshold.
        """
        if self.of_means >= margin:
            return Label.WRONG
        if self.of_means > -margin or abs(self.of_others) < margin:
            return Label.NEAR
        if self.of_others >= margin:
            return Label.MEANS_ONLY
        green = all(getattr(self, name) <= end for name, end in GREEN.items())
        return Label.RIGHT if green else Label.FAIR


def errors(found: Moments, exact: Moments) -> Errors:
    """Return the worst errors of moments."""
    quantiles = np.abs(found.quantiles - exact.quantiles).T / exact.sd[:, None]
    low, middle, high = quantiles.max(axis=0)
    return Errors(
        float(np.max(np.abs(found.mean - exact.mean) / exact.sd)),
        float(np.max(np.abs(found.sd / exact.sd - 1))),
        float(middle),
        float(max(low, high)),
        _joint(found.correlation, exact.correlation),
    )


def errors_of(approximation: Distribution, target: Distribution) -> Errors:
    """Return the exact errors of an approximation; of the very same distribution 0."""
    if approximation is target:
        return Errors(0.0, 0.0, 0.0, 0.0, 0.0)
    return errors(approximation.moments, target.moments)


def weighted_moments(x: Array, log_weights: Array) -> Moments:
    """Return the moments of weighted draws.

    Args:
        x: Draws, (draw, parameter).
        log_weights: Logarithms of weights that sum to one, (draw,).
    """
    weights = np.exp(log_weights)
    mean = weights @ x
    centred = np.concatenate([x - mean, np.abs(x - mean)], axis=1)
    centred -= weights @ centred
    covariance = (centred * weights[:, None]).T @ centred
    sd = np.sqrt(np.diag(covariance))
    order = np.argsort(x, axis=0)
    ends = np.cumsum(weights[order], axis=0)
    quantiles = np.stack(
        [
            np.take_along_axis(x, order, axis=0)[
                np.minimum((ends < p).sum(axis=0), len(x) - 1), np.arange(x.shape[1])
            ]
            for p in PROBABILITIES
        ]
    )
    spread = np.where(sd > 0, sd, 1.0)
    correlation = covariance / np.outer(spread, spread)
    return Moments(mean, sd[: x.shape[1]], quantiles, correlation)


def _joint(found: Array, exact: Array) -> float:
    """Return the worst error of the sd of a sum or a difference of two standardised features."""
    dim = len(exact) // 2
    index = np.arange(2 * dim) % dim
    apart = index[:, None] != index
    if not apart.any():
        return 0.0
    ratios = [
        np.sqrt((1 + sign * found[apart]) / (1 + sign * exact[apart])) for sign in (1.0, -1.0)
    ]
    return float(max(np.max(np.abs(ratio - 1)) for ratio in ratios))
