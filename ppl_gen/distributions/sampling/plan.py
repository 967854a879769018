"""What each number of a network is made of, and after which element it is known.

Every number that depends on the elements has a slot. Operators that only move numbers, as `view`,
`pad` or `cat` do, are run on the slots themselves; what is left are affine maps, as convolutions
are, and functions of single numbers. A number is known once all that it is made of are: weights
that are zero, such as masked ones, make nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import fx

from ppl_gen.distributions.sampling.operators import (
    BINARY,
    COPIES,
    UNARY,
    VIEWS,
    CannotPlan,
    aten,
    check_plain,
)
from ppl_gen.distributions.sampling.record import ELEMENTS, Recorded
from ppl_gen.distributions.sampling.taps import taps, taps_of_transposed

__all__ = ["NOTHING", "Affine", "Given", "Plan", "Pointwise", "Slots", "make_plan"]

Slots: TypeAlias = NDArray[np.int64]
Array: TypeAlias = NDArray[Any]

# The slot of what is zero.
NOTHING = -1
# The most slots: plans of larger networks take too much memory, about 40 bytes for each.
_MOST = 2**26


@dataclass(frozen=True, eq=False)
class Affine:
    """Weighted sums, the same at each of several positions.

    Args:
        weight: `(input, output)`.
        bias: `(output,)`.
        inputs: Slots, `(position, input)`.
        outputs: Slots, `(position, output)`.
    """

    weight: Array
    bias: Array
    inputs: Slots
    outputs: Slots


@dataclass(frozen=True, eq=False)
class Pointwise:
    """A function of single numbers.

    Args:
        function: Its name.
        operands: Slots, `(element,)`, or the node of numbers that do not depend on the elements,
            with their flat index, `(element,)`.
        outputs: Slots, `(element,)`.
    """

    function: str
    operands: tuple[Slots | Given, ...]
    outputs: Slots


@dataclass(frozen=True, eq=False)
class Given:
    """Numbers that do not depend on the elements.

    Args:
        node: What they come from; a number for one that is written in the network.
        index: Which of them, `(element,)`.
    """

    node: fx.Node | float
    index: Slots


@dataclass
class Plan:
    """All that is to be computed.

    Args:
        operators: In an order in which they can be.
        times: By slot, after how many elements it is known.
        elements: Slots of the elements in the order of sampling, `(element,)`.
        numbers: Slots of the numbers for each element, in that order, `(element, number)`.
    """

    operators: list[Affine | Pointwise] = field(default_factory=list)
    times: Slots = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    elements: Slots = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    numbers: Slots = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))

    def differs_in_weights_alone(self, other: Plan) -> bool:
        """Return whether a plan of the same operators has other weights at the most.

        Those that have become zero, or are zero no longer, make another plan.

        Args:
            other: The other plan.
        """
        if len(self.operators) != len(other.operators):
            return False
        for one, two in zip(self.operators, other.operators, strict=True):
            if isinstance(one, Affine) != isinstance(two, Affine):
                return False
            # What else there is follows from these and from the network.
            if isinstance(one, Affine) and isinstance(two, Affine):
                alike = np.array_equal(one.inputs, two.inputs)
                if not (alike and np.array_equal(one.outputs, two.outputs)):
                    return False
        return np.array_equal(self.times, other.times)


def make_plan(recorded: Recorded) -> Plan:
    """Return the plan of a network.

    Args:
        recorded: Its operators.

    Raises:
        CannotPlan: If one of them is not followed.
        ValueError: If numbers of an element depend on one that comes after it, or on itself.
    """
    return _Planner(recorded).plan()


class _Planner:
    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded
        self.order = recorded.about.order
        # By slot; more of them than there are slots, so that few are copied when one is added.
        self.times = np.zeros(1024, dtype=np.int64)
        self.count = 0
        self.operators: list[Affine | Pointwise] = []
        self.slots: dict[fx.Node, Any] = {}

    def plan(self) -> Plan:
        nodes = list(self.recorded.graph.graph.nodes)
        shape = self.recorded.about.event_shape
        # The i-th element is known after i + 1 of them.
        times = np.empty(len(self.order), dtype=np.int64)
        times[self.order] = np.arange(len(self.order)) + 1
        self.slots[nodes[0]] = torch.from_numpy(self._new(times)).reshape(1, *shape)
        for node in nodes[1:]:
            if node.op == "call_function" and self.recorded.kinds[node] == ELEMENTS:
                self.slots[node] = self._follow(node)
        (result,) = nodes[-1].all_input_nodes
        numbers = self.slots[result].reshape(len(self.order), -1).numpy()[self.order]
        found = self.times[: self.count].copy()
        self._check(found, numbers)
        return Plan(self.operators, found, self.order.copy(), numbers)

    def _check(self, times: Slots, numbers: Slots) -> None:
        known = np.where(numbers == NOTHING, 0, times[numbers]).max(axis=1)
        late = np.flatnonzero(known > np.arange(len(known)))
        if len(late):
            shape = self.recorded.about.event_shape
            here, there = (
                tuple(int(i) for i in np.unravel_index(self.order[place], shape))
                for place in (late[0], known[late[0]] - 1)
            )
            msg = (
                f"{self.recorded.about.name}: the numbers of element {here} depend on "
                f"element {there}, which does not come before it. Mask what a layer may not see."
            )
            raise ValueError(msg)

    def _new(self, times: Slots) -> Slots:
        """Return slots of numbers that are known after so many elements."""
        first, self.count = self.count, self.count + len(times)
        if self.count > _MOST:
            raise CannotPlan(f"so many numbers: more than {_MOST:,}")
        if self.count > len(self.times):
            self.times = np.concatenate([self.times, np.zeros(self.count, dtype=np.int64)])
        self.times[first : self.count] = times
        return np.arange(first, self.count)

    def _times_of(self, slots: Slots) -> Slots:
        return np.asarray(np.where(slots == NOTHING, 0, self.times[slots]))

    # ---- operators

    def _follow(self, node: fx.Node) -> Any:
        target: Any = node.target
        args: Any = node.args
        if target in VIEWS | COPIES:
            slots, kwargs = fx.map_arg((args, node.kwargs), self._slots_of)
            if target is aten.upsample_nearest2d.default:
                return target(slots[0].double(), *slots[1:], **kwargs).long()
            return target(*slots, **kwargs)
        if target is aten.constant_pad_nd.default:
            source, pad, *value = args
            if value and value[0] != 0:
                raise CannotPlan(f"padding with {value[0]}")
            return F.pad(self._slots_of(source), pad, value=NOTHING)
        if target in (aten.cat.default, aten.stack.default):
            parts, *axis = args
            return target([self._or_nothing(each) for each in parts], *axis)
        if target in UNARY:
            check_plain(node, 1)
            return self._pointwise(UNARY[target], args[0])
        if target in BINARY:
            check_plain(node, 2)
            return self._pointwise(BINARY[target], *args[:2])
        if target is aten.rsub.Scalar:
            check_plain(node, 2)
            return self._pointwise("sub", args[1], args[0])
        if target is aten.convolution.default:
            return self._convolution(*args)
        if target is aten.addmm.default:
            bias, left, right = args
            return self._product(left, right, bias)
        if target is aten.mm.default:
            return self._product(args[0], args[1], None)
        if target is aten.bmm.default:
            return self._products(*args)
        if target is aten.cumsum.default:
            return self._cumulative(*args)
        raise CannotPlan(f"the operator {target}")

    def _slots_of(self, node: Any) -> Any:
        if node not in self.slots:
            raise CannotPlan(
                f"{node.target} of what does not depend on the elements, with what does"
            )
        return self.slots[node]

    def _or_nothing(self, node: fx.Node) -> torch.Tensor:
        if node in self.slots:
            slots: torch.Tensor = self.slots[node]
            return slots
        value = self._constant(node)
        if bool((value != 0).any()):
            raise CannotPlan("cat with constants that are not zero")
        return torch.full(value.shape, NOTHING)

    def _constant(self, node: Any) -> torch.Tensor:
        if not isinstance(node, fx.Node):
            return torch.as_tensor(node)
        if node not in self.recorded.constants:
            raise CannotPlan("weights that depend on the elements or on the context")
        value: torch.Tensor = self.recorded.constants[node].cpu()
        return value

    def _pointwise(self, function: str, *operands: Any) -> torch.Tensor:
        shape = torch.broadcast_shapes(*(_shape(each) for each in operands))
        found: list[Slots | Given] = []
        known = np.zeros(math.prod(shape), dtype=np.int64)
        for each in operands:
            if isinstance(each, fx.Node) and each in self.slots:
                slots = self.slots[each].expand(shape).reshape(-1).numpy()
                known = np.maximum(known, self._times_of(slots))
                found.append(slots)
            elif isinstance(each, fx.Node):
                own = _shape(each)
                index = torch.arange(math.prod(own)).reshape(own).expand(shape)
                found.append(Given(each, index.reshape(-1).numpy()))
            else:
                found.append(Given(float(each), np.zeros(len(known), dtype=np.int64)))
        outputs = self._new(known)
        self.operators.append(Pointwise(function, tuple(found), outputs))
        return torch.from_numpy(outputs).reshape(shape)

    def _affine(self, weight: Array, bias: Array | None, inputs: Slots) -> Slots:
        """Return slots (position, output) of weighted sums of inputs, slots (position, input)."""
        outputs = np.empty((len(inputs), weight.shape[1]), dtype=np.int64)
        known = self._times_of(inputs)
        bias = np.zeros(weight.shape[1], dtype=weight.dtype) if bias is None else bias
        used = weight != 0
        # Outputs that see the same inputs are known at the same time.
        patterns, group = np.unique(used.T, axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            members = np.flatnonzero(group.reshape(-1) == number)
            times = known[:, pattern].max(axis=1, initial=0)
            slots = self._new(np.repeat(times, len(members))).reshape(len(inputs), -1)
            outputs[:, members] = slots
            own = weight[np.ix_(pattern, members)]
            self.operators.append(Affine(own, bias[members], inputs[:, pattern], slots))
        return outputs

    def _product(self, left: Any, right: Any, bias: Any) -> torch.Tensor:
        weight = self._constant(right).numpy()
        added = None if bias is None else self._constant(bias).expand(weight.shape[1]).numpy()
        return torch.from_numpy(self._affine(weight, added, self._slots_of(left).numpy()))

    def _products(self, left: Any, right: Any) -> torch.Tensor:
        weights, slots = self._constant(right).numpy(), self._slots_of(left).numpy()
        rows = [self._affine(w, None, s) for w, s in zip(weights, slots, strict=True)]
        return torch.from_numpy(np.stack(rows))

    def _cumulative(self, source: Any, axis: int) -> torch.Tensor:
        slots = self._slots_of(source).movedim(axis, 0)
        rows = [slots[0]]
        for row in slots[1:]:
            before, added = rows[-1].reshape(-1).numpy(), row.reshape(-1).numpy()
            known = np.maximum(self._times_of(before), self._times_of(added))
            outputs = self._new(known)
            self.operators.append(Pointwise("add", (before, added), outputs))
            rows.append(torch.from_numpy(outputs).reshape(row.shape))
        return torch.stack(rows).movedim(0, axis)

    def _convolution(
        self,
        source: Any,
        kernel: Any,
        bias: Any,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> torch.Tensor:
        if groups != 1:
            raise CannotPlan(f"a convolution of {groups} groups")
        slots = self._slots_of(source)[0]
        weight = self._constant(kernel)
        added = None if bias is None else self._constant(bias).numpy()
        if transposed:
            weight = weight.transpose(0, 1)
        find = taps_of_transposed if transposed else taps
        seen, shape = find(
            slots, weight.shape[2:], stride, padding, dilation, output_padding, NOTHING
        )
        inputs = seen.permute(2, 1, 0).reshape(seen.shape[2], -1).numpy()
        flat = weight.flatten(2).permute(2, 1, 0).reshape(-1, weight.shape[0]).numpy()
        outputs = self._affine(flat, added, inputs)
        return torch.from_numpy(outputs.T.copy()).reshape(1, -1, *shape)


def _shape(operand: Any) -> torch.Size:
    if isinstance(operand, fx.Node):
        shape: torch.Size = operand.meta["val"].shape
        return shape
    return torch.Size()
