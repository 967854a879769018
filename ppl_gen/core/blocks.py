"""Where latent sites stand in the flat vector of a log density, and how they get their values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger

from ppl_gen.core.bijections import bijection_to
from ppl_gen.core.errors import SiteError
from ppl_gen.core.structure import Site, kind_of

__all__ = ["Block", "Invert", "Substitute", "comes_and_goes", "most_axes", "same_support"]


@dataclass(frozen=True)
class Block:
    """The place of one latent site in the flat vector.

    Args:
        site: The site.
        shape: Shape of its unconstrained value.
        start: First element in the vector.
        bijection: From the unconstrained value to the site's support, or None where the support
            depends on other latents and the bijection is made anew at the site.
    """

    site: Site
    shape: tuple[int, ...]
    start: int
    bijection: Any | None

    @property
    def stop(self) -> int:
        """One past the last element in the vector."""
        return self.start + math.prod(self.shape)

    def bijection_at(self, msg: Mapping[str, Any]) -> Any:
        """Return the bijection to the support that the site has in this run."""
        if self.bijection is not None:
            return self.bijection
        return bijection_to(msg["fn"].support, self.site.shape)

    def read(self, vector: torch.Tensor) -> torch.Tensor:
        """Return the site's part of a vector, (*batch, dim) to (*batch, *shape)."""
        return vector[..., self.start : self.stop].reshape(vector.shape[:-1] + self.shape)


class Substitute(Messenger):
    """Gives latent sites their values from a vector and adds up the log-Jacobian."""

    def __init__(self, blocks: Mapping[str, Block], vector: torch.Tensor) -> None:
        super().__init__()
        self.blocks = blocks
        self.vector = vector
        self.values: dict[str, torch.Tensor] = {}
        self.log_jacobian: torch.Tensor | float = 0.0

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        block = self.blocks.get(msg["name"])
        if block is None:
            if not msg["is_observed"] and kind_of(msg) == "latent":
                raise comes_and_goes(msg["name"])
            return
        bijection = block.bijection_at(msg)
        unconstrained = block.read(self.vector)
        value = bijection(unconstrained)
        # An empty composition is the identity. A domain or codomain cannot tell: PyTorch calls that
        # of a positive support real.
        if getattr(bijection, "parts", bijection):
            jacobian = bijection.log_abs_det_jacobian(unconstrained, value)
            self.log_jacobian = self.log_jacobian + jacobian.sum()
        self.values[msg["name"]] = value
        msg["value"] = value
        msg["done"] = True

    def check_complete(self) -> None:
        """Refuse a run that had no place for some part of the vector."""
        for name in self.blocks:
            if name not in self.values:
                raise comes_and_goes(name)


class Invert(Messenger):
    """Finds the unconstrained values of latent sites, each at its site."""

    def __init__(self, blocks: Mapping[str, Block], values: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.blocks = blocks
        self.values = values
        self.parts: dict[str, torch.Tensor] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        block = self.blocks.get(msg["name"])
        if block is None:
            return
        bijection = block.bijection_at(msg)
        msg["value"] = self.values[msg["name"]]
        msg["done"] = True
        self.parts[msg["name"]] = bijection.inv(msg["value"])


def comes_and_goes(name: str) -> SiteError:
    """Return the error for a latent site that some runs of the model do not have."""
    return SiteError(
        name,
        expected="the same latent sites in every run of the model",
        got="a site that is sampled in some runs only",
        remedy="Sample it always, and choose by torch.where or a mixture whether it is used: a "
        "posterior needs a fixed set of unknowns.",
    )


def most_axes(support: constraints.Constraint) -> int:
    """Return the most axes that a bound of a support has."""
    axes = [
        value.ndim if isinstance(value, torch.Tensor) else most_axes(value)
        for value in vars(support).values()
        if isinstance(value, torch.Tensor | constraints.Constraint)
    ]
    return max(axes, default=0)


def same_support(a: constraints.Constraint, b: constraints.Constraint) -> bool:
    """Return whether two runs gave a site the same support, bounds included."""
    if type(a) is not type(b):
        return False
    left, right = vars(a), vars(b)
    for name in left:
        x, y = left[name], right.get(name)
        if isinstance(x, constraints.Constraint) and isinstance(y, constraints.Constraint):
            same = same_support(x, y)
        elif isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            same = x.shape == y.shape and bool(torch.equal(x, y))
        else:
            same = type(x) is type(y) and bool(x == y) if not isinstance(x, torch.Tensor) else False
        if not same:
            return False
    return True
