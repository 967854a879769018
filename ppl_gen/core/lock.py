"""One process at a time writes in a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["only_writer"]


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Refuse to write in a folder where another process does, inside the block.

    The system lets go of the lock when a process ends, however it does. It is on a file beside the
    folder, because a folder that is not there yet comes into being as a whole. Where the system or
    the disk has no such locks, nothing is refused.

    Args:
        folder: The folder, which need not be there.

    Raises:
        BlockingIOError: If another process, or another thread of this one, writes there.
    """
    folder = folder.resolve()
    file = folder.with_name(f".{folder.name}.lock")
    descriptor = _lock(file, folder)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                file.unlink()
            os.close(descriptor)


def _lock(file: Path, folder: Path) -> int | None:
    """Return a descriptor that holds the lock on a file; None where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:  # whoever goes on to write there says why
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            writer = os.read(descriptor, 20).decode() or "unknown"
            os.close(descriptor)
            msg = (
                f"out: another process (id {writer}) is writing to {folder}. Wait until it has "
                "ended, or choose another folder."
            )
            raise BlockingIOError(error.errno, msg) from error
        except OSError:
            os.close(descriptor)
            return None
        # It may have been removed between being opened and being locked, and another one made.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), file.stat()):
                os.truncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        os.close(descriptor)
