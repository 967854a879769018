"""Measuring several posteriors of one model against a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppl_gen.core.errors import SiteError, unknown
from ppl_gen.core.posterior import Posterior
from ppl_gen.diagnostics import Convergence, convergence, mcse_mean

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
            `parameter`, `method`, `mean`, `sd`, `error_of_mean` (in standard deviations of the
            reference), `error_of_mean_mcse` (its Monte Carlo standard error, in the same unit),
            `sd_ratio` (to the reference), and for MCMC only `r_hat`, `ess_bulk`, `ess_tail` and
            `mcse` (of the mean). What does not apply is NaN.
        methods: One row for each method, indexed by its name, with the columns `method` (the
            inference method), `chains`, `draws` (in each chain), `elbo` and `elbo_mcse` (in nats),
            `seconds`, `gradient_evaluations`, and for MCMC only `max_r_hat`, `min_ess` (the
            smallest of all bulk and tail ones) and `divergences`. What does not apply is NaN.
        reference: Name of the posterior that the others are measured against.
        sites: Draws of the sites compared, by site and method, with axes (chain, draw, *site).
        parameters: Site and index of each parameter, by its name in the table.
        left_out: Why a site is not in the table, by site.
        notes: What a reader has to know before trusting the numbers, in plain words.
    """

    table: pd.DataFrame
    methods: pd.DataFrame
    reference: str
    sites: Mapping[str, Mapping[str, Array]]
    parameters: Mapping[str, tuple[str, tuple[int, ...]]]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]

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
        return {method: draws[element] for method, draws in self.sites[site].items()}


