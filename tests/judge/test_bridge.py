"""The log evidence from chains, against closed forms and quadrature."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_gen import Posterior, fit
from ppl_gen.core import LogDensity
from ppl_gen.inference import NUTS, SVI
from ppl_gen.judge import assess, bridge
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


def test_long_chains_and_much_data_are_not_looked_at_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 4 x 4,000 draws, where 1,000 will do; also where PyTorch computes the density."""
    chains = fit(regression, {"x": X, "y": Y}, NUTS(draws=4000), progress=False)
    full = evidence_of_chains(chains, 0)
    seen: list[int] = []
    monkeypatch.setattr(bridge, "_WORK", 1)
    monkeypatch.setattr(bridge, "_BLOCK", 10**5)

    def eager(*_: object) -> None:
        return None

    log_prob = LogDensity.log_prob

    def counted(density: Any, vector: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(len(vector))
        return log_prob(density, vector, *rest)

    few = evidence_of_chains(chains, 0)
    assert few.error > 1.5 * full.error
    assert few.log_evidence == pytest.approx(full.log_evidence, abs=4 * few.error)
    monkeypatch.setattr(bridge, "compiled", eager)
    monkeypatch.setattr(LogDensity, "log_prob", counted)
    again = evidence_of_chains(chains, 0)
    assert again.log_evidence == pytest.approx(full.log_evidence, abs=4 * again.error)
    assert sum(seen) == 2000
    assert max(seen) < 200


def mixture(x: torch.Tensor) -> None:
    """Two components that are far apart, in an order that no prior decides."""
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(torch.zeros((), dtype=x.dtype), 3.0))
    mean = torch.stack([locs[0], locs[1]])
    mix = dist.Categorical(torch.full((2,), 0.5, dtype=x.dtype))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MixtureSameFamily(mix, dist.Normal(mean, 0.5)), obs=x)


def badly_weighed(draws: Mapping[str, torch.Tensor], **options: Any) -> Posterior:
    """Return a guide's draws that are near the posterior, and whose weights have no evidence."""
    flat = {name: value.flatten(0, 1)[None] for name, value in draws.items()}
    count = next(iter(flat.values())).shape[1]
    noise = torch.randn(1, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stats = {"lp": noise.exp() ** 2, "log_q": torch.zeros_like(noise)}
    return Posterior(draws=flat, latents=tuple(flat), is_mcmc=False, sample_stats=stats, **options)


def test_chains_in_one_of_several_modes_have_none() -> None:
    """Half of the posterior has log 2 less: it is never told with an error of a hundredth."""
    x = torch.tensor([-2.1, -1.9, -2.0, 1.9, 2.0, 2.2], dtype=torch.float64)
    chains = fit(mixture, {"x": x}, NUTS(draws=300), progress=False)
    in_order = dataclasses.replace(chains, draws={"locs": chains["locs"].sort(dim=2).values})
    other_mode = badly_weighed({"locs": in_order["locs"].flip(2)})
    found = assess({"nuts": in_order, "svi": other_mode})
    assert not found.evidence
    assert any("labels have no meaning, and of the orders" in text for text in found.not_checked)


def test_an_evidence_below_a_bound_is_none() -> None:
    chains = fit(regression, {"x": X, "y": Y}, NUTS(draws=300), progress=False)
    value = evidence_of_chains(chains, 0).log_evidence
    for above, told in ((-0.3, True), (0.3, False)):
        guide = badly_weighed(chains.draws, elbo=(value + above, 0.01))
        found = assess({"nuts": chains, "svi": guide})
        assert bool(found.evidence) is told
        why = [text for text in found.not_checked if "is below the ELBO of svi, which no" in text]
        assert bool(why) is not told
