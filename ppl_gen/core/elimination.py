"""Exact sums over discrete variables in log space, and exact joint draws of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import torch
from pyro.ops import packed
from pyro.ops.rings import LogRing

__all__ = ["Elimination"]


class Elimination(LogRing):
    """A sum-product ring that sums one variable out at a time, and remembers the steps.

    It is given to `pyro.ops.contract.contract_tensor_tree`, which handles plates. Tensors are
    packed, as Pyro calls it: their attribute `_pyro_dims` has one character for each axis.

    Pyro's own ring multiplies factors scaled by their largest elements, which underflows where
    they are far apart, and its logarithm cannot be batched by `torch.func.vmap`. Here factors are
    added in log space, so that sums are exact to round-off, and zero probabilities have zero
    gradients.

    Args:
        sizes: Size of each axis by its character; only `draw` needs it.
    """

    def __init__(self, sizes: Mapping[str, int] | None = None) -> None:
        super().__init__(cache={}, dim_to_size=dict(sizes or {}))  # type: ignore[no-untyped-call]
        self.steps: list[tuple[str, torch.Tensor]] = []

    def sumproduct(self, terms: list[torch.Tensor], dims: Collection[str]) -> torch.Tensor:
        """Return the logarithm of the product of terms, summed over variables.

        Args:
            terms: Logarithms of the factors.
            dims: Variables to sum out.
        """
        terms = list(terms)
        for dim in _order(tuple(_dims(term) for term in terms), "".join(sorted(dims))):
            factor = _add([term for term in terms if dim in _dims(term)])
            self.steps.append((dim, factor))
            terms = [term for term in terms if dim not in _dims(term)]
            terms.append(_sum_out(factor, dim))
        return _add(terms)

    def draw(self, plates: Mapping[str, frozenset[str]]) -> dict[str, torch.Tensor]:
        """Return a draw of all variables that were summed out, from their joint distribution.

        A variable's factor in the step that summed it out depends on nothing but itself and
        variables summed out later. Going back through the steps, each is drawn given those.

        Args:
            plates: The plates of each variable: one draw is made for each of their elements.

        Returns:
            Packed tensors of indices by variable.
        """
        drawn: dict[str, torch.Tensor] = {}
        for dim, factor in reversed(self.steps):
            for other in _dims(factor):
                if other in drawn:
                    factor = packed.gather(factor, drawn[other], other)
            factor = self.broadcast(factor, plates[dim])  # type: ignore[no-untyped-call]
            axis = _dims(factor).index(dim)
            # The largest of Gumbel variables shifted by log-weights is a draw of those weights.
            noise = torch.empty_like(factor).exponential_().log()
            index = (factor - noise).argmax(axis)
            drawn[dim] = _packed(index, _dims(factor).replace(dim, ""))
        return drawn


@lru_cache(maxsize=1024)
def _order(terms: tuple[str, ...], dims: str) -> str:
    """Return the variables in an order of elimination that keeps factors small.

    The next one is that whose factor has the fewest axes; of equals the one sampled last, since
    what depends on others is best summed out before them.
    """
    # What shares a factor with each variable, itself included.
    near = {dim: set().union(*(term for term in terms if dim in term)) for dim in dims}
    left = sorted(dims, reverse=True)
    order = ""
    while left:
        best = min(left, key=lambda dim: len(near[dim]))
        left.remove(best)
        order += best
        joined = near.pop(best) - {best}
        for dim in joined & near.keys():
            near[dim] = (near[dim] | joined) - {best}
    return order


def _dims(term: Any) -> str:
    dims: str = term._pyro_dims
    return dims


def _packed(term: torch.Tensor, dims: str) -> torch.Tensor:
    term._pyro_dims = dims  # type: ignore[attr-defined]
    return term


def _add(terms: list[torch.Tensor]) -> torch.Tensor:
    if len(terms) == 1:
        return terms[0]
    dims = "".join(sorted(set().union(*(_dims(term) for term in terms))))
    total = _aligned(terms[0], dims)
    for term in terms[1:]:
        total = total + _aligned(term, dims)
    return _packed(total, dims)


def _aligned(term: torch.Tensor, dims: str) -> torch.Tensor:
    """Return a term with the axes given, those that it lacks of size 1."""
    own = _dims(term)
    if own == dims:
        return term
    axes = [own.index(dim) for dim in dims if dim in own]
    shape = [term.shape[own.index(dim)] if dim in own else 1 for dim in dims]
    return term.permute(axes).reshape(shape)


def _sum_out(factor: torch.Tensor, dim: str) -> torch.Tensor:
    """Return the log of the sum of exponentials along one axis.

    `torch.logsumexp` has undefined gradients where all elements are -inf, such as for a state that
    cannot be reached.
    """
    axis = _dims(factor).index(dim)
    finfo = torch.finfo(factor.dtype)
    largest = factor.detach().amax(axis, keepdim=True).clamp(min=finfo.min)
    total = (factor - largest).exp().sum(axis)
    value = total.clamp(min=finfo.tiny).log() + largest.squeeze(axis)
    return _packed(value.masked_fill(total == 0, -math.inf), _dims(factor).replace(dim, ""))
