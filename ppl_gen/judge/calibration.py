"""Simulation-based calibration: whether a method finds what data were simulated with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppl_gen.core import Method, SiteError
from ppl_gen.core.arguments import bind, move
from ppl_gen.core.errors import check_count
from ppl_gen.core.pair import as_pair, cast, own_copy
from ppl_gen.core.scope import isolated
from ppl_gen.core.structure import Site, Unobserve, trace_sites
from ppl_gen.judge.calibration_result import Calibration, FailedFit
from ppl_gen.judge.ranker import Quantity, Ranker, Values
from ppl_gen.judge.replicates import Replicates, constant_elements
from ppl_gen.judge.simulation import arguments_of, check_drawable, draw_sites

__all__ = ["Calibration", "FailedFit", "Quantity", "simulation_based_calibration"]


def simulation_based_calibration(
    pair: Any,
    data: Mapping[str, Any],
    method: Method,
    *,
    replicates: int = 200,
    max_rank: int = 99,
    quantities: Mapping[str, Quantity] | None = None,
    observed: Mapping[str, str] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    workers: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Calibration:
    """Fit data simulated from the model, and rank what they were simulated with among the draws.

    Latents and observations are drawn from the prior; the method is run on each set of
    observations. If its draws come from the posterior, the rank of the true value among them is
    uniform, for each scalar of the latents and for any function of latents and data. The log joint
    density is always one of these: it shows, among others, draws that do not depend on the data.

    Autocorrelated draws have uneven ranks even where the sampler is right. They are thinned to as
    many as are worth independent ones, up to `max_rank`; ranks among fewer are spread over the
    whole range at random, as are ties.

    What it cannot see: faults that hardly matter under data that the prior makes likely (for those
    at hand see `posterior_calibration`), and anything that keeps the posterior as it is and only
    wastes time.

    The ranks depend on the seed alone, not on the number of processes nor on how often the run was
    stopped and gone on with. Each fit computes in one thread of PyTorch.

    Args:
        pair: The pair, or a Pyro function, with proper priors.
        data: What the model needs besides the observations. Those are left out where their
            argument has a default, or are given and not looked at.
        method: The method.
        replicates: Number of simulated data sets.
        max_rank: Number of draws that a true value is ranked among.
        quantities: Further quantities by name: functions from values (n, *site) of the latent
            sites and the data to numbers (n,).
        observed: The argument that holds the values of each observed site, where it is named
            otherwise than the site.
        seed: Seed of the simulations and fits.
        device: Where to run the fits, as for `fit`.
        workers: Number of processes that share the fits; None: as many as there are processors.
            Only Linux has them, and no machine with a GPU: elsewhere one fit follows the other.
        out: A file for the ranks of finished replicates, as lines of JSON; `Calibration.load` reads
            it.
        resume: Go on with the calibration in the file, which was killed, interrupted, or is to get
            more replicates. Where there is nothing yet, it starts.
        progress: Whether to show a progress bar.

    Returns:
        The ranks. After Ctrl-C, those of the data sets that were done. Up to a tenth of the fits
        may fail: they are named and left out.

    Raises:
        SiteError: If no argument holds the values of an observed site, or the model has a factor.
        ValueError: If nothing is observed, a prior is improper, more than a tenth of the fits fail,
            or the file is that of another calibration.
        FileExistsError: If the file is there, and is not to be resumed.
        BlockingIOError: If another process is writing to the file.
        RuntimeError: If a process has died, with the replicate that it was at.

    References:
        Talts, Betancourt, Simpson, Vehtari and Gelman, Validating Bayesian inference algorithms
        with simulation-based calibration (2018), arXiv:1804.06788. Modrák, Moon, Kim, Bürkner,
        Huurre, Faltejsková, Gelman and Vehtari, Simulation-based calibration checking for Bayesian
        computation: the choice of test quantities shapes sensitivity (2023), arXiv:2211.02383.
        Säilynoja, Bürkner and Vehtari, Graphical test for discrete uniformity and its applications
        in goodness-of-fit evaluation and multiple sample comparison (2022), arXiv:2103.10522.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from ppl_gen.inference import NUTS
        >>> def model(y=None):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> nuts = NUTS(chains=2, draws=100, warmup=100)
        >>> calibration = simulation_based_calibration(
        ...     model, {}, nuts, replicates=20, max_rank=9, progress=False
        ... )
        >>> calibration.names, calibration.ranks.shape, calibration.passes()
        (('mean', 'log_joint'), (20, 2), True)
    """
    check_count("replicates", replicates)
    check_count("max_rank", max_rank)
    cpu, dtype = torch.device("cpu"), torch.float64
    with isolated(0, dtype):
        work = cast(own_copy(as_pair(pair)), dtype, cpu)
        given = move(bind(work, data), dtype, cpu)
        sites = trace_sites(work, given, "model", Unobserve())
    _refuse_factors(sites)
    arguments = arguments_of(work, given, sites, observed or {})
    kinds = ("latent", "discrete")
    latents = tuple(n for n, s in sites.items() if s.kind in kinds and n not in arguments)
    if not latents:
        raise ValueError(
            "the model has no latents: it has no posterior to calibrate, and what is trained by "
            "maximum likelihood has no true value. Score held-out data instead."
        )
    check_drawable(sites, [*latents, *arguments])
    simulate = _FromPrior(work, given, data, latents, arguments)
    ranker = Ranker(work, max_rank, quantities or {}, constant_elements(simulate, sites, seed))
    looked_at = {n: v for n, v in data.items() if n not in arguments.values()}
    run = Replicates(pair, method, simulate, ranker, seed, device, "prior", looked_at)
    return run.run(replicates, workers=workers, out=out, resume=resume, progress=progress)


@dataclass(frozen=True)
class _FromPrior:
    """Draws latents and observations from the prior.

    Args:
        pair: The pair, in double precision on the CPU.
        prepared: The data likewise.
        data: The data as the user gave them.
        latents: Names of the latent sites.
        arguments: By observed site the argument that holds its values.
    """

    pair: nn.Module
    prepared: Mapping[str, Any]
    data: Mapping[str, Any]
    latents: tuple[str, ...]
    arguments: Mapping[str, str]

    def __call__(self, index: int, seed: int) -> tuple[Values, dict[str, Any]]:
        drawn = draw_sites(self.pair, self.prepared, {}, [*self.latents, *self.arguments], seed)
        simulated = {argument: drawn[site] for site, argument in self.arguments.items()}
        return {name: drawn[name] for name in self.latents}, {**self.data, **simulated}


def _refuse_factors(sites: Mapping[str, Site]) -> None:
    for name, site in sites.items():
        if site.kind == "factor":
            raise SiteError(
                name,
                expected="a model that data can be drawn from",
                got="a factor, which says how likely values are and not how to draw them",
                remedy="Write it as an observed site of a distribution.",
            )
