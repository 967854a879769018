"""Values and gradients of a log density for many vectors at once, compiled where possible."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeAlias

import torch

from ppl_gen.core.compiler.compiled import CannotCompile, CompiledLogDensity, NoCompiler
from ppl_gen.core.log_density import LogDensity

__all__ = ["Evaluate", "compiled", "eagerly", "evaluation"]

# From vectors (n, dim) to values (n,) and gradients (n, dim), on the CPU, in double precision.
Evaluate: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

_LANES = 8


def evaluation(density: LogDensity) -> Evaluate:
    """Return a function from vectors (n, dim) to values (n,) and gradients (n, dim).

    Args:
        density: The log density. On the CPU it is compiled; where that cannot be done, it is
            evaluated by PyTorch, with a warning that says why.
    """
    return compiled(density, _LANES) or eagerly(density)


def compiled(density: LogDensity, lanes: int) -> CompiledLogDensity | None:
    """Return the compiled density, or None, with a warning, where there is none to be had.

    Args:
        density: The log density; None without a word where it is not on the CPU.
        lanes: Number of vectors of one call.
    """
    if density.device.type != "cpu":
        return None
    points = 4 * torch.rand(4, density.dim, dtype=torch.float64) - 2
    try:
        found = CompiledLogDensity(density, points[0], lanes)
        found.check(points)
    except (CannotCompile, NoCompiler) as reason:
        warnings.warn(
            f"the model runs on the eager engine, which is much slower: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return found


def eagerly(density: LogDensity) -> Evaluate:
    """Return a function from vectors (n, dim) to values (n,) and gradients, without compiling."""

    def evaluate(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = vectors.detach().clone().to(density.device, density.dtype).requires_grad_()
        values = density.log_prob(leaf)
        (gradients,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach().cpu().double(), gradients.cpu().double()

    return evaluate
