"""Approximations along an optimiser's path, against BFGS written out and exact bounds."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ppl_gen.inference.vi.low_rank import LowRankNormal
from ppl_gen.inference.vi.minimise import minimise
from ppl_gen.inference.vi.pathfinder import (
    Path,
    approximations,
    best_of,
    climb,
    memory,
    next_diagonal,
)

Array = NDArray[np.float64]
Evaluated = tuple[torch.Tensor, torch.Tensor]


class NormalTarget:
    """An unnormalised normal log density of mean 1, 2, ... and any precision."""

    def __init__(self, precision: Array) -> None:
        self.precision = torch.from_numpy(precision)
        self.mean = 1.0 + torch.arange(len(precision), dtype=torch.float64)
        self.calls = 0

    def __call__(self, vectors: torch.Tensor) -> Evaluated:
        self.calls += len(vectors)
        gradients = -(vectors - self.mean) @ self.precision
        return 0.5 * ((vectors - self.mean) * gradients).sum(-1), gradients

    def elbo(self, normal: LowRankNormal) -> float:
        """Return the bound of a normal approximation in closed form."""
        dim = len(self.mean)
        factor = normal.draw(torch.eye(dim, dtype=torch.float64)) - normal.loc
        spread = torch.trace(factor @ self.precision @ factor.mT)
        off = normal.loc - self.mean
        entropy = normal.log_det + 0.5 * dim * (1 + np.log(2 * np.pi))
        return float(entropy - 0.5 * spread - 0.5 * off @ self.precision @ off)


def correlated(dim: int, seed: int = 0) -> NormalTarget:
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return NormalTarget((basis * np.geomspace(0.1, 100.0, dim)) @ basis.T)


def wavy(vectors: torch.Tensor) -> Evaluated:
    """A log density that is far from normal, on any number of coordinates."""
    leaf = vectors.clone().requires_grad_()
    values = -(leaf.cosh().log() + 0.1 * (leaf - leaf.roll(1, -1)) ** 4).sum(-1)
    (gradients,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradients


def bfgs_update(inverse: Array, step: Array, turn: Array) -> Array:
    """The BFGS formula for the inverse Hessian, written out."""
    rho = 1 / float(step @ turn)
    project = np.eye(len(step)) - rho * np.outer(step, turn)
    return np.asarray(project @ inverse @ project.T + rho * np.outer(step, step))


def test_every_accepted_point_is_told() -> None:
    told: list[tuple[Array, float, Array]] = []

    def objective(x: Array) -> tuple[float, Array]:
        return float((x**4).sum()), 4 * x**3

    def accepted(point: Array, value: float, gradient: Array) -> bool:
        told.append((point, value, gradient))
        return True

    start = np.array([1.0, -2.0])
    end = minimise(objective, start, tolerance=1e-6, accepted=accepted)
    assert end.converged
    assert np.array_equal(told[0][0], start)
    assert np.array_equal(told[-1][0], end.point)
    assert (np.diff([value for _, value, _ in told]) < 0).all()
    for point, value, gradient in told:
        assert value == objective(point)[0]
        np.testing.assert_array_equal(gradient, objective(point)[1])


@pytest.mark.parametrize("count", [1, 3])
def test_it_ends_where_it_is_told_to(count: int) -> None:
    seen: list[float] = []

    def accepted(point: Array, value: float, gradient: Array) -> bool:
        seen.append(value)
        return len(seen) < count

    end = minimise(
        lambda x: (float((x**4).sum()), 4 * x**3),
        np.array([1.0, -2.0]),
        tolerance=1e-6,
        accepted=accepted,
    )
    assert len(seen) == count
    assert end.value == seen[-1]
    assert not end.converged


def test_a_path_ends_where_only_rounding_is_left() -> None:
    """In single precision no gradient of a log density of -1e5 becomes small."""
    target = correlated(5)

    def rounded(vectors: torch.Tensor) -> Evaluated:
        values, gradients = target(vectors)
        noise = torch.sin(1e6 * vectors.sum(-1, keepdim=True))
        return (values - 1e5).float().double(), gradients + 0.01 * noise

    path = climb(rounded, np.full(5, -1.0), 1000)
    assert len(path.points) < 60
    assert path.evaluations < 1000
    *_, last = approximations(path)
    assert target.elbo(last) > target.elbo(next(approximations(path)))


def test_the_diagonal_is_that_of_a_bfgs_update() -> None:
    """Of the direct Hessian, scaled to have the curvature along the gradient's change."""
    rng = np.random.default_rng(0)
    diagonal, step = np.exp(rng.normal(size=6)), rng.normal(size=6)
    turn = step + 0.3 * rng.normal(size=6)
    assert step @ turn > 0
    hessian = np.diag(1 / diagonal) * (turn @ (diagonal * turn)) / (step @ turn)
    moved = hessian @ step
    updated = (
        hessian - np.outer(moved, moved) / (step @ moved) + np.outer(turn, turn) / (step @ turn)
    )
    np.testing.assert_allclose(next_diagonal(diagonal, step, turn), 1 / np.diag(updated))
    # In one dimension it is the secant, whatever it was.
    one = next_diagonal(np.array([7.0]), np.array([0.5]), np.array([2.0]))
    np.testing.assert_allclose(one, 0.25)


