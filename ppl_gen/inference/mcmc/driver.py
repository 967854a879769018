"""The driver of all chains: warm-up, draws and threads, the same for both engines."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

import torch

from ppl_gen.inference.mcmc.metric import Kind, Rule
from ppl_gen.inference.mcmc.state import Phase, State
from ppl_gen.inference.mcmc.warmup import Stage, update_metric

__all__ = ["Driver", "Engine"]

# A group of chains runs for so long before its thread looks at anything else.
_SLICE_SECONDS = 0.05


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


class Driver:
    """Runs chains to their end.

    Args:
        engine: What advances them.
        state: The chains, at their start points or in the middle of a run.
        stages: The stages of the warm-up.
        draws: Number of draws of each chain that are to be kept.
        metric: The form of the metric.
        rule: How it is estimated.
    """

    def __init__(
        self,
        engine: Engine,
        state: State,
        stages: list[Stage],
        draws: int,
        metric: Kind,
        rule: Rule,
    ) -> None:
        self.engine = engine
        self.state = state
        self.stages = {stage.stop: stage for stage in stages}
        self.last = state.warmup + draws * state.thinning
        self.metric: Kind = metric
        self.rule: Rule = rule
        self._stopped = threading.Event()
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Let every chain begin, from its start point with a first step size."""
        for chain in range(self.state.chains):
            if self.state.phase[chain] == Phase.SEARCHING:
                self.state.next_stop[chain] = self._next_stop(chain)
                self.engine.begin_search(chain)

    def run(self, report: Callable[[], None]) -> bool:
        """Run until all chains are done.

        Args:
            report: Called a few times a second.

        Returns:
            Whether the user stopped it before.
        """
        groups = range(self.state.chains // self.engine.group_size)
        pending: queue.SimpleQueue[int] = queue.SimpleQueue()
        for group in groups:
            pending.put(group)
        count = min(len(groups), _processors())
        threads = [threading.Thread(target=self._work, args=(pending,)) for _ in range(count)]
        self._stopped.clear()
        interrupted = False
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(0.1 / count)
                report()
        except KeyboardInterrupt:
            interrupted = True
            self._stopped.set()
            for thread in threads:
                thread.join()
        if self._failure is not None:
            raise self._failure
        return interrupted

    def _work(self, pending: queue.SimpleQueue[int]) -> None:
        steps = 1
        try:
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
        except BaseException as error:
            self._failure = error
            self._stopped.set()

    def _serve(self, group: int) -> bool:
        """Serve the chains of a group that wait; return whether any is still to go on."""
        size = self.engine.group_size
        members = range(group * size, (group + 1) * size)
        phases = self.state.phase[members.start : members.stop].tolist()
        for chain, phase in zip(members, phases, strict=True):
            if phase == Phase.WAITING:
                self._serve_chain(chain)
        return bool((self.state.phase[members.start : members.stop] != Phase.DONE).any())

    def _serve_chain(self, chain: int) -> None:
        state = self.state
        made = int(state.transition[chain])
        if made >= self.last:
            state.phase[chain] = Phase.DONE
            return
        stage = self.stages.get(made)
        if stage is not None:
            update_metric(state, chain, stage.window, self.metric, self.rule)
            state.next_stop[chain] = self._next_stop(chain)
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
        stops = [*self.stages, self.state.warmup, self.last]
        return min(stop for stop in stops if stop > made)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
