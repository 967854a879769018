"""Images at several scales: what each pixel sees, and the small image, known or drawn first."""

import itertools
import json
import math
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from scipy import stats

from ppl_gen.core.description import PAIRS, describe, is_whole, rebuild
from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.distributions.sampling.native import NativeSampler
from ppl_gen.models import AutoregressiveImage
from ppl_gen.models.networks import (
    MADE,
    DiagonalBiLSTM,
    GatedPixelCNN,
    MultiScale,
    OrderAgnosticMADE,
    PixelCNN,
    PixelCNNPlusPlus,
    RowLSTM,
    WaveNet,
)

FOUR = Elements("categorical", 4)
Network = TypeVar("Network", bound=AutoregressiveNetwork)
Shape = tuple[int, ...]
DRAWS = 5000
Depends = Callable[[AutoregressiveNetwork], torch.Tensor]


def before(count: int) -> torch.Tensor:
    return torch.ones(count, count, dtype=torch.bool).tril(-1)


def coarse_of(shape: Shape, elements: Elements = FOUR) -> GatedPixelCNN:
    return GatedPixelCNN(shape, 12, 3, elements=elements)


def fine_of(shape: Shape, elements: Elements = FOUR, maps: int = 6) -> GatedPixelCNN:
    return GatedPixelCNN(shape, 12, 3, elements=elements, context_maps=maps)


def nested() -> MultiScale:
    """Return a network of 2 x 2 pixels of the 3 x 3 of 5 x 6."""
    return MultiScale(MultiScale(coarse_of((2, 2)), fine_of((3, 3))), fine_of((5, 6)))


SEEING_ALL: dict[str, Callable[[], MultiScale]] = {
    "halves": lambda: MultiScale(coarse_of((3, 3)), fine_of((5, 6))),
    "colours": lambda: MultiScale(coarse_of((3, 2, 2)), fine_of((3, 4, 4))),
    "thirds": lambda: MultiScale(coarse_of((2, 2)), fine_of((5, 6))),
    "columns alone": lambda: MultiScale(coarse_of((4, 2)), fine_of((4, 6))),
    "one pixel": lambda: MultiScale(coarse_of((1, 1)), fine_of((3, 4))),
    "nested": nested,
    "PixelRNN": lambda: MultiScale(
        RowLSTM((2, 3), 12, 2, elements=FOUR), DiagonalBiLSTM((4, 6), 12, 1, FOUR, context_maps=6)
    ),
    "PixelRNN of colours": lambda: MultiScale(
        PixelCNNPlusPlus((3, 2, 3), 12, 1, 2, elements=FOUR),
        DiagonalBiLSTM((3, 3, 5), 12, 1, FOUR, context_maps=6),
    ),
    "a coarse MADE": lambda: MultiScale(
        MADE((3, 3), (150, 120), FOUR), GatedPixelCNN((5, 5), 12, 3, elements=FOUR, context_maps=6)
    ),
}


@pytest.mark.parametrize("name", SEEING_ALL)
def test_a_pixel_sees_the_small_image_and_what_is_before(name: str, depends: Depends) -> None:
    torch.manual_seed(1)
    network = SEEING_ALL[name]()
    assert torch.equal(depends(network), before(len(network.order)))


def test_the_small_image_comes_first() -> None:
    order = nested().order
    grid = torch.arange(30).reshape(5, 6)
    # Every fourth pixel, the rest of every second one, and the rest, each in reading order.
    smallest, small = grid[::4, ::4].flatten().tolist(), grid[::2, ::2].flatten().tolist()
    between = [place for place in small if place not in smallest]
    assert order.tolist() == smallest + between + [p for p in range(30) if p not in small]
    colours = MultiScale(coarse_of((3, 1, 1)), fine_of((3, 1, 2))).order
    assert colours.tolist() == [0, 2, 4, 1, 3, 5]  # channels within a pixel


