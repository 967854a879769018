"""What the pairs ask of their constructor arguments and of their data, with errors that help."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ppl_gen.core.errors import SiteError, check_count

__all__ = [
    "NOT_FINITE",
    "check_categories",
    "check_classes",
    "check_condition",
    "check_events",
    "check_features",
    "check_positive",
    "check_target",
    "check_weight",
    "vector_shape",
]

NOT_FINITE = "Remove what is not finite, or fill it in."
"""What to do about NaN and infinity."""


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


def check_weight(name: str, value: Any) -> None:
    """Refuse the weight of a term that is not a finite number of at least 0.

    Args:
        name: Name of the constructor argument.
        value: What was given.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is negative, infinite or NaN.

    Example:
        >>> check_weight("alpha", 0.0)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{name}: expected a number of at least 0, got {value!r}. Give a plain float."
        raise TypeError(msg)
    if not (math.isfinite(value) and value >= 0):
        msg = f"{name}: expected a finite number of at least 0, got {value}."
        raise ValueError(msg)


def vector_shape(size: int | None) -> tuple[int, ...] | None:
    """Return the shape of a context that is a vector; None where there is none.

    Args:
        size: What was given as `context_size`.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is below 1.

    Example:
        >>> vector_shape(10)
        (10,)
    """
    if size is None:
        return None
    check_count("context_size", size)
    return (size,)


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


def check_condition(
    name: str, value: Any, size: int, length: int | None = None, source: str = ""
) -> None:
    """Refuse data that are neither classes nor vectors of a condition.

    Args:
        name: Name of the data argument.
        value: What was given; expected are integers `(n,)` from 0 to `size` - 1, or real numbers
            `(n, size)`, with `n >= 1`.
        size: Number of classes, or size of the vectors.
        length: Length of another argument that it goes along with; None if there is none.
        source: Name of that argument.

    Raises:
        SiteError: If it is anything else.

    Example:
        >>> check_condition("y", torch.tensor([0, 2]), size=3)
    """
    rows = "n" if length is None else str(length)
    expected = f"integers of shape ({rows},) or real numbers of shape ({rows}, {size})"
    if not isinstance(value, torch.Tensor):
        raise SiteError(
            name,
            expected=expected,
            got=type(value).__name__,
            remedy=f"Write torch.as_tensor({name}).",
        )
    got = f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if value.ndim == 0 or len(value) == 0 or (length is not None and len(value) != length):
        remedy = (
            f"Give '{source}' and '{name}' equally many rows." if source else "Give at least one."
        )
        raise SiteError(name, expected=expected, got=got, remedy=remedy)
    if value.is_floating_point() and value.ndim == 1:
        remedy = f"Write {name}.long() for classes, {name}[:, None] for one number each."
        raise SiteError(name, expected=expected, got=got, remedy=remedy)
    classes = not (value.is_floating_point() or value.dtype == torch.bool)
    if value.dtype == torch.bool and value.ndim == 1:
        remedy = f"Write {name}.long() for classes."
        raise SiteError(name, expected=expected, got=got, remedy=remedy)
    if classes and value.ndim > 1:
        remedy = f"Write {name}.float() for vectors of zeros and ones."
        if value.shape[1:].numel() == 1:
            remedy = f"Write {name}.flatten() for classes."
        raise SiteError(name, expected=expected, got=got, remedy=remedy)
    if not classes and (value.ndim != 2 or value.shape[1] != size or value.dtype == torch.bool):
        remedy = "Give vectors of that size as floats, or create the pair for another one."
        raise SiteError(name, expected=expected, got=got, remedy=remedy)
    if classes:
        check_classes(name, value, size)


def check_events(name: str, value: Any, event_shape: Sequence[int], make: str) -> None:
    """Refuse data that are not a tensor of observations of some shape.

    Args:
        name: Name of the data argument.
        value: What was given; expected is a tensor of shape `(n, *event_shape)`, with `n >= 1`.
        event_shape: Shape of an observation.
        make: How to ask for another shape, which follows.

    Raises:
        SiteError: If it is anything else.

    Example:
        >>> check_events("x", torch.zeros(5, 8, 8), (8, 8), "Create the pair with image_shape=")
    """
    event_shape = tuple(event_shape)
    shape = ", ".join(str(size) for size in event_shape)
    expected = f"a tensor of shape (n, {shape})"
    if not isinstance(value, torch.Tensor):
        remedy = f"Write torch.as_tensor({name})."
        raise SiteError(name, expected=expected, got=type(value).__name__, remedy=remedy)
    if value.is_complex():
        remedy = f"Take {name}.real, or {name}.abs()."
        raise SiteError(name, expected="real numbers", got=str(value.dtype), remedy=remedy)
    got = f"shape {tuple(value.shape)}"
    if value.ndim == 0 or len(value) == 0:
        raise SiteError(name, expected=expected, got=got, remedy="Give at least one.")
    axes = tuple(value.shape[1:])
    if axes == event_shape:
        return
    if value.shape == event_shape:
        remedy = f"Write {name}[None] for a single one."
    elif sorted(axes) == sorted(event_shape):
        last_first = (*axes[-1:], *axes[:-1]) == event_shape
        order = f"Write {name}.movedim(-1, 1)." if last_first else "Bring its axes into that order."
        remedy = f"Its axes come in another order. {order}"
    elif value[0].numel() == math.prod(event_shape):
        remedy = f"Write {name}.reshape(-1, {shape})."
    else:
        remedy = f"{make}{axes}."
    raise SiteError(name, expected=expected, got=got, remedy=remedy)


def check_categories(name: str, value: torch.Tensor, highest: int, remedy: str = "") -> None:
    """Refuse values that are no integers from 0 on.

    Args:
        name: Name of the data argument.
        value: Values of any shape and dtype.
        highest: The largest of the integers.
        remedy: What to do about it; "": shift and round, or take more categories.

    Raises:
        SiteError: If one is out of range, or between two integers.

    Example:
        >>> check_categories("x", torch.tensor([0.0, 3.0]), highest=3)
    """
    low, high = (float(v) for v in torch.aminmax(value))
    inside = low >= 0 and high <= highest
    if inside and not (value.is_floating_point() and bool((value != value.round()).any())):
        return
    got = f"values from {low:g} to {high:g}"
    if inside:
        got = f"{float(value[value != value.round()][0]):g}, between two of them"
    if not math.isfinite(low + high):
        remedy = NOT_FINITE
    elif not remedy:
        remedy = "Round and shift them to categories."
        if not inside and low >= 0 and high.is_integer():
            remedy = f"Make the network for {int(high) + 1} categories, or use fewer."
    raise SiteError(name, expected=f"integers from 0 to {highest}", got=got, remedy=remedy)


def check_classes(name: str, value: torch.Tensor, size: int) -> None:
    """Refuse classes out of range.

    Args:
        name: Name of the data argument.
        value: Integers, `(n,)`.
        size: Number of classes.

    Raises:
        SiteError: If one is negative or too large.

    Example:
        >>> check_classes("y", torch.tensor([0, 2]), size=3)
    """
    low, high = (int(v) for v in torch.aminmax(value))
    if low < 0 or high >= size:
        raise SiteError(
            name,
            expected=f"classes from 0 to {size - 1}",
            got=f"{low} to {high}",
            remedy="Number them from 0 on, or create the pair for more classes.",
        )
