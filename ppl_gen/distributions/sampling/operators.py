"""The functions of single numbers that are followed, and what is said of operators that are not."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

__all__ = ["BINARY", "UNARY", "CannotPlan", "aten", "check_plain"]

aten = torch.ops.aten
# Functions of one number.
UNARY = {
    aten.relu.default: "relu",
    aten.tanh.default: "tanh",
    aten.sigmoid.default: "sigmoid",
    aten.exp.default: "exp",
    aten.neg.default: "neg",
    aten.elu.default: "elu",
    aten.silu.default: "silu",
    aten.softplus.default: "softplus",
    aten.abs.default: "abs",
    aten.log.default: "log",
}
BINARY = {
    aten.add.Tensor: "add",
    aten.sub.Tensor: "sub",
    aten.mul.Tensor: "mul",
    aten.div.Tensor: "div",
    aten.maximum.default: "maximum",
    aten.minimum.default: "minimum",
}


class CannotPlan(Exception):
    """A network has an operator that is not followed; the message names it."""


def check_plain(node: fx.Node, operands: int) -> None:
    """Refuse options of an operator that are not the usual ones.

    Args:
        node: The operator.
        operands: How many of its arguments are no options.

    Raises:
        CannotPlan: If it has others.
    """
    target: Any = node.target
    usual = {each.name: each.default_value for each in target._schema.arguments}
    options = dict(zip(list(usual)[operands:], node.args[operands:], strict=False)) | node.kwargs
    unusual = {name: value for name, value in options.items() if value != usual[name]}
    if unusual:
        raise CannotPlan(f"the operator {target} with options {unusual}")
