"""Mean, spread and quantiles of each scalar, and how far chance may have moved them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_gen.diagnostics.mcmc import ess_mean, mcse_mean, mcse_sd

__all__ = ["QUANTILES", "Marginals", "marginals"]

Array = NDArray[np.float64]

QUANTILES = (0.05, 0.5, 0.95)
# Draws that are worked on at once, in double precision: 16 MB.
_CHUNK = 2**21
# Relative standard error of the sd of so many independent draws above which a few of the draws make
# up the sd: it is then no unit to measure in.
MAX_SD_ERROR = 0.15
# Half widths of the intervals that the errors of quantiles come from, in standard errors.
_INTERVALS = (2.0, 2.5, 3.0, 3.5, 4.0)
# And the part of the way to the outermost draw that these go at most.
_MAX_REACH = 0.5
# Width of the central 90 % of a normal distribution, in sds.
_WIDTH_OF_90 = 2 * NormalDist().inv_cdf(0.95)


@dataclass(frozen=True, eq=False)
class Marginals:
    """Estimates from the draws of each scalar, with their Monte Carlo standard errors.

    All arrays have the shape `event` unless said; a standard error is 0 where all draws are equal,
    and infinite where there are too few to tell.

    Args:
        mean: In the unit of the draws.
        mean_error: Standard error of the mean.
        sd: Standard deviation; 0 where all draws are equal but for rounding.
        log_sd_error: Standard error of the logarithm of the sd: the relative one of the sd.
        quantiles: Shape `(quantile, *event)`.
        quantile_errors: Their standard errors, of the same shape.
        unit: What errors are measured in: the sd; where a few draws in the tails make up the sd,
            that of a normal distribution with the same central 90 %. 0 where that is.
        heavy_tailed: Whether a few draws make up the sd, so that neither mean nor sd can be
            estimated, while the quantiles can.
        effective: Number of independent draws that would estimate mean and sd as well.
        noise: Expected 1-Wasserstein distance from one draw's worth of sampling error: that
            between n independent draws and their distribution is `noise / sqrt(n)`.
        probabilities: Those of the quantiles.
    """

    mean: Array
    mean_error: Array
    sd: Array
    log_sd_error: Array
    quantiles: Array
    quantile_errors: Array
    unit: Array
    heavy_tailed: NDArray[np.bool_]
    effective: Array
    noise: Array
    probabilities: tuple[float, ...] = QUANTILES

    def standardise(self, draws: ArrayLike) -> Array:
        """Return draws less the mean here, in the unit here, as a matrix.

        Args:
            draws: Draws of the same scalars, `(chain, draw, *event)`.

        Returns:
            Shape `(draw, scalar)`, the chains one after the other. A scalar that does not vary
            here keeps its own unit.

        Raises:
            ValueError: If the scalars are others.
        """
        values = checked_draws("draws", draws)
        check_scalars("draws", values.shape[2:], self.mean.shape)
        unit = np.where(self.unit > 0.0, self.unit, 1.0).ravel()
        flat = values.reshape(-1, unit.size).astype(np.float64)
        return np.asarray((flat - self.mean.ravel()) / unit)


def marginals(
    draws: ArrayLike, *, is_mcmc: bool = True, probabilities: Sequence[float] = QUANTILES
) -> Marginals:
    """Estimate mean, sd and quantiles of each scalar, and how far chance may have moved them.

    Args:
        draws: Draws of one site, shape `(chain, draw, *event)`, real or integer.
        is_mcmc: Whether they are Markov chains, whose errors grow with their autocorrelation; or
            independent draws.
        probabilities: Of the quantiles, between 0 and 1.

    Returns:
        The estimates.

    Raises:
        ValueError: If there are fewer than two axes or draws, a draw is not finite, or a
            probability is out of range.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 1000, 3))
        >>> found = marginals(draws, is_mcmc=False)
        >>> found.mean_error.round(3)  # 1 / sqrt(4000)
        array([0.016, 0.016, 0.016])
        >>> found.log_sd_error.round(3)  # 1 / sqrt(2 * 4000)
        array([0.011, 0.011, 0.011])
    """
    values = checked_draws("draws", draws)
    chosen = tuple(float(p) for p in probabilities)
    if not chosen or not all(0 < p < 1 for p in chosen):
        raise ValueError(f"probabilities: expected numbers between 0 and 1, got {probabilities}.")
    event = values.shape[2:]
    flat = values.reshape(*values.shape[:2], -1)
    parts = [
        _estimates(flat[:, :, part].astype(np.float64), _rounding(values), is_mcmc, chosen)
        for part in in_chunks(flat.shape[2], flat.shape[0] * flat.shape[1])
    ]
    joined = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts], axis=-1)
        for field in fields(Marginals)
        if field.name != "probabilities"
    }
    shaped = {name: array.reshape((*array.shape[:-1], *event)) for name, array in joined.items()}
    return Marginals(**shaped, probabilities=chosen)


def in_order(draws: NDArray[Any]) -> Array:
    """Return the draws of each scalar in order, (scalar, draw), of (draw, scalar)."""
    return np.sort(np.ascontiguousarray(draws.T, dtype=np.float64), axis=1)


def in_chunks(scalars: int, draws: int) -> Iterator[slice]:
    """Yield the scalars in groups, so that the memory used is small whatever the event."""
    step = max(1, _CHUNK // draws)
    return (slice(start, start + step) for start in range(0, max(scalars, 1), step))


def checked_draws(name: str, draws: ArrayLike) -> NDArray[Any]:
    """Return draws as an array (chain, draw, *event); refuse those that have no estimates."""
    values = np.asarray(draws)
    if values.ndim < 2:
        raise ValueError(f"{name}: expected axes (chain, draw, *event), got shape {values.shape}.")
    total = values.shape[0] * values.shape[1]
    if total < 2:
        raise ValueError(
            f"{name}: expected at least 2 draws with axes (chain, draw, *event), got shape "
            f"{values.shape}. Fit with more draws."
        )
    # The extremes of draws with a NaN are NaN: nothing as large as the draws is made.
    if values.size and not np.isfinite([values.min(), values.max()]).all():
        bad = int((~np.isfinite(values.reshape(total, -1)).all(axis=1)).sum())
        raise ValueError(
            f"{name}: expected finite numbers, got NaN or infinity in {bad} of {total} draws. "
            "Leave out the scalars that have them, or fit again."
        )
    return values


def check_scalars(name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Refuse draws of other scalars than the reference's."""
    if got != expected:
        raise ValueError(
            f"{name}: expected the scalars of the reference, of shape {expected}, got {got}. "
            "Compare posteriors of one model."
        )


