"""The verdict on a posterior by its errors against a reference."""

from __future__ import annotations

import numpy as np

from ppl_gen.core.posterior import Posterior
from ppl_gen.judge import actions, reasons
from ppl_gen.judge.caveats import caveats_of_itself, caveats_of_judging
from ppl_gen.judge.errors import KINDS, Errors
from ppl_gen.judge.evidence import (
    Evidence,
    Flags,
    beyond_red,
    blind_location,
    blind_spread,
    red_location,
    sentence,
)
from ppl_gen.judge.findings import Gate, Grade, Judgement, Reason, Verdict
from ppl_gen.judge.wording import number, percent

__all__ = ["judge_against", "judge_without_draws"]

# Chains of which one has a larger R-hat do not tell how far they may be off.
_LOST_RHAT = 1.05
_ORDER = {Grade.RED: 0, Grade.AMBER: 1, Grade.GREEN: 2, Grade.BLANK: 3}
# Errors of marginals tell the most; k-hat of an approximation that is right does not matter.
_KINDS = {"optimisation": 1, "chains": 1, "weights": 2}


def judge_without_draws(name: str, posterior: Posterior, gate: Gate) -> Judgement:
    """Return the verdict on a posterior without usable draws.

    Args:
        name: Its name.
        posterior: The posterior.
        gate: What is wrong with its draws.
    """
    few = gate.values.get("draws", 2.0) < 2
    verdict = Verdict.CANNOT_JUDGE if few else Verdict.DO_NOT_TRUST
    action = actions.better_guide(name, posterior, ended=False)
    if few and posterior.local_plate is not None:
        action = actions.sample(name)
    elif posterior.is_mcmc:
        action = actions.nuts(name)
    elif few:
        action = actions.many_draws(name, posterior)
    return Judgement(name, verdict, sentence(gate.sentence), (reasons.of_gate(gate),), action)


def judge_against(
    evidence: Evidence, reference: str, reference_gate: Gate, reference_posterior: Posterior
) -> Judgement:
    """Return the verdict on a posterior by its errors against a reference.

    Args:
        evidence: What was found.
        reference: Name of the reference.
        reference_gate: What was found of the reference.
        reference_posterior: The reference.
    """
    if reference_gate.passed is False or evidence.errors is None:
        return _by_a_doubtful_reference(evidence, reference, reference_gate, reference_posterior)
    judge = _Judge(evidence, evidence.errors, reference, reference_gate, reference_posterior)
    return judge.judgement()


