"""Many draws of a Pyro program at once, under `vmap`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["OwnNoise", "run_together"]

_Out = TypeVar("_Out")


def run_together(function: Callable[[], _Out], count: int) -> _Out:
    """Return what a function that draws random numbers returns in so many calls, stacked.

    Args:
        function: Called once, for all; it returns tensors in dictionaries, lists or tuples.
        count: How many.

    Raises:
        RuntimeError: If something in the function cannot be batched.
    """

    def one(blank: torch.Tensor) -> _Out:
        with OwnNoise(blank):
            return function()

    with warnings.catch_warnings():
        # An operator without a batching rule is run draw by draw, with the same result.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        stacked: _Out = torch.func.vmap(one, randomness="different")(torch.zeros(count))
    return stacked


class OwnNoise(TorchFunctionMode):
    """Makes empty tensors those of each draw, under `vmap`.

    PyTorch's distributions fill an empty tensor with noise in place, which `vmap` refuses for a
    tensor that all draws would share.

    Args:
        like: A batched tensor.
    """

    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()
        self.like = like

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator of torch; see `TorchFunctionMode`."""
        given = dict(kwargs or {})
        if func is torch.empty and args and isinstance(args[0], torch.Size | tuple | list):
            given = {"dtype": torch.get_default_dtype()} | {
                name: value for name, value in given.items() if value is not None
            }
            return self.like.new_empty(args[0], **given)
        if func is torch.Tensor.new and len(args) == 2 and isinstance(args[1], torch.Size):
            return self.like.new_empty(args[1], dtype=args[0].dtype, device=args[0].device)
        return func(*args, **given)
