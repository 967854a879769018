"""Running a function over many draws: all at once where PyTorch can, one by one where not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["map_draws"]

_CHUNK_BYTES = 64 * 2**20

Values = Mapping[str, torch.Tensor]


class _BatchedMemory(TorchFunctionMode):
    """Gives each draw memory of its own where a function asks for some that is still to be filled.

    Distributions draw by `torch.empty(shape).normal_()`, which `torch.func.vmap` refuses on memory
    that all draws share.

    Args:
        like: A tensor of each draw.
    """

    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()
        self.like = like

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("out") is None:
            kind = {
                "dtype": kwargs.get("dtype") or torch.get_default_dtype(),
                "device": kwargs.get("device") or torch.get_default_device(),
            }
            return self.like.new_empty(*args, **{**kwargs, **kind})
        if func is torch.Tensor.new_empty or (func is torch.Tensor.new and _is_size(args[1:])):
            tensor, *size = args
            kind = {"dtype": tensor.dtype, "device": tensor.device}
            return self.like.new_empty(*size, **{**kind, **kwargs})
        return func(*args, **kwargs)


def _is_size(arguments: tuple[Any, ...]) -> bool:
    return bool(arguments) and all(isinstance(size, int | torch.Size) for size in arguments)


def map_draws(
    function: Callable[[Values], Values],
    draws: Values,
    *,
    num_draws: int | None = None,
    bytes_per_draw: int = 0,
) -> dict[str, torch.Tensor]:
    """Apply a function to every draw and stack what it returns.

    `torch.func.vmap` runs the draws together; where a model cannot be batched that way (a branch
    on a value, an operator without a rule), they run one after the other, with the same result.

    Args:
        function: From the values of one draw by name to tensors by name. It may be random.
        draws: Values by name, each with a leading axis of draws; may be empty.
        num_draws: The number of draws, needed only where `draws` is empty.
        bytes_per_draw: Memory that one call needs besides what it returns, such as the data's.

    Returns:
        What the function returns, by name, each with the leading axis of draws, on the CPU.
    """
    if num_draws is None:
        num_draws = len(next(iter(draws.values())))
    first = function({name: value[0] for name, value in draws.items()})
    if not first:
        return {}
    size = sum(value.numel() * value.element_size() for value in first.values())
    chunk = max(1, min(num_draws, _CHUNK_BYTES // max(size, bytes_per_draw, 1)))
    dummy = torch.zeros(num_draws)  # vmap wants a batched argument even where nothing is drawn

    def one(values: Values, like: torch.Tensor) -> Values:
        with _BatchedMemory(like):
            return dict(function(values))

    batched = torch.func.vmap(one, randomness="different")
    chunks: list[Values] = []
    try:
        with warnings.catch_warnings():
            # An operator without a batching rule is run draw by draw, with the same result.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            for start in range(0, num_draws, chunk):
                part = slice(start, start + chunk)
                result = batched({name: value[part] for name, value in draws.items()}, dummy[part])
                chunks.append({name: value.cpu() for name, value in result.items()})
    except (RuntimeError, ValueError, NotImplementedError):
        chunks = []
        for i in range(num_draws):
            values = function({name: value[i] for name, value in draws.items()})
            chunks.append({name: value.unsqueeze(0).cpu() for name, value in values.items()})
    return {name: torch.cat([part[name] for part in chunks]) for name in first}
