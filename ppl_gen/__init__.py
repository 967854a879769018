"""Probabilistic programming on Pyro: write a model once, fit it by SVI or MCMC, and compare."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppl_gen.core import Batches, Pair, Posterior, check, fit, load
    from ppl_gen.judge import repair
    from ppl_gen.report import Comparison, compare

__all__ = [
    "Batches",
    "Comparison",
    "Pair",
    "Posterior",
    "check",
    "compare",
    "fit",
    "load",
    "repair",
]

_FOLDERS = ("core", "data", "diagnostics", "inference", "judge", "models", "report")
_HOMES = {"Comparison": "report", "compare": "report", "repair": "judge"}


def __getattr__(name: str) -> Any:
    """Load what is asked for: `ppl-gen --help` needs neither torch nor Pyro."""
    if name in _FOLDERS:
        return importlib.import_module(f"ppl_gen.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'ppl_gen' has no attribute '{name}'")
    home = importlib.import_module(f"ppl_gen.{_HOMES.get(name, 'core')}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_FOLDERS])
