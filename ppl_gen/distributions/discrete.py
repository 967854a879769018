"""What distributions of ours over discrete values refuse, in the same words."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from pyro.distributions import TorchDistribution

__all__ = ["DiscreteDistribution", "check_integers"]


class DiscreteDistribution(TorchDistribution):
    """A distribution whose draws jump from value to value: no gradient goes through them."""

    has_rsample = False

    def rsample(self, sample_shape: Any = torch.Size()) -> NoReturn:  # noqa: B008
        """Refuse to draw with gradients.

        Raises:
            NotImplementedError: Always.
        """
        msg = (
            f"{type(self).__name__} has discrete values, and no gradient goes through its draws. "
            "Take sample(), and weigh by log_prob() where a gradient is needed."
        )
        raise NotImplementedError(msg)


def check_integers(name: str, values: torch.Tensor, highest: int) -> None:
    """Refuse values that are no integers from 0 on.

    Args:
        name: What they are, for the message.
        values: Numbers of any dtype and shape.
        highest: The largest value there is.

    Raises:
        ValueError: If one is something else.

    Example:
        >>> check_integers("value", torch.tensor([0.0, 3.0]), highest=3)
    """
    if not values.is_floating_point():
        values = values.long()
    wrong = (values < 0) | (values > highest) | (values != values.round())
    if bool(wrong.any()):
        msg = f"{name}: expected integers from 0 to {highest}, got {float(values[wrong][0]):g}."
        raise ValueError(msg)
