"""Operators as a few simpler ones: some of our own, and PyTorch's tables for the rest."""

from __future__ import annotations

import math
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
    if str(operator) in _OURS:
        return _OURS[str(operator)]
    if operator.namespace == "prims":
        return getattr(operator, "impl_aten", None)
    if operator.namespace != "aten":
        return None
    if operator in _table():
        return _table()[operator]
    if operator._can_decompose():
        return operator.decompose  # type: ignore[no-any-return]
    name = operator._schema.name.removeprefix("aten::")
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
    axes, batch = len(size), x.shape[0]
    positions = windows.shape[2 : 2 + axes]
    order = (1, *range(2 + axes, 2 + 2 * axes), 0, *range(2, 2 + axes))
    columns = windows.permute(order).reshape(groups, -1, batch * math.prod(positions))
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
        columns = windows.permute(order).reshape(groups, -1, batch * math.prod(positions))
        to_weight = (slopes @ columns.transpose(1, 2)).reshape(weight.shape)
    if output_mask[0]:
        columns = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2) @ slopes
        columns = columns.reshape(x.shape[1], *size, batch, *positions)
        total = torch.zeros_like(padded)
        places = _windows(total, size, stride, dilation)
        for offset in product(*(range(n) for n in size)):
            at, part = places, columns
            for k in offset:
                at, part = at.select(2 + axes, k), part.select(1, k)
            at.add_(part.transpose(0, 1))
        to_x = pad(total, [-n for n in reversed(padding) for _ in range(2)])
    if output_mask[2]:
        to_bias = gradient.sum([0, *range(2, gradient.ndim)])
    return to_x, to_weight, to_bias


def _variance(
    x: torch.Tensor,
    dim: Sequence[int] | None = None,
    correction: float | None = None,
    keepdim: bool = False,
) -> torch.Tensor:
    return _variance_and_mean(x, dim, correction=correction, keepdim=keepdim)[0]


def _variance_and_mean(
    x: torch.Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    axes = list(dim) if dim else list(range(x.ndim))
    count = math.prod(x.shape[axis] for axis in axes)
    free = max(count - (1 if correction is None else correction), 0)
    mean = x.mean(axes, keepdim=True)
    variance = (x - mean).square().sum(axes, keepdim=keepdim)
    # Without degrees of freedom it is 0 / 0.
    variance = variance / free if free else variance * math.nan
    return variance, mean if keepdim else mean.squeeze(axes)


def _distances(x: torch.Tensor, y: torch.Tensor, p: float, mode: int | None) -> torch.Tensor:
    distances: torch.Tensor = torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)
    return distances


def _distances_backward(
    gradient: torch.Tensor, x: torch.Tensor, y: torch.Tensor, p: float, distances: torch.Tensor
) -> torch.Tensor:
    difference = x.unsqueeze(-2) - y.unsqueeze(-3)
    slope, norm = gradient.unsqueeze(-1), distances.unsqueeze(-1)
    if p == math.inf:
        each = difference.sign() * (difference.abs() == norm)
    elif p == 1:
        each = difference.sign()
    elif p == 2:
        each = torch.where(norm == 0, 0.0, difference / norm)
    else:
        each = difference.sign() * difference.abs() ** (p - 1) / norm ** (p - 1)
        each = torch.where(norm == 0, 0.0, each)
    return (slope * each).sum(-2)


def _put(
    x: torch.Tensor, index: torch.Tensor, source: torch.Tensor, accumulate: bool = False
) -> torch.Tensor:
    flat = x.reshape(-1).index_put((index.reshape(-1),), source.reshape(-1), accumulate)
    return flat.reshape(x.shape)


def _trilinear(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    *axes: Sequence[int],
    unroll_dim: int = 1,
) -> torch.Tensor:
    *new, summed = axes[:4]
    factors = [a, b, c]
    for position, these in enumerate(new):
        for axis in these:
            factors[position] = factors[position].unsqueeze(axis)
    return (factors[0] * factors[1] * factors[2]).sum(list(summed))


_OURS: dict[str, Callable[..., Any]] = {
    "aten._cdist_backward.default": _distances_backward,
    "aten._cdist_forward.default": _distances,
    "aten._trilinear.default": _trilinear,
    "aten.convolution.default": _convolution,
    "aten.convolution_backward.default": _convolution_backward,
    "aten.put.default": _put,
    "aten.var.correction": _variance,
    "aten.var_mean.correction": _variance_and_mean,
}
