"""Estimates of scalars: standard errors that are right, for any shape, type and place."""

import sys
from dataclasses import fields

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import norm

from ppl_gen.diagnostics.marginals import Marginals, marginals

Array = NDArray[np.float64]


def autoregressive(coefficient: float, shape: tuple[int, ...], seed: int) -> Array:
    """Draw stationary AR(1) chains with variance one along axis 1."""
    noise = np.random.default_rng(seed).normal(size=shape)
    noise[:, 1:] *= np.sqrt(1 - coefficient**2)
    return np.asarray(lfilter([1.0], [1.0, -coefficient], noise, axis=1))


@pytest.mark.parametrize("coefficient", [0.0, 0.7])
def test_standard_errors_are_the_spread_of_the_estimates(coefficient: float) -> None:
    # Estimates of 2,000 scalars in units of their standard errors: their sd is 1, with a standard
    # error of 1 / sqrt(2 * 2000) = 0.016. An estimated standard error is itself uncertain, by 5 to
    # 10 % for a chain, which widens that sd by half their square: 0.06. Those of quantiles are the
    # widest of several: 5 to 10 % too large for a normal.
    draws = autoregressive(coefficient, (4, 500, 2000), seed=1)
    found = marginals(draws, is_mcmc=coefficient != 0.0)
    scores = {
        "mean": found.mean / found.mean_error,
        "sd": np.log(found.sd) / found.log_sd_error,
    }
    for name, values in scores.items():
        assert values.std() == pytest.approx(1.0, abs=0.06), name
        assert abs(values.mean()) < 0.12, name  # 4 / sqrt(2000), and the bias of log sd
    for p, row, errors in zip(
        (0.05, 0.5, 0.95), found.quantiles, found.quantile_errors, strict=True
    ):
        assert ((row - norm.ppf(p)) / errors).std() == pytest.approx(0.93, abs=0.07), p
    # AR(1): the mean's effective draws are (1 - a) / (1 + a) of all, those of the square more.
    expected = 2000 * (1 - coefficient) / (1 + coefficient)
    np.testing.assert_allclose(np.median(found.effective), expected, rtol=0.1)


def test_standard_errors_of_chains_must_know_that_they_are_chains() -> None:
    draws = autoregressive(0.7, (4, 500, 500), seed=2)
    found = marginals(draws, is_mcmc=False)
    # sqrt(1.7 / .3) = 2.4, not 1.
    assert (found.mean / found.mean_error).std() > 2.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_no_unit(dtype: type) -> None:
    # Simplexes sum to one but for rounding: that is nothing to measure errors in.
    weights = np.random.default_rng(10).dirichlet(np.ones(5), size=(4, 500)).astype(dtype)
    reference = marginals(weights.sum(axis=-1))
    assert reference.sd == 0.0
    # A narrow posterior far from zero is none.
    assert marginals(1e6 + np.random.default_rng(12).normal(size=(4, 500))).sd > 0.9


def test_any_event_any_type_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(14).normal(size=(2, 50, 3, 4)).astype(np.float32)
    found = marginals(draws)
    alone = marginals(draws[:, :, 1, 2])
    # The package has a function of the module's name.
    monkeypatch.setattr(sys.modules["ppl_gen.diagnostics.marginals"], "_CHUNK", 250)
    in_parts = marginals(draws)
    for field in fields(Marginals):
        if field.name == "probabilities":
            continue
        of_all = getattr(found, field.name)
        assert of_all.shape[-2:] == (3, 4), field.name
        np.testing.assert_allclose(of_all[..., 1, 2], getattr(alone, field.name), rtol=1e-12)
        np.testing.assert_allclose(of_all, getattr(in_parts, field.name), rtol=1e-12)
    assert marginals(np.zeros((2, 10, 0))).mean.shape == (0,)


def test_standardised_draws_are_in_units_of_the_reference() -> None:
    rng = np.random.default_rng(15)
    y = 5.0 + np.array([1.0, 10.0, 0.0]) * rng.normal(size=(4, 500, 3))
    reference = marginals(y)
    own = reference.standardise(y)
    assert own.shape == (2000, 3)
    np.testing.assert_allclose(own.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(own.std(axis=0, ddof=1), [1.0, 1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(reference.standardise(y + 1.0)[:, 2], 1.0)


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        (np.zeros(5), r"draws: expected axes \(chain, draw, \*event\), got shape \(5,\)"),
        (np.zeros((1, 1, 3)), r"draws: expected at least 2 draws .* got shape \(1, 1, 3\)"),
        (
            np.array([[[0.0, 1.0], [np.nan, np.inf], [1.0, 2.0]]]),
            r"NaN or infinity in 1 of 3 draws",
        ),
    ],
)
def test_draws_without_estimates_are_refused(draws: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        marginals(draws)


def test_too_few_draws_of_a_chain_have_errors_without_bound() -> None:
    assert np.isinf(marginals(np.array([[1.0, 2.0, 3.0]])).mean_error)
    assert np.isfinite(marginals(np.array([[1.0, 2.0, 3.0]]), is_mcmc=False).mean_error)


def test_a_quantile_between_two_modes_may_be_in_either() -> None:
    # Half of 1,000 draws are near 0, half near 10: the medians of two samples are in different
    # modes half of the time, which is no error. By chance 0.05 % of pairs are 3.5 errors apart; 1 %
    # leaves room for the edges of the modes, and intervals of one standard error alone show 6 %.
    rng = np.random.default_rng(18)
    draws = rng.normal(size=(2, 1, 1000, 900)) + 10.0 * rng.integers(0, 2, size=(2, 1, 1000, 900))
    x, y = (marginals(sample, is_mcmc=False) for sample in draws)
    difference = np.abs(x.quantiles[1] - y.quantiles[1])
    z = difference / np.hypot(x.quantile_errors[1], y.quantile_errors[1])
    assert (difference > 5.0).mean() > 0.3
    assert (z > 3.5).mean() < 0.01
    # And the modes' own quantiles are as sharp as ever.
    assert x.quantile_errors[0].max() < 0.3


def test_what_makes_up_an_sd() -> None:
    rng = np.random.default_rng(19)
    assert marginals(rng.standard_cauchy(size=(4, 1000, 50))).heavy_tailed.mean() > 0.9
    for light in (rng.normal(size=(4, 1000, 50)), rng.standard_t(5.0, size=(4, 1000, 50))):
        found = marginals(light)
        assert not found.heavy_tailed.any()
        np.testing.assert_array_equal(found.unit, found.sd)
    # Of few draws none is many.
    assert not marginals(rng.normal(size=(1, 10, 50)), is_mcmc=False).heavy_tailed.any()
    huge = marginals(np.array([[-1e300, 0.0, 1e300, 2.0, 1.0]]), is_mcmc=False)
    assert huge.heavy_tailed
    assert np.isfinite(huge.unit)