def measure(posteriors: Mapping[str, Posterior], reference: str) -> Measurements:
    """Measure posteriors of one model against one of them, parameter by parameter.

    Latent and deterministic sites that all posteriors have are taken apart into scalars, named as
    `weights[2]` or `covariance[0, 1]`. R-hat, effective sample sizes and the Monte Carlo standard
    error are those of Markov chains, and are left blank for draws that are independent by
    construction: for these they look perfect whatever the approximation is worth.

    Args:
        posteriors: Posteriors by the names that the table uses.
        reference: The name of the one that the others are measured against.

    Returns:
        The measurements.

    Raises:
        TypeError: If a value is no posterior, or a name no text.
        ValueError: If there is no posterior, the reference is none of them, one has fewer than two
            draws, there is no site in common, or a latent site has draws that are NaN or infinite.
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
    _check_posteriors(posteriors, reference)
    sites, left_out = _common_sites(posteriors)
    parameters = {
        _name(site, index): (site, index)
        for site, draws in sites.items()
        for index in np.ndindex(draws[reference].shape[2:])
    }
    table = _parameter_table(posteriors, sites, reference)
    methods = _method_table(posteriors, table)
    notes = _notes(posteriors, methods, table, reference)
    return Measurements(table, methods, reference, sites, parameters, left_out, notes)


def _check_posteriors(posteriors: Mapping[str, Posterior], reference: str) -> None:
    if not isinstance(posteriors, Mapping):
        raise TypeError(
            "posteriors: expected a dictionary by name, such as {'svi': svi, 'nuts': nuts}, got "
            f"{type(posteriors).__name__}."
        )
    if not posteriors:
        raise ValueError("posteriors: expected at least one posterior by name, got none.")
    for name, posterior in posteriors.items():
        if not isinstance(name, str):
            raise TypeError(f"posteriors: expected names as text, got {name!r}.")
        if not isinstance(posterior, Posterior):
            raise TypeError(
                f"posterior {name!r}: expected a Posterior, as fit returns it, got "
                f"{type(posterior).__name__}."
            )
    if reference not in posteriors:
        raise unknown("reference", reference, posteriors)
    for name, posterior in posteriors.items():
        for site, draws in posterior.draws.items():
            if draws.ndim < 2 or draws.shape[0] * draws.shape[1] < 2:
                raise ValueError(
                    f"posterior {name!r}, site {site!r}: expected at least 2 draws with axes "
                    f"(chain, draw, *site), got shape {tuple(draws.shape)}. Fit it with more draws."
                )


def _common_sites(
    posteriors: Mapping[str, Posterior],
) -> tuple[dict[str, dict[str, Array]], dict[str, str]]:
    """Return the draws of the sites that can be compared, and why the others cannot."""
    names = list(dict.fromkeys(site for p in posteriors.values() for site in p.draws))
    sites: dict[str, dict[str, Array]] = {}
    left_out: dict[str, str] = {}
    problems: list[str] = []
    for site in names:
        missing = [method for method, p in posteriors.items() if site not in p.draws]
        if missing:
            left_out[site] = f"not in {', '.join(missing)}"
            continue
        shapes = {method: tuple(p.draws[site].shape[2:]) for method, p in posteriors.items()}
        if len(set(shapes.values())) > 1:
            raise SiteError(
                site,
                expected="the same shape in all posteriors",
                got=", ".join(f"{shape} in {method}" for method, shape in shapes.items()),
                remedy="Compare posteriors of the same model on the same data.",
            )
        if 0 in next(iter(shapes.values())):
            left_out[site] = "it has no elements"
            continue
        draws = {
            method: p.draws[site].detach().cpu().numpy().astype(np.float64)
            for method, p in posteriors.items()
        }
        bad = [text for method, values in draws.items() if (text := _not_finite(method, values))]
        if bad and any(site in p.latents for p in posteriors.values()):
            problems += [f"site '{site}': {text}" for text in bad]
        elif bad:
            left_out[site] = "; ".join(bad)
        else:
            sites[site] = draws
    if problems:
        raise ValueError(
            f"{'; '.join(problems)}. Such a posterior has no mean: fit it again, for instance with "
            "a smaller learning rate or a narrower prior, or leave it out."
        )
    if not sites:
        found = "; ".join(
            f"{name} has {', '.join(p.draws) or 'none'}" for name, p in posteriors.items()
        )
        raise ValueError(
            f"posteriors: expected at least one site with finite draws in all of them, got none in "
            f"common ({found}). Local latents are drawn by posterior.sample(data)."
        )
    return sites, left_out


def _not_finite(method: str, draws: Array) -> str:
    """Say how many draws hold a NaN or an infinity, and where; empty where none does."""
    finite = np.isfinite(draws)
    if finite.all():
        return ""
    flat = finite.reshape(*draws.shape[:2], -1)
    bad_draws = int((~flat.all(axis=2)).sum())
    indices = np.flatnonzero(~flat.all(axis=(0, 1)))
    where = ""
    if draws.ndim > 2:
        shape = draws.shape[2:]
        labels = [_name("", np.unravel_index(i, shape)) for i in indices[:3]]
        more = f" and {len(indices) - 3} more" if len(indices) > 3 else ""
        where = f" (at {', '.join(labels)}{more})"
    total = draws.shape[0] * draws.shape[1]
    return f"{bad_draws} of {total} draws in {method!r} are NaN or infinite{where}"


def _name(site: str, index: Sequence[Any]) -> str:
    return f"{site}[{', '.join(str(int(i)) for i in index)}]" if len(index) else site


def _parameter_rows(posterior: Posterior, draws: Array) -> dict[str, Array]:
    """Return the statistics of each scalar of a site in one posterior, each of shape (scalar,)."""
    flat = draws.reshape(*draws.shape[:2], -1)
    sd = flat.std(axis=(0, 1), ddof=1)
    blank = np.full(flat.shape[2], np.nan)
    found = convergence(flat) if posterior.is_mcmc else Convergence(blank, blank, blank)
    independent = sd / np.sqrt(flat.shape[0] * flat.shape[1])
    return {
        "mean": flat.mean(axis=(0, 1)),
        "sd": sd,
        "r_hat": found.rhat,
        "ess_bulk": found.ess_bulk,
        "ess_tail": found.ess_tail,
        "mcse": mcse_mean(flat) if posterior.is_mcmc else blank,
        # Of the mean, whatever the draws are: for the error of the mean, not for the table.
        "standard_error": mcse_mean(flat) if posterior.is_mcmc else independent,
    }


def _parameter_table(
    posteriors: Mapping[str, Posterior],
    sites: Mapping[str, Mapping[str, Array]],
    reference: str,
) -> pd.DataFrame:
    import pandas as pd

    frames = []
    for site, methods in sites.items():
        rows = {
            method: _parameter_rows(posteriors[method], draws) for method, draws in methods.items()
        }
        target = rows[reference]
        # A reference that does not vary has no unit to measure an error in: NaN.
        unit = np.where(target["sd"] > 0.0, target["sd"], np.nan)
        names = [_name(site, index) for index in np.ndindex(methods[reference].shape[2:])]
        frame = pd.concat(
            pd.DataFrame(
                {
                    "parameter": names,
                    "method": method,
                    "mean": row["mean"],
                    "sd": row["sd"],
                    "error_of_mean": (row["mean"] - target["mean"]) / unit,
                    # The reference's error is zero by definition.
                    "error_of_mean_mcse": 0.0 * unit
                    if method == reference
                    else np.hypot(row["standard_error"], target["standard_error"]) / unit,
                    "sd_ratio": row["sd"] / unit,
                    "r_hat": row["r_hat"],
                    "ess_bulk": row["ess_bulk"],
                    "ess_tail": row["ess_tail"],
                    "mcse": row["mcse"],
                }
            )
            for method, row in rows.items()
        )
        # The index counts the scalars of the site: a stable sort by it keeps the order of methods.
        frames.append(frame.sort_index(kind="stable"))
    return pd.concat(frames, ignore_index=True)


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
    reference: str,
) -> tuple[str, ...]:
    notes = []
    if len(posteriors) > 1 and not posteriors[reference].is_mcmc:
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
                f"chains do not agree yet. Run it for longer before trusting it{others}."
            )
        if methods.loc[name, "divergences"] > 0:
            count = int(methods.loc[name, "divergences"])
            total = posterior.num_chains * posterior.num_draws
            notes.append(
                f"{role}{name} has {count} divergent transitions of {total}: "
                "more than a few mean that it misses a part of the posterior."
            )
    return tuple(notes)
