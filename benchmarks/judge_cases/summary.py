"""Rates and confusion matrices of many verdicts."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from judge_cases.outcomes import Outcome
from judge_cases.references import Quality
from judge_cases.truth import Label

Record = dict[str, Any]

# Parts of the margins that rates are given for as well.
NARROWER = (0.5, 0.25)


def wilson(count: int, total: int) -> Record:
    """Return a rate with its Wilson 95 % interval."""
    if total == 0:
        return {"count": 0, "of": 0}
    z, rate = 1.959964, count / total
    centre = (rate + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * (rate * (1 - rate) / total + z**2 / (4 * total**2)) ** 0.5
    return {
        "count": count,
        "of": total,
        "rate": rate,
        "low": max(centre - half, 0.0),
        "high": min(centre + half, 1.0),
    }


def summary(records: list[Record]) -> Record:
    """Return rates, confusion matrices, and every case that came out wrong."""
    _, bad, good = _sorted(records)
    by_good = [r for r in good if r["quality"] == Quality.GOOD.value]

    return {
        "cases": len(records),
        **_rates(records),
        "narrower": {str(margin): _rates(_with_margin(records, margin)) for margin in NARROWER},
        "undecided_of_fine": wilson(_count(by_good, Outcome.UNDECIDED), len(by_good)),
        "undecided_of_bad": wilson(
            _count([r for r in bad if r["quality"] == Quality.GOOD.value], Outcome.UNDECIDED),
            sum(r["quality"] == Quality.GOOD.value for r in bad),
        ),
        "outcomes": dict(Counter(r["outcome"] for r in records)),
        "confusion": {
            quality.value: _confusion([r for r in records if r["quality"] == quality.value])
            for quality in Quality
        },
        "by_kind": {
            kind: dict(Counter(r["outcome"] for r in records if r["kind"] == kind))
            for kind in sorted({r["kind"] for r in records})
        },
        "by_size": _by_size(records),
        "seconds": sum(r["seconds"] for r in records),
        "wrong": [r for r in records if "case" in r],
    }


def _sorted(records: list[Record]) -> tuple[list[Record], list[Record], list[Record]]:
    """Return what is not counted apart, what of it is not fit for every use, and what is."""
    clear = [r for r in records if r["outcome"] != Outcome.APART.value]
    fine = (Label.RIGHT.value, Label.FAIR.value)
    good = [r for r in clear if r["label"] in fine]
    return clear, [r for r in clear if r["label"] not in fine], good


def _count(records: list[Record], outcome: Outcome) -> int:
    return sum(r["outcome"] == outcome.value for r in records)


def _rates(records: list[Record]) -> Record:
    clear, bad, good = _sorted(records)
    return {
        # A reweighted posterior can be wrong where the approximation is fair.
        "false_trust": wilson(_count(clear, Outcome.FALSE_TRUST), len(bad)),
        "false_alarm": wilson(_count(good, Outcome.FALSE_ALARM), len(good)),
        "apart": len(records) - len(clear),
    }


def _with_margin(records: list[Record], margin: float) -> list[Record]:
    """Return the records as they are with narrower margins."""
    found = []
    for record in records:
        label, outcome = record["narrower"][str(margin)]
        found.append({**record, "label": label, "outcome": outcome})
    return found


def _confusion(records: list[Record]) -> Record:
    """Count verdicts by label."""
    return {
        label.value: dict(Counter(r["verdict"] for r in records if r["label"] == label.value))
        for label in Label
    }


def _by_size(records: list[Record]) -> list[Record]:
    """Count verdicts by the worst error, in margins beyond the start of red."""
    ends = [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0, float("inf")]
    judged = [r for r in records if r["quality"] == Quality.GOOD.value]
    rows = []
    for low, high in itertools.pairwise(ends):
        inside = [r["verdict"] for r in judged if low <= r["beyond"] < high]
        rows.append({"low": low, "high": min(high, 1e9), "verdicts": dict(Counter(inside))})
    return rows
