"""Pareto-smoothed importance sampling: equal to ArviZ's, and against known tails."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ppl_gen.diagnostics import format_pareto_k, import_arviz, psis, resample

Array = NDArray[np.float64]


def normal_ratios(scale: float, size: int, seed: int) -> Array:
    """Log ratios of a standard normal target at draws from N(0, scale²), up to a constant."""
    draws = scale * np.random.default_rng(seed).normal(size=size)
    return -0.5 * draws**2 * (1 - scale**-2)


def mean_field_ratios(correlation: float, size: int, rng: np.random.Generator) -> Array:
    """Log ratios of a bivariate normal at draws of its optimal mean-field guide; k is |r|."""
    r = correlation
    x, y = np.sqrt(1 - r**2) * rng.normal(size=(2, size))
    # The quadratic terms of target and guide are equal.
    return np.asarray(r * x * y / (1 - r**2))


def pareto_ratios(k: float, size: int, rng: np.random.Generator) -> Array:
    """Log ratios whose excess over any cutoff has exactly the shape k."""
    return np.asarray(k * rng.exponential(size=size))


@pytest.mark.parametrize("size", [25, 100, 1000, 20_000])
@pytest.mark.parametrize("scale", [0.3, 0.7, 0.95, 1.5, 10.0])
def test_equals_arviz(size: int, scale: float) -> None:
    ratios = normal_ratios(scale, size, seed=size)
    log_weights, k = import_arviz().psislw(ratios.copy())
    ours = psis(ratios)
    assert ours.pareto_k == pytest.approx(float(k), rel=1e-8, abs=1e-8)
    # The smallest weights are sums of large numbers, and rounding is relative to these.
    np.testing.assert_allclose(ours.log_weights, log_weights, rtol=1e-9, atol=1e-8)


def test_equals_arviz_where_weights_underflow() -> None:
    ratios = 2000 * np.random.default_rng(0).normal(size=5000)
    log_weights, k = import_arviz().psislw(ratios.copy())
    ours = psis(ratios)
    assert ours.pareto_k == pytest.approx(float(k), rel=1e-8)
    assert ours.pareto_k > 5
    np.testing.assert_allclose(ours.log_weights, log_weights, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("k", [-0.2, 0.3, 0.7, 1.2])
def test_the_shape_of_an_exact_pareto_tail(k: float) -> None:
    """Also its error: the sd over repetitions, which 400 of them know to 1 / sqrt(800) = 3.5 %."""
    rng = np.random.default_rng(1)
    if k > 0:
        samples = [pareto_ratios(k, 5000, rng) for _ in range(400)]
    else:  # weights 1 - u^-k, u uniform, are bounded; their excess has the shape k as well
        samples = [np.log1p(-(rng.uniform(size=5000) ** -k)) for _ in range(400)]
    found = [psis(ratios) for ratios in samples]
    estimates = np.array([smoothed.pareto_k for smoothed in found])
    tail = 213  # 3 sqrt(5000)
    expected = (tail * k + 5) / (tail + 10)
    spread = estimates.std(ddof=1)
    # Four standard errors of the mean, and the bias of the estimator, of order 1 / tail.
    assert estimates.mean() == pytest.approx(expected, abs=4 * spread / 20 + 1.5 / tail)
    # Maximum likelihood's error is asymptotic, and holds for the grid's mean within a tenth.
    assert spread == pytest.approx(np.mean([one.pareto_k_error for one in found]), rel=0.25)


def test_mean_field_on_a_correlated_normal() -> None:
    """Known by simulation, with ArviZ: at 4,000 draws .80 on average with sd .13 where r is .9.

    The tail is no exact Pareto yet, so that the average is below |r|. The tolerance is three
    standard errors over 100 samples, and the rounding of the two figures.
    """
    rng = np.random.default_rng(2)
    found = np.array([psis(mean_field_ratios(0.9, 4000, rng)).pareto_k for _ in range(100)])
    assert found.mean() == pytest.approx(0.80, abs=3 * 0.13 / 10 + 0.005)
    assert found.std(ddof=1) == pytest.approx(0.13, abs=3 * 0.13 / np.sqrt(200) + 0.005)
    half = np.array([psis(mean_field_ratios(0.5, 4000, rng)).pareto_k for _ in range(100)])
    assert half.mean() < 0.55 < 0.7 < found.mean()


def test_bounded_weights_have_a_negative_shape() -> None:
    # For a guide that is too wide k is -2, from which the prior of ten draws takes it to -1.3.
    assert psis(normal_ratios(2.0, 1000, seed=0)).pareto_k < -0.4
    assert psis(normal_ratios(2.0, 1000, seed=0)).reliable


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_only_ratios_of_weights_matter(scale: float) -> None:
    ratios = normal_ratios(scale, 1000, seed=3)
    first, shifted = psis(ratios), psis(ratios + 1000.0)
    assert shifted.pareto_k == pytest.approx(first.pareto_k, abs=1e-8)
    np.testing.assert_allclose(shifted.log_weights, first.log_weights, atol=1e-8)
    order = np.random.default_rng(0).permutation(1000)
    np.testing.assert_allclose(psis(ratios[order]).log_weights, first.log_weights[order])


def test_weights_keep_their_order_and_sum_to_one() -> None:
    ratios = normal_ratios(0.5, 1000, seed=4)
    log_weights = psis(ratios).log_weights
    assert np.exp(log_weights).sum() == pytest.approx(1.0)
    assert (np.diff(log_weights[np.argsort(ratios)]) >= 0).all()


def test_smoothing_mends_an_estimate() -> None:
    """The target's variance, 1, from a guide of sd .7: k is .51, so that raw weights are noisy."""
    errors: dict[str, list[float]] = {"raw": [], "smoothed": []}
    for seed in range(200):
        draws = 0.7 * np.random.default_rng(seed).normal(size=1000)
        ratios = -0.5 * draws**2 * (1 - 0.7**-2)
        for name, log_weights in (("raw", ratios), ("smoothed", psis(ratios).log_weights)):
            weights = np.exp(log_weights)
            errors[name].append(float(weights @ draws**2 / weights.sum()) - 1)
    assert np.square(errors["smoothed"]).mean() < 0.95 * np.square(errors["raw"]).mean()


