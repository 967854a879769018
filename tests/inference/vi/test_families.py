"""Families of normal guides: their densities, and their gradients against differences."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ppl_gen.inference.vi.families import Family, FullRank, LowRank, MeanField, Normal

DIM = 4
FAMILIES = {
    "mean_field": MeanField(DIM),
    "full_rank": FullRank(DIM),
    "low_rank": LowRank(DIM, 2),
}


def some_parameters(family: Family) -> NDArray[np.float64]:
    rng = np.random.default_rng(3)
    return family.standard() + 0.4 * rng.normal(size=len(family.standard()))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def test_draws_have_the_moments_of_the_normal(family: Family) -> None:
    parameters = some_parameters(family)
    noise = np.random.default_rng(4).normal(size=(200_000, family.noise_dim))
    draws = family.draw(parameters, noise)
    normal = family.normal(parameters)
    factor = np.diag(normal.factor) if normal.factor.ndim == 1 else normal.factor
    covariance = factor @ factor.T
    # Standard errors: sd / sqrt(n) of a mean, at most sqrt(2) sd sd / sqrt(n) of a covariance.
    error = 5 / np.sqrt(len(noise))
    assert (np.abs(draws.mean(axis=0) - normal.mean) < error * normal.sd).all()
    bound = error * np.sqrt(2) * np.outer(normal.sd, normal.sd)
    assert (np.abs(np.cov(draws.T) - covariance) < bound).all()


def test_entropy_is_that_of_the_normal(family: Family) -> None:
    parameters = some_parameters(family)
    factor = family.normal(parameters).factor
    factor = np.diag(factor) if factor.ndim == 1 else factor
    expected = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * factor @ factor.T)[1]
    np.testing.assert_allclose(family.entropy(parameters)[0], expected, rtol=1e-12)


def test_gradients_are_those_of_differences(family: Family) -> None:
    parameters = some_parameters(family)
    noise = np.random.default_rng(5).normal(size=(7, family.noise_dim))

    def density(draws: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.sin(draws).prod(axis=1))

    def slopes(draws: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(density(draws)[:, None] * np.cos(draws) / np.sin(draws))

    gradients = slopes(family.draw(parameters, noise))
    each = family.pull_back(parameters, noise, gradients)
    mean = family.mean_pull_back(parameters, noise, gradients)
    np.testing.assert_allclose(each.mean(axis=0), mean, atol=1e-14)
    step = 1e-6
    for index in range(len(parameters)):
        ahead, behind = parameters.copy(), parameters.copy()
        ahead[index] += step
        behind[index] -= step
        change = density(family.draw(ahead, noise)) - density(family.draw(behind, noise))
        np.testing.assert_allclose(each[:, index], change / (2 * step), atol=1e-7)
        entropy = family.entropy(ahead)[0] - family.entropy(behind)[0]
        of_entropy = family.entropy(parameters)[1][index]
        np.testing.assert_allclose(of_entropy, entropy / (2 * step), atol=1e-7)


def test_standard_parameters_are_those_of_the_standard_normal(family: Family) -> None:
    normal = family.normal(family.standard())
    np.testing.assert_allclose(normal.mean, 0, atol=0)
    # A low-rank family starts a little off, where its directions have a gradient.
    np.testing.assert_allclose(normal.sd, 1, atol=1e-4)


@pytest.mark.parametrize("outer", ["diagonal", "full"])
@pytest.mark.parametrize("inner", ["diagonal", "full"])
def test_one_normal_after_another(outer: str, inner: str) -> None:
    rng = np.random.default_rng(6)

    def make(kind: str) -> Normal:
        factor = np.tril(rng.normal(size=(3, 3)))
        np.fill_diagonal(factor, [0.5, 1.0, 2.0])
        return Normal(rng.normal(size=3), np.diag(factor) if kind == "diagonal" else factor)

    first, second = make(outer), make(inner)
    noise = rng.normal(size=(5, 3))
    joined = first.then(second)
    np.testing.assert_allclose(joined.draw(noise), first.draw(second.draw(noise)), rtol=1e-12)
    np.testing.assert_allclose(joined.log_det, first.log_det + second.log_det, atol=1e-12)
    back = second.pull_back(first.pull_back(noise))
    np.testing.assert_allclose(joined.pull_back(noise), back, rtol=1e-12)
