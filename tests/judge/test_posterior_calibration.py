"""Posterior calibration on models whose posterior is known, joined rightly and wrongly."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_normal import DATA, Exact, normal

import ppl_gen as pg
from ppl_gen import Posterior, fit
from ppl_gen.core import Problem, Result, SiteError
from ppl_gen.inference import NUTS
from ppl_gen.judge.calibration import simulation_based_calibration
from ppl_gen.judge.posterior_calibration import posterior_calibration
from ppl_gen.models import EightSchools

Data = dict[str, Any]
FAR = DATA | {"y": torch.tensor([3.5, 4.0, 2.0])}
NEAR = DATA | {"y": torch.tensor([0.3, -0.5, 1.0])}


def posterior_of(pair: Any, data: Data, method: Any) -> Posterior:
    return fit(pair, data, method, progress=False)


def calibrate(posterior: Posterior, method: Any, **options: Any) -> Any:
    options = {"replicates": 80, "progress": False, **options}
    return posterior_calibration(posterior, method, **options)


def exact(data: Data) -> Posterior:
    return posterior_of(normal, data, Exact(draws=1000))


# ---- what it finds


def test_exact_draws_are_calibrated() -> None:
    found = calibrate(exact(FAR), Exact())
    assert found.passes(1e-3), str(found)
    assert found.names == ("mean", "log_joint")
    assert "It speaks of data like those at hand" in str(found)


@pytest.mark.parametrize(
    ("method", "verdict"),
    [(Exact(shift=0.6), "draws are too high"), (Exact(stretch=0.6), "draws are too narrow")],
)
def test_wrong_draws_are_found_and_named(method: Exact, verdict: str) -> None:
    assert calibrate(exact(FAR), method).table(1e-3)["verdict"][0] == verdict


def test_a_fault_for_data_that_the_prior_hardly_gives() -> None:
    """The first observation is N(0, 1.25) a priori, beyond 3 in 0.4 % of data sets."""
    method = Exact(stretch=0.5, beyond=3.0)
    before = simulation_based_calibration(normal, DATA, method, replicates=80, progress=False)
    assert before.passes(1e-3)
    assert calibrate(exact(NEAR), method).passes(1e-3)
    assert not calibrate(exact(FAR), method).passes(1e-3)


def test_an_improper_prior_will_do() -> None:
    def model(y: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.factor("prior", -0.5 * mean**2)
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    nuts = NUTS(chains=2, draws=200, warmup=150)
    found = calibrate(posterior_of(model, {"y": torch.ones(3)}, nuts), nuts, replicates=20)
    assert found.passes(1e-3)


# ---- latents of each row


def hierarchy(noise: torch.Tensor, y: torch.Tensor) -> None:
    """Means of rows around a common one: all of it is normal."""
    common = pyro.sample("common", dist.Normal(torch.zeros_like(noise[0]), 2.0))
    with pyro.plate("row", len(noise)):
        mean = pyro.sample("mean", dist.Normal(common, 1.0))
        pyro.sample("y", dist.Normal(mean, noise), obs=y)


@dataclass(frozen=True)
class ExactHierarchy:
    """Draws from the posterior of `hierarchy`.

    Args:
        draws: Number of draws.
        stretch: What the spread of the rows' means is multiplied by.
    """

    draws: int = 400
    stretch: float = 1.0
    is_mcmc: bool = False

    def run(self, problem: Problem) -> Result:
        noise, y = (problem.data[name].double() for name in ("noise", "y"))
        # The common mean given y, then the means of the rows given both.
        weights = 1 / (1 + noise**2)
        precision = 0.25 + weights.sum()
        common = (weights * y).sum() / precision + torch.randn(
            self.draws, dtype=torch.float64
        ) / precision.sqrt()
        own = 1 + noise**-2
        centre = (common[:, None] + y / noise**2) / own
        spread = self.stretch / own.sqrt()
        means = centre + spread * torch.randn(self.draws, len(y), dtype=torch.float64)
        return Result(draws={"common": common[None], "mean": means[None]})


ROWS = {"noise": torch.tensor([0.5, 1.0, 2.0]), "y": torch.tensor([3.0, 1.0, 8.0])}


def test_rows_have_latents_of_their_own() -> None:
    posterior = posterior_of(hierarchy, ROWS, ExactHierarchy(draws=1500))
    found = calibrate(posterior, ExactHierarchy(), replicates=150)
    assert found.names == ("common", *(f"mean[{i}]" for i in range(6)), "log_joint")
    assert found.passes(1e-3), str(found)
    # The negative control.
    wrong = calibrate(posterior, ExactHierarchy(stretch=0.6), replicates=150)
    assert not wrong.passes(1e-3)


def test_rows_measured_twice_are_joined_by_hand() -> None:
    """The mean of two measurements says of their row what both do."""
    posterior = posterior_of(hierarchy, ROWS, ExactHierarchy(draws=1500))

    def twice(data: Data, new: Data) -> Data:
        return {"y": (data["y"] + new["y"]) / 2, "noise": data["noise"] / math.sqrt(2)}

    found = calibrate(posterior, ExactHierarchy(), replicates=120, join=twice)
    assert found.names == ("common", *(f"mean[{i}]" for i in range(3)), "log_joint")
    assert found.passes(1e-3), str(found)

    def as_noisy_as_one(data: Data, new: Data) -> Data:
        return {"y": (data["y"] + new["y"]) / 2}

    with pytest.raises(ValueError, match="join: expected data under which the log density is that"):
        calibrate(posterior, ExactHierarchy(), join=as_noisy_as_one)

    def stacked(data: Data, new: Data) -> Data:
        return {name: torch.cat([data[name], new.get(name, data[name])]) for name in data}

    with pytest.raises(SiteError, match=r"site 'mean': expected shape \(3,\) .* got shape \(6,\)"):
        calibrate(posterior, ExactHierarchy(), join=stacked)


def test_eight_schools_become_sixteen() -> None:
    nuts = NUTS(chains=4, draws=100, warmup=150, target_accept=0.95)
    posterior = posterior_of(EightSchools(), EightSchools.data(), nuts)
    found = calibrate(posterior, nuts, replicates=12, max_rank=19)
    assert len(found.names) == 2 + 16 + 1
    assert found.passes(1e-3), str(found)


def test_discrete_latents_of_rows_and_of_all() -> None:
    """Rows' own are drawn anew, the shared one is that of the posterior; both are summed out."""

    def model(y: torch.Tensor) -> None:
        wide = pyro.sample("wide", dist.Bernoulli(torch.tensor(0.5)))
        mean = pyro.sample("mean", dist.Normal(torch.zeros_like(y[0]), 2.0))
        with pyro.plate("row", len(y)):
            kind = pyro.sample("kind", dist.Bernoulli(torch.tensor(0.3)))
            pyro.sample("y", dist.Normal(mean + 4 * kind, 1.0 + wide), obs=y)

    nuts = NUTS(chains=2, draws=200, warmup=150)
    posterior = posterior_of(model, {"y": torch.tensor([0.1, -0.5, 4.1, 0.7])}, nuts)
    found = calibrate(posterior, nuts, replicates=30, max_rank=19)
    assert found.names == ("mean", "log_joint")
    assert found.passes(1e-3), str(found)


