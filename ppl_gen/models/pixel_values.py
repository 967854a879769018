"""What the pixels of images may be that an autoregressive network is of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ppl_gen.core.errors import SiteError
from ppl_gen.distributions import Elements
from ppl_gen.models.checks import NOT_FINITE, check_categories, check_events

__all__ = ["check_pixels", "draw_binary"]


def draw_binary(x: torch.Tensor, elements: Elements) -> torch.Tensor:
    """Return binary pixels where their probabilities are given; 0 and 1 stay what they are.

    Args:
        x: Images, of any shape.
        elements: What their pixels are.
    """
    binary = elements.likelihood == "bernoulli" and x.is_floating_point()
    return torch.bernoulli(x) if binary else x


def check_pixels(
    x: torch.Tensor, image_shape: Sequence[int], elements: Elements, make: str, *, drawn: bool
) -> None:
    """Refuse images of another shape, or values that their pixels cannot have.

    Args:
        x: Images, `(n, *image_shape)`.
        image_shape: Shape of an image.
        elements: What its pixels are.
        make: How to ask for another shape, which follows.
        drawn: Whether they have to be pixels; else the probabilities of binary ones will do.

    Raises:
        SiteError: If they are anything else.
    """
    check_events("x", x, image_shape, make)
    low, high = (float(value) for value in torch.aminmax(x))
    remedy = _remedy(low, high, elements)
    if drawn or elements.likelihood != "bernoulli" or not x.is_floating_point():
        return check_categories("x", x, elements.highest, remedy)
    if not (low >= 0 and high <= 1):
        raise SiteError(
            "x",
            expected="binary pixels, or their probabilities, between 0 and 1",
            got=f"values from {low:g} to {high:g}",
            remedy=remedy,
        )


def _remedy(low: float, high: float, elements: Elements) -> str:
    """Return what to do about values that are no pixels."""
    binary = elements.likelihood == "bernoulli"
    if low >= 0 and high <= 1:
        if binary:
            return "Draw binary ones first: torch.bernoulli(x), or x.round() for a threshold."
        return f"Write (x * {elements.highest}).round().long() for pixels in [0, 1]."
    if low >= -1 and high <= 1:
        pixels = "(x + 1) / 2" if binary else f"((x + 1) / 2 * {elements.highest}).round().long()"
        return f"Write {pixels} for pixels in [-1, 1]."
    if low >= 0 and high <= 255 and binary:
        return "Write x / 255 for images of 8 bits, or make the network for gray pixels."
    if not math.isfinite(low + high):
        return NOT_FINITE
    return "Rescale them to [0, 1]." if binary else ""