def test_a_coarse_pixel_far_ahead_is_seen_by_as_many_layers(depends: Depends) -> None:
    torch.manual_seed(1)
    # Of 1 x 8 small pixels the first one of the others, the second column, sees so many.
    seen = []
    for layers in (1, 3):
        fine = GatedPixelCNN((1, 16), 12, 1, elements=FOUR, context_maps=6)
        network = MultiScale(coarse_of((1, 8)), fine, layers=layers)
        seen.append(int(depends(network)[8].sum()))
    assert seen == [1 + 1, 1 + 3]


class TellsAll(MultiScale):
    """Its fine network sees its own pixel through the context."""

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        coarse = self.coarse.numbers(x[..., ::2, ::2])
        return self._joined(coarse, self.fine.numbers(x, x.unsqueeze(1)))


class Averaged(MultiScale):
    """Its coarse network sees sums of pixels, as other pyramids have means of them."""

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        small = x[..., ::2, ::2] + x[..., 1::2, 1::2]
        told = self.upsampling(x[:, None, ::2, ::2], None)
        return self._joined(self.coarse.numbers(small), self.fine.numbers(x, told))


class NotJoined(MultiScale):
    """All numbers are those of the fine network, which is told the small image."""

    def _joined(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        return fine


class InReadingOrder(MultiScale):
    """The pixels between are drawn before the small image is whole."""

    def __init__(self, coarse: AutoregressiveNetwork, fine: AutoregressiveNetwork) -> None:
        super().__init__(coarse, fine)
        self.order = fine.order


@pytest.mark.parametrize("broken", [TellsAll, Averaged, NotJoined, InReadingOrder])
def test_what_sees_too_much_is_found(broken: Callable[..., MultiScale], depends: Depends) -> None:
    torch.manual_seed(1)
    network = broken(coarse_of((2, 2)), fine_of((4, 4), maps=1))
    assert (depends(network) & ~before(16)).any()
    with pytest.raises(ValueError, match=r"depend on element .* not come before it"):
        NativeSampler(network)


# ---- 3 x 3 binary images, of which the corners are the small one


def all_images() -> torch.Tensor:
    """All binary images, (512, 3, 3)."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=9))).reshape(-1, 3, 3).double()


def larger(network: Network) -> Network:
    """Return a network of twice the weights, so that elements depend on each other."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    return network.double().eval()


def binary(broken: type[MultiScale] = MultiScale) -> MultiScale:
    torch.manual_seed(0)
    coarse = GatedPixelCNN((2, 2), 6, 2)
    return larger(broken(coarse, GatedPixelCNN((3, 3), 6, 2, context_maps=4), 8))


@torch.no_grad()
def test_the_small_image_has_the_density_of_the_coarse_network() -> None:
    network, every = binary(), all_images()
    probabilities = network().log_prob(every).exp()
    for corners in itertools.product((0.0, 1.0), repeat=4):
        small = torch.tensor(corners).reshape(2, 2).double()
        agrees = (every[:, ::2, ::2] == small).flatten(1).all(1)
        expected = float(network.coarse().log_prob(small).exp())
        assert float(probabilities[agrees].sum()) == pytest.approx(expected, rel=1e-12)
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)


@torch.no_grad()
def test_what_sees_its_own_pixel_does_not_sum_to_one() -> None:
    total = binary(NotJoined)().log_prob(all_images()).exp().sum()
    assert abs(float(total) - 1) > 0.01


def p_value(network: AutoregressiveNetwork, given: torch.Tensor) -> float:
    """Return that of Pearson's test of so many draws with the conditional by enumeration."""
    every, known = all_images(), ~given.isnan()
    agrees = (every[:, known] == given[known]).all(1)
    with torch.no_grad():
        conditional = network().log_prob(every[agrees]).softmax(0)
    drawn = network().sample((DRAWS,), given=given)
    assert torch.equal(drawn[:, known], given[known].expand(DRAWS, -1))
    powers = 2 ** torch.arange(int((~known).sum())).flip(0)
    counts = torch.bincount((drawn[:, ~known].long() * powers).sum(1), minlength=len(conditional))
    expected = DRAWS * conditional
    assert expected.min() > 5  # so that the statistic is about chi-squared
    return float(stats.chisquare(counts.numpy(), expected.numpy()).pvalue)


