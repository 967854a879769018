"""The compiled sampler."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core.compiler.build import build
from ppl_gen.distributions.sampling.plan import CannotPlan, Plan, make_plan
from ppl_gen.distributions.sampling.record import Recorded, record
from ppl_gen.distributions.sampling.schedule import (
    Schedule,
    make_schedule,
    tables_of_context,
)
from ppl_gen.distributions.sampling.stream import make_stream

if TYPE_CHECKING:
    from ppl_gen.distributions.autoregressive import AutoregressiveNetwork

__all__ = ["NativeSampler"]

Array = NDArray[Any]

# NaN is what is not given, and has to stay one.
_OPTIONS = ("-O3", "-fno-trapping-math")
_LIKELIHOODS = ("bernoulli", "categorical", "logistic_mixture")
_LANES = (1, 16, 64)


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
        self.schedule = self._scheduled()
        self.dtype = self.schedule.weights.dtype

    def _scheduled(self) -> Schedule:
        if len(self.recorded.about.event_shape) == 1:
            try:
                return make_stream(self.recorded)
            except CannotPlan:  # it is no sequence
                pass
        self._plan = make_plan(self.recorded)
        return make_schedule(self.recorded, self._plan)

    def refresh(self) -> None:
        """Take the weights of the network as they are now."""
        self.recorded = Recorded(self.recorded.graph, self.recorded.about)
        before = self._plan
        if before is not None:
            plan = make_plan(self.recorded)
            if np.array_equal(plan.times, before.times):
                self.schedule = self.schedule.filled(self.recorded, plan)
                return
        self.schedule = self._scheduled()

    def sample(
        self,
        uniforms: Array,
        context: torch.Tensor | None = None,
        given: Array | None = None,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        threads: int = 1,
    ) -> Array:
        """Return the draws that uniform numbers stand for.

        Args:
            uniforms: In the order of sampling, `(row, element)`.
            context: What comes with each row, `(row, *context_shape)`.
            given: Elements that are known, NaN where they are not, `(row, element)`.
            temperature: What logits and scales are divided and multiplied by.
            top_p: Share of the probability of the categories that are kept, the likeliest ones.
            threads: Rows are shared out among so many.

        Returns:
            Draws in the order of sampling, `(row, element)`.
        """
        rows = len(uniforms)
        if given is None:
            given = np.full_like(uniforms, np.nan)
        tables = tables_of_context(self.recorded, self.schedule, context, self.dtype)
        share = -(-rows // threads)
        parts = [slice(start, min(start + share, rows)) for start in range(0, rows, share)]
        runs = [_Run(self, uniforms[p], tables[:, p], given[p], temperature, top_p) for p in parts]
        with ThreadPoolExecutor(len(runs)) as pool:
            list(pool.map(lambda run: run.advance(0, uniforms.shape[1]), runs))
        return np.concatenate([run.result() for run in runs])


class _Run:
    """Some rows that are sampled together."""

    def __init__(
        self,
        sampler: NativeSampler,
        uniforms: Array,
        tables: Array,
        given: Array,
        temperature: float,
        top_p: float,
    ) -> None:
        schedule, elements = sampler.schedule, sampler.elements
        self.rows = len(uniforms)
        lanes = next((n for n in _LANES if n >= self.rows), _LANES[-1])
        self.schedule = schedule
        self.library = _library("double" if sampler.dtype == np.float64 else "float", lanes)
        blocks = -(-self.rows // lanes)
        self.calls = []
        self.kept: list[Any] = []
        for block in range(blocks):
            chosen = np.minimum(np.arange(block * lanes, (block + 1) * lanes), self.rows - 1)
            arrays = {
                "code": schedule.code,
                "weights": schedule.weights,
                "indices": schedule.indices,
                "numbers": schedule.numbers,
                "of_rows": np.ascontiguousarray(tables[:, chosen] if tables.size else tables),
                "memory": np.zeros(schedule.places * lanes, dtype=sampler.dtype),
                "room": np.zeros(
                    2 * schedule.places * lanes + 3 * (elements.num_outputs + elements.categories),
                    dtype=sampler.dtype,
                ),
                "uniforms": np.ascontiguousarray(uniforms[chosen].T, dtype=sampler.dtype),
                "given": np.ascontiguousarray(given[chosen].T, dtype=sampler.dtype),
                "drawn": np.zeros((uniforms.shape[1], lanes), dtype=sampler.dtype),
            }
            self.kept.append(arrays)
            self.calls.append(
                _Call(
                    *(array.ctypes.data for array in arrays.values()),
                    _LIKELIHOODS.index(elements.likelihood),
                    elements.categories,
                    elements.components,
                    temperature,
                    top_p,
                )
            )

    def advance(self, start: int, stop: int) -> None:
        """Draw some elements of all rows."""
        starts = self.schedule.starts
        first, last = 0, len(self.schedule.code)
        steps = start, stop
        if len(starts):
            first, last = int(starts[start]), int(starts[stop])
            steps = 0, 1
        for call in self.calls:
            self.library.run(ctypes.byref(call), first, last, *steps)

    def result(self) -> Array:
        """Return what was drawn, (row, element)."""
        return np.concatenate([arrays["drawn"].T for arrays in self.kept])[: self.rows]


@cache
def _library(real: str, lanes: int) -> ctypes.CDLL:
    source = (Path(__file__).parent / "sampler.cpp").read_text(encoding="utf-8")
    library = build(source, *_OPTIONS, f"-DREAL={real}", f"-DLANES={lanes}")
    library.run.argtypes = [ctypes.c_void_p, *(ctypes.c_longlong,) * 4]
    library.run.restype = None
    return library
