"""Bounds by importance weights: several draws of each row's latents, weighed against each other."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from pyro.distributions.util import scale_and_mask
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.messenger import Messenger
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from ppl_gen.core.discrete import EnumeratedRun, enumeration_dim, run_enumerated
from ppl_gen.core.elimination import Elimination
from ppl_gen.core.errors import SiteError
from ppl_gen.core.minibatch import ScalePlate
from ppl_gen.core.pair import guide_of, model_of
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.scope import unchecked
from ppl_gen.core.structure import Site
from ppl_gen.inference.bounds import Objective, ReweightedWakeSleep
from ppl_gen.inference.elbo import Messages, Sites, log_prob, negative_elbo, same_order
from ppl_gen.inference.together import OwnNoise

__all__ = [
    "Paths",
    "WeightedBound",
    "frozen",
    "no_bound_of_batches",
    "renyi",
    "row_plate",
    "surrogate",
]

_Out = TypeVar("_Out")

# Kinds of a guide's sites that are draws.
_DRAWN = ("latent", "discrete", "auxiliary")


def renyi(log_weights: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Rényi's bound of log-weights, and how much each of them counts.

    Args:
        log_weights: Shape (k, *rows).
        alpha: The order, at least 0: 0 is the importance-weighted bound, 1 the ELBO.

    Returns:
        The bound, (*rows), and its derivatives by the log-weights, (k, *rows), which sum to 1.
    """
    k = len(log_weights)
    if alpha == 1:
        return log_weights.mean(0), torch.full_like(log_weights, 1 / k)
    powers = (1 - alpha) * log_weights
    return (powers.logsumexp(0) - math.log(k)) / (1 - alpha), powers.softmax(0)


class Paths:
    """Copies of reparametrised draws, whose gradients the importance weights scale once more.

    With the normalised weights w of order alpha, the gradient of the bound by the guide's
    parameters is the mean of sum_j w_j (alpha + (1 - alpha) w_j) d log weight_j / d z_j dz_j: the
    score is gone. The bound puts the first factor there, the copies the second, so that parameters
    of the model, which gradients reach without passing a draw, get the first alone.

    Args:
        alpha: The order of the bound.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.weights: torch.Tensor | None = None

    def follow(self, draws: torch.Tensor, row_axis: int | None) -> torch.Tensor:
        """Return a copy of draws.

        Args:
            draws: Shape (k, *site).
            row_axis: The axis of rows, counted from the right; None where there is none.
        """
        copy = draws.view_as(draws)
        if not copy.requires_grad:
            return copy

        def scaled(gradient: torch.Tensor) -> torch.Tensor:
            assert self.weights is not None
            factor = self.alpha + (1 - self.alpha) * self.weights
            shape = [len(draws)] + [1] * (draws.ndim - 1)
            if row_axis is not None:
                shape[row_axis] = draws.shape[row_axis]
            return gradient * factor.reshape(shape)

        copy.register_hook(scaled)
        return copy


def surrogate(
    log_p: torch.Tensor, log_q: torch.Tensor, objective: Objective, paths: Paths | None = None
) -> torch.Tensor:
    """Return the bound of log joint densities, with the gradient of the objective.

    Args:
        log_p: Log joint densities of k draws, (k, *rows).
        log_q: Log densities of the guide, (k, *rows).
        objective: The objective.
        paths: What copied the draws, for the doubly reparametrised gradient.

    Returns:
        Shape (*rows).
    """
    value, weights = renyi((log_p - log_q).detach(), objective.alpha)
    if paths is not None:
        paths.weights = weights
    wake = isinstance(objective, ReweightedWakeSleep)
    followed = log_p + log_q if wake else log_p - log_q
    # Zero, but for its gradient; a draw without weight has no say, be it infinitely unlikely.
    nothing = (weights * (followed - followed.detach())).masked_fill(weights == 0, 0.0)
    return value + nothing.sum(0)


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Take parameters for constants inside the block."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class _Runs(NamedTuple):
    """Model and guide with their data."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    data: Mapping[str, Any]


class _Part(NamedTuple):
    """What the model, or the guide, says of one draw.

    Args:
        plain: Log density under the logarithm, (*rows), without the scales of its sites.
        scaled: The same with them.
        outside: What is not under a logarithm, ().
    """

    plain: torch.Tensor
    scaled: torch.Tensor
    outside: torch.Tensor


