"""PixelRNN: LSTMs that run over an image row by row, or along its diagonals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ppl_gen.core.errors import check_count
from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.models.networks.image_context import context_layer, image_context_shape, told
from ppl_gen.models.networks.masked_convolution import (
    MaskedConv2d,
    check_features,
    check_kernel_size,
    reading_order,
)
from ppl_gen.models.networks.pixel_cnn import as_planes, image_channels, planes_of

__all__ = ["DiagonalBiLSTM", "RowLSTM"]

# Output, forget and input gate, and what is written.
_GATES = 4


def _cell(
    gates: torch.Tensor, memory: torch.Tensor, axis: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the memory and the state of LSTM cells.

    Args:
        gates: The four gates' numbers, one after the other along the axis of features.
        memory: The cells' memory of the step before.
        axis: The axis of features.
    """
    output, forget, write, content = gates.chunk(_GATES, dim=axis)
    memory = forget.sigmoid() * memory + write.sigmoid() * content.tanh()
    return memory, output.sigmoid() * memory.tanh()


class _Layer(nn.Module, ABC):
    """A residual layer of LSTM cells, one for each pixel.

    What it sees of the input is computed for the whole image at once.

    Args:
        features: Number of features of a state; twice as many go in and out.
        channels: Number of channels of the image.
        context_size: Size of the context; None for none.
        context_maps: Number of its feature maps; None where it is no image.
        kernel_size: Width of the kernel over the input.
        directions: Number of states for each pixel.
    """

    def __init__(
        self,
        features: int,
        channels: int,
        context_size: int | None,
        context_maps: int | None,
        *,
        kernel_size: int = 1,
        directions: int = 1,
    ) -> None:
        super().__init__()
        self.features, self.channels, self.directions = features, channels, directions
        count = directions * _GATES * features
        self.from_input = MaskedConv2d(
            2 * features, count, (1, kernel_size), includes_own=True, channels=channels
        )
        self.from_context = context_layer(context_size, context_maps, count)
        self.out = MaskedConv2d(features, 2 * features, 1, includes_own=True, channels=channels)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        gates = self.from_input(x)
        if context is not None:
            assert self.from_context is not None
            gates = gates + told(self.from_context, context)
        # Masks have features channel by channel, cells have them gate by gate.
        shape = (self.channels, self.directions, _GATES, self.features // self.channels)
        gates = gates.unflatten(1, shape).permute(2, 0, 3, 1, 4, 5, 6).flatten(3, 4)
        widened: torch.Tensor = self.out(self.states(gates))
        return x + widened

    @abstractmethod
    def states(self, gates: torch.Tensor) -> torch.Tensor:
        """Return states, `(n, features, height, width)`.

        Args:
            gates: What the input makes of the gates, `(direction, n, 4, features, height, width)`.
        """


class _RowLayer(_Layer):
    """Each cell sees the states of the row above: its neighbours by a convolution along the row."""

    def __init__(
        self,
        features: int,
        channels: int,
        context_size: int | None,
        context_maps: int | None,
        kernel_size: int,
    ) -> None:
        super().__init__(features, channels, context_size, context_maps, kernel_size=kernel_size)
        self.from_state = nn.Conv1d(
            features, _GATES * features, kernel_size, padding=kernel_size // 2, bias=False
        )

    def states(self, gates: torch.Tensor) -> torch.Tensor:
        _, n, _, features, _, width = gates.shape
        memory = state = torch.zeros(n, features, width, dtype=gates.dtype, device=gates.device)
        states = []
        for row in gates[0].flatten(1, 2).unbind(2):
            memory, state = _cell(row + self.from_state(state), memory, axis=1)
            states.append(state)
        return torch.stack(states, dim=2)


class _DiagonalLayer(_Layer):
    """Each cell sees the states of the pixel above and of the one to its left, or to its right.

    Both are on the diagonal before its own, so that a diagonal is computed at once.
    """

    def __init__(
        self, features: int, channels: int, context_size: int | None, context_maps: int | None
    ) -> None:
        super().__init__(features, channels, context_size, context_maps, directions=2)
        # Of the pixel beside and of the one above.
        bound = (2 * features) ** -0.5
        weight = torch.empty(2, 2 * features, _GATES * features).uniform_(-bound, bound)
        self.from_state = nn.Parameter(weight)

    def states(self, gates: torch.Tensor) -> torch.Tensor:
        _, n, _, features, height, width = gates.shape
        both = torch.stack([gates[0], gates[1].flip(-1)])
        skewed = _skewed(both.permute(0, 4, 5, 1, 2, 3).flatten(4))
        memory = state = torch.zeros(2, 1, n, features, dtype=gates.dtype, device=gates.device)
        states = []
        before = range(1)
        for step, diagonal in enumerate(skewed.unbind(2)):
            # Its pixels alone: a third to a half of the places of all diagonals have none.
            rows = range(max(0, step - width + 1), min(step + 1, height))
            above = _of_rows(state, before, range(rows.start - 1, rows.stop - 1))
            seen = torch.cat([_of_rows(state, before, rows), above], dim=-1).flatten(1, 2)
            seen = torch.bmm(seen, self.from_state).unflatten(1, (len(rows), n))
            seen = seen + diagonal[:, rows.start : rows.stop]
            memory, state = _cell(seen, _of_rows(memory, before, rows), axis=-1)
            states.append(_of_rows(state, rows, range(height)))
            before = rows
        maps = _unskewed(torch.stack(states, dim=2), width).permute(0, 3, 4, 1, 2)
        # What the other direction saw to the right of a pixel comes before the pixel below it.
        return maps[0] + F.pad(maps[1].flip(-1), (0, 0, 1, -1))


def _of_rows(x: torch.Tensor, rows: range, wanted: range) -> torch.Tensor:
    """Return other rows of maps that have some, (direction, row, n, feature): else zeros."""
    return F.pad(x, (0, 0, 0, 0, rows.start - wanted.start, wanted.stop - rows.stop))


def _skewed(x: torch.Tensor) -> torch.Tensor:
    """Return maps with row i moved i places to the right: diagonals become columns.

    Args:
        x: Maps, `(direction, height, width, n, feature)`.

    Returns:
        Maps, `(direction, height, width + height - 1, n, feature)`, zero where there is no pixel.
    """
    height, width = x.shape[1:3]
    rows = F.pad(x, (0, 0, 0, 0, 0, height)).flatten(1, 2)
    skewed: torch.Tensor = rows[:, : height * (width + height - 1)].unflatten(1, (height, -1))
    return skewed


def _unskewed(x: torch.Tensor, width: int) -> torch.Tensor:
    """Return the maps of a width that these are skewed from."""
    height = x.shape[1]
    rows = F.pad(x.flatten(1, 2), (0, 0, 0, 0, 0, height))
    maps: torch.Tensor = rows.unflatten(1, (height, -1))[:, :, :width]
    return maps


class _PixelRNN(AutoregressiveNetwork):
    """A masked convolution, layers of LSTM cells, and two masked convolutions of single pixels."""

    columns_beyond = 0
    """How many columns are added to the right of the image, for the layers alone."""

    def __init__(
        self,
        image_shape: Sequence[int],
        features: int,
        layers: int,
        elements: Elements,
        context_size: int | None,
        context_maps: int | None,
        make_layer: Callable[[int], _Layer],
    ) -> None:
        channels = image_channels(image_shape)
        context_shape = image_context_shape(image_shape, context_size, context_maps)
        super().__init__(image_shape, elements, context_shape, reading_order(image_shape))
        check_count("layers", layers)
        check_features(features, channels)
        self.image_shape = self.event_shape
        self.features, self.layers = features, layers
        self.context_size, self.context_maps = context_size, context_maps
        self.first = MaskedConv2d(channels, 2 * features, 7, includes_own=False, channels=channels)
        self.blocks = nn.ModuleList(make_layer(channels) for _ in range(layers))
        width, outputs = 2 * features, channels * elements.num_outputs
        self.hidden = MaskedConv2d(width, width, 1, includes_own=True, channels=channels)
        self.last = MaskedConv2d(width, outputs, 1, includes_own=True, channels=channels)

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return the numbers for each element, `(n, *image_shape, number)`."""
        pixels = self.elements.features(x, self.last.weight)
        hidden = self.first(F.pad(planes_of(pixels), (0, self.columns_beyond)))
        if self.context_maps is not None:
            assert context is not None
            context = F.pad(context, (0, self.columns_beyond))
        for block in self.blocks:
            hidden = block(hidden, context)
        hidden = hidden[..., : self.event_shape[-1]]
        hidden = F.relu(self.hidden(F.relu(hidden)))
        return as_planes(self.last(hidden), self.event_shape, self.elements.num_outputs)


class RowLSTM(_PixelRNN):
    """PixelRNN whose cells see the row above: pixel by pixel in reading order, channels within one.

    Of a row further up it sees more to both sides, by `kernel_size // 2` for each row: a triangle
    above each pixel. What is to the right of that is a blind spot, which `DiagonalBiLSTM` has not.

    Args:
        image_shape: Height and width, or number of channels, height and width.
        features: Number of features of a cell's state, a multiple of the number of channels; there
            are twice as many between the layers.
        layers: Number of layers of cells.
        kernel_size: Width of the kernels over a row, odd.
        elements: What the channels of a pixel are.
        context_size: Size of the context, a vector that joins every gate; None for none.
        context_maps: In place of it, the number of feature maps of a context with features for each
            pixel, `(context_maps, height, width)`; None for none.

    Raises:
        ValueError: If an option is out of range, or both kinds of context are asked for.

    References:
        Pixel Recurrent Neural Networks. van den Oord, Kalchbrenner and Kavukcuoglu, 2016.
        arXiv:1601.06759.

    Example:
        >>> RowLSTM((8, 8), features=4, layers=2).numbers(torch.zeros(5, 8, 8)).shape
        torch.Size([5, 8, 8, 1])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        features: int = 16,
        layers: int = 7,
        kernel_size: int = 3,
        elements: Elements = Elements(),  # noqa: B008 - it is frozen
        context_size: int | None = None,
        context_maps: int | None = None,
    ) -> None:
        check_kernel_size(kernel_size)

        def make_layer(channels: int) -> _Layer:
            return _RowLayer(features, channels, context_size, context_maps, kernel_size)

        super().__init__(
            image_shape, features, layers, elements, context_size, context_maps, make_layer
        )
        self.kernel_size = kernel_size


