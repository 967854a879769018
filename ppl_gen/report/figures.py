"""The marginals of several posteriors, drawn over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ppl_gen.report.density import estimate_density

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LineStyle", "Marginal", "colours", "draw_marginal", "draw_marginals"]

Array = NDArray[np.float64]

REFERENCE_COLOUR = "#8a8f98"
# Okabe and Ito's colours, told apart with every kind of colour vision, without black and yellow,
# which are lost on a dark or on a white page.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LineStyle = Literal["-", "--", ":", "-."]
_LINE_STYLES: tuple[LineStyle, ...] = ("-", "--", ":", "-.")
_POINTS = 256
# How far from the reference's median, in its (robust) standard deviations, an axis may go.
_WIDEST = 8.0
# How much taller than the reference another method may make the panel.
_TALLEST = 3.0


@dataclass(frozen=True)
class Marginal:
    """Draws of one scalar parameter by all methods.

    Args:
        parameter: Its name, as `weights[2]`.
        draws: Draws by method, in any shape.
        reference: The method that is drawn filled.
    """

    parameter: str
    draws: Mapping[str, Array]
    reference: str


def colours(methods: Sequence[str], reference: str) -> dict[str, tuple[str, LineStyle]]:
    """Give each method a colour and a line style, the same in every panel.

    Args:
        methods: Names of the methods.
        reference: The one that is drawn grey and filled.

    Returns:
        Colour and matplotlib line style by method. With more methods than colours, the line style
        tells those of one colour apart.

    Example:
        >>> colours(["svi", "nuts"], "nuts")["nuts"]
        ('#8a8f98', '-')
    """
    styles: dict[str, tuple[str, LineStyle]] = {reference: (REFERENCE_COLOUR, "-")}
    for index, method in enumerate(method for method in methods if method != reference):
        line = _LINE_STYLES[index // len(_COLOURS) % len(_LINE_STYLES)]
        styles[method] = (_COLOURS[index % len(_COLOURS)], line)
    return styles


def draw_marginals(marginals: Sequence[Marginal], title: str | None = None) -> Figure:
    """Draw a grid of panels, one for each parameter, with one legend.

    The figure belongs to no window and no pyplot state, and needs no display.

    Args:
        marginals: What to draw, at least one.
        title: A line above the panels.

    Returns:
        The figure, to be shown by a notebook or saved with `savefig`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(marginals), 4 if len(marginals) > 6 else 3)
    rows = -(-len(marginals) // columns)
    figure = Figure(figsize=(3.0 * columns + 0.4, 2.1 * rows + 0.9), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_facecolor("white")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, marginal in zip(panels, marginals, strict=False):
        draw_marginal(panel, marginal)
    for panel in panels[len(marginals) :]:
        panel.set_axis_off()
    _draw_legend(figure, marginals[0])
    if title:
        figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def draw_marginal(panel: Axes, marginal: Marginal, ink: str = "black") -> None:
    """Draw the densities of one parameter: the reference filled, the others as lines.

    The axis holds the middle 99.8 % of each method, unless that is so far from the reference that
    it would squeeze it: a method that lies outside is then named at the edge.

    Args:
        panel: Where to draw.
        marginal: What to draw.
        ink: Colour of axis and text.
    """
    from matplotlib.ticker import MaxNLocator

    low, high = _range(marginal)
    grid = np.linspace(low, high, _POINTS)
    styles = colours(list(marginal.draws), marginal.reference)
    peaks: dict[str, float] = {}
    # The reference first, so that lines are seen on it.
    for method in sorted(marginal.draws, key=lambda name: name != marginal.reference):
        draws = marginal.draws[method]
        colour, line = styles[method]
        if np.ptp(draws) == 0.0:
            panel.axvline(float(draws.flat[0]), color=colour, linestyle=line, linewidth=1.5)
            continue
        density = estimate_density(draws, low, high, _POINTS)
        peaks[method] = float(density.max())
        if method == marginal.reference:
            panel.fill_between(grid, density, color=colour, alpha=0.35, linewidth=0)
        panel.plot(grid, density, color=colour, linestyle=line, linewidth=1.5)
    tallest = max(peaks.values(), default=1.0)
    own = peaks.get(marginal.reference, 0.0)
    top = min(tallest, _TALLEST * own) if own > 0.0 else tallest
    panel.set_ylim(0.0, 1.08 * (top or 1.0))
    panel.set_xlim(low, high)
    panel.set_title(marginal.parameter, fontsize=9, color=ink, parse_math=False)
    panel.set_yticks([])
    panel.set_facecolor("none")
    panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.tick_params(axis="x", colors=ink, labelsize=8)
    panel.xaxis.get_offset_text().set(fontsize=8, color=ink)
    for side in ("top", "left", "right"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(ink)
    _name_what_is_outside(panel, marginal, low, high, styles)


def _range(marginal: Marginal) -> tuple[float, float]:
    """Return the ends of the axis: all methods where they fit, the reference in any case."""
    reference = marginal.draws[marginal.reference]
    centre = float(np.median(reference))
    lower, upper = np.quantile(reference, [0.25, 0.75])
    # The interquartile range, as a heavy tail has no standard deviation to speak of.
    widest = _WIDEST * float((upper - lower) / 1.349 or np.ptp(reference) or np.inf)
    ends = np.array([np.quantile(draws, [0.001, 0.999]) for draws in marginal.draws.values()])
    low, high = np.clip([ends[:, 0].min(), ends[:, 1].max()], centre - widest, centre + widest)
    margin = 0.03 * (high - low) or max(abs(low), 1.0) * 0.05
    return float(low - margin), float(high + margin)


def _name_what_is_outside(
    panel: Axes,
    marginal: Marginal,
    low: float,
    high: float,
    styles: Mapping[str, tuple[str, LineStyle]],
) -> None:
    """Write the names of methods that have most of their draws beyond an end of the axis."""
    height = 0.92
    for method, draws in marginal.draws.items():
        below, above = float((draws < low).mean()), float((draws > high).mean())
        if max(below, above) <= 0.5:
            continue
        text = (
            f"\N{LEFTWARDS ARROW} {method}" if below > above else f"{method} \N{RIGHTWARDS ARROW}"
        )
        panel.text(
            0.02 if below > above else 0.98,
            height,
            text,
            color=styles[method][0],
            fontsize=8,
            ha="left" if below > above else "right",
            va="top",
            transform=panel.transAxes,
            parse_math=False,
        )
        height -= 0.13


def _draw_legend(figure: Figure, marginal: Marginal) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Line2D | Patch] = []
    for method, (colour, line) in colours(list(marginal.draws), marginal.reference).items():
        if method == marginal.reference:
            handles.append(Patch(facecolor=colour, edgecolor=colour, alpha=0.5))
        else:
            handles.append(Line2D([], [], color=colour, linestyle=line))
    names = list(colours(list(marginal.draws), marginal.reference))
    # Names go in afterwards: matplotlib leaves labels out that begin with an underscore.
    legend = figure.legend(
        handles,
        [f"method {index}" for index in range(len(handles))],
        loc="outside lower center",
        ncols=min(len(handles), 4),
        frameon=False,
        fontsize=9,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(f"{name} (reference)" if name == marginal.reference else name)
