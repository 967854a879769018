"""PixelRNN: what each pixel sees, and its scan along diagonals against one pixel by pixel."""

from collections.abc import Callable

import pytest
import torch

from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.models.networks import DiagonalBiLSTM, RowLSTM
from ppl_gen.models.networks.pixel_rnn import _DiagonalLayer

FOUR = Elements("categorical", 4)
Depends = Callable[[AutoregressiveNetwork], torch.Tensor]


def before(count: int) -> torch.Tensor:
    return torch.ones(count, count, dtype=torch.bool).tril(-1)


def triangle(height: int, width: int, layers: int, kernel_size: int) -> torch.Tensor:
    """Return which pixels a Row LSTM sees, (pixel, seen pixel), but for the pixel itself.

    Of its own row it sees 3 to the left by the first convolution of 7 x 7, and `kernel_size // 2`
    more by each layer. Each row up adds as much to the left, by the state. To the right, one row
    up is seen by the first convolution, 3 of it, and each further row adds to that by the state;
    or all rows are gone up by the state, and the first convolution sees the left of a pixel.
    """
    reach = kernel_size // 2
    place = torch.arange(height * width)
    row, column = place // width, place % width
    up = row[:, None] - row
    right = column - column[:, None]
    left_most = -(3 + layers * reach + up * reach)
    right_most = torch.where(up > 0, torch.maximum((up - 1) * reach + 3, up * reach - 1), -1)
    return (up >= 0) & (right >= left_most) & (right <= right_most)


@pytest.mark.parametrize(("layers", "kernel_size"), [(1, 3), (2, 3), (1, 5)])
def test_a_row_lstm_sees_a_triangle(layers: int, kernel_size: int, depends: Depends) -> None:
    torch.manual_seed(1)
    found = depends(RowLSTM((4, 12), 4, layers, kernel_size, FOUR))
    assert torch.equal(found, triangle(4, 12, layers, kernel_size))
    assert (before(48) & ~found).any()  # its blind spot


def test_a_row_lstm_sees_a_triangle_of_colours(depends: Depends) -> None:
    torch.manual_seed(1)
    found = depends(RowLSTM((3, 3, 9), 6, 1, elements=FOUR))
    # All channels of the pixels that are seen, and those before its own of the pixel itself.
    pixels = triangle(3, 9, 1, 3).repeat_interleave(3, 0).repeat_interleave(3, 1)
    own = torch.block_diag(*[before(3)] * 27)
    assert torch.equal(found, pixels | own)


@pytest.mark.parametrize("shape", [(3, 10), (9, 4), (3, 3, 6)])
def test_a_diagonal_lstm_sees_all_before(shape: tuple[int, ...], depends: Depends) -> None:
    torch.manual_seed(1)
    network = DiagonalBiLSTM(shape, 12, 1, FOUR)
    assert torch.equal(depends(network), before(len(network.order)))


@torch.no_grad()
def told_by_maps(network: RowLSTM | DiagonalBiLSTM) -> torch.Tensor:
    """Return which numbers change with which pixel's context, (pixel, told pixel)."""
    network = network.double()
    assert network.context_shape is not None
    count = len(network.order)
    x = torch.zeros(count + 1, *network.event_shape)
    maps = torch.randn(network.context_shape).repeat(count + 1, 1, 1, 1).double()
    maps[1:].flatten(2)[torch.arange(count), :, torch.arange(count)] += 3
    numbers = network.numbers(x, maps).flatten(1)
    return ((numbers[1:] - numbers[0]).abs() > 1e-12).T


def test_feature_maps_tell_each_pixel_of_its_own_place_and_of_what_its_states_see() -> None:
    torch.manual_seed(1)
    place = torch.arange(20)
    up, right = (place[:, None] // 5 - place // 5), (place % 5 - (place % 5)[:, None])
    found = told_by_maps(RowLSTM((4, 5), 6, 1, context_maps=2))
    assert torch.equal(found, (up >= 0) & (right.abs() <= up))
    found = told_by_maps(DiagonalBiLSTM((4, 5), 6, 1, context_maps=2))
    assert torch.equal(found, before(20) | torch.eye(20).bool())


class NoColumnBeyond(DiagonalBiLSTM):
    """As in the paper."""

    columns_beyond = 0


def test_the_last_pixel_of_a_row_would_be_in_a_blind_spot(depends: Depends) -> None:
    torch.manual_seed(1)
    found = depends(NoColumnBeyond((3, 10), 6, 2, FOUR))
    missing = torch.zeros(30, 30, dtype=torch.bool)
    for row in (1, 2):  # the first convolution sees it from 3 columns away
        missing[row * 10 : row * 10 + 6, row * 10 - 1] = True
    assert torch.equal(before(30) & ~found, missing)


@torch.no_grad()
def test_diagonals_are_the_same_as_pixel_by_pixel() -> None:
    torch.manual_seed(0)
    height, width, features = 3, 4, 2
    layer = _DiagonalLayer(features, 1, None, None).double()
    gates = torch.randn(2, 1, 4, features, height, width).double()
    zero = torch.zeros(features).double()
    expected = torch.zeros(features, height, width).double()
    for direction, step in enumerate((-1, 1)):
        cells: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        for row in range(height):
            for column in range(width)[::-step]:
                memory, beside = cells.get((row, column + step), (zero, zero))
                _, above = cells.get((row - 1, column), (zero, zero))
                seen = torch.cat([beside, above]) @ layer.from_state[direction]
                output, forget, write, content = gates[
                    direction, 0, :, :, row, column
                ] + seen.reshape(4, features)
                memory = forget.sigmoid() * memory + write.sigmoid() * content.tanh()
                state = output.sigmoid() * memory.tanh()
                cells[row, column] = memory, state
                if row + direction < height:
                    expected[:, row + direction, column] += state
    torch.testing.assert_close(layer.states(gates)[0], expected, rtol=1e-12, atol=1e-14)
