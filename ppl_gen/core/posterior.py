"""The one posterior type that every method returns."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ppl_gen.core.archive import StoredDraws
from ppl_gen.core.arguments import bind, move, num_bytes
from ppl_gen.core.discrete import dependent_on_discrete, draw_discrete
from ppl_gen.core.draws import map_draws
from ppl_gen.core.errors import NoLatentsError, SiteError, check_count, did_you_mean
from ppl_gen.core.method import GuideDraws
from ppl_gen.core.pair import cast, model_of, own_copy, prepare
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.replay import Replay
from ppl_gen.core.scope import isolated, unchecked
from ppl_gen.core.structure import (
    DrawSimplices,
    Site,
    StartValues,
    Unobserve,
    drawing,
    not_drawable,
    trace_sites,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Outline", "Posterior"]

Draws = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws from a posterior, or an approximation of one, with where they came from.

    `posterior["weights"]` are the draws of a site, with axes (chain, draw, *site).

    Args:
        draws: Draws of latent and deterministic sites by name, (chain, draw, *site), on the CPU.
            Discrete latents that were summed out have none, nor have deterministic sites that
            follow from them: `discrete()` draws both.
        latents: Names of the latent sites among them.
        observed: Names of the observed sites.
        pair: The trained copy of the pair; None for one loaded without it.
        data: The data that the draws belong to; None where a loader gave them, or a loaded
            posterior holds none.
        dims: Names of each site's axes, after chain and draw.
        coords: Labels along the axes that plates name.
        sample_stats: One number for each draw, by ArviZ's names, (chain, draw).
        is_mcmc: Whether the draws are Markov chains, which R-hat and ESS speak of.
        guide: The guide of a variational posterior.
        history: The loss after each step of a variational fit, (step,).
        elbo: Estimate of the evidence lower bound and its Monte Carlo standard error.
        local_plate: Name of the mini-batched plate, whose sites `sample(data)` draws.
        interrupted: Whether the run was stopped before its end.
        provenance: Method, options, seed, versions, dtype, device, seconds, gradient evaluations;
            for MCMC also the engine that ran and the seconds to the first draw.
        divergences: Where trajectories diverged, at most 200 of each chain, by site,
            (divergence, *site).
        divergence_chain: The chain of each divergence, (divergence,).
        warnings: What to know about the run, in plain words.
        checkpoint: Where its chains are, for `extend`.
    """

    draws: Mapping[str, torch.Tensor]
    latents: tuple[str, ...]
    observed: tuple[str, ...] = ()
    pair: nn.Module | None = None
    data: Mapping[str, Any] | None = None
    dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    coords: Mapping[str, list[Any]] = field(default_factory=dict)
    sample_stats: Mapping[str, torch.Tensor] = field(default_factory=dict)
    is_mcmc: bool = True
    guide: nn.Module | None = None
    history: torch.Tensor | None = None
    elbo: tuple[float, float] | None = None
    local_plate: str | None = None
    interrupted: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)
    divergences: Mapping[str, torch.Tensor] = field(default_factory=dict)
    divergence_chain: torch.Tensor | None = None
    warnings: tuple[str, ...] = ()
    checkpoint: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __getitem__(self, site: str) -> torch.Tensor:
        """Return the draws of a site, (chain, draw, *site)."""
        if site not in self.draws:
            msg = (
                f"the posterior has no site '{site}': it has {', '.join(self.draws) or 'none'}."
                f"{did_you_mean(site, self.draws)}{self._local_hint}"
            )
            raise KeyError(msg)
        return self.draws[site]

    def __repr__(self) -> str:
        """Return what it is in one line a site."""
        sites = "".join(f"\n  {name} {shape[2:]}" for name, shape in self._shapes.items())
        sites += "".join(f"\n! {warning}" for warning in self.warnings)
        method = self.provenance.get("method", "unknown method")
        stopped = ", reweighted" if "reweighted" in self.provenance else ""
        stopped += ", interrupted" if self.interrupted else ""
        chains = f"{self.num_chains} chains x {self.num_draws} draws"
        if not self.draws:
            return f"Posterior by {method}{stopped}.{self._local_hint}"
        return f"Posterior by {method}: {chains}{stopped}{sites}"

    @property
    def _local_hint(self) -> str:
        if self.local_plate is None:
            return ""
        plate = self.local_plate
        return (
            f" The latents of plate '{plate}', if any, are drawn for rows of data: "
            "posterior.sample(data)."
        )

    @property
    def is_point(self) -> bool:
        """Whether it is one point, such as the mode, and no distribution."""
        if self.is_mcmc or self.num_draws != 1 or "reweighted" in self.provenance:
            return False
        if self.guide is not None:
            return bool(getattr(self.guide, "is_point", False))
        # Draws of a guide that was left behind, perhaps a single one.
        options, method = self.provenance.get("options", {}), self.provenance.get("method")
        return method not in ("SVI", "Pathfinder") or options.get("guide") == "delta"

    @property
    def num_chains(self) -> int:
        """Number of chains; 1 for a variational posterior."""
        return next((shape[0] for shape in self._shapes.values()), 1)

    @property
    def num_draws(self) -> int:
        """Number of draws in each chain."""
        return next((shape[1] for shape in self._shapes.values()), 0)

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the draws by site; those on disk are not read for it."""
        if isinstance(self.draws, StoredDraws):
            return self.draws.shapes
        return {name: tuple(value.shape) for name, value in self.draws.items()}

    def sample(
        self, data: Mapping[str, Any] | None = None, draws: int = 1000, seed: int = 0
    ) -> Posterior:
        """Draw anew from the guide, local latents of the data given included.

        Args:
            data: The data to condition local latents on; None takes the posterior's own.
            draws: Number of draws.
            seed: Seed of the draws.

        Returns:
            A posterior of one chain with those draws.

        Raises:
            ValueError: If the posterior has no guide (MCMC, EM), the pair no latents, or pair or
                data are missing.
        """
        if self.guide is None:
            msg = "an MCMC posterior has its draws and no guide: use posterior.draws."
            if self.is_point:
                method = self.provenance.get("method", "this method")
                msg = (
                    f"a posterior by {method} is one point, posterior.draws, and has no guide to "
                    'draw from. For a distribution take NUTS(), or SVI(guide="full_rank").'
                )
            if "reweighted" in self.provenance:
                msg = (
                    "a reweighted posterior has its draws and no guide, which would draw from what "
                    "it was before: use posterior.draws, or reweight the earlier one again."
                )
            raise ValueError(msg)
        check_count("draws", draws)
        with isolated(seed, self._dtype):
            pair, data = self._prepared(data)
            drawn: GuideDraws = self.guide.draw(pair, data, draws)  # type: ignore[operator]
            values = {name: value.unsqueeze(0) for name, value in drawn.values.items()}
            return assemble(
                dataclasses.replace(
                    self,
                    data=data,
                    draws=values,
                    latents=tuple(values),
                    sample_stats={n: value.cpu().unsqueeze(0) for n, value in drawn.stats.items()},
                    elbo=drawn.elbo,
                    local_plate=None,
                )
            )

    def reweight(self, draws: int | None = None, seed: int = 0) -> Posterior:
        """Draw anew from the guide, and choose among these draws by their importance weights.

        Where Pareto k-hat allows it, the result has the posterior's moments where the guide's are
        off. What no draw of the guide comes near, such as another mode, stays unseen. The guide is
        left behind: the draws are all that there is of the result, and `predict` goes by them.
        `provenance["reweighted"]` has k-hat, the effective sample size, and whether the draws are
        `reliable` by these.

        Args:
            draws: Number of draws to choose; None: as many as there were.
            seed: Seed of draws and choice.

        Returns:
            A posterior of one chain with those draws, with a warning where k-hat, or its interval,
            is above what the number of draws weighed can bear.

        Raises:
            ValueError: If the draws have no importance weights (MCMC, a point, or reweighted
                already), or these mean nothing.

        References:
            Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling,
            Journal of Machine Learning Research 25, arXiv:1507.02646.
        """
        from ppl_gen.core.weighing import reweighted

        return reweighted(self, draws, seed)

    def predict(
        self, data: Mapping[str, Any] | None = None, draws: int | None = None, seed: int = 0
    ) -> Draws:
        """Draw observed sites from the posterior predictive distribution.

        Discrete latents that were summed out take part in one of two ways. One that is in the same
        plates as every observed site belongs to a row: it is drawn anew from its distribution
        given the other latents, as for a new row, also for the posterior's own data. Any other,
        such as one outside of all plates, is shared by observations: it is drawn from its
        posterior, as `discrete` does, whatever data are predicted. Longer data thus continue a
        hidden Markov chain.

        Args:
            data: New data by the names of the model's arguments, observed values left out (or
                given, and then not looked at); None takes the posterior's own data.
            draws: Number of draws in each chain, spread evenly over the stored ones; None: all.
            seed: Seed of the draws.

        Returns:
            Draws of each observed site, (chain, draw, *site).

        Raises:
            SiteError: If a latent site has another shape on the new data, or the distribution of
                an observed one cannot be drawn from.
            ValueError: If the pair or the data is missing, or a latent shared by observations
                has to be drawn and the posterior holds no data of its own.
        """
        source = self._with_local_draws(data, draws, seed)
        with isolated(seed, self._dtype):
            pair, bound = source._prepared(data)
            sites = trace_sites(pair, bound, "model", Unobserve())
            latents = source._latents_for(sites)
            thinned = {name: _thin(source.draws[name], draws) for name in latents}
            shared = [name for name in _shared_discrete(sites) if name not in latents]
            if shared:
                if source is not self and data is not None:
                    msg = (
                        f"'{shared[0]}' is shared by rows of the data fitted to, and the latents "
                        "of those rows are not kept: predict the posterior's own data."
                    )
                    raise ValueError(msg)
                drawn = source._draw_discrete(draws)
                thinned |= {name: drawn[name] for name in shared if name in drawn}
                _check_shapes(thinned, sites)
            wanted = [name for name in sites if name in self.observed]
            _check_drawable(sites, wanted)
            return source._map(
                lambda values: _run(pair, bound, values, wanted, unobserve=True),
                thinned,
                draws,
            )

    def discrete(self, draws: int | None = None, seed: int = 0) -> Draws:
        """Draw the discrete latent sites that were summed out, given the posterior's own data.

        They are drawn from their exact joint distribution given the other latents of each draw,
        so that together with those they are draws of the full posterior. Deterministic sites that
        follow from them are returned with them.

        Args:
            draws: Number of draws in each chain, spread evenly over the stored ones; None: all.
            seed: Seed of the draws.

        Returns:
            Draws of each site, (chain, draw, *site).

        Raises:
            ValueError: If no discrete latent was summed out, or the pair or the data is missing.

        References:
            Scott, Bayesian methods for hidden Markov models: recursive computing in the 21st
            century (2002), Journal of the American Statistical Association 97, 337-351; for plates
            Obermeyer et al., Tensor variable elimination for plated factor graphs (2019),
            arXiv:1902.03210.
        """
        source = self._with_local_draws(None, draws, seed)
        with isolated(seed, self._dtype):
            return source._draw_discrete(draws)

    def _draw_discrete(self, count: int | None) -> Draws:
        pair, data = self._prepared(None)
        sites = trace_sites(pair, data)
        latents = self._latents_for(sites)
        if all(site.kind != "discrete" or name in latents for name, site in sites.items()):
            msg = "the model has no discrete latents that were summed out: see posterior.draws."
            raise ValueError(msg)
        if not latents:
            msg = "the posterior holds no draws of the other latents, which discrete() needs."
            raise ValueError(msg)
        thinned = {name: _thin(self.draws[name], count) for name in latents}
        shape = next(iter(thinned.values())).shape[:2]
        flat = {name: value.flatten(0, 1) for name, value in thinned.items()}
        drawn = draw_discrete(pair, data, sites, flat)
        follow = [n for n, s in sites.items() if s.kind == "deterministic" and n not in self.draws]
        if follow:
            drawn |= map_draws(lambda values: _run(pair, data, values, follow), flat | drawn)
        return {name: value.reshape(*shape, *value.shape[1:]) for name, value in drawn.items()}

    def prior(
        self, draws: int = 500, seed: int = 0, data: Mapping[str, Any] | None = None
    ) -> tuple[Draws, Draws]:
        """Draw latent and observed sites from the prior.

        Args:
            draws: Number of draws.
            seed: Seed of the draws.
            data: Data in place of the posterior's own.

        Returns:
            Draws of the latent sites and of the observed ones (the prior predictive), each
            (1, draw, *site).

        Raises:
            SiteError: If a distribution cannot be drawn from: an improper prior, or one without a
                sampler.
            ValueError: If the pair or the data is missing.
        """
        check_count("draws", draws)
        with isolated(seed, self._dtype):
            pair, bound = self._prepared(data)
            sites = trace_sites(pair, bound, "model", Unobserve())
            observed = [n for n in sites if n in self.observed]
            unseen = [n for n, s in sites.items() if s.kind in ("latent", "discrete")]
            latents = [n for n in unseen if n not in observed]
            _check_drawable(sites, latents + observed)
            drawn = map_draws(
                lambda _: _run(pair, bound, {}, latents + observed, unobserve=True),
                {},
                num_draws=draws,
            )
        groups = [{n: drawn[n].unsqueeze(0) for n in names} for names in (latents, observed)]
        return groups[0], groups[1]

    def log_likelihood(self) -> Draws:
        """Return the pointwise log-likelihood of the observed sites at each draw.

        Returns:
            By observed site, (chain, draw, *batch): one number for each conditionally independent
            observation, discrete latents of the same observation summed out.

        Raises:
            ValueError: If the pair or the data is missing, or discrete latents tie observations
                together, so that there is no pointwise term.
        """
        from ppl_gen.core.pointwise import pointwise_log_likelihood

        with isolated(0, self._dtype):
            pair, data = self._prepared(None)
            sites = trace_sites(pair, data)
            latents = {name: self.draws[name] for name in self._latents_for(sites)}
            return self._map(
                lambda values: pointwise_log_likelihood(pair, data, sites, values), latents
            )

    def summary(self) -> pd.DataFrame:
        """Return a table with a row for each scalar: mean, sd and quantiles.

        Returns:
            Columns mean, sd, q5, q50, q95; for MCMC also mcse_mean, ess_bulk, ess_tail and r_hat.
        """
        from ppl_gen.core.summary import summarise

        return summarise(self)

    def to_arviz(self, *, predictive_draws: int = 500, seed: int = 0) -> Any:
        """Return an ArviZ object: `InferenceData` (ArviZ 0.x) or `DataTree` (1.x).

        Groups: posterior, sample_stats, prior, prior_predictive, posterior_predictive,
        log_likelihood and observed_data. Those that need the pair are left out where it is
        missing; the prior and predictive ones also where a distribution cannot be drawn from.

        Args:
            predictive_draws: Draws of the prior and in each chain of the posterior predictive.
            seed: Seed of the prior and predictive draws.

        Raises:
            ValueError: If no site was drawn.
        """
        from ppl_gen.core.export import arviz_groups

        return arviz_groups(self, predictive_draws, seed)

    def extend(self, draws: int, *, progress: bool = True) -> Posterior:
        """Go on drawing where the chains of an MCMC posterior stopped, without a new warm-up.

        The result is what the run would have been with more draws from the start. A posterior in
        memory is left as it is; of one in a folder (that of `fit(out=...)`, or loaded) the folder
        is continued, and this posterior goes on showing the draws it had.

        Args:
            draws: Number of draws of each chain to add.
            progress: Whether to show a progress bar.

        Returns:
            The posterior with all draws.

        Raises:
            ValueError: If it is not of a method that can go on, or pair or data are missing.
        """
        from ppl_gen.core.fit import extend

        return extend(self, draws, progress)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the posterior to a folder: zarr, safetensors and JSON, never pickle.

        `xarray.open_zarr(path / "draws.zarr", group="posterior", consolidated=False)` reads the
        draws; other groups are sample_stats and divergences. Of many processes the first writes.

        Args:
            path: The folder, which must not exist yet.
            overwrite: Replace a posterior that was saved there before.

        Returns:
            The folder.

        Raises:
            FileExistsError: If the folder exists.
            OSError: If it cannot be written.
        """
        from ppl_gen.core.ranks import ranks
        from ppl_gen.core.store import save

        return save(self, Path(path), overwrite=overwrite) if ranks().first else Path(path)

    @property
    def _dtype(self) -> torch.dtype:
        name = self.provenance.get("dtype", "float64")
        dtype = getattr(torch, str(name))
        assert isinstance(dtype, torch.dtype)
        return dtype

    def _run_on(self, data: Mapping[str, Any] | None) -> tuple[nn.Module, dict[str, Any]]:
        """Return pair and data on the CPU in the posterior's dtype, ready to be run."""
        if self.pair is None:
            msg = (
                "this posterior was loaded without its pair: pg.load(path, pair=pair) gives it one."
            )
            raise ValueError(msg)
        if data is None and self.data is None:
            msg = "this posterior holds no data: pass the data."
            raise ValueError(msg)
        cpu = torch.device("cpu")
        pair = self.pair
        tensors = [*pair.parameters(), *pair.buffers()]
        if any(
            t.device != cpu or (t.is_floating_point() and t.dtype != self._dtype) for t in tensors
        ):
            pair = cast(own_copy(pair), self._dtype, cpu)
        bound = dict(self.data or {}) if data is None else bind(pair, data)
        return pair, move(bound, self._dtype, cpu)

    def _prepared(self, data: Mapping[str, Any] | None) -> tuple[nn.Module, dict[str, Any]]:
        """Return pair and data as `_run_on` does, the data after the pair's `prepare`."""
        pair, bound = self._run_on(data)
        # The data of draws are kept as prepared; to prepare them twice would change them.
        stored = data is None and self.local_plate is None
        return pair, bound if stored else prepare(pair, bound)

    def _latents_for(self, sites: Mapping[str, Any]) -> list[str]:
        """Return the drawn latents that a run of the model has, with their shapes checked."""
        names = [name for name in self.latents if name in sites]
        _check_shapes({name: self.draws[name] for name in names}, sites)
        return names

    def _with_local_draws(
        self, data: Mapping[str, Any] | None, draws: int | None, seed: int
    ) -> Posterior:
        if self.guide is not None and (self.local_plate is not None or not self.draws):
            with contextlib.suppress(NoLatentsError):
                return self.sample(data, draws or 1000, seed)
        return self

    def _map(self, function: Any, draws: Draws, num_draws: int | None = None) -> Draws:
        """Apply a function to every draw of every chain, keeping both axes."""
        size = num_bytes(self.data or {})
        if not draws:
            count = num_draws or max(self.num_draws, 1)
            flat = map_draws(function, {}, num_draws=count * self.num_chains, bytes_per_draw=size)
            return {n: v.reshape(self.num_chains, count, *v.shape[1:]) for n, v in flat.items()}
        chains, count = next(iter(draws.values())).shape[:2]
        flat = map_draws(
            function, {n: v.flatten(0, 1) for n, v in draws.items()}, bytes_per_draw=size
        )
        return {n: v.reshape(chains, count, *v.shape[1:]) for n, v in flat.items()}


