"""Fully connected autoregressive networks: FVBN, NADE and MADE."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ppl_gen.core.errors import check_count, check_counts
from ppl_gen.distributions import (
    Autoregressive,
    AutoregressiveNetwork,
    Elements,
    OrderingEnsemble,
)
from ppl_gen.distributions.discrete import DiscreteDistribution
from ppl_gen.models.checks import vector_shape

__all__ = ["FVBN", "MADE", "NADE", "OrderAgnosticMADE"]


class MaskedLinear(nn.Linear):
    """A linear layer some of whose weights are held at zero.

    Args:
        mask: Which weights are not, `(num_outputs, num_inputs)`.
        bias: Whether it has a bias.
    """

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor, *, bias: bool = True) -> None:
        super().__init__(mask.shape[1], mask.shape[0], bias=bias)
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the outputs, `(*batch, num_outputs)`, by its own mask or another one."""
        return F.linear(x, self.weight * (self.mask if mask is None else mask), self.bias)


class MADE(AutoregressiveNetwork):
    r"""A masked autoencoder: one pass gives the numbers of all elements.

    Hidden unit j has a degree d(j), and is connected to elements before d(j) and to units whose
    degree is not larger, so that the numbers of element i depend on elements before i alone.
    Degrees are spread evenly over the units of a layer. Direct connections lead from each element
    to the numbers of those after it as well. Without hidden layers it is a fully visible Bayes
    network.

    Args:
        event_shape: Shape of what it is a distribution of; the order is that of the flattened
            elements.
        hidden_sizes: Numbers of units of the hidden layers; () for none.
        elements: What the elements are.
        context_size: Size of the context, a vector that joins every layer; None for none.
        direct_connections: Whether elements are connected to the numbers past the hidden layers
            too; it then learns several times faster.

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
        direct_connections: bool = True,
    ) -> None:
        super().__init__(event_shape, elements, vector_shape(context_size))
        self.hidden_sizes = check_counts("hidden_sizes", hidden_sizes, least=0)
        self.context_size, self.direct_connections = context_size, direct_connections
        *masks, direct = self.masks(self.order)
        layers = [MaskedLinear(mask) for mask in masks]
        self.layers = nn.ModuleList(layers)
        past = direct_connections and len(self.hidden_sizes) > 0
        self.direct = MaskedLinear(direct, bias=False) if past else None
        self.contexts = nn.ModuleList(
            nn.Linear(context_size, layer.out_features, bias=False)
            for layer in layers
            if context_size is not None
        )

    def masks(self, ordering: torch.Tensor) -> list[torch.Tensor]:
        """Return what each layer's connections are under an ordering of the elements.

        Args:
            ordering: A permutation of the flattened elements, `(element,)`.

        Returns:
            For each layer, and last for direct connections, which of the weights are not held at
            zero, `(output, input)`.
        """
        count = len(ordering)
        # An element has its own place for a degree; a unit of degree d sees d of the elements.
        place = ordering.argsort()
        degrees = [place + 1]
        for size in self.hidden_sizes:
            spread = torch.arange(size, device=ordering.device) * max(count - 1, 1) // size
            degrees.append(spread + (1 if count > 1 else 0))
        masks = [after[:, None] >= before for before, after in itertools.pairwise(degrees)]
        last = place.repeat_interleave(self.elements.num_outputs)
        return [*masks, *(last[:, None] >= before for before in (degrees[-1], degrees[0]))]

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return the numbers for each element, `(n, *event_shape, number)`."""
        return self.masked_numbers(x, context)

    def masked_numbers(
        self,
        x: torch.Tensor,
        context: torch.Tensor | None,
        masks: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return the same by other masks.

        Args:
            x: Values, `(n, *event_shape)`.
            context: What comes with each, `(n, context_size)`.
            masks: As `masks` gives them; None: those that are there.
        """
        first = self.layers[0]
        assert isinstance(first, MaskedLinear)
        features = hidden = self.elements.features(x, first.weight).flatten(1)
        for index, layer in enumerate(self.layers):
            if index:
                hidden = F.relu(hidden)
            hidden = layer(hidden, None if masks is None else masks[index])
            if context is not None:
                hidden = hidden + self.contexts[index](context)
        if self.direct is not None:
            hidden = hidden + self.direct(features, None if masks is None else masks[-1])
        return hidden.reshape(-1, *self.event_shape, self.elements.num_outputs)


class OrderAgnosticMADE(MADE):
    """A masked autoencoder that is trained under many orderings, and takes its elements in any.

    An ordering says what the masks are; the weights are the same ones. In training mode,
    `network(context)` is the distribution under one of a fixed number of random orderings, drawn
    anew in each call, as for each mini-batch. In evaluation mode it is the ensemble of the first
    few of them. `network(context, ordering)` is the one under an ordering of your own.

    Where elements are given, the others are drawn in an ordering that has the given ones first:
    any part of an image is completed from all that is known of it. The network has hardly met that
    ordering: it does well under new ones where it was trained under many, such as a thousand. What
    was trained under a few does better under these.

    Args:
        event_shape: Shape of what it is a distribution of.
        hidden_sizes: Numbers of units of the hidden layers; () for none.
        elements: What the elements are.
        context_size: Size of the context, a vector that joins every layer; None for none.
        direct_connections: As in `MADE`.
        num_orderings: Number of orderings that it is trained under.
        ensemble_size: The largest number of them that the ensemble has.
        ordering_seed: What they are drawn by.

    Raises:
        ValueError: If a number is smaller than 1.

    References:
        MADE: Masked Autoencoder for Distribution Estimation. Germain, Gregor, Murray and
        Larochelle, 2015. arXiv:1502.03509. A Deep and Tractable Density Estimator. Uria, Murray
        and Larochelle, 2014. arXiv:1310.1757.

    Example:
        >>> network = OrderAgnosticMADE((8, 8), (32,), num_orderings=4)
        >>> network(), network.eval()()
        (Autoregressive(), OrderingEnsemble())
    """

    orderings: torch.Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden_sizes: Sequence[int] = (500,),
        elements: Elements = Elements(),  # noqa: B008 - it is frozen
        context_size: int | None = None,
        direct_connections: bool = True,
        num_orderings: int = 8,
        ensemble_size: int = 8,
        ordering_seed: int = 0,
    ) -> None:
        super().__init__(event_shape, hidden_sizes, elements, context_size, direct_connections)
        check_count("num_orderings", num_orderings)
        check_count("ensemble_size", ensemble_size)
        self.num_orderings, self.ensemble_size = num_orderings, ensemble_size
        self.ordering_seed = ordering_seed
        generator = torch.Generator().manual_seed(ordering_seed)
        count = math.prod(self.event_shape)
        drawn = [torch.randperm(count, generator=generator) for _ in range(num_orderings)]
        self.register_buffer("orderings", torch.stack(drawn), persistent=False)

    def under(self, ordering: torch.Tensor) -> AutoregressiveNetwork:
        """Return the same weights with the masks of an ordering; see `AutoregressiveNetwork`."""
        return _Ordered(self, ordering)

    def forward(
        self, context: torch.Tensor | None = None, ordering: torch.Tensor | None = None
    ) -> DiscreteDistribution:
        """Return the distribution: under an ordering, under one drawn anew, or the ensemble."""
        if ordering is not None:
            return Autoregressive(self, context, ordering)
        if self.training:
            # A tensor's index: a step that is recorded draws it anew when it is run again.
            drawn = torch.randint(self.num_orderings, (1,), device=self.orderings.device)
            return Autoregressive(self.under(self.orderings[drawn].squeeze(0)), context)
        return OrderingEnsemble(
            [
                Autoregressive(self.under(ordering), context)
                for ordering in self.orderings[: self.ensemble_size]
            ]
        )


class _Ordered(AutoregressiveNetwork):
    """An order-agnostic network under one ordering."""

    # It is made anew for each distribution, and a plan takes as long as ten draws by iteration.
    is_planned: ClassVar[bool] = False

    def __init__(self, network: OrderAgnosticMADE, ordering: torch.Tensor) -> None:
        super().__init__(network.event_shape, network.elements, network.context_shape, ordering)
        self.network = network
        for index, mask in enumerate(network.masks(ordering)):
            self.register_buffer(f"mask_{index}", mask, persistent=False)

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return the numbers for each element, `(n, *event_shape, number)`."""
        masks = [getattr(self, f"mask_{index}") for index in range(len(self.network.layers) + 1)]
        return self.network.masked_numbers(x, context, masks)

    def under(self, ordering: torch.Tensor) -> AutoregressiveNetwork:
        """Return the same weights under another ordering."""
        return self.network.under(ordering)

    def train(self, mode: bool = True) -> _Ordered:
        """Set its own mode; that of the network it is a view of is the user's to set."""
        self.training = mode
        return self


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
        super().__init__(event_shape, elements, vector_shape(context_size))
        check_count("hidden_size", hidden_size)
        self.hidden_size, self.context_size = hidden_size, context_size
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
