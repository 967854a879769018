"""Convergence diagnostics of Markov chains.

All of these compare chains with each other and with themselves over time. They say nothing about
independent draws, such as those of a variational guide: for these R-hat is one and the effective
sample size is the number of draws, however wrong the guide is.

Constant, NaN and infinite draws have no diagnostics: the functions here answer NaN for them and
do not warn. They answer what ArviZ answers, for thousands of scalars at once.
"""

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Convergence",
    "bfmi",
    "convergence",
    "ess_bulk",
    "ess_mean",
    "ess_tail",
    "mcse_mean",
    "mcse_quantile",
    "mcse_sd",
    "rhat",
]

Array = NDArray[np.float64]

# Half a chain must hold two draws for a variance within it.
_MIN_DRAWS = 4
_TAIL = 0.05
# So many draws are worked on at once: they fit into a processor's cache.
_CHUNK = 2**17
# NumPy's sort and transforms let other threads work; starting these takes .1 ms.
_MIN_CHUNKS_OF_THREADS = 4
_MAX_THREADS = 8


def rhat(draws: ArrayLike) -> Array:
    """Compute the rank-normalised split R-hat, the larger of its bulk and its folded version.

    Chains that agree have a value close to 1; above 1.01 they should not be trusted.

    Args:
        draws: Draws of one site, shape `(chain, draw, *event)`, real or integer.

    Returns:
        One value for each element of the event, shape `event`. NaN where there are fewer than two
        chains or four draws, where all draws are equal, and where a draw is not finite. Huge
        or infinite where every chain is constant, at different values.

    Raises:
        ValueError: If `draws` has fewer than two axes.

    References:
        Rank-normalization, folding, and localization: an improved R-hat for assessing convergence
        of MCMC. Vehtari, Gelman, Simpson, Carpenter and Bürkner, 2021. arXiv:1903.08008.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 500))
        >>> bool(rhat(draws) < 1.01)
        True
        >>> draws[0] += 1.0
        >>> bool(rhat(draws) > 1.1)
        True
    """
    return _over_elements(draws, _rank_rhat)[0]


def ess_bulk(draws: ArrayLike) -> Array:
    """Compute the bulk effective sample size: that of the rank-normalised draws.

    Args:
        draws: Draws of one site, shape `(chain, draw, *event)`, real or integer.

    Returns:
        The number of independent draws that would estimate the centre of the distribution as well,
        shape `event`. NaN where there are fewer than four draws, where all draws are equal, and
        where a draw is not finite.

    Raises:
        ValueError: If `draws` has fewer than two axes.

    References:
        Rank-normalization, folding, and localization: an improved R-hat for assessing convergence
        of MCMC. Vehtari, Gelman, Simpson, Carpenter and Bürkner, 2021. arXiv:1903.08008.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 500))
        >>> bool(1500 < ess_bulk(draws) < 2500)
        True
    """
    return _over_elements(draws, _rank_ess)[0]


def ess_mean(draws: ArrayLike) -> Array:
    """Compute the effective sample size of the mean: that of the draws as they are.

    Args:
        draws: Draws of one site, shape `(chain, draw, *event)`, real or integer.

    Returns:
        The number of independent draws that would estimate the mean as well, shape `event`. NaN
        where there are fewer than four draws, where all draws are equal, and where a draw is not
        finite.

    Raises:
        ValueError: If `draws` has fewer than two axes.

    References:
        Practical Markov chain Monte Carlo. Geyer, 1992, Statistical Science 7.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 500))
        >>> bool(1500 < ess_mean(draws) < 2500)
        True
    """
    return _over_elements(draws, lambda columns: _ess(columns.split))[0]