class WeightedBound:
    """A bound of the pair's own guide by importance weights, as `ImportanceWeighted` describes it.

    ELBO(sticking=True) is the one of order 1: a mean of log-weights, which needs no rows.

    Args:
        pair: The pair.
        data: Data to look at its runs on, prepared.
        objective: The objective.
        model_sites: The model's sites on that data.
        guide_sites: The guide's.
        particles: Number of independent estimates to take the mean of.
        scale: What scales a mini-batch, or None for all of the data.

    Raises:
        SiteError: If a site of the model or guide is at odds with the objective.
        ValueError: If the objective is no bound on mini-batches of this pair.
    """

    def __init__(
        self,
        pair: nn.Module,
        data: Mapping[str, Any],
        objective: Objective,
        model_sites: Mapping[str, Site],
        guide_sites: Mapping[str, Site],
        particles: int,
        scale: ScalePlate | None,
    ) -> None:
        self.objective = objective
        self.wake = isinstance(objective, ReweightedWakeSleep)
        self.is_mean = objective.alpha == 1
        self.samples = particles if self.is_mean else objective.samples
        self.particles = 1 if self.is_mean else particles
        self.parameters = list(pair.parameters())
        self.model_sites = model_sites
        self.guide_sites = {n: s for n, s in guide_sites.items() if s.kind != "deterministic"}
        self.enumerated_below = enumeration_dim(
            {name: site for name, site in model_sites.items() if name not in guide_sites}
        )
        self.analytic = same_order(model_sites, guide_sites)
        self.model = model_of(pair)
        guide = guide_of(pair)
        assert guide is not None
        self.guide = guide
        runs = _Runs(self.model, self.guide, data)
        plate = None if self.is_mean else row_plate(model_sites, guide_sites, scale)
        self._weigh_rows_of(plate, scale)
        self.batched = False
        with torch.no_grad(), unchecked(), AnswerParams(pair):
            if plate is not None and self._mixed(runs):
                if scale is not None:
                    raise _depends_on_rows(plate, model_sites)
                self._weigh_rows_of(None, scale)
            self.doubly = self._can_be_doubly(runs)
            self.batched = self._can_be_batched(runs)

    def _weigh_rows_of(self, plate: str | None, scale: ScalePlate | None) -> None:
        """Give each element of a plate a logarithm of its own, or all of them one together."""
        self.plate = plate
        self.handler: Messenger = scale or Messenger()
        self.row_scale = 1.0
        if not self.is_mean:
            _check_subsampled(self.model_sites, plate)
        if plate is not None:
            # What the plate itself scales is taken back: it belongs outside of the logarithm.
            self.handler = ScalePlate(plate, 1)
            self.row_scale = _scale_of(plate, self.model_sites) if scale is None else scale.factor
        self.outside = [n for n, s in self.guide_sites.items() if plate and not s.inside(plate)]
        if self.wake and self.outside:
            raise SiteError(
                self.outside[0],
                expected=f"all latents of the guide inside of plate '{plate}', whose rows "
                "reweighted wake-sleep weighs one by one",
                got="one outside of it",
                remedy="Make it a parameter, or take objective=ImportanceWeighted().",
            )

    def differentiable_loss(self, **data: Any) -> torch.Tensor:
        """Return an estimate of the negative bound, (), with the gradient of the objective.

        Args:
            **data: Keywords of model and guide.
        """
        runs = _Runs(self.model, self.guide, data)
        with unchecked(), self.handler:
            losses = [self._one(runs) for _ in range(self.particles)]
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _one(self, runs: _Runs) -> torch.Tensor:
        shared = self._shared(runs)
        scales: list[_Scale] = []
        paths = None
        if self.doubly:
            paths = Paths(self.objective.alpha)
            draws = self._each(lambda _: self._latents(self._draw(runs, shared)), {})
            followed = {n: paths.follow(z, self._row_axis(n)) for n, z in draws.items()}
            q = self._guide_again(runs, shared, followed, scales)
            p = self._each(lambda values: self._model(runs, shared, values, scales), followed)
        else:

            def both(_: Any) -> tuple[_Part, _Part]:
                drawn = self._draw(runs, shared)
                of_guide = self._under_logarithm(drawn.messages, scales)
                return of_guide, self._model(runs, shared, drawn.values, scales)

            q, p = self._each(both, {})
        scale = _common(scales)
        log_p, log_q = (p.scaled, q.scaled) if scale is None else (p.plain, q.plain)
        bound = surrogate(log_p, log_q, self.objective, paths)
        rows = bound.sum() if scale is None else (bound * scale).sum()
        return -(rows * self.row_scale + p.outside.mean(0))

    def _each(self, function: Callable[[Any], _Out], values: Mapping[str, torch.Tensor]) -> _Out:
        """Return what a function makes of each draw, stacked."""
        count = len(next(iter(values.values()))) if values else self.samples
        if not self.batched:
            each = [function({n: v[i] for n, v in values.items()}) for i in range(count)]
            stacked: _Out = tree_map(lambda *parts: torch.stack(parts), *each)
            return stacked

        def one(some: Mapping[str, torch.Tensor], blank: torch.Tensor) -> _Out:
            with nullcontext() if values else OwnNoise(blank):
                return function(some)

        together = torch.func.vmap(one, randomness="different")
        with warnings.catch_warnings():
            # An operator without a batching rule is run draw by draw, with the same result.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            batched: _Out = together(dict(values), torch.zeros(count))
        return batched

    def _shared(self, runs: _Runs) -> Sites:
        """Draw once what all draws of the rows' latents have in common."""
        shared = Sites(detach=self.wake)
        if self.outside or any(site.subsampled for site in self.guide_sites.values()):
            with shared:
                runs.guide(**runs.data)
            shared.messages = {n: m for n, m in shared.messages.items() if n in self.outside}
        return shared

    def _draw(self, runs: _Runs, shared: Sites) -> Sites:
        drawn = Sites(shared.values, detach=self.wake)
        with drawn:
            runs.guide(**runs.data)
        return drawn

    def _latents(self, drawn: Sites) -> dict[str, torch.Tensor]:
        return {
            name: msg["value"]
            for name, msg in drawn.messages.items()
            if name not in self.outside and self.guide_sites[name].kind in _DRAWN
        }

    def _guide_again(
        self,
        runs: _Runs,
        shared: Sites,
        latents: Mapping[str, torch.Tensor],
        scales: list[_Scale],
    ) -> _Part:
        """Return what the guide says of draws, all but the draws taken for constants."""
        constant = {name: value.detach() for name, value in shared.values.items()}

        def one(values: Mapping[str, torch.Tensor]) -> _Part:
            drawn = Sites({**constant, **values})
            with drawn:
                runs.guide(**runs.data)
            return self._under_logarithm(drawn.messages, scales)

        with frozen(self.parameters):
            return self._each(one, latents)

    def _model(
        self,
        runs: _Runs,
        shared: Sites,
        latents: Mapping[str, torch.Tensor],
        scales: list[_Scale],
    ) -> _Part:
        """Return what the model says of a draw; outside of the rows, less what the guide says."""
        joint = Sites({**latents, **shared.values})
        if self.enumerated_below is not None:
            run = run_enumerated(runs.model, runs.data, self.enumerated_below, joint)
            part = self._summed_out(run, scales)
            outer: Messages = {}
        else:
            with joint:
                runs.model(**runs.data)
            part = self._under_logarithm(joint.messages, scales)
            outer = {n: msg for n, msg in joint.messages.items() if not self._is_inside(msg)}
        if not outer and not shared.messages:
            return part
        negative = negative_elbo(outer, shared.messages, analytic=self.analytic)
        return part._replace(outside=part.outside - negative)

    def _under_logarithm(self, messages: Messages, scales: list[_Scale]) -> _Part:
        """Return the sum of the sites of each row, and note their scales."""
        inner = [msg for msg in messages.values() if self._is_inside(msg)]
        scales += [_Scale(msg["scale"], self._row_dim(msg)) for msg in inner]
        plain = _total([self._by_row(log_prob(msg, scaled=False), msg) for msg in inner])
        scaled = plain
        if any(isinstance(msg["scale"], torch.Tensor) or msg["scale"] != 1 for msg in inner):
            scaled = _total([self._by_row(log_prob(msg), msg) for msg in inner])
        return _Part(plain, scaled, plain.new_zeros(()))

    def _summed_out(self, run: EnumeratedRun, scales: list[_Scale]) -> _Part:
        """Return the same of a model whose discrete latents are summed out."""
        inner = [msg for msg in run.messages.values() if self._is_inside(msg)]
        scales += [_Scale(msg["scale"], self._row_dim(msg)) for msg in inner]
        dim = self._row_dim(inner[0])
        symbol = "" if dim is None else inner[0]["infer"]["_dim_to_symbol"][dim]
        parts = [(f.term, f.plates, f.scale) for f in run.factors.values() if not run.depends(f)]
        tied = [f for f in run.factors.values() if run.depends(f)]
        if _common([_Scale(factor.scale, None) for factor in tied]) is None:
            msg = (
                "sites that depend on one discrete latent are scaled differently: scale them alike."
            )
            raise ValueError(msg)
        tree: OrderedDict[frozenset[str], list[torch.Tensor]] = OrderedDict()
        for factor in tied:
            tree.setdefault(factor.plates, []).append(factor.term)
        sums = contract_tensor_tree(tree, set(run.symbols), ring=Elimination())
        parts += [(term, plates, tied[0].scale) for plates, some in sums.items() for term in some]
        plain, scaled, outside = [], [], [torch.zeros(())]
        for term, plates, scale in parts:
            if symbol and symbol not in plates:
                outside.append(scale_and_mask(term.sum(), scale))
                continue
            plain.append(_packed_rows(term, symbol))
            scaled.append(scale_and_mask(plain[-1], scale))
        return _Part(_total(plain), _total(scaled), _total(outside))

    def _is_inside(self, msg: Mapping[str, Any]) -> bool:
        return self.plate is None or self._frame(msg) is not None

    def _frame(self, msg: Mapping[str, Any]) -> Any:
        frames = (frame for frame in msg["cond_indep_stack"] if frame.name == self.plate)
        return next(frames, None)

    def _row_dim(self, msg: Mapping[str, Any]) -> int | None:
        frame = self._frame(msg)
        return None if frame is None else frame.dim

    def _by_row(self, term: torch.Tensor, msg: Mapping[str, Any]) -> torch.Tensor:
        dim = self._row_dim(msg)
        return term.sum() if dim is None else _rows(term, dim)

    def _row_axis(self, name: str) -> int | None:
        site = self.guide_sites[name]
        dims = [plate.dim for plate in site.plates if plate.name == self.plate]
        return dims[0] - site.event_dim if dims and dims[0] is not None else None

    def _mixed(self, runs: _Runs) -> bool:
        """Whether what is outside of the rows' plate depends on latents inside of it."""
        with self.handler:
            shared = self._shared(runs)
            first, second = (
                self._model(runs, shared, self._draw(runs, shared).values, []) for _ in range(2)
            )
        return not _same(first.outside, second.outside)

    def _can_be_doubly(self, runs: _Runs) -> bool:
        """Whether the guide's latents have densities that a second run of it reproduces."""
        inner = [site for name, site in self.guide_sites.items() if name not in self.outside]
        drawn_only = all(site.kind in _DRAWN for site in inner)
        if self.wake or not drawn_only or any(site.distribution == "Delta" for site in inner):
            return False
        with self.handler:
            shared = self._shared(runs)
            drawn = self._draw(runs, shared)
            latents = {name: z.unsqueeze(0) for name, z in self._latents(drawn).items()}
            again = self._guide_again(runs, shared, latents, [])
        return _same(self._under_logarithm(drawn.messages, []).scaled, again.scaled[0])

    def _can_be_batched(self, runs: _Runs) -> bool:
        """Whether all draws can be run at once, with the result of one after the other."""
        found: list[tuple[_Part, _Part]] = []
        with self.handler:
            shared = self._shared(runs)
            draws: dict[str, torch.Tensor] = {}
            for self.batched in (True, False):
                try:
                    if self.batched:
                        draws = self._each(lambda _: self._latents(self._draw(runs, shared)), {})
                    q = self._guide_again(runs, shared, draws, [])
                    p = self._each(lambda values: self._model(runs, shared, values, []), draws)
                except (RuntimeError, ValueError, NotImplementedError):
                    return False
                found.append((q, p))
        together, alone = (tree_leaves(parts) for parts in found)
        return all(_same(a, b) for a, b in zip(together, alone, strict=True))


