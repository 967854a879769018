"""SVI against exact posteriors, and what it does when something goes wrong."""

import signal
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppl_gen import Pair, fit
from ppl_gen.core import NonFiniteLossError
from ppl_gen.inference import SVI, EpochInfo
from ppl_gen.inference.guides import GaussianGuide
from ppl_gen.models import BayesianLinearRegression, EightSchools

GENERATOR = torch.Generator().manual_seed(7)
# Correlated features, so that mean-field and full rank differ.
X = torch.randn(40, 2, generator=GENERATOR)
X[:, 1] = 0.9 * X[:, 0] + 0.44 * X[:, 1]
Y = X @ torch.tensor([1.0, -0.5]) + 0.5 * torch.randn(40, generator=GENERATOR)
DATA = {"x": X, "y": Y}
PAIR = BayesianLinearRegression(num_features=2, intercept=False, noise_scale=0.5, prior_scale=1.0)
EXACT = PAIR.exact_posterior(X, Y)


def moments(draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    flat = draws.flatten(0, 1)
    return flat.mean(0), torch.cov(flat.T)


@pytest.mark.parametrize("batch_size", [None, 16])
def test_full_rank_finds_the_exact_posterior(batch_size: int | None) -> None:
    """The family holds the posterior.

    What stochastic steps leave was measured over 10 seeds: means off by at most 0.036 sd and sds
    by 1.6 % with all data, 0.046 sd and 4.5 % with mini-batches. 10,000 draws add an error of 0.01
    sd to a mean and 0.7 % to an sd, four times which is allowed for.
    """
    method = SVI(guide="full_rank", steps=3000, batch_size=batch_size, draws=10_000)
    result = fit(PAIR, DATA, method, seed=1, progress=False)
    mean, covariance = moments(result["weights"])
    sd = EXACT.covariance.diagonal().sqrt()
    assert ((mean - EXACT.mean) / sd).abs().max() < 0.09
    torch.testing.assert_close(covariance.diagonal().sqrt(), sd, rtol=0.075, atol=0.0)
    correlation = EXACT.covariance[0, 1] / sd.prod()
    assert correlation < -0.8
    assert covariance[0, 1] / covariance.diagonal().sqrt().prod() == pytest.approx(
        correlation.item(), abs=0.05
    )
    # A bound, tight here: not above the evidence but for its Monte Carlo error.
    assert result.elbo is not None
    estimate, error = result.elbo
    assert EXACT.log_evidence - 0.1 < estimate < EXACT.log_evidence + 5 * error + 1e-3


def test_mean_field_has_the_known_optimum() -> None:
    """On a normal posterior: the right means, sds of 1 / sqrt(precision), a known KL gap."""
    result = fit(PAIR, DATA, SVI(steps=3000, draws=10_000), seed=1, progress=False)
    mean, covariance = moments(result["weights"])
    precision = torch.linalg.inv(EXACT.covariance)
    optimum = precision.diagonal().rsqrt()
    assert ((mean - EXACT.mean) / EXACT.covariance.diagonal().sqrt()).abs().max() < 0.1
    torch.testing.assert_close(covariance.diagonal().sqrt(), optimum, rtol=0.1, atol=0.0)
    correlation = EXACT.covariance[0, 1] / EXACT.covariance.diagonal().sqrt().prod()
    gap = -0.5 * torch.log1p(-correlation.square()).item()
    assert result.elbo is not None
    estimate, error = result.elbo
    assert gap > 0.5
    assert EXACT.log_evidence - estimate == pytest.approx(gap, abs=5 * error + 0.05)


def test_density_and_entropy_of_the_guide() -> None:
    for family in ("mean_field", "full_rank"):
        guide = GaussianGuide(3, family)
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64))
        tril = guide.scale_tril
        reference = torch.distributions.MultivariateNormal(guide.loc, scale_tril=tril)
        vectors = torch.randn(5, 3, dtype=torch.float64)
        torch.testing.assert_close(guide.log_prob(vectors), reference.log_prob(vectors))
        torch.testing.assert_close(guide.entropy(), reference.entropy())
        draws = guide.rsample(20_000)
        # Entries of a covariance of n draws: sd at most sqrt(2 / n) of the variances' product.
        scale = tril.square().sum(-1).sqrt()
        error = (torch.cov(draws.T) - tril @ tril.T).abs() / torch.outer(scale, scale)
        assert error.max() < 5 * (2 / 20_000) ** 0.5


