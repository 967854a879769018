"""Operators that make each output element from one element of each argument."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from ppl_gen.core.compiler.record import CannotCompile, Operation, Place
from ppl_gen.core.compiler.rules.lowering import (
    Lowering,
    Rule,
    conversion,
    literal,
    places,
    rule_for,
)

__all__: list[str] = []

_INFINITY = "splat(__builtin_inf())"

# {n} is the n-th argument. Truth values are 0 and 1.
_EXPRESSIONS: dict[str, str] = {
    "abs": "v_abs({0})",
    "acos": "v_acos({0})",
    "acosh": "v_acosh({0})",
    "asin": "v_asin({0})",
    "asinh": "v_asinh({0})",
    "atan": "v_atan({0})",
    "atan2": "v_atan2({0}, {1})",
    "atanh": "v_atanh({0})",
    "ceil": "v_ceil({0})",
    "copysign": (
        "v_abs({0}) * select(({1} < splat(0)) | (splat(1) / {1} < splat(0)), splat(-1), splat(1))"
    ),
    "cos": "v_cos({0})",
    "cosh": "v_cosh({0})",
    "deg2rad": f"{{0}} * splat({math.pi / 180})",
    "digamma": "v_digamma({0})",
    "erf": "v_erf({0})",
    "erfc": "v_erfc({0})",
    "erfinv": "v_erfinv({0})",
    "exp": "v_exp({0})",
    "exp2": "v_exp2({0})",
    "expm1": "v_expm1({0})",
    "floor": "v_floor({0})",
    "fmax": "select({1} != {1}, {0}, select({0} != {0}, {1}, v_maximum({0}, {1})))",
    "fmin": "select({1} != {1}, {0}, select({0} != {0}, {1}, v_minimum({0}, {1})))",
    "fmod": "v_fmod({0}, {1})",
    "frac": "{0} - v_trunc({0})",
    "heaviside": "select({0} == splat(0), {1}, from_mask({0} > splat(0)))",
    "hypot": "v_sqrt({0} * {0} + {1} * {1})",
    "i0": "v_i0({0})",
    "lerp": "{0} + {2} * ({1} - {0})",
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
    "rad2deg": f"{{0}} * splat({180 / math.pi})",
    "reciprocal": "splat(1) / {0}",
    "relu": "v_maximum({0}, splat(0))",
    "remainder": "v_remainder({0}, {1})",
    "rsqrt": "v_rsqrt({0})",
    "sgn": "v_sign({0})",
    "sigmoid": "v_sigmoid({0})",
    "sign": "v_sign({0})",
    "sin": "v_sin({0})",
    "sinh": "v_sinh({0})",
    "special_entr": (
        f"select({{0}} > splat(0), -{{0}} * v_log({{0}}), "
        f"select({{0}} == splat(0), splat(0), select({{0}} < splat(0), -{_INFINITY}, {{0}})))"
    ),
    "special_erfcx": "v_erfcx({0})",
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
    # Comparisons.
    "eq": "from_mask({0} == {1})",
    "ne": "from_mask({0} != {1})",
    "lt": "from_mask({0} < {1})",
    "le": "from_mask({0} <= {1})",
    "gt": "from_mask({0} > {1})",
    "ge": "from_mask({0} >= {1})",
    "isnan": "from_mask({0} != {0})",
    "isinf": f"from_mask(v_abs({{0}}) == {_INFINITY})",
    "logical_not": "from_mask({0} == splat(0))",
    "logical_and": "from_mask(({0} != splat(0)) & ({1} != splat(0)))",
    "logical_or": "from_mask(({0} != splat(0)) | ({1} != splat(0)))",
    "logical_xor": "from_mask(({0} != splat(0)) ^ ({1} != splat(0)))",
    "where": "select({0} != splat(0), {1}, {2})",
    "masked_fill": "select({1} != splat(0), {2}, {0})",
    # Backward formulas: {0} is the gradient of the output.
    "sigmoid_backward": "{0} * {1} * (splat(1) - {1})",
    "tanh_backward": "{0} * (splat(1) - {1} * {1})",
    "log_sigmoid_backward": "{0} * v_sigmoid(-{1})",
    "threshold_backward": "select({1} > {2}, {0}, splat(0))",
    "softplus_backward": "select({1} * {2} > {3}, {0}, {0} * v_sigmoid({1} * {2}))",
    "leaky_relu": "select({0} > splat(0), {0}, {0} * {1})",
    "softshrink_backward": "select(v_abs({1}) <= {2}, splat(0), {0})",
    "leaky_relu_backward": "select({1} > splat(0), {0}, {0} * {2})",
}


def _elementwise(expression: str) -> Rule:
    count = len(set(re.findall(r"\{\d\}", expression)))

    def rule(lowering: Lowering, operation: Operation) -> None:
        numbers = [x for x in operation.arguments.values() if isinstance(x, Place | int | float)]
        lowering.loop(operation.out, expression, *numbers[:count])

    return rule


for _name, _expression in _EXPRESSIONS.items():
    rule_for(_name)(_elementwise(_expression))


@rule_for("add", "sub", "rsub")
def _add(lowering: Lowering, operation: Operation) -> None:
    left, right, alpha = operation["self"], operation["other"], operation["alpha"]
    if operation.base == "rsub":
        left, right = right, left
    sign = "+" if operation.base == "add" else "-"
    factor = "" if alpha == 1 else literal(alpha) + " * "
    expression = f"{{0}} {sign} {factor}{{1}}"
    if operation.out.dtype == torch.bool:
        expression = f"from_mask({expression} != splat(0))"
    lowering.loop(operation.out, expression, left, right)


@rule_for("bitwise_not", "bitwise_and", "bitwise_or", "bitwise_xor")
def _bitwise(lowering: Lowering, operation: Operation) -> None:
    if operation.out.dtype != torch.bool:
        msg = f"operator {operation.name} of integers that depend on a latent site has no rule."
        raise CannotCompile(msg + operation.line)
    logical = _EXPRESSIONS[operation.base.replace("bitwise", "logical")]
    _elementwise(logical)(lowering, operation)


# The quotient rounded down, as PyTorch has it: 1 // 0.1 is 9.
_FLOOR = "select({1} == splat(0), {0} / {1}, v_round(({0} - v_remainder({0}, {1})) / {1}))"


@rule_for("div", "floor_divide")
def _divide(lowering: Lowering, operation: Operation) -> None:
    floor = "floor" if operation.base == "floor_divide" else None
    expression = {None: "{0} / {1}", "floor": _FLOOR, "trunc": "v_trunc({0} / {1})"}[
        operation.arguments.get("rounding_mode", floor)
    ]
    lowering.loop(operation.out, expression, operation["self"], operation["other"])


@rule_for("pow")
def _power(lowering: Lowering, operation: Operation) -> None:
    base, exponent = operation["self"], operation["exponent"]
    if isinstance(exponent, Place) or not math.isfinite(exponent):
        lowering.loop(operation.out, "v_pow({0}, {1})", base, exponent)
    elif exponent in (0, 1, 2):
        lowering.loop(operation.out, {0: "splat(1)", 1: "{0}", 2: "{0} * {0}"}[exponent], base)
    else:
        lowering.loop(operation.out, f"v_pow_scalar({{0}}, {float(exponent)!r})", base)


@rule_for("clamp", "clamp_min", "clamp_max")
def _clamp(lowering: Lowering, operation: Operation) -> None:
    low, high = operation.arguments.get("min"), operation.arguments.get("max")
    expression, operands = "{0}", [operation["self"]]
    for function, bound in (("v_maximum", low), ("v_minimum", high)):
        if bound is not None:
            expression = f"{function}({expression}, {{{len(operands)}}})"
            operands.append(bound)
    lowering.loop(operation.out, expression, *operands)


@rule_for("round")
def _round(lowering: Lowering, operation: Operation) -> None:
    scale = 10.0 ** operation.arguments.get("decimals", 0)
    expression = "v_round({0})" if scale == 1 else "v_round({0} * {1}) / {1}"
    lowering.loop(operation.out, expression, operation["self"], scale)


@rule_for("nan_to_num")
def _finite(lowering: Lowering, operation: Operation) -> None:
    limits = torch.finfo(operation.out.dtype)

    def given(name: str, default: float) -> str:
        return literal(default if operation[name] is None else operation[name])

    low, high = given("neginf", limits.min), given("posinf", limits.max)
    expression = f"select({{0}} == -{_INFINITY}, {low}, {{0}})"
    expression = f"select({{0}} == {_INFINITY}, {high}, {expression})"
    expression = f"select({{0}} != {{0}}, {given('nan', 0.0)}, {expression})"
    lowering.loop(operation.out, expression, operation["self"])


@rule_for("logit")
def _logit(lowering: Lowering, operation: Operation) -> None:
    x = "{0}"
    if operation["eps"] is not None:
        low, high = literal(operation["eps"]), literal(1 - operation["eps"])
        x = f"v_clamp({{0}}, {low}, {high})"
    lowering.loop(operation.out, f"v_log({x} / (splat(1) - {x}))", operation["self"])


@rule_for("sinc")
def _sinc(lowering: Lowering, operation: Operation) -> None:
    x = f"({{0}} * splat({math.pi}))"
    expression = f"select({{0}} == splat(0), splat(1), v_sin({x}) / {x})"
    lowering.loop(operation.out, expression, operation["self"])


@rule_for("copy", "_to_copy", "clone")
def _copy(lowering: Lowering, operation: Operation) -> None:
    source = operation["src"] if operation.base == "copy" else operation["self"]
    out = operation.out
    lowering.loop(out, conversion(source.dtype, out.dtype), source)


@rule_for("fill", "zero")
def _fill(lowering: Lowering, operation: Operation) -> None:
    value: Any = operation.arguments.get("value", 0.0)
    if not isinstance(value, Place) and not operation.out.dtype.is_floating_point:
        value = bool(value) if operation.out.dtype == torch.bool else int(value)
    lowering.loop(operation.out, "{0}", value)


@rule_for("addcmul", "addcdiv")
def _add_product(lowering: Lowering, operation: Operation) -> None:
    sign = "*" if operation.base == "addcmul" else "/"
    expression = f"{{0}} + {{3}} * {{1}} {sign} {{2}}"
    tensors = places(operation.arguments.values())
    lowering.loop(operation.out, expression, *tensors[:3], operation["value"])


@rule_for("softplus")
def _softplus(lowering: Lowering, operation: Operation) -> None:
    beta, threshold = float(operation["beta"]), float(operation["threshold"])
    lowering.loop(operation.out, f"v_softplus({{0}}, {beta!r}, {threshold!r})", operation["self"])


@rule_for("log_sigmoid_forward")
def _log_sigmoid(lowering: Lowering, operation: Operation) -> None:
    lowering.loop(operation.out, "v_log_sigmoid({0})", operation["self"])


@rule_for("polygamma")
def _polygamma(lowering: Lowering, operation: Operation) -> None:
    order = operation["n"]
    function = {0: "v_digamma({0})", 1: "v_trigamma({0})"}.get(
        order, f"v_polygamma({order}, {{0}})"
    )
    lowering.loop(operation.out, function, operation["self"])
