"""Normal approximations along the path of an optimiser, and the best of them.

A quasi-Newton method that climbs to a mode estimates the curvature on its way. So each point of its
path gives a normal approximation for nothing, and the one of the highest evidence lower bound is
kept: often one before the mode, which in a posterior with funnels or heavy tails is not where the
draws are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core.evaluation import Evaluate
from ppl_gen.inference.vi.low_rank import LowRankNormal
from ppl_gen.inference.vi.minimise import minimise

__all__ = [
    "Best",
    "Path",
    "approximations",
    "best_of",
    "climb",
    "goes_on",
    "memory",
    "next_diagonal",
]

Array: TypeAlias = NDArray[np.float64]
Pair: TypeAlias = tuple[Array, Array]

# Up to so many coordinates an approximation remembers as many steps as it has use for.
_DENSE_UP_TO = 100
_TOLERANCE = 1e-4
# A path ends where its last steps gained less, in nats, or less than so much of the log density,
# which rounding may hide.
_LAST_STEPS = 10
_LEAST_GAIN = 1e-4
_ROUNDING = 1e-7
_CURVATURE = 1e-12
# A density that curves less than this along a coordinate is flat there, but for rounding.
_LEAST_CURVATURE = 1e-10
# A path that came so many widths far has nowhere to end.
_FAR = 1e8
# Coordinates along which curvature is measured at once.
_COLUMNS = 512
# Numbers that are drawn at once.
_BLOCK = 2**22


@dataclass(frozen=True)
class Path:
    """Where an optimiser came along.

    Args:
        points: Its points, from the first to the last, shape `(step, dim)`.
        gradients: Gradients of the negative log density there, shape `(step, dim)`.
        widths: About how wide the density is along each coordinate, at the first point: where it
            curves down, one over the root of its curvature, else 1; shape `(dim,)`.
        evaluations: Number of gradients that it took.
    """

    points: Array
    gradients: Array
    widths: Array
    evaluations: int


@dataclass(frozen=True)
class Best:
    """The best approximation along a path.

    Args:
        normal: The approximation; None where none has a finite bound.
        elbo: Its evidence lower bound.
        evaluations: Number of log densities that it took to tell.
    """

    normal: LowRankNormal | None
    elbo: float
    evaluations: int


def climb(evaluate: Evaluate, start: Array, most_steps: int) -> Path:
    """Climb to a mode by L-BFGS, and remember the way.

    The steps are made in coordinates in units of the widths at the start, so that neither they nor
    the end depend on how the coordinates are scaled.

    Args:
        evaluate: Values (n,) and gradients (n, dim) of vectors (n, dim).
        start: A point of finite density, shape `(dim,)`.
        most_steps: Number of steps at most.
    """
    way: list[Pair] = []
    values: deque[float] = deque(maxlen=_LAST_STEPS + 1)
    widths = _widths(evaluate, start)

    def descent(standardised: Array) -> tuple[float, Array]:
        values, gradients = evaluate(torch.from_numpy((start + widths * standardised)[None]))
        value, gradient = float(values[0]), widths * gradients[0].numpy()
        if not np.isfinite(value) or not np.isfinite(gradient).all():
            return np.inf, np.zeros_like(start)
        return -value, -gradient

    def remember(standardised: Array, value: float, gradient: Array) -> bool:
        way.append((start + widths * standardised, gradient / widths))
        values.append(value)
        least = _LEAST_GAIN + _ROUNDING * abs(value)
        if np.abs(standardised).max() > _FAR:
            return False
        return len(values) <= _LAST_STEPS or values[0] - value > least

    end = minimise(
        descent,
        np.zeros_like(start),
        tolerance=_TOLERANCE,
        most_steps=most_steps,
        accepted=remember,
    )
    points, gradients = (np.array(part) for part in zip(*way, strict=True))
    return Path(points, gradients, widths, end.evaluations + 4 * len(start))


def goes_on(path: Path, best: Best) -> bool:
    """Return whether the bounds along a path grow without end, as those of improper densities do.

    Args:
        path: The path.
        best: Its best approximation.
    """
    if best.normal is None:
        return False
    away = (best.normal.loc.numpy() - path.points[0]) / path.widths
    return bool(np.abs(away).max() > 1e-2 * _FAR)


def _widths(evaluate: Evaluate, point: Array) -> Array:
    """Return how wide a density is along each coordinate: 1 where it does not curve down."""
    widths = np.ones_like(point)
    for _ in range(2):  # the second time with differences over the right lengths
        step = np.maximum(1e-4 * widths, 1e-10 * (1 + np.abs(point)))
        curvature = np.concatenate(
            [
                _curvature(evaluate, point, step, np.arange(first, len(point))[:_COLUMNS])
                for first in range(0, len(point), _COLUMNS)
            ]
        )
        usable = np.isfinite(curvature) & (curvature > _LEAST_CURVATURE)
        widths = 1 / np.sqrt(np.where(usable, curvature, 1.0))
    return widths


def _curvature(evaluate: Evaluate, point: Array, step: Array, columns: NDArray[np.int_]) -> Array:
    """Return the curvature downwards along some coordinates, by differences of gradients."""
    rows = np.arange(len(columns))
    along = np.zeros((len(columns), len(point)))
    along[rows, columns] = step[columns]
    ends = np.concatenate([point + along, point - along])
    slopes = evaluate(torch.from_numpy(ends))[1].numpy()
    fall = slopes[len(rows) + rows, columns] - slopes[rows, columns]
    return np.asarray(fall / (2 * step[columns]))


def memory(dim: int) -> int:
    """Return the number of steps that the approximations of so many coordinates remember."""
    return min(max(6, 2 * dim), 80) if dim <= _DENSE_UP_TO else 20


def approximations(path: Path) -> Iterator[LowRankNormal]:
    """Yield the normal approximation at each point of a path, where there is one.

    The inverse Hessian is that of BFGS: a diagonal estimate (`next_diagonal`) updated by the last
    steps, in its compact form `diag(a) + B G Bᵀ`. The mean is where Newton's method would step.
    Unlike in the paper the diagonal starts from the widths at the first point, not from 1, and up
    to 100 coordinates twice as many steps are remembered as there are coordinates.

    Args:
        path: The path.

    References:
        Pathfinder: Parallel quasi-Newton variational inference. Zhang, Carpenter, Gelman and
        Vehtari, 2022, algorithms 3 and 4. arXiv:2108.03782. The estimate is equation 4.9 of
        Gilbert and Lemaréchal, 1989, Mathematical Programming 45; the compact form is of Byrd,
        Nocedal and Schnabel, 1994, Mathematical Programming 63.
    """
    diagonal = path.widths**2
    pairs: deque[Pair] = deque(maxlen=memory(len(diagonal)))
    previous: Pair | None = None
    for point, gradient in zip(path.points, path.gradients, strict=True):
        if previous is not None:
            step, turn = point - previous[0], gradient - previous[1]
            if step @ turn > _CURVATURE * (turn @ (diagonal * turn)):
                diagonal = next_diagonal(diagonal, step, turn)
                pairs.append((step, turn))
        previous = point, gradient
        normal = _normal(point, gradient, diagonal, pairs)
        if normal is not None:
            yield normal


def next_diagonal(diagonal: Array, step: Array, turn: Array) -> Array:
    """Return the diagonal estimate of the inverse Hessian after one more step.

    It is the inverse of the diagonal of the BFGS update of the present one, which is scaled first
    so as to have the curvature along the gradient's change.

    Args:
        diagonal: The estimate so far, `a`, positive, shape `(dim,)`.
        step: Change of the point, `s`.
        turn: Change of the gradient, `z`, with `s·z` positive.
    """
    scaled = float(turn @ (diagonal * turn))
    along = float(turn @ step)
    metric = float(step @ (step / diagonal))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        inverse = (
            scaled / (along * diagonal)
            + turn**2 / along
            - scaled * (step / diagonal) ** 2 / (along * metric)
        )
        updated = np.asarray(1 / inverse)
    usable = np.isfinite(updated).all() and (updated > 0).all()  # but for rounding it always is
    return updated if usable else diagonal


def _normal(
    point: Array, gradient: Array, diagonal: Array, pairs: Iterable[Pair]
) -> LowRankNormal | None:
    """Return the approximation at a point, or None where rounding left no covariance."""
    scale = np.sqrt(diagonal)
    relative, core = _low_rank(scale, list(pairs))
    basis, upper = np.linalg.qr(relative)
    inside = np.eye(len(upper)) + upper @ core @ upper.T
    if not np.isfinite(inside).all():
        return None
    try:
        factor = np.linalg.cholesky((inside + inside.T) / 2)
    except np.linalg.LinAlgError:
        return None
    slope = scale * gradient
    along = basis.T @ slope
    newton = scale * (slope + basis @ (factor @ (factor.T @ along) - along))
    return LowRankNormal(*map(torch.from_numpy, (point - newton, scale, basis, factor)))


def _low_rank(scale: Array, pairs: Sequence[Pair]) -> tuple[Array, Array]:
    """Return `B` in units of the scale, `(dim, 2 * pairs)`, and `G`, in `diag(a) + B G Bᵀ`."""
    count, dim = len(pairs), len(scale)
    steps = np.reshape([step for step, _ in pairs], (count, dim)).T / scale[:, None]
    turns = np.reshape([turn for _, turn in pairs], (count, dim)).T * scale[:, None]
    products = np.triu(steps.T @ turns)
    inverse = np.linalg.inv(products)
    middle = np.diag(np.diag(products)) + turns.T @ turns
    core = np.block(
        [[np.zeros((count, count)), -inverse], [-inverse.T, inverse.T @ middle @ inverse]]
    )
    return np.concatenate([turns, steps], axis=1), core


def best_of(evaluate: Evaluate, normals: Iterable[LowRankNormal], noise: torch.Tensor) -> Best:
    """Return the approximation of the highest evidence lower bound.

    All are drawn with the same noise, so that what differs is the bound and not its error.

    Args:
        evaluate: Values (n,) and gradients (n, dim) of vectors (n, dim).
        normals: The approximations.
        noise: Standard normal, shape `(draws, dim)`.
    """
    best, highest, evaluations = None, -np.inf, 0
    for block in _blocks(normals, max(1, _BLOCK // noise.numel())):
        draws = torch.stack([normal.draw(noise) for normal in block])
        log_prob = evaluate(draws.flatten(0, 1))[0].view(len(block), -1)
        evaluations += log_prob.numel()
        log_q = torch.stack([normal.log_prob_of(noise) for normal in block])
        elbo = (log_prob - log_q).mean(-1)
        elbo = torch.where(elbo.isfinite(), elbo, -torch.inf)
        number = int(elbo.argmax())
        if float(elbo[number]) > highest:
            best, highest = block[number], float(elbo[number])
    return Best(best, highest, evaluations)


def _blocks(normals: Iterable[LowRankNormal], size: int) -> Iterator[list[LowRankNormal]]:
    block: list[LowRankNormal] = []
    for normal in normals:
        block.append(normal)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
