"""Colours, line styles and markers of the methods: the same in every picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias

__all__ = ["INK", "LineStyle", "Style", "method_styles"]

LineStyle: TypeAlias = Literal["-", "--", ":", "-."]

# A colour that nothing else has: on a page it becomes the colour of the text around the picture.
INK = "#010203"
_REFERENCE_COLOUR = "#8a8f98"
# Okabe and Ito's colours, told apart with every kind of colour vision, without black and yellow,
# which are lost on a dark or on a white page; those that stand out least come last.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_LINES: tuple[LineStyle, ...] = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P")


class Style(NamedTuple):
    """How a method is drawn.

    Args:
        colour: Colour of its lines.
        line: matplotlib's line style.
        marker: matplotlib's marker.
    """

    colour: str
    line: LineStyle
    marker: str


def method_styles(methods: Iterable[str], reference: str | None) -> dict[str, Style]:
    """Give each method a colour and a line style, the same in every picture.

    Args:
        methods: Names of the methods.
        reference: The one that is drawn grey and filled; None where there is none.

    Returns:
        The style by method, the reference first. No two of 24 are the same, and neighbours differ
        in colour, line and marker, so that they are told apart without colour as well.

    Example:
        >>> method_styles(["svi", "nuts"], "nuts")["svi"]
        Style(colour='#0072b2', line='-', marker='o')
    """
    styles: dict[str, Style] = {}
    if reference is not None:
        styles[reference] = Style(_REFERENCE_COLOUR, "-", "o")
    for index, method in enumerate(method for method in methods if method != reference):
        styles[method] = Style(
            _COLOURS[index % len(_COLOURS)],
            # Colours and lines meet again after twelve methods: shifted by one, they do not.
            _LINES[(index + index // 12) % len(_LINES)],
            _MARKERS[index % len(_MARKERS)],
        )
    return styles
