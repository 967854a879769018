"""How well the model, as each posterior has it, predicts its data: of the model, not the method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core.arguments import num_bytes
from ppl_gen.core.posterior import Posterior
from ppl_gen.core.scope import isolated
from ppl_gen.core.structure import trace_sites
from ppl_gen.diagnostics.loo import loo
from ppl_gen.diagnostics.predictive import loo_pit, predictive_checks
from ppl_gen.judge.findings import PredictiveFit

__all__ = ["predictive_fit"]

Array: TypeAlias = NDArray[np.float64]

# Draws that predictions are made of, in all chains.
_DRAWS = 1000
# Numbers in the log-likelihood of all draws, and in the data of all draws.
_MOST_TERMS = 4 * 10**6
_MOST_WORK = 4 * 10**8
# Sets of replicated data that are kept to be shown.
_SHOWN = 50


def predictive_fit(posterior: Posterior, seed: int) -> PredictiveFit:
    """Return how well a posterior predicts the data that it was fitted to.

    Args:
        posterior: The posterior, with pair and data.
        seed: Seed of the replicated data.

    Raises:
        ValueError: If it cannot be computed, and why.
    """
    if posterior.pair is None or posterior.data is None:
        raise ValueError("it holds no pair or no data")
    if posterior.local_plate is not None:
        raise ValueError("its latents, if any, belong to rows of data, which are not kept")
    if posterior.is_point:
        raise ValueError("it is one point")
    thinned = _thinned(posterior)
    count = thinned.num_chains * thinned.num_draws
    observed = _observed(thinned)
    terms = sum(value.numel() for value in observed.values())
    if terms * count > _MOST_TERMS or num_bytes(posterior.data) // 8 * count > _MOST_WORK:
        raise ValueError(f"its data are too many: {terms:,} observed values")
    likelihood = thinned.log_likelihood()
    if not likelihood:
        raise ValueError("it observes nothing")
    flat = {name: _flat(value) for name, value in likelihood.items()}
    joined = np.concatenate(list(flat.values()), axis=2)
    ratios = _log_ratios(thinned)
    found = loo(joined, ratios)
    # Sites of which one observation is one number.
    single = {n: v for n, v in observed.items() if v.numel() == flat[n].shape[2]}
    try:
        predicted = thinned.predict(seed=seed)
    except (ValueError, RuntimeError):  # a density that cannot be drawn from
        predicted, single = {}, {}
    pit, p_values, replicated, data = {}, {}, {}, {}
    for name, value in single.items():
        drawn, own = _flat(predicted[name]), value.detach().cpu().double().numpy().ravel()
        if not (np.isfinite(drawn).all() and np.isfinite(own).all()):
            continue
        pit[name] = loo_pit(drawn, own, flat[name], ratios, seed=seed)
        sets = drawn.reshape(-1, drawn.shape[2])
        checks = predictive_checks(sets, own)
        p_values[name] = {kind: check.p_value for kind, check in checks.items()}
        replicated[name], data[name] = sets[:: max(1, len(sets) // _SHOWN)][:_SHOWN], own
    return PredictiveFit(
        found.elpd,
        found.error,
        found.effective_parameters,
        found.bad,
        pit,
        p_values,
        replicated,
        data,
    )


def _thinned(posterior: Posterior) -> Posterior:
    """Return a posterior with a number of draws spread evenly over its own."""
    each = max(_DRAWS // posterior.num_chains, 1)
    if posterior.num_draws <= each:
        return posterior
    places = torch.linspace(0, posterior.num_draws - 1, each).round().long()
    return dataclasses.replace(
        posterior,
        draws={name: value[:, places] for name, value in posterior.draws.items()},
        sample_stats={name: value[:, places] for name, value in posterior.sample_stats.items()},
    )


def _observed(posterior: Posterior) -> Mapping[str, torch.Tensor]:
    with isolated(0, posterior._dtype):
        pair, data = posterior._prepared(None)
        sites = trace_sites(pair, data)
    return {name: site.value for name, site in sites.items() if site.kind == "observed"}


def _flat(value: torch.Tensor) -> Array:
    return value.detach().cpu().double().numpy().reshape(*value.shape[:2], -1)


def _log_ratios(posterior: Posterior) -> Array | None:
    """Return log joint minus log guide density of a guide's draws, where they are known."""
    stats = posterior.sample_stats
    if posterior.provenance.get("method") == "Pathfinder":
        return None  # its draws were chosen by these weights already
    if posterior.is_mcmc or not {"lp", "log_q"} <= stats.keys():
        return None
    ratios = (stats["lp"] - stats["log_q"]).detach().cpu().double().numpy()
    return ratios if np.isfinite(ratios).any() and not np.isposinf(ratios).any() else None
