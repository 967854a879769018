"""Recording of the operators that a function of one vector runs, backward pass included."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["CannotCompile", "Operation", "Place", "Recording", "Storage", "record"]

# Their results depend on the shape and type of their argument alone.
_FACTORIES = {
    f"aten.{name}"
    for name in (
        "empty_like",
        "full_like",
        "new_empty",
        "new_empty_strided",
        "new_full",
        "new_ones",
        "new_zeros",
        "ones_like",
        "zeros_like",
    )
}


class CannotCompile(Exception):
    """The function cannot be turned into one fixed program; the message says why, and where."""


@dataclass(eq=False)
class Storage:
    """A piece of memory of the recorded run.

    Args:
        index: Number in the order of appearance.
        size: Number of elements.
        dtype: Their type.
        values: The elements, for memory that does not depend on the vector.
        initial: What memory that depends on the vector held before it was first written to.
    """

    index: int
    size: int
    dtype: torch.dtype
    values: torch.Tensor | None = None
    initial: torch.Tensor | None = None

    @property
    def live(self) -> bool:
        """Whether its contents depend on the vector."""
        return self.values is None


@dataclass(frozen=True)
class Place:
    """A tensor of the recorded run: where its elements lie.

    Element (i, j, ...) lies at offset + i * strides[0] + j * strides[1] + ..., as in PyTorch, so
    that views and writes in place need no treatment of their own.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the elements."""
        return self.storage.dtype

    @property
    def live(self) -> bool:
        """Whether its elements depend on the vector."""
        return self.storage.live

    def tensor(self) -> torch.Tensor:
        """Return the values of a tensor that does not depend on the vector."""
        assert self.storage.values is not None
        return self.storage.values.as_strided(self.shape, self.strides, self.offset)

    def addresses(self) -> torch.Tensor:
        """Return each element's position in the storage."""
        every = torch.arange(self.storage.size)
        return every.as_strided(self.shape, self.strides, self.offset)


@dataclass(frozen=True)
class Operation:
    """One operator call, tensors replaced by their places.

    Args:
        name: The overload, such as "aten.mul.Tensor".
        args: Positional arguments.
        kwargs: Keyword arguments.
        outputs: Places of the tensors returned.
        line: The line of the model that led to it, where it is known.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Place, ...]
    line: str


@dataclass
class Recording:
    """All that happened between a vector and a function's value and gradient."""

    vector: Place
    value: Place
    gradient: Place
    operations: list[Operation] = field(default_factory=list)


def record(
    function: Callable[[torch.Tensor], torch.Tensor],
    vector: torch.Tensor,
    known: Callable[[str], bool],
) -> Recording:
    """Record the operators of a scalar function and of its gradient.

    Args:
        function: From a vector (dim,) to a 0-dimensional tensor, by differentiable operators.
        vector: The point to record at, (dim,).
        known: Whether there is a rule for an operator; others are decomposed by PyTorch's own
            tables into simpler ones.

    Returns:
        The operators that depend on the vector, in their order; all else is constant.

    Raises:
        CannotCompile: If the course of the run depends on the values of the vector, random numbers
            are drawn, or an operator has no rule.
    """
    leaf = vector.detach().clone().requires_grad_()
    recorder = _Recorder(known)
    recorder.track(leaf)
    with recorder:
        value = function(leaf)
        if not value.requires_grad:
            raise CannotCompile("the log density does not depend on the latent sites.")
        (gradient,) = torch.autograd.grad(value, leaf)
    places = [recorder.place(tensor) for tensor in (leaf, value, gradient)]
    return Recording(*places, recorder.operations)


