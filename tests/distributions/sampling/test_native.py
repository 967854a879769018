"""The compiled sampler: what it follows, what it refuses, how much memory it takes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.distributions.sampling.draw import Options
from ppl_gen.distributions.sampling.native import NativeSampler
from ppl_gen.distributions.sampling.operators import CannotPlan
from ppl_gen.distributions.sampling.program import tables_of_context
from ppl_gen.distributions.sampling.reference import draw_naively
from ppl_gen.models.networks import FVBN, MADE, PixelCNN, WaveNet

FOUR = Elements("categorical", 4)


def assert_equal(network: AutoregressiveNetwork, rows: int = 6) -> None:
    """Check that draws are those of the network run anew for each element."""
    torch.manual_seed(0)
    order = network.order
    context = None
    if network.context_shape is not None:
        context = torch.randn(rows, *network.context_shape, dtype=torch.double)
    uniforms = torch.rand(rows, len(order), dtype=torch.double)
    naive = draw_naively(network, uniforms, context, None, Options())[:, order]
    found = NativeSampler(network).sample(uniforms[:, order].numpy(), context)
    assert torch.equal(naive, torch.from_numpy(found))


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp, log and a number": lambda x: (x.exp() + 1).log(),
    "log of 1 - exp near 0": lambda x: (-F.elu(-(x.abs() * 1e-6 + 1e-12))).log(),
    "elu, silu, softplus": lambda x: F.elu(x) + F.silu(x) * F.softplus(x),
    "of the other sign": lambda x: 1 - x / (2 + x.abs()),
    "maximum and minimum": lambda x: torch.maximum(x, -x) - torch.minimum(x, x.tanh()),
    "exp where it ends": lambda x: (
        x * (709.7 + 0 * x).exp() * math.exp(-709.7) + (0 * x - 800).exp() * 1e308
    ),
    "stack": lambda x: torch.stack([x, x.relu()], dim=-1)[..., 1],
}


class After(FVBN):
    """Some function of the numbers of linear models."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__((3, 4), FOUR)
        self.function = function

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        numbers: torch.Tensor = self.function(super().numbers(x, context))
        return numbers


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_numbers_are_followed(name: str) -> None:
    torch.manual_seed(0)
    assert_equal(After(FUNCTIONS[name]).double())


class Halved(AutoregressiveNetwork):
    """Rows that are halved and doubled again, by strided and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__((8,), FOUR)
        self.down = nn.Conv1d(1, 5, 2, stride=2)
        self.up = nn.ConvTranspose1d(5, 4, 2, stride=2)

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        features = self.elements.features(x, self.up.weight).unsqueeze(1)
        numbers: torch.Tensor = self.up(self.down(F.pad(features, (2, 0))[..., :-2]))
        return numbers.movedim(1, -1)


def test_strided_and_transposed_convolutions_are_followed() -> None:
    torch.manual_seed(0)
    assert_equal(Halved().double())


def test_normalised_weights_are_followed() -> None:
    torch.manual_seed(0)
    for network in (WaveNet(20, 8, 8, 3, 3, FOUR), PixelCNN((4, 5), 6, 2, FOUR)):
        for module in list(network.modules()):
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                weight_norm(module)
        assert_equal(network.double())


class Placed(WaveNet):
    """A sequence whose numbers depend on the time as well."""

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        times = torch.linspace(-1, 1, self.length, dtype=self.last.weight.dtype)
        return super().numbers(x, context) * times[:, None] + times.sin()[:, None]


def test_constants_that_change_with_time_are_followed() -> None:
    torch.manual_seed(0)
    network = Placed(20, 8, 8, 3, 3, FOUR).double()
    assert_equal(network)
    assert not len(NativeSampler(network).program.starts)  # as a sequence


class Shaped(AutoregressiveNetwork):
    """A causal sequence whose hidden features go through some function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__((40,), FOUR)
        self.first, self.last = nn.Conv1d(1, 8, 3), nn.Conv1d(8, 4, 1)
        self.function = function

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        features = self.elements.features(x, self.first.weight).unsqueeze(1)
        hidden = self.first(F.pad(features, (8, 0))).tanh()  # of those 6 to 8 places before
        numbers: torch.Tensor = self.last(self.function(hidden)[..., :40])
        return numbers.movedim(1, -1)


PARTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "the first beside all": lambda h: h - 2 * h[..., :1],
    "cut off and padded": lambda h: F.pad(h[..., :20], (0, 30)),
    "cut off and padded by a layer": lambda h: F.conv1d(
        h[..., :20], torch.ones(8, 8, 41).to(h), padding=40
    ),
    "shifted back": lambda h: h[..., 4:],
    "from before the beginning": lambda h: h[..., -100:],
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_a_sequence_are_not_taken_for_all_of_it(name: str) -> None:
    torch.manual_seed(0)
    network = Shaped(PARTS[name]).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    assert_equal(network)


