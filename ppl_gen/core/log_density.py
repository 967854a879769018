"""A model and its data as one log density over a flat, unconstrained vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger

from ppl_gen.core.arguments import bind, check_captured, move, own_memory
from ppl_gen.core.bijections import unconstrained_shape
from ppl_gen.core.blocks import (
    Block,
    Invert,
    Substitute,
    comes_and_goes,
    most_axes,
    same_support,
)
from ppl_gen.core.discrete import enumeration_dim, run_enumerated
from ppl_gen.core.draws import map_draws
from ppl_gen.core.errors import SiteError
from ppl_gen.core.pair import as_pair, cast, model_of, own_copy, prepare
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.replay import Replay
from ppl_gen.core.scope import default_dtype, isolated, unchecked
from ppl_gen.core.structure import (
    Site,
    kind_of,
    not_enumerable,
    nothing_to_infer,
    site_bijection,
    trace_sites,
)

__all__ = ["Block", "LogDensity", "enumeration_dim", "log_joint"]

_LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


class LogDensity:
    """The unnormalised log posterior density of a pair on data, over unconstrained vectors.

    Each continuous latent site has a block of the vector, mapped to the site's support by
    `bijection_to`, whose log-Jacobian is part of the density. Discrete latent sites are summed out
    exactly. The pair's parameters are constants.

    Args:
        pair: The pair, or a Pyro function; a copy of it is cast and used.
        data: The data by the names of the model's arguments.
        dtype: What it computes in.
        device: Where it computes.
        prepared: Whether the data went through the pair's `validate` and `prepare` already, as
            those of a posterior did.
        jacobian: Whether the log-Jacobian is added. Without it the maximum is that of the density
            of the constrained values.

    Raises:
        SiteError: If a support has no bijection, a discrete site has infinitely many values, a
            site is sampled in some runs only, or a tensor of another dtype takes part.
        ValueError: If the model has no continuous latent site, subsamples its data, or cannot be
            run on all values of its discrete latents at once.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("scale", dist.Exponential(1.0))
        >>> density = LogDensity(model, {})
        >>> density.dim
        1
        >>> float(density.log_prob(torch.tensor([0.0])))  # scale = 1, log-Jacobian 0
        -1.0
    """

    def __init__(
        self,
        pair: Any,
        data: Mapping[str, Any],
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        prepared: bool = False,
        jacobian: bool = True,
    ) -> None:
        self.dtype = dtype
        self.jacobian = jacobian
        self.device = torch.device(device)
        # Networks that are random in training, as by dropout, have no one density in it.
        self.pair = cast(own_copy(as_pair(pair)), dtype, self.device).eval()
        check_captured(self.pair, dtype, self.device)
        self.data = move(data if prepared else bind(self.pair, data), dtype, self.device)
        with isolated(0, dtype):
            if not prepared:
                self.data = prepare(self.pair, self.data)
            # A view's offset would be part of the compiled program, which other data can share.
            self.data = own_memory(self.data)
            self.model_sites = trace_sites(self.pair, self.data)
            self.blocks = self._lay_out()
        self.dim = max((block.stop for block in self.blocks.values()), default=0)
        if self.dim == 0:
            raise ValueError(nothing_to_infer(self.pair, "continuous latent"))
        self._enumerated_below = enumeration_dim(self.model_sites)
        with isolated(0, dtype):
            self._check_enumeration()
        self._batchable: bool | None = None  # not known yet

    @property
    def sites(self) -> dict[str, Site]:
        """The continuous latent sites by name, in the order of the vector."""
        return {name: block.site for name, block in self.blocks.items()}

    def log_prob(
        self,
        vector: torch.Tensor,
        data: Mapping[str, Any] | None = None,
        handlers: tuple[Messenger, ...] = (),
    ) -> torch.Tensor:
        """Return the log joint density with the log-Jacobian of the vector's bijections.

        Args:
            vector: Unconstrained vectors, (dim,) or (n, dim).
            data: Data in place of the density's own, such as a mini-batch; moved and cast already.
            handlers: Pyro messengers to run the model under.

        Returns:
            A tensor of shape () or (n,), differentiable in the vectors.
        """
        data = self.data if data is None else data
        if vector.ndim == 1:
            return self._log_prob(vector, data, handlers)
        if self._batchable is not False:
            try:
                batched = torch.func.vmap(lambda one: self._log_prob(one, data, handlers))(vector)
            except _LinAlgError:
                pass  # at one of these vectors, which says nothing about others
            except (RuntimeError, ValueError, NotImplementedError):
                self._batchable = False
            else:
                if self._batchable is None:
                    alone = self._log_prob(vector[-1], data, handlers)
                    # A model that reads a number out of a tensor can be batched wrongly, silently.
                    self._batchable = bool(
                        torch.allclose(alone, batched[-1], rtol=1e-4, equal_nan=True)
                    )
                if self._batchable:
                    return batched
        return torch.stack([self._log_prob(one, data, handlers) for one in vector])

    def _log_prob(
        self, vector: torch.Tensor, data: Mapping[str, Any], handlers: tuple[Messenger, ...]
    ) -> torch.Tensor:
        substitute = Substitute(self.blocks, vector)
        with default_dtype(self.dtype), unchecked(), AnswerParams(self.pair), _Under(handlers):
            value = log_joint(model_of(self.pair), data, substitute, self._enumerated_below)
        substitute.check_complete()
        return value + substitute.log_jacobian if self.jacobian else value

    def log_prob_by_site(self, vector: torch.Tensor) -> dict[str, float]:
        """Return each site's own term of the log joint density, to find one that is not finite.

        Args:
            vector: An unconstrained vector, (dim,).
        """
        substitute, terms = Substitute(self.blocks, vector), _Sum()
        with torch.no_grad(), default_dtype(self.dtype), unchecked(), AnswerParams(self.pair):
            with terms, substitute:
                model_of(self.pair)(**self.data)
        return {name: float(term.sum()) for name, term in terms.by_site.items()}

    def constrain(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the latent sites' values of unconstrained vectors.

        Args:
            vectors: Unconstrained vectors, (*batch, dim).

        Returns:
            Values by site, (*batch, *site), each inside the site's support.
        """
        if all(block.bijection is not None for block in self.blocks.values()):
            return {
                name: block.bijection(block.read(vectors))  # type: ignore[misc]
                for name, block in self.blocks.items()
            }
        flat = vectors.reshape(-1, self.dim)
        values = map_draws(lambda draw: self._run(draw["vector"]), {"vector": flat})
        return {
            name: value.reshape(vectors.shape[:-1] + value.shape[1:]).to(vectors.device)
            for name, value in values.items()
        }

    def unconstrain(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the unconstrained vector of the latent sites' values.

        Args:
            values: Values by site, (*batch, *site).

        Returns:
            The vectors, (*batch, dim).

        Raises:
            SiteError: If a site is missing or has another shape.
        """
        batch: torch.Size | None = None
        for name, block in self.blocks.items():
            event = len(block.site.shape)
            got = values[name].shape if name in values else None
            if got is None or tuple(got[len(got) - event :]) != block.site.shape:
                raise SiteError(
                    name,
                    expected=f"a value of shape (*batch, {', '.join(map(str, block.site.shape))})",
                    got="none" if got is None else f"shape {tuple(got)}",
                    remedy="Give one value for each latent site of the model.",
                )
            batch = got[: len(got) - event] if batch is None else batch
        assert batch is not None

        def flatten(one: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            inverse = Invert(self.blocks, one)
            with default_dtype(self.dtype), unchecked(), torch.no_grad():
                with AnswerParams(self.pair), inverse:
                    model_of(self.pair)(**self.data)
            parts = [inverse.parts[name].reshape(-1) for name in self.blocks]
            return {"vector": torch.cat(parts)}

        flat = {
            name: values[name].to(self.device, self.dtype).reshape(-1, *block.site.shape)
            for name, block in self.blocks.items()
        }
        vectors = map_draws(flatten, flat)["vector"]
        return vectors.reshape(*batch, self.dim).to(self.device)

    def _run(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        substitute = Substitute(self.blocks, vector)
        with torch.no_grad(), default_dtype(self.dtype), unchecked(), AnswerParams(self.pair):
            with substitute:
                model_of(self.pair)(**self.data)
        return substitute.values

    def _lay_out(self) -> dict[str, Block]:
        """Give each latent site its block; a bijection is kept where two runs agree on it."""
        again = trace_sites(self.pair, self.data)
        blocks: dict[str, Block] = {}
        start = 0
        for name, site in (again | self.model_sites).items():
            for plate in site.plates:
                if plate.size != plate.full_size:
                    msg = (
                        f"plate '{plate.name}' subsamples {plate.size} of {plate.full_size}: a log "
                        "density needs all of the data. Use SVI with batch_size, or the full plate."
                    )
                    raise ValueError(msg)
            if site.kind == "discrete" and not site.enumerable:
                raise not_enumerable(site)
            if site.kind not in ("latent", "discrete"):
                continue
            if name not in self.model_sites or name not in again:
                raise comes_and_goes(name)
            if site.kind == "discrete":
                continue
            if again[name].shape != site.shape:
                raise SiteError(
                    name,
                    expected="the same shape in every run of the model",
                    got=f"{site.shape} and {again[name].shape}",
                    remedy="Make the structure independent of drawn values.",
                )
            bijection = site_bijection(name, site.support, site.shape, site.distribution)
            shape = tuple(unconstrained_shape(bijection, torch.Size(site.shape)))
            static = same_support(site.support, again[name].support)
            block = Block(site, shape, start, bijection if static else None)
            blocks[name] = block
            start = block.stop
        return blocks

    def _check_enumeration(self) -> None:
        """Run the model with its discrete latents summed out, once, to see that it can be."""
        if self._enumerated_below is None:
            return
        values = Replay({name: site.value for name, site in self.sites.items()})
        try:
            with torch.no_grad(), unchecked(), AnswerParams(self.pair):
                run = run_enumerated(model_of(self.pair), self.data, self._enumerated_below, values)
                run.log_joint()
        except NotImplementedError:  # plates that are no tree, which Pyro explains
            raise
        except (RuntimeError, IndexError, TypeError) as error:
            msg = (
                "the model does not run on all values of its discrete latents at once, each on an "
                f"axis of its own in front: {error}\nIndex tables by Vindex(table)[k] of "
                "pyro.ops.indexing, choose by torch.where, and do not branch on their values."
            )
            raise ValueError(msg) from error
        for name, site in self.sites.items():
            if most_axes(run.messages[name]["fn"].support) > len(site.shape):
                raise SiteError(
                    name,
                    expected="one support, whatever the discrete latents are",
                    got=f"{site.distribution} on bounds that depend on them",
                    remedy="Scale and shift a site of fixed bounds instead.",
                )


class _Sum(Messenger):
    """Adds up the scaled and masked log densities of the sites that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.by_site: dict[str, torch.Tensor] = {}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if kind_of(msg) in ("subsample", "deterministic"):
            return
        log_prob = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
        self.by_site[msg["name"]] = scale_and_mask(log_prob, msg["scale"], msg["mask"])


class _Under:
    """Enters several messengers as one."""

    def __init__(self, handlers: tuple[Messenger, ...]) -> None:
        self.handlers = handlers

    def __enter__(self) -> None:
        for handler in self.handlers:
            handler.__enter__()

    def __exit__(self, *error: Any) -> None:
        for handler in reversed(self.handlers):
            handler.__exit__(*error)


def log_joint(
    model: Callable[..., Any],
    data: Mapping[str, Any],
    substitute: Messenger,
    enumerated_below: int | None,
) -> torch.Tensor:
    """Return the log joint density of one run of a model.

    Args:
        model: The model.
        data: Its keywords.
        substitute: The messenger that gives the continuous latent sites their values.
        enumerated_below: First batch axis for discrete latents, as `enumeration_dim` finds it.

    Returns:
        A 0-dimensional tensor, each site scaled and masked, discrete latents summed out.
    """
    if enumerated_below is not None:
        return run_enumerated(model, data, enumerated_below, substitute).log_joint()
    terms = _Sum()
    with terms, substitute:
        model(**data)
    return torch.stack([term.sum() for term in terms.by_site.values()]).sum()
