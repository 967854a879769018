"""Data from files of each kind, and what is wrong with bad ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppl_gen.cli.data_files import read_data

X = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.5]])
Y = np.array([1, 0, 2])


def written(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def npz(folder: Path) -> list[str]:
    np.savez(folder / "data.npz", x=X, y=Y, groups=4)
    return [str(folder / "data.npz")]


def npy(folder: Path) -> list[str]:
    np.save(folder / "x.npy", X)
    np.save(folder / "response.npy", Y)
    np.save(folder / "groups.npy", 4)
    return [str(folder / "x.npy"), f"y={folder / 'response.npy'}", str(folder / "groups.npy")]


def as_json(folder: Path) -> list[str]:
    content = json.dumps({"x": X.tolist(), "y": Y.tolist(), "groups": 4})
    return [written(folder / "data.json", content)]


def netcdf(folder: Path) -> list[str]:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    made = xarray.Dataset({"x": (("row", "feature"), X), "y": ("row", Y), "groups": 4})
    made.to_netcdf(folder / "data.nc", engine="h5netcdf")
    return [str(folder / "data.nc")]


@pytest.mark.parametrize("write", [npz, npy, as_json, netcdf])
def test_each_format_gives_the_same_data(write: Any, tmp_path: Path) -> None:
    data = read_data(write(tmp_path))
    assert list(data) == ["x", "y", "groups"]
    np.testing.assert_array_equal(data["x"], X)
    np.testing.assert_array_equal(data["y"], Y)
    assert data["x"].dtype == np.float64
    assert np.issubdtype(data["y"].dtype, np.integer)
    # A number without axes is one, as a model asks for by pyro.plate("groups", groups).
    assert type(data["groups"]) is int
    assert data["groups"] == 4


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_columns_of_a_table(separator: str, suffix: str, tmp_path: Path) -> None:
    lines = [["y", "size"], ["1", "2.5"], [], ["-3", '"1e2"'], [" 4", "7"]]
    # The byte order mark that spreadsheets write is no part of the first name.
    content = "\ufeff" + "\n".join(separator.join(line) for line in lines) + "\n"
    data = read_data([written(tmp_path / f"data.{suffix}", content)])
    np.testing.assert_array_equal(data["y"], [1, -3, 4])
    np.testing.assert_array_equal(data["size"], [2.5, 100.0, 7.0])
    assert data["y"].dtype == np.int64
    assert data["size"].dtype == np.float64


def test_chosen_columns_make_vectors_and_matrices(tmp_path: Path) -> None:
    file = written(tmp_path / "data.csv", "id,age,size,price\nann,30,1.5,7\nbob,40,2.5,8\n")
    data = read_data([file], columns=["x=size, age", "z=age,", "y=price"])
    assert list(data) == ["x", "z", "y"]
    np.testing.assert_array_equal(data["x"], [[1.5, 30.0], [2.5, 40.0]])
    np.testing.assert_array_equal(data["z"], [[30.0], [40.0]])
    np.testing.assert_array_equal(data["y"], [7, 8])
    assert data["z"].dtype == np.float64
    with pytest.raises(ValueError, match=r"unknown column 'ag': expected one of id, age.*'age'"):
        read_data([file], columns=["x=ag"])
    with pytest.raises(ValueError, match=r"column 'id': expected a number, got 'ann'"):
        read_data([file], columns=["x=id"])
    with pytest.raises(ValueError, match="--columns: expected a csv file"):
        read_data([], columns=["x=age"])
    with pytest.raises(ValueError, match="--columns gives 'x' twice"):
        read_data([file], columns=["x=age", "x=size"])


def test_several_files_and_constants_are_put_together(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X)
    table = written(tmp_path / "y.csv", "y\n1\n0\n2\n")
    data = read_data([str(tmp_path / "x.npz"), table], ["groups=4", "kind=linear"])
    assert list(data) == ["x", "y", "groups", "kind"]
    assert data["kind"] == "linear"
    with pytest.raises(ValueError, match=r"data 'y' is given twice: by .*y.csv and by --set"):
        read_data([table], ["y=3"])
    with pytest.raises(ValueError, match="data 'y' is given twice"):
        read_data([table, table])
    with pytest.raises(ValueError, match="data 'x' is given twice: by --data and by --columns"):
        read_data([str(tmp_path / "x.npz"), table], columns=["x=y"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a line of names, got an empty file"),
        ("x,y\n", "expected rows below the names, got none"),
        ("1,2\n3,4\n", "line 1: expected the names of the columns, got numbers"),
        (",y\n1,2\n", r"line 1: column 1 has no name.*index=False"),
        ("y,y\n1,2\n", "line 1: two columns have the name 'y'"),
        ("x,y\n1,2\n3\n", "line 3: expected 2 cells, as there are names, got 1"),
        ("x,y\n1,2\n3,\n", "line 3, column 'y': the value is missing"),
        ("x,y\n1,2\n\n3,NA\n", "line 4, column 'y': the value is missing"),
        ("x,y\n1,2\n3,nan\n", "line 3, column 'y': the value is missing"),
        ("x,y\n1,2\n3,-NaN\n", "line 3, column 'y': the value is missing"),
        ("x,y\n1,2\nhigh,3\n", "line 3, column 'x': expected a number, got 'high'"),
        ('x,y\n1,"2\n', "cannot be read as csv"),
    ],
)
def test_a_bad_table_is_refused_by_line_and_column(
    content: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read_data([written(tmp_path / "data.csv", content)])


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes("größe\n1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="cannot be read as UTF-8 text"):
        read_data([str(tmp_path / "data.csv")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1, 2]", "expected an object by the names.*got list"),
        ('{"y": [1, null]}', r"'y': the value at index \[1\] is missing \(null\)"),
        ('{"y": [[1], [null]]}', r"'y': the value at index \[1, 0\] is missing"),
        ('{"y": null}', "'y': expected numbers.*got null"),
        ('{"y": {"a": 1}}', "'y': expected numbers.*got an object"),
        ('{"y": [[1, 2], [3]]}', "'y': expected lists of one length"),
        ('{"y": 1, "y": 2}', "'y' is there twice"),
        ("{}", "expected data, got none"),
    ],
)
def test_bad_json_is_refused(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_data([written(tmp_path / "data.json", content)])


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_pickled_objects_are_never_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"data.{suffix}"
    save = np.savez if suffix == "npz" else np.save
    save(path, np.array([{"a": 1}, None], dtype=object))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"holds Python objects.*np.asarray"):
        read_data([str(path)])


@pytest.mark.parametrize("suffix", ["npz", "npy", "nc"])
def test_damaged_files_are_refused(suffix: str, tmp_path: Path) -> None:
    if suffix == "nc":
        pytest.importorskip("h5netcdf")
    path = tmp_path / f"data.{suffix}"
    for content in (b"", b"not an array at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"data\.\w+ cannot be read"):
            read_data([str(path)])


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=X)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="truncated or no NumPy file"):
        read_data([str(path)])


def test_netcdf_without_variables_is_refused(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    xarray.Dataset().to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"expected variables, got none.*groups"):
        read_data([str(tmp_path / "data.nc")])


def test_netcdf_without_its_reader_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.nc").write_bytes(b"")
    # Where a module is None, Python finds none by that name, as where it is not installed.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install h5netcdf"):
        read_data([str(tmp_path / "data.nc")])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data.pkl", "Files that may run code are not read"),
        ("data.xlsx", r"expected a file that ends in \.npz, \.npy, \.csv.*got '\.xlsx'"),
        ("data", "got 'no ending'"),
    ],
)
def test_other_files_are_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_data([written(tmp_path / name, "")])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there\.npz: no such file"):
        read_data([str(tmp_path / "there.npz")])


def test_only_single_arrays_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X)
    with pytest.raises(ValueError, match=r"only a \.npy file is given a name"):
        read_data([f"z={tmp_path / 'data.npz'}"])
