"""Convolutions of images that see what comes before a pixel in reading order, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ppl_gen.core.errors import check_count

__all__ = [
    "MaskedConv2d",
    "channel_groups",
    "check_features",
    "check_kernel_size",
    "reading_order",
]


def check_kernel_size(kernel_size: int) -> None:
    """Refuse a kernel that has no middle.

    Args:
        kernel_size: Its width.

    Raises:
        ValueError: If it is even, or below 1.
    """
    check_count("kernel_size", kernel_size)
    if kernel_size % 2 == 0:
        msg = (
            f"kernel_size: expected an odd number, so that the kernel has a middle, got "
            f"{kernel_size}. Take {kernel_size - 1} or {kernel_size + 1}."
        )
        raise ValueError(msg)


def check_features(features: int, channels: int) -> None:
    """Refuse features that cannot be shared out evenly.

    Args:
        features: Number of features of a layer.
        channels: Number of channels of the image.

    Raises:
        ValueError: If they are no multiple of the channels.
    """
    check_count("features", features)
    if features % channels:
        msg = (
            f"features: expected a multiple of {channels}, so that each channel of the image has "
            f"as many, got {features}."
        )
        raise ValueError(msg)


def channel_groups(features: int, channels: int) -> torch.Tensor:
    """Return which of an image's channels each feature belongs to, `(features,)`.

    Args:
        features: Number of features.
        channels: Number of channels of the image; the features are shared out among them evenly.

    Example:
        >>> channel_groups(5, 3)
        tensor([0, 0, 1, 1, 2])
    """
    return torch.arange(features) * channels // features


def reading_order(image_shape: Sequence[int]) -> torch.Tensor:
    """Return the flat indices of an image's elements by row, column and, last, channel.

    Args:
        image_shape: Height and width, or number of channels, height and width.

    Example:
        >>> reading_order((2, 1, 3))
        tensor([0, 3, 1, 4, 2, 5])
    """
    places = torch.arange(math.prod(image_shape)).reshape(tuple(image_shape))
    return (places.movedim(0, -1) if len(image_shape) == 3 else places).flatten()


class MaskedConv2d(nn.Conv2d):
    """A convolution whose kernel ends at its middle.

    Of the pixel itself it sees the channels before its own (mask "A"), or also its own (mask "B"):
    the first layer of a network needs "A", all others "B".

    Args:
        num_inputs: Number of input features.
        num_outputs: Number of output features.
        kernel_size: Height and width, odd.
        includes_own: Whether it is of mask "B".
        channels: Number of channels of the image, to which features belong by `channel_groups`.

    References:
        Pixel Recurrent Neural Networks. van den Oord, Kalchbrenner and Kavukcuoglu, 2016.
        arXiv:1601.06759.
    """

    mask: torch.Tensor

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        kernel_size: int | tuple[int, int],
        *,
        includes_own: bool,
        channels: int = 1,
    ) -> None:
        height, width = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
        padding = (height // 2, width // 2)
        super().__init__(num_inputs, num_outputs, (height, width), padding=padding)
        before = channel_groups(num_inputs, channels)
        after = channel_groups(num_outputs, channels)[:, None]
        mask = torch.ones_like(self.weight)
        mask[:, :, height // 2 + 1 :] = 0
        mask[:, :, height // 2, width // 2 + 1 :] = 0
        seen = before <= after if includes_own else before < after
        mask[:, :, height // 2, width // 2] = seen.to(mask.dtype)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features, `(n, num_outputs, height, width)`."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)
