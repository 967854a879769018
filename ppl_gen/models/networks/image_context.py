"""What a context says to the pixels of an image: the same to all of them, or its own to each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ppl_gen.core.errors import check_count
from ppl_gen.models.checks import vector_shape

__all__ = ["context_layer", "image_context_shape", "told"]


def image_context_shape(
    image_shape: Sequence[int], context_size: int | None, context_maps: int | None
) -> tuple[int, ...] | None:
    """Return the shape of a context, of which there are two kinds; None where there is none.

    Args:
        image_shape: Height and width, or number of channels, height and width.
        context_size: Size of a vector.
        context_maps: Number of feature maps, of the height and width of the image.

    Raises:
        TypeError: If a number is not whole.
        ValueError: If a number is below 1, or both kinds are asked for.

    Example:
        >>> image_context_shape((3, 8, 9), None, 16)
        (16, 8, 9)
    """
    if context_size is not None and context_maps is not None:
        msg = "context_size and context_maps are both given: give one of them."
        raise ValueError(msg)
    if context_maps is None:
        return vector_shape(context_size)
    check_count("context_maps", context_maps)
    return (context_maps, *image_shape[-2:])


def context_layer(
    context_size: int | None, context_maps: int | None, features: int
) -> nn.Linear | nn.Conv2d | None:
    """Return a layer from a context to features that join those of the pixels.

    Args:
        context_size: Size of a vector.
        context_maps: Number of feature maps.
        features: Number of features of a pixel.

    Returns:
        The layer; None where there is no context.
    """
    if context_maps is not None:
        return nn.Conv2d(context_maps, features, 1)
    return None if context_size is None else nn.Linear(context_size, features)


def told(layer: nn.Module, context: torch.Tensor | None) -> torch.Tensor:
    """Return what a context says to each pixel: features, broadcast with `(n, f, height, width)`.

    Args:
        layer: What `context_layer` made.
        context: A vector, `(n, context_size)`, or feature maps, `(n, maps, height, width)`.
    """
    features: torch.Tensor = layer(context)
    return features[:, :, None, None] if features.ndim == 2 else features
