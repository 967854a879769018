"""The comparison as one HTML file that needs nothing else."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_gen.judge import Measurements
from ppl_gen.report.figures import Marginal, colours, draw_marginal
from ppl_gen.report.tables import NOT_APPLICABLE, method_table, parameter_table

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["fragment", "page", "write"]

# A colour that nothing else has, to be replaced by the colour of the page's text.
_INK = "#010203"
_DASHES = {"-": "none", "--": "7 4", ":": "2 4", "-.": "7 4 2 4"}


def page(measurements: Measurements, marginals: Sequence[Marginal]) -> str:
    """Return the whole page: figure, both tables and notes.

    Args:
        measurements: The numbers.
        marginals: The parameters to draw.

    Returns:
        HTML, in which every name is escaped and nothing is fetched.
    """
    from markupsafe import Markup

    styles = colours(list(measurements.methods.index), measurements.reference)
    return (
        _environment()
        .get_template("comparison.html.jinja")
        .render(
            **_context(measurements, None),
            legend=[(name, colour, _DASHES[line]) for name, (colour, line) in styles.items()],
            panels=[
                (marginal.parameter, Markup(_panel(marginal, f"panel-{index}-")))
                for index, marginal in enumerate(marginals)
            ],
        )
    )


def fragment(measurements: Measurements, max_parameters: int | None) -> str:
    """Return both tables and the notes as a piece of HTML, for a notebook.

    Args:
        measurements: The numbers.
        max_parameters: How many parameters to show; None: all.
    """
    template = _environment().get_template("fragment.html.jinja")
    return template.render(**_context(measurements, max_parameters))


def write(path: Path, text: str) -> None:
    """Write a text file in one step: whoever reads it sees the old or the new one.

    Args:
        path: Where to; a file there is replaced.
        text: What to write.

    Raises:
        OSError: If it cannot be written, with the path and the remedy in the message.
    """
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder. Add the name of a file.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {path}: there is no folder {path.parent}. Make it first."
        )
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise type(error)(
            f"cannot write {path}: {error.strerror or error}. Choose a folder you may write to."
        ) from error
    finally:
        # An interrupted write leaves nothing behind.
        try:
            unfinished.unlink(missing_ok=True)
        except OSError:
            pass


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("ppl_gen.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _context(measurements: Measurements, max_parameters: int | None) -> dict[str, Any]:
    count = len(measurements.parameters)
    hidden = 0 if max_parameters is None else max(0, count - max_parameters)
    return {
        "reference": measurements.reference,
        "several": len(measurements.methods) > 1,
        "parameter_count": count,
        "hidden": hidden,
        "parameters": parameter_table(measurements, max_parameters),
        "methods": method_table(measurements),
        "notes": measurements.notes,
        "left_out": measurements.left_out,
        "blank": NOT_APPLICABLE,
    }


def _panel(marginal: Marginal, prefix: str) -> str:
    """Draw one parameter as an SVG element whose ink is the colour of the text around it."""
    import matplotlib
    from markupsafe import escape
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.0, 1.75), layout="constrained")
    canvas = FigureCanvasSVG(figure)
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    draw_marginal(axes, marginal, ink=_INK)
    # The page has the name above the picture, where it can wrap.
    axes.set_title("")
    buffer = io.StringIO()
    # Text stays text, and the same draws give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        canvas.print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Two pictures in one page must not share identifiers.
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}", svg)
    head, _, body = svg.partition(">")
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box is not None
    label = escape(f"Densities of {marginal.parameter} by {', '.join(marginal.draws)}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'role="img" aria-label="{label}" {view_box.group()}>{body.strip()}'
    )
