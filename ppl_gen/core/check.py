"""Looking at a pair before any fitting, and saying in plain words what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import nn
from torch.distributions import constraints
from torch.distributions.constraints import MixtureSameFamilyConstraint

from ppl_gen.core.arguments import check_captured, lengths
from ppl_gen.core.errors import SiteError, did_you_mean
from ppl_gen.core.loader import Data, bind_data
from ppl_gen.core.minibatch import MiniBatches, split
from ppl_gen.core.pair import as_pair, guide_of, model_of, own_copy, prepare, signature
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.replay import Replay
from ppl_gen.core.scope import isolated
from ppl_gen.core.structure import (
    Site,
    StartValues,
    enumerated,
    kind_of,
    not_enumerable,
    nothing_to_infer,
    trace_sites,
)

__all__ = ["CheckReport", "check", "guide_problems"]

# Larger data are looked at in part: enough rows to see every site and to cut into a full and a
# short batch.
_ROWS = 65
_ALL_ROWS_NUMBERS = 50_000


@dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    Args:
        problems: What has to be mended before a fit, one sentence or two each.
        sites: The model's sites, one line each.
        note: What was not looked at, or "".
    """

    problems: tuple[str, ...]
    sites: tuple[str, ...]
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        """Return the report as text."""
        lines = ["The model's sites:", *(f"  {site}" for site in self.sites)]
        lines += [self.note] if self.note else []
        if self.ok:
            return "\n".join([*lines, "Nothing is wrong with this pair on this data."])
        lines.append(f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}:")
        return "\n".join([*lines, *(f"  {i}. {p}" for i, p in enumerate(self.problems, 1))])


def check(pair: Any, data: Data, *, seed: int = 0) -> CheckReport:
    """Run a pair once and report what is wrong with it.

    Looked at are the data's names and values; the model's run; latents that the guide misses or
    adds, their shapes, plates and supports; values of another dtype or device; log densities that
    are not finite; parameters that get no gradient; and whether mini-batches add up to the whole.

    Args:
        pair: A pair, a Pyro model, or a tuple (model, guide).
        data: Data by the names of the model's arguments, or a loader. Of long data the first rows
            are used, of a loader the first batch.
        seed: Seed of the draws that it looks at.

    Returns:
        The report; `report.ok` says whether nothing is wrong.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> def guide(y):
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> print(check((model, guide), {"y": torch.zeros(3)}).problems[0])
        site 'mean': expected to be sampled in the guide, got no such site. Add it to the guide.
    """
    try:
        pair = own_copy(as_pair(pair))
        bound, loader = bind_data(pair, data, seed, progress=False)
    except (ValueError, TypeError) as error:
        return CheckReport((str(error),), ())
    parameter = next((p for p in pair.parameters() if p.is_floating_point()), None)
    # A fit casts the data to this dtype: arrays of float64 are nothing to complain about.
    dtype = torch.get_default_dtype() if parameter is None else parameter.dtype
    with isolated(seed, dtype):
        bound = {n: _cast(v, dtype) for n, v in bound.items()}
        problems: list[str] = []
        sites: dict[str, Site] = {}
        try:
            few = _few_rows(pair, bound)
            sites = trace_sites(pair, few)
        except ValueError as error:
            return CheckReport((str(error),), ())
        problems += _value_problems(pair, sites)
        problems += _density_problems(pair, few)
        if guide_of(pair) is not None:
            try:
                problems += [str(e) for e in guide_problems(pair, few, sites)]
            except ValueError as error:
                problems.append(str(error))
            if not problems:
                problems += _gradient_problems(pair, few)
        if not problems:
            # In training a network may be random, as by dropout, and batches differ by that.
            problems += _minibatch_problems(pair.eval(), few)
    whole, looked_at = (max(lengths(rows).values(), default=0) for rows in (bound, few))
    note = (
        f"Only the first {looked_at} of {whole} rows were looked at." if looked_at < whole else ""
    )
    note = note if loader is None else "Only the first batch was looked at."
    return CheckReport(tuple(problems), tuple(_line(site) for site in sites.values()), note)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value


