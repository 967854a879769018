"""What the methods show side by side: a column for each, a row for each number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ppl_gen.judge.findings import Grade, PredictiveFit, WeightFindings
from ppl_gen.judge.wording import percent
from ppl_gen.report.numbers import NOT_APPLICABLE, count, significant
from ppl_gen.report.tables import Cell, elbo_in_words
from ppl_gen.report.view import View

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Block", "Row", "overview"]

_BLANK = Cell(NOT_APPLICABLE)
_QUANTILES = {"q5": "5 % point of ", "q50": "median of ", "q95": "95 % point of "}
_DISTANCES = {
    "wasserstein": "1-Wasserstein distance",
    "sliced_wasserstein": "sliced Wasserstein distance",
    "mmd": "MMD",
    "c2st": "classifier test (C2ST)",
}
CellOf: TypeAlias = Callable[[str], Cell]


@dataclass(frozen=True)
class Row:
    """One number of all methods.

    Args:
        name: What it is.
        cells: The number of each method, in their order.
    """

    name: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Block:
    """Rows that belong together.

    Args:
        name: What they have in common.
        rows: The rows.
    """

    name: str
    rows: Sequence[Row]


def overview(view: View) -> list[Block]:
    """Return all numbers of the methods, those left out that no method has.

    Args:
        view: What was found.
    """
    blocks = [
        (f"Against {view.reference}", _errors(view) | _distances(view) if view.is_compared else {}),
        ("The approximation", _approximation(view)),
        ("The chains", _chains(view)),
        ("The model's fit", _fit(view)),
        ("Cost", _cost(view)),
    ]
    found = []
    for name, rows in blocks:
        filled = [Row(label, [cell(m) for m in view.judged]) for label, cell in rows.items()]
        filled = [row for row in filled if any(cell != _BLANK for cell in row.cells)]
        if filled:
            found.append(Block(name, filled))
    return found


def _errors(view: View) -> dict[str, CellOf]:
    return {
        "worst error of a mean": lambda method: _worst(view, method, {"mean": ""}, _in_sds),
        "worst error of an sd": lambda method: _worst(view, method, {"sd": ""}, _in_percent),
        "worst error of a quantile": lambda method: _worst(view, method, _QUANTILES, _in_sds),
    }


def _in_sds(error: float) -> str:
    return f"{error:+.2f} sd"


def _in_percent(error: float) -> str:
    return f"{'+' if error > 0.0 else '-'}{percent(abs(error))}"


def _worst(view: View, method: str, kinds: Mapping[str, str], form: Callable[[float], str]) -> Cell:
    """Return the error that is furthest beyond its floor, with the parameter and the floor.

    Args:
        view: What was found.
        method: The method.
        kinds: The names of the errors, with what they are of.
        form: How the error is written.
    """
    if method == view.reference or method not in view.methods:
        return _BLANK
    found = []
    for kind, of in kinds.items():
        errors = view.column(method, f"error_of_{kind}")
        floors = view.column(method, f"error_of_{kind}_floor")
        beyond = _beyond(errors, floors)
        if beyond.empty:
            continue
        name = beyond.idxmax()
        found.append((beyond[name], float(errors[name]), float(floors[name]), f"{of}{name}", name))
    if not found:
        return _BLANK
    _, error, floor, where, name = max(found, key=lambda each: each[0])
    column = "grade_of_quantiles" if len(kinds) > 1 else f"grade_of_{next(iter(kinds))}"
    grade = Grade(view.column(method, column)[name])
    return Cell(form(error), grade, f"{where}, floor {form(floor).lstrip('+')}")


def _beyond(errors: pd.Series[Any], floors: pd.Series[Any]) -> pd.Series[Any]:
    beyond = errors.abs() - floors
    return beyond[np.isfinite(beyond)]


def _distances(view: View) -> dict[str, CellOf]:
    table = view.assessment.distances
    rows: dict[str, CellOf] = {}
    for name, label in _DISTANCES.items():
        if name in table:
            rows[label] = lambda method, name=name: _distance(table, method, name)  # type: ignore[misc]
    if "correlation_error" in table:
        rows["worst error of a correlation"] = lambda method: _correlation(table, method)
    return rows


def _distance(table: pd.DataFrame, method: str, name: str) -> Cell:
    if method not in table.index or not math.isfinite(table.loc[method, name]):
        return _BLANK
    # Of what chance shows, the bound and not the middle: so are the floors of all other errors.
    value, floor = table.loc[method, name], table.loc[method, f"{name}_upper"]
    # That of an unbiased estimate may be below zero.
    return Cell(f"{value:.2g}", note=f"floor {max(floor, 0.0):.2g}")


def _correlation(table: pd.DataFrame, method: str) -> Cell:
    if method not in table.index or not math.isfinite(table.loc[method, "correlation_error"]):
        return _BLANK
    pair = table.loc[method, "worst_pair"] if "worst_pair" in table else ""
    where = pair if isinstance(pair, str) else " and ".join(pair)
    return Cell(f"{table.loc[method, 'correlation_error']:.2g}", note=where)


def _approximation(view: View) -> dict[str, CellOf]:
    def cell_of_weights(cell: Callable[[WeightFindings], Cell]) -> CellOf:
        weights = view.assessment.weights
        return lambda method: cell(weights[method]) if method in weights else _BLANK

    def of_weights(text: Callable[[WeightFindings], str]) -> CellOf:
        return cell_of_weights(lambda found: Cell(text(found)))

    def log_evidence(method: str) -> Cell:
        if method in view.assessment.evidence:
            return Cell(_with_error(*view.assessment.evidence[method]), note="by bridge sampling")
        return of_weights(lambda found: _with_error(*found.log_evidence))(method)

    return {
        "ELBO": lambda method: Cell(elbo_in_words(_record(view, method))),
        "ELBO gap": cell_of_weights(_gap),
        "log evidence": log_evidence,
        "Pareto k-hat": cell_of_weights(_pareto_k),
        "its threshold": of_weights(lambda found: f"{found.threshold:.2f}"),
        "ESS of the weights": cell_of_weights(
            lambda found: Cell(f"{found.ess:,.0f}", note=f"of {found.draws:,} draws")
        ),
    }


def _gap(found: WeightFindings) -> Cell:
    text = significant(found.elbo_gap, "{:.2f}")
    by_weights = text == NOT_APPLICABLE or math.isfinite(found.log_evidence[0])
    return Cell(text, note="" if by_weights else "by bridge sampling")


def _pareto_k(found: WeightFindings) -> Cell:
    if found.pareto_k == -math.inf:
        return Cell("below 0", note="weights are equal")
    if not math.isfinite(found.pareto_k):
        return Cell(NOT_APPLICABLE, note="cannot be estimated")
    low, high = found.interval
    known = math.isfinite(low) and math.isfinite(high)
    return Cell(f"{found.pareto_k:.2f}", note=f"{low:.2f} to {high:.2f}" if known else "")


def _with_error(value: float, error: float) -> str:
    if not math.isfinite(value):
        return NOT_APPLICABLE
    return f"{value:.2f}" + (f" ±{error:.2g}" if math.isfinite(error) else "")


def _chains(view: View) -> dict[str, CellOf]:
    return {
        "highest R-hat": _number(view, "max_r_hat", "{:.3f}"),
        "smallest ESS": _number(view, "min_ess", "{:,.0f}"),
        "divergences": _number(view, "divergences", "{:,.0f}"),
    }


def _fit(view: View) -> dict[str, CellOf]:
    fits = view.assessment.fits

    def of_fit(cell: Callable[[PredictiveFit], Cell]) -> CellOf:
        return lambda method: cell(fits[method]) if method in fits else _BLANK

    return {
        "elpd": of_fit(_elpd),
        "effective parameters": of_fit(
            lambda fit: Cell(significant(fit.p_loo, "{:.1f}"), _grade_of_fit(fit))
        ),
    }


def _elpd(fit: PredictiveFit) -> Cell:
    """Write an elpd; one whose weights fail is marked, so that nobody ranks methods by it."""
    note = f"not reliable: k-hat too high at {count(fit.bad_k, 'observation')}"
    return Cell(_with_error(fit.elpd, fit.elpd_se), _grade_of_fit(fit), note if fit.bad_k else "")


def _grade_of_fit(fit: PredictiveFit) -> Grade:
    return Grade.AMBER if fit.bad_k else Grade.BLANK


def _cost(view: View) -> dict[str, CellOf]:
    def draws(method: str) -> Cell:
        record = _record(view, method)
        return Cell(f"{record['chains']:.0f} × {record['draws']:,.0f}")

    return {
        "inference": lambda method: Cell(str(_record(view, method)["method"]) or NOT_APPLICABLE),
        "draws": draws,
        "seconds": _number(view, "seconds", "{:.3g}"),
        "gradient evaluations": _number(view, "gradient_evaluations", "{:,.0f}"),
    }


def _number(view: View, column: str, form: str) -> CellOf:
    return lambda method: Cell(significant(_record(view, method)[column], form))


def _record(view: View, method: str) -> Mapping[Any, Any]:
    return dict(view.assessment.measurements.methods.loc[method])
