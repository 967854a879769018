"""Normal guides optimised on fixed noise: the bound becomes an ordinary function, without steps.

With its noise held fixed the evidence lower bound is a deterministic function of the guide's
parameters, and second-order methods find its maximum to rounding, with no step size to choose. The
noise is quasi-random, antithetic, and made to have exactly the first two moments of the standard
normal, so that on a normal posterior any amount of it gives the exact answer. What is left is its
Monte Carlo error, which fresh noise shows: while that is too large, the amount is raised.

References:
    Black Box Variational Inference with a Deterministic Objective: Faster, More Accurate, and Even
    More Black Box. Giordano, Ingram and Broderick, 2024. arXiv:2304.05527.
    Quasi-Monte Carlo variational inference. Buchholz, Wenzel and Mandt, 2018. arXiv:1807.01604.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core.evaluation import Evaluate
from ppl_gen.inference.vi.families import Family, MeanField, Normal
from ppl_gen.inference.vi.minimise import minimise
from ppl_gen.inference.vi.noise import standard_noise

__all__ = ["Fit", "bound_of", "fit_normal", "linear_response", "standard_noise"]

Array: TypeAlias = NDArray[np.float64]

# Errors of means in standard deviations, and of standard deviations relative, that will do.
TOLERANCE = 0.03
_FIRST_SIZE = 128
_LARGEST_SIZE = 2**15
_FRESH_SETS = 4
_MOST_STEPS = 1000
# A guide so many times as wide as at the start and as 1, or as far away, has nowhere to end.
_FAR = 1e8


@dataclass
class Fit:
    """A guide that was fitted.

    Args:
        normal: The guide, over unconstrained vectors.
        elbo: The bound and its Monte Carlo standard error, from fresh noise.
        error: The largest error of a mean, in standard deviations, or of a standard deviation,
            relative, that fresh noise shows.
        converged: Whether that is small, and each optimisation came to its end.
        bounded: Whether the bound has a maximum, as far as could be seen.
        size: Number of draws that the bound was taken over.
        history: The negative bound after each stage.
        evaluations: Number of gradients of the log density.
    """

    normal: Normal
    elbo: tuple[float, float]
    error: float
    converged: bool
    bounded: bool
    size: int
    history: list[float] = field(default_factory=list)
    evaluations: int = 0


def fit_normal(
    evaluate: Evaluate,
    make_family: Callable[[int], Family],
    start: Normal,
    generator: np.random.Generator,
    *,
    parameters: Array | None = None,
    tolerance: float = TOLERANCE,
    report: Callable[[str], None] = lambda text: None,
) -> Fit:
    """Fit a normal guide by maximising the evidence lower bound on fixed noise.

    Args:
        evaluate: Values (n,) and gradients (n, dim) of unconstrained vectors (n, dim).
        make_family: Makes the family, of so many coordinates.
        start: The guide to start from; its scales are the coordinates that it works in. Diagonal
            for a family of independent coordinates.
        generator: Where the noise comes from.
        parameters: The family's, in these coordinates, to start from; None: the standard normal's.
        tolerance: Errors that will do.
        report: Told about each stage.
    """
    family = make_family(start.dim)
    guide = start
    parameters = family.standard() if parameters is None else parameters
    size = max(_FIRST_SIZE, 2 ** math.ceil(math.log2(4 * family.width)))
    history: list[float] = []
    evaluations = 0
    while True:
        near = _Near(start, guide, family)
        noise = family.noise(generator, size)
        bound = _Bound(evaluate, family, guide, noise)
        found = minimise(
            bound,
            parameters,
            tolerance=0.1 * tolerance,
            most_steps=_MOST_STEPS,
            accepted=near,
        )
        evaluations += bound.evaluations
        history.append(found.value)
        fresh = [
            _Bound(evaluate, family, guide, family.noise(generator, size))
            for _ in range(_FRESH_SETS)
        ]
        values, gradients = zip(*(one(found.point) for one in fresh), strict=True)
        evaluations += _FRESH_SETS * size
        error = float(np.abs(np.mean(gradients, axis=0)).max())
        with np.errstate(invalid="ignore"):
            spread = np.std(values, ddof=1) / math.sqrt(_FRESH_SETS)
        normal = guide.then(family.normal(found.point))
        fit = Fit(
            normal,
            (-float(np.mean(values)), float(spread)),
            error,
            bool(found.converged and error <= tolerance and np.isfinite(values).all()),
            near(found.point),
            size,
            history,
            evaluations,
        )
        report(f"{size} draws, ELBO {fit.elbo[0]:.5g}, error {error:.2g}")
        # More draws do not help where the optimiser does not arrive.
        if not found.converged or fit.converged or 4 * size > _LARGEST_SIZE:
            return fit
        size *= 4
        if family.closed:
            guide, parameters = normal, family.standard()
        else:
            parameters = found.point


class _Near:
    """Whether a guide is where it has started, but for many orders of magnitude.

    A start in the neck of a funnel may be as narrow as can be: so the unit counts as well.

    Args:
        start: The first guide of all.
        guide: The coordinates of the parameters.
        family: The family.
    """

    def __init__(self, start: Normal, guide: Normal, family: Family) -> None:
        self.guide = guide
        self.family = family
        self.far = _FAR * np.maximum(start.sd, 1.0) + np.abs(start.mean)

    def __call__(self, parameters: Array, *_: object) -> bool:
        dim = self.family.dim
        log_scales = parameters[dim : 2 * dim]
        if np.abs(parameters).max() < _FAR and log_scales.max() < math.log(_FAR):
            return True
        with np.errstate(over="ignore", invalid="ignore"):
            normal = self.guide.then(self.family.normal(parameters))
            return bool(((np.abs(normal.mean) + normal.sd) < self.far).all())


class _Bound:
    """The negative evidence lower bound on fixed noise, and its gradient.

    Args:
        evaluate: Of the log density.
        family: The family.
        guide: The coordinates that it works in.
        noise: Shape `(n, noise_dim)`.
    """

    def __init__(self, evaluate: Evaluate, family: Family, guide: Normal, noise: Array) -> None:
        self.evaluate = evaluate
        self.family = family
        self.guide = guide
        self.noise = noise
        self.evaluations = 0

    def __call__(self, parameters: Array) -> tuple[float, Array]:
        with np.errstate(over="ignore", invalid="ignore"):
            draws = self.guide.draw(self.family.draw(parameters, self.noise))
        if not np.isfinite(draws).all():
            return np.inf, np.zeros_like(parameters)
        values, slopes = self.evaluate(torch.from_numpy(draws))
        self.evaluations += len(draws)
        gradients = slopes.numpy()
        if not bool(torch.isfinite(values).all()) or not np.isfinite(gradients).all():
            return np.inf, np.zeros_like(parameters)
        entropy, of_entropy = self.family.entropy(parameters)
        if not np.isfinite(entropy):
            return np.inf, np.zeros_like(parameters)
        value = float(values.mean()) + self.guide.log_det + entropy
        inner = self.guide.pull_back(gradients)
        gradient = self.family.mean_pull_back(parameters, self.noise, inner) + of_entropy
        return -value, -gradient


def _is_definite(matrix: Array) -> bool:
    """Return whether a symmetric matrix is positive definite, and not by rounding alone."""
    values = np.linalg.eigvalsh(matrix)
    return bool(values[0] > 1e-12 * len(values) * values[-1])


def bound_of(
    evaluate: Evaluate, guide: Normal, generator: np.random.Generator, size: int = 256
) -> float:
    """Return an estimate of a guide's evidence lower bound; -inf where a draw has no density."""
    family = MeanField(guide.dim)
    noise = standard_noise(generator, size, guide.dim)
    return -_Bound(evaluate, family, guide, noise)(family.standard())[0]


