"""The classifier two-sample test: a right null, power against each kind of fault."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ppl_gen.diagnostics.classifier import classifier_two_sample

Array = NDArray[np.float64]


def test_p_values_are_uniform_for_two_samples_of_one_posterior() -> None:
    # 120 repetitions: a p-value of 10 % in 10 % of them, within 4 sqrt(.09 / 120) = 11 %, and a
    # mean of one half, within 4 / sqrt(12 * 120) = .105. Of twelve scalars there are far more
    # features than are used: choosing them by the draws held out as well would show here.
    rng = np.random.default_rng(1)
    found = [classifier_two_sample(*rng.normal(size=(2, 60, 12)), seed=i) for i in range(120)]
    p_values = np.array([one.p_value for one in found])
    assert abs(np.mean(p_values <= 0.1) - 0.1) < 0.11
    assert abs(np.mean(p_values) - 0.5) < 0.105
    assert sum(one.value > one.upper for one in found) < 6 + 4 * 2.4


def banana(z: Array) -> Array:
    """Bend the second scalar: means, variances and correlations are those of a normal."""
    curved = z.copy()
    curved[:, 1] = 0.6 * z[:, 1] + 0.8 * (z[:, 0] ** 2 - 1) / np.sqrt(2)
    return curved


def funnel(z: Array) -> Array:
    wide = z.copy()
    wide[:, 1] = z[:, 1] * np.exp(0.7 * z[:, 0])
    return wide


FAULTS = {
    "shifted": lambda z: z + 0.4,
    "scaled": lambda z: 0.7 * z,
    "rotated": lambda z: z @ np.array([[1.0, 0.7], [0.0, 0.714]]),
    "one mode": lambda z: np.where(np.arange(len(z))[:, None] % 2, z, z + 3.0),
    "heavy tails": lambda z: z / np.abs(np.roll(z, 1, axis=0)) ** 0.5,
    "banana": banana,
    "funnel": funnel,
}


@pytest.mark.parametrize("others", [0, 40])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_among_other_scalars(fault: str, others: int) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 1000, 2 + others))
    x[:, :2] = FAULTS[fault](x[:, :2])
    found = classifier_two_sample(x, y)
    assert found.p_value < 1e-3
    assert found.value > found.upper > found.floor == 0.5
    assert found.excess == found.value - 0.5


def test_area_of_a_shifted_normal() -> None:
    # The best classifier of N(a, 1) against N(0, 1) is right with probability Phi(a / sqrt(2)) of
    # a pair: .760 at a = 1. Its sd over 1,000 of each is below .011, and learning costs little.
    x, y = np.random.default_rng(3).normal(size=(2, 1000, 1))
    assert classifier_two_sample(x + 1.0, y).value == pytest.approx(0.760, abs=0.05)


def test_any_increasing_function_of_a_scalar_leaves_all_as_it_is() -> None:
    x, y = np.random.default_rng(4).normal(size=(2, 100, 3))
    x[:, 0] += 0.3
    assert classifier_two_sample(x, y) == classifier_two_sample(np.exp(x), np.exp(y))


def test_few_draws_constant_scalars_and_samples_apart() -> None:
    x, y = np.random.default_rng(5).normal(size=(2, 12, 4))
    x[:, 0] = y[:, 0] = 1.0
    assert 0.0 <= classifier_two_sample(x, y).value <= 1.0
    x[:, 1] += 100.0
    assert classifier_two_sample(x, y).value > 0.9
    same = classifier_two_sample(np.ones((20, 2)), np.ones((20, 2)))
    assert same.value == 0.5
    assert same.p_value == 0.5


def test_the_seed_says_all() -> None:
    x, y = np.random.default_rng(6).normal(size=(2, 100, 3))
    assert classifier_two_sample(x, y, seed=1) == classifier_two_sample(x, y, seed=1)
    assert classifier_two_sample(x, y, seed=1) != classifier_two_sample(x, y, seed=2)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"draws: expected at least 10 nearly independent draws"):
        classifier_two_sample(np.zeros((1, 2)), np.zeros((20, 2)))
