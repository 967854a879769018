r"""Errors of a posterior's marginals against a reference's, and what chance alone would show.

The floor of an error is a bound that the Monte Carlo errors of both sides stay below for all
scalars and kinds of error together, with a probability of 95 %. Variances add, and so the error
:math:`e` net of its floor :math:`f` is :math:`\sqrt{e^2 - f^2}`, and 0 below the floor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.diagnostics.distances import marginal_errors, simultaneous_z
from ppl_gen.diagnostics.marginals import Marginals
from ppl_gen.judge.findings import Grade, Thresholds

__all__ = ["KINDS", "Errors", "compare", "grade_of", "limits", "net_of"]

Array: TypeAlias = NDArray[np.float64]

# One row for each of these in the arrays of `Errors`.
KINDS = ("mean", "sd", "q5", "q50", "q95")
# A relative error of the sd moves the 5 % and 95 % quantiles of a normal so many times as far.
_TAIL = NormalDist().inv_cdf(0.95)
# What differs by less, relatively, is rounding, that of float32 for one.
_SAME = 1e-5
_CODES = (Grade.GREEN, Grade.AMBER, Grade.RED, Grade.BLANK)


@dataclass(frozen=True, eq=False)
class Errors:
    """Errors of scalars, one row for each of `KINDS`.

    Those of mean and quantiles are in units of the reference, those of the sd relative to it.

    Args:
        error: The errors, (kind, scalar).
        floor: What chance alone would show, (kind, scalar).
        net: The errors net of their floors, with their signs, (kind, scalar).
        code: Grades: 0 green, 1 amber, 2 red, 3 blank, (kind, scalar).
        unit: The reference's unit, (scalar,): its sd or, where `by_quantiles`, that of the normal
            with its 5 % and 95 % quantiles. NaN where the reference does not vary.
        by_quantiles: Where the moments of the reference cannot be relied on, (scalar,).
        limits: Where green ends and where red begins, by kind, (kind, 2).
    """

    error: Array
    floor: Array
    net: Array
    code: NDArray[np.int8]
    unit: Array
    by_quantiles: NDArray[np.bool_]
    limits: Array

    @property
    def severity(self) -> Array:
        """How bad each scalar is, (scalar,): its worst net error by where red begins for it."""
        relative = np.where(self.code == 3, 0.0, np.abs(self.net) / self.limits[:, 1:])
        return np.asarray(np.nan_to_num(relative, posinf=np.inf).max(axis=0), dtype=np.float64)

    @property
    def blind(self) -> NDArray[np.bool_]:
        """Which floors are too high to tell red from green, (kind, scalar)."""
        return np.asarray((self.code != 3) & (self.floor > self.limits[:, 1:]))

    def grades(self, kind: str) -> list[str]:
        """Return the grades of one kind in words, one for each scalar."""
        return [_CODES[code].value for code in self.code[KINDS.index(kind)]]

    def worst_of_quantiles(self) -> list[str]:
        """Return the worst grade of the quantiles in words, one for each scalar."""
        codes = np.where(self.code[2:] == 3, -1, self.code[2:]).max(axis=0)
        return [_CODES[code].value for code in codes]

    def only(self, kinds: tuple[str, ...]) -> Errors:
        """Return the same with all other kinds blank."""
        others = [row for row, kind in enumerate(KINDS) if kind not in kinds]
        code = self.code.copy()
        code[others] = 3
        return replace(self, code=code)

    def without(self, scalars: NDArray[np.bool_]) -> Errors:
        """Return the same with some scalars blank."""
        return replace(self, code=np.where(scalars, np.int8(3), self.code))


def limits(thresholds: Thresholds) -> Array:
    """Return where green ends and where red begins, by kind, (kind, 2)."""
    mean = (thresholds.mean_green, thresholds.mean_red)
    sd = (thresholds.sd_green, thresholds.sd_red)
    tail = tuple(max(m, _TAIL * s) for m, s in zip(mean, sd, strict=True))
    return np.array([mean, sd, tail, mean, tail])


def net_of(error: Array, floor: Array) -> Array:
    """Return errors net of their floors, with their signs."""
    with np.errstate(invalid="ignore"):
        squares = np.maximum(np.square(error) - np.square(floor), 0.0)
    net = np.sign(error) * np.sqrt(squares)
    return np.asarray(np.where(np.isinf(error) & np.isfinite(floor), error, net))


def grade_of(net: float, green: float, red: float) -> Grade:
    """Return the grade of one error net of its floor."""
    if np.isnan(net):
        return Grade.BLANK
    return Grade.GREEN if abs(net) <= green else Grade.AMBER if abs(net) <= red else Grade.RED


def compare(found: Marginals, reference: Marginals, thresholds: Thresholds) -> Errors:
    """Return the errors of an approximation against a reference, scalar by scalar.

    Where the moments of the reference cannot be relied on, so heavy are its tails, those of mean
    and sd are blank, and those of the quantiles are in a unit that comes from quantiles. What does
    not vary in the reference is right where it is the same here, and infinitely wrong elsewhere.

    Args:
        found: The marginals of the approximation.
        reference: Those of the reference, of the same scalars.
        thresholds: Where green ends and red begins.
    """
    errors = marginal_errors(found, reference)
    bound = simultaneous_z(max(reference.mean.size, 1) * len(KINDS))
    error = np.stack([errors.mean.value, errors.sd.value, *errors.quantiles.value])
    floor = np.stack(
        [errors.mean.floor(bound), errors.sd.floor(bound), *errors.quantiles.floor(bound)]
    )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # On the logarithmic scale chance is about the same to both sides.
        net = net_of(np.vstack([error[:1], np.log1p(error[1:2]), error[2:]]), floor)
        net[1] = np.expm1(net[1])
        floor[1] = np.expm1(floor[1])
    wrong = _wrong_constants(found, reference)
    error[0, wrong] = net[0, wrong] = np.copysign(np.inf, (found.mean - reference.mean)[wrong])
    floor[0, wrong] = 0.0
    bounds = limits(thresholds)
    size = np.abs(net)
    code = np.where(size <= bounds[:, :1], 0, np.where(size <= bounds[:, 1:], 1, 2)).astype(np.int8)
    code[np.isnan(net)] = 3
    unit = np.where(reference.unit > 0.0, reference.unit, np.nan)
    return Errors(error, floor, net, code, unit, reference.heavy_tailed, bounds)


def _wrong_constants(found: Marginals, reference: Marginals) -> NDArray[np.bool_]:
    """Return which scalars do not vary in the reference, and are not the same here, (scalar,)."""
    constant = ~(reference.unit > 0.0)
    if constant.all():
        return np.zeros_like(constant)  # a point, which is no distribution
    size = np.maximum(np.abs(found.mean), np.abs(reference.mean))
    apart = np.abs(found.mean - reference.mean) > _SAME * size
    return np.asarray(constant & (apart | (found.sd > _SAME * size)))
