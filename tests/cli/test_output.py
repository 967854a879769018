"""What is printed on a terminal, in a pipe, to a reader that has left, and as JSON."""

import io
import json
import os
import sys
from typing import Any

import numpy as np
import pytest

from ppl_gen.cli.output import Output

ESCAPE = "\x1b"
ROWS = [["weights[0]", "1.5"], ["[red]tau[/red]", "-20"]]


def terminal_text(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what a terminal gets of a table."""
    pty = pytest.importorskip("pty", reason="there are no such terminals on this system")
    master, slave = pty.openpty()
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with Output() as out:
            out.table(["parameter", "mean"], ROWS)
        shown = os.read(master, 4096).decode()
    os.close(master)
    return shown


def test_a_terminal_gets_styles_and_brackets_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal_text(monkeypatch)
    assert ESCAPE in shown
    assert "[red]tau[/red]" in shown
    assert "weights[0]" in shown


def test_a_pipe_gets_aligned_columns_and_no_styles(capsys: pytest.CaptureFixture[str]) -> None:
    with Output() as out:
        out.table(["parameter", "mean"], ROWS)
    expected = "parameter       mean\nweights[0]       1.5\n[red]tau[/red]   -20\n"
    assert capsys.readouterr().out == expected


def test_only_the_document_reaches_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with Output(as_json=True) as out:
        print("printed by a model")
        out.note("a note")
        values = (np.float32(1.5), float("inf"), np.int64(3))
        out.document({"a": values, "b": {"c": None}, 4: True, "d": float("nan")})
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found == {"a": [1.5, None, 3], "b": {"c": None}, "4": True, "d": None}
    assert captured.err == "printed by a model\na note\n"
    print("after it all is as before")
    assert capsys.readouterr().out == "after it all is as before\n"


def test_quiet_leaves_out_notes_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with Output(quiet=True) as out:
        out.note("a note")
        out.text("the result")
        assert not out.progress
    assert capsys.readouterr() == ("the result\n", "")


def test_a_reader_that_has_left_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    stream: Any = io.TextIOWrapper(os.fdopen(write, "wb"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    with Output() as out:
        out.text("nobody reads this")
        out.text("nor this")
    stream.close()
