"""Fit the 20 reference posteriors with variational guides, no option set, and write how good.

python tests/posteriordb/vi_table.py --data ../shared/data/posteriordb --out docs/posteriordb_vi.md
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pairs import POSTERIORS
from reference import ReferencePosterior

import ppl_gen as pg
from ppl_gen.inference import SVI

GUIDES = ("laplace", "mean_field", "linear_response", "low_rank", "full_rank")
SEED = 0
DRAWS = 20_000
# What the published run asked of means, in standard deviations, and what is asked of scales here.
MAX_MEAN_ERROR = 0.3
MAX_SD_ERROR = 0.15


@dataclass(frozen=True)
class Cell:
    """How good one guide is for one posterior.

    Args:
        mean: Largest error of a mean, in reference standard deviations; of a parameter without a
            finite variance that of the median, in half interquartile ranges.
        sd: Largest relative error of a standard deviation; of such a parameter that of the
            interquartile range.
        elbo: The evidence lower bound.
        seconds: Seconds of the fit, compiling included.
        flagged: Whether the posterior says itself that it is not to be trusted.
    """

    mean: float
    sd: float
    elbo: float
    seconds: float
    flagged: bool

    def text(self) -> str:
        """Return the cell in Markdown: errors of means and of standard deviations."""
        mean = f"**{self.mean:.2f}**" if self.mean > MAX_MEAN_ERROR else f"{self.mean:.2f}"
        sd = f"**{self.sd:.0%}**" if self.sd > MAX_SD_ERROR else f"{self.sd:.0%}"
        return f"{mean} / {sd}{' !' if self.flagged else ''}"


def judge(
    draws: Mapping[str, NDArray[np.float64]],
    reference: Mapping[str, NDArray[np.float64]],
    without_moments: tuple[str, ...],
) -> tuple[float, float]:
    """Return the largest errors of location and scale over the scalars.

    Args:
        draws: Draws by scalar, (chain, draw).
        reference: Reference draws of the same scalars.
        without_moments: The scalars that have no finite variance.
    """
    means, sds = [], []
    for name, expected in reference.items():
        drawn = draws[name]
        if name in without_moments:
            low, middle, high = np.quantile(drawn, [0.25, 0.5, 0.75])
            want_low, want_middle, want_high = np.quantile(expected, [0.25, 0.5, 0.75])
            means.append(abs(middle - want_middle) / ((want_high - want_low) / 2))
            sds.append(abs((high - low) / (want_high - want_low) - 1))
        else:
            means.append(abs(drawn.mean() - expected.mean()) / expected.std())
            sds.append(abs(drawn.std() / expected.std() - 1))
    return float(np.max(means)), float(np.max(sds))


def fit(posterior: ReferencePosterior, folder: Path, guide: str) -> Cell:
    """Fit one guide and judge it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = pg.fit(
            posterior.pair,
            posterior.data(folder),
            SVI(guide=guide, draws=DRAWS),  # type: ignore[arg-type]
            seed=SEED,
            progress=False,
        )
    reference = posterior.reference(folder)
    mean, sd = judge(
        posterior.scalars(fitted.draws, reference), reference, posterior.without_moments
    )
    assert fitted.elbo is not None
    seconds = fitted.provenance["seconds"]
    return Cell(mean, sd, fitted.elbo[0], seconds, bool(fitted.warnings))


def markdown(table: Mapping[str, Mapping[str, Cell]]) -> str:
    """Return the page with the table."""
    guides = list(next(iter(table.values())))
    lines = [
        "# Variational guides on reference posteriors",
        "",
        "`SVI(guide=...)` with no other option on the 20 posteriors of",
        "[posteriordb](https://github.com/stan-dev/posteriordb) that `tests/posteriordb` holds as",
        "Pyro pairs, against 10,000 nearly independent reference draws.",
        f"{DRAWS:,} draws of each guide, seed {SEED}, {os.cpu_count()} cores. Each cell: the",
        "largest error of a mean, in reference standard deviations, and of a standard deviation,",
        f"relative; larger than {MAX_MEAN_ERROR} or {MAX_SD_ERROR:.0%} in bold. An exclamation",
        "mark: the posterior warns of itself. Seconds are those of `pg.fit`; a model is compiled",
        "once, in a second or two.",
        "",
        f"| posterior | {' | '.join(guides)} |",
        f"|---|{'---:|' * len(guides)}",
    ]
    for name, cells in table.items():
        lines.append(f"| {name} | {' | '.join(cell.text() for cell in cells.values())} |")
    for title, good in (
        (f"means within {MAX_MEAN_ERROR} sd", lambda c: c.mean <= MAX_MEAN_ERROR),
        (f"sds within {MAX_SD_ERROR:.0%}", lambda c: c.sd <= MAX_SD_ERROR),
    ):
        counts = [sum(good(row[guide]) for row in table.values()) for guide in guides]
        lines.append(f"| {title} | {' | '.join(f'{n} of {len(table)}' for n in counts)} |")
    seconds = [sum(row[guide].seconds for row in table.values()) for guide in guides]
    lines.append(f"| seconds of all | {' | '.join(f'{s:.1f}' for s in seconds)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the posteriors")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--only", nargs="+", choices=POSTERIORS, default=list(POSTERIORS))
    parser.add_argument("--guides", nargs="+", default=list(GUIDES))
    options = parser.parse_args(arguments)
    table: dict[str, dict[str, Cell]] = {}
    for name in options.only:
        table[name] = {}
        for guide in options.guides:
            cell = fit(POSTERIORS[name], options.data, guide)
            table[name][guide] = cell
            print(
                f"{name:45} {guide:16} {cell.text():22} elbo {cell.elbo:.3f}, {cell.seconds:.2f} s",
                flush=True,
            )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(markdown(table))


if __name__ == "__main__":
    sys.exit(main())
