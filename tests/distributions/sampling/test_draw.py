"""Which sampler is taken, when it is made anew, how it is followed and stopped."""

from __future__ import annotations

import gc
import math
import os
import signal
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from ppl_gen.core.compiler.build import NoCompiler
from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.distributions.sampling import draw as drawing
from ppl_gen.distributions.sampling.draw import Options, running_total
from ppl_gen.distributions.sampling.native import NativeSampler
from ppl_gen.distributions.sampling.reference import draw_naively
from ppl_gen.models.networks import (
    MADE,
    NADE,
    OrderAgnosticMADE,
    PixelCNNPlusPlus,
    WaveNet,
)


class Sorting(MADE):
    """A network with an operator that is not followed."""

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return super().numbers(x.flatten(1).sort().values.reshape(x.shape), context)


def seeded_draws(network: AutoregressiveNetwork) -> torch.Tensor:
    torch.manual_seed(0)
    drawn: torch.Tensor = network().sample((4,))
    return drawn


def test_a_network_that_cannot_be_followed_is_sampled_all_the_same() -> None:
    torch.manual_seed(0)
    network = Sorting((8, 8), (8,))
    with pytest.warns(RuntimeWarning, match=r"Sorting is run as a whole .*sort"):
        drawn = network().sample((2,))
    assert drawn.shape == (2, 8, 8)
    assert torch.equal(network().sample((0,)), torch.zeros(0, 8, 8))


def test_without_a_compiler_the_draws_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = MADE((8, 8), (16,)).double()
    compiled = seeded_draws(network)

    def fail(*args: object) -> None:
        raise NoCompiler("there is none")

    drawing._samplers.clear()
    monkeypatch.setattr(drawing, "NativeSampler", fail)
    with pytest.warns(RuntimeWarning, match="there is none"):
        assert torch.equal(seeded_draws(network), compiled)


class Corrupted(NativeSampler):
    """A sampler that has something wrong: its weights."""

    def __init__(self, network: AutoregressiveNetwork) -> None:
        super().__init__(network)
        wrong = tuple((-2 * weight, bias) for weight, bias in self.program.matrices)
        self.program = replace(self.program, matrices=wrong)


@pytest.mark.parametrize("name", ["MADE", "WaveNet"])
def test_wrong_draws_are_found_and_made_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = MADE((8, 8), (16,)) if name == "MADE" else WaveNet(100, 8, 8, 2, 2)
    network = network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "NativeSampler", Corrupted)
        with pytest.warns(RuntimeWarning, match=f"^{name} .* other values than the network itself"):
            assert not differences(network)
    assert not differences(network)  # nor is there a second warning
    # Without the check they would stay wrong.
    drawing._samplers.clear()
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "NativeSampler", Corrupted)
        patch.setattr(drawing, "_MOST_CHECKED", 0)
        assert differences(network) > 1


def test_a_sampler_is_checked_once() -> None:
    torch.manual_seed(0)
    network = MADE((8, 8), (16,))
    network().sample(top_p=0.9)  # of which rounding decides more
    known = drawing._samplers[network].sampler
    assert known is not None
    assert not known.is_checked
    network().sample()
    assert known.is_checked
    with torch.no_grad():
        network.layers[0].weight.mul_(2)
    refreshed = drawing._sampler(network)
    assert refreshed is not None
    assert refreshed.is_checked
    with torch.no_grad():
        network.layers[0].weight[:, 0] = 0  # which makes another plan
    other = drawing._sampler(network)
    assert other is not None
    assert not other.is_checked


