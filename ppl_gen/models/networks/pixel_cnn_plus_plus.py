"""PixelCNN++: shifted convolutions at several sizes of the image, with short-cuts between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from ppl_gen.core.errors import check_count
from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.models.checks import vector_shape
from ppl_gen.models.networks.channel_coupling import coupled_numbers, num_coupled
from ppl_gen.models.networks.masked_convolution import reading_order
from ppl_gen.models.networks.pixel_cnn import image_channels, planes_of

__all__ = ["PixelCNNPlusPlus"]

# What is known of the rows above each pixel, and of these and of what is to its left.
_Stacks: TypeAlias = tuple[torch.Tensor, torch.Tensor]

# Of the last weights of a block, so that it begins as little more than the identity.
_LAST_SCALE = 0.1


def _concat_elu(x: torch.Tensor) -> torch.Tensor:
    """Return the ELU of features and of their negatives, twice as many."""
    return F.elu(torch.cat([x, -x], dim=1))


def _moved_down(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x, (0, 0, 1, -1))


def _moved_right(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x, (1, -1))


class _ShiftedConv2d(nn.Conv2d):
    """A convolution that sees its own row and those above.

    Args:
        inputs: Number of input features.
        outputs: Number of output features.
        kernel_size: Height and width.
        sees_right: Whether its kernel goes as far to the right as to the left, or ends at its own
            column.
        stride: Of 2, it halves the image, rounded up.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: tuple[int, int],
        *,
        sees_right: bool,
        stride: int = 1,
    ) -> None:
        super().__init__(inputs, outputs, kernel_size, stride)
        height, width = kernel_size
        sides = (width // 2, width // 2) if sees_right else (width - 1, 0)
        self.around = (*sides, height - 1, 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, self.around))


class _Block(nn.Module):
    """A residual block with a gate.

    Args:
        features: Number of features.
        shortcut: Number of features that join it from elsewhere; 0 for none.
        sees_right: Whether it is of the vertical stack.
        dropout: Share of features that are dropped in training.
        context_size: Size of the context; None for none.
    """

    def __init__(
        self,
        features: int,
        shortcut: int,
        dropout: float,
        context_size: int | None,
        *,
        sees_right: bool,
    ) -> None:
        super().__init__()
        kernel = (2, 3 if sees_right else 2)
        self.first = _ShiftedConv2d(2 * features, features, kernel, sees_right=sees_right)
        self.last = _ShiftedConv2d(2 * features, 2 * features, kernel, sees_right=sees_right)
        self.from_shortcut = nn.Conv2d(2 * shortcut, features, 1) if shortcut else None
        self.from_context = None if context_size is None else nn.Linear(context_size, 2 * features)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            self.last.weight.mul_(_LAST_SCALE)

    def forward(
        self, x: torch.Tensor, shortcut: torch.Tensor | None, context: torch.Tensor | None
    ) -> torch.Tensor:
        hidden = self.first(_concat_elu(x))
        if self.from_shortcut is not None:
            assert shortcut is not None
            hidden = hidden + self.from_shortcut(_concat_elu(shortcut))
        hidden = self.last(self.dropout(_concat_elu(hidden)))
        if self.from_context is not None:
            assert context is not None
            hidden = hidden + self.from_context(context)[:, :, None, None]
        signal, gate = hidden.chunk(2, dim=1)
        gated: torch.Tensor = signal * gate.sigmoid()
        return x + gated


class _Blocks(nn.Module):
    """A block of each stack; the horizontal one takes in the vertical one.

    Args:
        features: Number of features.
        dropout: Share of features that are dropped in training.
        context_size: Size of the context; None for none.
        joined: Whether short-cuts from the way down join them.
    """

    def __init__(
        self, features: int, dropout: float, context_size: int | None, *, joined: bool
    ) -> None:
        super().__init__()
        own = features if joined else 0
        self.vertical = _Block(features, own, dropout, context_size, sees_right=True)
        self.horizontal = _Block(features, features + own, dropout, context_size, sees_right=False)

    def forward(
        self, stacks: _Stacks, shortcuts: _Stacks | None, context: torch.Tensor | None
    ) -> _Stacks:
        above, beside = (None, None) if shortcuts is None else shortcuts
        vertical = self.vertical(stacks[0], above, context)
        joining = vertical if beside is None else torch.cat([vertical, beside], dim=1)
        return vertical, self.horizontal(stacks[1], joining, context)


class _Halved(nn.Module):
    """Both stacks at half the size, rounded up."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.vertical = _ShiftedConv2d(features, features, (2, 3), sees_right=True, stride=2)
        self.horizontal = _ShiftedConv2d(features, features, (2, 2), sees_right=False, stride=2)

    def forward(self, stacks: _Stacks) -> _Stacks:
        return self.vertical(stacks[0]), self.horizontal(stacks[1])


class _Doubled(nn.Module):
    """Both stacks at twice the size, or at one pixel less."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.vertical = nn.ConvTranspose2d(features, features, (2, 3), 2, (0, 1), (0, 1))
        self.horizontal = nn.ConvTranspose2d(features, features, 2, 2)

    def forward(self, stacks: _Stacks, size: torch.Size) -> _Stacks:
        height, width = size
        vertical, horizontal = self.vertical(stacks[0]), self.horizontal(stacks[1])
        return vertical[:, :, :height, :width], horizontal[:, :, :height, :width]


