"""What SVI minimises: the negative of a bound, on all of the data or on a mini-batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
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
from ppl_gen.inference.guides import GaussianGuide, PairGuide, Unweighted
from ppl_gen.inference.importance import (
    Paths,
    WeightedBound,
    frozen,
    no_bound_of_batches,
    surrogate,
)
from ppl_gen.inference.vi.families import Normal

__all__ = ["Affine", "GaussianObjective", "PairObjective"]


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
        units: What the guide's coordinates are units of.

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
        units: Affine | None = None,
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
        self.units = units

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What holds all parameters and buffers that take part."""
        return self.density.pair, self.guide

    @property
    def schedule(self) -> Callable[[float], float] | None:
        """The weight of the KL part by the share of the steps that are done, if it changes."""
        return None

    @property
    def repeatable(self) -> bool:
        """Whether the operators of one step can be run again for the next."""
        return True

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is trained, by name."""
        return self.guide.named_parameters(prefix="guide")

    def fitted(self) -> GaussianGuide:
        """Return the guide over the vectors of the log density."""
        if self.units is None:
            return self.guide
        scale = self.guide.log_scale.exp()
        factor = scale if self.guide.family == "mean_field" else self.guide.scale_tril
        inner = Normal(*(v.detach().cpu().double().numpy() for v in (self.guide.loc, factor)))
        outer = self.units.base.then(inner)
        return GaussianGuide.of(outer.mean, outer.factor)

    def loss(self, batch: Mapping[str, Any] | None, progress: float = 1.0) -> torch.Tensor:
        """Return an estimate of the negative bound of the whole data, ().

        Args:
            batch: A mini-batch, or None for all of the data.
            progress: Share of the steps that are done.
        """
        return self.weighed_loss(batch)

    def weighed_loss(
        self, batch: Mapping[str, Any] | None, weight: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        """Return the same; its KL part has no weight but 1."""
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
        """Return the log density of draws of the guide, in the guide's units."""
        if batch is not None:
            batch = prepare(self.density.pair, batch)
        if self.units is None:
            return self.density.log_prob(draws, batch, self.handlers)
        return self.density.log_prob(self.units(draws), batch, self.handlers) + self.units.log_det

    def blame(self, batch: Mapping[str, Any] | None) -> str:
        """Name the sites whose log density is not finite at the guide's centre."""
        centre = self.guide.loc.detach()
        terms = self.density.log_prob_by_site(centre if self.units is None else self.units(centre))
        return _not_finite(terms)


@dataclass(frozen=True)
class Affine:
    """The map from a guide's own units, in which one step size suits all, to a density's vectors.

    Args:
        base: The normal that it maps the standard one to.
        centre: Its mean, (dim,).
        factor: Its standard deviations, (dim,), or its lower triangular scale, (dim, dim).
        log_det: The log of its Jacobian determinant.
    """

    base: Normal
    centre: torch.Tensor
    factor: torch.Tensor
    log_det: float

    @classmethod
    def of(cls, base: Normal, device: torch.device, dtype: torch.dtype) -> Affine:
        """Return the map of a normal."""
        centre, factor = (
            torch.from_numpy(value).to(device, dtype) for value in (base.mean, base.factor)
        )
        return cls(base, centre, factor, base.log_det)

    def __call__(self, draws: torch.Tensor) -> torch.Tensor:
        """Map draws, (*batch, dim)."""
        scaled = draws * self.factor if self.factor.ndim == 1 else draws @ self.factor.mT
        return self.centre + scaled


