"""Recording of the operators that a function of one vector runs, backward pass included."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_gen.core.compiler.decompositions import decomposition
from ppl_gen.core.memory import address_of, unwrapped

__all__ = ["CannotCompile", "Operation", "Place", "Recording", "Storage", "record"]

# Their results depend on the shape and type of their argument alone.
_FACTORIES = {
    "empty_like",
    "full_like",
    "new_empty",
    "new_empty_strided",
    "new_full",
    "new_ones",
    "new_zeros",
    "ones_like",
    "zeros_like",
}
# What they return depends on values in a way that one fixed program cannot follow.
_BRANCHES = "the course of the model depends on the value of a latent site"
_SHAPES = "the shape of a tensor depends on the value of a latent site"
_SORTS = "values of latent sites are sorted, and the order is not known beforehand"
_COMPLEX = "complex numbers have no rule"
_REFUSED = {
    **dict.fromkeys(("_local_scalar_dense", "equal", "is_nonzero", "_assert_async"), _BRANCHES),
    **dict.fromkeys(("nonzero", "nonzero_static", "masked_select"), _SHAPES),
    **dict.fromkeys(("_unique", "_unique2", "unique_dim", "unique_consecutive"), _SHAPES),
    **dict.fromkeys(("bincount", "histc", "histogram"), _SHAPES),
    **dict.fromkeys(("sort", "argsort", "topk", "kthvalue", "msort"), _SORTS),
    **dict.fromkeys(("median", "nanmedian", "mode"), _SORTS),
    **dict.fromkeys(("_fft_r2c", "_fft_c2r", "_fft_c2c", "complex", "polar"), _COMPLEX),
}
# They turn tensors into numbers where no operator sees it, or numbers in lists.
_READERS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__}
_MAKERS = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}


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
        arguments: Every argument by its name in the operator's schema, in the schema's order.
        outputs: Places of the tensors returned; of those written to, for operators in place.
        written: Places of the arguments that are written to.
        line: The line of the model that led to it, as the end of a message.
    """

    name: str
    arguments: dict[str, Any]
    outputs: tuple[Place, ...]
    written: tuple[Place, ...]
    line: str

    def __getitem__(self, argument: str) -> Any:
        """Return an argument by its name."""
        return self.arguments[argument]

    @property
    def base(self) -> str:
        """Name without overload and without the underscore of operators in place."""
        return base_name(self.name)

    @property
    def out(self) -> Place:
        """Place of the first result."""
        return self.outputs[0]

    @property
    def in_place(self) -> bool:
        """Whether it changes its first argument."""
        return bool(self.written) and self.written[0] is self.arguments.get("self")


def base_name(name: str) -> str:
    """Return an operator's name without overload and without the underscore of those in place."""
    base = name.split(".")[1]
    return base if base.startswith("__") else base.removesuffix("_")


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
    with recorder, _Numbers(recorder):
        value = function(leaf)
        if not value.requires_grad:
            raise CannotCompile("the log density does not depend on the latent sites.")
        (gradient,) = torch.autograd.grad(value, leaf)
        if not recorder.is_live(gradient):  # that of a linear function
            constant, gradient = gradient, torch.empty_like(leaf, requires_grad=False)
            recorder.track(gradient)
            gradient.copy_(constant)
    vector_at, value_at, gradient_at = (recorder.place(t) for t in (leaf, value, gradient))
    return Recording(vector_at, value_at, gradient_at, recorder.operations)


