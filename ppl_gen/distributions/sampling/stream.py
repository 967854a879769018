"""Programs of sequences: the same few instructions for each element, however long it is.

A network of a sequence does the same at each of its places. Every number that depends on the
elements is a signal, read with a lag by others; what is kept of it is as much of its past as the
largest lag asks for. Before the beginning a signal is zero, as padding makes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from ppl_gen.distributions.sampling.operators import (
    BINARY,
    UNARY,
    VIEWS,
    CannotPlan,
    aten,
    check_plain,
)
from ppl_gen.distributions.sampling.program import Array, Beside, Program
from ppl_gen.distributions.sampling.record import ELEMENTS, Recorded
from ppl_gen.distributions.sampling.stream_program import Read, Step, program_of_steps

__all__ = ["make_stream"]


@dataclass(frozen=True, eq=False)
class _Signals:
    """A tensor of signals.

    Args:
        slots: Which signals, of the tensor's shape, but 1 along the axis of time.
        axis: The axis of time.
        lag: What stands at place t is the signal at t - lag.
        end: From this place on there is nothing but padding, though the signal may go on.
    """

    slots: torch.Tensor
    axis: int
    lag: int
    end: int


def make_stream(recorded: Recorded) -> Program:
    """Return the program of a network of a sequence.

    Args:
        recorded: The operators of the network, whose event has one axis, that of time.

    Raises:
        CannotPlan: If an operator is not followed, or does not do the same at each place.
        ValueError: If the network is not autoregressive.
    """
    return _Streamer(recorded).program()


class _Streamer:
    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded
        (self.length,) = recorded.about.event_shape
        self.signals: dict[fx.Node, Any] = {}
        self.steps: list[Step] = []
        # By slot: how many steps after its time it is known.
        self.delays: list[int] = [1]
        # Whether some are known before their time: their delay is taken for longer than it is.
        self.some_are_early = False

    def program(self) -> Program:
        nodes = list(self.recorded.graph.graph.nodes)
        self.signals[nodes[0]] = _Signals(torch.zeros(1, 1, dtype=torch.int64), 1, 0, self.length)
        for node in nodes[1:]:
            if node.op == "call_function" and self.recorded.kinds[node] == ELEMENTS:
                self.signals[node] = self._follow(node)
        (result,) = nodes[-1].all_input_nodes
        last = self.signals[result]
        numbers = last.slots.reshape(-1).numpy()
        delay = max((self.delays[slot] for slot in numbers), default=0) - last.lag
        self._check_read(last, 0)
        if delay > 0 and self.some_are_early:
            raise CannotPlan("a sequence that is shifted one way and back again")
        if delay > 0:
            name = self.recorded.about.name
            msg = (
                f"{name}: the numbers of an element depend on the one {delay - 1} places after it. "
                "Pad a layer on the left, by as much as it sees."
            )
            raise ValueError(msg)
        read = Read(numbers, np.full(len(numbers), last.lag))
        return program_of_steps(self.recorded, self.steps, self.delays, read)

    # ---- operators

    def _follow(self, node: fx.Node) -> Any:
        target: Any = node.target
        args: Sequence[Any] = node.args
        if target in UNARY or target in BINARY:
            operands = 1 if target in UNARY else 2
            check_plain(node, operands)
            return self._pointwise((UNARY | BINARY)[target], args[:operands], node)
        if target is aten.rsub.Scalar:
            check_plain(node, 2)
            return self._pointwise("sub", args[1::-1], node)
        if target is aten.convolution.default:
            return self._convolution(node, *args)
        if target in (aten.addmm.default, aten.mm.default):
            bias, left, right = args if target is aten.addmm.default else (None, *args)
            return self._product(node, left, right, bias)
        source = args[0]
        if target is aten.cat.default:
            return self._cat(*args)
        if isinstance(self.signals.get(source), tuple | list):  # the parts of a split
            return self.signals[source][args[1]]
        found = self._signals_of(source)
        if target is aten.constant_pad_nd.default:
            return self._padded(found, node, *args[1:])
        if target is aten.slice.Tensor:
            return self._sliced(found, node, *args[1:])
        return self._moved(found, node)

    def _signals_of(self, node: Any) -> _Signals:
        if node not in self.signals:
            raise CannotPlan("what does not depend on the elements, beside what does")
        found: _Signals = self.signals[node]
        return found

    def _constant(self, node: Any) -> torch.Tensor:
        if node not in self.recorded.constants:
            raise CannotPlan("weights that depend on the elements or on the context")
        value: torch.Tensor = self.recorded.constants[node].cpu()
        return value

    def _new(self, count: int, delay: int) -> torch.Tensor:
        first = len(self.delays)
        self.delays += [delay] * count
        return torch.arange(first, first + count)

    def _delay(self, read: Read) -> int:
        """Return how many steps after its time an operator can be run that reads signals."""
        delays = np.array([self.delays[slot] for slot in read.slots])
        return int((delays - read.lags).max())

    def _check_read(self, signals: _Signals, delay: int, ahead: int = 0) -> None:
        """Refuse to read signals after their end.

        Args:
            signals: What is read.
            delay: Of what is made of it.
            ahead: How many places after its own that is made of.
        """
        if self.length - 1 - delay + ahead >= signals.end:
            raise CannotPlan("a part of a sequence, beside all of it")

    def _add(
        self,
        function: str | tuple[Array, Array],
        operands: Sequence[Read | Beside],
        count: int,
    ) -> torch.Tensor:
        earliest = max(self._delay(x) for x in operands if isinstance(x, Read))
        self.some_are_early |= earliest < 0
        delay = max(0, earliest)
        slots = self._new(count, delay)
        self.steps.append(Step(function, tuple(operands), int(slots[0]), count, delay))
        return slots

    def _pointwise(self, function: str, args: Sequence[Any], node: fx.Node) -> _Signals:
        shape = list(node.meta["val"].shape)
        found = [self.signals[x] for x in args if isinstance(x, fx.Node) and x in self.signals]
        axis = found[0].axis - found[0].slots.ndim + len(shape)
        length, shape[axis] = shape[axis], 1
        operands: list[Read | Beside] = []
        for each in args:
            if isinstance(each, fx.Node) and each in self.signals:
                signals = self.signals[each]
                if signals.axis - signals.slots.ndim + len(shape) != axis:
                    raise CannotPlan("signals whose times are on different axes")
                slots = signals.slots.expand(shape).reshape(-1).numpy()
                operands.append(Read(slots, np.full(len(slots), signals.lag)))
            elif isinstance(each, fx.Node):
                own = each.meta["val"].shape
                place = axis - len(shape) + len(own)
                times = own[place] if place >= 0 else 1
                if times != 1 and times < self.length:
                    raise CannotPlan("numbers for some of the times only")
                operands.append(Beside(each, (*shape[:axis], times, *shape[axis + 1 :]), axis))
            else:
                operands.append(Beside(float(each), tuple(shape), axis))
        made = self._add(function, operands, math.prod(shape))
        for each in found:
            self._check_read(each, self.delays[int(made[0])])
        return _Signals(made.reshape(shape), axis, 0, length)

    def _affine(self, weight: torch.Tensor, bias: torch.Tensor | None, read: Read) -> torch.Tensor:
        numbers = weight.numpy()
        added = np.zeros(weight.shape[1], numbers.dtype) if bias is None else bias.numpy()
        return self._add((numbers, added), [read], weight.shape[1])

    def _convolution(
        self,
        node: fx.Node,
        source: Any,
        kernel: Any,
        bias: Any,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> _Signals:
        signals, weight = self._signals_of(source), self._constant(kernel)
        if transposed or groups != 1 or tuple(stride) != (1,) or signals.slots.ndim != 3:
            raise CannotPlan(
                "a convolution of a sequence that is transposed, or in steps or groups"
            )
        taps = weight.shape[2]
        slots = signals.slots.reshape(-1).numpy()
        lags = [signals.lag + padding[0] - tap * dilation[0] for tap in range(taps)]
        read = Read(np.tile(slots, taps), np.repeat(lags, len(slots)))
        flat = weight.permute(2, 1, 0).reshape(-1, weight.shape[0])
        made = self._affine(flat, None if bias is None else self._constant(bias), read)
        self._check_read(signals, self.delays[int(made[0])], (taps - 1) * dilation[0] - padding[0])
        return _Signals(made.reshape(1, -1, 1), 2, 0, node.meta["val"].shape[2])

    def _product(self, node: fx.Node, left: Any, right: Any, bias: Any) -> _Signals:
        signals, weight = self._signals_of(left), self._constant(right)
        if signals.axis != 0:
            raise CannotPlan("a product over time")
        slots = signals.slots.reshape(-1).numpy()
        read = Read(slots, np.full(len(slots), signals.lag))
        added = None if bias is None else self._constant(bias).expand(weight.shape[1])
        made = self._affine(weight, added, read)
        self._check_read(signals, self.delays[int(made[0])])
        return _Signals(made.reshape(1, -1), 0, 0, node.meta["val"].shape[0])

    # ---- what moves signals

    def _padded(
        self, signals: _Signals, node: fx.Node, pad: Sequence[int], value: float = 0.0
    ) -> _Signals:
        place = signals.slots.ndim - 1 - signals.axis
        others = [size for i, size in enumerate(pad) if i // 2 != place]
        if value != 0 or any(others):
            raise CannotPlan("padding with numbers other than 0, or of another axis than time")
        before = pad[2 * place] if 2 * place < len(pad) else 0
        end = min(signals.end + before, node.meta["val"].shape[signals.axis])
        return _Signals(signals.slots, signals.axis, signals.lag + before, end)

    def _sliced(
        self, signals: _Signals, node: fx.Node, axis: int = 0, start: Any = 0, *rest: Any
    ) -> _Signals:
        if axis % signals.slots.ndim != signals.axis:
            part = aten.slice.Tensor(signals.slots, axis, start, *rest)
            return replace(signals, slots=part)
        if len(rest) > 1 and rest[1] != 1:
            raise CannotPlan("a slice of time in steps")
        source: Any = node.args[0]
        start = start or 0
        start = max(0, start + source.meta["val"].shape[axis]) if start < 0 else start
        end = min(signals.end - start, node.meta["val"].shape[axis])
        return _Signals(signals.slots, signals.axis, signals.lag - start, end)

    def _cat(self, parts: Sequence[Any], axis: int = 0) -> _Signals:
        found = [self._signals_of(each) for each in parts]
        first = found[0]
        alike = all((x.axis, x.lag) == (first.axis, first.lag) for x in found)
        if not alike or axis % first.slots.ndim == first.axis:
            raise CannotPlan("cat of sequences along time, or of such that are shifted")
        slots = torch.cat([x.slots for x in found], axis)
        return replace(first, slots=slots, end=min(x.end for x in found))

    def _moved(self, signals: _Signals, node: fx.Node) -> Any:
        """Follow an operator that moves numbers, by what it does to signals and to their times."""
        target: Any = node.target
        source, *options = cast("list[Any]", node.args)
        axis = signals.axis
        whole = list(source.meta["val"].shape)
        if target is aten.clone.default:
            return signals
        if target is aten.flip.default and axis not in [each % len(whole) for each in options[0]]:
            return replace(signals, slots=target(signals.slots, *options))
        if target not in VIEWS:
            raise CannotPlan(f"the operator {target}")
        if target in (aten.reshape.default, aten._unsafe_view.default):
            target = aten.view.default  # which refuses to copy
        # Both of the true shape, and without memory for it: signals are the same at all times, and
        # of times no more is to be known than along which axes they go up.
        slots = signals.slots.contiguous().expand(whole)
        steps = [int(each == axis) for each in range(len(whole))]
        times = torch.empty_strided(whole, steps, device="meta")
        try:
            moved, when = (target(each, *options, **node.kwargs) for each in (slots, times))
        except RuntimeError as error:
            raise CannotPlan(f"the operator {target}, which mixes times") from error
        length = whole[axis]
        if isinstance(moved, torch.Tensor):
            return _with_time(moved, when, signals, length, target)
        pairs = zip(moved, when, strict=True)
        return [_with_time(m, t, signals, length, target) for m, t in pairs]


def _with_time(
    moved: torch.Tensor, times: torch.Tensor, signals: _Signals, length: int, target: Any
) -> _Signals:
    """Return moved signals, where all times are still along one axis."""
    up = [axis for axis, step in enumerate(times.stride()) if step and times.shape[axis] > 1]
    if len(up) == 1 and times.shape[up[0]] == length:
        return _Signals(moved.narrow(up[0], 0, 1), up[0], signals.lag, signals.end)
    raise CannotPlan(f"the operator {target}, which mixes times")
