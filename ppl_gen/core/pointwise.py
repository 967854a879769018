"""The log-likelihood of each observation on its own, discrete latents summed out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import nn

from ppl_gen.core.discrete import enumerating, enumeration_dim
from ppl_gen.core.pair import model_of
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.replay import Replay
from ppl_gen.core.scope import unchecked
from ppl_gen.core.structure import Site, kind_of

__all__ = ["pointwise_log_likelihood"]


def pointwise_log_likelihood(
    pair: nn.Module,
    data: Mapping[str, Any],
    sites: Mapping[str, Site],
    values: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Return the log-likelihood of each observation at one draw.

    Args:
        pair: The pair.
        data: The data.
        sites: The model's sites.
        values: Values of the continuous latent sites.

    Returns:
        By observed site, a tensor of the site's batch shape.

    Raises:
        ValueError: If a discrete latent is shared by several observations or observed sites.
    """
    discrete = [site for site in sites.values() if site.kind == "discrete"]
    observed = [site for site in sites.values() if site.kind == "observed"]
    reached_by = {site.name: _reaching(discrete, site) for site in observed}
    _check_pointwise(discrete, observed, reached_by)
    model = model_of(pair)
    first_dim = enumeration_dim(sites)
    nesting = 0 if first_dim is None else -1 - first_dim
    if first_dim is not None:
        model = enumerating(model, first_dim)
    with torch.no_grad(), unchecked(), AnswerParams(pair), Replay(values):
        trace = poutine.trace(model).get_trace(**data)
    terms: dict[str, torch.Tensor] = {}
    for name, msg in trace.nodes.items():
        if msg["type"] != "sample" or kind_of(msg) not in ("discrete", "observed"):
            continue
        function: Any = msg["fn"]
        term = function.log_prob(msg["value"], *msg["args"], **msg["kwargs"])
        terms[name] = scale_and_mask(term, 1.0, msg["mask"])
    found: dict[str, torch.Tensor] = {}
    for site in observed:
        joint = terms[site.name]
        for latent in reached_by[site.name]:
            joint = joint + terms[latent.name]
        extra = joint.ndim - nesting
        if reached_by[site.name] and extra > 0:
            joint = joint.flatten(0, extra - 1).logsumexp(0)
        batch = site.shape[: len(site.shape) - site.event_dim]
        found[site.name] = joint.reshape(joint.shape[joint.ndim - len(batch) :]).expand(batch)
    return found


def _reaching(discrete: list[Site], observed: Site) -> list[Site]:
    """Return the latents that a site can depend on: none that is in a plate which it is not in."""
    return [site for site in discrete if all(observed.inside(plate.name) for plate in site.plates)]


def _check_pointwise(
    discrete: list[Site], observed: list[Site], reached_by: Mapping[str, list[Site]]
) -> None:
    def rows(site: Site) -> tuple[set[str], tuple[int, ...]]:
        return {p.name for p in site.plates}, site.shape[: len(site.shape) - site.event_dim]

    for latent in discrete:
        reached = [site for site in observed if latent in reached_by[site.name]]
        if len(reached) > 1:
            names = ", ".join(site.name for site in reached)
            msg = (
                f"the observed sites {names} share the discrete latent {latent.name}: there is no "
                "pointwise term."
            )
            raise ValueError(msg)
        if any(rows(site) != rows(latent) for site in reached):
            msg = (
                f"the discrete latent {latent.name} ties observations together: there is no "
                "pointwise term."
            )
            raise ValueError(msg)
