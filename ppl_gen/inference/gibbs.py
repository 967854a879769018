"""Gibbs sampling, for pairs that know the distribution of each latent site given the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch.distributions import Distribution, transforms

from ppl_gen.core import LogDensity, Posterior, Problem, Result, SiteError
from ppl_gen.core.discrete import draw_discrete, enumeration_dim, run_enumerated
from ppl_gen.core.draws import map_draws
from ppl_gen.core.errors import check_count, unknown
from ppl_gen.core.log_density import log_joint
from ppl_gen.core.pair import model_of
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.progress import ProgressBar
from ppl_gen.core.replay import Replay
from ppl_gen.core.scope import default_dtype, unchecked
from ppl_gen.core.structure import Site
from ppl_gen.inference.mcmc.advice import advice

if TYPE_CHECKING:
    from ppl_gen.inference.mcmc.init import Init

__all__ = ["Conditional", "Gibbs", "HasConditionals", "slice_sample"]

Values: TypeAlias = Mapping[str, torch.Tensor]
LogProb: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Conditional: TypeAlias = Callable[[Values], Distribution | LogProb]
"""From the values of all latent sites, (chain, *site), to one site's distribution given the others.

Either a distribution to draw from, with samples of shape (chain, *site), or, where there is none,
the log density of the site's value, elementwise and up to a constant: from values (chain, *site)
to as many numbers. Its elements must be independent of each other given the other sites.
"""

# By then an interval has shrunk to the rounding of its numbers, and the element stays as it is.
_MAX_SHRINKS = 200
# The interval is about three standard deviations of a normal distribution wide: two independent
# draws of it are 1.13 standard deviations apart on average.
_WIDTH_IN_MOVES = 3.0
# Numbers of one batch in which log densities of the draws are computed.
_BATCH_ELEMENTS = 2**22


class HasConditionals(Protocol):
    """A pair that Gibbs sampling works on: its full conditional distributions are written down.

    Example:
        A normal distribution with unknown mean and precision:

        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from ppl_gen import Pair, fit
        >>> class Normal(Pair):
        ...     def model(self, x):
        ...         mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...         precision = pyro.sample("precision", dist.Gamma(2.0, 2.0))
        ...         with pyro.plate("data", len(x)):
        ...             pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=x)
        ...
        ...     def conditionals(self, x):
        ...         def mean(values):
        ...             precision = len(x) * values["precision"] + 0.01
        ...             return dist.Normal(x.sum() * values["precision"] / precision,
        ...                                precision.rsqrt())
        ...
        ...         def precision(values):
        ...             squares = (x - values["mean"].unsqueeze(-1)).square().sum(-1)
        ...             return dist.Gamma(2.0 + len(x) / 2, 2.0 + squares / 2)
        ...
        ...         return {"mean": mean, "precision": precision}
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> fit(Normal(), {"x": x}, Gibbs(draws=100), progress=False)["mean"].shape
        torch.Size([4, 100])
    """

    def conditionals(self, **data: Any) -> Mapping[str, Conditional]:
        """Return the conditional of each latent site, discrete ones too, in the order of a sweep.

        Args:
            **data: The data, by the names of the model's arguments.
        """
        ...


@dataclass(frozen=True)
class Gibbs:
    """Gibbs sampling, on any pair that offers its full conditionals (`HasConditionals`).

    One sweep draws each latent site in turn from its distribution given the newest values of all
    others; a site whose conditional is only known as a log density gets one step of slice
    sampling in its unconstrained coordinates. All chains are drawn together. Before a run goes on,
    each conditional is compared with the pair's own log density at the first sweep, so that a wrong
    one is refused with the site named.

    Discrete latents are drawn with the others and not kept: `posterior.discrete()` draws them as
    after any other method. The statistic "lp" of each draw is what `NUTS` gives, the log density
    in unconstrained coordinates with discrete latents summed out.

    Args:
        chains: Number of chains.
        draws: Draws of each chain that are kept, after its warm-up.
        warmup: Sweeps not kept, in which the widths of slice sampling are tuned.
        thinning: Keep every so many-th sweep.
        init: Where chains start, as for `NUTS`.
        dtype: What is computed in.

    Raises:
        ValueError: If an option is out of range.

    References:
        Gelfand and Smith, Sampling-based approaches to calculating marginal densities (1990),
        Journal of the American Statistical Association 85(410), 398-409.
        Neal, Slice sampling (2003), Annals of Statistics 31(3), 705-767.

    Example:
        >>> Gibbs(chains=2, draws=500).warmup
        500
    """

    chains: int = 4
    draws: int = 1000
    warmup: int = 500
    thinning: int = 1
    init: Init = "uniform"
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        for name in ("chains", "draws", "warmup", "thinning"):
            check_count(name, getattr(self, name))
        if not isinstance(self.init, Posterior) and self.init not in ("uniform", "prior", "map"):
            raise unknown("init", self.init, ("uniform", "prior", "map", "a posterior"))
        if self.dtype not in (torch.float32, torch.float64):
            msg = f"dtype: expected torch.float64 or torch.float32, got {self.dtype}."
            raise ValueError(msg)

    @property
    def is_mcmc(self) -> bool:
        """Its draws are Markov chains."""
        return True

    def run(self, problem: Problem) -> Result:
        """Run the chains; see `ppl_gen.fit`."""
        previous = problem.previous
        if previous is not None and previous.num_draws >= self.draws:
            return Result(draws=previous.draws)
        density = LogDensity(
            problem.pair,
            problem.data,
            dtype=self.dtype,
            device=problem.device,
            prepared=problem.prepared,
        )
        blocks = _conditionals(density)
        _check_scales(density)
        with (
            default_dtype(self.dtype),
            unchecked(),
            AnswerParams(density.pair),
            ProgressBar("Gibbs", self._sweeps(self.draws), enabled=problem.progress) as bar,
        ):
            if previous is None:
                start = _start(density, self.chains, self.init)
            else:
                start = _last_values(density, previous)
            sampler = _Sampler(density, blocks, start)
            done = 0
            if previous is not None:
                done = self._sweeps(previous.num_draws)
                sampler.restore(previous.checkpoint)
            with torch.no_grad():
                return self._run(sampler, previous, done, bar)

    def _sweeps(self, draws: int) -> int:
        return self.warmup + draws * self.thinning

    def _run(
        self, sampler: _Sampler, previous: Posterior | None, done: int, bar: ProgressBar
    ) -> Result:
        """Sweep, and put the draws after those of an earlier part of the run."""
        density = sampler.density
        kept: list[Values] = []
        interrupted = False
        try:
            for step in range(done, self._sweeps(self.draws)):
                made = step + 1 - self.warmup
                sampler.sweep(tune=made <= 0, verify=step == 0)
                if made > 0 and made % self.thinning == 0:
                    kept.append({name: sampler.values[name] for name in density.sites})
                bar.update(step + 1, "warm-up" if made <= 0 else "sampling")
        except KeyboardInterrupt as stop:
            if not kept:
                msg = "Gibbs was interrupted before its first draw: there is nothing to keep yet."
                raise KeyboardInterrupt(msg) from stop
            interrupted = True
        # Where an interrupted sweep has left the generator, no other run goes on.
        checkpoint = {} if interrupted else sampler.checkpoint()
        draws = {
            name: torch.stack([values[name] for values in kept], dim=1).cpu()
            for name in density.sites
        }
        log_prob = _log_prob(density, draws)
        if previous is not None:
            draws = {name: torch.cat([previous[name], draws[name]], dim=1) for name in draws}
            log_prob = torch.cat([previous.sample_stats["lp"], log_prob], dim=1)
        sample_stats = {"lp": log_prob}
        improper = [n for n, s in density.sites.items() if s.distribution == "ImproperUniform"]
        return Result(
            draws=draws,
            sample_stats=sample_stats,
            data=density.data,
            interrupted=interrupted,
            dtype=self.dtype,
            checkpoint=checkpoint,
            warnings=advice(draws, sample_stats, improper=improper),
        )


class _Sampler:
    """The values of all latent sites in all chains, and how they are updated.

    Args:
        density: The log density.
        blocks: The conditional of each latent site.
        values: Where the chains start, (chain, *site).
    """

    def __init__(
        self, density: LogDensity, blocks: Mapping[str, Conditional], values: Values
    ) -> None:
        self.density = density
        self.blocks = blocks
        self.values = values
        self._tuned = 0
        self._widths: dict[str, torch.Tensor] = {}  # of slices, by site

    def checkpoint(self) -> dict[str, torch.Tensor]:
        """Return all that the next sweep needs."""
        state = {f"values.{name}": value.cpu() for name, value in self.values.items()}
        state |= {f"widths.{name}": width.cpu() for name, width in self._widths.items()}
        return {**state, "generator": _generator_state(self.density.device)}

    def restore(self, checkpoint: Values) -> None:
        """Go on where `checkpoint` was called."""
        for name in self.values:
            if f"widths.{name}" in checkpoint:
                self._widths[name] = checkpoint[f"widths.{name}"].to(self.density.device)
        _set_generator_state(self.density.device, checkpoint["generator"])

    def sweep(self, *, tune: bool, verify: bool) -> None:
        """Update each site once, in the order of the pair's conditionals.

        Args:
            tune: Whether the widths of slices learn from this sweep.
            verify: Whether to compare the conditionals with the pair's log density.
        """
        # Values as they are change only with the whole sweep, which Ctrl-C may cut short.
        values = self.values
        for name, conditional in self.blocks.items():
            given = conditional(values)
            log_prob: LogProb
            if isinstance(given, Distribution):
                new, log_prob = given.sample(), given.log_prob
            else:
                new, log_prob = self._slice(name, given, values[name], tune), given
            _check(name, new, values[name])
            updated = {**values, name: new}
            if verify:
                self._verify(name, log_prob, values, updated)
            values = updated
        self.values = values
        self._tuned += tune

    def _slice(self, name: str, log_prob: LogProb, value: torch.Tensor, tune: bool) -> torch.Tensor:
        """Update a site by slice sampling in its unconstrained coordinates."""
        bijection = _elementwise(self.density, name)

        def unconstrained_log_prob(vector: torch.Tensor) -> torch.Tensor:
            value: torch.Tensor = bijection(vector)
            jacobian: torch.Tensor = bijection.log_abs_det_jacobian(vector, value)
            return log_prob(value) + jacobian

        start = bijection.inv(value)
        width = self._widths.setdefault(name, torch.ones_like(start[0]))
        new = slice_sample(unconstrained_log_prob, start, width)
        if tune:
            # A running mean, in which the first width counts as one sweep.
            latest = _WIDTH_IN_MOVES * (new - start).abs().mean(0)
            self._widths[name] = width + (latest - width) / (self._tuned + 2)
        constrained: torch.Tensor = bijection(new)
        return constrained

    def _verify(self, name: str, log_prob: LogProb, before: Values, after: Values) -> None:
        r"""Refuse a conditional that is not proportional to the pair's joint density.

        .. math::
            \log p(b \mid \text{rest}) - \log p(a \mid \text{rest})
            = \log p(b, \text{rest}) - \log p(a, \text{rest})
        """
        try:
            change = log_prob(after[name]) - log_prob(before[name])
        except NotImplementedError:  # a distribution that can be drawn from only
            return
        change = change.reshape(len(change), -1).sum(-1).cpu()
        log_before, log_after = self._log_joint(before), self._log_joint(after)
        expected = log_after - log_before
        # Rounding errors of a sum are some units of the last digit of its largest part.
        size = 1.0 + torch.maximum(log_before.abs(), log_after.abs())
        tolerance = math.sqrt(torch.finfo(self.density.dtype).eps) * size
        wrong = expected.isfinite() & ~((change - expected).abs() <= tolerance)
        if bool(wrong.any()):
            worst = int(wrong.nonzero()[0])
            raise SiteError(
                name,
                expected="a conditional proportional to the model's joint density, whose logarithm "
                f"changes by {float(expected[worst]):.6g} in the first sweep",
                got=f"a change of {float(change[worst]):.6g}",
                remedy="Compare prior and likelihood of the conditional with those of the model.",
            )

    def _log_joint(self, values: Values) -> torch.Tensor:
        """Return the log density of all latent sites and the data, (chain,)."""
        model, data = model_of(self.density.pair), self.density.data

        def one(values: Values) -> Values:
            return {"log_joint": log_joint(model, data, Replay(values), None)}

        return map_draws(one, values)["log_joint"]


def slice_sample(
    log_prob: LogProb,
    start: torch.Tensor,
    width: torch.Tensor | float = 1.0,
    *,
    max_steps: int = 50,
) -> torch.Tensor:
    """Update each element of a tensor once by univariate slice sampling.

    Each element is the state of a Markov chain of its own that leaves its density invariant. A
    level is drawn below the density, an interval about the element is stepped out until both ends
    are below that level, and points are drawn from it, each shrinking it towards the element, until
    one is above.

    Args:
        log_prob: Elementwise log densities, up to a constant, of a tensor shaped as `start`.
            NaN counts as a density of zero.
        start: The elements, each of positive density.
        width: First width of the interval, to be broadcast with `start`: a few standard deviations
            are best. Too small a width costs evaluations, too large a one little.
        max_steps: The interval is at most so many widths wide.

    Returns:
        The elements' new values, of the shape of `start`.

    References:
        Neal, Slice sampling (2003), Annals of Statistics 31(3), 705-767, figures 3 and 5.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.zeros(1000)
        >>> for _ in range(20):
        ...     x = slice_sample(lambda x: -x.square() / 2, x)
        >>> bool(abs(x.std() - 1) < 0.1)
        True
    """
    level = log_prob(start) - torch.empty_like(start).exponential_()
    left = start - width * torch.rand_like(start)
    right = left + width
    # Steps to either side are limited at random, which keeps the interval's choice reversible.
    to_the_left = (max_steps * torch.rand_like(start)).floor()
    left = _step_out(log_prob, level, left, -width, to_the_left)
    right = _step_out(log_prob, level, right, width, max_steps - 1 - to_the_left)
    new, searching = start, torch.ones_like(start, dtype=torch.bool)
    for _ in range(_MAX_SHRINKS):
        point = left + (right - left) * torch.rand_like(start)
        inside = log_prob(point) >= level
        new = torch.where(searching & inside, point, new)
        searching = searching & ~inside
        if not bool(searching.any()):
            break
        left = torch.where(point < start, point, left)
        right = torch.where(point < start, right, point)
    return new


def _step_out(
    log_prob: LogProb,
    level: torch.Tensor,
    end: torch.Tensor,
    step: torch.Tensor | float,
    most: torch.Tensor,
) -> torch.Tensor:
    """Move an end of the interval until it is below the level, by a number of steps at most."""
    while bool((going := (most > 0) & (log_prob(end) >= level)).any()):
        end = torch.where(going, end + step, end)
        most = most - going.to(most.dtype)
    return end


def _check(name: str, new: torch.Tensor, old: torch.Tensor) -> None:
    """Refuse a value of the wrong shape, or one that is not finite."""
    if new.shape != old.shape or new.dtype != old.dtype:
        raise SiteError(
            name,
            expected=f"draws of its conditional of shape {tuple(old.shape)}, {old.dtype}",
            got=f"{tuple(new.shape)}, {new.dtype}",
            remedy="Values have an axis of chains in front: let the conditional keep it.",
        )
    if new.is_floating_point() and not bool(new.isfinite().all()):
        raise SiteError(
            name,
            expected="a conditional whose draws are finite",
            got="one that is NaN or infinite",
            remedy="Look at the scales and rates that it is made of.",
        )


def _latents(density: LogDensity) -> dict[str, Site]:
    """Return all latent sites, discrete ones included."""
    kinds = ("latent", "discrete")
    return {name: site for name, site in density.model_sites.items() if site.kind in kinds}


def _start(density: LogDensity, chains: int, init: Init) -> Values:
    """Return values of all latent sites to start from, (chain, *site)."""
    from ppl_gen.core.evaluation import eagerly
    from ppl_gen.inference.mcmc.init import start_points

    points, _, _ = start_points(density, eagerly(density), chains, init)
    values = density.constrain(points.to(density.device, density.dtype))
    sites = _latents(density)
    if len(sites) > len(values):
        drawn = draw_discrete(density.pair, density.data, density.model_sites, values)
        values |= {name: value.to(density.device) for name, value in drawn.items()}
    return {name: values[name] for name in sites}


def _last_values(density: LogDensity, previous: Posterior) -> Values:
    """Return the values that a posterior's run ended with, if the model is still the same."""
    last = {name: previous.checkpoint[f"values.{name}"] for name in _latents(density)}
    before = previous.sample_stats["lp"][:, -1]
    after = _log_prob(density, {n: last[n].unsqueeze(1) for n in density.sites})[:, 0]
    tolerance = 1e-8 if density.dtype == torch.float64 else 1e-3
    differs = ~torch.isclose(before, after, rtol=tolerance, atol=tolerance)
    if bool(differs.any()):
        chain = int(differs.nonzero()[0])
        msg = (
            f"the model is not the one that the chains were run on: where chain {chain} is, its "
            f"log density was {float(before[chain]):.8g} and is {float(after[chain]):.8g}. Give "
            "the same code and data, or start a new run."
        )
        raise ValueError(msg)
    return {name: value.to(density.device) for name, value in last.items()}


