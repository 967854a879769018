"""The order of statements: which of them share a loop, and where their memory lies."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ppl_gen.core.compiler.program import (
    Access,
    Block,
    Contraction,
    Loop,
    Outer,
    Program,
    Statement,
    access,
)
from ppl_gen.core.compiler.record import Storage

__all__ = ["Group", "Schedule", "schedule"]

# A function longer than this takes the C++ compiler more than linear time.
_MOST_STATEMENTS = 300
# Sums over at least this many terms run as one pass over the terms, fused with what makes them.
_LONG_SUM = 64
_EXACT_OVERLAP = 4096


@dataclass(eq=False)
class Group:
    """Statements that run in one loop over a shape, or one block.

    Args:
        shape: The loop's ranges.
        statements: In order.
        sources: For each input of each statement, the statement of this loop whose value it is.
    """

    shape: tuple[int, ...]
    statements: list[Statement] = field(default_factory=list)
    sources: list[list[Statement | None]] = field(default_factory=list)

    @property
    def is_block(self) -> bool:
        """Whether it is a single call of a routine."""
        return isinstance(self.statements[0], Block)


@dataclass
class Schedule:
    """Groups in order, with a place in the workspace for each storage that outlives its loop.

    Args:
        program: The program.
        groups: In the order in which they run.
        stored: Address in the workspace by storage.
        size: Number of elements of the workspace.
    """

    program: Program
    groups: list[Group]
    stored: dict[Storage, int]
    size: int


def schedule(program: Program) -> Schedule:
    """Return the statements of a program in loops, in an order that keeps what depends on what."""
    placed = _Placement()
    for statement in program.statements:
        placed.add(_one_pass(statement))
    stored, size = _lay_out(program, placed.groups)
    return Schedule(program, placed.groups, stored, size)


def _one_pass(statement: Statement) -> Statement:
    """Turn a few long sums of products into one loop over their terms."""
    if not isinstance(statement, Contraction) or statement.length < _LONG_SUM:
        return statement
    width = math.prod(statement.shape)
    if width > statement.length or len(statement.shape) > 1:
        return statement
    left, right = statement.inputs
    shape = (statement.length,)
    if width == 1:
        factors = tuple(Access(f.storage, f.offset, (f.strides[-1],)) for f in (left, right))
        target = Access(statement.target.storage, statement.target.offset, (0,))
        return Loop(shape, "{0} * {1}", factors, target, "+", "splat(0)")
    flipped = tuple(
        Access(f.storage, f.offset, (f.strides[-1], f.strides[0])) for f in (left, right)
    )
    return Outer(shape, width, (flipped[0], flipped[1]), statement.target)


@dataclass(eq=False)
class _Touch:
    """One access of a statement in a group."""

    group: int
    statement: Statement
    accessed: Access
    shape: tuple[int, ...]
    low: int
    high: int


class _Placement:
    """Gives each statement the first group that it can join."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self._by_shape: dict[tuple[int, ...], list[int]] = {}
        self._writes: dict[Storage, list[_Touch]] = {}
        self._reads: dict[Storage, list[_Touch]] = {}

    def add(self, statement: Statement) -> None:
        """Append a statement to a group."""
        reads, writes = _touched(statement)
        earliest = 0
        for read in reads:
            for earlier in self._writes.get(read.accessed.storage, ()):
                if _overlap(read, earlier):
                    joins = _hands_over(earlier, read, statement)
                    earliest = max(earliest, earlier.group + (not joins))
        for write in writes:
            storage = write.accessed.storage
            for earlier in (*self._writes.get(storage, ()), *self._reads.get(storage, ())):
                if _overlap(write, earlier):
                    joins = (
                        earlier.shape == write.shape
                        and earlier.accessed.same_elements(write.accessed)
                        and not isinstance(statement, Block | Outer)
                        and not isinstance(earlier.statement, Block | Outer)
                        and _is_plain(statement)
                        and _is_plain(earlier.statement)
                    )
                    earliest = max(earliest, earlier.group + (not joins))
        index = self._group_for(statement, earliest)
        self.groups[index].statements.append(statement)
        for touch, table in [(t, self._reads) for t in reads] + [(t, self._writes) for t in writes]:
            touch.group = index
            table.setdefault(touch.accessed.storage, []).append(touch)

    def _group_for(self, statement: Statement, earliest: int) -> int:
        if not isinstance(statement, Block):
            candidates = self._by_shape.setdefault(statement.shape, [])
            for index in candidates:
                if index >= earliest and len(self.groups[index].statements) < _MOST_STATEMENTS:
                    return index
            candidates.append(len(self.groups))
        shape = () if isinstance(statement, Block) else statement.shape
        self.groups.append(Group(shape))
        return len(self.groups) - 1


def _is_plain(statement: Statement) -> bool:
    return isinstance(statement, Contraction) or (
        isinstance(statement, Loop) and statement.update == "="
    )


def _hands_over(writer: _Touch, read: _Touch, reader: Statement) -> bool:
    """Return whether a value can go from statement to statement inside of one loop."""
    return (
        _is_plain(writer.statement)
        and isinstance(reader, Loop | Outer)
        and writer.shape == read.shape
        and writer.accessed.same_elements(read.accessed)
    )


