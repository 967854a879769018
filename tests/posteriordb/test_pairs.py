"""The 20 pairs: names, the map between sites and scalars, and the differential equations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dynamics import concentrations, populations
from exact import EXACT
from pairs import POSTERIORS
from pyro import poutine
from scipy.integrate import solve_ivp

from ppl_gen.core import LogDensity
from ppl_gen.core.pair import as_pair
from ppl_gen.core.scope import isolated

DRAWS = 3


def test_every_posterior_has_a_pair(posteriordb: Path) -> None:
    folders = {path.name for path in posteriordb.iterdir() if path.is_dir()}
    assert set(POSTERIORS) == folders
    assert set(EXACT) < folders


@pytest.mark.parametrize("name", POSTERIORS)
def test_sites_come_back_as_the_reference_scalars(name: str, posteriordb: Path) -> None:
    posterior = POSTERIORS[name]
    reference, data = posterior.reference(posteriordb), posterior.data(posteriordb)
    density = LogDensity(posterior.pair, data)
    latents = posterior.reference_latents(posteriordb)
    u = density.unconstrain({site: value[0, :DRAWS] for site, value in latents.items()})
    runs: dict[str, list[torch.Tensor]] = {}
    for vector in u:
        with isolated(0, torch.float64):
            at = poutine.condition(as_pair(posterior.pair).model, density.constrain(vector))
            nodes = poutine.trace(at).get_trace(**data).nodes
        for site in {scalar.partition("[")[0] for scalar in reference}:
            runs.setdefault(site, []).append(nodes[site]["value"])
    draws = {site: torch.stack(values)[None] for site, values in runs.items()}
    for scalar, found in posterior.scalars(draws, reference).items():
        # The Cholesky factor of the latent process is nearly singular.
        assert found[0] == pytest.approx(reference[scalar][0, :DRAWS], rel=1e-6)


def test_scalars_without_moments_exist(posteriordb: Path) -> None:
    for posterior in POSTERIORS.values():
        assert set(posterior.without_moments) <= set(posterior.reference(posteriordb))


def log_normal(y: Any, solution: Any, sigma: Any) -> float:
    """Return the log likelihood, without what does not depend on the solution."""
    return float(np.sum(-(((np.log(y) - np.log(solution)) / sigma) ** 2) / 2))


# With d the error of the log likelihood at draws from the posterior, the error of a mean is
# cov(exp d, x) / mean(exp d), to first order in d at most sd(d) sd(x). The reference's own Monte
# Carlo error is sd(x) / 100.


def test_error_of_populations_is_negligible(posteriordb: Path) -> None:
    posterior = POSTERIORS["hudson_lynx_hare-lotka_volterra"]
    y = posterior.data(posteriordb)["y"].numpy()
    sites = {
        name: value.flatten(0, 1)[::200].double()
        for name, value in posterior.reference_latents(posteriordb).items()
    }
    errors = []
    for theta, start, sigma in zip(sites["theta"], sites["z_init"], sites["sigma"], strict=True):
        a, b, c, d = theta.tolist()

        def derivative(_: float, z: Any, a: Any = a, b: Any = b, c: Any = c, d: Any = d) -> Any:
            return [(a - b * z[1]) * z[0], (-c + d * z[0]) * z[1]]

        years = np.arange(1, len(y) + 1)
        exact = solve_ivp(
            derivative, (0, len(y)), start.numpy(), "LSODA", years, rtol=1e-9, atol=1e-9
        ).y.T
        ours = populations(theta, start, len(y)).numpy()
        assert ours == pytest.approx(exact, rel=2e-4)
        errors.append(log_normal(y, ours, sigma.numpy()) - log_normal(y, exact, sigma.numpy()))
    assert np.std(errors) < 0.01


def test_error_of_concentrations_is_negligible(posteriordb: Path) -> None:
    posterior = POSTERIORS["one_comp_mm_elim_abs-one_comp_mm_elim_abs"]
    data = posterior.data(posteriordb)
    y, interval = data["c_hat"].numpy(), float(data["interval"])
    dose = float(data["dose"] / data["volume"])
    sites = {
        name: value.flatten()[::200].double()
        for name, value in posterior.reference_latents(posteriordb).items()
    }
    errors = []
    for k_a, k_m, v_m, sigma in zip(
        *(sites[name] for name in ("k_a", "K_m", "V_m", "sigma")), strict=True
    ):
        a, m, v = float(k_a), float(k_m), float(v_m / data["volume"])

        def derivative(t: float, c: Any, a: Any = a, m: Any = m, v: Any = v) -> Any:
            return math.exp(-a * t) * dose * a - v * c / (m + c)

        times = interval * np.arange(1, len(y) + 1)
        exact = solve_ivp(
            derivative, (0, times[-1]), [0.0], "LSODA", times, rtol=1e-9, atol=1e-9
        ).y[0]
        ours = concentrations(
            k_a, k_m, v_m, data["dose"], data["volume"], data["interval"], len(y)
        ).numpy()
        # With a small K_m elimination sets in within the first step.
        assert ours == pytest.approx(exact, rel=2e-3)
        errors.append(log_normal(y, ours, float(sigma)) - log_normal(y, exact, float(sigma)))
    assert np.std(errors) < 0.01
