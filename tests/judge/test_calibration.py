"""Calibration on a model whose posterior is known, drawn from rightly and wrongly."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import signal, stats

from ppl_gen.core import Problem, Result, SiteError
from ppl_gen.inference import NUTS
from ppl_gen.judge.calibration import Calibration, _chance_of_tail, _level, _tails
from ppl_gen.judge.calibration import simulation_based_calibration as calibrate

DATA = {"noise": torch.tensor([0.5, 1.0, 2.0])}


def normal(noise: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """A mean of prior N(0, 1), observed three times with different errors."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros_like(noise[0]), 1.0))
    with pyro.plate("row", len(noise)):
        pyro.sample("y", dist.Normal(mean, noise), obs=y)


@dataclass(frozen=True)
class Exact:
    """Draws from the posterior of `normal`, which is normal, or from something near it.

    Args:
        shift: Added to the draws, in posterior standard deviations.
        stretch: What the standard deviation is multiplied by.
        prior: Whether to draw from the prior instead.
        correlation: Of successive draws.
        is_mcmc: Whether the draws are said to be a Markov chain.
    """

    shift: float = 0.0
    stretch: float = 1.0
    prior: bool = False
    correlation: float = 0.0
    is_mcmc: bool = False

    def run(self, problem: Problem) -> Result:
        weights = problem.data["noise"].double() ** -2
        precision = 1 + weights.sum()
        mean, sd = (weights * problem.data["y"]).sum() / precision, precision**-0.5
        if self.prior:
            mean, sd = torch.tensor(0.0), torch.tensor(1.0)
        noise = torch.randn(1, 400, dtype=torch.float64).numpy()
        noise[:, 1:] *= math.sqrt(1 - self.correlation**2)  # stationary from the first draw on
        draws = torch.from_numpy(signal.lfilter([1.0], [1.0, -self.correlation], noise))
        return Result(draws={"mean": mean + sd * (self.shift + self.stretch * draws)})


def verdicts(method: Any, **options: Any) -> dict[str, str]:
    calibration = calibrate(normal, DATA, method, replicates=200, progress=False, **options)
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
    assert found["log_joint"] == "draws are too low"


def test_quantities_of_the_user() -> None:
    found = verdicts(
        Exact(shift=0.5),
        quantities={"first residual": lambda values, data: data["y"][0] - values["mean"]},
    )
    assert found["first residual"] == "draws are too low"


def test_autocorrelated_draws_are_thinned() -> None:
    """The autocorrelation time is (1 + 0.99) / (1 - 0.99) = 199: 400 draws are worth few."""
    method = Exact(correlation=0.99, is_mcmc=True)
    calibration = calibrate(normal, DATA, method, replicates=200, progress=False)
    assert 2 <= np.median(calibration.independent_draws) <= 15
    assert calibration.passes(alpha=1e-3)
    assert "fewer than 99 draws are nearly independent" in str(calibration)
    # The negative control: taken for independent, they have ranks at both ends too often.
    assert verdicts(Exact(correlation=0.99))["mean"] == "draws are too narrow"


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


def test_p_values_are_those_of_simulation() -> None:
    """Among uniform ranks a p-value of p or less has the probability p, up to its few steps."""
    generator = np.random.default_rng(0)
    ranks = generator.integers(0, 20, size=(50, 4000))
    ranks[0, 0] = 19
    p = uniform(ranks).p_values()
    for level in (0.01, 0.05, 0.2, 0.5):
        attained = p[p <= level].max()
        # Four standard errors of the share of 4,000.
        assert abs((p <= level).mean() - attained) < 4 * math.sqrt(attained / 4000)


def test_p_value_of_one_boundary_is_the_binomial_one() -> None:
    tails = _tails(size=30, max_rank=1)
    chance = _chance_of_tail(tails, tails[0, [8]])
    assert chance[0] == pytest.approx(stats.binomtest(8, 30, 0.5).pvalue, rel=1e-9)


def test_the_band_holds_what_it_says() -> None:
    level = _level(size=100, max_rank=19, alpha=0.05)
    below, above = _chance_of_tail(_tails(100, 19), np.array([level, 1.1 * level]))
    assert below <= 0.05
    assert below > 0.04
    assert above >= below


def test_the_figure_names_what_is_wrong() -> None:
    generator = np.random.default_rng(1)
    ranks = generator.integers(0, 100, size=(200, 3))
    ranks[:, 1] //= 2
    panel = uniform(ranks).plot().axes[0]
    labels = [text.get_text() for text in panel.get_legend().get_texts()]
    assert labels == ["q1: draws are too high"]
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

    assert calibrate(normal, DATA, Interrupted(), progress=False).ranks.shape == (3, 2)
    calls[:] = [None] * 3
    with pytest.raises(KeyboardInterrupt, match="before its first fit was done"):
        calibrate(normal, DATA, Interrupted(), progress=False)
