"""A schedule as C++: one function for each group, its loop in strips of a few steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppl_gen.core.compiler.program import (
    Access,
    Block,
    Contraction,
    Loop,
    Outer,
    Statement,
    dense_strides,
)
from ppl_gen.core.compiler.record import Place, Storage
from ppl_gen.core.compiler.schedule import Group, Schedule

__all__ = ["Source", "emit"]

# Strip of a loop that run side by side: enough to hide the latency of a sum.
_STRIP = 8


_HEAD = """#include "runtime.h"

"""


@dataclass
class Source:
    """A program as text, with the numbers that it reads.

    Args:
        text: The C++ file.
        constants: Floating-point constants, (n,).
        tables: Addresses of gathers and scatters, (m,).
        workspace: Number of vectors of the workspace.
    """

    text: str
    constants: np.ndarray
    tables: np.ndarray
    workspace: int


def emit(scheduled: Schedule) -> Source:
    """Return the C++ of a schedule.

    The function `log_density(context, positions, values, gradients)` takes one vector for each
    lane, row by row, in double precision; the context holds the pointers to workspace, constants
    and tables. `log_densities(context, calls, ...)` takes the vectors of several such calls.
    """
    writer = _Writer(scheduled)
    functions = [
        writer.block(group.statements[0], number)
        if isinstance(group.statements[0], Block)
        else writer.group(group, number)
        for number, group in enumerate(scheduled.groups)
    ]
    program = scheduled.program
    (dim,) = program.vector.shape
    vector = writer.base(program.vector.storage)
    gradient, value = program.gradient, program.value
    at_value = writer.base(value.storage) + value.offset
    at_gradient = writer.base(gradient.storage) + gradient.offset
    calls = "".join(f"    group_{number}(M, C, I);\n" for number in range(len(functions)))
    main = f"""
extern "C" void log_density(void** context, const double* positions, double* values,
                            double* gradients) {{
    vec* M = (vec*)context[0];
    const real* C = (const real*)context[1];
    const int* I = (const int*)context[2];
    for (long d = 0; d < {dim}; ++d)
        for (int l = 0; l < W; ++l) put(M[{vector} + d], l, (real)positions[l * {dim} + d]);
{calls}    for (int l = 0; l < W; ++l) values[l] = get(M[{at_value}], l);
    for (long d = 0; d < {dim}; ++d)
        for (int l = 0; l < W; ++l)
            gradients[l * {dim} + d] = get(M[{at_gradient} + d * {gradient.strides[0]}], l);
}}

