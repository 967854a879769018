"""Inference methods: one frozen dataclass of options each, given to `ppl_gen.fit`."""

from ppl_gen.inference.gibbs import Gibbs
from ppl_gen.inference.mcmc import HMC, NUTS, RandomWalk
from ppl_gen.inference.svi import SVI, EpochInfo

__all__ = ["HMC", "NUTS", "SVI", "EpochInfo", "Gibbs", "RandomWalk"]
