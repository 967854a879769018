"""What the guides over a `LogDensity`'s unconstrained vector have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ppl_gen.core import GuideDraws, LogDensity
from ppl_gen.core.arguments import num_bytes
from ppl_gen.core.draws import map_draws

__all__ = ["VectorGuide"]


class VectorGuide(nn.Module, ABC):
    """A guide over the unconstrained vector of a `LogDensity`.

    Subclasses hold a tensor `loc`, of whose dtype and on whose device they are.
    """

    loc: torch.Tensor

    @abstractmethod
    def rsample(self, draws: int) -> torch.Tensor:
        """Return draws, (draws, dim)."""

    @abstractmethod
    def log_prob(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the log density of vectors, (n, dim) to (n,)."""

    @torch.no_grad()
    def draw(self, pair: nn.Module, data: Mapping[str, Any], draws: int) -> GuideDraws:
        """Return draws of the latent sites, with densities in unconstrained space."""
        density = LogDensity(
            pair, data, dtype=self.loc.dtype, device=self.loc.device, prepared=True
        )
        return self.draw_from(density, draws)

    @torch.no_grad()
    def draw_from(self, density: LogDensity, draws: int) -> GuideDraws:
        """Return draws of the latent sites of a density that exists already."""
        vectors = self.rsample(draws)
        log_prob = map_draws(
            lambda draw: {"": density.log_prob(draw["vector"])},
            {"vector": vectors},
            bytes_per_draw=num_bytes(density.data),
        )[""]
        return GuideDraws(density.constrain(vectors), log_prob, self.log_prob(vectors).cpu())
