"""The example that compares posteriors, run small."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

import ppl_gen

SMALL = ["--chains", "2", "--draws", "5", "--warmup", "4", "--steps", "10"]


@pytest.fixture
def main(root: Path) -> Callable[[list[str]], None]:
    found: Callable[[list[str]], None] = runpy.run_path(
        str(root / "examples" / "compare_posteriors.py"), run_name="example"
    )["main"]
    return found


def test_run(
    main: Callable[[list[str]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    main([*SMALL, "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == [
        "eight_schools.html",
        "eight_schools.png",
        "posteriors",
        "regression.html",
        "regression.png",
    ]
    assert all(path.stat().st_size > 5_000 for path in out.iterdir() if path.is_file())
    assert ppl_gen.load(out / "posteriors" / "regression" / "nuts")["weights"].shape[-1] == 5
    printed = capsys.readouterr().out
    for word in ("mean-field", "full-rank", "hmc", "nuts (ref)", "exact", "weights[4]", "theta[7]"):
        assert word in printed
    page = (out / "regression.html").read_text(encoding="utf-8")
    assert "weights[4]" in page
    assert "noise_scale" in page


def test_a_folder_that_exists_is_kept(main: Callable[[list[str]], None], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="--overwrite"):
        main([*SMALL, "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made(main: Callable[[list[str]], None], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot write to"):
        main([*SMALL, "--out", str(tmp_path / "file" / "below")])
    with pytest.raises(SystemExit, match="is a file"):
        main([*SMALL, "--overwrite", "--out", str(tmp_path / "file")])


@pytest.mark.parametrize("wrong", [["--draws", "0"], ["--chains", "-1"], ["--steps", "many"]])
def test_wrong_options(
    main: Callable[[list[str]], None], wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(wrong)
    assert wrong[0] in capsys.readouterr().err
