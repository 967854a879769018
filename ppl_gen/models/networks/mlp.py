"""Fully connected encoder and decoder of images, which may be told what the image is of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["MLPDecoder", "MLPEncoder", "condition_layer", "mlp", "run_conditioned"]


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


def condition_layer(condition_size: int, layers: nn.Sequential) -> nn.Linear | None:
    """Return what a condition adds to the first of some layers, None where there is no condition.

    Args:
        condition_size: Size of the condition's vector, 0 for none.
        layers: Layers that begin with a linear one.
    """
    if condition_size == 0:
        return None
    first = layers[0]
    assert isinstance(first, nn.Linear)
    return nn.Linear(condition_size, first.out_features, bias=False)


def run_conditioned(
    layers: nn.Sequential,
    x: torch.Tensor,
    beside: nn.Linear | None,
    condition: torch.Tensor | None,
) -> torch.Tensor:
    """Return the output of layers of which the first sees a vector and its condition.

    The same as layers of both, concatenated; but where the leading axes of the two broadcast, as
    of every class against every image, the first product is made for each of them once.

    Args:
        layers: Layers that begin with a linear one.
        x: Vectors, `(*batch, size)`.
        beside: What the condition adds to the first layer, as `condition_layer` makes it.
        condition: Conditions, `(*batch, condition_size)`, None where there is no such layer.

    Returns:
        Vectors, `(*batch, outputs)`.
    """
    if beside is None:
        outputs: torch.Tensor = layers(x)
        return outputs
    assert condition is not None
    outputs = layers[0](x) + beside(condition)
    for layer in layers[1:]:
        outputs = layer(outputs)
    return outputs


class MLPEncoder(nn.Module):
    """From an image to a vector, by fully connected layers.

    Args:
        image_shape: Shape of an image, of any number of axes.
        hidden_sizes: Sizes of the hidden layers, from the image on.
        num_outputs: Size of the vector.
        condition_size: Size of a vector that comes with each image; 0 for none.

    Example:
        >>> MLPEncoder((8, 8), [16], 4)(torch.zeros(5, 8, 8)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        hidden_sizes: Sequence[int],
        num_outputs: int,
        condition_size: int = 0,
    ) -> None:
        super().__init__()
        self.num_axes = len(image_shape)
        self.layers = mlp([math.prod(image_shape), *hidden_sizes, num_outputs])
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
        return run_conditioned(self.layers, x.flatten(-self.num_axes), self.condition, condition)


class MLPDecoder(nn.Module):
    """From a vector to an image, by fully connected layers.

    Args:
        latent_size: Size of the vector.
        hidden_sizes: Sizes of the hidden layers, from the vector on.
        image_shape: Shape of an image, of any number of axes.
        num_outputs: Numbers for each pixel.
        condition_size: Size of a second vector that comes with each; 0 for none.

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
        condition_size: int = 0,
    ) -> None:
        super().__init__()
        self.output_shape = (*image_shape, num_outputs) if num_outputs > 1 else (*image_shape,)
        self.layers = mlp([latent_size, *hidden_sizes, math.prod(self.output_shape)])
        self.condition = condition_layer(condition_size, self.layers)
        self.width = max(latent_size, *hidden_sizes, math.prod(self.output_shape))
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
        numbers = run_conditioned(self.layers, z, self.condition, condition)
        pixels: torch.Tensor = numbers.unflatten(-1, self.output_shape)
        return pixels
