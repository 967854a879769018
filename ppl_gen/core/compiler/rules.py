"""What each ATen operator means, as loops over elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ppl_gen.core.compiler.program import (
    Access,
    Block,
    Contraction,
    Loop,
    Program,
    Update,
    access,
    dense_strides,
    without_ones,
)
from ppl_gen.core.compiler.record import CannotCompile, Operation, Place, Recording

__all__ = ["is_known", "lower"]

Rule = Callable[["_Lowering", Operation], None]
_RULES: dict[str, Rule] = {}

# One output element from one element of each argument. {n} is the n-th argument.
_ELEMENTWISE: dict[str, str] = {
    "abs": "v_abs({0})",
    "acos": "v_acos({0})",
    "acosh": "v_acosh({0})",
    "asin": "v_asin({0})",
    "asinh": "v_asinh({0})",
    "atan": "v_atan({0})",
    "atan2": "v_atan2({0}, {1})",
    "atanh": "v_atanh({0})",
    "ceil": "v_ceil({0})",
    "cos": "v_cos({0})",
    "cosh": "v_cosh({0})",
    "digamma": "v_digamma({0})",
    "erf": "v_erf({0})",
    "erfc": "v_erfc({0})",
    "erfinv": "v_erfinv({0})",
    "exp": "v_exp({0})",
    "exp2": "v_exp2({0})",
    "expm1": "v_expm1({0})",
    "floor": "v_floor({0})",
    "fmod": "v_fmod({0}, {1})",
    "lgamma": "v_lgamma({0})",
    "log": "v_log({0})",
    "log10": "v_log10({0})",
    "log1p": "v_log1p({0})",
    "log2": "v_log2({0})",
    "logaddexp": "v_logaddexp({0}, {1})",
    "maximum": "v_maximum({0}, {1})",
    "minimum": "v_minimum({0}, {1})",
    "mul": "{0} * {1}",
    "neg": "-{0}",
    "pow": "v_pow({0}, {1})",
    "reciprocal": "splat(1) / {0}",
    "remainder": "v_remainder({0}, {1})",
    "round": "v_round({0})",
    "rsqrt": "splat(1) / v_sqrt({0})",
    "sigmoid": "v_sigmoid({0})",
    "sign": "v_sign({0})",
    "sgn": "v_sign({0})",
    "sin": "v_sin({0})",
    "sinh": "v_sinh({0})",
    "special_erfcx": "v_erfcx({0})",
    "special_i0": "v_i0({0})",
    "i0": "v_i0({0})",
    "special_i0e": "v_i0e({0})",
    "special_i1": "v_i1({0})",
    "special_i1e": "v_i1e({0})",
    "special_log_ndtr": "v_log_ndtr({0})",
    "special_ndtri": "v_ndtri({0})",
    "special_xlog1py": "v_xlog1py({0}, {1})",
    "sqrt": "v_sqrt({0})",
    "square": "{0} * {0}",
    "tan": "v_tan({0})",
    "tanh": "v_tanh({0})",
    "trunc": "v_trunc({0})",
    "xlogy": "v_xlogy({0}, {1})",
    # Truth values are 0 and 1.
    "eq": "from_mask({0} == {1})",
    "ne": "from_mask({0} != {1})",
    "lt": "from_mask({0} < {1})",
    "le": "from_mask({0} <= {1})",
    "gt": "from_mask({0} > {1})",
    "ge": "from_mask({0} >= {1})",
    "isnan": "from_mask({0} != {0})",
    "isinf": "from_mask(v_abs({0}) == splat(__builtin_inf()))",
    "logical_not": "from_mask({0} == splat(0))",
    "logical_and": "from_mask(({0} != splat(0)) & ({1} != splat(0)))",
    "logical_or": "from_mask(({0} != splat(0)) | ({1} != splat(0)))",
    "logical_xor": "from_mask(({0} != splat(0)) ^ ({1} != splat(0)))",
    "where": "select({0} != splat(0), {1}, {2})",
    "masked_fill": "select({1} != splat(0), {2}, {0})",
    # Copies.
    "clone": "{0}",
    "contiguous": "{0}",
    "alias": "{0}",
    "lift_fresh": "{0}",
    "lift_fresh_copy": "{0}",
    # Backward formulas: {0} is the gradient of the output.
    "sigmoid_backward": "{0} * {1} * (splat(1) - {1})",
    "tanh_backward": "{0} * (splat(1) - {1} * {1})",
    "log_sigmoid_backward": "{0} * v_sigmoid(-{1})",
}
_IN_PLACE = {
    "bitwise_not": "logical_not",
    "bitwise_and": "logical_and",
    "bitwise_or": "logical_or",
    "bitwise_xor": "logical_xor",
    "arctan2": "atan2",
    "special_expit": "sigmoid",
}


def is_known(name: str) -> bool:
    """Return whether there is a rule for an operator, such as "aten.mul.Tensor"."""
    return _rule(name) is not None


def lower(recording: Recording) -> Program:
    """Return a recording as loops.

    Raises:
        CannotCompile: If an operator is called in a way that has no rule.
    """
    lowering = _Lowering(recording)
    needed = {recording.value.storage, recording.gradient.storage}
    kept: list[Operation] = []
    for operation in reversed(recording.operations):
        written = _written_storages(operation)
        if not written & needed:
            continue
        kept.append(operation)
        needed |= {
            place.storage for place in _places([*operation.args, *operation.kwargs.values()])
        }
    for operation in reversed(kept):
        rule = _rule(operation.name)
        assert rule is not None, operation.name
        lowering.start_memory(operation)
        rule(lowering, operation)
    return lowering.program


def _written_storages(operation: Operation) -> set[Any]:
    written = {place.storage for place in operation.outputs}
    if _base_name(operation.name).endswith("_"):
        written.add(operation.args[0].storage)
    return written


def _base_name(name: str) -> str:
    return name.split(".")[1]


def _rule(name: str) -> Rule | None:
    base = _base_name(name)
    for candidate in (base, base.removesuffix("_")):
        candidate = _IN_PLACE.get(candidate, candidate)
        if candidate in _RULES:
            return _RULES[candidate]
        if candidate in _ELEMENTWISE:
            return _elementwise
    return None


def _rules(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        for name in names:
            _RULES[name] = rule
        return rule

    return register


def _places(values: Sequence[Any]) -> list[Place]:
    found: list[Place] = []
    for value in values:
        if isinstance(value, Place):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _places(value)
    return found


def literal(value: float) -> str:
    """Return a Python number as a C++ vector."""
    value = float(value)
    if math.isnan(value):
        return 'splat(__builtin_nan(""))'
    if math.isinf(value):
        return f"splat({'-' if value < 0 else ''}__builtin_inf())"
    return f"splat({value!r})"


class _Lowering:
    """Appends statements to a program, from operators as PyTorch called them."""

    def __init__(self, recording: Recording) -> None:
        self.program = Program(recording.vector, recording.value, recording.gradient)
        self._started: set[Any] = {recording.vector.storage}

    def start_memory(self, operation: Operation) -> None:
        """Give memory that is first written in part the contents that it had."""
        everything = [*operation.args, *operation.kwargs.values(), *operation.outputs]
        for place in _places(everything):
            storage = place.storage
            if not storage.live or storage in self._started:
                continue
            self._started.add(storage)
            if storage.initial is None:
                continue
            source = Place(
                type(storage)(storage.index + 10**8, storage.size, storage.dtype, storage.initial),
                0,
                (storage.size,),
                (1,),
            )
            self.loop(Place(storage, 0, (storage.size,), (1,)), "{0}", source)

    def loop(
        self,
        out: Place,
        expression: str,
        *operands: Place | float | bool,
        update: Update = "=",
        initial: str | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        """Append a loop over the output's elements, or over a shape that it broadcasts to."""
        shape = out.shape if shape is None else tuple(shape)
        if 0 in shape:
            return
        inputs: list[Access] = []
        names: list[str] = []
        for operand in operands:
            if isinstance(operand, Place):
                names.append("{" + str(len(inputs)) + "}")
                inputs.append(access(operand, shape))
            else:
                names.append(literal(operand))
        expression = expression.format(*names)
        target = access(out, shape)
        self.program.statements.append(
            Loop(without_ones(shape), expression, tuple(inputs), target, update, initial)
        )

    def moved(self, out: Place, source: Place, addresses: torch.Tensor) -> None:
        """Append a loop that reads a source at the addresses given, one for each element."""
        if addresses.numel() == 0:
            return
        shape = without_ones(out.shape)
        read = Access(source.storage, 0, (0,) * len(shape), addresses.reshape(shape))
        self.program.statements.append(Loop(shape, "{0}", (read,), access(out, out.shape)))

    def scattered(
        self, out: Place, addresses: torch.Tensor, source: Place | float, *, add: bool
    ) -> None:
        """Append a loop that writes a source to, or adds it at, the addresses given."""
        if addresses.numel() == 0:
            return
        full = tuple(addresses.shape)
        shape = without_ones(full)
        write = Access(out.storage, 0, (0,) * len(shape), addresses.reshape(shape))
        if isinstance(source, Place):
            inputs: tuple[Access, ...] = (access(source, full),)
            expression = "{0}"
        else:
            inputs, expression = (), literal(source)
        update: Update = "+" if add else "="
        self.program.statements.append(Loop(shape, expression, inputs, write, update))

    def dense(self, place: Place) -> Place:
        """Return a place with the same elements, row by row, copied where it is not so already."""
        if place.live and place.strides == dense_strides(place.shape):
            return place
        copy = self.program.new(place.shape)
        self.loop(copy, "{0}", place)
        return copy

    def contract(
        self,
        out: Place,
        left: Place,
        left_strides: Sequence[int],
        right: Place,
        right_strides: Sequence[int],
        length: int,
    ) -> None:
        """Append a sum of products; strides follow the output's axes and then the summed one."""
        full = (*out.shape, length)
        if 0 in out.shape:
            return
        if length == 0:
            self.loop(out, "splat(0)")
            return
        shape = without_ones(out.shape)

        def factor(place: Place, strides: Sequence[int]) -> Access:
            kept = tuple(s for s, n in zip(strides[:-1], full[:-1], strict=True) if n != 1)
            return Access(place.storage, place.offset, (*kept, strides[-1]))

        self.program.statements.append(
            Contraction(
                shape,
                length,
                (factor(left, left_strides), factor(right, right_strides)),
                access(out, out.shape),
            )
        )

    def block(self, code: str, inputs: Sequence[Place], outputs: Sequence[Place]) -> None:
        """Append a call of a routine on dense matrices."""
        self.program.statements.append(Block(code, tuple(inputs), tuple(outputs)))


