"""Work spread over processes that are copies of this one.

Fits change what is global to a process (random state, default dtype, Pyro's handlers), so that
they cannot share one as threads. Copies made by fork need nothing pickled: a pair may be a function
inside of a function. They compute in one thread each, as threads do not survive a fork; so does
the work that is done in this process, for the same floating-point sums.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import signal
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, TypeAlias

import torch

from ppl_gen.core.compiler.compiled import processors
from ppl_gen.core.errors import check_count

__all__ = ["Work", "spread", "worker_count"]

# From the number of a task to a JSON value.
Work: TypeAlias = Callable[[int], Any]

# Each takes a few hundred MB.
_MOST = 16
_SET_DEATH_SIGNAL = 1  # of prctl


def worker_count(asked: int | None, tasks: int) -> int:
    """Return how many processes to spread tasks over: 1 where they cannot be forked.

    Args:
        asked: How many the user wants; None: as many as there are processors, at most 16.
        tasks: Number of tasks.
    """
    if asked is not None:
        check_count("workers", asked)
    obstacle = _obstacle()
    if obstacle is None:
        return max(1, min(tasks, asked or min(processors(), _MOST)))
    if asked is not None and asked > 1:
        warnings.warn(
            f"workers: the fits run one after the other in this process, because {obstacle}.",
            RuntimeWarning,
            stacklevel=3,
        )
    return 1


def _obstacle() -> str | None:
    """Return why this process cannot be copied, if so."""
    if sys.platform != "linux":
        return "its copies are safe on Linux only"
    if torch.cuda.is_available():
        return "a copy of it could not use the GPU; CUDA_VISIBLE_DEVICES= hides that"
    if multiprocessing.current_process().daemon:
        return "it is a copy itself"
    return None


@contextmanager
def spread(work: Work, tasks: Sequence[int], workers: int) -> Iterator[Iterator[Any]]:
    """Give an iterator over what the tasks return, in the order in which they are done.

    Processes that are still at work at the end of the block are ended.

    Args:
        work: What is done; what it returns is a JSON value.
        tasks: Numbers of the tasks, begun in this order.
        workers: Number of processes; 1: this process does the work.

    Raises:
        RuntimeError: While iterating, if a process has died or failed, with its task.
    """
    done = _spread(work, tasks, workers) if workers > 1 else _alone(work, tasks)
    with closing(done):
        yield done


def _alone(work: Work, tasks: Sequence[int]) -> Generator[Any, None, None]:
    threads = torch.get_num_threads()
    for task in tasks:
        torch.set_num_threads(1)
        try:
            result = work(task)
        finally:
            torch.set_num_threads(threads)
        yield result


@dataclass
class _Worker:
    """A process, and the task that it is at."""

    process: ForkProcess
    task: int


def _spread(work: Work, tasks: Sequence[int], workers: int) -> Generator[Any, None, None]:
    pending = deque(tasks)
    crew: dict[Connection, _Worker] = {}
    try:
        for _ in range(min(workers, len(tasks))):
            connection, process = _start(work, list(crew))
            crew[connection] = _Worker(process, pending[0])
            _send(connection, pending.popleft())
        while crew:
            for connection in _ready(crew):
                worker = crew[connection]
                answer = _answer(connection, worker)
                if pending:
                    worker.task = pending[0]
                    _send(connection, pending.popleft())
                else:
                    crew.pop(connection)
                    connection.close()
                    worker.process.join()
                yield answer
    finally:
        for worker in crew.values():
            worker.process.terminate()
        for connection, worker in crew.items():
            worker.process.join()
            connection.close()


def _ready(crew: dict[Connection, _Worker]) -> list[Connection]:
    """Wait for processes that have answered or died."""
    ready = set(wait(list(crew)))
    return [connection for connection in crew if connection in ready]


def _start(work: Work, others: list[Connection]) -> tuple[Connection, ForkProcess]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(work, theirs, [*others, ours]), daemon=True, name="calibration"
    )
    with warnings.catch_warnings():
        # From Python 3.12 on: of threads, which are not used in the copy.
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        process.start()
    theirs.close()
    return ours, process


def _send(connection: Connection, task: int) -> None:
    try:
        connection.send_bytes(json.dumps(task).encode())
    except BrokenPipeError:  # it has died: to be told when its answer is asked for
        return


def _answer(connection: Connection, worker: _Worker) -> Any:
    """Return what a process has answered.

    Raises:
        RuntimeError: If it has died, or the task failed.
        KeyboardInterrupt: If the task was interrupted.
    """
    try:
        answer = json.loads(connection.recv_bytes())
    except (EOFError, ConnectionError) as error:
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = " It may have run out of memory: give fewer workers." if code == -9 else ""
        msg = f"the process at work on replicate {worker.task} has died of {how}.{hint}"
        raise RuntimeError(msg) from error
    if "interrupted" in answer:
        raise KeyboardInterrupt
    if "error" in answer:
        failure = RuntimeError(f"replicate {worker.task} failed: {answer['error']}")
        failure.add_note(answer["trace"])
        raise failure
    return answer["result"]


def _serve(work: Work, connection: Connection, others: list[Connection]) -> None:
    """Do the tasks that come; this is what a copy of the process runs."""
    # Ctrl-C reaches all processes of a terminal: the first one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Should the first one be killed, so are its copies, which hold its lock on the file as well.
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    for other in others:
        other.close()
    torch.set_num_threads(1)
    while True:
        try:
            task = json.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = {"result": work(task)}
        except KeyboardInterrupt:  # of a method that has taken one itself
            answer = {"interrupted": True}
        except Exception as error:
            kind = type(error).__name__
            answer = {"error": f"{kind}: {error}", "trace": traceback.format_exc()}
        connection.send_bytes(json.dumps(answer).encode())
