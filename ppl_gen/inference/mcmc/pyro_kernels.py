"""Pyro's own kernels, the reference: one chain at a time, with the statistics of each draw."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ppl_gen.core import LogDensity, Problem, Result
from ppl_gen.core.evaluation import eagerly
from ppl_gen.core.progress import ProgressBar
from ppl_gen.inference.mcmc.init import start_points
from ppl_gen.inference.mcmc.state import Kernel

if TYPE_CHECKING:
    from ppl_gen.inference.mcmc.methods import Chains

__all__ = ["Chain", "run"]

Statistics = dict[str, torch.Tensor]
Potential = Callable[[Statistics], torch.Tensor]


def run(method: Chains, problem: Problem) -> Result:
    """Run the chains of a method by Pyro's kernels.

    Args:
        method: Its options.
        problem: Pair, data, device and seed.
    """
    density = LogDensity(problem.pair, problem.data, dtype=method.dtype, device=problem.device)
    if method.metric == "low_rank":
        msg = "engine 'pyro' has no low_rank metric: expected 'diag' or 'dense'."
        raise ValueError(msg)
    starts, _, _ = start_points(density, eagerly(density), method.chains, method.init)
    starts = starts.to(density.device, density.dtype)
    kernel = _kernel(method)
    chains = [Chain(density, start, method.warmup, kernel) for start in starts]
    vectors: list[torch.Tensor] = []
    stats: list[Statistics] = []
    interrupted = False
    total = method.warmup + method.draws * method.thinning
    name = type(method).__name__
    with ProgressBar(name, total, enabled=problem.progress) as bar:
        try:
            # All chains advance together, so that an interrupted run has whole chains.
            for step in range(total):
                moves = [chain.advance() for chain in chains]
                made = step - method.warmup + 1
                if made > 0 and made % method.thinning == 0:
                    vectors.append(torch.stack([vector for vector, _ in moves]))
                    stats.append(_stack([statistics for _, statistics in moves]))
                bar.advance("warm-up" if made <= 0 else "sampling")
        except KeyboardInterrupt as stop:
            if not vectors:
                msg = f"{name} was interrupted in warm-up: there are no draws to keep yet."
                raise KeyboardInterrupt(msg) from stop
            interrupted = True
            del vectors[len(stats) :]
    return Result(
        draws=density.constrain(torch.stack(vectors, dim=1)),
        sample_stats={key: torch.stack([one[key] for one in stats], dim=1) for key in stats[0]},
        data=density.data,
        gradient_evaluations=sum(chain.gradient_evaluations for chain in chains),
        interrupted=interrupted,
        dtype=method.dtype,
    )


def _kernel(method: Chains) -> Callable[[Potential], Any]:
    from pyro.infer import HMC, NUTS

    shared: dict[str, Any] = {
        "target_accept_prob": method.target_accept,
        "full_mass": method.metric in ("auto", "dense"),
    }
    if method.kernel == Kernel.NUTS:
        depth = method.max_tree_depth  # type: ignore[attr-defined]
        return lambda potential: NUTS(potential_fn=potential, max_tree_depth=depth, **shared)
    length = method.trajectory_length  # type: ignore[attr-defined]
    return lambda potential: HMC(potential_fn=potential, trajectory_length=length, **shared)


def _stack(statistics: list[Statistics]) -> Statistics:
    return {name: torch.stack([one[name] for one in statistics]) for name in statistics[0]}


class Chain:
    """One chain of a Pyro kernel on a log density.

    Args:
        density: The log density.
        start: The start point, (dim,).
        warmup: Number of steps in which the kernel adapts.
        kernel: Makes the kernel from a potential function of `{"u": vector}`.
    """

    def __init__(
        self,
        density: LogDensity,
        start: torch.Tensor,
        warmup: int,
        kernel: Callable[[Potential], Any],
    ) -> None:
        self.density = density
        self.gradient_evaluations = 0
        self._energies: list[torch.Tensor] = []
        self._kernel = kernel(self._potential)
        self._kernel.initial_params = {"u": start}
        self._kernel.setup(warmup)
        self._params = self._kernel.initial_params
        # The first kinetic energy of a transition is that of its fresh momentum.
        kinetic_energy = self._kernel._kinetic_energy
        self._kernel._kinetic_energy = lambda r: self._remember(kinetic_energy(r))

    def advance(self) -> tuple[torch.Tensor, Statistics]:
        """Make one transition.

        Returns:
            The new vector, (dim,), and its statistics by ArviZ's names, 0-dimensional each. Energy
            is the Hamiltonian at the start of the trajectory that led to it.
        """
        kernel = self._kernel
        potential_before = self._current_potential()
        steps_before = self.gradient_evaluations
        step_size = kernel.step_size
        divergences_before = len(kernel._divergences)
        mean_before, count_before = kernel._mean_accept_prob, self._count()
        self._energies.clear()
        self._params = kernel.sample(self._params)
        vector = self._params["u"]
        n_steps = self.gradient_evaluations - steps_before
        count = self._count()
        # Pyro keeps the running mean only: take this transition's share out of it.
        earlier = mean_before * count_before if count > 1 else 0.0
        acceptance = kernel._mean_accept_prob * count - earlier
        statistics = {
            "lp": -self._current_potential(),
            "energy": potential_before + self._energies[0],
            "acceptance_rate": torch.tensor(min(max(float(acceptance), 0.0), 1.0)),
            "diverging": torch.tensor(len(kernel._divergences) > divergences_before),
            "n_steps": torch.tensor(n_steps),
            "tree_depth": torch.tensor(int(math.log2(n_steps + 1))),
            "step_size": torch.tensor(float(step_size)),
        }
        return vector.detach().clone(), {n: v.detach().cpu() for n, v in statistics.items()}

    def _count(self) -> int:
        """Return the number of transitions in Pyro's running mean, which restarts after warm-up."""
        kernel = self._kernel
        done = kernel._t
        return int(done - kernel._warmup_steps if done > kernel._warmup_steps else done)

    def _current_potential(self) -> torch.Tensor:
        _, potential, _ = self._kernel._fetch_from_cache()
        if potential is None:
            return self._potential(self._params).detach()
        return torch.as_tensor(potential).detach()

    def _potential(self, params: dict[str, torch.Tensor]) -> torch.Tensor:
        self.gradient_evaluations += 1
        return -self.density.log_prob(params["u"])

    def _remember(self, energy: torch.Tensor) -> torch.Tensor:
        self._energies.append(energy)
        return energy
