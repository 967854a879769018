"""The places in a page that results are written to, so that no number is typed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Write = Callable[[dict[str, Any]], list[str]]


def write_tables(results: dict[str, Any], page: Path, tables: Mapping[str, Write]) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- end -->` in a page, by table.

    Args:
        results: Results by part.
        page: The page.
        tables: What returns the lines of each table, by its name; a KeyError says that its part
            was not run.

    Raises:
        ValueError: If the page has no place for a table.
    """
    text = page.read_text(encoding="utf-8")
    for name, write in tables.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        if begin not in text:
            raise ValueError(f"{page}: expected a line {begin.strip()!r} for a table, found none.")
        before, after = text.split(begin, 1)
        _, after = after.split(end, 1)
        try:
            lines = write(results)
        except KeyError:
            lines = ["Not measured."]
        text = before + begin + "\n".join(["", *lines, "", ""]) + end + after
    page.write_text(text, encoding="utf-8")
