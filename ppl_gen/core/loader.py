"""Mini-batches of data that do not fit in memory, from a loader that makes them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from ppl_gen.core.arguments import as_tensors, bind, lengths, move
from ppl_gen.core.errors import SiteError
from ppl_gen.core.minibatch import MiniBatches, ScalePlate, epoch_seeds, find_plate
from ppl_gen.core.own_rows import OwnRows
from ppl_gen.core.pair import signature

__all__ = [
    "BatchSource",
    "BatchStream",
    "Batches",
    "Data",
    "LoaderBatches",
    "as_batches",
    "bind_data",
]

_QUIET_SECONDS = 2.0
_END = object()

# To close it ends the workers of a loader.
Passing: TypeAlias = Generator[dict[str, Any], None, None]


@dataclass(frozen=True, eq=False)
class Batches:
    """What a loader gives, where the loader itself does not say all of it.

    `pg.fit(pair, loader, ...)` takes a loader as it is. This class names the elements of its
    batches, and adds values that are the same for all of them.

    **Loaders.** A `torch.utils.data.DataLoader`, or any object with batches that can be iterated
    over again and again, each time for an epoch. A batch is a mapping by the names of the model's
    arguments, a tuple or list in the order of the arguments, or one tensor for a model with one
    argument. Arrays become tensors. The batches may differ in their number of rows, and in nothing
    else. One at a time is cast, and moved to the device.

    **Scale.** All batches are scaled alike: by their number where an epoch has each row once. The
    mean of their gradients is then that of all of the data, a short last batch included. Where a
    `DataLoader` drops the last batch or has a `RandomSampler` with another number of rows, or with
    replacement, the scale is such that this holds on average over epochs. A loader without `len`
    is run through once before the training, to count its batches.

    **Order.** While the loader runs, and no longer, the generators of PyTorch, NumPy and Python,
    and those that the loader and its samplers were given, are seeded by the seed of the fit and the
    number of the epoch: the same seed gives the same batches, a run that was killed goes on in the
    middle of an epoch, and the generators are left as they were. Where the loader, its sampler or
    its data set have a method `set_epoch`, it is called with the number of the epoch. What else is
    random in a loader is up to it: state of its own that it keeps from pass to pass, and the
    transforms of workers that persist.

    Args:
        loader: The loader.
        names: Names of the elements of a batch that is a tuple or list, in their order; None for
            one that the model does not take, such as the labels of images. None: the names of the
            model's arguments.
        constants: Values by the names of the model's arguments that are the same for all batches,
            and are no rows.

    Raises:
        TypeError: If the loader cannot be iterated over, or only once.

    Example:
        >>> images = torch.utils.data.TensorDataset(torch.rand(10, 8, 8), torch.arange(10))
        >>> loader = torch.utils.data.DataLoader(images, batch_size=4, shuffle=True)
        >>> Batches(loader, names=("x", None)).names
        ('x', None)
    """

    loader: Iterable[Any]
    names: Sequence[str | None] | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what is no loader."""
        loader = self.loader
        if self.names is not None and not isinstance(self.names, list | tuple):
            msg = f"names: expected a tuple, got {self.names!r}. Write ({self.names!r},)."
            raise TypeError(msg)
        if not isinstance(self.constants, Mapping):
            msg = f"constants: expected a dictionary, got {type(self.constants).__name__}."
            raise TypeError(msg)
        if isinstance(loader, Dataset):
            msg = (
                f"loader: expected batches, got the data set {type(loader).__name__}. Write "
                "torch.utils.data.DataLoader(dataset, batch_size=128, shuffle=True)."
            )
            raise TypeError(msg)
        if isinstance(loader, Iterator):
            msg = (
                "loader: expected an object that can be iterated over for each epoch, got a "
                f"{type(loader).__name__}, which has one pass only. Give what it was made from: a "
                "DataLoader, a list of batches, or an object whose __iter__ starts a new pass."
            )
            raise TypeError(msg)
        if not hasattr(loader, "__iter__"):
            msg = (
                "loader: expected a DataLoader, or another object that can be iterated over, got "
                f"{type(loader).__name__}."
            )
            raise TypeError(msg)


# What a pair is fitted to.
Data: TypeAlias = Mapping[str, Any] | Iterable[Any] | Batches


