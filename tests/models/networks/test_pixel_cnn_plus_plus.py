"""PixelCNN++: what each pixel sees at any size, its channels' joint density, its dropout."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from ppl_gen.distributions import AutoregressiveNetwork, DiscretizedLogistic, Elements
from ppl_gen.models.networks import PixelCNNPlusPlus, channel_coupling
from ppl_gen.models.networks.channel_coupling import _log_prob, coupled_numbers, num_coupled

FOUR = Elements("categorical", 4)
MIXED = Elements("logistic_mixture", 4, 3)
Depends = Callable[[AutoregressiveNetwork], torch.Tensor]


@pytest.mark.parametrize("elements", [FOUR, MIXED], ids=lambda e: e.likelihood)
@pytest.mark.parametrize(
    ("shape", "sizes"), [((5, 6), 3), ((7, 5), 3), ((4, 9), 2), ((4, 4), 1), ((3, 4, 5), 3)]
)
def test_it_sees_all_before(
    shape: tuple[int, ...], sizes: int, elements: Elements, depends: Depends
) -> None:
    torch.manual_seed(1)
    network = PixelCNNPlusPlus(shape, 6, 2, sizes, elements=elements)
    found = depends(network)
    assert torch.equal(found, torch.ones_like(found).tril(-1))


def test_channels_share_the_component_of_a_mixture() -> None:
    torch.manual_seed(0)
    bins, components, channels = 5, 3, 3
    elements = Elements("logistic_mixture", bins, components)
    every = torch.tensor(list(itertools.product(range(bins), repeat=channels))).double()
    # One pixel's features for all its values: weights, log scales, locations, coefficients.
    features = torch.randn(1, num_coupled(elements, channels), 1, 1).double()
    logits, *rest = features.reshape(-1, components)
    log_scale, loc, (red_green, red_blue, green_blue) = rest[:3], rest[3:6], rest[6:]
    level = every / 2 - 1
    red, green = level[:, :1], level[:, 1:2]
    means = (
        loc[0].expand(len(every), -1),
        loc[1] + red_green.tanh() * red,
        loc[2] + red_blue.tanh() * red + green_blue.tanh() * green,
    )
    density = logits.softmax(-1).expand(len(every), -1)
    apart = torch.ones(len(every)).double()
    for channel, mean in enumerate(means):
        value, scale = level[:, channel, None], log_scale[channel].exp()
        upper = ((value + 0.25 - mean) / scale).masked_fill(value > 0.9, torch.inf)
        lower = ((value - 0.25 - mean) / scale).masked_fill(value < -0.9, -torch.inf)
        mass = upper.sigmoid() - lower.sigmoid()
        density = density * mass
        apart = apart * (logits.softmax(-1) * mass).sum(-1)
    x = every[:, :, None, None]
    numbers = coupled_numbers(features.expand(len(x), -1, -1, -1), x, elements)
    found = elements.log_prob(numbers, x).sum((1, 2, 3))
    # softplus is linear beyond 20, which leaves exp(-20) = 2e-9 out.
    torch.testing.assert_close(found, density.sum(-1).log(), rtol=0, atol=1e-8)
    assert float(density.sum()) == pytest.approx(1.0, abs=1e-9)
    assert (found - apart.log()).abs().max() > 0.1  # a component for each channel is another one


def test_a_component_is_a_discretized_logistic() -> None:
    torch.manual_seed(0)
    loc, log_scale = torch.randn(2, 50).double()
    log_scale = log_scale * 3
    value = torch.arange(16).double()[:, None]
    found = _log_prob(value, 2 * value / 15 - 1 - loc, log_scale, 16)
    expected = DiscretizedLogistic(loc, log_scale, bins=16).log_prob(value)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_channels_of_other_elements_depend_on_those_before_linearly() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, num_coupled(FOUR, 3), 1, 1).double()
    own, (red_green, red_blue, green_blue) = features.reshape(6, 4).split(3)
    x = torch.tensor([3.0, 1.0, 2.0]).double().reshape(1, 3, 1, 1)
    numbers = coupled_numbers(features, x, FOUR)[0, :, 0, 0]
    red, green = 1.0, -1 / 3
    expected = [own[0], own[1] + red_green * red, own[2] + red_blue * red + green_blue * green]
    torch.testing.assert_close(numbers, torch.stack(expected))


@pytest.mark.parametrize("elements", [Elements(), FOUR, MIXED], ids=lambda e: e.likelihood)
def test_gradients_are_finite_however_large_the_features(elements: Elements) -> None:
    torch.manual_seed(0)
    features = torch.randn(1, num_coupled(elements, 3), 2, 2)
    x = torch.randint(elements.highest + 1, (1, 3, 2, 2)).float()
    x[..., 0, 0], x[..., 0, 1] = 0, elements.highest
    for size in (1e2, 1e10, 1e20, 3e38, math.inf):
        for huge in (features.sign() * size, torch.where(features > 1, size, features)):
            huge = huge.requires_grad_()
            log_prob = elements.log_prob(coupled_numbers(huge, x, elements), x)
            (gradient,) = torch.autograd.grad(log_prob.sum(), huge)
            assert bool(log_prob.isfinite().all())
            assert bool(gradient.isfinite().all())


def test_numbers_far_from_the_bounds_are_as_if_there_were_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    features, x = 3 * torch.randn(4, num_coupled(MIXED, 3), 2, 2), torch.randint(4, (4, 3, 2, 2))
    numbers = coupled_numbers(features, x, MIXED)
    monkeypatch.setattr(channel_coupling, "_bounded", lambda x, least, most: x)
    assert torch.equal(coupled_numbers(features, x, MIXED), numbers)
    monkeypatch.setattr(channel_coupling, "_bounded", lambda x, least, most: x.clamp(-1, 1))
    assert not torch.equal(coupled_numbers(features, x, MIXED), numbers)


def test_features_are_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    network = PixelCNNPlusPlus((6, 6), 8, 1, 2, elements=FOUR)
    x = torch.randint(4, (2, 6, 6))
    assert not torch.equal(network().log_prob(x), network().log_prob(x))
    network.eval()
    assert torch.equal(network().log_prob(x), network().log_prob(x))
    whole = PixelCNNPlusPlus((6, 6), 8, 1, 2, dropout=0.0, elements=FOUR)
    assert torch.equal(whole().log_prob(x), whole().log_prob(x))
