"""What is wrong with a run of chains, in plain words, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core.summary import scalar_names
from ppl_gen.diagnostics import bfmi, convergence, ess_bulk
from ppl_gen.diagnostics.divergences import CLEAR_RANK, centred_ranks

__all__ = ["advice"]

Array = NDArray[np.float64]

# Vehtari et al. (2021), arXiv:1903.08008, sections 4 and 4.3: R-hat below 1.01, at least four
# chains, and a rank-normalised ESS of 400, 50 for each half of four chains.
MAX_RHAT = 1.01
MIN_ESS = 400
MIN_ESS_PER_CHAIN = 100
MIN_CHAINS = 4
MIN_DRAWS = 4
# Betancourt (2016), arXiv:1604.00695: below it heavy tails are explored too slowly.
MIN_BFMI = 0.3
# Trajectories cut off now and then cost little.
MAX_SHARE_AT_MAX_DEPTH = 0.05
# Chains so far apart say nothing about the number of draws that would do.
APART_RHAT = 1.1
# A random walk on an infinite line has an ESS of 1.3 to 16, whatever its length, and the median of
# four of them, in 1000 simulations, of 1.3 to 10. Fewer draws show nothing.
DRIFTING_ESS = 10
DRIFTING_DRAWS = 100
# No scale of a parameter in use is as large, in whatever unit.
ASTRONOMICAL = 1e10
# Divergences are at small or large values of a scalar where their mean rank is far from a half, and
# by chance is so for any scalar with at most this probability.
CLEAR_BY_CHANCE = 0.01
# More draws than this, of all scalars, would take longer to look at than to make: two seconds.
_MAX_VALUES = 2**24


def advice(
    draws: Mapping[str, torch.Tensor],
    sample_stats: Mapping[str, torch.Tensor],
    *,
    divergences: Mapping[str, torch.Tensor] | None = None,
    target_accept: float = 0.8,
    max_tree_depth: int | None = None,
    improper: Collection[str] = (),
    abandoned: Sequence[float] = (),
) -> tuple[str, ...]:
    """Say what is wrong with the draws of Markov chains and what to do, the worst first.

    Of a posterior with very many scalars some of each site are looked at, evenly spread.

    Args:
        draws: Draws of the latent sites by name, (chain, draw, *site).
        sample_stats: Statistics by name, (chain, draw); of "diverging", "energy" and "tree_depth",
            those that the method has.
        divergences: Where trajectories diverged, by site, (divergence, *site). None: at the draws
            that were made of those trajectories.
        target_accept: Mean acceptance that the step size was tuned to.
        max_tree_depth: The option of `NUTS`; None for other methods.
        improper: Names of the sites whose prior is improper.
        abandoned: By chain, the log of the most that the region weighs that it was taken out of
            in its warm-up, relative to that of others; 0 where it was not.

    Returns:
        One or two sentences for each kind of trouble; none where there is none.

    Example:
        >>> advice({"x": torch.randn(1, 1000, dtype=torch.float64)}, {})
        ('Only 1 chain was run, so nothing tells whether it has found the whole posterior. ...',)
    """
    if not draws:
        return ()
    scalars = _chosen(draws)
    drifting = _drifting(scalars, improper)
    found = [
        drifting or _stuck(scalars),
        _diverging(scalars, sample_stats.get("diverging"), divergences, target_accept),
        _disagreeing(scalars),
        # What follows from a drift needs no words of its own.
        None if drifting else _too_few(scalars),
        None if drifting else _cut_off(sample_stats.get("tree_depth"), max_tree_depth),
        _slow_energy(sample_stats.get("energy")),
        _left_out(np.array(abandoned)),
        _few_chains(scalars.values.shape[0]),
    ]
    return tuple(text for text in found if text)


@dataclass(frozen=True)
class _Scalars:
    """The scalars that are looked at.

    Args:
        names: By site and index.
        sites: The site of each.
        indices: The flat index of each in its site.
        values: Their draws, (chain, draw, scalar).
        rhat: Of each; NaN where it has none.
        bulk: The bulk ESS of each; NaN where it has none.
        tail: The tail ESS of each; NaN where it has none.
    """

    names: list[str]
    sites: list[str]
    indices: list[int]
    values: Array
    rhat: Array
    bulk: Array
    tail: Array

    def count(self, some: NDArray[np.bool_]) -> str:
        """Return how many of the scalars some of them are."""
        if len(self.names) == 1:
            return "the only scalar"
        return f"{int(some.sum())} of {len(self.names)} scalars"


def _chosen(draws: Mapping[str, torch.Tensor]) -> _Scalars:
    names: list[str] = []
    sites: list[str] = []
    indices: list[int] = []
    columns: list[Array] = []
    per_site = _MAX_VALUES // len(draws)
    for site, value in draws.items():
        chains, length = value.shape[:2]
        flat = value.detach().cpu().reshape(chains, length, -1)
        step = math.ceil(flat.numel() / max(per_site, chains * length))
        columns.append(flat[:, :, :: max(step, 1)].double().numpy())
        indices += range(0, flat.shape[2], max(step, 1))
        names += scalar_names(site, tuple(value.shape[2:]))[:: max(step, 1)]
        sites += [site] * columns[-1].shape[2]
    values = np.concatenate(columns, axis=2)
    found = convergence(values)
    return _Scalars(names, sites, indices, values, found.rhat, found.ess_bulk, found.ess_tail)


def _stuck(scalars: _Scalars) -> str | None:
    """Say which chains never moved: not in any scalar that is no constant of the model."""
    low, high = scalars.values.min(axis=1), scalars.values.max(axis=1)
    varies = low.min(axis=0) < high.max(axis=0)
    if scalars.values.shape[1] < 2 or not varies.any():
        return None
    stuck = np.flatnonzero((low == high)[:, varies].all(axis=1))
    if not len(stuck):
        return None
    return (
        f"{_list('Chain', stuck + 1)} never moved. Run again with a larger target_accept, which "
        'makes steps smaller, or from other points, with another seed or init="map".'
    )


def _drifting(scalars: _Scalars, improper: Collection[str]) -> str | None:
    """Say which scalar wanders off, as one without a proper posterior does."""
    values = scalars.values
    chains, length = values.shape[:2]
    if length < DRIFTING_DRAWS:
        return None
    infinite = np.isinf(values).any(axis=(0, 1))
    drifts = scalars.bulk < DRIFTING_ESS * chains
    # Chains in different modes have a small ESS together, but not each.
    columns = values[:, :, drifts].swapaxes(0, 1).reshape(1, length, -1)
    of_each_chain = ess_bulk(columns).reshape(chains, -1)
    # Steps too small for so large a number leave a chain where it is.
    drifts[drifts] = np.median(np.nan_to_num(of_each_chain), axis=0) < DRIFTING_ESS
    drifts |= infinite
    flat_prior = np.array([site in improper for site in scalars.sites])
    with np.errstate(over="ignore", invalid="ignore"):
        far = infinite | (values.std(axis=(0, 1)) > ASTRONOMICAL)
    for where in (drifts & flat_prior, drifts & far):
        if where.any():
            worst = int(np.argmax(where))
            site = scalars.sites[worst]
            low, high = np.nanmin(values[:, :, worst]), np.nanmax(values[:, :, worst])
            known = f", as the prior of '{site}' is" if site in improper else ""
            return (
                f"'{scalars.names[worst]}' wanders off, from {low:.2g} to {high:.2g} so far: the "
                f"posterior may be improper{known}. Give '{site}' a proper prior."
            )
    return None


def _diverging(
    scalars: _Scalars,
    diverging: torch.Tensor | None,
    places: Mapping[str, torch.Tensor] | None,
    target_accept: float,
) -> str | None:
    if diverging is None or not diverging.any():
        return None
    flags = diverging.cpu().numpy().astype(bool)
    raised = next((t for t in (0.9, 0.95, 0.99) if t > target_accept), None)
    smaller_steps = f"Take target_accept={raised}, or write" if raised else "Write"
    return (
        f"{int(flags.sum())} of {flags.size} draws diverged{_where(scalars, flags, places)}: the "
        "posterior bends too sharply there for the step size, and the draws may miss a part of it. "
        f"{smaller_steps} the hierarchy non-centred: z ~ Normal(0, 1), then loc + scale * z."
    )


def _where(
    scalars: _Scalars, flags: NDArray[np.bool_], places: Mapping[str, torch.Tensor] | None
) -> str:
    """Name the scalar that is clearly smaller or larger at divergences than elsewhere."""
    best, text = CLEAR_RANK, ""
    errors = NormalDist().inv_cdf(1 - CLEAR_BY_CHANCE / (2 * len(scalars.names)))
    for i, (site, index) in enumerate(zip(scalars.sites, scalars.indices, strict=True)):
        column = scalars.values[:, :, i]
        if places is None:
            there, elsewhere = column[flags], column[~flags]
        elif site in places:
            # Of these there may be more or fewer than draws that are flagged, which may be thinned.
            there = places[site].cpu().double().reshape(len(places[site]), -1)[:, index].numpy()
            elsewhere = column.ravel()
        else:
            continue
        there = there[np.isfinite(there)]
        if not len(there) or not len(elsewhere):
            continue
        shift = float(centred_ranks(there, np.sort(elsewhere)).mean())
        if abs(shift) > max(best, errors / math.sqrt(12 * len(there))):
            best = abs(shift)
            size = "small" if shift < 0 else "large"
            text = (
                f", most where '{scalars.names[i]}' is {size} (median {np.median(there):.2g}, "
                f"elsewhere {np.median(elsewhere):.2g})"
            )
    return text


def _disagreeing(scalars: _Scalars) -> str | None:
    bad = scalars.rhat > MAX_RHAT
    if not bad.any():
        return None
    worst = int(np.nanargmax(scalars.rhat))
    return (
        f"'{scalars.names[worst]}' has an R-hat of {scalars.rhat[worst]:.4g} (above {MAX_RHAT}: "
        f"{scalars.count(bad)}): the chains do not agree yet. Run a longer warm-up and more draws; "
        "if that does not help, look for several modes, or write the model in other parameters."
    )


def _too_few(scalars: _Scalars) -> str | None:
    chains, length = scalars.values.shape[:2]
    wanted = max(MIN_ESS, MIN_ESS_PER_CHAIN * chains)
    if length < MIN_DRAWS:
        more = _round_up(wanted / chains)
        return f"Too few draws for R-hat and effective sample size: posterior.extend({more})."
    sizes = np.stack([scalars.bulk, scalars.tail])
    bad = (sizes < wanted).any(axis=0)
    if not bad.any():
        return None
    part, worst = np.unravel_index(int(np.nanargmin(sizes)), sizes.shape)
    least = float(sizes[part, worst])
    start = (
        f"'{scalars.names[worst]}' has an effective sample size of {least:.0f} in its "
        f"{('bulk', 'tails')[part]} (below {wanted}: {scalars.count(bad)}). "
    )
    if (scalars.rhat > APART_RHAT).any() and chains * length >= wanted:
        return start + "See to R-hat first: more draws alone may not help."
    times = wanted / least
    more = _round_up((times - 1) * length)
    return start + f"Draw {times:.2g} times as many: posterior.extend({more})."


def _cut_off(depth: torch.Tensor | None, max_tree_depth: int | None) -> str | None:
    if depth is None or max_tree_depth is None:
        return None
    share = float((depth >= max_tree_depth).double().mean())
    if share <= MAX_SHARE_AT_MAX_DEPTH:
        return None
    return (
        f"{share:.0%} of the draws reached max_tree_depth={max_tree_depth}, which cut their "
        f"trajectories short. Take max_tree_depth={max(10, max_tree_depth + 2)}, or, where scalars "
        'are correlated, metric="dense" or "low_rank".'
    )


def _slow_energy(energy: torch.Tensor | None) -> str | None:
    if energy is None:
        return None
    values = bfmi(energy.cpu().double().numpy())
    low = np.flatnonzero(values < MIN_BFMI)
    if not len(low):
        return None
    return (
        f"E-BFMI is below {MIN_BFMI} in {_list('chain', low + 1)} (least {values[low].min():.2g}): "
        "the tails are explored slowly. Write the hierarchy non-centred, or give scales priors "
        "with lighter tails."
    )


def _left_out(log_weights: Array) -> str | None:
    """Say which chains were taken out of regions that the draws leave out."""
    if not log_weights.any():
        return None
    restarted = np.flatnonzero(log_weights)
    largest = log_weights[restarted].max()
    return (
        f"{_list('Chain', restarted + 1)}, half-way through the warm-up, {_were(restarted)} where "
        f"the posterior has no weight, at most about e{largest:.0f} times that of where others "
        "were, and started again from there: the draws leave out what was found. Fewer than 4 "
        "chains are not compared, and show it."
    )


def _were(chains: NDArray[np.intp]) -> str:
    return "was" if len(chains) == 1 else "were"


def _few_chains(chains: int) -> str | None:
    if chains >= MIN_CHAINS:
        return None
    if chains == 1:
        what = "1 chain was run, so nothing tells whether it has found the whole posterior"
    else:
        what = f"{chains} chains were run, too few to tell whether they agree"
    return f"Only {what}. Run at least {MIN_CHAINS}."


def _list(noun: str, numbers: NDArray[np.intp]) -> str:
    """Return "chain 2", "chains 1 and 3", or, of many, the first ones and how many."""
    texts = [str(number) for number in numbers]
    if len(texts) == 1:
        return f"{noun} {texts[0]}"
    if len(texts) > 5:
        texts = [*texts[:4], f"{len(texts) - 4} more"]
    return f"{noun}s {', '.join(texts[:-1])} and {texts[-1]}"


def _round_up(count: float) -> int:
    """Return a number of draws rounded up to two digits, at least 100."""
    count = max(count, 100.0)
    unit = int(10 ** (math.floor(math.log10(count)) - 1))
    return math.ceil(count / unit) * unit
