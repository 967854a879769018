"""Statistics of all scalars of a posterior in one row, whether drawn, weighted or a point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.diagnostics.marginals import QUANTILES, Marginals, marginals

__all__ = [
    "all_marginals",
    "by_chain",
    "joined",
    "part",
    "unweighted_marginals",
    "weighted_marginals",
    "worth_less",
]

Array: TypeAlias = NDArray[np.float64]

# Weighted draws that are worked on at once, in double precision: 16 MB.
_CHUNK = 2**21
# Numbers that are sorted for the quantiles of one site's weighted draws: half a second.
_SORTED = 2**21
_NAMES = tuple(field.name for field in fields(Marginals) if field.name != "probabilities")


def all_marginals(draws: Mapping[str, NDArray[Any]], *, is_mcmc: bool) -> Marginals:
    """Return the statistics of the scalars of all sites, one site after the other, (scalar,).

    Args:
        draws: Draws by site, (chain, draw, *site); a single one is a point, which has no error.
        is_mcmc: Whether they are Markov chains, or independent.
    """
    parts = []
    for values in draws.values():
        flat = values.reshape(*values.shape[:2], -1)
        point = flat.shape[0] * flat.shape[1] == 1
        parts.append(_of_point(flat[0, 0]) if point else marginals(flat, is_mcmc=is_mcmc))
    return joined(parts)


def weighted_marginals(values: NDArray[Any], log_weights: Array) -> Marginals:
    """Return the statistics of independent draws of a site with weights, (scalar,).

    Their errors are those of self-normalised importance sampling, by the delta method.

    Args:
        values: Draws, (draw, *site).
        log_weights: Logarithms of the weights, which sum to one, (draw,).

    References:
        Owen, Monte Carlo theory, methods and examples (2013), chapter 9.
    """
    weights = np.exp(log_weights)
    flat = values.reshape(len(values), -1)
    # Of many scalars not all draws are sorted.
    thinning = max(1, -(-flat.size // _SORTED))
    step = max(1, _CHUNK // len(flat))
    return joined(
        [
            _weighted(flat[:, start : start + step].astype(np.float64), weights, thinning)
            for start in range(0, flat.shape[1], step)
        ]
    )


def unweighted_marginals(values: NDArray[Any]) -> Marginals:
    """Return the statistics of the same draws without their weights, (scalar,).

    Args:
        values: Draws, (draw, *site).
    """
    flat = values.reshape(len(values), -1)
    thinning = max(1, -(-flat.size // _SORTED))
    return marginals(flat[None, ::thinning], is_mcmc=False)


def worth_less(found: Marginals, worth: float) -> Marginals:
    """Return statistics with the errors of draws that are worth less than independent ones.

    Args:
        found: The statistics, as of independent draws.
        worth: How many independent draws one is worth, at most 1.
    """
    stretch = 1 / math.sqrt(worth)
    return replace(
        found,
        mean_error=found.mean_error * stretch,
        log_sd_error=found.log_sd_error * stretch,
        quantile_errors=found.quantile_errors * stretch,
        noise=found.noise * stretch,
        effective=found.effective * worth,
    )


def part(of_all: Marginals, scalars: slice | NDArray[Any]) -> Marginals:
    """Return the statistics of some of the scalars."""
    return Marginals(**{name: getattr(of_all, name)[..., scalars] for name in _NAMES})


def by_chain(draws: Mapping[str, NDArray[Any]]) -> tuple[Array, Array]:
    """Return means and standard deviations of each chain on its own, (chain, scalar) each."""
    flat = [values.reshape(*values.shape[:2], -1) for values in draws.values()]
    return (
        np.concatenate([values.mean(axis=1, dtype=np.float64) for values in flat], axis=1),
        np.concatenate([values.std(axis=1, dtype=np.float64) for values in flat], axis=1),
    )


def joined(parts: Sequence[Marginals]) -> Marginals:
    """Return the statistics of several groups of scalars as one."""
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(each, name) for each in parts], axis=-1) for name in _NAMES
    }
    return Marginals(**columns)


def _of_point(values: NDArray[Any]) -> Marginals:
    none = np.zeros(len(values))
    known = values.astype(np.float64)
    return Marginals(
        mean=known,
        mean_error=none,
        sd=none,
        log_sd_error=none,
        quantiles=np.stack([known] * len(QUANTILES)),
        quantile_errors=np.stack([none] * len(QUANTILES)),
        unit=none,
        heavy_tailed=none > 0,
        effective=none + 1.0,
        noise=none,
    )


def _weighted(flat: Array, weights: Array, thinning: int) -> Marginals:
    """Return the statistics of draws (draw, scalar) with weights that sum to one."""
    mean = weights @ flat
    squares = np.square(flat - mean)
    variance = weights @ squares
    sd = np.sqrt(variance)
    mean_error = np.sqrt(weights**2 @ squares)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_sd_error = np.sqrt(weights**2 @ np.square(squares / variance - 1.0)) / 2
        effective = np.square(sd / mean_error)
    constant = variance == 0.0
    some = weights[::thinning]
    quantiles, errors = _weighted_quantiles(flat[::thinning], some / some.sum())
    return Marginals(
        mean=mean,
        mean_error=mean_error,
        sd=sd,
        log_sd_error=np.where(constant, 0.0, log_sd_error),
        quantiles=quantiles,
        quantile_errors=errors,
        unit=sd,
        heavy_tailed=np.zeros(len(mean), dtype=bool),
        effective=np.where(constant, 1.0, effective),
        noise=np.zeros(len(mean)),
    )


def _weighted_quantiles(flat: Array, weights: Array) -> tuple[Array, Array]:
    """Return quantiles of weighted draws and their standard errors, (quantile, scalar) each."""
    quantiles = np.empty((len(QUANTILES), flat.shape[1]))
    errors = np.empty_like(quantiles)
    total, last = np.sum(weights**2), len(flat) - 1
    for column, values in enumerate(flat.T):
        order = np.argsort(values)
        ordered, in_order = values[order], weights[order]
        below, squares = np.cumsum(in_order), np.cumsum(in_order**2)
        at = np.minimum(np.searchsorted(below, QUANTILES), last)
        quantiles[:, column] = ordered[at]
        for row, p in enumerate(QUANTILES):
            # The standard error of the share of weight below the quantile.
            share = np.sqrt((1 - 2 * p) * squares[at[row]] + p**2 * total)
            low, high = np.minimum(np.searchsorted(below, [p - share, p + share]), last)
            errors[row, column] = (ordered[high] - ordered[low]) / 2
    return quantiles, errors
