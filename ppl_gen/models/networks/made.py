"""Fully connected autoregressive networks: FVBN, NADE and MADE."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.models.checks import check_sizes

__all__ = ["FVBN", "MADE", "NADE"]


class MaskedLinear(nn.Linear):
    """A linear layer some of whose weights are held at zero.

    Args:
        mask: Which weights are not, `(num_outputs, num_inputs)`.
    """

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs, `(*batch, num_outputs)`."""
        return F.linear(x, self.weight * self.mask, self.bias)


class MADE(AutoregressiveNetwork):
    r"""A masked autoencoder: one pass gives the numbers of all elements.

    Hidden unit j has a degree d(j), and is connected to elements before d(j) and to units whose
    degree is not larger, so that the numbers of element i depend on elements before i alone.
    Degrees are spread evenly over the units of a layer. Without hidden layers it is a fully
    visible Bayes network.

    Args:
        event_shape: Shape of what it is a distribution of; the order is that of the flattened
            elements.
        hidden_sizes: Numbers of units of the hidden layers; () for none.
        elements: What the elements are.
        context_size: Size of the context, a vector that joins every layer; None for none.

    References:
        MADE: Masked Autoencoder for Distribution Estimation. Germain, Gregor, Murray and
        Larochelle, 2015. arXiv:1502.03509.

    Example:
        >>> MADE((8, 8), hidden_sizes=(32,)).numbers(torch.zeros(5, 8, 8)).shape
        torch.Size([5, 8, 8, 1])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden_sizes: Sequence[int] = (500,),
        elements: Elements = Elements(),  # noqa: B008 - it is frozen
        context_size: int | None = None,
    ) -> None:
        super().__init__(event_shape, elements, None if context_size is None else (context_size,))
        self.hidden_sizes = check_sizes("hidden_sizes", hidden_sizes, least=0)
        count = math.prod(self.event_shape)
        # An element has its own place for a degree; a unit of degree d sees d of the elements.
        degrees = [torch.arange(count) + 1]
        for size in self.hidden_sizes:
            spread = torch.arange(size) * max(count - 1, 1) // size
            degrees.append(spread + (1 if count > 1 else 0))
        layers = [
            MaskedLinear(after[:, None] >= before) for before, after in itertools.pairwise(degrees)
        ]
        last = torch.arange(count).repeat_interleave(elements.num_outputs)
        layers.append(MaskedLinear(last[:, None] >= degrees[-1]))
        self.layers = nn.ModuleList(layers)
        self.contexts = nn.ModuleList(
            nn.Linear(context_size, layer.out_features, bias=False)
            for layer in layers
            if context_size is not None
        )

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return the numbers for each element, `(n, *event_shape, number)`."""
        first = self.layers[0]
        assert isinstance(first, MaskedLinear)
        hidden = self.elements.features(x, first.weight).flatten(1)
        for index, layer in enumerate(self.layers):
            if index:
                hidden = F.relu(hidden)
            hidden = layer(hidden)
            if context is not None:
                hidden = hidden + self.contexts[index](context)
        return hidden.reshape(-1, *self.event_shape, self.elements.num_outputs)


class FVBN(MADE):
    """A fully visible Bayes network: each element by a linear model of those before it.

    Args:
        event_shape: Shape of what it is a distribution of.
        elements: What the elements are.
        context_size: Size of the context; None for none.

    References:
        Connectionist learning of belief networks. Neal, 1992. Artificial Intelligence 56. Frey,
        Hinton and Dayan, Does the wake-sleep algorithm produce good density estimators?, 1996.

    Example:
        >>> sum(p.numel() for p in FVBN((3,)).parameters())  # of 9 weights 6 are held at zero
        12
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        elements: Elements = Elements(),  # noqa: B008 - it is frozen
        context_size: int | None = None,
    ) -> None:
        super().__init__(event_shape, (), elements, context_size)


class NADE(AutoregressiveNetwork):
    r"""A neural autoregressive distribution estimator: a hidden layer for each element.

    All of these share their weights: with features f of the elements,

    .. math::
        h_i = \sigma\Big(c + \sum_{j < i} W_{\cdot j} f_j\Big), \qquad
        \mathrm{numbers}_i = b_i + V_i h_i.

    Args:
        event_shape: Shape of what it is a distribution of.
        hidden_size: Number of hidden units.
        elements: What the elements are.
        context_size: Size of the context; None for none.

    References:
        The Neural Autoregressive Distribution Estimator. Larochelle and Murray, AISTATS 2011.

    Example:
        >>> NADE((8, 8), hidden_size=16).numbers(torch.zeros(5, 8, 8)).shape
        torch.Size([5, 8, 8, 1])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden_size: int = 500,
        elements: Elements = Elements(),  # noqa: B008 - it is frozen
        context_size: int | None = None,
    ) -> None:
        super().__init__(event_shape, elements, None if context_size is None else (context_size,))
        count, outputs = math.prod(self.event_shape), elements.num_outputs
        bound = 1 / math.sqrt(count)
        self.weight = nn.Parameter(torch.empty(count, hidden_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        bound = 1 / math.sqrt(hidden_size)
        self.out_weight = nn.Parameter(
            torch.empty(count, outputs, hidden_size).uniform_(-bound, bound)
        )
        self.out_bias = nn.Parameter(torch.zeros(count, outputs))
        self.from_context = (
            None if context_size is None else nn.Linear(context_size, hidden_size, bias=False)
        )

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return the numbers for each element, `(n, *event_shape, number)`."""
        features = self.elements.features(x, self.weight).flatten(1)
        added = features.unsqueeze(-1) * self.weight
        before = F.pad(added[:, :-1].cumsum(1), (0, 0, 1, 0)) + self.bias
        if context is not None:
            assert self.from_context is not None
            before = before + self.from_context(context).unsqueeze(1)
        numbers = torch.einsum("nih,ioh->nio", before.sigmoid(), self.out_weight) + self.out_bias
        return numbers.reshape(-1, *self.event_shape, self.elements.num_outputs)
