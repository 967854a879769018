"""Metrics of Hamiltonian Monte Carlo: linear maps that whiten a posterior, and their estimators.

A metric is a matrix `A` with `A Aᵀ` the inverse mass matrix, an approximation of the posterior's
covariance. With momenta drawn from the standard normal, the sampler moves by `q += ε A p` and
`p += ε Aᵀ ∇log π(q)`: it sees the posterior in the coordinates `A⁻¹ q`, and needs nothing but the
two products.

References:
    Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence. Seyboldt, Carlson and
    Carpenter, 2026. arXiv:2603.18845.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

from ppl_gen.core.errors import unknown

__all__ = ["Dense", "Diagonal", "Kind", "LowRank", "Metric", "Rule", "estimate", "initial"]

Array: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["diag", "dense", "low_rank"]
Rule: TypeAlias = Literal["variance", "fisher"]

# Variances stay in a range whose squares and reciprocals are ordinary numbers.
_VARIANCES = (1e-20, 1e20)
# Products of four larger values overflow.
_LARGEST = 1e50
# A low-rank metric of many coordinates is estimated from so many points, which bounds its cost.
_POINTS = 150


class Metric(ABC):
    """A linear map `A` with `A Aᵀ` the inverse mass matrix."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """The number of coordinates."""

    @abstractmethod
    def apply(self, momentum: Array) -> Array:
        """Return `A p`, of shape `(dim,)` or `(n, dim)` as the momentum `p`."""

    @abstractmethod
    def apply_transposed(self, gradient: Array) -> Array:
        """Return `Aᵀ g`, of shape `(dim,)` or `(n, dim)` as the gradient `g`."""

    def dense(self) -> Array:
        """Return `A` as a matrix, of shape `(dim, dim)`."""
        return self.apply_transposed(np.eye(self.dim))


@dataclass(frozen=True, eq=False)
class Diagonal(Metric):
    """The metric `A = diag(scale)`.

    Args:
        scale: Standard deviations, positive, shape `(dim,)`.
    """

    scale: Array

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return len(self.scale)

    def apply(self, momentum: Array) -> Array:
        """Return `A p`, of shape `(dim,)` or `(n, dim)` as the momentum `p`."""
        return self.scale * momentum

    def apply_transposed(self, gradient: Array) -> Array:
        """Return `Aᵀ g`, of shape `(dim,)` or `(n, dim)` as the gradient `g`."""
        return self.scale * gradient


@dataclass(frozen=True, eq=False)
class Dense(Metric):
    """The metric `A = factor`.

    Args:
        factor: A lower Cholesky factor of the covariance, shape `(dim, dim)`.
    """

    factor: Array

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return len(self.factor)

    def apply(self, momentum: Array) -> Array:
        """Return `A p`, of shape `(dim,)` or `(n, dim)` as the momentum `p`."""
        return momentum @ self.factor.T

    def apply_transposed(self, gradient: Array) -> Array:
        """Return `Aᵀ g`, of shape `(dim,)` or `(n, dim)` as the gradient `g`."""
        return gradient @ self.factor


@dataclass(frozen=True, eq=False)
class LowRank(Metric):
    """The metric `A = diag(scale) (I + U diag(stretch - 1) Uᵀ)`.

    Directions that are not needed are padded by zeros, with a stretch of one, and come last.

    Args:
        scale: Positive, shape `(dim,)`.
        directions: The matrix `U`, its columns orthonormal or zero, shape `(dim, rank)`.
        stretch: Square roots of the eigenvalues along them, positive, shape `(rank,)`.
    """

    scale: Array
    directions: Array
    stretch: Array

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return len(self.scale)

    def apply(self, momentum: Array) -> Array:
        """Return `A p`, of shape `(dim,)` or `(n, dim)` as the momentum `p`."""
        return self.scale * self._stretched(momentum)

    def apply_transposed(self, gradient: Array) -> Array:
        """Return `Aᵀ g`, of shape `(dim,)` or `(n, dim)` as the gradient `g`."""
        return self._stretched(self.scale * gradient)

    def _stretched(self, vector: Array) -> Array:
        along = (vector @ self.directions) * (self.stretch - 1.0)
        return vector + along @ self.directions.T


def initial(kind: Kind, gradient: ArrayLike, *, rank: int = 32) -> Metric:
    """Return the metric to start with, from the gradient at the start point.

    Its variances are `1 / |gradient|`: right for a start point that is one away from the mode,
    whatever the posterior's scale.

    Args:
        kind: The kind of the metric.
        gradient: The gradient of the log density at the start point, shape `(dim,)`. Where it is
            zero or not finite, the variance is one.
        rank: The number of directions of a low-rank metric, at most `dim` of them.

    Returns:
        A diagonal map, as a metric of that kind.

    Raises:
        ValueError: If the kind is unknown.

    Example:
        >>> initial("diag", [-0.25, 100.0, 0.0]).scale
        array([2. , 0.1, 1. ])
    """
    _check_name("metric", kind, get_args(Kind))
    return _without_directions(kind, _scale_at(np.asarray(gradient, dtype=np.float64)), rank)


def estimate(
    kind: Kind,
    draws: ArrayLike,
    gradients: ArrayLike,
    *,
    rule: Rule = "fisher",
    rank: int = 32,
    regularization: float = 1e-3,
    cutoff: float = 2.0,
) -> Metric:
    """Estimate a metric from the draws of a warm-up window and the gradients at them.

    The rule "variance" takes the regularised sample (co)variance of the draws, as Stan does, for
    low-rank metrics those of its directions that stand out from the noise. Its floor of
    `1e-3 * 5 / (n + 5)` on the variances is absolute, so coordinates are best of order one.

    The rule "fisher" minimises the Fisher divergence between the whitened posterior and the
    standard normal, with a free mean. Its solution is the `M = A Aᵀ` with
    `M Cov(gradients) M = Cov(draws)`, the geometric mean of `Cov(draws)` and the inverse of
    `Cov(gradients)`. On a Gaussian posterior it is exact, whatever the noise in the draws, as soon
    as these span the space. It does not depend on the coordinates' units.

    Dense and low-rank metrics work on coordinates standardised by the diagonal one, and, with
    fewer points than coordinates, in the span of draws and gradients, outside which they are
    diagonal. Low-rank ones keep the directions with eigenvalues farthest from one. Once there are
    as many points as coordinates, the scales are fitted a second time given these directions,
    which the paper does not do: the diagonal solution is not the diagonal part of a low-rank one.
    With more than 300 coordinates, low-rank metrics use at most 150 of the points, evenly spaced.

    Args:
        kind: The kind of the metric.
        draws: Unconstrained draws, shape `(n, dim)`, or `(chain, n, dim)` for one metric of
            several chains: each is centred at its own mean, so that chains which have not met yet
            do not widen it. Points with a non-finite or astronomical value, in draw or gradient,
            are left out.
        gradients: Gradients of the log density at the draws, of the same shape.
        rule: How it is estimated.
        rank: The number of directions of a low-rank metric, at most `dim` of them.
        regularization: Added to the variances of standardised draws and gradients in every
            direction, for the rule "fisher". Positive.
        cutoff: Directions with eigenvalues between `1 / cutoff` and `cutoff` are left out of
            low-rank metrics.

    Returns:
        The metric, finite and positive definite whatever the points. Without any usable point it
        is the identity.

    Raises:
        ValueError: If the kind or the rule is unknown, or the shapes differ.

    References:
        Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence. Seyboldt, Carlson
        and Carpenter, 2026. arXiv:2603.18845.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(10, 2)) * [3.0, 0.1]
        >>> estimate("diag", draws, -draws / np.square([3.0, 0.1])).scale
        array([3. , 0.1])
    """
    _check_name("metric", kind, get_args(Kind))
    _check_name("rule", rule, get_args(Rule))
    points, slopes = _usable(draws, gradients)
    n, dim = points.shape
    if n == 0:
        return _without_directions(kind, np.ones(dim), rank)
    if kind == "low_rank" and n > _POINTS and dim > 2 * _POINTS:
        kept = np.linspace(0, n - 1, _POINTS).astype(int)
        points, slopes = points[kept], slopes[kept]
    if rule == "variance":
        return _by_variance(kind, points, rank, cutoff)
    return _by_fisher(kind, points, slopes, rank, regularization, cutoff)


def _check_name(what: str, name: str, options: tuple[str, ...]) -> None:
    if name not in options:
        raise unknown(what, name, options)


def _usable(draws: ArrayLike, gradients: ArrayLike) -> tuple[Array, Array]:
    """Return the points of all chains where draw and gradient are ordinary numbers.

    Every chain is moved to the mean of all.
    """
    points = np.asarray(draws, dtype=np.float64)
    slopes = np.asarray(gradients, dtype=np.float64)
    if points.ndim not in (2, 3) or points.shape != slopes.shape:
        msg = (
            "draws and gradients: expected two arrays of the same shape, (n, dim) or "
            f"(chain, n, dim), got {points.shape} and {slopes.shape}."
        )
        raise ValueError(msg)
    # False for NaN.
    ordinary = np.all((np.abs(points) < _LARGEST) & (np.abs(slopes) < _LARGEST), axis=-1)
    if points.ndim == 2:
        return points[ordinary], slopes[ordinary]
    return _with_one_mean(points, ordinary), _with_one_mean(slopes, ordinary)


def _with_one_mean(values: Array, ordinary: NDArray[np.bool_]) -> Array:
    chains = [chain[rows] for chain, rows in zip(values, ordinary, strict=True) if rows.any()]
    if not chains:
        return np.empty((0, values.shape[-1]))
    mean = np.concatenate(chains).mean(axis=0)
    return np.concatenate([chain - chain.mean(axis=0) + mean for chain in chains])


def _by_variance(kind: Kind, points: Array, rank: int, cutoff: float) -> Metric:
    """Estimate a metric from the draws' regularised (co)variance."""
    n, dim = points.shape
    weight, floor = n / (n + 5), 1e-3 * 5 / (n + 5)
    centred = (points - points.mean(axis=0)) / np.sqrt(max(n - 1, 1))
    if kind == "dense":
        return Dense(
            _lower_factor(np.concatenate([np.sqrt(weight) * centred, np.sqrt(floor) * np.eye(dim)]))
        )
    scale = _scale(weight * np.square(centred).sum(axis=0) + floor)
    if kind == "diag":
        return Diagonal(scale)
    _, singular, directions = linalg.svd(centred / scale, full_matrices=False)
    eigenvalues = weight * np.square(singular) + 1.0 - weight
    # Independent draws of a standard normal have eigenvalues between these (Marchenko and Pastur).
    lower = max(1.0 - np.sqrt(dim / n), 0.0) ** 2
    upper = (1.0 + np.sqrt(dim / n)) ** 2
    signal = (eigenvalues > cutoff * upper) | (eigenvalues < lower / cutoff)
    stretch = np.sqrt(np.where(signal, eigenvalues, 1.0))
    return _low_rank(scale, directions.T, stretch, rank, cutoff)


