"""A program that does less: nothing is computed for each step of a loop that is the same in all.

PyTorch broadcasts before it computes: `Normal(loc[group], scale).log_prob(y)` takes the logarithm
of `scale`, and divides by its square, once for each element of `y`. Here such a value is computed
once, and a division by it becomes a product with its reciprocal, which rounds once more.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ppl_gen.core.compiler.program import (
    Access,
    Block,
    Contraction,
    Loop,
    Program,
    Statement,
    access,
    dense_strides,
)
from ppl_gen.core.compiler.record import Storage
from ppl_gen.core.compiler.rules.lowering import constant, literal

__all__ = ["simplify"]

_QUOTIENT = "{0} / {1}"
_QUOTIENT_BY_NUMBER = re.compile(r"^\{0\} / splat\(([-+.e\d]+)\)$")
# A reciprocal is worth its division where it serves at least so many.
_FEW = 4
# Fewer numbers may be equal by chance, and data of another pattern are to share the compiled file.
_MANY = 16


def simplify(program: Program) -> None:
    """Replace statements of a program by cheaper ones, in place.

    Args:
        program: The program; its value and gradient stay what they were but for rounding.
    """
    _Simplification(program).run()


@dataclass(frozen=True)
class _Read:
    """Input number `position` of a statement."""

    statement: Loop | Contraction
    position: int

    @property
    def accessed(self) -> Access:
        return self.statement.inputs[self.position]

    @property
    def shape(self) -> tuple[int, ...]:
        if isinstance(self.statement, Contraction):
            return (*self.statement.shape, self.statement.length)
        return self.statement.shape


class _Simplification:
    def __init__(self, program: Program) -> None:
        self.program = program
        self._writes = Counter([program.vector.storage])
        self._reads: dict[Storage, list[_Read]] = {}
        self._pinned = {place.storage for place in (program.value, program.gradient)}
        self._uniform: dict[Storage, Storage | None] = {}
        self._inverted: dict[Storage, Storage | None] = {}
        self._reciprocals: dict[tuple[Storage, int, tuple[int, ...], tuple[int, ...]], Access] = {}
        for statement in program.statements:
            self._index(statement)

    def _index(self, statement: Statement) -> None:
        if isinstance(statement, Block):
            self._pinned.update(p.storage for p in (*statement.inputs, *statement.outputs))
            self._writes.update({place.storage for place in statement.outputs})
            return
        self._writes[statement.target.storage] += 1
        if isinstance(statement, Loop | Contraction):
            for position, accessed in enumerate(statement.inputs):
                read = _Read(statement, position)
                self._reads.setdefault(accessed.storage, []).append(read)

    def run(self) -> None:
        """Simplify each statement, in order."""
        statements: list[Statement] = []
        for statement in self.program.statements:
            if isinstance(statement, Loop):
                self._read_numbers(statement)
                self._drop_axes(statement)
                statements += self._divide(statement)
            statements.append(statement)
        self.program.statements[:] = statements

    # ---- constants of equal elements

    def _read_numbers(self, loop: Loop) -> None:
        """Read a constant whose elements are all equal at one address."""
        for position, accessed in enumerate(loop.inputs):
            number = None if accessed.storage.live else self._number(accessed.storage)
            if number is not None:
                _set_input(loop, position, Access(number, 0, (0,) * len(loop.shape)))

    def _number(self, storage: Storage) -> Storage | None:
        if storage not in self._uniform:
            values = storage.values
            assert values is not None
            equal = storage.size >= _MANY and bool((values == values[0]).all())
            self._uniform[storage] = constant(values[:1].clone()).storage if equal else None
        return self._uniform[storage]

    # ---- loops over axes along which nothing changes

    def _drop_axes(self, loop: Loop) -> None:
        """Compute a value once that is the same along an axis, and let all that read it know."""
        target = loop.target
        axes = [
            axis
            for axis in range(len(loop.shape))
            if all(a.table is None and a.strides[axis] == 0 for a in loop.inputs)
        ]
        if not axes or not self._is_written_once(loop):
            return
        kept = [axis for axis in range(len(loop.shape)) if axis not in axes]
        shape = tuple(loop.shape[axis] for axis in kept)
        place = self.program.new(shape)
        strides = [0] * len(loop.shape)
        for axis, stride in zip(kept, dense_strides(shape), strict=True):
            strides[axis] = stride
        old = _Layout(target.strides, loop.shape, tuple(strides))
        reads = self._reads.get(target.storage, [])
        moved = [old.moved(read.accessed, read.shape, place.storage) for read in reads]
        if any(accessed is None for accessed in moved):
            return
        for read, accessed in zip(reads, moved, strict=True):
            assert accessed is not None
            _set_input(read.statement, read.position, accessed)
        self._reads[place.storage] = reads
        self._writes[place.storage] = 1
        loop.inputs = tuple(_along(accessed, kept) for accessed in loop.inputs)
        loop.shape = shape
        loop.target = access(place, shape)

    def _is_written_once(self, loop: Loop) -> bool:
        """Return whether a loop is all that writes a storage, and writes each element once."""
        target = loop.target
        if (
            loop.update != "="
            or target.table is not None
            or target.storage in self._pinned
            or self._writes[target.storage] > 1
        ):
            return False
        steps = sorted(zip(target.strides, loop.shape, strict=True))
        return target.offset == 0 and [step for step, _ in steps] == _steps(n for _, n in steps)

    # ---- divisions

    def _divide(self, loop: Loop) -> list[Statement]:
        """Turn a division into a product where that serves many steps; return what comes first."""
        by_number = _QUOTIENT_BY_NUMBER.match(loop.expression)
        if by_number and (value := float(by_number[1])) != 0 and math.isfinite(1 / value):
            loop.expression = f"{{0}} * {literal(1 / value)}"
            return []
        if loop.expression != _QUOTIENT or loop.inputs[1].table is not None:
            return []
        divisor = loop.inputs[1]
        if not divisor.storage.live:
            inverse = self._inverse(divisor.storage)
            if inverse is not None:
                changed = Access(inverse, divisor.offset, divisor.strides)
                loop.inputs, loop.expression = (loop.inputs[0], changed), "{0} * {1}"
            return []
        kept = [axis for axis, stride in enumerate(divisor.strides) if stride]
        shape = tuple(loop.shape[axis] for axis in kept)
        if math.prod(loop.shape) < _FEW * math.prod(shape):
            return []
        first: list[Statement] = []
        read = _along(divisor, kept)
        key = (read.storage, read.offset, read.strides, shape)
        # What is written more than once may be something else the next time.
        found = self._reciprocals.get(key) if self._writes[read.storage] == 1 else None
        if found is None:
            found = access(self.program.new(shape), shape)
            reciprocal = Loop(shape, "splat(1) / {0}", (read,), found)
            self._index(reciprocal)
            self._reciprocals[key] = found
            first = [reciprocal]
        strides = [0] * len(loop.shape)
        for axis, stride in zip(kept, found.strides, strict=True):
            strides[axis] = stride
        loop.expression = "{0} * {1}"
        loop.inputs = (loop.inputs[0], Access(found.storage, 0, tuple(strides)))
        return first

    def _inverse(self, storage: Storage) -> Storage | None:
        if storage not in self._inverted:
            assert storage.values is not None
            inverse = 1 / storage.values.double()
            fits = bool(torch.isfinite(inverse).all()) and bool((inverse != 0).all())
            self._inverted[storage] = constant(inverse).storage if fits else None
        return self._inverted[storage]


@dataclass(frozen=True)
class _Layout:
    """A storage whose axes are to have other strides.

    Args:
        strides: Those that they have, each element at an address of its own.
        shape: Their ranges.
        moved_strides: Those that they are to have.
    """

    strides: tuple[int, ...]
    shape: tuple[int, ...]
    moved_strides: tuple[int, ...]

    def moved(self, accessed: Access, shape: tuple[int, ...], storage: Storage) -> Access | None:
        """Return how a loop over a shape reads the same elements at their new addresses.

        None where its steps do not follow the axes.
        """
        if accessed.table is not None or any(stride < 0 for stride in accessed.strides):
            return None
        axes = sorted(range(len(self.strides)), key=lambda axis: -self.strides[axis])
        offset, rest, last = 0, accessed.offset, [0] * len(self.shape)
        for axis in axes:
            last[axis], rest = divmod(rest, self.strides[axis])
            offset += last[axis] * self.moved_strides[axis]
        strides: list[int] = []
        for stride, size in zip(accessed.strides, shape, strict=True):
            if stride == 0:
                strides.append(0)
                continue
            axis = next(axis for axis in axes if self.strides[axis] <= stride)
            times, rest = divmod(stride, self.strides[axis])
            if rest:
                return None
            last[axis] += times * (size - 1)
            strides.append(times * self.moved_strides[axis])
        if any(end >= size for end, size in zip(last, self.shape, strict=True)):
            return None
        return Access(storage, offset, tuple(strides))


def _steps(sizes: Iterable[int]) -> list[int]:
    """Return the strides of dense axes of given ranges, the smallest first."""
    steps, step = [], 1
    for size in sizes:
        steps.append(step)
        step *= size
    return steps


def _along(accessed: Access, axes: list[int]) -> Access:
    """Return an access along some axes, at the first step of the others."""
    strides = tuple(accessed.strides[axis] for axis in axes)
    return Access(accessed.storage, accessed.offset, strides)


def _set_input(statement: Loop | Contraction, position: int, accessed: Access) -> None:
    inputs = list(statement.inputs)
    inputs[position] = accessed
    statement.inputs = tuple(inputs)
