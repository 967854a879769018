"""A posterior's groups for ArviZ."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ppl_gen.core.arviz import to_arviz
from ppl_gen.core.errors import SiteError
from ppl_gen.core.scope import isolated
from ppl_gen.core.structure import trace_sites

if TYPE_CHECKING:
    from ppl_gen.core.posterior import Posterior

__all__ = ["arviz_groups"]


def arviz_groups(posterior: Posterior, predictive_draws: int, seed: int) -> Any:
    """Return the ArviZ object that `Posterior.to_arviz` describes."""
    if not posterior.draws:
        msg = (
            "no site was drawn: every latent is local to the mini-batched plate "
            f"'{posterior.local_plate}'. Draw those of some rows: "
            "posterior.sample(data).to_arviz()."
        )
        raise ValueError(msg)
    groups = {
        "posterior": _arrays(posterior.draws),
        "sample_stats": _arrays(posterior.sample_stats),
    }
    dims = dict(posterior.dims)
    has_data = posterior.data is not None and posterior.local_plate is None
    if posterior.pair is not None and has_data:
        pair, data = posterior._run_on(None)
        with isolated(seed, posterior._dtype):
            sites = trace_sites(pair, data)
        observed = {name: site for name, site in sites.items() if site.kind == "observed"}
        groups["observed_data"] = _arrays({name: site.value for name, site in observed.items()})
        dims |= {name: site.dims for name, site in sites.items()}
        with contextlib.suppress(SiteError):  # a density without a sampler has no draws
            predictive = posterior.predict(None, predictive_draws, seed)
            groups["posterior_predictive"] = _arrays(predictive)
        with contextlib.suppress(SiteError):  # nor has an improper prior
            prior, predictive = posterior.prior(predictive_draws, seed)
            continuous = {name: prior[name] for name in prior if name in posterior.latents}
            groups["prior"] = _arrays(continuous)
            groups["prior_predictive"] = _arrays(predictive)
        try:
            groups["log_likelihood"] = _arrays(posterior.log_likelihood())
        except ValueError as error:
            warnings.warn(f"no log_likelihood group: {error}", stacklevel=3)
    return to_arviz(groups, dims, posterior.coords, posterior.provenance)


def _arrays(values: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value.detach().cpu().numpy() for name, value in values.items()}
