"""The cache of compiled files: damage, races, folders that cannot be used, no compiler at all."""

import ctypes
import multiprocessing
import os
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_gen import fit
from ppl_gen.core.compiler.build import NoCompiler, build, cache_folder, compiler
from ppl_gen.inference import NUTS

SOURCE = 'extern "C" long answer() { return 42; }'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPL_GEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def answer(library: ctypes.CDLL) -> int:
    library.answer.restype = ctypes.c_long
    return int(library.answer())


def test_a_library_is_built_once(cache: Path) -> None:
    assert answer(build(SOURCE)) == 42
    (file,) = cache.glob("*.so")
    before = file.stat().st_mtime_ns
    assert answer(build(SOURCE)) == 42
    assert file.stat().st_mtime_ns == before
    assert answer(build(SOURCE, "-O2")) == 42
    assert len(list(cache.glob("*.so"))) == 2
    assert not list(cache.glob("build-*"))


@pytest.mark.parametrize("kept", [0, 100])
def test_a_damaged_file_is_made_anew(cache: Path, kept: int) -> None:
    build(SOURCE)
    (file,) = cache.glob("*.so")
    # A new file in its place: the one that is loaded must not change under the process.
    damaged = file.read_bytes()[:kept]
    file.unlink()
    file.write_bytes(damaged)
    assert answer(build(SOURCE)) == 42
    assert file.stat().st_size > 1000


def test_a_missing_digest_is_made_anew(cache: Path) -> None:
    build(SOURCE)
    (digest,) = cache.glob("*.sha256")
    digest.unlink()
    assert answer(build(SOURCE)) == 42
    assert digest.exists()


def _build(folder: str) -> int:
    os.environ["PPL_GEN_CACHE"] = folder
    return answer(build(SOURCE))


def test_processes_that_build_at_once(cache: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.map(_build, [str(cache)] * 4) == [42] * 4
    assert len(list(cache.glob("*.so"))) == 1
    assert answer(build(SOURCE)) == 42


def test_a_cache_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PPL_GEN_CACHE", str(tmp_path / "file" / "cache"))
    assert answer(build(SOURCE)) == 42


def test_the_cache_is_in_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PPL_GEN_CACHE", raising=False)
    assert cache_folder().name == "ppl-gen"


def model() -> None:
    scale = pyro.sample("scale", dist.Exponential(1.0))
    pyro.sample("x", dist.Normal(torch.zeros(2), scale).to_event(1))


def test_without_a_compiler_the_eager_engine_runs(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NoCompiler, match=r"apt install g\+\+"):
        compiler()
    with pytest.warns(RuntimeWarning, match=r"eager engine.*no C\+\+ compiler.*apt install g\+\+"):
        posterior = fit(model, {}, NUTS(chains=2, draws=5, warmup=5), progress=False)
    assert posterior["x"].shape == (2, 5, 2)


def test_a_compiler_that_fails_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(NoCompiler, match="false failed"):
        build(SOURCE)


def test_asked_for_eager_there_is_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method = NUTS(chains=2, draws=3, warmup=3, engine="eager")
        assert fit(model, {}, method, progress=False)["x"].shape == (2, 3, 2)
