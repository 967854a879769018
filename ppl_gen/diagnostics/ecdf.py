"""Whether numbers are uniform: bands that their empirical distribution function stays within.

Ranks of a calibrated method, probability integral transforms of a model that fits and p-values of
a right hypothesis are uniform. The band holds at all points of a grid at once, with exactly the
probability that is asked for.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ecdf_band", "ecdf_p_values", "uniformity"]

Array = NDArray[np.float64]

# Smaller probabilities are lost in rounding.
_SMALLEST = 1e-10


def ecdf_p_values(counts: ArrayLike, size: int, grid: ArrayLike) -> Array:
    """Compute how likely uniform numbers are to look as uneven as these.

    The statistic is the most extreme of the empirical distribution function's binomial tail
    probabilities, over all points of the grid. Its distribution is exact, but for p-values below
    1e-10, which are an upper bound.

    Args:
        counts: How many of the numbers are below each point of the grid, shape `(point, *batch)`.
        size: How many numbers there are.
        grid: Points between 0 and 1, ascending, shape `(point,)`. For ranks 0 ... R these are
            1 / (R + 1), ..., R / (R + 1), and the counts those of ranks below 1, ..., R.

    Returns:
        The p-values, shape `batch`.

    Raises:
        ValueError: If the grid is not ascending between 0 and 1, there are no numbers, or the
            counts do not fit to the size or the grid.

    References:
        Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation
        and multiple sample comparison. Säilynoja, Bürkner and Vehtari, 2022. arXiv:2103.10522.

    Example:
        >>> float(ecdf_p_values([50, 50], 100, [0.5, 0.6]).round(3))  # 60 were expected below 0.6
        0.068
    """
    points = _checked(size, grid)
    below = np.asarray(counts, dtype=np.int64)
    if below.shape[:1] != points.shape or below.min() < 0 or below.max() > size:
        msg = f"counts: expected 0 to {size} for each of {len(points)} points, got {below}."
        raise ValueError(msg)
    tails = _tails(size, points)
    flat = below.reshape(len(points), -1)
    worst = tails[np.arange(len(points))[:, None], flat].min(axis=0)
    return _chance_of_tail(tails, points, worst).reshape(below.shape[1:])


def ecdf_band(size: int, grid: ArrayLike, alpha: float = 0.01) -> tuple[Array, Array]:
    """Compute the band that the empirical distribution function of uniform numbers stays within.

    Args:
        size: How many numbers there are.
        grid: Points between 0 and 1, ascending, shape `(point,)`.
        alpha: Probability that it leaves the band at any of the points, at most.

    Returns:
        The lowest and the highest share of the numbers below each point, shape `(point,)` each.

    Raises:
        ValueError: If the grid is not ascending between 0 and 1, alpha is not between them, or
            there are no numbers.

    References:
        Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation
        and multiple sample comparison. Säilynoja, Bürkner and Vehtari, 2022. arXiv:2103.10522.

    Example:
        >>> low, high = ecdf_band(100, [0.25, 0.5, 0.75], alpha=0.05)
        >>> low.round(2).tolist(), high.round(2).tolist()
        ([0.15, 0.39, 0.65], [0.35, 0.61, 0.85])
    """
    points = _checked(size, grid)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a probability between 0 and 1, got {alpha}.")
    inside = _tails(size, points) > _level(size, points, alpha)
    return inside.argmax(axis=1) / size, 1 - inside[:, ::-1].argmax(axis=1) / size


def uniformity(values: ArrayLike, points: int = 100) -> Array:
    """Compute how likely uniform numbers are to look as uneven as these, which are continuous.

    Args:
        values: Numbers between 0 and 1, shape `(size, *batch)`.
        points: How many parts the range from 0 to 1 is cut into, at most; as many as there are
            numbers, where these are fewer, and at least two.

    Returns:
        The p-values, shape `batch`. NaN where a number is.

    Raises:
        ValueError: If there are no numbers, or some are below 0 or above 1.

    References:
        Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation
        and multiple sample comparison. Säilynoja, Bürkner and Vehtari, 2022. arXiv:2103.10522.

    Example:
        >>> values = np.random.default_rng(0).uniform(size=200)
        >>> bool(uniformity(values) > 0.05), bool(uniformity(values**1.5) < 1e-4)
        (True, True)
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim < 1 or len(numbers) == 0:
        raise ValueError(f"values: expected at least one number, got shape {numbers.shape}.")
    if numbers.size and (np.nanmin(numbers, initial=0) < 0 or np.nanmax(numbers, initial=1) > 1):
        raise ValueError(
            "values: expected numbers between 0 and 1, "
            f"got {np.nanmin(numbers):.4g} to {np.nanmax(numbers):.4g}."
        )
    parts = max(min(points, len(numbers)), 2)
    grid = np.arange(1, parts) / parts
    counts = np.stack([(numbers < point).sum(axis=0) for point in grid])
    p_values = ecdf_p_values(counts, len(numbers), grid)
    return np.where(np.isnan(numbers).any(axis=0), np.nan, p_values)


