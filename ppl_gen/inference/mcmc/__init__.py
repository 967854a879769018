"""Markov chain Monte Carlo: the methods, and what they are made of."""

from ppl_gen.inference.mcmc.methods import HMC, NUTS, RandomWalk

__all__ = ["HMC", "NUTS", "RandomWalk"]
