"""Judging posteriors: what numbers say about which of them can be trusted."""

from ppl_gen.judge.measure import Measurements, measure

__all__ = ["Measurements", "measure"]
