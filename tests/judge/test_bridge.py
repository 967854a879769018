"""The log evidence from chains, against closed forms and quadrature."""

import dataclasses
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_gen import Posterior, fit
from ppl_gen.inference import NUTS, SVI
from ppl_gen.judge import assess
from ppl_gen.judge.bridge import evidence_of_chains
from ppl_gen.models import EightSchools

X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64) + 0.1


def regression(x: torch.Tensor, y: torch.Tensor) -> None:
    """y ~ N(0, X X' + 1): the evidence is a normal density."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(3, dtype=x.dtype), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


def test_a_regression_over_seeds() -> None:
    """Of five runs the errors in standard errors have squares that sum to 20 in one of 1,000."""
    covariance = X @ X.mT + torch.eye(30, dtype=torch.float64)
    exact = float(
        dist.MultivariateNormal(torch.zeros(30, dtype=torch.float64), covariance).log_prob(Y)
    )
    errors = []
    for seed in range(5):
        method = NUTS(chains=4, draws=300, warmup=300)
        chains = fit(regression, {"x": X, "y": Y}, method, seed=seed, progress=False)
        found = evidence_of_chains(chains, seed)
        assert found.reliable
        assert found.error < 0.02
        errors.append((found.log_evidence - exact) / found.error)
    assert sum(error**2 for error in errors) < 20.5
    # Negative control: draws that are too narrow are those of another posterior.
    beta = chains["beta"]
    narrow = dataclasses.replace(chains, draws={"beta": beta.mean() + 0.5 * (beta - beta.mean())})
    wrong = evidence_of_chains(narrow, 0)
    assert abs(wrong.log_evidence - exact) > 5 * 0.02


def test_it_is_told_where_weights_have_none() -> None:
    """Eight schools: by quadrature -31.31135. The centred optimum's bound is 2.10 below it."""
    data = EightSchools.data()
    nuts = fit(EightSchools(), data, NUTS(target_accept=0.95), progress=False)
    guide = fit(EightSchools(centered=True), data, SVI(guide="mean_field"), progress=False)
    found = assess({"nuts": nuts, "svi": guide})
    value, error = found.evidence["nuts"]
    assert value == pytest.approx(-31.31135, abs=max(4 * error, 0.02))
    assert error < 0.05
    assert math.isnan(found.weights["svi"].log_evidence[0])
    assert found.weights["svi"].elbo_gap == pytest.approx(2.10, abs=0.15)
    caveats = " ".join(found.judgements["svi"].caveats)
    assert "By bridge sampling from the chains of nuts the log evidence is -31.3" in caveats
    assert "2.1 nats above the ELBO" in caveats
    assert found.to_dict()["evidence"] == {"nuts": [value, error]}


def test_where_it_cannot_be_had() -> None:
    def flat(y: torch.Tensor) -> None:
        wide = dist.ImproperUniform(dist.constraints.real, (), ())
        pyro.sample("y", dist.Normal(pyro.sample("mean", wide), 1.0), obs=y)

    y = torch.tensor(0.0, dtype=torch.float64)
    chains: Any = fit(flat, {"y": y}, NUTS(draws=50, warmup=100), progress=False)
    with pytest.raises(ValueError, match="the prior of mean is improper"):
        evidence_of_chains(chains, 0)
    bare = Posterior(draws=chains.draws, latents=("mean",))
    with pytest.raises(ValueError, match="no pair or no data"):
        evidence_of_chains(bare, 0)
