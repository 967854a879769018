"""What was found as tables of text, with as many digits as the numbers deserve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ppl_gen.judge.findings import Grade
from ppl_gen.report.captions import worst_quantile
from ppl_gen.report.numbers import NOT_APPLICABLE, in_unit, significant
from ppl_gen.report.view import View

__all__ = ["QUANTILE", "Cell", "Group", "Table", "method_table", "parameter_table"]

# The heading of a column that is left out where there is little room.
QUANTILE = "worst quantile"


class Cell(NamedTuple):
    """A cell of a table.

    Args:
        text: What it says.
        grade: How good that is; blank where it is no error.
        note: What else to know, in small print.
    """

    text: str
    grade: Grade = Grade.BLANK
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Rows that belong together.

    Args:
        name: What they have in common.
        rows: The cells of each row; the first names the row.
    """

    name: str
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        group_heading: What the groups are.
        headings: Heading of each column of a row.
        groups: The rows, grouped.
    """

    group_heading: str
    headings: Sequence[str]
    groups: Sequence[Group]

    def without(self, heading: str) -> Table:
        """Return the table without a column.

        Args:
            heading: Its heading.
        """
        return self._of([place for place, name in enumerate(self.headings) if name != heading])

    def filled(self) -> Table:
        """Return the table without the columns in which there is nothing."""
        rows = [row for group in self.groups for row in group.rows]
        return self._of(
            [
                place
                for place in range(len(self.headings))
                if any(row[place].text != NOT_APPLICABLE for row in rows)
            ]
        )

    def _of(self, places: Sequence[int]) -> Table:
        groups = [
            Group(group.name, [[row[place] for place in places] for row in group.rows])
            for group in self.groups
        ]
        return Table(self.group_heading, [self.headings[place] for place in places], groups)


def parameter_table(view: View, parameters: Sequence[str]) -> Table:
    """Return the table of parameters, methods grouped by parameter.

    Args:
        view: What was found.
        parameters: Names of the parameters to show, in this order.

    Returns:
        The table, without columns in which there is nothing. Means and standard deviations of a
        parameter share their number of decimals, which gives the reference's standard deviation
        three significant digits.
    """
    headings = (
        "method",
        "mean",
        "sd",
        "error of mean",
        "sd ratio",
        QUANTILE,
        "R-hat",
        "ESS bulk",
        "ESS tail",
        "MCSE",
    )
    groups = [Group(name, _parameter_rows(view, name)) for name in parameters]
    return Table("parameter", headings, groups).filled()


def _parameter_rows(view: View, parameter: str) -> list[list[Cell]]:
    rows = view.rows(parameter)
    unit = rows[view.anchor]["sd"]
    cells = []
    for method, row in rows.items():
        is_reference = method == view.reference
        compared = view.is_compared and not is_reference
        texts = [
            f"{method} (ref)" if is_reference else method,
            in_unit(row["mean"], unit),
            in_unit(row["sd"], unit),
            _error(row) if compared else NOT_APPLICABLE,
            significant(row["sd_ratio"], "{:.2f}") if compared else NOT_APPLICABLE,
            _quantile(row) if compared else NOT_APPLICABLE,
            significant(row["r_hat"], "{:.3f}"),
            significant(row["ess_bulk"], "{:.0f}"),
            significant(row["ess_tail"], "{:.0f}"),
            significant(row["mcse"], "{:.2g}"),
        ]
        grades = dict.fromkeys(range(len(texts)), Grade.BLANK)
        if compared:
            kinds = ("mean", "sd", "quantiles")
            grades |= {3 + place: Grade(row[f"grade_of_{k}"]) for place, k in enumerate(kinds)}
        cells.append([Cell(text, grades[place]) for place, text in enumerate(texts)])
    return cells


def method_table(view: View) -> Table:
    """Return the table of methods: objective, cost and the worst of each diagnostic.

    Args:
        view: What was found.
    """
    groups = []
    for name, record in view.assessment.measurements.methods.to_dict("index").items():
        texts = [
            str(record["method"]) or NOT_APPLICABLE,
            f"{record['chains']:.0f} × {record['draws']:.0f}",
            elbo_in_words(record),
            significant(record["seconds"], "{:.3g}"),
            significant(record["gradient_evaluations"], "{:,.0f}"),
            significant(record["max_r_hat"], "{:.3f}"),
            significant(record["min_ess"], "{:.0f}"),
            significant(record["divergences"], "{:.0f}"),
        ]
        groups.append(Group(str(name), [[Cell(text) for text in texts]]))
    headings = (
        "method",
        "draws",
        "ELBO",
        "seconds",
        "gradients",
        "R-hat max",
        "ESS min",
        "divergences",
    )
    return Table("posterior", headings, groups)


def elbo_in_words(record: Mapping[Any, Any]) -> str:
    """Write an ELBO with its Monte Carlo standard error.

    Args:
        record: A row of the table of methods.
    """
    elbo = significant(record["elbo"], "{:.2f}")
    if elbo != NOT_APPLICABLE and math.isfinite(record["elbo_mcse"]):
        elbo += f" ±{record['elbo_mcse']:.2g}"
    return elbo


def _error(row: Mapping[str, Any]) -> str:
    """Write the error of a mean with its Monte Carlo standard error."""
    error, mcse = float(row["error_of_mean"]), float(row["error_of_mean_mcse"])
    if math.isnan(error):
        return NOT_APPLICABLE
    if abs(error) >= 1000.0:
        return f"{error:+.3g}"
    return f"{error:+z.2f}" + (f" ±{mcse:.2f}" if math.isfinite(mcse) else "")


def _quantile(row: Mapping[str, Any]) -> str:
    point, error = worst_quantile(row)
    if math.isnan(error):
        return NOT_APPLICABLE
    return f"{error:+z.2f} at {point}" if abs(error) < 1000.0 else f"{error:+.3g} at {point}"
