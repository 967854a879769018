"""From a problem to draws: compile, find start points, warm up, draw."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from ppl_gen.core import LogDensity, Problem, Result
from ppl_gen.core.compiler.compiled import CannotCompile, CompiledLogDensity, NoCompiler
from ppl_gen.inference.mcmc.driver import Driver, Engine
from ppl_gen.inference.mcmc.init import Evaluate, eagerly, first_metric, start_points
from ppl_gen.inference.mcmc.metric import Kind
from ppl_gen.inference.mcmc.state import Kernel, MetricKind, Phase, State, Statistic, new_state
from ppl_gen.inference.mcmc.warmup import set_metric, stages
from ppl_gen.inference.progress import ProgressBar

if TYPE_CHECKING:
    from ppl_gen.inference.mcmc.methods import Chains

__all__ = ["run"]

_KINDS: dict[Kind, MetricKind] = {
    "diag": MetricKind.DIAG,
    "dense": MetricKind.DENSE,
    "low_rank": MetricKind.LOW_RANK,
}
_MAX_RANK = 32
_MAX_HMC_STEPS = 1024
_MAX_ENERGY_ERROR = 1000.0
# Latest warm-up transitions that are kept for the metric, in bytes of all chains.
_WINDOW_BYTES = 2**28
_DIVERGENCES_KEPT = 200


def run(method: Chains, problem: Problem) -> Result:
    """Run the chains of a method.

    Args:
        method: Its options.
        problem: Pair, data, device and seed.
    """
    if method.engine == "pyro":
        from ppl_gen.inference.mcmc.pyro_kernels import run as run_pyro

        return run_pyro(method, problem)
    density = LogDensity(problem.pair, problem.data, dtype=method.dtype, device=problem.device)
    kind = method.metric_for(density.dim)
    compiled = _compile(density, method)
    lanes = 1 if compiled is None else compiled.lanes
    evaluate: Evaluate = eagerly(density) if compiled is None else compiled
    points, values, gradients = start_points(density, evaluate, method.chains, method.init)
    state = _first_state(density, method, kind, lanes)
    chains = slice(0, method.chains)
    state.tree_position[chains] = points.to(state.key.device)
    state.tree_log_prob[chains] = values.to(state.key.device)
    state.tree_gradient[chains] = gradients.to(state.key.device)
    for chain in range(method.chains):
        metric = first_metric(
            density, kind, state.max_rank, gradients[chain].cpu(), method.init
        )
        set_metric(state, chain, metric)
    engine: Engine
    if compiled is not None:
        from ppl_gen.inference.mcmc.native import NativeEngine

        engine = NativeEngine(compiled, state)
    else:
        from ppl_gen.inference.mcmc.eager import EagerEngine

        engine = EagerEngine(density, state)
    driver = Driver(
        engine, state, stages(method.warmup), method.draws, kind, method.adaptation
    )
    name = type(method).__name__
    total = (method.warmup + method.draws * method.thinning) * method.chains
    with ProgressBar(name, total, enabled=problem.progress) as bar:
        driver.start()
        interrupted = driver.run(lambda: bar.update(*_progress(state, method)))
    return _result(density, method, state, interrupted)


def _compile(density: LogDensity, method: Chains) -> CompiledLogDensity | None:
    """Return the compiled density, or None, with a warning, where there is none to be had."""
    if method.engine != "compiled" or density.device.type != "cpu":
        return None
    lanes = 4 if method.chains <= 4 else 8
    points = 4 * torch.rand(4, density.dim, dtype=torch.float64) - 2
    try:
        compiled = CompiledLogDensity(density, points[0], lanes)
        compiled.check(points)
    except (CannotCompile, NoCompiler) as reason:
        warnings.warn(
            f"the model runs on the eager engine, which is much slower: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return compiled


def _first_state(density: LogDensity, method: Chains, kind: Kind, lanes: int) -> State:
    dim = density.dim
    chains = -(-method.chains // lanes) * lanes
    memory = min(method.warmup, max(50, _WINDOW_BYTES // (16 * dim * chains)))
    state = new_state(
        density.device,
        dim=dim,
        chains=chains,
        warmup=method.warmup,
        thinning=method.thinning,
        kernel=int(method.kernel),
        metric=int(_KINDS[kind]),
        max_tree_depth=getattr(method, "max_tree_depth", 0),
        max_steps=_MAX_HMC_STEPS,
        max_rank=min(_MAX_RANK, dim) if kind == "low_rank" else 0,
        chunk=method.draws,
        memory=memory,
        divergence_capacity=_DIVERGENCES_KEPT if method.kernel != Kernel.RANDOM_WALK else 0,
        target_accept=method.target_accept,
        path_length=getattr(method, "trajectory_length", 0.0),
        max_energy_error=_MAX_ENERGY_ERROR,
    )
    state.key[:] = torch.randint(2**62, (chains,))
    state.scale[:] = 1.0
    state.step_size[:] = 2.4 / dim**0.5 if method.kernel == Kernel.RANDOM_WALK else 1.0
    state.phase[method.chains :] = Phase.DONE
    return state


def _progress(state: State, method: Chains) -> tuple[int, str]:
    chains = slice(0, method.chains)
    made = int(state.transition[chains].sum())
    divergences = int(state.divergences[chains].sum())
    warming_up = bool((state.transition[chains] < state.warmup).any())
    text = "warm-up" if warming_up else "sampling"
    return made, f"{divergences} divergences" if divergences else text


def _result(density: LogDensity, method: Chains, state: State, interrupted: bool) -> Result:
    chains = slice(0, method.chains)
    count = int(state.kept[chains].min())
    if count == 0:
        msg = f"{type(method).__name__} was interrupted in warm-up: there are no draws to keep yet."
        raise KeyboardInterrupt(msg)
    draws = state.draws[chains, :count].to(density.dtype)
    columns = state.statistics[chains, :count].unbind(-1)
    whole = {Statistic.TREE_DEPTH: torch.int64, Statistic.N_STEPS: torch.int64}
    statistics = {
        kind.name.lower(): columns[kind].to(
            torch.bool if kind == Statistic.DIVERGING else whole.get(kind, torch.float64)
        )
        for kind in Statistic
    }
    return Result(
        draws=density.constrain(draws),
        sample_stats=statistics,
        data=density.data,
        gradient_evaluations=int(state.evaluations[chains].sum()),
        interrupted=interrupted,
        dtype=method.dtype,
    )
