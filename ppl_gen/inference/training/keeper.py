"""Where a training is, kept in a folder from time to time."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from ppl_gen.core import Posterior, Problem
from ppl_gen.core.store import RESUME, Run

__all__ = ["Keeper"]

_SECONDS = 10.0
# A checkpoint that takes long is made so seldom that it takes at most this share of the time.
_SHARE = 0.02


class Keeper:
    """Writes checkpoints to the folder of a problem, where it has one.

    Args:
        problem: The problem.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._run: Run | None = None
        self._next = time.perf_counter() + _SECONDS

    def due(self) -> bool:
        """Return whether it is time for a checkpoint."""
        return self._problem.out is not None and time.perf_counter() >= self._next

    def save(self, state: Mapping[str, torch.Tensor]) -> None:
        """Write a checkpoint.

        Args:
            state: Where the training is.

        Raises:
            OSError: If it cannot be written; the one before is kept.
        """
        started = time.perf_counter()
        try:
            if self._run is None:
                self._run = self._open()
            self._run.save_state({**state, **self.facts()})
        except OSError as error:
            reason = error.strerror or str(error)
            msg = (
                f"{reason}: the last checkpoint in {self._problem.out} is kept. Make room there; "
                f"then {RESUME}"
            )
            raise OSError(error.errno, msg) from error
        now = time.perf_counter()
        self._next = now + max(_SECONDS, (now - started) / _SHARE)

    def facts(self) -> dict[str, torch.Tensor]:
        """Return what the folder of any run in progress says."""
        before = self._problem.previous
        spent = 0.0 if before is None else float(before.provenance["seconds"])
        seconds = time.perf_counter() - self._problem.started + spent
        return {
            **{
                name: torch.zeros(1, dtype=torch.int64)
                for name in ("written", "divergences_written", "evaluations")
            },
            "seconds": torch.tensor(seconds, dtype=torch.float64),
        }

    def _open(self) -> Run:
        problem = self._problem
        assert problem.out is not None
        if problem.previous is not None:
            return Run.reopen(problem.out)
        posterior = Posterior(
            draws={},
            latents=(),
            pair=None,  # its parameters are in the checkpoint
            data=None,
            is_mcmc=False,
            provenance=problem.facts,
        )
        groups: dict[str, dict[str, torch.Tensor]] = {
            "posterior": {},
            "sample_stats": {},
            "divergences": {},
        }
        return Run.create(problem.out, posterior, problem.identity, groups)
