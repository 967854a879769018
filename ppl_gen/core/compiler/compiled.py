"""A log density as machine code, compared with the eager one before it is used."""

from __future__ import annotations

import ctypes
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ppl_gen.core.compiler.build import NoCompiler, build
from ppl_gen.core.compiler.emit import emit
from ppl_gen.core.compiler.record import CannotCompile, record
from ppl_gen.core.compiler.rules import is_known, lower
from ppl_gen.core.compiler.schedule import schedule
from ppl_gen.core.compiler.simplify import simplify

if TYPE_CHECKING:
    from ppl_gen.core.log_density import LogDensity

__all__ = ["CannotCompile", "CompiledLogDensity", "NoCompiler", "processors"]

# Beyond this many statements optimising costs more than it gives.
_LARGE = 3000
# Threads are worth their start, 100 us, for work of so many seconds.
_SECONDS_OF_THREADS = 1e-3


class CompiledLogDensity:
    """The value and gradient of a log density for several vectors at once, as machine code.

    Args:
        density: The log density, on the CPU.
        point: Where it is recorded, (dim,).
        lanes: Number of vectors of one call: 1, 2, 4, 8 or 16.

    Raises:
        CannotCompile: If the model's course depends on values of latent sites, an operator has no
            rule, or the compiled density differs from the eager one.
        NoCompiler: If there is no C++ compiler.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from ppl_gen.core import LogDensity
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> density = LogDensity(model, {})
        >>> compiled = CompiledLogDensity(density, torch.zeros(2), lanes=1)
        >>> value, gradient = compiled(torch.tensor([[1.0, 2.0]]))
        >>> gradient.tolist()
        [[-1.0, -2.0]]
    """

    def __init__(self, density: LogDensity, point: torch.Tensor, lanes: int) -> None:
        self.density = density
        self.lanes = lanes
        recording = record(density.log_prob, point.to(density.dtype), is_known)
        program = lower(recording)
        simplify(program)
        source = emit(schedule(program))
        real = "double" if density.dtype == torch.float64 else "float"
        level = "-O2" if len(program.statements) < _LARGE else "-O1"
        library = build(source.text, level, f"-DW={lanes}", f"-DREAL={real}")
        self.function: Any = library.log_density
        self.function.argtypes = [ctypes.c_void_p] * 4
        self.function.restype = None
        self._many: Any = library.log_densities
        self._many.argtypes = [ctypes.c_void_p, ctypes.c_long, *[ctypes.c_void_p] * 3]
        self._many.restype = None
        self._contexts: list[Context] = []
        self._seconds_per_call = math.inf
        number = np.float64 if real == "double" else np.float32
        self._constants = source.constants.astype(number)
        self._tables = source.tables
        self._workspace_bytes = source.workspace * lanes * np.dtype(number).itemsize

    def context(self) -> Context:
        """Return what a call needs besides its arguments; each thread needs one of its own."""
        return Context(self._workspace_bytes, self._constants, self._tables)

    def __call__(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values and gradients.

        Args:
            vectors: Unconstrained vectors, (n, dim).

        Returns:
            Values (n,) and gradients (n, dim), in double precision.
        """
        count, dim = len(vectors), self.density.dim
        calls = -(-count // self.lanes)
        positions = torch.zeros(calls * self.lanes, dim, dtype=torch.float64)
        positions[:count] = vectors.detach()
        values = torch.empty(len(positions), dtype=torch.float64)
        gradients = torch.empty_like(positions)
        starts = [tensor.data_ptr() for tensor in (positions, values, gradients)]
        # Infinite until the first call has told.
        worth = _SECONDS_OF_THREADS < calls * self._seconds_per_call < math.inf
        parts = min(processors(), calls) if worth else 1

        def work(part: int) -> None:
            first, last = (calls * n // parts for n in (part, part + 1))
            skipped = 8 * first * self.lanes
            at = (start + skipped * w for start, w in zip(starts, (dim, 1, dim), strict=True))
            self._many(self._contexts[part].pointer, last - first, *at)

        while len(self._contexts) < parts:
            self._contexts.append(self.context())
        began = time.perf_counter()
        if parts == 1:
            work(0)
        else:
            with ThreadPoolExecutor(parts) as pool:
                list(pool.map(work, range(parts)))
        # The least is what the machine did not disturb.
        spent = parts * (time.perf_counter() - began) / max(calls, 1)
        self._seconds_per_call = min(self._seconds_per_call, spent)
        return values[:count], gradients[:count]

    def check(self, points: torch.Tensor) -> None:
        """Compare value and gradient with the eager ones.

        Args:
            points: Unconstrained vectors, (n, dim), at which the density is finite.

        Raises:
            CannotCompile: If they differ by more than rounding.
        """
        values, gradients = self(points)
        for point, value, gradient in zip(points, values, gradients, strict=True):
            leaf = point.to(self.density.dtype).clone().requires_grad_()
            expected = self.density.log_prob(leaf)
            (slope,) = torch.autograd.grad(expected, leaf)
            tolerance = 1e-6 if self.density.dtype == torch.float64 else 1e-2
            for what, got, want in (
                ("value", value, expected.detach().double()),
                ("gradient", gradient, slope.double()),
            ):
                finite = torch.isfinite(want)
                size = want[finite].abs().max() if bool(finite.any()) else torch.tensor(0.0)
                error = (got - want)[finite].abs().max() if bool(finite.any()) else size
                if not bool(error <= tolerance * (1 + size)):
                    msg = (
                        f"the compiled {what} differs from the eager one by {float(error):.3g} "
                        f"(size {float(size):.3g})."
                    )
                    raise CannotCompile(msg)


class Context:
    """Workspace, constants and tables of a compiled log density.

    Args:
        workspace_bytes: Size of the workspace.
        constants: Floating-point constants.
        tables: Addresses of gathers and scatters.
    """

    def __init__(self, workspace_bytes: int, constants: np.ndarray, tables: np.ndarray) -> None:
        self._memory = np.zeros(workspace_bytes + 64, dtype=np.uint8)
        self._held = (constants, tables)
        aligned = -(-self._memory.ctypes.data // 64) * 64
        self._pointers = np.array([aligned, constants.ctypes.data, tables.ctypes.data], np.uint64)

    @property
    def pointer(self) -> int:
        """Address of the context."""
        return int(self._pointers.ctypes.data)


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
