"""What C++ runs: instructions, and the numbers that they refer to."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from ppl_gen.distributions.sampling.plan import Affine, Plan, Slots
from ppl_gen.distributions.sampling.record import Recorded

__all__ = [
    "ALIGNED",
    "FUNCTIONS",
    "Beside",
    "Code",
    "Operand",
    "Program",
    "aligned",
    "joined",
    "tables_of_context",
]

Array: TypeAlias = NDArray[Any]

# Numbers in a register, the most there are.
ALIGNED = 16
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
    "log",
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
    IN_TIME = 5  # numbers, others for each row and time


@dataclass(frozen=True, eq=False)
class Beside:
    """Numbers of a sequence that do not depend on the elements.

    Args:
        node: What they come from; a number for one that is written in the network.
        shape: What they are repeated to, of one time where they are the same at all.
        axis: The axis of time.
    """

    node: fx.Node | float
    shape: tuple[int, ...]
    axis: int

    @property
    def times(self) -> int:
        """How many times there are numbers for."""
        return self.shape[self.axis]

    @property
    def count(self) -> int:
        """How many numbers there are of each time."""
        return math.prod(self.shape) // self.times

    def by_time(self, values: torch.Tensor) -> Array:
        """Return the numbers, `(time, number)`, of the values of what they come from."""
        return values.expand(self.shape).movedim(self.axis, 0).reshape(self.times, -1).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Program:
    """What is to be run.

    Args:
        code: The instructions, one after the other.
        starts: Where in the code the instructions begin that make the numbers of each element, and
            draw it, `(element + 1,)`. Of a sequence none: all code is run for each element.
        matrices: Weights, `(input, output)`, and biases, `(output,)`, of which each begins at a
            multiple of `ALIGNED` numbers.
        indices: Places that are not one after the other.
        numbers: Numbers that depend neither on the elements nor on the context.
        of_context: Node and flat index of the numbers that depend on the context.
        places: Number of places in memory. That of what is zero is the first one.
        longest: The most numbers of an operand.
        affine: Indices of the operators in the plan whose weights these are, in order.
        tables: Node and flat index of the numbers, in order; a number for one that is written in
            the network.
        in_time: Operands of a sequence that depend on the context and change with time, and where
            in the code each is.
    """

    code: Slots
    starts: Slots
    matrices: tuple[tuple[Array, Array], ...]
    indices: Slots
    numbers: Array
    of_context: tuple[tuple[fx.Node, Slots], ...]
    places: int
    longest: int
    affine: tuple[int, ...] = ()
    tables: tuple[tuple[fx.Node | float, Slots], ...] = ()
    in_time: tuple[tuple[Beside, int], ...] = ()

    def filled(self, recorded: Recorded, plan: Plan) -> Program:
        """Return it with the weights of a plan that differs in them alone.

        Args:
            recorded: The operators of the network, with its present weights.
            plan: Their plan.
        """
        matrices = []
        for index in self.affine:
            each = plan.operators[index]
            assert isinstance(each, Affine)
            matrices.append((each.weight, each.bias))
        numbers = [
            np.array([node])
            if isinstance(node, float)
            else recorded.constants[node].reshape(-1).cpu().numpy()[index]
            for node, index in self.tables
        ]
        dtype = recorded.about.dtype
        return replace(self, matrices=tuple(matrices), numbers=joined(numbers, dtype))

    def between(self, start: int, stop: int) -> tuple[int, int, int, int]:
        """Return where the code for some elements begins and ends, and the steps it is run for.

        Args:
            start: The first of them.
            stop: The one after the last.
        """
        if len(self.starts):
            return int(self.starts[start]), int(self.starts[stop]), 0, 1
        return 0, len(self.code), start, stop

    def packed(self, widths: Sequence[int], dtype: Any) -> Array:
        """Return weights and biases one after the other, in panels of outputs as they are read.

        Args:
            widths: How many outputs a panel may have, the most first.
            dtype: Of the result.
        """
        parts = []
        for weight, bias in self.matrices:
            panels, first = [], 0
            for width in (*widths, 1):
                while first + width <= weight.shape[1]:
                    panels.append(weight[:, first : first + width].reshape(-1))
                    first += width
            for part in (np.concatenate(panels), bias):
                parts += [part, np.zeros(aligned(part.size) - part.size)]
        packed: Array = joined(parts, dtype)
        return packed


def tables_of_context(
    recorded: Recorded, program: Program, context: torch.Tensor | None, dtype: Any
) -> tuple[Slots, Array]:
    """Return the numbers that depend on the context, and the code that says where they are.

    What stays the same for some time, as features that are repeated do, is kept once.

    Args:
        recorded: The operators of the network.
        program: The program.
        context: What comes with each row, `(row, *context_shape)`.
        dtype: Of the numbers.

    Returns:
        The code, and the numbers, `(number, row)`; none where none depend on the context.
    """
    if context is None or not (program.of_context or program.in_time):
        return program.code, np.zeros((0, 1), dtype=dtype)
    distinct, which = torch.unique(context, dim=0, return_inverse=True)
    columns: list[Array] = []
    changing: list[list[tuple[int, Array]]] = []
    for row in distinct:
        same, frames = _of_row(recorded, program, row, dtype)
        columns.append(same)
        changing.append(frames)
    parts = [np.stack(columns, axis=1)]
    code, first = program.code.copy(), len(parts[0])
    for number, (each, at) in enumerate(program.in_time):
        found = [frames[number] for frames in changing]
        # A frame of one row may be as long as several of another, or all time.
        hop = math.gcd(*(own for own, _ in found)) or each.times
        times = np.arange(0, each.times, hop)
        rows = [frames[times // own] if own else frames[times * 0] for own, frames in found]
        parts.append(np.stack([frames.reshape(-1) for frames in rows], axis=1))
        code[at + 1], code[at + 3] = first, hop
        first += len(parts[-1])
    return code, np.ascontiguousarray(np.concatenate(parts)[:, which.cpu().numpy()])


def _of_row(
    recorded: Recorded, program: Program, row: torch.Tensor, dtype: Any
) -> tuple[Array, list[tuple[int, Array]]]:
    """Return the numbers that depend on one context: those of all times, and frames of others."""
    same: list[Array] = [np.zeros(0)] * len(program.of_context)
    frames: list[tuple[int, Array]] = [(0, np.zeros(0))] * len(program.in_time)
    # As soon as they are there: of a long sequence there is no room for all at once.
    for node, values in recorded.of_context(row.unsqueeze(0)):
        for place, (source, index) in enumerate(program.of_context):
            if source is node:
                same[place] = values.reshape(-1).cpu().numpy()[index]
        for place, (each, _) in enumerate(program.in_time):
            if each.node is node:
                frames[place] = _frames(each.by_time(values).astype(dtype, copy=False))
    return joined(same, dtype), frames


def _frames(values: Array) -> tuple[int, Array]:
    """Return how many times numbers stay the same, and those of each such frame.

    Args:
        values: Numbers, `(time, element)`.

    Returns:
        The number of times, 0 where nothing ever changes, and numbers, `(frame, element)`.
    """
    changes = np.flatnonzero((values[1:] != values[:-1]).any(axis=1)) + 1
    hop = math.gcd(*changes.tolist())
    # A copy: a view would keep all of them.
    return hop, (values[::hop] if hop else values[:1]).copy()


def aligned(count: int) -> int:
    """Return the next multiple of `ALIGNED`."""
    return -(-count // ALIGNED) * ALIGNED


def joined(parts: Sequence[Array], dtype: Any) -> Any:
    """Return arrays one after the other."""
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype=dtype)
