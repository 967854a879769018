"""Normal distributions whose covariance is diagonal but for a few directions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["LowRankNormal"]


@dataclass(frozen=True)
class LowRankNormal:
    """A normal distribution with covariance `D (I + Q (L Lᵀ - I) Qᵀ) D`, `D` diagonal.

    In units of `D` it is the standard normal, but for the space that the columns of `Q` span, where
    its covariance is `L Lᵀ`. Draws and densities cost no more than `dim` times `rank` each.

    Args:
        loc: The mean, shape `(dim,)`.
        scale: The diagonal of `D`, positive, shape `(dim,)`.
        basis: `Q`, of orthonormal columns (or some that are 0), shape `(dim, rank)`.
        core: `L`, lower triangular with a positive diagonal, shape `(rank, rank)`.
    """

    loc: torch.Tensor
    scale: torch.Tensor
    basis: torch.Tensor
    core: torch.Tensor

    def draw(self, noise: torch.Tensor) -> torch.Tensor:
        """Return draws, shape `(n, dim)`, of standard normal noise of the same shape."""
        inner = noise @ self.basis
        return self.loc + self.scale * (noise + (inner @ self.core.mT - inner) @ self.basis.mT)

    @property
    def log_det(self) -> torch.Tensor:
        """Half the logarithm of the covariance's determinant, shape `()`."""
        return self.scale.log().sum() + self.core.diagonal().log().sum()

    def log_prob_of(self, noise: torch.Tensor) -> torch.Tensor:
        """Return the log density, shape `(n,)`, of the draws of some noise."""
        return self._log_prob(noise.square().sum(-1))

    def log_prob(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the log density, shape `(n,)`, of vectors, shape `(n, dim)`."""
        standard = (vectors - self.loc) / self.scale
        inner = standard @ self.basis
        outside = standard - inner @ self.basis.mT
        inside = torch.linalg.solve_triangular(self.core, inner.mT, upper=False)
        return self._log_prob(outside.square().sum(-1) + inside.square().sum(0))

    def _log_prob(self, squares: torch.Tensor) -> torch.Tensor:
        """Return the log density where the noise has so large a sum of squares."""
        constant = 0.5 * len(self.loc) * math.log(2.0 * math.pi)
        return -0.5 * squares - self.log_det - constant
