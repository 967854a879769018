"""Comparison of models by how well each predicts each observation."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_gen.diagnostics.arrays import as_double

__all__ = ["elpd_difference", "stacking_weights"]

Array = NDArray[np.float64]


def elpd_difference(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """Compute how much better one model predicts than another, and the standard error of that.

    Args:
        first: Log predictive density of each observation, `(observation,)`, as in
            `LeaveOneOut.pointwise`.
        second: That of the other model, of the same observations.

    Returns:
        Sum of the differences, above 0 where the first is better, and its standard error. The error
        is too small for fewer than a hundred observations, or models that predict nearly alike.

    Raises:
        ValueError: If the shapes do not match.

    References:
        Uncertainty in Bayesian leave-one-out cross-validation based model comparison. Sivula,
        Magnusson, Matamoros and Vehtari, 2020. arXiv:2008.10296.

    Example:
        >>> elpd_difference([-1.0, -2.0, -1.0], [-1.5, -2.0, -2.0])
        (1.5, 0.866...)
    """
    one, other = as_double(first), as_double(second)
    if one.ndim != 1 or one.shape != other.shape:
        raise ValueError(
            "first, second: expected one number for each of the same observations, got shapes "
            f"{one.shape} and {other.shape}."
        )
    difference = one - other
    error = math.sqrt(len(one) * difference.var(ddof=1)) if len(one) > 1 else math.nan
    return float(difference.sum()), error


def stacking_weights(pointwise: ArrayLike | Sequence[ArrayLike]) -> Array:
    """Compute the weights by which a mixture of models predicts best.

    Args:
        pointwise: Log predictive density of each observation by each model, `(model,
            observation)`, of `LeaveOneOut.pointwise`.

    Returns:
        The weights, which sum to one, `(model,)`. Models that predict nearly alike share theirs in
        a way that means little.

    Raises:
        ValueError: If the models' observations are not the same number, a number is NaN or +inf,
            or all models find an observation impossible.

    References:
        Using stacking to average Bayesian predictive distributions. Yao, Vehtari, Simpson and
        Gelman, 2018. arXiv:1704.02030.

    Example:
        >>> stacking_weights([[-1.0, -3.0, -1.0, -1.0], [-3.0, -1.0, -3.0, -3.0]]).round(2)
        array([0.83, 0.17])
    """
    values = as_double(pointwise)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"pointwise: expected axes (model, observation), got {values.shape}.")
    if np.isnan(values).any() or np.isposinf(values).any():
        wrong = int((np.isnan(values) | np.isposinf(values)).sum())
        raise ValueError(f"pointwise: expected numbers below +inf, got {wrong} that are not.")
    largest = values.max(axis=0)
    if np.isneginf(largest).any():
        index = int(np.argmin(largest))
        raise ValueError(f"pointwise: all models give observation {index} the density 0.")
    return _best_mixture(np.exp(values - largest))


def _best_mixture(densities: Array) -> Array:
    """Return the weights of the largest mean log mixture density, (model,).

    The problem is convex. No other weights are better by more, in nats for each observation, than
    the largest element of the gradient is above one.

    Args:
        densities: By model and observation, the largest of each observation 1.
    """
    from scipy.optimize import minimize

    models = len(densities)

    def loss(weights: Array) -> tuple[float, Array]:
        mixture = np.maximum(weights @ densities, 1e-300)
        return -float(np.log(mixture).mean()), -(densities / mixture).mean(axis=1)

    found = minimize(
        loss,
        np.full(models, 1 / models),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * models,
        constraints={
            "type": "eq",
            "fun": lambda weights: weights.sum() - 1,
            "jac": lambda weights: np.ones(models),
        },
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    weights = np.clip(found.x, 0.0, None)
    return np.asarray(weights / weights.sum())
