"""A plan in the order in which it is run, with a place in memory for each number in use."""

from __future__ import annotations

import enum
import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from ppl_gen.distributions.sampling.plan import (
    NOTHING,
    Affine,
    Given,
    Plan,
    Pointwise,
    Slots,
)
from ppl_gen.distributions.sampling.record import CONTEXT, Recorded

__all__ = [
    "FUNCTIONS",
    "Code",
    "Operand",
    "Schedule",
    "joined",
    "make_schedule",
    "runs_of",
    "tables_of_context",
]

Array: TypeAlias = NDArray[Any]

# As in sampler.cpp.
FUNCTIONS = (
    "relu",
    "tanh",
    "sigmoid",
    "exp",
    "neg",
    "elu",
    "silu",
    "softplus",
    "abs",
    "add",
    "sub",
    "mul",
    "div",
    "maximum",
    "minimum",
)


class Code(enum.IntEnum):
    """What an instruction does, as in sampler.cpp."""

    AFFINE = 0
    POINTWISE = 1
    DRAW = 2


class Operand(enum.IntEnum):
    """Where an operand of a pointwise instruction is, as in sampler.cpp."""

    RUN = 0  # places one after the other
    LISTED = 1  # places in the list of indices
    NUMBER = 2  # one number
    TABLE = 3  # numbers, the same for all rows
    OF_ROWS = 4  # numbers, others for each row


@dataclass(frozen=True, eq=False)
class Schedule:
    """What is to be run.

    Args:
        code: The instructions, one after the other.
        starts: Where in the code the instructions begin that make the numbers of each element, and
            draw it, `(element + 1,)`. Of a sequence none: all code is run for each element.
        weights: Weights and biases, one after the other.
        indices: Places that are not one after the other.
        numbers: Numbers that depend neither on the elements nor on the context.
        of_context: Node and flat index of the numbers that depend on the context.
        places: Number of places in memory. That of what is zero is the first one.
        affine: Indices of the operators in the plan whose weights these are, in order.
        tables: Node and flat index of the numbers, in order; a number for one that is written in
            the network.
    """

    code: Slots
    starts: Slots
    weights: Array
    indices: Slots
    numbers: Array
    of_context: tuple[tuple[fx.Node, Slots], ...]
    places: int
    affine: tuple[int, ...] = ()
    tables: tuple[tuple[fx.Node | float, Slots], ...] = ()

    def filled(self, recorded: Recorded, plan: Plan) -> Schedule:
        """Return it with the weights of a plan that differs in them alone.

        Args:
            recorded: The operators of the network, with its present weights.
            plan: Their plan.
        """
        dtype = recorded.about.dtype
        weights: list[Array] = []
        for index in self.affine:
            each = plan.operators[index]
            assert isinstance(each, Affine)
            weights += [each.weight.reshape(-1), each.bias]
        numbers = [
            np.array([node])
            if isinstance(node, float)
            else recorded.constants[node].reshape(-1).cpu().numpy()[index]
            for node, index in self.tables
        ]
        return replace(self, weights=joined(weights, dtype), numbers=joined(numbers, dtype))


@dataclass(frozen=True)
class _Item:
    """A part of an operator that is run at once.

    Args:
        time: After how many elements it is run.
        operator: Index of the operator.
        position: Of an affine operator.
        elements: Of a pointwise operator.
    """

    time: int
    operator: int
    position: int
    elements: Slots | None


def make_schedule(recorded: Recorded, plan: Plan) -> Schedule:
    """Return the schedule of a plan.

    Args:
        recorded: The operators of the network.
        plan: The plan.
    """
    return _Scheduler(recorded, plan).schedule()


def tables_of_context(
    recorded: Recorded, schedule: Schedule, context: torch.Tensor | None, dtype: Any
) -> Array:
    """Return the numbers that depend on the context, `(number, row)`; none where none do.

    Args:
        recorded: The operators of the network.
        schedule: The schedule.
        context: What comes with each row, `(row, *context_shape)`.
        dtype: Of the result.
    """
    if context is None or not schedule.of_context:
        return np.zeros((0, 1), dtype=dtype)
    distinct, which = torch.unique(context, dim=0, return_inverse=True)
    columns = []
    for row in distinct:
        values = recorded.of_context(row.unsqueeze(0))
        parts = [values[node].reshape(-1)[index] for node, index in schedule.of_context]
        columns.append(torch.cat(parts).cpu().numpy())
    return np.ascontiguousarray(np.stack(columns, axis=1)[:, which.cpu().numpy()].astype(dtype))


