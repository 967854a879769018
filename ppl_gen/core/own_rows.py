"""The rows of every mini-batch that are one rank's, where several train together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ppl_gen.core.minibatch import MiniBatches, ScalePlate
from ppl_gen.core.ranks import Ranks, ranks

if TYPE_CHECKING:
    from ppl_gen.core.loader import BatchSource, LoaderBatches

__all__ = ["OwnRows", "own_rows"]


def own_rows(source: BatchSource | None) -> BatchSource | None:
    """Return what gives this rank its rows of each mini-batch: alone, all of them.

    Args:
        source: The mini-batches, the same on all ranks; None: each step takes all of the data.
    """
    if source is None or ranks().size == 1 or isinstance(source, OwnRows):
        return source
    return OwnRows(source, ranks())


class OwnRows:
    """Mini-batches of which each rank takes every so many-th row.

    Of n ranks, rank r has rows r, r + n and so on of each mini-batch. A row counts for n times as
    much as alone, so that the mean of the ranks' gradients is that of the whole mini-batch, also
    where some have a row more than others.

    Args:
        source: The mini-batches, the same on all ranks.
        here: The ranks.

    Raises:
        ValueError: If a mini-batch has fewer rows than there are ranks.
    """

    def __init__(self, source: MiniBatches | LoaderBatches, here: Ranks) -> None:
        self._source = source
        self._ranks = here
        self.scale = ScalePlate(source.plate, source.scale.factor * here.size)
        self.plate = source.plate
        self.names = source.names
        self.num_batches = source.num_batches
        self.few = source.few
        if isinstance(source, MiniBatches):
            self._check_rows(min(source.batch_size, source.length % source.batch_size or here.size))

    @property
    def length(self) -> int:
        """Number of rows of all ranks."""
        return self._source.length

    def epoch(self, number: int | None = None, seed: int = 0) -> Iterator[dict[str, Any]]:
        """Yield this rank's rows of each mini-batch; see `MiniBatches.epoch`.

        Args:
            number: Number of the epoch.
            seed: The seed of the run.

        Raises:
            ValueError: If ranks are given other mini-batches, or some have no row of one.
        """
        own = slice(self._ranks.index, None, self._ranks.size)
        for position, batch in enumerate(self._source.epoch(number, seed)):
            if position == 0:
                self._check_same({name: batch[name] for name in self.names})
            self._check_rows(len(batch[self.names[0]]))
            yield {**batch, **{name: batch[name][own] for name in self.names}}

    def _check_rows(self, count: int) -> None:
        size = self._ranks.size
        if count >= size:
            return
        msg = f"a mini-batch has {count} rows, and {size} processes cannot share them. "
        if isinstance(self._source, MiniBatches):
            length, most = self._source.length, max(self._source.batch_size, size)
            fits = (b for b in range(most, length + 1) if length % b == 0 or length % b >= size)
            msg += f"Give batch_size={next(fits, length)}, so that the last one has enough."
        else:
            msg += "Let the loader drop a short last one (drop_last=True), or start fewer of them."
        raise ValueError(msg)

    def _check_same(self, rows: dict[str, Any]) -> None:
        found = self._ranks.differing(rows)
        if found is not None:
            msg = (
                f"data: '{found}' of the first mini-batch of an epoch is not the same for all "
                "processes, which take their rows of each by themselves. Give all of them the same "
                "batches: leave out DistributedSampler, and draw rows by the fit's seed alone."
            )
            raise ValueError(msg)
