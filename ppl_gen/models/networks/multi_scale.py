"""Two networks of images: one of every other pixel, and one of the rest that is told these."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ppl_gen.core.errors import check_count
from ppl_gen.distributions import AutoregressiveNetwork
from ppl_gen.models.networks.image_context import context_layer, told
from ppl_gen.models.networks.pixel_cnn import image_channels, planes_of

__all__ = ["MultiScale"]


class _Upsampling(nn.Module):
    """Convolutions of a small image, and a transposed one to feature maps of the size of a large.

    Args:
        channels: Number of channels of the image.
        features: Number of features of a layer.
        layers: Number of convolutions before the transposed one; each sees one pixel further.
        maps: Number of feature maps.
        strides: How many times as high and wide these are.
        context_size: Size of a vector that joins the first layer; None for none.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        layers: int,
        maps: int,
        strides: tuple[int, int],
        context_size: int | None,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, features, 3, padding=1)
        self.from_context = context_layer(context_size, None, features)
        self.blocks = nn.ModuleList(
            nn.Conv2d(features, features, 3, padding=1) for _ in range(layers - 1)
        )
        self.last = nn.ConvTranspose2d(features, maps, strides, strides)

    def forward(self, pixels: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        hidden = self.first(pixels)
        if self.from_context is not None:
            hidden = hidden + told(self.from_context, context)
        for block in self.blocks:
            hidden = hidden + block(F.relu(hidden))
        maps: torch.Tensor = self.last(F.relu(hidden))
        return maps


class MultiScale(AutoregressiveNetwork):
    r"""A small image first, of every s-th pixel, and then the pixels between, told all of it.

    .. math::
        p(x) = p_\text{coarse}(c) \prod_i p_\text{fine}(x_i \mid c, x_{<i})

    The first pixel of each s of a row, in the first row of each s, is one of the small image c. It
    comes first, in the order of `coarse`. The other pixels follow in the order of `fine`, which is
    told the small image as feature maps, made by convolutions, the last one transposed; how far it
    looks ahead in it is up to `layers`, and to its own. `coarse` may be a `MultiScale` in its turn.

    Given a small image, `sample` draws large ones from their exact distribution, as no network in
    reading order does: `given[..., ::s, ::s]` is the small image, and all else NaN.

    Args:
        coarse: A network of small images, without a context, or told a vector such as a class: of
            that `fine` is told as well.
        fine: A network of whole images that is told feature maps: `GatedPixelCNN`, `RowLSTM` or
            `DiagonalBiLSTM` with `context_maps`. Its elements are of the same kind.
        features: Number of features of a convolution of the small image.
        layers: Number of such convolutions, each of which sees one small pixel further to all
            sides.

    Attributes:
        strides: Of how many rows, and of how many columns, one is in the small image: s by the
            sizes of both images, for each axis.

    Raises:
        TypeError: If one of the two is no network.
        ValueError: If they do not fit together, or a number is out of range.

    References:
        Pixel Recurrent Neural Networks. van den Oord, Kalchbrenner and Kavukcuoglu, 2016.
        arXiv:1601.06759.

    Example:
        >>> from ppl_gen.models.networks import GatedPixelCNN
        >>> coarse = GatedPixelCNN((4, 4), features=8, layers=2)
        >>> fine = GatedPixelCNN((8, 8), features=8, layers=2, context_maps=4)
        >>> images = MultiScale(coarse, fine)()
        >>> given = torch.full((8, 8), torch.nan)
        >>> given[::2, ::2] = coarse().sample()
        >>> images.sample((5,), given=given).shape
        torch.Size([5, 8, 8])
    """

    def __init__(
        self,
        coarse: AutoregressiveNetwork,
        fine: AutoregressiveNetwork,
        features: int = 32,
        layers: int = 3,
    ) -> None:
        check_count("features", features)
        check_count("layers", layers)
        maps = _checked(coarse, fine)
        strides = _strides(coarse.event_shape, fine.event_shape)
        order = _coarse_first(coarse.order, fine.order, fine.event_shape, strides)
        super().__init__(fine.event_shape, fine.elements, coarse.context_shape, order)
        self.coarse, self.fine = coarse, fine
        self.features, self.layers, self.strides = features, layers, strides
        context_size = None if coarse.context_shape is None else coarse.context_shape[0]
        channels = image_channels(self.event_shape)
        self.upsampling = _Upsampling(channels, features, layers, maps, strides, context_size)

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return the numbers for each element, `(n, *image_shape, number)`."""
        height, width = self.event_shape[-2:]
        small = x[..., :: self.strides[0], :: self.strides[1]]
        pixels = self.elements.features(small, self.upsampling.last.weight)
        maps = self.upsampling(planes_of(pixels), context)[..., :height, :width]
        return self._joined(self.coarse.numbers(small, context), self.fine.numbers(x, maps))

    def _joined(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """Return those of the small image, (..., height, width, number), in place of the others.

        A pixel's numbers by `fine` may depend on the pixel itself where it is of the small image.
        """
        rows, columns = self.strides
        down, across = coarse.shape[-3:-1]
        height, width = fine.shape[-3:-1]
        # Whole cells of pixels, of which those of the small image are the first.
        cells = F.pad(fine, (0, 0, 0, across * columns - width, 0, down * rows - height))
        cells = cells.unflatten(-2, (across, columns)).unflatten(-4, (down, rows))
        first = coarse.unsqueeze(-2).unsqueeze(-4)
        upper = torch.cat([first, cells[..., :1, :, 1:, :]], dim=-2)
        cells = torch.cat([upper, cells[..., 1:, :, :, :]], dim=-4)
        return cells.flatten(-3, -2).flatten(-4, -3)[..., :height, :width, :]


def _coarse_first(
    coarse: torch.Tensor, fine: torch.Tensor, event_shape: torch.Size, strides: tuple[int, int]
) -> torch.Tensor:
    """Return flat indices of the elements: those of the small image, then the others."""
    places = torch.arange(len(fine)).reshape(event_shape)
    small = places[..., :: strides[0], :: strides[1]].flatten()
    rest = fine.cpu()
    return torch.cat([small[coarse.cpu()], rest[~torch.isin(rest, small)]])


def _strides(small: torch.Size, large: torch.Size) -> tuple[int, int]:
    """Return of how many rows, and of how many columns, one is in the small image."""
    if len(small) == len(large) and small[:-2] == large[:-2]:
        sizes = list(zip(small[-2:], large[-2:], strict=True))
        rows, columns = (-(-whole // part) for part, whole in sizes)
        fits = all(
            len(range(0, whole, stride)) == part
            for (part, whole), stride in zip(sizes, (rows, columns), strict=True)
        )
        if fits and rows * columns > 1:
            return rows, columns
    halved = (*large[:-2], *(-(-size // 2) for size in large[-2:]))
    msg = (
        f"coarse: expected images of every s-th pixel of each axis of {tuple(large)}, with as many "
        f"channels, got {tuple(small)}. For s = 2 they are {halved}."
    )
    raise ValueError(msg)


def _checked(coarse: AutoregressiveNetwork, fine: AutoregressiveNetwork) -> int:
    """Refuse networks that do not fit together; return the number of feature maps between them."""
    for name, network in (("coarse", coarse), ("fine", fine)):
        if not isinstance(network, AutoregressiveNetwork):
            msg = f"{name}: expected an autoregressive network, got {type(network).__name__}."
            raise TypeError(msg)
        if len(network.event_shape) not in (2, 3):
            msg = (
                f"{name}: expected a network of images, (height, width) or (channels, height, "
                f"width), got event_shape={tuple(network.event_shape)}."
            )
            raise ValueError(msg)
        if type(network).forward is not AutoregressiveNetwork.forward:
            # Its distribution is not the one that its numbers alone make.
            msg = (
                f"{name}: expected a network of one ordering, such as MADE, got "
                f"{type(network).__name__}."
            )
            raise ValueError(msg)
    if coarse.elements != fine.elements:
        msg = (
            f"fine: expected the elements of coarse, {coarse.elements}, got {fine.elements}. Make "
            "both networks with the same elements=."
        )
        raise ValueError(msg)
    if coarse.context_shape is not None and len(coarse.context_shape) != 1:
        msg = (
            "coarse: expected a network without a context, or with a vector (context_size=), got "
            f"a context of shape {tuple(coarse.context_shape)}."
        )
        raise ValueError(msg)
    maps = () if fine.context_shape is None else tuple(fine.context_shape)
    size = tuple(fine.event_shape[-2:])
    if len(maps) != 3 or maps[1:] != size:
        got = f"a context of shape {maps}" if maps else "none"
        msg = (
            "fine: expected a network whose context is feature maps of the small image, "
            f"(maps, {size[0]}, {size[1]}), got {got}. Make it with context_maps=, and without "
            "context_size=; a context that coarse has it is told through these."
        )
        raise ValueError(msg)
    return maps[0]