def _by_fisher(
    kind: Kind, points: Array, slopes: Array, rank: int, regularization: float, cutoff: float
) -> Metric:
    """Estimate a metric that minimises the Fisher divergence."""
    scale = _scale(_fisher_variance(points, slopes))
    if kind == "diag":
        return Diagonal(scale)
    points, slopes = points - points.mean(axis=0), slopes - slopes.mean(axis=0)
    if kind == "dense":
        basis, root = _whitening(points / scale, slopes * scale, regularization)
        inner = np.eye(len(scale)) + basis @ (root - np.eye(len(root))) @ basis.T
        return Dense(_lower_factor((scale[:, None] * inner).T))
    if 3 < len(points) < len(scale):
        # So few points have directions that stand out by chance: fit on half of them, keep what
        # the other half confirms.
        metric = _fisher_low_rank(scale, points[::2], slopes[::2], rank, regularization, cutoff)
        return _confirmed(metric, points[1::2], slopes[1::2], cutoff)
    metric = _fisher_low_rank(scale, points, slopes, rank, regularization, cutoff)
    if len(points) >= len(scale):
        scale = _refined_scale(metric, points, slopes)
        metric = _fisher_low_rank(scale, points, slopes, rank, regularization, cutoff)
    return metric


def _fisher_low_rank(
    scale: Array, points: Array, slopes: Array, rank: int, regularization: float, cutoff: float
) -> LowRank:
    """Fit the directions and stretches to centred points, given the scale."""
    basis, root = _whitening(points / scale, slopes * scale, regularization)
    directions, stretch, _ = linalg.svd(root)
    return _low_rank(scale, basis @ directions, stretch, rank, cutoff)


