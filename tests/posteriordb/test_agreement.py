"""The comparison of draws with reference draws, calibrated on the reference draws themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import compare, compare_exact, threshold, worst
from pairs import POSTERIORS
from scipy import stats

Array = np.ndarray[Any, np.dtype[np.float64]]
LIMIT = threshold(460)
HALVES = (slice(0, 5), slice(5, 10))
NAMES = ["eight_schools-eight_schools_noncentered", "one_comp_mm_elim_abs-one_comp_mm_elim_abs"]


def split(values: Array, seed: int) -> tuple[Array, Array]:
    """Split the nearly independent reference draws in 4 x 1000 draws and 6 x 1000 others."""
    shuffled = np.random.default_rng(seed).permutation(values.reshape(-1))
    return shuffled[:4000].reshape(4, 1000), shuffled[4000:].reshape(6, 1000)


def test_halves_of_the_reference_agree(posteriordb: Path) -> None:
    comparisons = []
    for posterior in POSTERIORS.values():
        reference = posterior.reference(posteriordb)
        halves = ({name: draws[part] for name, draws in reference.items()} for part in HALVES)
        comparisons += compare(*halves, posterior.without_moments)
    assert len(comparisons) == 280
    assert worst(comparisons) < threshold(len(comparisons))


def test_scores_are_standard_normal(posteriordb: Path) -> None:
    # Scores of one split depend on each other, those of 40 splits nearly not: the sd of scores over
    # splits and scalars is 1 +- 1 / sqrt(2 * 40) at worst. The tolerance is 3 of these.
    for name in NAMES:
        posterior = POSTERIORS[name]
        reference = posterior.reference(posteriordb)
        scores: dict[str, list[float]] = {}
        for seed in range(40):
            parts = {scalar: split(draws, seed) for scalar, draws in reference.items()}
            ours, theirs = ({k: v[i] for k, v in parts.items()} for i in (0, 1))
            for c in compare(ours, theirs, posterior.without_moments):
                scores.setdefault(c.statistic, []).append(c.z)
        for found in scores.values():
            assert np.std(found) == pytest.approx(1.0, abs=0.33)


def test_errors_of_autocorrelated_draws() -> None:
    # AR(1) chains with correlation .9 against independent draws: without their ESS the scores of
    # the mean would have an sd of about 3.
    rng = np.random.default_rng(0)
    scores: dict[str, list[float]] = {"mean": [], "sd": [], "quantile": []}
    for _ in range(40):
        chains = np.empty((4, 1000))
        state = rng.normal(size=4)
        for i in range(1000):
            state = 0.9 * state + np.sqrt(1 - 0.9**2) * rng.normal(size=4)
            chains[:, i] = state
        reference = {"x": rng.normal(size=(10, 1000))}
        for c in compare({"x": chains}, reference):
            scores[c.statistic].append(c.z)
        # The five quantiles depend on each other: take the median.
        scores["quantile"].append(compare({"x": chains}, reference, ("x",))[2].z)
    for found in scores.values():
        assert np.std(found) == pytest.approx(1.0, abs=0.45)  # 4 / sqrt(2 * 40)


@pytest.mark.parametrize("name", POSTERIORS)
def test_wrong_moments_are_found(name: str, posteriordb: Path) -> None:
    posterior = POSTERIORS[name]
    for scalar, draws in posterior.reference(posteriordb).items():
        if scalar in posterior.without_moments:
            continue
        ours, others = split(draws, 0)
        mean, sd = draws.mean(), draws.std()
        assert worst(compare({scalar: ours}, {scalar: others})) < LIMIT
        shifted = compare({scalar: ours + 0.2 * sd}, {scalar: others})
        assert worst(shifted, "mean") > LIMIT
        # The standard error of a log sd is sqrt((kurtosis + 2) / (4 n)): where the tails are
        # heavy, as those of eight schools' tau, 4,000 draws tell an sd to 3 % only.
        if stats.kurtosis(draws, axis=None) < 2.0:
            scaled = compare({scalar: mean + 1.15 * (ours - mean)}, {scalar: others})
            assert worst(scaled, "sd") > LIMIT


@pytest.mark.parametrize("scalar", ["K_m", "V_m"])
def test_wrong_quantiles_are_found(scalar: str, posteriordb: Path) -> None:
    posterior = POSTERIORS["one_comp_mm_elim_abs-one_comp_mm_elim_abs"]
    log = np.log(posterior.reference(posteriordb)[scalar])
    ours, others = split(log, 0)

    def score(values: Array) -> float:
        return worst(
            compare({scalar: np.exp(values)}, {scalar: np.exp(others)}, (scalar,)), "quantile"
        )

    assert score(ours) < LIMIT
    assert score(ours + 0.2 * log.std()) > LIMIT
    assert score(log.mean() + 1.15 * (ours - log.mean())) > LIMIT


def test_exact_moments() -> None:
    draws = {"x": 2.0 + 3.0 * np.random.default_rng(0).normal(size=(4, 1000))}
    assert worst(compare_exact(draws, {"x": (2.0, 3.0)})) < LIMIT
    assert worst(compare_exact(draws, {"x": (2.6, 3.0)}), "mean") > LIMIT
    assert worst(compare_exact(draws, {"x": (2.0, 3.45)}), "sd") > LIMIT


@pytest.mark.parametrize("without_moments", [(), ("x",)])
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_draws_without_diagnostics_disagree(value: float, without_moments: Any) -> None:
    reference = {"x": np.random.default_rng(0).normal(size=(10, 1000))}
    draws = {"x": np.full((4, 1000), value)}
    with np.errstate(invalid="ignore"):
        assert worst(compare(draws, reference, without_moments)) == np.inf


def test_threshold_is_bonferronis() -> None:
    assert 460 * 2 * stats.norm.sf(threshold(460)) == pytest.approx(1e-3)
    assert threshold(1, rate=0.05) == pytest.approx(1.96, abs=1e-3)
