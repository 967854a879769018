"""The compiled sampler: the very draws of the network run anew for each element."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.distributions.sampling.draw import Options, draw_naively
from ppl_gen.distributions.sampling.native import NativeSampler
from ppl_gen.distributions.sampling.plan import CannotPlan, make_plan
from ppl_gen.distributions.sampling.record import record
from ppl_gen.distributions.sampling.reference import sample_by_plan
from ppl_gen.models.networks import FVBN, MADE, NADE, GatedPixelCNN, PixelCNN, WaveNet

BINARY = Elements()
FOUR = Elements("categorical", 4)
MIXED = Elements("logistic_mixture", 4, 3)
PLAIN = Options()

NETWORKS: dict[str, Callable[[Elements, int | None], AutoregressiveNetwork]] = {
    "made": lambda e, c: MADE((4, 5), (30, 20), e, c),
    "fvbn": lambda e, c: FVBN((4, 5), e, c),
    "nade": lambda e, c: NADE((4, 5), 12, e, c),
    "pixel_cnn": lambda e, c: PixelCNN((4, 5), 12, 2, e, c),
    "pixel_cnn of colours": lambda e, c: PixelCNN((3, 2, 3), 12, 2, e, c),
    "gated_pixel_cnn": lambda e, c: GatedPixelCNN((4, 5), 12, 3, elements=e, context_size=c),
    "gated_pixel_cnn of colours": lambda e, c: GatedPixelCNN(
        (3, 2, 3), 12, 2, elements=e, context_size=c
    ),
    "wavenet": lambda e, c: WaveNet(25, 8, 8, 6, 3, e, c),
    "wavenet of one sample": lambda e, c: WaveNet(1, 8, 8, 2, 2, e, c),
}


def network_of(name: str, elements: Elements, context: int | None) -> AutoregressiveNetwork:
    torch.manual_seed(0)
    network: AutoregressiveNetwork = NETWORKS[name](elements, context).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    return network


def both(
    network: AutoregressiveNetwork,
    rows: int,
    given: torch.Tensor | None = None,
    options: Options = PLAIN,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return draws by the network run anew for each element, and by the compiled sampler."""
    like = next(network.parameters())
    context = None
    if network.context_shape is not None:
        context = torch.randn(rows, *network.context_shape, dtype=like.dtype)
    uniforms = torch.rand(rows, len(network.order), dtype=like.dtype)
    naive = draw_naively(network, uniforms, context, given, options)[:, network.order]
    known = None if given is None else given[:, network.order].numpy()
    found = NativeSampler(network).sample(
        uniforms[:, network.order].numpy(),
        context,
        known,
        temperature=options.temperature,
        top_p=options.top_p,
        threads=2,
    )
    return naive, torch.from_numpy(found)


@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("elements", [BINARY, FOUR, MIXED], ids=lambda e: e.likelihood)
@pytest.mark.parametrize("name", NETWORKS)
def test_draws_are_equal(name: str, elements: Elements, rows: int) -> None:
    naive, found = both(network_of(name, elements, 2), rows)
    assert torch.equal(naive, found)


@pytest.mark.parametrize("name", NETWORKS)
def test_draws_are_equal_in_single_precision_but_for_ties(name: str) -> None:
    naive, found = both(network_of(name, FOUR, None).float(), 30)
    # A number that rounds to the other side of a uniform one changes all that follows in its row.
    assert (naive == found).all(1).sum() >= 29


@pytest.mark.parametrize("elements", [BINARY, FOUR, MIXED], ids=lambda e: e.likelihood)
@pytest.mark.parametrize("name", ["made", "gated_pixel_cnn", "wavenet"])
def test_options_and_known_elements(name: str, elements: Elements) -> None:
    network = network_of(name, elements, None)
    given = torch.randint(elements.highest + 1, (6, len(network.order))).double()
    given[torch.rand(given.shape) < 0.6] = torch.nan
    for options in (Options(0.5), Options(1.5, 0.7), Options(top_p=0.5)):
        naive, found = both(network, 6, given, options)
        assert torch.equal(naive, found)
    known = ~given[:, network.order].isnan()
    assert torch.equal(found[known], given[:, network.order][known])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_plan_run_by_numpy_says_the_same(name: str) -> None:
    network = network_of(name, FOUR, 2)
    recorded = record(network)
    uniforms = torch.rand(3, len(network.order), dtype=torch.double)
    context = torch.randn(3, 2, dtype=torch.double)
    naive = draw_naively(network, uniforms, context, None, PLAIN)[:, network.order]
    ordered = uniforms[:, network.order].numpy()
    found = sample_by_plan(recorded, make_plan(recorded), ordered, context)
    assert torch.equal(naive, torch.from_numpy(found))


def test_memory_does_not_grow_with_the_length() -> None:
    short, long = (NativeSampler(WaveNet(size, 8, 8, 6, 3)) for size in (50, 5000))
    assert short.schedule.places == long.schedule.places
    assert len(short.schedule.code) == len(long.schedule.code)


class Peeking(WaveNet):
    """A network that sees the sample itself."""

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return super().numbers(x.roll(-1, 1), context)


class Unmasked(MADE):
    """A network whose last mask is gone."""

    def __init__(self) -> None:
        super().__init__((4, 4), (8,))
        last = self.layers[-1]
        assert isinstance(last.mask, torch.Tensor)
        last.mask.fill_(1)


class Sorting(MADE):
    """A network with an operator that is not followed."""

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return super().numbers(x.flatten(1).sort().values.reshape(x.shape), context)


def test_what_is_not_autoregressive_is_refused() -> None:
    with pytest.raises(ValueError, match=r"element \(0, 0\) depend on element \(3, 1\), which"):
        NativeSampler(Unmasked())
    with pytest.raises(
        ValueError, match=r"depend on the one 0 places after it|does not come before"
    ):
        NativeSampler(Peeking(20, 8, 8, 2, 2))
    with pytest.raises(CannotPlan, match="sort"):
        NativeSampler(Sorting((4, 4), (8,)))


def test_a_network_that_cannot_be_followed_is_sampled_all_the_same() -> None:
    torch.manual_seed(0)
    network = Sorting((8, 8), (8,))
    with pytest.warns(RuntimeWarning, match=r"Sorting is run anew .*sort"):
        drawn = network().sample((2,))
    assert drawn.shape == (2, 8, 8)


def test_weights_that_change_are_followed() -> None:
    torch.manual_seed(0)
    network = MADE((8, 8), (16,))
    ones = network().sample((4,))
    assert 0 < ones.mean() < 1
    with torch.no_grad():
        last = network.layers[-1]
        assert isinstance(last.bias, nn.Parameter)
        last.bias.fill_(100.0)
    assert network().sample((4,)).min() == 1


def test_a_network_is_not_kept_by_its_sampler() -> None:
    network = MADE((8, 8), (16,))
    network().sample((2,))
    kept = weakref.ref(network)
    del network
    gc.collect()
    assert kept() is None
