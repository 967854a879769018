"""Fit the 20 reference posteriors with NUTS and write how well each agrees, as a table.

python tests/posteriordb/table.py --data ../shared/data/posteriordb --out docs/posteriordb.md
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from agreement import PROBABILITIES, Comparison, compare, compare_exact, threshold, worst
from exact import EXACT
from pairs import POSTERIORS
from reference import ReferencePosterior

import ppl_gen as pg
from ppl_gen.core import LogDensity
from ppl_gen.diagnostics import ess_bulk, rhat
from ppl_gen.inference import NUTS

METHOD = NUTS(chains=4, draws=1000)
# The first two have regions that the step size of the default acceptance cannot enter or leave:
# chains stick there, which divergences tell. The first is a funnel, in which a dense metric makes
# short trajectories, and so many more draws necessary. The third has modes of no weight, cycles of
# another period, which swallow one in five chains that start anywhere.
CAREFUL = {
    "gp_pois_regr-gp_pois_regr": NUTS(chains=4, draws=1000, metric="diag", target_accept=0.95),
    "one_comp_mm_elim_abs-one_comp_mm_elim_abs": NUTS(chains=4, draws=1000, target_accept=0.95),
    "hudson_lynx_hare-lotka_volterra": NUTS(chains=4, draws=1000, init="prior"),
}
SEED = 0
FALSE_ALARM_RATE = 1e-3
MAX_RHAT = 1.01

COLUMNS = (
    "posterior",
    "dim",
    "seconds",
    "gradients",
    "min ESS",
    "max R-hat",
    "divergences",
    "mean",
    "sd",
    "quantile",
    "exact",
    "verdict",
)


@dataclass(frozen=True)
class Row:
    """What the table says of one posterior.

    Args:
        name: posteriordb's name.
        dim: Number of unconstrained coordinates.
        seconds: Seconds of the fit, compiling included.
        gradients: Gradient evaluations of all chains, warm-up included.
        min_ess: Smallest bulk ESS of the scalars.
        max_rhat: Largest R-hat.
        divergences: Divergent transitions after warm-up.
        comparisons: With the reference draws.
        exact: With the exact moments, where they are known.
    """

    name: str
    dim: int
    seconds: float
    gradients: int
    min_ess: float
    max_rhat: float
    divergences: int
    comparisons: list[Comparison]
    exact: list[Comparison]

    def complaints(self, limit: float) -> list[str]:
        """Return what is wrong, in words, the worst first; nothing where the draws agree.

        Args:
            limit: Largest |z| that chance allows.
        """
        found = [] if self.max_rhat < MAX_RHAT else [f"R-hat {self.max_rhat:.3f}"]
        pairs = [("reference", c) for c in self.comparisons] + [("exact", c) for c in self.exact]
        for truth, c in sorted(pairs, key=lambda pair: -abs(pair[1].z)):
            if abs(c.z) > limit:
                found.append(f"{c.statistic} of {c.scalar}, z {c.z:.1f} ({truth})")
        return found

    def cells(self, limit: float) -> list[str]:
        """Return the row's cells in Markdown."""
        complaints = self.complaints(limit)
        more = len(complaints) - 3
        return [
            self.name,
            str(self.dim),
            f"{self.seconds:.1f}",
            f"{self.gradients:,}",
            f"{self.min_ess:.0f}",
            f"{self.max_rhat:.3f}",
            str(self.divergences),
            *(_score(self.comparisons, statistic) for statistic in ("mean", "sd", "quantile")),
            _score(self.exact),
            "; ".join(complaints[:3]) + (f"; {more} more" if more > 0 else "") or "agrees",
        ]


def judge(posterior: ReferencePosterior, folder: Path, fitted: pg.Posterior) -> Row:
    """Compare a fitted posterior with what is known of it.

    Args:
        posterior: The reference.
        folder: The folder of the reference posteriors.
        fitted: Draws of its pair.
    """
    reference, data = posterior.reference(folder), posterior.data(folder)
    draws = posterior.scalars(fitted.draws, reference)
    return Row(
        name=posterior.name,
        dim=LogDensity(posterior.pair, data).dim,
        seconds=fitted.provenance["seconds"],
        gradients=fitted.provenance["gradient_evaluations"],
        min_ess=float(np.min([ess_bulk(values) for values in draws.values()])),
        max_rhat=float(np.max([rhat(values) for values in draws.values()])),
        divergences=int(fitted.sample_stats["diverging"].sum()),
        comparisons=compare(draws, reference, posterior.without_moments),
        exact=compare_exact(draws, exact_moments(posterior, folder)),
    )


