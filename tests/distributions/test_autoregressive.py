"""Autoregressive networks as distributions: causal, normalised, and sampled from as they say."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from ppl_gen.distributions import Autoregressive, AutoregressiveNetwork, Elements
from ppl_gen.models.networks import FVBN, MADE, NADE, GatedPixelCNN, PixelCNN, WaveNet

BINARY = Elements()
FOUR = Elements("categorical", 4)
MIXED = Elements("logistic_mixture", 4, 3)
IMAGE, COLOUR = (5, 6), (3, 4, 4)
Make = Callable[[tuple[int, ...], Elements, int | None], AutoregressiveNetwork]


def made(shape: tuple[int, ...], elements: Elements, context: int | None) -> AutoregressiveNetwork:
    return MADE(shape, (150, 120), elements, context)


def fvbn(shape: tuple[int, ...], elements: Elements, context: int | None) -> AutoregressiveNetwork:
    return FVBN(shape, elements, context)


def nade(shape: tuple[int, ...], elements: Elements, context: int | None) -> AutoregressiveNetwork:
    return NADE(shape, 20, elements, context)


def pixel_cnn(
    shape: tuple[int, ...], elements: Elements, context: int | None
) -> AutoregressiveNetwork:
    return PixelCNN(shape, 12, 3, elements, context)


def gated(shape: tuple[int, ...], elements: Elements, context: int | None) -> AutoregressiveNetwork:
    return GatedPixelCNN(shape, 12, 3, elements=elements, context_size=context)


def wavenet(
    shape: tuple[int, ...], elements: Elements, context: int | None
) -> AutoregressiveNetwork:
    return WaveNet(math.prod(shape), 8, 8, 6, 3, elements, context)


DENSE = [made, fvbn, nade]
IMAGES = [*DENSE, pixel_cnn, gated]
ALL = [*IMAGES, wavenet]


def depends(network: AutoregressiveNetwork, elements: Elements) -> torch.Tensor:
    """Return which numbers change with which element, (number's element, element)."""
    network = network.double()
    torch.manual_seed(0)
    count = math.prod(network.event_shape)
    highest = 1 if elements.likelihood == "bernoulli" else elements.categories - 1
    found = torch.zeros(count, count, dtype=torch.bool)
    for _ in range(20):  # a single point may hide a dependence behind a ReLU
        x = torch.randint(highest + 1, (1, count)).double()
        changed = x.repeat(count, 1)
        index = torch.arange(count)
        changed[index, index] = highest - changed[index, index]
        both = torch.cat([x, changed]).reshape(-1, *network.event_shape)
        numbers = network.numbers(both).reshape(count + 1, count, -1)
        # Rows of one product may be summed up in another order.
        found |= ((numbers[1:] - numbers[:1]).abs() > 1e-12).any(-1).T
    return found


@pytest.mark.parametrize("shape", [IMAGE, COLOUR])
@pytest.mark.parametrize("make", IMAGES)
def test_numbers_depend_on_what_comes_before(make: Make, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    found = depends(make(shape, FOUR, None), FOUR)
    if len(shape) == 3 and make not in DENSE:
        # Channels come within a pixel: from (channel, row, column) to reading order.
        order = torch.arange(math.prod(shape)).reshape(shape).permute(1, 2, 0).flatten()
        found = found[order][:, order]
    before = torch.ones_like(found).tril(-1)
    if make is not pixel_cnn:
        assert torch.equal(found, before)
        return
    assert not (found & ~before).any()
    # Its blind spot: of the row above, only so many columns to the right are seen.
    missing = before & ~found
    assert missing.any() == (shape == IMAGE)  # three layers see all of the small one


def test_a_wave_depends_on_its_receptive_field() -> None:
    torch.manual_seed(0)
    network = WaveNet(20, 8, 8, 4, 3, FOUR)
    found = depends(network, FOUR)
    lag = torch.arange(20)[:, None] - torch.arange(20)
    assert torch.equal(found, (lag > 0) & (lag <= network.receptive_field))


@pytest.mark.parametrize("make", ALL)
def test_binary_images_sum_to_one(make: Make) -> None:
    torch.manual_seed(0)
    shape = (16,) if make is wavenet else (4, 4)
    network = make(shape, BINARY, 3).double()
    for parameter in network.parameters():
        parameter.data.mul_(3)
    every = (torch.arange(2**16)[:, None] >> torch.arange(16)) & 1
    with torch.no_grad():
        context = torch.randn(3, dtype=torch.double)
        total = sum(
            network(context).log_prob(rows.reshape(-1, *shape).double()).exp().sum()
            for rows in every.split(2**13)
        )
    assert float(total) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("elements", [FOUR, MIXED])
@pytest.mark.parametrize("make", [made, gated, wavenet])
def test_categories_sum_to_one(make: Make, elements: Elements) -> None:
    torch.manual_seed(0)
    shape = (4,) if make is wavenet else (2, 2)
    network = make(shape, elements, None).double()
    every = torch.tensor(list(itertools.product(range(4), repeat=4))).reshape(-1, *shape)
    with torch.no_grad():
        total = network().log_prob(every).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("elements", [BINARY, FOUR, MIXED])
@pytest.mark.parametrize("make", [made, gated, wavenet])
def test_draws_are_as_frequent_as_they_are_probable(make: Make, elements: Elements) -> None:
    torch.manual_seed(0)
    shape = (3,) if make is wavenet else (1, 3)
    network = make(shape, elements, None).double()
    for parameter in network.parameters():
        parameter.data.mul_(2)
    values = 2 if elements is BINARY else 4
    every = torch.tensor(list(itertools.product(range(values), repeat=3))).reshape(-1, *shape)
    drawn = network().sample((20_000,)).flatten(1).long()
    place = (drawn * torch.tensor([values**2, values, 1])).sum(-1)
    counts = torch.bincount(place, minlength=values**3).double()
    with torch.no_grad():
        expected = network().log_prob(every).exp() * len(drawn)
    # Pearson's statistic has a mean of df and a variance of 2 df, about; five sds.
    large = expected > 5
    statistic = ((counts - expected).square() / expected)[large].sum()
    df = int(large.sum())
    assert statistic < df + 5 * math.sqrt(2 * df)


def test_an_ordering_is_a_permutation_of_the_same_network() -> None:
    torch.manual_seed(0)
    network = MADE((3, 2), (20,), FOUR).double()
    ordering = torch.randperm(6)
    x = torch.randint(4, (5, 3, 2))
    plain = network().log_prob(x.flatten(1)[:, ordering].reshape(5, 3, 2))
    assert torch.equal(network(ordering=ordering).log_prob(x), plain)
    drawn = network(ordering=ordering).sample((20_000,)).flatten(1)[:, ordering].double()
    same = network().sample((20_000,)).flatten(1).double()
    # Means of numbers from 0 to 3, whose sd is at most 1.5: five errors of their difference.
    assert ((drawn.mean(0) - same.mean(0)).abs() < 5 * 1.5 * math.sqrt(2 / 20_000)).all()
    with pytest.raises(ValueError, match="permutation of the numbers from 0 to 5"):
        network(ordering=torch.zeros(6, dtype=torch.long))


def test_shapes_under_plates_and_expand() -> None:
    network = MADE((2, 2), (8,), BINARY, context_size=3)
    images = network(torch.randn(4, 1, 3))
    assert images.batch_shape == (4, 1)
    wide = images.expand((5, 4, 7))
    assert wide.sample((2,)).shape == (2, 5, 4, 7, 2, 2)
    x = wide.sample()
    assert torch.allclose(wide.log_prob(x), images.log_prob(x))
    assert wide.log_prob(x).shape == (5, 4, 7)
    assert images.support.check(x).all()


def test_a_context_of_another_shape_is_refused() -> None:
    network = MADE((2, 2), (8,), BINARY, context_size=3)
    with pytest.raises(ValueError, match=r"expected shape \(\*batch, 3\), got \(4, 2\)"):
        network(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="got none"):
        network()
    with pytest.raises(ValueError, match="expected none"):
        Autoregressive(MADE((2, 2), (8,)), torch.zeros(3))