class PairObjective:
    """A bound of the pair's own guide.

    Discrete latents that the guide leaves out are summed out. So are, under the guide, its own
    discrete sites that are marked with `infer={"enumerate": "parallel"}`: the expectation over
    their values is exact. A guide that gradients cannot pass through for another reason gets Pyro's
    score function estimator of the ELBO. The KL divergence is exact where its form is known, and
    model and guide sample their latents in the same order and weigh them alike.

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
        look = _GuideSites()
        guide_sites = trace_sites(pair, data, "guide", look)
        for site in guide_sites.values():
            if site.marked and not site.enumerable:
                raise _not_enumerable(site)
        self.latents = {n for n, s in guide_sites.items() if s.kind in ("latent", "discrete")}
        self.weighed = {n for n, s in guide_sites.items() if s.kind != "deterministic"}
        self.model = model_of(pair)
        self.elbo = _elbo(self.model_sites, guide_sites, particles, look)
        if isinstance(self.elbo, TraceEnum_ELBO):
            self.model = enumerated(self.model)
        self.objective = objective
        self.bound: WeightedBound | None = None
        if isinstance(objective, ELBO) and not objective.sticking:
            return
        if look.score and not isinstance(objective, ReweightedWakeSleep):
            raise _no_path(sorted(look.score)[0], objective)
        self.bound = WeightedBound(
            pair, data, objective, self.model_sites, guide_sites, particles, scale
        )

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What holds all parameters and buffers that take part."""
        return (self.pair,)

    @property
    def schedule(self) -> Callable[[float], float] | None:
        """The weight of the KL part by the share of the steps that are done, if it changes."""
        objective = self.objective
        if isinstance(objective, ELBO) and callable(objective.beta):
            return objective.weight
        return None

    @property
    def repeatable(self) -> bool:
        """Whether the operators of one step can be run again for the next.

        Pyro's score function estimator makes numbers of the terms of the loss.
        """
        return self.bound is not None or isinstance(self.elbo, ReparametrisedELBO | TraceEnum_ELBO)

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
        return self.weighed_loss(batch, beta)

    def weighed_loss(
        self, batch: Mapping[str, Any], weight: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        """Return the same at a weight of the KL part."""
        with _Tempered(self.weighed, weight):
            if self.bound is None:
                return self._negative_elbo(batch, nullcontext())
            with AnswerParams(self.pair):
                prepared = prepare(self.pair, batch)
                return self.bound.differentiable_loss(**prepared)

    def negative_elbo(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return an unbiased estimate of the negative ELBO of the whole data, ().

        A weight that the pair itself gives to its latents is left out: with it, it is no bound.
        """
        return self._negative_elbo(batch, Unweighted(self.weighed))

    def _negative_elbo(
        self, batch: Mapping[str, Any], handler: AbstractContextManager[Any]
    ) -> torch.Tensor:
        with AnswerParams(self.pair), self.scale, handler:
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


class _GuideSites(Messenger):
    """Keeps the names of the sites that gradients cannot pass through."""

    def __init__(self) -> None:
        super().__init__()
        self.score: set[str] = set()
        self.is_markov = False

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if kind_of(msg) in ("latent", "discrete", "auxiliary") and not msg["fn"].has_rsample:
            self.score.add(msg["name"])
            self.is_markov |= "_markov_scope" in msg["infer"]


class _Tempered(Messenger):
    """Weighs the KL part: what model and guide say of the guide's latents."""

    def __init__(self, names: Collection[str], weight: float | torch.Tensor) -> None:
        super().__init__()
        self.names = names
        self.weight = weight
        self._products: dict[Any, Any] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        scale = msg["scale"]
        if isinstance(self.weight, float | int) and self.weight == 1:
            return
        if msg["name"] in self.names:
            # Tensors are one weight only where they are one tensor.
            key = id(scale) if isinstance(scale, torch.Tensor) else scale
            if key not in self._products:
                self._products[key] = scale, scale * self.weight
            msg["scale"] = self._products[key][1]


def _no_path(site: str, objective: Objective) -> SiteError:
    return SiteError(
        site,
        expected=f"draws that gradients can pass through, for {type(objective).__name__}",
        got="a distribution of the guide without rsample",
        remedy="Take objective=ReweightedWakeSleep(), or leave the site out of the guide if it is "
        "discrete, so that it is summed out.",
    )


def _not_enumerable(site: Site) -> SiteError:
    return SiteError(
        site.name,
        expected="a discrete distribution with finitely many values, to be summed over as infer="
        '{"enumerate": "parallel"} asks',
        got=site.distribution,
        remedy="Leave `infer` out at this site of the guide, so that it is drawn.",
    )


def _elbo(
    model: Mapping[str, Site], guide: Mapping[str, Site], particles: int, look: _GuideSites
) -> Any:
    """Return our own bound where no score function is needed, else the one of Pyro that fits."""
    sites = [*model.values(), *guide.values()]
    nesting = -min((p.dim for s in sites for p in s.plates if p.dim), default=0)
    options: dict[str, Any] = {"num_particles": particles, "max_plate_nesting": nesting}
    marked = {name for name, site in guide.items() if site.marked}
    drawn = look.score - marked
    if any(site.kind == "discrete" and name not in guide for name, site in model.items()):
        return TraceEnum_ELBO(**options)
    if marked and (drawn or look.is_markov):  # sites of a Markov chain take turns on the axes
        return TraceEnum_ELBO(**options)
    if drawn:
        unknown: Any = Trace_ELBO
        return unknown(**options)
    first = -1 - nesting if marked else None
    return ReparametrisedELBO(
        particles, analytic=same_order(model, guide), first_enumeration_dim=first
    )


def _not_finite(terms: Mapping[str, float]) -> str:
    names = [name for name, term in terms.items() if not torch.isfinite(torch.tensor(term))]
    return f"site {', '.join(repr(name) for name in names)}" if names else ""
