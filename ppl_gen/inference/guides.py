"""Guides: the approximations that SVI leaves behind, with draws and densities."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import nn

from ppl_gen.core import GuideDraws
from ppl_gen.core.arguments import num_bytes
from ppl_gen.core.draws import map_draws
from ppl_gen.core.errors import NoLatentsError
from ppl_gen.core.log_density import enumeration_dim, log_joint
from ppl_gen.core.pair import guide_of, model_of
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.replay import Replay
from ppl_gen.core.scope import unchecked
from ppl_gen.core.structure import DrawSimplices, trace_sites
from ppl_gen.inference.vi.delta import DeltaGuide
from ppl_gen.inference.vi.flow import FlowGuide
from ppl_gen.inference.vi.mixture import NormalMixtureGuide
from ppl_gen.inference.vi.structured import StructuredGuide
from ppl_gen.inference.vi.vector_guide import VectorGuide

__all__ = [
    "DeltaGuide",
    "FlowGuide",
    "GaussianGuide",
    "NormalMixtureGuide",
    "PairGuide",
    "StructuredGuide",
    "Unweighted",
]


class GaussianGuide(VectorGuide):
    """A normal distribution over the unconstrained vector of a `LogDensity`.

    Its scale is a diagonal ("mean_field") or a lower triangular matrix ("full_rank"), L in
    q(u) = N(u; loc, L L').

    Args:
        dim: Length of the vector.
        family: "mean_field" or "full_rank".
        init_scale: Standard deviation of every coordinate at the start.

    References:
        Kucukelbir, Tran, Ranganath, Gelman and Blei (2017), Automatic Differentiation Variational
        Inference, arXiv:1603.00788.

    Example:
        >>> GaussianGuide(2, "full_rank").scale_tril.shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        dim: int,
        family: Literal["mean_field", "full_rank"] = "mean_field",
        init_scale: float = 0.1,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.family = family
        self.init_scale = init_scale
        self.loc = nn.Parameter(torch.zeros(dim, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.full((dim,), math.log(init_scale), dtype=torch.float64))
        if family == "full_rank":
            # Rows relative to their own scale, so that one step size suits all of them.
            self.below_diagonal = nn.Parameter(torch.zeros(dim, dim, dtype=torch.float64))

    @classmethod
    def of(cls, mean: np.ndarray, factor: np.ndarray) -> GaussianGuide:
        """Return the guide of a mean and a scale.

        Args:
            mean: Shape `(dim,)`.
            factor: Standard deviations, shape `(dim,)`; or the lower triangular scale, shape
                `(dim, dim)`.
        """
        diagonal = factor if factor.ndim == 1 else np.diag(factor)
        guide = cls(len(mean), "mean_field" if factor.ndim == 1 else "full_rank")
        with torch.no_grad():
            guide.loc.copy_(torch.from_numpy(mean))
            guide.log_scale.copy_(torch.from_numpy(np.log(diagonal)))
            if factor.ndim == 2:
                relative = np.tril(factor / diagonal[:, None], -1)
                guide.below_diagonal.copy_(torch.from_numpy(relative))
        return guide

    @property
    def scale_tril(self) -> torch.Tensor:
        """The lower triangular scale, (dim, dim)."""
        unit = torch.eye(self.dim, dtype=self.loc.dtype, device=self.loc.device)
        if self.family == "full_rank":
            unit = unit + self.below_diagonal.tril(-1)
        return self.log_scale.exp().unsqueeze(-1) * unit

    def rsample(self, draws: int) -> torch.Tensor:
        """Return reparametrised draws, (draws, dim)."""
        noise = torch.randn(draws, self.dim, dtype=self.loc.dtype, device=self.loc.device)
        if self.family == "full_rank":
            return self.loc + noise @ self.scale_tril.mT
        return self.loc + noise * self.log_scale.exp()

    def entropy(self) -> torch.Tensor:
        """Return the differential entropy, ()."""
        return self.log_scale.sum() + 0.5 * self.dim * (1.0 + math.log(2.0 * math.pi))

    def log_prob(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the log density of vectors, (n, dim) to (n,)."""
        noise: torch.Tensor = vectors - self.loc
        if self.family == "full_rank":
            noise = torch.linalg.solve_triangular(self.scale_tril, noise.mT, upper=False).mT
        else:
            noise = noise / self.log_scale.exp()
        constant = 0.5 * self.dim * math.log(2.0 * math.pi)
        return -0.5 * noise.square().sum(-1) - self.log_scale.sum() - constant


class PairGuide(nn.Module):
    """The pair's own guide, amortized or not."""

    def draw(self, pair: nn.Module, data: Mapping[str, Any], draws: int) -> GuideDraws:
        """Return draws of the latent sites of the data given, with densities on their supports.

        Raises:
            NoLatentsError: If there are none.
        """
        model_sites = trace_sites(pair, data)
        names = [
            name
            for name, site in trace_sites(pair, data, "guide").items()
            if site.kind in ("latent", "discrete") and name in model_sites
        ]
        if not names:
            msg = (
                "the pair has no latents: there are none to draw. posterior.predict(data) draws "
                "what it observes."
            )
            raise NoLatentsError(msg)
        left = {n: s for n, s in model_sites.items() if n not in names}
        enumerated_below = enumeration_dim(left)
        guide = guide_of(pair)
        assert guide is not None

        def one(_: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            weights = Unweighted(names)
            with torch.no_grad(), unchecked(), AnswerParams(pair), weights, DrawSimplices():
                kept = Replay({}, names)
                log_q = log_joint(guide, data, kept, None)
                log_prob = log_joint(model_of(pair), data, Replay(kept.found), enumerated_below)
            return {**kept.found, ":log_q": log_q, ":log_prob": log_prob}

        drawn = map_draws(one, {}, num_draws=draws, bytes_per_draw=4 * num_bytes(data))
        log_q, log_prob = drawn.pop(":log_q"), drawn.pop(":log_prob")
        return GuideDraws(drawn, log_prob, log_q)


class Unweighted(Messenger):
    """Takes the weight of latent sites away: a bound whose KL part is weighed is no bound.

    What a plate that runs some of its rows scales stays.

    Args:
        names: The sites.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.names:
            msg["scale"] = math.prod(
                (frame.full_size or frame.size) / frame.size for frame in msg["cond_indep_stack"]
            )
