"""How a command ends: its exit code, and errors as one message."""

from __future__ import annotations

import functools
import os
import sysconfig
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TextIO, TypeVar

import typer

__all__ = ["INTERRUPTED", "NOT_TRUSTED", "WRONG_USE", "command"]

NOT_TRUSTED = 1
WRONG_USE = 2
INTERRUPTED = 130

_DEBUG = "PPL_GEN_DEBUG"
# What code raises on purpose about what a user gave; anything else is a fault in some code.
_EXPECTED = (ValueError, TypeError, OSError, ImportError)

P = ParamSpec("P")
R = TypeVar("R")


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Have a command end with an exit code and a message, never with a traceback.

    An error is written to standard error, as are warnings, in one message each, and the exit code
    is 2; after Ctrl-C it is 130. Where the environment has PPL_GEN_DEBUG, the traceback follows.

    Args:
        function: The command.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return function(*args, **kwargs)
            except KeyboardInterrupt as stop:
                typer.echo(str(stop) or "Interrupted.", err=True)
                raise typer.Exit(INTERRUPTED) from stop
            except typer.Exit:
                raise
            except Exception as error:
                typer.echo(f"Error: {_message(error)}", err=True)
                if os.environ.get(_DEBUG):
                    traceback.print_exception(error)
                raise typer.Exit(WRONG_USE) from error

    return run


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, _EXPECTED):
        return str(error) or type(error).__name__
    place = _place(error)
    return (
        f"{type(error).__name__}{f' in {place}' if place else ''}: {error}\n"
        f"Set {_DEBUG}=1 to see where it comes from."
    )


def _place(error: Exception) -> str:
    """Return file and line of the last code on the way to an error that a user wrote, if any."""
    installed = (Path(__file__).parents[1], *map(Path, sysconfig.get_paths().values()))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.is_relative_to(folder) for folder in installed):
            return f"{path.name}, line {frame.lineno}"
    return ""


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    typer.echo(f"Warning: {message}", err=True)
