"""The benchmark's models in Pyro, for ppl-gen and for Pyro's own NUTS."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["MODELS"]


def eight_schools(sigma: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def logistic(x: Tensor, y: Tensor) -> None:
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=intercept + x @ weights), obs=y)


def regression(x: Tensor, y: Tensor) -> None:
    intercept = pyro.sample("intercept", dist.Normal(0.0, 10.0))
    weights = pyro.sample("weights", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + x @ weights, noise), obs=y)


def hierarchical(group: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    with pyro.plate("groups", 1000):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    effect = mu + tau * z
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(effect[group], sigma), obs=y)


def _ordered_locs(size: int) -> Tensor:
    """Increasing locations: the first is normal, the gaps are log-normal."""
    base = dist.Normal(0.0, 2.0).expand([size]).to_event(1)
    increasing = dist.TransformedDistribution(base, dist.transforms.OrderedTransform())
    locs: Tensor = pyro.sample("locs", increasing)
    return locs


def mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([2.0, 2.0])))
    locs = _ordered_locs(2)
    scales = pyro.sample("scales", dist.HalfNormal(2.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        component = pyro.sample(
            "component", dist.Categorical(weights), infer={"enumerate": "parallel"}
        )
        pyro.sample("x", dist.Normal(locs[component], scales[component]), obs=x)


def hidden_markov(y: Tensor) -> None:
    transition = pyro.sample("transition", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
    locs = _ordered_locs(3)
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    emission = dist.Normal(locs, scale)
    hmm = dist.DiscreteHMM(torch.zeros(3), transition.log(), emission, duration=len(y))
    pyro.sample("y", hmm, obs=y)


def gaussian_process(x: Tensor, y: Tensor) -> None:
    amplitude = pyro.sample("amplitude", dist.HalfNormal(2.0))
    lengthscale = pyro.sample("lengthscale", dist.LogNormal(0.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    distance = (x[:, None] - x) / lengthscale
    covariance = amplitude**2 * torch.exp(-0.5 * distance**2) + noise**2 * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def normal(scale_tril: Tensor) -> None:
    zero = torch.zeros(len(scale_tril))
    pyro.sample("x", dist.MultivariateNormal(zero, scale_tril=scale_tril))


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
