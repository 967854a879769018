"""A plan in the order in which it is run, with a place in memory for each number in use.

What an operator makes after one element is a batch: it is run at once, and its numbers are next
to each other in memory. There are tens of thousands of batches, so that all is done on arrays, an
operator at a time; only the places in memory are found batch by batch.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import fx

from ppl_gen.distributions.sampling.plan import NOTHING, Affine, Given, Plan, Pointwise, Slots
from ppl_gen.distributions.sampling.program import (
    FUNCTIONS,
    Code,
    Operand,
    Program,
    aligned,
    joined,
)
from ppl_gen.distributions.sampling.record import CONTEXT, Recorded

__all__ = ["make_schedule"]


@dataclass(eq=False)
class _Batches:
    """What is run of one operator.

    Args:
        which: Positions of an affine operator, elements of another one, by time.
        outputs: Slots that they make, in the order in which they are stored.
        times: After how many elements each batch is run.
        starts: Where in `outputs` each begins.
        sizes: How many outputs each has.
    """

    which: Slots
    outputs: Slots
    times: Slots
    starts: Slots
    sizes: Slots


def make_schedule(recorded: Recorded, plan: Plan) -> Program:
    """Return the program of a plan.

    Args:
        recorded: The operators of the network.
        plan: The plan.
    """
    return _Scheduler(recorded, plan).program()


class _Scheduler:
    def __init__(self, recorded: Recorded, plan: Plan) -> None:
        self.recorded = recorded
        self.plan = plan
        # When things are done: after how many elements, and by which operator. Last, an element is
        # drawn.
        self.period = len(plan.operators) + 1
        self.instructions = _Instructions()
        self.longest = plan.numbers.shape[1]
        self.num_weights = 0
        self.indices: list[Slots] = []
        self.num_indices = 0
        self.given: list[tuple[fx.Node | float, Slots]] = []
        self.num_given = 0
        self.of_context: list[tuple[fx.Node, Slots]] = []
        self.num_of_context = 0

    def program(self) -> Program:
        plan, recorded = self.plan, self.recorded
        batches = self._batches()
        self.place, places = self._placed(batches)
        affine = []
        for index, (operator, each) in enumerate(zip(plan.operators, batches, strict=True)):
            if not len(each.which):
                continue
            if isinstance(operator, Affine):
                affine.append(index)
                self._affine(index, operator, each)
            else:
                self._pointwise(index, operator, each)
        self._draws()
        steps = np.arange(len(plan.elements) + 1) * self.period
        code, starts = self.instructions.in_order(steps)
        blank = np.zeros(0)
        found = Program(
            code,
            starts,
            (),
            joined(self.indices, np.int64),
            blank,
            tuple(self.of_context),
            places,
            self.longest,
            tuple(affine),
            tuple(self.given),
        )
        return found.filled(recorded, plan)

    # ---- what is run when, and where its results are

    def _batches(self) -> list[_Batches]:
        plan = self.plan
        used = self._used()
        rank = np.arange(len(plan.times) + 1)
        found = []
        for operator in plan.operators:
            if isinstance(operator, Affine):
                times = plan.times[operator.outputs[:, 0]]
                order = np.argsort(times, kind="stable")
                keep = used[operator.outputs[order]].max(axis=1)
            else:
                times = plan.times[operator.outputs]
                first = next(x for x in operator.operands if not isinstance(x, Given))
                # In the order in which the first operand is stored.
                rank[operator.outputs] = rank[first]
                order = np.lexsort((rank[first], times))
                keep = used[operator.outputs[order]]
            which = order[keep]
            outputs = operator.outputs[which]
            width = outputs.shape[1] if outputs.ndim == 2 else 1
            values, starts, counts = np.unique(times[which], return_index=True, return_counts=True)
            found.append(
                _Batches(which, outputs.reshape(-1), values, starts * width, counts * width)
            )
        return found

    def _used(self) -> NDArray[np.bool_]:
        """Return by slot whether the numbers of an element need it."""
        plan = self.plan
        used = np.zeros(len(plan.times) + 1, dtype=bool)
        used[plan.numbers] = True
        for operator in reversed(plan.operators):
            if isinstance(operator, Affine):
                used[operator.inputs[used[operator.outputs].any(axis=1)]] = True
            else:
                for operand in operator.operands:
                    if not isinstance(operand, Given):
                        used[operand[used[operator.outputs]]] = True
            used[NOTHING] = False
        return used

    def _placed(self, batches: list[_Batches]) -> tuple[Slots, int]:
        """Return the place of each slot, and how many places there are."""
        plan = self.plan
        last = self._last_uses(batches)
        keys = np.concatenate([each.times * self.period + k for k, each in enumerate(batches)])
        sizes = np.concatenate([each.sizes for each in batches])
        ends = np.concatenate(
            [np.maximum.reduceat(last[b.outputs], b.starts) for b in batches if len(b.which)]
        )
        memory = _Memory()
        place = np.zeros(len(plan.times) + 1, dtype=np.int64)
        place[NOTHING] = memory.take(1)  # of zero, for good
        place[plan.elements] = memory.take(len(plan.elements)) + np.arange(len(plan.elements))
        firsts = _allocated(memory, keys, sizes, ends)
        done = 0
        for each in batches:
            count = len(each.times)
            shift = np.repeat(firsts[done : done + count] - each.starts, each.sizes)
            place[each.outputs] = shift + np.arange(len(each.outputs))
            done += count
        return place, memory.size

    def _last_uses(self, batches: list[_Batches]) -> Slots:
        """Return by slot when it is used last."""
        plan = self.plan
        last = np.zeros(len(plan.times) + 1, dtype=np.int64)

        def use(slots: Slots, keys: Slots) -> None:
            # Keys go up, and of several for a slot the last one stays.
            last[slots] = np.maximum(last[slots], keys)

        for index, (operator, each) in enumerate(zip(plan.operators, batches, strict=True)):
            if not len(each.which):
                continue
            keys = np.repeat(each.times, each.sizes) * self.period + index
            if isinstance(operator, Affine):
                inputs = operator.inputs[each.which]
                use(inputs, keys.reshape(len(inputs), -1)[:, :1])
                continue
            for operand in operator.operands:
                if not isinstance(operand, Given):
                    use(operand[each.which], keys)
        drawn = np.arange(1, len(plan.numbers) + 1) * self.period - 1
        use(plan.numbers, drawn[:, None])
        return last

    # ---- instructions

    def _affine(self, index: int, operator: Affine, batches: _Batches) -> None:
        weight = self.num_weights
        bias = weight + aligned(operator.weight.size)
        self.num_weights = bias + aligned(operator.bias.size)
        inputs = operator.inputs[batches.which]
        outputs = operator.outputs[batches.which]
        places, there = self.place[inputs], inputs != NOTHING
        # A run goes on where the next place is that of the next input.
        goes_on = there[:, 1:] & there[:, :-1] & (np.diff(places, axis=1) == 1)
        edge = np.zeros((len(inputs), 1), dtype=bool)
        rows, firsts = np.nonzero(there & ~np.hstack([edge, goes_on]))
        _, lasts = np.nonzero(there & ~np.hstack([goes_on, edge]))
        counts = np.bincount(rows, minlength=len(inputs))
        head = np.zeros((len(inputs), 9), dtype=np.int64)
        head[:, 0] = Code.AFFINE
        head[:, 1] = self.place[outputs[:, 0]]
        head[:, 4:] = np.array([outputs.shape[1], weight, bias, 0, inputs.shape[1]])
        head[:, 7] = counts
        runs = np.zeros((len(rows), 6), dtype=np.int64)
        runs[:, 0] = places[rows, firsts]
        runs[:, 4] = lasts - firsts + 1
        runs[:, 5] = firsts
        times = self.plan.times[outputs[:, 0]]
        self.instructions.add(times * self.period + index, head, runs, counts)

    def _pointwise(self, index: int, operator: Pointwise, batches: _Batches) -> None:
        count = len(batches.times)
        head = np.zeros((count, 7), dtype=np.int64)
        head[:, 0] = Code.POINTWISE
        head[:, 1] = FUNCTIONS.index(operator.function)
        head[:, 2] = self.place[batches.outputs[batches.starts]]
        head[:, 5] = batches.sizes
        head[:, 6] = len(operator.operands)
        self.longest = max(self.longest, int(batches.sizes.max()))
        operands = []
        for operand in operator.operands:
            if isinstance(operand, Given):
                operands.append(self._given(operand, batches))
            else:
                places = self.place[operand[batches.which]]
                operands.append(self._read(places, batches.starts, batches.sizes))
        rest = np.stack(operands, axis=1).reshape(-1, 5)
        each = np.full(count, len(operands))
        self.instructions.add(batches.times * self.period + index, head, rest, each)

    def _draws(self) -> None:
        plan = self.plan
        count, width = plan.numbers.shape
        head = np.zeros((count, 7), dtype=np.int64)
        head[:, 0] = Code.DRAW
        head[:, 1] = np.arange(count)
        head[:, 2] = self.place[plan.elements]
        head[:, 6] = width
        starts, sizes = np.arange(count) * width, np.full(count, width)
        read = self._read(self.place[plan.numbers].reshape(-1), starts, sizes)
        keys = np.arange(1, count + 1) * self.period - 1
        self.instructions.add(keys, head, read, np.ones(count, dtype=np.int64))

    def _read(self, places: Slots, starts: Slots, sizes: Slots) -> Slots:
        """Return the code of an operand in memory, for each batch."""
        goes_on = np.ones(len(places), dtype=bool)
        goes_on[1:] = np.diff(places) == 1
        goes_on[starts] = True
        is_run = np.logical_and.reduceat(goes_on, starts)
        code = np.zeros((len(starts), 5), dtype=np.int64)
        code[:, 0] = np.where(is_run, Operand.RUN, Operand.LISTED)
        listed = np.where(is_run, 0, sizes)
        code[:, 1] = np.where(is_run, places[starts], self.num_indices + np.cumsum(listed) - listed)
        where = np.zeros((int(listed.sum()), 4), dtype=np.int64)
        where[:, 0] = places[np.repeat(~is_run, sizes)]
        self.indices.append(where.reshape(-1))
        self.num_indices += len(where)
        return code

    def _given(self, operand: Given, batches: _Batches) -> Slots:
        """Return the code of an operand that does not depend on the elements."""
        node = operand.node
        code = np.zeros((len(batches.times), 5), dtype=np.int64)
        if isinstance(node, float):
            code[:, 0], code[:, 1] = Operand.NUMBER, self.num_given
            self.given.append((node, operand.index[:1]))
            self.num_given += 1
            return code
        of_context = self.recorded.kinds[node] == CONTEXT
        code[:, 0] = Operand.OF_ROWS if of_context else Operand.TABLE
        index = operand.index[batches.which]
        for size in np.unique(batches.sizes):
            same = np.flatnonzero(batches.sizes == size)
            rows = index[batches.starts[same, None] + np.arange(size)]
            distinct, which = np.unique(rows, axis=0, return_inverse=True)
            first = self.num_of_context if of_context else self.num_given
            code[same, 1] = first + which.reshape(-1) * size
            if of_context:
                self.of_context.append((node, distinct.reshape(-1)))
                self.num_of_context += distinct.size
            else:
                self.given.append((node, distinct.reshape(-1)))
                self.num_given += distinct.size
        return code


class _Instructions:
    """Instructions that are put in order in the end."""

    def __init__(self) -> None:
        self._parts: list[tuple[Slots, Slots, Slots, Slots]] = []

    def add(self, keys: Slots, heads: Slots, rests: Slots, counts: Slots) -> None:
        """Add instructions.

        Args:
            keys: When they are run, `(instruction,)`.
            heads: How they begin, `(instruction, integer)`.
            rests: What follows, `(rest, integer)`.
            counts: How many rests each has, `(instruction,)`.
        """
        self._parts.append((keys, heads, rests, counts))

    def in_order(self, times: Slots) -> tuple[Slots, Slots]:
        """Return the code, and where in it the instructions of each time or later begin."""
        keys = np.concatenate([part[0] for part in self._parts])
        lengths = np.concatenate(
            [heads.shape[1] + counts * rests.shape[1] for _, heads, rests, counts in self._parts]
        )
        order = np.argsort(keys, kind="stable")
        ends = np.cumsum(lengths[order])
        starts = np.empty_like(ends)
        starts[order] = ends - lengths[order]
        code = np.zeros(int(ends[-1]), dtype=np.int64)
        done = 0
        for _, heads, rests, counts in self._parts:
            here = starts[done : done + len(heads)]
            code[here[:, None] + np.arange(heads.shape[1])] = heads
            number = np.arange(len(rests)) - np.repeat(np.cumsum(counts) - counts, counts)
            place = np.repeat(here + heads.shape[1], counts) + number * rests.shape[1]
            code[place[:, None] + np.arange(rests.shape[1])] = rests
            done += len(heads)
        edges = np.concatenate([[0], ends])
        return code, edges[np.searchsorted(keys[order], times)]


class _Memory:
    """Places that are taken and given back, in blocks."""

    def __init__(self) -> None:
        self.size = 0
        self._free: dict[int, list[int]] = defaultdict(list)

    def take(self, length: int) -> int:
        """Return the first of so many places."""
        free = self._free[length]
        if free:
            return free.pop()
        self.size += length
        return self.size - length

    def give(self, start: int, length: int) -> None:
        """Give places back."""
        self._free[length].append(start)


def _allocated(memory: _Memory, keys: Slots, sizes: Slots, ends: Slots) -> Slots:
    """Return the first place of each batch.

    Args:
        memory: What places are taken from.
        keys: When each is run, `(batch,)`.
        sizes: How many numbers each makes, `(batch,)`.
        ends: When its numbers are used last, `(batch,)`.
    """
    firsts = [0] * len(keys)
    lengths, begins, last = sizes.tolist(), keys.tolist(), ends.tolist()
    ending = iter(np.argsort(ends, kind="stable").tolist())
    oldest = next(ending, None)
    for batch in np.argsort(keys, kind="stable").tolist():
        while oldest is not None and last[oldest] < begins[batch]:
            memory.give(firsts[oldest], lengths[oldest])
            oldest = next(ending, None)
        firsts[batch] = memory.take(lengths[batch])
    return np.array(firsts, dtype=np.int64)
