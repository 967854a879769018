"""Markov chain Monte Carlo: options of NUTS and HMC, and the driver of several chains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from ppl_gen.core import LogDensity, Problem, Result
from ppl_gen.core.errors import check_count, unknown
from ppl_gen.inference.progress import ProgressBar
from ppl_gen.inference.start import is_finite_at, not_finite_at_start

if TYPE_CHECKING:
    from ppl_gen.inference.mcmc.pyro_kernels import Chain

__all__ = ["HMC", "NUTS"]

_START_ATTEMPTS = 100


@dataclass(frozen=True)
class _ChainOptions:
    """What all MCMC methods share."""

    chains: int = 4
    draws: int = 1000
    warmup: int = 1000
    target_accept: float = 0.8
    metric: Literal["diag", "dense"] = "diag"
    dtype: torch.dtype = torch.float64
    engine: Literal["pyro"] = "pyro"

    positive: ClassVar[tuple[str, ...]] = ("chains", "draws", "warmup")

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        for name in self.positive:
            check_count(name, getattr(self, name))
        if not 0 < self.target_accept < 1:
            msg = f"target_accept: expected a number between 0 and 1, got {self.target_accept}."
            raise ValueError(msg)
        if self.metric not in ("diag", "dense"):
            raise unknown("metric", self.metric, ("diag", "dense"))
        if self.engine != "pyro":
            raise unknown("engine", self.engine, ("pyro",))

    @property
    def is_mcmc(self) -> bool:
        """Its draws are Markov chains."""
        return True

    def chain(self, density: LogDensity, start: torch.Tensor) -> Chain:
        """Return a chain of this method at a start point; subclasses write it."""
        raise NotImplementedError

    def run(self, problem: Problem) -> Result:
        """Run the chains side by side; see `ppl_gen.fit`."""
        density = LogDensity(problem.pair, problem.data, dtype=self.dtype, device=problem.device)
        chains = [self.chain(density, _start(density)) for _ in range(self.chains)]
        vectors: list[torch.Tensor] = []
        stats: list[dict[str, torch.Tensor]] = []
        interrupted = False
        total = self.warmup + self.draws
        name = type(self).__name__
        with ProgressBar(name, total, enabled=problem.progress) as bar:
            try:
                # All chains advance together, so that an interrupted run has whole chains.
                for step in range(total):
                    moves = [chain.advance() for chain in chains]
                    if step >= self.warmup:
                        vectors.append(torch.stack([vector for vector, _ in moves]))
                        stats.append(_stack([statistics for _, statistics in moves]))
                    bar.advance(_status(step < self.warmup, stats) if bar.due() else "")
            except KeyboardInterrupt as stop:
                if not vectors:
                    msg = f"{name} was interrupted in warm-up: there are no draws to keep yet."
                    raise KeyboardInterrupt(msg) from stop
                interrupted = True
                del vectors[len(stats) :]
        draws = torch.stack(vectors, dim=1)
        return Result(
            draws=density.constrain(draws),
            sample_stats={key: torch.stack([one[key] for one in stats], dim=1) for key in stats[0]},
            data=density.data,
            gradient_evaluations=sum(chain.gradient_evaluations for chain in chains),
            interrupted=interrupted,
            dtype=self.dtype,
        )


@dataclass(frozen=True)
class NUTS(_ChainOptions):
    """The No-U-Turn sampler, on any pair with continuous latents.

    Multinomial NUTS; step size by dual averaging and the metric from draws during warm-up. All
    parameters of the pair are constants.

    Args:
        chains: Number of chains.
        draws: Draws of each chain, after its warm-up.
        warmup: Steps of warm-up, not kept.
        target_accept: Mean acceptance that the step size is tuned to.
        metric: "diag" or "dense" inverse mass matrix.
        dtype: What to compute in.
        engine: "pyro": Pyro's own kernel.
        max_tree_depth: At most 2**max_tree_depth - 1 leapfrog steps a draw.

    Raises:
        ValueError: If an option is out of range.

    References:
        Hoffman and Gelman (2014), The No-U-Turn Sampler, arXiv:1111.4246. Betancourt (2017), A
        Conceptual Introduction to Hamiltonian Monte Carlo, arXiv:1701.02434.

    Example:
        >>> NUTS(chains=2, draws=500).warmup
        1000
    """

    max_tree_depth: int = 10

    positive: ClassVar[tuple[str, ...]] = ("chains", "draws", "warmup", "max_tree_depth")

    def chain(self, density: LogDensity, start: torch.Tensor) -> Chain:
        """Return a NUTS chain at a start point."""
        from pyro.infer import NUTS as PyroNUTS

        from ppl_gen.inference.mcmc.pyro_kernels import Chain

        return Chain(
            density,
            start,
            self.warmup,
            lambda potential: PyroNUTS(
                potential_fn=potential,
                target_accept_prob=self.target_accept,
                full_mass=self.metric == "dense",
                max_tree_depth=self.max_tree_depth,
            ),
        )


@dataclass(frozen=True)
class HMC(_ChainOptions):
    """Hamiltonian Monte Carlo with a fixed trajectory length, on any pair with continuous latents.

    Args:
        chains: Number of chains.
        draws: Draws of each chain, after its warm-up.
        warmup: Steps of warm-up, not kept.
        target_accept: Mean acceptance that the step size is tuned to.
        metric: "diag" or "dense" inverse mass matrix.
        dtype: What to compute in.
        engine: "pyro": Pyro's own kernel.
        trajectory_length: Length of a trajectory, in units of the metric: step size times number
            of leapfrog steps.

    Raises:
        ValueError: If an option is out of range.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics, arXiv:1206.1901.

    Example:
        >>> HMC(trajectory_length=1.0).chains
        4
    """

    trajectory_length: float = math.pi / 2

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        super().__post_init__()
        if not 0 < self.trajectory_length < math.inf:
            msg = f"trajectory_length: expected a positive number, got {self.trajectory_length}."
            raise ValueError(msg)

    def chain(self, density: LogDensity, start: torch.Tensor) -> Chain:
        """Return an HMC chain at a start point."""
        from pyro.infer import HMC as PyroHMC

        from ppl_gen.inference.mcmc.pyro_kernels import Chain

        return Chain(
            density,
            start,
            self.warmup,
            lambda potential: PyroHMC(
                potential_fn=potential,
                trajectory_length=self.trajectory_length,
                target_accept_prob=self.target_accept,
                full_mass=self.metric == "dense",
            ),
        )


def _start(density: LogDensity) -> torch.Tensor:
    """Return a start point of finite density, uniform on (-2, 2) in each coordinate."""
    for _ in range(_START_ATTEMPTS):
        point = 4 * torch.rand(density.dim, dtype=density.dtype, device=density.device) - 2
        if is_finite_at(density, point):
            return point
    raise not_finite_at_start(density, point, _START_ATTEMPTS)


def _stack(statistics: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([one[name] for one in statistics]) for name in statistics[0]}


def _status(warming_up: bool, stats: list[dict[str, torch.Tensor]]) -> str:
    if warming_up:
        return "warm-up"
    divergences = sum(int(one["diverging"].sum()) for one in stats)
    return f"{divergences} divergences" if divergences else "sampling"