class _Judge:
    """Judges one posterior by a reference that is good enough.

    Args:
        evidence: What was found.
        errors: Of its marginals.
        reference: Name of the reference.
        gate: What was found of the reference.
        target: The reference.
    """

    def __init__(
        self, evidence: Evidence, errors: Errors, reference: str, gate: Gate, target: Posterior
    ) -> None:
        self.evidence = evidence
        self.errors = evidence.counted(errors)
        self.reference = reference
        self.target = target
        # How far chains that do not agree depend on each other is anybody's guess.
        chains = evidence.gates.get("chains")
        self.lost = evidence.max_rhat > _LOST_RHAT and not (chains is not None and chains.passed)
        self.approximate = gate.passed is None
        self.joint = [] if self.lost or evidence.is_point else self._joint()
        self.marginal = reasons.of_errors(self.errors, evidence.parameters)
        self.caveats = caveats_of_judging(evidence, self.errors, gate)
        if self._is_sounder():
            self.caveats.append(
                "Its own chains passed their checks: where the two differ, it is rather "
                f"{reference} that is off."
            )

    def judgement(self) -> Judgement:
        """Return the verdict: the first that applies."""
        mended = self.evidence.mended()
        if (self.errors.code == 2).any() or any(r.grade is Grade.RED for r in self.joint):
            # What a classifier alone has seen was not looked at again.
            seen = (self.errors.code == 2).any() or self._is_dependence_red()
            if seen and mended in (Grade.GREEN, Grade.AMBER):
                return self._after_reweighting()
            return self._with_red_errors()
        if self.lost:
            gate = self.evidence.gates["chains"]
            return self._made(
                Verdict.CANNOT_JUDGE,
                f"its own chains do not agree: R-hat is {self.evidence.max_rhat:.3f}",
                actions.longer_chains(
                    self.evidence.name, self.evidence.posterior, gate, self.evidence.thresholds
                ),
            )
        if blind := self._blind():
            return self._made(Verdict.CANNOT_JUDGE, blind, self._more_draws())
        if undecided := self._undecided():
            if mended is Grade.GREEN:
                # Chance's or not, the draws that are recommended do not have it.
                text = f"{undecided}, which reweighting mends, if it is not chance's"
                action = actions.reweight(self.evidence.name)
                return self._made(Verdict.AFTER_REWEIGHTING, text, action)
            text = f"the draws are too few to tell: {undecided}, which chance may account for"
            return self._made(Verdict.CANNOT_JUDGE, text, self._more_draws())
        amber = (self.errors.code == 1).any() or any(r.grade is Grade.AMBER for r in self.joint)
        if amber and mended is Grade.GREEN:
            return self._after_reweighting()
        if self.evidence.is_point:
            text = f"it is one point, and {self._means_hold()}"
            return self._made(Verdict.MEANS_ONLY, text, self._better())
        return self._made(Verdict.TRUST, self._small(), "")

    def _is_sounder(self) -> bool:
        """Whether these are chains that are fine, judged by an approximation."""
        chains = self.evidence.gates.get("chains")
        return self.approximate and chains is not None and bool(chains.passed)

    def _is_dependence_red(self) -> bool:
        # The classifier, where it is there, comes last.
        found = self.joint if self.evidence.classifier is None else self.joint[:-1]
        return any(reason.grade is Grade.RED for reason in found)

    def _after_reweighting(self) -> Judgement:
        return self._made(
            Verdict.AFTER_REWEIGHTING,
            f"{self._worst()}, which reweighting mends",
            actions.reweight(self.evidence.name),
        )

    def _with_red_errors(self) -> Judgement:
        location = blind_location(self.errors) | self._location(beyond_red(self.errors))
        means = not red_location(self.errors) and not location.any()
        if means and not self.lost and not self.evidence.spread_unusable(self.errors):
            text = f"{self._means_hold()}, but {self._worst()}"
            return self._made(Verdict.MEANS_ONLY, text, self._better())
        weighable = self.evidence.weights is not None
        refused = "; reweighting cannot mend it" if weighable else ""
        return self._made(Verdict.DO_NOT_TRUST, f"{self._worst()}{refused}", self._better())

    def _made(self, verdict: Verdict, text: str, action: str) -> Judgement:
        if self.approximate:
            text = f"{text} (judged against {self.reference}, an approximation itself)"
        found = [*self.marginal, *self.joint]
        if self.evidence.weights is not None:
            found.append(reasons.of_weights(self.evidence.weights))
        if self.evidence.ended is False:
            found.append(reasons.of_gate(self.evidence.gates["optimisation"]))
        found.sort(key=lambda reason: (_KINDS.get(reason.kind, 0), _ORDER[reason.grade]))
        return self.evidence.judgement(verdict, text, action, found, self.caveats)

    def _joint(self) -> list[Reason]:
        evidence, found = self.evidence, []
        if evidence.dependence is not None:
            found.append(
                reasons.of_dependence(
                    evidence.dependence, evidence.jointly, self.reference, evidence.thresholds
                )
            )
        if evidence.classifier is not None:
            found.append(
                reasons.of_classifier(
                    evidence.classifier, len(evidence.jointly), self.reference, evidence.thresholds
                )
            )
        return found

    def _worst(self) -> str:
        """Return the worst error in words: that of a mean, where one is red."""
        every = [*self.marginal, *self.joint]
        order = sorted(every, key=lambda r: (_ORDER[r.grade], r.kind != "mean"))
        return order[0].sentence

    def _better(self) -> str:
        if self._is_sounder():
            return actions.as_reference(self.evidence.name)
        return actions.better_guide(
            self.evidence.name,
            self.evidence.posterior,
            ended=self.evidence.ended,
            misplaced=red_location(self.errors),
        )

    def _means_hold(self) -> str:
        size, _ = _largest(self.errors, 0)
        if np.isnan(size):
            size, _ = _largest(self.errors, 3)
            return f"medians are within {number(size)} {reasons.unit_name(True)}"
        return f"means are within {number(size)} sd"

    def _small(self) -> str:
        """Say how small the errors are."""
        parts = []
        mean, of_mean = _largest(self.errors, 0)
        sd, of_sd = _largest(self.errors, 1)
        names = self.evidence.parameters
        if not np.isnan(mean):
            parts.append(
                f"means are within {number(mean)} sd of those of {self.reference} (largest error: "
                f"{names[of_mean]})"
            )
        if not np.isnan(sd):
            parts.append(f"sds within {percent(sd)} ({names[of_sd]})")
        if not parts:
            median, of_median = _largest(self.errors, 3)
            parts.append(
                f"medians are within {number(median)} {reasons.unit_name(True)} of those of "
                f"{self.reference} (largest error: {names[of_median]})"
            )
        return " and ".join(parts)

    def _blind(self) -> str:
        """Say what chance alone would hide, where it is too much to judge by; else nothing."""
        errors, names = self.errors, self.evidence.parameters
        location, spread = blind_location(errors), blind_spread(errors)
        if location.any():
            floors = np.where(errors.by_quantiles, errors.floor[3], errors.floor[0])
            worst = int(np.where(location, floors, -1.0).argmax())
            what = "median" if errors.by_quantiles[worst] else "mean"
            size = f"{number(float(floors[worst]))} sd"
        elif not self.evidence.is_point and spread.any():
            tails = errors.floor[[2, 4]].max(axis=0)
            worst = int(np.where(spread, tails, -1.0).argmax())
            what, size = "tails", f"{number(float(tails[worst]))} sd"
        else:
            return ""
        return (
            f"the draws are too few: an error of the {what} of {names[worst]} below {size} could "
            "not be told from chance"
        )

    def _location(self, of_errors: Flags) -> Flags:
        """Return of means, or medians where there are none, what is told of errors."""
        return np.asarray(np.where(self.errors.by_quantiles, of_errors[3], of_errors[0]))

    def _undecided(self) -> str:
        """Name an error that is red as it is, and may be chance's; nothing where there is none."""
        undecided = beyond_red(self.errors)
        if self.evidence.is_point:
            undecided[[1, 2, 4]] = False
        if not undecided.any():
            return ""
        size = np.abs(self.errors.error) / self.errors.limits[:, 1:]
        row, scalar = np.unravel_index(np.where(undecided, size, -1.0).argmax(), size.shape)
        told = reasons.of_errors(
            self.errors.only((KINDS[int(row)],)), self.evidence.parameters, len(size[0])
        )
        name = self.evidence.parameters[int(scalar)]
        return next(reason.sentence for reason in told if reason.quantity == name)

    def _more_draws(self) -> str:
        """Return the line that draws more, of the side that has fewer."""
        floors = np.where(self.errors.code == 3, 0.0, self.errors.floor / self.errors.limits[:, 1:])
        times = float(np.square(np.nan_to_num(floors, posinf=10.0).max() / 0.7))
        ours = self.evidence.posterior
        sizes = [p.num_chains * p.num_draws for p in (ours, self.target)]
        if sizes[0] < sizes[1]:
            return actions.more_draws(self.evidence.name, ours, times)
        return actions.more_draws(self.reference, self.target, times)