def _target(operation: Operation) -> Place:
    """Return where an operator writes: its own first argument for those in place."""
    if _base_name(operation.name).endswith("_"):
        place = operation.args[0]
        assert isinstance(place, Place)
        return place
    return operation.outputs[0]


def _elementwise(lowering: _Lowering, operation: Operation) -> None:
    base = _base_name(operation.name)
    name = base if base in _ELEMENTWISE else base.removesuffix("_")
    name = _IN_PLACE.get(name, name)
    expression = _ELEMENTWISE[name]
    arguments = [a for a in operation.args if isinstance(a, Place | int | float | bool)]
    lowering.loop(_target(operation), expression, *arguments[: expression.count("{") or None])


def _no_op(lowering: _Lowering, operation: Operation) -> None:
    """Do nothing: for checks, and for memory that is written to later."""


_RULES["_linalg_check_errors"] = _no_op


@_rules("add", "sub", "rsub")
def _add(lowering: _Lowering, operation: Operation) -> None:
    left, right = operation.args[:2]
    alpha = operation.args[2] if len(operation.args) > 2 else operation.kwargs.get("alpha", 1)
    base = _base_name(operation.name).removesuffix("_")
    if base == "rsub":
        left, right = right, left
    sign = "+" if base == "add" else "-"
    factor = "" if alpha == 1 else literal(alpha) + " * "
    lowering.loop(_target(operation), "{0} " + sign + " " + factor + "{1}", left, right)


