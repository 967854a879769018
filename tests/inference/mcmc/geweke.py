"""Geweke's test of a transition: does it leave the joint distribution of latents and data alone?

Getting it right: joint distribution tests of posterior simulators, Geweke (2004), Journal of the
American Statistical Association 99, 799-804. Here in the form of Gandy and Scott, Unit testing for
MCMC and other Monte Carlo methods (2020), arXiv:2001.06465: many chains, each with data of its own,
start from the prior, so that no warm-up and no autocorrelation blurs what is expected.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from ppl_gen import Posterior
from ppl_gen.core import LogDensity
from ppl_gen.core.compiler.compiled import CompiledLogDensity, Context
from ppl_gen.core.scope import isolated
from ppl_gen.inference.mcmc.methods import Chains
from ppl_gen.inference.mcmc.native import NativeEngine
from ppl_gen.inference.mcmc.state import MetricKind, Phase, new_state

__all__ = ["chance_of_change"]

Array = NDArray[np.float64]
Values = Mapping[str, torch.Tensor]


def chance_of_change(
    pair: Any,
    data: Values,
    observed: tuple[str, ...],
    simulate: Callable[[Values, Values], Values],
    method: Chains,
    *,
    step_size: float,
    rounds: int = 20,
    seed: int = 0,
) -> float:
    """Alternate transitions given the data with new data given the latents, and compare.

    Args:
        pair: The pair.
        data: The data without those observed, float64.
        observed: Names of the observed sites and of their arguments.
        simulate: Draws the observed sites, (n, *site), given latents and data.
        method: Kernel, number of chains, and transitions between new data (its draws).
        step_size: The fixed step size, in the unit metric.
        rounds: How often data are drawn anew.
        seed: Seed of all of it.

    Returns:
        The chance of a change as large as the largest, if the transition leaves the joint
        distribution alone: the smallest p-value of all statistics, times their number.
    """
    chains = method.chains
    with isolated(seed):
        drawn = _prior(pair, data, observed, 2 * chains, seed)
        simulated = simulate(drawn, data)
        reference = np.sort(_numbers(drawn, simulated)[chains:], axis=0)
        latents, simulated = ({n: v[:chains] for n, v in g.items()} for g in (drawn, simulated))
        simulator = _Simulator(pair, data, latents, simulated, method, step_size)
        before = _statistics(_numbers(latents, simulated), reference)
        total = np.zeros_like(before)
        for _ in range(rounds):
            latents = simulator.advance(simulated)
            simulated = simulate(latents, data)
            total += _statistics(_numbers(latents, simulated), reference)
    # A chain's mean over the rounds, less where it started from, has mean zero whatever the
    # autocorrelation is, and chains are independent.
    change = total / rounds - before
    z = change.mean(axis=0) / (change.std(axis=0, ddof=1) / chains**0.5)
    return float(min(1.0, 2 * norm.sf(np.abs(z).max()) * len(z)))


def _prior(pair: Any, data: Values, observed: tuple[str, ...], draws: int, seed: int) -> Values:
    """Return draws of the latents from the prior, (draw, *site)."""
    blank = Posterior(draws={}, latents=(), observed=observed, pair=pair, data=data)
    return {name: value[0] for name, value in blank.prior(draws, seed)[0].items()}


def _numbers(latents: Values, simulated: Values) -> Array:
    """Return all scalars of latents and data, (n, scalar)."""
    parts = [value.flatten(1) if value.ndim > 1 else value[:, None] for value in latents.values()]
    parts += [value.flatten(1) for value in simulated.values()]
    return torch.cat([part.double() for part in parts], dim=1).numpy()


def _statistics(numbers: Array, reference: Array) -> Array:
    """Return location and spread of each scalar, and of the products of neighbours.

    Of the scalars' ranks in the prior, as they are bounded where moments may be infinite.
    """
    ranks = [
        np.searchsorted(column, values) / len(column)
        for column, values in zip(reference.T, numbers.T, strict=True)
    ]
    centred = np.stack(ranks, axis=1) - 0.5
    return np.concatenate([centred, centred**2, centred[:, 1:] * centred[:, :-1]], axis=1)


class _OwnData(CompiledLogDensity):
    """A compiled log density of which each context has its own copy of the constants."""

    def __init__(self, density: LogDensity, point: torch.Tensor) -> None:
        super().__init__(density, point, lanes=1)
        self.copies: list[NDArray[Any]] = []

    def context(self) -> Context:
        self._constants = self._constants.copy()
        self.copies.append(self._constants)
        return super().context()


class _Simulator:
    """Chains at fixed step size and unit metric, each with its own data."""

    def __init__(
        self,
        pair: Any,
        data: Values,
        latents: Values,
        simulated: Values,
        method: Chains,
        step_size: float,
    ) -> None:
        self.chains = method.chains

        def of(chain: int) -> LogDensity:
            own = {name: value[chain].clone() for name, value in simulated.items()}
            return LogDensity(pair, {**data, **own})

        self.density = of(0)
        points = self.density.unconstrain(latents)
        self.compiled = _OwnData(self.density, points[0])
        self.places = _places_of_data(
            [np.asarray(_OwnData(of(chain), points[0])._constants) for chain in range(10)],
            _flat(simulated)[:10],
        )
        state = new_state(
            self.density.device,
            dim=self.density.dim,
            chains=self.chains,
            warmup=0,
            thinning=1,
            kernel=int(method.kernel),
            metric=int(MetricKind.DIAG),
            max_tree_depth=getattr(method, "max_tree_depth", 0),
            max_steps=1000,
            max_rank=0,
            chunk=method.draws,
            memory=0,
            divergence_capacity=0,
            target_accept=method.target_accept,
            path_length=getattr(method, "trajectory_length", 0.0),
            max_energy_error=1000.0,
        )
        state.key[:] = torch.randint(2**62, (self.chains,))
        state.scale[:] = 1.0
        # As after a warm-up of trees of depth two: a transition of small steps stops at three.
        state.depth_sum[:] = 2
        state.depth_count[:] = 1
        state.step_size[:] = step_size
        state.tree_position[:] = points
        state.phase[:] = Phase.WAITING
        self.state = state
        self.engine = NativeEngine(self.compiled, state)
        self._set_data(simulated)
        for chain in range(5):
            leaf = points[chain].clone().requires_grad_()
            (expected,) = torch.autograd.grad(of(chain).log_prob(leaf), leaf)
            torch.testing.assert_close(state.tree_gradient[chain], expected)

    def _set_data(self, simulated: Values) -> None:
        """Give each chain its data, and the log density at its position."""
        state, dim = self.state, self.state.dim
        numbers = _flat(simulated)
        for chain, context in enumerate(self.engine._contexts):
            constants = self.compiled.copies[chain]
            for place, element in self.places:
                constants[place] = numbers[chain, element]
            self.compiled.function(
                context.pointer,
                state.tree_position.data_ptr() + 8 * dim * chain,
                state.tree_log_prob.data_ptr() + 8 * chain,
                state.tree_gradient.data_ptr() + 8 * dim * chain,
            )

    def advance(self, simulated: Values) -> dict[str, torch.Tensor]:
        """Make a round's transitions with new data and return where the chains are."""
        self._set_data(simulated)
        state = self.state
        state.kept[:] = 0
        state.next_stop[:] = state.transition + state.chunk
        for chain in range(self.chains):
            self.engine.begin_transition(chain)
            while int(state.phase[chain]) != Phase.WAITING:
                self.engine.advance(chain, 10_000)
        return self.density.constrain(state.tree_position)


def _flat(simulated: Values) -> Array:
    return torch.cat([v.flatten(1).double() for v in simulated.values()], dim=1).numpy()


def _places_of_data(constants: list[NDArray[Any]], numbers: Array) -> list[tuple[int, int]]:
    """Return place and element of the data among the constants of the compiled log density.

    They are found by compiling for several data sets. What else varies was computed from the data
    beforehand: terms of the log density that do not depend on the latents.
    """
    table = np.stack(constants)
    found = [
        (int(place), element)
        for element in range(numbers.shape[1])
        for place in np.flatnonzero((table == numbers[:, [element]]).all(axis=0))
    ]
    assert {element for _, element in found} == set(range(numbers.shape[1]))
    return found
