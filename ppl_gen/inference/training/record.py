"""A run of PyTorch written down: its operators as a graph that can be run again on other values."""

from __future__ import annotations

import operator
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from pyro.util import warn_if_inf, warn_if_nan
from torch.fx import Graph, GraphModule, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_gen.core.memory import address_of, unwrapped

__all__ = ["CannotRecord", "Recording", "record"]

# Where a tensor's elements lie. Tensors of one place are interchangeable.
_Place: TypeAlias = tuple[Any, ...]

# They turn tensors into numbers where no operator sees it, or numbers into tensors.
_READERS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__}
_MAKERS = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}
_WARNINGS = (warn_if_nan.__code__, warn_if_inf.__code__)
_INDEX_TYPES = (torch.bool, torch.uint8)
# Operators of batch normalisation write to them without saying so in their schema.
_UNDECLARED = ("running_mean", "running_var")
# Their results depend on the shape and type of their argument alone.
_FACTORIES = {
    "aten::empty_like",
    "aten::full_like",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::new_full",
    "aten::new_ones",
    "aten::new_zeros",
    "aten::ones_like",
    "aten::zeros_like",
}


class CannotRecord(Exception):
    """The run cannot be written down as one fixed sequence of operators; the message says why."""


@dataclass(frozen=True)
class Recording:
    """A run that can be run again.

    Args:
        module: The operators: from the inputs, then the tensors of `given`, to the outputs.
        given: The other tensors that the run used, by reference: values that are written to them
            in place are those of the next run. Parameters and buffers are among them.
        watched: Tensors whose values went into constants of the graph, or decided on its course.
        written: Tensors from outside of the run that it writes to.
    """

    module: GraphModule
    given: tuple[torch.Tensor, ...]
    watched: tuple[torch.Tensor, ...]
    written: tuple[torch.Tensor, ...]


@torch.enable_grad()
def record(
    function: Callable[..., Sequence[torch.Tensor | None]],
    inputs: Sequence[torch.Tensor],
    changing: Sequence[torch.Tensor],
    *,
    plain: bool = False,
) -> Recording:
    """Run a function once and write its operators down, those of backward passes included.

    Random numbers come from the same generators in the same order in every run. Tensors that are
    written to in place, such as running statistics, are written to in every run. All that is
    neither an operator nor a tensor is as it was when the run was recorded.

    Args:
        function: From the inputs to tensors that it made itself, or None.
        inputs: What it is run on, in memory of their own.
        changing: Tensors that it uses from elsewhere, whose values change from run to run.
        plain: Whether to keep operators as they are, for a compiler; else the graph calls PyTorch's
            own functions where they come to the same, which costs less.

    Returns:
        The recording.

    Raises:
        CannotRecord: If the course of the run depends on values that change, or something else in
            it cannot be run again.
    """
    recorder = _Recorder(inputs, changing)
    before = _foreign_noise()
    with recorder, _Numbers(recorder):
        outputs = function(*inputs)
    if _foreign_noise() != before:
        msg = "random numbers come from Python's or NumPy's generator instead of PyTorch's"
        raise CannotRecord(msg)
    return _Program(recorder, outputs).build(plain=plain)


@dataclass(frozen=True)
class _Ref:
    """Number of a tensor in a recorded run."""

    index: int


@dataclass(eq=False)
class _Call:
    """One operator call, tensors replaced by their numbers."""

    operator: Any
    args: Any
    kwargs: dict[str, Any]
    result: Any
    writes: set[int]
    is_live: bool

    @property
    def is_random(self) -> bool:
        return torch.Tag.nondeterministic_seeded in self.operator.tags