extern "C" void log_densities(void** context, long calls, const double* positions, double* values,
                              double* gradients) {{
    for (long n = 0; n < calls; ++n)
        log_density(context, positions + n * W * {dim}, values + n * W, gradients + n * W * {dim});
}}
"""
    text = _HEAD + "\n".join(functions) + main
    return Source(text, writer.constants(), writer.tables(), scheduled.size)


class _Writer:
    def __init__(self, scheduled: Schedule) -> None:
        self.scheduled = scheduled
        self._constants: dict[Storage, int] = {}
        self._constant_size = 0
        self._tables: list[np.ndarray] = []
        self._table_size = 0

    def base(self, storage: Storage) -> int:
        """Return the address of a storage in the workspace or among the constants."""
        if storage.live:
            return self.scheduled.stored[storage]
        if storage not in self._constants:
            self._constants[storage] = self._constant_size
            self._constant_size += storage.size
        return self._constants[storage]

    def constants(self) -> np.ndarray:
        """Return all constants, one storage after the other."""
        parts = [
            s.values.numpy().astype(np.float64) for s in self._constants if s.values is not None
        ]
        return np.concatenate(parts) if parts else np.zeros(1)

    def tables(self) -> np.ndarray:
        """Return all tables of addresses, one after the other."""
        return np.concatenate(self._tables) if self._tables else np.zeros(1, dtype=np.int32)

    def table(self, accessed: Access) -> int:
        """Add a table of addresses and return where it starts."""
        assert accessed.table is not None
        start = self._table_size
        addresses = accessed.table.reshape(-1).numpy() + self.base(accessed.storage)
        self._tables.append(addresses.astype(np.int32))
        self._table_size += len(addresses)
        return start

    def block(self, statement: Statement, number: int) -> str:
        """Return the function of a call of a routine."""
        assert isinstance(statement, Block)
        pointers = [self._pointer(place) for place in (*statement.inputs, *statement.outputs)]
        return (
            f"static void group_{number}(vec* M, const real* C, const int* I) {{\n    MEMORY;\n"
            f"    {statement.code.format(*pointers)}\n}}\n"
        )

    def _pointer(self, place: Place) -> str:
        memory = "M" if place.storage.live else "C"
        return f"({memory} + {self.base(place.storage) + place.offset})"

    def group(self, group: Group, number: int) -> str:
        """Return the function of a loop."""
        return _GroupWriter(self, group).function(number)


class _GroupWriter:
    def __init__(self, writer: _Writer, group: Group) -> None:
        self.writer = writer
        self.group = group
        self.shape = group.shape
        self.strip = max(range(len(self.shape)), key=lambda a: self.shape[a], default=None)
        self.before: list[str] = []
        self.body: list[str] = []
        self.after: list[str] = []
        self._names = {id(s): f"v{i}" for i, s in enumerate(group.statements)}

    def function(self, number: int) -> str:
        """Return the function's text."""
        for position, statement in enumerate(self.group.statements):
            self._statement(position, statement)
        before, body, after = ("\n".join(lines) for lines in (self.before, self.body, self.after))
        head = f"static void group_{number}(vec* M, const real* C, const int* I) {{\n    MEMORY;\n"
        if self.strip is None:
            return f"{head}{before}\n{body}\n{after}\n}}\n"
        length = self.shape[self.strip]
        width = min(_STRIP, length)
        whole = length - length % width
        outer = [axis for axis in range(len(self.shape)) if axis != self.strip]
        loops = "".join(f"    for (long i{a} = 0; i{a} < {self.shape[a]}; ++i{a})\n" for a in outer)
        along = f"for (long i{self.strip} = 0; i{self.strip} < {whole}; i{self.strip} += {width})"
        if whole == length:
            inner = f"    {along} {{\n    constexpr int B = {width};\n{body}\n    }}\n"
            return f"{head}{before}\n{loops}{inner}{after}\n}}\n"
        # Whole strips and the rest run the same text with another number of steps.
        parameters = ", ".join(["auto size", *(f"long i{a}" for a in range(len(self.shape)))])
        arguments = [f"i{a}" for a in range(len(self.shape))]
        main = f"{along} run(Steps<{width}>(), {', '.join(arguments)});"
        arguments[self.strip] = str(whole)
        rest = f"run(Steps<{length - whole}>(), {', '.join(arguments)});"
        return (
            f"{head}{before}\n"
            f"    auto run = [&]({parameters}) __attribute__((always_inline)) {{\n"
            f"    constexpr int B = decltype(size)::count;\n{body}\n    }};\n"
            f"{loops}    {{\n        {main}\n        {rest}\n    }}\n{after}\n}}\n"
        )

    def _value(self, name: str) -> str:
        """Return a statement's value at a step of the strip."""
        return name if self.strip is None else f"{name}[b]"

    def _each(self, text: str, declares: str | None = None) -> None:
        """Append a statement for each step of the strip; `declares` names what it sets first."""
        if self.strip is None:
            # A single step needs plain variables only, which are quicker to compile.
            self.body.append(f"    vec {text}" if declares else f"    {text}")
            return
        if declares:
            self.body.append(f"    vec {declares}[B];")
            text = text.replace(declares, f"{declares}[b]", 1)
        self.body.append(f"    EACH(b, B) {text}")

    def _statement(self, position: int, statement: Statement) -> None:
        name = self._names[id(statement)]
        if isinstance(statement, Contraction):
            left, right = (self._factor(a) for a in statement.inputs)
            self._each(f"{name} = splat(0);", declares=name)
            self.body.append(f"    for (long k = 0; k < {statement.length}; ++k)")
            self._each(f"{self._value(name)} += {left} * {right};")
            self._store(statement.target, name)
        elif isinstance(statement, Outer):
            self._outer(position, statement, name)
        else:
            assert isinstance(statement, Loop)
            reads = [
                self._read(accessed, source)
                for accessed, source in zip(
                    statement.inputs, self.group.sources[position], strict=True
                )
            ]
            self._each(f"{name} = {statement.expression.format(*reads)};", declares=name)
            if statement.update == "=":
                self._store(statement.target, name)
            else:
                self._accumulate(statement, name)

    def _outer(self, position: int, statement: Outer, name: str) -> None:
        factors = [
            self._factor(factor) if source is None else self._value(self._names[id(source)])
            for factor, source in zip(statement.inputs, self.group.sources[position], strict=True)
        ]
        target = self.writer.base(statement.target.storage) + statement.target.offset
        (step,) = statement.target.strides
        at = f"M[{target} + k * {step}]"
        loop = f"for (long k = 0; k < {statement.width}; ++k)"
        self.before.append(f"    {loop} {at} = splat(0);")
        self.body.append(
            f"    {loop} {{\n        vec {name} = {at};\n"
            f"        EACH(b, B) {name} += {factors[0]} * {factors[1]};\n"
            f"        {at} = {name};\n    }}"
        )

    def _accumulate(self, statement: Loop, name: str) -> None:
        combine = "{0} + {1}" if statement.update == "+" else "v_maximum({0}, {1})"
        target, value = statement.target, self._value(name)
        if self.strip is None:
            if statement.initial is not None:
                self.before.append(f"    {self._at(target, '0')} = {statement.initial};")
            at = self._at(target, "0")
            self.body.append(f"    {at} = {combine.format(at, value)};")
            return
        if target.table is None and not any(target.strides) and statement.initial is not None:
            total = f"total_{name}"
            width = min(_STRIP, self.shape[self.strip])
            start = f"EACH(b, {width}) {total}[b] = {statement.initial};"
            self.before.append(f"    vec {total}[{width}]; {start}")
            self._each(f"{total}[b] = {combine.format(f'{total}[b]', value)};")
            fold = combine.format(f"{total}[0]", f"{total}[b]")
            self.after.append(f"    for (int b = 1; b < {width}; ++b) {total}[0] = {fold};")
            address = self.writer.base(target.storage) + target.offset
            self.after.append(f"    M[{address}] = {total}[0];")
            return
        if statement.initial is not None:
            self._initialise(target, statement.initial)
        if target.table is None and target.strides[self.strip] == 0:
            fold = combine.format(f"{name}[0]", value)
            self.body.append(f"    for (int b = 1; b < B; ++b) {name}[0] = {fold};")
            at = self._at(target, "0")
            self.body.append(f"    {at} = {combine.format(at, f'{name}[0]')};")
        else:
            at = self._at(target, "b")
            self._each(f"{at} = {combine.format(at, value)};")

    def _initialise(self, target: Access, initial: str) -> None:
        base = self.writer.base(target.storage) + target.offset
        loops, address = "", str(base)
        for axis, (stride, size) in enumerate(zip(target.strides, self.shape, strict=True)):
            if stride:
                loops += f"for (long i{axis} = 0; i{axis} < {size}; ++i{axis}) "
                address += f" + i{axis} * {stride}"
        self.before.append(f"    {loops}M[{address}] = {initial};")

    def _store(self, target: Access, name: str) -> None:
        if target.storage in self.writer.scheduled.stored:
            self._each(f"{self._at(target, 'b')} = {self._value(name)};")

    def _read(self, accessed: Access, source: Statement | None) -> str:
        if source is not None:
            return self._value(self._names[id(source)])
        at = self._at(accessed, "b")
        return at if accessed.storage.live else f"splat({at})"

    def _factor(self, accessed: Access) -> str:
        """Return an element of a contraction, at index k besides those of the loop."""
        inner = Access(accessed.storage, accessed.offset, accessed.strides[:-1])
        at = self._at(inner, "b", f" + k * {accessed.strides[-1]}" if accessed.strides[-1] else "")
        return at if accessed.storage.live else f"splat({at})"

    def _at(self, accessed: Access, step: str, more: str = "") -> str:
        if accessed.table is not None:
            start = self.writer.table(accessed)
            position = self._linear(start, dense_strides(self.shape), step)
            return f"{'M' if accessed.storage.live else 'C'}[I[{position}]]"
        base = self.writer.base(accessed.storage) + accessed.offset
        array = "M" if accessed.storage.live else "C"
        return f"{array}[{self._linear(base, accessed.strides, step)}{more}]"

    def _linear(self, base: int, strides: tuple[int, ...], step: str) -> str:
        text = str(base)
        for axis, stride in enumerate(strides):
            if stride == 0 or self.shape[axis] == 1:
                continue
            index = f"(i{axis} + {step})" if axis == self.strip else f"i{axis}"
            text += f" + {index}" if stride == 1 else f" + {index} * {stride}"
        return text
