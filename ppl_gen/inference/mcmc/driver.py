"""The driver of all chains: warm-up, draws and threads, the same for both engines."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from typing import Protocol

import torch
from threadpoolctl import threadpool_limits

from ppl_gen.core.compiler.compiled import processors
from ppl_gen.core.ranks import ranks
from ppl_gen.inference.interrupt import deferred_interrupt
from ppl_gen.inference.mcmc.metric import Kind, Rule
from ppl_gen.inference.mcmc.state import Phase, State
from ppl_gen.inference.mcmc.warmup import Stage, compare, meeting, update_metric

__all__ = ["Driver", "Engine", "Sink"]

# A group of chains runs for so long before its thread looks at anything else.
_SLICE_SECONDS = 0.05
_REPORT_SECONDS = 0.1
# BLAS has threads at work from about so many dimensions.
_WIDE = 32


class Engine(Protocol):
    """What advances chains, in groups."""

    group_size: int

    def advance(self, group: int, steps: int) -> int:
        """Advance a group until one of its chains waits, or for a number of steps."""
        ...

    def begin_search(self, chain: int) -> None:
        """Let a chain look for a step size and go on."""
        ...

    def begin_transition(self, chain: int) -> None:
        """Let a chain go on."""
        ...


class Sink(Protocol):
    """What takes the draws of chains."""

    def take(self, chain: int) -> None:
        """Take the draws of a chain, which stands still."""
        ...

    def due(self) -> bool:
        """Return whether all chains should stand still for a moment."""
        ...

    def rest(self) -> None:
        """Take the draws of all chains, which stand still."""
        ...


@dataclass(frozen=True)
class _Status:
    """How far chains are.

    Args:
        unfinished: Whether one of them has still to go on.
        interrupted: Whether the user wants them to stop.
        gone_on: Whether one of them has gone on from where all are to meet.
        waiting: Whether all that are not done wait there.
    """

    unfinished: bool
    interrupted: bool
    gone_on: bool
    waiting: bool


def _of_all_ranks(own: _Status) -> _Status:
    """Return how far the chains of all ranks are."""
    each = ranks().joined(torch.tensor([astuple(own)], device="cpu"))
    unfinished, interrupted, gone_on, _ = each.any(dim=0).tolist()
    return _Status(unfinished, interrupted, gone_on, bool(each[:, 3].all()))


class Driver:
    """Runs chains to their end, those of other ranks in step.

    In each round the chains go on until they are done, until they wait for all others, or until the
    sink wants them to stand still. Ranks tell each other after each round how far they are.

    Args:
        engine: What advances them.
        state: The chains, at their start points or in the middle of a run.
        stages: The stages of the warm-up.
        draws: Number of draws of each chain that are to be kept.
        metric: The form of the metric.
        rule: How it is estimated.
        sink: What takes their draws.
        chains: Number of chains, those of other ranks included.
    """

    def __init__(
        self,
        engine: Engine,
        state: State,
        stages: list[Stage],
        draws: int,
        metric: Kind,
        rule: Rule,
        sink: Sink,
        chains: int,
    ) -> None:
        self.engine = engine
        self.state = state
        self.stages = {stage.stop: stage for stage in stages}
        self.meeting = meeting(stages, chains)
        self.first = state.warmup + state.thinning
        self.last = state.warmup + draws * state.thinning
        self.metric: Kind = metric
        self.rule: Rule = rule
        self.sink = sink
        self.first_draw_at: float | None = None
        self._have_met = False
        self._stopped = threading.Event()
        self._interrupted = False
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Let every chain begin, from its start point with a first step size."""
        for chain in range(self.state.chains):
            if self.state.phase[chain] == Phase.SEARCHING:
                self.state.next_stop[chain] = self._next_stop(chain)
                self.engine.begin_search(chain)

    def go_on(self, chains: int) -> None:
        """Let every chain go on from where it was, though to another end perhaps.

        Args:
            chains: Number of chains that are to.
        """
        for chain in range(chains):
            if self.state.transition[chain] < self.last:
                self.state.next_stop[chain] = self._next_stop(chain)
                if self.state.phase[chain] == Phase.DONE:
                    self.state.phase[chain] = Phase.WAITING

    def run(self, report: Callable[[], None]) -> bool:
        """Run until all chains are done, those of other ranks too, and their draws taken.

        Args:
            report: Called a few times a second.

        Returns:
            Whether the user stopped it before.

        Raises:
            RankError: If another rank has died or failed.
        """
        self._interrupted = False
        # Metrics are estimated in threads of our own: more of them would wait for each other.
        wide = self.state.dim >= _WIDE
        one_each = threadpool_limits(1, "blas") if wide else contextlib.nullcontext()
        with one_each, deferred_interrupt(self._stop):
            while (now := self._status(report)).unfinished and not now.interrupted:
                self._meet(now)
                pending: queue.SimpleQueue[int] = queue.SimpleQueue()
                groups = self._unfinished()
                for group in groups:
                    pending.put(group)
                self._stopped.clear()
                count = min(len(groups), processors())
                self._do([partial(self._work, pending)] * count, report)
                self._do([self.sink.rest], report)
        return now.interrupted and now.unfinished

    def _status(self, report: Callable[[], None]) -> _Status:
        """Return how far the chains of all ranks are."""
        found = [self._own_status()]
        if ranks().size > 1:
            self._do([lambda: found.append(_of_all_ranks(found[0]))], report)
        return found[-1]

    def _own_status(self) -> _Status:
        phase = self.state.phase
        going = phase != Phase.DONE
        gone_on = waiting = False
        if self.meeting is not None:
            ahead = self.state.transition - self.meeting.stop
            gone_on = bool(((ahead > 0) | (ahead == 0) & (phase <= Phase.MOVING)).any())
            waiting = bool((ahead[going] == 0).all())
        return _Status(bool(going.any()), self._interrupted, gone_on, waiting)

    def _stop(self) -> None:
        """Let the chains stop where they can go on later."""
        self._interrupted = True
        self._stopped.set()

    def _unfinished(self) -> list[int]:
        size = self.engine.group_size
        done = (self.state.phase == Phase.DONE).view(-1, size).all(dim=-1)
        return [group for group, all_done in enumerate(done.tolist()) if not all_done]

    def _meet(self, now: _Status) -> None:
        """Compare the chains once all of them wait where they meet, and let them go on.

        A run that is resumed just then compares them again, to no effect; one of which a chain has
        gone on already must not, because it would compare others.
        """
        if self.meeting is None or self._have_met:
            return
        if now.gone_on:
            self._have_met = True
        elif now.waiting:
            going = (self.state.phase != Phase.DONE).nonzero().squeeze(-1)
            compare(self.state, going.tolist(), self.meeting.window)
            self._have_met = True

    def _do(self, tasks: list[Callable[[], None]], report: Callable[[], None]) -> None:
        """Do tasks, each in a thread of its own, until all have come to their end."""
        finished: list[None] = []
        for task in tasks:
            threading.Thread(target=self._guard, args=(task, finished)).start()
        pause, reported = 0.0005, time.perf_counter()
        try:
            while len(finished) < len(tasks):
                time.sleep(pause)
                pause = min(1.1 * pause, 0.02)
                if time.perf_counter() - reported > _REPORT_SECONDS:
                    reported = time.perf_counter()
                    ranks().check()
                    report()
                if self._interrupted or self.sink.due():
                    self._stopped.set()
        except BaseException:
            self._stopped.set()
            raise
        if self._failure is not None:
            raise self._failure

    def _guard(self, task: Callable[[], None], finished: list[None]) -> None:
        try:
            task()
        except BaseException as error:
            self._failure = error
            self._stopped.set()
        finally:
            finished.append(None)

    def _work(self, pending: queue.SimpleQueue[int]) -> None:
        steps = 1
        while not self._stopped.is_set():
            try:
                group = pending.get_nowait()
            except queue.Empty:
                return
            started = time.perf_counter()
            made = 0
            while (spent := time.perf_counter() - started) < _SLICE_SECONDS:
                if made:
                    speed = made / max(spent, 1e-6)
                    steps = max(1, int(speed * (_SLICE_SECONDS - spent)))
                made += self.engine.advance(group, steps)
                if not self._serve(group):
                    break
            else:
                pending.put(group)

    def _serve(self, group: int) -> bool:
        """Serve the chains of a group that wait; return whether any goes on."""
        size = self.engine.group_size
        members = range(group * size, (group + 1) * size)
        phases = self.state.phase[members.start : members.stop].tolist()
        for chain, phase in zip(members, phases, strict=True):
            if phase == Phase.WAITING:
                self._serve_chain(chain)
        return bool((self.state.phase[members.start : members.stop] <= Phase.MOVING).any())

    def _serve_chain(self, chain: int) -> None:
        state = self.state
        made = int(state.transition[chain])
        if made >= self.first and self.first_draw_at is None:
            self.first_draw_at = time.perf_counter()
        if state.kept[chain] == state.chunk:
            self.sink.take(chain)
        if made >= self.last:
            state.phase[chain] = Phase.DONE
            return
        stage = self.stages.get(made)
        if stage is not None and state.next_stop[chain] == made:
            update_metric(state, chain, stage.window, self.metric, self.rule)
            state.next_stop[chain] = self._next_stop(chain)
        if stage is not None and stage == self.meeting and not self._have_met:
            return
        if stage is not None:
            # Later metrics differ so little that starting again costs more than it gains.
            if made == min(self.stages):
                self.engine.begin_search(chain)
            else:
                self.engine.begin_transition(chain)
            return
        if made == state.warmup:
            state.step_size[chain] = torch.exp(state.log_step_average[chain])
        state.next_stop[chain] = self._next_stop(chain)
        self.engine.begin_transition(chain)

    def _next_stop(self, chain: int) -> int:
        made = int(self.state.transition[chain])
        stops = [*self.stages, self.state.warmup, self.first, self.last]
        return min(stop for stop in stops if stop > made)
