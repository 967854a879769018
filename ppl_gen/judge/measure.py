"""Measuring several posteriors of one model against a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppl_gen.core.errors import unknown
from ppl_gen.core.posterior import Posterior
from ppl_gen.diagnostics import Convergence, convergence
from ppl_gen.diagnostics.distances import (
    Deviation,
    marginal_wasserstein,
    simultaneous_z,
)
from ppl_gen.diagnostics.marginals import Marginals
from ppl_gen.judge.errors import KINDS, Errors, compare
from ppl_gen.judge.findings import Grade, Thresholds
from ppl_gen.judge.marginals import all_marginals, part, worth_less
from ppl_gen.judge.sites import (
    SiteDraws,
    check_data,
    check_posteriors,
    common_sites,
    scalar_name,
    worth_of_a_draw,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Measurements", "measure"]

Array = NDArray[np.float64]

# Vehtari et al. (2021) advise to trust chains only below this.
_RHAT_LIMIT = 1.01


@dataclass(frozen=True, eq=False)
class Measurements:
    """What `measure` found.

    Args:
        table: One row for each parameter and method, grouped by parameter, with the columns
            `parameter`, `method`, `mean`, `sd`, `q5`, `q50` and `q95` (quantiles); for MCMC only
            `r_hat`, `ess_bulk`, `ess_tail` and `mcse` (of the mean); and against the reference
            `error_of_mean` and `error_of_q5`, `_q50`, `_q95` (in standard deviations of the
            reference), `error_of_sd` (relative), each with a column `..._floor` (what chance alone
            would show, a bound for all of them at once); `error_of_mean_mcse` (the Monte Carlo
            standard error of the error of the mean), `sd_ratio` (to the reference), `wasserstein`
            and `wasserstein_floor` (of the marginals, in the same unit), `grade_of_mean`,
            `grade_of_sd` and `grade_of_quantiles` ("green", "amber", "red" or "blank"), and
            `severity` (the largest error net of its floor, as a multiple of where red begins).
            What does not apply is NaN.
        methods: One row for each method, indexed by its name, with the columns `method` (the
            inference method), `chains`, `draws` (in each chain), `elbo` and `elbo_mcse` (in nats),
            `seconds`, `gradient_evaluations`, and for MCMC only `max_r_hat`, `min_ess` (the
            smallest of all bulk and tail ones) and `divergences`. What does not apply is NaN.
        reference: Name of the posterior that the others are measured against; None where there is
            none.
        sites: Draws of the sites compared, by site and method, with axes (chain, draw, *site), in
            the dtype they were made in. They share memory with the posteriors.
        parameters: Site and index of each parameter, by its name in the table.
        left_out: Why a site is not in the table, by site.
        notes: What a reader has to know before trusting the numbers, in plain words.
        marginals: Statistics of the scalars in the order of `parameters`, by method.
        errors: Errors and grades of these, by method, the reference left out.
        heavy_tailed: Parameters whose moments the reference cannot tell, so heavy are its tails:
            these are compared by quantiles, in the unit of the normal with the same 5 % and 95 %
            quantiles.
    """

    table: pd.DataFrame
    methods: pd.DataFrame
    reference: str | None
    sites: Mapping[str, SiteDraws]
    parameters: Mapping[str, tuple[str, tuple[int, ...]]]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]
    marginals: Mapping[str, Marginals] = field(default_factory=dict)
    errors: Mapping[str, Errors] = field(default_factory=dict)
    heavy_tailed: tuple[str, ...] = ()

    def draws(self, parameter: str) -> dict[str, Array]:
        """Return the draws of one parameter by method, each with axes (chain, draw).

        Args:
            parameter: Its name in the table, as `weights[2]`.

        Raises:
            ValueError: If the table has no such parameter.
        """
        if parameter not in self.parameters:
            raise unknown("parameter", parameter, self.parameters)
        site, index = self.parameters[parameter]
        element: tuple[Any, ...] = (slice(None), slice(None), *index)
        return {
            method: draws[element].astype(np.float64) for method, draws in self.sites[site].items()
        }


def measure(
    posteriors: Mapping[str, Posterior],
    reference: str | None,
    thresholds: Thresholds = Thresholds(),  # noqa: B008 - it is frozen
) -> Measurements:
    """Measure posteriors of one model against one of them, parameter by parameter.

    Latent and deterministic sites that all posteriors have are taken apart into scalars, named as
    `weights[2]` or `covariance[0, 1]`. R-hat, effective sample sizes and the Monte Carlo standard
    error are those of Markov chains, and are left blank for draws that are independent by
    construction: for these they look perfect whatever the approximation is worth.

    Args:
        posteriors: Posteriors by the names that the table uses.
        reference: The name of the one that the others are measured against; None: no errors.
        thresholds: Where green ends and red begins.

    Returns:
        The measurements.

    Raises:
        TypeError: If a value is no posterior, or a name no text.
        ValueError: If there is no posterior, the reference is none of them, one has fewer than two
            draws (and is no point, such as a mode), there is no site in common, they are of
            different data, or a latent site has draws that are NaN or infinite.
        SiteError: If a site has different shapes in two posteriors.

    Example:
        >>> import torch
        >>> draws = torch.randn(2, 4, 1000, generator=torch.Generator().manual_seed(1))
        >>> chains = Posterior(draws={"mu": draws[0]}, latents=("mu",))
        >>> guide = Posterior(draws={"mu": 1 + draws[1]}, latents=("mu",), is_mcmc=False)
        >>> table = measure({"nuts": chains, "svi": guide}, reference="nuts").table
        >>> table[["parameter", "method", "error_of_mean", "sd_ratio"]].round(1)
          parameter method  error_of_mean  sd_ratio
        0        mu   nuts            0.0       1.0
        1        mu    svi            1.0       1.0
    """
    check_posteriors(posteriors, reference)
    for name, posterior in posteriors.items():
        _check_draws(name, posterior)
    check_data(posteriors)
    sites, left_out = common_sites(posteriors)
    by_method = {name: {site: draws[name] for site, draws in sites.items()} for name in posteriors}
    found = {
        name: worth_less(
            all_marginals(by_method[name], is_mcmc=posterior.is_mcmc), worth_of_a_draw(posterior)
        )
        for name, posterior in posteriors.items()
    }
    chains = {
        name: _convergence(by_method[name])
        for name, posterior in posteriors.items()
        if posterior.is_mcmc
    }
    first = next(iter(posteriors))
    parameters = {
        scalar_name(site, index): (site, index)
        for site, draws in sites.items()
        for index in np.ndindex(draws[first].shape[2:])
    }
    errors: dict[str, Errors] = {}
    distances: dict[str, Deviation] = {}
    heavy: tuple[str, ...] = ()
    if reference is not None:
        target = found[reference]
        heavy = tuple(np.array(list(parameters))[target.heavy_tailed].tolist())
        for name in posteriors:
            if name != reference:
                errors[name] = compare(found[name], target, thresholds)
                distances[name] = _wasserstein(by_method, found, name, reference)
    table = _parameter_table(list(parameters), found, chains, errors, distances, reference)
    methods = _method_table(posteriors, table)
    notes = _notes(posteriors, methods, table, reference)
    return Measurements(
        table, methods, reference, sites, parameters, left_out, notes, found, errors, heavy
    )


def with_methods(measured: Measurements, posteriors: Mapping[str, Posterior]) -> Measurements:
    """Return measurements whose table of methods has all posteriors, measured or not.

    Args:
        measured: The measurements.
        posteriors: All posteriors by name.
    """
    return replace(measured, methods=_method_table(posteriors, measured.table))


def unmeasured(posteriors: Mapping[str, Posterior]) -> Measurements:
    """Return measurements of posteriors of which none has draws to be measured.

    Args:
        posteriors: By name.
    """
    table = _parameter_table(
        [], {"none": all_marginals({"": np.zeros((1, 2, 0))}, is_mcmc=False)}, {}, {}, {}, None
    )
    return Measurements(table, _method_table(posteriors, table), None, {}, {}, {}, ())


def _convergence(draws: Mapping[str, NDArray[Any]]) -> Convergence:
    parts = [convergence(values.reshape(*values.shape[:2], -1)) for values in draws.values()]
    return Convergence(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("rhat", "ess_bulk", "ess_tail")
        )
    )


def _wasserstein(
    draws: Mapping[str, Mapping[str, NDArray[Any]]],
    found: Mapping[str, Marginals],
    name: str,
    reference: str,
) -> Deviation:
    """Return the marginal distances of a method from the reference, (scalar,) each."""
    if any(next(iter(draws[method].values())).shape[:2] == (1, 1) for method in (name, reference)):
        blank = np.full(len(found[name].mean), np.nan)  # a point is no distribution
        return Deviation(blank, blank, blank)
    parts, first = [], 0
    for site, values in draws[name].items():
        target = draws[reference][site]
        ours, theirs = (array.reshape(*array.shape[:2], -1) for array in (values, target))
        own = slice(first, first + ours.shape[2])
        first = own.stop
        of_ours, of_theirs = (part(found[method], own) for method in (name, reference))
        parts.append(marginal_wasserstein(ours, theirs, of_ours, of_theirs))
    return Deviation(
        np.concatenate([each.value for each in parts]),
        np.concatenate([each.standard_error for each in parts]),
        np.concatenate([np.asarray(each.expected) for each in parts]),
    )


def _check_draws(name: str, posterior: Posterior) -> None:
    for site, draws in posterior.draws.items():
        if draws.ndim < 2 or draws.shape[0] * draws.shape[1] < (1 if posterior.is_point else 2):
            raise ValueError(
                f"posterior {name!r}, site {site!r}: expected at least 2 draws with axes "
                f"(chain, draw, *site), got shape {tuple(draws.shape)}. Fit it with more draws."
            )


def _parameter_table(
    names: list[str],
    found: Mapping[str, Marginals],
    chains: Mapping[str, Convergence],
    errors: Mapping[str, Errors],
    distances: Mapping[str, Deviation],
    reference: str | None,
) -> pd.DataFrame:
    import pandas as pd

    blank = np.full(len(names), np.nan)
    frames = []
    for method, of_method in found.items():
        convergence = chains.get(method, Convergence(blank, blank, blank))
        columns: dict[str, Any] = {
            "parameter": names,
            "method": method,
            "mean": of_method.mean,
            "sd": of_method.sd,
            **dict(zip(("q5", "q50", "q95"), of_method.quantiles, strict=True)),
            "r_hat": convergence.rhat,
            "ess_bulk": convergence.ess_bulk,
            "ess_tail": convergence.ess_tail,
            "mcse": of_method.mean_error if method in chains else blank,
        }
        if method in errors:
            assert reference is not None
            columns |= _error_columns(of_method, found[reference], errors[method])
            floor = distances[method].floor(simultaneous_z(max(len(names), 1)))
            columns |= {"wasserstein": distances[method].value, "wasserstein_floor": floor}
        else:
            columns |= _columns_without_errors(blank if method != reference else of_method.sd)
        frames.append(pd.DataFrame(columns))
    # The index counts the scalars: a stable sort by it keeps the order of methods.
    return pd.concat(frames).sort_index(kind="stable").reset_index(drop=True)


def _error_columns(found: Marginals, reference: Marginals, errors: Errors) -> dict[str, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            "error_of_mean": errors.error[0],
            "error_of_mean_mcse": np.hypot(found.mean_error, reference.mean_error) / errors.unit,
            "sd_ratio": errors.error[1] + 1.0,
        }
    for row, kind in enumerate(KINDS):
        columns[f"error_of_{kind}"] = errors.error[row]
        columns[f"error_of_{kind}_floor"] = errors.floor[row]
    return columns | {
        "grade_of_mean": errors.grades("mean"),
        "grade_of_sd": errors.grades("sd"),
        "grade_of_quantiles": errors.worst_of_quantiles(),
        "severity": errors.severity,
    }


def _columns_without_errors(sd: Array) -> dict[str, Any]:
    """Return the columns of a reference, 0 but where it does not vary; NaN where there is none."""
    none = np.where(sd > 0.0, 0.0, np.nan)
    columns: dict[str, Any] = {"error_of_mean": none, "error_of_mean_mcse": none}
    columns["sd_ratio"] = none + 1.0
    for kind in KINDS:
        columns |= {f"error_of_{kind}": none, f"error_of_{kind}_floor": none}
    for kind in ("mean", "sd", "quantiles"):
        columns[f"grade_of_{kind}"] = Grade.BLANK.value
    return columns | {"severity": none, "wasserstein": none, "wasserstein_floor": none}


def _method_table(posteriors: Mapping[str, Posterior], table: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    rows = {}
    for name, posterior in posteriors.items():
        own = table[table["method"] == name]
        elbo, elbo_mcse = posterior.elbo if posterior.elbo is not None else (np.nan, np.nan)
        diverging = posterior.sample_stats.get("diverging")
        provenance: Mapping[str, Any] = posterior.provenance
        rows[name] = {
            "method": provenance.get("method", ""),
            "chains": posterior.num_chains,
            "draws": posterior.num_draws,
            "elbo": elbo,
            "elbo_mcse": elbo_mcse,
            "seconds": _number(provenance.get("seconds")),
            "gradient_evaluations": _number(provenance.get("gradient_evaluations")),
            "max_r_hat": own["r_hat"].max(),
            "min_ess": own[["ess_bulk", "ess_tail"]].min(axis=None),
            "divergences": (
                float(diverging.sum()) if posterior.is_mcmc and diverging is not None else np.nan
            ),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _notes(
    posteriors: Mapping[str, Posterior],
    methods: pd.DataFrame,
    table: pd.DataFrame,
    reference: str | None,
) -> tuple[str, ...]:
    notes = []
    if reference is not None and len(posteriors) > 1 and not posteriors[reference].is_mcmc:
        notes.append(
            f"The reference {reference} is not MCMC: where it is an approximation itself, a small "
            "error says only that the others agree with it."
        )
    for name, posterior in posteriors.items():
        role = "The reference " if name == reference and len(posteriors) > 1 else ""
        if posterior.interrupted:
            notes.append(f"{role}{name} was interrupted: it is not what its options say.")
        r_hat = methods.loc[name, "max_r_hat"]
        if r_hat > _RHAT_LIMIT:
            own = table[table["method"] == name]
            worst = own.loc[own["r_hat"].idxmax(), "parameter"]
            others = ", or what is measured against it" if role else ""
            notes.append(
                f"{role}{name} has an R-hat of {r_hat:.4g} for {worst}: above {_RHAT_LIMIT} its "
                f"chains do not agree yet, or are too short to show it. Run it for longer before "
                f"trusting it{others}."
            )
        if methods.loc[name, "divergences"] > 0:
            count = int(methods.loc[name, "divergences"])
            total = posterior.num_chains * posterior.num_draws
            notes.append(
                f"{role}{name} has {count} divergent transition{'s' * (count > 1)} of {total}: "
                "more than a few mean that it misses a part of the posterior."
            )
    return tuple(notes)
