"""Families of normal guides: how fixed noise becomes draws, and gradients go back to parameters.

A family maps parameters and noise to draws, `u = T(e)` with `e` standard normal. Its parameters
are one flat array, so that any optimiser takes them; all of its scales are on the log scale, so
that it needs no constraints.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.inference.vi.noise import standard_noise

__all__ = ["Family", "FullRank", "LowRank", "MeanField", "Normal"]

Array: TypeAlias = NDArray[np.float64]


class Normal:
    """A normal distribution by its mean and a factor of its covariance.

    Args:
        mean: Shape `(dim,)`.
        factor: The matrix `A` with covariance `A Aᵀ`, shape `(dim, dim)`; the same as a sparse
            array of SciPy's, lower triangular once the coordinates are put in some order; or the
            standard deviations, shape `(dim,)`.
    """

    def __init__(self, mean: Array, factor: Any) -> None:
        self.mean = mean
        self.factor = factor

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return len(self.mean)

    @property
    def sd(self) -> Array:
        """Standard deviations, shape `(dim,)`."""
        if self.factor.ndim == 1:
            return np.asarray(self.factor)
        return np.asarray(np.sqrt((self.factor * self.factor).sum(axis=1)))

    def draw(self, noise: Array) -> Array:
        """Return draws, shape `(n, dim)`, of standard normal noise of the same shape."""
        spread = noise * self.factor if self.factor.ndim == 1 else noise @ self.factor.T
        return np.asarray(self.mean + spread)

    def pull_back(self, gradients: Array) -> Array:
        """Return gradients with respect to the noise, shape `(n, dim)`, of those at the draws."""
        if self.factor.ndim == 1:
            return np.asarray(gradients * self.factor)
        return np.asarray(gradients @ self.factor)

    @property
    def log_det(self) -> float:
        """The logarithm of the factor's determinant."""
        if self.factor.ndim == 1:
            return float(np.log(np.abs(self.factor)).sum())
        if not isinstance(self.factor, np.ndarray):
            return float(np.log(np.abs(self.factor.diagonal())).sum())
        return float(np.linalg.slogdet(self.factor)[1])

    def then(self, inner: Normal) -> Normal:
        """Return the distribution of this one's draws, of noise that the inner one draws."""
        if self.factor.ndim == 1 and inner.factor.ndim == 1:
            factor = self.factor * inner.factor
        else:
            outer = np.diag(self.factor) if self.factor.ndim == 1 else self.factor
            factor = outer * inner.factor if inner.factor.ndim == 1 else outer @ inner.factor
        return Normal(self.draw(inner.mean[None])[0], factor)


class Family(ABC):
    """Normal distributions whose covariances have one form, of `dim` coordinates."""

    # Whether draws of one member, of noise drawn from another, are those of a member.
    closed = True

    def __init__(self, dim: int) -> None:
        self.dim = dim

    @property
    @abstractmethod
    def noise_dim(self) -> int:
        """Number of standard normal numbers for one draw."""

    @property
    def width(self) -> int:
        """Number of coordinates of noise whose moments are made exact together."""
        return self.noise_dim

    def noise(self, generator: np.random.Generator, size: int) -> Array:
        """Return noise, shape `(size, noise_dim)`, whose moments are as exact as can be."""
        return standard_noise(generator, size, self.noise_dim)

    @abstractmethod
    def standard(self) -> Array:
        """Return the parameters of the standard normal."""

    @abstractmethod
    def draw(self, parameters: Array, noise: Array) -> Array:
        """Return draws, shape `(n, dim)`, of noise, shape `(n, noise_dim)`."""

    @abstractmethod
    def pull_back(self, parameters: Array, noise: Array, gradients: Array) -> Array:
        """Return gradients of each draw's log density, shape `(n, parameters)`.

        Args:
            parameters: The parameters.
            noise: What the draws were made of, shape `(n, noise_dim)`.
            gradients: Gradients of the log density at the draws, shape `(n, dim)`.
        """

    @abstractmethod
    def mean_pull_back(self, parameters: Array, noise: Array, gradients: Array) -> Array:
        """Return the mean over draws of what `pull_back` returns, without its memory."""

    @abstractmethod
    def entropy(self, parameters: Array) -> tuple[float, Array]:
        """Return the differential entropy and its gradient."""

    @abstractmethod
    def normal(self, parameters: Array) -> Normal:
        """Return the distribution."""


