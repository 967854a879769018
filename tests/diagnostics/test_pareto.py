"""Tails of many sets of weights at once: as of each alone, whatever their lengths."""

import math

import numpy as np
import pytest
from scipy import stats

from ppl_gen.diagnostics.pareto import shape_interval, smooth, standard_error, tail_sizes


def test_rows_are_smoothed_as_each_alone() -> None:
    """Tails of different shapes and lengths: also equal, underflowing and too short ones."""
    rng = np.random.default_rng(0)
    rows = rng.exponential(size=(8, 1000)) * np.linspace(0.1, 1.5, 8)[:, None]
    rows[2] = 0.0
    rows[3] *= 2000
    rows[4] = np.where(np.arange(1000) < 4, 0.0, -2000.0)
    rows[5, 500:] = -np.inf
    relative = rows - rows.max(axis=1, keepdims=True)
    wanted = tail_sizes(1000, rng.uniform(0.2, 1.5, size=8))
    smoothed, k, counts = smooth(relative, wanted)
    assert len(set(wanted.tolist())) > 3
    assert k[2] == -math.inf
    assert k[4] == math.inf
    for row in range(8):
        alone, of_alone, count = smooth(relative[[row]], wanted[[row]])
        np.testing.assert_allclose(smoothed[row], alone[0], rtol=1e-12)
        np.testing.assert_allclose(k[row], of_alone[0], rtol=1e-12)
        assert counts[row] == count[0]


def test_tails_become_quantiles_of_the_fitted_distribution() -> None:
    ratios = 0.4 * np.random.default_rng(1).exponential(size=2000)
    relative = ratios - ratios.max()
    (smoothed,), (k,), (count,) = smooth(relative[None], tail_sizes(2000))
    order = np.argsort(relative)
    tail, cutoff = order[-count:], relative[order[-count - 1]]
    np.testing.assert_array_equal(smoothed[order[:-count]], relative[order[:-count]])
    excess = np.expm1(smoothed[tail] - cutoff)
    # Whatever the scale is, they are proportional to quantiles of that shape, up to the largest.
    expected = stats.genpareto.ppf((np.arange(count) + 0.5) / count, k)
    ratio = (excess / expected)[smoothed[tail] < 0]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_lengths_of_tails() -> None:
    # ceil(min(S / 5, 3 sqrt(S / r))) of Vehtari et al. (2024).
    assert tail_sizes(100).tolist() == [20]
    assert tail_sizes(4000, [1.0, 0.1]).tolist() == [190, 600]
    assert tail_sizes(1).tolist() == [1]


def test_an_interval_holds_shapes_within_reach_of_their_own_errors() -> None:
    for k, tail, reach in [(0.7, 190, 1.645), (0.0, 30, 2.0), (-0.9, 100, 1.0), (-0.52, 50, 2.0)]:
        low, high = shape_interval(k, standard_error(k, tail), reach)
        assert low < k < high
        assert k - low == pytest.approx(reach * standard_error(low, tail))
        assert high - k == pytest.approx(reach * standard_error(high, tail))
    assert shape_interval(0.5, standard_error(0.5, 10), 8.0)[1] == math.inf
