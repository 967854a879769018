"""Ranks of finished replicates on disk, so that a calibration that was killed can go on.

The file holds lines of JSON: first what the calibration is, then one line for each replicate, in
the order in which they were done. A line that was being written at the end is left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

from ppl_gen.core.errors import LoadError
from ppl_gen.core.identity import differences
from ppl_gen.core.lock import only_writer

__all__ = ["RankFile", "Record", "read_records"]

# What is known of one replicate: its number, the fit's seed, and its ranks or why it failed.
Record: TypeAlias = dict[str, Any]

_FORMAT = 1


class RankFile:
    """The file of a calibration that is in progress.

    Args:
        path: The file.
        records: The replicates in it.
        file: The file, opened for more; None: nothing is written.
    """

    def __init__(self, records: list[Record], file: IO[bytes] | None) -> None:
        self.records = records
        self._file = file

    @classmethod
    @contextmanager
    def open(
        cls, path: str | Path | None, header: Mapping[str, Any], *, resume: bool
    ) -> Iterator[RankFile]:
        """Make the file, or open it to go on, for the block; no other process writes to it then.

        Args:
            path: The file; None: nothing is written.
            header: What the calibration is: `identity`, as `identity_of` returns it, and more.
            resume: Whether to go on with what is there.

        Raises:
            FileExistsError: If there is something, and it is not to be resumed or no calibration.
            ValueError: If it is that of another calibration.
            BlockingIOError: If another process is writing to it.
            OSError: If it cannot be written.
        """
        if path is None:
            yield cls([], None)
            return
        path = Path(path)
        with only_writer(path):
            records = _prepared(path, header, resume=resume)
            with path.open("ab") as file:
                yield cls(records, file)

    def add(self, record: Record) -> None:
        """Keep a replicate that is done."""
        if self._file is not None:
            self._file.write(_line(record))
            self._file.flush()
        self.records.append(record)


def read_records(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """Return the first line of a file, and its replicates by their number.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is none.
        LoadError: If it is no such file, is damaged, or no replicate in it is done.
    """
    header, records, _ = _read(path)
    if not any("ranks" in record for record in records):
        raise LoadError(f"{path}: no replicate is done yet.")
    return header, sorted(records, key=lambda record: int(record["replicate"]))


def _prepared(path: Path, header: Mapping[str, Any], *, resume: bool) -> list[Record]:
    """Return what is in the file, which has its first line and whole lines only afterwards."""
    header = {"ppl_gen_calibration": _FORMAT, **header}
    if not path.exists():
        _write(path, [header])
        return []
    try:
        before, records, size = _read(path)
    except LoadError as error:
        msg = f"out: {path} exists and cannot be gone on with: {error} Choose another file."
        raise FileExistsError(msg) from error
    if not resume:
        msg = (
            f"out: {path} holds a calibration. Pass resume=True to go on with it, or choose "
            "another file."
        )
        raise FileExistsError(msg)
    found = differences(before["identity"], header["identity"])
    if found:
        msg = (
            f"out: {path} holds another calibration:\n  "
            + "\n  ".join(found)
            + "\nGive what it was started with, or choose another file for a new one. The number "
            "of replicates may grow."
        )
        raise ValueError(msg)
    if before["replicates"] < header["replicates"]:
        _write(path, [header, *records])
    else:
        os.truncate(path, size)
    return records


def _read(path: Path) -> tuple[dict[str, Any], list[Record], int]:
    """Return the first line, the replicates, and the number of bytes of whole lines."""
    if path.is_dir():
        raise LoadError(f"{path} is a folder.")
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        del lines[-1]
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            parsed.append(json.loads(line))
        except ValueError as error:
            raise LoadError(f"line {number} of {path} is damaged.") from error
    if not parsed or not isinstance(parsed[0], dict) or "ppl_gen_calibration" not in parsed[0]:
        raise LoadError(f"{path} is not the file of a calibration.")
    if parsed[0]["ppl_gen_calibration"] != _FORMAT:
        raise LoadError(f"{path} was written by another version of ppl-gen.")
    return parsed[0], parsed[1:], sum(map(len, lines))


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a file that is there as a whole or not at all."""
    scratch = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(b"".join(map(_line, lines)))
        os.replace(scratch, path)
    except OSError as error:
        msg = f"out: cannot write {path}: {error.strerror or error}. Choose another file."
        raise type(error)(msg) from error


def _line(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode()
