"""WaveNet's contexts, over time and for a whole sequence, and its sequences of any length."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch

from ppl_gen.distributions import Elements
from ppl_gen.distributions.sampling.draw import Options
from ppl_gen.distributions.sampling.native import NativeSampler
from ppl_gen.distributions.sampling.reference import draw_naively
from ppl_gen.models.networks import WaveNet

FOUR = Elements("categorical", 4)
Upsample = Literal["repeat", "transposed"]


def made(
    length: int = 22,
    *,
    hop_length: int | None = 4,
    upsample: Upsample = "repeat",
    elements: Elements = FOUR,
) -> WaveNet:
    torch.manual_seed(0)
    network = WaveNet(length, 6, 5, 4, 3, elements, 2, hop_length, upsample).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    return network


def frames_seen(network: WaveNet) -> torch.Tensor:
    """Return which samples' numbers change with which frame, (sample, frame)."""
    assert network.context_shape is not None
    frames = network.context_shape[1]
    seen = torch.zeros(network.length, frames, dtype=torch.bool)
    index = torch.arange(frames)
    for _ in range(20):  # a single point may hide a dependence behind a ReLU
        x = torch.randint(4, (1, network.length)).double().expand(frames + 1, -1)
        context = torch.randn(1, *network.context_shape).double().repeat(frames + 1, 1, 1)
        context[index + 1, :, index] += 1
        numbers = network.numbers(x, context)
        seen |= ((numbers[1:] - numbers[:1]).abs() > 1e-12).any(-1).T
    return seen


def test_a_frame_reaches_as_far_as_the_layers_carry_it() -> None:
    network = made()
    # It comes in at the first layer at the earliest: the samples of the first convolutions, and the
    # dilation of the first layer, are behind it.
    reach = network.receptive_field - 3
    start = torch.arange(6) * 4
    place = torch.arange(22)[:, None]
    expected = (place >= start) & (place <= start + 3 + reach)
    assert torch.equal(frames_seen(network), expected)


@pytest.mark.parametrize("hop_length", [3, 4])
def test_a_transposed_convolution_blends_two_frames(hop_length: int) -> None:
    network = made(hop_length=hop_length, upsample="transposed")
    seen = frames_seen(network)
    assert network.context_shape == (2, -(-22 // hop_length))
    reach = network.receptive_field - 3
    start = torch.arange(seen.shape[1]) * hop_length - hop_length // 2
    place = torch.arange(22)[:, None]
    expected = (place >= start) & (place <= start + 2 * hop_length - 1 + reach)
    assert torch.equal(seen, expected)


def test_a_vector_repeated_over_the_frames_is_one_for_the_whole() -> None:
    local, whole = made(), made(hop_length=None)
    whole.load_state_dict(local.state_dict())
    x, context = torch.randint(4, (3, 22)), torch.randn(3, 2).double()
    numbers = local.numbers(x, context.unsqueeze(-1).expand(-1, -1, 6))
    torch.testing.assert_close(numbers, whole.numbers(x, context))
    # And it matters what it is.
    assert not torch.allclose(numbers, whole.numbers(x, context + 1))


@pytest.mark.parametrize("upsample", ["repeat", "transposed"])
@pytest.mark.parametrize("elements", [FOUR, Elements("logistic_mixture", 4, 3)])
def test_sequences_sum_to_one_given_their_frames(upsample: Upsample, elements: Elements) -> None:
    network = made(4, hop_length=3, upsample=upsample, elements=elements)
    every = torch.tensor(list(itertools.product(range(4), repeat=4)))
    with torch.no_grad():
        total = network(torch.randn(2, 2).double()).log_prob(every).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("rows", [1, 5, 20])
@pytest.mark.parametrize("upsample", ["repeat", "transposed"])
def test_the_compiled_sampler_draws_the_same_given_frames(upsample: Upsample, rows: int) -> None:
    network = made(50, hop_length=7, upsample=upsample)
    assert network.context_shape is not None
    context = torch.randn(rows, *network.context_shape).double()
    uniforms = torch.rand(rows, 50).double()
    naive = draw_naively(network, uniforms, context, None, Options())
    found = NativeSampler(network).sample(uniforms.numpy(), context)
    assert torch.equal(naive, torch.from_numpy(found))
    other = draw_naively(network, uniforms, context + 1, None, Options())
    assert not torch.equal(naive, other)


@pytest.mark.parametrize("hop_length", [None, 4])
def test_of_another_length_it_is_the_same_network(hop_length: int | None) -> None:
    network = made(22, hop_length=hop_length)
    longer = network.with_length(35)
    assert longer.event_shape == (35,)
    assert network.event_shape == (22,)
    assert len(network.order) == 22
    x = torch.randint(4, (3, 35))
    shape: tuple[int, ...] = (2,) if hop_length is None else (2, 9)
    assert longer.context_shape == shape
    context = torch.randn(3, *shape).double()
    short = context if hop_length is None else context[..., :6]
    torch.testing.assert_close(
        longer.numbers(x, context)[:, :22], network.numbers(x[:, :22], short)
    )
    assert longer(context).sample().shape == (3, 35)
    with torch.no_grad():
        network.last.weight.zero_()
    assert not longer.last.weight.any()


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="number of features of a frame, got none"):
        WaveNet(10, hop_length=3)
    with pytest.raises(ValueError, match=r"unknown upsample 'repaet'.*Did you mean 'repeat'"):
        WaveNet(10, context_size=2, hop_length=3, upsample="repaet")  # type: ignore[arg-type]
    for name in ("length", "features", "skip", "layers", "cycle", "context_size", "hop_length"):
        sizes = {"length": 10, "context_size": 2, name: 0}
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
            WaveNet(**sizes)  # type: ignore[arg-type]
    for wrong, error in ((0, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="length: expected"):
            WaveNet(10, 4, 4, 2, 2).with_length(wrong)  # type: ignore[arg-type]
    network = WaveNet(10, 4, 4, 2, 2, context_size=2, hop_length=3)
    with pytest.raises(ValueError, match=r"expected shape \(\*batch, 2, 4\), got \(2, 3\)"):
        network(torch.zeros(2, 3))
