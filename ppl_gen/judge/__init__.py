"""Judging posteriors: what numbers say about which of them can be trusted."""

from ppl_gen.judge.assess import assess
from ppl_gen.judge.calibration import Calibration, simulation_based_calibration
from ppl_gen.judge.findings import (
    Assessment,
    Gate,
    Grade,
    Judgement,
    PredictiveFit,
    Reason,
    Thresholds,
    Verdict,
    WeightFindings,
)
from ppl_gen.judge.measure import Measurements, measure
from ppl_gen.judge.posterior_calibration import posterior_calibration
from ppl_gen.judge.repair import Repair, Rung, repair
from ppl_gen.judge.short_chains import ShortChains, short_chains

__all__ = [
    "Assessment",
    "Calibration",
    "Gate",
    "Grade",
    "Judgement",
    "Measurements",
    "PredictiveFit",
    "Reason",
    "Repair",
    "Rung",
    "ShortChains",
    "Thresholds",
    "Verdict",
    "WeightFindings",
    "assess",
    "measure",
    "posterior_calibration",
    "repair",
    "short_chains",
    "simulation_based_calibration",
]
