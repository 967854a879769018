"""The benchmark's models in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import logsumexp

__all__ = ["MODELS"]


def eight_schools(sigma: Array, y: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def logistic(x: Array, y: Array) -> None:
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=intercept + x @ weights), obs=y)


def regression(x: Array, y: Array) -> None:
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 10.0))
    weights = numpyro.sample("weights", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(5.0))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(intercept + x @ weights, noise), obs=y)


def hierarchical(group: Array, y: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("groups", 1000):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    effect = mu + tau * z
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(effect[group], sigma), obs=y)


def _ordered_locs(size: int) -> Array:
    """Increasing locations: the first is normal, the gaps are log-normal."""
    base = dist.Normal(0.0, 2.0).expand([size]).to_event(1)
    increasing = dist.TransformedDistribution(base, dist.transforms.OrderedTransform())
    return numpyro.sample("locs", increasing)


def mixture(x: Array) -> None:
    # Summed out by MixtureSameFamily: faster here than NumPyro's own enumeration.
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.array([2.0, 2.0])))
    locs = _ordered_locs(2)
    scales = numpyro.sample("scales", dist.HalfNormal(2.0).expand([2]).to_event(1))
    components = dist.Normal(locs, scales)
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=x)


def hidden_markov(y: Array) -> None:
    transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones((3, 3))).to_event(1))
    locs = _ordered_locs(3)
    scale = numpyro.sample("scale", dist.HalfNormal(2.0))
    emission = dist.Normal(locs, scale).log_prob(y[:, None])
    log_transition = jnp.log(transition)

    def step(forward: Array, emitted: Array) -> tuple[Array, None]:
        return logsumexp(forward[:, None] + log_transition, axis=0) + emitted, None

    forward, _ = jax.lax.scan(step, jnp.full(3, -jnp.log(3.0)), emission)
    numpyro.factor("y", logsumexp(forward))


def gaussian_process(x: Array, y: Array) -> None:
    amplitude = numpyro.sample("amplitude", dist.HalfNormal(2.0))
    lengthscale = numpyro.sample("lengthscale", dist.LogNormal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    distance = (x[:, None] - x) / lengthscale
    covariance = amplitude**2 * jnp.exp(-0.5 * distance**2) + noise**2 * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)


def normal(scale_tril: Array) -> None:
    zero = jnp.zeros(len(scale_tril))
    numpyro.sample("x", dist.MultivariateNormal(zero, scale_tril=scale_tril))


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
