"""What the importance weights of a guide's draws say of it, and what they would mend."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.core.posterior import Posterior
from ppl_gen.core.weighing import Weighed, hardly_matter, weigh, weights_hold
from ppl_gen.diagnostics import Smoothed, resample
from ppl_gen.diagnostics.evidence import importance_evidence
from ppl_gen.diagnostics.marginals import Marginals
from ppl_gen.diagnostics.pareto import shape_interval
from ppl_gen.judge.findings import WeightFindings
from ppl_gen.judge.marginals import unweighted_marginals, weighted_marginals
from ppl_gen.judge.sites import array_of

__all__ = ["Weights", "weights_of"]

Array: TypeAlias = NDArray[np.float64]

_SHOWN = 1000
# Draws that are chosen by their weights, to be looked at jointly.
_CHOSEN = 4000


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of one guide.

    Args:
        findings: The numbers.
        can_mend: Whether weighted draws can be relied on: k-hat is below the threshold, and the
            upper end of its interval is below what so many draws can bear, `1 - 1 / log10(draws)`,
            of which the threshold is the smaller part with many draws.
        are_bad: Whether they plainly cannot: the lower end is above it.
        marginals: Of the weighted draws, by site, those whose draws are finite.
        of_guide: Of the same draws without weights, where it is judged by these.
        chosen: Draws chosen by their weights, by site, (1, draw, *site).
        worth: How many independent draws each of these is worth.
    """

    findings: WeightFindings
    can_mend: bool
    are_bad: bool
    marginals: Mapping[str, Marginals]
    of_guide: Mapping[str, Marginals]
    chosen: Mapping[str, NDArray[Any]]
    worth: float


def weights_of(posterior: Posterior, seed: int, *, alone: bool) -> Weights:
    """Return what the weights of a guide's draws say.

    Args:
        posterior: The posterior that has the guide.
        seed: Seed of the draws.
        alone: Whether the guide is to be judged by its own weights.

    Raises:
        ValueError: If the draws have no weights, and why.
    """
    if "reweighted" in posterior.provenance:
        return _used(posterior.provenance["reweighted"])
    weighed = weigh(posterior, seed=seed)
    smoothed = weighed.smoothed
    if smoothed is None:
        blank = np.array([])
        nothing = WeightFindings(
            math.inf, (math.inf, math.inf), math.nan, 0.0, len(weighed.log_ratios), blank
        )
        return Weights(nothing, False, True, {}, {}, {}, 0.0)
    findings = _findings(weighed, smoothed, posterior)
    values = {
        name: array
        for name, value in weighed.values.items()
        if np.isfinite(array := array_of(value)).all() and array.size
    }
    places = resample(smoothed.log_weights, _CHOSEN, np.random.default_rng(seed))
    return Weights(
        findings,
        can_mend=_can_mend(findings),
        are_bad=_are_bad(findings),
        marginals={
            name: weighted_marginals(value, smoothed.log_weights) for name, value in values.items()
        },
        of_guide={n: unweighted_marginals(value) for n, value in values.items()} if alone else {},
        chosen={name: value[places][None] for name, value in values.items()},
        worth=min(1.0, smoothed.ess / _CHOSEN),
    )


def _used(facts: Mapping[str, Any]) -> Weights:
    """Return what is known of the weights that draws were chosen by.

    Args:
        facts: What the provenance of a reweighted posterior has of them.
    """
    k, error = float(facts["pareto_k"]), float(facts["pareto_k_error"])
    reach = NormalDist().inv_cdf(0.95)
    findings = WeightFindings(
        k,
        shape_interval(k, error, reach),
        float(facts["threshold"]),
        float(facts["importance_ess"]),
        int(facts["draws"]),
        np.array([]),
    )
    return Weights(findings, _can_mend(findings), _are_bad(findings), {}, {}, {}, 0.0)


def _can_mend(findings: WeightFindings) -> bool:
    high = findings.interval[1]
    return weights_hold(findings.pareto_k, high, findings.threshold, findings.ess, findings.draws)


def _are_bad(findings: WeightFindings) -> bool:
    even = hardly_matter(findings.interval[1], findings.ess, findings.draws)
    return findings.interval[0] > findings.threshold and not even


def _findings(weighed: Weighed, smoothed: Smoothed, posterior: Posterior) -> WeightFindings:
    largest = np.sort(smoothed.log_weights)[::-1][:_SHOWN]
    evidence = importance_evidence(smoothed)
    log_evidence = (math.nan, math.nan)
    gap = math.nan
    if evidence.reliable:
        log_evidence = (evidence.log_evidence, evidence.error)
        if np.isfinite(weighed.log_ratios).all():
            # Of the same draws, so that much of the chance in both is the same.
            gap = evidence.log_evidence - float(weighed.log_ratios.mean())
        elif posterior.elbo is not None:
            gap = evidence.log_evidence - posterior.elbo[0]
    return WeightFindings(
        smoothed.pareto_k,
        smoothed.interval(),
        smoothed.threshold,
        smoothed.ess,
        len(weighed.log_ratios),
        largest,
        log_evidence,
        gap,
    )
