"""From a recording to a program: one rule for each operator appends its statements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ppl_gen.core.compiler.program import (
    Access,
    Block,
    Contraction,
    Loop,
    Program,
    Update,
    access,
    dense_strides,
    without_ones,
)
from ppl_gen.core.compiler.record import Operation, Place, Recording, Storage, base_name

__all__ = [
    "Lowering",
    "Rule",
    "axis_last",
    "constant",
    "conversion",
    "is_known",
    "literal",
    "lower",
    "places",
    "rule_for",
    "shaped",
    "with_axis",
    "without_axis",
]

Rule = Callable[["Lowering", Operation], None]

_RULES: dict[str, Rule] = {}


def rule_for(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators, given by their names without overload or underscore."""

    def register(rule: Rule) -> Rule:
        for name in names:
            assert name not in _RULES, name
            _RULES[name] = rule
        return rule

    return register


def is_known(name: str) -> bool:
    """Return whether there is a rule for an operator, such as "aten.mul.Tensor"."""
    return name.startswith("aten.") and base_name(name) in _RULES


def lower(recording: Recording) -> Program:
    """Return a recording as loops, without what neither value nor gradient needs.

    Raises:
        CannotCompile: If an operator is called in a way that has no rule.
    """
    needed = {recording.value.storage, recording.gradient.storage}
    kept: list[Operation] = []
    for operation in reversed(recording.operations):
        if not needed.isdisjoint(p.storage for p in (*operation.outputs, *operation.written)):
            kept.append(operation)
            needed.update(place.storage for place in places(operation.arguments.values()))
    lowering = Lowering(recording)
    for operation in reversed(kept):
        lowering.start_memory(operation)
        _RULES[operation.base](lowering, operation)
    return lowering.program


def places(values: Iterable[Any]) -> list[Place]:
    """Return the tensors among an operator's arguments."""
    found: list[Place] = []
    for value in values:
        if isinstance(value, Place):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += places(value)
    return found


def literal(value: float) -> str:
    """Return a Python number as a C++ vector."""
    value = float(value)
    if math.isnan(value):
        return 'splat(__builtin_nan(""))'
    if math.isinf(value):
        return f"splat({'-' if value < 0 else ''}__builtin_inf())"
    return f"splat({value!r})"


def constant(values: torch.Tensor) -> Place:
    """Return a place that holds given values."""
    values = values.contiguous()
    storage = Storage(-1, values.numel(), values.dtype, values.reshape(-1))
    return Place(storage, 0, tuple(values.shape), tuple(values.stride()))


