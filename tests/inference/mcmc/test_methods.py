"""NUTS and HMC against exact posteriors, with tolerances from their Monte Carlo errors."""

import signal
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_gen import fit
from ppl_gen.diagnostics import ess_bulk, mcse_mean, rhat
from ppl_gen.inference import HMC, NUTS

METHODS: list[Any] = [
    NUTS(chains=4, draws=250, warmup=250),
    HMC(chains=4, draws=500, warmup=250),
]


def skewed() -> None:
    """A Gamma and a normal that depends on it: wrong signs and Jacobians move the means."""
    rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    pyro.sample("x", dist.Normal(rate, 0.5))


@pytest.mark.parametrize("method", METHODS, ids=["NUTS", "HMC"])
def test_moments_of_a_skewed_target(method: Any) -> None:
    result = fit(skewed, {}, method, seed=3, progress=False)
    draws = {name: value.numpy() for name, value in result.draws.items()}
    # E rate = 1.5, E rate^2 = var + mean^2 = 0.75 + 2.25, E x = 1.5; four standard errors each,
    # which a right sampler exceeds in one of 5,000 tests of three means.
    for values, expected in (
        (draws["rate"], 1.5),
        (draws["rate"] ** 2, 3.0),
        (draws["x"], 1.5),
    ):
        assert abs(values.mean() - expected) < 4 * mcse_mean(values)
        assert rhat(values) < 1.05
        assert ess_bulk(values) > 100


def test_a_planted_sign_error_in_the_jacobian_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    from ppl_gen.core import LogDensity

    right = LogDensity._log_prob

    def wrong(self: LogDensity, vector: torch.Tensor, data: Any, handlers: Any) -> torch.Tensor:
        # The Jacobian of the exponential is the coordinate itself.
        return right(self, vector, data, handlers) - 2 * vector[0]

    monkeypatch.setattr(LogDensity, "_log_prob", wrong)
    result = fit(skewed, {}, METHODS[0], seed=3, progress=False)
    rate = result["rate"].numpy()
    assert abs(rate.mean() - 1.5) > 4 * mcse_mean(rate)


@pytest.mark.parametrize("metric", ["diag", "dense"])
def test_statistics_of_every_draw(metric: Any) -> None:
    method = NUTS(chains=2, draws=60, warmup=60, metric=metric)
    result = fit(skewed, {}, method, progress=False)
    stats = result.sample_stats
    assert set(stats) == {
        "lp",
        "energy",
        "acceptance_rate",
        "diverging",
        "n_steps",
        "tree_depth",
        "step_size",
    }
    assert all(value.shape == (2, 60) for value in stats.values())
    # The log density is that of the draw: a Gamma, a normal, and the log-Jacobian log(rate).
    rate, x = result["rate"], result["x"]
    expected = torch.distributions.Gamma(3.0, 2.0).log_prob(rate) + rate.log()
    expected = expected + torch.distributions.Normal(rate, 0.5).log_prob(x)
    torch.testing.assert_close(stats["lp"], expected, rtol=1e-6, atol=1e-6)
    # Energy is kinetic plus potential; the kinetic part of two coordinates is chi-square(2) / 2.
    kinetic = stats["energy"][:, 1:] + stats["lp"][:, :-1]
    assert (kinetic > 0).all()
    assert kinetic.mean().item() == pytest.approx(1.0, abs=5 / 118**0.5)
    assert ((stats["acceptance_rate"] >= 0) & (stats["acceptance_rate"] <= 1)).all()
    assert (stats["n_steps"] >= 1).all()
    assert (2 ** stats["tree_depth"] <= stats["n_steps"] + 1).all()
    assert (stats["step_size"] > 0).all()
    assert not (stats["step_size"][:, 0] != stats["step_size"][:, -1]).any()
    assert result.provenance["gradient_evaluations"] >= stats["n_steps"].sum()


def test_divergences_are_marked() -> None:
    """A funnel at a coarse step size diverges; a normal target does not."""

    def funnel() -> None:
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(torch.zeros(5), (v / 2).exp()).to_event(1))

    method = NUTS(chains=4, draws=500, warmup=200, target_accept=0.5)
    assert fit(funnel, {}, method, progress=False).sample_stats["diverging"].any()
    careful = NUTS(chains=1, draws=60, warmup=60)
    smooth = fit(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), {}, careful, progress=False)
    assert not smooth.sample_stats["diverging"].any()


def test_ctrl_c_returns_whole_chains() -> None:
    calls = []

    def model() -> None:
        calls.append(None)
        if len(calls) == 1500:
            signal.raise_signal(signal.SIGINT)
        pyro.sample("z", dist.Normal(0.0, 1.0))

    method = NUTS(chains=2, draws=10_000, warmup=20, engine="pyro")
    result = fit(model, {}, method, progress=False)
    assert result.interrupted
    assert result["z"].shape[0] == 2
    assert 1 < result.num_draws < 10_000
    assert all(value.shape == result["z"].shape for value in result.sample_stats.values())


def test_a_start_without_finite_density_names_the_site() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(z > 100, 0.0, -float("inf")))

    with pytest.raises(ValueError, match=r"no start point: site 'wall' \(-inf\)"):
        fit(model, {}, NUTS(chains=1, draws=2, warmup=2), progress=False)


@pytest.mark.parametrize("method", [NUTS, HMC])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chains": 0}, "chains: expected at least 1"),
        ({"draws": -5}, "draws: expected at least 1"),
        ({"warmup": 0}, "warmup: expected at least 1"),
        ({"target_accept": 1.0}, "between 0 and 1"),
        ({"metric": "dens"}, "Did you mean 'dense'"),
        ({"engine": "pyrro"}, "Did you mean 'pyro'"),
    ],
)
def test_options_out_of_range(method: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(**options)


def test_options_of_one_method() -> None:
    with pytest.raises(ValueError, match="max_tree_depth"):
        NUTS(max_tree_depth=0)
    with pytest.raises(ValueError, match="trajectory_length"):
        HMC(trajectory_length=0.0)


def test_ctrl_c_in_warmup_says_that_there_is_nothing_to_keep() -> None:
    calls = []

    def model() -> None:
        calls.append(None)
        if len(calls) == 100:
            signal.raise_signal(signal.SIGINT)
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(KeyboardInterrupt, match="NUTS was interrupted in warm-up"):
        fit(model, {}, NUTS(chains=2, draws=10, warmup=1000, engine="pyro"), progress=False)


def test_options_are_whole_numbers() -> None:
    with pytest.raises(TypeError, match=r"chains: expected a whole number, got 2\.5"):
        NUTS(chains=2.5)  # type: ignore[arg-type]


def test_acceptance_is_that_of_each_transition() -> None:
    """Pyro keeps the running mean alone; the transitions' own values must average to it."""
    from pyro.infer import NUTS as PyroNUTS

    from ppl_gen.core import LogDensity
    from ppl_gen.inference.mcmc.pyro_kernels import Chain

    torch.manual_seed(2)
    density = LogDensity(skewed, {})
    start = torch.zeros(2, dtype=torch.float64)
    chain = Chain(density, start, 20, lambda potential: PyroNUTS(potential_fn=potential))
    for _ in range(20):
        chain.advance()
    rates = [chain.advance()[1]["acceptance_rate"].item() for _ in range(30)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert sum(rates) / 30 == pytest.approx(chain._kernel._mean_accept_prob, abs=1e-6)
    # The running mean itself would hardly vary by the end.
    last = torch.tensor(rates[-10:])
    assert last.std() > 0.01
