"""Options of the form `key=value`, whose values are read as Python's literals."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

__all__ = ["assignments", "split_assignment", "value_of"]

_WORDS = {"true": True, "false": False, "none": None}


def assignments(texts: Sequence[str], option: str) -> dict[str, Any]:
    """Return the values that a repeated option gives, by key.

    Args:
        texts: What was given, each `key=value`.
        option: The option, for messages.

    Raises:
        ValueError: If one has no "=" or no name before it, or a key is given twice.

    Example:
        >>> assignments(["draws=500", "guide=full_rank"], "--option")
        {'draws': 500, 'guide': 'full_rank'}
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, value = split_assignment(text, option)
        if key in found:
            raise ValueError(f"{option} gives '{key}' twice: give it once.")
        found[key] = value_of(value)
    return found


def split_assignment(text: str, option: str) -> tuple[str, str]:
    """Return key and value of `key=value`; a key may be one of a part, `part.key`.

    Raises:
        ValueError: If there is no "=", or no name before it.
    """
    key, equals, value = text.partition("=")
    if not equals or not all(part.isidentifier() for part in key.split(".")):
        raise ValueError(f"{option}: expected NAME=VALUE, got {text!r}.")
    return key, value


def value_of(text: str) -> Any:
    """Return the value that a text stands for; one that is no literal is itself.

    Numbers, tuples, lists, dictionaries and quoted text are written as in Python; true, false and
    none in any case.

    Example:
        >>> value_of("1e-3"), value_of("(28, 28)"), value_of("true"), value_of("mean_field")
        (0.001, (28, 28), True, 'mean_field')
    """
    word = text.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text
