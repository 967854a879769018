"""What a calibration has found: ranks of true values, and which faults of draws they show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.diagnostics import ecdf_band, ecdf_p_values
from ppl_gen.diagnostics.rank_scores import RankScores, rank_scores
from ppl_gen.judge.calibration_words import fault, sentence
from ppl_gen.judge.rank_file import Record, read_records
from ppl_gen.judge.wording import percent

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["ALPHA", "Calibration", "FailedFit", "Source"]

Array = NDArray[np.float64]
# Where the true values are drawn from.
Source: TypeAlias = Literal["prior", "posterior"]

# That of the 95 % bands which the literature draws.
ALPHA = 0.05
# Unevenness, shift and spread: the smallest of their p-values counts, times this number.
_TESTS = 3
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")


@dataclass(frozen=True)
class FailedFit:
    """A fit that ended in an error, whose data set has no ranks.

    Args:
        replicate: Number of the data set.
        seed: Seed of the fit.
        message: The error.
    """

    replicate: int
    seed: int
    message: str

    def __str__(self) -> str:
        """Return it in one line."""
        return f"replicate {self.replicate} (seed {self.seed}): {self.message}"


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of true values among posterior draws: uniform where the posterior is right.

    Args:
        ranks: Number of draws below the true value, scaled to 0 ... `max_rank`, of shape
            `(replicate, quantity)`.
        names: Names of the quantities: scalars of latent sites, as `weights[2]`, the log joint
            density, and those that were asked for.
        max_rank: The largest rank.
        independent_draws: Number of nearly independent draws that each replicate's ranks were
            found among, of shape `(replicate,)`.
        method: Name of the inference method.
        source: Where the true values come from: "prior", or "posterior" for one set of data.
        failures: The fits that failed. To leave them out does not bend the ranks of the others:
            whether a fit fails depends on its data alone.
        interrupted: Whether it was stopped before its end.
    """

    ranks: NDArray[np.int64]
    names: tuple[str, ...]
    max_rank: int
    independent_draws: NDArray[np.int64]
    method: str
    source: Source = "prior"
    failures: tuple[FailedFit, ...] = ()
    interrupted: bool = False

    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        *,
        max_rank: int,
        method: str,
        source: Source,
        interrupted: bool,
    ) -> Calibration:
        """Return the calibration of finished replicates.

        Args:
            records: What is known of each replicate, in their order.
            max_rank: As for the class, like the others.
            method: Name of the method.
            source: Where true values come from.
            interrupted: Whether some are missing.
        """
        done = [record for record in records if "ranks" in record]
        names = tuple(done[0]["ranks"]) if done else ()
        return cls(
            ranks=np.array([list(r["ranks"].values()) for r in done], np.int64).reshape(
                len(done), len(names)
            ),
            names=names,
            max_rank=max_rank,
            independent_draws=np.array([r["independent_draws"] for r in done], np.int64),
            method=method,
            source=source,
            failures=tuple(
                FailedFit(r["replicate"], r["seed"], r["failed"]) for r in records if "failed" in r
            ),
            interrupted=interrupted,
        )

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what a calibration with `out=path` has written, also while it runs.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: If there is no such file.
            LoadError: If it is no such file, is damaged, or no replicate in it is done.
        """
        header, records = read_records(Path(path))
        return cls.of(
            records,
            max_rank=header["max_rank"],
            method=header["method"],
            source=header["source"],
            interrupted=len(records) < header["replicates"],
        )

    def p_values(self) -> Array:
        """Return how likely right ranks are to look as wrong as these, of shape `(quantity,)`.

        Three exact tests are made: of the empirical distribution function, for any unevenness, by
        the most extreme of its binomial tail probabilities; of the ranks' normal scores, for a
        shift; and of the scores' squares, for a wrong spread. The smallest of the three p-values
        counts three times, so that together they reject too rarely rather than too often.
        """
        return _combined(self._tests(self._scores()))

    def passes(self, alpha: float = ALPHA) -> bool:
        """Return whether all ranks are uniform, as far as the replicates can tell.

        Args:
            alpha: Probability that a right method fails, over all quantities together, at most.
        """
        return bool(self.p_values().min() >= alpha / len(self.names))

    def table(self, alpha: float = ALPHA) -> pd.DataFrame:
        """Return a row for each quantity.

        Columns: `quantity`, `p_value`, `error_of_mean` (in standard deviations of the draws) and
        `sd_ratio` (that of the draws over the right one), which are the faults that would explain
        the ranks if the posterior were normal, and `verdict`.

        Args:
            alpha: As for `passes`.
        """
        import pandas as pd

        scores = self._scores()
        tests = self._tests(scores)
        return pd.DataFrame(
            {
                "quantity": self.names,
                "p_value": _combined(tests),
                "error_of_mean": scores.error_of_mean,
                "sd_ratio": scores.sd_ratio,
                "verdict": self._verdicts(tests, scores, alpha),
            }
        )

    def sentences(self, alpha: float = ALPHA) -> tuple[str, ...]:
        """Return what was found of each quantity, in words.

        Args:
            alpha: As for `passes`.
        """
        return tuple(
            sentence(row.quantity, row.verdict, row.error_of_mean, row.sd_ratio)
            for row in self.table(alpha).itertuples()
        )

    def __str__(self) -> str:
        """Return what was found in words, and the table."""
        table = self.table()
        wrong = table["verdict"] != "calibrated"
        found = "no fault found"
        if wrong.any():
            found = f"{wrong.sum()} of {len(table)} quantities miscalibrated"
        lines = [f"{self._title}: {found}."]
        lines += [s for s, faulty in zip(self.sentences(), wrong, strict=True) if faulty]
        lines += self.notes()
        numbers = table.to_string(index=False, float_format="{:.3g}".format)
        return "\n".join([*lines, numbers])

    def notes(self) -> tuple[str, ...]:
        """Return what else is to know: what the ranks can show, and what is missing among them."""
        mean, sd = self.visible_errors()
        notes = [
            "So many data sets show, about four times out of five, a mean that is "
            f"{mean:.2g} posterior sds off or an sd that is {percent(sd)} off, of a normal "
            "posterior; smaller errors may stay unseen."
        ]
        if self.source == "posterior":
            notes.append("It speaks of data like those at hand, not of others.")
        few = int((self.independent_draws < self.max_rank).sum())
        if few:
            notes.append(
                f"In {few} of them fewer than {self.max_rank} draws are nearly independent, the "
                f"fewest {self.independent_draws.min()}: more draws would show smaller faults."
            )
        if self.failures:
            total = len(self.failures) + len(self.ranks)
            first = "; ".join(str(failure) for failure in self.failures[:3])
            more = f"; and {len(self.failures) - 3} more" if len(self.failures) > 3 else ""
            notes.append(f"{len(self.failures)} of {total} fits failed: {first}{more}.")
        if self.interrupted:
            notes.append("It was stopped before its end.")
        return tuple(notes)

    def visible_errors(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Return which faults so many replicates show about four times out of five.

        Args:
            alpha: As for `passes`.

        Returns:
            The error of a mean, in posterior standard deviations, and the relative error of a
            standard deviation, of one quantity with a normal posterior.
        """
        from scipy.stats import norm

        # The scores' mean has the standard error 1 / sqrt(n), their sd 1 / sqrt(2 n).
        far = norm.isf(alpha / (2 * _TESTS * len(self.names))) + norm.ppf(0.8)
        size = len(self.ranks)
        return float(far / math.sqrt(size)), float(far / math.sqrt(2 * size))

    def plot(self, alpha: float = ALPHA) -> Figure:
        """Draw how far each quantity's ranks are from uniform: inside the band all is well.

        Draws that are too high lift a curve above zero, too low ones press it down; draws that
        are spread too little bend it up first and down then, too much the other way round. A curve
        may be named as wrong inside of the band: the tests for a shift and for a wrong spread see
        smaller faults than the band does.

        Args:
            alpha: Probability that a curve of a right method leaves the band, over all quantities
                together.

        Returns:
            The figure, which belongs to no window.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        panel = figure.subplots()
        size = len(self.ranks)
        at = np.concatenate([[0.0], self._grid, [1.0]])
        low, high = ecdf_band(size, self._grid, alpha / len(self.names))
        edges = np.pad(np.stack([low, high]) - self._grid, ((0, 0), (1, 1)))
        panel.fill_between(at, edges[0], edges[1], color="#8a8f98", alpha=0.25, linewidth=0)
        curves = np.pad(self._counts() / size - self._grid[:, None], ((1, 1), (0, 0)))
        colours = iter(_COLOURS)
        verdicts = self.table(alpha)["verdict"]
        for name, verdict, curve in zip(self.names, verdicts, curves.T, strict=True):
            colour = None if verdict == "calibrated" else next(colours, None)
            label = f"{name}: {verdict}" if colour else None
            width, level = (1.6, 3) if colour else (0.8, 2)
            panel.plot(
                at, curve, color=colour or "#5b6068", label=label, linewidth=width, zorder=level
            )
        panel.set_xlim(0.0, 1.0)
        panel.set_xlabel("rank of the true value among the draws")
        panel.set_ylabel("excess of ranks below")
        panel.set_title(self._title, fontsize=10)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(frameon=False, fontsize=8)
        return figure

    def to_dict(self, alpha: float = ALPHA) -> dict[str, Any]:
        """Return what was found as plain JSON values, without the ranks.

        Args:
            alpha: As for `passes`.
        """
        table, sentences = self.table(alpha), self.sentences(alpha)
        mean, sd = self.visible_errors(alpha)
        return {
            "method": self.method,
            "source": self.source,
            "data_sets": len(self.ranks),
            "max_rank": self.max_rank,
            "fewest_independent_draws": int(self.independent_draws.min()),
            "alpha": alpha,
            "passes": self.passes(alpha),
            "visible_error_of_mean": mean,
            "visible_error_of_sd": sd,
            "quantities": [
                {
                    "quantity": row.quantity,
                    "p_value": float(row.p_value),
                    "error_of_mean": _number(row.error_of_mean),
                    "sd_ratio": _number(row.sd_ratio),
                    "verdict": row.verdict,
                    "sentence": text,
                }
                for row, text in zip(table.itertuples(), sentences, strict=True)
            ],
            "failures": [vars(failure) for failure in self.failures],
            "interrupted": self.interrupted,
            "notes": list(self.notes()),
        }

    @property
    def _title(self) -> str:
        origin = "simulated data sets" if self.source == "prior" else "data sets like the one given"
        return f"{self.method} on {len(self.ranks)} {origin}"

    @property
    def _grid(self) -> Array:
        return np.arange(1, self.max_rank + 1) / (self.max_rank + 1)

    def _counts(self) -> NDArray[np.int64]:
        """Return how many ranks are below 1, 2, ..., `max_rank`: (rank, quantity)."""
        below = np.arange(1, self.max_rank + 1)[:, None, None]
        return np.asarray((self.ranks < below).sum(axis=1))

    def _scores(self) -> RankScores:
        return rank_scores(self.ranks, self.max_rank)

    def _tests(self, scores: RankScores) -> Array:
        """Return the p-values for unevenness, shift and spread: (test, quantity)."""
        uneven = ecdf_p_values(self._counts(), len(self.ranks), self._grid)
        return np.stack([uneven, scores.location, scores.dispersion])

    def _verdicts(self, tests: Array, scores: RankScores, alpha: float) -> list[str]:
        level = alpha / (_TESTS * len(self.names))
        return [
            "calibrated" if column.min() >= level else fault(error, ratio, len(self.ranks))
            for column, error, ratio in zip(
                tests.T, scores.error_of_mean, scores.sd_ratio, strict=True
            )
        ]


def _combined(tests: Array) -> Array:
    return np.asarray(np.minimum(1.0, _TESTS * tests.min(axis=0)))


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
