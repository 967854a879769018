"""Whether chains disagree, or are too short to show that they agree, counted over chains."""

import numpy as np
from scipy.signal import lfilter

from ppl_gen.diagnostics import rhat
from ppl_gen.judge.agreement import disagree, nested_by_start

RNG = np.random.default_rng(0)


def chains(count: int, draws: int, memory: float, start: float = 1.0) -> np.ndarray:
    """Draw autoregressions of standard normals, of some start, (chain, draw, 3)."""
    noise = RNG.normal(size=(count, draws, 3)) * np.sqrt(1 - memory**2)
    noise[:, 0] = start * RNG.normal(size=(count, 3))
    return np.asarray(lfilter([1.0], [1.0, -memory], noise, axis=1))


def test_chains_that_are_too_short_do_not_disagree() -> None:
    """Said of 1 % by design, and then of none of 80: fewer than 4 with probability .99."""
    found = [
        disagree(chains(4, draws, memory))
        for draws, memory in ((20, 0.0), (50, 0.5), (100, 0.8), (200, 0.9))
        for _ in range(20)
    ]
    assert sum(found) <= 4


def test_chains_in_other_places_or_of_other_widths_do() -> None:
    for shift, scale in ((0.6, 1.0), (0.0, 0.4)):
        for _ in range(10):
            draws = chains(4, 1000, 0.3)
            draws[3, :, 1] = shift + scale * draws[3, :, 1]
            assert disagree(draws)
    assert disagree(np.repeat(np.arange(4.0), 100).reshape(4, 100, 1))


def test_nested_r_hat_is_small_once_starts_are_forgotten() -> None:
    for memory, start in ((0.0, 1.0), (0.5, 1.0), (0.5, 3.0)):
        draws = chains(128, 60, memory, start)
        assert np.median(nested_by_start(draws)) < 1.01
    assert (rhat(chains(128, 60, 0.5)) > 1.01).all()
    # Chains on their way, from afar, from one point, and in two places.
    for memory, start in ((0.99, 1.0), (0.97, 3.0), (0.97, 0.0)):
        assert (nested_by_start(chains(128, 60, memory, start)) > 1.01).all()
    apart = chains(128, 60, 0.0) + 3.0 * (np.arange(128) % 2)[:, None, None]
    assert (nested_by_start(apart) > 1.1).all()
    assert np.isnan(nested_by_start(chains(4, 60, 0.0))).all()
    assert np.isnan(nested_by_start(chains(16, 1000, 0.0))).all()


def test_a_chain_that_is_far_away_is_not_left_over() -> None:
    """Of 19 chains 16 make superchains of equal size: not those of the smallest values."""
    draws = chains(19, 60, 0.0)
    assert (nested_by_start(draws) < 1.03).all()
    draws[0] = 10.0 + 0.01 * draws[0]
    assert (nested_by_start(draws) > 1.03).all()
    assert disagree(draws)


def test_one_of_very_many_chains_that_is_somewhere_else() -> None:
    """It moves the variance of means by a hundredth, and the sd of all draws threefold."""
    draws = chains(512, 50, 0.5)
    assert not disagree(draws)
    draws[0, :, 0] += 100.0
    assert disagree(draws)
