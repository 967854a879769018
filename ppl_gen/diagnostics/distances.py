"""How far the draws of each scalar are from those of a reference, and what chance would show.

An error between two finite samples is never zero. Each comes with its Monte Carlo standard error,
of both samples together, so that it can be read against a floor: the largest error that chance
would show in any of so many scalars if both were samples of the same posterior.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_gen.diagnostics.marginals import (
    MAX_SD_ERROR,
    Marginals,
    check_scalars,
    checked_draws,
    in_chunks,
    in_order,
)

__all__ = [
    "Deviation",
    "MarginalErrors",
    "marginal_errors",
    "marginal_wasserstein",
    "simultaneous_z",
]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Deviation:
    """An error of each scalar, and what chance would show.

    Args:
        value: The error, signed where it has a direction. NaN where it cannot be measured.
        standard_error: Its Monte Carlo standard error, from both samples.
        expected: Its expectation between two samples of the same posterior; 0 for a signed error.
    """

    value: Array
    standard_error: Array
    expected: Array | float = 0.0

    def floor(self, z: float) -> Array:
        """Return what chance would show: the expectation and `z` standard errors.

        Args:
            z: How many, such as `simultaneous_z` gives.
        """
        return np.asarray(self.expected + z * self.standard_error)

    def excess(self, z: float) -> Array:
        """Return the part of the error beyond the floor, with its sign; 0 where there is none.

        Args:
            z: As for `floor`.
        """
        beyond = np.maximum(np.abs(self.value) - self.floor(z), 0.0)
        return np.asarray(np.copysign(beyond, self.value))


@dataclass(frozen=True, eq=False)
class MarginalErrors:
    """What `marginal_errors` finds.

    Args:
        mean: Error of the mean in units of the reference, shape `event`.
        sd: Relative error of the standard deviation: -0.38 where it is 38 % too small, `event`.
        quantiles: Errors of the quantiles in units of the reference, `(quantile, *event)`.
    """

    mean: Deviation
    sd: Deviation
    quantiles: Deviation


def marginal_errors(found: Marginals, reference: Marginals) -> MarginalErrors:
    """Measure the errors of means, sds and quantiles against a reference.

    Args:
        found: Of the draws to be judged.
        reference: Of the reference's draws, of the same scalars and quantiles.

    Returns:
        The errors. NaN where the reference does not vary; those of mean and sd also where its tails
        are too heavy for it to have either. The sd of draws with such tails is an error, unless
        the reference's are not much lighter.

    Raises:
        ValueError: If scalars or quantiles differ.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(2, 4, 1000))
        >>> from ppl_gen.diagnostics import marginals
        >>> reference = marginals(draws[0])
        >>> narrow = marginals(0.5 * draws[1], is_mcmc=False)
        >>> errors = marginal_errors(narrow, reference)
        >>> print(f"{errors.sd.value:.1f}")
        -0.5
        >>> bool(errors.sd.excess(simultaneous_z(1)) < -0.4)
        True
        >>> bool(errors.mean.excess(simultaneous_z(1)) == 0.0)
        True
    """
    check_scalars("found", found.mean.shape, reference.mean.shape)
    if found.probabilities != reference.probabilities:
        raise ValueError(
            f"found: expected the quantiles of the reference, {reference.probabilities}, got "
            f"{found.probabilities}."
        )
    unit = np.where(reference.unit > 0.0, reference.unit, np.nan)
    # Its mean and sd would be those of its few outermost draws.
    has_mean = np.where(reference.heavy_tailed, np.nan, 1.0)
    has_sd = np.where(_both_heavy(found, reference), np.nan, 1.0)
    return MarginalErrors(
        mean=Deviation(
            has_mean * (found.mean - reference.mean) / unit,
            has_mean * np.hypot(found.mean_error, reference.mean_error) / unit,
        ),
        sd=Deviation(
            has_sd * (found.sd / unit - 1.0),
            # Of the ratio, if both have the same sd.
            has_sd * np.hypot(found.log_sd_error, reference.log_sd_error) + 0.0 * unit,
        ),
        quantiles=Deviation(
            (found.quantiles - reference.quantiles) / unit,
            np.hypot(found.quantile_errors, reference.quantile_errors) / unit,
        ),
    )


def marginal_wasserstein(
    draws: ArrayLike, reference_draws: ArrayLike, found: Marginals, reference: Marginals
) -> Deviation:
    """Compute the 1-Wasserstein distance of each scalar's draws from the reference's.

    It is the mean distance that a draw has to be moved, or the area between the two distribution
    functions. Between two samples of one distribution function F, of n and m effective draws, it
    is near sqrt(1/n + 1/m) times the integral of |B(F(x))|, with B a Brownian bridge, whose mean is
    that of sqrt(2/pi F(1 - F)); it exceeds its mean by more than z sqrt(1/n + 1/m) sds with
    probability exp(-z^2 / 2) at most, by the concentration of Gaussian measure.

    Args:
        draws: Draws to be judged, `(chain, draw, *event)`.
        reference_draws: Of the reference, `(chain, draw, *event)`; the numbers may differ.
        found: The marginals of `draws`.
        reference: The marginals of `reference_draws`.

    Returns:
        The distances in units of the reference, of shape `event`; their `standard_error` is an
        upper bound. NaN where the reference does not vary, or both have so heavy tails that a few
        draws make up the distance.

    Raises:
        ValueError: If scalars differ, or draws are not finite.

    References:
        Central limit theorems for the Wasserstein distance between the empirical and the true
        distributions. Del Barrio, Giné and Matrán, 1999, Annals of Probability 27.
        Probability in Banach spaces. Ledoux and Talagrand, 1991, chapter 3.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(2, 4, 1000))
        >>> from ppl_gen.diagnostics import marginals
        >>> ours, reference = marginals(draws[1] + 0.5), marginals(draws[0])
        >>> moved = marginal_wasserstein(draws[1] + 0.5, draws[0], ours, reference)
        >>> print(f"{moved.value:.1f}")
        0.5
        >>> bool(moved.floor(simultaneous_z(1)) < 0.1)
        True
    """
    x, y = checked_draws("draws", draws), checked_draws("reference_draws", reference_draws)
    event = reference.mean.shape
    for name, shape in (
        ("draws", x.shape[2:]),
        ("reference_draws", y.shape[2:]),
        ("found", found.mean.shape),
    ):
        check_scalars(name, shape, event)
    x, y = x.reshape(x.shape[0] * x.shape[1], -1), y.reshape(y.shape[0] * y.shape[1], -1)
    ranks_x, ranks_y, shares = _common_steps(len(x), len(y))
    distance = np.empty(x.shape[1])
    for part in in_chunks(x.shape[1], len(x) + len(y)):
        gaps = in_order(x[:, part])[:, ranks_x] - in_order(y[:, part])[:, ranks_y]
        distance[part] = np.abs(gaps) @ shares
    unit = np.where(reference.unit > 0.0, reference.unit, np.nan)
    unit = np.where(_both_heavy(found, reference), np.nan, unit)
    with np.errstate(divide="ignore"):
        per_draw = np.sqrt(1.0 / found.effective + 1.0 / reference.effective) / unit
    return Deviation(
        distance.reshape(event) / unit, per_draw * reference.sd, per_draw * reference.noise
    )


def simultaneous_z(count: int, level: float = 0.05) -> float:
    """Return how many standard errors the largest of many errors stays below by chance.

    Args:
        count: Number of errors that are looked at.
        level: Probability that any of them is larger. That many independent normal errors have
            it; others that are normal, whatever their correlations, a smaller one.

    Returns:
        The quantile of the largest absolute value.

    Raises:
        ValueError: If the count is not positive, or the level is not between 0 and 1.

    References:
        Rectangular confidence regions for the means of multivariate normal distributions. Šidák,
        1967, Journal of the American Statistical Association 62.

    Example:
        >>> round(simultaneous_z(1), 2), round(simultaneous_z(1000), 2)
        (1.96, 4.05)
    """
    if count < 1:
        raise ValueError(f"count: expected at least one error, got {count}.")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a probability between 0 and 1, got {level}.")
    # The tail of each is far below the rounding of one minus it.
    tail = -np.expm1(np.log1p(-level) / count) / 2
    return -NormalDist().inv_cdf(float(tail))


def _both_heavy(found: Marginals, reference: Marginals) -> NDArray[np.bool_]:
    """Return where both have tails that are too heavy for an sd, or the reference nearly so."""
    nearly = reference.log_sd_error > MAX_SD_ERROR / 2
    return np.asarray(reference.heavy_tailed | (found.heavy_tailed & nearly))


def _common_steps(n: int, m: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Return where the empirical quantile functions of n and of m draws are both constant.

    Returns:
        For each such piece the rank of the one draw, of the other, and its share of probability.
    """
    # In units of 1 / (n m), so that nothing is rounded.
    starts = np.union1d(np.arange(n, dtype=np.int64) * m, np.arange(m, dtype=np.int64) * n)
    shares = np.diff(starts, append=n * m) / (n * m)
    return starts // m, starts // n, shares
