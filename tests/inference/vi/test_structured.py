"""Structured guides: exact on posteriors of their form, sparse, and honest about the others."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray

import ppl_gen as pg
from ppl_gen.core import LogDensity
from ppl_gen.core.evaluation import Evaluate, eagerly
from ppl_gen.inference import SVI
from ppl_gen.inference.vi.deterministic import Fit, fit_normal
from ppl_gen.inference.vi.families import FullRank, Normal
from ppl_gen.inference.vi.mode import find_mode
from ppl_gen.inference.vi.structured import (
    Layout,
    Rows,
    Structured,
    StructuredGuide,
    coupled_plates,
    start_of,
)
from ppl_gen.models import EightSchools

Array = NDArray[np.float64]

X = torch.tensor([-1.0, -0.2, 0.4, 1.5], dtype=torch.float64)
MU_SCALE, THETA_SCALE, NOISE = 2.0, 1.5, 0.7


def lines(y: torch.Tensor) -> None:
    """A line for each group, its intercept about a shared mean."""
    mu = pyro.sample("mu", dist.Normal(0.0, MU_SCALE))
    with pyro.plate("group", y.shape[-1]):
        theta = pyro.sample("theta", dist.Normal(mu, THETA_SCALE))
        phi = pyro.sample("phi", dist.Normal(0.5, 1.0))
        with pyro.plate("time", len(X)):
            pyro.sample("y", dist.Normal(theta + phi * X[:, None].to(mu), NOISE), obs=y)


def some_lines(groups: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    theta, phi = 1.0 + THETA_SCALE * rng.normal(size=groups), 0.5 + rng.normal(size=groups)
    y = theta + phi * X.numpy()[:, None] + NOISE * rng.normal(size=(len(X), groups))
    return torch.from_numpy(y)


def posterior_of_lines(y: Array) -> tuple[Array, Array, float]:
    """Return mean, covariance and log evidence of mu, then theta, then phi."""
    groups, x = y.shape[1], X.numpy()
    prior = np.zeros((1 + 2 * groups, 1 + 2 * groups))
    theta, phi = np.arange(1, 1 + groups), np.arange(1 + groups, 1 + 2 * groups)
    prior[0, 0] = 1 / MU_SCALE**2 + groups / THETA_SCALE**2
    prior[0, theta] = prior[theta, 0] = -1 / THETA_SCALE**2
    prior[theta, theta] = 1 / THETA_SCALE**2
    prior[phi, phi] = 1.0
    prior_mean = np.concatenate([np.zeros(1 + groups), np.full(groups, 0.5)])
    design = np.zeros((len(x), groups, 1 + 2 * groups))
    for group in range(groups):
        design[:, group, theta[group]], design[:, group, phi[group]] = 1.0, x
    flat = design.reshape(-1, 1 + 2 * groups)
    precision = prior + flat.T @ flat / NOISE**2
    residual = y.ravel() - flat @ prior_mean
    mean = prior_mean + np.linalg.solve(precision, flat.T @ residual / NOISE**2)
    predicted = flat @ np.linalg.solve(prior, flat.T) + NOISE**2 * np.eye(len(flat))
    evidence = -0.5 * residual @ np.linalg.solve(predicted, residual)
    evidence -= 0.5 * np.linalg.slogdet(2 * np.pi * predicted)[1]
    return mean, np.linalg.inv(precision), float(evidence)


def fitted(density: LogDensity, evaluate: Evaluate) -> Fit:
    rng = np.random.default_rng(1)
    layout = Layout.of(density)
    start, _ = start_of(evaluate, layout, np.zeros(density.dim), rng)
    return fit_normal(evaluate, lambda _: Structured(layout), start, rng)


def covariance_of(normal: Normal) -> Array:
    factor = normal.factor if normal.factor.ndim == 1 else normal.factor @ normal.factor.T
    return np.asarray(factor.toarray())


def test_rows_are_those_of_the_outermost_plate() -> None:
    def model() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("outer", 3, dim=-2):
            pyro.sample("b", dist.Normal(0.0, 1.0))  # (3, 1)
            with pyro.plate("inner", 2, dim=-1):
                pyro.sample("c", dist.Normal(0.0, 1.0))  # (3, 2)
        with pyro.plate("alone", 2, dim=-1):
            pyro.sample("d", dist.Dirichlet(torch.ones(3)))  # (2, 3), two numbers each
        for index in pyro.plate("one by one", 2):
            pyro.sample(f"e_{index}", dist.Normal(0.0, 1.0))

    layout = Layout.of(LogDensity(model, {}))
    assert layout.dim == 17
    assert [rows.plate for rows in layout.plates] == ["outer", "alone"]
    outer, alone = (rows.places.tolist() for rows in layout.plates)
    assert outer == [[2, 5, 6], [3, 7, 8], [4, 9, 10]]
    assert alone == [[11, 12], [13, 14]]
    assert layout.shared.tolist() == [0, 1, 15, 16]
    assert layout.width == 4 + 3


LAYOUTS = {
    "one plate": Layout(7, (Rows("group", np.array([[1, 4], [2, 5], [3, 6]])),)),
    "two plates": Layout(
        9, (Rows("a", np.array([[0], [5]])), Rows("b", np.array([[2, 3, 8], [6, 7, 4]])))
    ),
    "no globals": Layout(4, (Rows("a", np.array([[0, 2], [1, 3]])),)),
    "no plates": Layout(3, ()),
}


@pytest.fixture(params=LAYOUTS)
def family(request: pytest.FixtureRequest) -> Structured:
    return Structured(LAYOUTS[request.param])


def some_parameters(family: Structured) -> Array:
    rng = np.random.default_rng(3)
    return family.standard() + 0.4 * rng.normal(size=len(family.standard()))


def test_what_is_zero_in_the_covariance_given_the_globals(family: Structured) -> None:
    layout, covariance = family.layout, covariance_of(family.normal(some_parameters(family)))
    precision = np.linalg.inv(covariance)
    coupled = np.zeros_like(precision, dtype=bool)
    coupled[layout.shared] = coupled[:, layout.shared] = True
    for _, index in layout.plates:
        for row in index:
            coupled[np.ix_(row, row)] = True
    np.testing.assert_allclose(precision[~coupled], 0, atol=1e-10)
    assert (np.abs(precision[coupled]) > 1e-6).all()
    # As many parameters as the precision has free elements.
    dim = layout.dim
    assert len(family.standard()) == 2 * dim + (coupled.sum() - dim) // 2


def test_gradients_are_those_of_differences(family: Structured) -> None:
    parameters = some_parameters(family)
    noise = np.random.default_rng(5).normal(size=(7, family.noise_dim))

    def density(draws: Array) -> Array:
        return np.asarray(np.sin(draws).prod(axis=1))

    def bound(parameters: Array) -> float:
        return float(density(family.draw(parameters, noise)).mean() + family.entropy(parameters)[0])

    draws = family.draw(parameters, noise)
    slopes = density(draws)[:, None] * np.cos(draws) / np.sin(draws)
    mean = family.mean_pull_back(parameters, noise, slopes)
    each = family.pull_back(parameters, noise, slopes)
    np.testing.assert_allclose(mean, each.mean(axis=0), rtol=1e-12, atol=1e-14)
    found = mean + family.entropy(parameters)[1]
    for index, gradient in enumerate(found):
        step = np.zeros_like(parameters)
        step[index] = 1e-5
        difference = (bound(parameters + step) - bound(parameters - step)) / 2e-5
        np.testing.assert_allclose(gradient, difference, rtol=1e-6, atol=1e-8)


def test_normals_of_sparse_factors(family: Structured) -> None:
    normal = family.normal(some_parameters(family))
    dense = Normal(normal.mean, normal.factor.toarray())
    noise = np.random.default_rng(6).normal(size=(5, family.dim))
    np.testing.assert_allclose(normal.draw(noise), dense.draw(noise), rtol=1e-12)
    np.testing.assert_allclose(normal.pull_back(noise), dense.pull_back(noise), rtol=1e-12)
    np.testing.assert_allclose(normal.sd, dense.sd, rtol=1e-12)
    np.testing.assert_allclose(normal.log_det, dense.log_det, rtol=1e-10)
    twice, dense_twice = normal.then(normal), dense.then(dense)
    np.testing.assert_allclose(twice.factor.toarray(), dense_twice.factor, atol=1e-14)
    np.testing.assert_allclose(twice.mean, dense_twice.mean, rtol=1e-12)


def test_noise_is_exact_where_rows_need_it() -> None:
    # Far fewer draws than coordinates: the moments of rows with each other cannot be exact.
    layout = Layout(62, (Rows("group", np.arange(2, 62).reshape(30, 2)),))
    noise = Structured(layout).noise(np.random.default_rng(7), 32)
    second = noise.T @ noise / len(noise)
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=1e-14)
    for row in layout.plates[0].places:
        places = np.concatenate([layout.shared, row])
        np.testing.assert_allclose(second[np.ix_(places, places)], np.eye(4), atol=1e-12)
    assert np.abs(second - np.eye(62)).max() > 0.1


def test_start_is_exact_on_a_normal_posterior() -> None:
    y = some_lines(6)
    density = LogDensity(lines, {"y": y})
    mean, covariance, _ = posterior_of_lines(y.numpy())
    point = np.full(density.dim, 3.0)
    start, _ = start_of(eagerly(density), Layout.of(density), point, np.random.default_rng(8))
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((start.mean - mean) / sd, 0, atol=1e-2)
    found = covariance_of(start) / np.outer(sd, sd)
    np.testing.assert_allclose(found, covariance / np.outer(sd, sd), atol=1e-4)


def test_exact_on_a_hierarchical_normal_model() -> None:
    y = some_lines(6)
    density = LogDensity(lines, {"y": y})
    evaluate = eagerly(density)
    mean, covariance, evidence = posterior_of_lines(y.numpy())
    fit = fitted(density, evaluate)
    assert fit.converged
    # The noise has the moments of the standard normal in all that this posterior asks for, so that
    # nothing is left but where the optimiser stops: gradients of 0.003 in standard coordinates.
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((fit.normal.mean - mean) / sd, 0, atol=5e-3)
    found = covariance_of(fit.normal) / np.outer(sd, sd)
    np.testing.assert_allclose(found, covariance / np.outer(sd, sd), atol=1e-2)
    assert fit.elbo[0] == pytest.approx(evidence, abs=1e-3)
    # The same optimum as that of a full-rank guide.
    start = find_mode(evaluate, np.zeros(density.dim)).normal()
    full = fit_normal(evaluate, FullRank, start, np.random.default_rng(2))
    assert fit.elbo[0] == pytest.approx(full.elbo[0], abs=1e-3)


def test_rows_that_depend_on_each_other_are_named_and_cost_what_they_must() -> None:
    # Negative control: the likelihood ties the rows together, which the guide cannot follow.
    def tied(total: torch.Tensor) -> None:
        with pyro.plate("part", 3):
            part = pyro.sample("part value", dist.Normal(0.0, 1.0))
        pyro.sample("total", dist.Normal(part.sum(), 0.5), obs=total)

    density = LogDensity(tied, {"total": torch.tensor(1.0)})
    evaluate = eagerly(density)
    rng = np.random.default_rng(3)
    layout = Layout.of(density)
    start, _ = start_of(evaluate, layout, np.zeros(3), rng)
    assert coupled_plates(evaluate, layout, start, rng) == ["part"]
    fit = fitted(density, evaluate)
    # Independent coordinates keep the diagonal of the precision, 1 + 4: they lose in nats what
    # Hadamard's inequality says, half the log of the ratio of determinants.
    precision = np.eye(3) + 4 * np.ones((3, 3))
    lost = 0.5 * (3 * math.log(5.0) - np.linalg.slogdet(precision)[1])
    evidence = float(dist.Normal(0.0, math.sqrt(3.25)).log_prob(torch.tensor(1.0)))
    assert lost > 0.5
    assert fit.elbo[0] == pytest.approx(evidence - lost, abs=2e-3 + 5 * fit.elbo[1])
    # Rows that are independent given the globals are not named.
    density = LogDensity(lines, {"y": some_lines(6)})
    evaluate, layout = eagerly(density), Layout.of(density)
    start, _ = start_of(evaluate, layout, np.zeros(density.dim), rng)
    assert coupled_plates(evaluate, layout, start, rng) == []


def test_guide_is_the_normal() -> None:
    layout = LAYOUTS["two plates"]
    normal = Structured(layout).normal(some_parameters(Structured(layout)))
    guide = StructuredGuide.of(layout, normal)
    truth = torch.distributions.MultivariateNormal(
        torch.from_numpy(normal.mean), torch.from_numpy(covariance_of(normal))
    )
    with torch.no_grad():
        draws = guide.rsample(100_000)
        torch.testing.assert_close(guide.log_prob(draws[:9]), truth.log_prob(draws[:9]))
    # Standard errors: sd / sqrt(n) of a mean, at most sqrt(2) sd sd / sqrt(n) of a covariance.
    error = 5 / math.sqrt(len(draws))
    sd = truth.stddev
    assert ((draws.mean(0) - truth.loc).abs() < error * sd).all()
    wrong = (draws.T.cov() - truth.covariance_matrix).abs()
    assert (wrong < math.sqrt(2) * error * torch.outer(sd, sd)).all()


def test_a_thousand_groups() -> None:
    groups = 1000
    y = some_lines(groups)
    density = LogDensity(lines, {"y": y})
    layout = Layout.of(density)
    # The log density by hand: what is measured is the guide.
    x = X.numpy()

    def evaluate(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, slopes = [], []
        for u in vectors.numpy():
            mu, theta, phi = u[0], u[1 : 1 + groups], u[1 + groups :]
            off = y.numpy() - theta - phi * x[:, None]
            about = theta - mu
            value = -0.5 * (off**2).sum() / NOISE**2 - 0.5 * (about**2).sum() / THETA_SCALE**2
            values.append(value - 0.5 * mu**2 / MU_SCALE**2 - 0.5 * ((phi - 0.5) ** 2).sum())
            slope = [about.sum() / THETA_SCALE**2 - mu / MU_SCALE**2]
            of_theta = off.sum(axis=0) / NOISE**2 - about / THETA_SCALE**2
            of_phi = x @ off / NOISE**2 - (phi - 0.5)
            slopes.append(np.concatenate([slope, of_theta, of_phi]))
        return torch.tensor(values), torch.from_numpy(np.array(slopes))

    rng = np.random.default_rng(4)
    tracemalloc.start()
    start, _ = start_of(evaluate, layout, np.zeros(density.dim), rng)
    fit = fit_normal(evaluate, lambda _: Structured(layout), start, rng)
    guide = StructuredGuide.of(layout, fit.normal)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fit.converged
    # Shrinkage by hand: with mu nearly known, groups are independent.
    of_mu = fit.normal.mean[0]
    design = np.stack([np.ones_like(x), x], axis=1)
    precision = design.T @ design / NOISE**2 + np.diag([1 / THETA_SCALE**2, 1.0])
    right = design.T @ y.numpy() / NOISE**2 + np.array([[of_mu / THETA_SCALE**2], [0.5]])
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    wrong = (fit.normal.mean[1:].reshape(2, groups) - np.linalg.solve(precision, right)) / sd[
        :, None
    ]
    np.testing.assert_allclose(wrong, 0, atol=5e-3)
    # A dense factor has 32 MB, and each of the optimiser's 40 vectors would have half of that.
    dense = 8 * density.dim**2
    assert sum(p.numel() for p in guide.parameters()) * 8 < dense / 100
    assert peak < 2 * dense


@pytest.fixture(scope="module")
def posterior() -> pg.Posterior:
    y = some_lines(5)
    return pg.fit(lines, {"y": y}, SVI(guide="structured", draws=4000), seed=0, progress=False)


def test_fit(posterior: pg.Posterior) -> None:
    mean, covariance, evidence = posterior_of_lines(some_lines(5).numpy())
    assert posterior.provenance["converged"]
    assert posterior.warnings == ()
    assert posterior.elbo is not None
    assert posterior.elbo[0] == pytest.approx(evidence, abs=1e-3)
    sd = np.sqrt(np.diag(covariance))
    error = 5 / math.sqrt(4000)
    for name, places in (("mu", [0]), ("theta", range(1, 6)), ("phi", range(6, 11))):
        draws = posterior[name].reshape(4000, -1).numpy()
        assert (np.abs(draws.mean(axis=0) - mean[list(places)]) < error * sd[list(places)]).all()
        np.testing.assert_allclose(draws.std(axis=0), sd[list(places)], rtol=error)
    # The guide is exact: every draw has the same weight.
    weights = posterior.sample_stats["lp"] - posterior.sample_stats["log_q"]
    np.testing.assert_allclose(weights.numpy(), evidence, atol=0.05)


def test_save_and_load(posterior: pg.Posterior, tmp_path: Path) -> None:
    again = pg.load(posterior.save(tmp_path / "run"), pair=lines)
    assert isinstance(again.guide, StructuredGuide)
    mine, theirs = (p.sample(draws=4, seed=1) for p in (posterior, again))
    for name in ("mu", "theta", "phi"):
        assert torch.equal(mine[name], theirs[name])


def test_a_funnel_has_no_mode_to_start_from() -> None:
    # Its density grows without bound where all groups are alike, and numbers overflow there: a
    # start in that neck ends nowhere. The log evidence is -31.31135, the optimum of independent
    # coordinates 2.10 below it.
    pair = EightSchools(centered=True)
    method = SVI(guide="structured", draws=10)
    posterior = pg.fit(pair, EightSchools.data(), method, seed=0, progress=False)
    assert posterior.provenance["converged"]
    assert posterior.elbo is not None
    bound, error = posterior.elbo
    assert -31.31135 - 2.10 + 0.5 < bound < -31.31135 + 3 * error


def test_without_plates_it_is_full_rank() -> None:
    def plain() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    method = SVI(guide="structured", draws=10)
    assert type(pg.fit(plain, {}, method, progress=False).guide).__name__ == "GaussianGuide"


def test_tied_rows_are_warned_of() -> None:
    def tied(total: torch.Tensor) -> None:
        with pyro.plate("part", 3):
            part = pyro.sample("part value", dist.Normal(0.0, 1.0))
        pyro.sample("total", dist.Normal(part.sum(), 0.5), obs=total)

    method = SVI(guide="structured", draws=10)
    posterior = pg.fit(tied, {"total": torch.tensor(1.0)}, method, progress=False)
    assert any("'part'" in text and "full_rank" in text for text in posterior.warnings)
