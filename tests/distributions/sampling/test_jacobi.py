"""Jacobi's iteration: as many passes as elements depend on each other, and no more."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.distributions.sampling.draw import Options
from ppl_gen.distributions.sampling.jacobi import draw_by_iteration, is_fixed_point
from ppl_gen.distributions.sampling.native import NativeSampler
from ppl_gen.distributions.sampling.reference import draw_naively
from ppl_gen.models.networks import MADE, WaveNet

COUNT = 40


class Chain(AutoregressiveNetwork):
    """Bits of which each is very likely the one before it."""

    def __init__(self, logit: float) -> None:
        super().__init__((COUNT,), Elements())
        self.logit = nn.Parameter(torch.tensor(logit, dtype=torch.double))
        self.rows_run = 0

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        self.rows_run += len(x)
        before = torch.cat([torch.ones_like(x[:, :1]), x[:, :-1]], dim=1)
        return ((2 * before - 1) * self.logit).unsqueeze(-1)


def test_elements_that_do_not_depend_on_each_other_take_two_passes() -> None:
    network = Chain(0.0)
    uniforms = torch.rand(5, COUNT, dtype=torch.double)
    drawn, passes = draw_by_iteration(network, uniforms, None, None, Options())
    # The second finds nothing to change.
    assert passes == 2
    assert torch.equal(drawn, (uniforms >= 0.5).double())


def test_a_chain_of_copies_takes_a_pass_for_each() -> None:
    network = Chain(20.0)
    uniforms = torch.full((1, COUNT), 0.5, dtype=torch.double)
    drawn, passes = draw_by_iteration(network, uniforms, None, None, Options())
    # It begins with zeros, and a one moves on by an element in each pass.
    assert passes == COUNT
    assert bool((drawn == 1).all())


def test_rows_that_are_done_are_not_run_again() -> None:
    network = Chain(20.0)
    uniforms = torch.full((8, COUNT), 0.5, dtype=torch.double)
    uniforms[1:, 0] = 0.0  # zeros from the start: right at once
    drawn, passes = draw_by_iteration(network, uniforms, None, None, Options())
    assert passes == COUNT
    assert network.rows_run == 8 + (COUNT - 1)
    assert torch.equal(drawn, draw_naively(network, uniforms, None, None, Options()))


def test_an_image_takes_fewer_passes_than_it_has_elements() -> None:
    torch.manual_seed(0)
    network = MADE((8, 8), (100,)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    uniforms = torch.rand(20, 64, dtype=torch.double)
    drawn, passes = draw_by_iteration(network, uniforms, None, None, Options())
    assert torch.equal(drawn, draw_naively(network, uniforms, None, None, Options()))
    assert 2 < passes <= 32


def test_progress_ends_with_all_elements() -> None:
    told: list[tuple[int, int]] = []
    options = Options(progress=lambda done, total: told.append((done, total)))
    draw_by_iteration(Chain(1.0), torch.rand(3, COUNT, dtype=torch.double), None, None, options)
    assert told[-1] == (3 * COUNT, 3 * COUNT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_that_are_not_those_of_the_network_are_found(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = MADE((8, 8), (16,)).to(dtype)
    uniforms = torch.rand(3, 64, dtype=dtype)
    drawn, _ = draw_by_iteration(network, uniforms, None, None, Options())
    about = uniforms, None, None, Options()
    assert is_fixed_point(network, drawn, *about)
    # One may be a tie, and then more follow from it.
    wrong = drawn.clone()
    wrong[:, 5:9] = 1 - wrong[:, 5:9]
    assert not is_fixed_point(network, wrong, *about)
    given = torch.full_like(drawn, torch.nan)
    given[:, 5:9] = wrong[:, 5:9]
    known, _ = draw_by_iteration(network, uniforms, None, given, Options())
    assert is_fixed_point(network, known, uniforms, None, given, Options())
    assert network.training


class Single(WaveNet):
    """A network that has single precision written in it, and so cannot be run in double."""

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return super().numbers(x, context) @ torch.eye(256)


def test_rounding_of_large_weights_is_no_error() -> None:
    torch.manual_seed(0)
    network = WaveNet(300, 32, 32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(20)
    uniforms = torch.rand(1, 300)
    drawn = torch.from_numpy(NativeSampler(network.eval()).sample(uniforms.numpy()))
    with torch.no_grad():
        own = network.elements.draw(network.numbers(drawn), uniforms, 1.0, 1.0)
    assert (own != drawn).sum() > 2
    assert is_fixed_point(network, drawn, uniforms, None, None, Options())
    single = Single(300, 32, 32)
    single.load_state_dict(network.state_dict())
    assert not is_fixed_point(single, drawn, uniforms, None, None, Options())
    assert not is_fixed_point(network, 255 - drawn, uniforms, None, None, Options())
