"""Worker: NumPyro as its documentation uses it, all chains vectorized, float64."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
import numpyro
from numpyro.infer import MCMC, NUTS
from numpyro_models import MODELS
from worker import Run, Task, main


def mcmc_of(task: Task) -> MCMC:
    return MCMC(
        NUTS(MODELS[task.model]),
        num_warmup=task.warmup,
        num_samples=task.draws,
        num_chains=task.chains,
        chain_method="vectorized",
        progress_bar=False,
    )


def as_run(draws: Mapping[str, jax.Array], fields: Mapping[str, jax.Array]) -> Run:
    steps = np.asarray(fields["num_steps"])
    return Run(
        {name: np.asarray(value) for name, value in draws.items()},
        int(fields["diverging"].sum()),
        int(steps.sum()),
        None,
        # Each chain waits for the longest tree of all.
        {"steps_in_lockstep": int(steps.max(axis=0).sum())},
    )


class NumPyro:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.mcmc = mcmc_of(task)

    def sample(self, seed: int) -> Run:
        key = jax.random.PRNGKey(seed)
        self.mcmc.run(key, extra_fields=("num_steps", "diverging"), **self.task.data)
        fields = self.mcmc.get_extra_fields(group_by_chain=True)
        return as_run(self.mcmc.get_samples(group_by_chain=True), fields)

    def count_warmup(self, seed: int) -> int:
        """Count the leapfrog steps of the warm-up, which `run` does not tell, in a run apart."""
        # A used object cannot: its kernel would be vectorized twice.
        mcmc, key = mcmc_of(self.task), jax.random.PRNGKey(seed)
        mcmc.warmup(key, collect_warmup=True, extra_fields=("num_steps",), **self.task.data)
        return int(np.asarray(mcmc.get_extra_fields()["num_steps"]).sum())


if __name__ == "__main__":
    numpyro.enable_x64()
    numpyro.set_platform("cpu")
    main(NumPyro, ("numpyro", "jax", "jaxlib", "numpy"))
