"""Diagnostics: pure functions on NumPy arrays, which know nothing of models or posteriors."""

from ppl_gen.diagnostics.arviz_import import import_arviz
from ppl_gen.diagnostics.mcmc import (
    Convergence,
    bfmi,
    convergence,
    ess_bulk,
    ess_tail,
    mcse_mean,
    rhat,
)
from ppl_gen.diagnostics.psis import Smoothed, psis, resample

__all__ = [
    "Convergence",
    "Smoothed",
    "bfmi",
    "convergence",
    "ess_bulk",
    "ess_tail",
    "import_arviz",
    "mcse_mean",
    "psis",
    "resample",
    "rhat",
]