class _Recorder(TorchDispatchMode):
    """Writes down every operator.

    Args:
        inputs: Tensors that a run is given.
        changing: Others whose values change from run to run.
    """

    def __init__(self, inputs: Sequence[torch.Tensor], changing: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors: list[torch.Tensor] = []  # all are kept: an address means nothing without
        self.calls: list[_Call] = []
        self.looked_at: list[torch.Tensor] = []
        self._refs: dict[_Place, _Ref] = {}
        self._live: set[int] = set()
        for tensor in (*inputs, *changing):
            self._live.add(address_of(tensor))
            self._new(tensor)
        self.num_inputs = len(inputs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first operator would import all of torch.compile, which takes seconds

    def ref(self, tensor: torch.Tensor) -> _Ref:
        """Return the number of a tensor; one not seen before is from outside of the run."""
        if tensor.layout != torch.strided:
            raise CannotRecord(f"a tensor has the layout {tensor.layout}")
        found = self._refs.get(_place(tensor))
        return self._new(tensor) if found is None else found

    def is_live(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor's values change from run to run."""
        return address_of(tensor) in self._live

    def _new(self, tensor: torch.Tensor) -> _Ref:
        self.tensors.append(tensor)
        found = _Ref(len(self.tensors) - 1)
        self._refs[_place(tensor)] = found
        return found

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors([*args, *kwargs.values()]))
        reads_numbers = torch.Tag.data_dependent_output in func.tags
        if not (reads_numbers and _looks_for_nan()):
            self._refuse(func, args, kwargs, given)
        if reads_numbers:
            self.looked_at += [tensor for tensor in given if not self.is_live(tensor)]
            return func(*args, **kwargs)
        if func is torch.ops.aten.lift_fresh.default:
            return self._constant(func(*args))
        recorded = _map(self.ref, args), _map(self.ref, kwargs)
        reads = {address_of(tensor) for tensor in given}
        writes = {address_of(tensor) for tensor in _written(func, args, kwargs)}
        result = func(*args, **kwargs)
        made = list(_tensors([result]))
        same = len(made) == 1 and _place(made[0]) in self._refs
        if same and not writes and address_of(made[0]) in reads:
            return result  # another name for a tensor that is there already
        values = set() if func._schema.name in _FACTORIES else reads
        call = _Call(func, *recorded, None, writes, is_live=bool(values & self._live))
        call.is_live |= call.is_random
        if call.is_live:
            self._live |= writes | {address_of(tensor) for tensor in made}
        # What is written to stays what it is, unless it becomes another view of its memory.
        stays = set() if torch.Tag.inplace_view in func.tags else {_place(t) for t in given}
        call.result = _map(lambda t: self.ref(t) if _place(t) in stays else self._new(t), result)
        self.calls.append(call)
        return result

    def _constant(self, tensor: torch.Tensor) -> torch.Tensor:
        """Take down a tensor that is made of numbers; each run gets a copy to write to."""
        kept = tensor.clone()
        copy = torch.ops.aten.clone.default
        call = _Call(copy, (self._new(kept),), {}, None, set(), is_live=False)
        call.result = self._new(tensor)
        self.calls.append(call)
        return tensor

    def _refuse(
        self, func: Any, args: Any, kwargs: Mapping[str, Any], given: Sequence[torch.Tensor]
    ) -> None:
        if any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values())):
            raise CannotRecord("random numbers come from a generator of the model's own")
        if not any(self.is_live(tensor) for tensor in given):
            return
        if torch.Tag.data_dependent_output in func.tags:
            msg = "torch.where and masks can take the place of branches"
            raise CannotRecord(f"their course depends on values of tensors ({func}; {msg})")
        if torch.Tag.dynamic_output_shape not in func.tags:
            return
        if func is torch.ops.aten.index.Tensor and all(
            tensor.dtype not in _INDEX_TYPES for tensor in _tensors(args[1])
        ):
            return
        raise CannotRecord(f"the shape of a tensor depends on values of others ({func})")


