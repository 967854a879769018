"""The layout of the checkout, and what the tools make of the links at its root."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import find_namespace_packages


@pytest.mark.parametrize(
    "name",
    ["CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "ppl_gen/py.typed"],
)
def test_file_is_there(root: Path, name: str) -> None:
    assert (root / name).is_file()


@pytest.mark.parametrize("name", ["inference", "models"])
def test_folder_at_the_root_is_a_link_into_the_package(root: Path, name: str) -> None:
    link = root / name
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == (root / "ppl_gen" / name).resolve()
    assert (link / "__init__.py").is_file()


def test_only_ppl_gen_is_packaged(root: Path) -> None:
    """Without the filter the links would be packaged: the control shows that they are in reach."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    include = settings["tool"]["setuptools"]["packages"]["find"]["include"]
    packaged = set(find_namespace_packages(str(root), include=include))
    assert {name.split(".")[0] for name in packaged} == {"ppl_gen"}
    assert {"ppl_gen.models", "ppl_gen.inference"} <= packaged
    assert {"models", "inference"} <= set(find_namespace_packages(str(root)))


def test_ruff_sees_each_file_once(root: Path) -> None:
    listed = _ruff(root, "--show-files").stdout.split()
    files = [Path(line).relative_to(root) for line in listed if line.endswith(".py")]
    assert Path("ppl_gen/models/__init__.py") in files
    assert Path("ppl_gen/inference/__init__.py") in files
    assert not [file for file in files if file.parts[0] in {"inference", "models"}]


@pytest.mark.parametrize(
    ("statement", "banned"),
    [
        ("import models", True),
        ("from inference import SVI", True),
        ("from ppl_gen.inference import SVI", False),
    ],
)
def test_importing_through_a_link_is_banned(root: Path, statement: str, banned: bool) -> None:
    options = ["--select", "TID251", "--stdin-filename", "examples/example.py", "-"]
    result = _ruff(root, *options, source=f"{statement}\n")
    assert ("TID251" in result.stdout) is banned


def _ruff(root: Path, *options: str, source: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", *options]
    return subprocess.run(
        command, cwd=root, input=source, capture_output=True, text=True, check=False
    )
