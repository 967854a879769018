"""The log evidence by bridge sampling from Markov chains, where a guide's weights have none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core import LogDensity, Posterior
from ppl_gen.core.arguments import num_bytes
from ppl_gen.core.evaluation import compiled
from ppl_gen.core.scope import isolated
from ppl_gen.core.weighing import in_double
from ppl_gen.diagnostics.evidence import Evidence, bridge_evidence
from ppl_gen.judge.weights import Weights

__all__ = ["evidence_of_chains", "is_below_bound", "lacking", "with_gap"]

Array: TypeAlias = NDArray[np.float64]

# Beyond so many coordinates a normal proposal has nothing in common with the posterior.
_MOST_COORDINATES = 100
_DRAWS_PER_COORDINATE = 10
# Draws of either kind, and numbers in data and coordinates of all of them: a second or two.
_DRAWS = 10_000
_WORK = 2 * 10**8
# PyTorch computes fewer, and so many numbers at once.
_EAGER_DRAWS = 1000
_BLOCK = 2**22
_LANES = 8
# Draws of a chain that are left of it, for its autocorrelation.
_LEAST_DRAWS = 10


def evidence_of_chains(posterior: Posterior, seed: int) -> Evidence:
    """Return the log evidence of a model by draws of its posterior.

    The proposal is the normal with mean and covariance of the first half of each chain, on the
    unconstrained space; the other halves are weighed against draws of it.

    Args:
        posterior: Markov chains that have passed their checks, with pair and data.
        seed: Seed of the proposal's draws.

    Raises:
        ValueError: If it cannot be computed, and why.

    References:
        Gronau et al. (2017), A tutorial on bridge sampling, arXiv:1703.05984.
    """
    if posterior.pair is None or posterior.data is None or posterior.local_plate is not None:
        raise ValueError("it holds no pair or no data")
    wide = in_double(posterior)
    with isolated(seed, wide._dtype), torch.no_grad():
        density = LogDensity(wide.pair, wide.data or {}, dtype=wide._dtype, prepared=True)
        _check(posterior, density)
        draws = {name: posterior[name].to(wide._dtype) for name in density.sites}
        vectors = density.unconstrain(draws).double()
        half = posterior.num_draws // 2
        fitted, weighed = vectors[:, :half].reshape(-1, density.dim), vectors[:, half:]
        center = fitted.mean(dim=0)
        factor = torch.linalg.cholesky(torch.cov(fitted.mT).reshape(density.dim, density.dim))
        with warnings.catch_warnings(), torch.enable_grad():
            # The fit has said so.
            warnings.filterwarnings("ignore", message="the model runs on the eager engine")
            native = compiled(density, _LANES)
        work = density.dim + num_bytes(density.data) // 8
        most = _EAGER_DRAWS if native is None else _DRAWS
        count = min(most, max(_WORK // work, 1000))
        weighed = weighed[:, :: _stride(posterior.num_chains, weighed.shape[1], count)]
        noise = torch.randn(count, density.dim, dtype=torch.float64)
        rows = torch.cat([weighed.reshape(-1, density.dim), center + noise @ factor.mT])
        if native is None:
            parts = rows.to(density.dtype).split(max(_BLOCK // (10 * work), 1))
            log_joint = torch.cat([density.log_prob(part) for part in parts]).double()
        else:
            log_joint = native(rows)[0]
        log_proposal = _log_normal(rows - center, factor)
    split = weighed.shape[0] * weighed.shape[1]
    of_draws = (posterior.num_chains, weighed.shape[1])
    return bridge_evidence(
        log_joint[:split].reshape(of_draws).numpy(),
        log_proposal[:split].reshape(of_draws).numpy(),
        log_joint[split:].numpy(),
        log_proposal[split:].numpy(),
    )


def lacking(weights: Mapping[str, Weights]) -> list[str]:
    """Return the names of the guides whose weights give no log evidence."""
    return [name for name, w in weights.items() if math.isnan(w.findings.log_evidence[0])]


def with_gap(weights: Weights, posterior: Posterior, found: Evidence) -> Weights:
    """Return weights with how far the guide's bound is below the evidence.

    Args:
        weights: The weights of the guide.
        posterior: The posterior that has it.
        found: The evidence by chains of the same model.
    """
    if posterior.elbo is None or not math.isnan(weights.findings.elbo_gap):
        return weights
    gap = found.log_evidence - posterior.elbo[0]
    return replace(weights, findings=replace(weights.findings, elbo_gap=gap))


def is_below_bound(posterior: Posterior, found: Evidence) -> bool:
    """Return whether an estimate is below a bound that no log evidence is below.

    Args:
        posterior: The posterior that has the bound.
        found: The evidence by chains of the same model.
    """
    if posterior.elbo is None:
        return False
    bound, error = posterior.elbo
    return found.log_evidence - bound < -3 * math.hypot(found.error, error)


def _stride(chains: int, draws: int, count: int) -> int:
    """Return of how many draws of each chain one is taken, for so many draws of all chains."""
    return max(min(-(-chains * draws // count), draws // _LEAST_DRAWS), 1)


def _check(posterior: Posterior, density: LogDensity) -> None:
    improper = [n for n, s in density.sites.items() if s.distribution == "ImproperUniform"]
    if improper:
        raise ValueError(f"the prior of {', '.join(improper)} is improper: there is no evidence")
    missing = [name for name in density.sites if name not in posterior.draws]
    if missing:
        raise ValueError(f"it has no draws of {', '.join(missing)}")
    if density.dim > _MOST_COORDINATES:
        raise ValueError(
            f"the model has {density.dim} coordinates, and it is for up to {_MOST_COORDINATES}"
        )
    count = posterior.num_chains * (posterior.num_draws // 2)
    if count < _DRAWS_PER_COORDINATE * density.dim:
        raise ValueError(f"{2 * count} draws are too few for {density.dim} coordinates")


def _log_normal(centred: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return log densities of a normal, (draw,), of what is left of its mean, (draw, dim)."""
    scaled = torch.linalg.solve_triangular(factor, centred.mT, upper=False)
    constant = factor.diagonal().log().sum() + 0.5 * len(factor) * math.log(2 * math.pi)
    value: torch.Tensor = -0.5 * scaled.square().sum(dim=0) - constant
    return value
