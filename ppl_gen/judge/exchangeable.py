"""Which components of a model can change places: its density is the same in any order of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch

from ppl_gen.core.log_density import enumeration_dim, log_joint
from ppl_gen.core.pair import model_of
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.posterior import Posterior
from ppl_gen.core.replay import Replay
from ppl_gen.core.scope import isolated, unchecked
from ppl_gen.core.structure import StartValues, trace_sites
from ppl_gen.core.weighing import in_double

__all__ = ["same_density"]

Values: TypeAlias = Mapping[str, torch.Tensor]

# Draws at which densities are compared, and the relative difference that is rounding.
_DRAWS = 3
_ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-9}
# Sets of sites that are tried, a few runs of the model each.
_MOST_SETS = 200


def same_density(
    posterior: Posterior, sites: Sequence[str], count: int
) -> list[tuple[str, ...]] | None:
    """Return the groups of sites whose components can change places together.

    The smallest sets of latent sites for which the joint density is the same in another order of
    the first axis, with the deterministic sites that follow them. Sites of one plate change places
    together.

    Args:
        posterior: With pair and data.
        sites: Those that have so many components.
        count: The length of their first axis.

    Returns:
        The groups; None where nothing is known, without pair or data for one.
    """
    if posterior.pair is None or posterior.data is None or posterior.local_plate is not None:
        return None
    posterior = in_double(posterior)  # sums over rows in single precision depend on their order
    try:
        with isolated(0, posterior._dtype), torch.no_grad(), unchecked():
            return _groups(posterior, sites, count)
    except (ValueError, RuntimeError):
        return None


def _groups(posterior: Posterior, sites: Sequence[str], count: int) -> list[tuple[str, ...]]:
    pair, data = posterior._prepared(None)
    traced = trace_sites(pair, data)
    latents = posterior._latents_for(traced)
    below = enumeration_dim(traced)

    def density(values: Values) -> float:
        with AnswerParams(pair):
            return float(log_joint(model_of(pair), data, Replay(values), below))

    def followers(values: Values) -> Values:
        replay = Replay(values, [site for site in sites if site not in latents])
        with AnswerParams(pair), StartValues(), replay:
            model_of(pair)(**data)
        return replay.found

    flat = {n: posterior.draws[n].flatten(0, 1).to(posterior._dtype) for n in latents}
    total = len(next(iter(flat.values())))
    places = np.linspace(0, total - 1, _DRAWS).astype(int)
    points = [{name: value[index] for name, value in flat.items()} for index in places]
    found = []
    for moved in _smallest(_units(posterior, [n for n in sites if n in latents]), points, density):
        following = [] if len(moved) == len(sites) else _following(moved, points[0], followers)
        found.append((*moved, *following))
    return found


def _units(posterior: Posterior, sites: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the sites by the plate of their first axis; those of none are on their own."""
    units: dict[str, list[str]] = {}
    for site in sites:
        axes = posterior.dims.get(site, ())
        units.setdefault(axes[0] if axes and axes[0] in posterior.coords else site, []).append(site)
    return [tuple(unit) for unit in units.values()]


def _smallest(
    units: list[tuple[str, ...]], points: Sequence[Values], density: Callable[[Values], float]
) -> list[tuple[str, ...]]:
    """Return the smallest sets of units that can change places, none with any in common."""
    before = [density(values) for values in points]
    found: list[tuple[str, ...]] = []
    tried = 0
    for size in range(1, len(units) + 1):
        for chosen in itertools.combinations(units, size):
            sites = tuple(site for unit in chosen for site in unit)
            if any(set(sites) & set(group) for group in found):
                continue
            tried += 1
            if tried > _MOST_SETS:
                return found
            if _unchanged(sites, points, before, density):
                found.append(sites)
    return found


def _unchanged(
    sites: tuple[str, ...],
    points: Sequence[Values],
    before: Sequence[float],
    density: Callable[[Values], float],
) -> bool:
    for values, value in zip(points, before, strict=True):
        rounding = _ROUNDING[values[sites[0]].dtype] * max(1.0, abs(value))
        for order in _orders(len(values[sites[0]])):
            difference = density(_swapped(values, sites, order)) - value
            if not abs(difference) <= rounding:
                return False
    return True


def _swapped(values: Values, sites: Sequence[str], order: list[int]) -> dict[str, torch.Tensor]:
    return {**values, **{site: values[site][order] for site in sites}}


def _following(
    moved: Sequence[str], values: Values, followers: Callable[[Values], Values]
) -> list[str]:
    """Return the deterministic sites whose components change places with those of the latents."""
    order = _orders(len(values[moved[0]]))[0]
    before, after = followers(values), followers(_swapped(values, moved, order))
    return [
        site
        for site, value in before.items()
        if not torch.equal(value, after[site]) and torch.allclose(value[order], after[site])
    ]


def _orders(count: int) -> list[list[int]]:
    """Return two permutations that together make all others: a cycle and an exchange."""
    return [[*range(1, count), 0], [1, 0, *range(2, count)]]