def guide_problems(
    pair: nn.Module, data: Mapping[str, Any], model_sites: Mapping[str, Site]
) -> Iterator[SiteError]:
    """Yield an error for each latent site that model and guide disagree on.

    Args:
        pair: A pair with a guide.
        data: The data, prepared.
        model_sites: The model's sites on that data.
    """
    parts = [signature(pair, part).parameters for part in ("model", "guide")]
    # Pyro's AutoGuides take any arguments; data are passed by name, so that order is free.
    takes_any = any(p.kind is p.VAR_KEYWORD for part in parts for p in part.values())
    if not takes_any and set(parts[0]) != set(parts[1]):
        yield SiteError(
            "guide",
            expected=f"the model's arguments ({', '.join(signature(pair).parameters)})",
            got=f"({', '.join(signature(pair, 'guide').parameters)})",
            remedy="Give model and guide the same arguments.",
        )
        return
    guide_sites = trace_sites(pair, data, "guide")
    for name, site in model_sites.items():
        # Discrete latents that the guide leaves out are summed out.
        if site.kind == "discrete" and not site.enumerable and name not in guide_sites:
            yield not_enumerable(site)
        if site.kind == "latent" and name not in guide_sites:
            yield SiteError(
                name,
                expected="to be sampled in the guide",
                got="no such site",
                remedy="Add it to the guide."
                + did_you_mean(name, guide_sites.keys() - model_sites),
            )
    for name, site in guide_sites.items():
        if site.kind not in ("latent", "discrete"):
            continue
        if name not in model_sites or model_sites[name].kind not in ("latent", "discrete"):
            yield SiteError(
                name,
                expected="only latent sites of the model in the guide",
                got="a site that the model has not"
                if name not in model_sites
                else f"a site that is {model_sites[name].kind} in the model",
                remedy="Remove it from the guide, or sample it in the model under the same name.",
            )
            continue
        yield from _disagreement(model_sites[name], site)


def _disagreement(model: Site, guide: Site) -> Iterator[SiteError]:
    if model.shape != guide.shape:
        yield SiteError(
            model.name,
            expected=f"shape {model.shape} in the guide, as in the model",
            got=f"shape {guide.shape}",
            remedy="Check .to_event(...), the plate around it and the shapes of its parameters.",
        )
    elif model.event_dim != guide.event_dim:
        yield SiteError(
            model.name,
            expected=f"{model.event_dim} event axes in the guide, as in the model",
            got=f"{guide.event_dim}",
            remedy="Add .to_event(...) to the one that lacks it.",
        )
    elif {p.name for p in model.plates} != {p.name for p in guide.plates}:
        yield SiteError(
            model.name,
            expected=f"the plates {[p.name for p in model.plates]} in the guide, as in the model",
            got=f"{[p.name for p in guide.plates]}",
            remedy="Use the same plates, by the same names, around it.",
        )
    elif guide.distribution != "Delta" and not _same_support(model, guide):
        yield SiteError(
            model.name,
            expected=f"the model's support {_support(model)} in the guide",
            got=f"{_support(guide)} ({guide.distribution})",
            remedy="Use a distribution on the same support, such as a transformed Normal.",
        )


def _same_support(model: Site, guide: Site) -> bool:
    if _support(model) == _support(guide):
        return True
    # PyTorch takes the support of a transformed distribution from its last transform alone, and
    # that of a shift or a scaling is real: only the values can tell.
    transformed = guide.distribution == "TransformedDistribution"
    return transformed and bool(model.support.check(guide.value).all())


