"""A point for a guide: the maximum a posteriori, of maximum likelihood where priors are flat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ppl_gen.core import GuideDraws, LogDensity
from ppl_gen.inference.vi.vector_guide import VectorGuide

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

    is_point = True
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

    @torch.no_grad()
    def draw(self, pair: nn.Module, data: Mapping[str, Any], draws: int) -> GuideDraws:
        """Return the point so many times, with the density in the model's units that it maximises.

        There is no density of the guide to compare it with, and so no bound.
        """
        density = LogDensity(
            pair,
            data,
            dtype=self.loc.dtype,
            device=self.loc.device,
            prepared=True,
            jacobian=False,
        )
        log_prob = density.log_prob(self.loc).expand(draws)
        return GuideDraws(density.constrain(self.rsample(draws)), log_prob, None)