class _Numbers(TorchFunctionMode):
    """Refuses what makes plain numbers of values that change."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _READERS or func in _MAKERS:
            # A tensor that is copied as a whole goes through operators.
            read = args if func in _READERS else [a for a in args if isinstance(a, list | tuple)]
            if any(self.recorder.is_live(unwrapped(tensor)) for tensor in _tensors(read)):
                msg = f"{func.__name__}() makes plain numbers of tensors"
                raise CannotRecord(msg)
        return func(*args, **(kwargs or {}))


class _Program:
    """The calls of a run that its outputs need, each value computed once."""

    def __init__(self, recorder: _Recorder, outputs: Sequence[torch.Tensor | None]) -> None:
        self.recorder = recorder
        self.tensors = recorder.tensors
        self.outputs = _map(recorder.ref, list(outputs))
        self.written = {address for call in recorder.calls for address in call.writes}
        self.made: set[_Ref] = set()
        self.watched: set[_Ref] = set()
        self.calls = self._needed(self._distinct(self._folded(recorder.calls)))

    def _address(self, ref: _Ref) -> int:
        return address_of(self.tensors[ref.index])

    def _folded(self, calls: Iterable[_Call]) -> Iterator[_Call]:
        """Leave out what comes out the same in every run."""
        for call in calls:
            made, used = set(_refs(call.result)), set(_refs((call.args, call.kwargs)))
            fixed = all(self._address(ref) not in self.written for ref in made | used)
            blank = call.operator._schema.name in _FACTORIES
            if call.is_live or not made or not fixed or (used & self.made and not blank):
                self.made |= made - used
                yield call
            else:
                self.watched |= used

    def _distinct(self, calls: Iterable[_Call]) -> Iterator[_Call]:
        """Leave out what has been computed before."""
        renamed: dict[_Ref, _Ref] = {}
        first: dict[str, _Call] = {}
        outputs = {self._address(ref) for ref in _refs(self.outputs)}
        for call in calls:
            names = {ref: renamed.get(ref, ref) for ref in _refs((call.args, call.kwargs))}
            call.args = _map_refs(names.__getitem__, call.args)
            call.kwargs = _map_refs(names.__getitem__, call.kwargs)
            used = [*_refs((call.args, call.kwargs)), *_refs(call.result)]
            fixed = all(self._address(ref) not in self.written for ref in used)
            if fixed and not call.is_random and outputs.isdisjoint(map(self._address, used)):
                key = f"{call.operator} {call.args!r} {call.kwargs!r}"
                if key in first:
                    renamed |= zip(_refs(call.result), _refs(first[key].result), strict=True)
                    continue
                first[key] = call
            yield call

    def _needed(self, calls: Iterable[_Call]) -> list[_Call]:
        """Leave out what nothing needs; random numbers are drawn all the same."""
        every = list(calls)
        given = {address_of(t) for i, t in enumerate(self.tensors) if _Ref(i) not in self.made}
        needed = set(_refs(self.outputs))
        storages = given | {self._address(ref) for ref in needed}
        kept = []
        for call in reversed(every):
            made = set(_refs(call.result))
            useful = made & needed - set(_refs((call.args, call.kwargs))) or call.writes & storages
            if call.is_random or useful or not (made or call.writes):
                kept.append(call)
                used = set(_refs((call.args, call.kwargs)))
                needed |= used
                storages |= {self._address(ref) for ref in used}
        return kept[::-1]

    def build(self, *, plain: bool) -> Recording:
        """Return the recording."""
        graph, nodes = Graph(), {}
        used = dict.fromkeys(
            ref
            for part in [*((call.args, call.kwargs) for call in self.calls), self.outputs]
            for ref in _refs(part)
            if ref not in self.made
        )
        inputs = [_Ref(i) for i in range(self.recorder.num_inputs)]
        given = [ref for ref in used if ref not in inputs]
        for ref in (*inputs, *given):
            nodes[ref] = graph.placeholder(f"given_{ref.index}")
        for call in self.calls:
            self._emit(graph, nodes, call, plain=plain)
        graph.output(_map_refs(nodes.__getitem__, self.outputs))
        module = GraphModule(torch.nn.Module(), graph)
        outside = [t for i, t in enumerate(self.tensors) if _Ref(i) not in {*self.made, *inputs}]
        return Recording(
            module,
            given=tuple(self.tensors[ref.index] for ref in given),
            watched=(*(self.tensors[ref.index] for ref in self.watched), *self.recorder.looked_at),
            written=tuple(tensor for tensor in outside if address_of(tensor) in self.written),
        )

    def _emit(self, graph: Graph, nodes: dict[_Ref, Node], call: _Call, *, plain: bool) -> None:
        args, kwargs = (_map_refs(nodes.__getitem__, part) for part in (call.args, call.kwargs))
        name = None if plain else self._shortcut(call)
        if name is None:
            node = graph.call_function(call.operator, args, kwargs)
        elif isinstance(getattr(torch, name, None), types.BuiltinFunctionType):
            node = graph.call_function(getattr(torch, name), args, kwargs)
        else:
            node = graph.call_method(name, args, kwargs)
        if isinstance(call.result, _Ref):
            nodes.setdefault(call.result, node)
        elif isinstance(call.result, list | tuple):
            for position, ref in enumerate(call.result):
                if isinstance(ref, _Ref) and ref not in nodes:
                    nodes[ref] = graph.call_function(operator.getitem, (node, position))

    def _shortcut(self, call: _Call) -> str | None:
        """Name the function or method of PyTorch that makes the same call.

        An operator called by its overload goes through a Python layer, which costs as much again
        as a small operator itself.
        """
        name = call.operator._schema.name.removeprefix("aten::")
        function = getattr(torch, name, None)
        if not isinstance(function, types.BuiltinFunctionType):
            function = getattr(torch.Tensor, name, None)
        if function is None:
            return None
        args, kwargs, result = (
            _map_refs(lambda ref: self.tensors[ref.index], part)
            for part in (call.args, call.kwargs, call.result)
        )
        seen = _Seen(result)
        try:
            with torch.no_grad(), seen:
                function(*args, **kwargs)
        except (TypeError, RuntimeError, ValueError):
            return None
        return name if seen.calls == [_bound(call.operator, args, kwargs)] else None


class _Seen(TorchDispatchMode):
    """Notes the operators that are called, and runs none of them but views."""

    def __init__(self, result: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.result = result
        self.calls: list[tuple[Any, ...]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.calls.append(_bound(func, args, kwargs or {}))
        return func(*args, **(kwargs or {})) if func.is_view else self.result


def _bound(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return an operator with all of its arguments, tensors by their places, to compare it."""
    values = []
    for position, argument in enumerate(func._schema.arguments):
        named = kwargs.get(argument.name, argument.default_value)
        value = args[position] if position < len(args) else named
        values.append(repr(_map(_place, [value])))
    return (func, *values)


