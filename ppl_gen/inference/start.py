"""Points to start from."""

from __future__ import annotations

import math

import torch

from ppl_gen.core import LogDensity

__all__ = ["find_start", "is_finite_at", "not_finite_at_start", "refuse_constant"]


def find_start(density: LogDensity, attempts: int = 100) -> torch.Tensor:
    """Return a point of finite log density and gradient: the origin, or one near it.

    Args:
        density: The log density.
        attempts: Number of points to try.

    Raises:
        ValueError: If none is found, naming the site.
    """
    origin = torch.zeros(density.dim, dtype=density.dtype, device=density.device)
    for attempt in range(attempts):
        spread = 2.0 if attempt else 0.0
        point = origin + spread * (2 * torch.rand_like(origin) - 1)
        if is_finite_at(density, point):
            return point
    raise not_finite_at_start(density, origin, attempts)


def is_finite_at(density: LogDensity, point: torch.Tensor) -> bool:
    """Return whether log density and gradient are finite at a point."""
    leaf = point.detach().clone().requires_grad_()
    value = density.log_prob(leaf)
    if not bool(torch.isfinite(value)):
        return False
    (gradient,) = torch.autograd.grad(value, leaf)
    return bool(torch.isfinite(gradient).all())


def refuse_constant(density: LogDensity) -> None:
    """Refuse a log density that depends on none of its latent sites.

    Args:
        density: The log density.

    Raises:
        ValueError: If it is the same everywhere.
    """
    origin = torch.zeros(density.dim, dtype=density.dtype, device=density.device)
    if not density.log_prob(origin.requires_grad_()).requires_grad:
        names = ", ".join(f"'{name}'" for name in density.sites)
        msg = (
            f"the log density is the same whatever the values of {names}: their priors are "
            "improper, and no data depend on them. Give them proper priors, or observe a site that "
            "depends on them."
        )
        raise ValueError(msg)


def not_finite_at_start(density: LogDensity, point: torch.Tensor, attempts: int) -> ValueError:
    """Return the error that names the sites whose log density is not finite at a start point."""
    terms = density.log_prob_by_site(point)
    bad = [f"'{name}' ({term})" for name, term in terms.items() if not math.isfinite(term)]
    where = f"site {', '.join(bad)}" if bad else "the gradient of the log density"
    return ValueError(
        f"no start point: {where} is not finite at any of {attempts} points. Check that the data "
        "lie in the support of the likelihood, and the scales of the priors."
    )
