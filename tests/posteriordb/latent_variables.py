"""The posteriors of posteriordb with group effects, mixture components or a latent process."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from priors import restricted
from pyro.distributions import constraints
from reference import ReferencePosterior, tensor

from ppl_gen.models import EightSchools

__all__ = ["LATENT_VARIABLES"]

Sites = dict[str, torch.Tensor]


def mixture(y: torch.Tensor) -> None:
    """Two normal components in order; each value's component is summed out."""
    mu = restricted("mu", dist.Normal(0.0, 2.0).expand([2]), constraints.ordered_vector)
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = torch.stack([theta, 1.0 - theta])
    with pyro.plate("data", len(y)):
        component = pyro.sample(
            "component", dist.Categorical(weights), infer={"enumerate": "parallel"}
        )
        pyro.sample("y", dist.Normal(mu[component], sigma[component]), obs=y)


def kernel(x: torch.Tensor, rho: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Return the squared-exponential kernel between points.

    Args:
        x: Points, (n,).
        rho: Length scales, (*batch,).
        alpha: Standard deviations of the process, (*batch,).

    Returns:
        Covariances, (*batch, n, n).
    """
    rho, alpha = rho[..., None, None], alpha[..., None, None]
    return alpha**2 * torch.exp(-((x[:, None] - x) ** 2) / (2 * rho**2))


def gaussian_process(x: torch.Tensor, y: torch.Tensor) -> None:
    """Regression with the process integrated out; sigma is the noise's variance."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    covariance = kernel(x, rho, alpha) + sigma * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def process_factor(x: torch.Tensor, rho: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Return the Cholesky factor of the process's covariance, (*batch, n, n)."""
    return torch.linalg.cholesky(kernel(x, rho, alpha) + 1e-10 * torch.eye(len(x)))


def poisson_process(x: torch.Tensor, k: torch.Tensor) -> None:
    """Counts whose log rate is a Gaussian process."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    f_tilde = pyro.sample("f_tilde", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
    f = pyro.deterministic("f", process_factor(x, rho, alpha) @ f_tilde, event_dim=1)
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Poisson(f.exp()), obs=k)


def standardised_schools(sites: Sites, data: Any) -> Sites:
    mu, tau = sites["mu"], sites["tau"]
    return {"mu": mu, "tau": tau, "z": (sites["theta"] - mu[..., None]) / tau[..., None]}


def standardised_process(sites: Sites, data: Any) -> Sites:
    rho, alpha = sites["rho"], sites["alpha"]
    factor = process_factor(data["x"], rho, alpha)
    f_tilde = torch.linalg.solve_triangular(factor, sites["f"][..., None], upper=False)[..., 0]
    return {"rho": rho, "alpha": alpha, "f_tilde": f_tilde}


LATENT_VARIABLES = [
    ReferencePosterior(
        "eight_schools-eight_schools_noncentered",
        EightSchools(),
        lambda raw: {"y": tensor(raw["y"]), "sigma": tensor(raw["sigma"])},
        latents=standardised_schools,
    ),
    ReferencePosterior(
        "low_dim_gauss_mix-low_dim_gauss_mix", mixture, lambda raw: {"y": tensor(raw["y"])}
    ),
    ReferencePosterior(
        "gp_pois_regr-gp_regr",
        gaussian_process,
        lambda raw: {"x": tensor(raw["x"]), "y": tensor(raw["y"])},
    ),
    ReferencePosterior(
        "gp_pois_regr-gp_pois_regr",
        poisson_process,
        lambda raw: {"x": tensor(raw["x"]), "k": tensor(raw["k"])},
        latents=standardised_process,
    ),
]
