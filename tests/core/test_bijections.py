"""Bijections to supports: round trips, and Jacobians against dense automatic derivatives."""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import biject_to, constraints

from ppl_gen.core.bijections import bijection_to

C = dist.constraints
FLOAT64 = torch.float64


def lower(y: torch.Tensor) -> torch.Tensor:
    row, column = torch.tril_indices(y.shape[-1], y.shape[-1])
    return y[..., row, column]


def below(y: torch.Tensor) -> torch.Tensor:
    row, column = torch.tril_indices(y.shape[-1], y.shape[-1], -1)
    return y[..., row, column]


def vector(y: torch.Tensor) -> torch.Tensor:
    return y.flatten(-1)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=FLOAT64)


# Support, shape of one event, and its free elements.
Case = tuple[Any, tuple[int, ...], Callable[[torch.Tensor], torch.Tensor]]
CASES: dict[str, Case] = {
    "real": (C.real_vector, (3,), vector),
    "positive": (C.independent(C.positive, 1), (3,), vector),
    "nonnegative": (C.independent(C.nonnegative, 1), (3,), vector),
    "greater_than": (C.independent(C.greater_than(numbers(2.0, -1.0)), 1), (2,), vector),
    "less_than": (C.independent(C.less_than(-1.0), 1), (2,), vector),
    "interval": (C.independent(C.interval(numbers(-1.0, 2.0), numbers(3.0, 2.5)), 1), (2,), vector),
    "half_open_interval": (C.independent(C.half_open_interval(0.0, 2.0), 1), (2,), vector),
    "unit_interval": (C.independent(C.unit_interval, 1), (2,), vector),
    "softplus_positive": (C.independent(C.softplus_positive, 1), (2,), vector),
    "simplex": (C.simplex, (4,), lambda y: y[..., :-1]),
    "ordered": (C.ordered_vector, (4,), vector),
    "positive_ordered": (C.positive_ordered_vector, (4,), vector),
    "corr_cholesky": (C.corr_cholesky, (4, 4), below),
    "corr_matrix": (C.corr_matrix, (4, 4), below),
    "lower_cholesky": (C.lower_cholesky, (4, 4), lower),
    "softplus_lower_cholesky": (C.softplus_lower_cholesky, (3, 3), lower),
    "lower_triangular": (C.lower_triangular, (3, 3), lower),
    "unit_lower_cholesky": (C.unit_lower_cholesky, (3, 3), below),
    "positive_definite": (C.positive_definite, (4, 4), lower),
    "positive_semidefinite": (C.positive_semidefinite, (3, 3), lower),
    "positive_definite_1": (C.positive_definite, (1, 1), lower),
    "corr_matrix_2": (C.corr_matrix, (2, 2), below),
    "mixture": (dist.constraints.MixtureSameFamilyConstraint(C.positive), (), lambda y: y[None]),
    "stack": (C.stack([C.real, C.positive, C.unit_interval], -1), (3,), vector),
    "stack_in_front": (C.stack([C.real_vector, C.simplex]), (2, 3), lambda y: y.flatten()[:-1]),
    "stack_of_matrices": (
        C.stack([C.positive_definite, C.lower_cholesky], -3),
        (2, 3, 3),
        lambda y: lower(y).flatten(-2),
    ),
    "cat": (C.cat([C.simplex, C.ordered_vector], -1, [3, 2]), (5,), lambda y: y[..., [0, 1, 3, 4]]),
    "independent_stack": (C.independent(C.stack([C.real, C.positive]), 1), (2,), vector),
}


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
@pytest.mark.parametrize("name", CASES)
def test_round_trip_in_batches(name: str, batch: tuple[int, ...]) -> None:
    support, event, _ = CASES[name]
    bijection = bijection_to(support, event)
    shape = torch.Size(batch + event)
    unconstrained = bijection.inverse_shape(shape)
    assert bijection.forward_shape(unconstrained) == shape
    x = 2.0 * torch.randn(unconstrained, dtype=FLOAT64)
    y = bijection(x)
    assert y.shape == shape
    if "cat" not in name and "stack" not in name:  # which PyTorch cannot check in batches
        assert bool(support.check(y).all())
    torch.testing.assert_close(bijection.inv(y), x, rtol=1e-8, atol=1e-8)
    log_jacobian = bijection.log_abs_det_jacobian(x, y)
    alone = [
        bijection.log_abs_det_jacobian(one, bijection(one)).sum()
        for one in x.reshape(-1, *bijection.inverse_shape(torch.Size(event)))
    ]
    each = log_jacobian.reshape(math.prod(batch), -1).sum(-1)
    torch.testing.assert_close(each, torch.stack(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_log_jacobian_is_that_of_the_free_elements(name: str) -> None:
    support, event, free = CASES[name]
    bijection = bijection_to(support, event)
    for _ in range(3):
        x = torch.randn(bijection.inverse_shape(torch.Size(event)), dtype=FLOAT64)
        dense = torch.func.jacrev(lambda x: free(bijection(x)))(x).reshape(x.numel(), x.numel())
        got = bijection.log_abs_det_jacobian(x, bijection(x)).sum()
        torch.testing.assert_close(got, torch.linalg.slogdet(dense).logabsdet, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_it_runs_under_vmap_and_has_exact_gradients(name: str) -> None:
    support, event, _ = CASES[name]
    bijection = bijection_to(support, event)

    def total(x: torch.Tensor) -> torch.Tensor:
        y = bijection(x)
        return y.sin().sum() + bijection.log_abs_det_jacobian(x, y).sum()

    x = torch.randn(3, *bijection.inverse_shape(torch.Size(event)), dtype=FLOAT64)
    together = torch.func.vmap(torch.func.grad(total))(x)
    torch.testing.assert_close(together, torch.stack([torch.func.grad(total)(one) for one in x]))
    # At zero, where a branch on the sign of a coordinate would give a wrong derivative.
    for point in (x[0], torch.zeros_like(x[0])):
        assert torch.autograd.gradcheck(total, point.clone().requires_grad_())


@pytest.mark.parametrize("name", ["simplex", "corr_cholesky", "corr_matrix"])
def test_the_maps_are_those_of_pytorch(name: str) -> None:
    """Other ways to compute the same: unconstrained values keep their meaning."""
    support, event, _ = CASES[name]
    ours, theirs = bijection_to(support), biject_to(support)
    x = torch.randn(ours.inverse_shape(torch.Size(event)), dtype=FLOAT64)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(
        ours.log_abs_det_jacobian(x, ours(x)), theirs.log_abs_det_jacobian(x, theirs(x))
    )


def test_a_correlation_near_the_boundary_keeps_its_jacobian() -> None:
    """At 5, sech^2 is 2e-4: the norm left in the last of 30 rows is 1e-54, far below round-off."""
    n = 30
    x = torch.full((n * (n - 1) // 2,), 5.0, dtype=FLOAT64)
    bijection = bijection_to(C.corr_cholesky)
    y = bijection(x)
    log_sech2 = -2 * math.log(math.cosh(5.0))
    assert float(y[-1, -1].log()) == pytest.approx(0.5 * (n - 1) * log_sech2, rel=1e-12)
    expected = sum(
        log_sech2 * (1 + 0.5 * (row - 1 - column)) for row in range(n) for column in range(row)
    )
    assert float(bijection.log_abs_det_jacobian(x, y)) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(bijection.inv(y), x, rtol=1e-9, atol=0.0)
    # The reason for a bijection of our own.
    theirs = biject_to(C.corr_cholesky)
    assert not torch.isclose(
        theirs.log_abs_det_jacobian(x, theirs(x)), torch.tensor(expected, dtype=FLOAT64)
    )


def test_parts_of_a_simplex_stay_positive() -> None:
    bijection = bijection_to(C.simplex)
    for x in (numbers(-800.0, 3.0), numbers(900.0, -900.0), numbers(-60.0, 60.0)):
        y = bijection(x)
        assert bool((y > 0).all())
        assert bool(torch.isfinite(bijection.log_abs_det_jacobian(x, y)))
    x = numbers(-60.0, 40.0)  # a last part of 4e-18, which is 1 less the others only in logarithms
    torch.testing.assert_close(bijection.inv(bijection(x)), x, rtol=1e-12, atol=0.0)


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_wishart_determinant_identity(n: int, seed: int) -> None:
    """The Jacobian of S = L L^T in logarithms against det S, for every size.

    With x only on the diagonal, S is diagonal with exp(2 x_i): the log-Jacobian over the whole
    lower triangle is n log 2 + sum_i (n - i + 2) x_i.
    """
    x = torch.zeros(n * (n + 1) // 2, dtype=FLOAT64)
    generator = torch.Generator().manual_seed(seed)
    x[:n] = torch.randn(n, dtype=FLOAT64, generator=generator)
    bijection = bijection_to(C.positive_definite)
    y = bijection(x)
    torch.testing.assert_close(y, (2 * x[:n]).exp().diag())
    powers = torch.arange(n + 1, 1, -1, dtype=FLOAT64)
    expected = n * math.log(2.0) + float((powers * x[:n]).sum())
    assert float(bijection.log_abs_det_jacobian(x, y)) == pytest.approx(expected)


@pytest.mark.parametrize("support", [C.sphere, C.symmetric, C.square])
def test_supports_without_a_bijection(support: Any) -> None:
    with pytest.raises(NotImplementedError):
        bijection_to(support)


def test_mixtures_of_different_supports_have_none() -> None:
    uniform = dist.Uniform(torch.zeros(2), torch.tensor([1.0, 2.0]))
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), uniform)
    with pytest.raises(NotImplementedError, match="different supports"):
        bijection_to(mixture.support)


def test_pieces_need_the_shape_of_the_value() -> None:
    with pytest.raises(NotImplementedError, match="shape of its value"):
        bijection_to(C.stack([C.real, C.positive]))


def test_nothing_is_registered_with_pytorch() -> None:
    with pytest.raises(NotImplementedError):
        biject_to(constraints.positive_definite)
    with pytest.raises(NotImplementedError):
        biject_to(constraints.lower_cholesky)
