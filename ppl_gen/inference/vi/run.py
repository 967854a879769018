"""From a problem to a normal guide that no option had to be set for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core import GuideDraws, LogDensity, Problem, Result
from ppl_gen.core.evaluation import Evaluate, evaluation
from ppl_gen.diagnostics.psis import Smoothed, psis
from ppl_gen.inference.guides import GaussianGuide
from ppl_gen.inference.progress import announced
from ppl_gen.inference.start import find_start
from ppl_gen.inference.vi.delta import DeltaGuide
from ppl_gen.inference.vi.deterministic import (
    TOLERANCE,
    Fit,
    bound_of,
    fit_normal,
    linear_response,
)
from ppl_gen.inference.vi.families import FullRank, LowRank, MeanField
from ppl_gen.inference.vi.flow import fit_flow
from ppl_gen.inference.vi.minimise import Minimum, minimise
from ppl_gen.inference.vi.mixture import VectorGuide
from ppl_gen.inference.vi.mode import Mode, descent, find_mode
from ppl_gen.inference.vi.structured import (
    Layout,
    Structured,
    StructuredGuide,
    coupled_plates,
    start_of,
)

__all__ = ["NORMAL_GUIDES", "NormalGuide", "run"]

NormalGuide: TypeAlias = Literal[
    "delta",
    "laplace",
    "mean_field",
    "linear_response",
    "low_rank",
    "structured",
    "full_rank",
    "flow",
]
NORMAL_GUIDES: tuple[NormalGuide, ...] = (
    "delta",
    "laplace",
    "mean_field",
    "linear_response",
    "low_rank",
    "structured",
    "full_rank",
    "flow",
)
_RANK = 10
# Points besides the first that a climb starts from, and by how many nats another mode has to be
# higher to be looked at.
_STARTS = 7
_APART = 0.1
# Draws that k-hat is estimated from, which is noisy.
_WEIGHED = 10_000
# Coordinates up to which a flow bends a full-rank guide, and not one of independent coordinates.
_MOST_FULL_RANK = 200


def run(guide: NormalGuide, draws: int, dtype: torch.dtype, problem: Problem) -> Result:
    """Fit a normal guide to all of the data.

    Args:
        guide: Its name.
        draws: Number of draws to return.
        dtype: What the log density computes in.
        problem: Pair, data, device and seed.
    """
    density = LogDensity(
        problem.pair,
        problem.data,
        dtype=dtype,
        device=problem.device,
        prepared=problem.prepared,
        jacobian=guide != "delta",
    )
    with announced("compiling the log density", enabled=problem.progress):
        evaluate = evaluation(density)
    generator = np.random.default_rng(int(torch.randint(2**62, ())))
    with announced(f"fitting the guide {guide}", enabled=problem.progress):
        found = _find(guide, density, evaluate, generator)
    fitted = found.guide.to(problem.device, dtype)
    vectors, log_q = _sample(fitted, 1 if guide == "delta" else draws)
    drawn = GuideDraws(density.constrain(vectors), evaluate(vectors)[0], log_q)
    if guide == "delta":
        return Result(
            draws={name: value.unsqueeze(0) for name, value in drawn.values.items()},
            sample_stats={"lp": drawn.log_prob.unsqueeze(0)},
            data=density.data,
            guide=fitted,
            gradient_evaluations=found.evaluations,
            dtype=dtype,
            warnings=found.warnings,
            facts={"converged": found.converged},
        )
    vectors, log_q = _sample(fitted, _WEIGHED)
    weights = _weigh((evaluate(vectors)[0] - log_q).double().numpy())
    return Result(
        draws={name: value.detach().unsqueeze(0) for name, value in drawn.values.items()},
        sample_stats={name: value.unsqueeze(0) for name, value in drawn.stats.items()},
        data=density.data,
        guide=fitted,
        history=torch.tensor(found.history, dtype=torch.float64),
        elbo=found.elbo or drawn.elbo,
        gradient_evaluations=found.evaluations,
        dtype=dtype,
        warnings=(*found.warnings, *_of_weights(guide, weights)),
        facts={
            "converged": found.converged,
            "pareto_k": math.inf if weights is None else weights.pareto_k,
        },
    )


@torch.no_grad()
def _sample(guide: GaussianGuide | VectorGuide, draws: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return draws (draws, dim) and their log densities (draws,)."""
    vectors = guide.rsample(draws)
    return vectors, guide.log_prob(vectors).cpu()