# ---- counts, dtypes, resuming


def test_covariates_and_counts_are_stacked() -> None:
    def model(x: torch.Tensor, scale: float, counts: torch.Tensor | None = None) -> None:
        slope = pyro.sample("slope", dist.Normal(torch.zeros_like(x[0, 0]), scale))
        with pyro.plate("row", len(x)):
            pyro.sample("count", dist.Poisson((slope * x[:, 0]).exp()), obs=counts)

    data = {"x": np.ones((5, 1)), "scale": 0.5, "counts": torch.tensor([0, 2, 1, 3, 1])}
    nuts = NUTS(chains=2, draws=150, warmup=150)
    found = calibrate(
        posterior_of(model, data, nuts), nuts, replicates=10, observed={"count": "counts"}
    )
    assert found.names == ("slope", "log_joint")


def test_it_goes_on(tmp_path: Any) -> None:
    out = tmp_path / "ranks.jsonl"
    calibrate(exact(FAR), Exact(), replicates=5, out=out)
    grown = calibrate(exact(FAR), Exact(), replicates=9, out=out, resume=True)
    assert grown.ranks.tolist() == calibrate(exact(FAR), Exact(), replicates=9).ranks.tolist()
    with pytest.raises(ValueError, match=r"data 'y' was .*\n.*simulation 'first data set' was"):
        calibrate(exact(NEAR), Exact(), replicates=9, out=out, resume=True)
    out.unlink()
    simulation_based_calibration(normal, DATA, Exact(), replicates=3, out=out, progress=False)
    with pytest.raises(ValueError, match="option 'source' was prior, is posterior"):
        calibrate(exact(FAR), Exact(), out=out, resume=True)


# ---- what it refuses


def centred(x: torch.Tensor, y: torch.Tensor) -> None:
    """Rows that depend on each other by the mean of a covariate."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros_like(x[0]), 1.0))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(slope * (x - x.sum() / 4), 1.0), obs=y)


def prior_by_length(x: torch.Tensor, y: torch.Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros_like(x[0]), 1.0 / len(x)))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def no_plate(x: torch.Tensor, y: torch.Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros_like(x[0]), 1.0))
    pyro.sample("y", dist.Normal(slope * x, 1.0).to_event(1), obs=y)


def logarithm(x: torch.Tensor, y: torch.Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros_like(x[0]), 1.0))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y.exp())


def weighed(x: torch.Tensor, y: torch.Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros_like(x[0]), 1.0))
    pyro.factor("weight", slope * y.sum())
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (centred, "site 'y': expected a log density of .* that of both sets of rows"),
        (prior_by_length, "site 'slope': expected a log density of"),
        (no_plate, "the observations cannot be stacked by rows, .*\n?.*join=lambda data, new"),
        (logarithm, "site 'y': expected the values of argument 'y', got other ones"),
        (weighed, "site 'weight': expected a log density of"),
    ],
)
def test_models_whose_rows_cannot_be_stacked(model: Any, message: str) -> None:
    data = {"x": torch.tensor([1.0, 2.0, 4.0]), "y": torch.tensor([0.1, 0.5, 2.0])}
    nuts = NUTS(chains=1, draws=100, warmup=50)
    posterior = posterior_of(model, data, nuts)
    with pytest.raises(ValueError, match=message):
        calibrate(posterior, nuts, replicates=3)


def test_posteriors_that_true_values_cannot_be_taken_from(tmp_path: Any) -> None:
    with pytest.raises(
        ValueError, match=r"worth 1000 independent .* replicates=333, or .*sample\("
    ):
        calibrate(exact(FAR), Exact(), replicates=334)
    saved = exact(FAR).save(tmp_path / "saved")
    with pytest.raises(ValueError, match="lacks its pair"):
        calibrate(pg.load(saved), Exact())
    point = posterior_of(normal, FAR, Exact(draws=1))
    with pytest.raises(ValueError, match="worth 1 independent draws"):
        calibrate(point, Exact())
