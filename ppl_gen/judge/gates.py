"""What has to be known before a posterior is judged: its draws, the reference, the optimisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.core.posterior import Posterior
from ppl_gen.core.summary import scalar_names
from ppl_gen.diagnostics import bfmi
from ppl_gen.diagnostics.divergences import gathering
from ppl_gen.judge.agreement import disagree, nested_by_start
from ppl_gen.judge.findings import Gate, Thresholds
from ppl_gen.judge.sites import array_of, not_finite

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["chains_gate", "draws_gate", "optimisation_gate"]

Array: TypeAlias = NDArray[np.float64]

# Fewer draws have no R-hat, nor effective sample size.
_LEAST_DRAWS = 4
# Chains do not agree beyond that, however short they are: Gelman et al. (2013), Bayesian Data
# Analysis, section 11.4.
_APART_RHAT = 1.1
# Scalars with too large an R-hat of which it is asked whether chance explains it: the worst.
_MOST_DISAGREEING = 200
# Scalars that divergences are looked for in: one after the other takes too long for more.
_MOST_SCALARS = 200
# Nats over a tenth of the steps that are worth no further step.
_SMALL_FALL = 0.1


def draws_gate(name: str, posterior: Posterior) -> Gate:
    """Ask whether a posterior has draws that statistics can be made of.

    Args:
        name: Its name.
        posterior: The posterior.
    """

    def gate(passed: bool, sentence: str, **values: float) -> Gate:
        return Gate(name, "draws", passed, sentence, values)

    count = posterior.num_chains * posterior.num_draws
    if not posterior.draws or not count:
        plate = posterior.local_plate
        local = f": its latents, if any, belong to rows of plate '{plate}'" if plate else ""
        return gate(False, f"It holds no draws{local}.", draws=0.0)
    bad = [
        (site, text)
        for site in posterior.draws
        if site in posterior.latents and (text := not_finite("", array_of(posterior.draws[site])))
    ]
    if bad:
        site, text = bad[0]
        share = text.replace(" draws in ''", " draws")
        more = f"; so have {len(bad) - 1} more sites" if len(bad) > 1 else ""
        return gate(False, f"Site '{site}': {share}{more}.", bad_draws=float(text.split()[0]))
    if posterior.is_point:
        return gate(True, "It is one point, and no distribution.", draws=1.0)
    if count < 2:
        return gate(False, "It holds a single draw, which says nothing of its spread.", draws=1.0)
    latents = [array_of(posterior.draws[n]) for n in posterior.latents if n in posterior.draws]
    sites = latents or [array_of(value) for value in posterior.draws.values()]
    if all(_constant(values) for values in sites):
        return gate(False, f"All of its {count} draws are the same.", draws=float(count))
    stopped = " It was interrupted, and is not what its options say." * posterior.interrupted
    return gate(True, f"{count:,} finite draws.{stopped}", draws=float(count))


def _constant(values: np.ndarray[Any, Any]) -> bool:
    first = values[:1, :1]
    return bool((values == first).all())


def chains_gate(
    name: str,
    posterior: Posterior,
    table: pd.DataFrame,
    thresholds: Thresholds,
    draws_of: Callable[[str], Array],
) -> Gate:
    """Ask whether chains are good enough for others to be judged by.

    Args:
        name: Name of the posterior.
        posterior: The posterior.
        table: The rows of the parameters in this posterior.
        thresholds: What it has to meet.
        draws_of: Returns the draws of one parameter, (chain, draw).
    """
    if posterior.is_point:
        sentence = f"{name}: it is one point, and has no spread to measure errors by."
        return Gate(name, "reference", False, sentence)
    if not posterior.is_mcmc:
        sentence = (
            f"The reference {name} is an approximation itself: agreeing with it says that two "
            "methods agree, not that either is right."
        )
        return Gate(name, "reference", None, sentence)
    values: dict[str, float] = {}
    mixing, short = _mixing(table, thresholds, values, draws_of)
    troubles = [
        *_energy(posterior, thresholds, values),
        *_divergences(posterior, thresholds, values),
    ]
    short = short and not troubles
    troubles = [*mixing, *troubles, *(["it was interrupted"] if posterior.interrupted else [])]
    if not troubles:
        found = [f"R-hat at most {values['r_hat']:.3f}", f"ESS at least {values['ess']:.0f}"]
        if "nested_r_hat" in values:
            nested = f"nested R-hat at most {values['nested_r_hat']:.3f}"
            found[0] = f"{nested} (its many chains are too short for R-hat, {values['r_hat']:.3f})"
        found += [f"E-BFMI at least {values['bfmi']:.2f}"] if "bfmi" in values else []
        count = int(values.get("divergences", 0))
        found += [f"{count} divergence{'s' if count > 1 else ''}, scattered"] if count else []
        return Gate(name, "reference", True, f"{name}: {', '.join(found)}.", values)
    return Gate(name, "reference", False, f"{name}: {'; '.join(troubles)}.", values, short)


def _mixing(
    table: pd.DataFrame,
    thresholds: Thresholds,
    values: dict[str, float],
    draws_of: Callable[[str], Array],
) -> tuple[list[str], bool]:
    """Return what R-hat and the effective sample sizes find wrong, and whether it may be chance."""
    first = draws_of(table["parameter"].iloc[0])
    if table["r_hat"].isna().all():
        values |= {"r_hat": math.nan, "ess": math.nan}
        if len(first) == 1 and first.size >= _LEAST_DRAWS:
            return ["it is a single chain, and no other shows whether it has been everywhere"], True
        return ["it has too few draws for R-hat and effective sample sizes"], True
    troubles, short = [], True
    sizes = table[["ess_bulk", "ess_tail"]].min(axis=1)
    smallest = table.loc[sizes.idxmin()]
    values["ess"] = float(sizes.min())
    if not values["ess"] >= thresholds.min_ess:
        troubles.append(
            f"the effective sample size of {smallest['parameter']} is {values['ess']:.0f}, below "
            f"{thresholds.min_ess:g}"
        )
    worst = table.loc[table["r_hat"].idxmax()]
    values["r_hat"] = float(worst["r_hat"])
    if values["r_hat"] < thresholds.max_rhat:
        return troubles, short
    high = table.loc[table["r_hat"] >= thresholds.max_rhat, ["parameter", "r_hat"]]
    chosen = high.nlargest(_MOST_DISAGREEING, "r_hat")["parameter"]
    draws = np.stack([draws_of(parameter) for parameter in chosen], axis=2)
    short = not disagree(draws)
    nested = nested_by_start(draws).max() if len(chosen) == len(high) else math.nan
    if short and nested < thresholds.max_rhat and not troubles:
        values["nested_r_hat"] = float(nested)
        return [], False
    short = short and values["r_hat"] <= _APART_RHAT
    told = (
        "its chains are too short to show that they agree" if short else "its chains do not agree"
    )
    troubles.insert(
        0,
        f"the R-hat of {worst['parameter']} is {values['r_hat']:.3f}, not below "
        f"{thresholds.max_rhat:g}: {told}",
    )
    return troubles, short


def _energy(posterior: Posterior, thresholds: Thresholds, values: dict[str, float]) -> list[str]:
    """Return what the energies find wrong."""
    energy = posterior.sample_stats.get("energy")
    if energy is None:
        return []
    found = bfmi(energy.detach().cpu().double().numpy())
    if np.isnan(found).all():
        return []
    values["bfmi"] = float(np.nanmin(found))
    if values["bfmi"] >= thresholds.min_bfmi:
        return []
    return [
        f"E-BFMI is {values['bfmi']:.2f} in chain {int(np.nanargmin(found)) + 1}, below "
        f"{thresholds.min_bfmi:g}: its tails are explored slowly"
    ]


def _divergences(
    posterior: Posterior, thresholds: Thresholds, values: dict[str, float]
) -> list[str]:
    """Return what is wrong with how often, and where, trajectories diverged."""
    diverging = posterior.sample_stats.get("diverging")
    if diverging is None:
        return []
    flags = diverging.detach().cpu().numpy().astype(bool)
    count, share = int(flags.sum()), float(flags.mean())
    values |= {"divergences": float(count), "divergence_share": share}
    if not count:
        return []
    troubles = []
    if share > thresholds.max_divergence_share:
        troubles.append(f"{count} of {flags.size} draws ({share:.1%}) diverged")
    draws, names = _some_scalars(posterior)
    found = gathering(draws, flags)
    if found.gathered() and found.scalar is not None:
        where = {"small": "are small", "large": "are large"}.get(
            found.side, "are close together" if found.side == "middle" else "are far out"
        )
        troubles.append(
            f"its {count} divergences are gathered where values of {names[found.scalar]} {where} "
            f"(median {found.there:.3g}, elsewhere {found.elsewhere:.3g}): it may miss a part there"
        )
    return troubles


def _some_scalars(posterior: Posterior) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Return draws (chain, draw, scalar) of the first scalars of each latent site, with names."""
    columns, names = [], []
    share = max(1, _MOST_SCALARS // max(len(posterior.latents), 1))
    for site in posterior.latents:
        if site in posterior.draws:
            values = array_of(posterior.draws[site])
            columns.append(values.reshape(*values.shape[:2], -1)[:, :, :share].astype(np.float64))
            names += scalar_names(site, tuple(values.shape[2:]))[:share]
    return np.concatenate(columns, axis=2), names


def optimisation_gate(name: str, posterior: Posterior) -> Gate | None:
    """Ask whether the optimisation of a variational posterior came to its end.

    Args:
        name: Its name.
        posterior: The posterior.

    Returns:
        The gate; None for a posterior that no optimisation made.
    """
    if posterior.is_mcmc:
        return None
    ended = posterior.provenance.get("converged")
    if posterior.interrupted:
        return Gate(name, "optimisation", False, f"{name}: its optimisation was interrupted.")
    if ended is None and posterior.history is not None:
        return _by_history(name, posterior.history.detach().cpu().double().numpy())
    if ended is None:
        return Gate(
            name, "optimisation", None, f"{name}: nothing is known of how its optimisation ended."
        )
    if ended:
        return Gate(name, "optimisation", True, f"{name}: its optimisation came to its end.")
    return Gate(name, "optimisation", False, f"{name}: its optimisation did not come to its end.")


def _by_history(name: str, losses: np.ndarray[Any, Any]) -> Gate:
    """Ask the losses: those of the last tenth against those of the tenth before."""
    tenth = len(losses) // 10
    if tenth < 10 or not np.isfinite(losses[-2 * tenth :]).all():
        sentence = f"{name}: its history is too short to tell whether its optimisation ended."
        return Gate(name, "optimisation", None, sentence)
    before, last = losses[-2 * tenth : -tenth], losses[-tenth:]
    fall = float(before.mean() - last.mean())
    error = math.sqrt((before.var(ddof=1) + last.var(ddof=1)) / tenth)
    values = {"fall": fall, "fall_error": error}
    if fall > max(3 * error, _SMALL_FALL):
        sentence = (
            f"{name}: its loss was still falling, by {fall:.2g} nats from the last tenth but one "
            "of its steps to the last."
        )
        return Gate(name, "optimisation", False, sentence, values)
    sentence = f"{name}: its loss no longer falls."
    return Gate(name, "optimisation", True, sentence, values)
