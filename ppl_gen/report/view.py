"""What was found, as pictures and tables look it up: by parameter, and the worst first."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.judge.findings import Assessment
from ppl_gen.report.styles import Style, method_styles

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["View"]

Array: TypeAlias = NDArray[np.float64]


class View:
    """An assessment, looked up by parameter and by method.

    Args:
        assessment: What was found.
    """

    def __init__(self, assessment: Assessment) -> None:
        self.assessment = assessment
        measured = assessment.measurements
        self.judged = list(measured.methods.index)
        # One without usable draws is judged, and has no rows in the table.
        rows = len(measured.table) // max(len(measured.parameters), 1)
        self.methods = list(measured.table["method"].iloc[:rows])
        reference = assessment.reference
        self.reference = reference if reference in self.methods else None

    @property
    def others(self) -> list[str]:
        """The methods that are measured against the reference; all, where there is none."""
        return [method for method in self.methods if method != self.reference]

    @property
    def is_compared(self) -> bool:
        """Whether there is a reference, and anything to compare with it."""
        return self.reference is not None and bool(self.others)

    @property
    def anchor(self) -> str:
        """The method whose scale pictures have: the reference or, without one, the first."""
        return self.reference if self.reference is not None else self.methods[0]

    @cached_property
    def styles(self) -> dict[str, Style]:
        """How each method is drawn."""
        return method_styles(self.judged, self.reference)

    @property
    def legend(self) -> list[str]:
        """The methods that are drawn, the reference first."""
        return [method for method in self.styles if method in self.methods]

    def draws(self, parameter: str) -> dict[str, Array]:
        """Return the draws of a parameter by method, (chain, draw) each.

        Args:
            parameter: Its name.
        """
        return self.assessment.measurements.draws(parameter)

    def rows(self, parameter: str) -> dict[str, dict[str, Any]]:
        """Return the rows of a parameter in the table, by method.

        Args:
            parameter: Its name.
        """
        start = self._starts[parameter] * len(self.methods)
        table = self.assessment.measurements.table
        records = table.iloc[start : start + len(self.methods)].to_dict("records")
        return {record["method"]: record for record in records}

    def column(self, method: str, name: str) -> pd.Series[Any]:
        """Return a column of the table for one method, by parameter.

        Args:
            method: Name of the method.
            name: Name of the column.
        """
        table = self.assessment.measurements.table
        own = table.iloc[self.methods.index(method) :: len(self.methods)]
        return own.set_index("parameter")[name]

    @cached_property
    def worst_first(self) -> list[str]:
        """The parameters: those first in which any method is furthest from the reference.

        Without a reference, those first whose chains agree least.
        """
        table = self.assessment.measurements.table
        column = "severity" if self.is_compared else "r_hat"
        if not self.methods:
            return []
        by_method = table[column].to_numpy(dtype=float).reshape(-1, len(self.methods))
        worst = np.nan_to_num(by_method, nan=0.0, posinf=np.finfo(float).max).max(axis=1)
        names = list(self._starts)
        return [names[place] for place in np.argsort(-worst, kind="stable")]

    @cached_property
    def _starts(self) -> Mapping[str, int]:
        """Where each parameter is among the parameters of the table, which is grouped by them."""
        names = self.assessment.measurements.parameters
        return {name: index for index, name in enumerate(names)}