@pytest.mark.parametrize("dim", [1, 3, 40])
def test_the_covariance_is_that_of_bfgs(dim: int) -> None:
    start = np.random.default_rng(dim).uniform(-2, 2, size=dim) * 3
    path = climb(wavy, start, 50)
    normals = list(approximations(path))
    assert len(normals) == len(path.points) > 2
    diagonal = path.widths**2
    pairs = list(zip(np.diff(path.points, axis=0), np.diff(path.gradients, axis=0), strict=True))
    for number, normal in enumerate(normals):
        if number:
            diagonal = next_diagonal(diagonal, *pairs[number - 1])
        inverse = np.diag(diagonal)
        for step, turn in pairs[max(0, number - memory(dim)) : number]:
            inverse = bfgs_update(inverse, step, turn)
        factor = (normal.draw(torch.eye(dim, dtype=torch.float64)) - normal.loc).numpy()
        size = np.abs(inverse).max()
        np.testing.assert_allclose(factor.T @ factor, inverse, rtol=1e-6, atol=1e-7 * size)
        newton = path.points[number] - inverse @ path.gradients[number]
        np.testing.assert_allclose(normal.loc.numpy(), newton, rtol=1e-6, atol=1e-6)


def test_steps_along_which_it_curves_down_are_left_out() -> None:
    points = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    gradients = np.array([[0.0, -3.0], [-1.0, -3.0], [-1.0, -1.0]])  # first turns downwards
    first, second, third = approximations(Path(points, gradients, np.ones(2), 3))
    np.testing.assert_array_equal(second.scale.numpy(), first.scale.numpy())
    assert second.basis.shape[-1] == 0
    # Only the second step is known: in its direction the variance is 1 / 2.
    factor = third.draw(torch.eye(2, dtype=torch.float64)) - third.loc
    assert float((factor.mT @ factor)[1, 1]) == pytest.approx(0.5)


def test_no_scale_of_the_coordinates_misleads() -> None:
    """The same path, in other units."""
    units = np.array([1e-4, 1.0, 1e3, 1.0])
    target = correlated(4)
    scaled = NormalTarget(target.precision.numpy() / np.outer(units, units))
    scaled.mean = target.mean * torch.from_numpy(units)
    start = np.array([1.0, -1.0, 0.5, 2.0])
    path, other = climb(target, start, 200), climb(scaled, units * start, 200)
    # Differences measure curvature to about eight digits.
    np.testing.assert_allclose(path.widths, 1 / np.sqrt(np.diag(target.precision)), rtol=1e-6)
    np.testing.assert_allclose(other.widths, units * path.widths, rtol=1e-6)
    np.testing.assert_allclose(other.points[:4], units * path.points[:4], rtol=1e-4)
    assert len(path.points) > 4


def test_widths_where_it_does_not_curve_down() -> None:
    def saddle(vectors: torch.Tensor) -> Evaluated:
        x, y = vectors[:, 0], vectors[:, 1]
        curved = torch.stack([-8 * x - x**3, 3 * y - y**3, 0 * y], dim=-1)
        return -4 * x**2 - x**4 / 4 + 1.5 * y**2 - y**4 / 4, curved

    widths = climb(saddle, np.array([0.0, 0.1, 0.0]), 50).widths
    np.testing.assert_allclose(widths, [8**-0.5, 1.0, 1.0], rtol=1e-5)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_end_of_the_path_on_a_normal_target(dim: int) -> None:
    target = correlated(dim)
    path = climb(target, np.zeros(dim), 200)
    assert path.evaluations == target.calls
    *_, last = approximations(path)
    torch.testing.assert_close(last.loc, target.mean, rtol=0.0, atol=1e-4)
    if dim == 1:
        variance = 1 / float(target.precision)
        assert float(last.draw(torch.ones(1, 1, dtype=torch.float64)) - last.loc) ** 2 == (
            pytest.approx(variance)
        )


def test_bounds_are_right_and_the_best_is_chosen() -> None:
    target = correlated(5)
    path = climb(target, np.full(5, -1.0), 200)
    normals = list(approximations(path))
    noise = torch.randn(20_000, 5, dtype=torch.float64)
    best = best_of(target, normals, noise)
    assert best.normal is not None
    assert best.evaluations == 20_000 * len(normals)
    # The standard error of the mean of 20,000 differences, whose sd is below 2 near the best.
    exact = np.array([target.elbo(normal) for normal in normals])
    assert best.elbo == pytest.approx(target.elbo(best.normal), abs=4 * 2 / np.sqrt(20_000))
    assert target.elbo(best.normal) >= exact.max() - 0.05
    assert exact.max() > exact[0] + 1  # there was something to choose
    # No bound is above the log evidence.
    evidence = 0.5 * (5 * np.log(2 * np.pi) - float(torch.logdet(target.precision)))
    assert exact.max() <= evidence + 1e-9


def test_bounds_of_blocks_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    target = correlated(4)
    normals = list(approximations(climb(target, np.zeros(4), 200)))
    noise = torch.randn(10, 4, dtype=torch.float64)
    whole = best_of(target, normals, noise)
    monkeypatch.setattr("ppl_gen.inference.vi.pathfinder._BLOCK", 3 * noise.numel())
    assert best_of(target, normals, noise).elbo == whole.elbo


def test_approximations_with_draws_outside_of_the_support_are_not_chosen() -> None:
    target = correlated(2)

    def walled(vectors: torch.Tensor) -> Evaluated:
        values, gradients = target(vectors)
        return torch.where(vectors[:, 0] > 0, values, torch.nan), gradients

    eye = torch.eye(2, dtype=torch.float64)
    none = eye[:, :0], eye[:0, :0]
    narrow = LowRankNormal(target.mean, 0.1 * eye[0] + 0.1 * eye[1], *none)
    wide = LowRankNormal(target.mean, eye[0] + eye[1], *none)
    noise = torch.randn(200, 2, dtype=torch.float64)
    assert target.elbo(wide) != target.elbo(narrow)
    assert best_of(walled, [wide, narrow], noise).normal is narrow
    nothing = best_of(walled, [wide], noise)
    assert nothing.normal is None
    assert nothing.elbo == -np.inf
