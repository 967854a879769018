"""The example of a mixture, run small."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import ppl_gen

SMALL = ["--chains", "2", "--draws", "5", "--warmup", "4", "--steps", "10"]


@pytest.fixture
def example(root: Path) -> dict[str, Any]:
    return runpy.run_path(str(root / "examples" / "gaussian_mixture.py"), run_name="example")


def test_run(example: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example["main"]([*SMALL, "--out", str(tmp_path / "out")])
    out = tmp_path / "out"
    found = {path.name: path.stat().st_size for path in out.iterdir() if path.is_file()}
    assert ppl_gen.load(out / "posteriors" / "nuts")["locs"].shape[-2:] == (3, 2)
    assert set(found) == {
        "comparison.html",
        "density.png",
        "marginals.png",
        "responsibilities.png",
    }
    assert min(found.values()) > 5_000
    printed = capsys.readouterr().out
    assert "nuts: largest R-hat" in printed
    assert "locs[2, 1]" in printed
    assert "of the wines are with their cultivar" in printed


def test_agreement_knows_no_labels(example: dict[str, Any]) -> None:
    cultivars = torch.tensor([0, 0, 1, 1, 2, 2])
    assert example["agreement"](torch.tensor([2, 2, 0, 0, 1, 1]), cultivars) == 1.0
    assert example["agreement"](torch.tensor([2, 2, 0, 1, 1, 1]), cultivars) == pytest.approx(5 / 6)


def test_a_folder_that_exists_is_kept(example: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="--overwrite"):
        example["main"]([*SMALL, "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made(example: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot write to"):
        example["main"]([*SMALL, "--out", str(tmp_path / "file" / "below")])