@pytest.mark.parametrize("rounding", [0.0, 1e-9])
def test_an_exact_guide(rounding: float) -> None:
    noise = np.random.default_rng(0).standard_t(1, size=1000).clip(-20, 20)
    smoothed = psis(-123.4 + rounding * noise)
    assert smoothed.pareto_k == -np.inf
    assert smoothed.reliable
    assert smoothed.ess == pytest.approx(1000)
    np.testing.assert_allclose(np.exp(smoothed.log_weights), 1e-3, rtol=1e-6)


def test_draws_without_weight() -> None:
    ratios = normal_ratios(0.8, 1000, seed=5)
    ratios[::10] = -np.inf
    reference = psis(ratios)
    assert np.isneginf(reference.log_weights[::10]).all()
    assert reference.ess < 900
    ratios[::20] = np.nan
    np.testing.assert_array_equal(psis(ratios).log_weights, reference.log_weights)
    # A guide that covers more than a uniform target: all weights are 0 or equal.
    inside = psis(np.where(np.arange(1000) < 300, 1.0, -np.inf))
    assert inside.pareto_k == -np.inf
    assert inside.ess == pytest.approx(300)


def test_too_few_draws_say_nothing() -> None:
    for ratios in (np.zeros(20), normal_ratios(0.9, 20, seed=0), np.zeros(1)):
        smoothed = psis(ratios)
        assert smoothed.pareto_k == np.inf
        assert not smoothed.reliable
        np.testing.assert_allclose(
            smoothed.log_weights, ratios - np.log(np.exp(ratios).sum()), atol=1e-12
        )
    assert psis(np.zeros(21)).pareto_k == -np.inf
    # Four draws carry all of the weight.
    assert psis(np.where(np.arange(1000) < 4, 0.0, -2000.0)).pareto_k == np.inf


def test_refuses_what_are_no_ratios() -> None:
    with pytest.raises(ValueError, match=r"\+inf at 2 of 30 draws"):
        psis(np.where(np.arange(30) < 2, np.inf, 0.0))
    with pytest.raises(ValueError, match="-inf or NaN at all of 30 draws"):
        psis(np.where(np.arange(30) < 2, np.nan, -np.inf))
    with pytest.raises(ValueError, match=r"one number for each draw, got an array of \(3, 4\)"):
        psis(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="one number for each draw"):
        psis([])


