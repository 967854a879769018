"""What SVI minimises: the negative of a bound, on all of the data or on a mini-batch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from torch import nn

from ppl_gen.core import LogDensity
from ppl_gen.core.check import guide_problems
from ppl_gen.core.errors import SiteError
from ppl_gen.core.minibatch import ScalePlate
from ppl_gen.core.pair import model_of, prepare
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.scope import unchecked
from ppl_gen.core.structure import Site, enumerated, kind_of, trace_sites
from ppl_gen.inference.bounds import ELBO, Objective, ReweightedWakeSleep
from ppl_gen.inference.elbo import ReparametrisedELBO, same_order
from ppl_gen.inference.guides import GaussianGuide, PairGuide
from ppl_gen.inference.importance import (
    Paths,
    WeightedBound,
    frozen,
    no_bound_of_batches,
    surrogate,
)

__all__ = ["GaussianObjective", "PairObjective"]


class GaussianObjective:
    """A bound of a Gaussian guide on a log density.

    The ELBO is E_q[log p(x, u)] + H[q], the expectation by reparametrised draws and the entropy in
    closed form. Where importance is weighed, all latents are under one logarithm.

    Args:
        density: The log density.
        guide: The guide over its vectors.
        particles: Number of independent estimates in each step.
        scale: What scales a mini-batch, or None for all of the data.
        objective: Which bound.

    Raises:
        ValueError: If the objective is no bound on mini-batches, or weighs the KL part, which a
            log density does not tell apart.
    """

    def __init__(
        self,
        density: LogDensity,
        guide: GaussianGuide,
        particles: int,
        scale: ScalePlate | None = None,
        objective: Objective = ELBO(),  # noqa: B008 - it is frozen
    ) -> None:
        if scale is not None and objective.alpha != 1:
            raise no_bound_of_batches(scale.plate)
        if isinstance(objective, ELBO) and objective.beta != 1:
            msg = (
                "objective: Gaussian guides know no weight of the KL part. Leave beta out, or take "
                'guide="pair".'
            )
            raise ValueError(msg)
        self.density = density
        self.guide = guide
        self.particles = particles
        self.handlers = () if scale is None else (scale,)
        self.objective = objective

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is trained, by name."""
        return self.guide.named_parameters(prefix="guide")

    def loss(self, batch: Mapping[str, Any] | None, progress: float = 1.0) -> torch.Tensor:
        """Return an estimate of the negative bound of the whole data, ().

        Args:
            batch: A mini-batch, or None for all of the data.
            progress: Share of the steps that are done.
        """
        objective = self.objective
        if isinstance(objective, ELBO) and not objective.sticking:
            return self.negative_elbo(batch)
        shape = (objective.samples, self.particles)  # independent estimates are so many rows
        draws = self.guide.rsample(math.prod(shape)).reshape(*shape, -1)
        paths, constants = None, self.guide.parameters()
        if isinstance(objective, ReweightedWakeSleep):
            draws, constants = draws.detach(), iter(())
        else:
            paths = Paths(objective.alpha)
            draws = paths.follow(draws, -2)
        flat = draws.flatten(0, 1)
        with frozen(list(constants)):
            log_q = self.guide.log_prob(flat).reshape(shape)
        log_p = self._log_prob(flat, batch).reshape(shape)
        return -surrogate(log_p, log_q, objective, paths).mean()

    def negative_elbo(self, batch: Mapping[str, Any] | None) -> torch.Tensor:
        """Return an unbiased estimate of the negative ELBO of the whole data, ()."""
        log_prob = self._log_prob(self.guide.rsample(self.particles), batch)
        return -(log_prob.mean() + self.guide.entropy())

    def _log_prob(self, draws: torch.Tensor, batch: Mapping[str, Any] | None) -> torch.Tensor:
        if batch is not None:
            batch = prepare(self.density.pair, batch)
        return self.density.log_prob(draws, batch, self.handlers)

    def blame(self, batch: Mapping[str, Any] | None) -> str:
        """Name the sites whose log density is not finite at the guide's centre."""
        terms = self.density.log_prob_by_site(self.guide.loc.detach())
        return _not_finite(terms)


