"""How well a model predicts data that it has not seen, from the log-likelihoods of those it has.

By leave-one-out cross-validation, with Pareto-smoothed importance weights in place of as many fits
as there are observations, and by the widely applicable information criterion.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_gen.diagnostics import pareto
from ppl_gen.diagnostics.arrays import as_double
from ppl_gen.diagnostics.mcmc import ess_mean, mcse_mean
from ppl_gen.diagnostics.psis import psis

__all__ = ["LeaveOneOut", "Waic", "loo", "loo_weights", "waic"]

Array = NDArray[np.float64]

# So many numbers are worked on at once: 8 MB.
_CHUNK = 2**20
# Vehtari, Gelman and Gabry (2017), arXiv:1507.04544, section 2.2.
_MAX_P_WAIC = 0.4


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """Expected log predictive density for new data, by leaving out one observation after another.

    Args:
        elpd: The sum over observations, in nats.
        error: Its standard error, that comes of having no more observations.
        monte_carlo_error: Its standard error that comes of having no more draws.
        effective_parameters: By how much the log predictive density of the data themselves is
            larger: about the number of parameters that the data determine.
        pointwise: Log predictive density of each observation, had it been left out,
            `(observation,)`.
        pareto_k: k-hat of the weights that leave each out, `(observation,)`: -inf where these are
            equal, inf where there are too few draws.
        threshold: The largest k-hat that so many draws can bear.
    """

    elpd: float
    error: float
    monte_carlo_error: float
    effective_parameters: float
    pointwise: Array
    pareto_k: Array
    threshold: float

    @property
    def bad(self) -> int:
        """How many observations have a k-hat that is not below the threshold."""
        return int((~(self.pareto_k < self.threshold)).sum())


@dataclass(frozen=True, eq=False)
class Waic:
    """Expected log predictive density for new data, by the widely applicable criterion.

    Args:
        elpd: The sum over observations, in nats. Times -2 it is the WAIC.
        error: Its standard error, that comes of having no more observations.
        effective_parameters: About the number of parameters that the data determine.
        pointwise: By observation, `(observation,)`.
        variance: Variance of each observation's log-likelihood, `(observation,)`.
    """

    elpd: float
    error: float
    effective_parameters: float
    pointwise: Array
    variance: Array

    @property
    def bad(self) -> int:
        """How many observations have a variance above 0.4, where the criterion may fail."""
        return int((self.variance > _MAX_P_WAIC).sum())


def loo(
    log_likelihood: ArrayLike,
    log_ratios: ArrayLike | None = None,
    *,
    relative_efficiency: ArrayLike | None = None,
) -> LeaveOneOut:
    """Estimate how well a model predicts observations that it has not seen.

    Draws of an approximation are reweighted to those of the posterior in the same step, by
    `log_ratios`. k-hat tells of both: where the approximation is poor it is large for all.

    Args:
        log_likelihood: Log-likelihood of each observation at each draw, `(chain, draw,
            observation)`.
        log_ratios: Log joint density minus the guide's log density at each draw, up to a constant,
            `(chain, draw)`, where the draws are a guide's; None where they are the posterior's. A
            draw whose ratio is -inf or NaN gets no weight.
        relative_efficiency: How many independent draws one draw is worth, one number or
            `(observation,)`. None: estimated from the chains; 1 where there are ratios, for those
            draws are independent.

    Returns:
        The sum, its errors, and what each observation adds.

    Raises:
        ValueError: If shapes do not match, or a log-likelihood is NaN or +inf, or is -inf at a
            draw that has some weight.

    References:
        Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC. Vehtari,
        Gelman and Gabry, 2017. arXiv:1507.04544. Bayesian leave-one-out cross-validation for large
        data. Magnusson, Andersen, Jonasson and Vehtari, 2019. arXiv:1904.10679.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.normal(size=50)
        >>> mean = y.mean() + rng.normal(size=(4, 500)) / np.sqrt(50)  # of y ~ N(mean, 1)
        >>> log_likelihood = -0.5 * (y - mean[..., None]) ** 2 - 0.5 * np.log(2 * np.pi)
        >>> found = loo(log_likelihood)
        >>> bool(0.5 < found.effective_parameters < 1.5), found.bad
        (True, 0)
    """
    values, ratios = _checked(log_likelihood, log_ratios)
    chains, length, count = values.shape
    own = _log_normalised(ratios, chains * length)
    pointwise, shapes, fitted = np.empty(count), np.empty(count), np.empty(count)
    influence = np.zeros(chains * length)
    for chosen, weights, k in _weights_by_chunk(values, ratios, relative_efficiency):
        columns = values[:, :, chosen].reshape(-1, len(k)).T
        pointwise[chosen], shapes[chosen] = _log_sum(weights + columns), k
        fitted[chosen] = _log_sum(own + columns)
        # By how much each draw moves the sum, to first order.
        influence += (np.exp(weights + columns - pointwise[chosen, None]) - np.exp(weights)).sum(0)
    moves = (chains * length) * influence.reshape(chains, length)
    return LeaveOneOut(
        elpd=float(pointwise.sum()),
        error=_error(pointwise),
        monte_carlo_error=_monte_carlo_error(moves, independent=ratios is not None),
        effective_parameters=float((fitted - pointwise).sum()),
        pointwise=pointwise,
        pareto_k=shapes,
        threshold=pareto.largest_k(chains * length),
    )


def loo_weights(
    log_likelihood: ArrayLike,
    log_ratios: ArrayLike | None = None,
    *,
    relative_efficiency: ArrayLike | None = None,
) -> Iterator[tuple[slice, Array]]:
    """Compute the weights that leave out each observation, some observations at a time.

    All at once they take as much memory as the log-likelihood.

    Args:
        log_likelihood: As for `loo`.
        log_ratios: As for `loo`.
        relative_efficiency: As for `loo`.

    Yields:
        Which observations, and the logarithms of their normalised weights, `(observation, chain *
        draw)`.

    Raises:
        ValueError: As for `loo`.

    Example:
        >>> log_likelihood = np.random.default_rng(0).normal(size=(4, 500, 3))
        >>> [weights.shape for _, weights in loo_weights(log_likelihood)]
        [(3, 2000)]
    """
    values, ratios = _checked(log_likelihood, log_ratios)
    for chosen, weights, _ in _weights_by_chunk(values, ratios, relative_efficiency):
        yield chosen, weights


def waic(log_likelihood: ArrayLike) -> Waic:
    """Estimate how well a model predicts new observations, by the widely applicable criterion.

    It says less than `loo`, and does not know when it fails but for the variances. Of a guide's
    draws it is the criterion of the guide, not of the posterior.

    Args:
        log_likelihood: Log-likelihood of each observation at each draw, `(chain, draw,
            observation)`.

    Returns:
        The sum, its error, and what each observation adds.

    Raises:
        ValueError: If there are fewer than two draws, or a log-likelihood is not finite.

    References:
        Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC. Vehtari,
        Gelman and Gabry, 2017. arXiv:1507.04544.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.normal(size=50)
        >>> mean = y.mean() + rng.normal(size=(4, 500)) / np.sqrt(50)  # of y ~ N(mean, 1)
        >>> log_likelihood = -0.5 * (y - mean[..., None]) ** 2 - 0.5 * np.log(2 * np.pi)
        >>> bool(0.5 < waic(log_likelihood).effective_parameters < 1.5)
        True
    """
    values, _ = _checked(log_likelihood, None)
    columns = values.reshape(-1, values.shape[2])
    if len(columns) < 2:
        raise ValueError(f"log_likelihood: expected at least two draws, got {len(columns)}.")
    variance = columns.var(axis=0, ddof=1)
    pointwise = _log_sum(columns.T) - math.log(len(columns)) - variance
    return Waic(
        float(pointwise.sum()), _error(pointwise), float(variance.sum()), pointwise, variance
    )


def _checked(log_likelihood: ArrayLike, log_ratios: ArrayLike | None) -> tuple[Array, Array | None]:
    """Return the log-likelihood, (chain, draw, observation), and the ratios, (chain, draw)."""
    values = as_double(log_likelihood)
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(
            "log_likelihood: expected axes (chain, draw, observation), of which none is empty, "
            f"got shape {values.shape}."
        )
    ratios = None if log_ratios is None else as_double(log_ratios)
    if ratios is not None and ratios.shape != values.shape[:2]:
        raise ValueError(
            f"log_ratios: expected one number for each of the draws {values.shape[:2]}, got shape "
            f"{ratios.shape}."
        )
    if ratios is not None:
        ratios = np.where(np.isnan(ratios), -np.inf, ratios)
        # Where a draw has no weight the model may not allow the observations either.
        values = np.where(np.isneginf(ratios)[:, :, None], 0.0, values)
    wrong = ~np.isfinite(values)
    if wrong.any():
        observations = np.flatnonzero(wrong.any(axis=(0, 1)))
        raise ValueError(
            f"log_likelihood: expected finite numbers, got {int(wrong.sum())} that are not, at "
            f"{len(observations)} of {values.shape[2]} observations, the first of them "
            f"{observations[0]}. Look for values that overflow, or that the model does not allow."
        )
    return values, ratios


def _log_normalised(ratios: Array | None, draws: int) -> Array:
    """Return the log weights of the draws themselves, which sum to one."""
    return np.full(draws, -math.log(draws)) if ratios is None else psis(ratios.ravel()).log_weights


def _weights_by_chunk(
    values: Array, ratios: Array | None, relative_efficiency: ArrayLike | None
) -> Iterator[tuple[slice, Array, Array]]:
    """Yield some observations, their normalised log weights, (observation, draw), and k-hats."""
    chains, length, count = values.shape
    step = max(1, _CHUNK // (chains * length))
    if relative_efficiency is None:
        given = None if ratios is None else np.ones(count)
    else:
        given = np.broadcast_to(as_double(relative_efficiency), (count,))
        if not (given > 0).all():
            raise ValueError(f"relative_efficiency: expected numbers above 0, got {given.min()}.")
    for start in range(0, count, step):
        chosen = slice(start, min(start + step, count))
        part = values[:, :, chosen]
        columns = part.reshape(chains * length, -1).T
        log_weights = -columns if ratios is None else ratios.ravel() - columns
        log_weights = log_weights - log_weights.max(axis=1, keepdims=True)
        efficiency = _efficiency(part) if given is None else given[chosen]
        tails = pareto.tail_sizes(chains * length, efficiency)
        smoothed, shapes, _ = pareto.smooth(log_weights, tails)
        yield chosen, smoothed - _log_sum(smoothed)[:, None], shapes


def _efficiency(log_likelihood: Array) -> Array:
    """Return how many independent draws one draw is worth to the mean likelihood."""
    worth = ess_mean(np.exp(log_likelihood - log_likelihood.max(axis=(0, 1))))
    return np.where(np.isnan(worth), 1.0, worth / math.prod(log_likelihood.shape[:2]))


def _log_sum(values: Array) -> Array:
    """Return the logarithm of the sum of exponentials over the last axis."""
    largest = values.max(axis=-1, keepdims=True)
    return np.asarray(largest[..., 0] + np.log(np.exp(values - largest).sum(axis=-1)))


def _error(pointwise: Array) -> float:
    """Return the standard error of a sum over observations; NaN for a single one."""
    count = len(pointwise)
    return math.sqrt(count * pointwise.var(ddof=1)) if count > 1 else math.nan


def _monte_carlo_error(moves: Array, independent: bool) -> float:
    """Return the standard error of the mean over draws, (chain, draw)."""
    if np.ptp(moves) == 0:
        return 0.0
    if independent:
        return float(moves.std(ddof=1)) / math.sqrt(moves.size)
    return float(mcse_mean(moves))
