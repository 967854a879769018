"""What SVI minimises: the negative evidence lower bound, on all of the data or on a mini-batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from torch import nn

from ppl_gen.core import LogDensity
from ppl_gen.core.check import guide_problems
from ppl_gen.core.pair import model_of, prepare
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.scope import unchecked
from ppl_gen.core.structure import Site, enumerated, kind_of, trace_sites
from ppl_gen.inference.elbo import ReparametrisedELBO
from ppl_gen.inference.guides import GaussianGuide, PairGuide

__all__ = ["GaussianObjective", "PairObjective"]


class GaussianObjective:
    """The ELBO of a Gaussian guide on a log density, its entropy in closed form.

    E_q[log p(x, u)] + H[q], the expectation by reparametrised draws.

    Args:
        density: The log density.
        guide: The guide over its vectors.
        particles: Number of draws in each step.
        scale: The messenger that scales a mini-batch, or None for all of the data.
    """

    def __init__(
        self,
        density: LogDensity,
        guide: GaussianGuide,
        particles: int,
        scale: Messenger | None = None,
    ) -> None:
        self.density = density
        self.guide = guide
        self.particles = particles
        self.handlers = () if scale is None else (scale,)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is trained, by name."""
        return self.guide.named_parameters(prefix="guide")

    def loss(self, batch: Mapping[str, Any] | None) -> torch.Tensor:
        """Return an unbiased estimate of the negative ELBO of the whole data, ()."""
        draws = self.guide.rsample(self.particles)
        if batch is not None:
            batch = prepare(self.density.pair, batch)
        log_prob = self.density.log_prob(draws, batch, self.handlers)
        return -(log_prob.mean() + self.guide.entropy())

    def blame(self, batch: Mapping[str, Any] | None) -> str:
        """Name the sites whose log density is not finite at the guide's centre."""
        terms = self.density.log_prob_by_site(self.guide.loc.detach())
        return _not_finite(terms)


class PairObjective:
    """The ELBO of the pair's own guide.

    Discrete latents that the guide leaves out are summed out, by Pyro; a guide that gradients
    cannot pass through gets Pyro's score function estimator. The KL divergence is exact where its
    form is known, and model and guide sample their latents in the same order and weigh them alike.

    Args:
        pair: The pair, trained in place.
        data: Data to look at its sites on, prepared: all of it, or a mini-batch.
        particles: Number of draws in each step.
        scale: The messenger that scales a mini-batch, or None for all of the data.

    Raises:
        SiteError: If model and guide disagree on a latent site.
    """

    def __init__(
        self,
        pair: nn.Module,
        data: Mapping[str, Any],
        particles: int,
        scale: Messenger | None = None,
    ) -> None:
        self.pair = pair
        self.guide = PairGuide()
        self.scale = Messenger() if scale is None else scale
        self.model_sites = trace_sites(pair, data)
        for problem in guide_problems(pair, data, self.model_sites):
            raise problem
        score = _ScoreFunction()
        guide_sites = trace_sites(pair, data, "guide", score)
        self.latents = {n for n, s in guide_sites.items() if s.kind in ("latent", "discrete")}
        self.model = model_of(pair)
        self.elbo = _elbo(self.model_sites, guide_sites, particles, reparametrised=not score.names)
        if isinstance(self.elbo, TraceEnum_ELBO):
            self.model = enumerated(self.model)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is trained, by name."""
        return ((n, p) for n, p in self.pair.named_parameters() if p.requires_grad)

    def loss(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return an unbiased estimate of the negative ELBO of the whole data, ()."""
        with AnswerParams(self.pair), self.scale:
            prepared = prepare(self.pair, batch)
            loss: torch.Tensor = self.elbo.differentiable_loss(
                self.model, self.pair.guide, **prepared
            )
        return loss

    def blame(self, batch: Mapping[str, Any]) -> str:
        """Name the sites whose log density or value is not finite on a batch."""
        with unchecked():
            prepared = prepare(self.pair, batch)
            guide_sites = trace_sites(self.pair, prepared, "guide")
        return _not_finite({n: float(s.value.sum()) for n, s in guide_sites.items()})


class _ScoreFunction(Messenger):
    """Keeps the names of the sites that gradients cannot pass through."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if kind_of(msg) in ("latent", "discrete", "auxiliary") and not msg["fn"].has_rsample:
            self.names.add(msg["name"])


def _elbo(
    model: Mapping[str, Site], guide: Mapping[str, Site], particles: int, *, reparametrised: bool
) -> Any:
    """Return our own bound where every site is reparametrised, else the one of Pyro that fits."""
    nesting = -min((p.dim for s in model.values() for p in s.plates if p.dim), default=0)
    options: dict[str, Any] = {"num_particles": particles, "max_plate_nesting": nesting}
    if any(site.kind == "discrete" and name not in guide for name, site in model.items()):
        return TraceEnum_ELBO(**options)
    if not reparametrised:
        unknown: Any = Trace_ELBO
        return unknown(**options)
    in_model = [name for name, site in model.items() if site.kind == "latent"]
    in_guide = [name for name, site in guide.items() if site.kind == "latent"]
    return ReparametrisedELBO(particles, analytic=in_model == in_guide)


def _not_finite(terms: Mapping[str, float]) -> str:
    names = [name for name, term in terms.items() if not torch.isfinite(torch.tensor(term))]
    return f"site {', '.join(repr(name) for name in names)}" if names else ""
