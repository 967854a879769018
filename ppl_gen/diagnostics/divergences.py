"""Where trajectories of Hamiltonian Monte Carlo diverge: anywhere, or gathered in one place.

A few divergences scattered over a posterior cost little. Gathered in one place, they say that the
draws may miss what lies behind it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_gen.diagnostics.arrays import as_double

__all__ = ["CLEAR_RANK", "Gathering", "centred_ranks", "gathering"]

Array = NDArray[np.float64]

# Values whose mean rank is so far from a half are small or large.
CLEAR_RANK = 0.25
# One or two are anywhere.
_MIN_DIVERGENCES = 3
# So many say where they are as well as all of them.
_MAX_DIVERGENCES = 200
# Places that chance would have put them in: p-values are at least 1 / 500.
_SHUFFLES = 499


@dataclass(frozen=True)
class Gathering:
    """Whether divergences are gathered in one place.

    Args:
        divergences: How many there are.
        p_value: How likely as many at random are to be gathered as much in any scalar or in all
            together; NaN where there are fewer than three, or no draws elsewhere.
        scalar: The scalar in which they are gathered most, as an index; None without a p-value.
        side: "small" or "large" where its values are so at divergences on average; else "middle"
            where they are close together, "ends" where they are far apart.
        shift: Mean rank of its values at divergences among those of all draws, from -0.5 (all the
            smallest) to 0.5.
        there: Median of its values at divergences.
        elsewhere: Median of its values at other draws.
    """

    divergences: int
    p_value: float
    scalar: int | None = None
    side: str = ""
    shift: float = math.nan
    there: float = math.nan
    elsewhere: float = math.nan

    def gathered(self, alpha: float = 0.01) -> bool:
        """Return whether they are gathered more than chance would have it.

        Args:
            alpha: Probability of saying so of divergences that are anywhere.
        """
        return self.p_value <= alpha


def gathering(
    draws: ArrayLike,
    diverging: ArrayLike | None = None,
    *,
    places: ArrayLike | None = None,
    seed: int = 0,
) -> Gathering:
    """Find out whether divergences are gathered in one place.

    In each scalar the ranks of the divergences among all draws have a mean and a spread. Both are
    compared with those of divergences at random, as is the spread in all scalars together; the
    p-value is that of the largest deviation. At random means that each chain's flags are moved
    along it by as many draws as chance will have, so that divergences that follow one another in
    a chain that moves slowly are no sign of a place.

    It does not see divergences that are all in a chain which never leaves their place: R-hat does.

    Args:
        draws: Draws of the scalars, shape `(chain, draw, scalar)`. Scalars with NaN or infinite
            draws are passed over.
        diverging: Whether each draw's trajectory diverged, shape `(chain, draw)`.
        places: Instead of these, where trajectories diverged, shape `(divergence, scalar)`; NaN in
            a scalar where that is not known. At random means at independent draws then.
        seed: Seed of what is compared with.

    Returns:
        How likely chance is to gather them so, and where they are.

    Raises:
        ValueError: If the shapes do not match, or not either of flags and places is given.

    References:
        Visualization in Bayesian workflow. Gabry, Simpson, Vehtari, Betancourt and Gelman, 2019,
        section 4. arXiv:1709.01449.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 500, 3))
        >>> found = gathering(draws, draws[:, :, 1] < -2.2)
        >>> found.gathered(), found.scalar, found.side
        (True, 1, 'small')
        >>> gathering(draws, np.random.default_rng(1).random((4, 500)) < 0.02).gathered()
        False
    """
    values = as_double(draws)
    if values.ndim != 3:
        raise ValueError(f"draws: expected axes (chain, draw, scalar), got shape {values.shape}.")
    if (diverging is None) == (places is None):
        raise ValueError("expected either diverging or places, got both or neither.")
    columns = values.reshape(-1, values.shape[2])
    generator = np.random.default_rng(seed)
    if diverging is not None:
        where = _flagged(diverging, values.shape[:2])
        elsewhere = np.delete(columns, where, axis=0)
        count, where = len(where), _some(where)
        at, shuffled = columns[where], _shifted(where, values.shape[:2], generator)
    else:
        at, elsewhere = _places(places, columns.shape[1]), columns
        count, at = len(at), _some(at)
        shuffled = generator.integers(0, max(len(columns), 1), size=(_SHUFFLES, len(at)))
    usable = np.isfinite(columns).all(axis=0) & np.isfinite(at).all(axis=0)
    (chosen,) = np.nonzero(usable & (np.ptp(np.where(usable, columns, 0.0), axis=0) > 0))
    if count < _MIN_DIVERGENCES or not len(chosen) or not len(elsewhere):
        return Gathering(count, math.nan)
    found = _most_gathered(columns[:, chosen], at[:, chosen], shuffled)
    scalar = int(chosen[found.scalar])
    medians = np.median(at[:, scalar]), np.median(elsewhere[:, scalar])
    return Gathering(count, found.p_value, scalar, found.side, found.shift, *map(float, medians))


def _flagged(diverging: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return which of all draws are flagged."""
    flags = as_double(diverging)
    if flags.shape != shape:
        raise ValueError(
            f"diverging: expected axes (chain, draw) of {shape}, got shape {flags.shape}."
        )
    return np.flatnonzero(flags > 0)


