"""Discrete latent sites: summed out exactly, and drawn afterwards from what the data say."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch import nn

from ppl_gen.core.draws import map_draws
from ppl_gen.core.elimination import Elimination
from ppl_gen.core.errors import SiteError
from ppl_gen.core.pair import model_of
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.replay import Replay
from ppl_gen.core.scope import unchecked
from ppl_gen.core.structure import Site, StartValues, enumerated, kind_of, trace_sites

__all__ = [
    "EnumeratedRun",
    "dependent_on_discrete",
    "draw_discrete",
    "enumerating",
    "enumeration_dim",
    "run_enumerated",
]

_DRAW = " "  # the axis of draws among the characters of packed tensors
_CHUNK_BYTES = 64 * 2**20


def enumeration_dim(sites: Mapping[str, Site]) -> int | None:
    """Return the first batch axis that sites leave free to discrete latents, None without any."""
    if not any(site.kind == "discrete" for site in sites.values()):
        return None
    plates = [-plate.dim for site in sites.values() for plate in site.plates if plate.dim]
    axes = [
        len(site.shape) - site.event_dim
        for site in sites.values()
        if site.kind in ("latent", "discrete", "observed")
    ]
    return -1 - max(plates + axes)


class _Enumerate(EnumMessenger):
    """Pyro's parallel enumeration, which `torch.func.vmap` can run and whose errors name sites."""

    def _pyro_sample(self, msg: Any) -> None:
        try:
            super()._pyro_sample(msg)
        except NotImplementedError as error:
            raise SiteError(
                msg["name"],
                expected="a discrete latent with the same finite set of values everywhere",
                got=f"{type(msg['fn']).__name__}: {error}",
                remedy="Give each set of values a site of its own, or sum it out by hand.",
            ) from error

    def _pyro_post_sample(self, msg: Any) -> None:
        # As Pyro's, which looks at the shape of `value.data`: vmap forbids that.
        value = msg["value"]
        if value is None or not isinstance(msg["fn"], TorchDistributionMixin):
            return
        shape = value.shape[: value.ndim - msg["fn"].event_dim]
        dim_to_id = msg["infer"].setdefault("_dim_to_id", {})
        dim_to_id.update(self._param_dims.get(msg["name"], {}))
        self._value_dims[msg["name"]] = {
            dim: id_ for dim, id_ in dim_to_id.items() if len(shape) >= -dim and shape[dim] > 1
        }


def enumerating(model: Callable[..., Any], first_dim: int) -> Callable[..., Any]:
    """Return a model that runs all values of its discrete latents at once.

    Args:
        model: The model.
        first_dim: First batch axis for discrete latents, as `enumeration_dim` finds it.
    """
    run: Callable[..., Any] = _Enumerate(first_dim)(enumerated(model))
    return run


@dataclass(frozen=True)
class _Factor:
    """The log density of one site.

    Args:
        term: A packed tensor, masked and not scaled.
        plates: Characters of the plates around the site.
        scale: What the log density is multiplied by.
    """

    term: torch.Tensor
    plates: frozenset[str]
    scale: Any


@dataclass(frozen=True)
class _Variable:
    """A discrete latent site.

    Args:
        symbol: Character of its axis.
        support: Its values, (count, *event).
        plates: Characters of the plates around it.
    """

    symbol: str
    support: torch.Tensor
    plates: frozenset[str]


