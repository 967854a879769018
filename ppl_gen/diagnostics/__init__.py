"""Diagnostics: pure functions on NumPy arrays, which know nothing of models or posteriors."""

from ppl_gen.diagnostics.arviz_import import import_arviz
from ppl_gen.diagnostics.classifier import classifier_two_sample
from ppl_gen.diagnostics.distances import (
    Deviation,
    MarginalErrors,
    marginal_errors,
    marginal_wasserstein,
    simultaneous_z,
)
from ppl_gen.diagnostics.divergences import Gathering, gathering
from ppl_gen.diagnostics.ecdf import ecdf_band, ecdf_p_values, uniformity
from ppl_gen.diagnostics.evidence import Evidence, bridge_evidence, importance_evidence
from ppl_gen.diagnostics.loo import LeaveOneOut, Waic, loo, loo_weights, waic
from ppl_gen.diagnostics.marginals import Marginals, marginals
from ppl_gen.diagnostics.mcmc import (
    Convergence,
    bfmi,
    convergence,
    ess_bulk,
    ess_mean,
    ess_tail,
    mcse_mean,
    rhat,
)
from ppl_gen.diagnostics.nested import nested_rhat
from ppl_gen.diagnostics.predictive import PredictiveCheck, loo_pit, predictive_checks
from ppl_gen.diagnostics.psis import Smoothed, format_pareto_k, psis, resample
from ppl_gen.diagnostics.stacking import elpd_difference, stacking_weights
from ppl_gen.diagnostics.stein import stein_discrepancy
from ppl_gen.diagnostics.two_samples import (
    Distance,
    joint_wasserstein,
    mmd,
    sliced_wasserstein,
    thin,
)

__all__ = [
    "Convergence",
    "Deviation",
    "Distance",
    "Evidence",
    "Gathering",
    "LeaveOneOut",
    "MarginalErrors",
    "Marginals",
    "PredictiveCheck",
    "Smoothed",
    "Waic",
    "bfmi",
    "bridge_evidence",
    "classifier_two_sample",
    "convergence",
    "ecdf_band",
    "ecdf_p_values",
    "elpd_difference",
    "ess_bulk",
    "ess_mean",
    "ess_tail",
    "format_pareto_k",
    "gathering",
    "import_arviz",
    "importance_evidence",
    "joint_wasserstein",
    "loo",
    "loo_pit",
    "loo_weights",
    "marginal_errors",
    "marginal_wasserstein",
    "marginals",
    "mcse_mean",
    "mmd",
    "nested_rhat",
    "predictive_checks",
    "psis",
    "resample",
    "rhat",
    "simultaneous_z",
    "sliced_wasserstein",
    "stacking_weights",
    "stein_discrepancy",
    "thin",
    "uniformity",
    "waic",
]