def _confirmed(metric: LowRank, points: Array, slopes: Array, cutoff: float) -> LowRank:
    """Keep the directions that other points confirm, with the stretches that these have."""
    spread = _variance((points / metric.scale) @ metric.directions)
    steepness = _variance((slopes * metric.scale) @ metric.directions)
    with np.errstate(divide="ignore", invalid="ignore"):
        stretch = np.nan_to_num((spread / steepness) ** 0.25, nan=1.0, posinf=1.0)
    same_side = (stretch > 1.0) == (metric.stretch > 1.0)
    stretch = np.where(same_side & (metric.stretch != 1.0), stretch, 1.0)
    return _low_rank(metric.scale, metric.directions, stretch, len(stretch), cutoff)


def _whitening(points: Array, slopes: Array, ridge: float) -> tuple[Array, Array]:
    """Find the geometric mean of one covariance and the inverse of the other.

    Args:
        points: Centred and standardised draws, shape `(n, dim)`.
        slopes: The gradients in the same coordinates, shape `(n, dim)`.
        ridge: What is added to all variances.

    Returns:
        An orthonormal basis `Q`, shape `(dim, r)`, and a root `B`, shape `(r, r)`: the geometric
        mean is `Q B Bᵀ Qᵀ`, plus the identity outside of the basis.
    """
    n, dim = points.shape
    joint = np.concatenate([points, slopes]).T / np.sqrt(n)
    # Outside the span of draws and gradients both covariances are the ridge alone.
    basis, joint = linalg.qr(joint, mode="economic") if 2 * n < dim else (np.eye(dim), joint)
    root = np.sqrt(ridge) * np.eye(len(joint))
    # With upper triangular roots C = Rᵀ R of both covariances and the singular values
    # R_x R_gᵀ = U Σ Vᵀ, the mean is R_g⁻¹ V Σ Vᵀ R_g⁻ᵀ. Never squared, all of this is accurate
    # where the covariances themselves would be singular.
    root_draws = _upper_factor(np.concatenate([joint[:, :n].T, root]))
    root_gradients = _upper_factor(np.concatenate([joint[:, n:].T, root]))
    _, singular, directions = linalg.svd(root_draws @ root_gradients.T)
    return basis, linalg.solve_triangular(root_gradients, directions.T * np.sqrt(singular))