@_rules("div", "divide", "true_divide")
def _divide(lowering: _Lowering, operation: Operation) -> None:
    mode = operation.kwargs.get("rounding_mode")
    expression = {
        None: "{0} / {1}",
        "floor": "v_floor({0} / {1})",
        "trunc": "v_trunc({0} / {1})",
    }[mode]
    lowering.loop(_target(operation), expression, *operation.args[:2])


@_rules("floor_divide")
def _floor_divide(lowering: _Lowering, operation: Operation) -> None:
    lowering.loop(_target(operation), "v_floor({0} / {1})", *operation.args[:2])


@_rules("pow")
def _power(lowering: _Lowering, operation: Operation) -> None:
    base, exponent = operation.args[:2]
    simple = {
        -2.0: "splat(1) / ({0} * {0})",
        -1.0: "splat(1) / {0}",
        -0.5: "splat(1) / v_sqrt({0})",
        0.0: "splat(1)",
        0.5: "v_sqrt({0})",
        1.0: "{0}",
        2.0: "{0} * {0}",
        3.0: "{0} * {0} * {0}",
        4.0: "({0} * {0}) * ({0} * {0})",
    }
    if isinstance(exponent, int | float) and float(exponent) in simple:
        lowering.loop(_target(operation), simple[float(exponent)], base)
    else:
        lowering.loop(_target(operation), "v_pow({0}, {1})", base, exponent)


@_rules("clamp", "clamp_min", "clamp_max", "clip")
def _clamp(lowering: _Lowering, operation: Operation) -> None:
    base = _base_name(operation.name).removesuffix("_")
    arguments = list(operation.args[1:]) + [None, None]
    low, high = arguments[0], arguments[1]
    if base == "clamp_max":
        low, high = None, low
    low = operation.kwargs.get("min", low)
    high = operation.kwargs.get("max", high)
    expression, operands = "{0}", [operation.args[0]]
    if low is not None:
        operands.append(low)
        expression = f"v_maximum({expression}, {{{len(operands) - 1}}})"
    if high is not None:
        operands.append(high)
        expression = f"v_minimum({expression}, {{{len(operands) - 1}}})"
    lowering.loop(_target(operation), expression, *operands)


@_rules("copy", "_to_copy", "to")
def _copy(lowering: _Lowering, operation: Operation) -> None:
    out = _target(operation)
    in_place = _base_name(operation.name) == "copy_"
    source = operation.args[1] if in_place else operation.args[0]
    if out.dtype == torch.bool:
        expression = "from_mask({0} != splat(0))"
    elif not out.dtype.is_floating_point and source.dtype.is_floating_point:
        expression = "v_trunc({0})"
    else:
        expression = "{0}"
    lowering.loop(out, expression, source)


@_rules("fill", "zero")
def _fill(lowering: _Lowering, operation: Operation) -> None:
    value = operation.args[1] if len(operation.args) > 1 else 0.0
    lowering.loop(_target(operation), "{0}", value)


@_rules("addcmul", "addcdiv")
def _add_product(lowering: _Lowering, operation: Operation) -> None:
    sign = "*" if "mul" in operation.name else "/"
    value = literal(operation.kwargs.get("value", 1))
    lowering.loop(_target(operation), f"{{0}} + {value} * {{1}} {sign} {{2}}", *operation.args[:3])


@_rules("lerp")
def _interpolate(lowering: _Lowering, operation: Operation) -> None:
    lowering.loop(_target(operation), "{0} + {2} * ({1} - {0})", *operation.args[:3])


@_rules("softplus")
def _softplus(lowering: _Lowering, operation: Operation) -> None:
    x, beta, threshold = [*operation.args, *(1, 20)[len(operation.args) - 1 :]]
    lowering.loop(_target(operation), f"v_softplus({{0}}, {float(beta)}, {float(threshold)})", x)