class PixelCNNPlusPlus(AutoregressiveNetwork):
    """Shifted convolutions in two stacks at several sizes, pixel by pixel in reading order.

    On the way down the image is halved, on the way up doubled, and blocks of the same size are
    joined by short-cuts: what is far away is seen through the small sizes, without a blind spot.
    The channels of a pixel are coupled by `coupled_numbers`: of a mixture of logistics they share
    one component. Training drops features; evaluation does not.

    Unlike in the paper, weights are not normalised: begun with blocks near the identity, as there,
    the network was trained faster and to a better density without. Nor is the image given a further
    channel of ones.

    Args:
        image_shape: Height and width, or number of channels, height and width.
        features: Number of features of a block.
        layers: Number of blocks at each size, on either way; on the way up one more of each size
            but the smallest.
        sizes: Number of sizes: 3 are the image's own, its half and its quarter, rounded up.
        dropout: Share of features that are dropped in training.
        elements: What the channels of a pixel are.
        context_size: Size of the context, a vector that joins every block; None for none.

    Raises:
        ValueError: If an option is out of range, or the image is too small for so many sizes.

    References:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
        Modifications. Salimans, Karpathy, Chen and Kingma, 2017. arXiv:1701.05517.

    Example:
        >>> network = PixelCNNPlusPlus((3, 6, 7), features=8, layers=1)
        >>> network.numbers(torch.zeros(5, 3, 6, 7)).shape
        torch.Size([5, 3, 6, 7, 30])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        features: int = 64,
        layers: int = 5,
        sizes: int = 3,
        dropout: float = 0.5,
        elements: Elements = Elements("logistic_mixture"),  # noqa: B008 - it is frozen
        context_size: int | None = None,
    ) -> None:
        channels = image_channels(image_shape)
        order = reading_order(image_shape)
        super().__init__(image_shape, elements, vector_shape(context_size), order)
        for name, value in (("features", features), ("layers", layers), ("sizes", sizes)):
            check_count(name, value)
        _check_sizes(self.event_shape, sizes)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected at least 0 and less than 1, got {dropout}.")
        self.image_shape = self.event_shape
        self.features, self.layers, self.sizes = features, layers, sizes
        self.dropout, self.context_size = dropout, context_size
        # Of the rows above; of what is above to either side, and of what is to the left.
        self.above = _ShiftedConv2d(channels, features, (2, 3), sees_right=True)
        self.near_above = _ShiftedConv2d(channels, features, (1, 3), sees_right=True)
        self.left = _ShiftedConv2d(channels, features, (2, 1), sees_right=False)

        def blocks(count: int, *, joined: bool) -> list[nn.Module]:
            return [_Blocks(features, dropout, context_size, joined=joined) for _ in range(count)]

        down, up = blocks(layers, joined=False), blocks(layers, joined=True)
        for _ in range(sizes - 1):
            down += [_Halved(features), *blocks(layers, joined=False)]
            # One more, for the stacks as they were before the first block of their size.
            up += [_Doubled(features), *blocks(layers + 1, joined=True)]
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.last = nn.Conv2d(features, num_coupled(elements, channels), 1)

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return the numbers for each element, `(n, *image_shape, number)`."""
        planes = planes_of(x)
        pixels = self.elements.features(planes, self.last.weight)
        vertical = _moved_down(self.above(pixels))
        horizontal = _moved_down(self.near_above(pixels)) + _moved_right(self.left(pixels))
        passed: list[_Stacks] = [(vertical, horizontal)]
        for step in self.down:
            halves = isinstance(step, _Halved)
            passed.append(step(passed[-1]) if halves else step(passed[-1], None, context))
        stacks = passed.pop()
        for step in self.up:
            if isinstance(step, _Doubled):
                stacks = step(stacks, passed[-1][0].shape[-2:])
            else:
                stacks = step(stacks, passed.pop(), context)
        features = self.last(F.elu(stacks[1]))
        numbers = coupled_numbers(features, planes, self.elements)
        return numbers.reshape(len(x), *self.event_shape, self.elements.num_outputs)


def _check_sizes(image_shape: Sequence[int], sizes: int) -> None:
    height, width = image_shape[-2:]
    least = 2 ** (sizes - 1)
    if min(height, width) < least:
        msg = (
            f"image_shape: expected at least {least} x {least} pixels, to be halved {sizes - 1} "
            f"times for {sizes} sizes, got {height} x {width}. Give fewer sizes."
        )
        raise ValueError(msg)
