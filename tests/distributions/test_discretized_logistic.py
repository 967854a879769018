"""Rounded logistic distributions: normalised, drawn as often as probable, right in the tails."""

import math
from collections.abc import Callable

import pytest
import torch

from ppl_gen.distributions import DiscretizedLogistic, DiscretizedLogisticMixture


def mixture(bins: int, dtype: torch.dtype = torch.double) -> DiscretizedLogisticMixture:
    torch.manual_seed(0)
    logits, loc, log_scale = (torch.randn(5, 3, dtype=dtype) for _ in range(3))
    return DiscretizedLogisticMixture(logits, loc, log_scale - 2, bins)


@pytest.mark.parametrize("bins", [2, 16, 256])
def test_it_sums_to_one(bins: int) -> None:
    grey = mixture(bins)
    total = grey.log_prob(grey.enumerate_support()).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(5, dtype=torch.double), rtol=0, atol=1e-12)


def test_one_component_is_a_difference_of_logistic_functions() -> None:
    loc, log_scale = torch.tensor([0.2], dtype=torch.double), torch.tensor([-1.5]).double()
    grey = DiscretizedLogistic(loc, log_scale, bins=11)
    edges = (torch.arange(10).double() + 0.5) / 5 - 1
    below = torch.sigmoid((edges - loc) / log_scale.exp())
    expected = torch.diff(below, prepend=torch.zeros(1), append=torch.ones(1)).log()
    torch.testing.assert_close(grey.log_prob(torch.arange(11)), expected)


@pytest.mark.parametrize("bins", [4, 256])
def test_bins_far_out_have_their_share(bins: int) -> None:
    # Far out, where both logistic functions are 1 to rounding, a bin from l to u has
    # exp(-l) - exp(-u), in units of the scale: nothing is lost by taking that difference in logs.
    scale = 1 / (20.0 * bins)
    made_of = torch.tensor([[-1.0], [math.log(scale)]], dtype=torch.double)
    grey = DiscretizedLogistic(*made_of, bins)
    value = bins - 2
    centre, half = 2 * value / (bins - 1) - 1, 1 / (bins - 1)
    lower, width = (centre - half + 1) / scale, 2 * half / scale
    expected = -lower + math.log(-math.expm1(-width))
    assert expected < -50
    assert float(grey.log_prob(torch.tensor([value]))) == pytest.approx(expected, rel=1e-12)


def test_tails_are_finite_with_gradients_in_single_precision() -> None:
    loc = torch.tensor([-0.9, 0.9], requires_grad=True)
    log_scale = torch.full((2,), -7.0, requires_grad=True)
    log_prob = DiscretizedLogistic(loc, log_scale).log_prob(torch.tensor([200, 40]))
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert (log_prob < -100).all()
    assert loc.grad is not None
    assert log_scale.grad is not None
    # Far out the log density falls linearly, with a slope of one over the scale.
    torch.testing.assert_close(
        loc.grad, torch.tensor([1.0, -1.0]) * math.exp(7.0), rtol=1e-3, atol=0
    )
    assert log_scale.grad.isfinite().all()


def test_it_expands_and_knows_its_support() -> None:
    for grey in (mixture(16), DiscretizedLogistic(torch.zeros(5), torch.zeros(5), 16)):
        wide = grey.expand((2, 5))
        assert type(wide) is type(grey)
        values = wide.sample((3,))
        assert values.shape == (3, 2, 5)
        assert torch.equal(wide.log_prob(values), grey.log_prob(values))
        assert grey.support.check(values).all()
        with pytest.raises(ValueError, match="value: expected integers from 0 to 15, got 16"):
            mixture(16).log_prob(torch.full((5,), 16))
    with pytest.raises(ValueError, match="bins: expected at least 2"):
        DiscretizedLogistic(torch.zeros(1), torch.zeros(1), 1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda z: DiscretizedLogistic(z.numpy(), z), TypeError, "loc: expected a tensor, got nda"),
        (lambda z: DiscretizedLogistic(z, z.tolist()), TypeError, "log_scale: expected a tensor"),
        (lambda z: DiscretizedLogistic(z.long(), z), TypeError, r"loc: .*Write loc\.float"),
        (lambda z: DiscretizedLogistic(z, z, bins=2.5), TypeError, "bins: expected a whole number"),
        (lambda z: DiscretizedLogistic(z, z, bins=1), ValueError, "bins: expected at least 2"),
        (
            lambda z: DiscretizedLogisticMixture(z, z[:2], z),
            ValueError,
            r"broadcast, got logits \(3,\), loc \(2,\), log_scale \(3,\)",
        ),
        (
            lambda z: DiscretizedLogistic(z, z).log_prob(z.numpy()),
            TypeError,
            "value: expected a tensor, got ndarray",
        ),
    ],
)
def test_what_are_no_parameters_is_refused(
    make: Callable[[torch.Tensor], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(torch.zeros(3))
