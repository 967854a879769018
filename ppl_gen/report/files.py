"""Writing a text file in one step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_writable", "write"]


def write(path: Path, text: str) -> None:
    """Write a text file in one step: whoever reads it sees the old or the new one.

    Args:
        path: Where to; a file there is replaced.
        text: What to write.

    Raises:
        OSError: If it cannot be written, with the path and the remedy in the message.
    """
    with _unfinished(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)


def check_writable(path: Path) -> None:
    """Refuse a path that cannot become a file before any work is done for it.

    Args:
        path: Where a file is to be.

    Raises:
        OSError: As `write` would.
    """
    with _unfinished(path) as unfinished:
        unfinished.touch()


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Give a path beside the file, of which nothing is left behind, and say what goes wrong."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(f"cannot write {path}: it is a folder. Add the name of a file.")
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"cannot write {path}: there is no folder {path.parent}. Make it first."
            )
        yield unfinished
    except OSError as error:
        if error.errno is None:  # it says what is wrong already
            raise
        raise type(error)(
            f"cannot write {path}: {error.strerror or error}. Choose a folder you may write to."
        ) from error
    finally:
        # An interrupted write leaves nothing behind.
        try:
            unfinished.unlink(missing_ok=True)
        except OSError:
            pass