def _rounding(values: NDArray[Any]) -> float:
    """Return the relative range of draws that differ by the rounding of a few operations alone."""
    floating = np.issubdtype(values.dtype, np.floating)
    return 8 * float(np.finfo(values.dtype).eps) if floating else 0.0


def _estimates(
    draws: Array, rounding: float, is_mcmc: bool, probabilities: tuple[float, ...]
) -> Marginals:
    """Estimate what `Marginals` holds, of scalars (chain, draw, scalar)."""
    ordered = in_order(draws.reshape(draws.shape[0] * draws.shape[1], -1))
    size = ordered.shape[1]
    constant, mean, sd, spread = _moments(ordered, rounding)
    independent = sd / np.sqrt(size), spread / np.sqrt(size)
    quantiles = _at(ordered, (np.array(probabilities) * (size - 1))[:, None])
    if is_mcmc:
        of_mean, of_sd = (_known(mcse(draws), constant) for mcse in (mcse_mean, mcse_sd))
        with np.errstate(invalid="ignore"):
            errors = of_mean, of_sd / np.where(constant, 1.0, sd)
        of_quantiles = np.stack([_ess_below(draws, quantile) for quantile in quantiles])
    else:
        errors, of_quantiles = independent, np.full(quantiles.shape, float(size))
    quantile_errors = _errors_of_quantiles(ordered, probabilities, of_quantiles)
    with np.errstate(divide="ignore", invalid="ignore"):
        # An estimate that chance cannot move does not say how many draws there are.
        shares = [np.square(a / b) for a, b in zip(independent, errors, strict=True)]
    # False for the NaN of a variance beyond the largest double.
    heavy = ~(independent[1] <= max(MAX_SD_ERROR, 3 / np.sqrt(2 * size)))
    low, high = _at(ordered, np.array([[0.05], [0.95]]) * (size - 1))
    below = np.arange(1, size) / size
    return Marginals(
        mean=mean,
        mean_error=errors[0],
        sd=sd,
        log_sd_error=errors[1],
        quantiles=quantiles,
        quantile_errors=_known(quantile_errors, constant),
        unit=np.where(heavy, (high - low) / _WIDTH_OF_90, sd),
        heavy_tailed=heavy,
        effective=size * np.fmin(np.fmin(*shares), 1.0),
        # The mean absolute value of a Brownian bridge at each share, over the gaps between draws.
        noise=np.sqrt(2 / np.pi) * (np.diff(ordered) @ np.sqrt(below * (1 - below))),
        probabilities=probabilities,
    )


