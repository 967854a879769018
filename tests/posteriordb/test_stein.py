"""Each model against its reference draws, before any sampling, by Stein's identities.

Over draws u of a density p on unconstrained space, the mean of grad log p(u) is 0 and the mean of
(u - mean u) * grad log p(u) is -1 in each coordinate. So is that of cov(u) grad log p(u) 0, which
is about the shift of the mean of u that an error in the model makes: it sees errors that strongly
correlated coordinates hide in the gradient itself.

The reference draws are nearly independent, so that a mean over n of them has the standard error
sd / sqrt(n); their autocorrelation of at most .05 could make it 1.05 times that. An error that
shifts every mean by less than about .06 sd (.12 sd where 2,500 draws are used) is not found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from agreement import threshold
from latent_variables import kernel
from pairs import POSTERIORS
from pyro import poutine

from ppl_gen.core import LogDensity
from ppl_gen.models import EightSchools

# Three identities for each of the 135 coordinates of the 20 posteriors: the probability of a false
# alarm is at most 1e-3.
THRESHOLD = threshold(3 * 135)

# These cannot be batched, or are large.
FEW_DRAWS = {
    "low_dim_gauss_mix-low_dim_gauss_mix",
    "hmm_example-hmm_example",
    "diamonds-diamonds",
}


def scores(name: str, pair: Any, folder: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the z-scores of the three identities, (3, dim)."""
    posterior = POSTERIORS[name]
    density = LogDensity(pair, posterior.data(folder))
    every = 4 if name in FEW_DRAWS else 1
    latents = posterior.reference_latents(folder)
    thinned = {site: value.flatten(0, 1)[::every] for site, value in latents.items()}
    u = density.unconstrain(thinned).requires_grad_()
    (gradient,) = torch.autograd.grad(density.log_prob(u).sum(), u)
    u = u.detach()
    products = (u - u.mean(0)) * gradient + 1.0
    means = torch.stack([gradient, gradient @ u.T.cov(), products])
    return (means.mean(1) / (means.std(1) / len(u) ** 0.5)).numpy()


@pytest.mark.parametrize("name", POSTERIORS)
def test_model_has_the_reference_as_its_posterior(name: str, posteriordb: Path) -> None:
    z = scores(name, POSTERIORS[name].pair, posteriordb)
    assert np.abs(z).max() < THRESHOLD


def test_number_of_coordinates(posteriordb: Path) -> None:
    dims = [LogDensity(p.pair, p.data(posteriordb)).dim for p in POSTERIORS.values()]
    assert sum(dims) == 135


def garch_with_a_proper_prior(y: torch.Tensor, first_scale: torch.Tensor) -> None:
    """Uniform(0, 1 - alpha1) has the density 1 / (1 - alpha1): not flat."""
    trace = poutine.trace(POSTERIORS["garch-garch11"].pair).get_trace(y, first_scale)
    pyro.factor("planted", -torch.log1p(-trace.nodes["alpha1"]["value"]))


def regression_without_jacobian(x: torch.Tensor, y: torch.Tensor) -> None:
    """The Jacobian of sigma = exp(u) is sigma."""
    trace = poutine.trace(POSTERIORS["mesquite-logmesquite"].pair).get_trace(x, y)
    pyro.factor("planted", -trace.nodes["sigma"]["value"].log())


def process_with_a_noise_scale(x: torch.Tensor, y: torch.Tensor) -> None:
    """Sigma is the noise's variance."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    covariance = kernel(x, rho, alpha) + sigma**2 * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("eight_schools-eight_schools_noncentered", EightSchools(tau_scale=4.0)),
        ("garch-garch11", garch_with_a_proper_prior),
        ("mesquite-logmesquite", regression_without_jacobian),
        ("gp_pois_regr-gp_regr", process_with_a_noise_scale),
    ],
)
def test_planted_errors_are_found(name: str, planted: Any, posteriordb: Path) -> None:
    assert np.abs(scores(name, planted, posteriordb)).max() > THRESHOLD