def _touched(statement: Statement) -> tuple[list[_Touch], list[_Touch]]:
    """Return what a statement reads and writes, constants left out."""
    if isinstance(statement, Block):
        reads = [
            (access(p, p.shape), tuple(n for n in p.shape if n != 1)) for p in statement.inputs
        ]
        writes = [
            (access(p, p.shape), tuple(n for n in p.shape if n != 1)) for p in statement.outputs
        ]
    elif isinstance(statement, Contraction):
        reads = [(a, (*statement.shape, statement.length)) for a in statement.inputs]
        writes = [(statement.target, statement.shape)]
    elif isinstance(statement, Outer):
        reads = [_outer_input(a, statement) for a in statement.inputs]
        writes = [(statement.target, (statement.width,))]
    else:
        reads = [(a, statement.shape) for a in statement.inputs]
        writes = [(statement.target, statement.shape)]
        if statement.update != "=":
            reads.append((statement.target, statement.shape))
    return [_touch(statement, a, s) for a, s in reads if a.storage.live], [
        _touch(statement, a, s) for a, s in writes
    ]


def _outer_input(accessed: Access, statement: Outer) -> tuple[Access, tuple[int, ...]]:
    along, across = accessed.strides
    if across == 0:
        return Access(accessed.storage, accessed.offset, (along,)), statement.shape
    return accessed, (*statement.shape, statement.width)


def _touch(statement: Statement, accessed: Access, shape: tuple[int, ...]) -> _Touch:
    if accessed.table is not None:
        low, high = int(accessed.table.min()), int(accessed.table.max())
    else:
        spans = [stride * (size - 1) for stride, size in zip(accessed.strides, shape, strict=True)]
        low = accessed.offset + sum(min(span, 0) for span in spans)
        high = accessed.offset + sum(max(span, 0) for span in spans)
    return _Touch(-1, statement, accessed, shape, low, high)


def _overlap(a: _Touch, b: _Touch) -> bool:
    """Return whether two accesses of one storage may touch a common element."""
    if a.high < b.low or b.high < a.low:
        return False
    if max(math.prod(a.shape), math.prod(b.shape)) > _EXACT_OVERLAP:
        return True
    return not np.intersect1d(_elements(a), _elements(b)).size == 0


def _elements(touch: _Touch) -> np.ndarray:
    if touch.accessed.table is not None:
        return touch.accessed.table.reshape(-1).numpy()
    addresses = np.array([touch.accessed.offset])
    for stride, size in zip(touch.accessed.strides, touch.shape, strict=True):
        addresses = np.add.outer(addresses, stride * np.arange(size if stride else 1)).reshape(-1)
    return addresses


def _sources(group: Group) -> list[list[Statement | None]]:
    """Return, for each input of each statement, the statement of the same loop that made it."""
    latest: dict[tuple[Storage, int, tuple[int, ...]], Statement] = {}
    found: list[list[Statement | None]] = []
    for statement in group.statements:
        if isinstance(statement, Loop | Outer):
            reads = statement.inputs
            if isinstance(statement, Outer):
                reads = tuple(_outer_input(a, statement)[0] for a in reads)
            found.append(
                [
                    None if a.table is not None else latest.get((a.storage, a.offset, a.strides))
                    for a in reads
                ]
            )
        else:
            found.append([None, None])
        if isinstance(statement, Loop | Contraction) and statement.target.table is None:
            target = statement.target
            key = (target.storage, target.offset, target.strides)
            if _is_plain(statement):
                latest[key] = statement
    return found


def _lay_out(program: Program, groups: list[Group]) -> tuple[dict[Storage, int], int]:
    """Give a place to each storage that is read outside of the loop that writes it."""
    spans: dict[Storage, list[int]] = {}
    outlives: set[Storage] = set()
    for number, group in enumerate(groups):
        group.sources = _sources(group)
        for statement, sources in zip(group.statements, group.sources, strict=True):
            reads, writes = _touched(statement)
            for touch in (*reads, *writes):
                spans.setdefault(touch.accessed.storage, [number, number])[1] = number
            if isinstance(statement, Block | Contraction):
                kept = (*reads, *writes) if isinstance(statement, Block) else reads
                outlives |= {touch.accessed.storage for touch in kept}
                continue
            outlives |= {
                accessed.storage
                for accessed, source in zip(statement.inputs, sources, strict=True)
                if source is None and accessed.storage.live
            }
            if isinstance(statement, Outer) or statement.update != "=":
                outlives.add(statement.target.storage)
    ends = ((program.vector, 0), (program.value, len(groups)), (program.gradient, len(groups)))
    for place, end in ends:
        span = spans.setdefault(place.storage, [end, end])
        span[0], span[1] = min(span[0], end), max(span[1], end)
        outlives.add(place.storage)
    return _allocate({storage: spans[storage] for storage in outlives if storage in spans})


def _allocate(spans: dict[Storage, list[int]]) -> tuple[dict[Storage, int], int]:
    """Give addresses to storages, each taken anew after the last use of one of its size."""
    stored: dict[Storage, int] = {}
    free: dict[int, list[int]] = {}
    ending: dict[int, list[Storage]] = {}
    size = passed = 0
    for storage in sorted(spans, key=lambda s: (spans[s][0], s.index)):
        first, last = spans[storage]
        while passed < first:
            for done in ending.pop(passed, []):
                free.setdefault(done.size, []).append(stored[done])
            passed += 1
        if free.get(storage.size):
            stored[storage] = free[storage.size].pop()
        else:
            stored[storage] = size
            size += storage.size
        ending.setdefault(last, []).append(storage)
    return stored, size
