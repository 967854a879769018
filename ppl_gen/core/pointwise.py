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
    _check_pointwise(discrete, observed)
    model = model_of(pair)
    first_dim = enumeration_dim(sites)
    nesting = 0 if first_dim is None else -1 - first_dim
    if first_dim is not None:
        model = enumerating(model, first_dim)
    with torch.no_grad(), unchecked(), AnswerParams(pair), Replay(values):
        trace = poutine.trace(model).get_trace(**data)
    prior: torch.Tensor | float = 0.0
    terms: dict[str, torch.Tensor] = {}
    for name, msg in trace.nodes.items():
        if msg["type"] != "sample" or kind_of(msg) not in ("discrete", "observed"):
            continue
        function: Any = msg["fn"]
        term = function.log_prob(msg["value"], *msg["args"], **msg["kwargs"])
        term = scale_and_mask(term, 1.0, msg["mask"])
        if kind_of(msg) == "discrete":
            prior = prior + term
        else:
            terms[name] = term
    for site in observed:
        joint = terms[site.name] + prior
        extra = joint.ndim - nesting
        if discrete and extra > 0:
            joint = joint.flatten(0, extra - 1).logsumexp(0)
        batch = site.shape[: len(site.shape) - site.event_dim]
        terms[site.name] = joint.reshape(joint.shape[joint.ndim - len(batch) :]).expand(batch)
    return terms


def _check_pointwise(discrete: list[Site], observed: list[Site]) -> None:
    if not discrete:
        return
    names = ", ".join(site.name for site in discrete)
    if len(observed) > 1:
        msg = f"the observed sites share the discrete latents {names}: there is no pointwise term."
        raise ValueError(msg)

    def rows(site: Site) -> tuple[set[str], tuple[int, ...]]:
        return {p.name for p in site.plates}, site.shape[: len(site.shape) - site.event_dim]

    if any(rows(site) != rows(observed[0]) for site in discrete):
        msg = f"the discrete latents {names} tie observations together: there is no pointwise term."
        raise ValueError(msg)
