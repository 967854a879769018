"""Probabilistic programming on Pyro: write a model once, fit it by SVI or MCMC, and compare."""

from ppl_gen.core import Batches, Pair, Posterior, check, fit, load
from ppl_gen.report import Comparison, compare

__all__ = ["Batches", "Comparison", "Pair", "Posterior", "check", "compare", "fit", "load"]
