"""The state of all chains: plain tensors that both engines advance and a checkpoint holds."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import torch

__all__ = ["Kernel", "MetricKind", "Phase", "State", "Statistic"]


class Phase(IntEnum):
    """What a chain is at."""

    SEARCHING = 0  # for a first step size
    MOVING = 1
    WAITING = 2  # for the driver: warm-up's next stage, or draws to be taken away
    DONE = 3


class Kernel(IntEnum):
    """The transition."""

    NUTS = 0
    HMC = 1
    RANDOM_WALK = 2


class MetricKind(IntEnum):
    """The form of the linear map A whose A A' is the inverse mass matrix."""

    DIAG = 0
    DENSE = 1
    LOW_RANK = 2


class Statistic(IntEnum):
    """Position of each statistic of a draw."""

    LP = 0
    ENERGY = 1
    ACCEPTANCE_RATE = 2
    TREE_DEPTH = 3
    N_STEPS = 4
    STEP_SIZE = 5
    DIVERGING = 6


@dataclass
class State:
    """Everything that the next step of each chain depends on.

    Numbers are options, tensors have one row for each chain: (chains,) or (chains, ..., dim),
    float64 or int64. Random numbers are a function of `key`, `transition` and a count, so that no
    generator's state is kept.
    """

    # Options.
    dim: int
    chains: int
    warmup: int
    thinning: int
    kernel: int
    metric: int
    max_tree_depth: int
    max_steps: int  # of an HMC path
    max_rank: int  # of a low-rank metric
    chunk: int  # draws that `draws` holds
    memory: int  # transitions that the window holds
    divergence_capacity: int
    target_accept: float
    path_length: float
    max_energy_error: float  # beyond it a trajectory diverges

    # Where a chain is: what it would need if it were stopped between two transitions.
    key: torch.Tensor
    phase: torch.Tensor
    transition: torch.Tensor  # number made
    next_stop: torch.Tensor  # transition at which it waits
    tree_position: torch.Tensor  # the present draw, or the one proposed so far
    tree_gradient: torch.Tensor
    tree_log_prob: torch.Tensor
    evaluations: torch.Tensor  # of the gradient

    # Adaptation.
    step_size: torch.Tensor
    average_origin: torch.Tensor
    average_error: torch.Tensor
    log_step_average: torch.Tensor
    average_count: torch.Tensor
    depth_sum: torch.Tensor  # of the trees of the warm-up
    depth_count: torch.Tensor
    search_direction: torch.Tensor
    search_steps: torch.Tensor
    scale: torch.Tensor  # (chains, dim)
    factor: torch.Tensor  # (chains, dim, dim), dense only
    directions: torch.Tensor  # (chains, max_rank, dim), low rank only
    stretch: torch.Tensor  # (chains, max_rank)
    rank: torch.Tensor
    window_positions: torch.Tensor  # (chains, memory, dim), the last ones, in a ring
    window_gradients: torch.Tensor
    window_log_probs: torch.Tensor  # (chains, memory)
    remembered: torch.Tensor  # number put there
    abandoned: torch.Tensor  # log weight of the region it was taken out of; 0: none

    # The leapfrog in progress, momenta and forces whitened.
    position: torch.Tensor
    momentum: torch.Tensor
    force: torch.Tensor
    gradient: torch.Tensor
    log_prob: torch.Tensor
    previous: torch.Tensor  # the position before
    last_momentum: torch.Tensor
    scratch: torch.Tensor
    direction: torch.Tensor
    energy: torch.Tensor  # at the start of the transition
    steps: torch.Tensor
    depth: torch.Tensor
    leaf: torch.Tensor
    diverging: torch.Tensor
    shrink: torch.Tensor  # of the step size in this transition
    sum_acceptance: torch.Tensor

    # The tree in progress.
    left_position: torch.Tensor
    left_momentum: torch.Tensor
    left_force: torch.Tensor
    right_position: torch.Tensor
    right_momentum: torch.Tensor
    right_force: torch.Tensor
    tree_sum: torch.Tensor
    tree_log_weight: torch.Tensor
    branch_position: torch.Tensor
    branch_gradient: torch.Tensor
    branch_log_prob: torch.Tensor
    branch_sum: torch.Tensor
    branch_log_weight: torch.Tensor
    checkpoint_momentum: torch.Tensor  # (chains, max_tree_depth, dim)
    checkpoint_sum: torch.Tensor
    checkpoint_previous: torch.Tensor

    # What was drawn since the driver last took it away.
    draws: torch.Tensor  # (chains, chunk, dim)
    statistics: torch.Tensor  # (chains, chunk, len(Statistic))
    kept: torch.Tensor
    divergence_positions: torch.Tensor  # (chains, divergence_capacity, dim)
    divergences: torch.Tensor

    def check_room(self, chain: int) -> None:
        """Make sure that a chain's next draw has a place, which no engine looks at.

        A chain waits when its places are full, and goes on only by a call of the driver, which is
        to have taken its draws away.
        """
        assert self.kept[chain] < self.chunk, f"the draws of chain {chain} were not taken away"

    def struct(self) -> ctypes.Structure:
        """Return the state as the structure that the sampler in C++ reads."""
        values = [getattr(self, field.name) for field in fields(self)]
        return _structure()(*(v.data_ptr() if isinstance(v, torch.Tensor) else v for v in values))


