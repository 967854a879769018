"""Gated PixelCNN: a stack of what is above, and one of what is to the left, without blind spot."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.models.networks.masked_convolution import MaskedConv2d, reading_order
from ppl_gen.models.networks.pixel_cnn import as_planes, image_channels

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
        is_first: Whether its input is the image.
    """

    def __init__(
        self,
        inputs: int,
        features: int,
        kernel_size: int,
        channels: int,
        context_size: int | None,
        *,
        is_first: bool,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.is_first = is_first
        reach = kernel_size // 2
        # Rows from `reach` above up to the pixel's own, which the first layer moves down by one.
        self.rows, self.reach = reach + (1 if not is_first else 0), reach
        self.vertical = nn.Conv2d(inputs, 2 * features, (max(self.rows, 1), kernel_size))
        self.horizontal = MaskedConv2d(
            inputs, 2 * features, (1, kernel_size), includes_own=not is_first, channels=channels
        )
        self.across = nn.Conv2d(2 * features, 2 * features, 1)
        self.out = MaskedConv2d(features, features, 1, includes_own=True, channels=channels)
        self.contexts = (
            None
            if context_size is None
            else nn.ModuleList(nn.Linear(context_size, 2 * features) for _ in range(2))
        )

    def forward(
        self, vertical: torch.Tensor, horizontal: torch.Tensor, context: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.vertical.kernel_size[0]
        # Of the image only the rows above are seen; of the stack its own as well.
        above = (rows, 0) if self.is_first else (rows - 1, 0)
        padded = F.pad(vertical, (self.reach, self.reach, *above))
        seen = self.vertical(padded)[:, :, : vertical.shape[2]]
        beside = self.horizontal(horizontal) + self.across(seen)
        if context is not None:
            assert self.contexts is not None
            seen = seen + self.contexts[0](context)[:, :, None, None]
            beside = beside + self.contexts[1](context)[:, :, None, None]
        out = self.out(_gate(beside, self.channels))
        if not self.is_first:
            out = out + horizontal
        return _gate(seen, self.channels), out


class GatedPixelCNN(AutoregressiveNetwork):
    """Masked convolutions in two stacks with gates, pixel by pixel in reading order.

    Args:
        image_shape: Height and width, or number of channels, height and width.
        features: Number of features of a layer, a multiple of the number of channels.
        layers: Number of layers, the first included.
        kernel_size: Width of the kernels after the first layer, odd.
        elements: What the channels of a pixel are.
        context_size: Size of the context, a vector that joins every gate; None for none.

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
    ) -> None:
        channels = image_channels(image_shape)
        context_shape = None if context_size is None else (context_size,)
        super().__init__(image_shape, elements, context_shape, reading_order(image_shape))
        if features % channels:
            msg = f"features: expected a multiple of the {channels} channels, got {features}."
            raise ValueError(msg)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}.")
        self.layers = nn.ModuleList(
            _Layer(
                features if index else channels,
                features,
                kernel_size if index else max(kernel_size, 7),
                channels,
                context_size,
                is_first=index == 0,
            )
            for index in range(layers)
        )
        outputs = channels * elements.num_outputs
        self.hidden = MaskedConv2d(features, features, 1, includes_own=True, channels=channels)
        self.last = MaskedConv2d(features, outputs, 1, includes_own=True, channels=channels)

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return the numbers for each element, `(n, *image_shape, number)`."""
        pixels = self.elements.features(x, self.last.weight)
        vertical = pixels.reshape(len(x), -1, *self.event_shape[-2:])
        horizontal = vertical
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal, context)
        hidden = F.relu(self.hidden(F.relu(horizontal)))
        return as_planes(self.last(hidden), self.event_shape, self.elements.num_outputs)