def linear_response(
    evaluate: Evaluate, family: Family, guide: Normal, generator: np.random.Generator, size: int
) -> Normal:
    """Return the means of an optimal guide with covariances by linear response.

    How the optimal means move when the posterior is tilted is their covariance under the true
    posterior as far as the family can tell; for mean-field guides it mends standard deviations that
    are too small, on a normal posterior exactly.

    Args:
        evaluate: Of the log density.
        family: The guide's family.
        guide: The optimal guide.
        generator: Where the noise comes from.
        size: Number of draws.

    Raises:
        ValueError: If the guide is no optimum: the bound does not curve down there.

    References:
        Covariances, Robustness, and Variational Bayes. Giordano, Broderick and Jordan, 2018.
        arXiv:1709.02536.
    """
    bound = _Bound(evaluate, family, guide, standard_noise(generator, size, family.noise_dim))
    standard = family.standard()
    rows = []
    for index in range(len(standard)):
        step = np.zeros_like(standard)
        step[index] = 1e-4
        rows.append((bound(standard + step)[1] - bound(standard - step)[1]) / 2e-4)
    curvature = np.array(rows)
    curvature = (curvature + curvature.T) / 2
    if not np.isfinite(curvature).all() or not _is_definite(curvature):
        msg = "linear response: the bound does not curve down at the guide, which is no optimum."
        raise ValueError(msg)
    of_means = np.linalg.inv(curvature)[: guide.dim, : guide.dim]
    inner = Normal(np.zeros(guide.dim), np.linalg.cholesky(of_means))
    return guide.then(inner)
