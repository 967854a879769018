"""Warm-up: when the metric of a chain is estimated anew, and when chains are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from safetensors.torch import load, save

from ppl_gen.core.ranks import ranks
from ppl_gen.inference.mcmc.metric import Dense, Kind, LowRank, Metric, Rule, estimate
from ppl_gen.inference.mcmc.modes import LEAST_CHAINS, LEAST_DRAWS, Restart, restarts
from ppl_gen.inference.mcmc.state import MetricKind, State

__all__ = ["Stage", "compare", "meeting", "set_metric", "stages", "update_metric"]

# What a chain keeps that starts again from where another one is.
_OWN = {"key", "evaluations", "abandoned"}


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


def meeting(stages: list[Stage], chains: int) -> Stage | None:
    """Return the stage at which all chains wait for each other, to be compared.

    The last but one, so that chains have had the time to settle, and one that starts again has the
    time to part from the one that it starts from.

    Args:
        stages: The stages of the warm-up.
        chains: Number of chains.

    Returns:
        The stage; None where the warm-up is too short, or chains are too few.
    """
    if chains < LEAST_CHAINS or len(stages) < 2 or stages[-2].window < LEAST_DRAWS:
        return None
    return stages[-2]


def compare(state: State, chains: list[int], window: int) -> None:
    """Start the chains again that are where the posterior has no weight, from where others are.

    Warm-up may do what it likes: the draws come from transitions made afterwards. Chains of other
    ranks take part: all ranks call this together.

    Args:
        state: The chains, which all stand still after the same transition.
        chains: Those that are compared.
        window: Number of draws that they are compared by.
    """
    # All of them have made as many transitions, so that their rows are of one length.
    length = min(window, state.memory)
    rows = torch.zeros(len(chains), length, dtype=torch.float64, device="cpu")
    for row, chain in zip(rows, chains, strict=True):
        row[:] = state.window_log_probs[chain, _latest(state, chain, length)]
    logs = [_log_volume(state, c) for c in chains]
    volumes = torch.tensor(logs, dtype=torch.float64, device="cpu")
    here = ranks()
    before = here.joined(torch.tensor([len(chains)], device="cpu"))[: here.index].sum()
    places = {int(before) + i: chain for i, chain in enumerate(chains)}
    for restart in restarts(here.joined(rows).numpy(), here.joined(volumes).numpy(), state.dim):
        _start_again(state, places, restart)


def _start_again(state: State, places: Mapping[int, int], restart: Restart) -> None:
    """Start a chain again from where another one is, of this rank or of another.

    Args:
        state: The chains of this rank.
        places: Where they are in it, by their numbers among those of all ranks.
        restart: Which of all chains, and from which.
    """
    names = [f.name for f in fields(State) if isinstance(getattr(state, f.name), torch.Tensor)]
    names = [name for name in names if name not in _OWN]
    donor, chain = places.get(restart.donor), places.get(restart.chain)
    values = {} if donor is None else {n: getattr(state, n)[donor].cpu().clone() for n in names}
    parts = [load(content) for content in ranks().gather(save(values))]
    if chain is None:
        return
    for name, value in {name: value for part in parts for name, value in part.items()}.items():
        getattr(state, name)[chain] = value
    state.abandoned[chain] = restart.log_weight


def _log_volume(state: State, chain: int) -> float:
    """Return the log of the determinant of a chain's metric `A`."""
    if state.metric == MetricKind.DENSE:
        return float(state.factor[chain].diagonal().log().sum())
    volume = state.scale[chain].log().sum()
    if state.metric == MetricKind.LOW_RANK:
        volume = volume + state.stretch[chain, : int(state.rank[chain])].log().sum()
    return float(volume)


def _latest(state: State, chain: int, window: int) -> torch.Tensor:
    """Return where a chain's latest draws are in its ring, oldest first."""
    window = min(window, int(state.remembered[chain]), state.memory)
    return (int(state.remembered[chain]) - window + torch.arange(window)) % state.memory


def update_metric(state: State, chain: int, window: int, kind: Kind, rule: Rule) -> None:
    """Estimate a chain's metric from its latest draws.

    Args:
        state: The chains.
        chain: Which of them.
        window: Number of draws.
        kind: The form of the metric.
        rule: By the draws' variance or by the Fisher divergence.
    """
    rows = _latest(state, chain, window)
    draws = state.window_positions[chain][rows].cpu().numpy()
    gradients = state.window_gradients[chain][rows].cpu().numpy()
    if len(rows) > 3:
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
