"""From a problem to a normal guide that no option had to be set for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core import GuideDraws, LogDensity, Problem, Result
from ppl_gen.core.evaluation import Evaluate, evaluation
from ppl_gen.core.progress import announced
from ppl_gen.diagnostics import psis
from ppl_gen.inference.guides import GaussianGuide
from ppl_gen.inference.start import find_start, refuse_constant
from ppl_gen.inference.vi.delta import DeltaGuide
from ppl_gen.inference.vi.deterministic import (
    TOLERANCE,
    Fit,
    bound_of,
    fit_normal,
    linear_response,
)
from ppl_gen.inference.vi.families import FullRank, LowRank, MeanField, Normal
from ppl_gen.inference.vi.flow import fit_flow
from ppl_gen.inference.vi.minimise import Minimum, minimise
from ppl_gen.inference.vi.mode import Mode, descent, find_mode, flat_directions, is_near
from ppl_gen.inference.vi.pathfinder import approximations, best_of, climb
from ppl_gen.inference.vi.structured import (
    Layout,
    Structured,
    StructuredGuide,
    coupled_plates,
    start_of,
)
from ppl_gen.inference.vi.vector_guide import VectorGuide
from ppl_gen.inference.vi.weights import judge

__all__ = ["NORMAL_GUIDES", "NormalGuide", "best_mode", "run"]

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
# Steps of a climb whose best point is looked for on the way, and draws that tell which it is.
_STEPS_OF_CLIMB = 200
_DRAWS_ON_CLIMB = 100
_APART = 0.1
# Draws that importance weights are taken of: k-hat is noisy. So few will do where they show that
# they are worth nearly their number, and that k-hat is far below its threshold.
_WEIGHED = 10_000
_WEIGHED_AT_FIRST = 1_000
_NEARLY_ALL = 0.9
# Coordinates up to which a flow bends a full-rank guide, and not one of independent coordinates.
_MOST_FULL_RANK = 200
# A climb to a mode that came so far, and to no end, has none.
_FAR = 1e8


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
    refuse_constant(density)
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
    vectors, log_ratios = _weighed(fitted, evaluate)
    judgement = judge(_detached(density.constrain(vectors)), log_ratios, _better(guide))
    return Result(
        draws={name: value.unsqueeze(0) for name, value in _detached(drawn.values).items()},
        sample_stats={name: value.unsqueeze(0) for name, value in drawn.stats.items()},
        data=density.data,
        guide=fitted,
        history=torch.tensor(found.history, dtype=torch.float64),
        elbo=found.elbo or drawn.elbo,
        gradient_evaluations=found.evaluations,
        dtype=dtype,
        warnings=(*found.warnings, *judgement.warnings),
        facts={"converged": found.converged, **judgement.facts},
    )


def _detached(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu() for name, value in values.items()}


@torch.no_grad()
def _sample(guide: VectorGuide, draws: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return draws (draws, dim) and their log densities (draws,)."""
    vectors = guide.rsample(draws)
    return vectors, guide.log_prob(vectors).cpu()


def _weighed(guide: VectorGuide, evaluate: Evaluate) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """Return draws (draw, dim) and their log importance ratios (draw,), as many as it takes."""

    def weigh(draws: int) -> tuple[torch.Tensor, NDArray[np.float64]]:
        vectors, log_q = _sample(guide, draws)
        return vectors, (evaluate(vectors)[0] - log_q).double().numpy()

    first, ratios = weigh(_WEIGHED_AT_FIRST)
    if np.isfinite(ratios).all():
        weights = psis(ratios)
        far_below = weights.pareto_k + 3 * weights.pareto_k_error < weights.threshold
        if far_below and weights.ess > _NEARLY_ALL * len(ratios):
            return first, ratios
    rest, ratios_of_rest = weigh(_WEIGHED - _WEIGHED_AT_FIRST)
    return torch.cat([first, rest]), np.concatenate([ratios, ratios_of_rest])


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

    guide: VectorGuide
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
        return _find_structured(density, layout, evaluate, start, generator)
    mode = best_mode(evaluate, start, generator, torch.finfo(density.dtype).eps)
    flat = flat_directions(evaluate, mode)
    found = _find_from(guide, density, evaluate, mode, start, generator, flat=bool(flat))
    if flat:
        names = _sites_of(density, np.abs(flat).max(axis=0))
        warning = (
            f"The posterior does not fall off along a direction of {names}, as far as could be "
            f"seen: it is improper, and no guide is near it. Give {names} a proper prior."
        )
        found = replace(found, converged=False, warnings=(warning,))
    return found


