"""The method that a command runs, from its name and options in text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppl_gen.core import Method

__all__ = ["find_method", "method_names"]

_DTYPES = ("float64", "float32", "bfloat16", "float16")
# What is written in Python alone: functions, and objects of classes.
_NO_TEXT = ("callback", "objective", "optimizer", "scheduler")


def method_names() -> dict[str, type[Any]]:
    """Return the classes of the methods by their names in small letters."""
    from ppl_gen import inference

    classes = (getattr(inference, name) for name in inference.__all__)
    return {c.__name__.lower(): c for c in classes if isinstance(c, type) and hasattr(c, "run")}


def find_method(name: str, options: Mapping[str, Any]) -> Method:
    """Return a method with its options.

    Args:
        name: The method in any case, such as "nuts", with or without underscores.
        options: Options by name, as text or literals; `dtype` as "float32".

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If method or option is unknown, or a value out of range.

    Example:
        >>> find_method("nuts", {"draws": 500}).draws
        500
    """
    from ppl_gen.core.errors import unknown

    methods = method_names()
    key = name.lower().replace("_", "").replace("-", "")
    if key not in methods:
        raise unknown("method", name, methods)
    found = methods[key]
    known = [field.name for field in dataclasses.fields(found)]
    values = {}
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of {key}", option, known)
        if option in _NO_TEXT and value is not None:
            raise ValueError(
                f"option '{option}' of {key} cannot be written as text. Fit in Python: "
                f"pg.fit(pair, data, {found.__name__}({option}=...))."
            )
        values[option] = _dtype(value) if option in ("dtype", "autocast") else value
    method: Method = found(**values)
    return method


def _dtype(value: Any) -> Any:
    from ppl_gen.core.errors import unknown

    if not isinstance(value, str):
        return value
    name = value.removeprefix("torch.")
    if name not in _DTYPES:
        raise unknown("dtype", value, _DTYPES)
    import torch

    return getattr(torch, name)
