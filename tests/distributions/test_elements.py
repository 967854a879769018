"""Elements: their log probability however a network lays out its numbers, and in half precision."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical

from ppl_gen.distributions import Elements
from ppl_gen.models.networks import MADE

FIVE = Elements("categorical", 5)


@pytest.mark.parametrize("batch", [(), (4,), (4, 6), (2, 3, 4)])
def test_categories_next_to_each_other_or_far_apart(batch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randint(5, batch)
    near = torch.randn(*batch, 5, dtype=torch.double)
    expected = Categorical(logits=near).log_prob(x)
    far = near.movedim(-1, 0).contiguous().movedim(0, -1)
    for numbers in (near, far):
        assert torch.allclose(FIVE.log_prob(numbers, x.double()), expected)


@pytest.mark.parametrize("elements", [Elements(), FIVE, Elements("logistic_mixture", 5, 2)])
def test_half_precision_is_left_before_anything_is_summed_up(elements: Elements) -> None:
    torch.manual_seed(0)
    x = torch.randint(2, (100,))
    numbers = torch.randn(100, elements.num_outputs).bfloat16()
    found = elements.log_prob(numbers, x)
    assert found.dtype == torch.float32
    assert torch.equal(found, elements.log_prob(numbers.float(), x))


def test_draws_of_half_precision_are_of_what_it_says() -> None:
    torch.manual_seed(0)
    # 1 - 0.001 is 1 in bfloat16, and so is the sum of many small probabilities in float16.
    binary = MADE((16,), (8,)).bfloat16()
    many = MADE((8,), (8,), Elements("categorical", 1000)).half()
    with torch.no_grad():
        for parameter in (*binary.parameters(), *many.parameters()):
            parameter.zero_()
        bias = binary.layers[-1].bias
        assert isinstance(bias, torch.Tensor)
        bias.fill_(-6.9)
    drawn = binary().sample((50_000,))
    assert drawn.dtype == torch.bfloat16
    # The sd of 800,000 draws of 0.001 is 3.5e-5: five of it.
    share = float(torch.tensor(-6.9).bfloat16().float().sigmoid())
    assert abs(float(drawn.float().mean()) - share) < 1.8e-4
    counts = torch.bincount(many().sample((1000,)).flatten(), minlength=1000)
    # Pearson's statistic of 8,000 draws has a mean of 999 and a variance of twice that: five sds.
    assert float((counts - 8).square().sum() / 8) < 999 + 5 * 1998**0.5


@pytest.mark.parametrize(("p", "top_p"), [(0.9, 0.8), (0.1, 0.8), (0.7, 0.8), (0.5, 1e-12)])
def test_of_two_values_the_likelier_one_alone_may_be_kept(p: float, top_p: float) -> None:
    numbers = torch.full((1001, 1), p).double().logit()
    uniforms = torch.linspace(0, 1 - 1e-6, 1001).double()
    binary = Elements().draw(numbers, uniforms, 1.0, top_p)
    # As of two categories.
    two = Elements("categorical", 2).draw(
        torch.cat([torch.zeros_like(numbers), numbers], 1), uniforms, 1.0, top_p
    )
    assert torch.equal(binary, two)
    assert float(binary.mean()) == pytest.approx(
        round(p) if max(p, 1 - p) >= top_p and p != 0.5 else p, abs=2e-3
    )


@pytest.mark.parametrize("size", [-1e30, -100.0, 100.0, 1e30])
def test_scales_out_of_bounds_have_finite_gradients(size: float) -> None:
    numbers = torch.zeros(4, 6)
    numbers[:, 4:] = size
    numbers.requires_grad_()
    mixture = Elements("logistic_mixture", 256, 2)
    log_prob = mixture.log_prob(numbers, torch.tensor([0, 1, 128, 255]))
    (gradient,) = torch.autograd.grad(log_prob.sum(), numbers)
    assert bool(log_prob.isfinite().all())
    assert bool(gradient.isfinite().all())


def test_what_are_no_categories_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown likelihood 'bernouli'.*mean 'bernoulli'"):
        Elements("bernouli")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="categories: expected at least 2, got 1"):
        Elements("categorical", 1)
    for name in ("categories", "components"):
        for wrong in (2.0, True, "4"):
            with pytest.raises(TypeError, match=f"{name}: expected a whole number, got {wrong!r}"):
                Elements("categorical", **{name: wrong})
