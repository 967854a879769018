"""Calibration on a model whose posterior is known, drawn from rightly and wrongly."""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_normal import DATA, Exact, normal

from ppl_gen.core import Problem, Result, SiteError
from ppl_gen.inference import NUTS
from ppl_gen.judge.calibration import Calibration
from ppl_gen.judge.calibration import simulation_based_calibration as calibrate


def verdicts(method: Any, **options: Any) -> dict[str, str]:
    options = {"replicates": 80, **options}
    calibration = calibrate(normal, DATA, method, progress=False, **options)
    table = calibration.table(alpha=1e-3)
    assert calibration.passes(alpha=1e-3) == bool((table["verdict"] == "calibrated").all())
    return dict(zip(table["quantity"], table["verdict"], strict=True))


def test_exact_draws_are_calibrated() -> None:
    assert verdicts(Exact()) == {"mean": "calibrated", "log_joint": "calibrated"}


@pytest.mark.parametrize(
    ("method", "verdict"),
    [
        (Exact(shift=0.5), "draws are too high"),
        (Exact(shift=-0.5), "draws are too low"),
        (Exact(stretch=0.6), "draws are too narrow"),
        (Exact(stretch=1.8), "draws are too wide"),
    ],
)
def test_wrong_draws_are_found_and_named(method: Exact, verdict: str) -> None:
    assert verdicts(method)["mean"] == verdict


def test_draws_that_ignore_the_data_are_found_by_the_log_joint_density() -> None:
    """Draws from the prior have uniform ranks for every function of the latents alone."""
    found = verdicts(Exact(prior=True))
    assert found["mean"] == "calibrated"
    assert found["log_joint"].startswith("draws are too low")


def test_quantities_of_the_user() -> None:
    found = verdicts(
        Exact(shift=0.5),
        quantities={"first residual": lambda values, data: data["y"][0] - values["mean"]},
    )
    assert found["first residual"] == "draws are too low"


def test_autocorrelated_draws_are_thinned() -> None:
    """The autocorrelation time is (1 + 0.99) / (1 - 0.99) = 199: 400 draws are worth few."""
    method = Exact(correlation=0.99, is_mcmc=True)
    calibration = calibrate(normal, DATA, method, replicates=100, progress=False)
    assert 2 <= np.median(calibration.independent_draws) <= 15
    assert calibration.passes(alpha=1e-3)
    assert "fewer than 99 draws are nearly independent" in str(calibration)
    # The negative control: taken for independent, they have ranks at both ends too often.
    assert verdicts(Exact(correlation=0.99))["mean"] == "draws are too narrow"


def regression(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """Weights of prior N(0, 1), and noise of scale 1."""
    weights = pyro.sample("weights", dist.Normal(torch.zeros_like(x[0]), 1.0).to_event(1))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(x @ weights, 1.0), obs=y)


@dataclass(frozen=True)
class ExactRegression:
    """Draws from the posterior of `regression`, all its deviations multiplied by a number.

    Args:
        stretch: The number.
    """

    stretch: float = 1.0
    is_mcmc: bool = False

    def run(self, problem: Problem) -> Result:
        x, y = problem.data["x"].double(), problem.data["y"].double()
        covariance = torch.linalg.inv(torch.eye(x.shape[1], dtype=torch.float64) + x.mT @ x)
        noise = torch.randn(200, x.shape[1], dtype=torch.float64)
        deviations = noise @ torch.linalg.cholesky(covariance).mT
        return Result(draws={"weights": (covariance @ x.mT @ y + self.stretch * deviations)[None]})


X = {"x": torch.randn(12, 4, generator=torch.Generator().manual_seed(0))}


