"""Errors that name the site, say what was expected and what was got, and give the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppl_gen.core.posterior import Posterior

__all__ = [
    "LoadError",
    "NoLatentsError",
    "NonFiniteLossError",
    "SiteError",
    "check_count",
    "check_counts",
    "did_you_mean",
    "unknown",
]


class SiteError(ValueError):
    """Something is wrong with one site, argument or parameter of a pair.

    Args:
        site: Name of the site, argument or parameter.
        expected: What would have been right.
        got: What was found.
        remedy: What to do about it.
        what: What the name stands for: "site", "data", "parameter".

    Example:
        >>> print(SiteError("z", expected="shape (3,)", got="shape (4,)", remedy="Give 3 values."))
        site 'z': expected shape (3,), got shape (4,). Give 3 values.
    """

    def __init__(
        self, site: str, *, expected: str, got: str, remedy: str, what: str = "site"
    ) -> None:
        super().__init__(f"{what} '{site}': expected {expected}, got {got}. {remedy}")
        self.site = site
        self.expected = expected
        self.got = got
        self.remedy = remedy


class LoadError(ValueError):
    """A saved posterior cannot be read: truncated, changed, or of another version."""


class NoLatentsError(ValueError):
    """Latents are to be drawn of a pair that has none."""


class NonFiniteLossError(ArithmeticError):
    """The objective of a fit became NaN or infinite, and the fit was stopped.

    Args:
        message: Names the batch and the parameter or site.
        posterior: The posterior of the last good state, or None where there is none.
    """

    def __init__(self, message: str, posterior: Posterior | None = None) -> None:
        super().__init__(message)
        self.posterior = posterior


def check_count(name: str, value: object) -> None:
    """Refuse an option that is not a whole number of at least 1.

    Args:
        name: The option.
        value: What was given.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is below 1.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"{name}: expected a whole number, got {value!r}. Give a plain int."
        raise TypeError(msg)
    if value < 1:
        msg = f"{name}: expected at least 1, got {value}."
        raise ValueError(msg)


def check_counts(name: str, values: Any, least: int = 1) -> tuple[int, ...]:
    """Return whole numbers of at least 1 as a tuple.

    Args:
        name: The option.
        values: What was given.
        least: How many there have to be at least.

    Raises:
        TypeError: If it is no sequence of whole numbers.
        ValueError: If there are fewer, or one of them is below 1.

    Example:
        >>> check_counts("hidden_sizes", [400, 200])
        (400, 200)
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        plain = isinstance(values, int | float | str)
        got = repr(values) if plain else type(values).__name__
        msg = f"{name}: expected a tuple of whole numbers, got {got}."
        raise TypeError(f"{msg} Write ({values},)." if isinstance(values, int) else msg)
    for index, value in enumerate(values):
        check_count(f"{name}[{index}]", value)
    if len(values) < least:
        msg = f"{name}: expected at least {least} number, got {values!r}."
        raise ValueError(msg)
    return tuple(values)


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return a hint with the names nearest to a wrong one, or an empty string.

    Args:
        name: The name that was given.
        options: The names that exist.

    Returns:
        `" Did you mean 'nuts'?"`, or `""` where nothing is near.

    Example:
        >>> did_you_mean("nutz", ["nuts", "hmc"])
        " Did you mean 'nuts'?"
    """
    near = difflib.get_close_matches(name, list(options), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""


def unknown(what: str, name: object, options: Iterable[str]) -> ValueError:
    """Return the error for a name that is not among the options.

    Args:
        what: What the name stands for, such as "guide".
        name: The name that was given.
        options: The names that exist.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> print(unknown("guide", "meanfield", ["mean_field", "full_rank"]))
        unknown guide 'meanfield': expected one of mean_field, full_rank. Did you mean 'mean_field'?
    """
    options = list(options)
    hint = did_you_mean(str(name), options)
    return ValueError(f"unknown {what} {name!r}: expected one of {', '.join(options)}.{hint}")
