"""Posteriors made of independent draws, whose errors are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core import Posterior

Array = NDArray[np.float64]


def posterior(draws: Array, chains: int = 4, *, is_mcmc: bool = True, **options: Any) -> Posterior:
    """Make a posterior of one site x from draws (draw, *x), shared out to chains."""
    values = torch.from_numpy(np.ascontiguousarray(draws, dtype=np.float64))
    values = values.reshape(chains, len(draws) // chains, *draws.shape[1:])
    return Posterior(draws={"x": values}, latents=("x",), is_mcmc=is_mcmc, **options)


def guide(draws: Array, **options: Any) -> Posterior:
    """Make a posterior of one chain that is none."""
    return posterior(draws, 1, is_mcmc=False, **options)


def normal(seed: int, scalars: int = 3, draws: int = 4000, correlation: float = 0.0) -> Array:
    """Draw standard normals, the first two correlated, (draw, scalar)."""
    values = np.random.default_rng(seed).normal(size=(draws, scalars))
    if scalars > 1:
        values[:, 1] = correlation * values[:, 0] + np.sqrt(1 - correlation**2) * values[:, 1]
    return values