class _Scheduler:
    def __init__(self, recorded: Recorded, plan: Plan) -> None:
        self.recorded = recorded
        self.plan = plan
        self.memory = _Memory()
        self.place = np.full(len(plan.times) + 1, NOTHING, dtype=np.int64)
        self.place[NOTHING] = self.memory.take(1)  # of zero, for good
        self.code: list[int] = []
        self.indices: list[Slots] = []
        self.num_indices = 0
        self.given: list[tuple[fx.Node | float, Slots]] = []
        self.num_numbers = 0
        self.of_context: list[tuple[fx.Node, Slots]] = []
        self.num_of_context = 0
        self.affine: list[int] = []
        self.num_weights = 0
        self.weights_of: dict[int, tuple[int, int]] = {}
        self.tables: dict[Any, int] = {}

    def schedule(self) -> Schedule:
        items, dying = self._needed()
        plan = self.plan
        self.place[plan.elements] = self.memory.take(len(plan.elements)) + np.arange(
            len(plan.elements)
        )
        starts = []
        following = iter(items)
        item = next(following, None)
        number = 0
        for step in range(len(plan.elements)):
            starts.append(len(self.code))
            while item is not None and item.time <= step:
                self._emit(item)
                for block in dying.get(number, ()):
                    self._release(block)
                number += 1
                item = next(following, None)
            self._emit_draw(step)
            for block in dying.get(-1 - step, ()):
                self._release(block)
        starts.append(len(self.code))
        blank = np.zeros(0)
        found = Schedule(
            np.array(self.code, dtype=np.int64),
            np.array(starts, dtype=np.int64),
            blank,
            joined(self.indices, np.int64),
            blank,
            tuple(self.of_context),
            self.memory.size,
            tuple(self.affine),
            tuple(self.given),
        )
        return found.filled(self.recorded, plan)

    # ---- what is run, and for how long its results are used

    def _items(self) -> list[_Item]:
        found = []
        last = len(self.plan.elements)
        for index, each in enumerate(self.plan.operators):
            if isinstance(each, Affine):
                times = self.plan.times[each.outputs[:, 0]]
                found += [
                    _Item(int(time), index, position, None)
                    for position, time in enumerate(times)
                    if time < last
                ]
                continue
            times = self.plan.times[each.outputs]
            order = np.argsort(times, kind="stable")
            values, starts = np.unique(times[order], return_index=True)
            for time, elements in zip(values, np.split(order, starts[1:]), strict=True):
                if time < last:
                    found.append(_Item(int(time), index, 0, elements))
        return sorted(found, key=lambda item: (item.time, item.operator))

    def _needed(self) -> tuple[list[_Item], Mapping[int, list[Slots]]]:
        """Return the items that the numbers need, and the outputs that are not used after each.

        The key -1 - i stands for the drawing of element i.
        """
        items = self._items()
        # After which item, or drawing, a slot is used last.
        last_use = np.full(len(self.plan.times) + 1, np.iinfo(np.int64).min)
        is_used = np.zeros(len(self.plan.times) + 1, dtype=bool)
        by_time: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            by_time[item.time].append(index)
        kept: list[_Item] = []
        endings: list[tuple[_Item, int]] = []
        for step in reversed(range(len(self.plan.elements))):
            numbers = self.plan.numbers[step]
            fresh = numbers[~is_used[numbers]]
            last_use[fresh] = -1 - step
            is_used[fresh] = True
            for index in reversed(by_time.get(step, [])):
                item = items[index]
                outputs, inputs = self._slots_of(item)
                used = is_used[outputs]
                if not used.any():
                    continue
                kept.append(item)
                fresh = inputs[~is_used[inputs]]
                last_use[fresh] = len(kept) - 1
                is_used[fresh] = True
                endings.append((item, len(kept) - 1))
        kept.reverse()
        count = len(kept)
        dying: dict[int, list[Slots]] = defaultdict(list)
        for item in kept:
            outputs, _ = self._slots_of(item)
            uses = last_use[outputs[is_used[outputs]]]
            drawn, run = uses[uses < 0], uses[uses >= 0]
            # Items are counted from the end here; the drawing of a step comes after its items.
            end = _latest(drawn, run, count, kept)
            dying[end].append(outputs)
        return kept, dying

    def _slots_of(self, item: _Item) -> tuple[Slots, Slots]:
        """Return the slots that an item makes, and those that it uses."""
        each = self.plan.operators[item.operator]
        if isinstance(each, Affine):
            inputs = each.inputs[item.position]
            return each.outputs[item.position], inputs[inputs != NOTHING]
        used = [x[item.elements] for x in each.operands if not isinstance(x, Given)]
        inputs = np.concatenate(used)
        return each.outputs[item.elements], inputs[inputs != NOTHING]

    def _release(self, slots: Slots) -> None:
        self.memory.give(int(self.place[slots].min()), len(slots))

    # ---- instructions

    def _emit(self, item: _Item) -> None:
        each = self.plan.operators[item.operator]
        if isinstance(each, Affine):
            self._emit_affine(item, each)
        else:
            self._emit_pointwise(item, each)

    def _emit_affine(self, item: _Item, each: Affine) -> None:
        if item.operator not in self.weights_of:
            start = self.num_weights
            self.affine.append(item.operator)
            self.num_weights += each.weight.size + each.bias.size
            self.weights_of[item.operator] = start, start + each.weight.size
        weight, bias = self.weights_of[item.operator]
        outputs, inputs = each.outputs[item.position], each.inputs[item.position]
        places = np.where(inputs == NOTHING, NOTHING, self.place[inputs])
        runs = [
            (int(places[start]), stop - start, start)
            for start, stop in runs_of(places)
            if inputs[start] != NOTHING
        ]
        out = self.memory.take(len(outputs))
        self.place[outputs] = out + np.arange(len(outputs))
        self.code += [Code.AFFINE, out, 0, 0, len(outputs), weight, bias, len(runs)]
        for place, length, row in runs:
            self.code += [place, 0, 0, 0, length, row]

    def _emit_pointwise(self, item: _Item, each: Pointwise) -> None:
        elements = item.elements
        assert elements is not None
        first = next(x for x in each.operands if not isinstance(x, Given))
        elements = elements[np.argsort(self.place[first[elements]], kind="stable")]
        out = self.memory.take(len(elements))
        function = FUNCTIONS.index(each.function)
        count = len(elements)
        code = [int(Code.POINTWISE), function, out, 0, 0, count, len(each.operands)]
        for operand in each.operands:
            if isinstance(operand, Given):
                code += self._given(operand, elements)
                continue
            places = self.place[operand[elements]]
            code += self._read(places)
        self.place[each.outputs[elements]] = out + np.arange(len(elements))
        self.code += code

    def _emit_draw(self, step: int) -> None:
        numbers = self.place[self.plan.numbers[step]]
        element = int(self.place[self.plan.elements[step]])
        self.code += [Code.DRAW, step, element, 0, 0, 0, len(numbers), *self._read(numbers)]

    def _read(self, places: Slots) -> list[int]:
        """Return the code of an operand in memory."""
        if len(runs_of(places)) == 1:
            return [Operand.RUN, int(places[0]), 0, 0, 0]
        return [Operand.LISTED, self._listed(places), 0, 0, 0]

    def _given(self, operand: Given, elements: Slots) -> list[int]:
        node = operand.node
        is_number = isinstance(node, float)
        index = operand.index[:1] if is_number else operand.index[elements]
        key = (node, index.tobytes())
        of_context = not isinstance(node, float) and self.recorded.kinds[node] == CONTEXT
        if key not in self.tables:
            tables: Any = self.of_context if of_context else self.given
            tables.append((node, index))
            self.tables[key] = self.num_of_context if of_context else self.num_numbers
            if of_context:
                self.num_of_context += len(index)
            else:
                self.num_numbers += len(index)
        kind = Operand.NUMBER if is_number else Operand.OF_ROWS if of_context else Operand.TABLE
        return [kind, self.tables[key], 0, 0, 0]

    def _listed(self, places: Slots) -> int:
        start = self.num_indices
        where = np.zeros((len(places), 4), dtype=np.int64)
        where[:, 0] = places
        self.indices.append(where.reshape(-1))
        self.num_indices += len(places)
        return start