def ess_tail(draws: ArrayLike) -> Array:
    """Compute the tail effective sample size: the smaller of those of the 5 % and 95 % quantiles.

    Args:
        draws: Draws of one site, shape `(chain, draw, *event)`, real or integer.

    Returns:
        The number of independent draws that would estimate both quantiles as well, shape `event`.
        NaN where there are fewer than four draws, where all draws are equal, and where a draw is
        not finite.

    Raises:
        ValueError: If `draws` has fewer than two axes.

    References:
        Rank-normalization, folding, and localization: an improved R-hat for assessing convergence
        of MCMC. Vehtari, Gelman, Simpson, Carpenter and Bürkner, 2021. arXiv:1903.08008.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 500, 3))
        >>> ess_tail(draws).shape
        (3,)
    """
    return _over_elements(draws, _smaller_tail_ess)[0]


@dataclass(frozen=True)
class Convergence:
    """What `convergence` finds, each of the shape `event`."""

    rhat: Array
    ess_bulk: Array
    ess_tail: Array


def convergence(draws: ArrayLike) -> Convergence:
    """Compute `rhat`, `ess_bulk` and `ess_tail` together, which sort the draws but once.

    Args:
        draws: Draws of one site, shape `(chain, draw, *event)`, real or integer.

    Returns:
        The three, each as its own function gives it.

    Raises:
        ValueError: If `draws` has fewer than two axes.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 500, 3))
        >>> bool((convergence(draws).rhat == rhat(draws)).all())
        True
    """
    return Convergence(*_over_elements(draws, _rank_rhat, _rank_ess, _smaller_tail_ess))


def mcse_mean(draws: ArrayLike) -> Array:
    """Compute the Monte Carlo standard error of the mean over all chains.

    Args:
        draws: Draws of one site, shape `(chain, draw, *event)`, real or integer.

    Returns:
        The standard error in the unit of the draws, shape `event`. NaN where there are fewer than
        four draws, where all draws are equal, and where a draw is not finite.

    Raises:
        ValueError: If `draws` has fewer than two axes.

    References:
        Rank-normalization, folding, and localization: an improved R-hat for assessing convergence
        of MCMC. Vehtari, Gelman, Simpson, Carpenter and Bürkner, 2021. arXiv:1903.08008.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 500))
        >>> bool(0.015 < mcse_mean(draws) < 0.030)
        True
    """

    def of_mean(columns: _Columns) -> Array:
        spread: Array = columns.values.std(axis=(1, 2), ddof=1)
        return spread / np.sqrt(_ess(columns.split))

    return _over_elements(draws, of_mean)[0]


def mcse_sd(draws: ArrayLike) -> Array:
    """Compute the Monte Carlo standard error of the standard deviation over all chains.

    Args:
        draws: Draws of one site, shape `(chain, draw, *event)`, real or integer.

    Returns:
        The standard error in the unit of the draws, shape `event`. NaN where there are fewer than
        four draws, where all draws are equal, and where a draw is not finite.

    Raises:
        ValueError: If `draws` has fewer than two axes.

    References:
        Rank-normalization, folding, and localization: an improved R-hat for assessing convergence
        of MCMC. Vehtari, Gelman, Simpson, Carpenter and Bürkner, 2021. arXiv:1903.08008.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 500))
        >>> bool(0.010 < mcse_sd(draws) < 0.023)  # 1 / sqrt(2 * 2000) for normal draws
        True
    """

    def by_delta_method(columns: _Columns) -> Array:
        values = columns.values
        squares = (values - values.mean(axis=(1, 2), keepdims=True)) ** 2
        of_variance = squares.var(axis=(1, 2)) / _ess(_split(squares))
        return np.asarray(np.sqrt(of_variance / squares.mean(axis=(1, 2))) / 2)

    return _over_elements(draws, by_delta_method)[0]