class MeanField(Family):
    """Independent coordinates. Parameters: means, then logarithms of the standard deviations."""

    @property
    def width(self) -> int:
        """Few: a coordinate's scale depends on its own noise, and little on that of others."""
        return min(self.dim, _FEW)

    @property
    def noise_dim(self) -> int:
        """Number of standard normal numbers for one draw."""
        return self.dim

    def standard(self) -> Array:
        """Return the parameters of the standard normal."""
        return np.zeros(2 * self.dim)

    def draw(self, parameters: Array, noise: Array) -> Array:
        """Return draws, shape `(n, dim)`, of noise, shape `(n, noise_dim)`."""
        return self.normal(parameters).draw(noise)

    def pull_back(self, parameters: Array, noise: Array, gradients: Array) -> Array:
        """Return gradients of each draw's log density, shape `(n, parameters)`."""
        scale = np.exp(parameters[self.dim :])
        return np.concatenate([gradients, gradients * noise * scale], axis=1)

    def mean_pull_back(self, parameters: Array, noise: Array, gradients: Array) -> Array:
        """Return the mean over draws of what `pull_back` returns, without its memory."""
        scale = np.exp(parameters[self.dim :])
        of_scale = np.einsum("nd,nd->d", gradients, noise) / len(noise) * scale
        return np.concatenate([gradients.mean(axis=0), of_scale])

    def entropy(self, parameters: Array) -> tuple[float, Array]:
        """Return the differential entropy and its gradient."""
        value = float(parameters[self.dim :].sum()) + self.dim * _STANDARD_ENTROPY
        return value, np.concatenate([np.zeros(self.dim), np.ones(self.dim)])

    def normal(self, parameters: Array) -> Normal:
        """Return the distribution."""
        return Normal(parameters[: self.dim], np.exp(parameters[self.dim :]))


class FullRank(Family):
    """Any covariance `L Lᵀ`.

    Parameters: means; logarithms of the diagonal of `L`; what is below it, row by row.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self._rows, self._columns = np.tril_indices(dim, -1)

    @property
    def noise_dim(self) -> int:
        """Number of standard normal numbers for one draw."""
        return self.dim

    def standard(self) -> Array:
        """Return the parameters of the standard normal."""
        return np.zeros(2 * self.dim + len(self._rows))

    def draw(self, parameters: Array, noise: Array) -> Array:
        """Return draws, shape `(n, dim)`, of noise, shape `(n, noise_dim)`."""
        return self.normal(parameters).draw(noise)

    def pull_back(self, parameters: Array, noise: Array, gradients: Array) -> Array:
        """Return gradients of each draw's log density, shape `(n, parameters)`."""
        diagonal = np.exp(parameters[self.dim : 2 * self.dim])
        below = gradients[:, self._rows] * noise[:, self._columns]
        return np.concatenate([gradients, gradients * noise * diagonal, below], axis=1)

    def mean_pull_back(self, parameters: Array, noise: Array, gradients: Array) -> Array:
        """Return the mean over draws of what `pull_back` returns, without its memory."""
        slope = gradients.T @ noise / len(noise)
        diagonal = np.exp(parameters[self.dim : 2 * self.dim])
        below = slope[self._rows, self._columns]
        return np.concatenate([gradients.mean(axis=0), np.diag(slope) * diagonal, below])

    def entropy(self, parameters: Array) -> tuple[float, Array]:
        """Return the differential entropy and its gradient."""
        gradient = np.zeros_like(parameters)
        gradient[self.dim : 2 * self.dim] = 1.0
        value = float(parameters[self.dim : 2 * self.dim].sum()) + self.dim * _STANDARD_ENTROPY
        return value, gradient

    def normal(self, parameters: Array) -> Normal:
        """Return the distribution."""
        factor = np.diag(np.exp(parameters[self.dim : 2 * self.dim]))
        factor[self._rows, self._columns] = parameters[2 * self.dim :]
        return Normal(parameters[: self.dim], factor)


