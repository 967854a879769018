"""Labels without a meaning: components of a mixture that change places from chain to chain.

Where the posterior is the same under each permutation of some components, means over all of it say
nothing. The pair's own `relabel` gives components one meaning in all draws; else what is judged are
the components' values in order of size, which no permutation changes.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.core.posterior import Posterior
from ppl_gen.core.scope import isolated
from ppl_gen.diagnostics import rhat
from ppl_gen.judge.exchangeable import same_density
from ppl_gen.judge.findings import Gate
from ppl_gen.judge.sites import array_of

__all__ = ["labelled_alike"]

Array: TypeAlias = NDArray[np.float64]

# Numbers of components that are looked for.
_MOST_COMPONENTS = 20
# Chains in different labellings are farther apart than chains that merely mix slowly.
_APART_RHAT = 1.1
_FINE_RHAT = 1.05
# Means of two methods, in standard deviations within a chain, that labels may have moved apart.
_APART_MEANS = 1.0


def labelled_alike(
    posteriors: Mapping[str, Posterior], reference: str | None
) -> tuple[dict[str, Posterior], Gate | None]:
    """Return posteriors in which components mean the same, where labels have no meaning.

    Args:
        posteriors: By name.
        reference: Name of the one whose labels the others take over.

    Returns:
        The posteriors, and what was found; None where labels are no matter.
    """
    first = reference or next(iter(posteriors))
    relabel = getattr(posteriors[first].pair, "relabel", None)
    if callable(relabel):
        return _by_pair(posteriors, first)
    groups = _exchangeable(posteriors, first)
    if not groups:
        return dict(posteriors), None
    sites = [site for group in groups for site in group]
    in_order = {
        name: dataclasses.replace(
            posterior,
            draws={
                **posterior.draws,
                **{
                    site: posterior.draws[site].sort(dim=2).values
                    for site in sites
                    if site in posterior.draws
                },
            },
        )
        for name, posterior in posteriors.items()
    }
    counts = [int(posteriors[first].draws[group[0]].shape[2]) for group in groups]
    told = " and of ".join(
        f"{count} components ({', '.join(group)})"
        for count, group in zip(counts, groups, strict=True)
    )
    sentence = (
        f"The labels of {told} have no meaning, and chains or methods differ in them. Judged are "
        "the components' values in order of size, each element on its own: theirs is the first "
        "index."
    )
    return in_order, Gate(first, "labels", True, sentence, {"components": float(counts[0])})


def _by_pair(posteriors: Mapping[str, Posterior], first: str) -> tuple[dict[str, Posterior], Gate]:
    """Relabel by the pair, each posterior as the first one."""
    order = [first, *(name for name in posteriors if name != first)]
    relabelled: dict[str, Posterior] = {}
    try:
        for name in order:
            posterior = posteriors[name]
            relabel: Any = getattr(posterior.pair, "relabel", None) or getattr(
                posteriors[first].pair, "relabel", None
            )
            likes = "like" in inspect.signature(relabel).parameters and relabelled
            with isolated(0):
                relabelled[name] = (
                    relabel(posterior, like=relabelled[first]) if likes else relabel(posterior)
                )
    except (ValueError, RuntimeError) as error:
        sentence = f"Components could not be relabelled: {error}"
        return dict(posteriors), Gate(first, "labels", False, sentence)
    sentence = "Components were given the same labels in all draws, by the pair's relabel."
    gate = Gate(first, "labels", True, sentence)
    return {name: relabelled[name] for name in posteriors}, gate


def _exchangeable(posteriors: Mapping[str, Posterior], first: str) -> list[tuple[str, ...]]:
    """Return the groups of sites whose components can change places, where labels matter.

    A site that only has as many rows by chance, such as the coefficients of two columns beside a
    mixture of two components, belongs to none.
    """
    sizes: dict[int, list[str]] = {}
    for site, draws in posteriors[first].draws.items():
        shape = draws.shape[2:]
        in_all = all(site in p.draws for p in posteriors.values())
        if in_all and len(shape) and 2 <= shape[0] <= _MOST_COMPONENTS:
            sizes.setdefault(int(shape[0]), []).append(site)
    found: list[tuple[str, ...]] = []
    for count, sites in sizes.items():
        if not _differ(posteriors, sites):
            continue
        groups = same_density(posteriors[first], sites, count)
        if groups is None:
            groups = _settled_by_order(posteriors, sites)
        found += [group for group in groups if _differ(posteriors, list(group))]
    return found


def _differ(posteriors: Mapping[str, Posterior], sites: list[str]) -> bool:
    """Return whether chains or methods are as far apart as other labels make them."""
    for site in sites:
        if len({p.draws[site].shape[2:] for p in posteriors.values()}) > 1:
            return False  # they are of different models, which measuring them will say
        draws = [array_of(p.draws[site]).astype(np.float64) for p in posteriors.values()]
        for values in draws:
            if values.shape[0] > 1 and np.nanmax(_rhat(values), initial=0.0) > _APART_RHAT:
                return True
        means = np.stack([values.mean(axis=(0, 1)) for values in draws])
        unit = np.max([values.std(axis=1).mean(axis=0) for values in draws], axis=0)
        if (np.ptp(means, axis=0) > _APART_MEANS * unit).any():
            return True
    return False


def _rhat(values: Array) -> Array:
    return rhat(values.reshape(*values.shape[:2], -1))


def _settled_by_order(
    posteriors: Mapping[str, Posterior], sites: list[str]
) -> list[tuple[str, ...]]:
    """Return the sites of chains that do not agree, where they do once components are in order.

    Without model and data it is the only sign: each chain has kept to an order of its own.
    """
    chains = [p for p in posteriors.values() if p.is_mcmc and p.num_chains > 1]
    differing, apart = [site for site in sites if _differ(posteriors, [site])], False
    for posterior in chains:
        for site in differing:
            values = array_of(posterior.draws[site]).astype(np.float64)
            if np.nanmax(_rhat(values), initial=0.0) > _APART_RHAT:
                apart = True
            if np.nanmax(_rhat(np.sort(values, axis=2)), initial=0.0) > _FINE_RHAT:
                return []
    return [tuple(differing)] if apart else []
