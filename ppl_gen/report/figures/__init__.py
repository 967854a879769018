"""Every kind of picture of a comparison, by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ppl_gen.report.figures import (
    ecdf,
    energy,
    forest,
    loo_pit,
    marginals,
    pairs,
    predictive,
    ranks,
    traces,
    weights,
)
from ppl_gen.report.figures.panel import Legend, Panel, draw_grid
from ppl_gen.report.view import View

__all__ = ["KINDS", "Kind", "Panel", "draw_grid"]

# Given parameters, or None for those that the kind itself finds worst.
Panels: TypeAlias = Callable[[View, Any], list[Panel]]


@dataclass(frozen=True)
class Kind:
    """A kind of picture.

    Args:
        heading: What the pictures show.
        reading: How they are read.
        panels: Returns the pictures, given what was found and the parameters.
        needs: What has to be there for any picture.
        of_parameters: Whether there is a picture, or a part of one, for each parameter.
        legend: What a legend shows of each method, where a picture holds several.
    """

    heading: str
    reading: str
    panels: Panels
    needs: str = "a parameter"
    of_parameters: bool = False
    legend: Legend = ""


# In the order of the page.
KINDS = {
    "forest": Kind(
        "Intervals",
        "Bars that lie on those of the reference, and are as long, are right.",
        forest.panels,
        of_parameters=True,
        legend="markers",
    ),
    "marginals": Kind(
        "Marginal distributions",
        "Each curve is what one method says about one parameter. The reference is filled.",
        marginals.panels,
        of_parameters=True,
        legend="areas",
    ),
    "ecdf": Kind(
        "Differences of distribution functions",
        "At each quantile of the reference: how much too many draws a method has below it. In the "
        "grey band 95 % of curves stay that differ by chance alone.",
        ecdf.panels,
        "a reference and another method",
        of_parameters=True,
        legend="lines",
    ),
    "pairs": Kind(
        "Pairs of parameters",
        "The inner outline holds half of the draws, the outer one nine tenths. The reference is "
        "filled.",
        pairs.panels,
        "two parameters",
        legend="areas",
    ),
    "weights": Kind(
        "Tails of the importance weights",
        "The flatter a curve begins, the better: one that is steep at its left end has a few draws "
        "that count for all.",
        weights.panels,
        "a method with a guide",
        legend="markers",
    ),
    "elbo": Kind(
        "Course of the optimisation",
        "The ELBO of each step, or of each stage where few values were kept. An optimisation of "
        "many steps that has ended is flat at its right end.",
        traces.panels,
        "a method that was optimised",
    ),
    "ranks": Kind(
        "Ranks of the chains",
        "Chains that agree have all ranks equally often: every line is near one.",
        ranks.panels,
        "a method with several chains",
    ),
    "energy": Kind(
        "Energies",
        "A sampler that moves well changes its energy by as much from draw to draw as it varies.",
        energy.panels,
        "a Hamiltonian sampler with energies",
    ),
    "predictive": Kind(
        "Predictive checks",
        "The share of the data below each value (or that have it): data drawn from the fitted "
        "model should look like those observed. What is seen is the model's doing, not the "
        "method's.",
        predictive.panels,
        "a model that can predict its data",
    ),
    "loo_pit": Kind(
        "LOO-PIT",
        "Where each observation lies in what the others predict for it, less what is expected. In "
        "the grey band 95 % of curves of a right model stay.",
        loo_pit.panels,
        "pointwise predictions of the data",
        legend="lines",
    ),
}