def test_given_a_small_image_larger_ones_are_drawn_from_their_distribution() -> None:
    given = torch.full((3, 3), math.nan).double()
    given[::2, ::2] = torch.tensor([[1, 0], [0, 1]])
    # One seed of a million has a smaller one.
    assert p_value(binary(), given) > 1e-6
    # In reading order pixels are drawn without what is given below them.
    torch.manual_seed(3)  # of weights by which pixels depend on each other more than by others
    assert p_value(larger(GatedPixelCNN((3, 3), 6, 2)), given) < 1e-6


@torch.no_grad()
def test_both_networks_are_told_a_class() -> None:
    torch.manual_seed(0)
    coarse = GatedPixelCNN((2, 2), 4, 2, context_size=3)
    network = MultiScale(coarse, fine_of((4, 4), Elements()), 8)
    x = torch.zeros(3, 4, 4)
    numbers = network.numbers(x, torch.eye(3))
    assert ((numbers[0] - numbers[1]).abs() > 1e-6).all()


def test_it_is_rebuilt_within_a_pair() -> None:
    pair = AutoregressiveImage(nested())
    described = json.loads(json.dumps(describe(pair, PAIRS)))
    assert is_whole(described)
    again = rebuild(described, PAIRS)
    assert isinstance(again, AutoregressiveImage)
    again.load_state_dict(pair.state_dict())
    x = torch.randint(4, (7, 5, 6))
    with torch.no_grad():
        assert torch.equal(again.log_prob(x), pair.log_prob(x))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: MultiScale(coarse_of((3, 5)), fine_of((8, 8))),
            ValueError,
            r"coarse: expected images of every s-th pixel .* of \(8, 8\).* got \(3, 5\).* s = 2",
        ),
        (  # every second pixel are 5 x 2, and every third 4 x 1
            lambda: MultiScale(coarse_of((6, 1)), fine_of((10, 4))),
            ValueError,
            r"got \(6, 1\).* they are \(5, 2\)",
        ),
        (
            lambda: MultiScale(coarse_of((8, 8)), fine_of((8, 8))),
            ValueError,
            r"got \(8, 8\).* they are \(4, 4\)",
        ),
        (
            lambda: MultiScale(coarse_of((4, 4)), fine_of((3, 8, 8))),
            ValueError,
            r"as many channels, got \(4, 4\).* they are \(3, 4, 4\)",
        ),
        (
            lambda: MultiScale(coarse_of((4, 4)), fine_of((8, 8), Elements())),
            ValueError,
            "fine: expected the elements of coarse, .*categorical.*, got .*bernoulli.*elements=",
        ),
        (
            lambda: MultiScale(coarse_of((4, 4)), coarse_of((8, 8))),
            ValueError,
            r"fine: expected .* feature maps .*\(maps, 8, 8\), got none.*with context_maps=",
        ),
        (
            lambda: MultiScale(coarse_of((4, 4)), PixelCNN((8, 8), 12, 1, FOUR, context_size=5)),
            ValueError,
            r"\(maps, 8, 8\), got a context of shape \(5,\).*without context_size=",
        ),
        (
            lambda: MultiScale(fine_of((4, 4)), fine_of((8, 8))),
            ValueError,
            r"coarse: expected .* with a vector .*, got a context of shape \(6, 4, 4\)",
        ),
        (
            lambda: MultiScale(WaveNet(16, elements=FOUR), fine_of((8, 8))),
            ValueError,
            r"coarse: expected a network of images, .* got event_shape=\(16,\)",
        ),
        (
            lambda: MultiScale(OrderAgnosticMADE((4, 4), (8,), FOUR), fine_of((8, 8))),
            ValueError,
            "coarse: expected a network of one ordering, such as MADE, got OrderAgnosticMADE",
        ),
        (
            lambda: MultiScale(coarse_of((4, 4)), torch.nn.Linear(1, 1)),
            TypeError,
            "fine: expected an autoregressive network, got Linear",
        ),
        (
            lambda: MultiScale(coarse_of((4, 4)), fine_of((8, 8)), layers=0),
            ValueError,
            "layers: expected at least 1, got 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    make: Callable[[], MultiScale], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()
