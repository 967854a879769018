"""PixelCNN: masked convolutions in residual blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ppl_gen.core.errors import check_count, check_counts
from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.models.checks import vector_shape
from ppl_gen.models.networks.masked_convolution import MaskedConv2d, reading_order

__all__ = ["PixelCNN", "as_planes", "image_channels", "planes_of"]


def image_channels(image_shape: Sequence[int]) -> int:
    """Return the number of channels of an image of shape (height, width) or (channel, ...).

    Args:
        image_shape: The shape.

    Raises:
        TypeError: If it is no sequence of whole numbers.
        ValueError: If it has another number of axes, or one is below 1.
    """
    sizes = check_counts("image_shape", image_shape)
    if len(sizes) not in (2, 3):
        msg = f"image_shape: expected (height, width) or (channels, height, width), got {sizes}."
        raise ValueError(msg)
    return 1 if len(sizes) == 2 else sizes[0]


def planes_of(images: torch.Tensor) -> torch.Tensor:
    """Return images with an axis of channels, `(n, channels, height, width)`.

    Args:
        images: Images, with that axis or without.
    """
    return images.unsqueeze(1) if images.ndim == 3 else images


def as_planes(numbers: torch.Tensor, event_shape: Sequence[int], outputs: int) -> torch.Tensor:
    """Return the features of each pixel as numbers of its channels.

    Args:
        numbers: Features, channel by channel, `(n, channels * outputs, height, width)`.
        event_shape: Shape of an image.
        outputs: Numbers for each channel of a pixel.

    Returns:
        Numbers, `(n, *event_shape, outputs)`.
    """
    planes: torch.Tensor = numbers.unflatten(1, (-1, outputs)).movedim(2, -1)
    return planes.reshape(len(numbers), *event_shape, outputs)


class _Block(nn.Module):
    """A residual block: 1x1, 3x3 and 1x1, half as many features inside."""

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, size: int) -> MaskedConv2d:
            return MaskedConv2d(inputs, outputs, size, includes_own=True, channels=channels)

        self.narrow = layer(features, features // 2, 1)
        self.spread = layer(features // 2, features // 2, 3)
        self.widen = layer(features // 2, features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.spread(F.relu(self.narrow(F.relu(x))))
        widened: torch.Tensor = self.widen(F.relu(hidden))
        return x + widened


class PixelCNN(AutoregressiveNetwork):
    """Masked convolutions over an image, pixel by pixel in reading order, channels within a pixel.

    Its kernels leave a blind spot to the right above each pixel, which `GatedPixelCNN` has not.

    Args:
        image_shape: Height and width, or number of channels, height and width.
        features: Number of features of a layer, a multiple of twice the number of channels.
        layers: Number of residual blocks.
        elements: What the channels of a pixel are.
        context_size: Size of the context, a vector that is added to the first layer everywhere;
            None for none.

    Raises:
        ValueError: If the image has another number of axes, or a number does not fit.

    References:
        Pixel Recurrent Neural Networks. van den Oord, Kalchbrenner and Kavukcuoglu, 2016.
        arXiv:1601.06759.

    Example:
        >>> PixelCNN((8, 8), features=8, layers=1).numbers(torch.zeros(5, 8, 8)).shape
        torch.Size([5, 8, 8, 1])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        features: int = 64,
        layers: int = 7,
        elements: Elements = Elements(),  # noqa: B008 - it is frozen
        context_size: int | None = None,
    ) -> None:
        channels = image_channels(image_shape)
        order = reading_order(image_shape)
        super().__init__(image_shape, elements, vector_shape(context_size), order)
        check_count("features", features)
        check_count("layers", layers)
        if features % (2 * channels):
            msg = (
                f"features: expected a multiple of {2 * channels}, half of which are shared out "
                f"among {channels} channels evenly, got {features}."
            )
            raise ValueError(msg)
        self.image_shape = self.event_shape
        self.features, self.layers, self.context_size = features, layers, context_size
        self.first = MaskedConv2d(channels, features, 7, includes_own=False, channels=channels)
        self.blocks = nn.Sequential(*(_Block(features, channels) for _ in range(layers)))
        outputs = channels * elements.num_outputs
        self.hidden = MaskedConv2d(features, features, 1, includes_own=True, channels=channels)
        self.last = MaskedConv2d(features, outputs, 1, includes_own=True, channels=channels)
        self.from_context = None if context_size is None else nn.Linear(context_size, features)

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return the numbers for each element, `(n, *image_shape, number)`."""
        pixels = self.elements.features(x, self.first.weight)
        hidden = self.first(planes_of(pixels))
        if context is not None:
            assert self.from_context is not None
            hidden = hidden + self.from_context(context)[:, :, None, None]
        hidden = F.relu(self.hidden(F.relu(self.blocks(hidden))))
        return as_planes(self.last(hidden), self.event_shape, self.elements.num_outputs)
