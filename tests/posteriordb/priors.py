"""Priors that Pyro has no distribution for, as factors on an improper uniform site."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import Constraint

__all__ = ["flat", "restricted"]


def flat(name: str, support: Constraint, *shape: int) -> torch.Tensor:
    """Sample a site that is uniform on its support.

    Args:
        name: The site's name.
        support: Its support, all of `shape` one event.
        shape: Its shape.
    """
    value: torch.Tensor = pyro.sample(name, dist.ImproperUniform(support, (), shape))
    return value


def restricted(name: str, prior: dist.Distribution, support: Constraint) -> torch.Tensor:
    """Sample a site from a prior cut to a part of its support.

    The prior's mass in that part is left out: the posterior does not depend on it.

    Args:
        name: The site's name.
        prior: The prior on all of its support.
        support: The part, for a vector as one event.
    """
    value = flat(name, support, *prior.batch_shape, *prior.event_shape)
    pyro.factor(f"{name}_prior", prior.log_prob(value).sum())
    return value