def as_batches(data: Any) -> Batches | None:
    """Return the batches that a loader gives; None for data that are no loader.

    Args:
        data: What `fit` was given as data.

    Raises:
        TypeError: If it is a data set, or an iterator, which has one pass only.
    """
    if isinstance(data, Batches):
        return data
    if isinstance(data, Mapping | tuple | str | bytes) or hasattr(data, "__array__"):
        return None
    # A list of tensors is rather one of arguments than of batches.
    if isinstance(data, list) and not (data and isinstance(data[0], Mapping | tuple | list)):
        return None
    # Of a data set that cannot be iterated over, the class says what to write.
    return Batches(data) if isinstance(data, Dataset) or hasattr(data, "__iter__") else None


def bind_data(
    pair: nn.Module, data: Any, seed: int, *, progress: bool
) -> tuple[dict[str, Any], BatchStream | None]:
    """Return data as the keywords of a pair's model; of a loader its first batch, and the stream.

    Args:
        pair: The pair.
        data: Data by the names of the model's arguments, or a loader.
        seed: The seed of the run.
        progress: Whether to say that batches are counted, if that takes over two seconds.

    Raises:
        TypeError: If it is neither, or a value is of a type that no model can use.
        ValueError: If a name does not fit, is missing, or a value holds NaN or infinity.
    """
    batches = as_batches(data)
    if batches is None:
        return bind(pair, data), None
    stream = BatchStream(pair, batches, seed, progress=progress)
    return stream.first, stream


def _is_batch(value: Any) -> bool:
    return isinstance(value, Mapping | tuple | list) or hasattr(value, "__array__")


class BatchStream:
    """The batches of a loader as keywords of a pair's model, in the dtype that they come in.

    Args:
        pair: The pair.
        batches: What the loader gives.
        seed: The seed of the run.
        progress: Whether to say that batches are counted, if that takes over two seconds.

    Raises:
        TypeError: If a value is of a type that no model can use.
        ValueError: If the names do not fit the model.
    """

    def __init__(self, pair: nn.Module, batches: Batches, seed: int, *, progress: bool) -> None:
        self.pair = pair
        self.loader = batches.loader
        self.seed = seed
        self.progress = progress
        self._started = False
        self.constants = as_tensors(batches.constants)
        self.named = batches.names is not None
        parameters = signature(pair).parameters.values()
        arguments = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        self.names = batches.names or [n for n in arguments if n not in self.constants]

    @functools.cached_property
    def first(self) -> dict[str, Any]:
        """The first batch of the first epoch, with the constants.

        Raises:
            TypeError: If it is of a type that is no batch.
            ValueError: If there is none, or it does not fit the model.
        """
        with contextlib.closing(self.epoch(1, self.seed)) as epoch:
            batch = next(epoch, None)
        if batch is None:
            msg = (
                "loader: expected at least one batch, got none. Check its data set; a batch size "
                "larger than the data leaves none with drop_last=True."
            )
            raise ValueError(msg)
        return {**self.constants, **batch}

    @functools.cached_property
    def size(self) -> _Size:
        """How large an epoch is.

        Raises:
            ValueError: If rows are drawn with unequal probabilities.
        """
        return _said_size(self.loader) or self._counted()

    def _counted(self) -> _Size:
        count, rows = 0, Counter[str]()
        started, due = time.monotonic(), _QUIET_SECONDS
        for count, batch in enumerate(self.epoch(), start=1):
            rows.update(lengths(batch))
            if self.progress and time.monotonic() - started > due:
                due *= 2
                print(
                    "The loader has no len(): its batches are counted in one pass before the "
                    f"training, {count} so far.",
                    file=sys.stderr,
                )
        return _Size(count, float(count), dict(rows), "the pass that counted them")

    def epoch(self, number: int | None = None, seed: int = 0) -> Passing:
        """Yield the batches of one pass over the loader, without the constants.

        Args:
            number: Number of the epoch; None: a pass apart from the training.
            seed: The seed of the run.

        Raises:
            TypeError: If a batch is of a type that is no batch.
            ValueError: If a batch does not fit the model, or has values that are not finite.
        """
        self._start_workers()
        generators = _Generators(epoch_seeds(seed, number or 0, 1)[0], _generators_of(self.loader))
        with generators:
            if number is not None:
                _set_epoch(self.loader, number)
            iterator = iter(self.loader)
        try:
            for position in itertools.count(1):
                with generators:
                    batch = next(iterator, _END)
                if batch is _END:
                    return
                with _named(position, number):
                    keywords = self._keywords(batch)
                    bound = bind(self.pair, keywords, self.constants)
                yield bound
        finally:
            del iterator  # with which the workers of a DataLoader end

    def _start_workers(self) -> None:
        """Start workers that persist: a pass that starts them draws more than one that does not."""
        if not self._started and getattr(self.loader, "persistent_workers", False):
            with _Generators(0, _generators_of(self.loader)):
                iter(self.loader)
        self._started = True

    def _keywords(self, batch: Any) -> dict[str, Any]:
        """Return the values of a batch by name."""
        if hasattr(batch, "_asdict"):  # a named tuple
            batch = batch._asdict()
        if isinstance(batch, Mapping):
            if self.named:
                msg = (
                    f"names are for batches that are tuples, got a mapping with {_listed(batch)}. "
                    "Leave names out."
                )
                raise ValueError(msg)
            both = [name for name in batch if name in self.constants]
            if both:
                msg = f"'{both[0]}' is in the batch and among the constants. Leave one of them out."
                raise ValueError(msg)
            return dict(batch)
        if not _is_batch(batch):
            msg = (
                "expected a mapping by the names of the model's arguments, a tuple in their order, "
                f"or a tensor, got {type(batch).__name__}."
            )
            raise TypeError(msg)
        elements = batch if isinstance(batch, tuple | list) else (batch,)
        expected, got = len(self.names), len(elements)
        # Arguments without an element may have defaults.
        if got > expected or (self.named and got < expected):
            names = ", ".join(repr(name) for name in self.names)
            given = [*self.names, *[None] * got][:got]
            whose = "as named" if self.named else "the model's arguments in their order"
            msg = (
                f"expected {expected} element{'s' if expected > 1 else ''} ({names}, {whose}), got "
                f"{got}. Name all of them, with None for what the model does not take: "
                f"pg.Batches(loader, names={tuple(given)})."
            )
            raise ValueError(msg)
        named = zip(self.names, elements, strict=False)
        return {name: element for name, element in named if name is not None}


