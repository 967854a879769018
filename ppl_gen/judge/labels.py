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
import torch
from numpy.typing import NDArray

from ppl_gen.core.log_density import enumeration_dim, log_joint
from ppl_gen.core.pair import model_of
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.posterior import Posterior
from ppl_gen.core.replay import Replay
from ppl_gen.core.scope import isolated, unchecked
from ppl_gen.core.structure import trace_sites
from ppl_gen.core.weighing import in_double
from ppl_gen.diagnostics import rhat
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
# Draws at which densities are compared, and the difference that is rounding.
_DRAWS = 3
_ROUNDING = 1e-6


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
    components = _exchangeable(posteriors, first)
    if not components:
        return dict(posteriors), None
    count, sites = components
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
    sentence = (
        f"The labels of {count} components have no meaning ({', '.join(sites)}), and chains or "
        "methods differ in them. Judged are the components' values in order of size, each element "
        "on its own: theirs is the first index."
    )
    return in_order, Gate(first, "labels", True, sentence, {"components": float(count)})


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


def _exchangeable(
    posteriors: Mapping[str, Posterior], first: str
) -> tuple[int, tuple[str, ...]] | None:
    """Return the number of exchangeable components and their sites, where labels matter."""
    posterior = posteriors[first]
    sizes: dict[int, list[str]] = {}
    for site in posterior.draws:
        shape = posterior.draws[site].shape[2:]
        if len(shape) and 2 <= shape[0] <= _MOST_COMPONENTS:
            sizes.setdefault(int(shape[0]), []).append(site)
    for count, sites in sizes.items():
        in_all = [s for s in sites if all(s in p.draws for p in posteriors.values())]
        if not in_all or not _differ(posteriors, in_all):
            continue
        known = _same_density(posterior, count)
        if known or (known is None and _settled_by_order(posteriors, in_all)):
            return count, tuple(in_all)
    return None


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


def _settled_by_order(posteriors: Mapping[str, Posterior], sites: list[str]) -> bool:
    """Return whether chains that do not agree do so once their components are in order.

    Without model and data it is the only sign: each chain has kept to an order of its own.
    """
    chains = [p for p in posteriors.values() if p.is_mcmc and p.num_chains > 1]
    apart = False
    for posterior in chains:
        for site in sites:
            values = array_of(posterior.draws[site]).astype(np.float64)
            if np.nanmax(_rhat(values), initial=0.0) > _APART_RHAT:
                apart = True
            if np.nanmax(_rhat(np.sort(values, axis=2)), initial=0.0) > _FINE_RHAT:
                return False
    return apart


def _same_density(posterior: Posterior, count: int) -> bool | None:
    """Return whether the model's density is the same for components in another order.

    Args:
        posterior: With pair and data; without them nothing is known.
        count: Number of components: of each latent site whose first axis has that many.
    """
    if posterior.pair is None or posterior.data is None or posterior.local_plate is not None:
        return None
    posterior = in_double(posterior)  # sums over rows in single precision depend on their order
    try:
        with isolated(0, posterior._dtype), torch.no_grad(), unchecked():
            pair, data = posterior._prepared(None)
            sites = trace_sites(pair, data)
            latents = posterior._latents_for(sites)
            below = enumeration_dim(sites)

            def density(values: Mapping[str, torch.Tensor]) -> float:
                with AnswerParams(pair):
                    return float(log_joint(model_of(pair), data, Replay(values), below))

            flat = {n: posterior.draws[n].flatten(0, 1).to(posterior._dtype) for n in latents}
            moved = {n for n in latents if flat[n].ndim > 1 and flat[n].shape[1] == count}
            total = len(next(iter(flat.values())))
            for index in np.linspace(0, total - 1, _DRAWS).astype(int):
                values = {n: v[index] for n, v in flat.items()}
                before = density(values)
                for order in _orders(count):
                    swapped = {n: v[order] if n in moved else v for n, v in values.items()}
                    if not abs(density(swapped) - before) <= _ROUNDING * max(1.0, abs(before)):
                        return False
            return bool(moved)
    except (ValueError, RuntimeError):
        return None


def _orders(count: int) -> list[list[int]]:
    """Return two permutations that together make all others: a cycle and an exchange."""
    return [[*range(1, count), 0], [1, 0, *range(2, count)]]
