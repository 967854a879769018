"""WaveNet: dilated causal convolutions of a waveform."""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ppl_gen.core.errors import check_count, unknown
from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.models.checks import vector_shape

__all__ = ["WaveNet"]

_UPSAMPLINGS = ("repeat", "transposed")


class _Layer(nn.Module):
    """A dilated convolution with a gate, whose output goes on to the next layer and to the end."""

    def __init__(self, features: int, skip: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.convolution = nn.Conv1d(features, 2 * features, 2, dilation=dilation)
        self.out = nn.Conv1d(features, features + skip, 1)

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.convolution(F.pad(x, (self.dilation, 0)))
        if condition is not None:
            hidden = hidden + condition
        signal, gate = hidden.chunk(2, dim=1)
        out = self.out(signal.tanh() * gate.sigmoid())
        return x + out[:, : x.shape[1]], out[:, x.shape[1] :]


class WaveNet(AutoregressiveNetwork):
    """Dilated causal convolutions over a sequence, such as the samples of a waveform.

    Layers come in cycles of dilations 1, 2, 4, ...; `receptive_field` is how many samples before
    one it sees. The elements may be the 256 mu-law levels of the paper, each a category; or, with
    `Elements("logistic_mixture", 65536)`, 16-bit samples.

    A context is a vector that holds for the whole sequence, such as a speaker or a class (global
    conditioning), or features of each frame of `hop_length` samples (local conditioning). To have
    both, give the vector again in each frame,
    beside the features: repeated, the two conditionings are the same function of it.

    Args:
        length: Number of samples.
        features: Number of features of a layer.
        skip: Number of features that go from each layer to the end.
        layers: Number of layers.
        cycle: Number of layers after which the dilations start again at 1.
        elements: What the samples are.
        context_size: Size of the vector that comes with a sequence, or with each of its frames;
            None for none.
        hop_length: Number of samples in a frame; None: the context is one vector.
        upsample: How frames are brought to the rate of the samples: "repeat", or "transposed", a
            learned transposed convolution that blends neighbours.

    Raises:
        TypeError: If a number is not whole.
        ValueError: If a number is too small, the upsampling is unknown, or there are frames
            without a size.

    References:
        WaveNet: A Generative Model for Raw Audio. van den Oord, Dieleman, Zen, Simonyan, Vinyals,
        Graves, Kalchbrenner, Senior and Kavukcuoglu, 2016. arXiv:1609.03499.

    Example:
        >>> network = WaveNet(100, features=8, skip=8, layers=4, cycle=4)
        >>> network.numbers(torch.zeros(5, 100)).shape, network.receptive_field
        (torch.Size([5, 100, 256]), 17)
        >>> spoken = WaveNet(100, features=8, skip=8, layers=4, context_size=3, hop_length=10)
        >>> spoken(torch.zeros(5, 3, 10)).sample().shape
        torch.Size([5, 100])
    """

    def __init__(
        self,
        length: int,
        features: int = 64,
        skip: int = 64,
        layers: int = 20,
        cycle: int = 10,
        elements: Elements = Elements("categorical", 256),  # noqa: B008 - it is frozen
        context_size: int | None = None,
        hop_length: int | None = None,
        upsample: Literal["repeat", "transposed"] = "repeat",
    ) -> None:
        counts = {"length": length, "features": features, "skip": skip, "layers": layers}
        for name, value in {**counts, "cycle": cycle}.items():
            check_count(name, value)
        super().__init__((length,), elements, _context_shape(context_size, hop_length, length))
        if upsample not in _UPSAMPLINGS:
            raise unknown("upsample", upsample, _UPSAMPLINGS)
        self.length = length
        self.features = features
        self.skip = skip
        self.layers = layers
        self.cycle = cycle
        self.context_size = context_size
        self.hop_length = hop_length
        self.upsample = upsample
        dilations = [2 ** (index % cycle) for index in range(layers)]
        self.receptive_field = 2 + sum(dilations)

        self.first = nn.Conv1d(1, features, 2)
        self.blocks = nn.ModuleList(_Layer(features, skip, dilation) for dilation in dilations)
        self.hidden = nn.Conv1d(skip, skip, 1)
        self.last = nn.Conv1d(skip, elements.num_outputs, 1)
        if context_size is not None:
            self.conditions = nn.Conv1d(context_size, layers * 2 * features, 1, bias=False)
        if context_size is not None and hop_length is not None and upsample == "transposed":
            # Each sample sees two frames.
            self.spread = nn.ConvTranspose1d(
                context_size, context_size, 2 * hop_length, hop_length, hop_length // 2
            )

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return the numbers for each sample, `(n, length, number)`."""
        samples = self.elements.features(x, self.last.weight).unsqueeze(1)
        # Each sees the two before it, none itself.
        hidden = self.first(F.pad(samples, (2, 0))[..., :-1])
        total: torch.Tensor | float = 0.0
        for layer, condition in zip(self.blocks, self._conditions(context), strict=True):
            hidden, skipped = layer(hidden, condition)
            total = total + skipped
        assert isinstance(total, torch.Tensor)
        numbers: torch.Tensor = self.last(F.relu(self.hidden(F.relu(total))))
        return numbers.movedim(1, -1)

    def with_length(self, length: int) -> WaveNet:
        """Return the same network, its weights shared, of sequences of another length.

        Args:
            length: Number of samples.

        Raises:
            TypeError: If it is no whole number.
            ValueError: If it is below 1.
        """
        check_count("length", length)
        made = copy.copy(self)
        made._buffers = {**self._buffers, "order": torch.arange(length, device=self.order.device)}
        made.length, made.event_shape = length, torch.Size((length,))
        shape = _context_shape(self.context_size, self.hop_length, length)
        made.context_shape = None if shape is None else torch.Size(shape)
        return made

    def _conditions(self, context: torch.Tensor | None) -> list[torch.Tensor | None]:
        """Return what is added in each layer, (n, 2 * features, 1 or length)."""
        if context is None:
            return [None] * self.layers
        if self.hop_length is None:
            return list(self.conditions(context.unsqueeze(-1)).chunk(self.layers, dim=1))
        if self.upsample == "transposed":
            context = self.spread(context)[..., : self.length]
            return list(self.conditions(context).chunk(self.layers, dim=1))
        return [
            each.repeat_interleave(self.hop_length, dim=-1)[..., : self.length]
            for each in self.conditions(context).chunk(self.layers, dim=1)
        ]


def _context_shape(
    context_size: int | None, hop_length: int | None, length: int
) -> tuple[int, ...] | None:
    vector = vector_shape(context_size)
    if hop_length is None:
        return vector
    check_count("hop_length", hop_length)
    if vector is None:
        msg = "context_size: expected the number of features of a frame, got none. Give it."
        raise ValueError(msg)
    return (*vector, -(-length // hop_length))
