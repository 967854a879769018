"""Fully connected encoder and decoder of images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["MLPDecoder", "MLPEncoder", "mlp"]


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Return fully connected layers with ReLU between them, none after the last.

    Args:
        sizes: Number of features of the input, of each hidden layer, and of the output.

    Returns:
        A network from `(*batch, sizes[0])` to `(*batch, sizes[-1])`.

    Example:
        >>> [tuple(p.shape) for p in mlp([4, 3, 2]).parameters()]
        [(3, 4), (3,), (2, 3), (2,)]
    """
    layers: list[nn.Module] = []
    for num_inputs, num_outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(num_inputs, num_outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class MLPEncoder(nn.Module):
    """From an image to a vector, by fully connected layers.

    Args:
        image_shape: Shape of an image, of any number of axes.
        hidden_sizes: Sizes of the hidden layers, from the image on.
        num_outputs: Size of the vector.

    Example:
        >>> MLPEncoder((8, 8), [16], 4)(torch.zeros(5, 8, 8)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self, image_shape: Sequence[int], hidden_sizes: Sequence[int], num_outputs: int
    ) -> None:
        super().__init__()
        self.num_axes = len(image_shape)
        self.layers = mlp([math.prod(image_shape), *hidden_sizes, num_outputs])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a vector for each image.

        Args:
            x: Images, `(*batch, *image_shape)`.

        Returns:
            Vectors, `(*batch, num_outputs)`.
        """
        vectors: torch.Tensor = self.layers(x.flatten(-self.num_axes))
        return vectors


class MLPDecoder(nn.Module):
    """From a vector to an image, by fully connected layers.

    Args:
        latent_size: Size of the vector.
        hidden_sizes: Sizes of the hidden layers, from the vector on.
        image_shape: Shape of an image, of any number of axes.
        num_outputs: Numbers for each pixel.

    Example:
        >>> MLPDecoder(4, [16], (8, 8))(torch.zeros(5, 4)).shape
        torch.Size([5, 8, 8])
        >>> MLPDecoder(4, [16], (8, 8), num_outputs=3)(torch.zeros(5, 4)).shape
        torch.Size([5, 8, 8, 3])
    """

    def __init__(
        self,
        latent_size: int,
        hidden_sizes: Sequence[int],
        image_shape: Sequence[int],
        num_outputs: int = 1,
    ) -> None:
        super().__init__()
        self.output_shape = (*image_shape, num_outputs) if num_outputs > 1 else (*image_shape,)
        self.layers = mlp([latent_size, *hidden_sizes, math.prod(self.output_shape)])
        self.width = max(latent_size, *hidden_sizes, math.prod(self.output_shape))
        """Largest number of values that a layer holds for one image."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return an image for each vector.

        Args:
            z: Vectors, `(*batch, latent_size)`.

        Returns:
            Unbounded numbers, `(*batch, *image_shape)`, with a last axis of `num_outputs` where
            that is more than 1.
        """
        pixels: torch.Tensor = self.layers(z).unflatten(-1, self.output_shape)
        return pixels