class Amortized(Pair):
    """z_i ~ N(0, 1), y_i ~ N(z_i, 1): the optimum of the guide is N(y / 2, sqrt(1/2))."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.1))
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def model(self, y: torch.Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(self, y: torch.Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(self.slope * y, self.log_scale.exp()))


def test_the_pairs_own_guide_by_mini_batches() -> None:
    y = 2**0.5 * torch.randn(300, generator=torch.Generator().manual_seed(1))
    told: list[EpochInfo] = []
    method = SVI(guide="pair", batch_size=70, epochs=60, learning_rate=0.03, callback=told.append)
    result = fit(Amortized(), {"y": y}, method, progress=False)
    assert result.pair is not None
    values = {name: p.item() for name, p in result.pair.named_parameters()}
    assert values["slope"] == pytest.approx(0.5, abs=0.03)
    assert values["log_scale"] == pytest.approx(-0.5 * torch.tensor(2.0).log().item(), abs=0.05)
    evidence = torch.distributions.Normal(0.0, 2**0.5).log_prob(y).sum().item()
    assert result.elbo is not None
    assert result.elbo[0] == pytest.approx(evidence, abs=5 * result.elbo[1] + 0.5)
    assert [info.epoch for info in told] == list(range(1, 61))
    assert told[-1].step == 300
    assert told[-1].loss == pytest.approx(-evidence / 300, abs=0.05)
    assert told[0].loss > told[-1].loss


def test_discrete_latents_without_a_guide_are_summed_out() -> None:
    class Mixture(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.locs = nn.Parameter(torch.tensor([-1.0, 2.0]))
            self.logit = nn.Parameter(torch.tensor(0.0))

        def model(self, y: torch.Tensor) -> None:
            p = pyro.sample("p", dist.Beta(2.0, 2.0))
            with pyro.plate("data", len(y)):
                k = pyro.sample("k", dist.Bernoulli(p))
                pyro.sample("y", dist.Normal(self.locs[k.long()], 1.0), obs=y)

        def guide(self, y: torch.Tensor) -> None:
            pyro.sample("p", dist.Beta(2.0, 2.0 * self.logit.exp()))

    y = torch.cat([torch.zeros(30) - 3, torch.zeros(10) + 3])
    method = SVI(guide="pair", steps=400, learning_rate=0.05, draws=50)
    result = fit(Mixture(), {"y": y}, method, progress=False)
    assert result.pair is not None
    locs = dict(result.pair.named_parameters())["locs"]
    torch.testing.assert_close(locs.detach(), torch.tensor([-3.0, 3.0]), rtol=0.0, atol=0.15)
    assert set(result.draws) == {"p"}


class Fragile(Amortized):
    """Its loss becomes NaN from a given step on."""

    def __init__(self, fails_after: int) -> None:
        super().__init__()
        self.fails_after = fails_after
        self.calls = 0

    def guide(self, y: torch.Tensor) -> None:
        self.calls += 1
        broken = float("nan") if self.calls > self.fails_after else 1.0
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(self.slope * y * broken, self.log_scale.exp()))


@pytest.mark.filterwarnings("ignore:.*runs model and guide anew")  # for its counter
def test_a_non_finite_loss_stops_and_keeps_the_last_good_state() -> None:
    method = SVI(guide="pair", batch_size=4, epochs=10)
    with pytest.raises(
        NonFiniteLossError, match=r"nan at step \d+ \(epoch \d+, batch \d of 3\)"
    ) as e:
        fit(Fragile(20), {"y": torch.ones(10)}, method, progress=False)
    assert "site 'z'" in str(e.value)
    posterior = e.value.posterior
    assert posterior is not None
    assert posterior.pair is not None
    assert posterior.history is not None
    assert len(posterior.history) > 10
    assert all(torch.isfinite(p).all() for p in posterior.pair.parameters())


def test_a_parameter_that_became_nan_is_named_and_taken_back() -> None:
    class Square(Amortized):
        """The gradient of sqrt at zero is infinite while its value is fine."""

        def __init__(self) -> None:
            super().__init__()
            self.root = nn.Parameter(torch.tensor(0.0))

        def guide(self, y: torch.Tensor) -> None:
            with pyro.plate("data", len(y)):
                pyro.sample("z", dist.Normal(self.root.sqrt() + self.slope * y, 1.0))

    with pytest.raises(NonFiniteLossError, match="parameter 'root' had become NaN") as e:
        fit(Square(), {"y": torch.ones(10)}, SVI(guide="pair", steps=10), progress=False)
    assert e.value.posterior is not None
    assert e.value.posterior.pair is not None
    assert dict(e.value.posterior.pair.named_parameters())["root"].item() == 0.0


def interrupt(info: EpochInfo) -> None:
    if info.epoch == 3:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("guide", ["pair", "full_rank"])
def test_ctrl_c_returns_what_was_done(guide: Any) -> None:
    pair: Pair = Amortized() if guide == "pair" else PAIR
    data = {"y": torch.ones(40)} if guide == "pair" else DATA
    method = SVI(guide=guide, batch_size=10, epochs=50, callback=interrupt, draws=5)
    result = fit(pair, data, method, progress=False)
    assert result.interrupted
    assert result.history is not None
    assert len(result.history) == 12


def test_a_start_that_is_not_finite_names_the_site() -> None:
    def model(y: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("bad", dist.Normal(z, 1.0), obs=y)
        pyro.factor("wall", torch.tensor(float("-inf")))

    with pytest.raises(ValueError, match=r"no start point: site 'wall' \(-inf\)"):
        fit(model, {"y": torch.tensor(0.0)}, SVI(), progress=False)


def test_local_latents_under_a_gaussian_guide_and_mini_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"z: a latent for each row of plate 'data'"):
        fit(Amortized(), {"y": torch.ones(9)}, SVI(batch_size=3), progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide": "meanfield"}, "Did you mean 'mean_field'"),
        ({"steps": 0}, "steps: expected at least 1"),
        ({"batch_size": -1}, "batch_size: expected at least 1"),
        ({"draws": 0}, "draws: expected at least 1"),
        ({"learning_rate": 0.0}, "learning_rate: expected a positive"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SVI(**options)


def test_float32_on_request() -> None:
    result = fit(PAIR, DATA, SVI(steps=5, draws=4, dtype=torch.float32), progress=False)
    assert result["weights"].dtype == torch.float32
    assert result.provenance["dtype"] == "float32"
    assert result.predict()["y"].dtype == torch.float32


def test_mean_field_on_centred_eight_schools_is_as_wrong_as_is_known() -> None:
    """Its optimum, found by L-BFGS from many starts elsewhere, is far from the posterior.

    Gap to the evidence 2.10, log tau off by +0.83 posterior standard deviations and 79 % too
    narrow. A run that had stopped early would show a gap of 2.8 and +0.45. 20,000 draws have an
    error of 0.01 in the gap and below 0.01 in the others; the rest is left to stochastic steps.
    """
    method = SVI(steps=8000, draws=20_000)
    data = EightSchools.data()
    result = fit(EightSchools(centered=True), data, method, seed=1, progress=False)
    assert result.elbo is not None
    assert -31.31135 - result.elbo[0] == pytest.approx(2.10, abs=0.15)
    log_tau = result["tau"].log()
    assert (log_tau.mean().item() - 0.8021) / 1.1712 == pytest.approx(0.83, abs=0.1)
    assert log_tau.std().item() / 1.1712 - 1 == pytest.approx(-0.79, abs=0.03)
