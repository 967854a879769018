"""What distributions of ours over discrete values refuse, in the same words."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from pyro.distributions import TorchDistribution

__all__ = ["DiscreteDistribution", "check_integers", "check_parameter", "check_tensor"]


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


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor of real numbers: arrays and lists are made one by the user.

    So it is with all functions and methods; data of `ppl_gen.fit` alone may be arrays.

    Args:
        name: What it is, for the message.
        value: What was given.

    Raises:
        TypeError: If it is anything else.

    Example:
        >>> check_tensor("given", torch.zeros(3))
    """
    if not isinstance(value, torch.Tensor):
        msg = f"{name}: expected a tensor, got {type(value).__name__}. Write torch.as_tensor(...)."
        raise TypeError(msg)
    if value.is_complex():
        msg = f"{name}: expected real numbers, got {value.dtype}. Take their .real, or .abs()."
        raise TypeError(msg)


def check_parameter(name: str, value: object) -> None:
    """Refuse a parameter of a distribution that is no tensor in a floating-point dtype.

    Args:
        name: What it is, for the message.
        value: What was given.

    Raises:
        TypeError: If it is anything else.

    Example:
        >>> check_parameter("loc", torch.zeros(3))
    """
    check_tensor(name, value)
    if isinstance(value, torch.Tensor) and not value.is_floating_point():
        msg = f"{name}: expected real numbers, got {value.dtype}. Write {name}.float()."
        raise TypeError(msg)


def check_integers(name: str, values: torch.Tensor, highest: int) -> None:
    """Refuse values that are no integers from 0 on.

    Args:
        name: What they are, for the message.
        values: Numbers of any dtype and shape.
        highest: The largest value there is.

    Raises:
        TypeError: If they are no tensor.
        ValueError: If one is something else.

    Example:
        >>> check_integers("value", torch.tensor([0.0, 3.0]), highest=3)
    """
    check_tensor(name, values)
    if not values.is_floating_point():
        values = values.long()
    wrong = (values < 0) | (values > highest) | (values != values.round())
    if bool(wrong.any()):
        msg = f"{name}: expected integers from 0 to {highest}, got {float(values[wrong][0]):g}."
        raise ValueError(msg)
