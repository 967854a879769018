"""Distributions whose elements come one after the other, each given those before it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import nn
from torch.distributions import constraints

from ppl_gen.distributions.elements import Elements
from ppl_gen.distributions.sampling.draw import Options, draw

__all__ = ["Autoregressive", "AutoregressiveNetwork"]


class AutoregressiveNetwork(nn.Module, ABC):
    """A network with numbers for each element that depend on the elements before it alone.

    `network(context)` is the distribution, to be sampled or observed in a Pyro model.

    Args:
        event_shape: Shape of what it is a distribution of.
        elements: What its elements are.
        context_shape: Shape of the context that comes with each; None where there is none.
        order: Flat indices of the elements in the order in which they come; None: as they are.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        elements: Elements,
        context_shape: Sequence[int] | None = None,
        order: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.elements = elements
        self.context_shape = None if context_shape is None else torch.Size(context_shape)
        self.order: torch.Tensor
        if order is None:
            order = torch.arange(math.prod(self.event_shape))
        self.register_buffer("order", order, persistent=False)

    @abstractmethod
    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return the numbers for each element: those of element i depend on x before i alone.

        Args:
            x: Values, `(n, *event_shape)`.
            context: What comes with each, `(n, *context_shape)`.

        Returns:
            Unbounded numbers, `(n, *event_shape, elements.num_outputs)`.
        """

    def forward(
        self, context: torch.Tensor | None = None, ordering: torch.Tensor | None = None
    ) -> Autoregressive:
        """Return the distribution; see `Autoregressive`."""
        return Autoregressive(self, context, ordering)


class Autoregressive(TorchDistribution):
    r"""A distribution by the chain rule, its conditionals from a network.

    .. math::
        p(x) = \prod_i p(x_{o_i} \mid x_{o_1}, \ldots, x_{o_{i - 1}})

    Args:
        network: The network.
        context: What the network is told, `(*batch, *context_shape)`.
        ordering: A permutation o of the elements, `(prod(event_shape),)`: the network takes element
            `ordering[i]` for its i-th. None: as they are.

    Raises:
        ValueError: If the context has another shape, or the ordering is no permutation.

    Example:
        >>> from ppl_gen.models.networks import MADE
        >>> images = MADE((4, 4), hidden_sizes=(16,))()
        >>> images.sample((3,)).shape, images.log_prob(torch.zeros(3, 4, 4)).shape
        (torch.Size([3, 4, 4]), torch.Size([3]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - as PyTorch has it

    def __init__(
        self,
        network: AutoregressiveNetwork,
        context: torch.Tensor | None = None,
        ordering: torch.Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.network = network
        self.context = context
        self.ordering = _checked(ordering, network.event_shape)
        batch_shape = _batch_shape(network, context)
        super().__init__(batch_shape, network.event_shape, validate_args=False)
        if validate_args is not None:
            self._validate_args = validate_args

    @property
    def support(self) -> constraints.Constraint:
        """That of its elements."""
        elements = self.network.elements
        element = elements.distribution(torch.zeros(elements.num_outputs)).support
        assert isinstance(element, constraints.Constraint)
        return constraints.independent(element, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Autoregressive:
        """Return it with another batch shape, of independent variables."""
        made: Any = self
        new: Autoregressive = made._get_checked_instance(Autoregressive, _instance)
        shape = torch.Size(batch_shape)
        new.network, new.ordering = self.network, self.ordering
        new.context = self.context
        if self.context is not None:
            assert self.network.context_shape is not None
            new.context = self.context.expand(shape + self.network.context_shape)
        super(Autoregressive, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Return the log density of values, `(*shape, *event_shape)`, of the broadcast shape."""
        if self._validate_args:
            self._validate_sample(value)
        batch = value.shape[: value.ndim - len(self.event_shape)]
        batch = torch.broadcast_shapes(batch, self.batch_shape)
        flat = value.expand(batch + self.event_shape).reshape(-1, *self.event_shape)
        ordered = self._ordered(flat)
        numbers = self.network.numbers(ordered, self._context(batch))
        log_prob = self.network.elements.log_prob(numbers, ordered)
        return log_prob.flatten(1).sum(-1).reshape(batch)

    def sample(
        self,
        sample_shape: Any = torch.Size(),  # noqa: B008
        *,
        given: torch.Tensor | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> torch.Tensor:
        """Return draws, `(*sample_shape, *batch_shape, *event_shape)`.

        Each number of the network is computed once, when the elements are there that it is made of,
        by compiled code where that is possible.

        Args:
            sample_shape: Shape of draws for each member of the batch.
            given: Elements that are known, and NaN where they are to be drawn, `(*batch,
                *event_shape)` broadcast with the draws. Elements are drawn given those before them,
                not given known ones after them.
            temperature: Below 1 likelier values are drawn more often, above 1 less: logits are
                divided by it, and the scales of logistic distributions multiplied.
            top_p: Only the likeliest values are drawn that together have this share of the
                probability.

        Raises:
            ValueError: If an option is out of range, or known elements have another shape, are
                not possible values, or are all of them.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        like = next(self.network.parameters())
        uniforms = torch.rand(
            math.prod(shape), *self.event_shape, dtype=like.dtype, device=like.device
        )
        known = None if given is None else self._known(given, shape).to(uniforms)
        drawn = draw(
            self.network,
            self._ordered(uniforms).flatten(1),
            self._context(shape),
            None if known is None else self._ordered(known).flatten(1),
            Options(temperature, top_p),
        )
        values = self._restored(drawn).reshape(shape + self.event_shape)
        return values if self.network.elements.likelihood == "bernoulli" else values.long()

    def _known(self, given: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Return known elements for each row of a flattened batch."""
        whole = shape + self.event_shape
        try:
            known = given.expand(whole).reshape(-1, *self.event_shape)
        except RuntimeError as error:
            msg = (
                f"given: expected a shape that broadcasts to {tuple(whole)}, got "
                f"{tuple(given.shape)}."
            )
            raise ValueError(msg) from error
        there = ~known.isnan()
        if bool(there.all()):
            raise ValueError("given: expected NaN at elements to be drawn, got none.")
        highest = self.network.elements.highest
        values = known[there]
        wrong = (values < 0) | (values > highest) | (values != values.round())
        if bool(wrong.any()):
            msg = (
                f"given: expected integers from 0 to {highest} and NaN, got "
                f"{float(values[wrong][0]):g}."
            )
            raise ValueError(msg)
        return known

    def _context(self, batch: torch.Size) -> torch.Tensor | None:
        """Return a context for each row of a flattened batch."""
        if self.context is None:
            return None
        assert self.network.context_shape is not None
        shape = self.network.context_shape
        return self.context.expand(batch + shape).reshape(-1, *shape)

    def _ordered(self, x: torch.Tensor) -> torch.Tensor:
        """Return values, (n, *event_shape), in the order in which the network takes them."""
        if self.ordering is None:
            return x
        return x.flatten(1)[:, self.ordering].reshape(x.shape)

    def _restored(self, flat: torch.Tensor) -> torch.Tensor:
        """Return values, (n, element), in their own order."""
        if self.ordering is None:
            return flat
        restored = torch.empty_like(flat)
        restored[:, self.ordering] = flat
        return restored


def _checked(ordering: torch.Tensor | None, event_shape: torch.Size) -> torch.Tensor | None:
    if ordering is None:
        return None
    count = math.prod(event_shape)
    whole = torch.arange(count, device=ordering.device)
    if ordering.shape != (count,) or not torch.equal(ordering.sort().values, whole):
        msg = (
            f"ordering: expected a permutation of the numbers from 0 to {count - 1}, one for each "
            f"element of {tuple(event_shape)}, got a tensor of shape {tuple(ordering.shape)}. "
            f"torch.randperm({count}) is one."
        )
        raise ValueError(msg)
    return ordering


def _batch_shape(network: AutoregressiveNetwork, context: torch.Tensor | None) -> torch.Size:
    expected = network.context_shape
    name = type(network).__name__
    if context is None:
        if expected is not None:
            msg = (
                f"context: expected a tensor of shape (*batch, {', '.join(map(str, expected))}) "
                f"for this {name}, got none. Give one, or make the network without a context."
            )
            raise ValueError(msg)
        return torch.Size()
    if expected is None:
        msg = (
            f"context: expected none, got shape {tuple(context.shape)}: this {name} was made "
            "without. Say what its shape is when you make it."
        )
        raise ValueError(msg)
    batch = context.shape[: context.ndim - len(expected)]
    if context.ndim < len(expected) or context.shape[len(batch) :] != expected:
        msg = (
            f"context: expected shape (*batch, {', '.join(map(str, expected))}), got "
            f"{tuple(context.shape)}."
        )
        raise ValueError(msg)
    return batch