@dataclass(frozen=True)
class EnumeratedRun:
    """One run of a model with all values of its discrete latents.

    Args:
        messages: Pyro's sample messages by site.
        factors: Log densities by site.
        symbols: Characters of all discrete axes.
        plate_dims: Batch axes, counted from the right, of the plates' characters.
    """

    messages: dict[str, Any]
    factors: dict[str, _Factor]
    symbols: frozenset[str]
    plate_dims: dict[str, int]

    def depends(self, factor: _Factor) -> bool:
        """Return whether a log density depends on a discrete latent."""
        return not self.symbols.isdisjoint(factor.term._pyro_dims)  # type: ignore[attr-defined]

    def log_joint(self) -> torch.Tensor:
        """Return the log joint density, discrete latents summed out, scales outside of the sum.

        A scaled plate raises its marginal likelihood to a power, so that the scale belongs outside
        of the sum over the discrete sites, as in the enumerated ELBO (Obermeyer et al. 2019,
        Tensor Variable Elimination for Plated Factor Graphs, arXiv:1902.03210).
        """
        apart = [f for f in self.factors.values() if not self.depends(f)]
        tied = [f for f in self.factors.values() if self.depends(f)]
        totals = [scale_and_mask(factor.term.sum(), factor.scale) for factor in apart]
        if tied:
            scale = _common([factor.scale for factor in tied])
            tree: OrderedDict[frozenset[str], list[torch.Tensor]] = OrderedDict()
            for factor in tied:
                tree.setdefault(factor.plates, []).append(factor.term)
            sums = contract_tensor_tree(tree, set(self.symbols), ring=Elimination())
            totals += [scale_and_mask(t.sum(), scale) for terms in sums.values() for t in terms]
        return torch.stack(totals).sum()

    def variables(self, given: Collection[str] = ()) -> dict[str, _Variable]:
        """Return the discrete latent sites by name, without those of given values."""
        found = {}
        for name, msg in self.messages.items():
            axis = msg["infer"].get("_enumerate_dim")
            if axis is None or name in given:
                continue
            event_dim = msg["fn"].event_dim
            values = msg["value"]
            event = values.shape[values.ndim - event_dim :]
            lacking = max(event_dim - axis - values.ndim, 0)  # the axis of a single value
            values = values.reshape((1,) * lacking + values.shape).movedim(axis - event_dim, 0)
            # The values are the same in all elements of a plate.
            support = values.reshape(len(values), -1, *event)[:, 0]
            symbol = msg["infer"]["_enumerate_symbol"]
            found[name] = _Variable(symbol, support, self.factors[name].plates)
        return found


def _common(scales: list[Any]) -> Any:
    if any(not bool(torch.as_tensor(scale == scales[0]).all()) for scale in scales[1:]):
        msg = "sites that depend on one discrete latent are scaled differently: scale them alike."
        raise ValueError(msg)
    return scales[0]


def run_enumerated(
    model: Callable[..., Any], data: Mapping[str, Any], first_dim: int, substitute: Messenger
) -> EnumeratedRun:
    """Run a model once with all values of its discrete latents.

    Args:
        model: The model.
        data: Its keywords.
        first_dim: First batch axis for discrete latents, as `enumeration_dim` finds it.
        substitute: The messenger that gives the other latent sites their values.
    """
    with substitute, poutine.trace() as tracer:
        enumerating(model, first_dim)(**data)
    trace = tracer.trace
    trace.symbolize_dims()
    plates = trace.plate_to_symbol
    messages = {
        name: msg
        for name, msg in trace.nodes.items()
        if msg["type"] == "sample" and kind_of(msg) not in ("subsample", "deterministic")
    }
    return EnumeratedRun(
        messages=messages,
        factors={name: _factor(msg, plates, first_dim) for name, msg in messages.items()},
        symbols=frozenset(set(trace.symbol_to_dim) - set(plates.values())),
        plate_dims={symbol: trace.symbol_to_dim[symbol] for symbol in plates.values()},
    )


def _factor(msg: Mapping[str, Any], plates: Mapping[str, str], first_dim: int) -> _Factor:
    log_prob = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
    log_prob = scale_and_mask(log_prob, 1.0, msg["mask"])
    dim_to_symbol = msg["infer"]["_dim_to_symbol"]
    unnamed = [
        dim
        for dim in range(-min(log_prob.ndim, -1 - first_dim), 0)
        if dim not in dim_to_symbol and log_prob.shape[dim] > 1
    ]
    if unnamed:
        if kind_of(msg) == "discrete":
            raise SiteError(
                msg["name"],
                expected="plates around all axes of a discrete latent",
                got=f"batch shape {tuple(msg['fn'].batch_shape)}",
                remedy="Put it into pyro.plate, so that each element is summed out on its own.",
            )
        # Outside of plates a sum over the axes is what is meant.
        log_prob = log_prob.sum(unnamed, keepdim=True)
    return _Factor(
        packed.pack(log_prob, dim_to_symbol),
        frozenset(plates[frame.name] for frame in msg["cond_indep_stack"] if frame.vectorized),
        msg["scale"],
    )


