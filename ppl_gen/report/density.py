"""Density estimates of draws for pictures: smooth, and zero where there are no draws."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["estimate_density"]

Array = NDArray[np.float64]

_MANY = 500


def estimate_density(draws: ArrayLike, low: float, high: float, points: int = 256) -> Array:
    """Estimate the density of draws on an even grid by a Gaussian kernel.

    Where the draws end at a bound, the kernel is reflected there, so that the density of a
    positive quantity does not leak below zero and a probability keeps its height at its ends. The
    draws alone say where that is: at zero, or at one in the unit interval, where a few draws come
    near it, and at any other end that more draws are near to than in the tail of a normal
    distribution. The bandwidth is Silverman's rule of thumb on the smallest of standard deviation,
    scaled interquartile range and scaled width of the shortest quarter of the draws.

    Args:
        draws: Finite draws in any shape, at least two that differ.
        low: First point of the grid.
        high: Last point of the grid.
        points: Number of points of the grid.

    Returns:
        The density at each point, shape `(points,)`; zero beyond a bound.

    References:
        Density estimation for statistics and data analysis. Silverman, 1986. Equation 3.31.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=10_000)
        >>> bool(abs(estimate_density(draws, -1.0, 1.0, points=3)[1] - 0.399) < 0.03)
        True
    """
    values = np.asarray(draws, dtype=np.float64).ravel()
    bandwidth = 0.9 * _spread(values) * len(values) ** -0.2
    first, last = _bounds(values, bandwidth)
    # A fifth of a bandwidth in a cell is fine enough to be invisible; draws far outside the grid
    # reach no point of it and need no cell.
    reach = 4.0 * bandwidth
    start = max(first, low - reach, values.min() - reach)
    stop = min(last, high + reach, values.max() + reach)
    if stop <= start:
        return np.zeros(points)
    cells = max(int(np.ceil((stop - start) / (bandwidth / 5.0))), 8)
    counts, edges = np.histogram(values, bins=cells, range=(start, stop))
    width = edges[1] - edges[0]
    half = max(int(np.ceil(reach / width)), 1)
    offsets = np.arange(-half, half + 1) * width
    kernel = np.exp(-0.5 * (offsets / bandwidth) ** 2)
    kernel /= kernel.sum() * width * len(values)
    smooth = np.convolve(counts, kernel)
    # What the kernel put beyond a bound is folded back.
    inside = smooth[half : half + cells].copy()
    fold = min(half, cells)
    if start == first:
        inside[:fold] += smooth[half - fold : half][::-1]
    if stop == last:
        inside[cells - fold :] += smooth[half + cells : half + cells + fold][::-1]
    grid = np.linspace(low, high, points)
    centres = 0.5 * (edges[1:] + edges[:-1])
    density = np.interp(grid, centres, inside)
    density[(grid < start) | (grid > stop)] = 0.0
    return density


def _spread(values: Array) -> float:
    """Return the standard deviation of a normal as narrow as the narrowest part of the draws.

    With two modes far apart, as of a mixture whose labels have switched, the standard deviation
    and the interquartile range are those of the distance between the modes.
    """
    lower, upper = np.quantile(values, [0.25, 0.75])
    ordered = np.sort(values)
    quarter = max(len(values) // 4, 1)
    shortest = np.min(ordered[quarter:] - ordered[:-quarter])
    # The middle half of a standard normal is 1.349 wide, its middle quarter 0.637.
    spreads = [float(np.std(values)), (upper - lower) / 1.349, shortest / 0.637]
    return float(min(spread for spread in spreads if spread > 0.0))


def _bounds(values: Array, bandwidth: float) -> tuple[float, float]:
    """Guess the bounds of the support from the draws; infinite where there seems to be none."""
    smallest, largest = float(values.min()), float(values.max())

    def crowded(distance: Array) -> bool:
        # In 200 samples of 1,000 and of 4,000 normal draws, no end had as many within a bandwidth.
        return bool(np.count_nonzero(distance < bandwidth) > 3 + 0.01 * len(values))

    # Of few draws a bound cannot be told from a gap.
    many = len(values) >= _MANY
    first, last = -np.inf, np.inf
    if smallest >= 0.0 and crowded(values):
        first = 0.0
    elif many and crowded(values - smallest):
        first = smallest
    if largest <= 0.0 and crowded(-values):
        last = 0.0
    elif smallest >= 0.0 and largest <= 1.0 and crowded(1.0 - values):
        last = 1.0
    elif many and crowded(largest - values):
        last = largest
    return first, last