class LoaderBatches:
    """Mini-batches from a loader, for one run: cast, on its device, and scaled.

    It is to a loader what `MiniBatches` is to data in memory.

    Args:
        stream: The loader's batches.
        pair: The pair, cast and on the device.
        plate: Name of the plate over the rows; None takes the first one that is found.
        dtype: Dtype of floating-point values; None leaves theirs.
        device: The device.

    Raises:
        ValueError: If no plate, not the one named, or more than one is over the rows of a batch,
            or rows are drawn with unequal probabilities.
    """

    def __init__(
        self,
        stream: BatchStream,
        pair: nn.Module,
        plate: str | None,
        dtype: torch.dtype | None,
        device: torch.device,
    ) -> None:
        self._stream = stream
        self._dtype, self._device = dtype, device
        # Memory that a loader of another kind has pinned may be written to for its next batch.
        self._non_blocking = isinstance(stream.loader, DataLoader) and stream.loader.pin_memory
        self._constants = move(stream.constants, dtype, device)
        look = self._moved(stream.first)
        sizes = lengths({n: v for n, v in look.items() if n not in stream.constants})
        if not sizes:
            msg = (
                "loader: expected tensors with rows along their first axis, got none. Give batches "
                "of rows: a DataLoader makes them where it has a batch_size."
            )
            raise ValueError(msg)
        # A plate that follows the rows shows itself from two rows on.
        look |= {n: look[n].repeat_interleave(2, 0) for n, size in sizes.items() if size == 1}
        self.plate, self.names = _plate_of_batches(pair, look, sizes, plate)
        self.few = {**look, **{name: look[name][:2] for name in self.names}}
        size = stream.size
        self.num_batches = size.num_batches
        self.scale = ScalePlate(self.plate, size.factor)
        rows = size.rows
        self._known_length = rows[self.names[0]] if isinstance(rows, Mapping) else rows
        self._length = self._known_length or self.num_batches * sizes[self.names[0]]

    @property
    def length(self) -> int:
        """Number of rows; where the loader does not say it, an estimate up to the first epoch."""
        return self._length

    def epoch(self, number: int | None = None, seed: int = 0) -> Passing:
        """Yield the batches of one pass over the loader.

        Args:
            number: Number of the epoch: the order of its rows follows from it and the seed, as far
                as the loader draws it from a generator of its own or the global ones. None: a pass
                apart from the training.
            seed: The seed of the run.

        Raises:
            ValueError: If a batch differs from the first one in more than its number of rows, holds
                values that are not finite, or there are more or fewer batches than there were.
        """
        count = rows = 0
        with contextlib.closing(self._stream.epoch(number, seed)) as batches:
            for count, batch in enumerate(batches, start=1):
                if count > self.num_batches:
                    raise self._other_number(f"batch {count}", number)
                with _named(count, number):
                    rows += self._rows_of(batch)
                yield self._moved(batch)
        if count < self.num_batches:
            raise self._other_number(f"the end after batch {count}", number)
        if self._known_length is None:
            self._length = rows

    def _moved(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        batch = {name: value for name, value in batch.items() if name not in self._constants}
        moved = move(batch, self._dtype, self._device, non_blocking=self._non_blocking)
        return {**self._constants, **moved}

    def _rows_of(self, batch: Mapping[str, Any]) -> int:
        """Return the number of rows of a batch that is like the first one."""
        first = self._stream.first
        expected = first.keys() - self._stream.constants.keys()
        if batch.keys() != expected:
            msg = (
                f"expected {_listed(expected)}, as in the first batch, got {_listed(batch)}. Give "
                "every batch the same keys."
            )
            raise ValueError(msg)
        for name, value in batch.items():
            like, got = _kind(first[name], name in self.names), _kind(value, name in self.names)
            if like != got:
                raise SiteError(
                    name,
                    what="data",
                    expected=f"{like}, as in the first batch",
                    got=got,
                    remedy="Bring all batches to one dtype and shape, by padding in a collate_fn.",
                )
        sizes = {name: len(batch[name]) for name in self.names}
        count = sizes[self.names[0]]
        if any(size != count for size in sizes.values()):
            text = ", ".join(f"'{name}' has {size}" for name, size in sizes.items())
            msg = f"expected as many rows of each, got: {text}. Give the values of the same rows."
            raise ValueError(msg)
        return count

    def _other_number(self, got: str, number: int | None) -> ValueError:
        """Return the error for a pass with more or fewer batches than were expected."""
        size = self._stream.size
        return ValueError(
            f"loader: expected {self.num_batches} batches in {_pass(number)}, by {size.source}, "
            f"got {got}. The scale of the rows depends on their number. See that each __iter__ "
            "starts a new pass over all of the data"
            + (
                "; where len() cannot be right, as of data that workers share out among "
                "themselves, leave it out, and the batches are counted."
                if size.source == "len(loader)"
                else "."
            )
        )


BatchSource: TypeAlias = MiniBatches | LoaderBatches | OwnRows


def _plate_of_batches(
    pair: nn.Module, batch: Mapping[str, Any], sizes: Mapping[str, int], plate: str | None
) -> tuple[str, tuple[str, ...]]:
    """Return the plate over the rows of batches, with the names of the values that have them.

    Raises:
        ValueError: If there is not one such plate.
    """
    rows = {name: max(size, 2) for name, size in sizes.items()}
    most = max(rows.values(), default=2)
    found, names = find_plate(pair, batch, rows, most, plate)
    others = {name: size for name, size in rows.items() if name not in names}
    if plate is not None or not others:
        return found, names
    try:
        second, second_names = find_plate(pair, batch, others, most)
    except ValueError:
        return found, names
    msg = (
        f"plate '{found}' is over the rows of {_listed(names)}, and plate '{second}' over those of "
        f"{_listed(second_names)}. Only the rows of one plate can be mini-batched: give the values "
        "that are no rows by pg.Batches(loader, constants={...}), or name the plate."
    )
    raise ValueError(msg)


@dataclass(frozen=True)
class _Size:
    """How large an epoch is.

    Args:
        num_batches: Number of its batches.
        factor: What a row of a batch counts for.
        rows: Number of rows that are drawn from: of all values, or by name; None if not known.
        source: Where the number of batches is from.
    """

    num_batches: int
    factor: float
    rows: int | Mapping[str, int] | None
    source: str


def _said_size(loader: Any) -> _Size | None:
    """Return the size of an epoch by what a loader says of itself; None where it has no length.

    Where M of N items are drawn for an epoch of B batches, be it rows or whole batches, each has a
    chance of M / N to be in it, or appears so often on average. With the factor B N / M the mean
    of the scaled batches has the sum over all N items as its expectation.
    """
    try:
        num_batches = len(loader)
    except (TypeError, NotImplementedError):
        return None
    source = "len(loader)"
    plain = _Size(num_batches, float(num_batches), None, source)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return plain
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    drawn = rows = None
    if type(sampler) is BatchSampler:
        batch_sampler, sampler = sampler, sampler.sampler
        drawn = rows = len(sampler)
        if batch_sampler.drop_last:
            drawn = num_batches * batch_sampler.batch_size
    elif loader.batch_sampler is None:
        drawn = len(sampler)  # of items that are batches
    if not drawn:
        return plain
    drawn_from = _drawn_from(sampler, drawn)
    return _Size(num_batches, num_batches * drawn_from / drawn, rows and drawn_from, source)


def _drawn_from(sampler: Any, drawn: int) -> int:
    """Return how many items a sampler draws from, each with the same chance."""
    if isinstance(sampler, WeightedRandomSampler):
        weights = sampler.weights
        if bool((weights != weights[0]).any()):
            msg = (
                "loader: expected rows that are drawn alike, got a WeightedRandomSampler with "
                "unequal weights, which changes the likelihood to one of other data. Take "
                "shuffle=True, and weigh rows in the model, by pyro.poutine.scale, if they are to "
                "count for more than others."
            )
            raise ValueError(msg)
        return len(weights)
    if isinstance(sampler, RandomSampler):
        return len(sampler.data_source)
    if isinstance(sampler, SequentialSampler):
        return drawn  # what drop_last leaves out is never seen
    # Any other has each row once; what drop_last leaves out are other rows each time.
    return len(sampler)


class _Generators:
    """Generators that are seeded inside of the block, and go on where they were in the next one.

    Outside of the blocks they are as they would be without them.

    Args:
        seed: The seed, below 2**32.
        own: Generators of a loader, beside the global ones of PyTorch, NumPy and Python.
    """

    def __init__(self, seed: int, own: Sequence[torch.Generator]) -> None:
        self._generators = [torch.default_generator, *own]
        self._aside = self._states()
        random.seed(seed)
        np.random.seed(seed)
        for generator in self._generators:
            generator.manual_seed(seed)
        self._on_cpu = contextlib.ExitStack()
        self._swap()

    def __enter__(self) -> None:
        self._swap()
        # Samplers make their indices on the default device, from generators on the CPU.
        if torch.get_default_device().type != "cpu":
            self._on_cpu.enter_context(torch.device("cpu"))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._on_cpu.close()
        self._swap()

    def _swap(self) -> None:
        """Exchange the present states for those that were put aside."""
        states = self._aside
        self._aside = self._states()
        random.setstate(states[0])
        np.random.set_state(states[1])
        for generator, state in zip(self._generators, states[2:], strict=True):
            generator.set_state(state)

    def _states(self) -> list[Any]:
        of_torch = [generator.get_state() for generator in self._generators]
        return [random.getstate(), np.random.get_state(), *of_torch]


def _parts(loader: Any) -> list[Any]:
    """Return a loader with its samplers and data set."""
    samplers = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
    inner = getattr(samplers[1], "sampler", None)
    return [loader, *samplers, inner, getattr(loader, "dataset", None)]


def _generators_of(loader: Any) -> list[torch.Generator]:
    found = [getattr(part, "generator", None) for part in _parts(loader)]
    different = {id(g): g for g in found if isinstance(g, torch.Generator)}
    different.pop(id(torch.default_generator), None)
    return list(different.values())


def _set_epoch(loader: Any, number: int) -> None:
    for part in {id(part): part for part in _parts(loader)}.values():
        set_epoch = getattr(part, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(number)


@contextlib.contextmanager
def _named(position: int, number: int | None) -> Iterator[None]:
    """Name the batch in errors from inside of the block."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        msg = f"batch {position} of {_pass(number)}: {error}"
        raise kind(msg) from error


def _pass(number: int | None) -> str:
    return "a pass over the loader" if number is None else f"epoch {number}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


def _kind(value: Any, has_rows: bool) -> str:
    """Return in words what all batches have in common of a value."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    shape = ", ".join(["n"] * has_rows + [str(s) for s in value.shape[has_rows:]])
    return f"{str(value.dtype).removeprefix('torch.')} of shape ({shape})"