MOVED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "turned and copied": lambda h: h.movedim(1, -1).contiguous().movedim(-1, 1),
    "mixed within a time": lambda h: h.unflatten(1, (2, 4)).transpose(1, 2).reshape(h.shape),
    "split and in another order": lambda h: torch.cat(h.flip(1).chunk(2, 1)[::-1], 1),
    "repeated": lambda h: h[:, :4].repeat_interleave(2, 1),
}


@pytest.mark.parametrize("name", MOVED)
def test_what_moves_the_numbers_of_a_time_is_followed(name: str) -> None:
    torch.manual_seed(0)
    network = Shaped(MOVED[name]).double()
    assert_equal(network)
    assert not len(NativeSampler(network).program.starts)  # as a sequence


NO_MOVES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "clamp": lambda h: h.clamp(min=0),
    "round": lambda h: h.round(),
    "amax": lambda h: h.amax(1, keepdim=True).expand(h.shape),
}


@pytest.mark.parametrize("name", NO_MOVES)
def test_what_is_no_move_is_not_taken_for_one(name: str) -> None:
    with pytest.raises(CannotPlan, match=name):
        NativeSampler(Shaped(NO_MOVES[name]).double())


class Written(FVBN):
    """A network that writes what follows from its context into a constant."""

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        numbers = super().numbers(x)
        assert context is not None
        added = torch.zeros(numbers.shape, dtype=numbers.dtype)
        added[:, 1:] = 5 * context
        return numbers + added


def test_what_is_written_into_a_constant_is_not_followed() -> None:
    network = Written((3, 4), FOUR)
    network.context_shape = torch.Size((4,))
    with pytest.raises(CannotPlan, match=r"copy_.*, which writes into a constant"):
        NativeSampler(network)


def test_what_cannot_be_is_not_drawn() -> None:
    network = MADE((8, 8), (8,), FOUR).double()
    with torch.no_grad():
        bias = network.layers[-1].bias
        assert isinstance(bias, nn.Parameter)
        bias.view(64, 4)[:, :2] = -torch.inf
    for rows in (1, 20):
        drawn = NativeSampler(network).sample(torch.zeros(rows, 64, dtype=torch.double).numpy())
        assert (drawn == 2).all()


def test_features_that_are_repeated_are_kept_once() -> None:
    torch.manual_seed(0)
    network = WaveNet(97, 8, 8, 6, 3, FOUR, context_size=2, hop_length=10).double()
    sampler = NativeSampler(network)
    context = torch.randn(3, 2, 10, dtype=torch.double)
    context[1] = 0.0  # never changes
    _, tables = tables_of_context(sampler.recorded, sampler.program, context, sampler.dtype)
    assert tables.shape == (6 * 16 * 10, 3)


def test_memory_does_not_grow_with_the_length() -> None:
    short, long = (NativeSampler(WaveNet(size, 8, 8, 6, 3)) for size in (50, 5000))
    assert short.program.places == long.program.places
    assert len(short.program.code) == len(long.program.code)
    assert short.program.longest == long.program.longest


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_planning_takes_no_memory_for_each_element() -> None:
    # Of an element there are its place (8 bytes), its uniform number, in two orders and by lanes
    # (12), its draw, by lanes, in two orders and as an integer (20): 40. A copy of the 64 features
    # of a layer would be 512 in int64.
    script = Path(__file__).parent / "memory_script.py"
    search = os.pathsep.join(str(path) for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": search},
    )
    assert float(done.stdout) < 128


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


class Steep(MADE):
    """A network with a known operator that has an option."""

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return F.elu(super().numbers(x, context), alpha=2.0)


def test_what_is_not_autoregressive_is_refused() -> None:
    with pytest.raises(ValueError, match=r"element \(0, 0\) depend on element \(3, 1\), which"):
        NativeSampler(Unmasked())
    with pytest.raises(
        ValueError, match=r"depend on the one 0 places after it|does not come before"
    ):
        NativeSampler(Peeking(20, 8, 8, 2, 2))


def test_what_is_not_followed_is_named() -> None:
    with pytest.raises(CannotPlan, match="sort"):
        NativeSampler(Sorting((4, 4), (8,)))
    with pytest.raises(CannotPlan, match=r"elu.*options .*2\.0"):
        NativeSampler(Steep((4, 4), (8,)))
