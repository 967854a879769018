"""Which sampler is taken, when it is made anew, how it is followed and stopped."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref

import pytest
import torch
from torch import nn

from ppl_gen.core.compiler.build import NoCompiler
from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.distributions.sampling import draw as drawing
from ppl_gen.distributions.sampling.draw import running_total
from ppl_gen.models.networks import MADE, PixelCNNPlusPlus, WaveNet


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
