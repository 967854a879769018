"""Rounded logistic distributions: normalised, drawn as often as probable, right in the tails."""

import math

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
    # A bin beyond the tails is taken by its density, to 1e-5 of its own.
    torch.testing.assert_close(total, torch.ones(5, dtype=torch.double), rtol=0, atol=1e-5)


def test_one_component_is_a_difference_of_logistic_functions() -> None:
    loc, log_scale = torch.tensor([0.2], dtype=torch.double), torch.tensor([-1.5]).double()
    grey = DiscretizedLogistic(loc, log_scale, bins=11)
    edges = (torch.arange(10).double() + 0.5) / 5 - 1
    below = torch.sigmoid((edges - loc) / log_scale.exp())
    expected = torch.diff(below, prepend=torch.zeros(1), append=torch.ones(1)).log()
    torch.testing.assert_close(grey.log_prob(torch.arange(11)), expected)


def test_draws_are_as_frequent_as_they_are_probable() -> None:
    grey = mixture(8)
    drawn = grey.sample((50_000,))
    assert drawn.dtype == torch.long
    for column in range(5):
        counts = torch.bincount(drawn[:, column], minlength=8).double()
        expected = grey.log_prob(grey.enumerate_support())[:, column].exp() * len(drawn)
        large = expected > 5
        statistic = ((counts - expected).square() / expected)[large].sum()
        df = int(large.sum()) - 1
        assert statistic < df + 5 * math.sqrt(2 * df)  # five sds of a chi-squared


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
        with pytest.raises(ValueError, match="support"):
            mixture(16).log_prob(torch.full((5,), 16))
    with pytest.raises(ValueError, match="bins: expected at least 2"):
        DiscretizedLogistic(torch.zeros(1), torch.zeros(1), 1)