def row_plate(
    model: Mapping[str, Site], guide: Mapping[str, Site], scale: ScalePlate | None
) -> str | None:
    """Return the plate whose elements are weighed one by one; None where all are together.

    Args:
        model: The model's sites.
        guide: The guide's.
        scale: What scales a mini-batch, or None for all of the data.

    Raises:
        ValueError: If the mini-batched plate has no latent of the guide, or is a sequential one.
    """
    latents = [site for site in guide.values() if site.kind in _DRAWN]
    if scale is None:
        observed = [site for site in model.values() if site.kind == "observed"]
        around = observed[0].plates if observed else ()
        found = [
            plate.name
            for plate in around
            if plate.dim is not None
            and all(site.inside(plate.name) for site in observed)
            and any(site.inside(plate.name) for site in latents)
        ]
        return found[-1] if found else None
    inside = [site for site in latents if site.inside(scale.plate)]
    if not inside:
        raise no_bound_of_batches(scale.plate)
    if any(p.name == scale.plate and p.dim is None for site in inside for p in site.plates):
        msg = (
            f"plate '{scale.plate}' is a loop, whose rows cannot be weighed one by one: write "
            f"`with pyro.plate('{scale.plate}', ...)`."
        )
        raise ValueError(msg)
    return scale.plate


