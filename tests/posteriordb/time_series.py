"""The time series of posteriordb: autoregressions, volatility, a hidden Markov model."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from priors import flat, restricted
from pyro.distributions import constraints
from reference import ReferencePosterior, tensor

__all__ = ["TIME_SERIES"]


def autoregression(y: torch.Tensor, order: int) -> None:
    """Each value regressed on the `order` values before it."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([order]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    lags = y[:-1].unfold(0, order, 1).flip(-1)  # (n - order, order), the latest value first
    with pyro.plate("time", len(lags)):
        pyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y[order:])


def arma(y: torch.Tensor) -> None:
    """ARMA(1, 1): each error enters the next value's mean."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    first = y[0] - (mu + phi * mu)
    errors = [first]
    for without_error in (y[1:] - mu - phi * y[:-1]).unbind():
        errors.append(without_error - theta * errors[-1])
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(y - torch.stack(errors), sigma), obs=y)


def garch(y: torch.Tensor, first_scale: torch.Tensor) -> None:
    """GARCH(1, 1): today's variance follows from yesterday's variance and value."""
    mu = flat("mu", constraints.real)
    alpha0 = flat("alpha0", constraints.positive)
    alpha1 = flat("alpha1", constraints.unit_interval)
    beta1 = flat("beta1", constraints.interval(0.0, 1.0 - alpha1))
    variances = [first_scale**2]
    for shock in (alpha0 + alpha1 * (y[:-1] - mu) ** 2).unbind():
        variances.append(shock + beta1 * variances[-1])
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(mu, torch.stack(variances).sqrt()), obs=y)


def hidden_markov(y: torch.Tensor) -> None:
    """Two hidden states, each with its own mean; the states are summed out."""
    theta = [flat(f"theta{state}", constraints.simplex, 2) for state in (1, 2)]
    prior = dist.Normal(torch.tensor([3.0, 10.0]), 1.0)
    mu = restricted("mu", prior, constraints.positive_ordered_vector)
    emission = dist.Normal(mu, 1.0)
    # posteriordb's recursion starts at the first emission, whichever state it came from:
    # DiscreteHMM takes that as the law of its initial state, which it scales to a sum of one.
    first = emission.log_prob(y[0])
    pyro.factor("first", first.logsumexp(-1))
    states = dist.DiscreteHMM(first, torch.stack(theta).log(), emission)
    pyro.sample("y", states, obs=y[1:])


TIME_SERIES = [
    ReferencePosterior(
        "arK-arK", autoregression, lambda raw: {"y": tensor(raw["y"]), "order": raw["K"]}
    ),
    ReferencePosterior("arma-arma11", arma, lambda raw: {"y": tensor(raw["y"])}),
    ReferencePosterior(
        "garch-garch11",
        garch,
        lambda raw: {"y": tensor(raw["y"]), "first_scale": tensor(raw["sigma1"])},
    ),
    ReferencePosterior(
        "hmm_example-hmm_example", hidden_markov, lambda raw: {"y": tensor(raw["y"])}
    ),
]
