"""The evidence lower bound of a reparametrised guide, in one pass over guide and model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch.distributions import kl_divergence

from ppl_gen.core.structure import Site, kind_of

__all__ = ["Messages", "ReparametrisedELBO", "Sites", "log_prob", "negative_elbo", "same_order"]

Messages: TypeAlias = Mapping[str, Mapping[str, Any]]


class ReparametrisedELBO:
    """E_q[log p(x, z) - log q(z)] by reparametrised draws, site by site.

    The same estimator as Pyro's `Trace_ELBO` and `TraceMeanField_ELBO` where every site of the
    guide is reparametrised: it keeps no trace, and so costs a fraction of theirs.

    Args:
        num_particles: Number of draws.
        analytic: Whether to take the KL divergence of a site in closed form where PyTorch or Pyro
            knows it and model and guide weigh the site alike. Right where both sample their latents
            in the same order: the divergences of the conditionals then add up.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114.
    """

    def __init__(self, num_particles: int = 1, *, analytic: bool = True) -> None:
        self.num_particles = num_particles
        self.analytic = analytic

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], **data: Any
    ) -> torch.Tensor:
        """Return an estimate of the negative bound, (); its gradient is that of the bound.

        Args:
            model: The model, without discrete latents.
            guide: The guide, all of its sites reparametrised.
            **data: Keywords of both.
        """
        losses = [self._one(model, guide, data) for _ in range(self.num_particles)]
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _one(
        self, model: Callable[..., Any], guide: Callable[..., Any], data: dict[str, Any]
    ) -> torch.Tensor:
        drawn = Sites()
        with drawn:
            guide(**data)
        joint = Sites(drawn.values)
        with joint:
            model(**data)
        return negative_elbo(joint.messages, drawn.messages, analytic=self.analytic)


def same_order(model: Mapping[str, Site], guide: Mapping[str, Site]) -> bool:
    """Return whether model and guide sample their latents in the same order.

    Args:
        model: The model's sites.
        guide: The guide's.
    """
    in_model, in_guide = (
        [name for name, site in sites.items() if site.kind == "latent"] for sites in (model, guide)
    )
    return in_model == in_guide


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


def negative_elbo(p: Messages, q: Messages, *, analytic: bool) -> torch.Tensor:
    """Return the sum over sites of log q - log p, scaled and masked, ().

    Args:
        p: The model's messages by site.
        q: The guide's.
        analytic: Whether to take KL divergences in closed form where there is one.
    """
    left = dict(q)
    terms: list[torch.Tensor] = []
    for name, of_model in p.items():
        of_guide = left.pop(name, None)
        closed = _divergence(of_model, of_guide) if of_guide is not None and analytic else None
        if closed is not None:
            terms.append(closed.sum())
            continue
        terms.append(-log_prob(of_model).sum())
        if of_guide is not None:
            terms.append(log_prob(of_guide).sum())
    terms += [log_prob(of_guide).sum() for of_guide in left.values()]  # auxiliary sites
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
    value = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
    weighed: torch.Tensor = scale_and_mask(value, msg["scale"] if scaled else 1.0, msg["mask"])
    return weighed
