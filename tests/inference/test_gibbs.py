"""Gibbs sampling against exact posteriors and against NUTS, and conditionals broken on purpose.

Chances of a false alarm are those of a right sampler under another seed; seeds are fixed.
"""

from __future__ import annotations

import dataclasses
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from scipy import stats

import ppl_gen as pg
from ppl_gen import Pair, fit
from ppl_gen.core import LogDensity, SiteError
from ppl_gen.core.scope import isolated
from ppl_gen.diagnostics import mcse_mean, rhat
from ppl_gen.inference import NUTS, Gibbs
from ppl_gen.inference.gibbs import _Sampler, slice_sample
from ppl_gen.models import BayesianLinearRegression, GaussianMixture
from ppl_gen.models.gaussian_mixture import component_log_prob

# Over all numbers of one test together.
ALPHA = 1e-3


def largest(count: int) -> float:
    """Return what the largest of so many standard normal numbers exceeds with chance ALPHA."""
    return float(stats.norm.isf(ALPHA / (2 * count)))


class NormalGamma(Pair):
    """A normal distribution with unknown mean and precision, whose posterior is known."""

    m0, k0, a0, b0 = 0.5, 0.4, 1.5, 0.8

    def __init__(self, *, by_slice: bool = False, **wrong: Callable[..., Any]) -> None:
        super().__init__()
        self.by_slice = by_slice
        self.wrong = wrong

    def model(self, x: torch.Tensor) -> None:
        precision = pyro.sample("precision", dist.Gamma(self.a0, self.b0))
        mean = pyro.sample("mean", dist.Normal(self.m0, (self.k0 * precision).rsqrt()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=x)

    def conditionals(self, x: torch.Tensor) -> dict[str, Any]:
        def mean(values: Any) -> Any:
            k = self.k0 + len(x)
            loc = (self.k0 * self.m0 + x.sum()) / k
            return dist.Normal(loc, (k * values["precision"]).rsqrt())

        def precision(values: Any) -> Any:
            mean = values["mean"]
            squares = (x - mean.unsqueeze(-1)).square().sum(-1) + self.k0 * (mean - self.m0) ** 2
            shape, rate = self.a0 + (len(x) + 1) / 2, self.b0 + squares / 2
            if self.by_slice:
                return lambda value: (shape - 1) * value.log() - rate * value
            return dist.Gamma(shape, rate)

        return {"mean": mean, "precision": precision, **self.wrong}


X = torch.tensor([1.2, 0.3, 2.9, 1.7, -0.4], dtype=torch.float64)


def exact_moments() -> dict[str, float]:
    """Return posterior moments in closed form (Bernardo and Smith, Bayesian Theory, app. A.2)."""
    n, pair = len(X), NormalGamma
    k = pair.k0 + n
    m = float(pair.k0 * pair.m0 + X.sum()) / k
    a = pair.a0 + n / 2
    squares = float((X - X.mean()).square().sum())
    b = pair.b0 + squares / 2 + pair.k0 * n * (float(X.mean()) - pair.m0) ** 2 / (2 * k)
    return {
        "mean": m,
        "mean^2": m**2 + b / (k * (a - 1)),
        "precision": a / b,
        "precision^2": a * (a + 1) / b**2,
        "log precision": float(torch.digamma(torch.tensor(a, dtype=torch.float64))) - math.log(b),
    }


@pytest.mark.parametrize("by_slice", [False, True], ids=["conjugate", "slice"])
def test_posterior_of_a_normal_with_unknown_mean_and_precision(by_slice: bool) -> None:
    pair = NormalGamma(by_slice=by_slice)
    posterior = fit(pair, {"x": X}, Gibbs(draws=2500, warmup=100), seed=1, progress=False)
    mean, precision = posterior["mean"].numpy(), posterior["precision"].numpy()
    found = {
        "mean": mean,
        "mean^2": mean**2,
        "precision": precision,
        "precision^2": precision**2,
        "log precision": np.log(precision),
    }
    expected = exact_moments()
    for name, draws in found.items():
        z = (draws.mean() - expected[name]) / mcse_mean(draws)
        assert abs(z) < largest(len(expected)), (name, z)
        assert rhat(draws) < 1.01
    assert posterior.warnings == ()


def forgotten_prior(values: Any) -> Any:
    return dist.Normal(X.mean(), (len(X) * values["precision"]).rsqrt())


def test_a_wrong_conditional_is_refused() -> None:
    pair = NormalGamma(mean=forgotten_prior)
    with pytest.raises(SiteError, match=r"site 'mean': expected a conditional proportional to"):
        fit(pair, {"x": X}, Gibbs(), progress=False)


def test_a_wrong_conditional_moves_the_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test against the exact posterior."""
    monkeypatch.setattr(_Sampler, "_verify", lambda *_: None)
    pair = NormalGamma(mean=forgotten_prior)
    posterior = fit(pair, {"x": X}, Gibbs(draws=2500, warmup=100), seed=1, progress=False)
    draws = posterior["mean"].numpy()
    assert abs(draws.mean() - exact_moments()["mean"]) / mcse_mean(draws) > 2 * largest(5)


def test_a_conditional_that_can_only_be_drawn_from_is_taken_as_it_is() -> None:
    class DrawnOnly(torch.distributions.Distribution):
        def __init__(self, base: Any) -> None:
            super().__init__(base.batch_shape)
            self.base = base

        def sample(self, sample_shape: Any = ()) -> torch.Tensor:
            drawn: torch.Tensor = self.base.sample(sample_shape)
            return drawn

    pair = NormalGamma(mean=lambda values: DrawnOnly(forgotten_prior(values)))
    assert fit(pair, {"x": X}, Gibbs(draws=5, warmup=1), progress=False).num_draws == 5


# --- slice sampling --------------------------------------------------------------------------

RATES = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)


def log_of_gamma(u: torch.Tensor, jacobian: float = 1.0) -> torch.Tensor:
    """Return the log density of the logarithm of a Gamma(0.8, rate), skewed to the left."""
    return (0.8 - 1.0) * u - RATES * u.exp() + jacobian * u


def p_values(u: torch.Tensor) -> list[float]:
    """Return those of Kolmogorov and Smirnov for each rate."""
    columns = zip(u.exp().T.numpy(), RATES.tolist(), strict=True)
    return [stats.kstest(x, stats.gamma(0.8, scale=1 / rate).cdf).pvalue for x, rate in columns]


@pytest.mark.parametrize("width", [0.02, 1.0, 50.0])
@pytest.mark.parametrize("max_steps", [1, 3, 50])
def test_slice_sampling_leaves_a_skewed_density_as_it_is(width: float, max_steps: int) -> None:
    with isolated(7):
        u = torch.distributions.Gamma(0.8, RATES).sample((5000,)).log()
        for _ in range(10):
            u = slice_sample(log_of_gamma, u, width, max_steps=max_steps)
    assert min(p_values(u)) > ALPHA / 3


def test_slice_sampling_finds_a_skewed_density_from_far() -> None:
    with isolated(7):
        u = torch.tensor([-30.0, 0.0, 3.0], dtype=torch.float64).expand(5000, 3)
        for _ in range(60):
            u = slice_sample(log_of_gamma, u)
    assert min(p_values(u)) > ALPHA / 3
    # Elements are updated independently of each other: correlations of order 1 / sqrt(5000).
    correlation = np.corrcoef(u.T.numpy())[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < largest(3) / 5000**0.5


def test_a_forgotten_jacobian_is_found_in_slices() -> None:
    """The negative control of the tests above."""
    with isolated(7):
        u = torch.distributions.Gamma(0.8, RATES).sample((5000,)).log()
        for _ in range(10):
            u = slice_sample(lambda u: log_of_gamma(u, 0.7), u)
    assert max(p_values(u)) < 1e-6


def test_shrinkage_ends_with_a_new_point() -> None:
    calls = []

    def log_prob(u: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return log_of_gamma(u)

    with isolated(7):
        u = torch.zeros(1000, 3, dtype=torch.float64)
        assert bool((slice_sample(log_prob, u, 1e6) != u).all())
    # Intervals shrink by a factor of e^(1/2) or more on average: 28 times from 1e6 to 1, and the
    # slowest of 3000 elements needs a few times that.
    assert len(calls) < 100


def test_slices_stay_inside_a_support() -> None:
    def uniform(u: torch.Tensor) -> torch.Tensor:
        return torch.where((u > 0) & (u < 1), 0.0, torch.nan)

    with isolated(7):
        u = torch.full((5000,), 0.01, dtype=torch.float64)
        for _ in range(20):
            u = slice_sample(uniform, u, 0.3)
    assert stats.kstest(u.numpy(), stats.uniform.cdf).pvalue > ALPHA


# --- the Gaussian mixture --------------------------------------------------------------------


def points(n: int, separation: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    locs = separation * torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    which = torch.multinomial(torch.tensor([0.6, 0.4]), n, replacement=True, generator=generator)
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return locs[which] + 0.5 * noise


def per_draw(pair: GaussianMixture, posterior: pg.Posterior) -> np.ndarray:
    """Return numbers of each draw that know no labels, (chain, draw, number)."""
    grid = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    draws = {name: posterior[name] for name in pair._sites}
    numbers = [
        posterior.sample_stats["lp"].unsqueeze(-1),
        component_log_prob(grid, draws).logsumexp(-1).exp(),
        draws["weights"].square().sum(-1, keepdim=True),
        draws["scales"].log().mean((-2, -1)).unsqueeze(-1),
        draws["locs"].square().sum((-2, -1)).unsqueeze(-1),
        (draws["weights"].unsqueeze(-1) * draws["locs"]).sum(-2),
    ]
    return torch.cat(numbers, -1).numpy()


def z_scores(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return differences of means in units of their joint Monte Carlo error."""
    return (a.mean((0, 1)) - b.mean((0, 1))) / np.hypot(mcse_mean(a), mcse_mean(b))


@pytest.mark.parametrize(
    ("n", "separation"), [(40, 1.5), (25, 0.7)], ids=["separated", "overlapping"]
)
def test_mixture_agrees_with_nuts(n: int, separation: float) -> None:
    x, pair = points(n, separation), GaussianMixture(2, 2)
    gibbs = fit(pair, {"x": x}, Gibbs(chains=8, draws=1500, warmup=300), seed=2, progress=False)
    nuts = fit(pair, {"x": x}, NUTS(chains=8, draws=1500, warmup=500), seed=2, progress=False)
    invariant = per_draw(pair, gibbs), per_draw(pair, nuts)
    assert rhat(invariant[0]).max() < 1.02
    z = z_scores(*invariant)
    assert np.abs(z).max() < largest(z.size), z
    first = pair.relabel(gibbs)
    second = pair.relabel(nuts, like=first)
    for name in ("weights", "locs", "scales"):
        a, b = first[name].flatten(2).numpy(), second[name].flatten(2).numpy()
        for power in (1, 2):
            z = z_scores(a**power, b**power)
            assert np.abs(z).max() < largest(2 * 10), (name, power, z)


def wrong_locs(pair: GaussianMixture, x: torch.Tensor, right: Any) -> Any:
    """Forget the prior precision, all but a trace that keeps empty components in place."""

    def locs(values: Any) -> Any:
        given = right["locs"](values)
        precision = given.scale**-2 - 0.9 * pair.locs_scale**-2
        return dist.Normal(given.loc / given.scale.square() / precision, precision.rsqrt())

    return locs


def wrong_weights(pair: GaussianMixture, x: torch.Tensor, right: Any) -> Any:
    """Take the prior for uniform."""
    shift = 1.0 - pair.weights_concentration
    return lambda values: dist.Dirichlet(right["weights"](values).concentration + shift)


def wrong_scales(pair: GaussianMixture, x: torch.Tensor, right: Any) -> Any:
    """Forget that the density is that of the scale and not of its logarithm."""

    def scales(values: Any) -> Any:
        log_prob = right["scales"](values)
        return lambda value: log_prob(value) + value.log()

    return scales


def wrong_assignment(pair: GaussianMixture, x: torch.Tensor, right: Any) -> Any:
    """Forget the weights."""

    def assignment(values: Any) -> Any:
        logits = component_log_prob(x, values) - values["weights"].log().unsqueeze(-2)
        return dist.Categorical(logits=logits)

    return assignment


PLANTED = {
    "locs": wrong_locs,
    "weights": wrong_weights,
    "scales": wrong_scales,
    "assignment": wrong_assignment,
}


def change_of_the_joint(planted: str | None, seed: int = 5) -> np.ndarray:
    """Return z-scores of what sweeps change in draws from the joint distribution of everything.

    Latents are drawn from their prior and data given them, apart for each chain; sweeps given
    those data must leave the joint distribution as it was (Geweke 2004, Getting it right: joint
    distribution tests of posterior simulators, JASA 99, 799-804). Chains are independent, so that
    mean changes have plain standard errors.
    """
    pair, chains, n = GaussianMixture(2, 1), 6000, 6
    density = LogDensity(pair, {"x": torch.zeros(n, 1)})
    double = {"dtype": torch.float64}
    with isolated(seed, torch.float64), torch.no_grad():
        before = {
            name: torch.stack([prior.sample() for _ in range(2)], 1)
            for name, prior in (
                ("locs", dist.Normal(0, pair.locs_scale).expand([chains, 1])),
                ("scales", dist.LogNormal(math.log(0.5), 0.5).expand([chains, 1])),
            )
        }
        before["weights"] = dist.Dirichlet(torch.full((chains, 2), 2.0, **double)).sample()
        which = torch.multinomial(before["weights"], n, replacement=True)
        before["assignment"] = which
        loc, scale = (before[k].squeeze(-1).gather(1, which) for k in ("locs", "scales"))
        x = torch.normal(loc, scale).reshape(chains, 1, n, 1)
        right = pair.conditionals(x)
        wrong = {} if planted is None else {planted: PLANTED[planted](pair, x, right)}
        sampler = _Sampler(density, {**right, **wrong}, before)
        for _ in range(3):
            sampler.sweep(tune=False, verify=False)

    def numbers(values: Any) -> torch.Tensor:
        weights, locs, scales = values["weights"], values["locs"][..., 0], values["scales"][..., 0]
        own = locs.gather(1, values["assignment"])
        deviation = (x[:, 0, :, 0] - own) / scales.gather(1, values["assignment"])
        columns = [
            weights.square(),
            locs,
            locs.square(),
            scales.log(),
            scales.log().square(),
            weights * values["assignment"].double().mean(1, keepdim=True),
            deviation.square().mean(1, keepdim=True).clamp(max=20.0),
            locs * x[:, 0, :, 0].mean(1, keepdim=True),
        ]
        return torch.cat(columns, 1)

    change = (numbers(sampler.values) - numbers(before)).numpy()
    z: np.ndarray = change.mean(0) / (change.std(0, ddof=1) / chains**0.5)
    return z


def test_sweeps_leave_the_joint_distribution_as_it_is() -> None:
    z = change_of_the_joint(None)
    assert np.abs(z).max() < largest(z.size), z


@pytest.mark.parametrize("site", PLANTED)
def test_a_planted_error_changes_the_joint_distribution(site: str) -> None:
    assert np.abs(change_of_the_joint(site)).max() > 8


@pytest.mark.parametrize("site", PLANTED)
def test_a_planted_error_is_refused_before_sampling(site: str) -> None:
    class Wrong(GaussianMixture):
        def conditionals(self, x: torch.Tensor) -> Any:
            right = super().conditionals(x)
            return {**right, site: PLANTED[site](self, x, right)}

    for dtype in (torch.float64, torch.float32):
        with pytest.raises(SiteError, match=f"site '{site}'"):
            fit(Wrong(2, 2), {"x": points(200, 1.0)}, Gibbs(dtype=dtype), progress=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_right_conditionals_pass_on_large_data(dtype: torch.dtype) -> None:
    """The check's tolerance grows with the rounding errors of long sums."""
    x = points(20_000, 1.0)
    method = Gibbs(chains=2, draws=2, warmup=1, dtype=dtype)
    posterior = fit(GaussianMixture(3, 2), {"x": x}, method, progress=False)
    assert posterior["locs"].dtype == dtype


# --- what a posterior holds ------------------------------------------------------------------

PAIR = GaussianMixture(2, 2)
DATA = {"x": points(30, 1.0)}
SHORT = Gibbs(chains=3, draws=40, warmup=20)


@pytest.fixture(scope="module")
def short() -> pg.Posterior:
    return fit(PAIR, DATA, SHORT, seed=4, progress=False)


def test_draws_and_statistics(short: pg.Posterior) -> None:
    assert set(short.draws) == {"weights", "locs", "scales"}
    assert short["locs"].shape == (3, 40, 2, 2)
    assert set(short.sample_stats) == {"lp"}
    density = LogDensity(PAIR, DATA)
    expected = density.log_prob(density.unconstrain({n: short[n][1] for n in density.sites}))
    torch.testing.assert_close(short.sample_stats["lp"][1], expected)
    assert short.provenance["method"] == "Gibbs"


def test_everything_that_a_posterior_does(short: pg.Posterior, tmp_path: Path) -> None:
    assert short.discrete()["assignment"].shape == (3, 40, 30)
    assert short.predict()["x"].shape == (3, 40, 30, 2)
    assert list(short.to_arviz(predictive_draws=5)["sample_stats"].data_vars) == ["lp"]
    assert bool(np.isfinite(short.summary()["ess_bulk"]).all())
    nuts = fit(PAIR, DATA, NUTS(chains=3, draws=40, warmup=40), progress=False)
    comparison = pg.compare({"gibbs": short, "nuts": nuts}, reference="nuts")
    assert "gibbs" in str(comparison)
    comparison.save(tmp_path / "report.html")
    loaded = pg.load(short.save(tmp_path / "posterior"))
    assert torch.equal(loaded["locs"], short["locs"])


def test_the_same_seed_gives_the_same_draws(short: pg.Posterior) -> None:
    again = fit(PAIR, DATA, SHORT, seed=4, progress=False)
    other = fit(PAIR, DATA, SHORT, seed=5, progress=False)
    assert torch.equal(again["scales"], short["scales"])
    assert not torch.equal(other["scales"], short["scales"])


def test_thinning_keeps_every_third_sweep(short: pg.Posterior) -> None:
    method = Gibbs(chains=3, draws=13, warmup=20, thinning=3)
    thinned = fit(PAIR, DATA, method, seed=4, progress=False)
    assert torch.equal(thinned["locs"], short["locs"][:, 2::3])


@pytest.mark.parametrize("loaded", [False, True])
def test_extension_is_the_longer_run(short: pg.Posterior, loaded: bool, tmp_path: Path) -> None:
    method = Gibbs(chains=3, draws=65, warmup=20)
    whole = fit(PAIR, DATA, method, seed=4, progress=False)
    start = pg.load(short.save(tmp_path / "short")) if loaded else short
    extended = start.extend(25, progress=False)
    assert short.num_draws == 40
    for name in short.draws:
        assert torch.equal(extended[name], whole[name]), name
    torch.testing.assert_close(extended.sample_stats["lp"], whole.sample_stats["lp"])


def test_an_extension_on_other_data_is_refused(short: pg.Posterior) -> None:
    other = dataclasses.replace(short, data={"x": DATA["x"] + 0.1})
    with pytest.raises(ValueError, match="the model is not the one that the chains were run on"):
        other.extend(5, progress=False)


def test_a_run_in_a_folder(short: pg.Posterior, tmp_path: Path) -> None:
    fit(PAIR, DATA, SHORT, seed=4, progress=False, out=tmp_path / "run")
    assert torch.equal(pg.load(tmp_path / "run")["locs"], short["locs"])


def test_a_run_in_a_folder_grows(short: pg.Posterior, tmp_path: Path) -> None:
    out = tmp_path / "run"
    longer = dataclasses.replace(SHORT, draws=65)
    whole = fit(PAIR, DATA, longer, seed=4, progress=False)
    fit(PAIR, DATA, SHORT, seed=4, progress=False, out=out)
    again = fit(PAIR, DATA, SHORT, seed=4, progress=False, out=out, resume=True)
    assert again.num_draws == 40
    grown = fit(PAIR, DATA, longer, seed=4, progress=False, out=out, resume=True)
    for posterior in (grown, pg.load(out)):
        for name in short.draws:
            assert torch.equal(posterior[name], whole[name]), name
    fit(PAIR, DATA, longer, seed=4, progress=False, out=out, resume=True)
    with pytest.raises(ValueError, match="option 'draws' was 65, is 40"):
        fit(PAIR, DATA, SHORT, seed=4, progress=False, out=out, resume=True)


class Coins(Pair):
    """Tosses of two coins of unknown bias, and which coin each was of."""

    def __init__(self, scale: float, where: str) -> None:
        super().__init__()
        self.scale = scale
        self.where = where

    def model(self, x: torch.Tensor) -> None:
        with poutine.scale(scale=self.scale if self.where == "prior" else 1.0):
            bias = pyro.sample("bias", dist.Beta(torch.ones(2), 1.0).to_event(1))
        with poutine.scale(scale=self.scale if self.where == "plate" else 1.0):
            with pyro.plate("data", len(x)):
                coin = pyro.sample("coin", dist.Categorical(torch.ones(2)))
                pyro.sample("x", dist.Bernoulli(Vindex(bias)[coin]), obs=x)

    def conditionals(self, x: torch.Tensor) -> dict[str, Any]:
        scale = self.scale if self.where == "plate" else 1.0

        def bias(values: Any) -> Any:
            heads = torch.nn.functional.one_hot(values["coin"], 2).to(x.dtype) * x.unsqueeze(-1)
            tails = torch.nn.functional.one_hot(values["coin"], 2).to(x.dtype) - heads
            return dist.Beta(1 + scale * heads.sum(-2), 1 + scale * tails.sum(-2)).to_event(1)

        def coin(values: Any) -> Any:
            bias = values["bias"].unsqueeze(-2)
            logits = torch.where(x.unsqueeze(-1) > 0, bias.log(), (1 - bias).log())
            return dist.Categorical(logits=scale * logits)

        return {"bias": bias, "coin": coin}


def test_scaled_discrete_latents_are_refused() -> None:
    data = {"x": torch.tensor([1.0, 0.0, 1.0])}
    method = Gibbs(chains=2, draws=5, warmup=5)
    with pytest.raises(SiteError, match=r"'coin': expected no scale.* got a scale of 3.0.*NUTS"):
        fit(Coins(3.0, "plate"), data, method, progress=False)
    # A scale of what the discrete latents take no part in is as good as any other density.
    for pair in (Coins(1.0, "plate"), Coins(3.0, "prior")):
        assert fit(pair, data, method, progress=False)["bias"].shape == (2, 5, 2)


def test_full_covariance_of_one_dimension_is_diagonal() -> None:
    pair = GaussianMixture(3, 1, covariance="full")
    method = Gibbs(chains=2, draws=5, warmup=5)
    posterior = fit(pair, {"x": DATA["x"][:, :1]}, method, progress=False)
    assert posterior["scales"].shape == (2, 5, 3, 1)


def test_start_from_a_posterior(short: pg.Posterior) -> None:
    method = Gibbs(chains=5, draws=2, warmup=1, init=short)
    assert fit(PAIR, DATA, method, progress=False)["locs"].shape == (5, 2, 2, 2)


def stop_at(call: int) -> NormalGamma:
    calls = []

    def mean(values: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return NormalGamma().conditionals(X)["mean"](values)

    return NormalGamma(mean=mean)


def test_ctrl_c_returns_whole_chains() -> None:
    # The pair is copied before the run, the function is not: it counts one call a sweep.
    posterior = fit(stop_at(31), {"x": X}, Gibbs(warmup=20), progress=False)
    assert posterior.interrupted
    assert posterior["mean"].shape == posterior["precision"].shape == (4, 10)
    assert posterior.sample_stats["lp"].shape == (4, 10)
    with pytest.raises(ValueError, match="interrupted"):
        posterior.extend(5)


def test_an_interrupted_run_in_a_folder_cannot_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    method = Gibbs(warmup=20)
    fit(stop_at(31), {"x": X}, method, progress=False, out=out)
    assert pg.load(out).num_draws == 10
    with pytest.raises(ValueError, match="interrupted, and Gibbs has kept nothing to go on from"):
        fit(stop_at(31), {"x": X}, method, progress=False, out=out, resume=True)


def test_ctrl_c_in_warmup_says_that_there_is_nothing_to_keep() -> None:
    with pytest.raises(KeyboardInterrupt, match="nothing to keep"):
        fit(stop_at(10), {"x": X}, Gibbs(warmup=20), progress=False)


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chains": 0}, "chains: expected at least 1"),
        ({"draws": -5}, "draws: expected at least 1"),
        ({"warmup": 0}, "warmup: expected at least 1"),
        ({"thinning": 0}, "thinning: expected at least 1"),
        ({"init": "priors"}, "Did you mean 'prior'"),
        ({"dtype": torch.float16}, "dtype: expected"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gibbs(**options)


def test_options_are_whole_numbers() -> None:
    with pytest.raises(TypeError, match=r"chains: expected a whole number, got 2\.5"):
        Gibbs(chains=2.5)  # type: ignore[arg-type]


def test_a_pair_without_conditionals() -> None:
    data = {"x": torch.zeros(3, 1), "y": torch.zeros(3)}
    message = r"BayesianLinearRegression has no method 'conditionals'.*noise_scale, weights"
    with pytest.raises(ValueError, match=message):
        fit(BayesianLinearRegression(1), data, Gibbs(), progress=False)


def test_full_covariances_have_no_conjugate_block() -> None:
    pair = GaussianMixture(2, 2, covariance="full")
    with pytest.raises(ValueError, match=r"'correlation_cholesky' are not conjugate\. Use NUTS"):
        fit(pair, DATA, Gibbs(), progress=False)


def test_a_site_too_many() -> None:
    pair = NormalGamma(means=lambda values: None)
    with pytest.raises(ValueError, match="Did you mean 'mean'"):
        fit(pair, {"x": X}, Gibbs(), progress=False)


def test_a_site_too_few() -> None:
    class Forgetful(GaussianMixture):
        def conditionals(self, x: torch.Tensor) -> Any:
            found = super().conditionals(x)
            del found["assignment"]
            return found

    with pytest.raises(SiteError, match="site 'assignment': expected a conditional among"):
        fit(Forgetful(2, 2), DATA, Gibbs(), progress=False)


def test_a_conditional_that_loses_the_chains() -> None:
    pair = NormalGamma(mean=lambda values: dist.Normal(0.0, 1.0))
    with pytest.raises(SiteError, match="axis of chains in front"):
        fit(pair, {"x": X}, Gibbs(), progress=False)


def test_a_conditional_that_is_not_finite() -> None:
    pair = NormalGamma(mean=lambda values: dist.Normal(values["mean"] + math.inf, 1.0))
    with pytest.raises(SiteError, match=r"site 'mean'.*NaN or infinite"):
        fit(pair, {"x": X}, Gibbs(), progress=False)


@pytest.mark.parametrize("site", ["weights", "assignment"])
def test_a_log_density_where_elements_are_not_free(site: str) -> None:
    class Sliced(GaussianMixture):
        def conditionals(self, x: torch.Tensor) -> Any:
            return {**super().conditionals(x), site: lambda values: torch.zeros_like}

    with pytest.raises(SiteError, match=f"site '{site}': expected a distribution"):
        fit(Sliced(2, 2), DATA, Gibbs(), progress=False)
