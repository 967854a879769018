"""The mode of a log density and its curvature there: MAP and Laplace's approximation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core.evaluation import Evaluate
from ppl_gen.inference.vi.families import Normal
from ppl_gen.inference.vi.minimise import minimise

__all__ = [
    "Mode",
    "descent",
    "find_mode",
    "flat_directions",
    "hessian",
    "is_near",
    "root_of_inverse",
    "widths_of",
]

Array: TypeAlias = NDArray[np.float64]

_ROUNDS = 20
_STEPS = 300
# A step of Newton's method that promises less, in nats, has arrived; or less than such part of the
# log density, or than so many units of its rounding.
_LEAST_GAIN = 1e-8
_LEAST_PART = 1e-12
_UNITS = 16
_DOUBLE = float(np.finfo(np.float64).eps)
# Vectors evaluated at once for a Hessian.
_COLUMNS = 512
# A direction whose curvature is a smaller part of that of the coordinates may be flat; it is where
# so many widths away the log density is the same, but for so many nats. The first distance at which
# it is finite decides: exponentials of the larger one overflow.
_LEAST_CURVATURE = 1e-6
_FAR = (1e5, 500.0)
_SAME = 1e-2
# A climb that came so many widths far has no end.
_ENDLESS = 1e12


@dataclass(frozen=True)
class Mode:
    """A mode, or how far the climb to one came.

    Args:
        point: Where, shape `(dim,)`.
        log_prob: The log density there.
        precision: The negative Hessian there, shape `(dim, dim)`.
        converged: Whether a Newton step gains nothing any more, and the precision is positive
            definite.
        evaluations: Number of gradients that it took.
    """

    point: Array
    log_prob: float
    precision: Array
    converged: bool
    evaluations: int

    def normal(self) -> Normal:
        """Return Laplace's approximation; directions that do not curve down get a scale of one."""
        return Normal(self.point, root_of_inverse(self.precision))

    def diagonal(self) -> Normal:
        """Return the independent coordinates of least divergence from Laplace's approximation."""
        curvature = np.diag(self.precision)
        safe = np.where(curvature > 1e-12, curvature, 1.0)
        return Normal(self.point, 1 / np.sqrt(safe))


def find_mode(
    evaluate: Evaluate, start: Array, *, most_rounds: int = _ROUNDS, rounding: float = _DOUBLE
) -> Mode:
    """Climb to a mode: L-BFGS far from it, Newton's method, which no scale misleads, near it.

    Args:
        evaluate: Values (n,) and gradients (n, dim) of vectors (n, dim).
        start: A point of finite density, shape `(dim,)`.
        most_rounds: Number of rounds of both at most.
        rounding: Relative rounding of the values: that of what the density computes in.

    References:
        Nocedal and Wright (2006), Numerical Optimization, chapters 3 and 7.
    """
    count = 0

    def at(point: Array) -> tuple[float, Array]:
        nonlocal count
        count += 1
        return descent(evaluate, point)

    # L-BFGS works on coordinates of which the last Hessian says how wide they are.
    point, scale = start, np.ones(len(start))
    precision = np.eye(len(start))
    converged = False
    value, gradient = at(point)
    for _ in range(most_rounds):

        def standardised(
            z: Array, origin: Array = point, widths: Array = scale
        ) -> tuple[float, Array]:
            value, slope = at(origin + widths * z)
            return value, slope * widths

        tolerance = max(1e-5, math.sqrt(rounding))
        climbed = minimise(
            standardised,
            np.zeros(len(start)),
            tolerance=tolerance,
            most_steps=_STEPS,
            rounding=_UNITS * (rounding - _DOUBLE),
            accepted=is_near,
        )
        point = point + scale * climbed.point
        value, gradient = at(point)
        precision = -hessian(evaluate, point, scale, rounding)
        count += 4 * len(start)
        scale = widths_of(np.diag(precision))
        factor = root_of_inverse(precision)
        newton = -factor @ (factor.T @ gradient)
        promised = -0.5 * float(gradient @ newton)
        length = 1.0
        while length > 1e-4:
            tried_value, tried_gradient = at(point + length * newton)
            if tried_value <= value:
                point, value, gradient = point + length * newton, tried_value, tried_gradient
                break
            length /= 4
        if promised <= _LEAST_GAIN + max(_LEAST_PART, _UNITS * rounding) * abs(value):
            converged = bool((np.linalg.eigvalsh(precision) > 0).all())
            break
        if not is_near(climbed.point):
            break
    return Mode(point, -value, precision, converged, count)