@_rules("softplus_backward")
def _softplus_backward(lowering: _Lowering, operation: Operation) -> None:
    gradient, x, beta, threshold = operation.args[:4]
    expression = "select({1} * {2} > {3}, {0}, {0} * v_sigmoid({1} * {2}))"
    lowering.loop(_target(operation), expression, gradient, x, beta, threshold)


@_rules("log_sigmoid_forward")
def _log_sigmoid(lowering: _Lowering, operation: Operation) -> None:
    lowering.loop(operation.outputs[0], "v_log_sigmoid({0})", operation.args[0])


@_rules("polygamma")
def _polygamma(lowering: _Lowering, operation: Operation) -> None:
    order, x = operation.args[:2]
    functions = {0: "v_digamma({0})", 1: "v_trigamma({0})"}
    expression = functions.get(order, f"v_polygamma({order}, {{0}})")
    lowering.loop(_target(operation), expression, x)


@_rules("threshold_backward")
def _threshold_backward(lowering: _Lowering, operation: Operation) -> None:
    gradient, x, threshold = operation.args[:3]
    lowering.loop(_target(operation), "select({1} > {2}, {0}, splat(0))", gradient, x, threshold)


@_rules("relu")
def _relu(lowering: _Lowering, operation: Operation) -> None:
    lowering.loop(_target(operation), "v_maximum({0}, splat(0))", operation.args[0])


# --- sums and other reductions


def _axes(operation: Operation, position: int = 1) -> tuple[list[int], bool]:
    """Return the reduced axes of the first argument, and whether they are kept with size one."""
    place = operation.args[0]
    rank = len(place.shape)
    arguments = operation.args
    axes = arguments[position] if len(arguments) > position else operation.kwargs.get("dim")
    keep = (
        arguments[position + 1]
        if len(arguments) > position + 1
        else operation.kwargs.get("keepdim", False)
    )
    if isinstance(axes, int):
        axes = [axes]
    return [a % max(rank, 1) for a in axes] if axes else list(range(rank)), bool(keep)


def _kept(out: Place, axes: list[int], keep: bool, rank: int) -> Place:
    """Return a reduced output with an axis of size one for each reduced one."""
    if keep or rank == 0:
        return out
    shape, strides = list(out.shape), list(out.strides)
    for axis in sorted(axes):
        shape.insert(axis, 1)
        strides.insert(axis, 0)
    return Place(out.storage, out.offset, tuple(shape), tuple(strides))


def _reduce(
    lowering: _Lowering,
    operation: Operation,
    update: Update,
    initial: str,
    expression: str = "{0}",
    position: int = 1,
) -> None:
    source = operation.args[0]
    axes, keep = _axes(operation, position)
    out = _kept(operation.outputs[0], axes, keep, len(source.shape))
    if 0 in source.shape:
        lowering.loop(out, initial)
        return
    lowering.loop(out, expression, source, update=update, initial=initial, shape=source.shape)


@_rules("sum")
def _sum(lowering: _Lowering, operation: Operation) -> None:
    _reduce(lowering, operation, "+", "splat(0)")


@_rules("any")
def _any(lowering: _Lowering, operation: Operation) -> None:
    _reduce(lowering, operation, "max", "splat(0)", "from_mask({0} != splat(0))")


@_rules("all")
def _all(lowering: _Lowering, operation: Operation) -> None:
    source = operation.args[0]
    axes, keep = _axes(operation)
    none_false = lowering.program.new(operation.outputs[0].shape)
    out = _kept(none_false, axes, keep, len(source.shape))
    lowering.loop(
        out,
        "from_mask({0} == splat(0))",
        source,
        update="max",
        initial="splat(0)",
        shape=source.shape,
    )
    lowering.loop(operation.outputs[0], "splat(1) - {0}", none_false)


@_rules("mean")
def _mean(lowering: _Lowering, operation: Operation) -> None:
    source = operation.args[0]
    axes, _ = _axes(operation)
    count = math.prod(source.shape[a] for a in axes)
    _reduce(lowering, operation, "+", "splat(0)", f"{{0}} * {literal(1 / max(count, 1))}")


@_rules("amax", "max", "amin", "min")
def _largest(lowering: _Lowering, operation: Operation) -> None:
    if len(operation.args) > 1 and isinstance(operation.args[1], Place):
        name = "v_maximum" if "max" in operation.name else "v_minimum"
        lowering.loop(_target(operation), f"{name}({{0}}, {{1}})", *operation.args[:2])
        return
    source = operation.args[0]
    axes, keep = _axes(operation)
    sign = "" if "max" in operation.name else "-"
    out = operation.outputs[0]
    raw = lowering.program.new(out.shape) if sign else out
    target = _kept(raw, axes, keep, len(source.shape))
    lowering.loop(
        target,
        f"{sign}{{0}}",
        source,
        update="max",
        initial="splat(-__builtin_inf())",
        shape=source.shape,
    )
    if sign:
        lowering.loop(out, "-{0}", raw)
    if len(operation.outputs) > 1:
        # The position of the first largest element: the least index that attains it.
        (axis,) = axes
        position = _along(source.shape, axis)
        best = lowering.program.new(operation.outputs[1].shape)
        lowering.loop(
            _kept(best, axes, keep, len(source.shape)),
            "select({0} == {1}, -{2}, splat(-__builtin_inf()))",
            source,
            _kept(out, axes, keep, len(source.shape)),
            position,
            update="max",
            initial="splat(-__builtin_inf())",
            shape=source.shape,
        )
        lowering.loop(operation.outputs[1], "-{0}", best)


