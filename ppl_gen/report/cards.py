"""The verdict on each method as a card that needs no statistics to be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppl_gen.judge.findings import Grade, Judgement, Verdict
from ppl_gen.report.numbers import count, listed
from ppl_gen.report.view import View

if TYPE_CHECKING:
    from ppl_gen.judge.repair import Repair

__all__ = ["Card", "repair_cards", "summary", "verdict_cards"]

_REASONS = 4
_GREEN_REASONS = 2

# The name of icon and colour, and what the verdict means for whoever wants to use the numbers.
_MEANINGS = {
    Verdict.TRUST: ("trust", "Its averages, spreads and intervals may be used."),
    Verdict.AFTER_REWEIGHTING: (
        "reweight",
        "As it is, its numbers are off. Reweighting its draws mends that: use the result.",
    ),
    Verdict.MEANS_ONLY: (
        "means",
        "Its averages may be used. Its spreads and intervals may not.",
    ),
    Verdict.DO_NOT_TRUST: ("refuse", "Draw no conclusions from it."),
    Verdict.CANNOT_JUDGE: (
        "unknown",
        "There is too little to go by. It may be right or wrong.",
    ),
    Verdict.NO_PROBLEM_FOUND: (
        "nothing",
        "These checks found no problem. Without a reference to compare it with, that is all that "
        "can be said.",
    ),
}
_IN_SHORT = {
    Verdict.TRUST: "can be trusted",
    Verdict.AFTER_REWEIGHTING: "can be trusted after reweighting",
    Verdict.MEANS_ONLY: "can be trusted for the means only",
    Verdict.DO_NOT_TRUST: "should not be trusted",
    Verdict.CANNOT_JUDGE: "cannot be judged",
    Verdict.NO_PROBLEM_FOUND: "passed these checks without a problem",
}


@dataclass(frozen=True)
class Card:
    """The verdict on one method.

    Args:
        name: Its name.
        role: "reference", or empty.
        tone: Name of icon and colour.
        verdict: The verdict.
        meaning: What it means for whoever wants to use the numbers.
        sentence: Why.
        reasons: Further numbers that decided, the worst first, with their grades.
        action: What to do next, as a line of code; empty for nothing.
        caveats: What else to know.
    """

    name: str
    role: str
    tone: str
    verdict: str
    meaning: str
    sentence: str
    reasons: Sequence[tuple[Grade, str]]
    action: str
    caveats: Sequence[str]


def verdict_cards(view: View) -> list[Card]:
    """Return the card of each method.

    Args:
        view: What was found.
    """
    return [
        _card(judgement, name, "reference" if name == view.assessment.reference else "")
        for name, judgement in view.assessment.judgements.items()
    ]


def repair_cards(repair: Repair) -> list[Card]:
    """Return the cards of a posterior before and after its repair.

    Args:
        repair: What was done.
    """
    return [_card(repair.before, "before"), _card(repair.after, "after")]


def summary(view: View) -> str:
    """Say in a sentence how many methods can be trusted.

    Args:
        view: What was found.

    Returns:
        Such as "mean-field should not be trusted; full-rank can be trusted."
    """
    # A reference that does its work is no news.
    judged = [
        judgement
        for name, judgement in view.assessment.judgements.items()
        if name != view.assessment.reference or not view.others or not judgement.verdict.is_fine
    ]
    if len(judged) > 6:
        counts = Counter(_IN_SHORT[judgement.verdict] for judgement in judged)
        parts = [f"{count(number, 'posterior')} {text}" for text, number in counts.items()]
        return f"{'; '.join(parts)}."
    by_verdict: dict[str, list[str]] = {}
    for judgement in judged:
        by_verdict.setdefault(_IN_SHORT[judgement.verdict], []).append(judgement.method)
    return f"{'; '.join(f'{listed(names)} {text}' for text, names in by_verdict.items())}."


def _card(judgement: Judgement, name: str, role: str = "") -> Card:
    tone, meaning = _MEANINGS[judgement.verdict]
    if role and judgement.verdict.is_fine:
        meaning = "Good enough to measure the others by."
    return Card(
        name=name,
        role=role,
        tone=tone,
        verdict=judgement.verdict.value,
        meaning=meaning,
        sentence=judgement.sentence,
        reasons=_further_reasons(judgement),
        action=judgement.action,
        caveats=judgement.caveats,
    )


def _further_reasons(judgement: Judgement) -> list[tuple[Grade, str]]:
    """Return the reasons that sentence and caveats do not hold already, with their grades.

    Where something is wrong, what is right is no reason.
    """
    said = " ".join([judgement.sentence, *judgement.caveats]).casefold()
    found = [
        (reason.grade, text)
        for reason in judgement.reasons
        if (text := reason.sentence.removeprefix(f"{judgement.method}: ")).casefold().rstrip(".")
        not in said
    ]
    wrong = (Grade.AMBER, Grade.RED)
    if any(reason.grade in wrong for reason in judgement.reasons):
        return [(grade, text) for grade, text in found if grade in wrong][:_REASONS]
    return found[:_GREEN_REASONS]
