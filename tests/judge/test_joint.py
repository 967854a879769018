"""Dependence between scalars: its errors, and how often chance passes their floors."""

import numpy as np
import pytest
from made import normal

from ppl_gen.judge.joint import Sample, dependence_error


def sample(draws: np.ndarray, *, is_mcmc: bool = False, worth: float = 1.0) -> Sample:
    chains = 4 if is_mcmc else 1
    return Sample(draws.reshape(chains, -1, draws.shape[1]), is_mcmc, worth)


def test_the_error_is_that_of_the_sum_or_the_difference() -> None:
    found = dependence_error(
        sample(normal(1, correlation=0.0)), sample(normal(2, correlation=0.8), is_mcmc=True)
    )
    assert found is not None
    assert (found.first, found.second, found.of_sizes) == (0, 1, (False, False))
    # The sd of the difference is sqrt(2), in the reference sqrt(2 (1 - .8)): 2.24 times as large.
    # Its relative standard error is sqrt(1 / 4000) = 1.6 %, of each correlation .016 and .006.
    assert found.error == pytest.approx(1.236, abs=4 * 2.24 * 0.016)
    assert found.here == pytest.approx(0.0, abs=4 * 0.016)
    assert found.there == pytest.approx(0.8, abs=4 * 0.006)
    assert 0 < found.net < found.error


def test_nearly_collinear_scalars() -> None:
    # 1 - r is 10^-4 in the one and 10^-2 in the other: ten times the sd of the difference.
    found = dependence_error(
        sample(normal(3, correlation=1 - 1e-2)), sample(normal(4, correlation=1 - 1e-4))
    )
    assert found is not None
    assert found.error == pytest.approx(9.0, rel=0.1)


def test_chance_passes_the_floor_as_rarely_as_it_should() -> None:
    # Of 40 right samples at most 5 % by the bound, which is exceeded in 6 with probability 1 %.
    passed = 0
    for seed in range(40):
        found = dependence_error(
            sample(normal(10 + seed, scalars=5, draws=1000, correlation=0.5)),
            sample(normal(90 + seed, scalars=5, draws=2000, correlation=0.5), is_mcmc=True),
        )
        assert found is not None
        passed += found.net != 0
    assert passed <= 6


def test_draws_chosen_by_weights_are_worth_less() -> None:
    x, y = normal(5), normal(6)
    all_of_them = dependence_error(sample(x), sample(y))
    some_of_them = dependence_error(sample(x, worth=0.1), sample(y))
    assert all_of_them is not None
    assert some_of_them is not None
    assert some_of_them.floor > 1.5 * all_of_them.floor


def test_nothing_to_depend_on() -> None:
    one = normal(7, scalars=1)
    assert dependence_error(sample(one), sample(one)) is None
    constant = normal(8, scalars=2)
    constant[:, 1] = 3.0
    assert dependence_error(sample(constant), sample(constant)) is None