@_rules("argmax", "argmin")
def _position_of_largest(lowering: _Lowering, operation: Operation) -> None:
    raise CannotCompile(f"{operation.name} of a latent site has no rule.{operation.line}")


def _along(shape: Sequence[int], axis: int) -> Place:
    """Return the constant index along an axis, broadcast to a shape."""
    values = torch.arange(shape[axis], dtype=torch.float64)
    return constant(values.reshape([-1 if a == axis else 1 for a in range(len(shape))]))


def constant(values: torch.Tensor) -> Place:
    """Return a place that holds given values."""
    from ppl_gen.core.compiler.record import Storage

    values = values.contiguous()
    storage = Storage(-id(values), values.numel(), values.dtype, values.reshape(-1))
    return Place(storage, 0, tuple(values.shape), tuple(values.stride()))


@_rules("logsumexp")
def _logsumexp(lowering: _Lowering, operation: Operation) -> None:
    source = operation.args[0]
    axes, keep = _axes(operation)
    rank = len(source.shape)
    out = operation.outputs[0]
    largest, total = lowering.program.new(out.shape), lowering.program.new(out.shape)
    wide = _kept(largest, axes, keep, rank)
    lowering.loop(
        wide,
        "{0}",
        source,
        update="max",
        initial="splat(-__builtin_inf())",
        shape=source.shape,
    )
    finite = "select(v_abs({1}) == splat(__builtin_inf()), splat(0), {1})"
    lowering.loop(
        _kept(total, axes, keep, rank),
        f"v_exp({{0}} - {finite})",
        source,
        wide,
        update="+",
        initial="splat(0)",
        shape=source.shape,
    )
    lowering.loop(out, f"v_log({{0}}) + {finite}", total, largest)


@_rules("_softmax", "_log_softmax")
def _softmax(lowering: _Lowering, operation: Operation) -> None:
    source, axis = operation.args[:2]
    rank = max(len(source.shape), 1)
    axis %= rank
    shape = tuple(1 if a == axis else n for a, n in enumerate(source.shape))
    largest, total = lowering.program.new(shape), lowering.program.new(shape)
    lowering.loop(
        largest,
        "{0}",
        source,
        update="max",
        initial="splat(-__builtin_inf())",
        shape=source.shape,
    )
    out = operation.outputs[0]
    lowering.loop(
        total,
        "v_exp({0} - {1})",
        source,
        largest,
        update="+",
        initial="splat(0)",
        shape=source.shape,
    )
    if "log" in operation.name:
        lowering.loop(out, "{0} - {1} - v_log({2})", source, largest, total)
    else:
        lowering.loop(out, "v_exp({0} - {1}) / {2}", source, largest, total)


@_rules("_softmax_backward_data", "_log_softmax_backward_data")
def _softmax_backward(lowering: _Lowering, operation: Operation) -> None:
    gradient, output, axis = operation.args[:3]
    axis %= max(len(output.shape), 1)
    total = lowering.program.new(tuple(1 if a == axis else n for a, n in enumerate(output.shape)))
    log = "log" in operation.name
    summand = "{0}" if log else "{0} * {1}"
    lowering.loop(
        total, summand, gradient, output, update="+", initial="splat(0)", shape=output.shape
    )
    expression = "{0} - v_exp({1}) * {2}" if log else "{1} * ({0} - {2})"
    lowering.loop(operation.outputs[0], expression, gradient, output, total)


@_rules("cumsum", "cumprod", "logcumsumexp")
def _cumulate(lowering: _Lowering, operation: Operation) -> None:
    source, axis = operation.args[:2]
    out = operation.outputs[0]
    rank = max(len(source.shape), 1)
    axis %= rank
    length = source.shape[axis] if source.shape else 1
    step = {
        "cumsum": "{0} + {1}",
        "cumprod": "{0} * {1}",
        "logcumsumexp": "v_logaddexp({0}, {1})",
    }[_base_name(operation.name).removesuffix("_")]

    def part(place: Place, index: int) -> Place:
        if not place.shape:
            return place
        shape = tuple(n for a, n in enumerate(place.shape) if a != axis)
        strides = tuple(s for a, s in enumerate(place.strides) if a != axis)
        return Place(place.storage, place.offset + index * place.strides[axis], shape, strides)

    lowering.loop(part(out, 0), "{0}", part(source, 0))
    for index in range(1, length):
        lowering.loop(part(out, index), step, part(out, index - 1), part(source, index))


@_rules("prod")
def _product(lowering: _Lowering, operation: Operation) -> None:
    source = operation.args[0]
    axes, keep = _axes(operation)
    out = _kept(operation.outputs[0], axes, keep, len(source.shape))
    lowering.loop(out, "splat(1)")
    parts = _elements(source, axes)
    for part in parts:
        lowering.loop(out, "{0} * {1}", out, part)


def _elements(source: Place, axes: list[int]) -> list[Place]:
    """Return the slices of a tensor along axes, kept with size one."""
    slices = [source]
    for axis in axes:
        slices = [
            Place(
                s.storage,
                s.offset + i * s.strides[axis],
                tuple(1 if a == axis else n for a, n in enumerate(s.shape)),
                s.strides,
            )
            for s in slices
            for i in range(s.shape[axis])
        ]
    return slices


# --- moving elements


