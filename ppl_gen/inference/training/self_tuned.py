"""Steps whose size and number are found on the way."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from ppl_gen.inference.training.average import Average
from ppl_gen.inference.training.course import Course
from ppl_gen.inference.training.stationarity import Array, effective_sizes, split_rhat

__all__ = ["SelfTuned"]

# Beyond which R-hat a sequence of iterates still goes somewhere (Welandawe et al. use it as well).
_RHAT = 1.1


class SelfTuned(Course):
    """Steps whose size and number are found on the way.

    First a few steps of each of several sizes are tried from the same point, and the largest size
    is taken that gets about as far as any. Then, in rounds of one size each, steps are made until
    the iterates only wander about: until their average gets no better, compared with how far they
    wander, and their R-hat is below 1.1, or all of the way that they went is flat, or the average
    has stayed as it is while its length doubled. The next round starts from that average with steps
    a third as large. It ends when a round has gained nothing over the one before, and the Monte
    Carlo error of the average, in nats, is small.

    Averages are compared on the same draws and rows, so that the noise of both is the same.

    Args:
        optimizer: Adam, over all of the parameters.
        parameters: What is trained.
        evaluate: Returns losses at the present parameters, on draws and rows that follow from the
            number that it is given.
        tolerance: What a gain or an error has to exceed to matter, in nats.
        interval: Steps between two looks, at least.
        limit: Number of steps at most.
        can_average: Whether the average of two states of the parameters is one.

    References:
        Welandawe, Andersen, Vehtari and Huggins (2022), Robust, Automated, and Accurate Black-box
        Variational Inference, arXiv:2203.15945. Theirs stops each round by R-hat and Monte Carlo
        error as well; the gain of a round is measured here, not predicted, so that no divergence
        between guides is needed and any guide will do.
    """

    RATES = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
    # Networks get further at first by steps that lead them astray.
    RATES_OF_MANY = (0.003, 0.001, 0.0003)
    _TRIAL = 50
    _SHRINK = 3.0
    _THIN = 5
    # Iterates that R-hat needs.
    _LEAST = 40
    # Share of the gain, and nats for each watched parameter, that a larger step size may fall short
    # by: its iterates wander further about an average that is as good, and arrive there sooner.
    _SHORT = 0.1
    # Estimates of the loss at each state that two states are compared by, at most and as a share of
    # the steps of the round, and by how many standard errors a gain is clear.
    _MOST_COMPARED = 1024
    _CLEAR = 3.0
    # What the average may still gain in a round, of what it gains over its iterates.
    _COARSE = 0.1
    # Looks in a row, each after a quarter more steps, that an average has to stay as it is.
    _STILL = 3
    # Iterates of so many parameters are watched one by one; of more, as of networks, which wander
    # for ever without doing anything else, only the loss.
    _WATCHED = 1000
    # So many steps of one size are enough, whatever the iterates do.
    _LONGEST = 2000
    _LONGEST_OF_MANY = 10_000
    _PLAIN = (
        "done",
        "rate",
        "trial",
        "from_start",
        "best",
        "round",
        "still",
        "steps",
        "next_look",
    )

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Sequence[nn.Parameter],
        evaluate: Callable[[int], Array],
        *,
        tolerance: float,
        interval: int,
        limit: int,
        can_average: bool,
    ) -> None:
        super().__init__(optimizer, limit)
        self.parameters = list(parameters)
        self.evaluate = evaluate
        self.tolerance = tolerance
        self.interval = interval
        self.can_average = can_average
        self.watched = sum(p.numel() for p in self.parameters) <= self._WATCHED
        self.converged = False
        self.rates = self.RATES if self.watched else self.RATES_OF_MANY
        self.rate = self.rates[0]
        # The search.
        self.trial = 0
        self.start = self._values()
        self.from_start = math.inf
        self.best: dict[str, Any] | None = None
        # A round.
        self.round = 0
        self.still = 0
        self.steps = 0
        self.next_look = interval
        self.iterates: list[torch.Tensor] = []
        self.average = Average()
        self.last_look: list[torch.Tensor] | None = None
        self.last_round: list[torch.Tensor] | None = None

    @property
    def progress(self) -> float:
        """Share of the steps that are done: as if this was the last one."""
        return 1.0

    def before(self) -> None:
        """Set the size of the next step."""
        searching = self.trial < len(self.rates)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[self.trial] if searching else self.rate

    def after(self, loss: float | None) -> None:
        """Take note of a step."""
        super().after(loss)
        self.steps += 1
        if self.trial < len(self.rates):
            if self.steps >= self._TRIAL:
                self._next_trial(self._loss(self._values()))
            return
        if loss is None:  # what led there is no state to average
            self.iterates, self.average = [], Average()
        if self.steps % self._THIN == 0:
            self.average.add(self.parameters)
            if self.watched:
                self.iterates.append(_flat(self.parameters))
        if self.steps >= self.next_look:
            self._look()

    def gives_up(self) -> bool:
        """Return whether steps that all fail are the end; a step size that is tried may fail."""
        if self.trial >= len(self.rates):
            return True
        self.done += 1
        self._next_trial(math.inf)
        return False

    def finish(self) -> None:
        """Take the average of the last round, where there is one and it is the better."""
        if self.trial < len(self.rates):
            if self.best is not None:
                self._put(self.best["values"])
        elif self.can_average and self.average.count:
            average = self.average.mean()
            if self._gain(self._values(), average) > 0:
                self._put(average)

    def verdict(self, losses: Array) -> tuple[bool | None, tuple[str, ...]]:
        """Return whether the last round gained nothing any more."""
        if self.converged:
            return True, ()
        return False, (
            f"Not converged after {self.done} steps: a round of steps of size {self.rate:.2g} "
            f"still gains more than {self.tolerance:.2g} nats, or its iterates do not settle. "
            "Look at `posterior.history`; give more particles, or the number of steps.",
        )

    def _next_trial(self, value: float) -> None:
        """End the trial of a step size, which came to that loss."""
        if not self.trial:
            self.from_start = self._loss(self.start)
        if math.isfinite(value) and (self.best is None or value < self._short_of(self.best)):
            self.best = {
                "loss": value,
                "values": self._values(),
                "optimizer": copy.deepcopy(self.optimizer.state_dict()),
                "rate": self.rates[self.trial],
            }
        self.trial += 1
        self.steps = 0
        if self.trial < len(self.rates):
            self._put(self.start)
            self.optimizer.state.clear()
            return
        if self.best is None:  # the first step of the descent fails then, and says where
            self._put(self.start)
            self.rate = self.rates[-1]
            return
        self.rate = self.best["rate"]
        self._put(self.best["values"])
        self.optimizer.load_state_dict(self.best["optimizer"])
        self.best = None

    def _short_of(self, best: dict[str, Any]) -> float:
        """Return the loss that a smaller step size has to reach to be the better one."""
        gain = max(self.from_start - best["loss"], 0.0) if math.isfinite(self.from_start) else 0.0
        # Where the larger one led upwards, it is only to be excused for wandering.
        wandering = sum(p.numel() for p in self.parameters) if self.watched else 0
        return float(best["loss"]) - self._SHORT * (gain + wandering)

    def _look(self) -> None:
        """See whether the iterates still go somewhere; if not, end the round, or all."""
        here = self._values()
        average = self.average.mean() if self.can_average else here
        wandering = max(self._gain(here, average), 0.0)
        # In a round that is not the last one it is enough to come near.
        enough = max(self.tolerance, self._COARSE * wandering)
        small = self.last_look is not None and self._is_small(self.last_look, average, enough)
        self.still = self.still + 1 if small else 0
        near = small and (self.still >= self._STILL or self._is_stationary(average, wandering))
        self.last_look = average
        if near and self._gains_nothing(average, wandering):
            self.converged = self.ended = True
        longest = self._LONGEST if self.watched else self._LONGEST_OF_MANY
        if near or self.steps >= longest:
            self._put(average if wandering > 0 else here)
            self.last_round = average
            if not self.ended:
                self._next_round()
            return
        self._put(here)
        self.next_look = self.steps + max(self.interval, self.steps // 4)

    def _gains_nothing(self, average: list[torch.Tensor], wandering: float) -> bool:
        """Return whether a round ended where the one before did, and the noise is small."""
        if self.last_round is None or wandering / self._effective_size() > self.tolerance:
            return False
        return self._is_small(self.last_round, average, self.tolerance)

    def _next_round(self) -> None:
        self.round += 1
        self.still = 0
        self.rate /= self._SHRINK
        self.steps = 0
        self.next_look = self.interval
        self.iterates, self.average = [], Average()
        self.last_look = None

    def _is_small(
        self, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor], enough: float
    ) -> bool:
        """Return whether the loss falls by no more than what is enough, as far as can be seen.

        So many draws are compared as it takes to tell, within a share of the cost of the steps.
        """
        falls: list[float] = []
        most = min(self._MOST_COMPARED, self.steps // 2)
        for number in itertools.count():
            falls.extend(self._falls(before, after, number).tolist())
            fall, error = float(np.mean(falls)), float(np.std(falls, ddof=1)) / len(falls) ** 0.5
            clear = abs(fall - enough) > self._CLEAR * error
            if clear or 2 * error <= enough or not math.isfinite(error):
                return bool(fall <= enough)
            if len(falls) >= most:
                return bool(fall <= max(enough, error))
        raise AssertionError

    def _gain(self, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
        """Return by how much the loss falls between two states."""
        return float(self._falls(before, after, 0).mean())

    def _falls(
        self, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor], number: int
    ) -> Array:
        """Return by how much losses on the same draws and rows fall between two states."""
        here = self._values()
        losses = []
        for values in (before, after):
            self._put(values)
            losses.append(self.evaluate(number))
        self._put(here)
        return losses[0] - losses[1]

    def _loss(self, values: Sequence[torch.Tensor]) -> float:
        here = self._values()
        self._put(values)
        loss = float(self.evaluate(0).mean())
        self._put(here)
        return loss

    def _is_stationary(self, average: list[torch.Tensor], wandering: float) -> bool:
        """Return whether the iterates wander about a point that their average is near to.

        Args:
            average: Their average.
            wandering: By how much its loss is below that of the present iterate.
        """
        half = self.iterates[len(self.iterates) // 2 :]
        if not self.watched or len(half) < self._LEAST:
            return False
        before = self._gain(self._split(half[0]), average)
        if max(before, wandering) <= self.tolerance and self.steps * self.rate >= 1:
            return True  # and it could have gone far
        return float(split_rhat(_stacked(half)).max()) <= _RHAT

    def _effective_size(self) -> float:
        """Return how many independent iterates the average is worth."""
        if not self.watched:
            return 1.0
        return float(effective_sizes(_stacked(self.iterates[len(self.iterates) // 2 :])).min())

    def _split(self, flat: torch.Tensor) -> list[torch.Tensor]:
        sizes = [p.numel() for p in self.parameters]
        return [v.view_as(p) for v, p in zip(flat.split(sizes), self.parameters, strict=True)]

    def _values(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def _put(self, values: Sequence[torch.Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the course depends on."""
        iterates = torch.stack(self.iterates) if self.iterates else None
        return {
            **{name: getattr(self, name) for name in self._PLAIN},
            "last_look": self.last_look,
            "last_round": self.last_round,
            "start": self.start,
            "iterates": iterates,
            "average": self.average.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        for name in self._PLAIN:
            setattr(self, name, state[name])
        device = self.parameters[0].device
        self.start = [value.to(device) for value in state["start"]]
        for name in ("last_look", "last_round"):
            values = state[name]
            setattr(self, name, None if values is None else [v.to(device) for v in values])
        self.iterates = [] if state["iterates"] is None else list(state["iterates"].to(device))
        self.average.restore(state["average"], device)


def _stacked(iterates: Sequence[torch.Tensor]) -> Array:
    return np.asarray(torch.stack(list(iterates)).double().cpu().numpy())


def _flat(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in parameters])
