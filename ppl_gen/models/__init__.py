"""Model/guide pairs: a generative story each, and the networks in them."""

from __future__ import annotations

from ppl_gen.models.autoregressive_audio import AutoregressiveAudio
from ppl_gen.models.autoregressive_image import AutoregressiveImage
from ppl_gen.models.conditional_vae import ConditionalVAE
from ppl_gen.models.eight_schools import EightSchools
from ppl_gen.models.gaussian_mixture import GaussianMixture
from ppl_gen.models.last_layer import BayesianLastLayer
from ppl_gen.models.linear_regression import BayesianLinearRegression
from ppl_gen.models.logistic_regression import BayesianLogisticRegression
from ppl_gen.models.pixel_vae import PixelVAE
from ppl_gen.models.semi_supervised_vae import SemiSupervisedVAE
from ppl_gen.models.vae import VAE

__all__ = [
    "VAE",
    "AutoregressiveAudio",
    "AutoregressiveImage",
    "BayesianLastLayer",
    "BayesianLinearRegression",
    "BayesianLogisticRegression",
    "ConditionalVAE",
    "EightSchools",
    "GaussianMixture",
    "PixelVAE",
    "SemiSupervisedVAE",
]
