"""Convolutional encoder and decoder of images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

from ppl_gen.models.networks.mlp import condition_layer, mlp, run_conditioned

__all__ = ["ConvolutionalDecoder", "ConvolutionalEncoder"]

# A kernel that is a multiple of the stride overlaps evenly: transposed, it paints no checkerboard.
_KERNEL, _STRIDE, _PADDING = 4, 2, 1


class ConvolutionalEncoder(nn.Module):
    """From an image to a vector, by convolutions that halve it and fully connected layers.

    Args:
        image_shape: Height and width, or number of channels, height and width.
        channels: Number of channels after each convolution, from the image on.
        hidden_sizes: Sizes of the fully connected hidden layers that follow.
        num_outputs: Size of the vector.
        condition_size: Size of a vector that comes with each image, and joins it after the
            convolutions; 0 for none.

    Raises:
        ValueError: If the image has another number of axes, or is too small to be halved that
            often.

    Example:
        >>> ConvolutionalEncoder((8, 8), [4, 8], [16], 4)(torch.zeros(5, 8, 8)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int],
        hidden_sizes: Sequence[int],
        num_outputs: int,
        condition_size: int = 0,
    ) -> None:
        super().__init__()
        self.num_axes = len(image_shape)
        self.input_shape, sizes = _halvings(image_shape, channels)
        layers: list[nn.Module] = []
        for num_inputs, outputs in itertools.pairwise([self.input_shape[0], *channels]):
            layers += [nn.Conv2d(num_inputs, outputs, _KERNEL, _STRIDE, _PADDING), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.layers = mlp([channels[-1] * math.prod(sizes[-1]), *hidden_sizes, num_outputs])
        self.condition = condition_layer(condition_size, self.layers)

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Return a vector for each image.

        Args:
            x: Images, `(*batch, *image_shape)`.
            condition: What comes with them, `(*batch, condition_size)`; its leading axes broadcast
                with those of the images.

        Returns:
            Vectors, `(*batch, num_outputs)`.
        """
        batch = x.shape[: x.ndim - self.num_axes]
        features = self.convolutions(x.reshape(-1, *self.input_shape))
        features = features.reshape(*batch, -1)
        return run_conditioned(self.layers, features, self.condition, condition)


class ConvolutionalDecoder(nn.Module):
    """From a vector to an image, by fully connected layers and transposed convolutions.

    Its convolutions are those of `ConvolutionalEncoder` in reverse order.

    Args:
        latent_size: Size of the vector.
        hidden_sizes: Sizes of the fully connected hidden layers, from the vector on.
        channels: Number of channels before each convolution, from the vector on.
        image_shape: Height and width, or number of channels, height and width.
        num_outputs: Numbers for each pixel.
        condition_size: Size of a second vector that comes with each; 0 for none.

    Raises:
        ValueError: If the image has another number of axes, or is too small to be doubled that
            often.

    Example:
        >>> ConvolutionalDecoder(4, [16], [8, 4], (7, 9))(torch.zeros(5, 4)).shape
        torch.Size([5, 7, 9])
    """

    def __init__(
        self,
        latent_size: int,
        hidden_sizes: Sequence[int],
        channels: Sequence[int],
        image_shape: Sequence[int],
        num_outputs: int = 1,
        condition_size: int = 0,
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.num_outputs = num_outputs
        (image_channels, *_), sizes = _halvings(image_shape, channels)
        sizes = sizes[::-1]
        self.feature_shape = (channels[0], *sizes[0])
        self.layers = nn.Sequential(
            *mlp([latent_size, *hidden_sizes, math.prod(self.feature_shape)]), nn.ReLU()
        )
        self.condition = condition_layer(condition_size, self.layers)
        steps: list[nn.Module] = []
        counts = [*channels, image_channels * num_outputs]
        for i, (num_inputs, outputs) in enumerate(itertools.pairwise(counts)):
            odd = (sizes[i + 1][0] % 2, sizes[i + 1][1] % 2)
            steps += [
                nn.ConvTranspose2d(num_inputs, outputs, _KERNEL, _STRIDE, _PADDING, odd),
                nn.ReLU(),
            ]
        self.convolutions = nn.Sequential(*steps[:-1])
        widths = [count * math.prod(size) for count, size in zip(counts, sizes, strict=True)]
        self.width = max(latent_size, *hidden_sizes, *widths)
        """Largest number of values that a layer holds for one image."""

    def forward(self, z: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Return an image for each vector.

        Args:
            z: Vectors, `(*batch, latent_size)`.
            condition: What comes with them, `(*batch, condition_size)`; the leading axes broadcast.

        Returns:
            Unbounded numbers, `(*batch, *image_shape)`, with a last axis of `num_outputs` where
            that is more than 1.
        """
        vectors = run_conditioned(self.layers, z, self.condition, condition)
        pixels: torch.Tensor = self.convolutions(vectors.reshape(-1, *self.feature_shape))
        batch = vectors.shape[:-1]
        if self.num_outputs == 1:
            return pixels.reshape(*batch, *self.image_shape)
        pixels = pixels.unflatten(1, (-1, self.num_outputs)).movedim(2, -1)
        return pixels.reshape(*batch, *self.image_shape, self.num_outputs)


def _halvings(
    image_shape: Sequence[int], channels: Sequence[int]
) -> tuple[tuple[int, int, int], list[tuple[int, int]]]:
    """Return the image's shape with channels, and height and width after 0, 1, ... halvings."""
    if len(image_shape) not in (2, 3):
        msg = (
            "image_shape: expected (height, width) or (channels, height, width) for convolutions, "
            f"got {tuple(image_shape)}. Give one of these, or take network='mlp'."
        )
        raise ValueError(msg)
    image_channels, height, width = (1, *image_shape)[-3:]
    sizes = [(height >> i, width >> i) for i in range(len(channels) + 1)]
    if min(sizes[-1]) < 1:
        least = 2 ** len(channels)
        msg = (
            f"image_shape: expected at least {least} x {least} pixels for {len(channels)} "
            f"convolutions that halve the image, got {height} x {width}. Give fewer channels, or "
            "take network='mlp'."
        )
        raise ValueError(msg)
    return (image_channels, height, width), sizes
