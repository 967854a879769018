"""Warm-up: when the metric of a chain is estimated anew, and from which of its draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ppl_gen.inference.mcmc.metric import Dense, Kind, LowRank, Metric, Rule, estimate
from ppl_gen.inference.mcmc.state import State

__all__ = ["Stage", "set_metric", "stages", "update_metric"]


@dataclass(frozen=True)
class Stage:
    """One estimate of the metric.

    Args:
        stop: Number of transitions made when it happens.
        window: Number of the latest draws that it is made from.
    """

    stop: int
    window: int


def stages(warmup: int) -> list[Stage]:
    """Return the stages of a warm-up: windows that grow, and a tenth at the end for the step size.

    Each estimate is made from the last two windows.

    Args:
        warmup: Number of transitions of the warm-up.

    Returns:
        The stages in order; the last lies before the end. None where the warm-up is too short.
    """
    last = warmup - max(warmup // 10, min(warmup, 20))
    found: list[Stage] = []
    start, length = 0, 10
    while start + length <= last:
        end = start + length
        following = math.ceil(1.5 * length)
        if end + following > last:  # the rest is too short for a window of its own
            end = last
        before = found[-2].stop if len(found) > 1 else 0
        found.append(Stage(end, end - before))
        start, length = end, following
    return found


def update_metric(state: State, chain: int, window: int, kind: Kind, rule: Rule) -> None:
    """Estimate a chain's metric from its latest draws.

    Args:
        state: The chains.
        chain: Which of them.
        window: Number of draws.
        kind: The form of the metric.
        rule: By the draws' variance or by the Fisher divergence.
    """
    window = min(window, int(state.remembered[chain]), state.memory)
    rows = (int(state.remembered[chain]) - window + torch.arange(window)) % state.memory
    draws = state.window_positions[chain][rows].cpu().numpy()
    gradients = state.window_gradients[chain][rows].cpu().numpy()
    if window > 3:
        rank = max(state.max_rank, 1)
        set_metric(state, chain, estimate(kind, draws, gradients, rule=rule, rank=rank))


def set_metric(state: State, chain: int, metric: Metric) -> None:
    """Give a chain a metric."""
    if isinstance(metric, Dense):
        state.factor[chain] = torch.from_numpy(np.ascontiguousarray(metric.factor))
        return
    state.scale[chain] = torch.from_numpy(metric.scale)  # type: ignore[attr-defined]
    if isinstance(metric, LowRank):
        used = int((metric.stretch != 1.0).sum())
        state.rank[chain] = used
        state.directions[chain, :used] = torch.from_numpy(metric.directions.T[:used].copy())
        state.stretch[chain, :used] = torch.from_numpy(metric.stretch[:used])
