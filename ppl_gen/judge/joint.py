r"""Whether scalars depend on each other as they do in the reference: what marginals cannot show.

For each pair of scalars, and of their absolute deviations from the mean, standardised,

.. math::
    \mathrm{sd}(u \pm v) = \sqrt{2 (1 \pm r)},

and the relative error of that is what a wrong correlation :math:`r` does to a sum or a difference.
It is read like any error of a standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.diagnostics.classifier import classifier_two_sample
from ppl_gen.diagnostics.distances import simultaneous_z
from ppl_gen.diagnostics.marginals import Marginals
from ppl_gen.diagnostics.mcmc import mcse_sd
from ppl_gen.diagnostics.two_samples import (
    Distance,
    joint_wasserstein,
    mmd,
    sliced_wasserstein,
    thin,
)
from ppl_gen.judge.errors import net_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "MOST_SCALARS",
    "Dependence",
    "Sample",
    "dependence_error",
    "distance_row",
    "distance_table",
    "joint_distances",
]

Array: TypeAlias = NDArray[np.float64]

# Scalars that are looked at jointly.
MOST_SCALARS = 200
# Pairs whose error is worked out with its own Monte Carlo error.
_CANDIDATES = 12
# Standardised draws are not taken to be farther out: a few of them would make up the correlation.
_FARTHEST = 5.0
# One plus or minus a correlation that is closer to 0 is rounding, that of float32 draws for one.
_LEAST = 1e-8
# Fewer draws that are nearly independent say nothing of a joint distribution.
_MIN_DRAWS = 10
_DISTANCES = ("wasserstein", "sliced_wasserstein", "mmd", "c2st")
# Permutations: an assignment takes milliseconds.
_FEW, _MANY = 19, 99


@dataclass(frozen=True, eq=False)
class Sample:
    """Draws of the scalars that are looked at jointly.

    Args:
        draws: (chain, draw, scalar).
        is_mcmc: Whether they are Markov chains.
        worth: How many independent draws one is worth, for draws that were chosen by weights.
    """

    draws: Array
    is_mcmc: bool
    worth: float = 1.0


@dataclass(frozen=True)
class Dependence:
    """The pair of scalars whose dependence differs most from the reference's.

    Args:
        first: Index of the one.
        second: Index of the other.
        of_sizes: Whether it is their absolute deviations, one's or both's, that depend.
        here: Their correlation.
        there: Their correlation in the reference.
        error: Relative error of the sd of their sum or difference.
        floor: What chance alone would show in any pair.
        net: The error net of its floor.
    """

    first: int
    second: int
    of_sizes: tuple[bool, bool]
    here: float
    there: float
    error: float
    floor: float
    net: float


def dependence_error(sample: Sample, reference: Sample) -> Dependence | None:
    """Return the worst error of a dependence; None where there are no two scalars that vary.

    Args:
        sample: Draws to be judged.
        reference: Those of the reference, of the same scalars.
    """
    ours, theirs = _features(sample.draws), _features(reference.draws)
    count = sample.draws.shape[2]
    varies = (ours.std(axis=(0, 1)) > 0.0) & (theirs.std(axis=(0, 1)) > 0.0)
    index = np.arange(2 * count) % count
    apart = (index[:, None] < index) & varies[:, None] & varies
    if not apart.any():
        return None
    here, there = _correlations(ours), _correlations(theirs)
    bound = simultaneous_z(2 * int(apart.sum()))
    signs, rows, columns, log_ratios = _candidates(here, there, apart)
    floors = bound * np.hypot(
        _log_sd_errors(ours[..., rows] + signs * ours[..., columns], sample),
        _log_sd_errors(theirs[..., rows] + signs * theirs[..., columns], reference),
    )
    nets = net_of(log_ratios, floors)
    best = int(np.lexsort((np.abs(log_ratios), np.abs(nets)))[-1])
    i, j = int(rows[best]), int(columns[best])
    return Dependence(
        int(index[i]),
        int(index[j]),
        (i >= count, j >= count),
        float(here[i, j]),
        float(there[i, j]),
        float(np.expm1(log_ratios[best])),
        float(np.expm1(floors[best])),
        float(np.expm1(nets[best])),
    )


def _candidates(
    here: Array, there: Array, apart: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.intp], NDArray[np.intp], Array]:
    """Return the pairs of features that differ most: signs, both indices, and log ratios of sds."""
    signs, rows, columns, log_ratios = [], [], [], []
    for sign in (1.0, -1.0):
        ours, theirs = (np.maximum(1 + sign * found, _LEAST) for found in (here, there))
        ratio = np.log(ours / theirs) / 2
        size = np.where(apart, np.abs(ratio), -1.0).ravel()
        chosen = np.argsort(-size, kind="stable")[: min(_CANDIDATES, int(apart.sum()))]
        i, j = np.unravel_index(chosen, ratio.shape)
        signs.append(np.full(len(chosen), sign))
        rows.append(i)
        columns.append(j)
        log_ratios.append(ratio[i, j])
    return (
        np.concatenate(signs),
        np.concatenate(rows),
        np.concatenate(columns),
        np.concatenate(log_ratios),
    )


def _features(draws: Array) -> Array:
    """Return standardised draws and, after them, their absolute values, (chain, draw, feature)."""
    centred = draws - draws.mean(axis=(0, 1))
    sd = centred.std(axis=(0, 1))
    low, high = np.quantile(centred, [0.05, 0.95], axis=(0, 1))
    # Of a normal the width of the central 90 %, 3.29 sds; of one with heavy tails less.
    unit = np.minimum(sd, np.where(high > low, (high - low) / 3.29, sd) * 1.5)
    scaled = np.clip(centred / np.where(unit > 0, unit, 1.0), -_FARTHEST, _FARTHEST)
    scaled[..., sd == 0.0] = 0.0
    features = np.concatenate([scaled, np.abs(scaled)], axis=2)
    features -= features.mean(axis=(0, 1))
    spread = features.std(axis=(0, 1))
    return np.asarray(features / np.where(spread > 1e-12, spread, np.inf))


def _correlations(features: Array) -> Array:
    flat = features.reshape(-1, features.shape[2])
    return np.clip(flat.T @ flat / len(flat), -1.0, 1.0)


def _log_sd_errors(contrasts: Array, sample: Sample) -> Array:
    """Return the standard errors of the log sds of contrasts (chain, draw, contrast)."""
    flat = contrasts.reshape(-1, contrasts.shape[2])
    squares = np.square(flat - flat.mean(axis=0))
    variance = squares.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        if sample.is_mcmc:
            errors = mcse_sd(contrasts) / np.sqrt(variance)
        else:
            errors = squares.std(axis=0) / variance / 2 / np.sqrt(len(flat) * sample.worth)
    # A contrast that does not vary has no error; one of too few draws may have any.
    return np.where(variance > 0, np.where(np.isnan(errors), np.inf, errors), 0.0)


def joint_distances(
    sample: Sample,
    reference: Sample,
    of_sample: Marginals,
    of_reference: Marginals,
    seed: int,
) -> Mapping[str, Distance]:
    """Return the joint distances between draws that are nearly independent, by name.

    Args:
        sample: Draws to be judged.
        reference: Those of the reference.
        of_sample: Marginals of the first.
        of_reference: Marginals of the second.
        seed: Of permutations, directions and folds.

    Returns:
        None at all where one side is worth fewer than ten independent draws.
    """
    varies = np.flatnonzero(of_reference.unit > 0.0)
    unit = of_reference.unit[varies]
    center = of_reference.quantiles[1][varies]
    samples = []
    for each, found in ((sample, of_sample), (reference, of_reference)):
        flat = each.draws.reshape(-1, each.draws.shape[2])[:, varies]
        worth = len(flat) * each.worth
        if each.is_mcmc:
            worth = min(worth, float(found.effective[varies].min(initial=np.inf)))
        if worth < _MIN_DRAWS or not len(varies):
            return {}
        samples.append((thin(flat, worth) - center) / unit)
    return {
        "wasserstein": joint_wasserstein(*samples, permutations=_FEW, seed=seed),
        "sliced_wasserstein": sliced_wasserstein(*samples, permutations=_MANY, seed=seed),
        "mmd": mmd(*samples, permutations=_MANY, seed=seed),
        "c2st": classifier_two_sample(*samples, seed=seed),
    }


def distance_row(
    joint: Mapping[str, Distance], dependence: Dependence | None, names: Sequence[str]
) -> dict[str, Any]:
    """Return one row of the table of distances.

    Args:
        joint: Distances by name.
        dependence: The worst error of a dependence.
        names: Names of the scalars.
    """
    row: dict[str, Any] = {}
    for kind in _DISTANCES:
        found = joint.get(kind)
        row[kind] = math.nan if found is None else found.value
        row[f"{kind}_floor"] = math.nan if found is None else found.floor
        row[f"{kind}_upper"] = math.nan if found is None else found.upper
        row[f"{kind}_excess"] = math.nan if found is None else found.excess
        row[f"{kind}_p_value"] = math.nan if found is None else found.p_value
    if dependence is None:
        pair, numbers = "", [math.nan] * 3
    else:
        here, there = dependence.here, dependence.there
        pair = f"{names[dependence.first]}, {names[dependence.second]}"
        numbers = [here, there, here - there]
    return row | {
        "worst_pair": pair,
        "correlation": numbers[0],
        "correlation_of_reference": numbers[1],
        "correlation_error": numbers[2],
    }


def distance_table(rows: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return the rows as a table, indexed by method; one with no rows has the same columns.

    Args:
        rows: By method.
    """
    import pandas as pd

    if rows:
        return pd.DataFrame.from_dict(rows, orient="index")
    return pd.DataFrame(columns=list(distance_row({}, None, ())))
