"""Pictures as SVG elements inside a page, in the page's own colours."""

from __future__ import annotations

import io
import re
import warnings

from ppl_gen.report.figures.panel import Panel
from ppl_gen.report.styles import INK

__all__ = ["inline_svg"]


def inline_svg(panel: Panel, prefix: str) -> str:
    """Draw a picture as an SVG element whose ink is the colour of the text around it.

    Args:
        panel: The picture.
        prefix: What its identifiers begin with: no two pictures of a page share it.

    Returns:
        The element. The same picture gives the same text; names in it are escaped.
    """
    svg = _draw(panel, prefix)
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bd="[^"]*"', _shorter, svg)
    # Two pictures in one page must not share identifiers.
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}", svg)
    head, _, body = svg.partition(">")
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box is not None
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'role="img" aria-label="{_alternative(panel)}" {view_box.group()}>{body.strip()}'
    )


def _alternative(panel: Panel) -> str:
    """Return what stands for the picture where it cannot be seen, escaped."""
    from markupsafe import escape

    return str(escape(f"{panel.kind}. {panel.caption}"))


def _draw(panel: Panel, salt: str) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # Text stays text, and the same draws give the same file, whatever the user's settings are.
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": salt})
        # The browser has letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(panel.width, panel.height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)
        # The page has the title above the picture, where it can wrap.
        panel.draw(figure.subplots(), INK)
        canvas.print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return buffer.getvalue()


def _shorter(path: re.Match[str]) -> str:
    """Write a path with a hundredth of a point, which nobody sees: it halves the page."""
    return re.sub(r"-?\d+\.\d{2,}", lambda number: f"{float(number.group()):z.2f}", path.group())
