"""The options of each MCMC method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from ppl_gen.core import Posterior, Problem, Result
from ppl_gen.core.errors import check_count, unknown
from ppl_gen.inference.mcmc.state import Kernel

if TYPE_CHECKING:
    from ppl_gen.inference.mcmc.init import Init
    from ppl_gen.inference.mcmc.metric import Kind, Rule

__all__ = ["HMC", "NUTS", "Chains", "RandomWalk"]

Engine = Literal["compiled", "eager", "pyro"]

# Beyond this a dense metric costs more in each step than the steps that it saves.
_DENSE_UP_TO = 100


@dataclass(frozen=True)
class Chains:
    """The options that all MCMC methods share."""

    chains: int = 4
    draws: int = 1000
    warmup: int = 1000
    thinning: int = 1
    target_accept: float = 0.8
    metric: Kind | Literal["auto"] = "auto"
    adaptation: Rule = "fisher"
    init: Init = "uniform"
    dtype: torch.dtype = torch.float64
    engine: Engine = "compiled"

    kernel: ClassVar[Kernel]
    positive: ClassVar[tuple[str, ...]] = ("chains", "draws", "warmup", "thinning")

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        for name in self.positive:
            check_count(name, getattr(self, name))
        if not 0 < self.target_accept < 1:
            msg = f"target_accept: expected a number between 0 and 1, got {self.target_accept}."
            raise ValueError(msg)
        choices = {
            "metric": ("auto", "diag", "dense", "low_rank"),
            "adaptation": ("fisher", "variance"),
            "engine": ("compiled", "eager", "pyro"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise unknown(name, getattr(self, name), allowed)
        if not isinstance(self.init, Posterior) and self.init not in ("uniform", "prior", "map"):
            raise unknown("init", self.init, ("uniform", "prior", "map", "a posterior"))
        if self.dtype not in (torch.float32, torch.float64):
            msg = f"dtype: expected torch.float64 or torch.float32, got {self.dtype}."
            raise ValueError(msg)

    @property
    def is_mcmc(self) -> bool:
        """Its draws are Markov chains."""
        return True

    def metric_for(self, dim: int) -> Kind:
        """Return the form of the metric for a posterior of so many unconstrained coordinates."""
        if self.metric != "auto":
            return self.metric
        return "dense" if dim <= _DENSE_UP_TO else "low_rank"

    def run(self, problem: Problem) -> Result:
        """Run the chains; see `ppl_gen.fit`."""
        from ppl_gen.inference.mcmc.run import run

        return run(self, problem)


@dataclass(frozen=True)
class NUTS(Chains):
    """The No-U-Turn sampler, on any pair with continuous latents.

    Multinomial NUTS with the generalised criterion, many chains at once, none waiting for another.
    One transition in 20, chosen at random, makes smaller steps, so that a chain in a narrow place,
    where the usual step diverges, comes out again. Half-way through the warm-up four or more chains
    are compared: one that is where the posterior has no weight starts again from where another one
    is, and `posterior.warnings` says so.
    The log density is compiled to machine code; where that is not possible, a warning says why and
    the eager engine runs. All parameters of the pair are constants.

    Args:
        chains: Number of chains.
        draws: Draws of each chain that are kept, after its warm-up.
        warmup: Transitions of warm-up, not kept: step size by dual averaging, and the metric.
        thinning: Keep every so many-th draw.
        target_accept: Mean acceptance that the step size is tuned to.
        metric: Form of the inverse mass matrix: "diag", "dense", "low_rank": diagonal, but for
            some directions, or "auto": dense up to 100 dimensions, low-rank beyond.
        adaptation: How the metric is estimated: "fisher", from draws and gradients, or "variance",
            from draws alone.
        init: Where chains start: "uniform" on (-2, 2) in each unconstrained coordinate, "prior",
            "map" (near a mode), or a posterior: from its draws, with its covariance as the first
            metric, so that a shorter warm-up suffices.
        dtype: What the log density is computed in.
        engine: "compiled", "eager": the same algorithm in PyTorch, or "pyro": Pyro's own kernel.
        max_tree_depth: At most 2**max_tree_depth - 1 leapfrog steps a draw.

    Raises:
        ValueError: If an option is out of range.

    References:
        Hoffman and Gelman (2014), The No-U-Turn Sampler, arXiv:1111.4246. Betancourt (2017), A
        Conceptual Introduction to Hamiltonian Monte Carlo, arXiv:1701.02434. Seyboldt, Carlson and
        Carpenter (2026), Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence,
        arXiv:2603.18845.

    Example:
        >>> NUTS(chains=2, draws=500).warmup
        1000
    """

    max_tree_depth: int = 10

    kernel: ClassVar[Kernel] = Kernel.NUTS
    positive: ClassVar[tuple[str, ...]] = (*Chains.positive, "max_tree_depth")


@dataclass(frozen=True)
class HMC(Chains):
    """Hamiltonian Monte Carlo with paths of random length, on any pair with continuous latents.

    Args:
        chains: Number of chains.
        draws: Draws of each chain that are kept, after its warm-up.
        warmup: Transitions of warm-up, not kept.
        thinning: Keep every so many-th draw.
        target_accept: Mean acceptance that the step size is tuned to.
        metric: As for `NUTS`.
        adaptation: As for `NUTS`.
        init: As for `NUTS`.
        dtype: What the log density is computed in.
        engine: As for `NUTS`; "pyro" has paths of fixed length.
        trajectory_length: Mean length of a path, in units of the metric: step size times number of
            leapfrog steps. Each path's is uniform between half and one and a half times that, so
            that no coordinate comes back to where it was each time.

    Raises:
        ValueError: If an option is out of range.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics, arXiv:1206.1901.

    Example:
        >>> HMC(trajectory_length=1.0).chains
        4
    """

    trajectory_length: float = math.pi / 2

    kernel: ClassVar[Kernel] = Kernel.HMC

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        super().__post_init__()
        if not 0 < self.trajectory_length < math.inf:
            msg = f"trajectory_length: expected a positive number, got {self.trajectory_length}."
            raise ValueError(msg)


@dataclass(frozen=True)
class RandomWalk(Chains):
    """Random-walk Metropolis-Hastings with an adapted normal proposal.

    For log densities without a useful gradient, and as a yardstick: in more than a few dimensions
    it needs far more draws than `NUTS`.

    Args:
        chains: Number of chains.
        draws: Draws of each chain that are kept, after its warm-up.
        warmup: Transitions of warm-up, not kept: scale and covariance of the proposal.
        thinning: Keep every so many-th draw.
        target_accept: Mean acceptance that the scale of the proposal is tuned to.
        metric: Form of the proposal's covariance, as for `NUTS`.
        adaptation: "variance": from the draws.
        init: As for `NUTS`.
        dtype: What the log density is computed in.
        engine: "compiled" or "eager".

    Raises:
        ValueError: If an option is out of range.

    References:
        Roberts, Gelman and Gilks (1997), Weak convergence and optimal scaling of random walk
        Metropolis algorithms. Haario, Saksman and Tamminen (2001), An adaptive Metropolis
        algorithm.

    Example:
        >>> RandomWalk(thinning=10).target_accept
        0.3
    """

    target_accept: float = 0.3
    adaptation: Rule = "variance"

    kernel: ClassVar[Kernel] = Kernel.RANDOM_WALK

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        super().__post_init__()
        if self.engine == "pyro":
            raise unknown("engine", self.engine, ("compiled", "eager"))
