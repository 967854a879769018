"""Normal scores of ranks: p-values that are exact, and faults of the size that was planted."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from ppl_gen.diagnostics import ecdf_p_values
from ppl_gen.diagnostics.rank_scores import rank_scores


@pytest.mark.parametrize("name", ["location", "dispersion"])
def test_p_values_are_those_of_enumeration(name: str) -> None:
    """All 4**6 sets of six ranks are equally likely."""
    ranks = np.array(list(itertools.product(range(4), repeat=6))).T
    p = getattr(rank_scores(ranks, 3), name)
    scores = norm.ppf((ranks + 0.5) / 4).sum(axis=0)
    if name == "dispersion":
        scores = (norm.ppf((ranks + 0.5) / 4) ** 2).sum(axis=0)
    # Sums that are equal but for rounding are taken together.
    below = (scores[:, None] <= scores + 1e-9).mean(axis=0)
    above = (scores[:, None] >= scores - 1e-9).mean(axis=0)
    assert np.allclose(p, np.minimum(1, 2 * np.minimum(below, above)), atol=1e-12)
    for level in np.unique(p):
        assert (p <= level).mean() <= level * (1 + 1e-9)


def ranks_of(shift: float, scale: float, seed: int, size: int = 20_000) -> np.ndarray:
    """Ranks of N(0, 1) among 99 draws of N(shift, scale)."""
    generator = np.random.default_rng(seed)
    truth = generator.standard_normal(size)
    return generator.binomial(99, norm.cdf((truth - shift) / scale))


@pytest.mark.parametrize(
    ("shift", "scale"), [(0.0, 1.0), (0.1, 1.0), (-0.2, 1.0), (0.0, 0.9), (0.0, 1.2), (0.1, 1.1)]
)
def test_faults_are_estimated(shift: float, scale: float) -> None:
    """Of normal posteriors, with 20,000 ranks.

    The mean has a standard error of 0.007, the ratio one of 0.005 of itself; and 99 draws blur both
    by a few thousandths, as the ends of the range cut off scores beyond 2.6.
    """
    found = rank_scores(ranks_of(shift, scale, seed=0), 99)
    assert abs(float(found.error_of_mean) - shift / scale) < 4 * 0.007 + 0.005
    assert abs(float(found.sd_ratio) / scale - 1) < 4 * 0.005 + 0.015
    assert (found.location < 1e-6) == (shift != 0)
    assert (found.dispersion < 1e-6) == (scale != 1)


def test_many_ranks_and_few() -> None:
    """A single rank says little, and a hundred thousand need coarser scores."""
    one = rank_scores(np.array([[0, 50]]), 99)
    assert np.isnan(one.sd_ratio).all()
    assert one.location.tolist() == pytest.approx([0.02, 1.0])
    many = rank_scores(ranks_of(0.0, 1.0, seed=1, size=100_000), 999 // 10)
    assert min(many.location, many.dispersion) > 0.001
    assert rank_scores(np.array([0, 1, 1]), 1).dispersion == 1  # two values have one square


def test_bad_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="ranks: expected at least one"):
        rank_scores([], 9)
    with pytest.raises(ValueError, match="ranks: expected 0 to 9, got 3 to 10"):
        rank_scores([3, 10], 9)


def test_an_sd_that_is_a_tenth_wrong_is_found_more_often_than_by_the_distribution_function() -> (
    None
):
    """500 ranks, 400 times, at the level that ten quantities leave for each.

    The mean of N squares has the standard error sqrt(2 / N) of itself: a tenth is 3.5 of them where
    the sd is too small, 2.7 where it is too large, and the level 2.9. The empirical distribution
    function sees the latter hardly ever.
    """
    level = 0.05 / 10
    found = {}
    for scale in (0.9, 1.0, 1.1):
        ranks = ranks_of(0.0, scale, seed=2, size=200_000).reshape(500, 400)
        counts = np.stack([(ranks < rank).sum(axis=0) for rank in range(1, 100)])
        uneven = ecdf_p_values(counts, 500, np.arange(1, 100) / 100)
        scores = rank_scores(ranks, 99)
        found[scale] = [(p < level).mean() for p in (uneven, scores.dispersion, scores.location)]
    assert 0.5 < found[0.9][1] < 0.75
    assert 0.4 < found[1.1][1] < 0.65
    assert found[1.1][0] < 0.5 * found[1.1][1]
    assert max(found[1.0]) < level + 4 * math.sqrt(level / 400)
