"""The channels of a pixel given those before them, from features of the pixel as a whole."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ppl_gen.distributions import Elements
from ppl_gen.distributions.elements import LEAST_LOG_SCALE, MOST_LOG_SCALE

__all__ = ["coupled_numbers", "num_coupled"]

# Of larger numbers sums and products overflow in single precision, and what is left is no gradient.
_MOST = 1e30


def num_coupled(elements: Elements, channels: int) -> int:
    """Return how many features of a pixel `coupled_numbers` needs.

    Args:
        elements: What the channels of a pixel are.
        channels: Number of channels of the image.

    Example:
        >>> num_coupled(Elements("logistic_mixture", components=10), 3)
        100
    """
    pairs = channels * (channels - 1) // 2
    if elements.likelihood == "logistic_mixture":
        return elements.components * (1 + 2 * channels + pairs)
    return elements.num_outputs * (channels + pairs)


def coupled_numbers(features: torch.Tensor, x: torch.Tensor, elements: Elements) -> torch.Tensor:
    r"""Return the numbers for each channel of each pixel.

    The features hold numbers for each channel, and coefficients by which they depend linearly on
    the levels :math:`v` of the channels before it, on a scale from -1 to 1. Of a mixture these are
    the locations, and one indicator of the component is shared by all channels of a pixel:

    .. math::
        p(x_1, \ldots, x_C) = \sum_k \pi_k \prod_c p_k(x_c \mid x_1, \ldots, x_{c - 1}), \qquad
        \mu_{k c} = m_{k c} + \sum_{b < c} \alpha_{k c b} v_b

    Features of which sums would overflow are bounded, so that gradients stay finite.

    By the chain rule the channels before one change its weights to those of the components given
    them: :math:`\log \pi_k + \sum_{b < c} \log p_k(x_b \mid \ldots)`, up to a constant.

    Args:
        features: Features of the pixels, `(n, num_coupled, height, width)`.
        x: Values, `(n, channels, height, width)`.
        elements: What the channels of a pixel are.

    Returns:
        Numbers, `(n, channels, height, width, elements.num_outputs)`.

    References:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
        Modifications. Salimans, Karpathy, Chen and Kingma, 2017. arXiv:1701.05517.
    """
    channels = x.shape[1]
    # Log probabilities are summed up: not in the half precision that convolutions may be run in.
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    features = _bounded(features, -_MOST, _MOST)
    x = x.to(features)
    levels = elements.features(x, features)
    if elements.likelihood != "logistic_mixture":
        parts = features.unflatten(1, (-1, elements.num_outputs))
        planes = _linear(parts[:, :channels], parts[:, channels:], levels)
        return torch.stack(planes, dim=1).movedim(2, -1)
    parts = features.unflatten(1, (-1, elements.components))
    logits, log_scales = parts[:, 0], parts[:, 1 : channels + 1]
    log_scales = _bounded(log_scales, LEAST_LOG_SCALE, MOST_LOG_SCALE)
    locs = parts[:, channels + 1 : 2 * channels + 1]
    planes = []
    locs_given_before = _linear(locs, parts[:, 2 * channels + 1 :].tanh(), levels)
    for channel, loc in enumerate(locs_given_before):
        planes.append(torch.cat([logits, loc, log_scales[:, channel]], dim=1))
        if channel + 1 < channels:
            value, level = x[:, channel, None], levels[:, channel, None]
            logits = logits + _log_prob(
                value, level - loc, log_scales[:, channel], elements.categories
            )
    return torch.stack(planes, dim=1).movedim(2, -1)


def _bounded(x: torch.Tensor, least: float, most: float) -> torch.Tensor:
    """Return numbers within bounds, by operators that the compiled sampler follows."""
    low, high = (torch.full((), bound, dtype=x.dtype, device=x.device) for bound in (least, most))
    return torch.minimum(torch.maximum(x, low), high)


def _linear(
    own: torch.Tensor, coefficients: torch.Tensor, levels: torch.Tensor
) -> list[torch.Tensor]:
    """Return numbers that depend linearly on the channels before.

    Args:
        own: Without them, `(n, channel, number, height, width)`.
        coefficients: Of each pair of channels, `(n, pair, number, height, width)`.
        levels: Levels, `(n, channel, height, width)`.
    """
    found = []
    pair = 0
    for channel in range(own.shape[1]):
        numbers = own[:, channel]
        for before in range(channel):
            numbers = numbers + coefficients[:, pair] * levels[:, before, None]
            pair += 1
        found.append(numbers)
    return found


def _log_prob(
    value: torch.Tensor, centred: torch.Tensor, log_scale: torch.Tensor, bins: int
) -> torch.Tensor:
    r"""Return the log probability of values by each component, a `DiscretizedLogistic`.

    .. math::
        \log[\sigma(a) - \sigma(b)] = \log \sigma(a) + \log \sigma(-b) + \log(1 - e^{b - a})

    holds without cancellation; of the first bin only the first term is left, of the last bin only
    the second. It is written in operators that the compiled sampler follows.

    Args:
        value: Integers, broadcast with the components.
        centred: Their levels less the locations.
        log_scale: Logarithms of the scales.
        bins: Number of values.
    """
    half = 1 / (bins - 1)
    precision = (-log_scale).exp()
    upper, lower = precision * (centred + half), precision * (centred - half)
    # 1 - exp(-d), without cancellation: elu is expm1 below zero.
    inside = (-F.elu(precision * (-2 * half))).log()
    # 1, but 0 of the first bin, which has no lower end, and of the last one, which has no upper.
    one = torch.ones((), dtype=value.dtype, device=value.device)
    has_lower = torch.minimum(value, one)
    has_upper = torch.minimum(-value + (bins - 1), one)
    ends = has_upper * F.softplus(-upper) + has_lower * F.softplus(lower)
    return has_lower * has_upper * inside - ends
