"""What a verdict is worth, given the truth."""

from __future__ import annotations

import enum

from judge_cases.cases import Case
from judge_cases.references import Quality
from judge_cases.truth import Label
from ppl_gen.judge import Verdict


class Outcome(enum.Enum):
    """How a verdict compares with the truth."""

    RIGHT = "right"
    FALSE_TRUST = "false trust"
    FALSE_ALARM = "false alarm"
    TOO_STRICT = "too strict"  # the means could have been used
    UNDECIDED = "undecided"  # CANNOT JUDGE, by a reference that is good enough
    UNDUE = "undue"  # a right verdict by a reference that is not good enough
    MISSED = "missed"  # without a reference: no problem found where there is one
    APART = "counted apart"  # near a threshold, or a reference that cannot be seen through


_USES = (Verdict.TRUST, Verdict.AFTER_REWEIGHTING, Verdict.MEANS_ONLY)


def outcome_of(case: Case, verdict: Verdict, margin: float = 1.0) -> Outcome:
    """Return what a verdict on a case is worth.

    False trust: the verdict allows a use in which an error is red by more than the margin. False
    alarm: it forbids a use in which no error is.

    Args:
        case: The case.
        verdict: The verdict.
        margin: Part of each margin that counts as near a threshold.
    """
    label, quality = case.errors.label(margin), case.reference.quality
    if label is Label.NEAR or quality in (Quality.BLIND, Quality.BORDERLINE):
        return Outcome.APART
    fine = label in (Label.RIGHT, Label.FAIR)
    if _is_false_trust(case, verdict, margin):
        return Outcome.FALSE_TRUST
    if verdict is Verdict.CANNOT_JUDGE:
        return Outcome.UNDECIDED if quality is Quality.GOOD else Outcome.RIGHT
    if verdict is Verdict.NO_PROBLEM_FOUND:
        return Outcome.RIGHT if fine else Outcome.MISSED
    if verdict in (Verdict.DO_NOT_TRUST, Verdict.MEANS_ONLY) and fine:
        return Outcome.FALSE_ALARM
    if verdict in _USES and quality is Quality.BAD:
        return Outcome.UNDUE
    if verdict is Verdict.DO_NOT_TRUST and label is Label.MEANS_ONLY:
        return Outcome.RIGHT if quality is Quality.BAD else Outcome.TOO_STRICT
    return Outcome.RIGHT


def _is_false_trust(case: Case, verdict: Verdict, margin: float) -> bool:
    """Whether a verdict allows a use that is wrong by more than the margin."""
    found = case.errors
    if verdict is Verdict.TRUST:
        return max(found.of_means, found.of_others) >= margin
    if verdict is Verdict.MEANS_ONLY:
        return found.of_means >= margin
    if verdict is Verdict.AFTER_REWEIGHTING:
        left = case.reweighted_errors
        return max(left.of_means, left.of_others) >= margin
    return False