def _refined_scale(metric: LowRank, points: Array, slopes: Array) -> Array:
    """Fit the scale to centred points, given the directions and stretches.

    With `M` the inner part of the metric and `C` the covariances in standardised coordinates, the
    divergence is stationary in the scales where the diagonals of `M⁻¹ C_draws` and
    `M C_gradients` are equal. This is one step of a fixed-point iteration to there.
    """
    points, slopes = points / metric.scale, slopes * metric.scale
    directions, eigenvalues = metric.directions, np.square(metric.stretch)
    shrunk = points + (points @ directions) * (1.0 / eigenvalues - 1.0) @ directions.T
    grown = slopes + (slopes @ directions) * (eigenvalues - 1.0) @ directions.T
    spread, steepness = (
        # The exact diagonals are positive, but these need not be.
        np.maximum((a * b).mean(axis=0), 1e-3 * np.square(a).mean(axis=0) + 1e-30)
        for a, b in ((points, shrunk), (slopes, grown))
    )
    ratio = np.clip(spread / steepness, 1e-2, 1e2)
    return _scale(np.square(metric.scale) * np.sqrt(ratio))


def _low_rank(scale: Array, directions: Array, stretch: Array, rank: int, cutoff: float) -> LowRank:
    """Keep the directions that matter most, and pad them to the rank."""
    rank = min(rank, len(scale))
    stretch = np.clip(stretch, *np.sqrt(_VARIANCES))
    strength = 2.0 * np.abs(np.log(stretch))
    kept = np.argsort(-strength, kind="stable")[:rank]
    kept = kept[strength[kept] > np.log(cutoff)]
    metric = LowRank(scale, np.zeros((len(scale), rank)), np.ones(rank))
    metric.directions[:, : len(kept)] = directions[:, kept]
    metric.stretch[: len(kept)] = stretch[kept]
    return metric


def _without_directions(kind: Kind, scale: Array, rank: int) -> Metric:
    if kind == "diag":
        return Diagonal(scale)
    if kind == "dense":
        return Dense(np.diag(scale))
    return _low_rank(scale, np.zeros((len(scale), 0)), np.ones(0), rank, cutoff=1.0)


def _fisher_variance(points: Array, slopes: Array) -> Array:
    """Return `sqrt(var(draws) / var(gradients))`, and the best there is where one of them is 0."""
    spread, steepness = _variance(points), _variance(slopes)
    at_rest = np.square(_scale_at(slopes.mean(axis=0)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.select(
            [(spread > 0) & (steepness > 0), spread > 0, steepness > 0],
            [np.sqrt(spread / steepness), spread, 1.0 / steepness],
            default=at_rest,
        )


def _variance(values: Array) -> Array:
    """Return the variances, exactly 0 where the values differ by rounding only."""
    # A bound on the rounding error of the mean.
    rounding = len(values) * np.finfo(np.float64).eps * np.abs(values).max(axis=0)
    deviation = values.std(axis=0)
    return np.where(deviation > rounding, np.square(deviation), 0.0)


def _scale(variance: Array) -> Array:
    return np.sqrt(np.clip(variance, *_VARIANCES))


def _scale_at(gradient: Array) -> Array:
    """Return the scale that one gradient suggests."""
    steepness = np.abs(gradient)
    known = np.isfinite(steepness) & (steepness > 0)
    return _scale(1.0 / np.clip(np.where(known, steepness, 1.0), *_VARIANCES))


def _upper_factor(root: Array) -> Array:
    """Return the upper triangular `R` with `Rᵀ R` equal to `rootᵀ root`."""
    upper: Array = linalg.qr(root, mode="r")[0]
    return upper[: root.shape[1]]


def _lower_factor(root: Array) -> Array:
    """Return the lower Cholesky factor of `rootᵀ root`."""
    upper = _upper_factor(root)
    return np.ascontiguousarray((upper * np.sign(np.diag(upper))[:, None]).T)
