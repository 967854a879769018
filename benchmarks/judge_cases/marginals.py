"""Distributions of one parameter, each as a function of a standard normal variable.

A chain of standard normals becomes a chain with such a marginal, without any error, and every
quantile is the value at the normal's quantile.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Array: TypeAlias = NDArray[np.float64]

# Standard normals beyond this have a probability of 1e-17.
_END = 8.4
# A straight line between two points of this grid is off by 5e-7 of a curvature.
GRID = np.linspace(-_END, _END, 8401)
_STEP = GRID[1] - GRID[0]
# What the trapezoidal rule on the grid makes of an expectation.
WEIGHTS = np.exp(-(GRID**2) / 2) / np.sqrt(2 * np.pi) * _STEP


class Marginal(ABC):
    """A continuous distribution on the line."""

    mean: float
    sd: float

    @abstractmethod
    def from_normal(self, z: Array) -> Array:
        """Return the values that standard normal ones become."""

    @abstractmethod
    def to_normal(self, x: Array) -> Array:
        """Return the standard normal values that become these."""

    @abstractmethod
    def log_density(self, x: Array) -> Array:
        """Return the log density, -inf outside of the support."""

    def quantile(self, probabilities: Array) -> Array:
        return self.from_normal(special.ndtri(probabilities))


@dataclass(frozen=True)
class Normal(Marginal):
    mean: float = 0.0
    sd: float = 1.0

    def from_normal(self, z: Array) -> Array:
        return self.mean + self.sd * z

    def to_normal(self, x: Array) -> Array:
        return (x - self.mean) / self.sd

    def log_density(self, x: Array) -> Array:
        return -0.5 * self.to_normal(x) ** 2 - np.log(self.sd * np.sqrt(2 * np.pi))


@dataclass(frozen=True, eq=False)
class Tabulated(Marginal):
    """One known by its values on the grid of standard normals."""

    values: Array
    density: Callable[[Array], Array]
    mean: float
    sd: float

    def from_normal(self, z: Array) -> Array:
        return np.interp(z, GRID, self.values)

    def to_normal(self, x: Array) -> Array:
        return np.interp(x, self.values, GRID)

    def log_density(self, x: Array) -> Array:
        return self.density(x)


@dataclass(frozen=True)
class Affine(Marginal):
    """`shift + scale` times another one."""

    inner: Marginal
    shift: float
    scale: float

    @property
    def mean(self) -> float:  # type: ignore[override]
        return self.shift + self.scale * self.inner.mean

    @property
    def sd(self) -> float:  # type: ignore[override]
        return self.scale * self.inner.sd

    def from_normal(self, z: Array) -> Array:
        return self.shift + self.scale * self.inner.from_normal(z)

    def to_normal(self, x: Array) -> Array:
        return self.inner.to_normal((x - self.shift) / self.scale)

    def log_density(self, x: Array) -> Array:
        return self.inner.log_density((x - self.shift) / self.scale) - np.log(self.scale)


def moved(marginal: Marginal, sds: float = 0.0, factor: float = 1.0) -> Marginal:
    """Return a marginal with its sd times a factor about its mean, which is moved by sds."""
    return Affine(marginal, marginal.mean * (1 - factor) + sds * marginal.sd, factor)


def tabulated(values: Array, density: Callable[[Array], Array]) -> Marginal:
    """Return the marginal with these values on the grid, its moments by quadrature."""
    mean = float(WEIGHTS @ values)
    return Tabulated(values, density, mean, float(np.sqrt(WEIGHTS @ (values - mean) ** 2)))


def of_scipy(frozen: Any) -> Marginal:
    """Return a frozen distribution of SciPy, such as `stats.gamma(3)`."""
    lower = frozen.ppf(special.ndtr(np.minimum(GRID, 0.0)))
    upper = frozen.isf(special.ndtr(-np.maximum(GRID, 0.0)))
    values = np.where(GRID < 0, lower, upper)
    return Tabulated(values, frozen.logpdf, float(frozen.mean()), float(frozen.std()))


def mixture(weights: Array, means: Array, sds: Array) -> Marginal:
    """Return a mixture of normals."""
    weights, means, sds = (np.asarray(part, dtype=float) for part in (weights, means, sds))
    x = np.linspace((means - 9 * sds).min(), (means + 9 * sds).max(), 40_001)
    z = (x[:, None] - means) / sds
    below = special.logsumexp(special.log_ndtr(z), axis=1, b=weights)
    above = special.logsumexp(special.log_ndtr(-z), axis=1, b=weights)
    normal = np.where(below < above, special.ndtri_exp(below), -special.ndtri_exp(above))

    def density(value: Array) -> Array:
        scaled = (np.asarray(value)[..., None] - means) / sds
        terms = -0.5 * scaled**2 - np.log(sds * np.sqrt(2 * np.pi))
        return special.logsumexp(terms, axis=-1, b=weights)

    mean = float(weights @ means)
    variance = float(weights @ (sds**2 + (means - mean) ** 2))
    return Tabulated(np.interp(GRID, normal, x), density, mean, variance**0.5)


def truncated(inner: Marginal, low: float, high: float) -> Marginal:
    """Return another marginal between its quantiles of two probabilities."""
    probability = np.clip(low + (high - low) * special.ndtr(GRID), 1e-17, 1 - 1e-16)
    values = inner.from_normal(special.ndtri(probability))

    def density(x: Array) -> Array:
        inside = (x >= values[0]) & (x <= values[-1])
        return np.where(inside, inner.log_density(x) - np.log(high - low), -np.inf)

    return tabulated(values, density)


@functools.cache
def skewed_mixture() -> Marginal:
    """Return the skewed mixture of Giordano et al. (2018), arXiv:1709.02536."""
    return mixture(np.array([0.5, 0.5]), np.array([0.0, 2.5]), np.sqrt([1 / 1.5, 2.0]))


@functools.cache
def wide_mixture() -> Marginal:
    """Return the wide mixture of Giordano et al. (2018), arXiv:1709.02536."""
    return mixture(np.full(3, 1 / 3), np.array([-2.0, 0.0, 2.0]), np.sqrt([2.0, 1 / 1.5, 2.0]))


def laplace_of(marginal: Marginal) -> Normal:
    """Return the normal with the curvature at the mode."""
    inside = marginal.from_normal(np.linspace(-4, 4, 801))
    density = marginal.log_density(inside)
    best = int(np.argmax(density[1:-1])) + 1
    found = optimize.minimize_scalar(
        lambda x: -float(marginal.log_density(np.array([x]))[0]),
        bounds=(inside[best - 1], inside[best + 1]),
        method="bounded",
        options={"xatol": 1e-9 * marginal.sd},
    )
    step = 1e-3 * marginal.sd
    left, middle, right = marginal.log_density(found.x + step * np.array([-1.0, 0.0, 1.0]))
    return Normal(float(found.x), float((-(left - 2 * middle + right) / step**2) ** -0.5))


def variational_optimum_of(marginal: Marginal) -> Normal:
    """Return the normal with the least Kullback-Leibler divergence to a marginal on the line."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def divergence(parameters: Array) -> float:
        x = marginal.mean + marginal.sd * (parameters[0] + np.exp(parameters[1]) * nodes)
        return float(-parameters[1] - weights @ marginal.log_density(x))

    starts = [np.array([shift, -0.2]) for shift in (-0.5, 0.0, 0.5)]
    best = min((optimize.minimize(divergence, start) for start in starts), key=lambda f: f.fun)
    mean, log_sd = best.x
    return Normal(float(marginal.mean + marginal.sd * mean), float(marginal.sd * np.exp(log_sd)))


def student_t(degrees: float, mean: float = 0.0, scale: float = 1.0) -> Marginal:
    return of_scipy(stats.t(degrees, loc=mean, scale=scale))
