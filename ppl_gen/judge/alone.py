"""The verdict on a posterior without a reference: at best that no problem was found."""

from __future__ import annotations

from dataclasses import replace

from ppl_gen.judge import actions, reasons
from ppl_gen.judge.caveats import caveats_of_itself
from ppl_gen.judge.evidence import Evidence
from ppl_gen.judge.findings import Grade, Judgement, Reason, Thresholds, Verdict
from ppl_gen.judge.short_chains import ShortChains
from ppl_gen.judge.stein import of_stein

__all__ = ["judge_alone"]

_ORDER = {Grade.RED: 0, Grade.AMBER: 1, Grade.GREEN: 2, Grade.BLANK: 3}
_MARGINAL = ("mean", "sd", "quantile")


def judge_alone(evidence: Evidence) -> Judgement:
    """Return the verdict on a posterior without a reference.

    Args:
        evidence: What was found.
    """
    if evidence.posterior.is_mcmc:
        return _of_chains(evidence)
    name = evidence.name
    better = actions.better_guide(name, evidence.posterior, ended=evidence.ended)
    caveats = caveats_of_itself(evidence)
    if evidence.is_point:
        text = "it is one point: nothing but a reference can tell how far it is from the means"
        return evidence.judgement(Verdict.CANNOT_JUDGE, text, better, [], caveats)
    found = _found(evidence)
    weights, chains = evidence.weights, evidence.chains
    red = [reason for reason in found if reason.grade is Grade.RED]
    marginal = [reason for reason in red if reason.kind in _MARGINAL]
    if weights is not None and weights.can_mend and marginal:
        # What its own weights promise is no more than "no problem found", once it is done.
        text = f"{marginal[0].sentence}, by its own importance weights, which may mend it"
        return evidence.judgement(
            Verdict.DO_NOT_TRUST, text, actions.reweight(name), found, caveats
        )
    if red:
        # What is off first, then how it is known; one clause for each kind of check.
        kinds = {reason.kind: reason for reason in reversed(red)}
        text = "; ".join(reason.sentence for reason in list(kinds.values())[::-1][:2])
        return evidence.judgement(Verdict.DO_NOT_TRUST, text, better, found, caveats)
    if not (weights is not None and weights.can_mend) and not _would_have_shown(chains, evidence):
        if weights is not None:
            text = f"{reasons.of_weights(weights).sentence}: too close to tell"
        elif chains is not None:
            text = f"it has no importance weights, and {chains.sentence}"
        else:
            text = "it has no importance weights, and no chains could be started from it"
        return evidence.judgement(Verdict.CANNOT_JUDGE, text, better, found, caveats)
    parts = [reason.sentence for reason in found if reason.grade is Grade.AMBER][:2]
    if weights is not None:
        parts.append(reasons.of_weights(weights).sentence)
    elif chains is not None:
        parts.append(chains.sentence)
    text = f"none of its checks found a large error: {'; '.join(dict.fromkeys(parts))}"
    return evidence.judgement(Verdict.NO_PROBLEM_FOUND, text, "", found, caveats)


def _found(evidence: Evidence) -> list[Reason]:
    """Return what the checks of a variational posterior found, the worst first."""
    found: list[Reason] = []
    if evidence.chains is not None:
        found.append(_of_short_chains(evidence.chains, evidence.thresholds))
        if evidence.chains.stein is not None:
            found.append(of_stein(evidence.chains.stein))
    weights = evidence.weights
    if weights is not None and evidence.own_errors is not None and not weights.are_bad:
        found += reasons.of_errors(evidence.counted(evidence.own_errors), evidence.parameters)
    if weights is not None:
        found.append(reasons.of_weights(weights))
    if evidence.ended is False:
        unended = reasons.of_gate(evidence.gates["optimisation"])
        if weights is not None and weights.can_mend:
            # Where the weights say that it is near, it matters no more how it came there.
            unended = replace(unended, grade=Grade.AMBER)
        found.append(unended)
    return sorted(found, key=lambda reason: _ORDER[reason.grade])


def _of_short_chains(chains: ShortChains, thresholds: Thresholds) -> Reason:
    """Return what short chains found: a bound that errors are at least as large as."""
    kind, name, _, bound = chains.worst(thresholds)
    green, red = (
        (thresholds.mean_green, thresholds.mean_red)
        if kind == "mean"
        else (thresholds.sd_green, thresholds.sd_red)
    )
    grade = Grade.RED if bound > red else Grade.AMBER if bound > green else Grade.GREEN
    if grade is Grade.GREEN and not _resolves(chains, thresholds):
        grade = Grade.BLANK
    elif grade is Grade.GREEN and not chains.mixed:
        grade = Grade.AMBER
    return Reason("chains", name, bound, 0.0, grade, chains.sentence)


def _would_have_shown(chains: ShortChains | None, evidence: Evidence) -> bool:
    # Chains that hardly move show nothing, and measure that very exactly.
    return chains is not None and chains.mixed and _resolves(chains, evidence.thresholds)


def _resolves(chains: ShortChains, thresholds: Thresholds) -> bool:
    """Return whether short chains would have shown an error that is red."""
    mean, sd = chains.resolution
    return mean <= thresholds.mean_red and sd <= thresholds.sd_red


def _of_chains(evidence: Evidence) -> Judgement:
    """Return the verdict on Markov chains by themselves."""
    gate = evidence.gates["chains"]
    found = [reasons.of_gate(gate)]
    told = gate.sentence.partition(": ")[2]
    if gate.passed:
        text = f"none of the checks of its chains found a problem: {told}"
        return evidence.judgement(Verdict.NO_PROBLEM_FOUND, text, "", found)
    action = actions.longer_chains(evidence.name, evidence.posterior, gate, evidence.thresholds)
    verdict = Verdict.CANNOT_JUDGE if gate.short else Verdict.DO_NOT_TRUST
    return evidence.judgement(verdict, told, action, found)
