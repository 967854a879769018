"""Data on its way into a pair: names, types, devices and values are looked at before any run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ppl_gen.core.closure import captured
from ppl_gen.core.errors import SiteError, did_you_mean
from ppl_gen.core.pair import guide_of, signature

__all__ = [
    "as_tensors",
    "bind",
    "check_captured",
    "lengths",
    "move",
    "num_bytes",
    "own_memory",
]


def bind(
    pair: nn.Module, data: Mapping[str, Any], others: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return data as the keywords of a pair's model, arrays turned into tensors.

    Args:
        pair: The pair.
        data: Values by the names of the model's arguments. Tensors, NumPy arrays and lists of
            numbers become tensors; everything else is passed on as it is.
        others: The model's other arguments, which were bound before.

    Returns:
        A new dictionary of `data`; tensors are shared with what was given, not copied.

    Raises:
        TypeError: If data is no mapping, or a value is of a type that no model can use.
        ValueError: If a name does not fit, is missing, or a value holds NaN or infinity.
    """
    if not isinstance(data, Mapping):
        msg = (
            f"expected data as a dictionary by the model's arguments, got {type(data).__name__}. "
            f"Write {{{', '.join(f'{n!r}: {n}' for n in signature(pair).parameters)}}}."
        )
        raise TypeError(msg)
    others = others or {}
    _check_names(pair, {**others, **data})
    bound = as_tensors(data)
    validate = getattr(pair, "validate", None)
    if validate is not None:
        validate(**others, **bound)
    return bound


def as_tensors(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return data with arrays turned into tensors, as `bind` does, whatever a model takes.

    Args:
        data: Values by name.

    Raises:
        TypeError: If a value is of a type that no model can use.
        ValueError: If a value is empty, or holds NaN or infinity.
    """
    tensors = {name: _as_tensor(name, value) for name, value in data.items()}
    for name, value in tensors.items():
        if isinstance(value, torch.Tensor):
            _check_values(name, value)
    return tensors


def move(
    data: Mapping[str, Any],
    dtype: torch.dtype | None,
    device: torch.device,
    *,
    non_blocking: bool = False,
) -> dict[str, Any]:
    """Return data on a device, its floating-point tensors in a dtype (None leaves theirs).

    Tensors inside of dictionaries, lists and tuples are among them.

    Args:
        data: The data.
        dtype: The dtype.
        device: The device.
        non_blocking: Whether to go on before pinned memory has arrived on a GPU.
    """

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, dtype if value.is_floating_point() else None, non_blocking)
        if isinstance(value, dict):
            return {key: moved(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(moved(item) for item in value)
        return value

    return {name: moved(value) for name, value in data.items()}


def own_memory(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return data with each tensor that is a part of a larger one copied out of it."""
    return {
        name: value.clone()
        if isinstance(value, torch.Tensor)
        and value.untyped_storage().nbytes() > value.numel() * value.element_size()
        else value
        for name, value in data.items()
    }


def lengths(data: Mapping[str, Any]) -> dict[str, int]:
    """Return the length of the first axis of every tensor in data that has one."""
    return {
        name: len(value)
        for name, value in data.items()
        if isinstance(value, torch.Tensor) and value.ndim > 0
    }


def num_bytes(data: Mapping[str, Any]) -> int:
    """Return the memory that the tensors in data take."""
    tensors = [value for value in data.values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() * value.element_size() for value in tensors)


def check_captured(pair: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse tensors that a pair's functions close over in another dtype or on another device.

    They can be neither cast nor moved, and PyTorch would mix the two silently.

    Args:
        pair: The pair, cast already.
        dtype: The dtype that the run computes in.
        device: The device that it runs on.

    Raises:
        SiteError: Naming the variable.
    """
    guide = guide_of(pair)
    for function in [pair.model] if guide is None else [pair.model, guide]:
        if not callable(function):
            continue
        for name, value in captured(function):
            if not isinstance(value, torch.Tensor):
                continue
            # A number in a 0-dimensional tensor follows the dtype of what it is combined with.
            wrong_dtype = value.is_floating_point() and value.ndim > 0 and value.dtype != dtype
            if wrong_dtype or value.device.type != device.type:
                raise SiteError(
                    name,
                    what="variable",
                    expected=f"a tensor of {dtype} on {device.type}",
                    got=f"{value.dtype} on {value.device.type}, closed over by the model or guide",
                    remedy="Pass it in as data, which is cast and moved, or run with its dtype.",
                )


def _check_names(pair: nn.Module, data: Mapping[str, Any]) -> None:
    parameters = signature(pair).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for name in data:
        if name not in parameters:
            msg = (
                f"data has '{name}', which the model does not take: its arguments are "
                f"{_names_text(pair)}.{did_you_mean(str(name), parameters)}"
            )
            raise ValueError(msg)
    for name, parameter in parameters.items():
        positional = parameter.kind is inspect.Parameter.VAR_POSITIONAL
        if parameter.default is inspect.Parameter.empty and name not in data and not positional:
            msg = f"data lacks '{name}': the model's arguments are {_names_text(pair)}."
            raise ValueError(msg)


def _names_text(pair: nn.Module) -> str:
    return ", ".join(f"'{name}'" for name in signature(pair).parameters)


def _as_tensor(name: str, value: Any) -> Any:
    # Columns of data frames and the arrays of other libraries.
    if hasattr(value, "__array__") and not isinstance(
        value, np.ndarray | torch.Tensor | np.generic
    ):
        value = np.asarray(value)
    if isinstance(value, list) and any(isinstance(v, str) for v in value):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        if value.dtype == object or value.dtype.kind in "USM":
            msg = f"data '{name}': expected numbers, got an array of {value.dtype}. Encode it."
            raise TypeError(msg)
        # PyTorch knows neither negative strides nor other byte orders.
        native = value.astype(value.dtype.newbyteorder("="), copy=False)
        return (
            torch.tensor(native)
            if not native.flags.writeable
            else torch.from_numpy(np.ascontiguousarray(native))
        )
    if isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
        return torch.tensor(value)
    if isinstance(value, torch.Tensor) and (value.is_complex() or value.device.type == "meta"):
        msg = (
            f"data '{name}': expected real numbers in memory, got {value.dtype} on {value.device}."
        )
        raise TypeError(msg)
    return value.detach() if isinstance(value, torch.Tensor) else value


def _check_values(name: str, value: torch.Tensor) -> None:
    if value.numel() == 0:
        raise SiteError(
            name,
            what="data",
            expected="at least one value",
            got=f"none: its shape is {tuple(value.shape)}",
            remedy="Check how it was selected.",
        )
    # The sum is NaN or infinite if any element is, and needs no temporary of the data's size.
    if not value.is_floating_point() or bool(value.sum().isfinite()):
        return
    bad = ~torch.isfinite(value)
    count = int(bad.sum())
    if count:
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise SiteError(
            name,
            what="data",
            expected="finite values",
            got=f"{count} values that are NaN or infinite, the first at index {first}",
            remedy="Remove these rows, or fill them in and mask them with pyro.poutine.mask.",
        )
