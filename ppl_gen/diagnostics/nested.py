"""Whether many short chains have forgotten where they started."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_gen.diagnostics.arrays import as_double

__all__ = ["nested_rhat"]

Array = NDArray[np.float64]


def nested_rhat(draws: ArrayLike, superchains: int) -> Array:
    """Compute the rank-normalised nested R-hat, the larger of its bulk and its folded version.

    Chains that start at one point make a superchain. Means of superchains vary little, however
    short their chains are, once these have forgotten where they started; plain R-hat cannot tell
    that from chains that are too short for their means to be known.

    Where all is well its square is about 1 + 1 / (chains in a superchain * effective draws in a
    chain): with 16 chains of one draw in each superchain it is near 1.03, with 128 near 1.004.

    Args:
        draws: Draws of one site, shape `(chain, draw, *event)`, real or integer; the chains of the
            first superchain come first, then those of the second.
        superchains: How many there are, each of as many chains.

    Returns:
        One value for each element of the event, shape `event`. NaN where there are two draws or
        fewer in a superchain, where all draws are equal, and where a draw is not finite. Infinite
        where every superchain is constant, at different values.

    Raises:
        ValueError: If `draws` has fewer than two axes, or the chains do not make at least two
            superchains of equal size.

    References:
        Nested R-hat: assessing the convergence of Markov chain Monte Carlo when running many short
        chains. Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman, 2022.
        arXiv:2110.13017. The ranks' normal scores are those of Vehtari et al., 2021,
        arXiv:1903.08008.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(512, 2))
        >>> bool(nested_rhat(draws, superchains=4) < 1.02)
        True
        >>> draws[:128] += 1.0  # the first superchain is still on its way
        >>> bool(nested_rhat(draws, superchains=4) > 1.05)
        True
    """
    values = as_double(draws)
    if values.ndim < 2:
        raise ValueError(f"draws: expected axes (chain, draw, *event), got shape {values.shape}.")
    chains, length = values.shape[:2]
    if superchains < 2 or chains % superchains or not chains:
        raise ValueError(
            f"superchains: expected at least 2, of equally many of the {chains} chains, "
            f"got {superchains}."
        )
    event = values.shape[2:]
    columns = np.moveaxis(values.reshape(chains * length, -1), 0, 1)
    result = np.full(len(columns), np.nan)
    if chains * length <= 2 * superchains:
        return result.reshape(event)
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(columns).all(axis=1) & (np.ptp(columns, axis=1) > 0)
    chosen = columns[usable]
    folded = np.abs(chosen - np.median(chosen, axis=1, keepdims=True))
    shape = superchains, chains // superchains, length
    result[usable] = np.fmax(*(_nested(_scores(part), shape) for part in (chosen, folded)))
    return result.reshape(event)


def _scores(columns: Array) -> Array:
    """Return the normal quantiles of the ranks of each row, by Blom's formula."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    return np.asarray(ndtri((rankdata(columns, axis=1) - 3 / 8) / (columns.shape[1] + 1 / 4)))


def _nested(scores: Array, shape: tuple[int, int, int]) -> Array:
    """Return the nested R-hat of rows of numbers, as they are.

    Args:
        scores: The numbers, (column, superchain x chain x draw).
        shape: Numbers of superchains, of chains in each and of draws in each of these.
    """
    values = scores.reshape(-1, *shape)
    chains = values.mean(axis=3)
    between = chains.mean(axis=2).var(axis=1, ddof=1)
    within = np.zeros(len(values))
    if shape[1] > 1:
        within += chains.var(axis=2, ddof=1).mean(axis=1)
    if shape[2] > 1:
        within += values.var(axis=3, ddof=1).mean(axis=(1, 2))
    # A column of two values, folded, is constant and has none.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.sqrt(1 + between / within))
