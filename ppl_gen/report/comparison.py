"""Comparing posteriors of one model: verdicts, tables, figures and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_gen.core.errors import unknown
from ppl_gen.core.posterior import Posterior
from ppl_gen.core.scope import seeded
from ppl_gen.judge.findings import Assessment, Thresholds, Verdict
from ppl_gen.report.figures import KINDS, draw_grid
from ppl_gen.report.files import check_writable, write
from ppl_gen.report.text import render
from ppl_gen.report.view import View

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from ppl_gen.judge.repair import Repair

__all__ = ["Comparison", "compare"]

# More parameters than this are no table to read; all of them are in `Comparison.table`.
_PRINTED_PARAMETERS = 40
_ENDINGS = (".html", ".htm", ".json")


def compare(
    posteriors: Mapping[str, Posterior],
    reference: str | None = None,
    *,
    thresholds: Thresholds = Thresholds(),  # noqa: B008 - it is frozen
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Judge posteriors of one model on the same data: which of them can be trusted, and for what.

    Gates come first: is the reference good enough to judge by, have optimisations ended, do labels
    switch? Then each quantity is judged, then all together. Errors are those beyond what chance
    alone would show.

    Args:
        posteriors: Posteriors by the names that tables and figures use, whatever made them.
        reference: Name of the one that the others are measured against; an approximation may be
            named, and every verdict then says so. None takes the first MCMC posterior, where there
            is one among several; otherwise each posterior is judged on its own, and the best that
            is said of it is that no problem was found.
        thresholds: Where green ends and red begins, and what a reference has to meet.
        seed: Seed of whatever is drawn for judging.
        progress: Whether to show progress.

    Returns:
        A comparison, to be printed, plotted and saved.

    Raises:
        TypeError: If a value is no posterior, or a name no text.
        ValueError: If there is no posterior, the reference is none of them, there is no site in
            common, or they are of different data.
        SiteError: If a site has different shapes in two posteriors.

    Example:
        >>> import torch
        >>> draws = torch.randn(2, 4, 1000, generator=torch.Generator().manual_seed(1))
        >>> chains = Posterior(draws={"mu": draws[0]}, latents=("mu",))
        >>> guide = Posterior(draws={"mu": draws[1] / 2}, latents=("mu",), is_mcmc=False)
        >>> comparison = compare({"svi": guide, "nuts": chains}, progress=False)
        >>> comparison.reference
        'nuts'
        >>> float(comparison.table["sd_ratio"].iloc[0].round(1))
        0.5
        >>> comparison.verdicts["svi"].is_fine
        True
    """
    from ppl_gen.judge.assess import assess

    # Packages that are imported on the way draw random numbers, too.
    with seeded(seed):
        found = assess(posteriors, reference, thresholds=thresholds, seed=seed, progress=progress)
    return Comparison(found)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What judging posteriors found: `print` it, `plot` it, `save` it.

    Args:
        assessment: What was found.
    """

    assessment: Assessment

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on each posterior, by its name."""
        return {name: found.verdict for name, found in self.assessment.judgements.items()}

    @property
    def table(self) -> pd.DataFrame:
        """One row for each parameter and method; `Measurements` says what the columns are."""
        return self.assessment.measurements.table

    @property
    def methods(self) -> pd.DataFrame:
        """One row for each method; `Measurements` says what the columns are."""
        return self.assessment.measurements.methods

    @property
    def reference(self) -> str | None:
        """Name of the posterior that the others are measured against; None where there is none."""
        return self.assessment.reference

    @cached_property
    def _view(self) -> View:
        return View(self.assessment)

    def __str__(self) -> str:
        """Return verdicts, tables and what has to be known about them, 100 columns wide."""
        return render(self._view, _PRINTED_PARAMETERS)

    def __repr__(self) -> str:
        """Return what is compared, in one line."""
        methods = ", ".join(self.assessment.judgements)
        count = len(self.assessment.measurements.parameters)
        against = "no reference" if self.reference is None else f"reference: {self.reference}"
        return f"Comparison of {methods} in {count} parameters ({against})"

    def _repr_html_(self) -> str:
        """Return verdicts and tables for a notebook."""
        from ppl_gen.report.page import fragment

        return fragment(self._view, _PRINTED_PARAMETERS)

    def to_dict(self) -> dict[str, Any]:
        """Return all that was found, but for the draws, as JSON data; NaN and infinity are None."""
        return self.assessment.to_dict()

    def to_dataframe(self) -> pd.DataFrame:
        """Return the table of parameters and methods, with the method's `verdict` in each row."""
        verdicts = {name: verdict.value for name, verdict in self.verdicts.items()}
        return self.table.assign(verdict=self.table["method"].map(verdicts))

    def plot(
        self,
        kind: str = "marginals",
        parameters: Sequence[str] | None = None,
        max_parameters: int = 12,
    ) -> Figure:
        """Draw one kind of figure.

        Args:
            kind: "marginals" (densities over each other, the reference filled), "forest"
                (intervals), "ecdf" (differences of distribution functions, with bands), "pairs",
                "weights" (tails of the importance weights), "elbo" (course of the optimisation),
                "ranks" (of chains), "energy", "predictive" (checks) or "loo_pit".
            parameters: Names of parameters (`weights[2]`) or of whole sites (`weights`). None
                takes those in which a method differs most from the reference, the worst first.
            max_parameters: How many to take where `parameters` is None.

        Returns:
            A matplotlib figure: a notebook shows it, `savefig` writes it. It belongs to no window.

        Raises:
            TypeError: If `kind` is no text, or `parameters` is one text and no sequence of them.
            ValueError: If the kind or a parameter is unknown, or there is nothing to draw.
        """
        if not isinstance(kind, str):
            raise TypeError(
                f"kind: expected one of {', '.join(KINDS)}, got {kind!r}. Parameters are given by "
                "name, as plot(parameters=[...])."
            )
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS)
        names = self._choose(parameters, max_parameters)
        found = KINDS[kind]
        chosen = names if found.of_parameters or parameters is not None else None
        panels = found.panels(self._view, chosen)
        if not panels:
            raise ValueError(f"kind {kind!r}: there is nothing to draw. It needs {found.needs}.")
        total = len(self.assessment.measurements.parameters)
        hidden = parameters is None and len(names) < total and found.of_parameters
        title = f"{len(names)} of {total} parameters: those that differ most" if hidden else None
        return draw_grid(panels, self._view.styles, self._view.reference, found.legend, title)

    def save(
        self, path: str | Path, repair: Repair | None = None, *, progress: bool = True
    ) -> Path:
        """Write all that was found as one file: a page for people, or JSON for programs.

        The page needs no other file and no network, and has no script. The parameters that differ
        most are shown; `to_dict()` is in it as JSON, to be saved from a link, unless it is larger
        than a megabyte. A file that is there already is replaced, in one step.

        Args:
            path: Where to, ending in .html, .htm or .json, in a folder that exists.
            repair: What `ppl_gen.repair` did about it, to be told on the page.
            progress: Whether to show progress.

        Returns:
            The path.

        Raises:
            ValueError: If the name ends otherwise.
            OSError: If the file cannot be written; as FileNotFoundError where the folder is
                missing, IsADirectoryError where the path is a folder.
        """
        from ppl_gen.report.page import page

        path = Path(path)
        if path.suffix.lower() not in _ENDINGS:
            raise ValueError(
                f"path {str(path)!r}: expected a name that ends in {', '.join(_ENDINGS[:-1])} or "
                f"{_ENDINGS[-1]}, got {path.suffix or 'no ending'!r}. Write "
                f"{str(path.with_suffix('.html'))!r}."
            )
        check_writable(path)
        if path.suffix.lower() == ".json":
            text = json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        else:
            text = page(self._view, repair, progress=progress)
        write(path, text)
        return path

    def _choose(self, parameters: Sequence[str] | None, max_parameters: int) -> list[str]:
        measurements = self.assessment.measurements
        if isinstance(parameters, str):
            raise TypeError(
                f"parameters: expected a list of names, got {parameters!r}: write it in []."
            )
        if parameters is None:
            if max_parameters < 1:
                raise ValueError(f"max_parameters: expected at least 1, got {max_parameters}.")
            return self._view.worst_first[:max_parameters]
        if not parameters:
            raise ValueError("parameters: expected at least one name, got none.")
        names: list[str] = []
        for wanted in parameters:
            found = [n for n, (site, _) in measurements.parameters.items() if wanted in (n, site)]
            if not found:
                options = [*measurements.parameters, *measurements.sites]
                # Of a hundred thousand names none would be read.
                raise unknown(
                    "parameter", wanted, options if len(options) < 100 else measurements.sites
                )
            names += found
        return list(dict.fromkeys(names))