def _find_from(
    guide: NormalGuide,
    density: LogDensity,
    evaluate: Evaluate,
    mode: Mode,
    start: NDArray[np.float64],
    generator: np.random.Generator,
    *,
    flat: bool,
) -> _Found:
    """Find a guide from a mode; of a flat posterior no flow, which would climb without end."""
    if guide == "delta":
        fitted = DeltaGuide.of(mode.point)
        return _Found(fitted, mode.converged, mode.evaluations, warnings=_of_mode(density, mode))
    if guide == "laplace":
        normal = mode.normal()
        laplace = GaussianGuide.of(normal.mean, normal.factor)
        return _Found(laplace, mode.converged, mode.evaluations, warnings=_of_mode(density, mode))
    fit = _fit(guide, evaluate, mode, start, generator)
    if guide == "flow" and fit.bounded and not flat:
        return _bend(density, evaluate, mode, fit, generator)
    found = _Found(
        GaussianGuide.of(fit.normal.mean, fit.normal.factor),
        fit.converged,
        mode.evaluations + fit.evaluations,
        fit.elbo,
        fit.history,
        _of_fit(density, fit),
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
    density: LogDensity,
    layout: Layout,
    evaluate: Evaluate,
    start: NDArray[np.float64],
    generator: np.random.Generator,
) -> _Found:
    normal, evaluations = start_of(evaluate, layout, start, generator)
    fit = fit_normal(evaluate, lambda dim: Structured(layout), normal, generator)
    coupled = coupled_plates(evaluate, layout, fit.normal, generator)
    warnings = _of_fit(density, fit)
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


def _bend(
    density: LogDensity,
    evaluate: Evaluate,
    mode: Mode,
    normal: Fit,
    generator: np.random.Generator,
) -> _Found:
    """Fit a flow on top of a normal guide."""
    fit = fit_flow(evaluate, normal.normal, generator)
    # What a flow that has converged makes up for need not be told.
    warnings = () if fit.converged else (*_of_fit(density, normal), fit.reason)
    return _Found(
        fit.guide,
        fit.converged,
        mode.evaluations + normal.evaluations + fit.evaluations,
        fit.elbo,
        fit.history,
        warnings,
    )


def _fit(
    guide: NormalGuide,
    evaluate: Evaluate,
    mode: Mode,
    start: NDArray[np.float64],
    generator: np.random.Generator,
) -> Fit:
    dim = len(mode.point)
    wide = guide == "flow" and dim > _MOST_FULL_RANK
    independent = wide or guide in ("mean_field", "linear_response")
    # Of so few coordinates a full covariance has no more parameters.
    low_rank = guide == "low_rank" and dim > 2 * _RANK + 3
    normal = mode.diagonal() if independent or low_rank else mode.normal()
    # The mode may be in the neck of a funnel, where no guide is to start from.
    about_start = Normal(start, np.ones(dim))
    bounds = [bound_of(evaluate, one, generator) for one in (normal, about_start)]
    if bounds[1] > bounds[0]:
        family = (
            LowRank(dim, _RANK) if low_rank else MeanField(dim) if independent else FullRank(dim)
        )
        return fit_normal(evaluate, lambda _: family, about_start, generator)
    if low_rank:
        family = LowRank(dim, _RANK)
        root = mode.normal().factor / normal.factor[:, None]
        return fit_normal(
            evaluate, lambda _: family, normal, generator, parameters=family.near(root @ root.T)
        )
    return fit_normal(evaluate, MeanField if independent else FullRank, normal, generator)


