"""Mu-law companding: amplitudes as few levels that are close together where it is quiet."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.distributions import Categorical, constraints

from ppl_gen.core.errors import check_count
from ppl_gen.distributions.discrete import (
    DiscreteDistribution,
    check_integers,
    check_parameter,
    check_tensor,
)

__all__ = ["MuLawCategorical", "mu_law_decode", "mu_law_encode"]

# By so many an amplitude of 1 may have come out larger, after a few operations.
_ROUNDINGS = 4


def mu_law_encode(waveform: torch.Tensor, levels: int = 256) -> torch.Tensor:
    r"""Return the mu-law levels of amplitudes.

    With :math:`\mu` one less than the number of levels, amplitude :math:`a` has level

    .. math::
        \left\lfloor \tfrac{\mu}{2} (f(a) + 1) + \tfrac12 \right\rfloor, \qquad
        f(a) = \operatorname{sign}(a) \frac{\ln(1 + \mu |a|)}{\ln(1 + \mu)}.

    Args:
        waveform: Amplitudes in [-1, 1], of any shape, in a floating-point dtype.
        levels: Number of levels.

    Returns:
        Integers from 0 to `levels` - 1, of that shape, in int64.

    Raises:
        TypeError: If it is no tensor, or one of whole numbers.
        ValueError: If an amplitude is out of range, or there are fewer than 2 levels.

    References:
        Pulse Code Modulation (PCM) of Voice Frequencies. ITU-T Recommendation G.711, 1988.
        Its levels of 8 bits are rounded otherwise; these are the ones of WaveNet and torchaudio.

    Example:
        >>> mu_law_encode(torch.tensor([-1.0, -0.01, 0.0, 0.01, 1.0]))
        tensor([  0,  98, 128, 157, 255])
    """
    mu = _mu(levels)
    check_amplitudes(waveform)
    return _nearest(waveform, mu)


def mu_law_decode(level: torch.Tensor, levels: int = 256) -> torch.Tensor:
    """Return the amplitudes of mu-law levels; `mu_law_encode` of them is the level again.

    Args:
        level: Integers from 0 to `levels` - 1, of any shape and dtype.
        levels: Number of levels.

    Returns:
        Amplitudes in [-1, 1], of that shape, in the levels' dtype if it is a floating-point one,
        else in the default one.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If a level is out of range or no whole number, or there are fewer than 2 levels.

    Example:
        >>> mu_law_decode(torch.tensor([0, 128, 255])).tolist()
        [-1.0, 8.621...e-05, 1.0]
    """
    mu = _mu(levels)
    check_tensor("level", level)
    check_integers("level", level, mu)
    real = level if level.is_floating_point() else level.to(torch.get_default_dtype())
    return _amplitude(real, mu)


class MuLawCategorical(DiscreteDistribution):
    r"""A distribution over the amplitudes that mu-law levels stand for.

    It is discrete: its support are the amplitudes that `mu_law_decode` returns, one for each of
    the logits, and its log probabilities are those of the levels. Amplitudes between two of them
    are none of its values: bring a waveform to them by
    `mu_law_decode(mu_law_encode(waveform))`. Where validation is off, they count as the level that
    they would be given.

    Args:
        logits: Unnormalized log probabilities of the levels, `(*batch, level)`.

    Raises:
        TypeError: If they are no tensor of real numbers.
        ValueError: If there are fewer than 2 levels.

    References:
        WaveNet: A Generative Model for Raw Audio. van den Oord et al., 2016. arXiv:1609.03499.

    Example:
        >>> sample = MuLawCategorical(torch.zeros(3, 256))
        >>> amplitudes = mu_law_decode(torch.tensor([0, 100, 255]))
        >>> sample.log_prob(amplitudes).exp() * 256
        tensor([1., 1., 1.])
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012 - as PyTorch has it
    has_enumerate_support = True

    def __init__(self, logits: torch.Tensor, validate_args: bool | None = None) -> None:
        check_parameter("logits", logits)
        if logits.ndim == 0 or logits.shape[-1] < 2:
            msg = (
                "logits: expected shape (*batch, level) with at least 2 levels, got "
                f"{tuple(logits.shape)}."
            )
            raise ValueError(msg)
        self.logits = logits
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @property
    def levels(self) -> int:
        """Number of levels."""
        return self.logits.shape[-1]

    @property
    def support(self) -> constraints.Constraint:
        """The amplitudes of the levels."""
        return _Amplitudes(self.levels)

    @property
    def probs(self) -> torch.Tensor:
        """Probabilities of the levels, `(*batch, level)`."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> torch.Tensor:
        """The expected amplitude, `(*batch,)`."""
        return (self.probs * self._amplitudes).sum(-1)

    @property
    def variance(self) -> torch.Tensor:
        """Of the amplitude, `(*batch,)`."""
        centred = self._amplitudes - self.mean.unsqueeze(-1)
        return (self.probs * centred.square()).sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MuLawCategorical:
        """Return it with another batch shape."""
        made: Any = self
        new: MuLawCategorical = made._get_checked_instance(MuLawCategorical, _instance)
        shape = torch.Size(batch_shape)
        new.logits = self.logits.expand(*shape, self.levels)
        super(MuLawCategorical, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Return the log probability of amplitudes, broadcast with the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        level = _nearest(value, self.levels - 1)
        log_prob: torch.Tensor = Categorical(logits=self.logits, validate_args=False).log_prob(
            level
        )
        return log_prob

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Return draws, `(*sample_shape, *batch)`."""
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            level = Categorical(logits=self.logits, validate_args=False).sample(shape)
            return self._amplitudes[level]

    def enumerate_support(self, expand: bool = True) -> torch.Tensor:
        """Return all amplitudes, `(level, *batch)`, or `(level, 1, ...)` without expanding."""
        values = self._amplitudes.reshape(-1, *(1,) * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values

    @property
    def _amplitudes(self) -> torch.Tensor:
        mu = self.levels - 1
        return _amplitude(torch.arange(mu + 1).to(self.logits), mu)


def check_amplitudes(waveform: torch.Tensor) -> None:
    """Refuse a waveform with amplitudes out of range, but for the rounding of its dtype.

    Args:
        waveform: Amplitudes that should be in [-1, 1], of any shape.

    Raises:
        TypeError: If it is no tensor, or one of whole numbers.
        ValueError: If one is out of range.
    """
    check_tensor("waveform", waveform)
    if not waveform.is_floating_point():
        msg = (
            f"waveform: expected amplitudes from -1 to 1 as real numbers, got {waveform.dtype}. "
            "Write waveform / 32768 for samples of 16 bits."
        )
        raise TypeError(msg)
    largest = float(waveform.detach().abs().max()) if waveform.numel() else 0.0
    if not largest <= 1 + _ROUNDINGS * torch.finfo(waveform.dtype).eps:
        msg = (
            f"waveform: expected amplitudes from -1 to 1, got {largest:g}. Divide 16-bit samples "
            "by 32768, or the waveform by its largest amplitude."
        )
        raise ValueError(msg)


class _Amplitudes(constraints.Constraint):
    """The amplitudes of mu-law levels, to the rounding of their dtype."""

    is_discrete = True

    def __init__(self, levels: int) -> None:
        self.mu = levels - 1

    def check(self, value: torch.Tensor) -> torch.Tensor:
        value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
        exact = _amplitude(_nearest(value, self.mu).to(value), self.mu)
        # Exponentials of different devices and dtypes differ in the last digits.
        return (value - exact).abs() <= 16 * torch.finfo(value.dtype).eps


def at_least_single(x: torch.Tensor) -> torch.Tensor:
    """Return numbers in single precision, where they are in less of it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mu(levels: int) -> int:
    check_count("levels", levels)
    if levels < 2:
        raise ValueError(f"levels: expected at least 2, got {levels}.")
    return levels - 1


def _nearest(waveform: torch.Tensor, mu: int) -> torch.Tensor:
    waveform = at_least_single(waveform)
    compressed = waveform.sign() * (mu * waveform.abs()).log1p() / math.log1p(mu)
    return ((compressed + 1) * (mu / 2) + 0.5).floor().clamp(0, mu).long()


def _amplitude(level: torch.Tensor, mu: int) -> torch.Tensor:
    compressed = at_least_single(level) * (2 / mu) - 1
    size = (compressed.abs() * math.log1p(mu)).expm1() / mu
    return (compressed.sign() * size.clamp(max=1.0)).to(level.dtype)
