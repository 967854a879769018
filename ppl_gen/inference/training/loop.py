"""The loop of an SVI run: steps over batches, with all that may stop it."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyro
import torch
from torch import nn

from ppl_gen.core import Problem
from ppl_gen.core.loader import BatchSource
from ppl_gen.core.progress import ProgressBar
from ppl_gen.core.ranks import ranks
from ppl_gen.core.scope import seeded, unchecked
from ppl_gen.inference.interrupt import deferred_interrupt
from ppl_gen.inference.training.checkpoint import give_generators, pack, take_generators, unpack
from ppl_gen.inference.training.compiled import LossAndGradients, Objective
from ppl_gen.inference.training.course import Course, Fixed
from ppl_gen.inference.training.keeper import Keeper
from ppl_gen.inference.training.self_tuned import SelfTuned
from ppl_gen.inference.training.stationarity import Array

if TYPE_CHECKING:
    from ppl_gen.inference.svi import SVI

__all__ = ["EpochInfo", "Outcome", "Trained", "Training"]

# How often the parameters are kept, to go back to when the objective breaks down.
_SNAPSHOT_STEPS = 100
# So many steps in a row may be skipped because the loss is not finite.
_MOST_SKIPPED = 10
# With all of the data in each step, what counts as an epoch.
_STEPS_PER_EPOCH = 100
# Steps of a training that nobody has given a number of, and the most that it takes to converge.
_STEPS = 3000
_MOST_STEPS = 30_000
# How often it is seen whether the processes that train together have the same parameters.
_CHECK_STEPS = 500
# Estimates of the loss that two states of the parameters are compared by at once; passes over the
# data, where these have fewer mini-batches.
_COMPARED = 16
_PASSES = 4
# Nats, for each row that has latents of its own, that do not matter.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class EpochInfo:
    """What a callback is told after each epoch.

    Args:
        epoch: Its number, from 1.
        step: Number of steps so far.
        loss: Mean loss of the epoch, the negative of what the objective maximises, for each row
            of mini-batched data; in nats.
        pair: The pair in training.
        seconds: Seconds since the first step.
    """

    epoch: int
    step: int
    loss: float
    pair: nn.Module
    seconds: float


class Trained(Objective, Protocol):
    """What is minimised, with the names of what it depends on."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is trained, by name."""
        ...

    def blame(self, batch: Any) -> str:
        """Name what is not finite."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Args:
        history: The loss after each step that was not skipped, (step,).
        failure: Why it had to stop, where it had to.
        interrupted: Whether the user stopped it.
        converged: Whether it converged; None where nothing can be said.
        warnings: What the user should know.
        checkpoint: Where an interrupted training goes on from.
    """

    history: torch.Tensor
    failure: str | None
    interrupted: bool
    converged: bool | None
    warnings: tuple[str, ...]
    checkpoint: Mapping[str, torch.Tensor]


