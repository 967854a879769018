"""Where a tensor's values lie, which tells recorded tensors apart."""

from __future__ import annotations

import torch

__all__ = ["address_of", "unwrapped"]


def unwrapped(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor inside of those that `vmap` and `grad` wrap around it.

    Args:
        tensor: The tensor.
    """
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def address_of(tensor: torch.Tensor) -> int:
    """Return a number that all views of one storage have in common, for as long as it lives.

    Args:
        tensor: The tensor.
    """
    return int(tensor.untyped_storage()._cdata)
