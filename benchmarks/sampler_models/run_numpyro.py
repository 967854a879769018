"""Worker: NumPyro, all chains vectorized, float64."""

from __future__ import annotations

import jax
import numpy as np
import numpyro
from numpyro.infer import MCMC, NUTS
from numpyro_models import MODELS
from worker import Run, Task, main


class NumPyro:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.mcmc = self._mcmc()

    def _mcmc(self) -> MCMC:
        return MCMC(
            NUTS(MODELS[self.task.model]),
            num_warmup=self.task.warmup,
            num_samples=self.task.draws,
            num_chains=self.task.chains,
            chain_method="vectorized",
            progress_bar=False,
        )

    def sample(self, seed: int) -> Run:
        key = jax.random.PRNGKey(seed)
        self.mcmc.run(key, extra_fields=("num_steps", "diverging"), **self.task.data)
        draws = {n: np.asarray(v) for n, v in self.mcmc.get_samples(group_by_chain=True).items()}
        fields = self.mcmc.get_extra_fields(group_by_chain=True)
        steps = np.asarray(fields["num_steps"])
        details = {"gradients_in_lockstep": int(steps.max(axis=0).sum())}
        return Run(draws, int(fields["diverging"].sum()), int(steps.sum()), None, details)

    def count_warmup(self, seed: int) -> int:
        """Count the leapfrog steps of the warm-up, which `run` does not tell, in a run apart."""
        # A used object cannot: its kernel would be vectorized twice.
        mcmc, key = self._mcmc(), jax.random.PRNGKey(seed)
        mcmc.warmup(key, collect_warmup=True, extra_fields=("num_steps",), **self.task.data)
        return int(np.asarray(mcmc.get_extra_fields()["num_steps"]).sum())


if __name__ == "__main__":
    numpyro.enable_x64()
    numpyro.set_platform("cpu")
    main(NumPyro, ("numpyro", "jax", "jaxlib", "numpy"))
