"""What a posterior offers: predictive draws, log-likelihoods, local latents, ArviZ, summaries."""

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from torch import nn

from ppl_gen import Pair, fit
from ppl_gen.core import SiteError
from ppl_gen.inference import NUTS, SVI
from ppl_gen.models import BayesianLinearRegression, EightSchools

X = torch.linspace(-1.0, 1.0, 8).unsqueeze(-1)
Y = 2.0 * X[:, 0] + 0.5
PAIR = BayesianLinearRegression(
    num_features=1, noise_scale=0.5, prior_scale=1.0, intercept_scale=1.0
)
DATA = {"x": X, "y": Y}


def quick(seed: int = 0) -> SVI:
    return SVI(guide="full_rank", steps=1500, draws=4000)


@pytest.fixture(scope="module")
def posterior():  # noqa: ANN201
    return fit(PAIR, DATA, quick(), progress=False)


def test_predictive_moments_are_those_of_the_exact_posterior(posterior) -> None:  # noqa: ANN001
    exact = PAIR.exact_posterior(X, Y)
    new = torch.tensor([[3.0]])
    row = torch.tensor([3.0, 1.0], dtype=torch.float64)
    variance = row @ exact.covariance @ row + 0.25
    y = posterior.predict({"x": new})["y"]
    assert y.shape == (1, 4000, 1)
    # 4,000 draws: sd of the mean sqrt(v / n), of the sd sd / sqrt(2 n); five of each, and the
    # fit's own error of the mean, below 0.05 sd.
    sd = float(variance.sqrt())
    assert float(y.mean()) == pytest.approx(
        float(row @ exact.mean), abs=(5 / 4000**0.5 + 0.05) * sd
    )
    assert float(y.std()) == pytest.approx(sd, rel=5 / 8000**0.5 + 0.03)


def test_the_observed_values_are_not_looked_at_in_prediction(posterior) -> None:  # noqa: ANN001
    with_y = posterior.predict({"x": X, "y": 1e6 * torch.ones(8)}, draws=20)["y"]
    assert with_y.shape == (1, 20, 8)
    assert with_y.abs().max() < 100


def test_log_likelihood_by_hand(posterior) -> None:  # noqa: ANN001
    mean = posterior["weights"] @ X.double().T + posterior["intercept"].unsqueeze(-1)
    expected = torch.distributions.Normal(mean, 0.5).log_prob(Y.double())
    torch.testing.assert_close(posterior.log_likelihood()["y"], expected, rtol=1e-6, atol=1e-6)


def test_prior_draws(posterior) -> None:  # noqa: ANN001
    latents, predictive = posterior.prior(2000)
    assert predictive["y"].shape == (1, 2000, 8)
    # sd of 2,000 standard normals: within 5 / sqrt(2 * 2000) of 1.
    assert float(latents["intercept"].std()) == pytest.approx(1.0, abs=0.08)


def test_weights_of_draws_are_those_of_the_densities(posterior) -> None:  # noqa: ANN001
    """log p - log q averages to the evidence's bound, and its exponential to the evidence."""
    ratio = (posterior.sample_stats["lp"] - posterior.sample_stats["log_q"]).flatten()
    evidence = PAIR.exact_posterior(X, Y).log_evidence
    # A fitted Gaussian on a Gaussian: the weights have almost no spread.
    assert float(ratio.mean()) == pytest.approx(evidence, abs=0.02)
    assert posterior.elbo[0] == pytest.approx(float(ratio.mean()))


def test_a_missing_site_is_named(posterior) -> None:  # noqa: ANN001
    with pytest.raises(KeyError, match="Did you mean 'weights'"):
        posterior["weight"]


def test_to_arviz_has_every_group(posterior) -> None:  # noqa: ANN001
    groups = posterior.to_arviz(predictive_draws=10)
    names = set(groups.groups()) if callable(groups.groups) else set(groups.children)
    assert {
        "posterior",
        "sample_stats",
        "prior",
        "prior_predictive",
        "posterior_predictive",
        "log_likelihood",
        "observed_data",
    } <= names
    assert groups["observed_data"]["y"].dims == ("data",)