def _generator_state(device: torch.device) -> torch.Tensor:
    on_gpu = device.type == "cuda"
    return torch.cuda.get_rng_state(device) if on_gpu else torch.get_rng_state()


def _set_generator_state(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def _conditionals(density: LogDensity) -> Mapping[str, Conditional]:
    """Return the pair's conditionals, one for each of its latent sites."""
    sites = _latents(density)
    kind = type(density.pair).__name__
    offered = getattr(density.pair, "conditionals", None)
    if offered is None:
        msg = (
            f"Gibbs needs the full conditionals of the latent sites, and {kind} has no method "
            "'conditionals'. Write conditionals(self, **data) that returns, for each of "
            f"{', '.join(sites)}, a function from values to a distribution or a log density (see "
            "ppl_gen.inference.gibbs.HasConditionals), or use NUTS()."
        )
        raise ValueError(msg)
    blocks: Mapping[str, Conditional] = offered(**density.data)
    for name in blocks:
        if name not in sites:
            raise unknown("site of a conditional", name, sites)
    for name in sites:
        if name not in blocks:
            raise SiteError(
                name,
                expected=f"a conditional among those of {kind}.conditionals",
                got=f"{', '.join(blocks) or 'none'}",
                remedy="Give one for each latent site, discrete ones included.",
            )
    return blocks


def _check_scales(density: LogDensity) -> None:
    """Refuse scaled discrete latents: with them drawn, the others have another posterior.

    A scale stands outside of the sum over a discrete latent in the density that every method has:
    a power of the sum is not the sum of the powers.
    """
    first_dim = enumeration_dim(density.model_sites)
    if first_dim is None:
        return
    values = Replay({name: site.value for name, site in density.sites.items()})
    with torch.no_grad(), unchecked(), AnswerParams(density.pair):
        run = run_enumerated(model_of(density.pair), density.data, first_dim, values)
    for name, factor in run.factors.items():
        if run.depends(factor) and not bool((torch.as_tensor(factor.scale) == 1).all()):
            raise SiteError(
                name,
                expected="no scale where discrete latents take part, which Gibbs draws",
                got=f"a scale of {factor.scale}",
                remedy="Take NUTS(), which sums them out, or leave out poutine.scale.",
            )


def _elementwise(density: LogDensity, name: str) -> Any:
    """Return a bijection from unconstrained numbers to a site's support, element by element."""
    block = density.blocks.get(name)
    bijection = None if block is None else block.bijection
    while isinstance(bijection, transforms.IndependentTransform):
        bijection = bijection.base_transform
    if bijection is None or bijection.domain.event_dim or bijection.codomain.event_dim:
        raise SiteError(
            name,
            expected="a distribution as its conditional",
            got="a log density, which only a site of independent real, positive or bounded "
            f"elements with fixed bounds can have, not {density.model_sites[name].distribution}",
            remedy="Return a distribution with `sample`.",
        )
    return bijection


def _log_prob(density: LogDensity, draws: Values) -> torch.Tensor:
    """Return the log density of draws in unconstrained coordinates, (chain, draw)."""
    shape = next(iter(draws.values())).shape[:2]
    flat = {n: value.flatten(0, 1).to(density.device) for n, value in draws.items()}
    size = sum(v.numel() for v in density.data.values() if isinstance(v, torch.Tensor))
    batch = max(1, _BATCH_ELEMENTS // max(size, 1))
    parts = [
        density.log_prob(density.unconstrain(dict(zip(flat, part, strict=True))))
        for part in zip(*(value.split(batch) for value in flat.values()), strict=True)
    ]
    return torch.cat(parts).reshape(shape).double().cpu()
