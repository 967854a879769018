"""Distributions whose elements come one after the other, each given those before it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import torch
from torch import nn
from torch.distributions import constraints

from ppl_gen.core.errors import check_counts
from ppl_gen.distributions.discrete import DiscreteDistribution, check_integers, check_tensor
from ppl_gen.distributions.elements import Elements
from ppl_gen.distributions.sampling.draw import Options, Progress, draw, running_total

__all__ = ["Autoregressive", "AutoregressiveNetwork"]


class AutoregressiveNetwork(nn.Module, ABC):
    """A network with numbers for each element that depend on the elements before it alone.

    `network(context)` is the distribution, to be sampled or observed in a Pyro model.

    Args:
        event_shape: Shape of what it is a distribution of.
        elements: What its elements are.
        context_shape: Shape of the context that comes with each; None where there is none.
        order: Flat indices of the elements in the order in which they come; None: as they are.

    Raises:
        TypeError: If a shape is no tuple of whole numbers, or the elements are no `Elements`.
        ValueError: If a shape has an axis below 1, or that of an event has none.
    """

    # Whether it is drawn from often enough for a plan to pay.
    is_planned: ClassVar[bool] = True

    def __init__(
        self,
        event_shape: Sequence[int],
        elements: Elements,
        context_shape: Sequence[int] | None = None,
        order: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(elements, Elements):
            msg = (
                f"elements: expected Elements, got {elements!r}. Write for example "
                'Elements("categorical", categories=256).'
            )
            raise TypeError(msg)
        self.event_shape = torch.Size(check_counts("event_shape", event_shape))
        self.elements = elements
        self.context_shape = None
        if context_shape is not None:
            self.context_shape = torch.Size(check_counts("context_shape", context_shape, least=0))
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

    def under(self, ordering: torch.Tensor) -> AutoregressiveNetwork | None:
        """Return a network of the same weights whose elements come in another order.

        Args:
            ordering: A permutation of the flattened elements, `(element,)`.

        Returns:
            The network; None where this one is made for one order only.
        """
        return None

    def forward(
        self, context: torch.Tensor | None = None, ordering: torch.Tensor | None = None
    ) -> DiscreteDistribution:
        """Return the distribution; see `Autoregressive`."""
        return Autoregressive(self, context, ordering)


class Autoregressive(DiscreteDistribution):
    r"""A distribution by the chain rule, its conditionals from a network.

    .. math::
        p(x) = \prod_i p(x_{o_i} \mid x_{o_1}, \ldots, x_{o_{i - 1}})

    Args:
        network: The network.
        context: What the network is told, `(*batch, *context_shape)`.
        ordering: A permutation o of the flattened elements, `(prod(event_shape),)`: they come in
            this order. A network that is made for one order takes element `ordering[i]` for its
            i-th; an order-agnostic one, such as `OrderAgnosticMADE`, knows each by its place. None:
            the network's own.

    Raises:
        TypeError: If context or ordering are no tensors.
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
        batch_shape = _batch_shape(network, context)
        self.network = network
        # Of whole numbers too, as `torch.nn.functional.one_hot` gives them.
        self.context = None if context is None else context.to(_dtype(network))
        self.ordering = _checked(ordering, network)
        # What gives the numbers, and the places of its elements where they are other ones.
        under = None if self.ordering is None else network.under(self.ordering)
        self._conditionals = network if under is None else under
        self._places = self.ordering if under is None else None
        super().__init__(batch_shape, network.event_shape, validate_args=validate_args)

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
        for name in ("network", "context", "ordering", "_conditionals", "_places"):
            setattr(new, name, getattr(self, name))
        if self.context is not None:
            assert self.network.context_shape is not None
            new.context = self.context.expand(shape + self.network.context_shape)
        super(Autoregressive, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def enumerate_support(self, expand: bool = True) -> NoReturn:
        """Refuse to list all values.

        Raises:
            NotImplementedError: Always.
        """
        count, values = math.prod(self.event_shape), self.network.elements.highest + 1
        msg = (
            f"{type(self).__name__} is not summed out: {count} elements of {values} values each "
            f"make {values}^{count} of them. Observe it, or sample it in a guide; log_prob takes "
            "any list of values."
        )
        raise NotImplementedError(msg)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Return the log density of values.

        Args:
            value: Values, `(*shape, *event_shape)`, real or integer.

        Returns:
            A tensor of the shape that `shape` and the batch shape broadcast to.

        Raises:
            ValueError: If the values have another shape or, with validation, are no integers in
                the support.
        """
        batch = self._batch_of(value)
        if self._validate_args:
            check_integers("value", value, self.network.elements.highest)
        flat = value.expand(batch + self.event_shape).reshape(-1, *self.event_shape)
        ordered = self._ordered(flat)
        numbers = self._conditionals.numbers(ordered, self._context(batch))
        log_prob = self.network.elements.log_prob(numbers, ordered)
        return log_prob.flatten(1).sum(-1).reshape(batch)

    def _batch_of(self, value: torch.Tensor) -> torch.Size:
        """Return the batch shape of values together with the distribution's own."""
        check_tensor("value", value)
        axes = value.ndim - len(self.event_shape)
        if axes >= 0 and value.shape[axes:] == self.event_shape:
            try:
                batch: torch.Size = torch.broadcast_shapes(value.shape[:axes], self.batch_shape)
                return batch
            except RuntimeError:
                pass
        sizes = ", ".join(map(str, (*self.batch_shape, *self.event_shape)))
        msg = (
            f"value: expected a shape that broadcasts with ({sizes}) and ends with "
            f"{tuple(self.event_shape)}, the event shape of this "
            f"{type(self.network).__name__}, got {tuple(value.shape)}."
        )
        raise ValueError(msg)

    def sample(
        self,
        sample_shape: Any = torch.Size(),  # noqa: B008
        *,
        given: torch.Tensor | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Return draws, `(*sample_shape, *batch_shape, *event_shape)`.

        Each number of the network is computed once, when the elements are there that it is made of,
        by compiled code where that is possible.

        Args:
            sample_shape: Shape of draws for each member of the batch.
            given: Elements that are known, and NaN where they are to be drawn, `(*batch,
                *event_shape)` broadcast with the draws. A network that is made for one order draws
                each element given those before it, not given known ones after it. An
                order-agnostic one takes the known elements first, then the others in its order,
                so that each is drawn given all that are known.
            temperature: Below 1 likelier values are drawn more often, above 1 less: logits are
                divided by it, and the scales of logistic distributions multiplied.
            top_p: Only the likeliest values are drawn that together have this share of the
                probability.
            progress: Is called with how many elements are drawn and of how many, a few times a
                second and at the end.

        Raises:
            TypeError: If known elements are no tensor, or the shape no tuple.
            ValueError: If an option is out of range, or known elements have another shape, are
                not possible values, or are all of them; or if a size is below 0.
        """
        shape = checked_size(sample_shape) + self.batch_shape
        total = math.prod(shape + self.event_shape)
        options = Options(temperature, top_p, running_total(progress, total))
        known = None if given is None else self.known(given, shape)
        return self.rows(shape, torch.arange(math.prod(shape)), known, options).reshape(
            shape + self.event_shape
        )

    def rows(
        self, shape: torch.Size, rows: torch.Tensor, known: torch.Tensor | None, options: Options
    ) -> torch.Tensor:
        """Return some rows of flattened draws.

        Args:
            shape: Shape of the draws, `(*sample_shape, *batch_shape)`.
            rows: Indices of the rows, `(row,)`.
            known: Their known elements, and NaN, `(row, *event_shape)`.
            options: How to draw.

        Returns:
            Draws, `(row, *event_shape)`.
        """
        network = self._conditionals
        dtype = _dtype(network)
        # In half precision there are too few uniform numbers to draw by.
        uniforms = torch.rand(
            len(rows),
            *self.event_shape,
            dtype=torch.promote_types(dtype, torch.float32),
            device=network.order.device,
        )
        context = self._context(shape)
        context = None if context is None else context[rows]
        if known is not None:
            known = known.to(uniforms)
        if known is not None and self.network.under(network.order) is not None:
            drawn = self._known_first(uniforms.flatten(1), context, known.flatten(1), options)
        else:
            drawn = draw(
                network,
                self._ordered(uniforms).flatten(1),
                context,
                None if known is None else self._ordered(known).flatten(1),
                options,
            )
        values = self._restored(drawn).reshape(-1, *self.event_shape)
        is_binary = self.network.elements.likelihood == "bernoulli"
        return values.to(dtype) if is_binary else values.long()

    def _known_first(
        self,
        uniforms: torch.Tensor,
        context: torch.Tensor | None,
        known: torch.Tensor,
        options: Options,
    ) -> torch.Tensor:
        """Draw from an order-agnostic network, known elements first: (row, element)."""
        order = self._conditionals.order
        drawn = torch.empty_like(uniforms)
        patterns, of_row = known.isnan().unique(dim=0, return_inverse=True)
        for number, unknown in enumerate(patterns):
            rows = of_row == number
            network = self.network.under(order[unknown[order].byte().argsort(stable=True)])
            assert network is not None
            drawn[rows] = draw(
                network,
                uniforms[rows],
                None if context is None else context[rows],
                known[rows],
                options,
            )
        return drawn

    def known(self, given: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Return known elements for each row of flattened draws, `(row, *event_shape)`.

        Args:
            given: As `sample` takes it.
            shape: Shape of the draws, `(*sample_shape, *batch_shape)`.

        Raises:
            ValueError: As `sample` does.
        """
        check_tensor("given", given)
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
        if known.numel() and bool(there.all()):
            raise ValueError("given: expected NaN at elements to be drawn, got none.")
        check_integers("given", known[there], self.network.elements.highest)
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
        if self._places is None:
            return x
        return x.flatten(1)[:, self._places].reshape(x.shape)

    def _restored(self, flat: torch.Tensor) -> torch.Tensor:
        """Return values, (n, element), in their own order."""
        if self._places is None:
            return flat
        restored = torch.empty_like(flat)
        restored[:, self._places] = flat
        return restored


def checked_size(sample_shape: Any) -> torch.Size:
    """Return the shape of draws, or refuse what is none.

    Args:
        sample_shape: What was given.

    Raises:
        TypeError: If it is no sequence of whole numbers.
        ValueError: If one is below 0.
    """
    if isinstance(sample_shape, int):
        msg = f"sample_shape: expected a tuple, got {sample_shape}. Write ({sample_shape},)."
        raise TypeError(msg)
    shape = torch.Size(sample_shape)
    if any(size < 0 for size in shape):
        raise ValueError(f"sample_shape: expected sizes of at least 0, got {tuple(shape)}.")
    return shape


def _dtype(network: AutoregressiveNetwork) -> torch.dtype:
    return next((p.dtype for p in network.parameters()), torch.get_default_dtype())


def _checked(ordering: torch.Tensor | None, network: AutoregressiveNetwork) -> torch.Tensor | None:
    if ordering is None:
        return None
    check_tensor("ordering", ordering)
    if ordering.is_floating_point():
        msg = f"ordering: expected whole numbers, got {ordering.dtype}. Write ordering.long()."
        raise TypeError(msg)
    count = math.prod(network.event_shape)
    whole = torch.arange(count, device=ordering.device)
    if ordering.shape != (count,) or not torch.equal(ordering.sort().values, whole):
        msg = (
            f"ordering: expected a permutation of the numbers from 0 to {count - 1}, one for each "
            f"element of {tuple(network.event_shape)}, got a tensor of shape "
            f"{tuple(ordering.shape)}. torch.randperm({count}) is one."
        )
        raise ValueError(msg)
    return ordering.to(network.order.device)


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
    check_tensor("context", context)
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