def _largest(errors: Errors, row: int) -> tuple[float, int]:
    """Return the largest error of a kind and its scalar; NaN where there is none."""
    sizes = np.where(errors.code[row] == 3, -1.0, np.abs(errors.error[row]))
    if not len(sizes) or sizes.max() < 0:
        return float("nan"), 0
    worst = int(sizes.argmax())
    return float(sizes[worst]), worst


def _by_a_doubtful_reference(
    evidence: Evidence, reference: str, gate: Gate, target: Posterior
) -> Judgement:
    """Return the verdict where the reference is not good enough to judge by."""
    caveats = caveats_of_itself(evidence)
    if evidence.weights is not None and evidence.weights.are_bad:
        caveats.append(f"{sentence(reasons.of_weights(evidence.weights).sentence)}")
    told = gate.sentence.removesuffix(".")
    if evidence.doubtful is not None:
        errors = evidence.counted(evidence.doubtful)
        if (errors.code == 2).any():
            found = reasons.of_errors(errors, evidence.parameters)
            text = (
                f"{found[0].sentence}, far beyond what the doubts about {reference} can explain "
                f"({told})"
            )
            better = actions.better_guide(evidence.name, evidence.posterior, ended=evidence.ended)
            return evidence.judgement(Verdict.DO_NOT_TRUST, text, better, found, caveats)
    if gate.name == "draws":
        told = f"{reference}: {told}"
        action = judge_without_draws(reference, target, gate).action
    elif gate.name == "labels":
        action = actions.relabel(reference)
    elif target.is_point:
        action = actions.better_guide(reference, target, ended=None)
    else:
        action = actions.longer_chains(reference, target, gate, evidence.thresholds)
    text = f"the reference is not good enough to judge by: {told}"
    return evidence.judgement(Verdict.CANNOT_JUDGE, text, action, [reasons.of_gate(gate)], caveats)