def flat_directions(evaluate: Evaluate, mode: Mode) -> list[Array]:
    """Return unit vectors along which a density does not fall off: it is improper, or nearly so.

    Args:
        evaluate: Values (n,) and gradients (n, dim) of vectors (n, dim).
        mode: A mode of it, or a point as high as any near it.

    Returns:
        Directions in units of the coordinates' widths, each of shape `(dim,)`.
    """
    finite = np.where(np.isfinite(mode.precision), mode.precision, 0.0)
    widths = widths_of(np.diag(finite))
    values, vectors = np.linalg.eigh(finite * widths[:, None] * widths)
    found = []
    for direction in vectors.T[values < _LEAST_CURVATURE]:
        away = np.outer([*_FAR, *(-length for length in _FAR)], widths * direction)
        far, near = evaluate(torch.from_numpy(mode.point + away))[0].reshape(2, -1).unbind(1)
        reached = torch.where(far.isfinite(), far, near)
        if bool((reached > mode.log_prob - _SAME).any()):
            found.append(direction)
    return found


def is_near(point: Array, *_: object) -> bool:
    """Return whether a climb is not so far away that it has nowhere to end."""
    return bool(np.abs(point).max() < _ENDLESS)


def descent(evaluate: Evaluate, point: Array) -> tuple[float, Array]:
    """Return the negative log density and its gradient at a point, infinite where it has none."""
    values, gradients = evaluate(torch.from_numpy(point[None]))
    value, gradient = float(values[0]), gradients[0].numpy()
    if not np.isfinite(value) or not np.isfinite(gradient).all():
        return np.inf, np.zeros_like(point)
    return -value, -gradient


def hessian(evaluate: Evaluate, point: Array, scale: Array, rounding: float = _DOUBLE) -> Array:
    """Return the Hessian of a log density by central differences of its gradients.

    Args:
        evaluate: Values (n,) and gradients (n, dim) of vectors (n, dim).
        point: Where, shape `(dim,)`.
        scale: About how wide the density is along each coordinate, shape `(dim,)`; a second pass
            corrects it.
        rounding: Relative rounding of the gradients.
    """
    # With fewer digits longer steps; those lost in the point's own rounding say nothing.
    longer = (rounding / _DOUBLE) ** 0.25
    length, least = 1e-4 * longer, 1e-10 * longer**2 * (1 + np.abs(point))
    result = _differences(evaluate, point, np.maximum(length * scale, least))
    widths = widths_of(np.diag(-result))
    return _differences(evaluate, point, np.maximum(length * widths, least))


def _differences(evaluate: Evaluate, point: Array, step: Array) -> Array:
    rows = []
    for start in range(0, len(point), _COLUMNS):
        along = np.zeros((min(_COLUMNS, len(point) - start), len(point)))
        index = np.arange(len(along))
        along[index, start + index] = step[start : start + len(along)]
        ends = torch.from_numpy(np.concatenate([point + along, point - along]))
        gradients = evaluate(ends)[1].numpy()
        apart = 2 * step[start : start + len(along), None]
        with np.errstate(over="ignore", invalid="ignore"):
            rows.append((gradients[: len(along)] - gradients[len(along) :]) / apart)
    result = np.concatenate(rows)
    return np.asarray((result + result.T) / 2)


def widths_of(diagonal: Array) -> Array:
    """Return how wide the coordinates are by the diagonal of a precision; 1 where it is flat."""
    curvature = np.abs(diagonal)
    usable = np.isfinite(curvature) & (curvature > 1e-20)
    return np.asarray(1 / np.sqrt(np.where(usable, curvature, 1.0)))


def root_of_inverse(precision: Array) -> Array:
    """Return a lower triangular `L` with `L Lᵀ` the inverse, made positive definite if need be."""
    finite = np.where(np.isfinite(precision), precision, 0.0)
    widths = widths_of(np.diag(finite))
    scaled = finite * widths[:, None] * widths
    values, vectors = np.linalg.eigh(scaled)
    # Where it curves up or is flat, as wide as the coordinates are.
    safe = np.where(values > 1e-13 * len(values), values, 1.0)
    root = widths[:, None] * vectors / np.sqrt(safe)
    upper = np.linalg.qr(root.T, mode="r")
    return np.asarray((upper * np.sign(np.diag(upper))[:, None]).T)
