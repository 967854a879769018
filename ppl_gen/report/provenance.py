"""Where the posteriors came from, what all of them share told once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from ppl_gen.report.view import View

__all__ = ["provenance"]

Facts: TypeAlias = dict[str, str]

_LONGEST = 200
# What the fit found of its own few draws, and the judge of many more.
_JUDGED_ANEW = ("pareto_k", "pareto_k_error", "importance_ess")
# An optimisation that has come to its end may have ended anywhere.
_NAMES = {"converged": "optimisation ended"}


def provenance(view: View) -> dict[str, Facts]:
    """Return what is known of each posterior's making, by its name.

    Args:
        view: What was found.

    Returns:
        Facts by name, by posterior. What several posteriors have in common is under "all" first.
    """
    by_method = {
        name: dict(_flat({k: v for k, v in facts.items() if k not in _JUDGED_ANEW}))
        for name, facts in view.assessment.provenance.items()
        if facts
    }
    if len(by_method) < 2:
        return by_method
    first, *others = by_method.values()
    shared = {
        key: value for key, value in first.items() if all(o.get(key) == value for o in others)
    }
    own = {
        name: {key: value for key, value in facts.items() if key not in shared}
        for name, facts in by_method.items()
    }
    return ({"": shared} if shared else {}) | {name: facts for name, facts in own.items() if facts}


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in facts.items():
        name = f"{prefix}{_NAMES.get(key, key)}".replace("_", " ")
        if isinstance(value, Mapping):
            found += _flat(value, f"{name}: ")
        elif value is not None:
            text = _text(value)
            short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\N{HORIZONTAL ELLIPSIS}"
            found.append((name, short))
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
