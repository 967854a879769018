"""What functions use from outside themselves, and functions that use something else instead."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

from pyro.poutine.messenger import _bound_partial
from torch import nn

__all__ = ["captured", "with_modules"]

# What these packages' own functions and objects hold is no part of a user's model.
_LIBRARIES = frozenset({"builtins", "numpy", "ppl_gen", "pyro", "torch"})


def captured(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and value of everything that a function uses from outside itself.

    Looked into are closures, globals, defaults, the arguments of `functools.partial`, the object
    of a method, callable objects, and the functions and objects found in these.

    Args:
        function: A function, method, callable object or module; a module is all that it uses.

    Example:
        >>> scale = 2.0
        >>> [value for _, value in captured(functools.partial(max, scale)) if value == scale]
        [2.0]
    """
    if isinstance(function, nn.Module):
        yield "model", function
        return
    yield from _captured(function, set())


def with_modules(value: Any, modules: Mapping[int, nn.Module]) -> Any:
    """Return a function that uses the modules given in place of its own ones.

    Args:
        value: The function, method, callable object or module; it is left as it is.
        modules: The modules to use, by the id of the one that each replaces.
    """
    return _with_modules(value, modules, {})


def _captured(value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if id(value) in seen:
        return
    seen.add(id(value))
    for name, part in _parts(value):
        yield name, part
        if not isinstance(part, nn.Module):
            yield from _captured(part, seen)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, _bound_partial):
        yield "function", value.func
    elif isinstance(value, functools.partial):
        yield "function", value.func
        yield from ((f"argument {i}", argument) for i, argument in enumerate(value.args))
        yield from value.keywords.items()
    elif isinstance(value, types.MethodType):
        yield "self", value.__self__
        yield "function", value.__func__
    elif isinstance(value, types.FunctionType):
        if _library(value.__module__):
            return
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # a variable that has no value yet
                continue
        yield from _used_globals(value).items()
        yield from ((f"default {i}", given) for i, given in enumerate(value.__defaults__ or ()))
        yield from (value.__kwdefaults__ or {}).items()
    elif _is_plain_object(value):
        yield from vars(value).items()


def _used_globals(function: types.FunctionType) -> dict[str, Any]:
    # `co_names` would not do: it has the names of attributes too.
    steps = dis.get_instructions(function.__code__)
    names = {step.argval for step in steps if step.opname == "LOAD_GLOBAL"}
    return {name: function.__globals__[name] for name in names if name in function.__globals__}


def _is_plain_object(value: Any) -> bool:
    closed = isinstance(value, type | types.ModuleType | nn.Module)
    return not closed and hasattr(value, "__dict__") and not _library(type(value).__module__)


def _library(module: str | None) -> bool:
    return (module or "").split(".")[0] in _LIBRARIES


def _with_modules(value: Any, modules: Mapping[int, nn.Module], memo: dict[int, Any]) -> Any:
    if id(value) in modules:
        return modules[id(value)]
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, nn.Module) or not any(id(p) in modules for _, p in captured(value)):
        return value

    def renew(part: Any) -> Any:
        return _with_modules(part, modules, memo)

    if isinstance(value, _bound_partial):  # what a handler of Pyro makes of a function
        return _bound_partial(renew(value.func))
    if isinstance(value, functools.partial):
        arguments = [renew(argument) for argument in value.args]
        keywords = {name: renew(argument) for name, argument in value.keywords.items()}
        return functools.partial(renew(value.func), *arguments, **keywords)
    if isinstance(value, types.MethodType):
        return types.MethodType(renew(value.__func__), renew(value.__self__))
    if isinstance(value, types.FunctionType):
        return _rebuilt(value, renew, memo)
    # The bare object first: what it holds may refer back to it.
    memo[id(value)] = copied = object.__new__(type(value))
    vars(copied).update({name: renew(part) for name, part in vars(value).items()})
    return copied


def _rebuilt(function: types.FunctionType, renew: Any, memo: dict[int, Any]) -> Any:
    closure = function.__closure__ or ()
    cells = tuple(types.CellType() for _ in closure)
    namespace = dict(function.__globals__)
    rebuilt = types.FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, cells
    )
    memo[id(function)] = rebuilt  # a function may use itself
    used = _used_globals(function)
    renewed = {name: renew(part) for name, part in used.items()}
    if all(renewed[name] is part or part is function for name, part in used.items()):
        # A function without replaced globals keeps seeing the living ones.
        rebuilt = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            cells,
        )
        memo[id(function)] = rebuilt
    namespace.update(renewed)
    for cell, old in zip(cells, closure, strict=True):
        try:
            cell.cell_contents = renew(old.cell_contents)
        except ValueError:  # a variable that has no value yet
            continue
    rebuilt.__module__ = function.__module__
    rebuilt.__dict__.update({name: renew(part) for name, part in function.__dict__.items()})
    defaults = function.__defaults__
    rebuilt.__defaults__ = None if defaults is None else tuple(renew(d) for d in defaults)
    named = function.__kwdefaults__
    rebuilt.__kwdefaults__ = None if named is None else {n: renew(d) for n, d in named.items()}
    return rebuilt
