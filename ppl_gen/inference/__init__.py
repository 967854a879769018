"""Inference methods: one frozen dataclass of options each, given to `ppl_gen.fit`."""

from ppl_gen.inference.bounds import (
    ELBO,
    ImportanceWeighted,
    Linear,
    Renyi,
    ReweightedWakeSleep,
)
from ppl_gen.inference.em import EM
from ppl_gen.inference.gibbs import Gibbs
from ppl_gen.inference.imputation import Imputation, impute
from ppl_gen.inference.mcmc import HMC, NUTS, RandomWalk
from ppl_gen.inference.neutra import NeuTra
from ppl_gen.inference.non_centred import NonCentred, non_centred
from ppl_gen.inference.pathfinder import Pathfinder
from ppl_gen.inference.svi import SVI, EpochInfo

__all__ = [
    "ELBO",
    "EM",
    "HMC",
    "NUTS",
    "SVI",
    "EpochInfo",
    "Gibbs",
    "ImportanceWeighted",
    "Imputation",
    "Linear",
    "NeuTra",
    "NonCentred",
    "Pathfinder",
    "RandomWalk",
    "Renyi",
    "ReweightedWakeSleep",
    "impute",
    "non_centred",
]