def test_deterministic_sites_are_in_the_posterior_only() -> None:
    data = EightSchools.data()
    result = fit(EightSchools(), data, SVI(steps=5, draws=10), progress=False)
    expected = result["mu"].unsqueeze(-1) + result["tau"].unsqueeze(-1) * result["z"]
    torch.testing.assert_close(result["theta"], expected)
    assert result.latents == ("mu", "tau", "z")
    assert result.dims["theta"] == ("school",)
    groups = result.to_arviz(predictive_draws=5)
    assert "theta" in groups["posterior"]
    assert "theta" not in groups["prior"]
    assert list(groups["observed_data"].data_vars) == ["y"]
    assert groups["posterior"]["theta"].sizes["school"] == 8


def test_a_site_for_each_row_belongs_to_its_rows() -> None:
    result = fit(EightSchools(), EightSchools.data(), SVI(steps=2, draws=5), progress=False)
    with pytest.raises(SiteError, match=r"'z'.*shape \(8,\).*shape \(3,\)"):
        result.predict({"sigma": torch.ones(3)})


class Local(Pair):
    """z_i ~ N(mean, 1), y_i ~ N(z_i, 1), with the exact amortized guide given the mean at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))

    def model(self, y: torch.Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0))
            pyro.deterministic("half", z / 2, event_dim=0)
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(self, y: torch.Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(self.slope * y, 0.5**0.5))


def test_local_latents_are_drawn_on_request() -> None:
    torch.manual_seed(0)
    y = 2**0.5 * torch.randn(50)
    result = fit(Local(), {"y": y}, SVI(guide="pair", batch_size=20, epochs=2), progress=False)
    assert result.draws == {}
    assert result.local_plate == "data"
    with pytest.raises(ValueError, match="local to the mini-batched plate 'data'"):
        result.to_arviz()
    few = result.sample({"y": torch.tensor([1.0, -2.0, 0.0])}, draws=2000, seed=3)
    assert few["z"].shape == (1, 2000, 3)
    torch.testing.assert_close(few["half"], few["z"] / 2)
    assert result.pair is not None
    slope = dict(result.pair.named_parameters())["slope"].item()
    # 2,000 draws of sd sqrt(1/2): five standard errors are 0.08.
    assert few["z"][..., 1].mean().item() == pytest.approx(-2 * slope, abs=0.08)
    assert few.local_plate is None
    # The bound is that of the rows drawn for, not of the data fitted to.
    assert few.elbo is not None
    assert result.elbo is not None
    assert few.elbo[0] > result.elbo[0] / 2
    assert "z" in few.to_arviz(predictive_draws=5)["posterior"]
    drawn = result.predict({"y": torch.tensor([1.0, -2.0])}, draws=30)["y"]
    assert drawn.shape == (1, 30, 2)


def test_the_exact_guide_has_constant_weights() -> None:
    data = {"y": torch.tensor([1.0, -2.0])}
    pair = Local()
    result = fit(pair, data, SVI(guide="pair", steps=1, learning_rate=1e-9), progress=False)
    ratio = result.sample_stats["lp"] - result.sample_stats["log_q"]
    evidence = torch.distributions.Normal(0.0, 2**0.5).log_prob(data["y"]).sum()
    torch.testing.assert_close(ratio, evidence.expand_as(ratio), rtol=1e-4, atol=1e-4)


def test_mcmc_posteriors_have_no_guide() -> None:
    method = NUTS(chains=2, draws=4, warmup=4)
    result = fit(PAIR, DATA, method, progress=False)
    with pytest.raises(ValueError, match=r"use posterior\.draws"):
        result.sample()
    assert {"mean", "sd", "r_hat", "ess_bulk", "ess_tail", "mcse_mean"} <= set(result.summary())
    assert "r_hat" not in fit(PAIR, DATA, SVI(steps=1), progress=False).summary()
    assert "NUTS: 2 chains x 4 draws" in repr(result)


def test_improper_priors_have_no_prior_group() -> None:
    def model(y: torch.Tensor) -> None:
        z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    result = fit(model, {"y": Y}, SVI(steps=5, draws=5), progress=False)
    with pytest.raises(SiteError, match=r"'z': .* drawn from, got ImproperUniform, which is imp"):
        result.prior()
    assert not hasattr(result.to_arviz(predictive_draws=3), "prior")


class Triangle(TorchDistribution):
    """A density on the unit interval that nobody wrote a sampler for."""

    support = dist.constraints.unit_interval
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, batch_shape: Any = ()) -> None:
        super().__init__(torch.Size(batch_shape), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Triangle":
        return Triangle(batch_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return torch.log(2 * value).expand(self.batch_shape)


@pytest.mark.parametrize("where", ["prior", "data"])
def test_a_density_without_a_sampler_has_no_draws(where: str) -> None:
    def model(y: torch.Tensor) -> None:
        z = pyro.sample("z", Triangle() if where == "prior" else dist.Beta(2.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", Triangle() if where == "data" else dist.Normal(z, 1.0), obs=y)

    y = torch.tensor([0.2, 0.7])
    result = fit(model, {"y": y}, NUTS(chains=2, draws=5, warmup=5), progress=False)
    site = "z" if where == "prior" else "y"
    with pytest.raises(SiteError, match=rf"'{site}': .* got Triangle, which has no sampler"):
        result.prior(3)
    groups = result.to_arviz(predictive_draws=3)
    assert not hasattr(groups, "prior")
    if where == "data":
        with pytest.raises(SiteError, match=r"'y'.*has no sampler"):
            result.predict(draws=3)
        assert not hasattr(groups, "posterior_predictive")
    else:
        assert result.predict(draws=3)["y"].shape == (2, 3, 2)


def test_prior_and_predictive_draws_are_made_together() -> None:
    runs = []

    def model(y: torch.Tensor) -> None:
        runs.append(None)
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        mean = pyro.sample("mean", dist.Normal(0.0, scale))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.StudentT(4.0, mean, 1.0), obs=y)

    result = fit(model, {"y": Y}, SVI(steps=5, draws=100), progress=False)
    for draw in (lambda: result.prior(100), lambda: result.predict(draws=100)):
        runs.clear()
        draw()
        assert len(runs) <= 4  # the sites, one draw, and all of them


class Logs(Pair):
    """Data are prepared by taking logarithms: twice is not once."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(2.0))

    def validate(self, x: torch.Tensor) -> None:
        if len(x) < 10 or bool((x <= 0).any()):
            msg = "x: expected at least 10 positive values."
            raise ValueError(msg)

    def prepare(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"x": x.log()}

    def model(self, x: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 0.1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        pyro.sample("mean", dist.Normal(self.loc, 0.03))


@pytest.mark.parametrize("guide", ["mean_field", "pair"])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_data_are_prepared_once(guide: Any, batch_size: int | None) -> None:
    method = SVI(guide=guide, steps=500, batch_size=batch_size, draws=100, learning_rate=0.05)
    x = torch.linspace(1.9, 2.1, 20)
    result = fit(Logs(), {"x": x.exp()}, method, progress=False)
    assert result["mean"].mean().item() == pytest.approx(2.0, abs=0.06)
    mean = result["mean"].double()
    expected = dist.Normal(mean.unsqueeze(-1), 0.1).log_prob(x.double())
    likelihood = result.log_likelihood()["x"].double()
    torch.testing.assert_close(likelihood, expected, rtol=1e-3, atol=1e-3)
    drawn = result.sample(draws=50)
    lp = dist.Normal(0.0, 10.0).log_prob(drawn["mean"]).double()
    lp = lp + drawn.log_likelihood()["x"].double().sum(-1)
    torch.testing.assert_close(drawn.sample_stats["lp"].double(), lp, rtol=1e-3, atol=1e-3)


def test_a_mini_batched_fit_of_global_latents_predicts_new_rows() -> None:
    method = SVI(steps=50, batch_size=4, draws=20)
    result = fit(PAIR, DATA, method, progress=False)
    assert result.predict({"x": torch.zeros(5, 1)})["y"].shape == (1, 20, 5)
    assert result.log_likelihood()["y"].shape == (1, 20, 8)


def test_what_follows_from_a_summed_out_latent_is_not_drawn_from_the_prior() -> None:
    def model(y: torch.Tensor) -> None:
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        pyro.deterministic("variance", scale**2)
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.deterministic("level", 10 * k)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(10 * k, scale), obs=y)

    result = fit(model, {"y": torch.full((3,), 10.0)}, SVI(steps=5, draws=5), progress=False)
    assert set(result.draws) == {"scale", "variance"}


