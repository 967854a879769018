"""Where chains start, and with what metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch

from ppl_gen.core import LogDensity
from ppl_gen.core.evaluation import Evaluate
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.scope import unchecked
from ppl_gen.core.structure import StartValues, trace_sites
from ppl_gen.inference.mcmc.metric import Kind, Metric, estimate, initial
from ppl_gen.inference.start import not_finite_at_start

if TYPE_CHECKING:
    from ppl_gen.core import Posterior

__all__ = ["Init", "first_metric", "start_points"]

Init: TypeAlias = "Literal['uniform', 'prior', 'map'] | Posterior"

_ATTEMPTS = 100
_APPROACH_STEPS = 100
_FAR_OUT = 1000.0


def start_points(
    density: LogDensity, evaluate: Evaluate, chains: int, init: Init
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a start point of finite log density and gradient for each chain.

    Args:
        density: The log density.
        evaluate: Values (n,) and gradients (n, dim) of vectors (n, dim).
        chains: Number of chains.
        init: "uniform": each coordinate uniform on (-2, 2), moved uphill where it is so far out
            that a step gains more than a thousand nats a dimension; "prior": drawn from the
            prior; "map": near a mode that is climbed from a uniform point; a posterior: among
            its draws.

    Returns:
        Points (chains, dim), log densities (chains,) and gradients (chains, dim).

    Raises:
        ValueError: If none is found in 100 attempts, naming the sites.
    """
    points = torch.zeros(chains, density.dim, dtype=torch.float64)
    values, gradients = torch.full((chains,), torch.nan, dtype=torch.float64), points.clone()
    missing = torch.arange(chains)
    for attempt in range(_ATTEMPTS):
        tried = _propose(density, evaluate, len(missing), init, attempt)
        value, gradient = evaluate(tried)
        points[missing], values[missing], gradients[missing] = tried, value, gradient
        good = torch.isfinite(value) & torch.isfinite(gradient).all(dim=-1)
        missing = missing[~good]
        if len(missing) == 0:
            return points, values, gradients
    bad = points[missing[0]].to(density.device, density.dtype)
    raise not_finite_at_start(density, bad, _ATTEMPTS)


def _propose(
    density: LogDensity, evaluate: Evaluate, count: int, init: Init, attempt: int
) -> torch.Tensor:
    if init == "prior":
        return _prior(density, count)
    uniform = 4 * torch.rand(count, density.dim, dtype=torch.float64) - 2
    if init == "uniform":
        # Astronomically far out gradients say nothing about the scale, and a chain gets stuck.
        return _ascend(evaluate, uniform, _APPROACH_STEPS, least_gain=_FAR_OUT * density.dim)
    if init == "map":
        # Chains that all start in one point could not tell that they have not mixed.
        modes = torch.stack([_mode(evaluate, point) for point in uniform])
        return modes + 0.1 * torch.randn_like(modes)
    draws = _unconstrained(density, init)
    return draws[torch.randint(len(draws), (count,))]


def _prior(density: LogDensity, count: int) -> torch.Tensor:
    """Draw from the prior; improper sites from inside their supports."""
    names = list(density.sites)

    def draw(_: object) -> dict[str, torch.Tensor]:
        sites = trace_sites(density.pair, density.data)
        return {name: sites[name].value for name in names}

    with unchecked(), AnswerParams(density.pair), StartValues():
        drawn = [draw(None) for _ in range(count)]
    values = {name: torch.stack([one[name] for one in drawn]) for name in names}
    return density.unconstrain(values).cpu().double()


def _ascend(
    evaluate: Evaluate, points: torch.Tensor, steps: int, least_gain: float
) -> torch.Tensor:
    """Climb from each point along the gradient, by steps that grow with success.

    Args:
        evaluate: Values and gradients.
        points: Start points, (n, dim).
        steps: At most so many evaluations.
        least_gain: A point rests as soon as a step gains less than that.
    """
    values, gradients = evaluate(points)
    length = torch.full((len(points),), 0.1, dtype=torch.float64)
    resting = ~torch.isfinite(values) | ~torch.isfinite(gradients).all(dim=-1)
    for _ in range(steps):
        if bool(resting.all()):
            break
        size = gradients.norm(dim=-1).clamp(min=1e-300)
        tried = points + (length / size).unsqueeze(-1) * gradients
        value, gradient = evaluate(tried)
        gain = torch.where(torch.isfinite(value), value - values, -torch.inf)
        moved = (gain > 0) & torch.isfinite(gradient).all(dim=-1) & ~resting
        resting |= moved & (gain < least_gain)
        resting |= length < 1e-12
        length = torch.where(moved, 1.5 * length, 0.3 * length)
        points = torch.where(moved.unsqueeze(-1), tried, points)
        gradients = torch.where(moved.unsqueeze(-1), gradient, gradients)
        values = torch.where(moved, value, values)
    return points


def _mode(evaluate: Evaluate, point: torch.Tensor) -> torch.Tensor:
    """Climb from a point to a mode by L-BFGS."""
    from scipy.optimize import minimize

    def descent(vector: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = evaluate(torch.from_numpy(vector).unsqueeze(0))
        finite = bool(torch.isfinite(value)) and bool(torch.isfinite(gradient).all())
        return (-float(value), -gradient[0].numpy()) if finite else (1e300, 0 * vector)

    found = minimize(descent, point.numpy(), jac=True, method="L-BFGS-B")
    return torch.from_numpy(found.x)


def _unconstrained(density: LogDensity, posterior: Posterior) -> torch.Tensor:
    """Return a posterior's draws as unconstrained vectors, (n, dim)."""
    values = {name: posterior[name].flatten(0, 1) for name in density.sites}
    vectors = density.unconstrain(values).cpu().double()
    return vectors[torch.isfinite(vectors).all(dim=-1)]


def first_metric(
    density: LogDensity, kind: Kind, rank: int, gradient: torch.Tensor, init: Init
) -> Metric:
    """Return the metric that a chain starts with.

    Args:
        density: The log density.
        kind: The form of the metric.
        rank: Directions of a low-rank metric.
        gradient: Gradient at the chain's start point, (dim,).
        init: What the chains start from: a posterior gives its covariance.
    """
    if isinstance(init, str):
        return initial(kind, gradient.numpy(), rank=rank)
    draws = _unconstrained(density, init).numpy()
    return estimate(kind, draws, draws, rule="variance", rank=rank)
