"""Convergence diagnostics: equal to ArviZ's own, with negative controls."""

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray

from ppl_gen.diagnostics import (
    bfmi,
    convergence,
    ess_bulk,
    ess_mean,
    ess_tail,
    import_arviz,
    mcse_mean,
    rhat,
)
from ppl_gen.diagnostics.mcmc import mcse_quantile, mcse_sd

pytestmark = pytest.mark.arviz


def mcse_median(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    return mcse_quantile(draws, 0.5)


ALL = [rhat, ess_bulk, ess_mean, ess_tail, mcse_mean, mcse_sd, mcse_median]


def autoregressive(coefficient: float, shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    """Draw stationary AR(1) chains with variance one along axis 1."""
    noise = np.random.default_rng(seed).normal(size=shape)
    draws = np.empty(shape)
    draws[:, 0] = noise[:, 0]
    for t in range(1, shape[1]):
        draws[:, t] = coefficient * draws[:, t - 1] + np.sqrt(1 - coefficient**2) * noise[:, t]
    return draws


def arviz_answers(draws: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    arviz = import_arviz()
    dataset = arviz.convert_to_dataset({"x": draws})
    quantiles = {
        f"mcse_{p}": arviz.mcse(dataset, method="quantile", prob=p) for p in (0.05, 0.5, 0.9)
    }
    answers = {
        "rhat": arviz.rhat(dataset),
        "ess_bulk": arviz.ess(dataset),
        "ess_tail": arviz.ess(dataset, method="tail", prob=(0.05, 0.95)),
        "mcse_mean": arviz.mcse(dataset),
        "mcse_sd": arviz.mcse(dataset, method="sd"),
        **quantiles,
    }
    return {name: answer["x"].values for name, answer in answers.items()}


def our_answers(draws: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    return {
        "rhat": rhat(draws),
        "ess_bulk": ess_bulk(draws),
        "ess_tail": ess_tail(draws),
        "mcse_mean": mcse_mean(draws),
        "mcse_sd": mcse_sd(draws),
        **{f"mcse_{p}": mcse_quantile(draws, p) for p in (0.05, 0.5, 0.9)},
    }


@pytest.mark.parametrize("length", [4, 5, 6, 7, 8, 9, 10, 11, 13, 101])
@pytest.mark.parametrize("chains", [2, 3])
def test_equal_to_arviz_for_every_kind_of_draws(chains: int, length: int) -> None:
    # Short chains end Geyer's sequence at its edges; equal draws share a rank.
    shape = (chains, length)
    rng = np.random.default_rng(100 * chains + length)
    kinds = [
        *(autoregressive(a, shape, seed=length) for a in (-0.9, 0.0, 0.5, 0.95)),
        np.cumsum(rng.normal(size=shape), axis=1),
        rng.standard_cauchy(size=shape),
        1e8 + rng.normal(size=shape),
        rng.integers(0, 4, size=shape).astype(float),
        np.arange(length) % 2 + 1e-3 * rng.normal(size=shape),
    ]
    draws = np.stack(kinds, axis=-1)
    expected = arviz_answers(draws)
    for name, answer in our_answers(draws).items():
        # ArviZ subtracts nearly equal fourth and second moments for the MCSE of a sd.
        rtol = 1e-6 if name == "mcse_sd" else 1e-11
        np.testing.assert_allclose(answer, expected[name], rtol=rtol, err_msg=name)


@pytest.mark.parametrize("shape", [(4, 101), (2, 100, 3), (4, 60, 2, 3)])
def test_equal_to_arviz_on_a_dataset(shape: tuple[int, ...]) -> None:
    draws = autoregressive(0.6, shape, seed=1)
    expected = arviz_answers(draws)
    for name, answer in our_answers(draws).items():
        np.testing.assert_allclose(answer, expected[name], rtol=1e-12, err_msg=name)
    for function in ALL:
        result = function(draws)
        assert result.shape == shape[2:]
        assert result.dtype == np.float64


def test_rhat_of_a_shifted_chain_is_as_large_as_theory_says() -> None:
    # Without rank normalisation: split chains of n draws with variance 1, one original chain of
    # four shifted by d. The 8 half-chain means have variance 2 * (3/4)(1/4) d^2 * 4 / 7 (the six
    # at 0, the two at d), so R-hat = sqrt(1 + 3 d^2 / 14) = 1.36 at d = 2, n large. Ranks pull
    # it a little towards one; the noise of a half-chain mean is 1 / sqrt(500), 2 % of d.
    draws = np.random.default_rng(2).normal(size=(4, 1000))
    assert rhat(draws) < 1.01
    draws[3] += 2.0
    assert 1.25 < rhat(draws) < 1.45


def test_rhat_sees_a_chain_with_another_scale() -> None:
    # The means agree, so only the folded half of the rank-normalised R-hat can tell.
    draws = np.random.default_rng(3).normal(size=(4, 1000))
    draws[0] *= 4.0
    assert rhat(draws) > 1.05


def test_rhat_sees_a_drift_that_all_chains_share() -> None:
    # Whole chains agree with each other: only splitting them shows it.
    draws = np.random.default_rng(4).normal(size=(4, 1000)) + np.linspace(0.0, 2.0, 1000)
    assert rhat(draws) > 1.05


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.9, -0.5])
def test_ess_and_mcse_of_autoregressive_chains(coefficient: float) -> None:
    # AR(1) has ESS / draws = (1 - a) / (1 + a). The relative sds over 200 simulations of
    # this size are largest at a = 0.9: 0.127 for the ESS, 0.078 for the MCSE; four of each.
    draws = autoregressive(coefficient, (4, 2000), seed=5)
    expected = 8000 * (1 - coefficient) / (1 + coefficient)
    np.testing.assert_allclose(ess_bulk(draws), expected, rtol=0.51)
    np.testing.assert_allclose(mcse_mean(draws), 1 / np.sqrt(expected), rtol=0.31)


def test_tail_is_not_bulk() -> None:
    # Random signs on a slowly changing scale: the centre mixes at once, the 95 % quantile does
    # not.
    log_scale = autoregressive(0.99, (4, 1000), seed=6)
    draws = np.random.default_rng(6).normal(size=(4, 1000)) * np.exp(log_scale)
    assert ess_tail(draws) < 0.3 * ess_bulk(draws)


@pytest.mark.parametrize("function", ALL)
def test_no_answer_for_what_has_none_and_no_warning(function: object) -> None:
    assert callable(function)
    draws = np.random.default_rng(7).normal(size=(4, 100, 5))
    draws[:, :, 1] = 3.0
    draws[2, 17, 2] = np.nan
    draws[0, 0, 3] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = function(draws)
    assert np.isfinite(result).tolist() == [True, False, False, False, True]
    assert np.isnan(function(draws[:, :3])).all()
    assert function(np.empty((4, 100, 0))).shape == (0,)
    assert function(np.empty((0, 0, 2))).shape == (2,)


def test_many_scalars_are_each_answered_as_if_alone() -> None:
    # Chunks enough for threads, in a layout that is not contiguous, some without an answer.
    draws = np.asfortranarray(autoregressive(0.3, (4, 2000, 100), seed=14))
    draws[:, :, 7] = 1.0
    draws[0, 3, 50] = np.nan
    for function in ALL:
        together = function(draws)
        alone = [function(draws[:, :, i]) for i in range(100)]
        np.testing.assert_allclose(together, alone, rtol=1e-12)
        assert np.flatnonzero(np.isnan(together)).tolist() == [7, 50]


@pytest.mark.parametrize("draws_per_chain", [200, 201])
def test_the_three_together_are_each_as_alone(draws_per_chain: int) -> None:
    # An odd length, whose middle draw only the tails see, and some draws that are equal.
    draws = np.round(autoregressive(0.3, (4, draws_per_chain, 30), seed=15), 1)
    draws[:, :, 7] = 1.0
    found = convergence(draws)
    np.testing.assert_array_equal(found.rhat, rhat(draws))
    np.testing.assert_array_equal(found.ess_bulk, ess_bulk(draws))
    np.testing.assert_array_equal(found.ess_tail, ess_tail(draws))


def test_mcse_of_sd_and_quantiles_are_as_large_as_theory_says() -> None:
    # Independent normal draws: sd / sqrt(2 n), and sqrt(p (1 - p) / n) / density. Over 200
    # simulations the relative sds are 0.04 and 0.13 for the median,
    # 0.18 for the 5 % quantile; four of each.
    draws = np.random.default_rng(16).normal(size=(4, 1000))
    np.testing.assert_allclose(mcse_sd(draws), 1 / np.sqrt(8000), rtol=0.16)
    for probability, density, rtol in [(0.5, 0.39894, 0.52), (0.05, 0.10314, 0.72)]:
        expected = np.sqrt(probability * (1 - probability) / 4000) / density
        np.testing.assert_allclose(mcse_quantile(draws, probability), expected, rtol=rtol)
    with pytest.raises(ValueError, match="probability: expected a number between 0 and 1, got 5"):
        mcse_quantile(draws, 5)


def test_ess_of_the_mean_is_that_of_its_standard_error() -> None:
    # AR(1): (1 - a) / (1 + a) of the draws. Over 200 simulations the relative sd is 0.08; four.
    draws = autoregressive(0.5, (4, 1000), seed=18)
    np.testing.assert_allclose(ess_mean(draws), 4000 / 3, rtol=0.32)
    np.testing.assert_allclose(ess_mean(draws), draws.var(ddof=1) / mcse_mean(draws) ** 2)
    expected = import_arviz().ess(draws, method="mean")
    np.testing.assert_allclose(ess_mean(draws), float(np.asarray(expected)), rtol=1e-10)


def test_chains_stuck_at_different_values_never_agree() -> None:
    draws = np.broadcast_to(np.arange(4.0)[:, None], (4, 100))
    assert rhat(draws) > 1e6


def test_one_chain_has_no_rhat_but_an_effective_sample_size() -> None:
    draws = np.random.default_rng(8).normal(size=(1, 500))
    assert np.isnan(rhat(draws))
    # Over 200 simulations the estimate has a bias of -4 % and an sd of 12 %.
    np.testing.assert_allclose(ess_bulk(draws), 500, rtol=0.52)


def test_integers_and_booleans_are_draws_too() -> None:
    draws = np.random.default_rng(9).integers(0, 2, size=(4, 500))
    np.testing.assert_array_equal(rhat(draws), rhat(draws.astype(bool)))
    assert rhat(draws) < 1.02


def test_two_values_equally_often_have_no_folded_rhat_but_one() -> None:
    draws = np.random.default_rng(17).permuted(np.tile([0.0, 1.0], (4, 50)), axis=1)
    with np.errstate(invalid="ignore"):  # ArviZ divides zero by zero
        expected = arviz_answers(draws)["rhat"]
    assert np.isfinite(rhat(draws))
    np.testing.assert_allclose(rhat(draws), expected, rtol=1e-12)


@pytest.mark.parametrize("function", ALL)
def test_too_few_axes(function: object) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match=r"\(chain, draw, \*event\), got shape \(100,\)"):
        function(np.zeros(100))


def test_nothing_is_written_to_the_draws() -> None:
    draws = np.random.default_rng(10).normal(size=(4, 100, 2))
    before = draws.copy()
    for function in ALL:
        function(draws)
    np.testing.assert_array_equal(draws, before)


def test_bfmi_is_arviz_own_and_has_its_limits() -> None:
    # Independent energies: E(step^2) = 2 var, so 2; AR(1): 2 (1 - a). Over 400 simulated
    # chains the relative sds are 0.0143 and 0.065; four of each.
    arviz = import_arviz()
    independent = autoregressive(0.0, (4, 4000), seed=11)
    np.testing.assert_allclose(bfmi(independent), 2.0, rtol=0.06)
    slow = autoregressive(0.9, (4, 4000), seed=12)
    np.testing.assert_allclose(bfmi(slow), 0.2, rtol=0.27)
    expected = arviz.bfmi({"energy": slow}) if arviz.__version__ < "1" else arviz.bfmi(slow)
    np.testing.assert_allclose(bfmi(slow), np.asarray(expected), rtol=1e-12)


def test_bfmi_of_useless_energies() -> None:
    energy = np.random.default_rng(13).normal(size=(3, 50))
    energy[0] = 1.0
    energy[1, 3] = np.nan
    assert np.isnan(bfmi(energy)).tolist() == [True, True, False]
    assert np.isnan(bfmi(energy[:, :1])).all()
    with pytest.raises(ValueError, match=r"\(chain, draw\)"):
        bfmi(energy[0])
