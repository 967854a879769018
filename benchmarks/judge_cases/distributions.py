"""Joint distributions with exact draws, densities and moments."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from judge_cases.marginals import GRID, WEIGHTS, Array, Marginal

# The quantiles that are judged.
PROBABILITIES = np.array([0.05, 0.5, 0.95])
# Moments without a closed form are those of so many draws, with their mirror image: their error is
# .003 of a standard deviation, a twentieth of the narrowest margin.
_MANY = 200_000
# Terms of Mehler's series.
_TERMS = 30


@dataclass(frozen=True, eq=False)
class Moments:
    """Exact moments.

    Args:
        mean: Means, (parameter,).
        sd: Standard deviations, (parameter,).
        quantiles: Those of `PROBABILITIES`, (quantile, parameter).
        correlation: Correlations of the parameters and, after them, of their absolute deviations
            from the mean, (2 parameter, 2 parameter): the second half sees dependence that is not
            linear, as that of a funnel.
    """

    mean: Array
    sd: Array
    quantiles: Array
    correlation: Array


class Distribution(ABC):
    """A distribution whose draws are a function of independent standard normals.

    Attributes:
        sites: Shapes by name; their elements in order are the parameters.
        noise: Number of standard normals that a draw takes.
    """

    sites: Mapping[str, tuple[int, ...]]
    noise: int

    @property
    def dim(self) -> int:
        return sum(int(np.prod(shape, dtype=int)) for shape in self.sites.values())

    @abstractmethod
    def transform(self, z: Array) -> Array:
        """Return draws, (draw, parameter), from standard normals, (draw, noise)."""

    @abstractmethod
    def log_prob(self, x: Array) -> Array:
        """Return log densities, (draw,), of values, (draw, parameter)."""

    def sample(self, rng: np.random.Generator, draws: int) -> Array:
        return self.transform(rng.normal(size=(draws, self.noise)))

    @functools.cached_property
    def moments(self) -> Moments:
        return moments_of(self.transform(_much_noise(self.noise)))


def moments_of(x: Array) -> Moments:
    """Return the moments of draws, (draw, parameter)."""
    mean = x.mean(axis=0)
    features = np.concatenate([x, np.abs(x - mean)], axis=1)
    with np.errstate(invalid="ignore"):
        correlation = np.atleast_2d(np.corrcoef(features.T))
    return Moments(mean, x.std(axis=0), np.quantile(x, PROBABILITIES, axis=0), correlation)


@functools.lru_cache(maxsize=2)
def _much_noise(width: int) -> Array:
    half = np.random.default_rng(0).normal(size=(_MANY // 2, width))
    return np.concatenate([half, -half])


class Copula(Distribution):
    """Any marginals, made dependent by the correlations of a normal distribution.

    Args:
        marginals: One for each parameter.
        correlation: Correlation matrix of the normals; None: they are independent.
    """

    def __init__(
        self,
        marginals: Sequence[Marginal],
        correlation: Array | None = None,
        sites: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.marginals = tuple(marginals)
        self.noise = len(self.marginals)
        self.sites = sites or {"theta": (self.noise,)}
        self.normal_correlation = np.eye(self.noise) if correlation is None else correlation
        self.independent = correlation is None
        self._tril = np.linalg.cholesky(self.normal_correlation)

    def transform(self, z: Array) -> Array:
        y = z if self.independent else z @ self._tril.T
        return np.stack([m.from_normal(y[:, j]) for j, m in enumerate(self.marginals)], axis=1)

    def log_prob(self, x: Array) -> Array:
        total = sum(m.log_density(x[:, j]) for j, m in enumerate(self.marginals))
        if self.independent:
            return np.asarray(total)
        y = np.stack([m.to_normal(x[:, j]) for j, m in enumerate(self.marginals)], axis=1)
        white = np.linalg.solve(self._tril, y.T)
        change = 0.5 * ((y**2).sum(axis=1) - (white**2).sum(axis=0))
        return np.asarray(total + change - np.log(np.diag(self._tril)).sum())

    @functools.cached_property
    def moments(self) -> Moments:
        mean = np.array([m.mean for m in self.marginals])
        sd = np.array([m.sd for m in self.marginals])
        quantiles = np.stack([m.quantile(PROBABILITIES) for m in self.marginals], axis=1)
        return Moments(mean, sd, quantiles, self._correlation(mean))

    def _correlation(self, mean: Array) -> Array:
        """Return the correlations of the parameters and of their absolute deviations.

        By Mehler's formula: functions of two normals with correlation r have the covariance
        sum_k a_k b_k r^k, of their coefficients in orthonormal Hermite polynomials.
        """
        values = np.stack([m.from_normal(GRID) for m in self.marginals])
        features = np.concatenate([values, np.abs(values - mean[:, None])])
        centred = features - (features @ WEIGHTS)[:, None]
        spread = np.sqrt((centred**2) @ WEIGHTS)
        coefficients = (centred * WEIGHTS) @ _hermite().T / spread[:, None]
        power = np.tile(self.normal_correlation, (2, 2))
        total = np.zeros_like(power)
        for k in range(_TERMS):
            total += np.outer(coefficients[:, k], coefficients[:, k]) * power ** (k + 1)
        np.fill_diagonal(total, 1.0)
        return total


@functools.cache
def _hermite() -> Array:
    """Return orthonormal Hermite polynomials of orders 1 to `_TERMS` on the grid."""
    rows = [np.ones_like(GRID), GRID]
    for k in range(1, _TERMS):
        rows.append((GRID * rows[k] - np.sqrt(k) * rows[k - 1]) / np.sqrt(k + 1))
    return np.stack(rows[1:])
