"""What a machine offers, and what on it does not work."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

__all__ = ["Finding", "examine"]

_PACKAGES = ("ppl-gen", "torch", "pyro-ppl", "numpy", "arviz")
_CACHE = "PPL_GEN_CACHE"
_SHARED_MEMORY = Path("/dev/shm")
# A container has 64 MiB unless it is told otherwise, which a few batches of images fill.
_LITTLE_SHARED_MEMORY = 2**28


@dataclass(frozen=True)
class Finding:
    """What was found about one thing.

    Args:
        name: The thing.
        status: "ok", "note": works, and can be better, or "broken".
        detail: What was found.
        remedy: What to do about it, or "".
    """

    name: str
    status: Literal["ok", "note", "broken"]
    detail: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Look at packages, compiler, GPU, cache, threads and shared memory, one after the other."""
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")
    for package in _PACKAGES:
        yield _version(package)
    yield _torchvision()
    yield _netcdf()
    yield _compiler()
    yield _compiled_density()
    yield _cache()
    yield _gpu()
    yield _threads()
    yield _shared_memory()


def _version(package: str) -> Finding:
    try:
        return Finding(package, "ok", metadata.version(package))
    except metadata.PackageNotFoundError:
        return Finding(package, "broken", "not installed", f"Run: pip install {package}")


def _torchvision() -> Finding:
    """Import torchvision, which fails where its wheel was built for another torch."""
    import torch

    remedy = "Install the two together. Run: pip install --force-reinstall torch torchvision"
    try:
        import torchvision
    except ModuleNotFoundError as error:
        if error.name == "torchvision":
            return Finding("torchvision", "broken", "not installed", "Run: pip install torchvision")
        return Finding("torchvision", "broken", str(error), remedy)
    except Exception as error:  # any of many: an operator that is missing, a library, a symbol
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        detail = f"does not fit torch {torch.__version__}: {reason}"
        return Finding("torchvision", "broken", detail, remedy)
    return Finding("torchvision", "ok", str(torchvision.__version__))


def _netcdf() -> Finding:
    if importlib.util.find_spec("h5netcdf") is None:
        return Finding("netcdf", "note", "files cannot be read", "Run: pip install h5netcdf")
    return Finding("netcdf", "ok", f"by h5netcdf {metadata.version('h5netcdf')}")


def _compiler() -> Finding:
    from ppl_gen.core.compiler.build import NoCompiler, compiler

    try:
        path = compiler()
    except NoCompiler as error:
        return Finding(
            "compiler", "broken", "none: sampling is a few hundred times slower", str(error)
        )
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    lines = (done.stdout or done.stderr).splitlines()
    return Finding("compiler", "ok", f"{path} ({lines[0] if lines else 'of unknown version'})")


def _compiled_density() -> Finding:
    """Compile a small log density anew, and compare it with the one that PyTorch computes."""
    import torch

    from ppl_gen.core import LogDensity
    from ppl_gen.core.compiler.compiled import CannotCompile, CompiledLogDensity, NoCompiler
    from ppl_gen.models import EightSchools

    density = LogDensity(EightSchools(), EightSchools.data())
    points = torch.linspace(-1.0, 1.0, density.dim, dtype=torch.float64)[None]
    try:
        with tempfile.TemporaryDirectory() as folder, _cache_in(folder):
            CompiledLogDensity(density, points[0], lanes=8).check(points)
    except (CannotCompile, NoCompiler, OSError) as error:
        remedy = "Models run on PyTorch. Another compiler can be named in $CXX."
        return Finding("compiled density", "broken", str(error), remedy)
    return Finding("compiled density", "ok", "equals that of PyTorch")


@contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    """Have what is compiled inside the block kept in another folder."""
    before = os.environ.get(_CACHE)
    os.environ[_CACHE] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CACHE]
        else:
            os.environ[_CACHE] = before


def _cache() -> Finding:
    from ppl_gen.core.compiler.build import cache_folder

    folder = cache_folder()
    files = [file for file in folder.rglob("*") if file.is_file()] if folder.is_dir() else []
    size = sum(file.stat().st_size for file in files)
    detail = f"{folder} ({len(files)} files, {size / 2**20:.1f} MiB)"
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return Finding("cache", "ok", detail)
    except OSError as error:
        remedy = f"Each run compiles anew. Name a folder that can be written to in ${_CACHE}."
        return Finding(
            "cache", "broken", f"{detail} cannot be written to: {error.strerror}", remedy
        )


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else "; this torch is built without CUDA"
        return Finding("gpu", "ok", f"none: all runs on the CPU{built}")
    try:
        torch.ones(1, device="cuda").sum().item()
        name, size = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    except RuntimeError as error:
        remedy = 'Update the driver, or run on the CPU: device="cpu".'
        return Finding("gpu", "broken", str(error).splitlines()[0], remedy)
    return Finding("gpu", "ok", f"{name}, {size / 2**30:.0f} GiB, CUDA {torch.version.cuda}")


def _threads() -> Finding:
    import torch

    from ppl_gen.core.compiler.compiled import processors

    threads, available = torch.get_num_threads(), processors()
    detail = f"{threads} of torch on {available} processors"
    if threads > available:
        remedy = f"They wait for each other. Set OMP_NUM_THREADS={available}."
        return Finding("threads", "note", detail, remedy)
    return Finding("threads", "ok", detail)


def _shared_memory() -> Finding:
    if not _SHARED_MEMORY.is_dir():
        return Finding("shared memory", "ok", "no limit known")
    usage = shutil.disk_usage(_SHARED_MEMORY)
    detail = f"{usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB free"
    if usage.free < _LITTLE_SHARED_MEMORY:
        remedy = (
            "Loaders with workers pass batches through it. In a container give more: "
            "docker run --shm-size=1g"
        )
        return Finding("shared memory", "note", detail, remedy)
    return Finding("shared memory", "ok", detail)
