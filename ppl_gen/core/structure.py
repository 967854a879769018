"""What a pair's sites are: found by running it once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import nn

from ppl_gen.core.arguments import lengths
from ppl_gen.core.bijections import bijection_to, unconstrained_shape
from ppl_gen.core.errors import SiteError
from ppl_gen.core.pair import guide_of
from ppl_gen.core.params import AnswerParams

__all__ = [
    "DrawSimplices",
    "Kind",
    "Plate",
    "Site",
    "StartValues",
    "Unobserve",
    "drawing",
    "enumerated",
    "kind_of",
    "not_drawable",
    "not_enumerable",
    "site_bijection",
    "trace_sites",
]

Kind = Literal[
    "latent", "discrete", "observed", "deterministic", "factor", "subsample", "auxiliary"
]


@dataclass(frozen=True)
class Plate:
    """One plate around a site.

    Args:
        name: Its name.
        dim: Its batch axis, counted from the right, or None for a sequential plate.
        size: Number of elements that were run.
        full_size: Number of elements that they stand for.
    """

    name: str
    dim: int | None
    size: int
    full_size: int


@dataclass(frozen=True)
class Site:
    """One sample site, as one run of the model or guide showed it.

    Args:
        name: Its name.
        kind: "latent" (continuous), "discrete", "observed", "deterministic", "factor", or
            "auxiliary" (a site of the guide only, from which Pyro's AutoGuides make the others).
        shape: Shape of its value, (*batch, *event).
        event_dim: Number of event axes.
        support: Support of its distribution.
        plates: Plates around it, innermost first.
        distribution: The distribution's name, for messages.
        value: The value of that run.
        enumerable: Whether its distribution has a finite support that can be enumerated.
        drawable: Whether its distribution can be drawn from.
        marked: Whether it asks, by `infer={"enumerate": "parallel"}`, for the sum over its values.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    event_dim: int
    support: constraints.Constraint
    plates: tuple[Plate, ...]
    distribution: str
    value: torch.Tensor
    enumerable: bool = False
    drawable: bool = True
    marked: bool = False

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes: a plate's name, else the site's name and the axis' number."""
        names = [f"{self.name}_dim_{axis}" for axis in range(len(self.shape))]
        for plate in self.plates:
            if plate.dim is None:
                continue
            axis = len(self.shape) - self.event_dim + plate.dim
            if 0 <= axis < len(names) and self.shape[axis] == plate.size:
                names[axis] = plate.name
        return tuple(names)

    @property
    def subsampled(self) -> bool:
        """Whether a plate around it draws the rows that it runs anew each time."""
        return any(plate.size != plate.full_size for plate in self.plates)

    def inside(self, plate: str | None) -> bool:
        """Return whether the site is inside the plate of that name."""
        return any(p.name == plate for p in self.plates)


def kind_of(msg: Mapping[str, Any]) -> Kind:
    """Return what a sample message is to inference."""
    function = msg["fn"]
    if isinstance(function, _Subsample):
        return "subsample"
    if msg["infer"].get("_deterministic"):
        return "deterministic"
    if msg["is_observed"] or msg["infer"].get("was_observed"):
        return "factor" if isinstance(_base(function), dist.Unit) else "observed"
    if msg["infer"].get("is_auxiliary"):
        return "auxiliary"
    support = _support(msg["name"], function)
    discrete = getattr(support, "is_discrete", False) or function.has_enumerate_support
    return "discrete" if discrete else "latent"


def _support(name: str, function: Any) -> constraints.Constraint:
    """Return the support of a site's distribution, which has to say what it is."""
    try:
        support: constraints.Constraint = function.support
    except NotImplementedError as error:
        kind = type(_base(function)).__name__
        raise SiteError(
            name,
            expected="a distribution that says by its `support` which values it has",
            got=f"{kind}, which does not",
            remedy=f"Give a subclass of {kind} a `support`, such as constraints.real, and use it.",
        ) from error
    return support


def _base(function: Any) -> Any:
    while isinstance(
        function, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution
    ):
        function = function.base_dist
    return function


def enumerated(model: Callable[..., Any]) -> Callable[..., Any]:
    """Return a model that asks for the exact sum over each of its discrete latent sites."""
    return poutine.infer_config(model, _sum_out)


def _sum_out(msg: Any) -> Any:
    if msg["type"] != "sample" or msg["is_observed"] or not msg["fn"].has_enumerate_support:
        return {}
    # A site's own wish for sequential enumeration or samples is for guides: here it would be drawn.
    expand = msg["infer"].get("expand", False)
    return {"enumerate": "parallel", "num_samples": None, "expand": expand}


def not_enumerable(site: Site) -> SiteError:
    """Return the error for a discrete latent site that cannot be summed out."""
    return SiteError(
        site.name,
        expected="a discrete latent with finitely many values, to be summed out",
        got=f"{site.distribution}, whose values cannot be listed",
        remedy="Sum it out by hand, truncate it to a Categorical, or sample it in a guide.",
    )


def not_drawable(site: Site) -> SiteError:
    """Return the error for a site whose distribution cannot be drawn from."""
    improper = site.distribution == "ImproperUniform"
    return SiteError(
        site.name,
        expected="a distribution that can be drawn from",
        got=f"{site.distribution}, which {'is improper' if improper else 'has no sampler'}",
        remedy="Give it a proper prior." if improper else "Write its method `sample`.",
    )


def nothing_to_infer(pair: nn.Module, what: str) -> str:
    """Return the message for a pair whose model has no latent site.

    Args:
        pair: The pair.
        what: The kind of site that is missing.
    """
    text = f"the model has no {what} site: there is nothing to infer."
    if any(getattr(module, "_pyro_samples", None) for module in pair.modules()):
        text += (
            " PyroSample attributes are sampled in `forward`, or in a method that is marked "
            "@pyro.nn.pyro_method."
        )
    elif guide_of(pair) is not None and any(p.requires_grad for p in pair.parameters()):
        text += ' Its parameters are trained by SVI(guide="pair").'
    return text


def site_bijection(
    name: str, support: constraints.Constraint, shape: Sequence[int], distribution: str
) -> Any:
    """Return the bijection from unconstrained space to the support of a site.

    Args:
        name: Name of the site.
        support: Its support.
        shape: Shape of its value.
        distribution: The distribution's name, for the message.

    Raises:
        SiteError: If there is none.
    """
    try:
        return bijection_to(support, shape)
    except NotImplementedError as error:
        if type(support) is type(constraints.sphere):
            remedy = (
                "Sample a standard normal vector x, and use its direction, x / x.norm(); weigh it "
                "by pyro.factor where it is not uniform."
            )
        else:
            remedy = (
                "Parametrise it by sites on real, positive, interval, simplex, ordered, "
                "triangular, correlation or positive definite supports."
            )
        raise SiteError(
            name,
            expected="a support with a bijection from unconstrained space",
            got=f"{distribution} on {support}: {error}",
            remedy=remedy,
        ) from error


@contextmanager
def drawing() -> Iterator[None]:
    """Silence a warning inside the block: PyTorch takes good draws of a Wishart for singular."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Singular sample detected")
        yield


class StartValues(Messenger):
    """Gives latent sites values to start from, in torch's default dtype.

    Improper priors and densities without a sampler get a value inside their support. A prior made
    beforehand, such as that of a `PyroSample`, draws in the dtype that it was made in.
    """

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["value"] is not None or msg["is_observed"]:
            return
        function = _base(msg["fn"])
        if _has_no_sampler(function):
            shape = msg["fn"].batch_shape + msg["fn"].event_shape
            name = type(function).__name__
            bijection = site_bijection(msg["name"], msg["fn"].support, shape, name)
            unconstrained = torch.empty(unconstrained_shape(bijection, shape)).uniform_(-2.0, 2.0)
            msg["value"] = bijection(unconstrained)
            msg["done"] = True

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        value = msg["value"]
        if msg["is_observed"] or not isinstance(value, torch.Tensor):
            return
        if value.is_floating_point() and value.dtype != torch.get_default_dtype():
            msg["value"] = value.to(torch.get_default_dtype())


def _has_no_sampler(function: Any) -> bool:
    if isinstance(function, dist.ImproperUniform):
        return True
    kind: Any = type(function)
    plain = torch.distributions.Distribution
    return issubclass(kind, plain) and kind.sample is plain.sample and kind.rsample is plain.rsample


class DrawSimplices(Messenger):
    """Draws from Dirichlet and beta distributions by the operator that theirs calls.

    It calls that from a class of autograd's, which `torch.func.vmap` refuses.
    """

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        base = _base(msg["fn"])
        if msg["value"] is not None or not isinstance(base, dist.Beta | dist.Dirichlet):
            return
        shape = msg["fn"].shape()
        if isinstance(base, dist.Beta):
            both = torch.stack([base.concentration1, base.concentration0], dim=-1)
            msg["value"] = torch._sample_dirichlet(both.expand(*shape, 2))[..., 0]
        else:
            msg["value"] = torch._sample_dirichlet(base.concentration.expand(shape))
        msg["done"] = True


class Unobserve(Messenger):
    """Draws observed sites from their distributions instead of taking the data."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if kind_of(msg) == "observed":
            msg["is_observed"] = False
            msg["infer"] = {**msg["infer"], "was_observed": True}
            msg["value"] = None
            msg["done"] = False


class _Record(Messenger):
    """Keeps the sites of one run, and what stands out about them."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, Site] = {}
        self.subsampled: list[str] = []

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        kind = kind_of(msg)
        if kind == "subsample":
            if msg["fn"].subsample_size not in (None, msg["fn"].size):
                self.subsampled.append(msg["name"])
            return
        function: TorchDistributionMixin = msg["fn"]
        try:
            support = function.support
        except NotImplementedError:  # which an observed site does without
            support = constraints.dependent
        value = msg["value"]
        if not isinstance(value, torch.Tensor):
            raise SiteError(
                msg["name"],
                expected="a tensor as its value",
                got=type(value).__name__,
                remedy="Pass the observed values as tensors or arrays.",
            )
        if kind in ("latent", "observed"):
            _check_density(msg)
        self.sites[msg["name"]] = Site(
            name=msg["name"],
            kind=kind,
            shape=tuple(value.shape),
            # Pyro takes every axis of a deterministic value for an event axis.
            event_dim=0 if kind == "deterministic" else function.event_dim,
            support=support,
            plates=tuple(
                Plate(f.name, f.dim, int(f.size), int(f.full_size or f.size))
                for f in reversed(msg["cond_indep_stack"])
            ),
            distribution=type(_base(function)).__name__,
            value=value.detach(),
            enumerable=function.has_enumerate_support,
            drawable=not _has_no_sampler(_base(function)),
            marked=msg["infer"].get("enumerate") == "parallel",
        )


def _check_density(msg: Mapping[str, Any]) -> None:
    """Refuse a site whose log density is not one number for each element of its plates.

    Broadcasting would otherwise make a wrong model of a slip in the shapes, silently: a column
    (n, 1) observed under means (n,) has n * n terms. Outside of all plates a sum over the axes is
    what is meant, and PyTorch's own.
    """
    name, function, value = msg["name"], msg["fn"], msg["value"]
    try:
        log_prob = function.log_prob(value)
    except NotImplementedError as error:
        raise SiteError(
            name,
            expected="a distribution with a log density",
            got=f"{type(_base(function)).__name__}, which has none{_because(error)}",
            remedy="Its class needs a method `log_prob`; or observe another one.",
        ) from error
    except ValueError as error:
        if "support" not in str(error):
            raise
        raise SiteError(
            name,
            expected=f"values that {type(_base(function)).__name__} takes: {function.support}",
            got=_outside(function, value),
            remedy="Check the data and their type: some densities take only floats, or counts.",
        ) from error
    got = tuple(log_prob.shape)
    frames = [frame for frame in msg["cond_indep_stack"] if frame.vectorized]
    if not frames:
        if value.ndim > function.event_dim and log_prob.numel() > value.numel():
            raise SiteError(
                name,
                expected="one log density for each value",
                got=f"values of shape {tuple(value.shape)} spread out to {got}",
                remedy="Bring values and parameters to one shape: a column (n, 1) needs x[:, 0].",
            )
        return
    expected = [1] * -min(frame.dim for frame in frames)
    for frame in frames:
        expected[frame.dim] = frame.size
    plates = ", ".join(repr(frame.name) for frame in frames)
    batch = tuple(value.shape[: value.ndim - function.event_dim])
    fits = _trimmed(got) == _trimmed(expected)
    if fits and (value.ndim == 0 or not msg["is_observed"] or _trimmed(batch) == _trimmed(got)):
        return
    raise SiteError(
        name,
        expected=f"one log density for each element of plate {plates}: shape {tuple(expected)}",
        got=f"shape {got} for values of shape {tuple(value.shape)}",
        remedy="Axes that are no plates need .to_event(...); a column (n, 1) needs x[:, 0].",
    )


def _because(error: Exception) -> str:
    return f": {error}" if str(error) else ""


def _trimmed(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without the ones in front, which broadcasting adds."""
    kept = list(shape)
    while kept and kept[0] == 1:
        del kept[0]
    return tuple(kept)


def _outside(function: Any, value: torch.Tensor) -> str:
    try:
        wrong = ~function.support.check(value)
    except (RuntimeError, NotImplementedError):
        return f"values of shape {tuple(value.shape)}"
    count = int(wrong.sum())
    if count == 0:
        return f"{value.dtype} values, which it does not take"
    first = tuple(int(i) for i in wrong.nonzero()[0]) if wrong.ndim else ()
    at = f", the first at index {first}: {value[first].tolist()}" if first else ""
    return f"{count} outside of it{at}"


def trace_sites(
    pair: nn.Module, data: Mapping[str, Any], part: str = "model", *handlers: Messenger
) -> dict[str, Site]:
    """Run a pair's model or guide once and return its sites in the order of sampling.

    Args:
        pair: The pair.
        data: The data, as `bind` returns it, after `prepare`.
        part: "model" or "guide".
        *handlers: Pyro messengers to run it under.

    Returns:
        The sites by name, factors and deterministic sites included.

    Raises:
        ValueError: If the run fails, with the shapes of the data.
    """
    function: Callable[..., Any] = getattr(pair, part)
    record = _Record()
    with torch.no_grad(), drawing(), AnswerParams(pair), record, StartValues():
        try:
            _under(handlers, function, data)
        except (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
            if isinstance(error, SiteError):
                raise
            raise ValueError(_failed_run(part, data, error)) from error
    return record.sites


def _under(handlers: tuple[Messenger, ...], function: Callable[..., Any], data: Any) -> None:
    if not handlers:
        function(**data)
        return
    with handlers[0]:
        _under(handlers[1:], function, data)


def _failed_run(part: str, data: Mapping[str, Any], error: Exception) -> str:
    shapes = ", ".join(
        f"{name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        for name, value in data.items()
        if isinstance(value, torch.Tensor)
    )
    text = f"the {part} failed on this data ({shapes or 'no tensors'}): {error}"
    if len(set(lengths(data).values())) > 1:
        unequal = ", ".join(f"{name} has {size}" for name, size in lengths(data).items())
        text += f"\nThe data are of unequal lengths: {unequal}."
    if "Shape mismatch inside plate" in str(error):
        text += "\nAxes that are no plates need .to_event(...) on the site that is named."
    if "bool tensors" in str(error) or "output type Long" in str(error):
        text += "\nGive the values that a Bernoulli or another density observes as floats."
    if "used as indices" in str(error) or "shape of the mask" in str(error):
        text += "\nAn index has to be of dtype torch.long: x.long()."
    if "not implemented for 'Long'" in str(error) or "not implemented for 'Int'" in str(error):
        text += "\nIntegers stand where floats are needed: x.float()."
    if "dtype" in str(error) or "scalar type" in str(error):
        text += (
            "\nA tensor of another dtype takes part: pass it as data or keep it as a buffer of "
            "the pair, so that it is cast with the rest."
        )
    return text
