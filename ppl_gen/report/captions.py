"""What is seen, in words: sentences made from the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ppl_gen.judge.findings import Grade
from ppl_gen.judge.wording import number, percent, times
from ppl_gen.report.numbers import listed
from ppl_gen.report.view import View

__all__ = ["errors_in_words", "sd_in_words", "worst_quantile"]

# A standard deviation that is larger by more is told as a multiple.
_MULTIPLE = 3.0
_QUANTILES = {"q5": "5 %", "q50": "50 %", "q95": "95 %"}


def errors_in_words(view: View, parameter: str) -> str:
    """Say how far each method is from the reference in one parameter.

    Args:
        view: What was found.
        parameter: Name of the parameter.

    Returns:
        Such as "full-rank agrees with nuts; mean-field: sd 38 % too small". Without a reference,
        the mean and standard deviation of each method.
    """
    rows = view.rows(parameter)
    if not view.is_compared:
        seen = [f"{name}: {row['mean']:.3g} ± {row['sd']:.2g}" for name, row in rows.items()]
        return f"Mean ± sd. {'; '.join(seen)}."
    words = {method: _errors(rows[method]) for method in view.others}
    wrong = [f"{method}: {text}" for method, text in words.items() if text]
    fine = [method for method, text in words.items() if not text and _is_graded(rows[method])]
    if fine:
        verb = "agrees" if len(fine) == 1 else "agree"
        wrong.append(f"{listed(fine)} {verb} with {view.reference}")
    return f"{'; '.join(wrong) or 'Nothing can be compared'}."


def sd_in_words(ratio: float) -> str:
    """Say how far a standard deviation is from the reference's.

    Args:
        ratio: Over the standard deviation of the reference.

    Example:
        >>> sd_in_words(0.62), sd_in_words(1.5), sd_in_words(4.0)
        ('sd 38 % too small', 'sd 50 % too large', 'sd 4 times too large')
    """
    if ratio > _MULTIPLE:
        return f"sd {times(ratio)} too large"
    return f"sd {percent(abs(ratio - 1.0))} too {'small' if ratio < 1.0 else 'large'}"


def worst_quantile(row: Mapping[str, Any]) -> tuple[str, float]:
    """Return which quantile is furthest beyond its floor, and its error; NaN where there is none.

    Args:
        row: A row of the table of parameters.

    Returns:
        Such as ("95 %", -0.7), in standard deviations of the reference.
    """
    beyond = {
        name: abs(row[f"error_of_{name}"]) - row[f"error_of_{name}_floor"] for name in _QUANTILES
    }
    finite = {name: size for name, size in beyond.items() if not math.isnan(size)}
    if not finite:
        return "", math.nan
    worst = max(finite, key=lambda name: finite[name])
    return _QUANTILES[worst], float(row[f"error_of_{worst}"])


def _is_graded(row: Mapping[str, Any]) -> bool:
    kinds = ("mean", "sd", "quantiles")
    return any(row[f"grade_of_{kind}"] != Grade.BLANK.value for kind in kinds)


def _errors(row: Mapping[str, Any]) -> str:
    """Return the errors that are not green; empty where all are."""
    words = []
    not_fine = (Grade.AMBER.value, Grade.RED.value)
    if row["grade_of_mean"] in not_fine:
        words.append(_shift("mean", row["error_of_mean"]))
    if row["grade_of_sd"] in not_fine:
        words.append(sd_in_words(row["sd_ratio"]))
    if not words and row["grade_of_quantiles"] in not_fine:
        point, error = worst_quantile(row)
        words.append(_shift("median" if point == "50 %" else f"{point} quantile", error))
    return ", ".join(words)


def _shift(what: str, error: float) -> str:
    return f"{what} {number(abs(error))} sd too {'small' if error < 0.0 else 'large'}"