@dataclass(frozen=True)
class _Found:
    """A guide that was found, and what is known of it.

    Args:
        guide: The guide.
        converged: Whether it is as good as its family can be.
        evaluations: Number of gradients of the log density.
        elbo: The bound and its standard error; None: its draws are to tell.
        history: The negative bound after each stage.
        warnings: What the user should know.
    """

    guide: GaussianGuide | VectorGuide
    converged: bool
    evaluations: int
    elbo: tuple[float, float] | None = None
    history: list[float] = field(default_factory=list)
    warnings: tuple[str, ...] = ()


def _find(
    guide: NormalGuide, density: LogDensity, evaluate: Evaluate, generator: np.random.Generator
) -> _Found:
    start = find_start(density).cpu().double().numpy()
    layout = Layout.of(density)
    if guide == "structured" and layout.plates:
        return _find_structured(layout, evaluate, start, generator)
    mode = _best_mode(evaluate, start, generator)
    if guide == "delta":
        fitted = DeltaGuide.of(mode.point)
        return _Found(fitted, mode.converged, mode.evaluations, warnings=_of_mode(mode))
    if guide == "laplace":
        normal = mode.normal()
        laplace = GaussianGuide.of(normal.mean, normal.factor)
        return _Found(laplace, mode.converged, mode.evaluations, warnings=_of_mode(mode))
    if guide == "flow":
        return _find_flow(evaluate, mode, generator)
    fit = _fit(guide, evaluate, mode, generator)
    found = _Found(
        GaussianGuide.of(fit.normal.mean, fit.normal.factor),
        fit.converged,
        mode.evaluations + fit.evaluations,
        fit.elbo,
        fit.history,
        _of_fit(fit),
    )
    if guide == "linear_response":
        return _respond(found, fit, evaluate, generator)
    return found


def _respond(found: _Found, fit: Fit, evaluate: Evaluate, generator: np.random.Generator) -> _Found:
    """Mend the standard deviations of a mean-field guide, where it is an optimum."""
    family = MeanField(fit.normal.dim)
    try:
        normal = linear_response(evaluate, family, fit.normal, generator, fit.size)
    except ValueError as error:
        warning = f"{error} Its standard deviations are those of the mean-field guide."
        return replace(found, converged=False, warnings=(*found.warnings, warning))
    guide = GaussianGuide.of(normal.mean, normal.factor)
    return replace(found, guide=guide, elbo=None)


def _find_structured(
    layout: Layout,
    evaluate: Evaluate,
    start: NDArray[np.float64],
    generator: np.random.Generator,
) -> _Found:
    normal, evaluations = start_of(evaluate, layout, start, generator)
    fit = fit_normal(evaluate, lambda dim: Structured(layout), normal, generator)
    coupled = coupled_plates(evaluate, layout, fit.normal, generator)
    warnings = _of_fit(fit)
    if coupled:
        warnings += (
            f"The rows of plate {', '.join(map(repr, coupled))} depend on other rows even where "
            'the global latents are known, which guide="structured" cannot follow: its standard '
            'deviations are too small. Take guide="full_rank".',
        )
    return _Found(
        StructuredGuide.of(layout, fit.normal),
        fit.converged,
        evaluations + fit.evaluations,
        fit.elbo,
        fit.history,
        warnings,
    )


