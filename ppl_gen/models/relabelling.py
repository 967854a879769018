"""Finding and applying permutations of components whose labels carry no meaning."""

from __future__ import annotations

import torch

__all__ = ["align", "permute"]


def align(responsibilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Find the order of components that agrees best with given responsibilities.

    Args:
        responsibilities: Probabilities of shape `(draws, n, K)`.
        target: Probabilities of shape `(n, K)`, whose labels are to be taken over.

    Returns:
        Permutations of shape `(draws, K)`: component `k` of the target is component `order[k]` of
        the draw, so that `permute(responsibilities, order)` has the labels of the target. Each
        maximises the expected number of points that both give to the same component.

    Example:
        >>> target = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> align(target.flip(-1)[None], target)
        tensor([[1, 0]])
    """
    from scipy.optimize import linear_sum_assignment

    agreement = (target.mT @ responsibilities).cpu().numpy()  # (draws, K of target, K of draw)
    orders = [torch.as_tensor(linear_sum_assignment(each, maximize=True)[1]) for each in agreement]
    return torch.stack(orders)


def permute(values: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Put the components of each draw in a new order.

    Args:
        values: Values of shape `(draws, K, *rest)`.
        order: Permutations of shape `(draws, K)`.

    Returns:
        Values of the same shape, component `order[:, k]` at place `k`.

    Example:
        >>> permute(torch.tensor([[10.0, 20.0, 30.0]]), torch.tensor([[2, 0, 1]]))
        tensor([[30., 10., 20.]])
    """
    draws = torch.arange(len(values), device=values.device)
    return values[draws[:, None], order.to(values.device)]
