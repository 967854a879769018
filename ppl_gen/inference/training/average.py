"""The average of the states that an optimiser passes through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["Average"]


class Average:
    """The average of the later half or more of a sequence of states, in constant memory."""

    def __init__(self) -> None:
        self.older: list[torch.Tensor] = []
        self.newer: list[torch.Tensor] = []
        self.counts = [0, 0]
        self.capacity = 16

    @property
    def count(self) -> int:
        """Number of states in it."""
        return sum(self.counts)

    @torch.no_grad()
    def add(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add a state; where the newer part is full, the older one is given up for it."""
        values = [p.detach() for p in parameters]
        if self.counts[1]:
            torch._foreach_add_(self.newer, values)
        else:
            self.newer = [value.clone() for value in values]
        self.counts[1] += 1
        if self.counts[1] == self.capacity:
            self.older, self.newer = self.newer, []
            self.counts = [self.counts[1], 0]
            self.capacity *= 2

    def mean(self) -> list[torch.Tensor]:
        """Return the average."""
        if not self.counts[0]:
            return [value / self.count for value in self.newer]
        if not self.counts[1]:
            return [value / self.count for value in self.older]
        return [(a + b) / self.count for a, b in zip(self.older, self.newer, strict=True)]

    def state(self) -> dict[str, Any]:
        """Return the sums."""
        return dict(vars(self))

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from sums."""
        vars(self).update(state)
        self.older = [value.to(device) for value in self.older]
        self.newer = [value.to(device) for value in self.newer]
