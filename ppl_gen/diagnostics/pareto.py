"""Tails of importance weights: generalised Pareto distributions, fitted to many sets at once.

A set of weights is a row. Tails are of different lengths, so that rows of their largest weights
are aligned at the right, and what is left of the tail counts for nothing.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ROUNDING", "largest_k", "shape_interval", "smooth", "standard_error", "tail_sizes"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# Log weights this close to each other differ by the rounding of log densities.
ROUNDING = 1e-6
# A tail of fewer draws has no shape to speak of.
_MIN_TAIL = 5
# Beyond this neither bias nor variance can be relied on, however many draws there are.
_MAX_THRESHOLD = 0.7
# Weights that are smaller than the largest one by more than this underflow.
_LOG_TINY = math.log(np.finfo(np.float64).tiny)


def tail_sizes(draws: int, efficiency: ArrayLike = 1.0) -> Integers:
    """Compute how many of the largest weights make the tail, in each row.

    Args:
        draws: Number of draws in a row.
        efficiency: How many independent draws one draw is worth, shape `(row,)`.

    Returns:
        Shape `(row,)`.

    Example:
        >>> tail_sizes(4000, [1.0, 0.25]).tolist()
        [190, 380]
    """
    worth = draws / np.atleast_1d(np.asarray(efficiency, dtype=np.float64))
    return np.asarray(np.ceil(np.minimum(draws / 5, 3 * np.sqrt(worth))), dtype=np.int64)


def largest_k(draws: int) -> float:
    """Compute the largest shape that so many draws can bear.

    Args:
        draws: Number of draws.

    Returns:
        The threshold; -inf for a single draw.

    References:
        Pareto smoothed importance sampling. Vehtari, Simpson, Gelman, Yao and Gabry, 2024,
        Journal of Machine Learning Research 25. arXiv:1507.02646.

    Example:
        >>> round(largest_k(1000), 3), largest_k(100_000)
        (0.667, 0.7)
    """
    return min(1 - 1 / math.log10(draws), _MAX_THRESHOLD) if draws > 1 else -math.inf


def standard_error(k: float, tail: int) -> float:
    """Compute the standard error of an estimated shape.

    It is that of maximum likelihood, less what the prior takes.

    Args:
        k: The estimate.
        tail: Number of weights that it was estimated from.

    Returns:
        The error; 0 where the estimate is infinite.

    Example:
        >>> round(standard_error(0.5, 190), 3)
        0.103
    """
    if math.isinf(k):
        return 0.0
    return max(1 + k, 0.5) * math.sqrt(tail) / (tail + 10)


def shape_interval(k: float, error: float, reach: float) -> tuple[float, float]:
    """Compute which shapes an estimate agrees with, each by its own standard error.

    A shape's error grows with it, so that the interval reaches further up than down.

    Args:
        k: The estimate.
        error: Its standard error, of `standard_error`.
        reach: By how many errors it may be away.

    Returns:
        The smallest and the largest shape; both are the estimate where that is infinite.

    Example:
        >>> low, high = shape_interval(0.5, standard_error(0.5, 190), 1.645)
        >>> round(low, 2), round(high, 2)
        (0.35, 0.69)
    """
    if math.isinf(k):
        return k, k
    unit = reach * error / max(1 + k, 0.5)
    low, high = (k - unit) / (1 + unit), (k + unit) / (1 - unit) if unit < 1 else math.inf
    return low if low > -0.5 else k - unit / 2, high if high > -0.5 else k + unit / 2


def smooth(
    relative: Array, wanted: Integers, rounding: float = ROUNDING
) -> tuple[Array, Array, Integers]:
    """Replace the largest weights of each row by quantiles of the distribution fitted to them.

    Args:
        relative: Log weights of which each row's largest is 0, shape `(row, draw)`. None is NaN.
        wanted: How many make the tail, as `tail_sizes` says, shape `(row,)`.
        rounding: Log weights that differ by less are equal.

    Returns:
        The smoothed log weights, not normalised, shape `(row, draw)`; the shape k of each tail,
        shape `(row,)`: -inf where the largest weights are equal, inf where fewer than five are in
        the tail; how many it was estimated from, shape `(row,)`.

    References:
        Pareto smoothed importance sampling. Vehtari, Simpson, Gelman, Yao and Gabry, 2024,
        Journal of Machine Learning Research 25. arXiv:1507.02646.
    """
    shapes = np.full(len(relative), math.inf)
    width = int(wanted.max(initial=0))
    if width < _MIN_TAIL:
        return relative, shapes, wanted
    places = np.argpartition(relative, -width - 1, axis=1)[:, -width - 1 :]
    top = np.take_along_axis(relative, places, axis=1)
    order = np.argsort(top, axis=1)
    places, top = np.take_along_axis(places, order, 1), np.take_along_axis(top, order, 1)
    # Weights that underflow are equal, however different their logarithms are.
    cutoff = np.maximum(np.take_along_axis(top, (width - wanted)[:, None], 1), _LOG_TINY)
    enough, equal = wanted >= _MIN_TAIL, cutoff[:, 0] > -rounding
    shapes[enough & equal] = -math.inf
    counts = np.where(equal, wanted, (top > cutoff).sum(axis=1))
    (fitted,) = np.nonzero(enough & ~equal & (counts >= _MIN_TAIL))
    smoothed = relative.copy()
    if len(fitted):
        at, tail = places[fitted, 1:], top[fitted, 1:]
        values, shapes[fitted] = _smooth_tails(tail, cutoff[fitted], counts[fitted])
        smoothed[fitted[:, None], at] = values
    return smoothed, shapes, counts


def _smooth_tails(top: Array, cutoff: Array, counts: Integers) -> tuple[Array, Array]:
    """Return the smoothed log weights and the shapes.

    Args:
        top: The largest log weights, ascending, (row, place).
        cutoff: Those above it are in the tail, (row, 1).
        counts: How many these are, (row,).
    """
    inside = top > cutoff
    # In units of the weight at the cutoff, which keeps all digits of small differences.
    k, scale = _fit(np.where(inside, np.expm1(top - cutoff), 0.0), counts)
    place = np.arange(top.shape[1]) - (top.shape[1] - counts[:, None])
    probabilities = np.where(inside, (place + 0.5) / counts[:, None], 0.0)
    quantiles = _quantiles(probabilities, k[:, None], scale[:, None])
    return np.where(inside, np.minimum(cutoff + np.log1p(quantiles), 0.0), top), k


def _fit(excess: Array, counts: Integers) -> tuple[Array, Array]:
    """Return shape and scale of the generalised Pareto distribution of each row's values.

    Zhang and Stephens' estimate (A new and efficient estimation method for the generalized Pareto
    distribution, 2009): the mean of `theta`, which is minus shape over scale, under a posterior on
    a grid. The shape is then drawn towards 0.5 as if by ten more values.

    Args:
        excess: The values, ascending, with zeros before the first, (row, place).
        counts: Number of values in each row.
    """
    width = excess.shape[1]
    first_quartile = width - counts + (counts / 4 + 0.5).astype(np.int64) - 1
    points = 30 + np.sqrt(counts).astype(np.int64)[:, None]
    index = np.arange(1, points.max() + 1)
    spread = 1 - np.sqrt(points / (np.minimum(index, points) - 0.5))
    theta = 1 / excess[:, -1:] + spread / (
        3 * np.take_along_axis(excess, first_quartile[:, None], 1)
    )
    shape = np.stack([_mean_log(column, excess, counts) for column in theta.T], axis=1)
    log_likelihood = counts[:, None] * (np.log(-theta / shape) - shape - 1)
    log_likelihood[index > points] = -math.inf
    posterior = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
    mean = (theta * posterior).sum(axis=1) / posterior.sum(axis=1)
    k = _mean_log(mean, excess, counts)
    return (counts * k + 10 * 0.5) / (counts + 10), -k / mean


def _mean_log(theta: Array, excess: Array, counts: Integers) -> Array:
    """Return the shape that goes with theta, in each row."""
    return np.asarray(np.log1p(-theta[:, None] * excess).sum(axis=1) / counts)


def _quantiles(probabilities: Array, k: Array, scale: Array) -> Array:
    """Return quantiles of generalised Pareto distributions."""
    exponential = -np.log1p(-probabilities)
    flat = np.abs(k) < np.finfo(np.float64).eps
    with np.errstate(over="ignore"):
        curved = np.expm1(k * exponential) / np.where(flat, 1.0, k)
    return np.asarray(scale * np.where(flat, exponential, curved))
