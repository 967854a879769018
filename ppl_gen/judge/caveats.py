"""What else to know of a posterior besides its verdict, a sentence each."""

from __future__ import annotations

import math

from ppl_gen.judge import reasons
from ppl_gen.judge.errors import Errors
from ppl_gen.judge.evidence import Evidence, sentence
from ppl_gen.judge.findings import Gate, Grade
from ppl_gen.judge.wording import number, percent

__all__ = ["caveats_of_itself", "caveats_of_judging"]

# Errors that one sentence names.
_NAMED = 3


def caveats_of_itself(evidence: Evidence) -> list[str]:
    """Return what is to be known of a run, whatever it is judged by.

    Args:
        evidence: What was found.
    """
    caveats = []
    if evidence.posterior.interrupted:
        caveats.append("Its run was interrupted: it is not what its options say.")
    optimisation = evidence.gates.get("optimisation")
    if optimisation is not None and optimisation.passed is False:
        told = optimisation.sentence.removeprefix(f"{optimisation.method}: ")
        caveats.append(f"{sentence(told)} A longer one may do better.")
    chains = evidence.gates.get("chains")
    if evidence.posterior.is_mcmc and chains is not None and chains.passed is False:
        caveats.append(f"Its own chains: {chains.sentence.partition(': ')[2]}")
    return caveats


def caveats_of_judging(evidence: Evidence, errors: Errors, reference_gate: Gate) -> list[str]:
    """Return what is to be known of a verdict by a reference.

    Args:
        evidence: What was found.
        errors: Those that count.
        reference_gate: What was found of it.
    """
    caveats = []
    if reference_gate.passed is None:
        caveats.append(sentence(reference_gate.sentence))
    caveats += _amber(evidence, errors)
    caveats += _by_quantiles(evidence, errors)
    caveats += _unseen(errors)
    caveats += caveats_of_itself(evidence)
    if evidence.weights is not None and not evidence.weights.can_mend:
        text = sentence(reasons.of_weights(evidence.weights).sentence)
        caveats.append(f"{text} Reweighting and the log evidence are not to be trusted.")
        caveats += _by_bridge(evidence, reference_gate.method)
    caveats += _auxiliary(evidence)
    return caveats


def _amber(evidence: Evidence, errors: Errors) -> list[str]:
    every = reasons.of_errors(errors, evidence.parameters, most=len(evidence.parameters))
    amber = [reason.sentence for reason in every if reason.grade is Grade.AMBER]
    if not amber:
        return []
    more = f", and {len(amber) - _NAMED} more like these" if len(amber) > _NAMED else ""
    return [f"Errors that are not negligible: {'; '.join(amber[:_NAMED])}{more}."]


def _by_quantiles(evidence: Evidence, errors: Errors) -> list[str]:
    """Name the scalars whose mean and sd nobody can estimate."""
    heavy = [
        name
        for name, is_heavy in zip(evidence.parameters, errors.by_quantiles, strict=True)
        if is_heavy
    ]
    if not heavy:
        return []
    more = f" and {len(heavy) - _NAMED} more" if len(heavy) > _NAMED else ""
    return [
        f"The tails of {', '.join(heavy[:_NAMED])}{more} are so heavy in the reference that no "
        "mean or sd can be estimated: judged by quantiles."
    ]


def _unseen(errors: Errors) -> list[str]:
    """Say what is too small to be seen, where that is more than green."""
    parts = []
    for row in (0, 1):
        floors = errors.floor[row][errors.code[row] != 3]
        if len(floors) and floors.max() > errors.limits[row, 0]:
            size = float(floors.max())
            told = f"a mean below {number(size)} sd" if row == 0 else f"an sd below {percent(size)}"
            parts.append(f"errors of {told}")
    if not parts:
        return []
    return [f"With so many draws {' and '.join(parts)} cannot all be told from chance."]


def _by_bridge(evidence: Evidence, reference: str) -> list[str]:
    """Tell the log evidence that the weights do not, and what the bound lacks."""
    if evidence.bridge is None or evidence.weights is None:
        return []
    value, error = evidence.bridge
    gap = evidence.weights.findings.elbo_gap
    above = "" if math.isnan(gap) else f", {gap:.2g} nats above the ELBO"
    return [
        f"By bridge sampling from the chains of {reference} the log evidence is {value:.2f} "
        f"(standard error {error:.2g}){above}."
    ]


def _auxiliary(evidence: Evidence) -> list[str]:
    """Name what is off among scalars that only serve to make others."""
    if evidence.auxiliary is None or evidence.errors is None or not evidence.auxiliary.any():
        return []
    errors = evidence.errors.without(~evidence.auxiliary)
    found = reasons.of_errors(errors, evidence.parameters)
    red = [reason.sentence for reason in found if reason.grade is Grade.RED]
    if not red:
        return []
    return [
        "Not counted, for it only serves to make other sites, which are judged themselves: "
        f"{red[0]}."
    ]
