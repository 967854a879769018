"""The measurements as text: numbers with as many digits as they deserve, in rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ppl_gen.judge import Measurements

__all__ = ["NOT_APPLICABLE", "Group", "Table", "method_table", "parameter_table", "render"]

NOT_APPLICABLE = "-"
_WIDTH = 100


@dataclass(frozen=True)
class Group:
    """Rows that belong together.

    Args:
        name: What they have in common.
        rows: The cells of each row; the first names the row.
    """

    name: str
    rows: Sequence[Sequence[str]]


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


def parameter_table(measurements: Measurements, max_parameters: int | None = None) -> Table:
    """Return the table of parameters, methods grouped by parameter.

    Args:
        measurements: What to show.
        max_parameters: How many parameters to show, from the first; None: all.

    Returns:
        The table. Means and standard deviations of a parameter share their number of decimals,
        which gives the reference's standard deviation three significant digits.
    """
    reference = measurements.reference
    several = len(measurements.methods) > 1
    groups = []
    names = list(measurements.parameters)[:max_parameters]
    methods = len(measurements.methods)
    records = measurements.table.head(len(names) * methods).to_dict("records")
    for start in range(0, len(records), methods):
        group = records[start : start + methods]
        unit = next(record["sd"] for record in group if record["method"] == reference)
        rows = []
        for record in group:
            is_reference = several and record["method"] == reference
            rows.append(
                [
                    f"{record['method']} (ref)" if is_reference else str(record["method"]),
                    _in_unit(record["mean"], unit),
                    _in_unit(record["sd"], unit),
                    NOT_APPLICABLE if is_reference or not several else _error(record),
                    NOT_APPLICABLE
                    if is_reference or not several
                    else _significant(record["sd_ratio"], "{:.2f}"),
                    _significant(record["r_hat"], "{:.3f}"),
                    _significant(record["ess_bulk"], "{:.0f}"),
                    _significant(record["ess_tail"], "{:.0f}"),
                    _significant(record["mcse"], "{:.2g}"),
                ]
            )
        groups.append(Group(str(group[0]["parameter"]), rows))
    headings = (
        "method",
        "mean",
        "sd",
        "error of mean",
        "sd ratio",
        "R-hat",
        "ESS bulk",
        "ESS tail",
        "MCSE",
    )
    return Table("parameter", headings, groups)


def method_table(measurements: Measurements) -> Table:
    """Return the table of methods: objective, cost and the worst of each diagnostic.

    Args:
        measurements: What to show.
    """
    groups = []
    for name, record in measurements.methods.to_dict("index").items():
        elbo = _significant(record["elbo"], "{:.2f}")
        if elbo != NOT_APPLICABLE and math.isfinite(record["elbo_mcse"]):
            elbo += f" ±{record['elbo_mcse']:.2g}"
        row = [
            str(record["method"]) or NOT_APPLICABLE,
            f"{record['chains']:.0f} × {record['draws']:.0f}",
            elbo,
            _significant(record["seconds"], "{:.3g}"),
            _significant(record["gradient_evaluations"], "{:,.0f}"),
            _significant(record["max_r_hat"], "{:.3f}"),
            _significant(record["min_ess"], "{:.0f}"),
            _significant(record["divergences"], "{:.0f}"),
        ]
        groups.append(Group(str(name), [row]))
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


def render(tables: Sequence[Table], lines: Sequence[str]) -> str:
    """Write tables and then lines of text, at a width of 100 columns.

    Args:
        tables: The tables.
        lines: What to say below them, each wrapped as a paragraph of its own.

    Returns:
        Text without colours or trailing spaces.
    """
    import io

    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(
        file=io.StringIO(),
        width=_WIDTH,
        color_system=None,
        force_terminal=False,
        legacy_windows=False,
    )
    for table in tables:
        grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        grid.add_column(Text(table.group_heading), overflow="fold")
        grid.add_column(Text(table.headings[0]), overflow="fold")
        for heading in table.headings[1:]:
            # A heading of several words stands on two lines, so that names have room.
            grid.add_column(Text(_on_two_lines(heading)), justify="right", no_wrap=True)
        for group in table.groups:
            for index, row in enumerate(group.rows):
                name = group.name if index == 0 else ""
                # Text and no markup: in markup, "[2]" would be a style.
                last = index == len(group.rows) - 1 and len(group.rows) > 1
                grid.add_row(*(Text(cell) for cell in (name, *row)), end_section=last)
        console.print(grid)
    for line in lines:
        console.print(Text(line))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip("\n")


def _on_two_lines(heading: str) -> str:
    first, _, last = heading.rpartition(" ")
    return f"{first}\n{last}" if first else heading


def _significant(value: Any, form: str) -> str:
    number = float(value)
    if math.isnan(number):
        return NOT_APPLICABLE
    # An R-hat or a ratio of a million has no use for two decimals.
    return form.format(number) if abs(number) < 1e5 or "," in form else f"{number:.3g}"


def _in_unit(value: Any, unit: Any) -> str:
    """Write a value so that `unit` would have three significant digits."""
    number, scale = float(value), float(unit)
    if not (math.isfinite(scale) and scale > 0.0):
        return f"{number:.4g}"
    decimals = max(0, 2 - math.floor(math.log10(scale)))
    if decimals > 5 or abs(number) >= 1e7:
        return f"{number:.4g}"
    return f"{number:z.{decimals}f}"


def _error(record: dict[str, Any]) -> str:
    """Write the error of a mean with its Monte Carlo standard error."""
    error, mcse = float(record["error_of_mean"]), float(record["error_of_mean_mcse"])
    if math.isnan(error):
        return NOT_APPLICABLE
    if abs(error) >= 1000.0:
        return f"{error:+.3g}"
    return f"{error:+z.2f}" + (f" ±{mcse:.2f}" if math.isfinite(mcse) else "")
