"""Worker: NumPyro with the whole run under `jax.jit`.

`MCMC.run` compiles anew for each key; so this is what NumPyro takes once it is compiled.
"""

from __future__ import annotations

import jax
import numpyro
from run_numpyro import NumPyro, as_run, mcmc_of
from worker import Run, Task, main


class NumPyroJit(NumPyro):
    def __init__(self, task: Task) -> None:
        super().__init__(task)

        def run(key: jax.Array) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
            mcmc = mcmc_of(task)
            mcmc.run(key, extra_fields=("num_steps", "diverging"), **task.data)
            return mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields(group_by_chain=True)

        self.run = jax.jit(run)

    def sample(self, seed: int) -> Run:
        return as_run(*self.run(jax.random.PRNGKey(seed)))


if __name__ == "__main__":
    numpyro.enable_x64()
    numpyro.set_platform("cpu")
    main(NumPyroJit, ("numpyro", "jax", "jaxlib", "numpy"))
