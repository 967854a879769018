"""Neural networks that the pairs are built from."""

from __future__ import annotations

from ppl_gen.models.networks.convolutional import ConvolutionalDecoder, ConvolutionalEncoder
from ppl_gen.models.networks.gated_pixel_cnn import GatedPixelCNN
from ppl_gen.models.networks.images import image_decoder, image_encoder
from ppl_gen.models.networks.made import FVBN, MADE, NADE, OrderAgnosticMADE
from ppl_gen.models.networks.mlp import MLPDecoder, MLPEncoder, mlp
from ppl_gen.models.networks.multi_scale import MultiScale
from ppl_gen.models.networks.pixel_cnn import PixelCNN
from ppl_gen.models.networks.pixel_cnn_plus_plus import PixelCNNPlusPlus
from ppl_gen.models.networks.pixel_rnn import DiagonalBiLSTM, RowLSTM
from ppl_gen.models.networks.wavenet import WaveNet

__all__ = [
    "FVBN",
    "MADE",
    "NADE",
    "ConvolutionalDecoder",
    "ConvolutionalEncoder",
    "DiagonalBiLSTM",
    "GatedPixelCNN",
    "MLPDecoder",
    "MLPEncoder",
    "MultiScale",
    "OrderAgnosticMADE",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "RowLSTM",
    "WaveNet",
    "image_decoder",
    "image_encoder",
    "mlp",
]
