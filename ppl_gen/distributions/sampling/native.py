"""The compiled sampler."""

from __future__ import annotations

import copy
import ctypes
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core.compiler.build import build
from ppl_gen.distributions.sampling.operators import CannotPlan
from ppl_gen.distributions.sampling.plan import Plan, make_plan
from ppl_gen.distributions.sampling.program import ALIGNED, Program, tables_of_context
from ppl_gen.distributions.sampling.record import Recorded, record
from ppl_gen.distributions.sampling.schedule import make_schedule
from ppl_gen.distributions.sampling.stream import make_stream

if TYPE_CHECKING:
    from ppl_gen.distributions.autoregressive import AutoregressiveNetwork

__all__ = ["NativeSampler"]

Array = NDArray[Any]

# NaN is what is not given, and has to stay one.
_OPTIONS = ("-O3", "-fno-trapping-math")
_LIKELIHOODS = ("bernoulli", "categorical", "logistic_mixture")
# Rows at once, and what a step costs, in steps of one row: measured on networks of 64 features, of
# which 32 and 64 rows at once are no faster for each row.
_COSTS = {1: 1.0, 16: 6.0}
# How long C++ runs before it looks whether it is to stop, and how often progress is told.
_SECONDS, _TELL_SECONDS = 0.1, 0.25


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "code", "weights", "indices", "numbers", "of_rows", "memory", "room", "uniforms",
            "given", "drawn",
        )),
        *((name, ctypes.c_longlong) for name in ("likelihood", "categories", "components")),
        ("temperature", ctypes.c_double),
        ("top_p", ctypes.c_double),
    ]  # fmt: skip


class NativeSampler:
    """Samples from a network without computing anything twice.

    Args:
        network: The network, on the CPU, in evaluation mode; its weights are taken as they are.

    Raises:
        CannotPlan: If an operator of the network is not followed.
        NoCompiler: If there is no C++ compiler.
        ValueError: If the network is not autoregressive.
    """

    def __init__(self, network: AutoregressiveNetwork) -> None:
        self.elements = network.elements
        self.recorded = record(network)
        self._plan: Plan | None = None
        self.program = self._made()
        self.dtype = np.dtype(self.recorded.about.dtype)
        self._packed: dict[tuple[int, ...], Array] = {}
        # Whether its draws have been found to be those of the network.
        self.is_checked = False

    def _made(self) -> Program:
        if len(self.recorded.about.event_shape) == 1:
            try:
                return make_stream(self.recorded)
            except CannotPlan:  # it is no sequence
                pass
        self._plan = make_plan(self.recorded)
        return make_schedule(self.recorded, self._plan)

    def refreshed(self) -> NativeSampler:
        """Return one of the weights of the network as they are now."""
        new = copy.copy(self)
        new._packed = {}
        new.recorded = Recorded(self.recorded.graph, self.recorded.about)
        if self._plan is not None:
            plan = make_plan(new.recorded)
            if plan.differs_in_weights_alone(self._plan):
                new.program = self.program.filled(new.recorded, plan)
                return new
            new.is_checked = False  # it is another plan
        new.program = new._made()
        return new

    def sample(
        self,
        uniforms: Array,
        context: torch.Tensor | None = None,
        given: Array | None = None,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        threads: int = 1,
        progress: Callable[[int, int], object] | None = None,
    ) -> Array:
        """Return the draws that uniform numbers stand for.

        Args:
            uniforms: In the order of sampling, `(row, element)`.
            context: What comes with each row, `(row, *context_shape)`.
            given: Elements that are known, NaN where they are not, `(row, element)`.
            temperature: What logits and scales are divided and multiplied by.
            top_p: Share of the probability of the categories that are kept, the likeliest ones.
            threads: Rows are shared out among so many.
            progress: Is told now and then how many elements are drawn, and of how many.

        Returns:
            Draws in the order of sampling, `(row, element)`.
        """
        rows, elements = uniforms.shape
        drawn = np.empty((rows, elements), dtype=self.dtype)
        blocks = [
            _Block(
                self,
                lanes,
                uniforms[part],
                None if context is None else context[part],
                None if given is None else given[part],
                drawn[part],
                temperature,
                top_p,
            )
            for lanes, part in _shares(rows, threads)
        ]
        _run(blocks, threads, rows * elements, progress)
        return drawn

    def packed(self, widths: tuple[int, ...]) -> Array:
        """Return weights and biases in panels of such widths."""
        if widths not in self._packed:
            found = self.program.packed(widths, self.dtype)
            # Registers are read the fastest where they are aligned.
            whole = np.empty(len(found) + ALIGNED, dtype=self.dtype)
            skipped = -whole.ctypes.data % (ALIGNED * self.dtype.itemsize) // self.dtype.itemsize
            whole[skipped : skipped + len(found)] = found
            self._packed[widths] = whole[skipped : skipped + len(found)]
        return self._packed[widths]