def _find_flow(evaluate: Evaluate, mode: Mode, generator: np.random.Generator) -> _Found:
    wide = len(mode.point) > _MOST_FULL_RANK
    normal = _fit("mean_field" if wide else "full_rank", evaluate, mode, generator)
    fit = fit_flow(evaluate, normal.normal, generator)
    return _Found(
        fit.guide,
        fit.converged,
        mode.evaluations + normal.evaluations + fit.evaluations,
        fit.elbo,
        fit.history,
        () if fit.converged else (fit.reason,),
    )


def _fit(
    guide: NormalGuide,
    evaluate: Evaluate,
    mode: Mode,
    generator: np.random.Generator,
) -> Fit:
    dim = len(mode.point)
    if guide in ("mean_field", "linear_response"):
        return fit_normal(evaluate, MeanField, mode.diagonal(), generator)
    # Of so few coordinates a full covariance has no more parameters.
    if guide == "low_rank" and dim > 2 * _RANK + 3:
        widths = mode.diagonal()
        family = LowRank(dim, _RANK)
        root = mode.normal().factor / widths.factor[:, None]
        return fit_normal(
            evaluate, lambda _: family, widths, generator, parameters=family.near(root @ root.T)
        )
    return fit_normal(evaluate, FullRank, mode.normal(), generator)


def _best_mode(
    evaluate: Evaluate, start: NDArray[np.float64], generator: np.random.Generator
) -> Mode:
    """Return the mode with the best normal approximation of those found from several points.

    A posterior may have modes of no weight: far from the best ones, of a far lower density.
    """
    points = generator.uniform(-2, 2, size=(_STARTS, len(start)))
    climbed: list[Minimum] = []
    for point in points:
        value, _ = descent(evaluate, point)
        if np.isfinite(value):
            climbed.append(
                minimise(partial(descent, evaluate), point, tolerance=1e-3, most_steps=100)
            )
    modes = [find_mode(evaluate, start)]
    if climbed:
        best = min(climbed, key=lambda one: one.value)
        if -best.value > modes[0].log_prob + _APART:
            modes.append(find_mode(evaluate, best.point))
    bounds = [bound_of(evaluate, mode.normal(), generator) for mode in modes]
    return modes[int(np.argmax(bounds))]


def _of_mode(mode: Mode) -> tuple[str, ...]:
    if not mode.converged:
        return (
            "The climb to the mode did not come to its end: the posterior may have none, or be "
            'flat. Take guide="mean_field" or "full_rank", which need no mode.',
        )
    return ()


def _weigh(log_ratios: NDArray[np.float64]) -> Smoothed | None:
    """Return the importance weights of draws, or None where none of them has any."""
    if np.isposinf(log_ratios).any() or not np.isfinite(log_ratios).any():
        return None
    return psis(log_ratios)


def _of_weights(guide: NormalGuide, weights: Smoothed | None) -> tuple[str, ...]:
    if weights is None:
        return (
            "The guide is no approximation of the posterior, which has no finite density at any of "
            "its draws. Write the hierarchy non-centred, or take NUTS.",
        )
    # Within its own error of the threshold it says nothing yet.
    if weights.pareto_k - weights.pareto_k_error <= weights.threshold:
        return ()
    better = "NUTS" if guide in ("full_rank", "flow") else 'guide="full_rank", or NUTS'
    return (
        f"The guide misses a part of the posterior: Pareto k-hat is {weights.pareto_k:.2f} "
        f"±{weights.pareto_k_error:.2f}, above {weights.threshold:.2f}. Its means may be right, "
        f"its tails are not. Take {better}.",
    )


def _of_fit(fit: Fit) -> tuple[str, ...]:
    if not fit.converged:
        return (
            f"The guide is not optimal yet: a mean is off by up to {fit.error:.2g} of a standard "
            f"deviation, or a standard deviation relative to itself, where {TOLERANCE} would do. "
            "The posterior may have heavy tails or several modes: do not trust it unseen.",
        )
    return ()
