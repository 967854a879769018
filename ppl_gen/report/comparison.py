"""Comparing posteriors of one model: a table, a figure and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppl_gen.core.errors import unknown
from ppl_gen.core.posterior import Posterior
from ppl_gen.judge import Measurements, measure
from ppl_gen.report.figures import Marginal, draw_marginals
from ppl_gen.report.tables import method_table, parameter_table, render

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Comparison", "compare"]

# More parameters than this are no table to read; all of them are in `Comparison.table`.
_PRINTED_PARAMETERS = 40


def compare(posteriors: Mapping[str, Posterior], reference: str | None = None) -> Comparison:
    """Compare posteriors of one model on the same data.

    Args:
        posteriors: Posteriors by the names that tables and figures use, whatever made them.
        reference: Name of the one that the others are measured against. None takes the first MCMC
            posterior or, where there is none, the first of all.

    Returns:
        A comparison, to be printed, plotted and saved.

    Raises:
        TypeError: If a value is no posterior, or a name no text.
        ValueError: If there is no posterior, the reference is none of them, one has fewer than two
            draws, there is no site in common, or a latent site has draws that are NaN or infinite.
        SiteError: If a site has different shapes in two posteriors.

    Example:
        >>> import torch
        >>> draws = torch.randn(2, 4, 1000, generator=torch.Generator().manual_seed(1))
        >>> chains = Posterior(draws={"mu": draws[0]}, latents=("mu",))
        >>> guide = Posterior(draws={"mu": draws[1] / 2}, latents=("mu",), is_mcmc=False)
        >>> comparison = compare({"svi": guide, "nuts": chains})
        >>> comparison.reference
        'nuts'
        >>> float(comparison.table["sd_ratio"].iloc[0].round(1))
        0.5
    """
    if reference is None and isinstance(posteriors, Mapping):
        chains = [name for name, p in posteriors.items() if getattr(p, "is_mcmc", False)]
        # Where there is none at all, `measure` says so.
        reference = next(iter(chains or posteriors), "")
    return Comparison(measure(posteriors, reference or ""))


@dataclass(frozen=True, eq=False)
class Comparison:
    """A comparison of posteriors with a reference: `print` it, `plot` it, `save` it.

    Args:
        measurements: The numbers.
    """

    measurements: Measurements

    @property
    def table(self) -> pd.DataFrame:
        """One row for each parameter and method; `Measurements` says what the columns are."""
        return self.measurements.table

    @property
    def methods(self) -> pd.DataFrame:
        """One row for each method; `Measurements` says what the columns are."""
        return self.measurements.methods

    @property
    def reference(self) -> str:
        """Name of the posterior that the others are measured against."""
        return self.measurements.reference

    def __str__(self) -> str:
        """Return both tables and what has to be known about them, 100 columns wide."""
        lines = list(explanations(self.measurements))
        hidden = len(self.measurements.parameters) - _PRINTED_PARAMETERS
        if hidden > 0:
            lines.insert(0, f"{hidden} more parameters are in comparison.table.")
        tables = [
            parameter_table(self.measurements, _PRINTED_PARAMETERS),
            method_table(self.measurements),
        ]
        return render(tables, lines)

    def __repr__(self) -> str:
        """Return what is compared, in one line."""
        methods = ", ".join(self.methods.index)
        count = len(self.measurements.parameters)
        return f"Comparison of {methods} in {count} parameters (reference: {self.reference})"

    def _repr_html_(self) -> str:
        """Return both tables for a notebook."""
        from ppl_gen.report.html import fragment

        return fragment(self.measurements, _PRINTED_PARAMETERS)

    def plot(self, parameters: Sequence[str] | None = None, max_parameters: int = 12) -> Figure:
        """Draw the marginal distributions of all methods over each other.

        The reference is drawn filled. Kernel densities end where the draws end, so that a positive
        parameter has no density below zero.

        Args:
            parameters: Names of parameters (`weights[2]`) or of whole sites (`weights`). None
                takes those in which a method differs most from the reference, in their order.
            max_parameters: How many to take where `parameters` is None.

        Returns:
            A matplotlib figure: a notebook shows it, `savefig` writes it. It belongs to no window.

        Raises:
            TypeError: If `parameters` is one text and no sequence of them.
            ValueError: If a parameter is unknown, or there is none to draw.
        """
        names = self._choose(parameters, max_parameters)
        total = len(self.measurements.parameters)
        hidden = parameters is None and len(names) < total
        title = f"{len(names)} of {total} parameters: those that differ most" if hidden else None
        return draw_marginals(self.marginals(names), title)

    def save(self, path: str | Path, max_parameters: int = 24) -> Path:
        """Write tables and figure as one HTML file, which needs no other file and no network.

        A file that is there already is replaced, in one step.

        Args:
            path: Where to, ending in .html or .htm, in a folder that exists.
            max_parameters: How many parameters to draw: those in which a method differs most from
                the reference. The table has all.

        Returns:
            The path.

        Raises:
            ValueError: If the name does not end in .html or .htm, or `max_parameters` is not
                positive.
            OSError: If the file cannot be written; as FileNotFoundError where the folder is
                missing, IsADirectoryError where the path is a folder.
        """
        from ppl_gen.report.html import page, write

        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise ValueError(
                f"path {str(path)!r}: expected a name that ends in .html or .htm, got "
                f"{path.suffix or 'no ending'!r}. Write {str(path.with_suffix('.html'))!r}."
            )
        marginals = self.marginals(self._choose(None, max_parameters))
        write(path, page(self.measurements, marginals))
        return path

    def marginals(self, parameters: Sequence[str]) -> list[Marginal]:
        """Return the draws of parameters as they are drawn.

        Args:
            parameters: Names in the table.
        """
        return [
            Marginal(name, self.measurements.draws(name), self.reference) for name in parameters
        ]

    def _choose(self, parameters: Sequence[str] | None, max_parameters: int) -> list[str]:
        known = self.measurements.parameters
        if isinstance(parameters, str):
            raise TypeError(
                f"parameters: expected a list of names, got {parameters!r}: write it in []."
            )
        if parameters is not None:
            if not parameters:
                raise ValueError("parameters: expected at least one name, got none.")
            names: list[str] = []
            for wanted in parameters:
                found = [name for name, (site, _) in known.items() if wanted in (name, site)]
                if not found:
                    raise unknown("parameter", wanted, [*known, *self.measurements.sites])
                names += found
            return list(dict.fromkeys(names))
        if max_parameters < 1:
            raise ValueError(f"max_parameters: expected at least 1, got {max_parameters}.")
        if len(known) <= max_parameters:
            return list(known)
        with np.errstate(divide="ignore"):
            difference = self.table["error_of_mean"].abs() + np.abs(np.log(self.table["sd_ratio"]))
        worst = difference.fillna(0.0).groupby(self.table["parameter"], sort=False).max()
        chosen = set(worst.sort_values(ascending=False, kind="stable").index[:max_parameters])
        return [name for name in known if name in chosen]


def explanations(measurements: Measurements) -> list[str]:
    """Return what a reader of the tables has to know, a sentence or two each.

    Args:
        measurements: What the tables show.
    """
    lines = []
    if len(measurements.methods) > 1:
        lines.append(
            f"Errors of the mean are in standard deviations of {measurements.reference} (ref), ± "
            "their Monte Carlo standard error."
        )
    lines += [f"Note: {note}" for note in measurements.notes]
    if measurements.left_out:
        reasons = "; ".join(f"{site} ({why})" for site, why in measurements.left_out.items())
        lines.append(f"Left out: {reasons}.")
    return lines