def test_samplers_of_mixtures_of_many_values_are_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # By the network itself these would be drawn by 42 million probabilities, not one by one.
    def fail(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(drawing, "is_fixed_point", fail)
    WaveNet(64, 4, 4, 2, 2, Elements("logistic_mixture", 2**16, 10))().sample()


def test_weights_that_change_during_a_draw_are_no_error() -> None:
    torch.manual_seed(0)
    network = WaveNet(400, 8, 8, 2, 2)

    def change(done: int, total: int) -> None:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(-2)

    network().sample(progress=change)  # warnings are errors
    known = drawing._samplers[network].sampler
    assert known is not None
    assert not known.is_checked


def test_orderings_are_not_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(drawing, "NativeSampler", fail)
    network = OrderAgnosticMADE((8, 8), (16,), num_orderings=3).double()
    given = torch.full((8, 8), math.nan)
    given[4:] = 1.0
    for images in (network(), network.eval()(), network(ordering=torch.randperm(64))):
        images.sample((4,))
        assert (images.sample((4,), given=given)[:, 4:] == 1).all()
    assert not differences(network.under(torch.randperm(64)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_drawn_by_iteration(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = MADE((8, 8), (16,)).to(dtype)
    uniforms = torch.rand(3, 64)
    about = uniforms, None, None, Options()
    assert torch.equal(drawing.draw(network, *about), draw_naively(network, *about))


def test_a_copy_for_the_cpu_has_the_present_weights() -> None:
    # What is drawn from where a sequence is on another device; here there may be none.
    torch.manual_seed(0)
    network = WaveNet(100, 8, 8, 2, 2).double()
    copied = drawing._copied(network)
    assert copied is not network
    assert torch.equal(seeded_draws(copied), seeded_draws(network))
    with torch.no_grad():
        network.last.weight.mul_(5)
    assert drawing._copied(network) is copied
    assert torch.equal(seeded_draws(copied), seeded_draws(network))
    with torch.inference_mode():
        assert next(drawing._copied(network.float()).parameters()).dtype == torch.float32
    drawing._copied(network)  # outside it, too
    kept = weakref.ref(network)
    del network
    gc.collect()
    assert kept() is None


def test_a_network_in_training_is_sampled_as_in_evaluation() -> None:
    torch.manual_seed(0)
    # Of 48 elements, and so by iteration, and of 64, compiled.
    for shape in ((3, 4, 4), (8, 8)):
        elements = Elements("categorical", 4)
        network = PixelCNNPlusPlus(shape, 6, 1, 2, 0.5, elements).double()
        network.down[0].eval()
        modes = [module.training for module in network.modules()]
        training = seeded_draws(network)
        assert [module.training for module in network.modules()] == modes
        assert torch.equal(training, seeded_draws(network.eval()))


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
    wave = WaveNet(100, 4, 4, 2, 2, Elements())
    assert wave().sample((4,)).min() == 0
    with torch.no_grad():
        assert wave.last.bias is not None
        wave.last.bias.fill_(100.0)
    assert wave().sample((4,)).min() == 1


def differences(network: AutoregressiveNetwork, rows: int = 5) -> int:
    """Return how many rows are other ones than those of the network run for each element."""
    torch.manual_seed(0)
    uniforms = torch.rand(rows, len(network.order), dtype=torch.double)
    context = None
    if network.context_shape is not None:
        context = torch.randn(rows, *network.context_shape, dtype=torch.double)
    about = uniforms, context, None, Options()
    return int((draw_naively(network, *about) != drawing.draw(network, *about)).any(1).sum())


class Scaled(MADE):
    """A network with a number and a function of its own."""

    def __init__(self) -> None:
        super().__init__((8, 8), (16,))
        self.scale = 1.0
        self.shaped: nn.Module = nn.Identity()

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        shaped: torch.Tensor = self.shaped(super().numbers(x, context) * self.scale)
        return shaped


def test_parts_and_numbers_that_change_are_followed() -> None:
    torch.manual_seed(0)
    network = Scaled().double()
    assert differences(network) == 0
    network.scale = 20.0
    assert differences(network) == 0
    network.shaped = nn.Tanh()
    assert differences(network) == 0


def test_weights_that_change_without_a_trace_are_followed() -> None:
    torch.manual_seed(0)
    network, other = (MADE((8, 8), (16,)).double() for _ in range(2))
    assert not differences(network)
    before = seeded_draws(network)
    for parameter, source in zip(network.parameters(), other.parameters(), strict=True):
        parameter.data.copy_(5 * source.data)  # no version is counted up
    assert not differences(network)
    assert not torch.equal(seeded_draws(network), before)
    vector = nn.utils.parameters_to_vector(other.parameters()).detach()
    nn.utils.vector_to_parameters(-5 * vector, network.parameters())
    assert not differences(network)


def test_a_weight_that_becomes_zero_makes_another_plan() -> None:
    torch.manual_seed(0)
    network = NADE((8, 8), 20, Elements("categorical", 4)).double()
    assert not differences(network)
    with torch.no_grad():  # numbers are known at the same times as before
        network.out_weight[20, 1, 3] = 0.0
        network.out_weight[50, 2, 7] = 0.0
    assert not differences(network)


class Started(WaveNet):
    """A sequence with a learned start, which is zero at first."""

    def __init__(self) -> None:
        super().__init__(100, 4, 4, 2, 2, Elements())
        self.start = nn.Parameter(torch.zeros(1, 1, 1))

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        numbers = super().numbers(x, context)
        start = self.start.expand(len(x), -1, -1)
        return numbers + torch.cat([start, numbers[:, :-1]], dim=1)


def test_weights_that_are_followed_no_longer_are_named() -> None:
    torch.manual_seed(0)
    network = Started().double()
    assert not differences(network)
    with torch.no_grad():
        network.start.fill_(3.0)
    with pytest.warns(RuntimeWarning, match="cat with constants that are not zero"):
        assert not differences(network)


def test_what_is_set_around_a_draw_makes_no_difference() -> None:
    torch.manual_seed(0)
    network = MADE((8, 8), (16,))
    expected = seeded_draws(network)
    drawing._samplers.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(seeded_draws(network), expected)
    with torch.inference_mode():
        made = MADE((8, 8), (16,))
        made.load_state_dict(network.state_dict())
        assert torch.equal(seeded_draws(made), expected)
    assert torch.equal(seeded_draws(made), expected)


def test_threads_may_draw_from_one_network() -> None:
    torch.manual_seed(0)
    network = MADE((8, 8), (16,)).double()
    found: list[int] = []
    uniforms = torch.rand(5, 64, dtype=torch.double)
    naive = draw_naively(network, uniforms, None, None, Options())

    def work() -> None:
        drawn = drawing.draw(network, uniforms, None, None, Options())
        found.append(int((drawn != naive).sum()))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [0] * 6
    assert network.training


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "elements", [Elements(), Elements("categorical", 4), Elements("logistic_mixture", 4, 2)]
)
def test_numbers_that_are_not_finite_are_refused(elements: Elements, value: float) -> None:
    # Compiled, of one row and of several, and by iteration.
    for length, rows in ((100, 1), (100, 20), (10, 3)):
        network = WaveNet(length, 8, 8, 2, 2, elements, context_size=2)
        with torch.no_grad():
            assert network.first.bias is not None
            network.first.bias[0] = value
        with pytest.raises(ValueError, match="NaN and infinity in its weights and in its context"):
            network(torch.zeros(2)).sample((rows,))
    network = WaveNet(100, 8, 8, 2, 2, elements, context_size=2)
    with pytest.raises(ValueError, match="NaN and infinity"):
        network(torch.full((2,), math.nan)).sample()


def test_a_network_is_not_kept_by_its_sampler() -> None:
    network = MADE((8, 8), (16,))
    network().sample((2,))
    kept = weakref.ref(network)
    del network
    gc.collect()
    assert kept() is None


def test_progress_goes_up_to_all_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_gen.distributions.sampling.native._TELL_SECONDS", 0.001)
    told: list[tuple[int, int]] = []
    network = WaveNet(20_000, 8, 8, 2, 2)
    network().sample((3,), progress=lambda done, total: told.append((done, total)))
    done = [count for count, _ in told]
    assert done == sorted(done)
    assert len(set(done)) > 2
    assert told[-1] == (60_000, 60_000)
    assert done.count(60_000) == 1


def test_several_draws_are_told_as_one() -> None:
    told: list[tuple[int, int]] = []
    tell = running_total(lambda done, total: told.append((done, total)), 50)
    assert tell is not None
    for done, of in ((10, 20), (20, 20), (5, 30), (30, 30)):
        tell(done, of)
    assert told == [(10, 50), (20, 50), (25, 50), (50, 50)]


def test_an_interrupt_stops_a_long_sequence() -> None:
    # Long enough to be still running: a step takes over a microsecond.
    network = WaveNet(3_000_000, 16, 16, 4, 4, Elements())
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    done: list[int] = []

    def tell(now: int, total: int) -> None:
        if not done:  # it has begun
            timer.start()
        done.append(now)

    with pytest.raises(KeyboardInterrupt):
        network().sample(progress=tell)
    timer.join()
    assert done[-1] < 3_000_000
    assert not [thread for thread in threading.enumerate() if "Pool" in thread.name]
