"""Judging posteriors: what numbers say about which of them can be trusted."""

from ppl_gen.judge.calibration import Calibration, simulation_based_calibration
from ppl_gen.judge.measure import Measurements, measure

__all__ = ["Calibration", "Measurements", "measure", "simulation_based_calibration"]
