"""L-BFGS on functions whose minimum is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ppl_gen.inference.vi.minimise import minimise

Array = NDArray[np.float64]


def rosenbrock(x: Array) -> tuple[float, Array]:
    inner = x[1:] - x[:-1] ** 2
    value = float((100 * inner**2 + (1 - x[:-1]) ** 2).sum())
    gradient = np.zeros_like(x)
    gradient[:-1] = -400 * x[:-1] * inner - 2 * (1 - x[:-1])
    gradient[1:] += 200 * inner
    return value, gradient


@pytest.mark.parametrize("dim", [2, 10])
def test_a_curved_valley(dim: int) -> None:
    found = minimise(rosenbrock, np.full(dim, -1.2), tolerance=1e-8)
    assert found.converged
    np.testing.assert_allclose(found.point, 1.0, atol=1e-6)
    assert found.value < 1e-12
    assert found.evaluations < 300


def test_an_ill_conditioned_quadratic() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    curvature = (basis * np.geomspace(1e-2, 1e2, 30)) @ basis.T
    target = rng.normal(size=30)

    def objective(x: Array) -> tuple[float, Array]:
        slope = curvature @ (x - target)
        return float(0.5 * (x - target) @ slope), slope

    found = minimise(objective, np.zeros(30), tolerance=1e-8, most_steps=2000)
    assert found.converged
    np.testing.assert_allclose(found.point, target, atol=1e-5)


def test_walls_are_kept_away_from() -> None:
    # Infinite and NaN where a coordinate is not positive; the minimum is at 1 / (1, 2, 3).
    weights = np.array([1.0, 2.0, 3.0])

    def barrier(x: Array) -> tuple[float, Array]:
        if x[0] <= 0:
            return np.nan, np.full(3, np.nan)
        if (x <= 0).any():
            return np.inf, np.zeros(3)
        return float(weights @ x - np.log(x).sum()), weights - 1 / x

    found = minimise(barrier, np.full(3, 1e-3), tolerance=1e-8)
    assert found.converged
    np.testing.assert_allclose(found.point, 1 / weights, rtol=1e-6)


def test_what_has_no_minimum_does_not_converge() -> None:
    found = minimise(lambda x: (float(-x.sum()), -np.ones(2)), np.zeros(2), tolerance=1e-8)
    assert not found.converged


def test_a_wrong_gradient_does_not_converge() -> None:
    found = minimise(lambda x: (float(x @ x), -2 * x), np.ones(2), tolerance=1e-8)
    assert not found.converged
    assert found.value <= 2.0


def test_it_ends_where_a_step_promises_less_than_rounding_shows() -> None:
    # A regression with 20,000 rows: the value is large, its last digits are noise, and a gradient
    # as small as asked for is that of a point whose value is lower by 1e-17 alone.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 5))
    y = x @ rng.normal(size=5) + rng.normal(scale=1.5, size=20_000)

    def objective(weights: Array) -> tuple[float, Array]:
        residual = y - x @ weights
        return 1e5 + float(0.5 * residual @ residual), -x.T @ residual

    found = minimise(objective, np.zeros(5), tolerance=1e-12)
    assert found.converged
    assert found.evaluations < 30
    # In standard deviations of the posterior, whose log density the value is: 16 units in the last
    # digit are 4e-10 nats, and L-BFGS may take a direction for so much flatter than it is.
    off = np.linalg.cholesky(x.T @ x).T @ (found.point - np.linalg.lstsq(x, y, rcond=None)[0])
    assert np.abs(off).max() < 1e-3
