"""Non-centred hierarchies: the same posterior, by other latents."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_gen import Pair, Posterior, check, fit, load
from ppl_gen.core import LogDensity
from ppl_gen.core.params import AnswerParams
from ppl_gen.inference import NUTS, SVI, NonCentred, non_centred
from ppl_gen.models import EightSchools

DATA = EightSchools.data()
CENTRED = EightSchools(centered=True)


def test_the_density_is_that_of_the_centred_model() -> None:
    """With the Jacobian of theta = mu + tau z, which is tau for each school, at any point."""
    centred = LogDensity(CENTRED, DATA)
    other = LogDensity(non_centred(CENTRED, DATA), DATA)
    assert list(other.sites) == ["mu", "tau", "theta_decentered"]
    vectors = torch.randn(5, 10, dtype=torch.float64)
    mu, log_tau, noise = vectors[:, :1], vectors[:, 1:2], vectors[:, 2:]
    theta = mu + log_tau.exp() * noise
    expected = centred.log_prob(torch.cat([mu, log_tau, theta], 1)) + 8 * log_tau[:, 0]
    assert torch.allclose(other.log_prob(vectors), expected)


def test_it_is_the_model_that_is_written_so_by_hand() -> None:
    by_hand = LogDensity(EightSchools(), DATA)
    other = LogDensity(non_centred(CENTRED, DATA), DATA)
    vectors = torch.randn(5, 10, dtype=torch.float64)
    assert torch.allclose(other.log_prob(vectors), by_hand.log_prob(vectors))


def test_draws_have_the_sites_of_the_model() -> None:
    """By quadrature: tau 3.5977 / 3.2200. NUTS' draws are worth 400 independent ones at least."""
    method = NUTS(target_accept=0.9)
    posterior = fit(non_centred(CENTRED, DATA), DATA, method, progress=False)
    assert posterior.latents == ("mu", "tau", "theta_decentered")
    assert posterior["theta"].shape == (4, 1000, 8)
    assert posterior.dims["theta"] == ("school",)
    remade = (
        posterior["mu"][..., None] + posterior["tau"][..., None] * posterior["theta_decentered"]
    )
    assert torch.allclose(posterior["theta"], remade)
    assert float(posterior["tau"].mean()) == pytest.approx(3.5977, abs=5 * 3.22 / 20)
    assert posterior.observed == ("y",)
    assert posterior.predict(draws=3)["y"].shape == (4, 3, 8)


def test_which_sites_it_finds() -> None:
    def model(x: torch.Tensor) -> None:
        plain = pyro.sample("plain", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        pyro.sample("moved", dist.Normal(plain, 2.0))
        pyro.sample("vector", dist.StudentT(4.0, plain, scale).expand([3]).to_event(1))
        pyro.sample("positive", dist.LogNormal(0.0, scale))
        with pyro.plate("rows", len(x)):
            row = pyro.sample("row", dist.Laplace(0.0, scale))
            pyro.sample("x", dist.Normal(row, 1.0), obs=x)

    data = {"x": torch.tensor([1.0, -1.0, 2.0, 0.5])}
    found = non_centred(model, data)
    assert found.sites == ("vector", "row")
    posterior = fit(found, data, SVI(draws=50), progress=False)
    assert posterior["vector"].shape == (1, 50, 3)
    assert posterior["vector_decentered"].shape == (1, 50, 3)
    spread = posterior["row"] / posterior["row_decentered"]
    assert torch.allclose(spread, posterior["scale"][..., None].expand_as(spread))


def test_nothing_to_write_so() -> None:
    with pytest.raises(ValueError, match="no latent of a Normal"):
        non_centred(EightSchools(), DATA)


class Learned(Pair):
    """A hierarchy whose scale is a parameter times a latent."""

    def __init__(self) -> None:
        super().__init__()
        self.width = torch.nn.Parameter(torch.tensor(2.0))

    def model(self, y: torch.Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(3.0))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("rows", len(y)):
            theta = pyro.sample("theta", dist.Normal(shift, self.width * tau))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def test_parameters_stay_those_of_the_pair() -> None:
    pair, data = Learned(), {"y": torch.zeros(3)}
    with AnswerParams(pair):  # as a fit leaves it behind, with another value
        pair.model(**data)
    pair.get_parameter("pyro_params.shift").data.fill_(5.0)
    moved = non_centred(pair, data)
    density = LogDensity(moved, data)
    values = {"tau": torch.tensor(1.0), "theta_decentered": torch.zeros(3)}
    vector = density.unconstrain(values)
    # theta = shift + width * tau * 0 = 5: three observations of 0 under N(5, 1).
    likelihood = density.log_prob_by_site(vector)["y"]
    assert likelihood == pytest.approx(3 * (-12.5 - 0.5 * np.log(2 * np.pi)))
    assert "theta" not in density.sites


def test_saving_and_checks(tmp_path: Path) -> None:
    pair = non_centred(CENTRED, DATA)
    posterior = fit(pair, DATA, SVI(draws=20), progress=False)
    posterior.save(tmp_path / "run")
    loaded = load(tmp_path / "run", pair)
    assert torch.equal(loaded["theta"], posterior["theta"])
    assert loaded.predict(draws=2)["y"].shape == (1, 2, 8)
    with pytest.raises(ValueError, match="the model does not take"):
        fit(pair, {**DATA, "x": torch.zeros(2)}, SVI(), progress=False)
    assert check(pair, DATA).ok


def names(posterior: Posterior) -> set[str]:
    return set(posterior.draws)


def test_named_sites() -> None:
    data: dict[str, Any] = DATA
    assert names(fit(NonCentred(CENTRED, ["theta"]), data, SVI(draws=5), progress=False)) == {
        "mu",
        "tau",
        "theta",
        "theta_decentered",
    }
