"""Built-in pairs and guides as JSON: their class, and the arguments that they were made with.

Arguments may be networks and options of ours, which are described in the same way. Nothing that a
description names is imported: classes are looked up by name in a few packages of our own.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ppl_gen.core.errors import LoadError, unknown
from ppl_gen.core.pair import pair_config
from ppl_gen.core.scope import seeded

__all__ = [
    "GUIDES",
    "PAIRS",
    "describe",
    "differences",
    "differences_of_parts",
    "flat",
    "is_whole",
    "rebuild",
]

PAIRS = "ppl_gen.models"
GUIDES = "ppl_gen.inference.guides"
# Where the classes of arguments are looked up.
_PARTS = ("ppl_gen.models.networks", "ppl_gen.distributions", PAIRS)
_KEYS = {"class", "config"}


def describe(thing: Any, *packages: str) -> dict[str, Any]:
    """Return what rebuilds an object of a built-in class; of any other only the class's name.

    Args:
        thing: The object.
        packages: Where its class is looked up.

    Returns:
        Its "class" and its "config": the arguments by name, or None.
    """
    name = type(thing).__name__
    built_in = any(_exported(package).get(name) is type(thing) for package in packages)
    if not built_in:
        return {"class": name, "config": None}
    arguments = pair_config(thing).items()
    return {"class": name, "config": {argument: _plain(value) for argument, value in arguments}}


def is_whole(described: Mapping[str, Any]) -> bool:
    """Return whether an object can be rebuilt, with all that it was made of.

    Args:
        described: What `describe` returned.
    """
    config = described["config"]
    return config is not None and all(is_whole(part) for part in _parts(list(config.values())))


def rebuild(described: Mapping[str, Any], *packages: str) -> nn.Module:
    """Return a module like the one that was described, with other first weights.

    Args:
        described: What `describe` returned, whole.
        packages: Where its class is looked up.

    Raises:
        LoadError: If there is no such class, or it cannot be made with these arguments.
    """
    with seeded(0):
        rebuilt = _rebuilt(described, packages)
    assert isinstance(rebuilt, nn.Module)
    return rebuilt


def flat(described: Mapping[str, Any], name: str = "class") -> dict[str, Any]:
    """Return a description as plain values by name.

    Args:
        described: What `describe` returned.
        name: What the class itself is called.

    Example:
        >>> part = {"class": "MADE", "config": {"hidden_sizes": [500]}}
        >>> flat({"class": "AutoregressiveImage", "config": {"network": part}})
        {'class': 'AutoregressiveImage', 'network': 'MADE', 'network.hidden_sizes': [500]}
    """
    found = {name: described["class"]}
    prefix = "" if name == "class" else f"{name}."
    for argument, value in (described["config"] or {}).items():
        here = f"{prefix}{argument}"
        found |= flat(value, here) if _is_described(value) else {here: value}
    return found


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """Return in words what two descriptions differ in, by name.

    Of parts of two classes only these are named.

    Args:
        before: What `describe` returned.
        after: Another one.

    Example:
        >>> before, after = ({"class": "MADE", "config": {"width": n}} for n in (1, 2))
        >>> differences(before, after)
        {'width': 'was 1, is 2'}
    """
    were, are = flat(before), flat(after)
    both = {name: (were.get(name, "none"), are.get(name, "none")) for name in were | are}
    found = {name: f"was {old}, is {new}" for name, (old, new) in both.items() if old != new}
    return {
        name: words
        for name, words in found.items()
        if not any(name.startswith(f"{other}.") for other in found)
    }


def differences_of_parts(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """Return the same for what the arguments are made of, such as networks, alone.

    Args:
        before: What `describe` returned.
        after: Another one.
    """
    parts = [
        name
        for one in (before, after)
        for name, value in (one["config"] or {}).items()
        if _is_described(value)
    ]
    found = differences(before, after).items()
    return {name: words for name, words in found if name.partition(".")[0] in parts}


def _plain(value: Any) -> Any:
    """Return an argument as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return describe(value, *_PARTS)


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the descriptions in an argument, those inside of them left out."""
    if _is_described(value):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _parts(item)


def _rebuilt(described: Mapping[str, Any], packages: Sequence[str]) -> Any:
    classes = {name: value for package in packages for name, value in _exported(package).items()}
    if described["class"] not in classes:
        raise LoadError(str(unknown("class", described["class"], classes)))
    arguments = {name: _revived(value) for name, value in described["config"].items()}
    try:
        return classes[described["class"]](**arguments)
    except (TypeError, ValueError) as error:
        msg = (
            f"a {described['class']} cannot be made as it was saved: {str(error).rstrip('.')}. "
            "Load it with the version of ppl-gen that wrote it, or pass the pair in."
        )
        raise LoadError(msg) from error


def _revived(value: Any) -> Any:
    """Undo `_plain`; tuples have become lists."""
    if _is_described(value):
        return _rebuilt(value, _PARTS)
    if isinstance(value, Mapping):
        return {key: _revived(item) for key, item in value.items()}
    return [_revived(item) for item in value] if isinstance(value, list) else value


def _is_described(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == _KEYS


def _exported(package: str) -> dict[str, type]:
    """Return the classes that a package of ours exports, by name."""
    module = importlib.import_module(package)
    exported = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in exported.items() if isinstance(value, type)}
