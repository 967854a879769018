"""Model/guide pairs: the module class, and plain functions taken as pairs."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import _bound_partial, _context_wrap
from torch import nn

from ppl_gen.core.closure import captured, with_modules

__all__ = [
    "FunctionPair",
    "Pair",
    "as_pair",
    "cast",
    "guide_of",
    "model_of",
    "own_copy",
    "pair_config",
    "prepare",
    "signature",
]


class Pair(nn.Module):
    """A generative model with, where it has one, its guide, in plain Pyro.

    Subclasses write `model(**data)` and may write `guide(**data)` with the same arguments. Two
    more methods are optional: `validate(**data)` raises a `ValueError` on data that the model
    cannot be run on, and is called once for a whole data set; `prepare(**data)` returns the data
    after random pre-processing which model and guide must share, such as drawing binary pixels,
    and is called on every mini-batch.

    Parameters may be `nn.Parameter`s, Pyro's `PyroParam`s or `pyro.param` statements: all of them
    live in the module after a fit, and to MCMC all of them are constants.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> class Coin(Pair):
        ...     def model(self, flips):
        ...         p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...         with pyro.plate("data", len(flips)):
        ...             pyro.sample("flips", dist.Bernoulli(p), obs=flips)
        >>> list(signature(Coin()).parameters)
        ['flips']
    """

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """Run the generative model once, in plain Pyro; subclasses write it."""
        msg = f"{type(self).__name__} has no model: write `def model(self, **data)`."
        raise NotImplementedError(msg)


class FunctionPair(nn.Module):
    """A bare Pyro function, or a model and a guide, as a pair.

    Modules that the functions use from outside (in a closure, a global, a `functools.partial`, or
    the object that a method belongs to) become submodules of the pair; a copy of the pair uses
    copies of them, so that a fit leaves the originals alone.

    Args:
        model: The model, a function or a module, in plain Pyro.
        guide: The guide with the model's arguments, or None.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any] | None = None) -> None:
        super().__init__()
        functions = [model] if guide is None else [model, guide]
        self._used = nn.ModuleList(
            {id(module): module for fn in functions for module in _modules_of(fn)}.values()
        )
        self.model = model
        if guide is not None:
            self.guide = guide

    def __deepcopy__(self, memo: dict[int, Any]) -> FunctionPair:
        """Return a copy whose functions use copies of the modules."""
        used = {id(module): copy.deepcopy(module, memo) for module in self._used}
        guide = guide_of(self)
        pair = FunctionPair(
            with_modules(self.model, used),
            None if guide is None else with_modules(guide, used),
        )
        for name, module in self._modules.items():
            if name not in pair._modules and module is not None:
                pair.add_module(name, copy.deepcopy(module, memo))
        return pair


def as_pair(pair: Any) -> nn.Module:
    """Return a pair from whatever stands for one.

    Args:
        pair: A module with a `model` method, a Pyro function or module to be called, or a tuple
            `(model, guide)` of those.

    Returns:
        The module itself, or a `FunctionPair`.

    Raises:
        TypeError: If it is none of these.
    """
    if isinstance(pair, nn.Module) and callable(getattr(pair, "model", None)):
        return pair
    if isinstance(pair, tuple) and len(pair) == 2 and all(callable(part) for part in pair):
        return FunctionPair(*pair)
    if isinstance(pair, type):
        msg = f"expected a pair, got the class {pair.__name__}. Create it: {pair.__name__}(...)."
        raise TypeError(msg)
    if callable(pair):
        return FunctionPair(pair)
    msg = (
        f"expected a pair, got {type(pair).__name__}. Give a module with a `model` method, a Pyro "
        "function, or a tuple (model, guide)."
    )
    raise TypeError(msg)


def model_of(pair: nn.Module) -> Callable[..., Any]:
    """Return the pair's model."""
    model = pair.model
    assert callable(model)
    return model


def own_copy(pair: nn.Module) -> nn.Module:
    """Return a copy of a pair whose Pyro modules keep their parameters to themselves."""
    # To copy an AutoGuide of Pyro takes its model away, from the copy and from itself.
    autoguides = [
        (module, vars(module)["_model"], vars(module)["master"])
        for module in pair.modules()
        if isinstance(vars(module).get("_model"), tuple)
    ]
    copied = copy.deepcopy(pair)
    copies = {id(a): b for a, b in zip(pair.modules(), copied.modules(), strict=True)}
    for guide, model, master in autoguides:
        vars(guide).update(_model=model, master=master)
        vars(copies[id(guide)])["_model"] = tuple(with_modules(part, copies) for part in model)
    for module in copied.modules():
        context = getattr(module, "_pyro_context", None)
        # Pyro makes this dictionary only while its setting module_local_params is on.
        if context is not None and not hasattr(context, "param_state"):
            context.param_state = {"params": {}, "constraints": {}}
    return copied


def guide_of(pair: nn.Module) -> Callable[..., Any] | None:
    """Return the pair's own guide, or None where it has none."""
    guide = getattr(pair, "guide", None)
    return guide if callable(guide) else None


def signature(pair: nn.Module, part: str = "model") -> inspect.Signature:
    """Return the signature of a pair's model or guide.

    Args:
        pair: A pair.
        part: "model" or "guide".
    """
    function = _without_handlers(getattr(pair, part))
    return inspect.signature(function.forward if isinstance(function, nn.Module) else function)


def _without_handlers(function: Any) -> Any:
    """Return the function that Pyro's handlers were put around as decorators."""
    while True:
        if isinstance(function, _bound_partial):
            function = function.func
        elif isinstance(function, functools.partial) and function.func is _context_wrap:
            function = function.args[1]
        else:
            return function


def prepare(pair: nn.Module, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch after the pair's own random pre-processing, if it has any."""
    hook = getattr(pair, "prepare", None)
    return dict(data) if hook is None else dict(hook(**data))


def pair_config(pair: object) -> dict[str, Any]:
    """Return the constructor arguments of a built-in pair, which it keeps under their own names.

    The same goes for what a pair is made of, such as a network.
    """
    parameters = inspect.signature(type(pair)).parameters.values()
    # A class without a constructor of its own shows that of nn.Module, which takes anything.
    named = (p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    return {name: getattr(pair, name) for name in named}


def _modules_of(function: Callable[..., Any]) -> list[nn.Module]:
    return [value for _, value in captured(function) if isinstance(value, nn.Module)]


def cast(pair: nn.Module, dtype: torch.dtype | None, device: torch.device) -> nn.Module:
    """Move a pair's parameters, buffers and plain tensor attributes, in place.

    Args:
        pair: The pair, or a copy of it.
        dtype: Dtype of its floating-point tensors, or None to leave them.
        device: Where it is to run.

    Returns:
        The same pair.
    """
    pair.to(device=device, dtype=dtype)
    for module in pair.modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                keep = dtype is None or not value.is_floating_point()
                vars(module)[name] = value.to(device, None if keep else dtype)
    return pair
