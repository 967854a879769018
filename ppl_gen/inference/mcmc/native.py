"""The sampler in C++: all chains of a group advance by one call."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

from ppl_gen.core.compiler.build import build
from ppl_gen.core.compiler.compiled import CompiledLogDensity
from ppl_gen.inference.mcmc.state import State, struct_declaration

__all__ = ["OPTIONS", "NativeEngine"]

# Sums may be taken in another order; NaN and infinity keep their meaning.
OPTIONS = ("-O3", "-fassociative-math", "-fno-signed-zeros")


class NativeEngine:
    """Advances chains by the sampler in C++ on a compiled log density.

    Args:
        density: The compiled log density; its lanes are the chains of a group.
        state: The chains; their number is a multiple of the lanes.
    """

    def __init__(self, density: CompiledLogDensity, state: State) -> None:
        self.group_size = density.lanes
        self._library = _sampler()
        self._state = state
        self._struct = state.struct()
        self._density = density
        groups = state.chains // density.lanes
        self._contexts = [density.context() for _ in range(groups)]

    def advance(self, group: int, steps: int) -> int:
        """Advance a group until one of its chains waits, or for a number of steps.

        Args:
            group: Number of the group.
            steps: At most so many leapfrog steps.

        Returns:
            The number of steps made.
        """
        first = group * self.group_size
        return int(
            self._library.advance(
                ctypes.byref(self._struct),
                first,
                first + self.group_size,
                steps,
                self._density.function,
                self._contexts[group].pointer,
            )
        )

    def begin_search(self, chain: int) -> None:
        """Let a chain look for a step size and go on."""
        self._state.check_room(chain)
        self._library.begin_search(ctypes.byref(self._struct), chain)

    def begin_transition(self, chain: int) -> None:
        """Let a chain go on."""
        self._state.check_room(chain)
        self._library.begin_transition(ctypes.byref(self._struct), chain)


@cache
def _sampler() -> Any:
    text = (Path(__file__).parent / "sampler.cpp").read_text(encoding="utf-8")
    library = build(struct_declaration() + text, *OPTIONS)
    library.advance.restype = ctypes.c_long
    library.advance.argtypes = [
        ctypes.c_void_p,
        *[ctypes.c_long] * 3,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    for function in (library.begin_search, library.begin_transition):
        function.restype = None
        function.argtypes = [ctypes.c_void_p, ctypes.c_long]
    return library
