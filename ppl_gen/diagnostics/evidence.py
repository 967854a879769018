"""The log evidence of a model: how probable it finds its data.

By importance sampling it takes draws of a guide alone; by bridge sampling also draws of the
posterior, and far less of the guide.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_gen.diagnostics.arrays import as_double
from ppl_gen.diagnostics.mcmc import ess_bulk, mcse_mean
from ppl_gen.diagnostics.psis import Smoothed, psis

__all__ = ["Evidence", "bridge_evidence", "importance_evidence"]

Array = NDArray[np.float64]

# Beyond it the logarithm of an estimate is no longer about as uncertain as the estimate itself.
_MAX_RELATIVE_ERROR = 0.3


@dataclass(frozen=True)
class Evidence:
    """An estimate of a log evidence.

    Args:
        log_evidence: The estimate, in nats.
        error: Its Monte Carlo standard error.
        reliable: Whether the error can be believed.
    """

    log_evidence: float
    error: float
    reliable: bool


def importance_evidence(log_ratios: ArrayLike | Smoothed) -> Evidence:
    """Estimate the log evidence from independent draws of a guide.

    Args:
        log_ratios: Log joint density minus the guide's normalised log density at each draw, shape
            `(draw,)`, or what `psis` made of them.

    Returns:
        The estimate, of smoothed weights. It can be relied on where k-hat is below the threshold
        and the error below 0.3; elsewhere it is too low, most likely.

    Raises:
        ValueError: As for `psis`.

    References:
        Pareto smoothed importance sampling. Vehtari, Simpson, Gelman, Yao and Gabry, 2024,
        Journal of Machine Learning Research 25. arXiv:1507.02646.

    Example:
        >>> draws = 1.2 * np.random.default_rng(0).normal(size=10_000)
        >>> log_guide = -0.5 * (draws / 1.2) ** 2 - np.log(1.2 * np.sqrt(2 * np.pi))
        >>> found = importance_evidence(-0.5 * draws**2 - log_guide)  # of exp(-x² / 2)
        >>> bool(abs(found.log_evidence - np.log(np.sqrt(2 * np.pi))) < 3 * found.error)
        True
    """
    weights = log_ratios if isinstance(log_ratios, Smoothed) else psis(log_ratios)
    # The relative variance of one weight is the number of draws over the ESS, less one.
    error = math.sqrt(max(1 / weights.ess - 1 / len(weights.log_weights), 0.0))
    return Evidence(weights.log_mean, error, weights.reliable and error < _MAX_RELATIVE_ERROR)


def bridge_evidence(
    posterior_log_joint: ArrayLike,
    posterior_log_proposal: ArrayLike,
    proposal_log_joint: ArrayLike,
    proposal_log_proposal: ArrayLike,
) -> Evidence:
    """Estimate the log evidence from draws of the posterior and of a proposal close to it.

    The estimate is the fixed point of Meng and Wong's iteration, found as the only root of a
    monotone function. Its error takes autocorrelation into account, and does not know of parts of
    the posterior that neither kind of draws reaches.

    A proposal that was fitted to the same draws of the posterior makes the estimate too high: fit
    it to one half of them and give the other half.

    Args:
        posterior_log_joint: Log joint density at draws of the posterior, `(chain, draw)`.
        posterior_log_proposal: The proposal's normalised log density there, `(chain, draw)`.
        proposal_log_joint: Log joint density at independent draws of the proposal, `(draw,)`.
        proposal_log_proposal: The proposal's normalised log density there, `(draw,)`.

    Returns:
        The estimate, whose error can be relied on where it is below 0.3.

    Raises:
        ValueError: If shapes do not match, or the posterior's draws have no density under the
            model or the proposal's none under the proposal, or the two have nothing in common.

    References:
        Simulating ratios of normalizing constants via a simple identity. Meng and Wong, 1996,
        Statistica Sinica 6. A tutorial on bridge sampling. Gronau, Sarafoglou, Matzke, Ly, Boehm,
        Marsman, Leslie, Forster, Wagenmakers and Steingroever, 2017. arXiv:1703.05984. Estimating
        marginal likelihoods for mixture and Markov switching models using bridge sampling
        techniques. Frühwirth-Schnatter, 2004, The Econometrics Journal 7.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> def log_joint(x):
        ...     return -0.5 * x**2
        >>> def log_proposal(x):
        ...     return -0.5 * (x / 1.5) ** 2 - np.log(1.5 * np.sqrt(2 * np.pi))
        >>> x, z = rng.normal(size=(4, 500)), 1.5 * rng.normal(size=2000)
        >>> found = bridge_evidence(log_joint(x), log_proposal(x), log_joint(z), log_proposal(z))
        >>> bool(abs(found.log_evidence - np.log(np.sqrt(2 * np.pi))) < 3 * found.error)
        True
    """
    at_posterior = _log_ratios("posterior", posterior_log_joint, posterior_log_proposal, 2)
    at_proposal = _log_ratios("proposal", proposal_log_joint, proposal_log_proposal, 1)
    count = len(at_proposal)
    worth = _worth(at_posterior)
    offset = math.log(worth / count)
    log_evidence = _root(at_posterior, at_proposal, offset)
    # The optimal bridge function makes of both kinds of draws these shares, between 0 and 1.
    of_posterior = _expit(at_proposal - log_evidence + offset)
    of_proposal = _expit(log_evidence - offset - at_posterior)
    variance = of_posterior.var(ddof=1) / (count * of_posterior.mean() ** 2)
    if np.ptp(of_proposal) > 0:
        variance += float(mcse_mean(of_proposal) / of_proposal.mean()) ** 2
    error = math.sqrt(variance)
    return Evidence(log_evidence, error, error < _MAX_RELATIVE_ERROR)


def _log_ratios(kind: str, log_joint: ArrayLike, log_proposal: ArrayLike, axes: int) -> Array:
    """Return log joint minus log proposal density at draws of one kind."""
    joint, proposal = as_double(log_joint), as_double(log_proposal)
    expected = ("(draw,)", "(chain, draw)")[axes - 1]
    if joint.shape != proposal.shape or joint.ndim != axes or joint.shape[-1] < (2, 4)[axes - 1]:
        raise ValueError(
            f"{kind}_log_joint, {kind}_log_proposal: expected both {expected}, at least "
            f"{(2, 4)[axes - 1]} draws, got {joint.shape} and {proposal.shape}."
        )
    own, name = (joint, "model") if kind == "posterior" else (proposal, "proposal")
    wrong = ~np.isfinite(own) | np.isnan(joint) | np.isnan(proposal)
    wrong |= np.isposinf(joint) | np.isposinf(proposal)
    if wrong.any():
        raise ValueError(
            f"{kind}_log_joint, {kind}_log_proposal: expected finite log densities of the {name} "
            f"at its own draws, and none NaN or +inf, got such at {int(wrong.sum())} of "
            f"{wrong.size} draws. Look for values that overflow."
        )
    return joint - proposal


def _worth(log_ratios: Array) -> float:
    """Return how many independent draws those of the posterior are worth."""
    worth = float(ess_bulk(np.clip(log_ratios, -1e300, 1e300)))
    return float(log_ratios.size) if math.isnan(worth) else min(worth, float(log_ratios.size))


def _root(at_posterior: Array, at_proposal: Array, offset: float) -> float:
    """Return the log evidence at which both kinds of draws are explained equally well.

    Where p is the joint density, g the proposal's, r the evidence, and s and t the shares of the
    draws that are the posterior's and the proposal's, E_g[p / (s p + t r g)] equals
    E_posterior[r g / (s p + t r g)]. The first falls and the second rises with r.

    Args:
        at_posterior: log p - log g at the posterior's draws.
        at_proposal: The same at the proposal's.
        offset: log s - log t.
    """
    from scipy.optimize import brentq

    def excess(log_evidence: float) -> float:
        first = _expit(at_proposal - log_evidence + offset).mean()
        second = _expit(log_evidence - offset - at_posterior).mean()
        with np.errstate(divide="ignore"):
            return float(np.clip(np.log(first) - np.log(second) - offset, -1e9, 1e9))

    both = np.concatenate([at_posterior.ravel(), at_proposal])
    both = both[np.isfinite(both)]
    if not np.isfinite(at_proposal).any() or not np.isfinite(at_posterior).any():
        raise ValueError(
            "the posterior and the proposal have nothing in common: one's density is 0 at all "
            "draws of the other. Take a proposal of the same support."
        )
    reach = abs(offset) + 1.0
    low, high = both.min() - reach, both.max() + reach
    while excess(low) < 0:
        low -= reach
        reach *= 2
    while excess(high) > 0:
        high += reach
        reach *= 2
    return float(brentq(excess, low, high, xtol=1e-10))


def _expit(values: Array) -> Array:
    from scipy.special import expit

    return np.asarray(expit(values))