def no_bound_of_batches(plate: str) -> ValueError:
    """Return the error for importance weights of latents that all mini-batches share.

    Args:
        plate: The mini-batched plate.
    """
    return ValueError(
        f"objective: the guide has no latent in the mini-batched plate '{plate}', so that all of "
        "the data would be under one logarithm, of which a mini-batch gives no bound. Leave "
        "batch_size out, or take objective=ELBO()."
    )


def _check_subsampled(sites: Mapping[str, Site], plate: str | None) -> None:
    """Refuse rows that a plate draws anew under a logarithm."""
    for site in sites.values():
        for other in site.plates:
            if other.size != other.full_size and other.name != plate:
                raise SiteError(
                    other.name,
                    expected="all of its rows in each step, since it is under the logarithm",
                    got=f"{other.size} of {other.full_size}",
                    remedy="Leave subsample_size out, or take objective=ELBO().",
                    what="plate",
                )


def _scale_of(plate: str, sites: Mapping[str, Site]) -> float:
    """Return how many rows each row of a plate stands for."""
    found = next(p for site in sites.values() for p in site.plates if p.name == plate)
    return found.full_size / found.size


def _depends_on_rows(plate: str, sites: Mapping[str, Site]) -> ValueError:
    outside = ", ".join(name for name, site in sites.items() if not site.inside(plate))
    return ValueError(
        f"objective: what is outside of plate '{plate}' ({outside}) depends on latents inside of "
        "it, so that its rows cannot be weighed one by one. Leave batch_size out, or take "
        "objective=ELBO()."
    )


