"""What was found as JSON data: dictionaries, lists, text and finite numbers."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from ppl_gen.judge.findings import Assessment, PredictiveFit

__all__ = ["assessment_data", "plain"]


def plain(value: Any) -> Any:
    """Return a value as JSON data; NaN and infinity are None.

    Args:
        value: Numbers, text, enums, arrays, dataclasses, mappings and sequences of these; anything
            else becomes text.

    Example:
        >>> plain({"a": (1, float("nan")), "b": np.array([0.5])})
        {'a': [1, None], 'b': [0.5]}
    """
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)


def assessment_data(found: Assessment) -> dict[str, Any]:
    """Return an assessment as JSON data.

    The table of parameters is given by columns, its numbers with six significant digits: there may
    be many.

    Args:
        found: The assessment.
    """
    measured = found.measurements
    return {
        "reference": found.reference,
        "verdicts": {name: j.verdict.value for name, j in found.judgements.items()},
        "judgements": plain(found.judgements),
        "gates": plain(found.gates),
        "methods": _rows(measured.methods.rename_axis("posterior").reset_index()),
        "parameters": _columns(measured.table),
        "heavy_tailed": list(measured.heavy_tailed),
        "left_out": dict(measured.left_out),
        "notes": list(measured.notes),
        "distances": _rows(found.distances.rename_axis("posterior").reset_index()),
        "weights": plain(found.weights),
        "evidence": plain(found.evidence),
        "fits": {name: _without_data(fit) for name, fit in found.fits.items()},
        "warnings": plain(found.warnings),
        "not_checked": list(found.not_checked),
        "thresholds": plain(found.thresholds),
        "provenance": plain(found.provenance),
    }


def _columns(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Return a long table by column, numbers with six digits: a third of the size of its rows."""
    return {str(name): [_short(value) for value in table[name].tolist()] for name in table}


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _without_data(fit: PredictiveFit) -> dict[str, Any]:
    """Return a fit without data and replicated data, which no finding is and which are large."""
    return {
        name: value for name, value in plain(fit).items() if name not in ("observed", "replicated")
    }


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = plain(table.to_dict("records"))
    return rows
