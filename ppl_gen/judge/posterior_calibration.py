"""Posterior simulation-based calibration: whether a method is right for the data at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppl_gen.core import Method, Posterior, SiteError
from ppl_gen.core.arguments import move
from ppl_gen.core.errors import check_count
from ppl_gen.core.pair import cast, own_copy
from ppl_gen.core.scope import isolated
from ppl_gen.core.structure import Site, trace_sites
from ppl_gen.judge.calibration_result import Calibration
from ppl_gen.judge.joining import Join, StackRows, check_join
from ppl_gen.judge.ranker import Quantity, Ranker, Values, independent_draws
from ppl_gen.judge.replicates import Replicates, constant_elements, seeds_of
from ppl_gen.judge.simulation import arguments_of, check_drawable, draw_sites

__all__ = ["posterior_calibration"]

# Independent draws of the posterior that are wanted for each true value taken from them.
_DRAWS_EACH = 3
# Successive multiples of it, without their whole part, are spread evenly, however many there are.
_GOLDEN = (5**0.5 - 1) / 2


def posterior_calibration(
    posterior: Posterior,
    method: Method,
    *,
    replicates: int = 100,
    max_rank: int = 99,
    quantities: Mapping[str, Quantity] | None = None,
    observed: Mapping[str, str] | None = None,
    join: Join | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    workers: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Calibration:
    """Calibrate a method by data sets like the one that a posterior was fitted to.

    True values are drawn from the posterior given the data y, new observations y' are simulated
    from them, and the method is run on y and y' together. If its draws come from that posterior,
    the true values' ranks among them are uniform. Where `simulation_based_calibration` asks whether
    a method is right for most data that the prior makes likely, this asks whether it is for those
    at hand, with twice as many observations. The prior need not be proper.

    The model is given all observations at once: new rows are stacked below those of the data, along
    the plate that is over its rows, with the same covariates. Latents in that plate, one for each
    row, are drawn anew for the new rows: eight schools become sixteen. Every site's log density is
    compared with that of its parts, and a model whose rows depend on each other is refused. Where
    there is no such plate, or new observations belong to the same latents, say how the data are
    put together by `join`.

    True values are those of the posterior given: where that is wrong, ranks may be uneven though
    the method is right.

    Args:
        posterior: The posterior for the data, with its pair and data, such as a long run of NUTS.
        method: The method, which may be another one than the posterior's.
        replicates: Number of simulated data sets; the posterior needs three independent draws for
            each.
        max_rank: As for `simulation_based_calibration`, like all that follow.
        quantities: Further test quantities.
        observed: Arguments by observed site.
        join: From the data and new values of the observed arguments, which are simulated at all
            latents of a posterior draw, to data that hold both. Of eight schools tested twice:
            `lambda data, new: {"y": (data["y"] + new["y"]) / 2, "sigma": data["sigma"] / 2**0.5}`.
        seed: Seed of the simulations and fits.
        device: Where to run the fits.
        workers: Number of processes.
        out: A file for the ranks.
        resume: Go on with it.
        progress: Whether to show a progress bar.

    Returns:
        The ranks. Of latents in the plate, those of new rows come after those of the data.

    Raises:
        SiteError: If a site's log density is not that of its parts with the data joined, a site
            cannot be drawn from, or no argument holds the values of an observed one.
        ValueError: If there is no plate over the rows, `join` does not give the density of both,
            the posterior has too few draws or lacks its pair or data, or fits fail.
        FileExistsError: As for `simulation_based_calibration`, like the following.
        BlockingIOError: If another process is writing to the file.
        RuntimeError: If a process has died.

    References:
        Säilynoja, Schmitt, Bürkner and Vehtari, Posterior SBC: simulation-based calibration
        checking conditional on data (2025), arXiv:2502.03279.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from ppl_gen import fit
        >>> from ppl_gen.inference import NUTS
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("row", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> nuts = NUTS(chains=2, draws=100, warmup=100)
        >>> posterior = fit(model, {"y": torch.tensor([4.0, 6.0])}, nuts, progress=False)
        >>> calibration = posterior_calibration(
        ...     posterior, nuts, replicates=20, max_rank=9, progress=False
        ... )
        >>> calibration.source, calibration.names, calibration.passes()
        ('posterior', ('mean', 'log_joint'), True)
    """
    check_count("replicates", replicates)
    check_count("max_rank", max_rank)
    _check_posterior(posterior, replicates)
    cpu, dtype = torch.device("cpu"), torch.float64
    assert posterior.pair is not None
    assert posterior.data is not None
    pair = cast(own_copy(posterior.pair), dtype, cpu)
    data = move(posterior.data, dtype, cpu)
    with isolated(0, dtype):
        sites = trace_sites(pair, data)
        kept = {name: site for name, site in sites.items() if site.kind != "factor"}
        arguments = arguments_of(pair, data, kept, observed or {})
        rows = None if join is not None else StackRows.of(pair, data, sites, arguments)
    _check_observed(sites, data, arguments)
    own = () if rows is None else _own_of_rows(sites, rows)
    check_drawable(sites, [*arguments, *own])
    draws = _draws(posterior, sites, own, seed)
    simulate = _FromPosterior(pair, data, sites, draws, own, arguments, rows, join)
    simulate.check(seed)
    ranker = Ranker(pair, max_rank, quantities or {}, constant_elements(simulate, sites, seed))
    run = Replicates(
        posterior.pair, method, simulate, ranker, seed, device, "posterior", posterior.data
    )
    return run.run(replicates, workers=workers, out=out, resume=resume, progress=progress)


@dataclass(frozen=True)
class _FromPosterior:
    """Takes true values from a posterior, and simulates observations from them.

    Args:
        pair: The pair, in double precision on the CPU.
        data: The data likewise.
        sites: The sites of its model.
        draws: Draws of latent sites, (draw, *site): all but discrete ones that are drawn anew.
        own: Names of the latent sites that each row has its own values of.
        arguments: By observed site the argument that holds its values.
        rows: How rows are stacked; None where `join` is given.
        join: How the data are put together otherwise.
    """

    pair: nn.Module
    data: Mapping[str, Any]
    sites: Mapping[str, Site]
    draws: Mapping[str, torch.Tensor]
    own: tuple[str, ...]
    arguments: Mapping[str, str]
    rows: StackRows | None
    join: Join | None

    def __call__(self, index: int, seed: int) -> tuple[Values, dict[str, Any]]:
        truth = self._draw(index)
        new = self._anew(truth, seed)
        return self._of_both(truth, new), self._joined(new)

    def check(self, seed: int) -> None:
        """Make sure that the joined data are those of both.

        Raises:
            SiteError: If they are not, for a site.
            ValueError: If they are not.
        """
        first, *others = (seeds_of(seed, index)[0] for index in range(6))
        truth = self._draw(0)
        new = self._anew(truth, first)
        data = ({**self.data, **self._observations(new)}, self._joined(new))
        if self.rows is None:
            draws = (self._draw(index) for index in range(len(others)))
            check_join(self.pair, self.data, ((d, *data) for d in draws), self.arguments)
            return
        # Any values of the rows' own latents will do.
        before = {**truth, **self._anew(truth, others[0])}
        values = (before, {**truth, **new}, self._of_both(before, new))
        self.rows.check(self.pair, self.sites, (self.data, *data), values)

    def _draw(self, index: int) -> dict[str, torch.Tensor]:
        """Return a draw of the posterior, each index another one, evenly spread over all."""
        total = len(next(iter(self.draws.values())))
        place = int(total * ((0.5 + index * _GOLDEN) % 1.0))
        return {name: value[place] for name, value in self.draws.items()}

    def _anew(self, truth: Values, seed: int) -> dict[str, torch.Tensor]:
        """Draw new observations, and new values of the latents that each row has its own of."""
        shared = {name: value for name, value in truth.items() if name not in self.own}
        return draw_sites(self.pair, self.data, shared, [*self.own, *self.arguments], seed)

    def _observations(self, new: Values) -> dict[str, torch.Tensor]:
        return {argument: new[site] for site, argument in self.arguments.items()}

    def _joined(self, new: Values) -> dict[str, Any]:
        found = self._observations(new)
        if self.join is not None:
            return {**self.data, **self.join(self.data, found)}
        assert self.rows is not None
        return self.rows(self.data, found)

    def _of_both(self, values: Values, new: Values) -> dict[str, torch.Tensor]:
        """Return values of latent sites, those of new rows stacked below."""
        rows = self.rows
        return {
            name: rows.stack(self.sites[name], value, new[name])
            if rows is not None and name in self.own
            else value
            for name, value in values.items()
        }


def _check_posterior(posterior: Posterior, replicates: int) -> None:
    """Refuse a posterior that true values cannot be taken from.

    Raises:
        ValueError: If its pair or data are missing, or it has too few draws.
    """
    if posterior.pair is None or posterior.data is None:
        what = "pair" if posterior.pair is None else "data"
        msg = f"the posterior lacks its {what}: fit it here, or give pg.load(path, pair=pair) both."
        raise ValueError(msg)
    if not posterior.draws or posterior.local_plate is not None:
        msg = (
            "the posterior holds no draws of the latents of each row, which true values are taken "
            "from: fit a few rows without batch_size."
        )
        raise ValueError(msg)
    worth = independent_draws(posterior, posterior.latents)
    if worth >= _DRAWS_EACH * replicates:
        return
    needed = _DRAWS_EACH * replicates
    more = "posterior.extend(draws)" if posterior.is_mcmc else f"posterior.sample(draws={needed})"
    fewer = f"replicates={worth // _DRAWS_EACH}" if worth >= _DRAWS_EACH else "more draws"
    msg = (
        f"the posterior is worth {worth} independent draws, and {replicates} data sets need "
        f"{needed}, {_DRAWS_EACH} for each: give {fewer}, or a larger posterior: {more}."
    )
    raise ValueError(msg)


def _check_observed(
    sites: Mapping[str, Site], data: Mapping[str, Any], arguments: Mapping[str, str]
) -> None:
    """Refuse an argument that does not hold the values of its site."""
    for site, argument in arguments.items():
        given = data.get(argument)
        if not isinstance(given, torch.Tensor) or not torch.equal(
            given.double(), sites[site].value.double()
        ):
            raise SiteError(
                site,
                expected=f"the values of argument '{argument}'",
                got="other ones, which the model makes of them",
                remedy="Make them before the fit, and give the model what it observes.",
            )


def _own_of_rows(sites: Mapping[str, Site], rows: StackRows) -> tuple[str, ...]:
    """Return the latent sites that each row has its own values of."""
    kinds = ("latent", "discrete")
    return tuple(n for n, s in sites.items() if s.kind in kinds and s.inside(rows.plate))


def _draws(
    posterior: Posterior, sites: Mapping[str, Site], own: tuple[str, ...], seed: int
) -> dict[str, torch.Tensor]:
    """Return draws of latent sites, (draw, *site), those that were summed out among them."""
    draws = {name: posterior[name].flatten(0, 1) for name in posterior.latents}
    missing = [n for n, s in sites.items() if s.kind == "discrete" and n not in (*draws, *own)]
    if missing:
        discrete = posterior.discrete(seed=seed)
        draws |= {name: discrete[name].flatten(0, 1) for name in missing}
    return {n: v.double() if v.is_floating_point() else v for n, v in draws.items()}
