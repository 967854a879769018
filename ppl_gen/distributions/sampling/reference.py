"""Plain samplers, element by element, with which the others are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core.scope import evaluating
from ppl_gen.distributions.sampling.plan import Affine, Given, Plan, Pointwise
from ppl_gen.distributions.sampling.record import Recorded

if TYPE_CHECKING:
    from ppl_gen.distributions.autoregressive import AutoregressiveNetwork
    from ppl_gen.distributions.sampling.draw import Options

__all__ = ["draw_naively", "sample_by_plan"]

Array = NDArray[Any]


@torch.no_grad()
def draw_naively(
    network: AutoregressiveNetwork,
    uniforms: torch.Tensor,
    context: torch.Tensor | None,
    given: torch.Tensor | None,
    options: Options,
) -> torch.Tensor:
    """Return the draws that uniform numbers stand for, by a run of the network for each element.

    The arguments are those of `draw`.
    """
    rows = len(uniforms)
    drawn = torch.zeros_like(uniforms)
    with evaluating(network):
        for place in network.order.tolist():
            numbers = network.numbers(drawn.reshape(rows, *network.event_shape), context)
            here, uniform = numbers.flatten(1, -2)[:, place], uniforms[:, place]
            value = network.elements.draw(here, uniform, options.temperature, options.top_p)
            if given is not None:
                value = torch.where(given[:, place].isnan(), value, given[:, place])
            drawn[:, place] = value
    return drawn


def _sigmoid(x: Array) -> Array:
    return np.asarray(torch.sigmoid(torch.from_numpy(x)))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "exp": np.exp,
    "neg": np.negative,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "silu": lambda x: x * _sigmoid(x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "abs": np.abs,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "log": np.log,
}


def sample_by_plan(
    recorded: Recorded, plan: Plan, uniforms: Array, context: torch.Tensor | None
) -> Array:
    """Return the draws that uniform numbers stand for.

    Args:
        recorded: The operators of the network.
        plan: Its plan.
        uniforms: In the order of sampling, `(n, element)`.
        context: What comes with each, `(n, *context_shape)`.

    Returns:
        Draws in the order of sampling, `(n, element)`.
    """
    rows = len(uniforms)
    given = [
        recorded.constants
        | dict(recorded.of_context(None if context is None else context[row : row + 1]))
        for row in range(rows)
    ]
    # The last one is what is zero.
    values = np.zeros((rows, len(plan.times) + 1), dtype=uniforms.dtype)
    elements = recorded.about.elements
    drawn = np.zeros(uniforms.shape, dtype=uniforms.dtype)
    for place in range(uniforms.shape[1]):
        for each in plan.operators:
            if isinstance(each, Affine):
                _affine(each, plan.times, values, place)
            else:
                _pointwise(each, plan.times, values, place, given)
        numbers = torch.from_numpy(values[:, plan.numbers[place]])
        uniform = torch.from_numpy(uniforms[:, place])
        drawn[:, place] = elements.draw(numbers, uniform, 1.0, 1.0).numpy()
        values[:, plan.elements[place]] = drawn[:, place]
    return drawn


def _affine(each: Affine, times: Array, values: Array, now: int) -> None:
    for inputs, outputs in zip(each.inputs, each.outputs, strict=True):
        if times[outputs[0]] == now:
            values[:, outputs] = values[:, inputs] @ each.weight + each.bias


def _pointwise(
    each: Pointwise, times: Array, values: Array, now: int, given: list[dict[Any, Any]]
) -> None:
    chosen = np.flatnonzero(times[each.outputs] == now)
    if not len(chosen):
        return
    operands = []
    for operand in each.operands:
        if not isinstance(operand, Given):
            operands.append(values[:, operand[chosen]])
        elif isinstance(operand.node, float):
            operands.append(np.array(operand.node, dtype=values.dtype))
        else:
            index = operand.index[chosen]
            flat = [row[operand.node].reshape(-1).numpy()[index] for row in given]
            operands.append(np.stack(flat))
    values[:, each.outputs[chosen]] = FUNCTIONS[each.function](*operands)