def test_a_scale_that_is_a_tenth_too_small_is_found() -> None:
    """Of 400 calibrations of such draws all found it, and 2 % of 400 took right draws for wrong.

    With one parameter in place of four, 79 % and 4 %: 500 ranks do not tell more.
    """
    wrong, right = (
        calibrate(regression, X, ExactRegression(stretch), replicates=500, progress=False)
        for stretch in (0.9, 1.0)
    )
    assert not wrong.passes(0.01)
    table = wrong.table().set_index("quantity")
    # The estimates' standard error is 1 / sqrt(2 * 500) = 0.03, that of the mean of four half of it
    # or more, as they are correlated.
    assert abs(table["sd_ratio"][:4].mean() - 0.9) < 4 * 0.03
    assert table["verdict"]["log_joint"].startswith("draws are too high")
    assert "they are nearer to the mode" in str(wrong)
    assert right.passes()
    assert right.sentences() == tuple(f"No fault was found in {name}." for name in right.names)


def test_what_is_found_as_plain_values() -> None:
    found = calibrate(normal, DATA, Exact(shift=0.5), replicates=60, progress=False)
    plain = found.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["passes"] is False
    assert plain["data_sets"] == 60
    mean, log_joint = plain["quantities"]
    assert mean["verdict"] == "draws are too high"
    size = f"{mean['error_of_mean']:.2g}"
    assert mean["sentence"] == f"By its ranks the mean of mean is {size} sd of the draws too large."
    # Four standard errors of the mean of 60.
    assert abs(mean["error_of_mean"] - 0.5) < 0.52
    assert mean["p_value"] == found.p_values()[0]
    assert log_joint["quantity"] == "log_joint"
    one = calibrate(normal, DATA, Exact(), replicates=1, progress=False)
    assert json.dumps(one.to_dict(), allow_nan=False)
    assert one.passes()


def test_draws_that_are_wholly_wrong() -> None:
    """All ranks at one end, and a quantity that the draws have exactly."""
    found = uniform(np.stack([np.full(50, 99), np.arange(50) + 25, np.full(50, 50)], axis=1))
    assert found.table()["verdict"].tolist() == [
        "draws are too low",
        "draws are too wide",
        "ranks are uneven",
    ]
    expected = "By its ranks the mean of q0 is 2.6 sd of the draws too small."
    assert found.sentences()[0] == expected
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_quantities_of_the_user_are_looked_at_before_any_fit() -> None:
    never = Exact(fails_above=-math.inf)  # each fit fails
    with pytest.raises(KeyError, match="typo"):
        calibrate(normal, DATA, never, quantities={"q": lambda values, data: values["typo"]})
    for wrong in ("log_joint", "three"):
        with pytest.raises(ValueError, match=f"quantity '{wrong}': expected one number for each"):
            calibrate(normal, DATA, never, quantities={wrong: lambda v, d: torch.zeros(3)})


def test_the_same_seed_gives_the_same_ranks() -> None:
    first, again, other = (
        calibrate(normal, DATA, Exact(), replicates=5, seed=seed, progress=False)
        for seed in (3, 3, 4)
    )
    assert (first.ranks == again.ranks).all()
    assert (first.ranks != other.ranks).any()


# ---- p-values and bands


def uniform(ranks: np.ndarray) -> Calibration:
    """Return a calibration with a quantity for each column of ranks."""
    names = tuple(f"q{i}" for i in range(ranks.shape[1]))
    return Calibration(ranks, names, int(ranks.max()), np.full(len(ranks), ranks.max()), "test")


def test_small_p_values_of_uniform_ranks_are_no_more_than_they_say() -> None:
    """One of three tests, each at a third of the level, rejects: between once and three times it.

    Four standard errors of the share of 4,000 are allowed, and below another half, because the
    p-values have steps.
    """
    generator = np.random.default_rng(0)
    ranks = generator.integers(0, 20, size=(50, 4000))
    ranks[0, 0] = 19
    p = uniform(ranks).p_values()
    for level in (0.01, 0.05, 0.2, 0.5):
        error = 4 * math.sqrt(level / 4000)
        assert level / 6 - error < (p <= level).mean() < level + error


