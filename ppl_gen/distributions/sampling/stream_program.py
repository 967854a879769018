"""The program of a sequence: each signal in a ring of as much of its past as is looked back at."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from ppl_gen.distributions.sampling.plan import Slots
from ppl_gen.distributions.sampling.program import (
    FUNCTIONS,
    Array,
    Beside,
    Code,
    Operand,
    Program,
    aligned,
    joined,
)
from ppl_gen.distributions.sampling.record import CONTEXT, Recorded

__all__ = ["Read", "Step", "program_of_steps"]


@dataclass(frozen=True, eq=False)
class Read:
    """Signals that an operator reads: slots and how long ago, both `(input,)`."""

    slots: Slots
    lags: Slots


@dataclass(frozen=True, eq=False)
class Step:
    """An operator: its outputs are signals next to each other.

    Args:
        function: A name, or weights `(input, output)` and a bias.
        operands: What it reads.
        first: The first of its outputs.
        count: Number of outputs.
        delay: At step s it makes its signals at time s - delay.
    """

    function: str | tuple[Array, Array]
    operands: tuple[Read | Beside, ...]
    first: int
    count: int
    delay: int


def program_of_steps(
    recorded: Recorded, steps: Sequence[Step], delays: Sequence[int], numbers: Read
) -> Program:
    """Return the program of a sequence.

    Args:
        recorded: The operators of the network.
        steps: What is done for each element, in order.
        delays: By signal: how many steps after its time it is known.
        numbers: What an element is drawn by.
    """
    return _Writer(recorded, steps, delays).program(numbers)


class _Writer:
    def __init__(self, recorded: Recorded, steps: Sequence[Step], delays: Sequence[int]) -> None:
        self.recorded, self.steps, self.delays = recorded, steps, delays
        self.code: list[int] = []
        self.matrices: list[tuple[Array, Array]] = []
        self.num_weights = 0
        self.numbers: list[Array] = []
        self.of_context: list[tuple[fx.Node, Slots]] = []
        self.in_time: list[tuple[Beside, int]] = []

    def program(self, numbers: Read) -> Program:
        masks = self._masks(numbers)
        first, size = 1, {}
        for start, count in [(0, 1), *((step.first, step.count) for step in self.steps)]:
            size[start] = (first, count)
            first += count * (int(masks[start]) + 1)
        of_slot = np.zeros((len(self.delays), 3), dtype=np.int64)  # place, mask, width
        for start, (place, count) in size.items():
            of_slot[start : start + count, 0] = place + np.arange(count)
            of_slot[start : start + count, 1] = masks[start]
            of_slot[start : start + count, 2] = count
        code = self.code
        indices: list[Slots] = []
        for step in self.steps:
            code += self._instruction(step, of_slot, indices)
        code += [Code.DRAW, -1, int(of_slot[0, 0]), 0, int(of_slot[0, 1]), 1, len(numbers.slots)]
        code += _reading(numbers, 0, of_slot, indices)
        dtype = self.recorded.about.dtype
        return Program(
            np.array(code, dtype=np.int64),
            np.zeros(0, dtype=np.int64),
            tuple(self.matrices),
            joined([x.reshape(-1) for x in indices], np.int64),
            joined(self.numbers, dtype),
            tuple(self.of_context),
            first,
            max(len(numbers.slots), *(step.count for step in self.steps)),
            in_time=tuple(self.in_time),
        )

    def _masks(self, numbers: Read) -> Slots:
        """Return by slot how much of its past is kept, less one, as a power of two less one."""
        oldest = np.zeros(len(self.delays), dtype=np.int64)
        delays = np.array(self.delays)
        for step in self.steps:
            for operand in step.operands:
                if isinstance(operand, Read):
                    # Read at step s: time s - delay - lag; the newest is of time s - own delay.
                    ages = step.delay + operand.lags - delays[operand.slots]
                    np.maximum.at(oldest, operand.slots, ages)
        np.maximum.at(oldest, numbers.slots, numbers.lags - delays[numbers.slots])
        for step in self.steps:  # outputs of one operator are kept together
            oldest[step.first : step.first + step.count] = oldest[
                step.first : step.first + step.count
            ].max()
        return np.asarray(2 ** np.ceil(np.log2(oldest + 1)).astype(np.int64) - 1)

    def _instruction(self, step: Step, of_slot: Slots, indices: list[Slots]) -> list[int]:
        place, mask, _ = (int(x) for x in of_slot[step.first])
        if isinstance(step.function, str):
            function = FUNCTIONS.index(step.function)
            code = [int(Code.POINTWISE), function, place, step.delay, mask, step.count]
            code.append(len(step.operands))
            for operand in step.operands:
                if isinstance(operand, Read):
                    code += _reading(operand, step.delay, of_slot, indices)
                else:
                    code += self._beside(operand, step.delay, len(self.code) + len(code))
            return code
        weight, bias = step.function
        (read,) = step.operands
        assert isinstance(read, Read)
        start = self.num_weights
        bias_start = start + aligned(weight.size)
        self.num_weights = bias_start + aligned(bias.size)
        self.matrices.append((weight, bias))
        found = _runs(read, step.delay, of_slot)
        code = [int(Code.AFFINE), place, step.delay, mask, step.count]
        code += [start, bias_start, len(found), len(weight)]
        for at, lag, ring, width, length, row in found:
            code += [at, lag, ring, width, length, row]
        return code

    def _beside(self, each: Beside, delay: int, at: int) -> list[int]:
        """Return the code of an operand that does not depend on the elements.

        Args:
            each: The operand.
            delay: How many steps after its time it is used.
            at: Where in the code it is.
        """
        start = sum(len(x) for x in self.numbers)
        if isinstance(each.node, float):
            self.numbers.append(np.array([each.node]))
            return [Operand.NUMBER, start, 0, 0, 0]
        of_context = self.recorded.kinds[each.node] == CONTEXT
        if of_context and each.times > 1:
            self.in_time.append((each, at))
            return [Operand.IN_TIME, 0, delay, 1, each.count]
        if of_context:
            start = sum(len(index) for _, index in self.of_context)
            shape = each.node.meta["val"].shape
            index = torch.arange(math.prod(shape)).reshape(shape)
            self.of_context.append((each.node, each.by_time(index)[0]))
            return [Operand.OF_ROWS, start, 0, 0, 0]
        self.numbers.append(each.by_time(self.recorded.constants[each.node]).reshape(-1))
        if each.times > 1:
            return [Operand.TABLE, start, delay, -1, each.count]
        return [Operand.TABLE, start, 0, 0, 0]


def _pieces(places: Slots) -> list[tuple[int, int]]:
    """Return where numbers go up one by one, as (start, stop)."""
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    return list(itertools.pairwise([0, *breaks.tolist(), len(places)]))


def _runs(read: Read, delay: int, of_slot: Slots) -> list[tuple[int, int, int, int, int, int]]:
    """Return runs of places that are read with one lag: place, lag, mask, width, length, row."""
    places = of_slot[read.slots]
    # A gap between lags, so that a run ends where the lag changes.
    keys = places[:, 0] + read.lags * (int(of_slot[:, 0].max(initial=0)) + 2)
    found = []
    for start, stop in _pieces(keys):
        place, mask, width = (int(x) for x in places[start])
        same = (places[start:stop, 1:] == places[start, 1:]).all()
        assert same
        found.append((place, delay + int(read.lags[start]), mask, width, stop - start, start))
    return found


def _reading(read: Read, delay: int, of_slot: Slots, indices: list[Slots]) -> list[int]:
    """Return the code of an operand of a pointwise instruction."""
    found = _runs(read, delay, of_slot)
    if len(found) == 1:
        return [Operand.RUN, *found[0][:4]]
    where = np.empty((len(read.slots), 4), dtype=np.int64)
    where[:, 0] = of_slot[read.slots, 0]
    where[:, 1] = delay + read.lags
    where[:, 2:] = of_slot[read.slots, 1:]
    start = sum(len(x) for x in indices)
    indices.append(where)
    return [Operand.LISTED, start, 0, 0, 0]
