"""What is wrong with a quantity, in words: its name, the size of the error and the direction."""

from __future__ import annotations

import math

__all__ = ["of_correlation", "of_error", "percent", "times"]

_QUANTILES = {"q5": "5 % quantile", "q50": "median", "q95": "95 % quantile"}
# A standard deviation that is larger by more is told as a multiple.
_MULTIPLE = 3.0


def of_error(kind: str, name: str, value: float, unit: str = "sd") -> str:
    """Return an error as a clause.

    Args:
        kind: "mean", "sd", "q5", "q50" or "q95".
        name: The parameter.
        value: The error, in units of the reference; of an sd relative to the reference's.
        unit: The name of the unit.

    Example:
        >>> of_error("sd", "tau", -0.38), of_error("mean", "mu", 0.761)
        ('the sd of tau is 38 % too small', 'the mean of mu is 0.76 sd too large')
    """
    if math.isinf(value):
        return f"the value of {name} is one in all draws of the reference, and another here"
    way = "large" if value > 0 else "small"
    if kind != "sd":
        what = _QUANTILES.get(kind, kind)
        return f"the {what} of {name} is {number(abs(value))} {unit} too {way}"
    if 1.0 + value > _MULTIPLE:
        return f"the sd of {name} is {times(1.0 + value)} too large"
    return f"the sd of {name} is {percent(abs(value))} too {way}"


def of_correlation(first: str, second: str, here: float, there: float, reference: str) -> str:
    """Return two correlations that differ as a clause.

    Example:
        >>> of_correlation("a", "b", 0.021, -0.952, "nuts")
        'the correlation of a and b is 0.02, and -0.95 in nuts'
    """
    digits = 2 if max(abs(here), abs(there)) < 0.995 else 5
    return (
        f"the correlation of {first} and {second} is {here:.{digits}f}, and {there:.{digits}f} in "
        f"{reference}"
    )


def number(value: float) -> str:
    """Return a size with two significant digits.

    Example:
        >>> number(0.0412), number(0.5), number(12.3), number(1234.0)
        ('0.041', '0.5', '12', '1,200')
    """
    if not math.isfinite(value) or value == 0.0:
        return f"{value:g}"
    if value < 100:
        return f"{float(f'{value:.1e}'):g}"
    return f"{float(f'{value:.1e}'):,.0f}" if value < 1e6 else f"{value:.1e}"


def percent(value: float) -> str:
    """Return a share in percent.

    Example:
        >>> percent(0.381), percent(0.004), percent(0.99553)
        ('38 %', '0.4 %', '99.6 %')
    """
    share = 100 * value
    return f"{share:.1f} %" if share < 1 or 99 <= share < 100 else f"{share:.0f} %"


def times(value: float) -> str:
    """Return a factor.

    Example:
        >>> times(3.84), times(120.0)
        ('3.8 times', '120 times')
    """
    return f"{number(value)} times"