def _support(site: Site) -> str:
    """Return a support's name, alike for open and closed bounds and for event axes."""
    support = site.support
    while isinstance(support, constraints.independent | MixtureSameFamilyConstraint):
        support = support.base_constraint
    name = str(support).replace("Eq(", "(").replace("HalfOpenInterval(", "Interval(")
    known = {
        constraints.unit_interval: "Interval(lower_bound=0.0, upper_bound=1.0)",
        constraints.real_vector: str(constraints.real),
    }
    return known.get(support, name)


def _few_rows(pair: nn.Module, data: Mapping[str, Any]) -> dict[str, Any]:
    longest = max(lengths(data).values(), default=0)
    numbers = sum(v.numel() for v in data.values() if isinstance(v, torch.Tensor))
    if longest > _ROWS and numbers > _ALL_ROWS_NUMBERS:
        few = {
            n: v[:_ROWS] if n in lengths(data) and len(v) == longest else v for n, v in data.items()
        }
        try:
            trace_sites(pair, prepare(pair, few))
        except ValueError:
            pass
        else:
            return prepare(pair, few)
    return prepare(pair, data)


def _line(site: Site) -> str:
    plates = f" in {', '.join(plate.name for plate in site.plates)}" if site.plates else ""
    return f"{site.name}: {site.kind} {site.distribution}, shape {site.shape}{plates}"


def _value_problems(pair: nn.Module, sites: Mapping[str, Site]) -> Iterator[str]:
    has_latents = any(site.kind in ("latent", "discrete") for site in sites.values())
    # An empty guide trains the parameters alone: by maximum likelihood.
    is_trained = guide_of(pair) is not None and any(p.requires_grad for p in pair.parameters())
    if not (has_latents or is_trained):
        yield nothing_to_infer(pair, "latent")
    if guide_of(pair) is None:
        for site in sites.values():
            if site.kind == "discrete" and not site.enumerable:
                yield str(not_enumerable(site))
    if not any(site.kind in ("observed", "factor") for site in sites.values()):
        yield "the model observes nothing: pass data to obs= of a sample statement."
    parameter = next(iter(pair.parameters()), None)
    dtype = torch.get_default_dtype() if parameter is None else parameter.dtype
    device = torch.device("cpu") if parameter is None else parameter.device
    try:
        check_captured(pair, dtype, device)
    except SiteError as error:
        yield str(error)
    for site in sites.values():
        if site.value.device != device:
            yield str(
                SiteError(
                    site.name,
                    expected=f"a value on {device}, where the pair's parameters are",
                    got=f"one on {site.value.device}",
                    remedy="Move data and pair to one device.",
                )
            )


class _Terms(Messenger):
    """Keeps each site's scaled log density, and those of the observed sites of a plate."""

    def __init__(self) -> None:
        super().__init__()
        self.by_site: dict[str, torch.Tensor] = {}
        self.values: dict[str, torch.Tensor] = {}
        self.kinds: dict[str, str] = {}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        kind = kind_of(msg)
        if kind in ("subsample", "deterministic"):
            return
        log_prob = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
        self.by_site[msg["name"]] = scale_and_mask(log_prob, msg["scale"], msg["mask"])
        self.values[msg["name"]] = msg["value"]
        self.kinds[msg["name"]] = kind


def _density_problems(pair: nn.Module, data: Mapping[str, Any]) -> Iterator[str]:
    terms = _Terms()
    with torch.no_grad(), AnswerParams(pair), terms, StartValues():
        try:
            model_of(pair)(**data)
        except (ValueError, RuntimeError) as error:
            yield f"the log density cannot be computed at a draw from the prior: {error}"
            return
    for name, term in terms.by_site.items():
        if not bool(torch.isfinite(term).all()):
            yield str(
                SiteError(
                    name,
                    expected="a finite log density at a draw from the prior",
                    got=f"{int((~torch.isfinite(term)).sum())} of {term.numel()} terms not finite",
                    remedy="Check that the data lie in the distribution's support, and its scale.",
                )
            )


