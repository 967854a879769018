"""The pictures of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppl_gen.core.progress import ProgressBar
from ppl_gen.report.figures import KINDS, Kind, Panel
from ppl_gen.report.svg import inline_svg
from ppl_gen.report.view import View

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["Picture", "Pictures", "gallery"]

# The worst parameters, of which each has a picture of this kind; other kinds choose for themselves.
_PARAMETERS = {"forest": 12, "marginals": 9, "ecdf": 6}


@dataclass(frozen=True)
class Picture:
    """One picture of the page.

    Args:
        title: What it shows.
        caption: What is seen.
        svg: The picture.
        wide: Whether it takes the room of two.
    """

    title: str
    caption: str
    svg: Markup
    wide: bool


@dataclass(frozen=True)
class Pictures:
    """Pictures of one kind.

    Args:
        name: Name of the kind.
        kind: The kind.
        pictures: The pictures.
        note: Which of them are shown, where that is not all; else empty.
        methods: Those that the legend names; none where there is no legend.
    """

    name: str
    kind: Kind
    pictures: Sequence[Picture]
    note: str
    methods: Sequence[str]


def gallery(view: View, *, progress: bool) -> list[Pictures]:
    """Draw all kinds of pictures for which there is something to be seen.

    Args:
        view: What was found.
        progress: Whether to show progress.
    """
    kinds: dict[str, list[Panel]] = {}
    for name, kind in KINDS.items():
        parameters = view.worst_first[: _PARAMETERS[name]] if kind.of_parameters else None
        kinds[name] = kind.panels(view, parameters)
    total = sum(map(len, kinds.values()))
    found = []
    with ProgressBar("report", total, enabled=progress) as bar:
        for name, panels in kinds.items():
            pictures = []
            for index, panel in enumerate(panels):
                pictures.append(_picture(panel, f"{name}-{index}-"))
                bar.advance(panel.title)
            if pictures:
                methods = _methods(view, panels) if KINDS[name].legend else []
                found.append(Pictures(name, KINDS[name], pictures, _note(view, name), methods))
    return found


def _picture(panel: Panel, prefix: str) -> Picture:
    from markupsafe import Markup

    # Names in it are escaped by matplotlib and by `inline_svg`.
    svg = Markup(inline_svg(panel, prefix))
    return Picture(panel.title, panel.caption, svg, panel.width > 3.5)


def _methods(view: View, panels: Sequence[Panel]) -> list[str]:
    drawn = {method for panel in panels for method in panel.methods}
    return [method for method in view.styles if method in drawn]


def _note(view: View, name: str) -> str:
    total, shown = len(view.worst_first), _PARAMETERS.get(name)
    if shown is None or total <= shown:
        return ""
    worst = "those that differ most" if view.is_compared else "those whose chains agree least"
    return f"{shown} of {total:,} parameters: {worst}."