def test_computes_in_double_precision() -> None:
    ratios = normal_ratios(0.05, 4000, seed=6).astype(np.float32)
    single, double = psis(ratios), psis(ratios.astype(np.float64))
    assert single.log_weights.dtype == np.float64
    assert single.pareto_k == double.pareto_k > 0.7


@pytest.mark.parametrize(
    ("size", "threshold"), [(1, -np.inf), (10, 0.0), (100, 0.5), (1000, 2 / 3), (100_000, 0.7)]
)
def test_the_threshold(size: int, threshold: float) -> None:
    assert psis(np.zeros(size)).threshold == pytest.approx(threshold)


def test_resampling_follows_the_weights() -> None:
    weights = np.array([0.37, 0.21, 0.0, 0.30, 0.09, 0.03])
    rng = np.random.default_rng(0)
    with np.errstate(divide="ignore"):
        log_weights = np.log(7 * weights)
    counts = np.array(
        [np.bincount(resample(log_weights, 5, rng), minlength=6) for _ in range(4000)]
    )
    assert (counts.sum(axis=1) == 5).all()
    # Rounded up or down, and right on average: a count's sd is at most 1/2.
    assert (np.abs(counts - 5 * weights) < 1).all()
    np.testing.assert_allclose(counts.mean(axis=0), 5 * weights, atol=4 * 0.5 / np.sqrt(4000))


def test_resampling_repeats_no_draw_that_it_need_not() -> None:
    rng = np.random.default_rng(1)
    weights = rng.uniform(size=1000)  # the largest is 0.2 % of their sum
    chosen = resample(np.log(weights), 400, rng)
    assert len(set(chosen.tolist())) == 400
    # In random order: the mean of the first half is that of all, but for 4 standard errors.
    assert chosen[:200].mean() == pytest.approx(chosen.mean(), abs=4 * 289 / np.sqrt(400))


def test_resampled_draws_are_those_of_the_target() -> None:
    """Draws of N(0, 1.5²) become draws of N(0, 1): the pool's ESS is 14,000, they are 2,000."""
    rng = np.random.default_rng(2)
    pool = 1.5 * rng.normal(size=20_000)
    weights = psis(-0.5 * pool**2 * (1 - 1.5**-2))
    draws = pool[resample(weights.log_weights, 2000, rng)]
    # Four standard errors of mean and sd: of the draws, and those of the pool added to it.
    error = np.sqrt(1 / 2000 + 1 / weights.ess)
    assert draws.mean() == pytest.approx(0.0, abs=4 * error)
    assert draws.std() == pytest.approx(1.0, abs=4 * error / np.sqrt(2))


@pytest.mark.parametrize(
    ("case", "parameter", "size", "repetitions", "mean"),
    [
        ("r", 0.5, 4000, 300, 0.472),
        ("r", 0.9, 4000, 300, 0.801),
        ("s", 0.8, 4000, 300, 0.363),
        ("s", 0.5, 4000, 300, 0.687),
        ("r", 0.5, 100_000, 80, 0.475),
        ("r", 0.9, 100_000, 80, 0.836),
        ("s", 0.8, 100_000, 80, 0.348),
        ("s", 0.5, 100_000, 80, 0.700),
    ],
)
def test_the_interval_holds_what_k_hat_scatters_around(
    case: str, parameter: float, size: int, repetitions: int, mean: float
) -> None:
    """At the rate that it says: four standard errors of a share, and 0.02 for what is asymptotic.

    Over 1,000 to 2,000 repetitions the shares were 0.88 to 0.91, and k-hat's mean the one that is
    given. Half as wide it would hold that at a rate of 0.59: the negative control.
    """
    rng = np.random.default_rng(7)
    if case == "r":
        found = [psis(mean_field_ratios(parameter, size, rng)) for _ in range(repetitions)]
    else:
        found = [psis(normal_ratios(parameter, size, seed)) for seed in range(repetitions)]
    estimates = np.array([one.pareto_k for one in found])
    assert estimates.mean() == pytest.approx(mean, abs=4 * estimates.std() / repetitions**0.5)
    low, high = np.array([one.interval(0.9) for one in found]).T
    tolerance = 4 * np.sqrt(0.9 * 0.1 / repetitions) + 0.02
    assert np.mean((low < mean) & (mean < high)) == pytest.approx(0.9, abs=tolerance)
    low, high = (low + estimates) / 2, (high + estimates) / 2
    assert np.mean((low < mean) & (mean < high)) < 0.9 - tolerance
    # The stated standard error is that of the scatter, known to 1 / sqrt(2 n) of itself.
    error = np.mean([one.pareto_k_error for one in found])
    assert estimates.std() == pytest.approx(error, rel=4 / np.sqrt(2 * repetitions) + 0.06)


