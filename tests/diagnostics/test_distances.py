"""Marginal errors and distances: closed forms, floors that hold, and errors that are seen."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import norm, wasserstein_distance

from ppl_gen.diagnostics.distances import (
    Deviation,
    marginal_errors,
    marginal_wasserstein,
    simultaneous_z,
)
from ppl_gen.diagnostics.marginals import marginals

Array = NDArray[np.float64]


def autoregressive(coefficient: float, shape: tuple[int, ...], seed: int) -> Array:
    """Draw stationary AR(1) chains with variance one along axis 1."""
    noise = np.random.default_rng(seed).normal(size=shape)
    noise[:, 1:] *= np.sqrt(1 - coefficient**2)
    return np.asarray(lfilter([1.0], [1.0, -coefficient], noise, axis=1))


def all_deviations(x: Array, y: Array, x_is_mcmc: bool, y_is_mcmc: bool) -> dict[str, Deviation]:
    found, reference = marginals(x, is_mcmc=x_is_mcmc), marginals(y, is_mcmc=y_is_mcmc)
    errors = marginal_errors(found, reference)
    return {
        "mean": errors.mean,
        "sd": errors.sd,
        "quantiles": errors.quantiles,
        "wasserstein": marginal_wasserstein(x, y, found, reference),
    }


def test_errors_of_a_shifted_and_scaled_normal() -> None:
    # N(0.5 + 3, (2 * 0.6)^2) for N(3, 2^2), 40,000 draws each: the standard errors are
    # sqrt(1 + .36) / 200 for the mean, sqrt(1 / 40000) * 0.6 for the sd, and below
    # 2.2 * that of the mean for the quantiles; four of each, and of the unit's 0.35 %.
    rng = np.random.default_rng(3)
    y = 3.0 + 2.0 * rng.normal(size=(4, 10_000))
    x = 3.5 + 1.2 * rng.normal(size=(4, 10_000))
    found = all_deviations(x, y, False, False)
    assert found["mean"].value == pytest.approx(0.25, abs=0.024)
    assert found["sd"].value == pytest.approx(-0.4, abs=0.012)
    expected = 0.25 + norm.ppf([0.05, 0.5, 0.95]) * (0.6 - 1.0)
    np.testing.assert_allclose(found["quantiles"].value, expected, atol=0.06)
    # The same quantile functions, a + b z, and the mean of |.25 - .4 z|.
    ratio = 0.25 / 0.4
    area = 0.4 * (2 * norm.pdf(ratio) + ratio * (2 * norm.cdf(ratio) - 1))
    assert found["wasserstein"].value == pytest.approx(area, abs=0.03)
    for name, deviation in found.items():
        if name != "quantiles":
            assert abs(deviation.excess(4.0)) > 0.15, name


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_wasserstein_of_normals(shift: float, scale: float) -> None:
    # Of a shift a alone it is a, of a scale s alone |s - 1| E|z|; together E|a + (s - 1) z|.
    # Moving a draw by as much moves it by as much at most: four standard errors of both means.
    x, y = np.random.default_rng(4).normal(size=(2, 4, 10_000))
    x = shift + scale * x
    width = abs(scale - 1.0)
    if width == 0.0:
        expected = shift
    else:
        ratio = shift / width
        expected = width * (2 * norm.pdf(ratio) + ratio * (2 * norm.cdf(ratio) - 1))
    found = all_deviations(x, y, False, False)["wasserstein"]
    assert found.value == pytest.approx(expected, abs=4 * (1 + scale) / 200)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (7, 50), (50, 7), (30, 45), (2, 3)])
def test_wasserstein_equals_scipys_for_any_numbers_of_draws(n: int, m: int) -> None:
    rng = np.random.default_rng(n + m)
    x, y = rng.normal(size=(1, n, 3)), rng.exponential(size=(1, m, 3))
    found, reference = marginals(x, is_mcmc=False), marginals(y, is_mcmc=False)
    distance = marginal_wasserstein(x, y, found, reference).value * reference.unit
    expected = [wasserstein_distance(x[0, :, i], y[0, :, i]) for i in range(3)]
    np.testing.assert_allclose(distance, expected, rtol=1e-12)


def student(degrees: float) -> Callable[[tuple[int, ...], int], Array]:
    return lambda shape, seed: np.random.default_rng(seed).standard_t(degrees, size=shape)


LAWS: dict[str, tuple[Callable[[tuple[int, ...], int], Array], bool]] = {
    "normal": (lambda shape, seed: np.random.default_rng(seed).normal(size=shape), False),
    "chains": (lambda shape, seed: autoregressive(0.6, shape, seed), True),
    "skewed": (lambda shape, seed: np.random.default_rng(seed).exponential(size=shape), False),
    "mixture": (
        lambda shape, seed: (
            np.random.default_rng(seed).normal(size=shape)
            + 4.0 * np.random.default_rng(seed + 10_000).integers(0, 2, size=shape)
        ),
        False,
    ),
    "t5": (student(5.0), False),
}


@pytest.mark.parametrize("law", LAWS)
def test_floors_hold_for_all_scalars_together(law: str) -> None:
    # Two samples of one posterior, 30 scalars, 100 times: at a level of 10 % chance exceeds a floor
    # in 10 of them, with an sd of 3. Standard errors are estimated, and the estimates' tails are
    # heavier than the normal's at 4 standard errors: 10 + 5 * 3.
    draw, is_mcmc = LAWS[law]
    shape = (4, 250, 30)
    exceeded: dict[str, int] = {}
    plain = 0
    for seed in range(100):
        x, y = draw(shape, 2 * seed), draw(shape, 2 * seed + 1)
        for name, deviation in all_deviations(x, y, is_mcmc, is_mcmc).items():
            z = simultaneous_z(deviation.value.size, level=0.1)
            exceeded[name] = exceeded.get(name, 0) + bool(deviation.excess(z).any())
            plain += name == "mean" and bool(deviation.excess(1.96).any())
    assert max(exceeded.values()) <= 25, exceeded
    # One z for each scalar alone is no floor for thirty of them.
    assert plain > 60


def test_wasserstein_between_two_samples_is_as_expected() -> None:
    # The mean over 300 scalars of a distance whose sd is below a third of its expectation: 2 %,
    # four of which.
    x, y = np.random.default_rng(6).normal(size=(2, 2, 1000, 300))
    found = all_deviations(x, y, False, False)["wasserstein"]
    assert np.mean(found.value) == pytest.approx(np.mean(found.expected), rel=0.08)


def test_heavy_tails_have_quantiles_only() -> None:
    rng = np.random.default_rng(7)
    y, x = rng.standard_cauchy(size=(2, 4, 1000, 20))
    right = all_deviations(x, y, False, False)
    assert np.isnan(right["mean"].value).all()
    assert np.isnan(right["sd"].value).all()
    z = simultaneous_z(60, level=1e-3)
    assert not right["quantiles"].excess(z).any()
    # Twice as wide: the 95 % quantile moves by itself, which is 1.645 units.
    wrong = all_deviations(2 * x, y, False, False)["quantiles"]
    assert (wrong.excess(z)[2] > 0.0).mean() > 0.8
    assert np.median(wrong.value[2]) == pytest.approx(norm.ppf(0.95), abs=0.3)
    # And t5 has moments.
    assert not marginals(rng.standard_t(5.0, size=(4, 1000, 200))).heavy_tailed.any()


def test_an_approximation_with_heavy_tails_is_seen_by_its_sd() -> None:
    rng = np.random.default_rng(8)
    x, y = rng.standard_cauchy(size=(4, 1000)), rng.normal(size=(4, 1000))
    assert all_deviations(x, y, False, False)["sd"].excess(4.0) > 1.0


def test_a_point_has_no_spread_and_no_error() -> None:
    y = np.random.default_rng(9).normal(size=(4, 1000))
    for is_mcmc in (False, True):
        found = all_deviations(np.full((1, 200), 0.1), y, is_mcmc, True)
        assert found["sd"].value == -1.0
        assert found["sd"].excess(4.0) < -0.9
        assert np.isfinite(found["mean"].floor(4.0))
        assert found["wasserstein"].value == pytest.approx(0.8, abs=0.05)  # E|z - .1|


def test_units_and_places_do_not_matter() -> None:
    rng = np.random.default_rng(13)
    x, y = 0.3 + rng.normal(size=(4, 300, 5)), rng.normal(size=(4, 200, 5))
    before, after = (
        all_deviations(x, y, True, True),
        all_deviations(7 + 3 * x, 7 + 3 * y, True, True),
    )
    for name, deviation in before.items():
        np.testing.assert_allclose(after[name].value, deviation.value, rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(
            after[name].floor(3.0), deviation.floor(3.0), rtol=1e-9, err_msg=name
        )
    mirrored = all_deviations(-x, -y, True, True)
    np.testing.assert_allclose(mirrored["mean"].value, -before["mean"].value)
    np.testing.assert_allclose(mirrored["sd"].value, before["sd"].value)
    np.testing.assert_allclose(
        mirrored["quantiles"].value, -before["quantiles"].value[::-1], rtol=1e-9, atol=1e-12
    )


def test_no_error_where_the_reference_does_not_vary_and_any_event() -> None:
    rng = np.random.default_rng(14)
    x, y = rng.normal(size=(2, 2, 50, 3, 4))
    y[:, :, 1, 2] = 1.0
    for name, deviation in all_deviations(x, y, True, True).items():
        assert deviation.value.shape[-2:] == (3, 4), name
        assert np.isnan(deviation.value[..., 1, 2]).all(), name
        assert np.isnan(deviation.floor(2.0)[..., 1, 2]).all(), name
        assert np.isfinite(deviation.excess(2.0)).sum() == deviation.value.size / 12 * 11, name


def test_z_of_the_largest_error() -> None:
    # Largest of 50 normals: the share above is 10 % +- 4 * sqrt(.09 / 20000) = .85 %.
    largest = np.abs(np.random.default_rng(16).normal(size=(20_000, 50))).max(axis=1)
    assert np.mean(largest > simultaneous_z(50, level=0.1)) == pytest.approx(0.1, abs=0.0085)
    assert simultaneous_z(10**9) == pytest.approx(-norm.ppf(0.05 / 2e9), rel=1e-2)


def test_what_does_not_fit_together_is_refused() -> None:
    draws = np.random.default_rng(17).normal(size=(2, 20, 3))
    three, two = marginals(draws), marginals(draws[:, :, :2])
    with pytest.raises(ValueError, match=r"found: expected the scalars .* \(2,\), got \(3,\)"):
        marginal_errors(three, two)
    with pytest.raises(ValueError, match=r"draws: expected the scalars"):
        marginal_wasserstein(draws, draws[:, :, :2], two, two)
    with pytest.raises(ValueError, match=r"draws: expected the scalars"):
        two.standardise(draws)
    with pytest.raises(ValueError, match=r"found: expected the quantiles of the reference"):
        marginal_errors(three, marginals(draws, probabilities=(0.5,)))
    with pytest.raises(ValueError, match=r"probabilities: expected numbers between 0 and 1"):
        marginals(draws, probabilities=(0.5, 1.0))
    with pytest.raises(ValueError, match=r"count: expected at least one"):
        simultaneous_z(0)
    with pytest.raises(ValueError, match=r"level: expected a probability"):
        simultaneous_z(5, level=0.0)