def _gradient_problems(pair: nn.Module, data: Mapping[str, Any]) -> Iterator[str]:
    from pyro.infer import Trace_ELBO, TraceEnum_ELBO

    sampled = trace_sites(pair, data, "guide")
    sites = [*trace_sites(pair, data).values(), *sampled.values()]
    summed_out = any(site.kind == "discrete" and site.name not in sampled for site in sites)
    objective: Any = Trace_ELBO()
    if summed_out or any(site.marked for site in sites):
        nesting = -min((p.dim for site in sites for p in site.plates if p.dim), default=0)
        objective = TraceEnum_ELBO(max_plate_nesting=nesting)
    model = enumerated(model_of(pair)) if summed_out else model_of(pair)
    pair.zero_grad()
    with AnswerParams(pair):
        try:
            objective.differentiable_loss(model, guide_of(pair), **data).backward()
        except (ValueError, RuntimeError) as error:
            yield f"the evidence lower bound cannot be computed: {error}"
            return
    for name, parameter in pair.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            yield str(
                SiteError(
                    name,
                    expected="a parameter that the objective depends on",
                    got="no gradient",
                    remedy="Use it in model or guide, or set requires_grad to False.",
                )
            )


def _minibatch_problems(pair: nn.Module, data: Mapping[str, Any]) -> Iterator[str]:
    """Compare the log likelihood of all rows with the mean over an epoch of scaled mini-batches."""
    longest = max(lengths(data).values(), default=0)
    if longest < 3:
        return
    try:
        batches = split(pair, data, 2 * longest // 3)
    except SiteError as error:
        yield f"mini-batches would be scaled wrongly: {error}"
        return
    except ValueError:
        return  # a model that cannot be cut into mini-batches is fitted on all of its data
    plates = [p for site in trace_sites(pair, data).values() for p in site.plates]
    if any(plate.name == batches.plate and plate.dim is None for plate in plates):
        return  # the sites of a sequential plate are named by row: they cannot be matched
    try:
        whole, sites = _observed_terms(pair, data, {}, ())
        total = 0.0
        for index in torch.arange(batches.length).split(batches.batch_size):
            rows = {
                name: _rows_of(value, sites[name], batches, index)
                for name, value in whole.values.items()
            }
            part, _ = _observed_terms(pair, batches.rows(index), rows, (batches.scale,))
            total += _total(part) / batches.num_batches
    except (ValueError, RuntimeError) as error:
        yield f"the model runs on all rows, but not on a mini-batch: {error}"
        return
    expected = _total(whole)
    if abs(total - expected) > 1e-3 * max(1.0, abs(expected)):
        outside = [
            name
            for name, site in sites.items()
            if site.kind == "observed" and not site.inside(batches.plate)
        ]
        where = f" {', '.join(outside)} is outside the plate." if outside else ""
        yield (
            f"mini-batches are scaled wrongly: over an epoch the log likelihood comes to "
            f"{total:.6g} instead of {expected:.6g}.{where} Put every observed row inside plate "
            f"'{batches.plate}', and let the plate alone do the scaling."
        )


def _observed_terms(
    pair: nn.Module,
    data: Mapping[str, Any],
    values: Mapping[str, torch.Tensor],
    handlers: tuple[Messenger, ...],
) -> tuple[_Terms, dict[str, Site]]:
    terms = _Terms()
    sites = trace_sites(pair, data, "model", *handlers, terms, Replay(values))
    return terms, sites


def _total(terms: _Terms) -> float:
    return sum(
        float(term.sum()) for name, term in terms.by_site.items() if terms.kinds[name] == "observed"
    )


def _rows_of(
    value: torch.Tensor, site: Site, batches: MiniBatches, index: torch.Tensor
) -> torch.Tensor:
    for axis, name in enumerate(site.dims):
        if name == batches.plate:
            return value.index_select(axis, index)
    return value