def _places(places: ArrayLike | None, scalars: int) -> Array:
    at = as_double(places)
    if at.ndim != 2 or at.shape[1] != scalars:
        raise ValueError(
            f"places: expected axes (divergence, scalar), with {scalars} scalars, got shape "
            f"{at.shape}."
        )
    return at


@dataclass(frozen=True)
class _Most:
    """The p-value, and the scalar that deviates most, its side and its mean rank."""

    p_value: float
    scalar: int
    side: str
    shift: float


def _most_gathered(columns: Array, at: Array, shuffled: NDArray[np.intp]) -> _Most:
    """Compare mean and spread of the ranks with those that chance would have.

    Args:
        columns: Draws, (draw, scalar).
        at: Values at divergences, (divergence, scalar).
        shuffled: Draws that chance took for divergent, (shuffle, divergence).
    """
    # What was found comes first, and what chance found follows.
    moments = np.empty((1 + len(shuffled), 2, columns.shape[1]))
    for scalar, column in enumerate(columns.T):
        ordered = np.sort(column)
        moments[0, :, scalar] = _moments(centred_ranks(at[:, scalar], ordered))
        moments[1:, :, scalar] = _moments(centred_ranks(column, ordered)[shuffled]).T
    scores = _standardised(moments)
    # In all scalars together only closeness means one place.
    close = -_standardised(moments[:, 1].sum(axis=1))
    largest = np.maximum(np.abs(scores).max(axis=(1, 2)), close)
    # Equal deviations are equal up to rounding.
    p_value = float((largest >= largest[0] * (1 - 1e-9)).mean())
    scalar = int(np.argmax(np.abs(scores[0]).max(axis=0)))
    shift = float(moments[0, 0, scalar])
    if abs(shift) > CLEAR_RANK:
        return _Most(p_value, scalar, "small" if shift < 0 else "large", shift)
    return _Most(p_value, scalar, "middle" if scores[0, 1, scalar] < 0 else "ends", shift)


def _standardised(values: Array) -> Array:
    """Return how many standard deviations each row is from the mean of all."""
    spread = values.std(axis=0)
    return np.asarray((values - values.mean(axis=0)) / np.where(spread > 0, spread, np.inf))


def centred_ranks(values: Array, ordered: Array) -> Array:
    """Compute the mid-ranks of values among draws, scaled to -0.5 ... 0.5.

    Args:
        values: The values, any shape.
        ordered: The draws, ascending, shape `(draw,)`.

    Returns:
        Of the shape of the values.

    Example:
        >>> centred_ranks(np.array([0.0, 2.0, 9.0]), np.array([1.0, 2.0, 2.0, 3.0]))
        array([-0.5,  0. ,  0.5])
    """
    ranks = np.searchsorted(ordered, values) + np.searchsorted(ordered, values, "right")
    return np.asarray(ranks / (2 * len(ordered)) - 0.5)


def _moments(ranks: Array) -> Array:
    """Return the mean and the standard deviation of ranks over their last axis."""
    return np.stack([ranks.mean(axis=-1), ranks.std(axis=-1)])


def _some(divergences: NDArray[Any]) -> NDArray[Any]:
    """Return those that are looked at: some, evenly spread, if they are many."""
    return divergences[:: max(1, math.ceil(len(divergences) / _MAX_DIVERGENCES))]


def _shifted(
    where: NDArray[np.intp], shape: tuple[int, ...], generator: np.random.Generator
) -> NDArray[np.intp]:
    """Return flagged draws moved along their chains, in a circle, (shuffle, divergence)."""
    chain, draw = np.divmod(where, shape[1])
    moves = generator.integers(0, shape[1], size=(_SHUFFLES, shape[0]))
    return np.asarray(chain * shape[1] + (draw + moves[:, chain]) % shape[1])
