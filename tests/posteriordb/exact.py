"""Posterior means and standard deviations in closed form or by one-dimensional quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

__all__ = ["EXACT", "Moments"]

Array = NDArray[np.float64]
Moments = dict[str, tuple[float, float]]


def flat_regression(x: Array, y: Array) -> Moments:
    """Return mean and sd of a regression with flat priors on coefficients and noise scale.

    sigma^2 is scaled-inverse-chi-square with n - k - 1 degrees of freedom, each coefficient
    Student t around the least-squares fit.

    Args:
        x: Design, (n, k).
        y: Outcomes, (n,).
    """
    n, k = x.shape
    freedom = n - k - 1
    fit = np.linalg.lstsq(x, y, rcond=None)[0]
    scale = math.sqrt(np.sum((y - x @ fit) ** 2) / freedom)
    beta_sd = scale * np.sqrt(freedom / (freedom - 2) * np.diag(np.linalg.inv(x.T @ x)))
    log_ratio = special.gammaln((freedom - 1) / 2) - special.gammaln(freedom / 2)
    mean = scale * math.sqrt(freedom / 2) * math.exp(log_ratio)
    moments = _vector("beta", fit, beta_sd)
    return moments | {"sigma": (mean, math.sqrt(freedom / (freedom - 2) * scale**2 - mean**2))}


def normal_regression(
    x: Array,
    y: Array,
    log_prior: Callable[[Array], Array],
    prior_mean: Array | float = 0.0,
    prior_scale: Array | float = math.inf,
    name: str = "beta",
) -> Moments:
    """Return mean and sd of a regression that is normal given its noise scale, by quadrature.

    Args:
        x: Design, (n, k).
        y: Outcomes, (n,).
        log_prior: Log prior density of the noise scale, up to a constant.
        prior_mean: Prior means of the coefficients, (k,) or one number.
        prior_scale: Their prior standard deviations; infinite ones are flat.
        name: What the coefficients are called.
    """
    sigma = _grid(x, y)
    prior_precision = np.diag(np.broadcast_to(1.0 / np.square(prior_scale), x.shape[1]))
    prior_mean = np.broadcast_to(prior_mean, x.shape[1])
    precision = x.T @ x / sigma[:, None, None] ** 2 + prior_precision
    right = x.T @ y / sigma[:, None] ** 2 + prior_precision @ prior_mean
    mean = np.linalg.solve(precision, right[..., None])[..., 0]
    # Completed at the mode, where it does not cancel.
    squares = np.sum((y - mean @ x.T) ** 2, axis=1) / sigma**2
    squares += np.sum((mean - prior_mean) ** 2 * np.diag(prior_precision), axis=1)
    log_weight = -len(y) * np.log(sigma) - squares / 2 - np.linalg.slogdet(precision)[1] / 2
    weight = special.softmax(log_weight + log_prior(sigma) + np.log(sigma))
    variance = np.diagonal(np.linalg.inv(precision), axis1=1, axis2=2)
    return _vector(name, *_mix(weight, mean, variance)) | {"sigma": _scalar(weight, sigma)}


def eight_schools(data: Mapping[str, Any]) -> Moments:
    """Return mean and sd of the hierarchical model, whose rest is normal given tau."""
    y, sigma = data["y"].numpy(), data["sigma"].numpy()
    tau = np.exp(np.linspace(-25.0, 10.0, 3501))
    variance = tau[:, None] ** 2 + sigma**2
    mu_variance = 1.0 / (1.0 / 25.0 + np.sum(1.0 / variance, axis=1))
    mu = mu_variance * np.sum(y / variance, axis=1)
    log_weight = np.sum(stats.norm.logpdf(y, mu[:, None], np.sqrt(variance)), axis=1)
    log_weight += stats.norm.logpdf(mu, 0.0, 5.0) + np.log(mu_variance) / 2
    weight = special.softmax(log_weight + stats.halfcauchy.logpdf(tau, scale=5.0) + np.log(tau))
    own = tau[:, None] ** 2 / variance  # weight of a school's own data
    theta = own * y + (1.0 - own) * mu[:, None]
    theta_variance = own * sigma**2 + (1.0 - own) ** 2 * mu_variance[:, None]
    return _vector("theta", *_mix(weight, theta, theta_variance)) | {
        "mu": _scalar(weight, mu, mu_variance),
        "tau": _scalar(weight, tau),
    }


def diamonds(data: Mapping[str, Any]) -> Moments:
    """Return mean and sd: the features are centred, so that the intercept stands apart."""
    x, y = data["x"].numpy(), data["y"].numpy()
    centre = y.mean()
    prior = stats.t(3.0, 8.0, 10.0)

    def intercepts(sigma: Array) -> tuple[Array, Array]:
        """Return a grid of intercepts for each sigma and its log weights."""
        offset = np.linspace(-12.0, 12.0, 201) * sigma[:, None] / math.sqrt(len(y))
        log_weight = -len(y) * offset**2 / (2 * sigma[:, None] ** 2) + np.log(sigma)[:, None]
        return centre + offset, log_weight + prior.logpdf(centre + offset)

    def log_prior(sigma: Array) -> Array:
        integral: Array = special.logsumexp(intercepts(sigma)[1], axis=1)
        return stats.t(3.0, 0.0, 10.0).logpdf(sigma) + integral

    moments = normal_regression(x, y - centre, log_prior, prior_scale=1.0, name="b")
    # Its prior is nearly constant where its likelihood is not, so that all it takes of sigma is
    # the mean of sigma^2, in its variance.
    at = np.array([math.hypot(*moments["sigma"])])
    grid, log_weight = intercepts(at)
    return moments | {"Intercept": _scalar(special.softmax(log_weight[0]), grid[0])}


def kilpisjarvi(data: Mapping[str, Any]) -> Moments:
    """Return mean and sd of the line."""
    x, y = data["x"].numpy(), data["y"].numpy()
    moments = normal_regression(
        np.stack([np.ones_like(x), x], axis=1),
        y,
        np.zeros_like,
        np.array([data["alpha_mean"], data["beta_mean"]]),
        np.array([data["alpha_scale"], data["beta_scale"]]),
    )
    return {
        "alpha": moments["beta[1]"],
        "beta": moments["beta[2]"],
        "sigma": moments["sigma"],
    }


def autoregression(data: Mapping[str, Any]) -> Moments:
    """Return mean and sd of intercept and coefficients."""
    y, order = data["y"].numpy(), data["order"]
    lags = [y[order - lag : len(y) - lag] for lag in range(1, order + 1)]
    x = np.stack([np.ones(len(y) - order), *lags], axis=1)
    moments = normal_regression(x, y[order:], _half_cauchy, prior_scale=10.0)
    return {
        "alpha": moments["beta[1]"],
        **{f"beta[{lag}]": moments[f"beta[{lag + 1}]"] for lag in range(1, order + 1)},
        "sigma": moments["sigma"],
    }


def _half_cauchy(sigma: Array) -> Array:
    log_density: Array = stats.halfcauchy.logpdf(sigma, scale=2.5)
    return log_density


def _grid(x: Array, y: Array) -> Array:
    """Return noise scales, equidistant in the logarithm, whose posterior mass is all of it."""
    fit = np.linalg.lstsq(x, y, rcond=None)[0]
    centre = math.log(np.std(y - x @ fit))
    return np.exp(centre + np.linspace(-15.0, 15.0, 601) / math.sqrt(2 * len(y)))


def _mix(weight: Array, mean: Array, variance: Array | float = 0.0) -> tuple[Array, Array]:
    """Return mean and sd of a mixture whose components, (grid, *), have these moments."""
    centre = np.tensordot(weight, mean, axes=1)
    spread = np.tensordot(weight, variance + (mean - centre) ** 2, axes=1)
    return centre, np.sqrt(spread)


def _scalar(weight: Array, mean: Array, variance: Array | float = 0.0) -> tuple[float, float]:
    centre, sd = _mix(weight, mean, variance)
    return float(centre), float(sd)


def _vector(name: str, mean: Array, sd: Array) -> Moments:
    pairs = zip(mean, sd, strict=True)
    return {f"{name}[{i}]": (float(m), float(s)) for i, (m, s) in enumerate(pairs, start=1)}


def _flat(data: Mapping[str, Any]) -> Moments:
    return flat_regression(data["x"].numpy(), data["y"].numpy())


def _half_cauchy_noise(data: Mapping[str, Any]) -> Moments:
    return normal_regression(data["x"].numpy(), data["y"].numpy(), _half_cauchy)


def _half_normal_noise(data: Mapping[str, Any]) -> Moments:
    return normal_regression(
        data["x"].numpy(),
        data["y"].numpy(),
        lambda sigma: stats.halfnorm.logpdf(sigma, scale=10.0),
        prior_scale=10.0,
    )


# By posteriordb's name, from the data of the pair to (mean, sd) by scalar.
EXACT: dict[str, Callable[[Mapping[str, Any]], Moments]] = {
    "eight_schools-eight_schools_noncentered": eight_schools,
    "kidiq-kidscore_momhs": _half_cauchy_noise,
    "kidiq-kidscore_momiq": _half_cauchy_noise,
    "kidiq-kidscore_interaction": _half_cauchy_noise,
    "earnings-logearn_height_male": _flat,
    "earnings-logearn_interaction": _flat,
    "mesquite-logmesquite": _flat,
    "nes1972-nes": _flat,
    "kilpisjarvi_mod-kilpisjarvi": kilpisjarvi,
    "sblrc-blr": _half_normal_noise,
    "diamonds-diamonds": diamonds,
    "arK-arK": autoregression,
}
