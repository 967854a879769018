"""What the importance weights of a guide's draws say of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.diagnostics.psis import Smoothed, psis

__all__ = ["Judgement", "judge"]

Array: TypeAlias = NDArray[np.float64]

# Errors of a mean, in standard deviations, and of a standard deviation, relative, that are told.
_MEAN_ERROR = 0.3
_SD_ERROR = 0.15
# How often errors may be told of that are chance's.
_FALSE_ALARM = 0.05
# Draws that are worth so large a part of their number are near enough to the posterior's, however
# heavy the tail of their weights is: there is nearly nothing in it. Of the best normal guide of
# Student's t with 10 degrees of freedom they are worth 0.84, and its sd is 3 % too small.
_LARGE_ESS = 0.8


@dataclass(frozen=True)
class Judgement:
    """What the weights say of a guide.

    Args:
        warnings: What the user should know, in plain words.
        facts: k-hat and the effective sample size of the weighted draws, for the provenance.
    """

    warnings: tuple[str, ...]
    facts: Mapping[str, float]


def judge(values: Mapping[str, torch.Tensor], log_ratios: Array, remedy: str) -> Judgement:
    """Return what is wrong with a guide, as the importance weights of its draws tell.

    k-hat says how far the weights can be trusted. Where they can, weighted draws have the
    posterior's moments, and those of the guide are compared with them: k-hat can be low where a
    mean is a standard deviation off, for what weights would mend has not been mended.

    Args:
        values: Draws of the guide by latent site, in the model's own units, (draw, *site).
        log_ratios: The model's log joint density minus the guide's log density at each draw.
        remedy: A better guide or method, in words.
    """
    infinite = int(np.isposinf(log_ratios).sum())
    if infinite or not np.isfinite(log_ratios).any():
        warning = (
            "The guide is no approximation of the posterior, which has no finite density at any of "
            "its draws. Write the hierarchy non-centred, or take NUTS."
        )
        if infinite:
            warning = (
                f"The density of the posterior is infinite at {infinite:,} of {len(log_ratios):,} "
                "draws of the guide. Keep scales away from zero, or write the hierarchy "
                "non-centred."
            )
        return Judgement((warning,), {"pareto_k": math.inf, "importance_ess": 0.0})
    found = _not_finite(log_ratios)
    weights = psis(log_ratios)
    facts = {"pareto_k": weights.pareto_k, "importance_ess": weights.ess}
    # Within its own error of the threshold k-hat says nothing yet.
    heavy = weights.pareto_k - weights.pareto_k_error > weights.threshold
    if heavy and weights.ess < _LARGE_ESS * len(log_ratios):
        warning = (
            f"The guide misses a part of the posterior: Pareto k-hat is {weights.pareto_k:.2f} "
            f"±{weights.pareto_k_error:.2f}, above {weights.threshold:.2f}. Its means may be "
            f"right, its tails are not. Take {remedy}."
        )
        return Judgement((*found, warning), facts)
    wrong = _errors(values, weights)
    if not wrong:
        return Judgement(found, facts)
    warning = (
        f"The guide's {' and its '.join(wrong)}, as the importance weights of its draws tell. "
        f"Take {remedy}."
    )
    return Judgement((*found, warning), facts)


def _not_finite(log_ratios: Array) -> tuple[str, ...]:
    count = int((~np.isfinite(log_ratios)).sum())
    if count == 0:
        return ()
    return (
        f"The log density is not finite at {count:,} of {len(log_ratios):,} draws of the guide, so "
        "that its evidence lower bound is not either: it overflows there, or is 0.",
    )


def _errors(values: Mapping[str, torch.Tensor], weights: Smoothed) -> list[str]:
    """Return in words the largest error of a mean, and of a standard deviation, that is too large.

    Each is taken less its own standard error, and has to be one that not even the largest of so
    many would be by chance, so that a few large weights alone tell nothing.
    """
    moments = [_compare(value.double().numpy(), weights.log_weights) for value in values.values()]
    sites = [site for site, of_site in zip(values, moments, strict=True) for _ in of_site]
    places = [place for of_site in moments for place in range(len(of_site))]
    shift, of_shift, stretch, of_stretch = np.concatenate(moments).T

    def name(index: int) -> str:
        shape = values[sites[index]].shape[1:]
        place = ", ".join(str(int(i)) for i in np.unravel_index(places[index], shape))
        return f"'{sites[index]}[{place}]'" if place else f"'{sites[index]}'"

    chance = NormalDist().inv_cdf(1 - _FALSE_ALARM / (4 * len(shift)))
    beyond_chance = np.abs([shift, stretch]) > chance * np.stack([of_shift, of_stretch])
    sizes = np.where(beyond_chance, np.abs([shift, stretch]) - [of_shift, of_stretch], 0.0)
    found = []
    worst = int(np.argmax(sizes[0]))
    if sizes[0, worst] > _MEAN_ERROR:
        way = "high" if shift[worst] > 0 else "low"
        found.append(
            f"mean of {name(worst)} is {abs(shift[worst]):.1f} standard deviations too {way}"
        )
    worst = int(np.argmax(sizes[1]))
    if sizes[1, worst] > _SD_ERROR:
        way = "large" if stretch[worst] > 0 else "small"
        found.append(f"standard deviation of {name(worst)} is {abs(stretch[worst]):.0%} too {way}")
    return found


def _compare(value: Array, log_weights: Array) -> Array:
    """Return the errors of the moments of a site's draws, one row for each element.

    Columns: the error of the mean in standard deviations, its standard error, the relative error
    of the standard deviation, its standard error; 0 for an element that is constant or not finite.
    """
    drawn = value.reshape(len(value), -1)
    drawn = np.where(np.isfinite(drawn).all(axis=0), drawn, 0.0)
    varies = np.ptp(drawn, axis=0, keepdims=True).T > 0
    weights = np.exp(log_weights)
    mean = weights @ drawn
    squares = np.square(drawn - mean)
    variance = weights @ squares
    sd = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = np.stack(
            [
                (drawn.mean(axis=0) - mean) / sd,
                np.sqrt(weights**2 @ squares) / sd,
                drawn.std(axis=0) / sd - 1,
                np.sqrt(weights**2 @ np.square(squares - variance)) / (2 * variance),
            ],
            axis=1,
        )
    return np.where(varies & np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
