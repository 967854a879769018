"""A mixture of normals as a guide."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ppl_gen.inference.vi.low_rank import LowRankNormal
from ppl_gen.inference.vi.vector_guide import VectorGuide

__all__ = ["NormalMixtureGuide"]

# So many numbers at once stay in a processor's cache.
_BLOCK = 2**17


class NormalMixtureGuide(VectorGuide):
    """A mixture, in equal parts, of normals that are diagonal but for a few directions.

    Args:
        components: Number of normals.
        dim: Length of the vector.
        rank: Number of directions of each.

    Example:
        >>> guide = NormalMixtureGuide(components=2, dim=3, rank=1)
        >>> guide.rsample(5).shape
        torch.Size([5, 3])
    """

    scale: torch.Tensor
    basis: torch.Tensor
    core: torch.Tensor

    def __init__(self, components: int, dim: int, rank: int) -> None:
        super().__init__()
        self.components = components
        self.dim = dim
        self.rank = rank
        number = torch.float64
        self.register_buffer("loc", torch.zeros(components, dim, dtype=number))
        self.register_buffer("scale", torch.ones(components, dim, dtype=number))
        self.register_buffer("basis", torch.zeros(components, dim, rank, dtype=number))
        self.register_buffer("core", torch.eye(rank, dtype=number).repeat(components, 1, 1))

    @classmethod
    def of(cls, normals: Sequence[LowRankNormal]) -> NormalMixtureGuide:
        """Return the mixture of some normals, in float64, on the CPU."""
        rank = max(len(normal.core) for normal in normals)
        guide = cls(len(normals), len(normals[0].loc), rank).to("cpu")
        for number, normal in enumerate(normals):
            own = len(normal.core)
            guide.loc[number] = normal.loc
            guide.scale[number] = normal.scale
            guide.basis[number, :, :own] = normal.basis
            guide.core[number, :own, :own] = normal.core
        return guide

    @property
    def normals(self) -> list[LowRankNormal]:
        """The normals that it is made of."""
        parts = zip(self.loc, self.scale, self.basis, self.core, strict=True)
        return [LowRankNormal(*part) for part in parts]

    def rsample(self, draws: int) -> torch.Tensor:
        """Return independent draws, (draws, dim)."""
        device = self.loc.device
        component = torch.randint(self.components, (draws,), device=device)
        counts = torch.bincount(component, minlength=self.components)
        vectors = self.rsample_each(counts.tolist())
        return vectors[torch.randperm(draws, device=device)]

    def rsample_each(self, counts: Sequence[int]) -> torch.Tensor:
        """Return so many draws of each normal, one after the other, (sum of counts, dim)."""
        parts = []
        for normal, count in zip(self.normals, counts, strict=True):
            noise = torch.randn(count, self.dim, dtype=self.loc.dtype, device=self.loc.device)
            parts.append(normal.draw(noise))
        return torch.cat(parts)

    def log_prob(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the log density of vectors, (n, dim) to (n,)."""
        rows = max(1, _BLOCK // self.dim)
        return torch.cat([self._log_prob(part) for part in vectors.split(rows)])

    def _log_prob(self, vectors: torch.Tensor) -> torch.Tensor:
        terms = torch.stack([normal.log_prob(vectors) for normal in self.normals])
        return terms.logsumexp(0) - math.log(self.components)
