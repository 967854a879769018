"""Draws on their way from the chains' state to where they are kept: memory or a folder."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load, save

from ppl_gen.core import LogDensity, Posterior
from ppl_gen.core.arguments import num_bytes
from ppl_gen.core.draws import map_draws
from ppl_gen.core.posterior import Outline
from ppl_gen.core.ranks import ranks
from ppl_gen.core.scope import default_dtype
from ppl_gen.core.store import RESUME
from ppl_gen.inference.mcmc.state import Kernel, Phase, State, Statistic

__all__ = ["Keeper", "Memory", "SiteValues", "Stream", "restore", "statistics_of"]

_BLOCK = 1000
_BLOCK_BYTES = 64 * 2**20
_CHECKPOINT_SECONDS = 5.0
# A checkpoint that takes long is made so seldom that it takes at most this share of the time.
_CHECKPOINT_SHARE = 0.01

_STATISTICS: dict[Statistic, torch.dtype] = {
    Statistic.TREE_DEPTH: torch.int64,
    Statistic.N_STEPS: torch.int64,
    Statistic.DIVERGING: torch.bool,
}
# What only a chain in the middle of a transition depends on.
_IN_PROGRESS = {
    "position",
    "momentum",
    "force",
    "gradient",
    "log_prob",
    "previous",
    "last_momentum",
    "scratch",
    "direction",
    "energy",
    "steps",
    "leaf",
    "sum_acceptance",
    "left_position",
    "left_momentum",
    "left_force",
    "right_position",
    "right_momentum",
    "right_force",
    "tree_sum",
    "tree_log_weight",
    "branch_position",
    "branch_gradient",
    "branch_log_prob",
    "branch_sum",
    "branch_log_weight",
    "checkpoint_momentum",
    "checkpoint_sum",
    "checkpoint_previous",
}
_TAKEN_AWAY = {"draws", "statistics", "kept"}
_WARMUP_ONLY = {"window_positions", "window_gradients", "window_log_probs"}


class SiteValues:
    """The values of the sites, deterministic ones included, of unconstrained draws.

    In its last bits a value depends on the shape of the tensor that it is computed in, and on its
    place there. Draws are therefore always computed in blocks of one size that begin at multiples
    of it, so that it does not matter in which portions they come.

    Args:
        density: The log density.
        outline: The sites that are to be kept.
    """

    def __init__(self, density: LogDensity, outline: Outline) -> None:
        self._density = density
        self._outline = outline
        size = 8 * density.dim
        if outline.deterministic:
            size = max(size, num_bytes(outline.data))
        self._block = max(1, min(_BLOCK, _BLOCK_BYTES // size))

    def __call__(self, vectors: torch.Tensor, start: int) -> dict[str, torch.Tensor]:
        """Return the values of draws of one chain.

        Args:
            vectors: The draws, (n, dim) with n at least 1.
            start: Number of the first one in its chain.

        Returns:
            Values by site, (n, *site).
        """
        first = start - start % self._block
        padded = -(-(start + len(vectors) - first) // self._block) * self._block
        rows = vectors[:1].expand(padded, -1).clone()
        inside = slice(start - first, start - first + len(vectors))
        rows[inside] = vectors
        blocks = [self._compute(block) for block in rows.split(self._block)]
        return {site: torch.cat([block[site] for block in blocks])[inside] for site in blocks[0]}

    def _compute(self, block: torch.Tensor) -> dict[str, torch.Tensor]:
        density, outline = self._density, self._outline
        # Threads begin without the device that PyTorch makes tensors on in the main one.
        device = density.device if density.device.type != "cpu" else contextlib.nullcontext()
        with torch.no_grad(), default_dtype(density.dtype):
            with device:
                values = density.constrain(block.to(density.device, density.dtype))
            values = {site: value.cpu() for site, value in values.items()}
            if outline.deterministic:
                size = num_bytes(outline.data)
                values |= map_draws(outline.values, values, bytes_per_draw=size)
        return values


_OF_RANDOM_WALK = (Statistic.LP, Statistic.ACCEPTANCE_RATE, Statistic.STEP_SIZE)


def statistics_of(rows: torch.Tensor, kernel: int) -> dict[str, torch.Tensor]:
    """Return statistics by their names, each in its type.

    Args:
        rows: One row for each draw, (n, len(Statistic)).
        kernel: The transition: a random walk has no trajectories.
    """
    columns = rows.cpu().unbind(-1)
    return {
        kind.name.lower(): columns[kind].to(_STATISTICS.get(kind, torch.float64))
        for kind in (_OF_RANDOM_WALK if kernel == Kernel.RANDOM_WALK else Statistic)
    }


class Keeper(Protocol):
    """Where draws are kept."""

    def write(self, group: str, chain: int, start: int, values: Mapping[str, torch.Tensor]) -> None:
        """Keep draws of one chain, from a number on.

        Args:
            group: "posterior", "sample_stats" or "divergences".
            chain: The chain.
            start: Number of the first draw.
            values: Draws by site, (draw, *site).
        """
        ...

    def save_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Keep where the chains are, where it is a folder."""
        ...

    def complete(self, chains: range) -> None:
        """Make the draws of all ranks readable on each of them.

        Args:
            chains: The chains of this rank.
        """
        ...

    def read(self, group: str, counts: Sequence[int]) -> Mapping[str, torch.Tensor]:
        """Return the draws that all chains have of a group, (chain, draw, *site)."""
        ...

    def joined(self, group: str, counts: Sequence[int]) -> Mapping[str, torch.Tensor]:
        """Return all that each chain has of a group, one chain after the other, (draw, *site)."""
        ...