def best_mode(
    evaluate: Evaluate,
    start: NDArray[np.float64],
    generator: np.random.Generator,
    rounding: float = float(np.finfo(np.float64).eps),
) -> Mode:
    """Return the mode with the best normal approximation of those found from several points.

    A posterior may have modes of no weight: far from the best ones, of a far lower density.

    Args:
        evaluate: Values (n,) and gradients (n, dim) of unconstrained vectors (n, dim).
        start: A point of finite density, shape `(dim,)`.
        generator: Draws the other points.
        rounding: Relative rounding of what the density computes in.
    """
    points = generator.uniform(-2, 2, size=(_STARTS, len(start)))
    climbed: list[Minimum] = []
    for point in points:
        value, _ = descent(evaluate, point)
        if np.isfinite(value):
            climb = partial(descent, evaluate)
            climbed.append(minimise(climb, point, tolerance=1e-3, most_steps=100, accepted=is_near))
    modes = [find_mode(evaluate, start, rounding=rounding)]
    if climbed:
        best = min(climbed, key=lambda one: one.value)
        if -best.value > modes[0].log_prob + _APART:
            modes.append(find_mode(evaluate, best.point, rounding=rounding))
    bounds = [bound_of(evaluate, mode.normal(), generator) for mode in modes]
    chosen = int(np.nanargmax([-np.inf, *bounds])) - 1
    if chosen < 0 or not modes[chosen].converged:
        passed = _on_the_way(evaluate, start, generator)
        if passed is not None and (
            chosen < 0 or bound_of(evaluate, passed.normal(), generator) > bounds[chosen]
        ):
            return passed
    return modes[max(chosen, 0)]


def _on_the_way(
    evaluate: Evaluate, start: NDArray[np.float64], generator: np.random.Generator
) -> Mode | None:
    """Return the best point on a climb, by the curvature there, of a density without a mode.

    The density of a hierarchy, for one, has no highest point: its scale may go to zero. The
    posterior is where the climb comes by.
    """
    path = climb(evaluate, start, _STEPS_OF_CLIMB)
    noise = torch.from_numpy(generator.standard_normal((_DRAWS_ON_CLIMB, len(start))))
    best = best_of(evaluate, approximations(path), noise)
    if best.normal is None:
        return None
    mean = best.normal.draw(torch.zeros(1, len(start), dtype=torch.float64))[0]
    factor = (best.normal.draw(torch.eye(len(start), dtype=torch.float64)) - mean).numpy()
    precision = np.linalg.inv(factor.T @ factor)
    point = mean.numpy()
    value, _ = descent(evaluate, point)
    return Mode(point, -value, precision, False, path.evaluations + best.evaluations)


def _sites_of(density: LogDensity, sizes: NDArray[np.float64]) -> str:
    """Return the names of the sites in whose coordinates, shape `(dim,)`, something is large."""
    sizes = np.where(np.isnan(sizes), np.inf, sizes)
    large = 0.1 * min(float(sizes.max()), np.finfo(float).max)
    blocks = density.blocks.items()
    return ", ".join(f"'{n}'" for n, b in blocks if sizes[b.start : b.stop].max() >= large)


def _of_mode(density: LogDensity, mode: Mode) -> tuple[str, ...]:
    if mode.converged:
        return ()
    if np.abs(mode.point).max() > _FAR:
        names = _sites_of(density, np.abs(mode.point))
        return (
            f"The climb to the mode went on without end in {names}: the posterior is improper, or "
            f"its density unbounded. Give {names} a proper prior.",
        )
    return (
        "The climb to the mode did not come to its end: the posterior may have none, or be "
        'flat. Take guide="mean_field" or "full_rank", which need no mode.',
    )


def _better(guide: NormalGuide) -> str:
    """Return what to take in place of a guide that is not good enough."""
    return {"flow": "NUTS", "full_rank": 'guide="flow", or NUTS'}.get(
        guide, 'guide="full_rank", or NUTS'
    )


def _of_fit(density: LogDensity, fit: Fit) -> tuple[str, ...]:
    if fit.converged:
        return ()
    if not fit.bounded:
        sizes = np.maximum(np.abs(fit.normal.mean), fit.normal.sd)
        names = _sites_of(density, sizes)
        return (
            f"The guide grew without end in {names}, and was stopped: the posterior is improper, "
            f"or its density unbounded. Give {names} a proper prior.",
        )
    return (
        f"The guide is not optimal yet: a mean is off by up to {fit.error:.2g} of a standard "
        f"deviation, or a standard deviation relative to itself, where {TOLERANCE} would do. "
        "The posterior may have heavy tails or several modes: do not trust it unseen.",
    )
