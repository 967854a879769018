"""The samplers draw from the posterior: calibration, Geweke's test, and engines that agree.

Simulation-based calibration runs all of a method, warm-up included, from start points far from the
posterior, and is blind to small faults: 200 data sets show a shift of about a quarter of a standard
deviation. Geweke's test looks at the bare transition with thousands of draws and shows shifts of a
hundredth, but starts in the right distribution: a chain that never moves passes. Neither sees what
leaves the posterior as it is: trees that end early or late by a rule that treats all their points
alike, paths of a poor length, a bad metric. Those cost time only, and are measured elsewhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from geweke import chance_of_change
from scipy.stats import norm

from ppl_gen import Posterior, fit
from ppl_gen.core import log_density
from ppl_gen.core.blocks import Substitute
from ppl_gen.core.compiler.build import NoCompiler, compiler
from ppl_gen.core.pair import as_pair, cast
from ppl_gen.diagnostics import mcse_mean
from ppl_gen.inference import HMC, NUTS
from ppl_gen.inference.mcmc import RandomWalk, native
from ppl_gen.judge.calibration import simulation_based_calibration
from ppl_gen.models import BayesianLinearRegression, EightSchools

try:
    compiler()
except NoCompiler:
    pytest.skip("needs a C++ compiler", allow_module_level=True)

# Chance that one test here fails although all is right; seeds are fixed.
ALPHA = 1e-3

# ---- pairs


def shares_of_counts(
    exposure: torch.Tensor, counts: torch.Tensor | None = None, level: torch.Tensor | None = None
) -> None:
    """A simplex, a positive and a bounded latent, all of them skewed."""
    one = torch.ones_like(exposure)[0]
    shares = pyro.sample("shares", dist.Dirichlet(torch.stack([0.7 * one, one, 2.0 * one])))
    rate = pyro.sample("rate", dist.Gamma(1.5 * one, 0.2 * one))
    chance = pyro.sample("chance", dist.Beta(2.0 * one, 0.8 * one))
    with pyro.plate("kind", len(exposure)):
        pyro.sample("counts", dist.Poisson(rate * shares * exposure), obs=counts)
        pyro.sample("level", dist.Normal(chance, 0.3), obs=level)


Values = Mapping[str, torch.Tensor]


def new_response(latents: Values, data: Values) -> Values:
    mean = latents["weights"] @ data["x"].mT + latents["intercept"][:, None]
    return {"y": torch.normal(mean, latents["noise_scale"][:, None].expand_as(mean))}


def new_effects(latents: Values, data: Values) -> Values:
    mean = latents["mu"][:, None] + latents["tau"][:, None] * latents["z"]
    return {"y": torch.normal(mean, data["sigma"].expand_as(mean))}


def new_counts(latents: Values, data: Values) -> Values:
    means = latents["rate"][:, None] * latents["shares"] * data["exposure"]
    level = torch.normal(latents["chance"][:, None].expand_as(means), 0.3)
    return {"counts": torch.poisson(means), "level": level}


@dataclass(frozen=True)
class Case:
    """A pair, its data without the observed ones, and how those are drawn given the latents."""

    pair: Any
    data: dict[str, torch.Tensor]
    simulate: Callable[[Values, Values], Values]


CASES = {
    "regression": Case(
        BayesianLinearRegression(
            1, prior_scale=2.0, intercept_scale=3.0, noise_concentration=2.0, noise_rate=1.0
        ),
        {"x": torch.tensor([[-1.2], [-0.3], [0.1], [0.9], [2.0]])},
        new_response,
    ),
    "schools": Case(
        EightSchools(tau_prior="half_normal"),
        {"sigma": EightSchools.data()["sigma"]},
        new_effects,
    ),
    "counts": Case(shares_of_counts, {"exposure": torch.tensor([1.0, 2.0, 3.0])}, new_counts),
}
OBSERVED = {
    "regression": {"y": torch.tensor([-1.0, 0.4, 0.3, 1.9, 3.2])},
    "schools": {"y": EightSchools.data()["y"]},
    "counts": {"counts": torch.tensor([0.0, 3.0, 14.0]), "level": torch.tensor([0.2, 0.9, 0.7])},
}

# ---- faults

HALVES = "leaf % 2 == 1 && turns_within_branch(leaf)"
FAULTS = {
    # The rule looks at the force in place of the momenta: a branch counts as turning back where its
    # newest leaf moves downhill, so that chains stay near the mode.
    "U-turn by the force": (HALVES, "s.direction[c] * dot(of(s.force), of(s.momentum), dim) <= 0"),
    # A tree holds points from which it would have been stopped before: the classic slip, and small.
    "U-turn not within branches": (HALVES, "false"),
    "momentum never drawn": ("draw_normal(r, MOMENTUM, 0);", ""),
}


class WrongJacobian(Substitute):
    """Subtracts each site's log-Jacobian in place of adding it."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        before = self.log_jacobian
        super()._pyro_sample(msg)
        self.log_jacobian = before - (self.log_jacobian - before)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that plants a fault for the rest of the test."""

    def plant(fault: str) -> None:
        if fault == "sign of the log-Jacobian":
            monkeypatch.setattr(log_density, "Substitute", WrongJacobian)
            return
        right, wrong = FAULTS[fault]
        build = native.build

        def build_wrong(source: str, *options: str) -> Any:
            assert source.count(right) == 1
            return build(source.replace(right, wrong), *options)

        with monkeypatch.context() as patch:
            patch.setattr(native, "build", build_wrong)
            library = native._sampler.__wrapped__()
        monkeypatch.setattr(native, "_sampler", lambda: library)

    return plant


# ---- simulation-based calibration

CALIBRATED = {
    "NUTS": NUTS(chains=4, draws=100, warmup=200),
    "HMC": HMC(chains=4, draws=100, warmup=200),
    "RandomWalk": RandomWalk(chains=4, draws=100, warmup=500, thinning=20),
}


def calibrate(case: str, method: str, replicates: int) -> Any:
    pair, data = CASES[case].pair, CASES[case].data
    return simulation_based_calibration(
        pair, data, CALIBRATED[method], replicates=replicates, progress=False
    )


@pytest.mark.parametrize(
    ("case", "method"),
    [*((case, method) for case in CASES for method in ("NUTS", "HMC")), ("counts", "RandomWalk")],
)
def test_methods_are_calibrated(case: str, method: str) -> None:
    calibration = calibrate(case, method, replicates=200)
    assert calibration.passes(ALPHA), str(calibration)
    # Enough draws for ranks that say something.
    assert np.median(calibration.independent_draws) >= 80


@pytest.mark.parametrize(
    ("fault", "case", "method"),
    [
        ("sign of the log-Jacobian", "counts", "NUTS"),
        ("U-turn by the force", "regression", "NUTS"),
        ("momentum never drawn", "counts", "NUTS"),
        ("momentum never drawn", "counts", "HMC"),
    ],
)
def test_calibration_finds_a_fault(
    fault: str, case: str, method: str, plant: Callable[[str], None]
) -> None:
    plant(fault)
    assert not calibrate(case, method, replicates=50).passes(1e-6)


# ---- Geweke's test

KERNELS: dict[str, tuple[type[NUTS | HMC | RandomWalk], float]] = {
    # Steps so large that acceptance matters.
    "NUTS": (NUTS, 0.5),
    "HMC": (HMC, 0.5),
    "RandomWalk": (RandomWalk, 0.5),
}


def chance(case: str, method: str) -> float:
    """Return the chance of changes as large as those found by Geweke's test."""
    kind, step_size = KERNELS[method]
    double = {name: value.double() for name, value in CASES[case].data.items()}
    pair = cast(as_pair(CASES[case].pair), torch.float64, torch.device("cpu"))
    kernel = kind(chains=1000, draws=1)
    return chance_of_change(
        pair, double, tuple(OBSERVED[case]), CASES[case].simulate, kernel, step_size=step_size
    )


