"""Mu-law levels, and distributions over the amplitudes that they stand for."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from torch.distributions import Categorical

from ppl_gen.distributions import MuLawCategorical, mu_law_decode, mu_law_encode


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 5, 256, 1024])
def test_every_level_comes_back(levels: int, dtype: torch.dtype) -> None:
    every = torch.arange(levels)
    amplitudes = mu_law_decode(every.to(dtype), levels)
    assert amplitudes.dtype == dtype
    assert torch.equal(mu_law_encode(amplitudes, levels), every)
    assert float(amplitudes[0]) == pytest.approx(-1)
    assert float(amplitudes[-1]) == pytest.approx(1)
    assert float(amplitudes.abs().max()) <= 1
    assert bool((amplitudes.diff() > 0).all())
    torch.testing.assert_close(amplitudes, -amplitudes.flip(0))


def test_levels_are_those_of_the_formula_written_out() -> None:
    # By hand: f(0.5) = ln(128.5) / ln(256) = 0.87570, (f + 1) * 127.5 + 0.5 = 239.65.
    # f(0.1) = ln(26.5) / ln(256) = 0.59099, 203.35; f(0.001) = ln(1.255) / ln(256), 133.22.
    amplitudes = torch.tensor([-1.0, -0.5, -0.001, 0.0, 0.001, 0.1, 0.5, 1.0])
    assert mu_law_encode(amplitudes).tolist() == [0, 16, 122, 128, 133, 203, 239, 255]
    # Decoding: ((1 + mu)^|y| - 1) / mu at y = 2 * 192 / 255 - 1 = 0.50588.
    expected = (256 ** (2 * 192 / 255 - 1) - 1) / 255
    assert float(mu_law_decode(torch.tensor(192))) == pytest.approx(expected, rel=1e-6)


def test_an_amplitude_goes_to_a_level_near_it() -> None:
    waveform = torch.linspace(-1, 1, 4001, dtype=torch.double)
    back = mu_law_decode(mu_law_encode(waveform).double())
    # In the compressed scale levels are 2 / 255 apart, so that at most half of that is lost.
    compressed = [x.sign() * (255 * x.abs()).log1p() / math.log(256) for x in (waveform, back)]
    assert float((compressed[0] - compressed[1]).abs().max()) <= 1 / 255 + 1e-12


def test_what_is_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"from -1 to 1, got 1200\. Divide 16-bit samples"):
        mu_law_encode(torch.tensor([0.0, -1200.0]))
    with pytest.raises(ValueError, match="got nan"):
        mu_law_encode(torch.tensor([0.0, torch.nan]))
    for wrong in (256, -1, 2.5, math.nan):
        with pytest.raises(ValueError, match=f"integers from 0 to 255, got {wrong}"):
            mu_law_decode(torch.tensor([3, wrong]))
    for dtype in (torch.int16, torch.uint8, torch.bool):  # of silence, too
        with pytest.raises(TypeError, match=r"got torch\..*waveform / 32768"):
            mu_law_encode(torch.zeros(3, dtype=dtype))
    for use, name in ((mu_law_encode, "waveform"), (mu_law_decode, "level")):
        with pytest.raises(TypeError, match=f"{name}: expected a tensor, got list"):
            use([0.0, 0.5])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="levels: expected at least 2, got 1"):
        mu_law_encode(torch.zeros(1), levels=1)
    assert mu_law_encode(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_amplitude_of_one_may_have_been_rounded_up(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    assert mu_law_encode(torch.tensor([-1 - eps, 1 + 4 * eps], dtype=dtype)).tolist() == [0, 255]
    with pytest.raises(ValueError, match="from -1 to 1"):
        mu_law_encode(torch.tensor([1 + 8 * eps], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_before_anything_is_computed(dtype: torch.dtype) -> None:
    every = torch.arange(256)
    amplitudes = mu_law_decode(every.to(dtype))
    assert amplitudes.dtype == dtype
    assert torch.equal(amplitudes, mu_law_decode(every).to(dtype))
    # Neighbours are 4 % apart, of which half precision rounds off less than half a percent.
    assert torch.equal(mu_law_encode(amplitudes), every)


def made(*batch: int, levels: int = 8) -> MuLawCategorical:
    torch.manual_seed(0)
    return MuLawCategorical(torch.randn(*batch, levels, dtype=torch.double))


def test_probabilities_are_those_of_the_levels_and_sum_to_one() -> None:
    sample = made(3, 2)
    every = sample.enumerate_support()
    assert every.shape == (8, 3, 2)
    assert sample.enumerate_support(expand=False).shape == (8, 1, 1)
    log_prob = sample.log_prob(every)
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(3, 2, dtype=torch.double))
    torch.testing.assert_close(log_prob.movedim(0, -1).exp(), sample.probs)
    torch.testing.assert_close(
        log_prob[5], Categorical(logits=sample.logits).log_prob(torch.tensor(5))
    )


def test_draws_are_as_frequent_as_they_are_probable() -> None:
    sample = made()
    count = 20_000
    levels = mu_law_encode(sample.sample((count,)), 8)
    found = torch.bincount(levels, minlength=8).double() / count
    # Each frequency has a variance of p (1 - p) / n: five of its sds.
    allowed = 5 * (sample.probs * (1 - sample.probs) / count).sqrt()
    assert bool(((found - sample.probs).abs() < allowed).all())


def test_moments_are_those_of_the_enumerated_values() -> None:
    sample = made(3)
    values = sample.enumerate_support()
    weights = sample.log_prob(values).exp()
    mean = (weights * values).sum(0)
    torch.testing.assert_close(sample.mean, mean)
    torch.testing.assert_close(sample.variance, (weights * (values - mean) ** 2).sum(0))


def test_values_are_amplitudes_of_levels_alone() -> None:
    sample = MuLawCategorical(torch.randn(256), validate_args=True)
    for dtype in (torch.float32, torch.float64):  # computed in one, checked in the other
        amplitudes = mu_law_decode(torch.arange(256).to(dtype))
        assert bool(sample.support.check(amplitudes).all())
        sample.log_prob(amplitudes)
    between = amplitudes[:-1] + amplitudes.diff() / 2
    assert not bool(sample.support.check(between).any())
    assert not bool(sample.support.check(torch.tensor([1.5, -2.0, torch.nan])).any())
    with pytest.raises(ValueError, match="support"):
        sample.log_prob(torch.tensor(0.3))
    waveform = mu_law_decode(mu_law_encode(torch.tensor(0.3)))
    assert torch.isfinite(sample.log_prob(waveform))


def test_without_validation_others_count_as_their_level() -> None:
    sample = MuLawCategorical(torch.randn(256), validate_args=False)
    nearest = mu_law_decode(mu_law_encode(torch.tensor(0.3)))
    assert torch.equal(sample.log_prob(torch.tensor(0.3)), sample.log_prob(nearest))


def test_shapes_expand_and_gradients() -> None:
    sample = made(3, 1)
    assert sample.batch_shape == (3, 1)
    assert sample.event_shape == ()
    wide = sample.expand((2, 3, 4))
    assert wide.sample((5,)).shape == (5, 2, 3, 4)
    values = wide.sample()
    assert torch.equal(wide.log_prob(values), sample.log_prob(values))
    logits = torch.randn(4, dtype=torch.double, requires_grad=True)
    value = mu_law_decode(torch.tensor(2.0, dtype=torch.double), 4)
    (gradient,) = torch.autograd.grad(MuLawCategorical(logits).log_prob(value), logits)
    one = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.double)
    torch.testing.assert_close(gradient, one - logits.softmax(-1).detach())
    with pytest.raises(TypeError, match="logits: expected a tensor, got list"):
        MuLawCategorical([0.0, 1.0])  # type: ignore[arg-type]
    assert bool(MuLawCategorical(torch.zeros(4)).support.check(torch.tensor(1)))
    with pytest.raises(TypeError, match=r"levels: expected a whole number, got 2\.5"):
        mu_law_encode(torch.zeros(1), levels=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2 levels"):
        MuLawCategorical(torch.zeros(3, 1))


def test_in_a_model_under_plates_and_enumeration() -> None:
    logits = torch.randn(6, dtype=torch.double)

    def model() -> torch.Tensor:
        with pyro.plate("data", 3):
            found: torch.Tensor = pyro.sample(
                "x", MuLawCategorical(logits), infer={"enumerate": "parallel"}
            )
        return found

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site: Any = trace.nodes["x"]
    assert site["value"].shape == site["log_prob"].shape == (3,)
    enumerated = pyro.poutine.trace(pyro.poutine.enum(model, first_available_dim=-2)).get_trace()
    site = enumerated.nodes["x"]
    assert site["value"].shape == (6, 1)
