"""Operators that join elements along axes: sums, extremes, softmax, cumulative sums."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ppl_gen.core.compiler.program import Update
from ppl_gen.core.compiler.record import Operation, Place
from ppl_gen.core.compiler.rules.lowering import (
    Lowering,
    axis_last,
    constant,
    conversion,
    rule_for,
    with_axis,
)

__all__: list[str] = []

_LOWEST = "splat(-__builtin_inf())"
_ZERO = "splat(0)"


def _axes(operation: Operation) -> list[int]:
    """Return the axes that an operator reduces, ascending."""
    rank = len(operation["self"].shape)
    axes = operation.arguments.get("dim")
    if axes is None or axes == []:
        return list(range(rank))
    axes = [axes] if isinstance(axes, int) else axes
    return sorted(axis % max(rank, 1) for axis in axes)


def _kept(out: Place, operation: Operation) -> Place:
    """Return a reduced output with an axis of size one for each reduced one."""
    rank = len(operation["self"].shape)
    if len(out.shape) == rank:
        return out
    for axis in _axes(operation):
        out = with_axis(out, axis, 1, 0)
    return out


def _reduce(
    lowering: Lowering,
    operation: Operation,
    out: Place,
    expression: str,
    *more: Place | float,
    update: Update = "+",
    initial: str = _ZERO,
) -> None:
    source = operation["self"]
    if 0 in source.shape:
        lowering.loop(out, initial)
        return
    lowering.loop(
        _kept(out, operation),
        expression,
        source,
        *more,
        update=update,
        initial=initial,
        shape=source.shape,
    )


@rule_for("sum")
def _sum(lowering: Lowering, operation: Operation) -> None:
    out = operation.out
    _reduce(lowering, operation, out, conversion(operation["self"].dtype, out.dtype))


@rule_for("mean")
def _mean(lowering: Lowering, operation: Operation) -> None:
    count = math.prod(operation["self"].shape[axis] for axis in _axes(operation))
    total = lowering.program.new(operation.out.shape)
    _reduce(lowering, operation, total, "{0}")
    lowering.loop(operation.out, "{0} / {1}", total, float(count) if count else math.nan)


@rule_for("any")
def _any(lowering: Lowering, operation: Operation) -> None:
    _reduce(lowering, operation, operation.out, "from_mask({0} != splat(0))", update="max")


@rule_for("all")
def _all(lowering: Lowering, operation: Operation) -> None:
    some_false = lowering.program.new(operation.out.shape)
    _reduce(lowering, operation, some_false, "from_mask({0} == splat(0))", update="max")
    lowering.loop(operation.out, "splat(1) - {0}", some_false)


@rule_for("max", "amax", "argmax", "min", "amin", "argmin")
def _extreme(lowering: Lowering, operation: Operation) -> None:
    """Lower the extremes of a tensor; the smallest are the largest of the negatives."""
    source, out = operation["self"], operation.out
    largest = "max" in operation.base
    if "other" in operation.arguments:
        function = "v_maximum" if largest else "v_minimum"
        lowering.loop(out, f"{function}({{0}}, {{1}})", source, operation["other"])
        return
    sign = "" if largest else "-"
    values = lowering.program.new(out.shape)
    _reduce(lowering, operation, values, sign + "{0}", update="max", initial=_LOWEST)
    positions = None
    if operation.base.startswith("arg"):
        positions = out
    else:
        lowering.loop(out, sign + "{0}", values)
        positions = operation.outputs[1] if len(operation.outputs) > 1 else None
    if positions is not None:
        # The first of them: the least index that attains the value.
        axes = _axes(operation)
        shape = tuple(n if axis in axes else 1 for axis, n in enumerate(source.shape))
        index = constant(torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape))
        first = lowering.program.new(out.shape)
        expression = f"select({sign}{{0}} == {{1}}, -{{2}}, {_LOWEST})"
        wide = _kept(values, operation)
        _reduce(lowering, operation, first, expression, wide, index, update="max", initial=_LOWEST)
        lowering.loop(positions, "-{0}", first)


@rule_for("logsumexp")
def _logsumexp(lowering: Lowering, operation: Operation) -> None:
    out = operation.out
    largest, total = lowering.program.new(out.shape), lowering.program.new(out.shape)
    _reduce(lowering, operation, largest, "{0}", update="max", initial=_LOWEST)
    finite = "select(v_abs({1}) == splat(__builtin_inf()), splat(0), {1})"
    wide = _kept(largest, operation)
    _reduce(lowering, operation, total, f"v_exp({{0}} - {finite})", wide)
    lowering.loop(out, f"v_log({{0}}) + {finite}", total, largest)


def _with_one(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    axis %= max(len(shape), 1)
    return tuple(1 if a == axis else n for a, n in enumerate(shape))


@rule_for("_softmax", "_log_softmax")
def _softmax(lowering: Lowering, operation: Operation) -> None:
    source, out = operation["self"], operation.out
    shape = _with_one(source.shape, operation["dim"])
    largest, total = lowering.program.new(shape), lowering.program.new(shape)
    whole = source.shape
    lowering.loop(largest, "{0}", source, update="max", initial=_LOWEST, shape=whole)
    summand = "v_exp({0} - {1})"
    lowering.loop(total, summand, source, largest, update="+", initial=_ZERO, shape=whole)
    if operation.base == "_log_softmax":
        lowering.loop(out, "{0} - {1} - v_log({2})", source, largest, total)
    else:
        lowering.loop(out, "v_exp({0} - {1}) / {2}", source, largest, total)


@rule_for("_softmax_backward_data", "_log_softmax_backward_data")
def _softmax_backward(lowering: Lowering, operation: Operation) -> None:
    gradient, output = operation["grad_output"], operation["output"]
    total = lowering.program.new(_with_one(output.shape, operation["dim"]))
    log = operation.base.startswith("_log")
    summand = "{0}" if log else "{0} * {1}"
    whole = output.shape
    lowering.loop(total, summand, gradient, output, update="+", initial=_ZERO, shape=whole)
    expression = "{0} - v_exp({1}) * {2}" if log else "{1} * ({0} - {2})"
    lowering.loop(operation.out, expression, gradient, output, total)


@rule_for("cumsum", "cumprod", "logcumsumexp")
def _cumulate(lowering: Lowering, operation: Operation) -> None:
    source, out = operation["self"], operation.out
    expression = conversion(source.dtype, out.dtype)
    if not source.shape:
        lowering.loop(out, expression, source)
        return
    axis = operation["dim"] % len(source.shape)
    length = source.shape[axis]
    source, out = axis_last(source, axis), axis_last(out, axis)
    step, start = {
        "cumsum": ("total + x", _ZERO),
        "cumprod": ("total * x", "splat(1)"),
        "logcumsumexp": ("v_logaddexp(total, x)", _LOWEST),
    }[operation.base]

    def code(read: str, write: str) -> str:
        x = expression.format(f"{read}[k * {source.strides[-1]}]")
        return (
            f"vec total = {start}; for (long k = 0; k < {length}; ++k) "
            f"{{ vec x = {x}; total = {step}; {write}[k * {out.strides[-1]}] = total; }}"
        )

    lowering.routine(code, [source], [out], 1)


@rule_for("prod")
def _product(lowering: Lowering, operation: Operation) -> None:
    source, out = operation["self"], operation.out
    axes = _axes(operation)
    expression = conversion(source.dtype, out.dtype)
    kept = _kept(out, operation)
    for axis in axes:
        source = axis_last(source, axis - axes.index(axis))
    # The output's reduced axes, all of size one, stand at the end as well.
    for axis in reversed(axes):
        kept = axis_last(kept, axis)
    loops, address = "", ""
    for number in range(len(axes)):
        position = len(source.shape) - len(axes) + number
        size, stride = source.shape[position], source.strides[position]
        loops += f"for (long k{number} = 0; k{number} < {size}; ++k{number}) "
        address += f" + k{number} * {stride}"

    def code(read: str, write: str) -> str:
        x = expression.format(f"{read}[0{address}]")
        return f"vec total = splat(1); {loops}total *= {x}; {write}[0] = total;"

    lowering.routine(code, [source], [kept], len(axes))
