"""The evidence lower bound of a reparametrised guide, in one pass over guide and model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch.distributions import kl_divergence

from ppl_gen.core.structure import Site, kind_of
from ppl_gen.inference.bernoulli import bernoulli_log_prob
from ppl_gen.inference.together import run_together

__all__ = ["Messages", "ReparametrisedELBO", "Sites", "log_prob", "negative_elbo", "same_order"]

Messages: TypeAlias = Mapping[str, Mapping[str, Any]]


class ReparametrisedELBO:
    """E_q[log p(x, z) - log q(z)] by reparametrised draws, site by site.

    The same estimator as Pyro's `Trace_ELBO` and `TraceMeanField_ELBO` where every site of the
    guide is reparametrised: it keeps no trace, and so costs a fraction of theirs. The expectation
    over discrete sites of the guide can be exact: all their values are run at once, and each term
    is weighed by their probabilities under the guide.

    Several draws are run at once, by `vmap`, where the first step shows that this gives the same;
    else one after the other.

    Args:
        num_particles: Number of draws.
        analytic: Whether to take the KL divergence of a site in closed form where PyTorch or Pyro
            knows it and model and guide weigh the site alike. Right where both sample their latents
            in the same order: the divergences of the conditionals then add up.
        first_enumeration_dim: First batch axis for the guide's sites that are marked with
            `infer={"enumerate": "parallel"}`, to the left of all plates; None where there are none.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114.
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        analytic: bool = True,
        first_enumeration_dim: int | None = None,
    ) -> None:
        self.num_particles = num_particles
        self.analytic = analytic
        self.first_enumeration_dim = first_enumeration_dim
        self._batched: bool | None = None  # not known yet

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], **data: Any
    ) -> torch.Tensor:
        """Return an estimate of the negative bound, (); its gradient is that of the bound.

        Args:
            model: The model, without discrete latents.
            guide: The guide, all of its sites reparametrised or enumerated.
            **data: Keywords of both.
        """
        run = partial(self._one, model, guide, data)
        if self.num_particles == 1:
            return run({})[0]
        if self._batched is None:
            self._batched = self._can_be_batched(run)
        if self._batched:
            return run_together(lambda: run({})[0], self.num_particles).mean()
        return torch.stack([run({})[0] for _ in range(self.num_particles)]).mean()

    @torch.no_grad()
    def _can_be_batched(self, run: Callable[[Mapping[str, torch.Tensor]], Any]) -> bool:
        """Whether all draws can be run at once, with the result of one after the other."""
        devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
        with torch.random.fork_rng(devices):
            try:
                losses, draws = run_together(lambda: run({}), self.num_particles)
                for number, loss in enumerate(losses):
                    alone, _ = run({name: draw[number] for name, draw in draws.items()})
                    if not torch.allclose(alone, loss, rtol=1e-4, equal_nan=True):
                        return False
            except (RuntimeError, ValueError, NotImplementedError):
                return False
        return True

    def _one(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        data: dict[str, Any],
        given: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of one draw, and the draw."""
        drawn = Sites(given)
        first = self.first_enumeration_dim
        with nullcontext() if first is None else EnumMessenger(first), drawn:
            guide(**data)
        joint = Sites(drawn.values)
        with joint:
            model(**data)
        summed = () if first is None else _summed_out(drawn.messages)
        loss = negative_elbo(joint.messages, drawn.messages, analytic=self.analytic, summed=summed)
        return loss, drawn.values


def same_order(model: Mapping[str, Site], guide: Mapping[str, Site]) -> bool:
    """Return whether model and guide sample their latents in the same order.

    Args:
        model: The model's sites.
        guide: The guide's.
    """
    kinds = ("latent", "discrete")
    in_guide = [name for name, site in guide.items() if site.kind in kinds]
    return in_guide == [
        name for name, site in model.items() if site.kind in kinds and name in guide
    ]


class Sites(Messenger):
    """Keeps the messages of the sites of a run, and gives latents the values of another one.

    Args:
        given: Values by name, of latents and of the rows that a plate drew.
        detach: Whether to let no gradient pass through what is drawn.
    """

    def __init__(
        self, given: Mapping[str, torch.Tensor] | None = None, *, detach: bool = False
    ) -> None:
        super().__init__()
        self.given = given or {}
        self.detach = detach
        self.messages: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, torch.Tensor] = {}

    @property
    def values(self) -> dict[str, torch.Tensor]:
        """Values of all sites, and the rows that plates drew, by name."""
        return {name: msg["value"] for name, msg in self.messages.items()} | self.rows

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] not in self.given or msg["is_observed"]:
            return
        if kind_of(msg) == "subsample" and msg["value"] is not None:
            return  # the model itself says which rows
        msg["value"] = self.given[msg["name"]]
        msg["done"] = True

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        kind = kind_of(msg)
        if kind == "subsample":
            # Model and guide have to draw the same rows.
            if msg["fn"].subsample_size not in (None, msg["fn"].size):
                self.rows[msg["name"]] = msg["value"]
            return
        if self.detach and not msg["is_observed"]:
            msg["value"] = msg["value"].detach()
        if kind != "deterministic":
            self.messages[msg["name"]] = msg


class Summed(NamedTuple):
    """A discrete site of the guide over all of whose values the expectation is taken.

    Args:
        name: Its name.
        dim: Batch axis of its values, counted from the right.
        plates: Names of the plates around it.
        probability: Probability of each value under the guide, given those that come before it.
    """

    name: str
    dim: int
    plates: frozenset[str]
    probability: torch.Tensor

    def weigh(self, term: torch.Tensor, msg: Mapping[str, Any]) -> torch.Tensor:
        """Return a site's terms times the probabilities of the values that they are for."""
        around = {frame.name for frame in msg["cond_indep_stack"]}
        if self.plates <= around:
            # A value of no probability has no say, be it infinitely unlikely in the model.
            return self.probability * torch.where(self.probability == 0, 0.0, term)
        if term.ndim >= -self.dim and term.shape[self.dim] > 1:
            plate = sorted(self.plates - around)[0]
            text = (
                f"site '{msg['name']}' depends on '{self.name}', and is outside of its plate "
                f"'{plate}': all combinations of its rows would have to be summed over. Leave "
                "`infer` out at that site of the guide, so that it is drawn."
            )
            raise ValueError(text)
        return term


def _summed_out(q: Messages) -> list[Summed]:
    """Return the sites of a guide that were enumerated."""
    return [
        Summed(
            name,
            msg["infer"]["_enumerate_dim"],
            frozenset(frame.name for frame in msg["cond_indep_stack"]),
            msg["fn"].log_prob(msg["value"]).exp(),
        )
        for name, msg in q.items()
        if "_enumerate_dim" in msg["infer"]
    ]


def negative_elbo(
    p: Messages, q: Messages, *, analytic: bool, summed: Sequence[Summed] = ()
) -> torch.Tensor:
    """Return the sum over sites of log q - log p, scaled and masked, ().

    Args:
        p: The model's messages by site.
        q: The guide's.
        analytic: Whether to take KL divergences in closed form where there is one.
        summed: Sites of the guide that were enumerated.
    """

    def expectation(term: torch.Tensor, msg: Mapping[str, Any]) -> torch.Tensor:
        for site in summed:
            term = site.weigh(term, msg)
        return term.sum()

    left = dict(q)
    terms: list[torch.Tensor] = []
    for name, of_model in p.items():
        of_guide = left.pop(name, None)
        closed = _divergence(of_model, of_guide) if of_guide is not None and analytic else None
        if closed is not None:
            terms.append(expectation(closed, of_model))
            continue
        terms.append(-expectation(log_prob(of_model), of_model))
        if of_guide is not None:
            terms.append(expectation(log_prob(of_guide), of_guide))
    # What is left are auxiliary sites and factors.
    terms += [expectation(log_prob(of_guide), of_guide) for of_guide in left.values()]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _divergence(p: Mapping[str, Any], q: Mapping[str, Any]) -> torch.Tensor | None:
    """Return KL(q, p) of a site in closed form, scaled and masked; None where there is none."""
    if not _weighed_alike(p, q):
        return None
    try:
        closed = kl_divergence(q["fn"], p["fn"])
    except NotImplementedError:
        return None
    weighed: torch.Tensor = scale_and_mask(closed, q["scale"], q["mask"])
    return weighed


def _weighed_alike(p: Mapping[str, Any], q: Mapping[str, Any]) -> bool:
    if p["mask"] is not q["mask"]:
        return False
    if isinstance(p["scale"], torch.Tensor) or isinstance(q["scale"], torch.Tensor):
        return p["scale"] is q["scale"]
    return bool(p["scale"] == q["scale"])


def log_prob(msg: Mapping[str, Any], *, scaled: bool = True) -> torch.Tensor:
    """Return the log density of a site's value, masked.

    Args:
        msg: Its message.
        scaled: Whether to multiply it by the site's scale.
    """
    value = bernoulli_log_prob(msg["fn"], msg["value"])
    if value is None:
        value = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
    weighed: torch.Tensor = scale_and_mask(value, msg["scale"] if scaled else 1.0, msg["mask"])
    return weighed
