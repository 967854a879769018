"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["NOT_APPLICABLE", "count", "in_unit", "listed", "signed", "significant"]

NOT_APPLICABLE = "-"


def significant(value: Any, form: str = "{:.3g}") -> str:
    """Write a number in a format, or say that there is none.

    Args:
        value: The number.
        form: How, as for `str.format`.

    Example:
        >>> significant(1.234, "{:.2f}"), significant(float("nan"))
        ('1.23', '-')
    """
    number = float(value)
    if math.isnan(number):
        return NOT_APPLICABLE
    # An R-hat or a ratio of a million has no use for two decimals.
    return form.format(number) if abs(number) < 1e5 or "," in form else f"{number:.3g}"


def in_unit(value: Any, unit: Any) -> str:
    """Write a value with as many decimals as give `unit` three significant digits.

    Args:
        value: The number.
        unit: What sets the number of decimals, such as a standard deviation.

    Example:
        >>> in_unit(123.456, 1.2345)
        '123.46'
    """
    number, scale = float(value), float(unit)
    if not (math.isfinite(scale) and scale > 0.0):
        return f"{number:.4g}"
    decimals = max(0, 2 - math.floor(math.log10(scale)))
    if decimals > 5 or abs(number) >= 1e7:
        return f"{number:.4g}"
    return f"{number:z.{decimals}f}"


def signed(value: float) -> str:
    """Write a number with two decimals and its sign.

    Args:
        value: The number.

    Example:
        >>> signed(0.5), signed(-0.001)
        ('+0.50', '+0.00')
    """
    return f"{value:+z.2f}".replace("-", "\N{MINUS SIGN}")


def count(number: int, noun: str) -> str:
    """Write how many there are of something.

    Args:
        number: How many.
        noun: What, in the singular.

    Example:
        >>> count(1, "chain"), count(2000, "step")
        ('1 chain', '2,000 steps')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(words: Sequence[str], conjunction: str = "and") -> str:
    """Join words as a sentence lists them.

    Args:
        words: The words.
        conjunction: What stands before the last.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {conjunction} {words[-1]}"
