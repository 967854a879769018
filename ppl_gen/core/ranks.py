"""The processes that torchrun starts for one run, and what they exchange."""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load, save

from ppl_gen.core.scope import seeded
from ppl_gen.core.watch import RankError, Watch

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["RankError", "Ranks", "ranks"]

# How long ranks may take to find each other: one may have to load more than the others.
_MEETING = timedelta(minutes=30)
# Chains of one rank may take hours longer than those of another; that all are alive is watched.
_PATIENCE = timedelta(days=365)
_SLICE = timedelta(seconds=1)


class Ranks:
    """The ranks of a run: alone, all of it costs nothing and changes nothing.

    What one rank calls, all have to call, in the same order, with tensors of the same shapes.

    Args:
        index: Number of this rank, from 0.
        size: Number of ranks.
        group: The process group for tensors on the CPU; None: the default one.
    """

    def __init__(
        self,
        index: int = 0,
        size: int = 1,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.index = index
        self.size = size
        self._group = group
        self._store: Store | None = None
        self._watch: Watch | None = None
        self._runs = 0
        self._failed = False
        self._works: list[Any] = []

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.index == 0

    def share(self, count: int) -> range:
        """Return which of a number of things are this rank's: a block of them.

        Args:
            count: Number of things.

        Example:
            >>> [list(Ranks(index, 2).share(5)) for index in range(2)]
            [[0, 1], [2, 3, 4]]
        """
        return range(self.index * count // self.size, (self.index + 1) * count // self.size)

    def own_device(self, device: torch.device) -> torch.device:
        """Return this rank's GPU of a machine, where "cuda" does not say which.

        Args:
            device: The device that was asked for.
        """
        if self.size == 1 or device.type != "cuda" or device.index is not None:
            return device
        place = int(os.environ.get("LOCAL_RANK", self.index))
        return torch.device("cuda", place % torch.cuda.device_count())

    def own_seed(self, seed: int, *numbers: int) -> int:
        """Return a seed for random numbers that no other rank shares; alone, that of the run.

        Args:
            seed: The seed of the run.
            *numbers: What else they depend on, such as the number of a step.
        """
        if self.size == 1:
            return seed
        sequence = np.random.SeedSequence((seed, self.index, *numbers))
        return int(sequence.generate_state(1)[0])

    def check(self, *, waiting: bool = False) -> None:
        """Make sure that all ranks are alive; they are told that this one is.

        Args:
            waiting: Whether this one waits for the others.

        Raises:
            RankError: If one has died, failed or got stuck.
        """
        if self._watch is not None:
            self._watch.waiting = waiting
            self._watch.check()

    def average_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by their means over the ranks, bit for bit the same on all of them.

        Args:
            tensors: Floating-point tensors; those of one dtype and device travel together.
        """
        if self.size == 1:
            return
        for flat, views in _flat(tensors):
            self._wait(dist.all_reduce(flat, group=self._group_of(flat), async_op=True), flat)
            flat /= self.size
            _copy_back(flat, views)

    def broadcast_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by those of rank 0.

        Args:
            tensors: Tensors of any dtype.
        """
        if self.size == 1:
            return
        for flat, views in _flat(tensors):
            self._wait(dist.broadcast(flat, 0, group=self._group_of(flat), async_op=True), flat)
            _copy_back(flat, views)

    def gather(self, content: bytes, *, everywhere: bool = True) -> list[bytes]:
        """Return what each rank has given, in the order of the ranks.

        Args:
            content: What this rank gives, of any length.
            everywhere: Whether all ranks get it; else all but rank 0 get nothing.
        """
        if self.size == 1:
            return [content]
        # Inside of a fit on a GPU, tensors are made there unless they say otherwise.
        sizes = [torch.zeros(1, dtype=torch.int64, device="cpu") for _ in range(self.size)]
        self._all_gather(sizes, torch.tensor([len(content)], device="cpu"))
        counts = [int(size) for size in sizes]
        own = torch.zeros(max(1, *counts), dtype=torch.uint8, device="cpu")
        own[: len(content)] = _bytes(content)
        parts = [torch.empty_like(own) for _ in counts] if everywhere or self.first else []
        if everywhere:
            self._all_gather(parts, own)
        else:
            work = dist.gather(
                own, parts if self.first else None, 0, group=self._group, async_op=True
            )
            self._wait(work, own)
        return [part[:count].numpy().tobytes() for part, count in zip(parts, counts, strict=False)]

    def joined(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of all ranks below each other, on the CPU.

        Args:
            rows: Rows of this rank, (n, ...), of which each may have another number.
        """
        if self.size == 1:
            return rows
        own = save({"rows": rows.detach().cpu().contiguous()})
        return torch.cat([load(content)["rows"] for content in self.gather(own)])

    def from_first(self, value: Any) -> Any:
        """Return the value that rank 0 gives.

        Args:
            value: What JSON can hold; of other ranks it is not looked at.
        """
        if self.size == 1:
            return value
        text = json.dumps(value).encode() if self.first else b""
        length = torch.tensor([len(text)], device="cpu")
        self.broadcast_([length])
        content = _bytes(text if self.first else bytes(int(length)))
        self.broadcast_([content])
        return json.loads(content.numpy().tobytes())

    def barrier(self) -> None:
        """Wait until all ranks have come here."""
        self.gather(b"")

    def differing(self, tensors: Mapping[str, torch.Tensor]) -> str | None:
        """Return the name of a tensor that is not the same on all ranks; None: all are.

        Their sums are compared, bit for bit, so that a few numbers travel for each.

        Args:
            tensors: Tensors by name.
        """
        if self.size == 1 or not tensors:
            return None
        sums = torch.stack([value.detach().double().sum().cpu() for value in tensors.values()])
        all_sums = self.joined(sums.view(torch.int64).unsqueeze(0))
        same = (all_sums == all_sums[0]).all(dim=0)
        return next((name for name, equal in zip(tensors, same, strict=True) if not equal), None)

    def own_noise(self, seed: int, *numbers: int) -> AbstractContextManager[None]:
        """Return a block whose random numbers no other rank shares; alone it changes nothing.

        Args:
            seed: The seed of the run.
            *numbers: What else they depend on.
        """
        if self.size == 1:
            return contextlib.nullcontext()
        return seeded(self.own_seed(seed, *numbers))

    @contextlib.contextmanager
    def run(self, remedy: str) -> Iterator[None]:
        """Watch over the ranks inside the block, which all of them enter together.

        Warnings of other ranks than the first are not shown: they are the same.

        Args:
            remedy: What the user is to do when a rank has ended the run.

        Raises:
            RankError: If a rank has died, failed or got stuck.
        """
        if self.size == 1 or self._watch is not None:
            yield
            return
        if self._store is None:
            # One that processes have used which torchrun has ended is used by those that follow.
            name = self.from_first(uuid.uuid4().hex)
            base = dist.distributed_c10d._get_default_store().clone()
            self._store = _part(base, f"ppl_gen/{name}")
        self._runs += 1
        store = _part(self._store, str(self._runs))
        self._watch = watch = Watch(store, self.index, self.size, remedy)
        ended: BaseException | None = None
        try:
            with _told_to_end(watch), warnings.catch_warnings():
                if not self.first:
                    warnings.simplefilter("ignore")
                watch.start()
                if self._failed:
                    # What was under way when the last run failed must not meet what comes now.
                    self._group, self._failed = _own_group(), False
                yield
                self.barrier()  # so that all ranks know whether it failed
        except BaseException as error:
            ended, self._failed = error, True
            # What is still under way on a GPU would not come to its end.
            atexit.unregister(_leave)
            raise
        finally:
            watch.end(ended)
            self._watch = None

    def _all_gather(self, parts: list[torch.Tensor], own: torch.Tensor) -> None:
        self._wait(dist.all_gather(parts, own, group=self._group, async_op=True), own)

    def _group_of(self, tensor: torch.Tensor) -> dist.ProcessGroup | None:
        return self._group if tensor.device.type == "cpu" else None

    def _wait(self, work: Any, tensor: torch.Tensor) -> None:
        """Wait for the other ranks, as long as they are alive."""
        if tensor.device.type != "cpu":
            work.wait()  # for the GPU's queue only
            self.check()
            return
        # A thread of Gloo that lets go of tensors needs Python's lock, and where the interpreter
        # ends meanwhile it aborts the process. So this holds the last work, and what a failed run
        # has left.
        self._works = [other for other in self._works if not other.is_completed()] + [work]
        while True:
            self.check(waiting=True)
            try:
                work.wait(_SLICE)
                self.check()
                return
            except RuntimeError as error:
                if not work.is_completed():
                    continue
                found = None if self._watch is None else self._watch.blame(str(error))
                if found is None:
                    raise
                raise found from error


_alone = Ranks()
_here: Ranks | None = None


def ranks() -> Ranks:
    """Return the ranks that this process is one of.

    Under torchrun, or where `torch.distributed` was initialised, they are the processes of its
    group, which is made when it is needed first; else the process is alone.

    Example:
        >>> ranks().size
        1
    """
    global _here
    made = dist.is_available() and dist.is_initialized()
    if not made and not _started_by_torchrun():
        return _alone
    if not made:
        _initialise()
    if not made or _here is None:
        _here = _of_group(own=not made)
    return _here


def _started_by_torchrun() -> bool:
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(os.environ.get(name) for name in names) or not dist.is_available():
        return False
    # Processes that a rank has started inherit its environment, and are no ranks.
    return int(os.environ["WORLD_SIZE"]) > 1 and multiprocessing.parent_process() is None


def _initialise() -> None:
    found = dist.rendezvous("env://", timeout=_MEETING)  # type: ignore[attr-defined]
    store, index, size = next(found)
    store = _unused(store, index, size)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _on_loopback():
        dist.init_process_group(
            backend, store=store, rank=index, world_size=size, timeout=_PATIENCE
        )
    atexit.register(_leave)


def _unused(store: Store, index: int, size: int) -> Store:
    """Return a part of the store that nobody has used before.

    Processes that torchrun starts again find in it what those before them have left, such as their
    addresses (https://github.com/pytorch/pytorch/issues/135712). So each asks rank 0 under a name
    that nobody else has.

    Raises:
        RankError: If not all ranks come.
    """
    own, limit = uuid.uuid4().hex, time.monotonic() + _MEETING.total_seconds()
    if index > 0:
        store.set(f"asks/{index}", own)
        while not store.check([f"answer/{own}"]):
            _pause(limit, "rank 0")
        name = store.get(f"answer/{own}").decode()
        store.add(f"{name}/here", 1)
        return _part(store, name)
    while store.add(f"{own}/here", 0) < size - 1:
        asking = [f"asks/{rank}" for rank in range(1, size) if store.check([f"asks/{rank}"])]
        for asker in store.multi_get(asking):
            store.set(f"answer/{asker.decode()}", own)
        _pause(limit, "one of the others")
    return _part(store, own)


def _part(store: Store, name: str) -> Store:
    """Return a part of a store, whose keys are apart from all others."""
    part: Store = dist.PrefixStore(name, store)  # type: ignore[attr-defined]
    return part


def _pause(limit: float, missing: str) -> None:
    if time.monotonic() > limit:
        minutes = _MEETING.total_seconds() / 60
        msg = f"{missing} has not come within {minutes:.0f} minutes. Start all processes again."
        raise RankError(None, msg)
    time.sleep(0.01)


def _of_group(*, own: bool) -> Ranks:
    # That of the user may know no tensors on the CPU, or have no patience.
    group = None if own or dist.get_world_size() == 1 else _own_group()
    return Ranks(dist.get_rank(), dist.get_world_size(), group)


def _own_group() -> dist.ProcessGroup:
    with _on_loopback():
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(group, dist.ProcessGroup)
    return group


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Gloo open no port to the network where all ranks are on this machine."""
    name = "GLOO_SOCKET_IFNAME"
    here = os.environ.get("LOCAL_WORLD_SIZE", "") == os.environ.get("WORLD_SIZE")
    loopback = next((n for _, n in socket.if_nameindex() if n in ("lo", "lo0")), None)
    if not here or name in os.environ or loopback is None:
        yield
        return
    os.environ[name] = loopback
    try:
        yield
    finally:
        del os.environ[name]


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def _told_to_end(watch: Watch) -> Iterator[None]:
    """Say why, where torchrun tells this process to end because another one has."""

    def stop(number: int, frame: FrameType | None) -> None:
        error = watch.blame("torchrun or the system has told the process to end (SIGTERM)")
        if error is not None:
            raise error

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _bytes(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())


def _flat(
    tensors: Sequence[torch.Tensor],
) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Return one flat copy of the tensors of each dtype and device, with those tensors."""
    kinds: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
    return [(torch.cat([t.reshape(-1) for t in some]), some) for some in kinds.values()]


def _copy_back(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
