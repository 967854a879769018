"""Elements: their log probability however a network lays out its numbers, and in half precision."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical

from ppl_gen.distributions import Elements

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
