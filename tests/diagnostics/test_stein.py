"""The kernel Stein discrepancy: zero for right draws, large for wrong ones, and its blind spot."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ppl_gen.diagnostics.stein import stein_discrepancy

Array = NDArray[np.float64]


def test_it_is_the_mean_of_the_stein_kernel_over_pairs() -> None:
    # s(x) s(y) k + s(x) dk/dy + s(y) dk/dx + d^2 k / dx dy, by automatic differentiation.
    rng = np.random.default_rng(1)
    draws, scores = rng.normal(size=(12, 3)) * [1.0, 5.0, 0.2], rng.normal(size=(12, 3))
    unit = draws.std(axis=0)
    x = torch.tensor(draws / unit)
    s = torch.tensor(scores * unit)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (1 + ((a - b) ** 2).sum() / 3) ** -0.5

    total = 0.0
    for i in range(12):
        for j in range(12):
            if i != j:
                pair = (x[i], x[j])
                of_a, of_b = torch.autograd.functional.jacobian(kernel, pair)
                mixed = torch.autograd.functional.hessian(kernel, pair)[0][1]
                term = kernel(*pair) * (s[i] @ s[j]) + s[i] @ of_b + s[j] @ of_a
                total += float(term + mixed.trace())
    assert stein_discrepancy(draws, scores).value == pytest.approx(total / 132, rel=1e-9)


def student_score(x: Array) -> Array:
    return np.asarray(-6.0 * x / (5.0 + x**2))


@pytest.mark.parametrize("law", ["normal", "t5"])
def test_zero_on_average_and_uniform_p_values_for_the_right_law(law: str) -> None:
    rng = np.random.default_rng(2)
    values, p_values = [], []
    for seed in range(200):
        if law == "normal":
            draws = 3.0 + 2.0 * rng.normal(size=(80, 2))
            scores = -(draws - 3.0) / 4.0
        else:
            draws = rng.standard_t(5.0, size=(80, 2))
            scores = student_score(draws)
        found = stein_discrepancy(draws, scores, replicates=99, seed=seed)
        values.append(found.value)
        p_values.append(found.p_value)
    # Four standard errors each: of the mean, of a share of 10 %, and of the mean of uniforms.
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200)
    assert abs(np.mean(np.array(p_values) <= 0.1) - 0.1) < 0.085
    assert abs(np.mean(p_values) - 0.5) < 0.082


FAULTS: dict[str, Callable[[Array], Array]] = {
    "shifted": lambda z: z + 0.3,
    "too wide": lambda z: 1.3 * z,
    "too narrow": lambda z: 0.7 * z,
    "correlated": lambda z: z @ np.array([[1.0, 0.7], [0.0, 0.714]]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_draws_are_found(fault: str) -> None:
    draws = FAULTS[fault](np.random.default_rng(3).normal(size=(1000, 2)))
    found = stein_discrepancy(draws, -draws)
    assert found.p_value == 1 / 500
    assert found.value > found.upper > found.floor


def test_it_does_not_see_a_missing_mode() -> None:
    # The blind spot: half of the target is at 8, and no draw is there.
    draws = np.random.default_rng(4).normal(size=(1000, 1))
    near = 1 / (1 + np.exp(8.0 * (draws - 4.0)))
    scores = -near * draws - (1 - near) * (draws - 8.0)
    assert stein_discrepancy(draws, scores).p_value > 0.05


def test_units_do_not_matter_and_the_seed_says_all() -> None:
    rng = np.random.default_rng(5)
    draws, scores = rng.normal(size=(2, 100, 3))
    units = np.array([1e-3, 1.0, 1e4])
    before = stein_discrepancy(draws, scores, seed=1)
    after = stein_discrepancy(7.0 + draws * units, scores / units, seed=1)
    assert after.value == pytest.approx(before.value, rel=1e-6)
    assert after.p_value == before.p_value
    assert stein_discrepancy(draws, scores, seed=1) == before
    assert stein_discrepancy(draws, scores, seed=2) != before


@pytest.mark.parametrize(
    ("draws", "scores", "message"),
    [
        (
            np.eye(20),
            np.eye(20)[:, :3],
            r"scores: expected one gradient .* \(20, 20\), got \(20, 3\)",
        ),
        (np.eye(20), np.full((20, 20), np.inf), r"scores: expected finite .* at 20 of 20 draws"),
        (np.eye(20)[:1], np.eye(20)[:1], r"draws: expected at least 10 nearly independent draws"),
        (np.ones((20, 2)), np.ones((20, 2)), r"expected scalars that vary, got 2 of 2"),
        (np.full((20, 2), np.nan), np.ones((20, 2)), r"draws: expected finite numbers"),
    ],
)
def test_what_has_no_discrepancy_is_refused(draws: Array, scores: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stein_discrepancy(draws, scores)