def exact_moments(posterior: ReferencePosterior, folder: Path) -> Mapping[str, tuple[float, float]]:
    """Return the exact mean and sd of each scalar; nothing where they are not known."""
    if posterior.name not in EXACT:
        return {}
    return EXACT[posterior.name](posterior.data(folder))


def number_of_comparisons(folder: Path) -> int:
    """Return how many z-scores the whole table holds."""
    count = 0
    for posterior in POSTERIORS.values():
        scalars = len(posterior.reference(folder))
        quantiles = len(posterior.without_moments)
        count += 2 * (scalars - quantiles) + len(PROBABILITIES) * quantiles
        count += 2 * len(exact_moments(posterior, folder))
    return count


def markdown(rows: list[Row], limit: float, comparisons: int) -> str:
    """Return the page with the table.

    Args:
        rows: Its rows.
        limit: Largest |z| that chance allows.
        comparisons: How many z-scores the table of all posteriors holds.
    """
    lines = [
        "# Agreement with reference posteriors",
        "",
        "NUTS on the 20 posteriors of [posteriordb](https://github.com/stan-dev/posteriordb) that",
        "`tests/posteriordb` holds as Pyro pairs, each against 10,000 nearly independent reference",
        f"draws. Made by `make posteriordb`, seed {SEED}:",
        "",
        f"    {METHOD}",
        "",
        "and, where chains stick (divergences; modes of no weight far from the prior):",
        "",
        *(f"    {name}: {_changes(method)}" for name, method in CAREFUL.items()),
        "",
        "- *mean*, *sd*, *quantile*: the largest |z| over the parameters, a difference in Monte",
        "  Carlo standard errors of both sides. The sd is compared by its logarithm. Parameters",
        "  without a finite variance are compared by five quantiles instead.",
        "- *exact*: the same against means and sds in closed form or by quadrature, where known.",
        f"- A |z| above {limit:.2f} is a disagreement. With {comparisons} comparisons in the whole",
        f"  table, one false alarm or more has a probability below {FALSE_ALARM_RATE:g}",
        f"  (Bonferroni). An R-hat of {MAX_RHAT} or more is a failure as well.",
        f"- *seconds* are those of `pg.fit` on {os.cpu_count()} cores, compiling included;",
        "  *gradients* those of all chains, warm-up included; *min ESS* is of the bulk.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---|{'---:|' * (len(COLUMNS) - 2)}---|",
        *(f"| {' | '.join(row.cells(limit))} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _changes(method: NUTS) -> str:
    """Return the options in which a method differs from the table's own."""
    names = [field.name for field in fields(method)]
    changed = [n for n in names if getattr(method, n) != getattr(METHOD, n)]
    return ", ".join(f"{name}={getattr(method, name)!r}" for name in changed)


def main(arguments: list[str] | None = None) -> int:
    """Make the table; return 1 where a posterior disagrees."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the posteriors")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--only", nargs="+", choices=POSTERIORS, default=list(POSTERIORS))
    options = parser.parse_args(arguments)
    comparisons = number_of_comparisons(options.data)
    limit = threshold(comparisons, FALSE_ALARM_RATE)
    rows = []
    for number, name in enumerate(options.only, start=1):
        print(f"{number}/{len(options.only)} {name}", flush=True)
        posterior = POSTERIORS[name]
        method = CAREFUL.get(name, METHOD)
        data = posterior.data(options.data)
        fitted = pg.fit(posterior.pair, data, method, seed=SEED, progress=False)
        rows.append(judge(posterior, options.data, fitted))
        cells = zip(COLUMNS[1:], rows[-1].cells(limit)[1:], strict=True)
        print("   ", ", ".join(f"{column} {cell or '-'}" for column, cell in cells), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(markdown(rows, limit, comparisons))
    return int(any(row.complaints(limit) for row in rows))


def _score(comparisons: list[Comparison], *statistics: str) -> str:
    score = worst(comparisons, *statistics)
    return "" if math.isnan(score) else f"{score:.1f}"


if __name__ == "__main__":
    sys.exit(main())
