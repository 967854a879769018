"""From a problem to draws: compile, find start points, warm up, draw."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ppl_gen.core import LogDensity, Posterior, Problem, Result
from ppl_gen.core.archive import StoredDraws
from ppl_gen.core.arguments import move
from ppl_gen.core.evaluation import Evaluate, compiled, eagerly
from ppl_gen.core.posterior import Outline
from ppl_gen.core.progress import announced
from ppl_gen.core.ranks import ranks
from ppl_gen.core.scope import isolated
from ppl_gen.core.store import RESUME, Run, chains_of
from ppl_gen.inference.mcmc.advice import advice
from ppl_gen.inference.mcmc.driver import Driver, Engine
from ppl_gen.inference.mcmc.init import first_metric, start_points
from ppl_gen.inference.mcmc.metric import Kind
from ppl_gen.inference.mcmc.progress import ChainProgress
from ppl_gen.inference.mcmc.state import Kernel, MetricKind, Phase, State, Statistic, new_state
from ppl_gen.inference.mcmc.stream import (
    Keeper,
    Memory,
    SiteValues,
    Stream,
    restore,
    statistics_of,
)
from ppl_gen.inference.mcmc.warmup import set_metric, stages
from ppl_gen.inference.start import refuse_constant

if TYPE_CHECKING:
    from ppl_gen.inference.mcmc.methods import Chains

__all__ = ["run"]

_KINDS: dict[Kind, MetricKind] = {
    "diag": MetricKind.DIAG,
    "dense": MetricKind.DENSE,
    "low_rank": MetricKind.LOW_RANK,
}
_MAX_RANK = 32
# With more dimensions a few chains are quicker on two threads than side by side on one: not the
# density, but each chain's own work takes the time.
_MANY = 100
_MAX_HMC_STEPS = 1024
_MAX_ENERGY_ERROR = 1000.0
# Latest warm-up transitions that are kept for the metric, in bytes of all chains.
_WINDOW_BYTES = 2**28
_DIVERGENCES_KEPT = 200
# Draws of all chains that wait to be taken away.
_CHUNK_BYTES = 2**24
# Of draws in a folder, so many values are looked at for what is wrong with them.
_ADVICE_VALUES = 2**20


def run(method: Chains, problem: Problem, density: LogDensity | None = None) -> Result:
    """Run the chains of a method.

    Args:
        method: Its options.
        problem: Pair, data, device and seed.
        density: The log density in coordinates of its own; None: that of the problem.
    """
    if method.engine == "pyro":
        from ppl_gen.inference.mcmc.pyro_kernels import run as run_pyro

        return run_pyro(method, problem)
    if density is None:
        density = LogDensity(
            problem.pair,
            problem.data,
            dtype=method.dtype,
            device=problem.device,
            prepared=problem.prepared,
        )
    mine = _my_chains(method)
    previous = problem.previous
    if previous is None:
        refuse_constant(density)
    else:
        check_same(density, previous)
        # One that was killed after its last draw has still to be finished.
        if int(previous.checkpoint["written"].min()) >= method.draws and not previous.interrupted:
            return Result(draws=previous.draws)
    began = time.perf_counter()
    with announced("compiling the log density", enabled=problem.progress):
        wanted = method.engine == "compiled"
        lanes = _lanes(method.chains, density.dim)
        native = compiled(density, lanes) if wanted else None
    compile_seconds = time.perf_counter() - began
    name = "eager" if native is None else "compiled"
    _check_engines(name)
    kind = method.metric_for(density.dim)
    state = _new_state(density, method, kind, mine, 1 if native is None else native.lanes)
    if previous is None:
        evaluate = eagerly(density) if native is None else native
        _first_state(state, density, method, kind, mine, evaluate)
    else:
        _check_engine(name, previous)
        restore(state, previous.checkpoint, mine)
    engine: Engine
    if native is not None:
        from ppl_gen.inference.mcmc.native import NativeEngine

        engine = NativeEngine(native, state)
    else:
        from ppl_gen.inference.mcmc.eager import EagerEngine

        engine = EagerEngine(density, state)
    stream = _stream(density, method, problem, state, mine, name)
    driver = Driver(
        engine,
        state,
        stages(method.warmup),
        method.draws,
        kind,
        method.adaptation,
        stream,
        method.chains,
    )
    if previous is None:
        driver.start()
    else:
        driver.go_on(len(mine))
    title = type(method).__name__
    if ranks().size > 1:
        title += f", rank 0 of {ranks().size}"
    with ChainProgress(title, state, len(mine), method.draws, enabled=problem.progress) as bar:
        try:
            interrupted = driver.run(bar.update)
        except OSError as error:
            raise stream.explained(error) from error
    facts = {"engine": name, "compile_seconds": compile_seconds, "seconds_to_first_draw": None}
    if previous is not None:
        facts |= {key: previous.provenance.get(key) for key in facts}
    elif driver.first_draw_at is not None:
        facts["seconds_to_first_draw"] = driver.first_draw_at - problem.started
    return _result(density, method, stream, interrupted, facts)


def _my_chains(method: Chains) -> range:
    """Return which chains are those of this rank.

    Raises:
        ValueError: If there are not enough for all ranks.
    """
    size = ranks().size
    if method.chains < size:
        name = type(method).__name__
        msg = (
            f"chains: {method.chains} chains cannot be spread over {size} processes. Give each "
            f"at least one, as in {name}(chains={size}), or start fewer processes."
        )
        raise ValueError(msg)
    return ranks().share(method.chains)


def _stream(
    density: LogDensity,
    method: Chains,
    problem: Problem,
    state: State,
    mine: range,
    engine: str,
) -> Stream:
    """Return what takes the draws, to a folder where one is given, else to memory."""
    previous = problem.previous
    posterior = Posterior(
        draws={},
        latents=tuple(density.sites),
        pair=problem.pair,
        data=move(density.data, None, torch.device("cpu")),
        provenance={
            **problem.facts,
            "dtype": str(method.dtype).removeprefix("torch."),
            "engine": engine,
        },
    )
    with isolated(0, method.dtype):
        outline = Outline.of(posterior)
    values = SiteValues(density, outline)
    example = values(state.tree_position[:1], 0)
    posterior = dataclasses.replace(
        posterior,
        observed=outline.observed,
        dims=outline.dims(example),
        coords=outline.coords(example),
    )
    groups = {
        "posterior": _room(example, method.chains, method.draws),
        "sample_stats": _room(
            statistics_of(state.statistics[0, :1], state.kernel), method.chains, method.draws
        ),
        "divergences": _room(example, method.chains, state.divergence_capacity),
    }
    keeper: Keeper
    folder = problem.out
    if previous is not None and isinstance(previous.draws, StoredDraws):
        folder = previous.draws.path.parent
        keeper = _folder(folder, lambda path: Run.reopen(path, method.draws))
    elif folder is not None:
        keeper = _folder(folder, lambda path: Run.create(path, posterior, problem.identity, groups))
    else:
        keeper = Memory(groups, previous)
    spent = 0.0 if previous is None else float(previous.provenance["seconds"])
    return Stream(
        state,
        mine,
        values,
        keeper,
        folder=folder,
        earlier={} if previous is None else previous.checkpoint,
        zero=problem.started - spent,
    )


def _folder(path: Path, opened: Callable[[Path], Run]) -> Run:
    """Return the folder of a run, opened by the first rank and then by all."""
    run = opened(path) if ranks().first else None
    ranks().barrier()
    return Run(path) if run is None else run


def _room(example: Mapping[str, torch.Tensor], chains: int, draws: int) -> dict[str, torch.Tensor]:
    """Return tensors for so many draws of each chain; memory is taken up as they are filled."""
    return {
        site: torch.empty(chains, draws, *value.shape[1:], dtype=value.dtype)
        for site, value in example.items()
    }


def check_same(density: LogDensity, previous: Posterior) -> None:
    """Refuse a model that is not the one that a posterior was drawn from.

    Args:
        density: The log density of the model.
        previous: The posterior, with its checkpoint.

    Raises:
        ValueError: If densities differ where the chains are, or the draws are not its own.
    """
    positions = previous.checkpoint["tree_position"][: previous.num_chains]
    before = previous.checkpoint["tree_log_prob"][: previous.num_chains]
    after, _ = eagerly(density)(positions)
    tolerance = 1e-8 if density.dtype == torch.float64 else 1e-3
    differs = ~torch.isclose(after, before, rtol=tolerance, atol=tolerance)
    if bool(differs.any()):
        chain = int(differs.nonzero()[0])
        msg = (
            f"the model is not the one that the chains were run on: where chain {chain} is, its "
            f"log density was {float(before[chain]):.8g} and is {float(after[chain]):.8g}. Give "
            "the same code and data, or start a new run."
        )
        raise ValueError(msg)
    if isinstance(previous.draws, StoredDraws):
        return
    for site, value in density.constrain(positions.to(density.device, density.dtype)).items():
        if not torch.allclose(previous.draws[site][:, -1], value.cpu(), rtol=1e-4, atol=1e-6):
            msg = (
                f"the draws of '{site}' are not those that the chains made last: they were changed "
                "or left out after the run. Extend the posterior as `fit` returned it."
            )
            raise ValueError(msg)


def _check_engines(name: str) -> None:
    """Refuse ranks of which only some can compile: the others would take many times as long.

    Raises:
        ValueError: If there are such.
    """
    names = [part.decode() for part in ranks().gather(name.encode())]
    if len(set(names)) > 1:
        eager = names.index("eager")
        msg = (
            f"engine: the model is compiled on process {names.index('compiled')}, and cannot be on "
            f"process {eager}. See that there is a C++ compiler on its machine, or give "
            'engine="eager".'
        )
        raise ValueError(msg)


def _check_engine(engine: str, previous: Posterior) -> None:
    before = previous.provenance["engine"]
    if engine != before:
        msg = (
            f"the run was made by the {before} engine, and here the {engine} one would go on, with "
            "other draws. Go on where the first one runs, or start a new run."
        )
        raise ValueError(msg)


def _lanes(chains: int, dim: int) -> int:
    """Return how many chains are computed side by side."""
    return 8 if chains > 4 else 4 if dim <= _MANY else 2


def _padded(chains: int, lanes: int) -> int:
    """Return the number of chains in whole groups."""
    return -(-chains // lanes) * lanes


def _new_state(density: LogDensity, method: Chains, kind: Kind, mine: range, lanes: int) -> State:
    dim = density.dim
    # That of all ranks: what a chain does must not depend on how many ranks there are.
    chains = _padded(method.chains, lanes)
    memory = min(method.warmup, max(50, _WINDOW_BYTES // (16 * dim * chains)))
    row = 8 * (dim + len(Statistic)) * chains
    return new_state(
        density.device,
        dim=dim,
        chains=_padded(len(mine), lanes),
        warmup=method.warmup,
        thinning=method.thinning,
        kernel=int(method.kernel),
        metric=int(_KINDS[kind]),
        max_tree_depth=getattr(method, "max_tree_depth", 0),
        max_steps=_MAX_HMC_STEPS,
        max_rank=min(_MAX_RANK, dim) if kind == "low_rank" else 0,
        chunk=max(1, min(method.draws, _CHUNK_BYTES // row)),
        memory=memory,
        divergence_capacity=_DIVERGENCES_KEPT if method.kernel != Kernel.RANDOM_WALK else 0,
        target_accept=method.target_accept,
        path_length=getattr(method, "trajectory_length", 0.0),
        max_energy_error=_MAX_ENERGY_ERROR,
    )


def _first_state(
    state: State,
    density: LogDensity,
    method: Chains,
    kind: Kind,
    mine: range,
    evaluate: Evaluate,
) -> None:
    """Put the chains to their start points; every rank finds those of all, and takes its own."""
    found = start_points(density, evaluate, method.chains, method.init)
    points, values, gradients = (rows[mine.start : mine.stop] for rows in found)
    chains = slice(0, len(mine))
    state.key[chains] = torch.randint(2**62, (method.chains,))[mine.start : mine.stop]
    state.scale[:] = 1.0
    state.step_size[:] = 2.4 / state.dim**0.5 if method.kernel == Kernel.RANDOM_WALK else 1.0
    state.phase[len(mine) :] = Phase.DONE
    state.tree_position[chains] = points
    state.tree_log_prob[chains] = values
    state.tree_gradient[chains] = gradients
    for chain in range(len(mine)):
        gradient = gradients[chain].cpu()
        set_metric(state, chain, first_metric(density, kind, state.max_rank, gradient, method.init))


def _result(
    density: LogDensity,
    method: Chains,
    stream: Stream,
    interrupted: bool,
    facts: dict[str, Any],
) -> Result:
    stream.keeper.complete(stream.chains)
    checkpoint = stream.checkpoint()
    counts = checkpoint["written"].tolist()
    if min(counts) == 0:
        msg = f"{type(method).__name__} was interrupted in warm-up: there are no draws to keep yet."
        if stream.folder is not None:
            msg += f" It is in {stream.folder}: {RESUME}"
        raise KeyboardInterrupt(msg)
    draws = stream.keeper.read("posterior", counts)
    statistics = stream.keeper.read("sample_stats", counts)
    divergent = checkpoint["divergences_written"].tolist()
    divergences = stream.keeper.joined("divergences", divergent)
    said: tuple[str, ...] = ()
    if ranks().first:
        abandoned = checkpoint["abandoned"]
        said = _advice(density, method, draws, statistics, divergences, abandoned)
    # Chains in memory whose surplus is dropped have no place to go on from.
    lost = interrupted and stream.folder is None
    return Result(
        draws=draws,
        latents=tuple(density.sites),
        sample_stats=statistics,
        data=density.data,
        gradient_evaluations=int(checkpoint["evaluations"].sum()),
        interrupted=interrupted,
        dtype=method.dtype,
        divergences=divergences,
        divergence_chain=chains_of(divergent),
        checkpoint={} if lost else checkpoint,
        warnings=tuple(ranks().from_first(said)),
        facts=facts,
    )


def _advice(
    density: LogDensity,
    method: Chains,
    draws: Mapping[str, torch.Tensor],
    statistics: Mapping[str, torch.Tensor],
    divergences: Mapping[str, torch.Tensor],
    abandoned: torch.Tensor,
) -> tuple[str, ...]:
    latents = {site: draws[site] for site in density.sites if not isinstance(draws, StoredDraws)}
    if isinstance(draws, StoredDraws):
        # There may be more than fit in memory, and some say as much.
        shapes = [shape for site, shape in draws.shapes.items() if site in density.sites]
        step = max(1, min(shapes[0][1] // 1000, sum(map(math.prod, shapes)) // _ADVICE_VALUES))
        thinned = draws.thinned(step)
        latents = {site: thinned[site] for site in density.sites}
        assert isinstance(statistics, StoredDraws)
        whole = {name: statistics[name] for name in statistics if name == "diverging"}
        statistics = {**statistics.thinned(step), **whole}
    improper = [
        name for name, site in density.sites.items() if site.distribution == "ImproperUniform"
    ]
    return advice(
        latents,
        statistics,
        divergences=divergences,
        target_accept=method.target_accept,
        max_tree_depth=getattr(method, "max_tree_depth", None),
        improper=improper,
        abandoned=abandoned.tolist(),
    )
