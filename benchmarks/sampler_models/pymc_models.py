"""The benchmark's models in PyMC, for nutpie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

__all__ = ["MODELS"]

Array = np.ndarray[Any, Any]


def eight_schools(sigma: Array, y: Array) -> None:
    mu = pm.Normal("mu", 0.0, 5.0)
    tau = pm.HalfCauchy("tau", 5.0)
    z = pm.Normal("z", 0.0, 1.0, shape=len(y))
    pm.Normal("y", mu + tau * z, sigma, observed=y)


def logistic(x: Array, y: Array) -> None:
    intercept = pm.Normal("intercept", 0.0, 1.0)
    weights = pm.Normal("weights", 0.0, 1.0, shape=x.shape[1])
    pm.Bernoulli("y", logit_p=intercept + x @ weights, observed=y)


def regression(x: Array, y: Array) -> None:
    intercept = pm.Normal("intercept", 0.0, 10.0)
    weights = pm.Normal("weights", 0.0, 10.0, shape=x.shape[1])
    noise = pm.HalfNormal("noise", 5.0)
    pm.Normal("y", intercept + x @ weights, noise, observed=y)


def hierarchical(group: Array, y: Array) -> None:
    mu = pm.Normal("mu", 0.0, 5.0)
    tau = pm.HalfNormal("tau", 2.0)
    sigma = pm.HalfNormal("sigma", 2.0)
    z = pm.Normal("z", 0.0, 1.0, shape=1000)
    effect = mu + tau * z
    pm.Normal("y", effect[group], sigma, observed=y)


def _ordered_locs(size: int) -> Any:
    """Increasing locations: the first is normal, the gaps are log-normal."""
    base = pm.Normal("locs_base", 0.0, 2.0, shape=size)
    return pm.Deterministic("locs", pt.cumsum(pt.concatenate([base[:1], pt.exp(base[1:])])))


def mixture(x: Array) -> None:
    weights = pm.Dirichlet("weights", np.array([2.0, 2.0]))
    locs = _ordered_locs(2)
    scales = pm.HalfNormal("scales", 2.0, shape=2)
    pm.NormalMixture("x", weights, locs, scales, observed=x)


def hidden_markov(y: Array) -> None:
    transition = pm.Dirichlet("transition", np.ones((3, 3)))
    locs = _ordered_locs(3)
    scale = pm.HalfNormal("scale", 2.0)
    emission = pm.logp(pm.Normal.dist(locs, scale), y[:, None])

    def step(emitted: Any, forward: Any, log_transition: Any) -> Any:
        return pt.logsumexp(forward[:, None] + log_transition, axis=0) + emitted

    forwards, _ = pytensor.scan(
        step,
        sequences=[emission],
        outputs_info=[pt.as_tensor(np.full(3, -np.log(3.0)))],
        non_sequences=[pt.log(transition)],
    )
    pm.Potential("y", pt.logsumexp(forwards[-1]))


def gaussian_process(x: Array, y: Array) -> None:
    amplitude = pm.HalfNormal("amplitude", 2.0)
    lengthscale = pm.LogNormal("lengthscale", 0.0, 1.0)
    noise = pm.HalfNormal("noise", 1.0)
    distance = (x[:, None] - x) / lengthscale
    covariance = amplitude**2 * pt.exp(-0.5 * distance**2) + noise**2 * np.eye(len(x))
    pm.MvNormal("y", np.zeros(len(x)), cov=covariance, observed=y)


def normal(scale_tril: Array) -> None:
    pm.MvNormal("x", np.zeros(len(scale_tril)), chol=scale_tril)


MODELS = {
    model.__name__: model
    for model in (
        eight_schools,
        logistic,
        regression,
        hierarchical,
        mixture,
        hidden_markov,
        gaussian_process,
        normal,
    )
}
