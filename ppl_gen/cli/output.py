"""What a command prints: tables on a terminal, plain columns in a pipe, or one JSON document."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TextIO

import typer

__all__ = ["Output"]


class Output:
    """Where a command puts its result, as a context manager.

    The result goes to standard output, all else to standard error. With `as_json` nothing but the
    document reaches standard output, whatever a model prints.

    Args:
        as_json: Whether the result is one JSON document.
        quiet: Whether to leave out progress and notes.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._stdout: TextIO = sys.stdout
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Take standard output, where the result is JSON."""
        self._stdout = sys.stdout
        if self.as_json:
            self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give standard output back."""
        self._stack.close()

    @property
    def progress(self) -> bool:
        """Whether to show how far a run is."""
        return not self.quiet

    def note(self, text: str) -> None:
        """Say something beside the result, on standard error."""
        if not self.quiet:
            typer.echo(text, err=True)

    def document(self, document: Mapping[str, Any]) -> None:
        """Write the result as JSON; numbers that are not finite become null."""
        self._write(json.dumps(_plain(document), indent=2, allow_nan=False))

    def text(self, text: str) -> None:
        """Write a result in words."""
        self._write(text)

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> None:
        """Write a table.

        Args:
            headers: Titles of the columns.
            rows: Cells.
            words: Number of columns, from the left, that hold words, and are aligned left.
        """
        rows = [list(row) for row in rows]
        if not self._stdout.isatty():
            self._write(_columns([list(headers), *rows], words))
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for index, header in enumerate(headers):
            table.add_column(header, justify="left" if index < words else "right")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console(file=self._stdout).print(table)

    def _write(self, text: str) -> None:
        try:
            self._stdout.write(f"{text}\n")
            self._stdout.flush()
        except BrokenPipeError:
            # The reader, such as `head`, has seen enough; what is left goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stdout.fileno())


def _columns(rows: Sequence[Sequence[str]], words: int) -> str:
    """Return rows as columns of equal width."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if index < words else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _plain(value: Any) -> Any:
    """Return a value with the types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "item"):  # a number of NumPy or torch
        return _plain(value.item())
    return str(value)
