"""Distributions of our own: autoregressive ones around networks, and those of their elements."""

from __future__ import annotations

from ppl_gen.distributions.autoregressive import Autoregressive, AutoregressiveNetwork
from ppl_gen.distributions.discretized_logistic import (
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)
from ppl_gen.distributions.elements import Elements

__all__ = [
    "Autoregressive",
    "AutoregressiveNetwork",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Elements",
]