def _latest(drawn: Slots, run: Slots, count: int, kept: list[_Item]) -> int:
    """Return the key of the last use: the number of an item, or -1 - step of a drawing."""
    last_item = count - 1 - int(run.min()) if len(run) else None
    last_draw = -1 - int(drawn.min()) if len(drawn) else None
    if last_draw is None:
        assert last_item is not None
        return last_item
    if last_item is None or kept[last_item].time <= last_draw:
        return -1 - last_draw
    return last_item


def runs_of(places: Slots) -> list[tuple[int, int]]:
    """Return where numbers go up one by one, as (start, stop)."""
    if not len(places):
        return []
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    edges = [0, *breaks.tolist(), len(places)]
    return list(itertools.pairwise(edges))


def joined(parts: list[Any], dtype: Any) -> Any:
    """Return arrays one after the other."""
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype=dtype)


class _Memory:
    """Places that are taken and given back, in blocks."""

    def __init__(self) -> None:
        self.size = 0
        self._free: dict[int, list[int]] = defaultdict(list)

    def take(self, length: int) -> int:
        """Return the first of so many places."""
        if self._free[length]:
            return self._free[length].pop()
        self.size += length
        return self.size - length

    def give(self, start: int, length: int) -> None:
        """Give places back."""
        self._free[length].append(start)
