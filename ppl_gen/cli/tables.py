"""Columns of numbers from csv files."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Table"]

_MISSING = {"", "na", "n/a", "null", "none", ".", "?"}


class Table(Mapping[str, Any]):
    """The columns of a csv file by the names in its first line; each is read when asked for.

    Cells are separated by commas, semicolons or tabs, whichever the first line has most of. A
    column, (row,), of whole numbers is one of integers. To ask for a column of which a value is
    missing or no number is a `ValueError` that names line and column.

    Args:
        path: The file, in UTF-8.

    Raises:
        ValueError: If there is no line of names, or a line is too short or too long.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._names, self._lines, self._rows = _cells(path)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} cannot be read as UTF-8 text: {error}.") from error
        except csv.Error as error:
            raise ValueError(f"{path} cannot be read as csv: {error}.") from error
        if not self._rows:
            raise ValueError(f"{path}: expected rows below the names, got none.")

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the columns."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self._names)

    def __getitem__(self, name: str) -> Any:
        """Return a column as an array, (row,)."""
        if name not in self._names:
            raise KeyError(name)
        index = self._names.index(name)
        return _column(self._path, name, [row[index] for row in self._rows], self._lines)


def _cells(path: Path) -> tuple[list[str], list[int], list[list[str]]]:
    """Return the names, and number and cells of each line below them that is not empty."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        separator = max(",;\t", key=first.count)
        file.seek(0)
        reader = csv.reader(file, delimiter=separator, strict=True)
        names = [name.strip() for name in next(reader, [])]
        _check_names(path, names)
        lines, rows = [], []
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise ValueError(
                    f"{path}, line {reader.line_num}: expected {len(names)} cells, as there are "
                    f"names, got {len(row)}."
                )
            lines.append(reader.line_num)
            rows.append(row)
    return names, lines, rows


def _check_names(path: Path, names: Sequence[str]) -> None:
    if not names:
        raise ValueError(f"{path}: expected a line of names, got an empty file.")
    if any(_number(name) is not None for name in names):
        raise ValueError(
            f"{path}, line 1: expected the names of the columns, got numbers. Add a line of names."
        )
    if "" in names:
        raise ValueError(
            f"{path}, line 1: column {names.index('') + 1} has no name. Name it, or leave row "
            "names out where the file is written (pandas: index=False, R: row.names=FALSE)."
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}, line 1: two columns have the name '{twice}'. Rename one.")


def _column(path: Path, name: str, cells: list[str], lines: Sequence[int]) -> Any:
    import numpy as np

    for kind in (np.int64, np.float64):
        try:
            found = np.array(cells).astype(kind)
        except (ValueError, OverflowError):
            continue
        if not np.isnan(found).any():
            return found
    for cell, line in zip(cells, lines, strict=True):
        where = f"{path}, line {line}, column '{name}'"
        number = _number(cell)
        if cell.strip().lower() in _MISSING or (number is not None and math.isnan(number)):
            raise ValueError(f"{where}: the value is missing. Remove the row, or fill it in.")
        if number is None:
            raise ValueError(
                f"{where}: expected a number, got {cell!r}. Encode it, or take other columns by "
                "--columns."
            )
    raise AssertionError(cells)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