class LowRank(Family):
    """Covariances `diag(s)² + W Wᵀ`.

    Parameters: means; logarithms of `s`; `W`, row by row. Noise: that of `s`, then that of `W`.

    Args:
        dim: Number of coordinates.
        rank: Number of columns of `W`.
    """

    closed = False

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__(dim)
        self.rank = min(rank, dim)

    @property
    def noise_dim(self) -> int:
        """Number of standard normal numbers for one draw."""
        return self.dim + self.rank

    def standard(self) -> Array:
        """Return parameters of nearly the standard normal: a `W` of 0 would stay 0."""
        directions = np.eye(self.dim, self.rank) * 1e-2
        return np.concatenate([np.zeros(2 * self.dim), directions.ravel()])

    @property
    def width(self) -> int:
        """More than each coordinate has parameters, many times."""
        return min(self.noise_dim, 24 * (self.rank + 2))

    def near(self, covariance: Array) -> Array:
        """Return parameters whose covariance is near a given one, by principal factors.

        Args:
            covariance: Shape `(dim, dim)`.
        """
        variance = np.diag(covariance).copy()
        own = 0.5 * variance
        for _ in range(_FACTOR_STEPS):
            # Exact for covariances of this form: what is left of each direction beyond its own.
            widths = np.sqrt(own)
            values, vectors = np.linalg.eigh(covariance / np.outer(widths, widths))
            values, vectors = values[-self.rank :], vectors[:, -self.rank :]
            directions = widths[:, None] * vectors * np.sqrt(np.maximum(values - 1.0, 1e-4))
            own = np.maximum(variance - np.square(directions).sum(axis=1), 1e-6 * variance)
        parts = (np.zeros(self.dim), 0.5 * np.log(own), directions.ravel())
        return np.concatenate(parts)

    def _parts(self, parameters: Array) -> tuple[Array, Array, Array]:
        mean, log_scale = parameters[: self.dim], parameters[self.dim : 2 * self.dim]
        return mean, np.exp(log_scale), parameters[2 * self.dim :].reshape(self.dim, self.rank)

    def draw(self, parameters: Array, noise: Array) -> Array:
        """Return draws, shape `(n, dim)`, of noise, shape `(n, noise_dim)`."""
        mean, scale, directions = self._parts(parameters)
        own, shared = noise[:, : self.dim], noise[:, self.dim :]
        return np.asarray(mean + own * scale + shared @ directions.T)

    def pull_back(self, parameters: Array, noise: Array, gradients: Array) -> Array:
        """Return gradients of each draw's log density, shape `(n, parameters)`."""
        _, scale, _ = self._parts(parameters)
        own, shared = noise[:, : self.dim], noise[:, self.dim :]
        outer = (gradients[:, :, None] * shared[:, None, :]).reshape(len(noise), -1)
        return np.concatenate([gradients, gradients * own * scale, outer], axis=1)

    def mean_pull_back(self, parameters: Array, noise: Array, gradients: Array) -> Array:
        """Return the mean over draws of what `pull_back` returns, without its memory."""
        _, scale, _ = self._parts(parameters)
        own, shared = noise[:, : self.dim], noise[:, self.dim :]
        of_scale = np.einsum("nd,nd->d", gradients, own) / len(noise) * scale
        outer = gradients.T @ shared / len(noise)
        return np.concatenate([gradients.mean(axis=0), of_scale, outer.ravel()])

    def entropy(self, parameters: Array) -> tuple[float, Array]:
        """Return the differential entropy and its gradient."""
        _, scale, directions = self._parts(parameters)
        # |diag(s)² + W W'| = |diag(s)²| |I + W' diag(s)⁻² W|
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            relative = directions / scale[:, None]
            inner = np.eye(self.rank) + relative.T @ relative
        if not np.isfinite(inner).all() or np.linalg.cond(inner) > 1e14:
            return -np.inf, np.zeros_like(parameters)  # so flat that rounding decides
        solved = np.linalg.solve(inner, relative.T).T
        of_directions = solved / scale[:, None]
        of_scale = 1.0 - (solved * relative).sum(axis=1)
        value = float(np.log(scale).sum() + 0.5 * np.linalg.slogdet(inner)[1])
        gradient = np.concatenate([np.zeros(self.dim), of_scale, of_directions.ravel()])
        return value + self.dim * _STANDARD_ENTROPY, gradient

    def normal(self, parameters: Array) -> Normal:
        """Return the distribution."""
        mean, scale, directions = self._parts(parameters)
        covariance = np.diag(np.square(scale)) + directions @ directions.T
        return Normal(mean, np.linalg.cholesky(covariance))


_FACTOR_STEPS = 50
_FEW = 16
_STANDARD_ENTROPY = 0.5 * (1.0 + math.log(2.0 * math.pi))