def _looks_for_nan() -> bool:
    """Whether a value is read only for Pyro to warn of it."""
    frame = sys._getframe(2)
    for _ in range(3):
        if frame.f_code in _WARNINGS:
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def _foreign_noise() -> tuple[Any, ...]:
    """Return the state of Python's and NumPy's generators."""
    _, key, position, *_ = np.random.get_state(legacy=True)
    return random.getstate(), np.asarray(key).tobytes(), position


def _place(tensor: torch.Tensor) -> _Place:
    return (
        address_of(tensor),
        int(tensor.storage_offset()),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _refs(value: Any) -> Iterator[_Ref]:
    if isinstance(value, _Ref):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _refs(item)
    elif isinstance(value, dict):
        yield from _refs(list(value.values()))


def _map(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """Return a value with its tensors replaced."""
    return _replaced(torch.Tensor, function, value)


def _map_refs(function: Callable[[_Ref], Any], value: Any) -> Any:
    """Return a value with its numbers of tensors replaced."""
    return _replaced(_Ref, function, value)


def _replaced(kind: type, function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {key: _replaced(kind, function, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_replaced(kind, function, item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the arguments that an operator writes to."""
    undeclared = _UNDECLARED if func._schema.name.endswith("_batch_norm") else ()
    if not func._schema.is_mutable and not undeclared:
        return []
    found: list[Any] = []
    for position, argument in enumerate(func._schema.arguments):
        declared = argument.alias_info is not None and argument.alias_info.is_write
        if declared or argument.name in undeclared:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found.append(value)
    return list(_tensors(found))
