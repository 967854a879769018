"""Autoregressive networks as distributions: causal, normalised, and sampled from as they say."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
import torch.nn.functional as F

from ppl_gen.distributions import Autoregressive, AutoregressiveNetwork, Elements
from ppl_gen.models.networks import (
    FVBN,
    MADE,
    NADE,
    DiagonalBiLSTM,
    GatedPixelCNN,
    OrderAgnosticMADE,
    PixelCNN,
    PixelCNNPlusPlus,
    RowLSTM,
    WaveNet,
)

BINARY = Elements()
FOUR = Elements("categorical", 4)
IMAGE, COLOUR = (5, 6), (3, 4, 4)
Make = Callable[[tuple[int, ...], Elements, int | None], AutoregressiveNetwork]


def made(shape: tuple[int, ...], elements: Elements, context: int | None) -> AutoregressiveNetwork:
    # Past the hidden layers each element would be seen in any case.
    return MADE(shape, (150, 120), elements, context, direct_connections=False)


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


EVERY: list[Any] = [
    FVBN,
    MADE,
    NADE,
    OrderAgnosticMADE,
    PixelCNN,
    GatedPixelCNN,
    PixelCNNPlusPlus,
    RowLSTM,
    DiagonalBiLSTM,
    WaveNet,
]
DENSE = [made, fvbn, nade]
IMAGES = [*DENSE, pixel_cnn, gated]


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


# Small ones, for the sum is over 65,536 images. Those of the other networks of images are beside
# them, in tests/models/networks.
SMALL: dict[str, Callable[[], AutoregressiveNetwork]] = {
    "FVBN": lambda: FVBN((4, 4), BINARY, 3),
    "NADE": lambda: NADE((4, 4), 8, BINARY, 3),
    "MADE": lambda: MADE((4, 4), (30, 20), BINARY, 3),
    "OrderAgnosticMADE": lambda: OrderAgnosticMADE((4, 4), (30,), BINARY, 3, num_orderings=2),
    "PixelCNN": lambda: PixelCNN((4, 4), 4, 3, BINARY, 3),
    "GatedPixelCNN": lambda: GatedPixelCNN((4, 4), 4, 2, elements=BINARY, context_size=3),
    "WaveNet": lambda: WaveNet(16, 4, 4, 4, 4, BINARY, 3),
}


@pytest.mark.parametrize("name", SMALL)
def test_binary_images_sum_to_one(name: str) -> None:
    torch.manual_seed(0)
    network = SMALL[name]().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
        images = network(torch.randn(3))
        every = ((torch.arange(2**16)[:, None] >> torch.arange(16)) & 1).float()
        total = sum(
            images.log_prob(rows.reshape(-1, *network.event_shape)).double().exp().sum()
            for rows in every.split(2**12)
        )
    # Each log probability is a sum of 16 numbers of a few nats, so that each probability has a
    # relative error of some 1e-6 in single precision; the errors are of either sign.
    assert float(total) == pytest.approx(1.0, abs=1e-5)


def test_an_image_that_sees_its_own_pixel_does_not_sum_to_one() -> None:
    torch.manual_seed(0)
    network = MADE((2, 2), (30,))
    last = network.layers[-1]
    assert isinstance(last.mask, torch.Tensor)
    last.mask.fill_(1)
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).reshape(-1, 2, 2)
    with torch.no_grad():
        assert abs(float(network().log_prob(every).exp().sum()) - 1) > 1e-3


def test_an_untrained_network_of_bytes_has_eight_bits_a_pixel() -> None:
    torch.manual_seed(0)
    network = GatedPixelCNN((8, 8), 16, 2, elements=Elements("categorical", 256))
    x = torch.randint(256, (20, 8, 8))
    with torch.no_grad():
        bits = -network().log_prob(x) / (64 * math.log(2))
    # The first logits are near zero: an entropy of 8 bits, less by half their variance.
    assert float(bits.mean()) == pytest.approx(8, abs=0.1)


@pytest.mark.parametrize("made_by", EVERY)
def test_sizes_and_elements_that_are_none_are_refused(made_by: Any) -> None:
    def sizes(size: Any) -> Any:
        return size if made_by is WaveNet else (8, size)

    shape = "length" if made_by is WaveNet else r"(event|image)_shape\[1\]"
    for wrong in (0, -8):
        with pytest.raises(ValueError, match=f"{shape}: expected at least 1, got {wrong}"):
            made_by(sizes(wrong))
        with pytest.raises(ValueError, match=f"context_size: expected at least 1, got {wrong}"):
            made_by(sizes(8), context_size=wrong)
    for what in (True, 8.0, "8"):
        with pytest.raises(TypeError, match=f"{shape}: expected a whole number, got {what!r}"):
            made_by(sizes(what))
        with pytest.raises(TypeError, match=f"context_size: expected a whole .*, got {what!r}"):
            made_by(sizes(8), context_size=what)
    for elements in ("categorical", None, 4, Elements):
        with pytest.raises(TypeError, match=r"elements: expected Elements, got .*\. Write"):
            made_by(sizes(8), elements=elements)
    if made_by is WaveNet:
        return
    with pytest.raises(ValueError, match=r"_shape: expected .*, got \(\)"):
        made_by(())
    for text in (8, "88", None, torch.ones(2)):
        with pytest.raises(TypeError, match="_shape: expected a tuple of whole numbers, got"):
            made_by(text)


def test_arrays_and_lists_are_refused() -> None:
    network = MADE((2, 2), (8,), FOUR, context_size=3)
    given = network(torch.zeros(3))
    for make in (torch.Tensor.numpy, torch.Tensor.tolist):
        for name, use in {
            "value": lambda: given.log_prob(make(torch.zeros(2, 2))),  # noqa: B023 - used at once
            "given": lambda: given.sample(given=make(torch.full((2, 2), math.nan))),  # noqa: B023
            "context": lambda: network(make(torch.zeros(3))),  # noqa: B023
            "ordering": lambda: network(torch.zeros(3), make(torch.arange(4))),  # noqa: B023
        }.items():
            message = rf"{name}: expected a tensor, got (ndarray|list)\. Write torch\.as_tensor"
            with pytest.raises(TypeError, match=message):
                use()
    with pytest.raises(TypeError, match="value: expected real numbers, got torch"):
        given.log_prob(torch.zeros(2, 2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"ordering: expected whole numbers.*ordering\.long"):
        network(torch.zeros(3), torch.arange(4.0))


def test_shapes_of_draws_are_tuples() -> None:
    images = MADE((2, 2), (8,))()
    with pytest.raises(TypeError, match=r"sample_shape: expected a tuple, got 3\. Write \(3,\)"):
        images.sample(3)
    with pytest.raises(ValueError, match=r"sizes of at least 0, got \(2, -1\)"):
        images.sample((2, -1))


@torch.no_grad()
@pytest.mark.parametrize("made_by", EVERY)
def test_no_rows_are_scored_and_drawn(made_by: Any) -> None:
    network = made_by(8 if made_by is WaveNet else (8, 8))
    assert network().log_prob(torch.zeros(0, *network.event_shape)).shape == (0,)
    assert network().sample((0,)).shape == (0, *network.event_shape)


def test_a_context_of_another_shape_is_refused() -> None:
    network = MADE((2, 2), (8,), BINARY, context_size=3)
    with pytest.raises(ValueError, match=r"expected shape \(\*batch, 3\), got \(4, 2\)"):
        network(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="got none"):
        network()
    with pytest.raises(ValueError, match="expected none"):
        Autoregressive(MADE((2, 2), (8,)), torch.zeros(3))


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (MADE((4, 4), (8,)), (5, 4, 5)),
        (MADE((4, 4), (8,)), (4,)),
        (GatedPixelCNN((3, 4, 4), 6, 1), (5, 1, 4, 4)),  # which would be repeated
        (WaveNet(16, 4, 4, 2, 2), (5, 17)),
    ],
)
def test_values_of_another_shape_are_refused(
    network: AutoregressiveNetwork, shape: tuple[int, ...]
) -> None:
    event = ", ".join(map(str, network.event_shape))
    sizes = ", ".join(map(str, shape))
    expected = rf"value: expected .* ends with \({event},?\), .* got \({sizes},?\)"
    for checked in (True, False):
        with pyro.validation_enabled(checked), pytest.raises(ValueError, match=expected):
            network().log_prob(torch.zeros(shape))


def test_values_that_are_no_categories_are_refused() -> None:
    images = MADE((2, 2), (8,), FOUR)()
    with pytest.raises(ValueError, match="value: expected integers from 0 to 3, got 4"):
        images.log_prob(torch.full((2, 2), 4))
    with pytest.raises(ValueError, match=r"value: expected integers from 0 to 3, got 0\.5"):
        images.log_prob(torch.full((2, 2), 0.5))
    with pytest.raises(ValueError, match="value: expected integers from 0 to 1, got 2"):
        MADE((2, 2), (8,))().log_prob(torch.full((2, 2), 2))
    assert MADE((2, 2), (8,))().log_prob(torch.ones(2, 2, dtype=torch.bool)).isfinite()


def test_known_elements_are_kept_and_checked() -> None:
    torch.manual_seed(0)
    images = MADE((2, 2), (8,), FOUR)()
    given = torch.tensor([[2.0, math.nan], [math.nan, 3.0]])
    drawn = images.sample((500,), given=given)
    assert (drawn[:, 0, 0] == 2).all()
    assert (drawn[:, 1, 1] == 3).all()
    assert len(drawn[:, 0, 1].unique()) == 4
    for wrong, expected in (
        (torch.zeros(2, 2), "expected NaN at elements to be drawn, got none"),
        (torch.zeros(2, 2, dtype=torch.long), "expected NaN at elements to be drawn, got none"),
        (torch.tensor([[4.0, math.nan]]), "expected integers from 0 to 3, got 4"),
        (torch.tensor([[-1.0, math.nan]]), "expected integers from 0 to 3, got -1"),
        (
            torch.full((3, 3), math.nan),
            r"expected a shape that broadcasts to \(2, 2\), got \(3, 3\)",
        ),
    ):
        with pytest.raises(ValueError, match=f"given: {expected}"):
            images.sample(given=wrong)
    assert images.sample((0,), given=given).shape == (0, 2, 2)


@torch.no_grad()
@pytest.mark.parametrize("size", [2, 8])  # drawn by the network as it is, or compiled
def test_a_context_of_another_dtype_is_one_of_the_network(size: int) -> None:
    torch.manual_seed(0)
    network = MADE((size, size), (8,), BINARY, context_size=3)
    context = torch.tensor([0, 1, 0])
    found = []
    for dtype in (torch.long, torch.bool, torch.float64, torch.float32):
        images = network(context.to(dtype))
        torch.manual_seed(1)
        drawn = images.sample((3,))
        found.append(torch.cat([drawn.flatten(), images.log_prob(drawn)]))
    assert all(torch.equal(one, found[-1]) for one in found)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, 1e-40, math.inf])
def test_temperatures_out_of_range_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature: expected a positive number"):
        MADE((2, 2), (8,))().sample(temperature=temperature)


@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_options_that_are_no_numbers_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: expected a number, got '0.9'"):
        MADE((2, 2), (8,))().sample(**{name: "0.9"})


class Lagged(AutoregressiveNetwork):
    """Each element is likely to be that before it: a network without parameters."""

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        before = F.pad(2 * x[:, :-1] - 1, (1, 0))
        return (3 * before).unsqueeze(-1)


def test_a_network_of_ones_own_without_parameters() -> None:
    torch.manual_seed(0)
    chain = Lagged((6,), BINARY)()
    drawn = chain.sample((4000,))
    stays = float((drawn[:, 1:] == drawn[:, :-1]).double().mean())
    # 20,000 choices of a probability of sigmoid(3): five errors.
    share = 1 / (1 + math.exp(-3))
    assert abs(stays - share) < 5 * math.sqrt(share * (1 - share) / 20_000)
    value = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    expected = math.log(0.5) + 4 * math.log(share) + math.log(1 - share)
    assert float(chain.log_prob(value)) == pytest.approx(expected, rel=1e-5)
