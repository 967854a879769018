"""One picture with what is seen in it, and a grid of them as a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ppl_gen.report.styles import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

__all__ = ["Legend", "Panel", "draw_grid", "plain_axes"]

# The line of each method, with its marker, or the reference as a filled area; or no legend.
Legend: TypeAlias = Literal["", "lines", "markers", "areas"]


@dataclass(frozen=True)
class Panel:
    """One picture.

    Args:
        title: What it shows, as the name of a parameter or of a method.
        kind: What sort of picture it is, for whoever cannot see it.
        caption: What is seen, with the numbers.
        draw: Draws it into axes, in the colour given for axis and text.
        methods: The methods that are drawn, which a legend names.
        width: In inches.
        height: In inches.
    """

    title: str
    kind: str
    caption: str
    draw: Callable[[Axes, str], None]
    methods: Sequence[str]
    width: float = 3.0
    height: float = 1.75


def draw_grid(
    panels: Sequence[Panel],
    styles: Mapping[str, Style],
    reference: str | None,
    legend: Legend,
    title: str | None = None,
) -> Figure:
    """Draw pictures side by side, with one legend.

    The figure belongs to no window and no pyplot state, and needs no display.

    Args:
        panels: What to draw, at least one.
        styles: How each method is drawn, in the order of the legend.
        reference: Name of the reference; None where there is none.
        legend: What the legend shows of each method that is drawn.
        title: A line above the pictures.

    Returns:
        The figure, to be shown by a notebook or saved with `savefig`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(panels), 4 if len(panels) > 6 else 3)
    rows = -(-len(panels) // columns)
    width = max(panel.width for panel in panels)
    height = max(panel.height for panel in panels) + 0.35
    size = (width * columns + 0.4, height * rows + 0.9)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_facecolor("white")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, panel in zip(axes, panels, strict=False):
        panel.draw(place, "black")
        place.set_title(panel.title, fontsize=9, color="black", parse_math=False)
    for place in axes[len(panels) :]:
        place.set_axis_off()
    drawn = {method for panel in panels for method in panel.methods}
    shown = {method: style for method, style in styles.items() if method in drawn}
    _draw_legend(figure, shown, reference, legend, columns)
    if title:
        figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def plain_axes(axes: Axes, ink: str, *, left: bool = True) -> None:
    """Make axes quiet: no frame, small text, in the colour of the text around them.

    Args:
        axes: What to make quiet.
        ink: Colour of axis and text.
        left: Whether the vertical axis has numbers that are to be read.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    axes.set_facecolor("none")
    for side in ("top", "right") if left else ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set(color=ink, linewidth=0.6)
    axes.tick_params(which="both", colors=ink, labelsize=8, width=0.6, length=3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=ink, fontsize=8)
        axis.get_offset_text().set(color=ink, fontsize=8)
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(numticks=5))
        else:
            axis.set_major_locator(MaxNLocator(4))
    if not left:
        axes.set_yticks([])


def _draw_legend(
    figure: Figure,
    styles: Mapping[str, Style],
    reference: str | None,
    legend: Legend,
    columns: int,
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Line2D | Patch] = [
        Patch(facecolor=style.colour, edgecolor=style.colour, alpha=0.5)
        if method == reference and legend == "areas"
        else Line2D(
            [],
            [],
            color=style.colour,
            linestyle=style.line,
            marker=style.marker if legend == "markers" else "",
        )
        for method, style in styles.items()
    ]
    # Names go in afterwards: matplotlib leaves labels out that begin with an underscore.
    box = figure.legend(
        handles,
        [f"method {index}" for index in range(len(handles))],
        loc="outside lower center",
        ncols=min(len(handles), 5 if columns > 1 else 2),
        frameon=False,
        fontsize=9,
    )
    for text, name in zip(box.get_texts(), styles, strict=True):
        text.set_parse_math(False)
        text.set_text(f"{name} (reference)" if name == reference else name)