def _moments(ordered: Array, rounding: float) -> tuple[NDArray[np.bool_], Array, Array, Array]:
    """Return of draws in order whether they are constant, mean, sd, and how uncertain the sd is.

    The last is the standard error of the logarithm of the sd of one draw's worth.
    """
    ends = ordered[:, [0, -1]]
    # Sums of a simplex, say: their rounding is no unit to measure anything in.
    constant = ends[:, 1] - ends[:, 0] <= rounding * np.abs(ends).max(axis=1)
    mean = np.where(constant, ordered[:, ordered.shape[1] // 2], ordered.mean(axis=1))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        squares = (ordered - mean[:, None]) ** 2
        sd = np.sqrt(squares.sum(axis=1) / (ordered.shape[1] - 1))
        # By the delta method: half the relative standard error of the variance.
        spread = squares.std(axis=1) / squares.mean(axis=1) / 2
    return constant, mean, np.where(constant, 0.0, sd), np.where(constant, 0.0, spread)


def _known(errors: Array, constant: NDArray[np.bool_]) -> Array:
    """Return errors with 0 for what is constant, and no bound for what cannot be told."""
    return np.where(constant, 0.0, np.where(np.isnan(errors), np.inf, errors))


def _ess_below(draws: Array, quantile: Array) -> Array:
    """Return the effective sample size of the share of draws below a quantile, (scalar,)."""
    below = draws <= quantile
    # Where all of them are, nothing moves.
    size = float(draws.shape[0] * draws.shape[1])
    return np.where(below.all(axis=(0, 1)), size, ess_mean(below))


def _errors_of_quantiles(
    ordered: Array, probabilities: tuple[float, ...], effective: Array
) -> Array:
    """Return the errors of the quantiles of draws in order, (quantile, scalar).

    They come from intervals of some standard errors of the share of draws below the quantile: half
    their width for each. The widest counts, so that a quantile that can fall to either side of a
    gap between two modes has an error as wide as the gap.

    Args:
        ordered: Shape (scalar, draw).
        probabilities: Those of the quantiles.
        effective: Effective sample size of the share of draws below each, (quantile, scalar).
    """
    share = np.array(probabilities)[:, None]
    one = np.sqrt(share * (1 - share) / effective)
    last = ordered.shape[1] - 1
    widths = []
    for z in _INTERVALS:
        reach = np.minimum(z * one, _MAX_REACH * np.minimum(share, 1 - share))
        width = _at(ordered, (share + reach) * last) - _at(ordered, (share - reach) * last)
        widths.append(width * one / (2 * reach))
    return np.asarray(np.max(widths, axis=0))


def _at(ordered: Array, place: Array) -> Array:
    """Return draws in order at places from 0, the first one, on; NaN where the place is.

    Args:
        ordered: Shape (scalar, draw).
        place: Shape (place, scalar) or (place, 1); what is beyond the ends counts as these.
    """
    last = ordered.shape[1] - 1
    places = np.broadcast_to(np.clip(place, 0, last), (len(place), len(ordered))).T
    low = np.floor(np.nan_to_num(places)).astype(int)
    below = np.take_along_axis(ordered, low, axis=1)
    above = np.take_along_axis(ordered, np.minimum(low + 1, last), axis=1)
    return np.asarray((below + (places - low) * (above - below)).T)