_INTEGERS = {
    "key",
    "phase",
    "transition",
    "next_stop",
    "evaluations",
    "average_count",
    "depth_sum",
    "depth_count",
    "search_direction",
    "search_steps",
    "rank",
    "remembered",
    "direction",
    "steps",
    "depth",
    "leaf",
    "diverging",
    "kept",
    "divergences",
}
_SCALARS = {
    *_INTEGERS,
    "tree_log_prob",
    "step_size",
    "average_origin",
    "average_error",
    "log_step_average",
    "log_prob",
    "energy",
    "shrink",
    "sum_acceptance",
    "tree_log_weight",
    "branch_log_prob",
    "branch_log_weight",
    "abandoned",
}


def new_state(device: torch.device, **options: Any) -> State:
    """Return a state of zeros.

    Args:
        device: Where its tensors are.
        **options: The numbers among the state's fields.
    """
    chains, dim = options["chains"], options["dim"]
    depth = options["max_tree_depth"] if options["kernel"] == Kernel.NUTS else 0
    wide = options["metric"] == MetricKind.DENSE
    rank = options["max_rank"]
    shapes = {
        "factor": (dim if wide else 0, dim if wide else 0),
        "directions": (rank, dim),
        "stretch": (rank,),
        "window_positions": (options["memory"], dim),
        "window_gradients": (options["memory"], dim),
        "window_log_probs": (options["memory"],),
        "checkpoint_momentum": (depth, dim),
        "checkpoint_sum": (depth, dim),
        "checkpoint_previous": (depth, dim),
        "draws": (options["chunk"], dim),
        "statistics": (options["chunk"], len(Statistic)),
        "divergence_positions": (options["divergence_capacity"], dim),
    }
    tensors: dict[str, Any] = {}
    for field in fields(State):
        if field.name in options:
            continue
        shape = shapes.get(field.name, () if field.name in _SCALARS else (dim,))
        dtype = torch.int64 if field.name in _INTEGERS else torch.float64
        tensors[field.name] = torch.zeros(chains, *shape, dtype=dtype, device=device)
    return State(**options, **tensors)


def struct_declaration() -> str:
    """Return the C++ of the structure."""
    lines = []
    for field in fields(State):
        name = field.name
        if field.type == "torch.Tensor":
            lines.append(f"    {'long' if name in _INTEGERS else 'double'}* {name};")
        else:
            lines.append(f"    {'long' if field.type == 'int' else 'double'} {name};")
    return "struct State {\n" + "\n".join(lines) + "\n};\n"


def _structure() -> type[ctypes.Structure]:
    kinds = {"torch.Tensor": ctypes.c_void_p, "int": ctypes.c_long, "float": ctypes.c_double}
    members = [(field.name, kinds[str(field.type)]) for field in fields(State)]
    return type("_State", (ctypes.Structure,), {"_fields_": members})
