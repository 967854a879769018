"""Expectation maximisation: in closed form where a pair offers it, by gradient where not."""

from ppl_gen.inference.em.method import EM
from ppl_gen.inference.em.steps import EMSteps, HasEMSteps

__all__ = ["EM", "EMSteps", "HasEMSteps"]
