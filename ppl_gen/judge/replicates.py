"""The replicates of a calibration: simulate, fit, rank; in parallel, and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from ppl_gen.core import Method, fit
from ppl_gen.core.arguments import bind
from ppl_gen.core.errors import check_count
from ppl_gen.core.identity import identity_of
from ppl_gen.core.pair import as_pair, prepare
from ppl_gen.core.progress import ProgressBar
from ppl_gen.core.ranks import ranks
from ppl_gen.core.scope import isolated
from ppl_gen.core.structure import Site
from ppl_gen.judge.calibration_result import Calibration, Source
from ppl_gen.judge.rank_file import RankFile, Record
from ppl_gen.judge.ranker import Ranker, Values
from ppl_gen.judge.workers import spread, worker_count

__all__ = ["MAX_FAILED_SHARE", "Replicates", "Simulate", "constant_elements", "seeds_of"]

# From number and seed of a replicate to true values by latent site, (*site), and data to fit.
Simulate: TypeAlias = Callable[[int, int], tuple[Values, dict[str, Any]]]

# A calibration with more failed fits than this share of its replicates is an error.
MAX_FAILED_SHARE = 0.1


@dataclass(frozen=True)
class Replicates:
    """What every replicate is made of.

    Args:
        pair: The pair, as the user gave it.
        method: The method.
        simulate: From number and seed of a replicate to true values and the data to fit.
        ranker: What ranks them.
        seed: The seed of all.
        device: Where to fit.
        source: Where true values come from.
        given: Of the data that the user gave, those that are looked at.
    """

    pair: Any
    method: Method
    simulate: Simulate
    ranker: Ranker
    seed: int
    device: str | torch.device
    source: Source
    given: Mapping[str, Any]

    def __call__(self, index: int) -> Record:
        """Return the ranks of one replicate, or why its fit failed.

        Raises:
            KeyboardInterrupt: If the user stopped the fit.
        """
        simulating, fitting, ranking = seeds_of(self.seed, index)
        truth, data = self.simulate(index, simulating)
        record: Record = {"replicate": index, "seed": fitting}
        try:
            posterior = fit(
                self.pair, data, self.method, seed=fitting, device=self.device, progress=False
            )
            if posterior.interrupted:
                raise KeyboardInterrupt
            found, count = self.ranker(posterior, truth, ranking)
        # What wrong code raises, such as a TypeError, is no matter of the data.
        except (ArithmeticError, RuntimeError, ValueError) as error:
            return record | {"failed": f"{type(error).__name__}: {error}"}
        return record | {"ranks": found, "independent_draws": count}

    def run(
        self,
        count: int,
        *,
        workers: int | None,
        out: str | Path | None,
        resume: bool,
        progress: bool,
    ) -> Calibration:
        """Run the replicates that are not done yet.

        Args:
            count: Number of replicates.
            workers: Number of processes.
            out: A file for the ranks.
            resume: Whether to go on with those in the file.
            progress: Whether to show a progress bar.

        Returns:
            The calibration. After Ctrl-C, with the replicates that were done.

        Raises:
            ValueError: If too many fits fail, or the file holds another calibration.
            RuntimeError: If a process has died.
            KeyboardInterrupt: If the user stopped it before a replicate was done.
        """
        check_count("replicates", count)
        if ranks().size > 1:
            msg = (
                "calibration spreads its fits over processes of its own: start it without torchrun."
            )
            raise ValueError(msg)
        interrupted = False
        with RankFile.open(out, self._header(count), resume=resume) as file:
            mine = [record for record in file.records if record["replicate"] < count]
            tasks = sorted(set(range(count)) - {record["replicate"] for record in mine})
            with ProgressBar("calibration", count, enabled=progress) as bar:
                bar.update(len(mine))
                try:
                    with spread(self, tasks, worker_count(workers, len(tasks))) as done:
                        for record in done:
                            file.add(record)
                            mine.append(record)
                            _check_failures(mine, count)
                            bar.advance()
                except KeyboardInterrupt:
                    interrupted = True
            _check_failures(mine, count)
        if not any("ranks" in record for record in mine):
            raise KeyboardInterrupt("calibration was interrupted before its first fit was done.")
        return Calibration.of(
            sorted(mine, key=lambda record: int(record["replicate"])),
            max_rank=self.ranker.max_rank,
            method=type(self.method).__name__,
            source=self.source,
            interrupted=interrupted,
        )

    def _header(self, count: int) -> dict[str, Any]:
        """Return what a file of ranks says first: what they are, and what they depend on."""
        truth, simulated = self.simulate(0, seeds_of(self.seed, 0)[0])
        source = as_pair(self.pair)
        # What the user's own quantities raise is seen here, before any fit.
        with isolated(0):
            prepared = prepare(source, bind(source, simulated))
        self.ranker.columns({n: v.unsqueeze(0) for n, v in truth.items()}, prepared)
        data = bind(source, {**simulated, **self.given})
        identity = identity_of(source, data, self.method, self.seed)
        identity["data"] = {name: identity["data"][name] for name in self.given}
        identity["option"] |= {
            "max_rank": self.ranker.max_rank,
            "quantities": ", ".join(self.ranker.quantities) or "none",
            "source": self.source,
        }
        # The model's code, and what else no name tells.
        identity["simulation"] = {"first data set": f"of digest {_digest({**simulated, **truth})}"}
        return {
            "method": type(self.method).__name__,
            "source": self.source,
            "replicates": count,
            "max_rank": self.ranker.max_rank,
            "identity": identity,
        }


def seeds_of(seed: int, index: int) -> tuple[int, int, int]:
    """Return the seeds of a replicate's simulation, fit and ties, each below 2**32.

    Args:
        seed: The seed of all.
        index: Number of the replicate.
    """
    first, second, third = np.random.SeedSequence((seed, index)).generate_state(3)
    return int(first), int(second), int(third)


def constant_elements(
    simulate: Simulate, sites: Mapping[str, Site], seed: int
) -> dict[str, torch.Tensor]:
    """Return which elements of the true values never vary, as 0 above a triangle: (*site).

    Args:
        simulate: What gives true values.
        sites: The sites of the model.
        seed: The seed of all.
    """
    (first, _), (second, _) = (simulate(index, seeds_of(seed, index)[0]) for index in (0, 1))
    # Two draws of a continuous latent are never the same.
    return {n: (v == second[n]) & (sites[n].kind == "latent") for n, v in first.items()}


def _digest(values: Mapping[str, Any]) -> str:
    found = hashlib.sha256()
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            found.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _check_failures(records: list[Record], count: int) -> None:
    """Refuse a calibration of which too many fits failed.

    Raises:
        ValueError: If so, with the first of them.
    """
    failed = sorted((r["replicate"], r["seed"], r["failed"]) for r in records if "failed" in r)
    if len(failed) <= MAX_FAILED_SHARE * count:
        return
    replicate, seed, message = failed[0]
    msg = (
        f"{len(failed)} of {len(records)} fits failed, and more than {MAX_FAILED_SHARE:.0%} of "
        f"{count} may not. The first, replicate {replicate} (seed {seed}): {message}"
    )
    raise ValueError(msg)
