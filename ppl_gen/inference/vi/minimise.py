"""Limited-memory BFGS that takes infinite values for what they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Minimum", "minimise"]

Array: TypeAlias = NDArray[np.float64]
Objective: TypeAlias = Callable[[Array], tuple[float, Array]]

_MEMORY = 20
_SUFFICIENT = 1e-4
_CURVATURE = 0.9
_TRIALS = 40
# In units of the value's last digit, what a step has to promise to be seen.
_UNITS = 16
_LAST_DIGIT = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    Args:
        point: The point.
        value: The objective there.
        gradient: Its gradient there.
        evaluations: Number of evaluations.
        converged: Whether the gradient is as small as was asked for, or can be by rounding.
    """

    point: Array
    value: float
    gradient: Array
    evaluations: int
    converged: bool


def minimise(
    objective: Objective,
    start: Array,
    *,
    tolerance: float,
    most_steps: int = 500,
    first_length: float = 1.0,
    rounding: float = 0.0,
    accepted: Callable[[Array, float, Array], bool] = lambda point, value, gradient: True,
) -> Minimum:
    """Minimise a smooth function by L-BFGS.

    The line search brackets a step with the weak Wolfe conditions by bisection, which needs no
    more of the function than its values and slopes: where it is infinite or NaN, the step was too
    long.

    Args:
        objective: Value and gradient at a point, shape `(n,)`.
        start: Where it starts, of finite value.
        tolerance: It ends where no element of the gradient is larger.
        most_steps: Number of steps at most.
        first_length: Length of the first step tried.
        rounding: Relative error of the values: a step may seem to raise the function by so much.
        accepted: Told the start, and the end of each step, with value and gradient there; it ends
            where the answer is False.

    Returns:
        Where it ended; the best point that it saw.

    References:
        Nocedal and Wright (2006), Numerical Optimization, algorithm 7.4. Lewis and Overton (2013),
        Nonsmooth optimization via quasi-Newton methods, Mathematical Programming 141. Hager and
        Zhang (2005), A new conjugate gradient method with guaranteed descent and an efficient line
        search, SIAM Journal on Optimization 16: what rounding allows.

    Example:
        >>> minimise(lambda x: (float(x @ x), 2 * x), np.ones(2), tolerance=1e-9).point
        array([0., 0.])
    """
    point = start
    value, gradient = objective(point)
    evaluations = 1
    if not accepted(point, value, gradient):
        return Minimum(point, value, gradient, evaluations, False)
    pairs: deque[tuple[Array, Array, float]] = deque(maxlen=_MEMORY)
    for _ in range(most_steps):
        if np.abs(gradient).max() <= tolerance:
            return Minimum(point, value, gradient, evaluations, True)
        direction = -_times_inverse(gradient, pairs)
        slope = float(gradient @ direction)
        if pairs and 0 <= -slope <= max(rounding, _UNITS * _LAST_DIGIT) * abs(value):
            return Minimum(point, value, gradient, evaluations, True)
        if not slope < 0:
            pairs.clear()
            direction, slope = -gradient, -float(gradient @ gradient)
        length = 1.0 if pairs else min(1.0, first_length / float(np.linalg.norm(direction)))
        low, high = 0.0, np.inf
        slack = rounding * abs(value)
        found: tuple[Array, float, Array] | None = None
        for _ in range(_TRIALS):
            tried = point + length * direction
            tried_value, tried_gradient = objective(tried)
            evaluations += 1
            if not tried_value <= value + _SUFFICIENT * length * slope + slack:  # also NaN
                high = length
            else:
                found = tried, tried_value, tried_gradient
                if tried_gradient @ direction >= _CURVATURE * slope:
                    break
                low = length
            length = (low + high) / 2 if np.isfinite(high) else 2 * length
        if found is None:
            if pairs:
                pairs.clear()
                continue
            # Steepest descent cannot lower it any more: what is left is rounding.
            flat = abs(slope) <= 1e-10 * (1 + abs(value))
            return Minimum(point, value, gradient, evaluations, flat)
        change, turn = found[0] - point, found[2] - gradient
        product = float(change @ turn)
        if product > 1e-10 * float(np.linalg.norm(change) * np.linalg.norm(turn)):
            pairs.append((change, turn, product))
        point, value, gradient = found
        if not accepted(point, value, gradient):
            break
    return Minimum(point, value, gradient, evaluations, False)


def _times_inverse(gradient: Array, pairs: deque[tuple[Array, Array, float]]) -> Array:
    """Return the inverse Hessian's product with a gradient, by the two-loop recursion."""
    if not pairs:
        return gradient
    result = gradient.copy()
    weights: list[float] = []
    for change, turn, product in reversed(pairs):
        weight = float(change @ result) / product
        weights.append(weight)
        result -= weight * turn
    change, turn, product = pairs[-1]
    result *= product / float(turn @ turn)
    for (change, turn, product), weight in zip(pairs, reversed(weights), strict=True):
        result += (weight - float(turn @ result) / product) * change
    return result
