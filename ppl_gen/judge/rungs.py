"""The rungs of the ladder that `repair` climbs: when each applies, and what it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import nn

from ppl_gen.core import LogDensity, Method, Posterior, fit
from ppl_gen.core.identity import options_of
from ppl_gen.inference import NUTS, SVI, NeuTra, non_centred

__all__ = ["LADDER", "Attempt", "Ground", "Skip", "Step", "guide_of"]

# Coordinates up to which a rung is worth its time.
_MOST_LOW_RANK = 5000
_MOST_FULL_RANK = 1000
_MOST_FLOW = 50
# Up to so many a low-rank guide is a full-rank one.
_LEAST_LOW_RANK = 24
# What each family of guides is a part of.
_CONTAINED = {
    "mean_field": ("low_rank", "structured", "full_rank", "flow"),
    "low_rank": ("full_rank", "flow"),
    "full_rank": ("flow",),
    "linear_response": ("full_rank", "flow"),
    "structured": ("full_rank", "flow"),
}
_FLOW = 'SVI(guide="flow")'
_STARTED = {"warmup": 500, "target_accept": 0.9}
_PATIENT = {"draws": 2000, "warmup": 2000, "target_accept": 0.95}


class Skip(Exception):
    """A rung does not apply, and why."""


@dataclass
class Ground:
    """Where a repair stands.

    Args:
        pair: The pair, non-centred where that was an improvement.
        text: How the user writes it.
        data: The data by name.
        posterior: The best posterior so far, of that pair.
        seed: Seed of every fit.
        tried: Guides by name that were tried on the pair.
        flow: A posterior by a flow of that pair, if there is one.
    """

    pair: nn.Module
    text: str
    data: Mapping[str, Any]
    posterior: Posterior
    seed: int
    tried: set[str] = field(default_factory=set)
    flow: Posterior | None = None

    def dim(self) -> int:
        """Return the number of unconstrained coordinates.

        Raises:
            Skip: If the model has no log density over them.
        """
        try:
            return LogDensity(self.pair, self.data).dim
        except ValueError as error:
            raise Skip(str(error)) from error

    def fit(self, method: Method, text: str) -> Attempt:
        """Return the attempt to fit the pair by a method, which the user writes so."""
        return Attempt(
            f"posterior = {self.line(text)}",
            lambda: fit(self.pair, self.data, method, seed=self.seed, progress=False),
        )

    def line(self, text: str) -> str:
        """Return the expression that fits the pair by a method, which the user writes so."""
        return f"pg.fit({self.text}, data, {text}, seed={self.seed})"


@dataclass(frozen=True)
class Attempt:
    """What a rung does.

    Args:
        action: The line of code that does it.
        run: Does it.
        pair: The pair that it is of, where that is another one.
    """

    action: str
    run: Callable[[], Posterior]
    pair: nn.Module | None = None


# Raises `Skip` where it does not apply.
Step: TypeAlias = Callable[[Ground], Attempt]


def guide_of(posterior: Posterior) -> str:
    """Return the guide of a posterior by SVI, as its option says; "" for any other."""
    if posterior.provenance.get("method") != "SVI":
        return ""
    return str(posterior.provenance.get("options", {}).get("guide", ""))


def _longer(ground: Ground) -> Attempt:
    posterior = ground.posterior
    if posterior.is_mcmc:
        if not posterior.checkpoint:
            raise Skip("its chains cannot be gone on with")
        draws = 2 * posterior.num_draws
        return Attempt(
            f"posterior = posterior.extend({draws})",
            lambda: posterior.extend(draws, progress=False),
        )
    if not guide_of(posterior):
        raise Skip("it was not optimised by steps")
    if posterior.provenance.get("converged", True):
        raise Skip("the optimisation had ended")
    return ground.fit(*_without_steps(posterior))


def _without_steps(posterior: Posterior) -> tuple[Method, str]:
    """Return the method of a posterior by SVI that finds size and number of its steps itself."""
    options, guide = posterior.provenance.get("options", {}), guide_of(posterior)
    plain = options_of(SVI())
    if options.get("objective") != plain["objective"]:
        raise Skip("it was fitted to another objective than the ELBO")
    by_steps = [options.get(name) for name in ("steps", "epochs", "learning_rate", "optimizer")]
    if all(option is None for option in by_steps):
        raise Skip("it found the number of its steps itself")
    kept: dict[str, Any] = {"guide": guide}
    for name in ("batch_size", "plate"):
        if options.get(name) is not None:
            kept[name] = options[name]
    method = SVI(**kept)
    return method, f"SVI({', '.join(f'{name}={_quoted(value)}' for name, value in kept.items())})"


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _non_centre(ground: Ground) -> Attempt:
    try:
        pair = non_centred(ground.pair, ground.data)
    except ValueError as error:
        raise Skip(str(error)) from error
    text = f"non_centred({ground.text}, data)"
    moved = Ground(pair, text, ground.data, ground.posterior, ground.seed)
    if ground.posterior.is_mcmc:
        attempt = moved.fit(NUTS(target_accept=0.9), "NUTS(target_accept=0.9)")
    else:
        guide: Any = guide_of(ground.posterior)
        guide = guide if guide in _CONTAINED else "mean_field"
        attempt = moved.fit(SVI(guide=guide), f'SVI(guide="{guide}")')
    return Attempt(attempt.action, attempt.run, pair)


def _guide(name: Any, least: int, most: int) -> Step:
    """Return the rung that fits a guide to models of at least and at most so many coordinates."""

    def step(ground: Ground) -> Attempt:
        if ground.posterior.is_mcmc:
            raise Skip("the posterior is MCMC already")
        if name in ground.tried:
            raise Skip("that is what it was fitted with")
        larger = [other for other in _CONTAINED.get(name, ()) if other in ground.tried]
        if larger:
            raise Skip(f'guide="{larger[0]}" contains it')
        dim = ground.dim()
        if dim < least:
            raise Skip(f"of {dim} coordinates it is the same as full rank")
        if dim > most:
            raise Skip(f"the model has {dim} coordinates, and it is for up to {most}")
        ground.tried.add(name)
        return ground.fit(SVI(guide=name), f'SVI(guide="{name}")')

    return step


def _reweight(ground: Ground) -> Attempt:
    posterior = ground.posterior
    if posterior.is_mcmc:
        raise Skip("Markov chains have no importance weights")
    if "reweighted" in posterior.provenance:
        raise Skip("it is reweighted already")

    def run() -> Posterior:
        found = posterior.reweight(seed=ground.seed)
        facts = found.provenance["reweighted"]
        if not facts["reliable"]:
            k, limit = facts["pareto_k"], facts["threshold"]
            raise Skip(f"Pareto k-hat is {k:.2f}, above {limit:.2f} or too near to it")
        return found

    return Attempt(f"posterior = posterior.reweight(seed={ground.seed})", run)


def _nuts_from_there(ground: Ground) -> Attempt:
    if ground.posterior.is_mcmc:
        raise Skip("the posterior is MCMC already")
    if ground.posterior.is_point or not ground.posterior.draws:
        raise Skip("it has no draws to start from")
    ground.dim()
    options = ", ".join(f"{name}={value}" for name, value in _STARTED.items())
    method = NUTS(init=ground.posterior, **_STARTED)  # type: ignore[arg-type]
    return ground.fit(method, f"NUTS({options}, init=posterior)")


def _neutra(ground: Ground) -> Attempt:
    dim = ground.dim()
    if dim > _MOST_FLOW:
        raise Skip(f"the model has {dim} coordinates, and it is for up to {_MOST_FLOW}")
    flow = "" if ground.flow is None else f"flow={ground.line(_FLOW)}"
    return ground.fit(NeuTra(ground.flow), f"NeuTra({flow})")


def _plain_nuts(ground: Ground) -> Attempt:
    ground.dim()
    options = ", ".join(f"{name}={value}" for name, value in _PATIENT.items())
    return ground.fit(NUTS(**_PATIENT), f"NUTS({options})")  # type: ignore[arg-type]


LADDER: Mapping[str, Step] = {
    "optimise longer": _longer,
    "non-centre": _non_centre,
    "low rank": _guide("low_rank", _LEAST_LOW_RANK, _MOST_LOW_RANK),
    "full rank": _guide("full_rank", 1, _MOST_FULL_RANK),
    "flow": _guide("flow", 1, _MOST_FLOW),
    "reweight": _reweight,
    "linear response": _guide("linear_response", 1, _MOST_FULL_RANK),
    "NUTS from there": _nuts_from_there,
    "NeuTra": _neutra,
    "NUTS": _plain_nuts,
}
