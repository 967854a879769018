"""Whether data look like those that a fitted model predicts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_gen.diagnostics.arrays import as_double
from ppl_gen.diagnostics.loo import loo_weights

__all__ = ["PredictiveCheck", "loo_pit", "predictive_checks"]

Array = NDArray[np.float64]

# What a model may get wrong though its parameters were fitted: centre, spread and extremes.
_QUANTITIES: Mapping[str, Callable[[Array], Array]] = {
    "mean": lambda data: np.asarray(data.mean(axis=-1)),
    "sd": lambda data: np.asarray(data.std(axis=-1)),
    "minimum": lambda data: np.asarray(data.min(axis=-1)),
    "maximum": lambda data: np.asarray(data.max(axis=-1)),
}
# Values that differ by rounding alone are equal.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class PredictiveCheck:
    """A number that sums up data, of those observed and of those that the model predicts.

    Args:
        observed: Its value for the data.
        expected: Its mean over replicated data.
        below: Share of all, the data themselves among them, for which it is smaller than for the
            data; those for which it is the same count half.
    """

    observed: float
    expected: float
    below: float

    @property
    def p_value(self) -> float:
        """The two-sided posterior predictive p-value: small where the model does not fit.

        It is not uniform for a right model, but nearer to one.
        """
        return 2 * min(self.below, 1 - self.below)


def predictive_checks(
    replicated: ArrayLike,
    observed: ArrayLike,
    quantities: Mapping[str, Callable[[Array], Array]] | None = None,
) -> dict[str, PredictiveCheck]:
    """Compare data with data drawn from the fitted model, by a few numbers that sum them up.

    Args:
        replicated: Data drawn from the posterior (or prior) predictive distribution, `(draw,
            observation)`.
        observed: The data, `(observation,)`.
        quantities: Functions by name, from data `(*batch, observation)` to numbers `batch`. None:
            mean, sd, minimum and maximum.

    Returns:
        A check by name.

    Raises:
        ValueError: If shapes do not match, or numbers are not finite.

    References:
        Posterior predictive assessment of model fitness via realized discrepancies. Gelman, Meng
        and Stern, 1996, Statistica Sinica 6.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> checks = predictive_checks(rng.normal(size=(999, 50)), 3 * rng.normal(size=50))
        >>> round(checks["sd"].p_value, 6)
        0.001
        >>> checks["mean"].p_value > 0.05
        True
    """
    drawn, data = _checked(replicated, observed)
    return {
        name: _check(quantity(drawn), float(quantity(data)))
        for name, quantity in (_QUANTITIES if quantities is None else quantities).items()
    }


def loo_pit(
    replicated: ArrayLike,
    observed: ArrayLike,
    log_likelihood: ArrayLike,
    log_ratios: ArrayLike | None = None,
    *,
    relative_efficiency: ArrayLike | None = None,
    seed: int = 0,
) -> Array:
    """Compute where each observation lies in what the other observations make the model predict.

    These values are uniform where the model's predictions are calibrated (`uniformity`). Too many
    near 0 and 1: predictions are too narrow; too many in the middle: too wide.

    Args:
        replicated: Data drawn from the posterior predictive distribution, one set for each draw,
            `(chain, draw, observation)`.
        observed: The data, `(observation,)`.
        log_likelihood: As for `loo`.
        log_ratios: As for `loo`.
        relative_efficiency: As for `loo`.
        seed: Where equal values, as discrete data have, are spread at random.

    Returns:
        The probability that the observation would have been smaller, `(observation,)`, between 0
        and 1.

    Raises:
        ValueError: If shapes do not match, or numbers are not finite.

    References:
        Visualization in Bayesian workflow. Gabry, Simpson, Vehtari, Betancourt and Gelman, 2019,
        section 5. arXiv:1709.01449. For discrete data: Predictive model assessment for count data.
        Czado, Gneiting and Held, 2009, Biometrics 65.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.normal(size=50)
        >>> mean = y.mean() + rng.normal(size=(4, 500, 1)) / np.sqrt(50)  # of y ~ N(mean, 1)
        >>> replicated = mean + rng.normal(size=(4, 500, 50))
        >>> values = loo_pit(replicated, y, -0.5 * (y - mean) ** 2)
        >>> bool(0.4 < values.mean() < 0.6)
        True
    """
    drawn = as_double(replicated)
    if drawn.ndim != 3 or drawn.shape != np.shape(log_likelihood):
        raise ValueError(
            "replicated: expected the axes (chain, draw, observation) of log_likelihood, "
            f"{np.shape(log_likelihood)}, got shape {drawn.shape}."
        )
    flat, data = _checked(drawn.reshape(-1, drawn.shape[2]), observed)
    values = np.empty(len(data))
    chance = np.random.default_rng(seed).random(len(data))
    chunks = loo_weights(log_likelihood, log_ratios, relative_efficiency=relative_efficiency)
    for chosen, log_weights in chunks:
        weights, columns, own = np.exp(log_weights), flat[:, chosen].T, data[chosen, None]
        smaller = (weights * (columns < own)).sum(axis=1)
        values[chosen] = smaller + chance[chosen] * (weights * (columns == own)).sum(axis=1)
    return np.clip(values, 0.0, 1.0)


def _checked(replicated: ArrayLike, observed: ArrayLike) -> tuple[Array, Array]:
    """Return replicated data, (draw, observation), and the data, (observation,)."""
    drawn, data = as_double(replicated), as_double(observed)
    if data.ndim != 1 or drawn.ndim != 2 or drawn.shape[1:] != data.shape or 0 in drawn.shape:
        raise ValueError(
            "replicated, observed: expected axes (draw, observation) and (observation,), got "
            f"shapes {drawn.shape} and {data.shape}."
        )
    for name, numbers in (("replicated", drawn), ("observed", data)):
        wrong = int((~np.isfinite(numbers)).sum())
        if wrong:
            raise ValueError(
                f"{name}: expected finite numbers, got {wrong} of {numbers.size} that are NaN or "
                "infinite. Leave out missing observations."
            )
    return drawn, data


def _check(replicated: Array, observed: float) -> PredictiveCheck:
    """Compare a number with its values for replicated data, (draw,)."""
    same = np.abs(replicated - observed) <= _ROUNDING * np.abs(replicated)
    smaller = (replicated < observed) & ~same
    # The data themselves are one more.
    below = (smaller.sum() + 0.5 * same.sum() + 0.5) / (len(replicated) + 1)
    return PredictiveCheck(observed, float(replicated.mean()), float(below))