class Lowering:
    """Appends statements to a program, from operators as PyTorch called them.

    Args:
        recording: What is lowered.
    """

    def __init__(self, recording: Recording) -> None:
        self.program = Program(recording.vector, recording.value, recording.gradient)
        self._started: set[Storage] = {recording.vector.storage}

    def start_memory(self, operation: Operation) -> None:
        """Give memory that an operator is the first to write to the contents that it had."""
        for place in places((*operation.arguments.values(), *operation.outputs)):
            storage = place.storage
            if not storage.live or storage in self._started:
                continue
            self._started.add(storage)
            initial = storage.initial
            overwritten = operation.base in ("copy", "fill", "zero") and place is operation.out
            whole = math.prod(place.shape) == storage.size
            if initial is None or storage.size == 0 or (overwritten and whole):
                continue
            everything = Place(storage, 0, (storage.size,), (1,))
            if bool((initial == initial[0]).all()):
                self.loop(everything, "{0}", float(initial[0]))
            else:
                self.loop(everything, "{0}", constant(initial))

    def loop(
        self,
        out: Place,
        expression: str,
        *operands: Place | float | bool,
        update: Update = "=",
        initial: str | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        """Append a loop over the output's elements, or over a shape that it broadcasts to."""
        shape = out.shape if shape is None else tuple(shape)
        if 0 in shape:
            return
        inputs: list[Access] = []
        names: list[str] = []
        for operand in operands:
            if isinstance(operand, Place):
                names.append("{" + str(len(inputs)) + "}")
                inputs.append(access(operand, shape))
            else:
                names.append(literal(operand))
        expression = expression.format(*names)
        target = access(out, shape)
        self.program.statements.append(
            Loop(without_ones(shape), expression, tuple(inputs), target, update, initial)
        )

    def moved(self, out: Place, source: Place, addresses: torch.Tensor) -> None:
        """Append a loop that reads a source at the addresses given, one for each element."""
        if addresses.numel() == 0:
            return
        shape = without_ones(out.shape)
        read = Access(source.storage, 0, (0,) * len(shape), addresses.reshape(shape))
        self.program.statements.append(Loop(shape, "{0}", (read,), access(out, out.shape)))

    def scattered(
        self, out: Place, addresses: torch.Tensor, source: Place | float, *, add: bool
    ) -> None:
        """Append a loop that writes a source to, or adds it at, the addresses given."""
        if addresses.numel() == 0:
            return
        full = tuple(addresses.shape)
        shape = without_ones(full)
        write = Access(out.storage, 0, (0,) * len(shape), addresses.reshape(shape))
        if isinstance(source, Place):
            inputs: tuple[Access, ...] = (access(source, full),)
            expression = "{0}"
        else:
            inputs, expression = (), literal(source)
        update: Update = "+" if add else "="
        self.program.statements.append(Loop(shape, expression, inputs, write, update))

    def contract(
        self,
        out: Place,
        left: Place,
        left_strides: Sequence[int],
        right: Place,
        right_strides: Sequence[int],
        length: int,
    ) -> None:
        """Append a sum of products; strides follow the output's axes and then the summed one."""
        if 0 in out.shape:
            return
        if length == 0:
            self.loop(out, "splat(0)")
            return

        def factor(place: Place, strides: Sequence[int]) -> Access:
            kept = tuple(s for s, n in zip(strides[:-1], out.shape, strict=True) if n != 1)
            return Access(place.storage, place.offset, (*kept, strides[-1]))

        factors = (factor(left, left_strides), factor(right, right_strides))
        target = access(out, out.shape)
        shape = without_ones(out.shape)
        self.program.statements.append(Contraction(shape, length, factors, target))

    def routine(
        self,
        code: Callable[..., str],
        inputs: Sequence[Place],
        outputs: Sequence[Place],
        axes: int | Sequence[int],
    ) -> None:
        """Append a call of a routine for each element of a batch.

        Args:
            code: The C++ of one call, from the pointers to each input and then each output.
            inputs: What it reads, which may be outputs as well.
            outputs: What it writes.
            axes: How many of each operand's last axes one call takes; those in front of them
                broadcast to the shape of the batch.
        """
        operands = [*inputs, *outputs]
        if any(0 in place.shape for place in outputs):
            return
        taken = [axes] * len(operands) if isinstance(axes, int) else axes
        fronts = [p.shape[: len(p.shape) - n] for p, n in zip(operands, taken, strict=True)]
        batch = torch.broadcast_shapes(*fronts)
        loops = "".join(f"for (long i{a} = 0; i{a} < {n}; ++i{a}) " for a, n in enumerate(batch))
        pointers = []
        for position, (place, front) in enumerate(zip(operands, fronts, strict=True)):
            first = len(batch) - len(front)
            steps = [f" + i{first + a} * {place.strides[a]}" for a, n in enumerate(front) if n != 1]
            pointers.append(f"(@{position}@{''.join(steps)})")
        text = f"{loops}{{ {code(*pointers)} }}".replace("{", "{{").replace("}", "}}")
        for position in range(len(operands)):
            text = text.replace(f"@{position}@", f"{{{position}}}")
        self.program.statements.append(Block(text, tuple(inputs), tuple(outputs)))

    def own(self, place: Place) -> Place:
        """Return a place of each chain's own: the same, or a copy of a constant."""
        return place if place.live else self.dense(place)

    def dense(self, place: Place) -> Place:
        """Return a place of each chain's own, row by row: the same, or a copy of it."""
        if place.live and place.strides == dense_strides(place.shape):
            return place
        copy = self.program.new(place.shape)
        self.loop(copy, "{0}", place)
        return copy

    def result(self, out: Place) -> Place:
        """Return where to write an output row by row: itself, or memory for `keep` to copy."""
        return out if out.strides == dense_strides(out.shape) else self.program.new(out.shape)

    def keep(self, out: Place, result: Place) -> None:
        """Copy a result to the output that it stands for."""
        if result is not out:
            self.loop(out, "{0}", result)


def shaped(place: Place, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> Place:
    """Return another view of the same memory, `offset` elements further on."""
    return Place(place.storage, place.offset + offset, tuple(shape), tuple(strides))


def without_axis(place: Place, axis: int, position: int = 0) -> Place:
    """Return one slice of a tensor along an axis, that axis dropped."""
    return shaped(
        place,
        (*place.shape[:axis], *place.shape[axis + 1 :]),
        (*place.strides[:axis], *place.strides[axis + 1 :]),
        position * place.strides[axis],
    )


def axis_last(place: Place, axis: int) -> Place:
    """Return a tensor with an axis moved to the end."""
    order = [a for a in range(len(place.shape)) if a != axis] + [axis]
    return shaped(place, [place.shape[a] for a in order], [place.strides[a] for a in order])


def with_axis(place: Place, axis: int, size: int, stride: int) -> Place:
    """Return a tensor with an axis put in."""
    return shaped(
        place,
        (*place.shape[:axis], size, *place.shape[axis:]),
        (*place.strides[:axis], stride, *place.strides[axis:]),
    )


def conversion(source: torch.dtype, out: torch.dtype) -> str:
    """Return the expression that converts {0} from one type to another."""
    if out == torch.bool and source != torch.bool:
        return "from_mask({0} != splat(0))"
    if source.is_floating_point and not out.is_floating_point:
        return "v_trunc({0})"
    return "{0}"
