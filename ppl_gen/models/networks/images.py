"""Encoders and decoders of images by the name of their kind."""

from __future__ import annotations

from collections.abc import Sequence

from ppl_gen.core.errors import unknown
from ppl_gen.models.networks.convolutional import ConvolutionalDecoder, ConvolutionalEncoder
from ppl_gen.models.networks.mlp import MLPDecoder, MLPEncoder

__all__ = ["image_decoder", "image_encoder"]

_NETWORKS = ("mlp", "convolutional")


def image_encoder(
    network: str,
    image_shape: Sequence[int],
    channels: Sequence[int],
    hidden_sizes: Sequence[int],
    num_outputs: int,
    condition_size: int = 0,
) -> MLPEncoder | ConvolutionalEncoder:
    """Return a network from images to vectors.

    Args:
        network: "mlp" or "convolutional".
        image_shape: Shape of an image.
        channels: Number of channels after each convolution, for "convolutional".
        hidden_sizes: Sizes of the fully connected hidden layers, from the image on.
        num_outputs: Size of the vector.
        condition_size: Size of a vector that comes with each image; 0 for none.

    Raises:
        ValueError: If the name is unknown, or the image unfit for convolutions.

    Example:
        >>> import torch
        >>> image_encoder("mlp", (8, 8), (), (16,), 4)(torch.zeros(5, 8, 8)).shape
        torch.Size([5, 4])
    """
    if network not in _NETWORKS:
        raise unknown("network", network, _NETWORKS)
    if network == "mlp":
        return MLPEncoder(image_shape, hidden_sizes, num_outputs, condition_size)
    return ConvolutionalEncoder(image_shape, channels, hidden_sizes, num_outputs, condition_size)


def image_decoder(
    network: str,
    latent_size: int,
    hidden_sizes: Sequence[int],
    channels: Sequence[int],
    image_shape: Sequence[int],
    num_outputs: int = 1,
    condition_size: int = 0,
) -> MLPDecoder | ConvolutionalDecoder:
    """Return a network from vectors to images, with the layers of `image_encoder` in reverse.

    Args:
        network: "mlp" or "convolutional".
        latent_size: Size of the vector.
        hidden_sizes: Sizes of the fully connected hidden layers, from the image on.
        channels: Number of channels of each convolution, from the image on.
        image_shape: Shape of an image.
        num_outputs: Numbers for each pixel.
        condition_size: Size of a second vector that comes with each; 0 for none.

    Raises:
        ValueError: If the name is unknown, or the image unfit for convolutions.

    Example:
        >>> import torch
        >>> image_decoder("mlp", 4, (16,), (), (8, 8))(torch.zeros(5, 4)).shape
        torch.Size([5, 8, 8])
    """
    if network not in _NETWORKS:
        raise unknown("network", network, _NETWORKS)
    layers = hidden_sizes[::-1]
    if network == "mlp":
        return MLPDecoder(latent_size, layers, image_shape, num_outputs, condition_size)
    return ConvolutionalDecoder(
        latent_size, layers, channels[::-1], image_shape, num_outputs, condition_size
    )