class _Scale(NamedTuple):
    """The scale of a site, a number or a tensor, and the axis of its rows, if there are such."""

    value: Any
    row_dim: int | None


def _common(scales: Sequence[_Scale]) -> torch.Tensor | None:
    """Return the scale that all sites of a row share, () or (*rows); None where they differ.

    A weight that they share is one of the row, and belongs outside of the logarithm; one of some
    of them tempers the density.
    """
    first, dim = scales[0]
    for other, _ in scales[1:]:
        if isinstance(first, torch.Tensor) and isinstance(other, torch.Tensor):
            if first is not other and not torch.equal(first, other):
                return None
        elif isinstance(first, torch.Tensor) or isinstance(other, torch.Tensor):
            return None
        elif not math.isclose(first, other):  # each was multiplied in an order of its own
            return None
    scale = torch.as_tensor(first)
    if scale.numel() == 1:
        return scale.reshape(())
    per_row = dim is not None and scale.ndim >= -dim and scale.shape[dim] == scale.numel()
    return scale.reshape(-1) if per_row else None


def _total(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _rows(term: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the sum of a term over all axes but that of rows."""
    return term.movedim(axis, 0).reshape(term.shape[axis], -1).sum(-1)


def _packed_rows(term: torch.Tensor, symbol: str) -> torch.Tensor:
    """Return the sum of a packed term over all axes but that of a symbol."""
    dims: str = term._pyro_dims  # type: ignore[attr-defined]
    if symbol in dims and symbol:
        return _rows(term, dims.index(symbol))
    # An axis of one element has no symbol.
    return term.sum().reshape(1) if symbol else term.sum()


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return bool(torch.allclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True))
