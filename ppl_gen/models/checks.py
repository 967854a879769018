"""What the pairs ask of their constructor arguments and of their data, with errors that help."""

from __future__ import annotations

import math
from typing import Any

import torch

from ppl_gen.core.errors import SiteError

__all__ = ["check_features", "check_positive", "check_size", "check_target"]


def check_size(name: str, value: Any) -> None:
    """Refuse a number of things that is not a positive integer.

    Args:
        name: Name of the constructor argument.
        value: What was given.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is smaller than 1.

    Example:
        >>> check_size("num_features", 3)
    """
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name}: expected an integer of at least 1, got {value!r}. Give a plain int."
        raise TypeError(msg)
    if value < 1:
        msg = f"{name}: expected an integer of at least 1, got {value}. Give a positive number."
        raise ValueError(msg)


def check_positive(name: str, value: Any) -> None:
    """Refuse a scale, rate or concentration that is not a positive finite number.

    Args:
        name: Name of the constructor argument.
        value: What was given.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is zero, negative, infinite or NaN.

    Example:
        >>> check_positive("prior_scale", 2.5)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{name}: expected a positive number, got {value!r}. Give a plain float."
        raise TypeError(msg)
    if not (math.isfinite(value) and value > 0):
        msg = f"{name}: expected a positive finite number, got {value}. Give a value above zero."
        raise ValueError(msg)


def check_features(name: str, value: Any, num_features: int) -> None:
    """Refuse data that are not a floating-point matrix with one column for each feature.

    Args:
        name: Name of the data argument.
        value: What was given; expected is a tensor of shape `(n, num_features)` with `n >= 1`.
        num_features: Number of features that the pair was made for.

    Raises:
        SiteError: If it is anything else.

    Example:
        >>> check_features("x", torch.zeros(5, 2), num_features=2)
    """
    expected = f"a tensor of shape (n, {num_features})"
    if not isinstance(value, torch.Tensor):
        raise SiteError(
            name,
            expected=expected,
            got=type(value).__name__,
            remedy="Give a tensor or a NumPy array.",
        )
    got = f"shape {tuple(value.shape)}"
    if value.ndim != 2:
        remedy = (
            f"Write {name}[:, None] for a single feature."
            if value.ndim == 1 and num_features == 1
            else "Give one row for each observation and one column for each feature."
        )
        raise SiteError(name, expected=expected, got=got, remedy=remedy)
    if value.shape[1] != num_features:
        raise SiteError(
            name,
            expected=expected,
            got=got,
            remedy=f"Create the pair with num_features={value.shape[1]}, or drop columns.",
        )
    if len(value) == 0:
        raise SiteError(name, expected=expected, got=got, remedy="Give at least one row.")
    if not value.is_floating_point():
        raise SiteError(
            name,
            expected="floating-point numbers",
            got=str(value.dtype),
            remedy=f"Write {name}.float().",
        )


def check_target(name: str, value: Any, length: int, source: str) -> None:
    """Refuse data that are not a vector with one number for each row of another argument.

    Args:
        name: Name of the data argument.
        value: What was given; expected is a tensor of shape `(length,)`.
        length: Length of the other argument.
        source: Name of the other argument.

    Raises:
        SiteError: If it is anything else.

    Example:
        >>> check_target("y", torch.zeros(5), length=5, source="x")
    """
    expected = f"a tensor of shape ({length},), one value for each row of '{source}'"
    if not isinstance(value, torch.Tensor):
        raise SiteError(
            name,
            expected=expected,
            got=type(value).__name__,
            remedy="Give a tensor or a NumPy array.",
        )
    if value.shape != (length,):
        remedy = (
            f"Write {name}.squeeze(-1)."
            if value.shape == (length, 1)
            else f"Give '{source}' and '{name}' equally many rows."
        )
        raise SiteError(name, expected=expected, got=f"shape {tuple(value.shape)}", remedy=remedy)