@pytest.mark.parametrize("method", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_transitions_keep_latents_and_data_jointly_distributed(case: str, method: str) -> None:
    # Of 135 runs with other seeds the smallest chance was 0.026, and 2 were below 0.05.
    assert chance(case, method) > ALPHA


@pytest.mark.parametrize(
    ("fault", "case", "method"),
    [
        ("sign of the log-Jacobian", "counts", "NUTS"),
        ("sign of the log-Jacobian", "counts", "RandomWalk"),
        ("U-turn by the force", "counts", "NUTS"),
        ("U-turn not within branches", "schools", "NUTS"),
        ("momentum never drawn", "counts", "NUTS"),
        ("momentum never drawn", "schools", "HMC"),
    ],
)
def test_gewekes_test_finds_a_fault(
    fault: str, case: str, method: str, plant: Callable[[str], None]
) -> None:
    plant(fault)
    assert chance(case, method) < 1e-6


# ---- the three engines


def run(case: str, method: Any, seed: int, **changed: torch.Tensor) -> Posterior:
    data = {**CASES[case].data, **OBSERVED[case], **changed}
    return fit(CASES[case].pair, data, method, seed=seed, progress=False)


def differences(one: Posterior, other: Posterior) -> np.ndarray:
    """Return the differences of means and of spreads, in Monte Carlo standard errors.

    The spread is the mean distance from a common centre, so that it has a standard error like any
    mean. Positive sites are compared on the log scale.
    """
    z = []
    for name in one.latents:
        a, b = (p[name].reshape(p.num_chains, p.num_draws, -1).numpy() for p in (one, other))
        if (a > 0).all() and (b > 0).all():
            a, b = np.log(a), np.log(b)
        centre = 0.5 * (a.mean(axis=(0, 1)) + b.mean(axis=(0, 1)))
        for x, y in ((a, b), (np.abs(a - centre), np.abs(b - centre))):
            error = np.hypot(mcse_mean(x), mcse_mean(y))
            z.append((x.mean(axis=(0, 1)) - y.mean(axis=(0, 1))) / error)
    return np.concatenate(z)


def chance_of_differences(z: np.ndarray) -> float:
    """Return the chance that the largest difference is as large, if all are standard normal."""
    return float(min(1.0, 2 * norm.sf(np.abs(z).max()) * len(z)))


ENGINES = {
    "compiled": NUTS(chains=4, draws=1000, warmup=300),
    "eager": NUTS(chains=16, draws=30, warmup=80, engine="eager"),
    "pyro": NUTS(chains=2, draws=100, warmup=80, engine="pyro"),
}


@pytest.mark.parametrize("case", ["schools", "counts"])
def test_engines_agree(case: str) -> None:
    drawn = {name: run(case, method, seed=1) for name, method in ENGINES.items()}
    for one, other in (("compiled", "eager"), ("compiled", "pyro"), ("eager", "pyro")):
        z = differences(drawn[one], drawn[other])
        assert chance_of_differences(z) > ALPHA, (one, other, z)


def test_comparison_of_engines_is_calibrated() -> None:
    """Differences of an engine from itself are standard normal, and other data make large ones."""
    method = NUTS(chains=4, draws=150, warmup=150)
    drawn = [run("counts", method, seed) for seed in range(40)]
    z = np.stack([differences(a, b) for a, b in zip(drawn[::2], drawn[1::2], strict=True)])
    # The differences within a pair of runs depend on each other: their mean squares are 20
    # independent numbers. A tenth more is allowed, as the errors are estimated themselves.
    squares = (z**2).mean(axis=1)
    assert abs(squares.mean() - 1) < 4 * squares.std() / 20**0.5 + 0.1
    assert np.mean(np.abs(z) > 1.96) < 0.1
    other = run("counts", method, 0, counts=torch.tensor([0.0, 3.0, 16.0]))
    assert chance_of_differences(differences(other, drawn[0])) < 1e-6
