"""Convergence diagnostics of Markov chains.

All of these compare chains with each other and with themselves over time. They say nothing about
independent draws, such as those of a variational guide: for these R-hat is one and the effective
sample size is the number of draws, however wrong the guide is.

Constant, NaN and infinite draws have no diagnostics: the functions here answer NaN for them and
do not warn.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_gen.diagnostics.arviz_import import import_arviz

__all__ = ["bfmi", "ess_bulk", "ess_tail", "mcse_mean", "rhat"]

# Half a chain must hold two draws for a variance within it.
_MIN_DRAWS = 4


def rhat(draws: ArrayLike) -> NDArray[np.float64]:
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
    arviz = import_arviz()
    return _over_elements(arviz.rhat, draws, min_chains=2)


def ess_bulk(draws: ArrayLike) -> NDArray[np.float64]:
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
    arviz = import_arviz()
    return _over_elements(lambda column: arviz.ess(column, method="bulk"), draws)


def ess_tail(draws: ArrayLike) -> NDArray[np.float64]:
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
    arviz = import_arviz()
    # The lines of ArviZ differ in their default for `prob`.
    return _over_elements(lambda column: arviz.ess(column, method="tail", prob=(0.05, 0.95)), draws)


def mcse_mean(draws: ArrayLike) -> NDArray[np.float64]:
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
    arviz = import_arviz()
    return _over_elements(lambda column: arviz.mcse(column, method="mean"), draws)


def bfmi(energy: ArrayLike) -> NDArray[np.float64]:
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


def _over_elements(
    diagnostic: Callable[[NDArray[np.float64]], Any], draws: ArrayLike, *, min_chains: int = 1
) -> NDArray[np.float64]:
    """Apply a diagnostic of one `(chain, draw)` array to each element of the event that has one.

    ArviZ answers constants with the number of draws, or with a warning and NaN, and logs a line
    for NaN and for too few draws; so none of these reaches it.
    """
    values = np.asarray(draws, dtype=np.float64)
    if values.ndim < 2:
        raise ValueError(f"draws: expected axes (chain, draw, *event), got shape {values.shape}.")
    event_shape = values.shape[2:]
    result = np.full(event_shape, np.nan)
    if values.shape[0] < min_chains or values.shape[1] < _MIN_DRAWS:
        return result
    columns = np.moveaxis(values, (0, 1), (-2, -1)).reshape(-1, *values.shape[:2])
    flat = result.reshape(-1)
    usable = np.isfinite(columns).all(axis=(1, 2)) & (
        columns.max(axis=(1, 2)) > columns.min(axis=(1, 2))
    )
    # Chains that are each constant divide by a variance of zero: that is the right R-hat.
    with np.errstate(divide="ignore", invalid="ignore"):
        for index in np.flatnonzero(usable):
            flat[index] = float(diagnostic(columns[index]))
    return result
