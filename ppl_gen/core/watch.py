"""Ranks watch each other, so that none waits for one that has died, failed or got stuck."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["RankError", "Watch"]

_BEAT_SECONDS = 0.5
# Of a rank that is alive nobody hears for so long only where the machine swaps, or a thread sleeps
# on Python's lock.
_SILENT_SECONDS = 20.0
# So long the slowest thing may take that a rank does while another one waits for it.
_STUCK_SECONDS = 1800.0
# Within it the beats of all that are alive have changed several times.
_LISTEN_SECONDS = 5 * _BEAT_SECONDS
# A rank that waits inside of a library hears of no failure: after so long its process is ended.
_GRACE_SECONDS = 60.0
_POLL_SECONDS = 0.05
_LEFT = "left"


class RankError(RuntimeError):
    """Another rank of the run has died, failed or got stuck, and the run ends for all of them.

    Args:
        rank: Its number; None where it is not known.
        message: What happened to it, and what to do.
    """

    def __init__(self, rank: int | None, message: str) -> None:
        super().__init__(message)
        self.rank = rank


class Watch:
    """Tells the other ranks of a run that this one is alive, and hears of those that are not.

    A thread writes a number that grows to the store that all ranks meet in, and looks at that of
    the next rank, so that the store has two requests of each rank to answer, however many there
    are. Whoever finds that a rank is gone, or fails itself, writes it down there for all.

    Args:
        store: The store, under a prefix of the run's own.
        index: Number of this rank.
        size: Number of ranks.
        remedy: What the user is to do when the run has ended early.
    """

    def __init__(self, store: Store, index: int, size: int, remedy: str) -> None:
        self._store = store
        self._index = index
        self._size = size
        self._remedy = remedy
        self._beats = 0
        self._steps = 0
        self.waiting = False
        """Whether this rank waits for the others."""
        self._failure: dict[str, Any] | None = None
        self._over = threading.Event()
        self._listening = False
        self._thread = threading.Thread(target=self._run, name="ppl-gen-watch", daemon=True)

    def start(self) -> None:
        """Wait until all ranks have come, and begin to watch.

        Raises:
            RankError: If one does not come.
        """
        self._beat()
        if self._store.add("come", 1) == self._size:
            self._store.set("all", "")
        self._thread.start()
        limit, pause = time.monotonic() + _STUCK_SECONDS, 0.001
        while not self._store.check(["all"]):
            self.check()
            if time.monotonic() > limit:
                missing = next(r for r in range(self._size) if not self._store.check([_key(r)]))
                raise self._post(missing, f"rank {missing} has not come to the fit that others do")
            time.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS)

    def check(self) -> None:
        """Say that this rank goes on, and make sure that the others do.

        Raises:
            RankError: If one does not.
        """
        self._steps += 1
        if self._failure is not None:
            raise self._error(self._failure)

    def end(self, error: BaseException | None) -> None:
        """Leave the run.

        Args:
            error: Why, where it is not at its end.
        """
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            if error is not None and not isinstance(error, RankError):
                what = f"{type(error).__name__}: {error}".rstrip(": ")
                self._post(self._index, f"rank {self._index} failed: {what}")
            self._store.set(_key(self._index), _LEFT)
        except RuntimeError:  # the store has gone before
            pass

    def blame(self, otherwise: str) -> RankError | None:
        """Find out which rank has gone; None while that is being found out already.

        Args:
            otherwise: What to say where it is none.
        """
        if self._listening:
            return None
        self._listening = True
        try:
            return self._listen(otherwise)
        except RuntimeError:  # of the store
            return self._error({"rank": 0, "what": "rank 0 or torchrun, where ranks meet, is gone"})
        finally:
            self._listening = False

    def _listen(self, otherwise: str) -> RankError:
        before = self._heard()
        limit = time.monotonic() + _LISTEN_SECONDS
        while time.monotonic() < limit:
            if self._failure is None:
                self._failure = self._posted()
            if self._failure is not None:
                return self._error(self._failure)
            time.sleep(_POLL_SECONDS)
        after = self._heard()
        gone = {r: beat for r, beat in after.items() if r != self._index and beat == before.get(r)}
        for rank, beat in gone.items():
            if beat != _LEFT:
                return self._post(rank, f"rank {rank} has died")
        for rank in gone:
            return self._post(rank, f"rank {rank} has left the fit that others still do")
        return self._error({"rank": None, "what": otherwise})

    def _heard(self) -> dict[int, str]:
        come = [r for r in range(self._size) if self._store.check([_key(r)])]
        beats = self._store.multi_get([_key(r) for r in come])
        return {r: beat.decode() for r, beat in zip(come, beats, strict=True)}

    def _run(self) -> None:
        neighbour = (self._index + 1) % self._size
        beats, steps = _Last(), _Last()
        while not self._over.wait(_BEAT_SECONDS):
            try:
                self._beat()
                self._failure = self._failure or self._posted()
                if self._failure is not None:
                    break
                heard = [_LEFT]
                if self._store.check([_key(neighbour)]):
                    heard = self._store.get(_key(neighbour)).decode().split()
                if heard[0] == _LEFT:  # or not there yet
                    beats, steps = _Last(), _Last()
                    continue
                if (seconds := beats.unchanged(heard[0])) > _SILENT_SECONDS:
                    what = f"rank {neighbour} has died: nothing was heard of it for {seconds:.0f} s"
                    self._post(neighbour, what)
                elif not self.waiting or heard[2] == "1":
                    steps = _Last()  # nobody waits for it, or it waits as well
                elif (seconds := steps.unchanged(heard[1])) > _STUCK_SECONDS:
                    what = f"rank {neighbour} is stuck: it has done nothing for {seconds:.0f} s"
                    self._post(neighbour, what)
            except RuntimeError:  # of the store, which may be one of rank 0
                what = "rank 0 or torchrun, where ranks meet, is gone"
                self._failure = {"rank": 0, "what": what}
                break
        if not self._over.wait(_GRACE_SECONDS) and self._failure is not None:
            print(f"RankError: {self._error(self._failure)}", file=sys.stderr, flush=True)
            os._exit(1)

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(_key(self._index), f"{self._beats} {self._steps} {int(self.waiting)}")

    def _posted(self) -> dict[str, Any] | None:
        if not self._store.check(["failure"]):
            return None
        failure: dict[str, Any] = json.loads(self._store.get("failure"))
        return failure

    def _post(self, rank: int, what: str) -> RankError:
        """Write down what happened to a rank, unless another was first; return what it was."""
        text = json.dumps({"rank": rank, "what": what})
        self._failure = json.loads(self._store.compare_set("failure", "", text))
        assert self._failure is not None
        return self._error(self._failure)

    def _error(self, failure: dict[str, Any]) -> RankError:
        return RankError(failure["rank"], f"{failure['what'].rstrip('.')}. {self._remedy}")


class _Last:
    """The last value of something, and since when it has it."""

    def __init__(self) -> None:
        self.value: str | None = None
        self.since = 0.0

    def unchanged(self, value: str) -> float:
        """Return for how many seconds it has had that value."""
        now = time.monotonic()
        if value != self.value:
            self.value, self.since = value, now
        return now - self.since


def _key(rank: int) -> str:
    return f"beat/{rank}"
