"""The operators of a network, in terms of the elements and the context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_gen.distributions.elements import Elements
from ppl_gen.distributions.sampling.operators import CannotPlan

if TYPE_CHECKING:
    from ppl_gen.distributions.autoregressive import AutoregressiveNetwork

__all__ = ["About", "Recorded", "record"]

# What a value depends on.
CONSTANT, CONTEXT, ELEMENTS = 0, 1, 2


@dataclass(frozen=True, eq=False)
class About:
    """What is to be known of a network beside its operators, which hold its weights.

    Args:
        name: Name of its class.
        event_shape: Shape of what it is a distribution of.
        order: Flat indices of the elements in the order in which they come, `(element,)`.
        elements: What its elements are.
        dtype: What it computes in.
    """

    name: str
    event_shape: tuple[int, ...]
    order: NDArray[np.int64]
    elements: Elements
    dtype: type[np.float32] | type[np.float64]


class Recorded:
    """The operators of a network on one set of values, without those on constants.

    Args:
        graph: The operators.
        about: What else is to be known.
    """

    def __init__(self, graph: fx.GraphModule, about: About) -> None:
        self.graph = graph
        self.about = about
        self.kinds: dict[fx.Node, int] = {}
        self.constants: dict[fx.Node, Any] = {}
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                self.kinds[node] = ELEMENTS if len(self.kinds) == 0 else CONTEXT
                continue
            kinds = [self.kinds[each] for each in node.all_input_nodes]
            self.kinds[node] = max(kinds, default=CONSTANT)
            schema = getattr(node.target, "_schema", None)
            if schema is not None and schema.is_mutable and kinds[0] < self.kinds[node]:
                raise CannotPlan(f"the operator {node.target}, which writes into a constant")
            if self.kinds[node] == CONSTANT and node.op != "output":
                self.constants[node] = self._evaluated(node, self.constants)

    def of_context(self, context: torch.Tensor | None) -> Iterator[tuple[fx.Node, Any]]:
        """Yield the values that follow from a context alone, `(1, *context_shape)`.

        They are not kept for longer than others are made of them.
        """
        nodes = [node for node, kind in self.kinds.items() if kind == CONTEXT]
        last = {source: node for node in nodes for source in node.all_input_nodes}
        values = dict(self.constants)
        for node in nodes:
            values[node] = context if node.op == "placeholder" else self._evaluated(node, values)
            yield node, values[node]
            for each in (node, *node.all_input_nodes):
                if self.kinds[each] == CONTEXT and last.get(each, node) is node:
                    values.pop(each, None)

    def _evaluated(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            value = getattr(self.graph, str(node.target))
            return value.detach() if isinstance(value, torch.Tensor) else value
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: values[each])
        assert callable(node.target)
        return node.target(*args, **kwargs)


@torch.no_grad()
def record(network: AutoregressiveNetwork) -> Recorded:
    """Record the operators of a network.

    Args:
        network: The network, in evaluation mode.

    Raises:
        CannotPlan: If they depend on values of tensors, as branches in Python do.
    """
    like = next(network.parameters(), torch.zeros(()))
    x = like.new_zeros(1, *network.event_shape)
    context = None if network.context_shape is None else like.new_zeros(1, *network.context_shape)
    # Fake tensors: nothing is computed, whatever the length of a sequence.
    trace = make_fx(
        lambda x, context: network.numbers(x, context),
        tracing_mode="fake",
        _allow_non_fake_inputs=True,
    )
    try:
        graph = trace(x, context)
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise CannotPlan(f"its operators cannot be recorded ({reason})") from error
    graph.graph.eliminate_dead_code()
    about = About(
        type(network).__name__,
        tuple(network.event_shape),
        network.order.cpu().numpy(),
        network.elements,
        np.float64 if like.dtype == torch.float64 else np.float32,
    )
    return Recorded(graph, about)
