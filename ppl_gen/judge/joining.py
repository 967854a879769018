"""Two sets of data as one, for a model that takes the observations of both.

Data of a model with a plate over its rows are joined by stacking the rows. Each joint log density
is compared with the sum of its parts: a model in which rows depend on each other outside of what
is sampled, as by a mean over them, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from pyro import poutine
from torch import nn

from ppl_gen.core import SiteError
from ppl_gen.core.arguments import lengths
from ppl_gen.core.minibatch import find_plate
from ppl_gen.core.pair import model_of
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.replay import Replay
from ppl_gen.core.scope import isolated, unchecked
from ppl_gen.core.structure import Site, kind_of, trace_sites

__all__ = ["Join", "StackRows", "check_join"]

# From the data and new values of the observed arguments, by name, to data that hold both.
Join: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, torch.Tensor]], Mapping[str, Any]]

_REMEDY = (
    "Say how data and simulated observations are put together: join=lambda data, new: {...}, with "
    "the same latent sites."
)


@dataclass(frozen=True)
class StackRows:
    """Stacks new rows below those of the data, and the latents of new rows below the others'.

    Args:
        plate: Name of the plate over the rows.
        names: Names of the data that have rows.
    """

    plate: str
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        pair: nn.Module,
        data: Mapping[str, Any],
        sites: Mapping[str, Site],
        arguments: Mapping[str, str],
    ) -> StackRows:
        """Find the rows of a model's data.

        Args:
            pair: The pair, in double precision on the CPU.
            data: The data likewise.
            sites: The sites of its model.
            arguments: By observed site the argument that holds its values.

        Raises:
            SiteError: If an observed site is not the one value of its row in the data.
            ValueError: If the model has no plate over rows of its data.
        """
        rows = {name: size for name, size in lengths(data).items() if size > 1}
        try:
            if not rows:
                raise ValueError("the data have no two rows.")
            plate, names = find_plate(pair, data, rows, max(rows.values()))
        except ValueError as error:
            msg = (
                "the observations cannot be stacked by rows, as mini-batches are cut: "
                f"{error}\n{_REMEDY}"
            )
            raise ValueError(msg) from error
        if any(p.name == plate and p.dim is None for s in sites.values() for p in s.plates):
            msg = (
                f"plate '{plate}' runs its rows one by one: write `with pyro.plate(...)`. {_REMEDY}"
            )
            raise ValueError(msg)
        for site, argument in arguments.items():
            inside, known = sites[site].inside(plate), argument in names
            if not inside or not known or sites[site].shape != tuple(data[argument].shape):
                where = f"in plate '{plate}'" if inside else f"outside of plate '{plate}'"
                raise SiteError(
                    site,
                    expected=f"an observed site in plate '{plate}', of its argument's shape",
                    got=f"shape {sites[site].shape} {where}",
                    remedy=_REMEDY,
                )
        return cls(plate, names)

    def __call__(self, data: Mapping[str, Any], new: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return the data with the new rows, whose covariates are those of the rows before."""
        rows = {
            name: torch.cat([data[name], new.get(name, data[name]).to(data[name].dtype)])
            for name in self.names
        }
        return {**data, **rows}

    def stack(self, site: Site, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the values of a site in the plate, (*site), of both sets of rows."""
        dim = next(plate.dim for plate in site.plates if plate.name == self.plate)
        assert dim is not None
        return torch.cat([first, second], dim=len(site.shape) - site.event_dim + dim)

    def check(
        self,
        pair: nn.Module,
        sites: Mapping[str, Site],
        data: Sequence[Mapping[str, Any]],
        values: Sequence[Mapping[str, torch.Tensor]],
    ) -> None:
        """Make sure that each site's log density of all rows is that of both sets of rows.

        Args:
            pair: The pair, in double precision on the CPU.
            sites: The sites of its model.
            data: The data, the new rows in their place, and both, likewise.
            values: Values of all latent sites of each of these.

        Raises:
            SiteError: If one is not.
        """
        first, second, both = (_terms(pair, *parts) for parts in zip(data, values, strict=True))
        if first.keys() != both.keys():
            raise ValueError(f"the model has other sites with more rows.\n{_REMEDY}")
        for name, term in both.items():
            expected = first[name] + (second[name] if sites[name].inside(self.plate) else 0.0)
            if not _close(term, expected, first[name]):
                raise SiteError(
                    name,
                    expected=f"a log density of {expected:.6g}, that of both sets of rows",
                    got=f"{term:.6g} with the rows of both: it depends on all rows together",
                    remedy=_REMEDY,
                )


def check_join(
    pair: nn.Module,
    data: Mapping[str, Any],
    pairs: Iterable[tuple[Mapping[str, torch.Tensor], Mapping[str, Any], Mapping[str, Any]]],
    observed: Iterable[str],
) -> None:
    """Make sure that joined data have the likelihood of both, up to a constant.

    Args:
        pair: The pair, in double precision on the CPU.
        data: The data likewise.
        pairs: Values of all latent sites, the data with new observations, and the joined data.
            All but the values are the same each time.
        observed: Names of the observed sites.

    Raises:
        ValueError: If they do not.
    """
    excess, sizes = [], []
    for values, new, joined in pairs:
        with isolated(0, torch.float64):
            found = trace_sites(pair, joined)
        for name, value in values.items():
            expected, got = tuple(value.shape), found[name].shape if name in found else None
            if got != expected:
                raise SiteError(
                    name,
                    expected=f"shape {expected} with the joined data, as with the data",
                    got="no such site" if got is None else f"shape {got}",
                    remedy="With join=... no latent site may grow: leave it out where all grows "
                    "along one plate.",
                )
        whole, first, second = (_terms(pair, part, values) for part in (joined, data, new))
        parts = sum(first.values()) + sum(second[name] for name in observed)
        excess.append(sum(whole.values()) - parts)
        sizes.append(abs(parts))
    differs = max(excess) - min(excess)
    if not differs <= 1e-6 * (1.0 + max(sizes)):
        msg = (
            "join: expected data under which the log density is that of the data and of the "
            f"simulated observations together, up to a constant, got one that differs by "
            f"{differs:.3g} between draws of the posterior. See that it holds both, once each."
        )
        raise ValueError(msg)


def _close(value: float, expected: float, size: float) -> bool:
    return abs(value - expected) <= 1e-6 * (1.0 + abs(expected) + abs(size))


def _terms(
    pair: nn.Module, data: Mapping[str, Any], values: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """Return each site's log density, scaled and masked, at given values of all latent sites."""
    with isolated(0, torch.float64), torch.no_grad(), unchecked():
        with AnswerParams(pair), Replay(values):
            trace = poutine.trace(model_of(pair)).get_trace(**data)
        trace.compute_log_prob()
    return {
        name: float(node["log_prob_sum"])
        for name, node in trace.nodes.items()
        if "log_prob_sum" in node and kind_of(node) not in ("subsample", "deterministic")
    }
