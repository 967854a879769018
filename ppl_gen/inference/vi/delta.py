"""A point for a guide: the maximum a posteriori, of maximum likelihood where priors are flat."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.inference.vi.mixture import VectorGuide

__all__ = ["DeltaGuide"]


class DeltaGuide(VectorGuide):
    """A single unconstrained vector.

    It has no density, so that importance weights and the evidence lower bound say nothing of it.

    Args:
        dim: Length of the vector.

    Example:
        >>> DeltaGuide(3).rsample(2).shape
        torch.Size([2, 3])
    """

    loc: torch.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("loc", torch.zeros(dim, dtype=torch.float64))

    @classmethod
    def of(cls, point: NDArray[np.float64]) -> DeltaGuide:
        """Return the guide at a point, of shape `(dim,)`."""
        guide = cls(len(point))
        guide.loc.copy_(torch.from_numpy(point))
        return guide

    def rsample(self, draws: int) -> torch.Tensor:
        """Return the point so many times, (draws, dim)."""
        return self.loc.expand(draws, -1)

    def log_prob(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the log probability of vectors, (n, dim) to (n,): 0 at the point, else -inf."""
        here = (vectors == self.loc).all(dim=-1)
        return torch.where(here, 0.0, -torch.inf).to(vectors.dtype)
