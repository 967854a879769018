"""The operators that are followed, and what is said of those that are not."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

__all__ = ["BINARY", "COPIES", "UNARY", "VIEWS", "CannotPlan", "aten", "check_plain"]

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
# Operators that move numbers: other views of the same ones, where they need not be copied first.
VIEWS = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.default,
    aten.expand.default,
    aten.alias.default,
    aten.detach.default,
    operator.getitem,
}
# Such that copy numbers.
COPIES = {
    aten.clone.default,
    aten.flip.default,
    aten.roll.default,
    aten.repeat.default,
    aten.upsample_nearest2d.default,
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
