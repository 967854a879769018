"""What the workers of the benchmark share: one process that samples one model with one engine.

A worker prints one line of JSON and writes the draws of its last run to a file.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from posteriors import POSTERIORS, Data

__all__ = ["Engine", "Run", "Task", "main"]


@dataclass(frozen=True)
class Task:
    """What to sample: a model by name, its data, and the numbers of chains, warm-up and draws."""

    model: str
    data: Data
    chains: int
    warmup: int
    draws: int

    @property
    def sites(self) -> tuple[str, ...]:
        return POSTERIORS[self.model].sites


@dataclass(frozen=True)
class Run:
    """What one run gave.

    Args:
        draws: Draws by site, (chain, draw, *event).
        divergences: Number of divergent transitions after warm-up.
        gradients: Gradient evaluations after warm-up, over all chains.
        gradients_warmup: The same of the warm-up, None where the engine does not tell.
        details: Whatever else the engine tells.
    """

    draws: dict[str, np.ndarray[Any, Any]]
    divergences: int
    gradients: int
    gradients_warmup: int | None
    details: dict[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """An engine with a model in it; what it compiled stays for the next run."""

    def sample(self, seed: int) -> Run:
        """Run all chains."""


class Clock:
    """Measures wall time, and processor time over all threads to see what else the machine did."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Clock:
        self._started = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        wall, processor = self._started
        self.seconds = {
            f"seconds_{self.name}": time.perf_counter() - wall,
            f"processor_seconds_{self.name}": time.process_time() - processor,
        }


def peak_mebibytes() -> float:
    """Return the peak of this process's memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / (2**20 if sys.platform == "darwin" else 2**10))


def main(make: Callable[[Task], Engine], packages: tuple[str, ...]) -> None:
    """Sample as the command line says.

    Args:
        make: Makes the engine; its time counts as cold.
        packages: Distributions whose versions are reported.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=list(POSTERIORS), required=True)
    parser.add_argument("--data", type=Path, required=True, help="an .npz file")
    parser.add_argument("--chains", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--draws", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--again", type=int, default=1, help="warm runs after the cold one")
    parser.add_argument("--count-warmup", action="store_true", help="even if that takes a run")
    parser.add_argument("--out", type=Path, help="an .npz file for the draws of the last run")
    options = parser.parse_args()
    with np.load(options.data) as stored:
        data = dict(stored)
    task = Task(options.model, data, options.chains, options.warmup, options.draws)
    imports = peak_mebibytes()

    with Clock("cold") as cold:
        engine = make(task)
        run = engine.sample(options.seed)
    seconds, cold_details = cold.seconds, run.details
    for turn in range(options.again):
        with Clock("warm") as warm:
            run = engine.sample(options.seed + 1 + turn)
        seconds = {**seconds, **warm.seconds}
    gradients_warmup = run.gradients_warmup
    if options.count_warmup and gradients_warmup is None:
        gradients_warmup = engine.count_warmup(options.seed + 1 + options.again)  # type: ignore[attr-defined]

    shape = (task.chains, task.draws)
    for name in task.sites:
        assert run.draws[name].shape[:2] == shape, f"{name}: {run.draws[name].shape}, not {shape}"
    if options.out:
        np.savez(options.out, **{name: run.draws[name] for name in task.sites})
    result = {
        **seconds,
        "gradients": run.gradients,
        "gradients_warmup": gradients_warmup,
        "divergences": run.divergences,
        "peak_mebibytes": round(peak_mebibytes(), 1),
        "peak_mebibytes_imports": round(imports, 1),
        "details": run.details,
        "details_cold": cold_details,
        "versions": {name: metadata.version(name) for name in packages},
    }
    print(json.dumps(result))