def mcse_quantile(draws: ArrayLike, probability: float) -> Array:
    """Compute the Monte Carlo standard error of a quantile over all chains.

    Args:
        draws: Draws of one site, shape `(chain, draw, *event)`, real or integer.
        probability: Which quantile, between 0 and 1.

    Returns:
        Half the width of a 68 % interval in the unit of the draws, shape `event`. NaN where there
        are fewer than four draws, where all draws are equal, and where a draw is not finite.

    Raises:
        ValueError: If `draws` has fewer than two axes, or the probability is out of range.

    References:
        Rank-normalization, folding, and localization: an improved R-hat for assessing convergence
        of MCMC. Vehtari, Gelman, Simpson, Carpenter and Bürkner, 2021. arXiv:1903.08008.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 500))
        >>> bool(0.02 < mcse_quantile(draws, 0.5) < 0.04)  # sqrt(pi / 2) / sqrt(2000)
        True
    """
    if not 0 < probability < 1:
        msg = f"probability: expected a number between 0 and 1, got {probability}."
        raise ValueError(msg)

    def half_width(columns: _Columns) -> Array:
        from scipy.special import betaincinv

        ordered = columns.ordered
        ess = _ess_below(columns, probability)[:, None]
        one_sd = np.array([0.1586553, 0.8413447])
        share = betaincinv(ess * probability + 1, ess * (1 - probability) + 1, one_sd)
        last = ordered.shape[1] - 1
        place = share * ordered.shape[1] - 1
        lower = np.floor(place[:, :1]).clip(0, last).astype(int)
        upper = np.ceil(place[:, 1:]).clip(0, last).astype(int)
        ends = np.take_along_axis(ordered, np.hstack([lower, upper]), axis=1)
        return np.asarray((ends[:, 1] - ends[:, 0]) / 2)

    return _over_elements(draws, half_width)[0]


def bfmi(energy: ArrayLike) -> Array:
    """Compute the estimated Bayesian fraction of missing information of each chain.

    A value below 0.3 says that drawing a new momentum changes the energy too little for the chain
    to move between the energy levels of the target: its tails are explored slowly.

    Args:
        energy: Energy (the Hamiltonian) of each draw, shape `(chain, draw)`.

    Returns:
        One value for each chain, shape `(chain,)`. NaN where a chain has fewer than two draws, or
        its energies are constant or not finite.

    Raises:
        ValueError: If `energy` has not exactly two axes.

    References:
        Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo. Betancourt,
        2016. arXiv:1604.00695.

    Example:
        >>> energy = np.random.default_rng(0).normal(size=(4, 500))
        >>> bool((bfmi(energy) > 1.0).all())
        True
    """
    values = np.asarray(energy, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"energy: expected axes (chain, draw), got shape {values.shape}.")
    result = np.full(len(values), np.nan)
    if values.shape[1] < 2:
        return result
    for chain in np.flatnonzero(np.isfinite(values).all(axis=1)):
        if np.ptp(values[chain]) > 0.0:
            steps = np.diff(values[chain])
            result[chain] = np.mean(steps**2) / np.var(values[chain], ddof=1)
    return result


class _Columns:
    """Scalars that are worked on together, with what several diagnostics of them have in common.

    Args:
        values: Their draws, (column, chain, draw).
    """

    def __init__(self, values: Array) -> None:
        self.values = values
        self.split = _split(values)

    @functools.cached_property
    def order(self) -> NDArray[np.intp]:
        """Where in all split chains the smallest draw is, the next, ..., (column, rank)."""
        return np.argsort(_joined(self.split), axis=-1)

    @functools.cached_property
    def ordered_split(self) -> Array:
        """The draws of all split chains in order, (column, rank)."""
        return _taken(_joined(self.split), self.order)

    @functools.cached_property
    def ordered(self) -> Array:
        """The draws of all chains in order, (column, rank)."""
        if self.split.size == self.values.size:
            return self.ordered_split
        return np.sort(_joined(self.values), axis=-1)

    @functools.cached_property
    def scores(self) -> Array:
        """The normal scores of the split chains, of their shape."""
        return _placed(_normal_scores(self.ordered_split), self.order).reshape(self.split.shape)

    @functools.cached_property
    def folded_scores(self) -> Array:
        """The same of the distances from the median."""
        middle = self.order.shape[1] // 2
        median = (self.ordered_split[:, middle - 1] + self.ordered_split[:, middle]) / 2
        folded = np.abs(self.ordered_split - median[:, None])
        # They fall, then rise: a stable sort merges such runs without comparing within them.
        order = np.argsort(folded, axis=-1, kind="stable")
        scores = _normal_scores(_taken(folded, order))
        return _placed(scores, _taken(self.order, order)).reshape(self.split.shape)