@_rules("_unsafe_view", "reshape", "_reshape_alias")
def _reshape(lowering: _Lowering, operation: Operation) -> None:
    source, out = operation.args[0], operation.outputs[0]
    lowering.moved(out, source, source.addresses().reshape(out.shape))


@_rules("cat", "concatenate")
def _concatenate(lowering: _Lowering, operation: Operation) -> None:
    parts = operation.args[0]
    axis = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim", 0)
    out = operation.outputs[0]
    axis %= len(out.shape)
    start = 0
    for part in parts:
        if part.shape == (0,):
            continue
        shape = tuple(part.shape[axis] if a == axis else n for a, n in enumerate(out.shape))
        at = Place(out.storage, out.offset + start * out.strides[axis], shape, out.strides)
        lowering.loop(at, "{0}", part)
        start += part.shape[axis]


@_rules("stack")
def _stack(lowering: _Lowering, operation: Operation) -> None:
    parts = operation.args[0]
    axis = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim", 0)
    out = operation.outputs[0]
    axis %= len(out.shape)
    shape = tuple(n for a, n in enumerate(out.shape) if a != axis)
    strides = tuple(s for a, s in enumerate(out.strides) if a != axis)
    for index, part in enumerate(parts):
        at = Place(out.storage, out.offset + index * out.strides[axis], shape, strides)
        lowering.loop(at, "{0}", part)


def _index_arguments(operation: Operation, position: int) -> list[torch.Tensor | None]:
    values: list[torch.Tensor | None] = []
    for index in operation.args[position]:
        if isinstance(index, Place) and index.live:
            raise CannotCompile(f"an index depends on a latent site.{operation.line}")
        values.append(index.tensor() if isinstance(index, Place) else None)
    return values


def _indexed(addresses: torch.Tensor, indices: list[torch.Tensor | None]) -> torch.Tensor:
    # The operator itself, since indexing in Python places a lone advanced axis elsewhere.
    result = torch.ops.aten.index.Tensor(addresses, indices)
    assert isinstance(result, torch.Tensor)
    return result


@_rules("index", "_unsafe_index")
def _index(lowering: _Lowering, operation: Operation) -> None:
    source = operation.args[0]
    addresses = _indexed(source.addresses(), _index_arguments(operation, 1))
    lowering.moved(operation.outputs[0], source, addresses)


@_rules("index_put", "_index_put_impl", "_unsafe_index_put")
def _index_put(lowering: _Lowering, operation: Operation) -> None:
    target = _target(operation)
    if not _base_name(operation.name).endswith("_"):
        lowering.loop(target, "{0}", operation.args[0])
    accumulate = operation.args[3] if len(operation.args) > 3 else False
    addresses = _indexed(target.addresses(), _index_arguments(operation, 1))
    lowering.scattered(target, addresses, operation.args[2], add=bool(accumulate))


def _constant_index(operation: Operation, position: int) -> torch.Tensor:
    index = operation.args[position]
    if index.live:
        raise CannotCompile(f"an index depends on a latent site.{operation.line}")
    values = index.tensor()
    assert isinstance(values, torch.Tensor)
    return values


@_rules("gather")
def _gather(lowering: _Lowering, operation: Operation) -> None:
    source, axis, index = operation.args[:3]
    if not index.live:
        addresses = source.addresses().gather(axis, index.tensor())
        lowering.moved(operation.outputs[0], source, addresses)
        return
    # A position found at run time, as that of a maximum: add up the element that it names.
    axis %= len(source.shape)
    out = operation.outputs[0]
    lowering.loop(out, "splat(0)")
    for position, part in enumerate(_elements(source, [axis])):
        lowering.loop(out, "select({1} == {2}, {3}, {0})", out, index, float(position), part)


@_rules("scatter", "scatter_add")
def _scatter(lowering: _Lowering, operation: Operation) -> None:
    target = _target(operation)
    if not _base_name(operation.name).endswith("_"):
        lowering.loop(target, "{0}", operation.args[0])
    axis, index, source = operation.args[1:4]
    add = "add" in operation.name
    if index.live:
        axis %= len(target.shape)
        for position, part in enumerate(_elements(target, [axis])):
            update = "{0} + {3}" if add else "{3}"
            lowering.loop(
                part,
                f"select({{1}} == {{2}}, {update}, {{0}})",
                part,
                index,
                float(position),
                source,
            )
        return
    values = index.tensor()
    addresses = target.addresses().gather(axis, values)
    if isinstance(source, Place):
        shape = tuple(values.shape)
        source = Place(source.storage, source.offset, shape, source.strides)
    lowering.scattered(target, addresses, source, add=add)


@_rules("index_select")
def _index_select(lowering: _Lowering, operation: Operation) -> None:
    source, axis = operation.args[:2]
    addresses = source.addresses().index_select(axis, _constant_index(operation, 2))
    lowering.moved(operation.outputs[0], source, addresses)


@_rules("index_add")
def _index_add(lowering: _Lowering, operation: Operation) -> None:
    target = _target(operation)
    if not _base_name(operation.name).endswith("_"):
        lowering.loop(target, "{0}", operation.args[0])
    axis = operation.args[1]
    addresses = target.addresses().index_select(axis, _constant_index(operation, 2))
    lowering.scattered(target, addresses, operation.args[3], add=True)