class _Recorder(TorchDispatchMode):
    def __init__(self, known: Callable[[str], bool]) -> None:
        super().__init__()
        self.known = known
        self.operations: list[Operation] = []
        self._storages: dict[int, Storage] = {}
        self._count = 0
        self._alive: list[Any] = []  # an address means nothing once its storage is gone

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first operator would import all of torch.compile, which takes seconds

    def track(self, tensor: torch.Tensor) -> Storage:
        """Take a tensor's storage for one that depends on the vector."""
        return self._add(tensor, live=True)

    def place(self, tensor: torch.Tensor) -> Place:
        """Return a tensor's place; memory not seen before is constant."""
        storage = self._storages.get(_address(tensor)) or self._add(tensor, live=False)
        if storage.dtype != tensor.dtype or tensor.is_complex():
            msg = f"a tensor is read as {tensor.dtype} and as {storage.dtype}.{_where()}"
            raise CannotCompile(msg)
        return Place(storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        inputs = _tensors([*args, *kwargs.values()])
        live = any(self._is_live(tensor) for tensor in inputs)
        name = str(func)
        if not live or name.rpartition(".")[0] in _FACTORIES:
            for tensor in _written(func, args, kwargs):
                self._will_change(tensor)
            result = func(*args, **kwargs)
            if torch.Tag.nondeterministic_seeded in func.tags:
                raise CannotCompile(f"the model draws random numbers ({name}).{_where()}")
            return result
        if name in ("aten._local_scalar_dense.default", "aten.equal.default"):
            msg = f"the course of the model depends on the value of a latent site.{_where()}"
            raise CannotCompile(msg)
        written = _written(func, args, kwargs)
        for tensor in written:
            if not self._is_live(tensor):
                self._becomes_live(tensor)
        if not self.known(name) and not _is_view(func):
            decomposed = self._decompose(func, args, kwargs)
            if decomposed is not NotImplemented:
                return decomposed
            raise CannotCompile(f"operator {name} has no rule.{_where()}")
        result = func(*args, **kwargs)
        before = len(self._storages)
        for tensor in _tensors([result]):
            if _address(tensor) not in self._storages:
                self._add(tensor, live=True)
        if len(self._storages) > before or written:
            outputs = tuple(self.place(tensor) for tensor in _tensors([result]))
            to_place = self._to_places
            self.operations.append(
                Operation(
                    name,
                    tuple(to_place(arg) for arg in args),
                    {key: to_place(arg) for key, arg in kwargs.items()},
                    outputs,
                    _where(),
                )
            )
        return result

    def _decompose(self, func: Any, args: Any, kwargs: Any) -> Any:
        table = _decompositions()
        if func in table:
            with self:
                return table[func](*args, **kwargs)
        with self:
            return func.decompose(*args, **kwargs)

    def _is_live(self, tensor: torch.Tensor) -> bool:
        storage = self._storages.get(_address(tensor))
        return storage is not None and storage.live

    def _add(self, tensor: torch.Tensor, *, live: bool) -> Storage:
        memory = _whole(tensor)
        storage = Storage(self._count, len(memory), tensor.dtype, None if live else memory)
        self._count += 1
        self._storages[_address(tensor)] = storage
        self._alive.append(tensor)
        return storage

    def _will_change(self, tensor: torch.Tensor) -> None:
        """Part with constant memory that is written to: what was read before keeps its values."""
        storage = self._storages.pop(_address(tensor), None)
        if storage is not None:
            storage.values = _whole(tensor).clone()

    def _becomes_live(self, tensor: torch.Tensor) -> None:
        before = self._storages.pop(_address(tensor), None)
        initial = _whole(tensor).clone()
        if before is not None:
            before.values = initial
        self.track(tensor).initial = initial

    def _to_places(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.place(value)
        if isinstance(value, list | tuple):
            return [self._to_places(item) for item in value]
        return value


def _address(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor's storage, (size,)."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((size,), (1,), 0)


def _tensors(values: list[Any] | tuple[Any, ...]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    if not func._schema.is_mutable:
        return []
    found: list[Any] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(
                args[position] if position < len(args) else kwargs.get(argument.name, None)
            )
    return _tensors(found)


def _is_view(func: Any) -> bool:
    return bool(func.is_view)


@cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    from torch._decomp import core_aten_decompositions

    return dict(core_aten_decompositions())


_LIBRARIES = tuple(str(Path(module.__file__ or "").parent) for module in (torch,))


def _where() -> str:
    """Return the line of the user's code that is running, as the end of a message."""
    frame = sys._getframe(1)
    libraries = (*_LIBRARIES, _package_folder("pyro"), str(Path(__file__).parents[1]))
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(libraries) and not file.startswith("<"):
            return f" See {Path(file).name}, line {frame.f_lineno} ({frame.f_code.co_name})."
        frame = frame.f_back  # type: ignore[assignment]
    return ""


@cache
def _package_folder(name: str) -> str:
    return str(Path(sys.modules[name].__file__ or "").parent) if name in sys.modules else "\0"