def _shares(rows: int, threads: int) -> list[tuple[int, slice]]:
    """Return lanes and rows that are sampled together, for each thread one after the other."""
    found = []
    share = -(-rows // threads)
    for first in range(0, rows, share):
        start, stop = first, min(first + share, rows)
        while start < stop:
            left = stop - start
            lanes = min(_COSTS, key=lambda n: _COSTS[n] / min(n, left))
            found.append((lanes, slice(start, min(start + lanes, stop))))
            start += lanes
    return found


class _Block:
    """Some rows that are sampled together, one in each lane of registers."""

    def __init__(
        self,
        sampler: NativeSampler,
        lanes: int,
        uniforms: Array,
        context: torch.Tensor | None,
        given: Array | None,
        drawn: Array,
        temperature: float,
        top_p: float,
    ) -> None:
        self.sampler, self.lanes = sampler, lanes
        self.uniforms, self.context, self.given = uniforms, context, given
        self.drawn = drawn
        self.options = temperature, top_p
        # Of the elements of all rows.
        self.done = 0

    def run(self, stopped: threading.Event) -> None:
        """Draw all elements of the rows, unless it is stopped."""
        program, lanes, dtype = self.sampler.program, self.lanes, self.sampler.dtype
        elements = self.sampler.elements
        library = _library("double" if dtype == np.float64 else "float", lanes)
        rows, count = self.uniforms.shape
        code, tables = tables_of_context(self.sampler.recorded, program, self.context, dtype)
        # Lanes that are left over do what the last row does.
        chosen = np.minimum(np.arange(lanes), rows - 1)

        def by_lane(x: Array) -> Array:
            return np.ascontiguousarray(x[chosen].T, dtype=dtype)

        room = max(2 * program.longest, elements.num_outputs + elements.categories)
        arrays = [
            code,
            self.sampler.packed(library.widths),
            program.indices,
            program.numbers,
            np.ascontiguousarray(tables[:, chosen] if tables.size else tables),
            np.zeros(program.places * lanes, dtype=dtype),
            np.zeros(room * lanes + 3 * (elements.num_outputs + elements.categories), dtype=dtype),
            by_lane(self.uniforms),
            None if self.given is None else by_lane(self.given),
            np.zeros((count, lanes), dtype=dtype),
        ]
        call = _Call(
            *(None if array is None else array.ctypes.data for array in arrays),
            _LIKELIHOODS.index(elements.likelihood),
            elements.categories,
            elements.components,
            *self.options,
        )
        start, size = 0, 1
        while start < count and not stopped.is_set():
            stop = min(start + size, count)
            before = time.monotonic()
            library.run(ctypes.byref(call), *program.between(start, stop))
            size = size * 2 if time.monotonic() - before < _SECONDS / 2 else size
            start = stop
            self.done = start * rows
        drawn = arrays[-1]
        assert drawn is not None
        self.drawn[:] = drawn.T[:rows]


def _run(
    blocks: list[_Block],
    threads: int,
    total: int,
    progress: Callable[[int, int], object] | None,
) -> None:
    """Run blocks on some threads, so that an interrupt stops them soon."""
    stopped = threading.Event()
    waiting = iter(blocks)
    lock = threading.Lock()

    def work() -> None:
        while not stopped.is_set():
            with lock:
                block = next(waiting, None)
            if block is None:
                return
            block.run(stopped)

    with ThreadPoolExecutor(threads) as pool:
        workers = [pool.submit(work) for _ in range(min(threads, len(blocks)))]
        try:
            while wait(workers, timeout=_TELL_SECONDS).not_done:
                done = sum(block.done for block in blocks)
                if progress is not None and done < total:
                    progress(done, total)
        finally:
            stopped.set()
    for worker in workers:
        worker.result()
    if progress is not None:
        progress(total, total)


class _Library:
    """Compiled code for a kind of numbers and a number of lanes.

    Args:
        real: "float" or "double".
        lanes: Number of rows at once.
    """

    def __init__(self, real: str, lanes: int) -> None:
        source = (Path(__file__).parent / "sampler.cpp").read_text(encoding="utf-8")
        library = build(source, *_OPTIONS, f"-DREAL={real}", f"-DLANES={lanes}")
        self.run = library.run
        self.run.argtypes = [ctypes.c_void_p, *(ctypes.c_longlong,) * 4]
        self.run.restype = None
        widths = (ctypes.c_longlong * 8).in_dll(library, "panel_widths")
        self.widths = tuple(itertools.takewhile(lambda width: width > 0, widths))


_library = cache(_Library)