@_rules("embedding")
def _embedding(lowering: _Lowering, operation: Operation) -> None:
    weight = operation.args[0]
    addresses = weight.addresses()[_constant_index(operation, 1)]
    lowering.moved(operation.outputs[0], weight, addresses)


@_rules("embedding_dense_backward")
def _embedding_backward(lowering: _Lowering, operation: Operation) -> None:
    out = operation.outputs[0]
    lowering.loop(out, "splat(0)")
    addresses = out.addresses()[_constant_index(operation, 1)]
    lowering.scattered(out, addresses, operation.args[0], add=True)


@_rules("flip")
def _flip(lowering: _Lowering, operation: Operation) -> None:
    source = operation.args[0]
    lowering.moved(operation.outputs[0], source, source.addresses().flip(operation.args[1]))


@_rules("roll")
def _roll(lowering: _Lowering, operation: Operation) -> None:
    source = operation.args[0]
    lowering.moved(operation.outputs[0], source, source.addresses().roll(*operation.args[1:]))


@_rules("repeat")
def _repeat(lowering: _Lowering, operation: Operation) -> None:
    source = operation.args[0]
    lowering.moved(operation.outputs[0], source, source.addresses().repeat(operation.args[1]))


@_rules("tril", "triu")
def _triangle(lowering: _Lowering, operation: Operation) -> None:
    source = operation.args[0]
    diagonal = operation.args[1] if len(operation.args) > 1 else 0
    keep = torch.ones(source.shape[-2:], dtype=torch.float64)
    function = torch.tril if "tril" in operation.name else torch.triu
    mask = constant(function(keep, diagonal))
    lowering.loop(_target(operation), "select({1} != splat(0), {0}, splat(0))", source, mask)


