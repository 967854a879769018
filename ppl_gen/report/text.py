"""A comparison as text, 100 columns wide: the verdicts first, then the tables."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ppl_gen.judge.findings import Judgement
from ppl_gen.report.tables import QUANTILE, Table, method_table, parameter_table
from ppl_gen.report.view import View

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["explanations", "render"]

_WIDTH = 100
_INDENT = 4


def render(view: View, max_parameters: int) -> str:
    """Write verdicts, tables and what has to be known about them.

    Args:
        view: What was found.
        max_parameters: How many parameters the table holds, at most.

    Returns:
        Text without colours or trailing spaces.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(
        file=io.StringIO(),
        width=_WIDTH,
        color_system=None,
        force_terminal=False,
        legacy_windows=False,
    )
    for judgement in view.assessment.judgements.values():
        _print_verdict(console, judgement, judgement.method == view.assessment.reference)
    shown = view.worst_first[:max_parameters]
    # Names need the room of the quantiles.
    for table in (parameter_table(view, shown).without(QUANTILE), method_table(view)):
        if table.groups:
            _print_table(console, table)
    lines = explanations(view)
    hidden = len(view.worst_first) - len(shown)
    if hidden > 0:
        lines.insert(0, f"{hidden} more parameters are in comparison.table.")
    for line in lines:
        console.print(Text(line))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip("\n")


def explanations(view: View) -> list[str]:
    """Return what a reader of the tables has to know, a sentence or two each.

    Args:
        view: What the tables show.
    """
    measurements = view.assessment.measurements
    lines = []
    if view.reference is not None and view.others:
        lines.append(
            f"Errors of the mean are in standard deviations of {view.reference} (ref), ± "
            "their Monte Carlo standard error."
        )
    lines += [f"Note: {note}" for note in measurements.notes]
    if measurements.left_out:
        reasons = "; ".join(f"{site} ({why})" for site, why in measurements.left_out.items())
        lines.append(f"Left out: {reasons}.")
    return lines


def _print_verdict(console: Console, judgement: Judgement, is_reference: bool) -> None:
    from rich.padding import Padding
    from rich.text import Text

    role = " (reference)" if is_reference else ""
    # Text and no markup: in markup, "[2]" would be a style.
    console.print(Text(f"{judgement.method}{role}: {judgement.verdict.value}"))
    lines = [judgement.sentence, *judgement.caveats]
    if judgement.action:
        lines.append(f"Next: {judgement.action}")
    for line in lines:
        console.print(Padding(Text(line), (0, 0, 0, _INDENT)))


def _print_table(console: Console, table: Table) -> None:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column(Text(table.group_heading), overflow="fold")
    grid.add_column(Text(table.headings[0]), overflow="fold")
    for heading in table.headings[1:]:
        # A heading of several words stands on two lines, so that names have room.
        grid.add_column(Text(_on_two_lines(heading)), justify="right", no_wrap=True)
    for group in table.groups:
        for index, row in enumerate(group.rows):
            cells: Sequence[str] = (group.name if index == 0 else "", *(c.text for c in row))
            last = index == len(group.rows) - 1 and len(group.rows) > 1
            grid.add_row(*(Text(cell) for cell in cells), end_section=last)
    console.print(grid)


def _on_two_lines(heading: str) -> str:
    first, _, last = heading.rpartition(" ")
    return f"{first}\n{last}" if first else heading
