"""Distributions of our own: autoregressive ones around networks, and those of their elements."""

from __future__ import annotations

from ppl_gen.distributions.autoregressive import Autoregressive, AutoregressiveNetwork
from ppl_gen.distributions.discretized_logistic import (
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)
from ppl_gen.distributions.elements import Elements
from ppl_gen.distributions.ensemble import OrderingEnsemble
from ppl_gen.distributions.mu_law import MuLawCategorical, mu_law_decode, mu_law_encode

__all__ = [
    "Autoregressive",
    "AutoregressiveNetwork",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Elements",
    "MuLawCategorical",
    "OrderingEnsemble",
    "mu_law_decode",
    "mu_law_encode",
]
