"""Gated PixelCNN: a stack of what is above, and one of what is to the left, without blind spot."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ppl_gen.core.errors import check_count
from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.models.networks.image_context import context_layer, image_context_shape, told
from ppl_gen.models.networks.masked_convolution import (
    MaskedConv2d,
    check_features,
    check_kernel_size,
    reading_order,
)
from ppl_gen.models.networks.pixel_cnn import as_planes, image_channels, planes_of

__all__ = ["GatedPixelCNN"]


def _gate(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Return tanh of the first half of each group's features times sigmoid of the second."""
    halves = x.unflatten(1, (groups, 2, -1))
    gated: torch.Tensor = halves[:, :, 0].tanh() * halves[:, :, 1].sigmoid()
    return gated.flatten(1, 2)


class _Layer(nn.Module):
    """A layer of both stacks.

    The vertical stack at a pixel knows all rows above it, the horizontal one what is to its left,
    and takes in the vertical one.

    Args:
        inputs: Number of input features of the vertical stack, and of the horizontal one.
        features: Number of output features.
        kernel_size: Width of the kernels, odd.
        channels: Number of channels of the image.
        context_size: Size of the context; None for none.
        context_maps: Number of its feature maps; None where it is no image.
        is_first: Whether its input is the image.
        is_last: Whether its vertical stack goes nowhere.
    """

    def __init__(
        self,
        inputs: int,
        features: int,
        kernel_size: int,
        channels: int,
        context_size: int | None,
        context_maps: int | None,
        *,
        is_first: bool,
        is_last: bool,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.is_first, self.is_last = is_first, is_last
        reach = kernel_size // 2
        # Rows from `reach` above up to the pixel's own, which the first layer moves down by one.
        self.rows, self.reach = reach + (1 if not is_first else 0), reach
        self.vertical = nn.Conv2d(inputs, 2 * features, (max(self.rows, 1), kernel_size))
        self.horizontal = MaskedConv2d(
            inputs, 2 * features, (1, kernel_size), includes_own=not is_first, channels=channels
        )
        self.across = nn.Conv2d(2 * features, 2 * features, 1)
        self.out = MaskedConv2d(features, features, 1, includes_own=True, channels=channels)
        # Of the last layer the vertical stack goes nowhere.
        stacks = ["horizontal"] if is_last else ["vertical", "horizontal"]
        self.contexts = nn.ModuleDict()
        for stack in stacks:
            layer = context_layer(context_size, context_maps, 2 * features)
            if layer is not None:
                self.contexts[stack] = layer

    def forward(
        self, vertical: torch.Tensor, horizontal: torch.Tensor, context: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.vertical.kernel_size[0]
        # Of the image only the rows above are seen; of the stack its own as well.
        above = (rows, 0) if self.is_first else (rows - 1, 0)
        padded = F.pad(vertical, (self.reach, self.reach, *above))
        seen = self.vertical(padded)[:, :, : vertical.shape[2]]
        beside = self.horizontal(horizontal) + self.across(seen)
        if "horizontal" in self.contexts:
            beside = beside + told(self.contexts["horizontal"], context)
        if "vertical" in self.contexts:
            seen = seen + told(self.contexts["vertical"], context)
        out = self.out(_gate(beside, self.channels))
        if not self.is_first:
            out = out + horizontal
        return (vertical if self.is_last else _gate(seen, self.channels)), out


class GatedPixelCNN(AutoregressiveNetwork):
    """Masked convolutions in two stacks with gates, pixel by pixel in reading order.

    Args:
        image_shape: Height and width, or number of channels, height and width.
        features: Number of features of a layer, a multiple of the number of channels.
        layers: Number of layers, the first included.
        kernel_size: Width of the kernels after the first layer, odd.
        elements: What the channels of a pixel are.
        context_size: Size of the context, a vector that joins every gate; None for none.
        context_maps: In place of it, the number of feature maps of a context with features for each
            pixel, `(context_maps, height, width)`; None for none.

    Raises:
        ValueError: If the image has another number of axes, a number does not fit, or both kinds of
            context are asked for.

    References:
        Conditional Image Generation with PixelCNN Decoders. van den Oord, Kalchbrenner, Vinyals,
        Espeholt, Graves and Kavukcuoglu, 2016. arXiv:1606.05328.

    Example:
        >>> GatedPixelCNN((8, 8), features=8, layers=2).numbers(torch.zeros(5, 8, 8)).shape
        torch.Size([5, 8, 8, 1])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        features: int = 64,
        layers: int = 7,
        kernel_size: int = 3,
        elements: Elements = Elements(),  # noqa: B008 - it is frozen
        context_size: int | None = None,
        context_maps: int | None = None,
    ) -> None:
        channels = image_channels(image_shape)
        context_shape = image_context_shape(image_shape, context_size, context_maps)
        super().__init__(image_shape, elements, context_shape, reading_order(image_shape))
        check_count("layers", layers)
        check_features(features, channels)
        check_kernel_size(kernel_size)
        self.image_shape = self.event_shape
        self.features, self.layers, self.kernel_size = features, layers, kernel_size
        self.context_size, self.context_maps = context_size, context_maps
        self.blocks = nn.ModuleList(
            _Layer(
                features if index else channels,
                features,
                kernel_size if index else max(kernel_size, 7),
                channels,
                context_size,
                context_maps,
                is_first=index == 0,
                is_last=index == layers - 1,
            )
            for index in range(layers)
        )
        outputs = channels * elements.num_outputs
        self.hidden = MaskedConv2d(features, features, 1, includes_own=True, channels=channels)
        self.last = MaskedConv2d(features, outputs, 1, includes_own=True, channels=channels)

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return the numbers for each element, `(n, *image_shape, number)`."""
        pixels = self.elements.features(x, self.last.weight)
        vertical = planes_of(pixels)
        horizontal = vertical
        for layer in self.blocks:
            vertical, horizontal = layer(vertical, horizontal, context)
        hidden = F.relu(self.hidden(F.relu(horizontal)))
        return as_planes(self.last(hidden), self.event_shape, self.elements.num_outputs)
