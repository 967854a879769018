"""Arguments of a pair that are objects: networks by their class, trained pairs by their run."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["arguments_of", "parameters_of"]


def parameters_of(maker: type) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class's constructor by name."""
    parameters = inspect.signature(maker).parameters.values()
    # A class without a constructor of its own shows that of nn.Module, which takes anything.
    return {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def arguments_of(
    maker: type, given: Mapping[str, Any], guess: Callable[[str], Any], name: str, prefix: str = ""
) -> dict[str, Any]:
    """Return the arguments that an object is to be made with, those that are objects made.

    Args:
        maker: Its class.
        given: Arguments by name; those of an argument that is an object as `network.features`.
        guess: From the name of an argument to what the data say about it, or None.
        name: What the object is called, for messages.
        prefix: What its arguments' names begin with, for messages.

    Raises:
        TypeError: If an argument has arguments, and is no object.
        ValueError: If an argument is unknown or missing, or there is no such class.
    """
    from ppl_gen.core.errors import unknown

    known = parameters_of(maker)
    found: dict[str, Any] = {}
    for key in given:
        if key.partition(".")[0] not in known:
            raise unknown(f"argument of {maker.__name__}", key, known or ["none"])
    for key, parameter in known.items():
        inner = {k.partition(".")[2]: v for k, v in given.items() if k.startswith(f"{key}.")}
        # Of a file that does not postpone them annotations are classes, and not their names.
        kind = str(getattr(parameter.annotation, "__name__", parameter.annotation))
        make, how = _MAKERS.get(kind, (_plain, "{0}=VALUE"))
        full = f"{prefix}{key}"
        if key in given or (inner and parameter.default is not parameter.empty):
            found[key] = make(full, given.get(key, parameter.default), inner, guess)
        elif (value := guess(key)) is not None:
            found[key] = value
        elif parameter.default is parameter.empty:
            raise ValueError(
                f"{name} lacks its argument '{full}': give it by --arg {how.format(full)}."
            )
    return found


_Guess = Callable[[str], Any]


def _plain(name: str, value: Any, inner: Mapping[str, Any], guess: _Guess) -> Any:
    if inner:
        raise TypeError(
            f"--arg {name}.{next(iter(inner))}: {name} has no arguments of its own. Give it by "
            f"--arg {name}=VALUE."
        )
    return value


def _network(name: str, value: Any, inner: Mapping[str, Any], guess: _Guess) -> Any:
    """Return a network from the name of its class."""
    from ppl_gen.core.errors import unknown
    from ppl_gen.distributions import AutoregressiveNetwork
    from ppl_gen.models import networks

    exported = {key: getattr(networks, key) for key in networks.__all__}
    classes = {
        key: found
        for key, found in exported.items()
        if isinstance(found, type) and issubclass(found, AutoregressiveNetwork)
    }
    if value not in classes:
        raise unknown("network", value, classes)
    made = classes[value]
    return made(**arguments_of(made, inner, guess, str(value), f"{name}."))


def _elements(name: str, value: Any, inner: Mapping[str, Any], guess: _Guess) -> Any:
    """Return what elements are from the name of their likelihood, or changed from the default."""
    from ppl_gen.distributions import Elements

    start = value if isinstance(value, Elements) else Elements(value)
    given = arguments_of(Elements, inner, lambda _: None, "Elements", f"{name}.")
    return dataclasses.replace(start, **given)


def _of_run(name: str, value: Any, inner: Mapping[str, Any], guess: _Guess) -> Any:
    """Return the pair of a run from its folder."""
    from ppl_gen.core import load

    pair = load(_plain(name, str(value), inner, guess)).pair
    if pair is None:
        raise ValueError(
            f"--arg {name}={value}: expected the run of a built-in pair, got one of a pair from a "
            "file, and no code is taken from a folder."
        )
    return pair


# By the annotation of an argument: what makes it, and how it is asked for.
_MAKERS: dict[str, tuple[Callable[..., Any], str]] = {
    "AutoregressiveNetwork": (
        _network,
        "{0}=CLASS, such as GatedPixelCNN, with arguments of its own by --arg {0}.features=16",
    ),
    "Elements": (_elements, "{0}=LIKELIHOOD"),
    "AutoregressiveLikelihood": (_of_run, "{0}=RUN, the folder of its fit"),
}