@dataclass(frozen=True)
class Outline:
    """What a posterior is to hold, as one run of its pair's model shows it.

    Args:
        pair: The pair, ready to be run on the CPU.
        data: The data likewise.
        sites: The sites that are kept for it.
        deterministic: Names of the deterministic ones that follow from the latent ones.
        observed: Names of the observed ones.
    """

    pair: nn.Module
    data: Mapping[str, Any]
    sites: Mapping[str, Site]
    deterministic: tuple[str, ...]
    observed: tuple[str, ...]

    @classmethod
    def of(cls, posterior: Posterior, few: Mapping[str, Any] | None = None) -> Outline:
        """Return the outline of a posterior whose pair, data and latents are known.

        Args:
            posterior: The posterior.
            few: A few rows of data that are taken in mini-batches, and may be very many.
        """
        if few is not None:
            pair, data = dataclasses.replace(posterior, data=few)._prepared(None)
        else:
            pair, data = posterior._run_on(None)
        found = trace_sites(pair, data)
        sites = {
            name: site
            for name, site in found.items()
            if not (posterior.local_plate and site.inside(posterior.local_plate))
        }
        wanted = [name for name, site in sites.items() if site.kind == "deterministic"]
        drawn = posterior.latents
        if any(site.kind == "discrete" and name not in drawn for name, site in sites.items()):
            # Without draws of those latents, a value that follows from them is one of the prior.
            depends = dependent_on_discrete(pair, data, wanted)
            wanted = [name for name in wanted if name not in depends]
        observed = tuple(name for name, site in found.items() if site.kind == "observed")
        return cls(pair, data, sites, tuple(wanted), observed)

    def values(self, latents: Mapping[str, torch.Tensor]) -> Draws:
        """Return the deterministic sites of one draw of the latent ones."""
        return _run(self.pair, self.data, latents, list(self.deterministic))

    def dims(self, drawn: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Return the names of the axes of the sites that were drawn."""
        return {name: self.sites[name].dims for name in drawn if name in self.sites}

    def coords(self, drawn: Iterable[str]) -> dict[str, list[Any]]:
        """Return labels along the plates of the sites that were drawn, and the observed ones."""
        used = {axis for dims in self.dims(drawn).values() for axis in dims}
        return {
            plate.name: list(range(plate.size))
            for site in self.sites.values()
            for plate in site.plates
            if plate.name in used or site.kind == "observed"
        }


def assemble(posterior: Posterior, few: Mapping[str, Any] | None = None) -> Posterior:
    """Return a posterior with its deterministic sites, dims and coords filled in from the model.

    Args:
        posterior: One with draws of its latent sites, its pair and data.
        few: A few rows of data that are taken in mini-batches.
    """
    outline = Outline.of(posterior, few)
    draws = posterior.draws
    if not isinstance(draws, StoredDraws):
        draws = {name: value.cpu() for name, value in draws.items()}
    if draws and any(name not in draws for name in outline.deterministic):
        latents = {name: draws[name] for name in posterior.latents if name in outline.sites}
        draws = {**draws, **posterior._map(outline.values, latents)}
    return dataclasses.replace(
        posterior,
        draws=draws,
        dims=outline.dims(draws),
        coords=outline.coords(draws),
        observed=outline.observed or posterior.observed,
    )


def _shared_discrete(sites: Mapping[str, Site]) -> list[str]:
    """Return the discrete latents that do not belong to one row of the data each."""
    rows = [{p.name for p in s.plates} for s in sites.values() if s.kind == "observed"]
    return [
        name
        for name, site in sites.items()
        if site.kind == "discrete"
        and (not site.plates or any({p.name for p in site.plates} != row for row in rows))
    ]


def _check_shapes(draws: Mapping[str, torch.Tensor], sites: Mapping[str, Site]) -> None:
    """Refuse draws of latent sites that have other shapes in a run of the model."""
    for name, value in draws.items():
        expected, got = tuple(value.shape[2:]), sites[name].shape
        if expected != got:
            raise SiteError(
                name,
                expected=f"shape {expected}, as it was fitted",
                got=f"shape {got} on this data",
                remedy="A site for each row belongs to the rows it was fitted on: give data of "
                "the same length. For any other site the pair is not the one that was fitted.",
            )


def _check_drawable(sites: Mapping[str, Site], names: Iterable[str]) -> None:
    """Refuse sites whose distributions cannot be drawn from."""
    for name in names:
        if not sites[name].drawable:
            raise not_drawable(sites[name])


def _thin(draws: torch.Tensor, count: int | None) -> torch.Tensor:
    """Return a number of draws spread evenly over those of each chain."""
    if count is None:
        return draws
    check_count("draws", count)
    index = torch.linspace(0, draws.shape[1] - 1, min(count, draws.shape[1])).round().long()
    return draws[:, index]


def _run(
    pair: nn.Module,
    data: Mapping[str, Any],
    values: Mapping[str, torch.Tensor],
    wanted: list[str],
    *,
    unobserve: bool = False,
) -> Draws:
    """Run the model at given latent values and return the values of the sites wanted."""
    replay = Replay(values, wanted)
    unobserved = Unobserve() if unobserve else contextlib.nullcontext()
    with torch.no_grad(), unchecked(), drawing(), AnswerParams(pair), replay:
        with DrawSimplices(), StartValues(), unobserved:
            model_of(pair)(**data)
    return replay.found
