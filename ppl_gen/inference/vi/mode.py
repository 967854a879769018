"""The mode of a log density and its curvature there: MAP and Laplace's approximation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core.evaluation import Evaluate
from ppl_gen.inference.vi.families import Normal
from ppl_gen.inference.vi.minimise import minimise

__all__ = ["Mode", "find_mode", "hessian", "root_of_inverse", "widths_of"]

Array: TypeAlias = NDArray[np.float64]

_ROUNDS = 20
_STEPS = 300
# A step of Newton's method that promises less, in nats, has arrived.
_LEAST_GAIN = 1e-8
# Vectors evaluated at once for a Hessian.
_COLUMNS = 512


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


def find_mode(evaluate: Evaluate, start: Array, *, most_rounds: int = _ROUNDS) -> Mode:
    """Climb to a mode: L-BFGS far from it, Newton's method, which no scale misleads, near it.

    Args:
        evaluate: Values (n,) and gradients (n, dim) of vectors (n, dim).
        start: A point of finite density, shape `(dim,)`.
        most_rounds: Number of rounds of both at most.

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

        climbed = minimise(standardised, np.zeros(len(start)), tolerance=1e-5, most_steps=_STEPS)
        point = point + scale * climbed.point
        value, gradient = at(point)
        precision = -hessian(evaluate, point, scale)
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
        rounding = 1e-12 * abs(value)
        if promised <= _LEAST_GAIN + rounding:
            converged = bool((np.linalg.eigvalsh(precision) > 0).all())
            break
    return Mode(point, -value, precision, converged, count)


def descent(evaluate: Evaluate, point: Array) -> tuple[float, Array]:
    """Return the negative log density and its gradient at a point, infinite where it has none."""
    values, gradients = evaluate(torch.from_numpy(point[None]))
    value, gradient = float(values[0]), gradients[0].numpy()
    if not np.isfinite(value) or not np.isfinite(gradient).all():
        return np.inf, np.zeros_like(point)
    return -value, -gradient


def hessian(evaluate: Evaluate, point: Array, scale: Array) -> Array:
    """Return the Hessian of a log density by central differences of its gradients.

    Args:
        evaluate: Values (n,) and gradients (n, dim) of vectors (n, dim).
        point: Where, shape `(dim,)`.
        scale: About how wide the density is along each coordinate, shape `(dim,)`; a second pass
            corrects it.
    """
    result = _differences(evaluate, point, 1e-4 * scale)
    return _differences(evaluate, point, 1e-4 * widths_of(np.diag(-result)))


def _differences(evaluate: Evaluate, point: Array, step: Array) -> Array:
    # Steps that are lost in the point's own rounding say nothing.
    step = np.maximum(step, 1e-10 * (1 + np.abs(point)))
    rows = []
    for start in range(0, len(point), _COLUMNS):
        along = np.zeros((min(_COLUMNS, len(point) - start), len(point)))
        index = np.arange(len(along))
        along[index, start + index] = step[start : start + len(along)]
        ends = torch.from_numpy(np.concatenate([point + along, point - along]))
        gradients = evaluate(ends)[1].numpy()
        apart = 2 * step[start : start + len(along), None]
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