class Memory:
    """Keeps draws in memory.

    Args:
        groups: By group and site, tensors with room for all draws.
        previous: The posterior of an earlier part of the run.
    """

    def __init__(
        self, groups: Mapping[str, Mapping[str, torch.Tensor]], previous: Posterior | None
    ) -> None:
        self._groups = groups
        if previous is None:
            return
        for group, draws in (
            ("posterior", previous.draws),
            ("sample_stats", previous.sample_stats),
        ):
            for site, tensor in groups[group].items():
                tensor[:, : previous.num_draws] = draws[site]
        assert previous.divergence_chain is not None
        for chain in range(previous.num_chains):
            mine = previous.divergence_chain == chain
            self.write(
                "divergences", chain, 0, {s: v[mine] for s, v in previous.divergences.items()}
            )

    def write(self, group: str, chain: int, start: int, values: Mapping[str, torch.Tensor]) -> None:
        """Keep draws of one chain."""
        for site, value in values.items():
            self._groups[group][site][chain, start : start + len(value)] = value

    def save_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Do nothing: what is in memory cannot be gone on with after the process has ended."""

    def complete(self, chains: range) -> None:
        """Fetch the draws of the chains of other ranks."""
        self._groups = {
            group: {s: ranks().joined(v[chains.start : chains.stop]) for s, v in sites.items()}
            for group, sites in self._groups.items()
        }

    def read(self, group: str, counts: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the draws that all chains have."""
        whole = min(counts)
        # A part would keep the memory of the whole.
        return {
            site: value if value.shape[1] == whole else value[:, :whole].clone()
            for site, value in self._groups[group].items()
        }

    def joined(self, group: str, counts: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return all that each chain has, one chain after the other."""
        return {
            site: torch.cat([rows[:count] for rows, count in zip(value, counts, strict=True)])
            for site, value in self._groups[group].items()
        }


class Stream:
    """Takes draws out of the state of the chains, and says where the chains are.

    Args:
        state: The chains.
        chains: The numbers of the chains of this rank; others in the state fill up a group.
        values: From unconstrained draws to values of sites.
        keeper: Where they are kept.
        folder: The folder that it is, if it is one: where the chains are is kept there as well,
            from time to time, by the first rank for all.
        earlier: The checkpoint that the run went on from, if it did, of the chains of all ranks.
        zero: Reading of `time.perf_counter` at which the run's clock was at zero.
    """

    def __init__(
        self,
        state: State,
        chains: range,
        values: SiteValues,
        keeper: Keeper,
        *,
        folder: Path | None,
        earlier: Mapping[str, torch.Tensor],
        zero: float,
    ) -> None:
        self.state = state
        self.chains = chains
        self.keeper = keeper
        self._values = values
        self.folder = folder
        self._zero = zero
        none = torch.zeros(chains.stop, dtype=torch.int64, device="cpu")
        mine = slice(chains.start, chains.stop)
        self.written = earlier.get("written", none)[mine].clone()
        self.divergences_written = earlier.get("divergences_written", none)[mine].clone()
        self._safe = int(self.written.min())
        self._lock = threading.Lock()
        self._next = time.perf_counter() + _CHECKPOINT_SECONDS

    def take(self, chain: int) -> None:
        """Take away the draws of a chain, which stands still."""
        if chain >= len(self.chains):
            return
        state, number = self.state, self.chains[chain]
        with self._lock:
            kept, start = int(state.kept[chain]), int(self.written[chain])
            if kept:
                values = self._values(state.draws[chain, :kept], start)
                self.keeper.write("posterior", number, start, values)
                statistics = statistics_of(state.statistics[chain, :kept], state.kernel)
                self.keeper.write("sample_stats", number, start, statistics)
                self.written[chain] += kept
                state.kept[chain] = 0
            start = int(self.divergences_written[chain])
            stop = min(int(state.divergences[chain]), state.divergence_capacity)
            if stop > start:
                values = self._values(state.divergence_positions[chain, start:stop], start)
                self.keeper.write("divergences", number, start, values)
                self.divergences_written[chain] = stop

    def due(self) -> bool:
        """Return whether it is time for all chains to stand still for a moment."""
        return self.folder is not None and time.perf_counter() >= self._next

    def rest(self) -> None:
        """Take away all draws, and then keep where the chains are; they all stand still."""
        started = time.perf_counter()
        for chain in range(len(self.chains)):
            self.take(chain)
        here = ranks()
        if self.folder is not None:
            checkpoint = self.checkpoint(everywhere=False)
            if here.first:
                self.keeper.save_state(checkpoint)
        self._safe = int(self.written.min())
        now = time.perf_counter()
        pause = max(_CHECKPOINT_SECONDS, (now - started) / _CHECKPOINT_SHARE)
        if self.folder is not None:
            pause = here.from_first(pause)  # lest ranks wait for each other the next time
        self._next = now + pause

    def explained(self, error: OSError) -> OSError:
        """Return an error of writing with what was kept, and what to do.

        Args:
            error: What went wrong.
        """
        if self.folder is None:
            return error
        reason = error.strerror or str(error)
        return OSError(
            error.errno,
            f"{reason}: {self._safe} draws of each chain are kept in {self.folder}. Make room "
            f"there; then {RESUME}",
        )

    def checkpoint(self, *, everywhere: bool = True) -> dict[str, torch.Tensor]:
        """Return all that the rest of the run depends on, draws taken away, of all ranks' chains.

        Args:
            everywhere: Whether all ranks get it; else all but the first get nothing.
        """
        own = self._own_checkpoint()
        if ranks().size == 1:
            return own
        return _joined([load(part) for part in ranks().gather(save(own), everywhere=everywhere)])

    def _own_checkpoint(self) -> dict[str, torch.Tensor]:
        state, mine = self.state, slice(0, len(self.chains))
        left_out = set(_TAKEN_AWAY)
        if bool((state.transition[mine] >= state.warmup).all()):
            left_out |= _WARMUP_ONLY
        if bool((state.phase[mine] == Phase.DONE).all()):
            left_out |= _IN_PROGRESS
        tensors = {
            field.name: getattr(state, field.name)[mine].cpu()
            for field in fields(State)
            if isinstance(getattr(state, field.name), torch.Tensor) and field.name not in left_out
        }
        # Of tensors that fill up row by row, what is filled.
        filled = {"divergence_positions": self.divergences_written}
        filled |= dict.fromkeys(_WARMUP_ONLY, state.remembered[mine])
        for name in filled.keys() & tensors.keys():
            tensors[name] = tensors[name][:, : int(filled[name].max())].clone()
        tensors["written"] = self.written.clone()
        tensors["divergences_written"] = self.divergences_written.clone()
        seconds = time.perf_counter() - self._zero
        tensors["seconds"] = torch.tensor(seconds, dtype=torch.float64)
        return tensors


def _joined(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the checkpoint of the chains of all ranks.

    A rank leaves out what its own chains need no more, and of rows that fill up those beyond.

    Args:
        parts: The checkpoint of each rank's chains.
    """
    joined: dict[str, torch.Tensor] = {}
    for name, some in {name: value for part in parts for name, value in part.items()}.items():
        if some.ndim == 0:
            joined[name] = parts[0][name]
            continue
        rows = [
            part.get(name, some.new_zeros(len(part["written"]), *some.shape[1:])) for part in parts
        ]
        if some.ndim > 1:
            length = max(value.shape[1] for value in rows)
            for i, value in enumerate(rows):
                rows[i] = value.new_zeros(len(value), length, *value.shape[2:])
                rows[i][:, : value.shape[1]] = value
        joined[name] = torch.cat(rows)
    return joined


def restore(state: State, checkpoint: Mapping[str, torch.Tensor], chains: range) -> None:
    """Put chains to where they were.

    Args:
        state: The chains, new.
        checkpoint: What `Stream.checkpoint` returned of a run with the same options, on any number
            of ranks.
        chains: Which of its chains they are; others in the state fill up a group.
    """
    state.phase[len(chains) :] = Phase.DONE
    for field in fields(State):
        value = checkpoint.get(field.name)
        if value is not None:
            rows = value[chains.start : chains.stop]
            target = getattr(state, field.name)[: len(chains)]
            (target if value.ndim == 1 else target[:, : value.shape[1]]).copy_(rows)
