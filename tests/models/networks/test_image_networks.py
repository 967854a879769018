"""What holds of every network of images: normalised, sampled from as it says, told by a context."""

import itertools
import json
import math
from collections.abc import Callable

import pytest
import torch

from ppl_gen.core.description import describe, rebuild
from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.distributions.sampling.draw import Options
from ppl_gen.distributions.sampling.native import NativeSampler
from ppl_gen.distributions.sampling.reference import draw_naively
from ppl_gen.models.networks import (
    DiagonalBiLSTM,
    GatedPixelCNN,
    MultiScale,
    PixelCNN,
    PixelCNNPlusPlus,
    RowLSTM,
)

NETWORKS = "ppl_gen.models.networks"
BINARY = Elements()
FOUR = Elements("categorical", 4)
MIXED = Elements("logistic_mixture", 4, 3)
Make = Callable[[tuple[int, ...], Elements, int | None], AutoregressiveNetwork]


def multi_scale(
    shape: tuple[int, ...], elements: Elements, context: int | None, features: int = 6
) -> MultiScale:
    """Return a network of images of half the size, rounded up, and one of whole images."""
    half = (*shape[:-2], *(-(-size // 2) for size in shape[-2:]))
    coarse = GatedPixelCNN(half, features, 2, elements=elements, context_size=context)
    fine = GatedPixelCNN(shape, features, 2, elements=elements, context_maps=3)
    return MultiScale(coarse, fine, features, layers=2)


# Beside those whose tests are in tests/distributions/test_autoregressive.py.
OTHERS: dict[str, Make] = {
    "RowLSTM": lambda s, e, c: RowLSTM(s, 6, 2, elements=e, context_size=c),
    "DiagonalBiLSTM": lambda s, e, c: DiagonalBiLSTM(s, 6, 2, e, c),
    "PixelCNNPlusPlus": lambda s, e, c: PixelCNNPlusPlus(s, 6, 1, 2, elements=e, context_size=c),
    "MultiScale": multi_scale,
}
SMALL: dict[str, Make] = {
    "RowLSTM": lambda s, e, c: RowLSTM(s, 2, 1, elements=e, context_size=c),
    "DiagonalBiLSTM": lambda s, e, c: DiagonalBiLSTM(s, 2, 1, e, c),
    "PixelCNNPlusPlus": lambda s, e, c: PixelCNNPlusPlus(s, 2, 1, 2, elements=e, context_size=c),
    "MultiScale": lambda s, e, c: multi_scale(s, e, c, features=2),
}
ALL: dict[str, Make] = {
    "PixelCNN": lambda s, e, c: PixelCNN(s, 12, 2, e, c),
    "GatedPixelCNN": lambda s, e, c: GatedPixelCNN(s, 6, 2, elements=e, context_size=c),
    **OTHERS,
}


def made(
    make: Make, shape: tuple[int, ...], elements: Elements, context: int | None = None
) -> AutoregressiveNetwork:
    """Return a network whose numbers are far from those of no information."""
    torch.manual_seed(0)
    network = make(shape, elements, context).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    return network


@pytest.fixture(params=OTHERS)
def make(request: pytest.FixtureRequest) -> Make:
    return OTHERS[request.param]


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_binary_images_sum_to_one(name: str) -> None:
    images = made(SMALL[name], (4, 4), BINARY, 3)(torch.randn(3).double())
    every = (torch.arange(2**16)[:, None] >> torch.arange(16)) & 1
    total = sum(images.log_prob(rows.reshape(-1, 4, 4)).exp().sum() for rows in every.split(2**11))
    assert float(total) == pytest.approx(1.0, abs=1e-9)


@torch.no_grad()
@pytest.mark.parametrize(
    "elements",
    [Elements("categorical", 3), Elements("logistic_mixture", 3, 2)],
    ids=lambda e: e.likelihood,
)
@pytest.mark.parametrize("name", SMALL)
def test_colours_sum_to_one(name: str, elements: Elements) -> None:
    every = torch.tensor(list(itertools.product(range(3), repeat=8))).reshape(-1, 2, 2, 2)
    total = made(SMALL[name], (2, 2, 2), elements)().log_prob(every).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("shape", [(4, 5), (3, 2, 3)])
@pytest.mark.parametrize("elements", [BINARY, FOUR, MIXED], ids=lambda e: e.likelihood)
def test_compiled_draws_are_those_of_the_network(
    make: Make, elements: Elements, shape: tuple[int, ...]
) -> None:
    network = made(make, shape, elements, 2)
    uniforms = torch.rand(20, len(network.order)).double()
    context = torch.randn(20, 2).double()
    naive = draw_naively(network, uniforms, context, None, Options())[:, network.order]
    found = NativeSampler(network).sample(uniforms[:, network.order].numpy(), context)
    assert torch.equal(torch.from_numpy(found), naive)
    assert len(naive.unique(dim=0)) == 20  # they differ between rows


@torch.no_grad()
def test_each_image_has_its_own_context(make: Make) -> None:
    network = made(make, (3, 4, 5), FOUR, 3)
    x, context = torch.randint(4, (5, 3, 4, 5)), torch.randn(5, 3).double()
    together = network(context).log_prob(x)
    alone = torch.stack([network(context[i]).log_prob(x[i]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)
    assert (together - network(context.flip(0)).log_prob(x))[[0, 1, 3, 4]].abs().min() > 1e-3


def test_every_parameter_is_trained(make: Make) -> None:
    network = made(make, (3, 4, 5), MIXED, 3)
    context = torch.randn(8, 3).double()
    network(context).log_prob(torch.randint(4, (8, 3, 4, 5))).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_it_is_rebuilt_from_its_arguments(make: Make) -> None:
    network = made(make, (3, 4, 5), MIXED, 2)
    described = json.loads(json.dumps(describe(network, NETWORKS)))
    again = rebuild(described, NETWORKS).double().eval()
    again.load_state_dict(network.state_dict())
    x, context = torch.randint(4, (2, 3, 4, 5)), torch.randn(2).double()
    assert torch.equal(again(context).log_prob(x), network(context).log_prob(x))


@torch.no_grad()
@pytest.mark.parametrize("name", ALL)
def test_bits_of_an_untrained_softmax(name: str) -> None:
    torch.manual_seed(0)
    shape = (3, 8, 8)
    network = ALL[name](shape, Elements("categorical", 256), None).eval()
    x = torch.randint(256, (20, *shape))
    bits = -network().log_prob(x).mean() / (math.prod(shape) * math.log(2))
    # Levels drawn evenly, independent of the numbers: log 256 + the mean of log-sum-exp less log
    # 256 and the mean logit, which is half their variance s^2 for small ones; plus noise, of which
    # N levels leave s / sqrt(N). Five of these, and s^3 for what follows in the series, in bits.
    spread = float(network.numbers(x.float()).std(-1).square().mean().sqrt())
    assert spread < 0.5
    error = 5 * spread / math.sqrt(x.numel()) + spread**3
    expected = 8 + spread**2 / 2 / math.log(2)
    assert float(bits) == pytest.approx(expected, abs=error / math.log(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RowLSTM((8, 8), kernel_size=4), "kernel_size: expected an odd number.*got 4"),
        (lambda: RowLSTM((8, 8), kernel_size=0), "kernel_size: expected at least 1, got 0"),
        (lambda: RowLSTM((3, 8, 8), 16), "features: expected a multiple of 3.*got 16"),
        (lambda: DiagonalBiLSTM((3, 8, 8), 16), "features: expected a multiple of 3.*got 16"),
        (lambda: DiagonalBiLSTM((8, 8), layers=0), "layers: expected at least 1, got 0"),
        (lambda: DiagonalBiLSTM((8,)), r"image_shape: expected \(height, width\)"),
        (lambda: GatedPixelCNN((8, 8), layers=0), "layers: expected at least 1, got 0"),
        (lambda: PixelCNN((8, 8), layers=0), "layers: expected at least 1, got 0"),
        (lambda: PixelCNN((8, 8), features=0), "features: expected at least 1, got 0"),
        (lambda: PixelCNNPlusPlus((3, 9)), "at least 4 x 4 pixels.*got 3 x 9.*fewer sizes"),
        (lambda: PixelCNNPlusPlus((8, 8), dropout=1.0), "dropout: expected .* got 1.0"),
        (lambda: PixelCNNPlusPlus((8, 8), sizes=0), "sizes: expected at least 1, got 0"),
    ],
)
def test_what_is_out_of_range_is_refused(
    make: Callable[[], AutoregressiveNetwork], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()