def _over_elements(draws: ArrayLike, *diagnostics: Callable[[_Columns], Array]) -> list[Array]:
    """Apply diagnostics to the elements that have some.

    Columns come in chunks, so that the memory used is small whatever the event.
    """
    values = np.asarray(draws)
    if values.ndim < 2:
        raise ValueError(f"draws: expected axes (chain, draw, *event), got shape {values.shape}.")
    chains, length = values.shape[:2]
    results = [np.full(values.shape[2:], np.nan) for _ in diagnostics]
    if length < _MIN_DRAWS or not chains:
        return results
    flat = [result.reshape(-1) for result in results]
    values = values.reshape(chains, length, flat[0].size)
    step = max(1, _CHUNK // (chains * length))

    def work(start: int) -> None:
        part = values[:, :, start : start + step].astype(np.float64)
        columns = np.ascontiguousarray(np.moveaxis(part, 2, 0))
        low, high = columns.min(axis=(1, 2)), columns.max(axis=(1, 2))
        # False for NaN.
        usable = (low < high) & (low > -np.inf) & (high < np.inf)
        if usable.any():
            chosen = _Columns(columns if usable.all() else columns[usable])
            # Chains that are each constant divide by a variance of zero: that is the right R-hat.
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                for result, diagnostic in zip(flat, diagnostics, strict=True):
                    result[start : start + step][usable] = diagnostic(chosen)

    starts = range(0, flat[0].size, step)
    if len(starts) < _MIN_CHUNKS_OF_THREADS:
        for start in starts:
            work(start)
    else:
        with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
            list(pool.map(work, starts))
    return results


def _split(columns: Array) -> Array:
    """Return the halves of each chain as chains of their own; a middle draw is left out."""
    half = columns.shape[2] // 2
    return np.concatenate([columns[:, :, :half], columns[:, :, -half:]], axis=1)


def _joined(columns: Array) -> Array:
    return columns.reshape(len(columns), -1)


def _taken(rows: NDArray[Any], order: NDArray[np.intp]) -> NDArray[Any]:
    """Return each row in an order of its own."""
    first = np.arange(len(rows))[:, None] * rows.shape[1]
    taken: NDArray[Any] = rows.ravel().take(order + first)
    return taken


def _placed(rows: Array, order: NDArray[np.intp]) -> Array:
    """Return rows that `_taken` would turn into the given ones."""
    result = np.empty(rows.size)
    first = np.arange(len(rows))[:, None] * rows.shape[1]
    result[order + first] = rows
    return result.reshape(rows.shape)


def _rank_rhat(columns: _Columns) -> Array:
    # The folded draws are constant, and have no R-hat, where there are only two values.
    if columns.values.shape[1] < 2:
        return np.full(len(columns.values), np.nan)
    return np.fmax(_plain_rhat(columns.scores), _plain_rhat(columns.folded_scores))


def _rank_ess(columns: _Columns) -> Array:
    return _ess(columns.scores)


def _smaller_tail_ess(columns: _Columns) -> Array:
    return np.minimum(_ess_below(columns, _TAIL), _ess_below(columns, 1 - _TAIL))


def _plain_rhat(split: Array) -> Array:
    length = split.shape[2]
    within = split.var(axis=2, ddof=1).mean(axis=1)
    between = split.mean(axis=2).var(axis=1, ddof=1)
    return np.asarray(np.sqrt(between / within + (length - 1) / length))


def _normal_scores(ordered: Array) -> Array:
    """Return the normal quantiles of the ranks of draws in order, equal ones at their mean rank.

    Args:
        ordered: Rows of draws, each in order.

    Returns:
        Of the same shape.
    """
    size = ordered.shape[1]
    scores = _quantiles_of_half_ranks(size)
    first = np.ones(ordered.shape, dtype=bool)
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=first[:, 1:])
    if first.all():
        return np.broadcast_to(scores[::2], ordered.shape)
    start = np.flatnonzero(first)
    count = np.diff(start, append=first.size)
    # The ranks start % size + 1 ... start % size + count, whose mean may be half-integer.
    mean = np.repeat(2 * (start % size) + count - 1, count)
    return np.asarray(scores[mean].reshape(ordered.shape))


