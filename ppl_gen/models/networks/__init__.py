"""Neural networks that the pairs are built from: encoders and decoders of images."""

from __future__ import annotations

from ppl_gen.models.networks.convolutional import ConvolutionalDecoder, ConvolutionalEncoder
from ppl_gen.models.networks.images import image_decoder, image_encoder
from ppl_gen.models.networks.mlp import MLPDecoder, MLPEncoder, mlp

__all__ = [
    "ConvolutionalDecoder",
    "ConvolutionalEncoder",
    "MLPDecoder",
    "MLPEncoder",
    "image_decoder",
    "image_encoder",
    "mlp",
]
