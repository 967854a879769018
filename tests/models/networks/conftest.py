"""What the tests of several networks need."""

import math
from collections.abc import Callable

import pytest
import torch

from ppl_gen.distributions import AutoregressiveNetwork

Depends = Callable[[AutoregressiveNetwork], torch.Tensor]


@pytest.fixture
def depends() -> Depends:
    """A function that says which numbers change with which element, by changing each.

    It returns (number's element, element), both in the order of sampling.
    """

    @torch.no_grad()
    def found(network: AutoregressiveNetwork) -> torch.Tensor:
        network = network.double().eval()
        for parameter in network.parameters():  # so that what is far away is not lost in rounding
            parameter.mul_(2)
        count, highest = math.prod(network.event_shape), network.elements.highest
        index = torch.arange(count)
        largest = torch.zeros(count, count, dtype=torch.double)
        for _ in range(10):  # a single point may hide a dependence behind a ReLU
            x = torch.randint(highest + 1, (1, count)).double()
            changed = x.repeat(count, 1)
            changed[index, index] = highest - changed[index, index]
            both = torch.cat([x, changed]).reshape(-1, *network.event_shape)
            numbers = network.numbers(both).reshape(count + 1, count, -1)
            largest = torch.maximum(largest, (numbers[1:] - numbers[:1]).abs().amax(-1).T)
        # Rows of one product may be summed up in another order, to rounding: about 1e-15.
        return (largest > 1e-12)[network.order][:, network.order]

    return found
