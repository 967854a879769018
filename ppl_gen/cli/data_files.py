"""Data from files: npz, npy, csv, JSON and NetCDF, by the names of a model's arguments."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppl_gen.cli.assignments import assignments, split_assignment
from ppl_gen.cli.tables import Table

__all__ = ["read_data"]


def read_data(
    files: Sequence[str], constants: Sequence[str] = (), columns: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the data that files and options give, by name.

    Args:
        files: Files, each written `FILE`, or `NAME=FILE` for a single array in a .npy file, which
            otherwise has the name of its file.
        constants: Further values, each `NAME=VALUE`.
        columns: Which columns of csv files make which data, each `NAME=COLUMN` for a vector or
            `NAME=COLUMN,COLUMN` for a matrix, (row, column); a comma at the end makes a matrix of
            one column. Where there are any, no other column is taken.

    Returns:
        Arrays, numbers and texts.

    Raises:
        FileNotFoundError: If a file is missing.
        ImportError: If what reads it is not installed; it carries the pip command.
        ValueError: If a file cannot be read, a value is missing or no number, or a name is given
            twice.
    """
    data: dict[str, Any] = {}
    tables: dict[str, Table] = {}  # by column
    origin: dict[str, str] = {}
    for text in files:
        found = _read(*_split(text))
        for name in found:
            _only_once(name, text, origin)
        if isinstance(found, Table):
            tables |= dict.fromkeys(found, found)
        else:
            data |= found
    if columns:
        origin = dict.fromkeys(data, "--data")
        for name, value in _chosen(tables, columns).items():
            _only_once(name, "--columns", origin)
            data[name] = value
    else:
        data |= {name: table[name] for name, table in tables.items()}
    for name, value in assignments(constants, "--set").items():
        _only_once(name, "--set", origin)
        data[name] = value
    return data


def _only_once(name: str, source: str, origin: dict[str, str]) -> None:
    if name in origin:
        raise ValueError(f"data '{name}' is given twice: by {origin[name]} and by {source}.")
    origin[name] = source


def _split(text: str) -> tuple[str | None, Path]:
    """Return the name that a file's array is given, if any, and the file."""
    name, equals, path = text.partition("=")
    if equals and name.isidentifier() and not Path(text).exists():
        return name, Path(path)
    return None, Path(text)


def _read(name: str | None, path: Path) -> Mapping[str, Any]:
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        pickled = suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib")
        remedy = (
            " Files that may run code are not read: save arrays by np.savez." if pickled else ""
        )
        raise ValueError(
            f"{path}: expected a file that ends in {', '.join(_READERS)}, got "
            f"{suffix or 'no ending'!r}.{remedy}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    if name is not None and suffix != ".npy":
        raise ValueError(
            f"{path}: only a .npy file is given a name, as in --data {name}=x.npy. The names in "
            "this one are its own."
        )
    values = _READERS[suffix](path)
    if isinstance(values, Table):
        return values
    if name is not None:
        values = {name: next(iter(values.values()))}
    if not values:
        raise ValueError(f"{path}: expected data, got none.")
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    """Return the number in an array without axes, any other value as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def _read_numpy(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return {path.stem: found}
            with found:
                return {name: found[name] for name in found.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            reason = (
                "it holds Python objects, or is no NumPy file. Objects may run code when they are "
                "read, and are not. Save plain arrays: np.asarray(x, dtype=float)"
            )
        else:
            reason = f"it is truncated or no NumPy file ({error})"
        raise ValueError(f"{path} cannot be read: {reason}.") from error


def _read_json(path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"{path}: '{key}' is there twice.")
            found[key] = value
        return found

    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{path}: expected an object by the names of the model's arguments, as in "
            f'{{"y": [1.0, 2.0]}}, got {type(values).__name__}.'
        )
    return {name: _from_json(path, name, value) for name, value in values.items()}


def _from_json(path: Path, name: str, value: Any) -> Any:
    """Return an array from nested lists, and a number or text as it is."""
    import numpy as np

    if isinstance(value, bool | int | float | str):
        return value
    if not isinstance(value, list):
        got = "null, a missing value" if value is None else "an object"
        raise ValueError(f"{path}: '{name}': expected numbers, lists of them or text, got {got}.")
    missing = _place_of_null(value)
    if missing is not None:
        raise ValueError(
            f"{path}: '{name}': the value at index {missing} is missing (null). Remove that row, "
            "or fill it in."
        )
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"{path}: '{name}': expected lists of one length, got lists of different lengths."
        ) from error


def _place_of_null(value: Any) -> list[int] | None:
    """Return the index of the first null in nested lists."""
    for index, item in enumerate(value):
        if item is None:
            return [index]
        if isinstance(item, list):
            inner = _place_of_null(item)
            if inner is not None:
                return [index, *inner]
    return None


def _read_netcdf(path: Path) -> dict[str, Any]:
    if importlib.util.find_spec("h5netcdf") is None:
        raise ImportError(
            f"{path}: NetCDF files are read by h5netcdf, which is not installed. Run: "
            "pip install h5netcdf"
        )
    import xarray

    try:
        with xarray.open_dataset(path, engine="h5netcdf") as found:
            values = {str(name): found[name].values for name in found.data_vars}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as NetCDF 4: {error}.") from error
    if not values:
        raise ValueError(
            f"{path}: expected variables, got none. Those in groups are not looked at: save the "
            "group that holds the data as a file of its own."
        )
    return values


def _chosen(tables: Mapping[str, Table], columns: Sequence[str]) -> dict[str, Any]:
    """Return vectors and matrices made of the columns of csv files."""
    import numpy as np

    from ppl_gen.core.errors import unknown

    if not tables:
        raise ValueError("--columns: expected a csv file by --data, got none.")
    chosen: dict[str, Any] = {}
    for text in columns:
        name, listed = split_assignment(text, "--columns")
        names = [column.strip() for column in listed.split(",")]
        is_matrix = len(names) > 1
        if is_matrix and not names[-1]:
            names.pop()
        for column in names:
            if column not in tables:
                raise unknown("column", column, tables)
        if name in chosen:
            raise ValueError(f"--columns gives '{name}' twice: give it once.")
        vectors = [tables[column][column] for column in names]
        if len({len(vector) for vector in vectors}) > 1:
            found = ", ".join(f"{len(v)} in {c}" for c, v in zip(names, vectors, strict=True))
            raise ValueError(f"--columns {name}: expected equally many rows, got {found}.")
        # Features are real numbers, whole or not.
        chosen[name] = np.stack(vectors, axis=1).astype(float) if is_matrix else vectors[0]
    return chosen


_READERS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    ".npz": _read_numpy,
    ".npy": _read_numpy,
    ".csv": Table,
    ".tsv": Table,
    ".json": _read_json,
    ".nc": _read_netcdf,
}
