"""What decides how large the steps of a training are, and when it ends."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_gen.inference.training.stationarity import Array, effective_sizes

__all__ = ["Course", "Fixed", "still_falling"]

# Of how many standard errors a fall of the loss is one.
_ERRORS = 3.0


class Course(ABC):
    """The steps of a training, one after the other.

    Args:
        optimizer: What makes the steps.
        limit: Number of steps at most.
    """

    def __init__(self, optimizer: Optimizer, limit: int) -> None:
        self.optimizer = optimizer
        self.limit = limit
        self.done = 0
        self.ended = False

    @property
    @abstractmethod
    def progress(self) -> float:
        """Share of the steps that are done, in [0, 1]."""

    @abstractmethod
    def before(self) -> None:
        """Set the size of the next step."""

    def after(self, loss: float | None) -> None:
        """Take note of a step.

        Args:
            loss: The loss that it started from; None: it was skipped.
        """
        self.done += 1
        self.ended = self.done >= self.limit

    def gives_up(self) -> bool:
        """Return whether steps that all fail are the end; else go on somewhere else."""
        return True

    def finish(self) -> None:  # noqa: B027 - there is nothing to do for most
        """Put the parameters to what is to be kept of them."""

    @abstractmethod
    def verdict(self, losses: Array) -> tuple[bool | None, tuple[str, ...]]:
        """Return whether the training has converged, None where nothing can be said, and why not.

        Args:
            losses: The loss of each step.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return all that the rest of the course depends on."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


class Fixed(Course):
    """A given number of steps.

    Their size is constant in the first half, and falls to zero along a half cosine in the second,
    unless a scheduler of the user decides.

    Args:
        optimizer: What makes the steps.
        limit: Number of steps.
        scheduler: The scheduler, moved on after each step.
        tolerance: Nats that a loss may still fall by to be called converged.
        warns: Whether to warn where it still fell by more. A network is trained for as long as one
            likes, and one that could still learn is not wrong.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        limit: int,
        scheduler: LRScheduler | None,
        tolerance: float,
        *,
        warns: bool = True,
    ) -> None:
        super().__init__(optimizer, limit)
        self.scheduler = scheduler
        self.tolerance = tolerance
        self.warns = warns
        self._rates = [group["lr"] for group in optimizer.param_groups]

    @property
    def progress(self) -> float:
        """Share of the steps that are done, in [0, 1]."""
        return self.done / self.limit

    def before(self) -> None:
        """Set the size of the next step."""
        if self.scheduler is not None:
            return
        falling = max(0.0, 2.0 * self.progress - 1.0)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * falling))

    def after(self, loss: float | None) -> None:
        """Take note of a step."""
        super().after(loss)
        if loss is None or self.scheduler is None:
            return
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss)
        else:
            self.scheduler.step()

    def verdict(self, losses: Array) -> tuple[bool | None, tuple[str, ...]]:
        """Return whether the loss had ceased to fall while the steps had their full size."""
        full = losses if self.scheduler is not None else losses[: len(losses) // 2]
        last = full[len(full) // 2 :]
        fall = still_falling(last)
        if fall is None:
            return None, ()
        if fall <= self.tolerance:
            return True, ()
        if not self.warns:
            return False, ()
        when = "at the end" if self.scheduler is not None else "when the step size began to shrink"
        return False, (
            f"Not converged: the loss was still falling {when}, by {fall:.3g} nats over "
            f"{len(last)} steps. Give more steps; or leave steps, epochs, learning_rate, optimizer "
            "and scheduler out, so that the fit finds its own end.",
        )

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the course depends on."""
        scheduler = None if self.scheduler is None else _plain(self.scheduler.state_dict())
        return {"done": self.done, "scheduler": scheduler}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.done = state["done"]
        self.ended = self.done >= self.limit
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


def still_falling(losses: Array) -> float | None:
    """Return by how much losses fall from their first half to the second; 0 if that is noise.

    Args:
        losses: The losses, one for each step.

    Returns:
        The fall in the losses' unit, or None where there are too few to tell.
    """
    if len(losses) < 100:
        return None
    first, second = losses[: len(losses) // 2], losses[len(losses) // 2 :]
    fall = float(first.mean() - second.mean())
    sizes = [float(effective_sizes(half[:, None])[0]) for half in (first, second)]
    parts = zip((first, second), sizes, strict=True)
    error = math.sqrt(sum(float(half.var(ddof=1)) / size for half, size in parts))
    return fall if fall > _ERRORS * error else 0.0


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return a scheduler's state without the functions and optimizers that are its options."""

    def keep(value: Any) -> bool:
        if isinstance(value, list | tuple):
            return all(keep(item) for item in value)
        if isinstance(value, dict):
            return all(keep(item) for item in value.values())
        return value is None or isinstance(value, bool | int | float | str | torch.Tensor)

    return {name: value for name, value in state.items() if keep(value)}
