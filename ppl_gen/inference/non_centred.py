"""A hierarchy written the other way round: latents by their noise, instead of by their values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import nn

from ppl_gen.core.arguments import bind, move
from ppl_gen.core.pair import as_pair, cast, model_of, own_copy, prepare
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.scope import isolated, unchecked
from ppl_gen.core.structure import StartValues, kind_of

__all__ = ["NonCentred", "non_centred"]

_FAMILIES = (dist.Normal, dist.StudentT, dist.Cauchy, dist.Laplace)


class NonCentred(nn.Module):
    """A pair whose latents of given names are made of standard noise, by location and scale.

    A site `theta ~ Normal(mu, tau)` becomes the latent `theta_decentered ~ Normal(0, 1)` and the
    deterministic site `theta = mu + tau * theta_decentered`: the same posterior, without the funnel
    between `tau` and `theta`. It has no guide.

    Args:
        pair: The pair, or a Pyro function.
        sites: Names of latent sites of Normal, StudentT, Cauchy or Laplace distributions.

    References:
        Papaspiliopoulos, Roberts and Sköld (2007), A general framework for the parametrization of
        hierarchical models, arXiv:0708.3797. Gorinova, Moore and Hoffman (2020), Automatic
        Reparameterisation of Probabilistic Programs, arXiv:1906.03028: the names are those of
        Pyro's `LocScaleReparam`.

    Example:
        >>> from ppl_gen import fit
        >>> from ppl_gen.inference import SVI
        >>> from ppl_gen.models import EightSchools
        >>> pair = NonCentred(EightSchools(centered=True), ["theta"])
        >>> posterior = fit(pair, EightSchools.data(), SVI(), progress=False)
        >>> posterior.latents
        ('mu', 'tau', 'theta_decentered')
        >>> posterior["theta"].shape
        torch.Size([1, 1000, 8])
    """

    def __init__(self, pair: Any, sites: Collection[str]) -> None:
        super().__init__()
        self.pair = as_pair(pair)
        self.sites = tuple(sites)

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pair's model, with the noise of those sites as the latents."""
        with _OwnParams(self.pair), _Decentre(self.sites):
            return model_of(self.pair)(*args, **kwargs)

    def validate(self, **data: Any) -> None:
        """Check data as the pair does, its names included."""
        bind(self.pair, data)

    def prepare(self, **data: Any) -> dict[str, Any]:
        """Return data after the pair's own random pre-processing."""
        return prepare(self.pair, data)


def non_centred(pair: Any, data: Mapping[str, Any]) -> NonCentred:
    """Return a pair with its hierarchies non-centred.

    That is: each latent site of a Normal, StudentT, Cauchy or Laplace distribution whose scale
    depends on another latent site is made of standard noise.

    Args:
        pair: The pair, or a Pyro function.
        data: Data that its model can be run on.

    Returns:
        The pair; it has the same posterior, with the same sites.

    Raises:
        ValueError: If there is no such site.

    Example:
        >>> from ppl_gen.models import EightSchools
        >>> non_centred(EightSchools(centered=True), EightSchools.data()).sites
        ('theta',)
    """
    pair = as_pair(pair)
    with isolated(0, torch.float64):
        cpu = torch.device("cpu")
        copied = cast(own_copy(pair), torch.float64, cpu)
        bound = prepare(copied, move(bind(copied, data), torch.float64, cpu))
        look = _Look()
        with unchecked(), AnswerParams(copied), StartValues(), look:
            model_of(copied)(**bound)
    if not look.found:
        msg = (
            "no site to write non-centred: no latent of a Normal, StudentT, Cauchy or Laplace "
            "distribution has a scale that depends on another latent."
        )
        raise ValueError(msg)
    return NonCentred(pair, look.found)


class _OwnParams(AnswerParams):
    """Answers from the pair inside, whose parameters may be trained, and not from around it."""

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        super()._pyro_param(msg)
        msg["stop"] = True


class _Decentre(Messenger):
    """Makes latent sites deterministic, of noise that is a latent in their place."""

    def __init__(self, sites: Collection[str]) -> None:
        super().__init__()
        self.sites = sites

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name, family = msg["name"], _family(msg["fn"])
        if name not in self.sites or msg["is_observed"] or family is None:
            return
        loc, scale = torch.broadcast_tensors(family.loc, family.scale)
        others = {key: getattr(family, key) for key in family.arg_constraints}
        standard = type(family)(
            **{**others, "loc": torch.zeros_like(loc), "scale": torch.ones_like(scale)}
        )
        noise = pyro.sample(f"{name}_decentered", standard.to_event(msg["fn"].event_dim))
        msg["value"] = loc + scale * noise
        # As `pyro.deterministic` does.
        msg["fn"] = dist.Delta(msg["value"], event_dim=msg["fn"].event_dim).mask(False)
        msg["is_observed"] = True
        msg["infer"] = {**msg["infer"], "_deterministic": True}


class _Look(Messenger):
    """Finds the latent sites whose scale depends on other latent sites."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._values: list[torch.Tensor] = []

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if kind_of(msg) != "latent":
            return
        family = _family(msg["fn"])
        if family is not None and self._values and family.scale.requires_grad:
            slopes = torch.autograd.grad(
                family.scale.sum(), self._values, retain_graph=True, allow_unused=True
            )
            if any(slope is not None for slope in slopes):
                self.found.append(msg["name"])
        msg["value"] = msg["value"].detach().requires_grad_()
        self._values.append(msg["value"])


def _family(function: Any) -> Any:
    """Return the distribution of location and scale that a site has; None where it has another."""
    while isinstance(function, dist.Independent):
        function = function.base_dist
    return function if type(function) in _FAMILIES else None
