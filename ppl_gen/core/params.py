"""Parameters that live in the pair instead of Pyro's global store."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.messenger import Messenger
from torch import nn
from torch.distributions import constraints, transform_to

__all__ = ["AnswerParams", "adopt_params"]

_ATTRIBUTE = "pyro_params"


class _PyroParams(nn.Module):
    """The unconstrained values of a pair's `pyro.param` statements, by name."""

    def key(self, name: str) -> str:
        """Return a parameter name without the dots that `nn.Module` forbids."""
        return name.replace("%", "%25").replace(".", "%2E")


class AnswerParams(Messenger):
    """Answers every `pyro.param` of a pair's model and guide from the pair itself.

    A parameter seen for the first time is created in the pair, under `pyro_params`; one that a
    `pyro.module` statement announces is a parameter of a module already, and is answered as it is.

    Args:
        pair: The pair that holds the parameters; it gains those that it does not have yet.
    """

    def __init__(self, pair: nn.Module) -> None:
        super().__init__()
        self.pair = pair

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        # PyroModule announces its own parameters by messages of the same type, already answered.
        if getattr(msg["fn"], "__func__", None) is not ParamStoreDict.get_param:
            return
        name, init = msg["name"], msg["args"][1] if len(msg["args"]) > 1 else None
        msg["done"] = True
        if isinstance(init, nn.Parameter):
            msg["value"] = init
            return
        constraint = msg["kwargs"].get("constraint") or constraints.real
        unconstrained = self._find_or_create(name, init, constraint)
        value = transform_to(constraint)(unconstrained)
        if value is unconstrained:
            value = unconstrained.view_as(unconstrained)
        value.unconstrained = weakref.ref(unconstrained)
        msg["value"] = value

    def _find_or_create(
        self, name: str, init: Any, constraint: constraints.Constraint
    ) -> nn.Parameter:
        holder = getattr(self.pair, _ATTRIBUTE, None)
        if holder is None:
            holder = _PyroParams()
            self.pair.add_module(_ATTRIBUTE, holder)
        key = holder.key(name)
        if key not in holder._parameters:
            if init is None:
                msg = f"pyro.param({name!r}) has no initial value and the pair holds none."
                raise KeyError(msg)
            value = init() if callable(init) else torch.as_tensor(init)
            if not value.is_floating_point():
                value = value.to(torch.get_default_dtype())
            with torch.no_grad():
                unconstrained = transform_to(constraint).inv(value.detach()).clone()
            holder.register_parameter(key, nn.Parameter(unconstrained.contiguous()))
        parameter = holder._parameters[key]
        assert isinstance(parameter, nn.Parameter)
        return parameter


def adopt_params(pair: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Make room in a pair for the `pyro.param` values of a saved state.

    Args:
        pair: The pair.
        state: The saved state.
    """
    saved = {n: value for n, value in state.items() if n.startswith(f"{_ATTRIBUTE}.")}
    if saved and not hasattr(pair, _ATTRIBUTE):
        pair.add_module(_ATTRIBUTE, _PyroParams())
    for name, value in saved.items():
        key = name.removeprefix(f"{_ATTRIBUTE}.")
        getattr(pair, _ATTRIBUTE).register_parameter(key, nn.Parameter(torch.empty_like(value)))
