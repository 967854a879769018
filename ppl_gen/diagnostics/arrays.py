"""Numbers of whatever library as NumPy's doubles."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_double", "rounding_of"]


def as_double(values: Any) -> NDArray[np.float64]:
    """Return numbers as an array of doubles, which may share memory with what was given.

    Args:
        values: A NumPy array, a torch tensor on any device, also one that needs gradients or is of
            a type that NumPy does not have, or nested sequences of numbers.

    Returns:
        The same numbers, of the same shape.

    Example:
        >>> import torch
        >>> as_double(torch.tensor([0.5, 2.0], dtype=torch.bfloat16, requires_grad=True))
        array([0.5, 2. ])
    """
    if hasattr(values, "detach"):
        # The device may have no doubles, and NumPy has not all of torch's types.
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def rounding_of(values: Any) -> float:
    """Return the relative rounding of the type that numbers come in.

    Args:
        values: As for `as_double`.

    Returns:
        The distance from 1 to the next larger number; 0 for integers.

    Example:
        >>> rounding_of(np.ones(3, dtype=np.float32)) == 2**-23
        True
    """
    if hasattr(values, "detach"):
        import torch

        return torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
    dtype = np.asarray(values).dtype
    return float(np.finfo(dtype).eps) if np.issubdtype(dtype, np.floating) else 0.0
