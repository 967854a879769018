"""How far two samples of many scalars are apart jointly, and what two of one posterior would show.

All of these are about independent draws: thin Markov chains first, by `thin`. They look at evenly
spaced draws, at most so many, and all they need is the matrix of these: no 8,000 x 8,000 distances.
The draws are compared as they come: give them in units of the reference, as
`Marginals.standardise` does.

Each distance comes with its permutation null: were both samples from one posterior, which of the
draws are called the one and which the other would not matter.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Distance", "joint_wasserstein", "mmd", "sliced_wasserstein", "thin"]

Array = NDArray[np.float64]

# Fewer have no null worth the name.
_MIN_DRAWS = 10
_UPPER = 0.95


@dataclass(frozen=True)
class Distance:
    """A distance, and what chance would show.

    Args:
        value: The distance.
        floor: Median of what two samples of one posterior, as large as these, would show.
        upper: 95 % quantile of the same.
        p_value: Probability that they would show as much as the value.
        draws: Number of draws of each sample that were looked at.
    """

    value: float
    floor: float
    upper: float
    p_value: float
    draws: tuple[int, int]

    @property
    def excess(self) -> float:
        """The value less its floor: negative in half of all right samples."""
        return self.value - self.floor


def thin(draws: ArrayLike, effective: float) -> Array:
    """Choose evenly spaced draws, so that those of Markov chains are nearly independent.

    Args:
        draws: Draws, chains one after the other, shape `(draw, scalar)`.
        effective: How many independent draws they are worth: their effective sample size.

    Returns:
        So many draws, rounded down; all where there are fewer, and one at least.

    Raises:
        ValueError: If there are not exactly two axes, there are no draws, or `effective` is not
            positive.

    Example:
        >>> thin(np.arange(10.0)[:, None], effective=4.2).ravel()
        array([0., 3., 6., 9.])
    """
    values = np.asarray(draws, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"draws: expected axes (draw, scalar), got shape {values.shape}.")
    if not effective > 0:
        raise ValueError(f"effective: expected a number of draws above 0, got {effective}.")
    count = max(int(min(effective, len(values))), 1)
    chosen = np.linspace(0, len(values) - 1, count).round().astype(int)
    return np.asarray(values[chosen])


def joint_wasserstein(
    draws: ArrayLike,
    reference: ArrayLike,
    *,
    size: int = 256,
    permutations: int = 99,
    seed: int = 0,
) -> Distance:
    """Compute the joint 1-Wasserstein distance: the mean distance that a draw has to be moved.

    Each draw is assigned to one of the reference's, so that the sum of their Euclidean distances is
    smallest. In many dimensions the floor is high, and what goes wrong in a few of them is lost in
    it.

    Args:
        draws: Independent draws, shape `(draw, scalar)`.
        reference: Independent draws, shape `(draw, scalar)`.
        size: Number of draws of each that are looked at, at most: the effort grows with its cube.
        permutations: Number of permutations that make up the null.
        seed: Of the permutations.

    Returns:
        The distance in the unit of the draws.

    Raises:
        ValueError: If shapes differ, there are fewer than ten draws, or one is not finite.

    References:
        On the rate of convergence in Wasserstein distance of the empirical measure. Fournier and
        Guillin, 2015, Probability Theory and Related Fields 162. arXiv:1312.2128.

    Example:
        >>> x, y = np.random.default_rng(0).normal(size=(2, 500, 2))
        >>> found = joint_wasserstein(x + 1.0, y)
        >>> 1.2 < found.value < 1.6, found.floor < 0.4, found.p_value  # moved by sqrt(2)
        (True, True, 0.01)
    """
    from scipy.optimize import linear_sum_assignment

    x, y = check_samples(draws, reference)
    count = min(len(x), len(y), size)
    pooled = np.concatenate([thin(x, count), thin(y, count)])
    costs = np.sqrt(_squared_distances(pooled))

    def distance(order: NDArray[np.intp]) -> float:
        part = costs[np.ix_(order[:count], order[count:])]
        rows, columns = linear_sum_assignment(part)
        return float(part[rows, columns].mean())

    return _against_permutations(distance, count, count, permutations, seed)


def sliced_wasserstein(
    draws: ArrayLike,
    reference: ArrayLike,
    *,
    size: int = 1000,
    projections: int = 50,
    permutations: int = 199,
    seed: int = 0,
) -> Distance:
    """Compute the sliced Wasserstein distance: the mean 1-Wasserstein distance in a direction.

    Args:
        draws: Independent draws, shape `(draw, scalar)`.
        reference: Independent draws, shape `(draw, scalar)`.
        size: Number of draws of each that are looked at, at most.
        projections: Number of random directions.
        permutations: Number of permutations that make up the null.
        seed: Of directions and permutations.

    Returns:
        The distance in the unit of the draws. A shift of one scalar by 1 among d moves it by about
        sqrt(2 / (pi d)).

    Raises:
        ValueError: If shapes differ, there are fewer than ten draws, or one is not finite.

    References:
        Sliced and Radon Wasserstein barycenters of measures. Bonneel, Rabin, Peyré and Pfister,
        2015, Journal of Mathematical Imaging and Vision 51.

    Example:
        >>> x, y = np.random.default_rng(0).normal(size=(2, 500, 2))
        >>> sliced_wasserstein(x, y).p_value > 0.05, sliced_wasserstein(2 * x, y).p_value
        (True, 0.005)
    """
    x, y = check_samples(draws, reference)
    x, y = thin(x, size), thin(y, size)
    directions = np.random.default_rng(seed).normal(size=(projections, x.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    projected = directions @ np.concatenate([x, y]).T
    order = np.argsort(projected, axis=1)
    gaps = np.diff(np.take_along_axis(projected, order, axis=1))
    steps = np.concatenate([np.full(len(x), 1 / len(x)), np.full(len(y), -1 / len(y))])

    def distance(permutation: NDArray[np.intp]) -> float:
        labels = np.empty_like(steps)
        labels[permutation] = steps
        # The difference of the two distribution functions between one draw and the next.
        difference = np.cumsum(labels[order[:, :-1]], axis=1)
        return float(np.vdot(np.abs(difference, out=difference), gaps)) / projections

    return _against_permutations(distance, len(x), len(y), permutations, seed + 1)


def mmd(
    draws: ArrayLike,
    reference: ArrayLike,
    *,
    size: int = 1000,
    permutations: int = 499,
    seed: int = 0,
) -> Distance:
    """Compute the squared maximum mean discrepancy by its unbiased estimate.

    The kernel is Gaussian, exp(-|x - y|^2 / (2 h^2)), with h the median distance between any two of
    the draws.

    Args:
        draws: Independent draws, shape `(draw, scalar)`.
        reference: Independent draws, shape `(draw, scalar)`.
        size: Number of draws of each that are looked at, at most: memory grows with its square.
        permutations: Number of permutations that make up the null.
        seed: Of the permutations.

    Returns:
        The squared discrepancy, between 0 and 2 but for chance: it is negative in half of all right
        samples.

    Raises:
        ValueError: If shapes differ, there are fewer than ten draws, or one is not finite.

    References:
        A kernel two-sample test. Gretton, Borgwardt, Rasch, Schölkopf and Smola, 2012, Journal of
        Machine Learning Research 13.

    Example:
        >>> x, y = np.random.default_rng(0).normal(size=(2, 500, 2))
        >>> mmd(x, y).p_value > 0.05, mmd(x + 0.5, y).p_value
        (True, 0.002)
    """
    x, y = check_samples(draws, reference)
    x, y = thin(x, size), thin(y, size)
    n, m = len(x), len(y)
    kernel = _squared_distances(np.concatenate([x, y]))
    # The median is that of all pairs: it does not know which sample a draw is from.
    bandwidth = float(np.median(kernel[np.triu_indices(n + m, 1)])) or float(kernel.mean()) or 1.0
    np.exp(np.divide(kernel, -2.0 * bandwidth, out=kernel), out=kernel)
    np.fill_diagonal(kernel, 0.0)
    # The first column says which draws are the one sample's, the others call so many others so.
    rng = np.random.default_rng(seed)
    first = np.zeros((n + m, permutations + 1))
    first[:n, 0] = 1.0
    for column in range(1, permutations + 1):
        first[rng.permutation(n + m)[:n], column] = 1.0
    to_first = kernel @ first
    within = np.einsum("ij,ij->j", first, to_first)
    between = to_first.sum(axis=0) - within
    rest = kernel.sum() - within - 2.0 * between
    values = within / (n * (n - 1)) + rest / (m * (m - 1)) - 2.0 * between / (n * m)
    return against_null(float(values[0]), values[1:], (n, m))


def check_samples(draws: ArrayLike, reference: ArrayLike) -> tuple[Array, Array]:
    """Return two samples as matrices in double precision; refuse what cannot be compared.

    Args:
        draws: Shape `(draw, scalar)`.
        reference: Shape `(draw, scalar)`.

    Raises:
        ValueError: If shapes differ, there are fewer than ten draws, or one is not finite.
    """
    samples = []
    for name, sample in (("draws", draws), ("reference", reference)):
        values = np.asarray(sample, dtype=np.float64)
        if values.ndim != 2 or not values.shape[1]:
            raise ValueError(f"{name}: expected axes (draw, scalar), got shape {values.shape}.")
        if len(values) < _MIN_DRAWS:
            raise ValueError(
                f"{name}: expected at least {_MIN_DRAWS} nearly independent draws, got "
                f"{len(values)}. Fit with more draws."
            )
        bad = int((~np.isfinite(values).all(axis=1)).sum())
        if bad:
            raise ValueError(
                f"{name}: expected finite numbers, got NaN or infinity in {bad} of {len(values)} "
                "draws. Leave out the scalars that have them, or fit again."
            )
        samples.append(values)
    if samples[0].shape[1] != samples[1].shape[1]:
        raise ValueError(
            f"draws: expected the {samples[1].shape[1]} scalars of the reference, got "
            f"{samples[0].shape[1]}. Compare posteriors of one model."
        )
    return samples[0], samples[1]


def against_null(value: float, null: Array, draws: tuple[int, int]) -> Distance:
    """Return a distance with what draws of its null distribution say of it.

    Args:
        value: The distance.
        null: Draws of it under the null, shape `(permutation,)`.
        draws: Number of draws of each sample.
    """
    floor, upper = np.quantile(null, [0.5, _UPPER])
    # Equal but for rounding counts as much: the value is one of its own null's.
    as_large = np.count_nonzero(null >= value - 1e-12 * abs(value))
    p_value = (1 + as_large) / (1 + len(null))
    return Distance(value, float(floor), float(upper), float(p_value), draws)


def _against_permutations(
    distance: Callable[[NDArray[np.intp]], float], n: int, m: int, permutations: int, seed: int
) -> Distance:
    rng = np.random.default_rng(seed)
    null = [distance(rng.permutation(n + m)) for _ in range(permutations)]
    return against_null(distance(np.arange(n + m)), np.array(null), (n, m))


def _squared_distances(points: Array) -> Array:
    """Return the squared Euclidean distances of all pairs, by a matrix product."""
    centred = points - points.mean(axis=0)
    norms = np.einsum("ij,ij->i", centred, centred)
    distances = centred @ centred.T
    distances *= -2.0
    distances += norms[:, None]
    distances += norms
    # Rounding can bring those of close points below 0.
    return np.asarray(np.maximum(distances, 0.0, out=distances))