class DiagonalBiLSTM(_PixelRNN):
    """PixelRNN whose cells see all pixels before theirs, in reading order, channels within a pixel.

    One direction comes from the upper left, the other from the upper right; a diagonal of pixels is
    computed at once. Unlike in the paper, the layers run over one column more, to the right of the
    image: at each pixel a layer knows what comes before it, so that the last pixel of a row is
    known to nothing in its own row, and would be in a blind spot of the row below.

    Args:
        image_shape: Height and width, or number of channels, height and width.
        features: Number of features of a cell's state, a multiple of the number of channels; there
            are twice as many between the layers.
        layers: Number of layers of cells.
        elements: What the channels of a pixel are.
        context_size: Size of the context, a vector that joins every gate; None for none.
        context_maps: In place of it, the number of feature maps of a context with features for each
            pixel, `(context_maps, height, width)`; None for none.

    Raises:
        ValueError: If an option is out of range, or both kinds of context are asked for.

    References:
        Pixel Recurrent Neural Networks. van den Oord, Kalchbrenner and Kavukcuoglu, 2016.
        arXiv:1601.06759.

    Example:
        >>> DiagonalBiLSTM((8, 8), features=4, layers=2).numbers(torch.zeros(5, 8, 8)).shape
        torch.Size([5, 8, 8, 1])
    """

    columns_beyond = 1

    def __init__(
        self,
        image_shape: Sequence[int],
        features: int = 16,
        layers: int = 7,
        elements: Elements = Elements(),  # noqa: B008 - it is frozen
        context_size: int | None = None,
        context_maps: int | None = None,
    ) -> None:
        def make_layer(channels: int) -> _Layer:
            return _DiagonalLayer(features, channels, context_size, context_maps)

        super().__init__(
            image_shape, features, layers, elements, context_size, context_maps, make_layer
        )