class _Recorder(TorchDispatchMode):
    def __init__(self, known: Callable[[str], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = known
        self.operations: list[Operation] = []
        self._storages: dict[int, Storage] = {}
        self._count = 0
        self._alive: list[Any] = []  # an address means nothing once its storage is gone
        self._decomposing: list[Any] = []
        self._lines: dict[int, str] = {}  # by the number of the node in the graph of autograd

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first operator would import all of torch.compile, which takes seconds

    def track(self, tensor: torch.Tensor) -> Storage:
        """Take a tensor's storage for one that depends on the vector."""
        return self._add(tensor, live=True)

    def is_live(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor's storage depends on the vector."""
        storage = self._storages.get(address_of(tensor))
        return storage is not None and storage.live

    def place(self, tensor: torch.Tensor) -> Place:
        """Return a tensor's place; memory not seen before is constant."""
        if tensor.is_complex():
            raise CannotCompile(f"{_COMPLEX}.{self.line()}")
        storage = self._storages.get(address_of(tensor)) or self._add(tensor, live=False)
        if storage.dtype != tensor.dtype or storage.size != _size(tensor):
            msg = f"memory of {storage.size} {storage.dtype} is used as {_size(tensor)} "
            raise CannotCompile(f"{msg}{tensor.dtype}.{self.line()}")
        offset = int(tensor.storage_offset())
        return Place(storage, offset, tuple(tensor.shape), tensor.stride())

    def line(self) -> str:
        """Return the line of the user's code that is running, or whose derivative is."""
        node = torch._C._current_autograd_node()
        if node is not None:
            return self._lines.get(node._sequence_nr(), "")
        here = _where()
        # An operator's node is made before the operator runs.
        self._lines.setdefault(torch.autograd._get_sequence_nr() - 1, here)
        return here

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        base = base_name(name)
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise CannotCompile(f"the model draws random numbers ({name}).{self.line()}")
        if torch.Tag.inplace_view in func.tags:
            return func(*args, **kwargs)
        live = any(self.is_live(tensor) for tensor in _tensors([*args, *kwargs.values()]))
        written = _written(func, args, kwargs)
        if not live or base in _FACTORIES:
            for tensor in written:
                self._will_change(tensor)
            return func(*args, **kwargs)
        line = self.line()
        known = self.known(name) or (func.is_view and not func._can_decompose())
        if base in _REFUSED and not known:
            raise CannotCompile(f"{_REFUSED[base]} ({name}).{line}")
        for tensor in written:
            if not self.is_live(tensor):
                self._becomes_live(tensor)
        if not known:
            return self._decompose(func, args, kwargs)
        arguments = {key: self._to_places(a) for key, a in _bound(func, args, kwargs)}
        result = func(*args, **kwargs)
        before = len(self._storages)
        for tensor in _tensors([result]):
            if address_of(tensor) not in self._storages:
                self._add(tensor, live=True)
        if len(self._storages) > before or written:
            outputs = tuple(self.place(tensor) for tensor in _tensors([result]))
            changed = tuple(_written_places(func, arguments))
            self.operations.append(Operation(name, arguments, outputs, changed, line))
        return result

    def _decompose(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator without a rule by simpler ones."""
        found = decomposition(func)
        if found is None or func in self._decomposing:
            raise CannotCompile(f"operator {func} has no rule.{self.line()}")
        self._decomposing.append(func)
        try:
            with self:
                result = found(*args, **kwargs)
        finally:
            self._decomposing.pop()
        if result is NotImplemented:
            raise CannotCompile(f"operator {func} has no rule for its options.{self.line()}")
        return result

    def _add(self, tensor: torch.Tensor, *, live: bool) -> Storage:
        values = None if live else _whole(tensor)
        storage = Storage(self._count, _size(tensor), tensor.dtype, values)
        self._count += 1
        self._storages[address_of(tensor)] = storage
        self._alive.append(tensor)
        return storage

    def _will_change(self, tensor: torch.Tensor) -> None:
        """Part with constant memory that is written to: what was read before keeps its values."""
        storage = self._storages.pop(address_of(tensor), None)
        if storage is not None:
            storage.values = _whole(tensor).clone()

    def _becomes_live(self, tensor: torch.Tensor) -> None:
        before = self._storages.pop(address_of(tensor), None)
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


class _Numbers(TorchFunctionMode):
    """Refuses what would freeze a latent site at the value that it is recorded at."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _READERS or func in _MAKERS:
            # A tensor that is copied as a whole goes through operators.
            read = args if func in _READERS else [a for a in args if isinstance(a, list | tuple)]
            if any(self.recorder.is_live(unwrapped(tensor)) for tensor in _tensors(read)):
                msg = f"{func.__name__}() makes plain numbers of the values of a latent site."
                raise CannotCompile(msg + self.recorder.line())
        return func(*args, **kwargs)


def _size(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor's storage, (size,)."""
    return tensor.detach().as_strided((_size(tensor),), (1,), 0)


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


@cache
def _parameters(func: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Return an operator's arguments: name, default, and whether it is written to."""
    return tuple(
        (a.name, a.default_value, a.alias_info is not None and a.alias_info.is_write)
        for a in func._schema.arguments
    )


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Return an operator's arguments by name, defaults filled in."""
    for position, (name, default, _) in enumerate(_parameters(func)):
        yield name, args[position] if position < len(args) else kwargs.get(name, default)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    if not func._schema.is_mutable:
        return []
    names = {name for name, _, writes in _parameters(func) if writes}
    return _tensors(value for name, value in _bound(func, args, kwargs) if name in names)


def _written_places(func: Any, arguments: dict[str, Any]) -> Iterable[Place]:
    for name, _, writes in _parameters(func):
        if writes and isinstance(arguments[name], Place):
            yield arguments[name]


def _where() -> str:
    """Return the line of the user's code that is running, as the end of a message."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not record.__code__:
        file = frame.f_code.co_filename
        if not file.startswith((*_library_folders(), "<")):
            return f" See {Path(file).name}, line {frame.f_lineno} ({frame.f_code.co_name})."
        frame = frame.f_back  # type: ignore[assignment]
    return ""


@cache
def _library_folders() -> tuple[str, ...]:
    ours = Path(__file__).parents[1]
    folders = [str(ours), str(Path(torch.__file__).parent)]
    if "pyro" in sys.modules:
        folders.append(str(Path(sys.modules["pyro"].__file__ or "").parent))
    standard = Path(sysconfig.get_path("stdlib"))
    return (*folders, *(f"{standard}/{name}" for name in ("contextlib.py", "functools.py")))
