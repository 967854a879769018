"""The comparison as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

from ppl_gen.judge.findings import Gate
from ppl_gen.report.cards import repair_cards, summary, verdict_cards
from ppl_gen.report.gallery import gallery
from ppl_gen.report.glossary import GLOSSARY
from ppl_gen.report.numbers import NOT_APPLICABLE, count, listed
from ppl_gen.report.overview import overview
from ppl_gen.report.provenance import provenance
from ppl_gen.report.tables import method_table, parameter_table
from ppl_gen.report.text import explanations
from ppl_gen.report.view import View

if TYPE_CHECKING:
    from jinja2 import Environment

    from ppl_gen.judge.repair import Repair

__all__ = ["fragment", "page"]

# More parameters than this are no table to read.
_SHOWN_PARAMETERS = 30
# A larger JSON is left to a file of its own: in bytes of base64, and in rows of the table of
# parameters, which tell without making it.
_LARGEST_JSON = 1_000_000
_MOST_ROWS = 10_000
# What the gates ask, in words.
_QUESTIONS = {
    "draws": "Are its draws numbers that vary?",
    "reference": "Is the reference good enough to judge by?",
    "labels": "Do labels keep their meaning?",
    "optimisation": "Did the optimisation end?",
    "chains": "Do its chains agree?",
}
# Characters that no page may hold, though a name can.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_DASHES = {"-": "none", "--": "6 3", ":": "2 3", "-.": "7 3 2 3"}
# Outlines of matplotlib's markers, in the middle of the line of a legend.
_MARKERS = {
    "o": "M14 7a4 4 0 0 1 8 0a4 4 0 0 1-8 0z",
    "s": "M14 3h8v8h-8z",
    "^": "M18 2.5L22.5 11h-9z",
    "D": "M18 2L23 7L18 12L13 7z",
    "v": "M18 11.5L22.5 3h-9z",
    "P": "M16.4 2.5h3.2v2.9h2.9v3.2h-2.9v2.9h-3.2v-2.9h-2.9V5.4h2.9z",
}


def page(view: View, repair: Repair | None = None, *, progress: bool = False) -> str:
    """Return the whole page.

    Args:
        view: What was found.
        repair: What was done about it, if anything.
        progress: Whether to show progress.

    Returns:
        HTML, in which every name is escaped and nothing is fetched or run. The same input gives
        the same text.
    """
    template = _environment().get_template("page.html.jinja")
    shown = view.worst_first[:_SHOWN_PARAMETERS]
    assessment = view.assessment
    text = template.render(
        view=view,
        measurements=assessment.measurements,
        assessment=assessment,
        summary=summary(view),
        scope=_scope(view),
        cards=verdict_cards(view),
        gates=_asked(assessment.gates),
        warnings=[(name, text) for name, texts in assessment.warnings.items() for text in texts],
        blocks=overview(view),
        parameters=parameter_table(view, shown),
        hidden=len(view.worst_first) - len(shown),
        dashes=_DASHES,
        markers=_MARKERS,
        gallery=gallery(view, progress=progress),
        repair=repair,
        repair_cards=repair_cards(repair) if repair is not None else [],
        glossary=GLOSSARY,
        provenance=provenance(view),
        version=version("ppl-gen"),
        blank=NOT_APPLICABLE,
        json=_embedded(view),
    )
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def fragment(view: View, max_parameters: int) -> str:
    """Return verdicts, tables and notes as a piece of HTML, for a notebook.

    Args:
        view: What was found.
        max_parameters: How many parameters to show.
    """
    shown = view.worst_first[:max_parameters]
    return (
        _environment()
        .get_template("fragment.html.jinja")
        .render(
            cards=verdict_cards(view),
            parameters=parameter_table(view, shown),
            methods=method_table(view),
            hidden=len(view.worst_first) - len(shown),
            explanations=explanations(view),
            blank=NOT_APPLICABLE,
        )
    )


def _asked(gates: Sequence[Gate]) -> list[tuple[str, bool | None, str, str]]:
    """Return whom, whether it holds, the question and what was found, the same only once."""
    methods: dict[tuple[bool | None, str, str], list[str]] = {}
    for gate in gates:
        question = _QUESTIONS.get(gate.name, gate.name)
        found = gate.sentence.removeprefix(f"{gate.method}: ")
        found = found[:1].upper() + found[1:]
        methods.setdefault((gate.passed, question, found), []).append(gate.method)
    return [(listed(names), *answer) for answer, names in methods.items()]


def _scope(view: View) -> str:
    methods = count(len(view.assessment.judgements), "posterior")
    parameters = count(len(view.worst_first), "parameter")
    if view.assessment.reference is None:
        return f"{methods}, {parameters}, judged without a reference"
    return f"{methods}, {parameters}, measured against {view.assessment.reference}"


def _embedded(view: View) -> tuple[str, str] | None:
    """Return the JSON in base64, for a link that saves it, and its size; None if too large."""
    if len(view.assessment.measurements.table) > _MOST_ROWS:
        return None
    data = view.assessment.to_dict()
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    encoded = base64.b64encode(text).decode("ascii")
    return (encoded, f"{len(text) / 1000:.0f} kB") if len(encoded) <= _LARGEST_JSON else None


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ppl_gen.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typeset"] = _typeset
    return environment


def _typeset(text: str) -> str:
    """Keep numbers and their units on one line, and write minus signs as wide as a plus."""
    together = re.sub(r"(?<=\d) (?=(?:%|sds?)(?!\w))", "\N{NO-BREAK SPACE}", text)
    return re.sub(r"(?<![\w\]])-(?=\d)", "\N{MINUS SIGN}", together)
