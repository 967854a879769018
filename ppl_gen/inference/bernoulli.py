"""The log density of many binary values at once, with its gradient from the same pass."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch.autograd.function import once_differentiable

__all__ = ["bernoulli_log_prob"]

# Numbers of at least 1/2 whose product is far from the smallest float32, 2**-126.
_MOST_FACTORS = 64


def bernoulli_log_prob(fn: Any, value: torch.Tensor) -> torch.Tensor | None:
    r"""Return the log density of independent Bernoulli variables, the sum over an event.

    PyTorch's own takes the logarithm of one number for each variable, and the gradient in passes
    of its own. Here, with :math:`s = \sigma(l)` of the logits,

    .. math::
        \sum_i x_i l_i - \max(l_i, 0) + \log \prod_i \max(s_i, 1 - s_i),
        \qquad \nabla_l = x - s,

    where the product is over as many factors as cannot underflow.

    Args:
        fn: The distribution of a site.
        value: Its value, without a gradient; real numbers in [0, 1] are scored as well.

    Returns:
        Shape `fn.batch_shape`; None where the distribution is another one, or given otherwise.

    Example:
        >>> logits = torch.tensor([0.0, 20.0])
        >>> fn = dist.Bernoulli(logits=logits, validate_args=False).to_event(1)
        >>> bernoulli_log_prob(fn, torch.ones(2))
        tensor(-0.6931)
    """
    if type(fn) is not dist.Independent or type(fn.base_dist) is not dist.Bernoulli:
        return None
    logits = vars(fn.base_dist).get("logits")
    if fn.reinterpreted_batch_ndims == 0 or logits is None:
        return None
    if logits.shape != value.shape or logits.dtype != value.dtype:
        return None
    if value.requires_grad or fn._validate_args or value.numel() == 0:
        return None
    if value.dtype not in (torch.float32, torch.float64):
        return None
    axes = fn.reinterpreted_batch_ndims
    flat = logits.flatten(-axes), value.flatten(-axes)
    result: torch.Tensor = _LogProb.apply(*flat)[0]
    return result


class _LogProb(torch.autograd.Function):
    """From logits (*batch, n) and values of that shape to log densities (*batch)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probability = logits.sigmoid()
        gradient = value - probability
        likelier = torch.maximum(probability, 1.0 - probability)
        size = logits.shape[-1]
        factors = max(math.gcd(size, n) for n in range(1, _MOST_FACTORS + 1))
        products = likelier.unflatten(-1, (-1, factors)).prod(-1)
        linear = (value * logits).sub_(logits.clamp(min=0.0))
        return linear.sum(-1) + products.log().sum(-1), gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].unsqueeze(-1), None
