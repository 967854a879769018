"""Building of shared libraries from C++, kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

__all__ = ["NoCompiler", "build", "cache_folder", "compiler"]

_FLAGS = (
    "-std=c++17",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-exceptions",
    "-fno-rtti",
    "-shared",
    "-fPIC",
    "-w",
)


class NoCompiler(Exception):
    """There is no C++ compiler, or it does not work; the message gives the remedy."""


def cache_folder() -> Path:
    """Return the folder that holds compiled files: $PPL_GEN_CACHE, or the user's cache folder."""
    chosen = os.environ.get("PPL_GEN_CACHE")
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("ppl-gen"))


def compiler() -> str:
    """Return the path of the C++ compiler: $CXX, or the first of g++, clang++ and c++.

    Raises:
        NoCompiler: If there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        path = shutil.which(name) if name else None
        if path is not None:
            return path
    msg = (
        "there is no C++ compiler on this machine. Install one (Debian and Ubuntu: apt install "
        "g++; macOS: xcode-select --install; conda: conda install gxx), or name it in $CXX."
    )
    raise NoCompiler(msg)


def build(source: str, *options: str) -> ctypes.CDLL:
    """Compile a C++ file to a shared library, or take it from the cache, and load it.

    The cache is keyed by source, options, compiler and processor. A file that is damaged is made
    anew; processes that build the same at once do not disturb each other.

    Args:
        source: The C++ file; it may include "runtime.h".
        *options: Further options of the compiler, such as "-O2" or "-DW=4".

    Returns:
        The loaded library.

    Raises:
        NoCompiler: If there is no compiler, or it fails.
    """
    path = compiler()
    runtime = (Path(__file__).parent / "runtime.h").read_text(encoding="utf-8")
    parts = (source, runtime, *_FLAGS, *options, _identity(path), _processor())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        library = _load(folder, key)
        if library is None:
            _compile(path, source, options, folder, key)
            library = _load(folder, key)
    except OSError:
        library = None
    if library is None:  # a cache that cannot be written to, or is swept while it is read
        with tempfile.TemporaryDirectory() as temporary:
            _compile(path, source, options, Path(temporary), key)
            library = _load(Path(temporary), key)
    assert library is not None
    return library


def _load(folder: Path, key: str) -> ctypes.CDLL | None:
    """Load a library from the cache if it is there and whole."""
    file, digest = folder / f"{key}.so", folder / f"{key}.sha256"
    try:
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest.read_text(encoding="ascii"):
            return None
        return ctypes.CDLL(str(file))
    except (OSError, UnicodeDecodeError):
        return None


def _compile(path: str, source: str, options: tuple[str, ...], folder: Path, key: str) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as temporary:
        place = Path(temporary)
        (place / "source.cpp").write_text(source, encoding="utf-8")
        command = [
            path,
            *_FLAGS,
            *options,
            f"-I{Path(__file__).parent}",
            str(place / "source.cpp"),
            "-o",
            str(place / "library.so"),
            *_libraries(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            first = next((x for x in done.stderr.splitlines() if "error" in x), done.stderr[:500])
            msg = f"the C++ compiler {path} failed: {first}"
            raise NoCompiler(msg)
        built = place / "library.so"
        (place / "digest").write_text(hashlib.sha256(built.read_bytes()).hexdigest(), "ascii")
        os.replace(built, folder / f"{key}.so")
        os.replace(place / "digest", folder / f"{key}.sha256")


def _libraries() -> tuple[str, ...]:
    glibc = platform.libc_ver()[0] == "glibc"
    return ("-lmvec", "-lm") if glibc and platform.machine() == "x86_64" else ("-lm",)


def _identity(path: str) -> str:
    """Return what changes when the compiler does, without running it."""
    real = os.path.realpath(path)
    status = os.stat(real)
    return f"{real} {status.st_size} {status.st_mtime_ns}"


@cache
def _processor() -> str:
    """Return what -march=native depends on."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        return "\n".join(sorted({x for x in lines if x.startswith(wanted)}))
    return f"{platform.machine()} {platform.processor()}"