def test_latents_of_a_plate_that_draws_its_own_rows_are_not_stored() -> None:
    def rows(y: torch.Tensor) -> Any:
        return pyro.plate("data", len(y), subsample_size=3)

    def model(y: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with rows(y) as index:
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[index])

    def guide(y: torch.Tensor) -> None:
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))
        with rows(y):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    method = SVI(guide="pair", steps=3, draws=5)
    result = fit((model, guide), {"y": torch.zeros(8)}, method, progress=False)
    assert set(result.draws) == {"mean"}
    assert result.elbo is None


def test_draws_that_are_local_are_hinted_at() -> None:
    method = SVI(guide="pair", batch_size=4, epochs=1)
    result = fit(Local(), {"y": torch.ones(9)}, method, progress=False)
    told = r"plate 'data', if any, are drawn for rows.*posterior\.sample"
    with pytest.raises(KeyError, match=told):
        result["z"]
    assert "posterior.sample(data)" in repr(result)


def test_log_likelihood_of_a_mixture_sums_the_assignments_out() -> None:
    weights = torch.tensor([0.3, 0.7])

    def model(y: torch.Tensor) -> None:
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Categorical(y.new_tensor([0.3, 0.7])))
            pyro.sample("y", dist.Normal(locs[k], 1.0), obs=y)

    result = fit(model, {"y": Y}, SVI(steps=5, draws=6), progress=False)
    normal = torch.distributions.Normal(result["locs"].unsqueeze(-2), 1.0)
    terms = normal.log_prob(Y.double().unsqueeze(-1)) + weights.double().log()
    expected = terms.logsumexp(-1)
    assert expected.shape == (1, 6, 8)
    torch.testing.assert_close(result.log_likelihood()["y"], expected, rtol=1e-6, atol=1e-6)


def test_discrete_latents_that_tie_observations_have_no_pointwise_term() -> None:
    def model(y: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(z + k, 1.0), obs=y)

    result = fit(model, {"y": Y}, SVI(steps=5, draws=6), progress=False)
    with pytest.raises(ValueError, match="k ties observations together"):
        result.log_likelihood()


def test_every_chain_keeps_its_own_draws() -> None:
    """Values computed from draws stay with their chain and draw."""
    data = EightSchools.data()
    result = fit(EightSchools(), data, NUTS(chains=2, draws=5, warmup=5), progress=False)
    expected = result["mu"].unsqueeze(-1) + result["tau"].unsqueeze(-1) * result["z"]
    torch.testing.assert_close(result["theta"], expected)
    assert not torch.allclose(result["theta"][0], result["theta"][1])
    normal = torch.distributions.Normal(expected, data["sigma"].double())
    torch.testing.assert_close(
        result.log_likelihood()["y"], normal.log_prob(data["y"].double()), rtol=1e-6, atol=1e-6
    )
    # The noise has a standard deviation of 9 to 18: a prediction is within six of them.
    assert ((result.predict()["y"] - expected).abs() < 6 * data["sigma"]).all()