@_rules("constant_pad_nd")
def _pad(lowering: _Lowering, operation: Operation) -> None:
    source, widths = operation.args[:2]
    value = operation.args[2] if len(operation.args) > 2 else 0.0
    out = operation.outputs[0]
    lowering.loop(out, "{0}", float(value))
    # Widths come in pairs, the last axis first; negative ones cut.
    offset, shape, origin = out.offset, list(source.shape), source.offset
    for pair in range(len(widths) // 2):
        axis = len(shape) - 1 - pair
        before, after = widths[2 * pair], widths[2 * pair + 1]
        shape[axis] += min(before, 0) + min(after, 0)
        origin += max(-before, 0) * source.strides[axis]
        offset += max(before, 0) * out.strides[axis]
    at = Place(out.storage, offset, tuple(shape), out.strides)
    lowering.loop(at, "{0}", Place(source.storage, origin, tuple(shape), source.strides))


def _backward_of_view(name: str) -> Callable[[Any, Operation], torch.Tensor]:
    views: dict[str, Callable[[torch.Tensor, tuple[Any, ...]], torch.Tensor]] = {
        "select_backward": lambda x, a: x.select(a[0], a[1]),
        "slice_backward": lambda x, a: torch.ops.aten.slice.Tensor(x, *a),
        "diagonal_backward": lambda x, a: x.diagonal(*a),
        "as_strided_backward": lambda x, a: x,
    }
    return lambda x, operation: views[name](x, operation.args[2:])


@_rules("select_backward", "slice_backward", "diagonal_backward")
def _view_backward(lowering: _Lowering, operation: Operation) -> None:
    gradient, out = operation.args[0], operation.outputs[0]
    # Views of an output say by their own strides where the gradient goes.
    model = torch.empty_strided(out.shape, out.strides)
    at = _backward_of_view(_base_name(operation.name))(model, operation)
    lowering.loop(out, "splat(0)")
    place = Place(
        out.storage, out.offset + at.storage_offset(), tuple(at.shape), tuple(at.stride())
    )
    lowering.loop(place, "{0}", gradient)


@_rules("select_scatter", "slice_scatter", "diagonal_scatter")
def _view_scatter(lowering: _Lowering, operation: Operation) -> None:
    base, source, *rest = operation.args
    out = operation.outputs[0]
    model = torch.empty_strided(out.shape, out.strides)
    function = {
        "select_scatter": torch.ops.aten.select.int,
        "slice_scatter": torch.ops.aten.slice.Tensor,
        "diagonal_scatter": torch.ops.aten.diagonal.default,
    }[_base_name(operation.name)]
    at = function(model, *rest, **operation.kwargs)
    lowering.loop(out, "{0}", base)
    place = Place(
        out.storage, out.offset + at.storage_offset(), tuple(at.shape), tuple(at.stride())
    )
    lowering.loop(place, "{0}", source)


# --- products and linear algebra


@_rules("mm", "bmm", "mv", "dot", "vdot", "addmm", "addmv", "baddbmm")
def _matrix_product(lowering: _Lowering, operation: Operation) -> None:
    base = _base_name(operation.name)
    plus = base in ("addmm", "addmv", "baddbmm")
    left, right = operation.args[1:3] if plus else operation.args[:2]
    out = lowering.program.new(operation.outputs[0].shape) if plus else operation.outputs[0]
    length = left.shape[-1]
    if base in ("dot", "vdot"):
        lowering.contract(out, left, left.strides, right, right.strides, length)
    elif base in ("mv", "addmv"):
        lowering.contract(out, left, left.strides, right, (0, *right.strides), length)
    else:
        *batch_left, rows, along = left.strides
        *batch_right, down, columns = right.strides
        lowering.contract(
            out,
            left,
            (*batch_left, rows, 0, along),
            right,
            (*batch_right, 0, columns, down),
            length,
        )
    if plus:
        beta, alpha = operation.kwargs.get("beta", 1), operation.kwargs.get("alpha", 1)
        expression = "{0} * {1} + {2} * {3}" if (beta, alpha) != (1, 1) else "{0} + {2}"
        lowering.loop(operation.outputs[0], expression, operation.args[0], beta, out, alpha)


def _matrices(place: Place) -> list[Place]:
    """Return the matrices of a batch, each (n, m)."""
    matrices = [place]
    for _ in place.shape[:-2]:
        matrices = [
            Place(m.storage, m.offset + i * m.strides[0], m.shape[1:], m.strides[1:])
            for m in matrices
            for i in range(m.shape[0])
        ]
    return matrices


@_rules("linalg_cholesky_ex", "linalg_cholesky", "cholesky")
def _cholesky(lowering: _Lowering, operation: Operation) -> None:
    upper = operation.kwargs.get("upper", operation.args[1] if len(operation.args) > 1 else False)
    size = operation.args[0].shape[-1]
    if size == 0:
        return
    matrices = zip(_matrices(operation.args[0]), _matrices(operation.outputs[0]), strict=True)
    for source, out in matrices:
        matrix = lowering.program.new(source.shape)
        lowering.loop(matrix, "{0}", _transposed(source) if upper else source)
        lowering.block(f"cholesky({{1}}, {size});", [matrix], [matrix])
        lowering.loop(_transposed(out) if upper else out, "{0}", matrix)
    if len(operation.outputs) > 1:
        lowering.loop(operation.outputs[1], "splat(0)")


def _transposed(place: Place) -> Place:
    return Place(
        place.storage,
        place.offset,
        (*place.shape[:-2], place.shape[-1], place.shape[-2]),
        (*place.strides[:-2], place.strides[-1], place.strides[-2]),
    )


def _solve(
    lowering: _Lowering, matrix: Place, right: Place, out: Place, *, upper: bool, unit: bool
) -> None:
    """Append the solution of triangular systems, batches broadcast."""
    batch = out.shape[:-2]
    wide_matrix = _expand(matrix, (*batch, *matrix.shape[-2:]))
    wide_right = _expand(right, (*batch, *right.shape[-2:]))
    places = zip(_matrices(wide_matrix), _matrices(wide_right), _matrices(out), strict=True)
    for a, b, x in places:
        triangle, solution = lowering.dense(a), lowering.program.new(b.shape)
        lowering.loop(solution, "{0}", b)
        size, columns = b.shape
        lowering.block(
            f"solve_triangular({{0}}, {{2}}, {size}, {columns}, {int(upper)}, {int(unit)});",
            [triangle, solution],
            [solution],
        )
        lowering.loop(x, "{0}", solution)


def _expand(place: Place, shape: Sequence[int]) -> Place:
    read = access_full(place, shape)
    return Place(place.storage, place.offset, tuple(shape), read)


def access_full(place: Place, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a tensor broadcast to a shape."""
    missing = len(shape) - len(place.shape)
    own = zip(place.shape, place.strides, strict=True)
    return (0,) * missing + tuple(0 if size == 1 else stride for size, stride in own)


@_rules("linalg_solve_triangular")
def _solve_triangular(lowering: _Lowering, operation: Operation) -> None:
    matrix, right = operation.args[:2]
    upper, unit = operation.kwargs["upper"], operation.kwargs.get("unitriangular", False)
    out = operation.outputs[0]
    if operation.kwargs.get("left", True):
        _solve(lowering, matrix, right, out, upper=upper, unit=unit)
    else:  # X A = B is A' X' = B'
        _solve(
            lowering,
            _transposed(matrix),
            _transposed(right),
            _transposed(out),
            upper=not upper,
            unit=unit,
        )


@_rules("triangular_solve")
def _old_triangular_solve(lowering: _Lowering, operation: Operation) -> None:
    right, matrix = operation.args[:2]
    upper, transpose, unit = (
        *operation.args[2:5],
        *(True, False, False)[len(operation.args) - 2 :],
    )
    if transpose:
        matrix, upper = _transposed(matrix), not upper
    _solve(lowering, matrix, right, operation.outputs[0], upper=upper, unit=unit)


@_rules("cholesky_solve")
def _cholesky_solve(lowering: _Lowering, operation: Operation) -> None:
    right, factor = operation.args[:2]
    upper = bool(operation.args[2]) if len(operation.args) > 2 else False
    out = operation.outputs[0]
    between = lowering.program.new(out.shape)
    first = _transposed(factor) if upper else factor
    _solve(lowering, first, right, between, upper=False, unit=False)
    _solve(lowering, _transposed(first), between, out, upper=True, unit=False)


@_rules("cholesky_inverse")
def _cholesky_inverse(lowering: _Lowering, operation: Operation) -> None:
    factor = operation.args[0]
    upper = bool(operation.args[1]) if len(operation.args) > 1 else False
    out = operation.outputs[0]
    identity = constant(torch.eye(out.shape[-1], dtype=torch.float64))
    between = lowering.program.new(out.shape)
    first = _transposed(factor) if upper else factor
    wide = _expand(identity, out.shape)
    _solve(lowering, first, wide, between, upper=False, unit=False)
    _solve(lowering, _transposed(first), between, out, upper=True, unit=False)