class Training:
    """Steps on the parameters of an objective.

    Args:
        objective: The objective.
        source: What gives mini-batches, or None for all of the data in each step.
        data: All of the data, for a step without mini-batches.
        options: The options of the method.
        problem: Pair, seed and folder.
        module: What holds all that is trained, for checkpoints.
        rate: The first step size, where none is given.
        local_rows: Number of rows that have latents of their own.
    """

    def __init__(
        self,
        objective: Trained,
        source: BatchSource | None,
        data: Mapping[str, Any] | None,
        options: SVI,
        problem: Problem,
        *,
        module: nn.Module,
        rate: float,
        local_rows: int,
    ) -> None:
        self.objective = objective
        self.source = source
        self.data = data
        self.options = options
        self.problem = problem
        self.module = module
        self.per_epoch = _STEPS_PER_EPOCH if source is None else source.num_batches
        self.parameters = dict(objective.named_parameters())
        if not self.parameters:
            msg = 'guide="pair": neither model nor guide has a parameter to train.'
            raise ValueError(msg)
        self.optimizer = _optimizer(options, self.parameters, rate)
        self.course = self._course(local_rows)
        self.loss_and_gradients = LossAndGradients(
            objective,
            list(self.parameters.values()),
            compile=options.compile,
            autocast=options.autocast,
        )
        self.losses: list[float] = []
        self.skipped = self._in_a_row = 0
        self._first_failure = ""
        self._stopped, self._between_steps = False, True
        self._held: list[Any] | None = None
        self.went_back = False
        self.snapshot: list[torch.Tensor] = []
        self.keeper = Keeper(problem)
        if problem.previous is not None:
            self._restore(problem.previous.checkpoint)

    def _course(self, local_rows: int) -> Course:
        options, tolerance = self.options, _TOLERANCE * max(local_rows, 1)
        if options.finds_its_own_steps:
            return SelfTuned(
                self.optimizer,
                list(self.parameters.values()),
                self._compare,
                tolerance=tolerance,
                interval=max(_STEPS_PER_EPOCH, min(self.per_epoch, 5 * _STEPS_PER_EPOCH)),
                limit=_MOST_STEPS,
                # The running statistics of a normalisation belong to one state of the weights.
                can_average=not any(_keeps_statistics(m) for m in self.module.modules()),
            )
        steps = options.steps or (options.epochs * self.per_epoch if options.epochs else _STEPS)
        scheduler = None if options.scheduler is None else options.scheduler(self.optimizer)
        return Fixed(self.optimizer, steps, scheduler, tolerance, warns=not local_rows)

    def run(self) -> Outcome:
        """Train."""
        failure, interrupted = None, False
        if self.options.finds_its_own_steps and self.problem.loader is not None:
            # A loader may be unable to make two passes at the same time.
            assert self.source is not None
            first = self.source.epoch(0, self.problem.seed)
            self._held = list(itertools.islice(first, _COMPARED))
        with unchecked(), warnings.catch_warnings():
            # Pyro warns of what is an error here, with the batch and the parameter.
            warnings.filterwarnings("ignore", message="Encountered (NaN|[+-]?inf)")
            try:
                with deferred_interrupt(self._stop):
                    failure = self._steps()
            except KeyboardInterrupt:
                # In the middle of a step there is nothing to go on from but the last checkpoint.
                if not self.losses or not self._between_steps:
                    raise
                self._stop()
            if self._stopped:
                # Several processes are not at the same step, and go on from a checkpoint.
                if ranks().size > 1:
                    raise KeyboardInterrupt
                interrupted = True
            checkpoint = {**self._state(), **self.keeper.facts()} if interrupted else {}
            self.course.finish()
        self._agree()
        losses = np.asarray(self.losses)
        converged, told = (False, ()) if failure or interrupted else self.course.verdict(losses)
        if self.skipped and not failure:
            told += (
                f"{self.skipped} of {self.course.done} steps were skipped, because the loss was "
                "not finite there. Lower the learning rate, or keep scales away from zero.",
            )
        return Outcome(torch.from_numpy(losses), failure, interrupted, converged, told, checkpoint)

    def _stop(self) -> None:
        self._stopped = True

    def _steps(self) -> str | None:
        """Make the steps; return why they had to stop, if they had to."""
        started = time.perf_counter()
        total = self.course.limit
        with ProgressBar("SVI", total, enabled=self.problem.progress) as bar:
            bar.update(self.course.done)
            for epoch, position, batch in self._batches():
                failure = self._step(epoch, position, batch)
                if failure is not None:
                    return failure
                bar.update(self.course.done, f"loss {self._recent():.5g}" if bar.due() else "")
                if self.options.callback is not None and position == self.per_epoch:
                    seconds = time.perf_counter() - started
                    self._call_back(epoch, seconds, self.options.callback)
                if self.course.ended or self._stopped:
                    return None
                if self.course.done % _CHECK_STEPS == 0:
                    self._agree()
                if ranks().first and self.keeper.due():
                    self.keeper.save(self._state())
        return None

    def _call_back(self, epoch: int, seconds: float, callback: Callable[[EpochInfo], None]) -> None:
        last = self.losses[-self.per_epoch :]
        loss = sum(last) / max(len(last), 1) / self._rows
        pair = self.problem.pair
        modes = [(module, module.training) for module in pair.modules()]
        callback(EpochInfo(epoch, self.course.done, loss, pair, seconds))
        for module, training in modes:
            module.training = training

    @property
    def _rows(self) -> int:
        """Number of rows, which of a loader may become known after the first epoch."""
        return 1 if self.source is None else self.source.length

    def _recent(self) -> float:
        last = self.losses[-50:]
        return sum(last) / max(len(last), 1) / self._rows

    def _batches(self) -> Iterator[tuple[int, int, Any]]:
        """Yield epoch and position, from 1, with the batch, from where the course is."""
        epoch, position = divmod(self.course.done, self.per_epoch)
        for number in itertools.count(epoch + 1):
            batches = itertools.islice(self._epoch(number), position, None)
            for place, batch in enumerate(batches, start=position + 1):
                yield number, place, batch
            position = 0

    def _epoch(self, number: int) -> Iterator[Any]:
        if self.source is None:
            return itertools.repeat(self.data, self.per_epoch)
        return self.source.epoch(number, self.problem.seed)

    def _step(self, epoch: int, position: int, batch: Any) -> str | None:
        """Make one step; return what went wrong, if that is the end."""
        self._between_steps = False
        failure = self._try_step(epoch, position, batch)
        self._between_steps = True
        return failure

    def _try_step(self, epoch: int, position: int, batch: Any) -> str | None:
        if self.course.done % _SNAPSHOT_STEPS == 0:
            self._keep()
        self.course.before()
        if ranks().size > 1:
            # Its noise follows from the number of the step, so that nobody has to keep where the
            # generators of all processes are.
            seed = ranks().own_seed(self.problem.seed, self.course.done)
            _seed_generator(self.problem.device, seed)
        value = self._gradients(batch)
        if not math.isfinite(value):
            return self._skip(value, epoch, position, batch)
        if self.options.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.options.clip_norm)
        self.optimizer.step()
        self.losses.append(value)
        self._in_a_row = 0
        self.course.after(value)
        return None

    def _gradients(self, batch: Any) -> float:
        """Take the gradients, their means over all processes; return the loss likewise."""
        loss = self.loss_and_gradients(batch, self.course.progress)
        if ranks().size == 1:
            return loss.item()
        for parameter in self.parameters.values():
            if parameter.grad is None:  # all have to exchange the same
                parameter.grad = torch.zeros_like(parameter)
        mean = loss.detach().clone()
        ranks().average_([*(p.grad for p in self.parameters.values() if p.grad is not None), mean])
        return mean.item()

    def _agree(self) -> None:
        """Make sure that all processes have the same parameters, and give them the same buffers.

        Raises:
            RuntimeError: If a parameter differs.
        """
        here = ranks()
        if here.size == 1:
            return
        # Such as the running statistics of a normalisation, which each has of its own rows.
        here.broadcast_(list(self.module.buffers()))
        name = here.differing(self.parameters)
        if name is not None:
            msg = (
                f"parameter '{name}' is no longer the same in all processes at step "
                f"{self.course.done}. They have made other steps: see that optimizer, scheduler "
                "and callback do the same in each, and that all run on the same kind of processor."
            )
            raise RuntimeError(msg)
        pyro.set_rng_seed(self.problem.seed)  # from here on they draw the same

    def _skip(self, value: float, epoch: int, position: int, batch: Any) -> str | None:
        """Leave a step out whose loss is not finite; return what went wrong, after too many."""
        if not self._in_a_row:
            self._first_failure = self._failure(value, epoch, position, batch)
        again = self._go_back()
        self._in_a_row += 1
        self.skipped += 1
        if again or self._in_a_row > _MOST_SKIPPED:
            if self.course.gives_up():
                self._put_back()
                return self._first_failure
            self._in_a_row = 0
            self._keep()
            return None
        self.course.after(None)
        return self._first_failure if self.course.ended and not self.losses else None

    def _compare(self, number: int) -> Array:
        """Return losses at the present parameters, on draws and rows that follow from a number.

        Each is an estimate for all of the data: where mini-batches are few, of all of them.
        """
        seed = int(np.random.SeedSequence((self.problem.seed, number)).generate_state(1)[0])
        with seeded(ranks().own_seed(seed)):
            batches: Iterator[Any] = itertools.repeat(self.data, _COMPARED)
            together = 1
            if self._held is not None:
                batches = iter(self._held)
            elif self.source is not None:
                together = self.per_epoch if self.per_epoch < _COMPARED else 1
                count = _PASSES * together if together > 1 else _COMPARED
                passes = (self.source.epoch(epoch, seed) for epoch in itertools.count())
                batches = itertools.islice(itertools.chain.from_iterable(passes), count)
            every = [self.objective.loss(batch).item() for batch in batches]
        losses = np.reshape(every, (-1, together)).mean(1)
        means = torch.from_numpy(losses)
        ranks().average_([means])
        return means.numpy()

    def _keep(self) -> None:
        """Keep the parameters, unless they have become NaN."""
        values = [p.detach().clone() for p in self.parameters.values()]
        if not self.snapshot or all(bool(torch.isfinite(v).all()) for v in values):
            self.snapshot = values
            self.went_back = False

    def _go_back(self) -> bool:
        """Put parameters that have become NaN to where they last were not.

        Returns:
            Whether they had been put there before already.
        """
        if all(bool(torch.isfinite(p).all()) for p in self.parameters.values()):
            return False
        again, self.went_back = self.went_back, True
        self._put_back()
        # The moments of the gradients are as broken.
        self.optimizer.state.clear()
        return again

    @torch.no_grad()
    def _put_back(self) -> None:
        for parameter, value in zip(self.parameters.values(), self.snapshot, strict=True):
            parameter.copy_(value)

    def _failure(self, value: float, epoch: int, position: int, batch: Any) -> str:
        where = f"step {self.course.done + 1}"
        if self.source is not None:
            where += f" (epoch {epoch}, batch {position} of {self.source.num_batches})"
        bad = [n for n, p in self.parameters.items() if not bool(torch.isfinite(p).all())]
        if bad:
            blamed = f"parameter '{bad[0]}' had become NaN or infinite"
        else:
            try:
                blamed = self.objective.blame(batch)
            except (ValueError, RuntimeError) as error:
                blamed = str(error)
            if not blamed:
                blamed = (
                    f"parameter '{self._worst_gradient(batch)}' gets a gradient that is not finite"
                )
        return (
            f"the loss became {value} at {where}: {blamed}. More steps were no better. "
            "Lower the learning rate, check the scale of the data, or keep scales away from zero. "
            "`error.posterior` holds the last good state."
        )

    def _worst_gradient(self, batch: Any) -> str:
        self.objective.loss(batch).backward()
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                return name
        return next(iter(self.parameters))

    def _state(self) -> dict[str, torch.Tensor]:
        """Return all that the rest of the training depends on."""
        return pack(
            {
                "module": dict(self.module.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "course": self.course.state(),
                "generators": take_generators(self.problem.device),
                "losses": torch.tensor(self.losses, dtype=torch.float64),
                "skipped": [self.skipped, self._in_a_row, self._first_failure, self.went_back],
                "snapshot": self.snapshot,
            }
        )

    def _restore(self, checkpoint: Mapping[str, torch.Tensor]) -> None:
        state = unpack(checkpoint)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.course.restore(state["course"])
        give_generators(state["generators"], self.problem.device)
        self.losses = state["losses"].tolist()
        self.skipped, self._in_a_row, self._first_failure, self.went_back = state["skipped"]
        self.snapshot = [value.to(self.problem.device) for value in state["snapshot"]]


def _optimizer(
    options: SVI, parameters: Mapping[str, nn.Parameter], rate: float
) -> torch.optim.Optimizer:
    """Return the optimizer of the user, or Adam.

    Raises:
        TypeError: If what the user gave makes no optimizer.
        ValueError: If it is one of other parameters.
    """
    if options.optimizer is None:
        # The fused kernel does in one pass what Adam's formula does in ten.
        return torch.optim.Adam(parameters.values(), lr=options.learning_rate or rate, fused=True)
    optimizer = options.optimizer(list(parameters.values()))
    if not isinstance(optimizer, torch.optim.Optimizer):
        msg = (
            "optimizer: expected a function that returns a torch.optim.Optimizer for the "
            f"parameters that it is given, got {type(optimizer).__name__} from it."
        )
        raise TypeError(msg)
    own = {id(parameter) for parameter in parameters.values()}
    taken = [p for group in optimizer.param_groups for p in group["params"]]
    others = sum(id(parameter) not in own for parameter in taken)
    if others:
        msg = (
            f"optimizer: {others} of its {len(taken)} parameters are not those of the copy of the "
            "pair that is trained. Use the parameters that the function is given, as in "
            "optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)."
        )
        raise ValueError(msg)
    return optimizer


def _seed_generator(device: torch.device, seed: int) -> None:
    """Seed the generator of the noise; `torch.manual_seed` would take 0.1 ms for all others."""
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    torch.default_generator.manual_seed(seed)


def _keeps_statistics(module: nn.Module) -> bool:
    return bool(getattr(module, "track_running_stats", False))
