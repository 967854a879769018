"""Operators as a few simpler ones: convolutions of our own, and PyTorch's tables for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from typing import Any

import torch
from torch.nn.functional import pad

__all__ = ["decomposition"]


def decomposition(operator: Any) -> Callable[..., Any] | None:
    """Return a function of the same arguments that calls simpler operators, if there is one.

    Args:
        operator: An overload, such as torch.ops.aten.var.correction.
    """
    if operator.namespace == "prims":
        return getattr(operator, "impl_aten", None)
    if operator.namespace != "aten":
        return None
    name = operator._schema.name.removeprefix("aten::")
    if name in _OURS:
        return _OURS[name]
    if operator in _table():
        return _table()[operator]
    if operator._can_decompose():
        return operator.decompose  # type: ignore[no-any-return]
    if name.endswith("_") and hasattr(torch.ops.aten, name.removesuffix("_")):
        return partial(_in_place, getattr(torch.ops.aten, name.removesuffix("_")))
    return None


@cache
def _table() -> dict[Any, Callable[..., Any]]:
    from torch._decomp import core_aten_decompositions, decomposition_table

    return {**decomposition_table, **core_aten_decompositions()}


def _in_place(function: Callable[..., torch.Tensor], target: torch.Tensor, *args: Any) -> Any:
    return target.copy_(function(target, *args))


def _windows(
    x: torch.Tensor, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> torch.Tensor:
    """Return a view of the windows of a convolution, (batch, channels, *position, *offset)."""
    batch, channels, *lengths = x.shape
    steps = x.stride()[2:]
    positions = [
        (length - spread * (k - 1) - 1) // step + 1
        for length, k, step, spread in zip(lengths, size, stride, dilation, strict=True)
    ]
    moves = [a * b for a, b in zip(steps, stride, strict=True)]
    spreads = [a * b for a, b in zip(steps, dilation, strict=True)]
    shape = (batch, channels, *positions, *size)
    return x.as_strided(shape, (*x.stride()[:2], *moves, *spreads), x.storage_offset())


def _padded(x: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    return pad(x, [n for n in reversed(padding) for _ in range(2)]) if any(padding) else x


def _convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    if transposed:
        return NotImplemented
    size = weight.shape[2:]
    windows = _windows(_padded(x, padding), size, stride, dilation)
    # One product for each group: (weights of a channel) x (channels, positions).
    batch, channels, *rest = windows.shape
    positions = rest[: len(size)]
    axes = len(size)
    order = (1, *range(2 + axes, 2 + 2 * axes), 0, *range(2, 2 + axes))
    columns = windows.permute(order).reshape(groups, -1, batch * _product(positions))
    out = weight.reshape(groups, weight.shape[0] // groups, -1) @ columns
    out = out.reshape(weight.shape[0], batch, *positions).transpose(0, 1)
    return out if bias is None else out + bias.reshape(-1, *(1 for _ in size))


def _convolution_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Any:
    if transposed:
        return NotImplemented
    size, axes = weight.shape[2:], len(weight.shape) - 2
    padded = _padded(x, padding)
    windows = _windows(padded, size, stride, dilation)
    batch = gradient.shape[0]
    positions = gradient.shape[2:]
    # (groups, channels of the output, batch and positions).
    slopes = gradient.transpose(0, 1).reshape(groups, weight.shape[0] // groups, -1)
    to_x = to_weight = to_bias = None
    if output_mask[1]:
        order = (1, *range(2 + axes, 2 + 2 * axes), 0, *range(2, 2 + axes))
        columns = windows.permute(order).reshape(groups, -1, batch * _product(positions))
        to_weight = (slopes @ columns.transpose(1, 2)).reshape(weight.shape)
    if output_mask[0]:
        columns = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2) @ slopes
        columns = columns.reshape(x.shape[1], *size, batch, *positions)
        total = torch.zeros_like(padded)
        places = _windows(total, size, stride, dilation)
        for offset in product(*(range(n) for n in size)):
            at = (slice(None),) * (2 + axes) + offset
            places[at].add_(columns[(slice(None), *offset)].transpose(0, 1))
        inside = (slice(n, n + m) for n, m in zip(padding, x.shape[2:], strict=True))
        to_x = total[(slice(None), slice(None), *inside)]
    if output_mask[2]:
        to_bias = gradient.sum([0, *range(2, gradient.ndim)])
    return to_x, to_weight, to_bias


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


_OURS: dict[str, Callable[..., Any]] = {
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
}
