"""The commands and the code in README.md and CONTRIBUTING.md work."""

import doctest
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = {"pycon", "python"}
SHELL = {"bash", "console", "sh", "shell"}


def blocks(text: str) -> list[tuple[str, str]]:
    """Each fenced block of Markdown, as (language, content)."""
    return BLOCK.findall(text)


def commands(text: str) -> list[list[str]]:
    """The words of each command in the shell blocks."""
    code = "".join(content for language, content in blocks(text) if language in SHELL)
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), True))]


def targets(makefile: str) -> set[str]:
    """The targets that a Makefile has."""
    return set(re.findall(r"^([a-z0-9-]+):(?!=)", makefile, re.MULTILINE))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_make_command_has_its_target(root: Path, document: str) -> None:
    text = (root / document).read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z0-9-]+)", text))
    named |= {words[1] for words in commands(text) if words[0] == "make"}
    assert named
    assert named <= targets((root / "Makefile").read_text(encoding="utf-8"))


def test_readme_begins_with_the_two_commands(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    make = [words for words in commands(text) if words[0] == "make"]
    assert make[:2] == [["make", "demo"], ["make", "test"]]


def test_every_script_of_the_readme_takes_the_options_given(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    options: dict[str, set[str]] = {}
    for words in commands(text):
        for script in (word for word in words if word.endswith(".py")):
            given = {word.split("=")[0] for word in words if word.startswith("--")}
            options.setdefault(script, set()).update(given)
    assert options
    for script, given in options.items():
        help_text = subprocess.run(
            [sys.executable, script, "--help"], cwd=root, capture_output=True, text=True, check=True
        ).stdout
        assert given <= set(re.findall(r"--[a-z0-9-]+", help_text)), script


def test_readme_code_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python blocks run from top to bottom in one namespace, those with prompts as doctests."""
    monkeypatch.chdir(tmp_path)
    readme = root / "README.md"
    namespace: dict[str, object] = {"__name__": "readme"}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    parser = doctest.DocTestParser()
    code = [content for language, content in blocks(readme.read_text()) if language in PYTHON]
    assert code
    for content in code:
        if ">>>" not in content:
            exec(compile(content, str(readme), "exec"), namespace)
            continue
        test = parser.get_doctest(content, {}, "README.md", str(readme), 0)
        test.globs = namespace
        runner.run(test, clear_globs=False)
        assert runner.failures == 0, capsys.readouterr().out