def _checked(size: int, grid: ArrayLike) -> Array:
    points = np.asarray(grid, dtype=np.float64)
    ends = np.concatenate([[0.0], points.ravel(), [1.0]])
    if points.ndim != 1 or len(points) == 0 or not (np.diff(ends) > 0).all():
        raise ValueError(f"grid: expected ascending points between 0 and 1, got {points}.")
    if size < 1:
        raise ValueError(f"size: expected at least one number, got {size}.")
    return points


def _tails(size: int, grid: Array) -> Array:
    """Return the two-sided tail probability of each count of numbers below each point.

    Args:
        size: How many numbers there are.
        grid: The points.

    Returns:
        By point and count 0, 1, ..., `size`.
    """
    from scipy.stats import binom

    counts, chance = np.arange(size + 1), grid[:, None]
    below, above = binom.cdf(counts, size, chance), binom.sf(counts - 1, size, chance)
    return np.asarray(np.minimum(1.0, 2.0 * np.minimum(below, above)))


def _chance_of_tail(tails: Array, grid: Array, levels: Array) -> Array:
    """Return the probability that uniform numbers have a tail as small as each level anywhere.

    The counts of numbers below the points are a Markov chain with binomial steps: the probability
    of all paths that stay inside is a product of matrices (Säilynoja et al. 2022, section 3.1).
    Counts outside of the band of the smallest level are on no such path, and are left out.
    """
    from scipy.special import gammaln

    size = tails.shape[1] - 1
    log_factorial = gammaln(np.arange(size + 1) + 1.0)
    # Equal counts have equal tails up to rounding.
    exact = np.maximum(levels, _SMALLEST) * (1.0 + 1e-9)
    inside = tails > min(exact.min(), 0.5)
    first = inside.argmax(axis=1)
    last = size - inside[:, ::-1].argmax(axis=1)
    before, at, paths = np.zeros((1, 1), dtype=int), 0.0, np.ones((len(levels), 1))
    for point, tail, low, high in zip(grid, tails, first, last, strict=True):
        after = np.arange(low, high + 1)
        added, left = np.maximum(after - before, 0), size - after
        share = (point - at) / (1.0 - at)  # of the numbers still above, those up to this point
        log_step = log_factorial[size - before] - log_factorial[added] - log_factorial[left]
        log_step += added * np.log(share) + left * np.log1p(-share)
        step = np.where(after >= before, np.exp(log_step), 0.0)
        paths = (paths @ step) * (tail[after] > exact[:, None])
        before, at = after[:, None], point
    chances = 1.0 - paths.sum(axis=1)
    return np.asarray(
        np.where(levels < _SMALLEST, np.minimum(len(grid) * levels, chances), chances)
    )


def _level(size: int, grid: Array, alpha: float) -> float:
    """Return the largest tail probability that uniform numbers go below with chance `alpha`."""
    tails = _tails(size, grid)
    low, high = alpha / (2 * len(grid)), alpha
    for _ in range(2):
        levels = np.geomspace(low, high, 50)
        chances = _chance_of_tail(tails, grid, levels)
        last = max(int((chances <= alpha).sum()) - 1, 0)
        low, high = levels[last], levels[min(last + 1, 49)]
    return float(low)
