"""Options of the form key=value."""

from typing import Any

import pytest

from ppl_gen.cli.assignments import assignments, value_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1.5e-3", -0.0015),
        ("true", True),
        ("False", False),
        ("none", None),
        ("(28, 28)", (28, 28)),
        ("[1, 2]", [1, 2]),
        ("mean_field", "mean_field"),
        ("'3'", "3"),
        ("a=b", "a=b"),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
        ("", ""),
    ],
)
def test_values_are_literals_or_text_and_never_run(text: str, value: Any) -> None:
    assert value_of(text) == value
    assert type(value_of(text)) is type(value)


def test_only_the_first_equals_sign_separates() -> None:
    assert assignments(["path=a=b"], "--set") == {"path": "a=b"}


@pytest.mark.parametrize("text", ["draws", "=3", "two words=3", "1draw=3", "a.=3", ".a=3"])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--option: expected NAME=VALUE, got"):
        assignments([text], "--option")


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="--arg gives 'a' twice"):
        assignments(["a=1", "a=2"], "--arg")