class PairObjective:
    """A bound of the pair's own guide.

    Discrete latents that the guide leaves out are summed out; a guide that gradients cannot pass
    through gets Pyro's score function estimator of the ELBO. The KL divergence is exact where its
    form is known, and model and guide sample their latents in the same order and weigh them alike.

    Args:
        pair: The pair, trained in place.
        data: Data to look at its sites on, prepared: all of it, or a mini-batch.
        particles: Number of independent estimates in each step.
        scale: What scales a mini-batch, or None for all of the data.
        objective: Which bound.

    Raises:
        SiteError: If model and guide disagree on a latent site, or a site is at odds with the
            objective.
        ValueError: If the objective is no bound on mini-batches of this pair.
    """

    def __init__(
        self,
        pair: nn.Module,
        data: Mapping[str, Any],
        particles: int,
        scale: ScalePlate | None = None,
        objective: Objective = ELBO(),  # noqa: B008 - it is frozen
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
        self.weighed = {n for n, s in guide_sites.items() if s.kind != "deterministic"}
        self.model = model_of(pair)
        self.elbo = _elbo(self.model_sites, guide_sites, particles, reparametrised=not score.names)
        if isinstance(self.elbo, TraceEnum_ELBO):
            self.model = enumerated(self.model)
        self.objective = objective
        self.bound: WeightedBound | None = None
        if isinstance(objective, ELBO) and not objective.sticking:
            return
        if score.names and not isinstance(objective, ReweightedWakeSleep):
            raise _no_path(sorted(score.names)[0], objective)
        self.bound = WeightedBound(
            pair, data, objective, self.model_sites, guide_sites, particles, scale
        )

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is trained, by name."""
        return ((n, p) for n, p in self.pair.named_parameters() if p.requires_grad)

    def loss(self, batch: Mapping[str, Any], progress: float = 1.0) -> torch.Tensor:
        """Return an estimate of the negative bound of the whole data, ().

        Args:
            batch: A mini-batch, or all of the data.
            progress: Share of the steps that are done.
        """
        objective = self.objective
        beta = objective.weight(progress) if isinstance(objective, ELBO) else 1.0
        with _Tempered(self.weighed, beta):
            if self.bound is None:
                return self.negative_elbo(batch)
            with AnswerParams(self.pair):
                prepared = prepare(self.pair, batch)
                return self.bound.differentiable_loss(**prepared)

    def negative_elbo(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return an unbiased estimate of the negative ELBO of the whole data, ()."""
        with AnswerParams(self.pair), self.scale:
            loss: torch.Tensor = self.elbo.differentiable_loss(
                self.model, self.pair.guide, **prepare(self.pair, batch)
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


class _Tempered(Messenger):
    """Weighs the KL part: what model and guide say of the guide's latents."""

    def __init__(self, names: Collection[str], weight: float) -> None:
        super().__init__()
        self.names = names
        self.weight = weight

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if self.weight != 1 and msg["name"] in self.names:
            msg["scale"] = msg["scale"] * self.weight


def _no_path(site: str, objective: Objective) -> SiteError:
    return SiteError(
        site,
        expected=f"draws that gradients can pass through, for {type(objective).__name__}",
        got="a distribution of the guide without rsample",
        remedy="Take objective=ReweightedWakeSleep(), or leave the site out of the guide if it is "
        "discrete, so that it is summed out.",
    )


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
    return ReparametrisedELBO(particles, analytic=same_order(model, guide))


def _not_finite(terms: Mapping[str, float]) -> str:
    names = [name for name, term in terms.items() if not torch.isfinite(torch.tensor(term))]
    return f"site {', '.join(repr(name) for name in names)}" if names else ""
