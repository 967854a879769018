"""What docs/cli.md shows works."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def blocks(root: Path) -> list[tuple[str, str]]:
    """The fenced blocks of the document, as (language, content)."""
    return BLOCK.findall((root / "docs" / "cli.md").read_text(encoding="utf-8"))


def test_every_command_of_the_document_takes_the_options_given(
    cli: Cli, blocks: list[tuple[str, str]]
) -> None:
    commands = [text.replace("\\\n", " ") for language, text in blocks if language == "bash"]
    lines = [line for text in commands for line in text.splitlines()]
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words[0] == "ppl-gen"
        text = cli(words[1], "--help")
        assert text.code == 0, line
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        assert options <= set(re.findall(r"--[a-z-]+", text.out)), line


def test_the_pair_of_the_document_is_checked_fitted_and_judged(
    cli: Cli,
    blocks: list[tuple[str, str]],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the very commands; the data are those of the tests."""
    (content,) = (text for language, text in blocks if language == "python")
    (tmp_path / "pairs.py").write_text(content, encoding="utf-8")
    (tmp_path / "line.csv").write_bytes((folder / "line.csv").read_bytes())
    monkeypatch.chdir(tmp_path)
    commands = [
        shlex.split(line)[1:]
        for language, text in blocks
        if language == "bash"
        for line in text.splitlines()
        if "pairs.py:Line" in line
    ]
    assert [words[0] for words in commands] == ["check", "fit", "judge"]
    for words in commands:
        ended = cli(*words, "--quiet")
        assert ended.code == 0, ended.out + ended.err
