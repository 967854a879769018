"""Logistic distributions, and mixtures of them, over evenly spaced values such as grey levels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.distributions import constraints

from ppl_gen.core.errors import check_count
from ppl_gen.distributions.discrete import DiscreteDistribution, check_integers, check_parameter

__all__ = ["DiscretizedLogistic", "DiscretizedLogisticMixture"]


class DiscretizedLogisticMixture(DiscreteDistribution):
    r"""A mixture of logistic distributions, rounded to the integers from 0 to `bins` - 1.

    With locations and scales on a scale from -1 to 1, so that bin :math:`i` is about
    :math:`v_i = 2 i / (B - 1) - 1` and half as wide as :math:`1 / (B - 1)` to either side,

    .. math::
        p(i) = \sum_k \pi_k \left[ \sigma\left(\frac{v_i + h - \mu_k}{s_k}\right)
               - \sigma\left(\frac{v_i - h - \mu_k}{s_k}\right) \right], \qquad h = 1 / (B - 1),

    where the first and the last bin take all that is beyond them.

    Args:
        logits: Of the components, `(*batch, component)`.
        loc: Locations, `(*batch, component)`, of the range -1 to 1.
        log_scale: Logarithms of the scales, `(*batch, component)`.
        bins: Number of values.

    Raises:
        TypeError: If a parameter is no tensor of real numbers, or `bins` is no whole number.
        ValueError: If there are fewer than 2 bins, or shapes do not broadcast.

    References:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
        Modifications. Salimans, Karpathy, Chen and Kingma, 2017. arXiv:1701.05517.

    Example:
        >>> zeros = torch.zeros(3, 2)
        >>> grey = DiscretizedLogisticMixture(zeros, zeros, zeros, bins=4)
        >>> grey.log_prob(grey.enumerate_support()).exp().sum(0).round(decimals=4)
        tensor([1., 1., 1.])
    """

    arg_constraints = {  # noqa: RUF012 - as PyTorch has it
        "logits": constraints.independent(constraints.real, 1),
        "loc": constraints.independent(constraints.real, 1),
        "log_scale": constraints.independent(constraints.real, 1),
    }
    has_enumerate_support = True

    def __init__(
        self,
        logits: torch.Tensor,
        loc: torch.Tensor,
        log_scale: torch.Tensor,
        bins: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        check_count("bins", bins)
        if bins < 2:
            raise ValueError(f"bins: expected at least 2, got {bins}.")
        given = {"logits": logits, "loc": loc, "log_scale": log_scale}
        for name, value in given.items():
            check_parameter(name, value)
        try:
            self.logits, self.loc, self.log_scale = torch.broadcast_tensors(*given.values())
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items())
            msg = f"logits, loc and log_scale: expected shapes that broadcast, got {shapes}."
            raise ValueError(msg) from error
        self.bins = bins
        super().__init__(self.loc.shape[:-1], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The integers from 0 to `bins` - 1."""
        return constraints.integer_interval(0, self.bins - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogisticMixture:
        """Return it with another batch shape."""
        new: Any = type(self).__new__(type(self)) if _instance is None else _instance
        shape = torch.Size(batch_shape)
        for name in ("logits", "loc", "log_scale"):
            value = getattr(self, name)
            setattr(new, name, value.expand(shape + value.shape[-1:]))
        new.bins = self.bins
        super(DiscretizedLogisticMixture, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        expanded: DiscretizedLogisticMixture = new
        return expanded

    @property
    def mean(self) -> torch.Tensor:
        """The expected integer, `(*batch,)`."""
        mean: torch.Tensor = (self._probabilities * self._values).sum(-1)
        return mean

    @property
    def variance(self) -> torch.Tensor:
        """Of the integers, `(*batch,)`."""
        centred = self._values - self.mean.unsqueeze(-1)
        variance: torch.Tensor = (self._probabilities * centred.square()).sum(-1)
        return variance

    @property
    def _values(self) -> torch.Tensor:
        return torch.arange(self.bins).to(self.loc)

    @property
    def _probabilities(self) -> torch.Tensor:
        """Of all values, (*batch, bin)."""
        return self.log_prob(self.enumerate_support(expand=False)).exp().movedim(0, -1)

    def _validate_sample(self, value: torch.Tensor) -> None:
        check_integers("value", value, self.bins - 1)
        super()._validate_sample(value)  # its shape

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Return the log probability of integers, broadcast with the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        place = value.unsqueeze(-1).to(self.loc.dtype)
        half = 1 / (self.bins - 1)
        centred = (2 * half) * place - 1 - self.loc
        precision = (-self.log_scale).exp()
        below_upper = F.logsigmoid(precision * (centred + half))
        above_lower = F.logsigmoid(-precision * (centred - half))
        # s(u) - s(l) = s(u) s(-l) (1 - exp(l - u)), of which nothing cancels out far in a tail.
        inside = below_upper + above_lower + (-torch.expm1(-2 * half * precision)).log()
        log_prob = torch.where(
            place < 0.5,
            below_upper,
            torch.where(place > self.bins - 1.5, above_lower, inside),
        )
        mixed: torch.Tensor = torch.logsumexp(log_prob + self.logits.log_softmax(-1), -1)
        return mixed

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Return draws, `(*sample_shape, *batch)`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            logits = self.logits.expand(*shape, -1)
            component = torch.distributions.Categorical(logits=logits, validate_args=False)
            chosen = component.sample().unsqueeze(-1)
            loc, log_scale = (
                value.expand(*shape, -1).gather(-1, chosen).squeeze(-1)
                for value in (self.loc, self.log_scale)
            )
            uniform = torch.rand(shape, dtype=loc.dtype, device=loc.device)
            real = loc + log_scale.exp() * torch.logit(uniform, eps=torch.finfo(loc.dtype).eps)
            places: torch.Tensor = ((real + 1) * (self.bins - 1) / 2).round()
            return places.clamp(0, self.bins - 1).long()

    def enumerate_support(self, expand: bool = True) -> torch.Tensor:
        """Return all values, `(bins, *batch)`, or `(bins, 1, ...)` without expanding."""
        values = torch.arange(self.bins, device=self.loc.device)
        values = values.reshape(-1, *(1,) * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values


class DiscretizedLogistic(DiscretizedLogisticMixture):
    """A logistic distribution, rounded to the integers from 0 to `bins` - 1.

    Args:
        loc: Location, `(*batch,)`, of the range -1 to 1.
        log_scale: Logarithm of the scale, `(*batch,)`.
        bins: Number of values.

    Example:
        >>> DiscretizedLogistic(torch.zeros(3), torch.zeros(3), bins=4).sample().shape
        torch.Size([3])
    """

    def __init__(
        self,
        loc: torch.Tensor,
        log_scale: torch.Tensor,
        bins: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        for name, value in (("loc", loc), ("log_scale", log_scale)):
            check_parameter(name, value)
        loc, log_scale = loc.unsqueeze(-1), log_scale.unsqueeze(-1)
        super().__init__(torch.zeros_like(loc), loc, log_scale, bins, validate_args)
