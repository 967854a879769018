"""Grids of images, with what they are written beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_images"]

_WIDTH = 7.0  # of all columns, in inches
# Marked pixels from black to white, and where there is nothing to draw.
_MARKED = ("#0b2a55", "#8fc1f5")
_NOTHING = "#4d80bf"


def draw_images(
    images: torch.Tensor,
    title: str | None = None,
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    rows_together: int = 1,
    marked: torch.Tensor | None = None,
) -> Figure:
    """Draw a grid of gray images.

    The figure belongs to no window and no pyplot state, and needs no display.

    Args:
        images: Images, `(rows, columns, height, width)`, of gray levels from 0 (black) to 1; what
            is NaN is drawn in the colour of the figure.
        title: What they are.
        row_labels: One for each row, or none.
        column_labels: One for each column, or none.
        captions: A line below each image, by row and column, or none.
        rows_together: Number of rows without a wider gap between them.
        marked: Which pixels are drawn in blues instead, such as those of an image that were not
            given: booleans of the shape of the images. NaN among them are a blue of their own.

    Returns:
        The figure, to be shown by a notebook or saved with `savefig`.

    Raises:
        ValueError: If the images have another number of axes, there are more or fewer labels than
            rows, columns or images, or `marked` has another shape or type.

    Example:
        >>> figure = draw_images(torch.rand(2, 3, 8, 8), "Noise", row_labels=["one", "two"])
        >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
        ['one', 'two']
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    _check(images, row_labels, column_labels, captions)
    if marked is not None:
        _check_marked(marked, images)
    rows, columns, height, width = images.shape
    gap = max(1, height // 14)
    below = height // 3 if captions else 0
    tops = [
        row * (height + gap + below) + row // rows_together * 3 * gap * (rows_together > 1)
        for row in range(rows)
    ]
    lefts = [column * (width + gap) for column in range(columns)]
    size = (tops[-1] + height + below, lefts[-1] + width)
    canvas, blue = torch.full(size, math.nan), torch.zeros(size, dtype=torch.bool)
    for row, top in enumerate(tops):
        for column, left in enumerate(lefts):
            place = slice(top, top + height), slice(left, left + width)
            canvas[place] = images[row, column]
            if marked is not None:
                blue[place] = marked[row, column]

    inches = _WIDTH / canvas.shape[1]
    figsize = (_WIDTH + (1.3 if row_labels else 0.2), canvas.shape[0] * inches + 0.7)
    figure = Figure(figsize=figsize, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_facecolor("white")
    axes = figure.add_subplot()
    axes.imshow(canvas.numpy(), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    if marked is not None:
        axes.imshow(_in_blue(canvas, blue).numpy(), interpolation="nearest")
    if title:
        axes.set_title(title, parse_math=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8, labeltop=True, labelbottom=False)
    axes.set_yticks([top + height / 2 for top in tops] if row_labels else [], list(row_labels))
    axes.set_xticks(
        [left + width / 2 for left in lefts] if column_labels else [], list(column_labels)
    )
    for top, line in zip(tops, captions, strict=False):
        for left, caption in zip(lefts, line, strict=True):
            middle = left + (width - 1) / 2
            axes.text(middle, top + height, caption, ha="center", va="top", fontsize=7)
    return figure


def _in_blue(canvas: torch.Tensor, blue: torch.Tensor) -> torch.Tensor:
    """Return marked pixels as colours, `(height, width, 4)`, and the others transparent."""
    from matplotlib.colors import to_rgb

    dark, light, nothing = (torch.tensor(to_rgb(name)) for name in (*_MARKED, _NOTHING))
    level = canvas.unsqueeze(-1).clamp(0.0, 1.0)  # as matplotlib does with grays
    colors = torch.where(level.isnan(), nothing, torch.lerp(dark, light, level.nan_to_num()))
    return torch.cat([colors, blue.unsqueeze(-1)], dim=-1)


def _check_marked(marked: torch.Tensor, images: torch.Tensor) -> None:
    if marked.shape != images.shape or marked.dtype != torch.bool:
        msg = (
            f"marked: expected booleans of the shape of the images, {tuple(images.shape)}, got "
            f"{str(marked.dtype).removeprefix('torch.')} of shape {tuple(marked.shape)}."
        )
        raise ValueError(msg)


def _check(
    images: torch.Tensor,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    captions: Sequence[Sequence[str]],
) -> None:
    if images.ndim != 4:
        msg = (
            "images: expected shape (rows, columns, height, width), got "
            f"{tuple(images.shape)}. Write images.unflatten(0, (rows, columns)) for a list of them."
        )
        raise ValueError(msg)
    rows, columns = images.shape[:2]
    given = {
        "row_labels": (len(row_labels), rows),
        "column_labels": (len(column_labels), columns),
        "captions": (sum(len(line) for line in captions), rows * columns),
    }
    for name, (got, expected) in given.items():
        if got not in (0, expected):
            msg = f"{name}: expected {expected} of them, or none, got {got}."
            raise ValueError(msg)
