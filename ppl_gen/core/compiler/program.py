"""A recording as loops over elements: what the rules make and the emitter writes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from ppl_gen.core.compiler.record import Place, Storage

__all__ = ["Access", "Block", "Contraction", "Loop", "Outer", "Program", "Statement", "Update"]

Update = Literal["=", "+", "max"]


@dataclass(frozen=True)
class Access:
    """Which element of a storage each step of a loop reads or writes.

    Args:
        storage: The storage.
        offset: Element at the first step.
        strides: Step of the address along each axis of the loop.
        table: Addresses, one for each step of the loop, where strides cannot say them.
    """

    storage: Storage
    offset: int
    strides: tuple[int, ...]
    table: torch.Tensor | None = None

    def same_elements(self, other: Access) -> bool:
        """Return whether both touch the same element at every step."""
        return (
            self.storage is other.storage
            and self.table is None
            and other.table is None
            and (self.offset, self.strides) == (other.offset, other.strides)
        )


@dataclass(eq=False)
class Loop:
    """`target <update>= expression(inputs)`, for each index of a shape.

    Args:
        shape: The index's ranges; no ones among them.
        expression: C++ with {0}, {1}, ... in place of the inputs.
        inputs: What is read.
        target: What is written.
        update: "=" writes once, "+" adds up, "max" keeps the largest.
        initial: What an accumulated target holds first; None where it holds something already.
    """

    shape: tuple[int, ...]
    expression: str
    inputs: tuple[Access, ...]
    target: Access
    update: Update = "="
    initial: str | None = None


@dataclass(eq=False)
class Contraction:
    """`target = sum over k < length of left[..., k] * right[..., k]`, for each index of a shape.

    Args:
        shape: The index's ranges; no ones among them.
        length: Range of the summed index.
        inputs: Left and right factor, with one more stride for the summed index.
        target: What is written.
    """

    shape: tuple[int, ...]
    length: int
    inputs: tuple[Access, Access]
    target: Access


@dataclass(eq=False)
class Outer:
    """`target[j] = sum over i of left[i, j] * right[i, j]`, in one pass over the many terms i.

    Args:
        shape: Range of i, one axis.
        width: Range of j.
        inputs: Left and right factor, with strides for i and j.
        target: What is written, with a stride for j.
    """

    shape: tuple[int, ...]
    width: int
    inputs: tuple[Access, Access]
    target: Access


@dataclass(eq=False)
class Block:
    """A call of a routine of the runtime on whole dense storages.

    Args:
        code: C++ with {0}, {1}, ... in place of pointers to the inputs and then the outputs.
        inputs: What is read, as storages with the first element's address.
        outputs: What is written.
    """

    code: str
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]


Statement = Loop | Contraction | Outer | Block


@dataclass
class Program:
    """Statements from a vector to a value and a gradient.

    Args:
        vector: Where the vector is read, (dim,).
        value: Where the value is found, ().
        gradient: Where the gradient is found, (dim,).
        statements: In order.
    """

    vector: Place
    value: Place
    gradient: Place
    statements: list[Statement] = field(default_factory=list)
    extra: int = 0

    def new(self, shape: Sequence[int]) -> Place:
        """Return a fresh dense place, row by row."""
        shape = tuple(shape)
        self.extra += 1
        storage = Storage(10**9 + self.extra, max(math.prod(shape), 1), torch.float64)
        return Place(storage, 0, shape, dense_strides(shape))


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a dense tensor, row by row."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def access(place: Place, shape: Sequence[int]) -> Access:
    """Return how a loop over a shape reads a tensor that broadcasts to it."""
    missing = len(shape) - len(place.shape)
    assert missing >= 0, (place.shape, shape)
    strides = [0] * missing + [
        0 if size == 1 else stride for size, stride in zip(place.shape, place.strides, strict=True)
    ]
    return squeeze(Access(place.storage, place.offset, tuple(strides)), shape)


def squeeze(accessed: Access, shape: Sequence[int]) -> Access:
    """Drop the axes of size one."""
    kept = tuple(s for s, n in zip(accessed.strides, shape, strict=True) if n != 1)
    return Access(accessed.storage, accessed.offset, kept, accessed.table)


def without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without its axes of size one."""
    return tuple(size for size in shape if size != 1)
