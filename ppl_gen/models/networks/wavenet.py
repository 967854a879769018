"""WaveNet: dilated causal convolutions of a waveform."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ppl_gen.core.errors import check_count
from ppl_gen.distributions import AutoregressiveNetwork, Elements

__all__ = ["WaveNet"]


class _Layer(nn.Module):
    """A dilated convolution with a gate, whose output goes on to the next layer and to the end."""

    def __init__(self, features: int, skip: int, dilation: int, context_size: int | None) -> None:
        super().__init__()
        self.dilation = dilation
        self.convolution = nn.Conv1d(features, 2 * features, 2, dilation=dilation)
        self.out = nn.Conv1d(features, features + skip, 1)
        self.from_context = (
            None if context_size is None else nn.Linear(context_size, 2 * features, bias=False)
        )

    def forward(
        self, x: torch.Tensor, context: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.convolution(F.pad(x, (self.dilation, 0)))
        if self.from_context is not None and context is not None:
            hidden = hidden + self.from_context(context).unsqueeze(-1)
        signal, gate = hidden.chunk(2, dim=1)
        out = self.out(signal.tanh() * gate.sigmoid())
        return x + out[:, : x.shape[1]], out[:, x.shape[1] :]


class WaveNet(AutoregressiveNetwork):
    """Dilated causal convolutions over a sequence, such as the samples of a waveform.

    Layers come in cycles of dilations 1, 2, 4, ...; `receptive_field` is how many samples before
    one it sees.

    Args:
        length: Number of samples.
        features: Number of features of a layer.
        skip: Number of features that go from each layer to the end.
        layers: Number of layers.
        cycle: Number of layers after which the dilations start again at 1.
        elements: What the samples are.
        context_size: Size of a vector that comes with a sequence, such as a speaker or a class;
            None for none.

    References:
        WaveNet: A Generative Model for Raw Audio. van den Oord, Dieleman, Zen, Simonyan, Vinyals,
        Graves, Kalchbrenner, Senior and Kavukcuoglu, 2016. arXiv:1609.03499.

    Example:
        >>> network = WaveNet(100, features=8, skip=8, layers=4, cycle=4)
        >>> network.numbers(torch.zeros(5, 100)).shape, network.receptive_field
        (torch.Size([5, 100, 256]), 17)
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
    ) -> None:
        for name, value in (("length", length), ("layers", layers), ("cycle", cycle)):
            check_count(name, value)
        super().__init__((length,), elements, None if context_size is None else (context_size,))
        dilations = [2 ** (index % cycle) for index in range(layers)]
        self.first = nn.Conv1d(1, features, 2)
        self.layers = nn.ModuleList(
            _Layer(features, skip, dilation, context_size) for dilation in dilations
        )
        self.hidden = nn.Conv1d(skip, skip, 1)
        self.last = nn.Conv1d(skip, elements.num_outputs, 1)
        self.receptive_field = 2 + sum(dilations)

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return the numbers for each sample, `(n, length, number)`."""
        samples = self.elements.features(x, self.last.weight).unsqueeze(1)
        # Each sees the two before it, none itself.
        hidden = self.first(F.pad(samples, (2, 0))[..., :-1])
        total: torch.Tensor | float = 0.0
        for layer in self.layers:
            hidden, skipped = layer(hidden, context)
            total = total + skipped
        assert isinstance(total, torch.Tensor)
        numbers: torch.Tensor = self.last(F.relu(self.hidden(F.relu(total))))
        return numbers.movedim(1, -1)
