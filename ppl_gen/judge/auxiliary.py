"""Latent sites that only serve to make others, such as the `z` of `theta = mu + tau * z`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine

from ppl_gen.core.pair import model_of
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.posterior import Posterior
from ppl_gen.core.scope import isolated, unchecked
from ppl_gen.core.structure import StartValues

__all__ = ["auxiliary_sites"]


def auxiliary_sites(posterior: Posterior, sites: Collection[str]) -> frozenset[str]:
    """Return which latent sites only serve to make deterministic ones.

    These have a standard normal prior, whatever the other latents are, and are in the same plates
    as a deterministic site: the model written without them is the same.

    Args:
        posterior: A posterior with its pair and data; without them none is known to be such.
        sites: Names of the sites that are compared.
    """
    made = {posterior.dims.get(site) for site in sites if site not in posterior.latents}
    beside = {
        site
        for site in sites
        if site in posterior.latents and posterior.dims.get(site) and posterior.dims[site] in made
    }
    if not beside or posterior.pair is None or posterior.data is None:
        return frozenset()
    if posterior.local_plate is not None:
        return frozenset()
    try:
        with isolated(0, posterior._dtype), torch.no_grad(), unchecked():
            pair, data = posterior._prepared(None)
            with AnswerParams(pair), StartValues():
                trace = poutine.trace(model_of(pair)).get_trace(**data)
    except (ValueError, RuntimeError):
        return frozenset()
    return frozenset(s for s in beside if s in trace.nodes and _standard(trace.nodes[s]["fn"]))


def _standard(distribution: Any) -> bool:
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    if not isinstance(distribution, dist.Normal | torch.distributions.Normal):
        return False
    return bool((distribution.loc == 0).all() and (distribution.scale == 1).all())
