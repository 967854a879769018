"""Worker: nutpie on a PyMC model, compiled by Numba."""

from __future__ import annotations

import os
import time

import numpy as np
import nutpie
import pymc as pm
from pymc_models import MODELS
from worker import Run, Task, main


class Nutpie:
    def __init__(self, task: Task) -> None:
        self.task = task
        started = time.perf_counter()
        with pm.Model() as model:
            MODELS[task.model](**task.data)
        built = time.perf_counter()
        self.compiled = nutpie.compile_pymc_model(model)
        self.details = {
            "seconds_model": built - started,
            "seconds_compile": time.perf_counter() - built,
        }

    def sample(self, seed: int) -> Run:
        trace = nutpie.sample(
            self.compiled,
            chains=self.task.chains,
            tune=self.task.warmup,
            draws=self.task.draws,
            cores=os.cpu_count(),
            seed=seed,
            progress_bar=False,
        )
        draws = {name: np.asarray(trace.posterior[name]) for name in self.task.sites}
        stats, warmup = trace.sample_stats, trace.warmup_sample_stats
        return Run(
            draws,
            int(stats["diverging"].sum()),
            int(stats["n_steps"].sum()),
            int(warmup["n_steps"].sum()),
            self.details,
        )


if __name__ == "__main__":
    main(Nutpie, ("nutpie", "pymc", "pytensor", "numba", "numpy"))