def test_intervals_of_useless_estimates() -> None:
    assert psis(np.zeros(100)).interval() == (-np.inf, -np.inf)
    assert psis(np.zeros(10)).interval() == (np.inf, np.inf)
    bounded = psis(normal_ratios(2.0, 1000, seed=0))
    low, high = bounded.interval(0.5)
    assert low < bounded.pareto_k < high < 0
    assert bounded.interval(0.9)[0] < low
    with pytest.raises(ValueError, match="probability: expected a number between 0 and 1, got 90"):
        bounded.interval(90)


def test_single_precision_and_torch_give_the_same_answer() -> None:
    """To the rounding of the input: log ratios of up to 1,500 nats, of 1e-4 in single precision."""
    ratios = normal_ratios(0.5, 4000, seed=8) + 1500
    double = psis(ratios)
    for same in (torch.from_numpy(ratios), torch.from_numpy(ratios).requires_grad_()):
        assert psis(same).pareto_k == double.pareto_k
        np.testing.assert_array_equal(psis(same).log_weights, double.log_weights)
    for rounded in (ratios.astype(np.float32), torch.from_numpy(ratios).float()):
        single = psis(rounded)
        assert single.log_weights.dtype == np.float64
        # k-hat is a mean over the tail's logarithms, each off by the rounding at random.
        assert single.pareto_k == pytest.approx(double.pareto_k, abs=1e-3)
        assert single.ess == pytest.approx(double.ess, rel=1e-2)
        np.testing.assert_allclose(single.log_weights, double.log_weights, atol=1e-2)


def test_an_exact_guide_in_single_precision() -> None:
    """Its ratios are equal but for the rounding of log densities of a thousand nats, 6e-5."""
    noise = np.random.default_rng(9).normal(size=1000)
    ratios = (1000 + 1e-4 * noise).astype(np.float32)
    assert psis(ratios).pareto_k == -np.inf
    assert psis(torch.from_numpy(ratios)).pareto_k == -np.inf
    # The same differences are no rounding in double precision.
    assert np.isfinite(psis(1000 + 1e-4 * noise).pareto_k)


def test_k_hat_is_printed_without_infinities() -> None:
    exact, few = psis(np.zeros(100)), psis(np.zeros(10))
    texts = [format_pareto_k(one.pareto_k, one.interval()) for one in (exact, few)]
    assert texts == ["below 0 (equal weights)", "unknown (too few weights)"]
    narrow = psis(normal_ratios(0.5, 4000, seed=8))
    low, high = narrow.interval()
    expected = f"{narrow.pareto_k:.2f} ({low:.2f} to {high:.2f})"
    assert format_pareto_k(narrow.pareto_k, (low, high)) == expected
    assert format_pareto_k(0.123) == "0.12"
    assert format_pareto_k(np.nan) == "unknown (too few weights)"


def test_the_mean_ratio_is_kept() -> None:
    ratios = normal_ratios(1.5, 1000, seed=10) - 5000.0
    expected = -5000.0 + np.log(np.exp(ratios + 5000.0).mean())
    # Weights are bounded, so that smoothing changes little.
    assert psis(ratios).log_mean == pytest.approx(expected, abs=0.01)
    zeros = np.where(np.arange(1000) < 250, 3.0, -np.inf)
    assert psis(zeros).log_mean == pytest.approx(3.0 + np.log(0.25))