@functools.lru_cache(maxsize=4)
def _quantiles_of_half_ranks(size: int) -> Array:
    """Return the normal quantiles of the ranks 1, 1.5, 2, ..., size, by Blom's formula."""
    shares = (np.arange(2, 2 * size + 1) / 2 - 3 / 8) / (size + 1 / 4)
    return np.array([NormalDist().inv_cdf(share) for share in shares.tolist()])


def _ess_below(columns: _Columns, probability: float) -> Array:
    """Return the ESS of the event that a draw is at most the quantile."""
    ordered = columns.ordered
    size = ordered.shape[1]
    # ArviZ's rounding: it decides on which side a draw lies that is the quantile.
    place = size * probability + (1 - probability)
    below = min(max(math.floor(place), 1), size - 1)
    low, high = ordered[:, below - 1], ordered[:, below]
    quantile = low + min(max(place - below, 0.0), 1.0) * (high - low)
    return _ess((columns.split <= quantile[:, None, None]).astype(np.float64))


def _ess(columns: Array) -> Array:
    """Return the effective sample size of the mean, by Geyer's initial monotone sequence.

    Args:
        columns: Split chains, (column, chain, draw).

    Returns:
        Shape (column,). The number of draws where all are equal.
    """
    chains, length = columns.shape[1:]
    means = columns.mean(axis=2, keepdims=True)
    padded = _fast_length(2 * length)
    spectrum = np.fft.rfft(columns - means, n=padded)
    power = (spectrum.real**2 + spectrum.imag**2).mean(axis=1)
    covariance = np.fft.irfft(power, n=padded)[:, :length] / length
    within = covariance[:, :1] * length / (length - 1)
    total = covariance[:, :1]
    if chains > 1:
        total = total + means.var(axis=1, ddof=1)
    # Lags 2 j and 2 j + 1 make pair j; the last two lags are not looked at.
    pairs = max((length - 3) // 2, 0) + 1
    correlation = 1.0 - (within - covariance[:, : 2 * pairs]) / total
    correlation[:, 0] = 1.0
    sums = correlation[:, 0::2] + correlation[:, 1::2]
    # The first pair that is not positive is the last of the sequence.
    positive = np.logical_and.accumulate(sums[:, :-1] > 0.0, axis=1)
    last = positive.sum(axis=1, keepdims=True)
    before = np.arange(pairs) < last
    monotone = np.minimum.accumulate(sums, axis=1)
    even = np.take_along_axis(correlation[:, 0::2], last, axis=1)
    end = np.take_along_axis(sums, last, axis=1)
    rest = np.where((end >= 0.0) | (even > 0.0), even, 0.0)
    time = -1.0 + 2.0 * np.where(before, monotone, 0.0).sum(axis=1) + rest[:, 0]
    size = chains * length
    # Chains that swing around their mean are worth at most log10(draws) times as many.
    result = size / np.maximum(time, 1 / math.log10(size))
    constant = columns.min(axis=(1, 2)) == columns.max(axis=(1, 2))
    return np.where(constant, float(size), result)


def _fast_length(least: int) -> int:
    """Return a length of at least so much that has a fast Fourier transform."""
    return min(odd << max(0, math.ceil(math.log2(least / odd))) for odd in (1, 3, 5, 9, 15))
