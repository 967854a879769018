"""Grids of images: every pixel is where it belongs, labels too, and wrong shapes are errors."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from ppl_gen.report.images import draw_images


def canvas_of(figure: Any) -> np.ndarray:
    (image,) = figure.axes[0].images
    return np.ma.filled(image.get_array(), np.nan)


def test_images_lie_in_rows_and_columns() -> None:
    images = torch.arange(1, 7).reshape(2, 3, 1, 1).expand(2, 3, 4, 5) / 10
    canvas = canvas_of(draw_images(images))
    assert canvas.shape == (9, 17)
    for row, column in np.ndindex(2, 3):
        tile = canvas[5 * row : 5 * row + 4, 6 * column : 6 * column + 5]
        np.testing.assert_allclose(tile, (3 * row + column + 1) / 10)
    assert np.isnan(canvas[4]).all()
    assert np.isnan(canvas[:, 5]).all()


def test_rows_that_belong_together_are_nearer() -> None:
    canvas = canvas_of(draw_images(torch.ones(4, 1, 4, 4), rows_together=2))
    empty = np.isnan(canvas).all(axis=1)
    assert (
        empty.tolist()
        == [False] * 4 + [True] + [False] * 4 + [True] * 4 + [False] * 4 + [True] + [False] * 4
    )


def test_labels_and_captions() -> None:
    figure = draw_images(
        torch.rand(2, 2, 6, 6),
        "costs $5 or $6",
        row_labels=["a", "b"],
        column_labels=["1", "2"],
        captions=[["w", "x"], ["y", "z"]],
    )
    (axes,) = figure.axes
    assert axes.get_title() == "costs $5 or $6"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2"]
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert places.keys() == set("wxyz")
    # Below its own image, above the next one.
    assert 6 <= places["w"][1] < 9
    assert places["w"][0] < places["x"][0]
    figure.canvas.draw()


def test_marked_pixels_are_blue_and_the_others_as_they_are() -> None:
    images = torch.tensor([[0.0, 1.0], [math.nan, 1.0]]).reshape(1, 1, 2, 2)
    marked = torch.tensor([[True, False], [True, True]]).reshape(1, 1, 2, 2)
    gray, blue = draw_images(images, marked=marked).axes[0].images
    np.testing.assert_array_equal(np.ma.filled(gray.get_array(), np.nan), images[0, 0])
    colors = np.asarray(blue.get_array())
    np.testing.assert_array_equal(colors[..., 3], marked[0, 0])
    dark, nothing, light = colors[0, 0, :3], colors[1, 0, :3], colors[1, 1, :3]
    for color in (dark, nothing, light):
        assert color[0] < color[1] < color[2]
    # Apart from each other, from black and from white.
    assert 0.05 < dark.mean() < nothing.mean() - 0.2 < light.mean() - 0.4 < 0.5


def test_levels_out_of_range_are_black_and_white_when_marked_too() -> None:
    # As gaussian pixels have them.
    beyond = torch.tensor([-0.5, 1.5, 0.5]).reshape(1, 1, 1, 3)
    marked = torch.ones_like(beyond, dtype=torch.bool)
    found = draw_images(beyond, marked=marked).axes[0].images[1].get_array()
    clamped = draw_images(beyond.clamp(0, 1), marked=marked).axes[0].images[1].get_array()
    np.testing.assert_array_equal(found, clamped)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.rand(3, 8, 8), {}, r"expected shape \(rows, columns, height, width\)"),
        (torch.rand(2, 3, 8, 8), {"row_labels": ["a"]}, "row_labels: expected 2 of them"),
        (torch.rand(2, 3, 8, 8), {"column_labels": ["a"]}, "column_labels: expected 3"),
        (torch.rand(2, 3, 8, 8), {"captions": [["a"] * 3]}, "captions: expected 6"),
        (torch.rand(2, 3, 8, 8), {"marked": torch.ones(8, 8).bool()}, r"marked: .*\(2, 3, 8, 8\)"),
        (torch.rand(1, 1, 2, 2), {"marked": torch.ones(1, 1, 2, 2)}, "marked: .* got float32"),
    ],
)
def test_wrong_shapes(images: torch.Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_images(images, **options)