def test_the_figure_names_what_is_wrong() -> None:
    generator = np.random.default_rng(1)
    ranks = generator.integers(0, 100, size=(200, 3))
    ranks[:, 1] //= 2
    panel = uniform(ranks).plot().axes[0]
    labels = [text.get_text() for text in panel.get_legend().get_texts()]
    assert labels == ["q1: draws are too high and too wide"]
    assert len(panel.lines) == 3


# ---- models


def test_discrete_latents_are_summed_out_and_constants_left_out() -> None:
    def mixture(n: int, y: torch.Tensor | None = None) -> None:
        high = pyro.sample("high", dist.Beta(2.0, 2.0))
        factor = pyro.sample("factor", dist.LKJCholesky(2, torch.tensor(2.0)))
        with pyro.plate("row", n):
            kind = pyro.sample("kind", dist.Bernoulli(high))
            pyro.sample("y", dist.Normal(3 * kind + factor[1, 0], 1.0), obs=y)

    method = NUTS(chains=2, draws=100, warmup=100)
    calibration = calibrate(mixture, {"n": 6}, method, replicates=30, progress=False)
    assert calibration.names == ("high", "factor[1, 0]", "factor[1, 1]", "log_joint")
    assert calibration.passes(1e-3)


def test_without_latents_there_is_nothing_to_calibrate() -> None:
    def model(y: torch.Tensor) -> None:
        pyro.sample("y", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match="the model has no latents"):
        calibrate(model, {"y": torch.zeros(3)}, NUTS(), progress=False)


def test_an_observed_site_named_otherwise_than_its_argument() -> None:
    def model(values: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros_like(values[0]), 1.0))
        pyro.sample("y", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=values)

    data = {"values": torch.zeros(3)}
    method = NUTS(chains=2, draws=50, warmup=50)
    with pytest.raises(SiteError, match=r"site 'y': .* observed=\{'y': '...'\}"):
        calibrate(model, data, method, progress=False)
    with pytest.raises(ValueError, match="unknown observed site 'x'"):
        calibrate(model, data, method, observed={"x": "values"}, progress=False)
    found = calibrate(model, data, method, observed={"y": "values"}, replicates=3, progress=False)
    assert found.ranks.shape == (3, 2)


def with_factor(y: torch.Tensor | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.factor("weight", -mean.abs())
    pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def improper(y: torch.Tensor | None = None) -> None:
    mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def endless(y: torch.Tensor | None = None) -> None:
    pyro.sample("scale", dist.Exponential(1.0))
    count = pyro.sample("count", dist.Poisson(3.0))
    pyro.sample("y", dist.Normal(count, 1.0), obs=y)


def unobserved() -> None:
    pyro.sample("mean", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_factor, "site 'weight': expected a model that data can be drawn from"),
        (improper, "site 'mean': expected a distribution that can be drawn from"),
        (endless, "site 'count': expected a discrete latent with finitely many values"),
        (unobserved, "the model observes nothing"),
    ],
)
def test_models_that_cannot_be_calibrated(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(model, {}, NUTS(chains=1, draws=10, warmup=10), progress=False)


@pytest.mark.parametrize("option", ["replicates", "max_rank"])
def test_counts_are_checked(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}: expected at least 1, got 0"):
        calibrate(normal, DATA, Exact(), **{option: 0})


def test_ctrl_c_keeps_what_was_done() -> None:
    calls = []

    @dataclass(frozen=True)
    class Interrupted(Exact):
        def run(self, problem: Problem) -> Result:
            result = super().run(problem)
            calls.append(None)
            result.interrupted = len(calls) == 4
            return result

    found = calibrate(normal, DATA, Interrupted(), workers=1, progress=False)
    assert found.ranks.shape == (3, 2)
    assert found.interrupted
    calls[:] = [None] * 3
    with pytest.raises(KeyboardInterrupt, match="before its first fit was done"):
        calibrate(normal, DATA, Interrupted(), workers=1, progress=False)
