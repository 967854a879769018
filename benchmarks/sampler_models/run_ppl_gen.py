"""Worker: ppl-gen's NUTS with its default engine."""

from __future__ import annotations

import numpy as np
import torch
from pyro_models import MODELS
from worker import Run, Task, main

import ppl_gen as pg
from ppl_gen.inference import NUTS


class PplGen:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.data = {name: torch.as_tensor(value) for name, value in task.data.items()}
        self.method = NUTS(chains=task.chains, warmup=task.warmup, draws=task.draws)

    def sample(self, seed: int) -> Run:
        model = MODELS[self.task.model]
        posterior = pg.fit(model, self.data, self.method, seed=seed, progress=False, device="cpu")
        draws = {name: np.asarray(posterior[name]) for name in self.task.sites}
        steps = int(posterior.sample_stats["n_steps"].sum())
        told = posterior.provenance
        return Run(
            draws,
            int(posterior.sample_stats["diverging"].sum()),
            steps,
            told["gradient_evaluations"] - steps,
            {name: value for name, value in told.items() if name.startswith("seconds")},
        )


if __name__ == "__main__":
    main(PplGen, ("torch", "pyro-ppl", "ppl-gen", "numpy"))