def dependent_on_discrete(pair: nn.Module, data: Mapping[str, Any], names: list[str]) -> set[str]:
    """Return which of a model's sites have values that depend on its discrete latents.

    Args:
        pair: The pair.
        data: The data, prepared.
        names: Names of the sites to look at.
    """
    sites = trace_sites(pair, data)
    first_dim = enumeration_dim(sites)
    if first_dim is None:
        return set()
    # Site values are aligned to the right of a discrete latent's own axis, left of all plates.
    with torch.no_grad(), AnswerParams(pair), StartValues():
        nodes: Any = poutine.trace(enumerating(model_of(pair), first_dim)).get_trace(**data).nodes
    return {name for name in names if tuple(nodes[name]["value"].shape) != sites[name].shape}


def draw_discrete(
    pair: nn.Module,
    data: Mapping[str, Any],
    sites: Mapping[str, Site],
    values: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Draw the discrete latent sites from their joint distribution given everything else.

    The draws are exact and independent: factors of all draws are computed together, discrete
    latents are summed out one after the other, and drawn in the opposite order. Scales of plates
    and sites play no role, as in `EnumeratedRun.log_joint`.

    Args:
        pair: The pair.
        data: The data, prepared.
        sites: The model's sites on this data.
        values: Draws of the other latent sites, (draw, *site); discrete sites among them are kept
            as they are.

    Returns:
        Draws of the discrete sites, (draw, *site).
    """
    first_dim = enumeration_dim(sites)
    assert first_dim is not None

    def run(values: Mapping[str, torch.Tensor]) -> EnumeratedRun:
        with torch.no_grad(), unchecked(), AnswerParams(pair):
            return run_enumerated(model_of(pair), data, first_dim, Replay(values))

    def terms(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = run(values)
        return {n: f.term for n, f in found.factors.items() if found.depends(f)}

    first = run({name: value[0] for name, value in values.items()})
    variables = first.variables(given=values.keys())
    size = sum(f.term.numel() * f.term.element_size() for f in first.factors.values())
    chunk = max(1, _CHUNK_BYTES // max(size, 1))
    count = len(next(iter(values.values())))
    parts = []
    for start in range(0, count, chunk):
        some = {name: value[start : start + chunk] for name, value in values.items()}
        together = map_draws(terms, some)
        parts.append(_draw_together(first, variables, sites, together, min(chunk, count - start)))
    return {name: torch.cat([part[name] for part in parts]) for name in variables}


def _draw_together(
    layout: EnumeratedRun,
    variables: Mapping[str, _Variable],
    sites: Mapping[str, Site],
    terms: Mapping[str, torch.Tensor],
    count: int,
) -> dict[str, torch.Tensor]:
    """Draw from factors that have an axis of draws in front, which is one more plate."""
    sizes: dict[str, int] = {_DRAW: count}
    tree: OrderedDict[frozenset[str], list[torch.Tensor]] = OrderedDict()
    for name, term in terms.items():
        factor = layout.factors[name]
        dims = _DRAW + factor.term._pyro_dims  # type: ignore[attr-defined]
        term._pyro_dims = dims  # type: ignore[attr-defined]
        sizes.update(zip(dims, term.shape, strict=True))
        tree.setdefault(factor.plates | {_DRAW}, []).append(term)
    ring = Elimination(sizes)
    contract_tensor_tree(tree, set(layout.symbols), ring=ring)
    plates = {v.symbol: (v.plates | {_DRAW}) & frozenset(sizes) for v in variables.values()}
    indices = ring.draw(plates)
    drawn = {}
    for name, variable in variables.items():
        site = sites[name]
        batch = site.shape[: len(site.shape) - site.event_dim]
        index = indices.get(variable.symbol)
        if index is None:  # a single value, which has no axis
            drawn[name] = variable.support[torch.zeros(count, *batch, dtype=torch.long)]
            continue
        dims = index._pyro_dims  # type: ignore[attr-defined]
        inner = sorted(dims.replace(_DRAW, ""), key=layout.plate_dims.__getitem__)
        shape = [count] + [1] * len(batch)
        for symbol in inner:
            shape[layout.plate_dims[symbol]] = sizes[symbol]
        index = index.permute([dims.index(symbol) for symbol in [_DRAW, *inner]]).reshape(shape)
        drawn[name] = variable.support[index.expand(count, *batch)]
    return drawn
