"""Nested R-hat: equal to the paper's formula, near its limit, and against stuck superchains."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from ppl_gen.diagnostics import nested_rhat

Array = NDArray[np.float64]


def by_the_formula(draws: Array, superchains: int) -> float:
    """Margossian et al. (2022), equations 5 to 8, of one scalar's draws as they are."""
    groups = draws.reshape(superchains, -1, draws.shape[1])
    size, length = groups.shape[1:]
    of_group = [group.mean() for group in groups]
    between = sum((mean - np.mean(of_group)) ** 2 for mean in of_group) / (superchains - 1)
    within = 0.0
    for group in groups:
        of_chain = [chain.mean() for chain in group]
        if size > 1:
            within += sum((mean - np.mean(of_chain)) ** 2 for mean in of_chain) / (size - 1)
        if length > 1:
            within += np.mean([chain.var(ddof=1) for chain in group])
    return float(np.sqrt(1 + between / (within / superchains)))


@pytest.mark.parametrize(("chains", "length", "superchains"), [(24, 5, 4), (64, 1, 8), (6, 50, 6)])
def test_equals_the_formula_on_ranks(chains: int, length: int, superchains: int) -> None:
    draws = np.random.default_rng(0).standard_t(2, size=(chains, length))
    draws[: chains // 3] += 0.7

    def scores(values: Array) -> Array:
        ranks = stats.rankdata(values).reshape(values.shape)
        return np.asarray(stats.norm.ppf((ranks - 0.375) / (values.size + 0.25)))

    folded = np.abs(draws - np.median(draws))
    expected = max(by_the_formula(scores(part), superchains) for part in (draws, folded))
    assert float(nested_rhat(draws, superchains)) == pytest.approx(expected, rel=1e-10)


def test_of_chains_that_are_stationary() -> None:
    """Its square is 1 + 1 / M on average, for superchains of M chains of one draw each.

    The excess is that of a variance of K means over its expectation, folded or not: its relative
    sd is sqrt(2 / (K - 1)) for each, and the larger of two is 40 % more on average, at most.
    """
    rng = np.random.default_rng(1)
    squares = np.array([float(nested_rhat(rng.normal(size=(512, 1)), 16)) ** 2 for _ in range(100)])
    excess = (squares - 1).mean() * 32
    error = np.sqrt(2 / 15) / 10
    assert 1 - 4 * error < excess < 1.4 + 4 * error


def test_superchains_that_remember_their_start_are_found() -> None:
    """Where plain means of chains so short say nothing, those of superchains do."""
    rng = np.random.default_rng(2)
    starts = np.repeat(rng.normal(size=8), 64)[:, None]
    forgotten = rng.normal(size=(512, 3))
    remembered = 0.5 * starts + np.sqrt(0.75) * rng.normal(size=(512, 3))
    # The paper's threshold of 1.01 for many chains, and about 1 + 0.25 / (2 * 0.75).
    assert nested_rhat(forgotten, 8) < 1.01
    assert nested_rhat(remembered, 8) > 1.05
    wide = np.where(np.arange(512)[:, None] < 128, 4.0, 1.0) * rng.normal(size=(512, 3))
    assert nested_rhat(wide, 8) > 1.05


def test_events_and_useless_draws() -> None:
    draws = np.random.default_rng(3).normal(size=(32, 2, 2, 3))
    draws[:, :, 0, 1] = 1.0
    draws[4, 1, 1, 2] = np.inf
    found = nested_rhat(draws, 4)
    assert np.isnan(found).tolist() == [[False, True, False], [False, False, True]]
    assert float(nested_rhat(draws[:, :, 1, 0], 4)) == found[1, 0]
    assert np.isposinf(nested_rhat(np.repeat(np.arange(4.0), 8)[:, None], 4))
    assert np.isnan(nested_rhat(np.random.default_rng(4).normal(size=(8, 1)), 4))


def test_refuses_superchains_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="of equally many of the 10 chains, got 4"):
        nested_rhat(np.zeros((10, 2)), 4)
    with pytest.raises(ValueError, match="at least 2"):
        nested_rhat(np.zeros((10, 2)), 1)
    with pytest.raises(ValueError, match=r"\(chain, draw, \*event\), got shape \(10,\)"):
        nested_rhat(np.zeros(10), 2)
