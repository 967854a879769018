"""Pareto-smoothed importance sampling: weights of a guide's draws, and whether they can be trusted.

A generalised Pareto distribution is fitted to the largest weights, which are replaced by its
quantiles. Its shape says how heavy their tail is, and so how far the weighted draws can be trusted,
also where the variance of the weights is infinite and no estimate of it would show that.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Smoothed", "psis", "resample"]

Array = NDArray[np.float64]

# A tail of fewer draws has no shape to speak of.
_MIN_TAIL = 5
# Log weights this close to each other differ by the rounding of log densities.
_ROUNDING = 1e-6
# Beyond this neither bias nor variance can be relied on, however many draws there are.
_MAX_THRESHOLD = 0.7


@dataclass(frozen=True)
class Smoothed:
    """Importance weights after smoothing.

    Args:
        log_weights: Logarithms of the weights, which sum to one, shape `(draw,)`.
        pareto_k: k-hat, the shape of the weights' tail: of them the moments of order below 1/k are
            finite. -inf where the largest weights are all equal, as those of an exact guide are;
            inf where fewer than five draws are in the tail, so that nothing can be said.
        pareto_k_error: Its Monte Carlo standard error, about; 0 where it is infinite.
        threshold: The largest k-hat that so many draws can bear.
        ess: Effective sample size: as many independent draws of the posterior would do, provided
            that k-hat is below the threshold.
    """

    log_weights: Array
    pareto_k: float
    pareto_k_error: float
    threshold: float
    ess: float

    @property
    def reliable(self) -> bool:
        """Whether k-hat is below the threshold."""
        return self.pareto_k < self.threshold


def psis(log_ratios: ArrayLike) -> Smoothed:
    """Smooth the importance weights of independent draws, and measure how far to trust them.

    It computes in double precision, whatever it is given: in single precision k-hat can come out
    near 0 where it is above 1.

    Args:
        log_ratios: Log density of the target minus that of the guide at each draw from the guide,
            up to a constant, shape `(draw,)`. A draw whose ratio is -inf or NaN gets no weight.

    Returns:
        The weights, with k-hat.

    Raises:
        ValueError: If there are no draws, or none has any weight, a ratio is +inf, or there is
            more than one axis.

    References:
        Pareto smoothed importance sampling. Vehtari, Simpson, Gelman, Yao and Gabry, 2024,
        Journal of Machine Learning Research 25. arXiv:1507.02646.
        A new and efficient estimation method for the generalized Pareto distribution. Zhang and
        Stephens, 2009, Technometrics 51.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=1000)
        >>> wide = psis(-(draws**2) / 4 + draws**2 / 2)  # the target's sd is 1.41, k is 0.5
        >>> wide.reliable
        True
        >>> psis(-(draws**2) / 8 + draws**2 / 2).reliable  # the target's sd is 2, k is 0.75
        False
    """
    relative = _checked(log_ratios)
    size = len(relative)
    log_weights, k, tail = _smooth(relative)
    log_weights = log_weights - np.log(np.exp(log_weights).sum())
    return Smoothed(
        log_weights,
        k,
        _error(k, tail),
        min(1 - 1 / math.log10(size), _MAX_THRESHOLD) if size > 1 else -math.inf,
        float(1 / np.exp(2 * log_weights).sum()),
    )


def resample(log_weights: ArrayLike, size: int, generator: np.random.Generator) -> NDArray[np.int_]:
    """Choose among weighted draws, so that those chosen have equal weights.

    Systematic resampling: each draw is chosen `size` times its weight on average, and that often
    but for rounding up or down. So none is chosen twice whose weight is below `1 / size`.

    Args:
        log_weights: Logarithms of the weights, up to a constant, shape `(draw,)`.
        size: How many to choose.
        generator: Where the random numbers come from.

    Returns:
        Indices of the draws chosen, in random order, shape `(size,)`.

    Raises:
        ValueError: As for `psis`.

    References:
        Comparison of resampling schemes for particle filtering. Douc and Cappé, 2005.
        arXiv:cs/0507025.

    Example:
        >>> sorted(resample(np.log([0.5, 0.25, 0.25]), 4, np.random.default_rng(0)).tolist())
        [0, 0, 1, 2]
    """
    ends = np.cumsum(np.exp(_checked(log_weights)))
    ends *= size / ends[-1]
    places = np.arange(size) + generator.random()
    # The last place can be rounded up to the very end.
    places = np.minimum(places, np.nextafter(ends[-1], 0))
    return generator.permutation(np.searchsorted(ends, places, side="right"))


def _checked(log_ratios: ArrayLike) -> Array:
    """Return the ratios relative to the largest one, with -inf for NaN."""
    ratios = np.asarray(log_ratios, dtype=np.float64)
    if ratios.ndim != 1 or len(ratios) == 0:
        msg = f"log_ratios: expected one number for each draw, got an array of {ratios.shape}."
        raise ValueError(msg)
    ratios = np.where(np.isnan(ratios), -np.inf, ratios)
    largest = ratios.max()
    if largest == np.inf:
        count = int(np.isposinf(ratios).sum())
        msg = (
            f"log_ratios: expected numbers below +inf, got +inf at {count} of {len(ratios)} draws. "
            "The guide's density is 0 there, or the target's infinite: check both."
        )
        raise ValueError(msg)
    if largest == -np.inf:
        msg = (
            f"log_ratios: expected a finite number, got -inf or NaN at all of {len(ratios)} draws. "
            "The target's density is 0 wherever the guide draws: check that both have one support."
        )
        raise ValueError(msg)
    return np.asarray(ratios - largest)


def _smooth(relative: Array) -> tuple[Array, float, int]:
    """Return smoothed log weights, k-hat, and the number of draws in the tail.

    Args:
        relative: Log ratios, of which the largest is 0.
    """
    size = len(relative)
    wanted = math.ceil(min(size / 5, 3 * math.sqrt(size)))
    if wanted < _MIN_TAIL:
        return relative, math.inf, wanted
    # Weights that underflow are equal, however different their logarithms are.
    cutoff = max(np.partition(relative, -wanted - 1)[-wanted - 1], math.log(np.finfo(float).tiny))
    if cutoff > -_ROUNDING:
        return relative, -math.inf, wanted
    (tail,) = np.nonzero(relative > cutoff)
    if len(tail) < _MIN_TAIL:
        return relative, math.inf, len(tail)
    tail = tail[np.argsort(relative[tail])]
    # In units of the weight at the cutoff, which keeps all digits of small differences.
    k, scale = _fit_pareto(np.expm1(relative[tail] - cutoff))
    probabilities = np.arange(0.5, len(tail)) / len(tail)
    smoothed = relative.copy()
    smoothed[tail] = np.minimum(cutoff + np.log1p(_quantiles(probabilities, k, scale)), 0.0)
    return smoothed, k, len(tail)


def _fit_pareto(excess: Array) -> tuple[float, float]:
    """Return shape and scale of the generalised Pareto distribution of values, sorted.

    Zhang and Stephens' estimate: the mean of `theta`, which is minus shape over scale, under a
    posterior on a grid. The shape is then drawn towards 0.5 as if by ten more values.
    """
    count = len(excess)
    points = 30 + int(math.sqrt(count))
    spread = 1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    theta = 1 / excess[-1] + spread / (3 * excess[int(count / 4 + 0.5) - 1])
    shape = np.log1p(-theta[:, None] * excess).mean(axis=1)
    log_likelihood = count * (np.log(-theta / shape) - shape - 1)
    posterior = np.exp(log_likelihood - log_likelihood.max())
    mean = float(theta @ posterior / posterior.sum())
    k = float(np.log1p(-mean * excess).mean())
    return (count * k + 10 * 0.5) / (count + 10), -k / mean


def _quantiles(probabilities: Array, k: float, scale: float) -> Array:
    """Return quantiles of the generalised Pareto distribution."""
    exponential = -np.log1p(-probabilities)
    if abs(k) < np.finfo(float).eps:
        return np.asarray(scale * exponential)
    with np.errstate(over="ignore"):
        return np.asarray(scale * np.expm1(k * exponential) / k)


def _error(k: float, tail: int) -> float:
    """Return the standard error of k-hat: that of maximum likelihood, less what the prior takes."""
    if math.isinf(k):
        return 0.0
    return max(1 + k, 0.5) * math.sqrt(tail) / (tail + 10)
