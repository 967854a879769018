"""The numbers that speak for or against a posterior, the worst first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from ppl_gen.diagnostics.psis import format_pareto_k
from ppl_gen.diagnostics.two_samples import Distance
from ppl_gen.judge.errors import KINDS, Errors, grade_of
from ppl_gen.judge.findings import Gate, Grade, Reason, Thresholds
from ppl_gen.judge.joint import Dependence
from ppl_gen.judge.weights import Weights
from ppl_gen.judge.wording import of_correlation, of_error, percent

__all__ = [
    "of_classifier",
    "of_dependence",
    "of_errors",
    "of_gate",
    "of_weights",
    "unit_name",
]

# Reasons of one kind that are given; the table has the rest.
_MOST = 5
# Shift in every parameter, in standard deviations, that a classifier has to see before it alone
# calls a joint distribution wrong: half a one is more than any marginal may be off by.
_JOINT_SHIFT = 0.5
# A classifier that does so well by chance in one case of so many is believed.
_CLEAR = 0.01


def unit_name(by_quantiles: bool) -> str:
    """Return the name of the unit of an error.

    Args:
        by_quantiles: Whether the reference has no sd to speak of.
    """
    return "of a normal's sd (with the same central 90 %)" if by_quantiles else "sd"


def of_errors(errors: Errors, names: Sequence[str], most: int = _MOST) -> list[Reason]:
    """Return the worst errors of the marginals, the worst first: not more than one of a scalar.

    Args:
        errors: The errors.
        names: Names of the scalars.
        most: How many at most.
    """
    judged = errors.code != 3
    if not judged.any():
        return []
    code = np.where(judged, errors.code.astype(int), -1)
    # A wrong mean or sd moves the quantiles too, and is what to tell: the first of the worst grade.
    rows = code.argmax(axis=0)
    # Where nothing is beyond chance, the largest error as it is.
    sizes = np.where(judged, np.abs(errors.error) / errors.limits[:, 1:], 0.0)
    green = code.max(axis=0) == 0
    rows[green] = np.where(judged[:2].any(axis=0), sizes[:2].argmax(axis=0), 3)[green]
    severity, plain = errors.severity, np.nan_to_num(sizes.max(axis=0), posinf=1e300)
    order = np.lexsort((np.arange(len(plain)), -plain, -np.nan_to_num(severity, posinf=1e300)))
    order = order[judged.any(axis=0)[order]]
    return [_of_error(errors, int(rows[i]), int(i), names[i]) for i in order[:most]]


def _of_error(errors: Errors, row: int, scalar: int, name: str) -> Reason:
    kind, value = KINDS[row], float(errors.error[row, scalar])
    unit = unit_name(bool(errors.by_quantiles[scalar]))
    return Reason(
        kind if row < 2 else "quantile",
        name,
        value,
        float(errors.floor[row, scalar]),
        (Grade.GREEN, Grade.AMBER, Grade.RED, Grade.BLANK)[int(errors.code[row, scalar])],
        of_error(kind, name, value, unit),
    )


def of_dependence(
    found: Dependence, names: Sequence[str], reference: str, thresholds: Thresholds
) -> Reason:
    """Return the worst error of how two scalars depend on each other.

    Args:
        found: The error.
        names: Names of the scalars.
        reference: Name of the reference.
        thresholds: Where green ends and red begins.
    """
    pair = [
        f"the size of {names[i]}" if of_size else names[i]
        for i, of_size in zip((found.first, found.second), found.of_sizes, strict=True)
    ]
    grade = grade_of(found.net, thresholds.sd_green, thresholds.sd_red)
    return Reason(
        "joint",
        f"{names[found.first]} and {names[found.second]}",
        found.error,
        found.floor,
        grade,
        of_correlation(pair[0], pair[1], found.here, found.there, reference),
    )


def of_classifier(found: Distance, count: int, reference: str, thresholds: Thresholds) -> Reason:
    """Return how well a classifier tells draws from the reference's.

    In each of many parameters an error of no account adds to what it sees: it is called wrong
    where it does better than the best one would on a shift of half a standard deviation in every
    parameter, and amber beyond one at the end of green.

    Args:
        found: The area under its curve.
        count: Number of parameters.
        reference: Name of the reference.
        thresholds: Where green ends.
    """
    green, red = (
        NormalDist().cdf(shift * math.sqrt(count / 2)) - 0.5
        for shift in (thresholds.mean_green, _JOINT_SHIFT)
    )
    beyond = found.value - 0.5 if found.p_value <= _CLEAR else 0.0
    sentence = (
        f"a classifier tells a draw from one of {reference} in {percent(found.value)} of pairs"
    )
    return Reason(
        "joint",
        "classifier two-sample test",
        found.value,
        found.floor,
        grade_of(beyond, green, red),
        sentence,
    )


def of_weights(weights: Weights) -> Reason:
    """Return what k-hat says.

    Args:
        weights: The weights.
    """
    findings = weights.findings
    grade = Grade.GREEN if weights.can_mend else Grade.RED if weights.are_bad else Grade.AMBER
    text = format_pareto_k(findings.pareto_k, findings.interval)
    if math.isnan(findings.threshold):
        sentence = "the importance weights mean nothing: a log density is not finite"
    else:
        side = "below" if grade is Grade.GREEN else "above" if grade is Grade.RED else "around"
        sentence = f"Pareto k-hat is {text}, {side} the threshold of {findings.threshold:.2f}"
        if math.isinf(findings.pareto_k):
            sentence = f"Pareto k-hat is {text}"
        elif grade is Grade.GREEN and findings.pareto_k >= findings.threshold:
            share = findings.ess / findings.draws
            sentence = f"Pareto k-hat is {text}, but weighted draws are worth {share:.0%} of them"
    return Reason("weights", "Pareto k-hat", findings.pareto_k, 0.0, grade, sentence)


def of_gate(gate: Gate) -> Reason:
    """Return a gate as a reason.

    Args:
        gate: The gate.
    """
    grade = {True: Grade.GREEN, False: Grade.RED, None: Grade.BLANK}[gate.passed]
    kind = {"reference": "chains", "draws": "monte_carlo"}.get(gate.name, gate.name)
    value = next(iter(gate.values.values()), math.nan)
    told = gate.sentence.removeprefix(f"{gate.method}: ").removesuffix(".")
    return Reason(kind, gate.name, value, 0.0, grade, told)
