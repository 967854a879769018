"""What `doctor` says of this machine, and of machines that are made broken."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_gen.cli import examination

Cli = Callable[..., Any]


def findings(ended: Any) -> dict[str, dict[str, str]]:
    return {found["name"]: found for found in ended.document["findings"]}


def test_doctor_looks_at_everything(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kept.so").write_bytes(bytes(2**20))
    monkeypatch.setenv("PPL_GEN_CACHE", str(tmp_path))
    ended = cli("doctor", "--json")
    found = findings(ended)
    assert torch.__version__.startswith(found["torch"]["detail"].split("+")[0])
    assert found["cache"]["detail"] == f"{tmp_path} (1 files, 1.0 MiB)"
    assert {"python", "pyro-ppl", "arviz", "numpy", "torchvision", "compiler"} <= set(found)
    assert {"compiled density", "gpu", "threads", "shared memory", "netcdf"} <= set(found)
    # Nothing was left in the cache that was looked at.
    assert [path.name for path in tmp_path.iterdir()] == ["kept.so"]
    assert os.environ["PPL_GEN_CACHE"] == str(tmp_path)
    broken = {name for name, facts in found.items() if facts["status"] == "broken"}
    assert ended.document["ok"] is (not broken)
    assert ended.code == (1 if broken else 0)


def test_a_missing_compiler_is_broken(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    ended = cli("doctor", "--json")
    assert ended.code == 1
    found = findings(ended)
    assert found["compiler"]["status"] == found["compiled density"]["status"] == "broken"
    assert "apt install g++" in found["compiler"]["remedy"]


def test_a_compiler_that_fails_is_broken(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "c++"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo fake 1.0 && exit\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    found = findings(cli("doctor", "--json"))
    assert found["compiler"]["detail"] == f"{fake} (fake 1.0)"
    assert found["compiled density"]["status"] == "broken"
    assert "failed" in found["compiled density"]["detail"]


def test_a_package_that_is_not_installed_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = examination._version("no-such-package-anywhere")
    assert (found.status, found.remedy) == ("broken", "Run: pip install no-such-package-anywhere")


def test_a_cache_that_cannot_be_written_to_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file in its place refuses everyone, the superuser too."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PPL_GEN_CACHE", str(tmp_path / "file" / "cache"))
    found = examination._cache()
    assert found.status == "broken"
    assert "PPL_GEN_CACHE" in found.remedy


def test_threads_that_wait_for_each_other_are_noted() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)) + 1)
    try:
        assert examination._threads().status == "note"
    finally:
        torch.set_num_threads(before)


def test_little_shared_memory_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "_LITTLE_SHARED_MEMORY", 2**60)
    found = examination._shared_memory()
    assert found.status == ("note" if Path("/dev/shm").is_dir() else "ok")


def test_the_trap_of_torchvision_is_named(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wheel built for another torch raises while it is imported, as this one does."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")\n'
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    ended = cli("doctor")
    assert ended.code == 1
    line = next(line for line in ended.out.splitlines() if line.startswith("torchvision"))
    assert "broken" in line
    assert "operator torchvision::nms does not exist" in line
    assert "torchvision: Install the two together. Run: pip install" in ended.out
