"""Waveforms by an autoregressive network."""

from __future__ import annotations

import math
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import pyro
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch.distributions import constraints

from ppl_gen.core.errors import SiteError, check_count
from ppl_gen.core.pair import pair_config
from ppl_gen.distributions import (
    Autoregressive,
    AutoregressiveNetwork,
    mu_law_decode,
    mu_law_encode,
)
from ppl_gen.distributions.discrete import check_integers, check_tensor
from ppl_gen.distributions.mu_law import at_least_single, check_amplitudes
from ppl_gen.models.autoregressive_likelihood import AutoregressiveLikelihood
from ppl_gen.models.checks import check_positive

__all__ = ["AutoregressiveAudio"]

# The last network of another length of each, so that the next draw finds its sampler made.
_of_other_length: WeakKeyDictionary[AutoregressiveNetwork, AutoregressiveNetwork] = (
    WeakKeyDictionary()
)


class AutoregressiveAudio(AutoregressiveLikelihood):
    r"""Waveforms whose samples come one after the other, each given those before it.

    .. math::
        \log p(x \mid y) = \sum_t \log p(x_t \mid x_1, \ldots, x_{t - 1}, y)

    There are no latents: `SVI(guide="pair")` maximizes the likelihood of the network's parameters,
    which to MCMC are constants. With `prior_scale` it maximizes their posterior density.

    Samples are integers as the network's elements are, from 0 to `levels` - 1: `encode` makes them
    of a waveform, and `decode` goes back. Recordings are of various lengths, and rows of one: a
    mask says which samples are scored. So `ppl_gen.data.cut` makes rows of recordings, each but
    the first of a recording with a past of `network.receptive_field` samples, whose log
    probabilities add up to those of the recordings.

    Site: "x" `(length,)`, observed, in the plate "data".

    Args:
        network: A network of sequences, such as `WaveNet`; it is trained in a copy.
        num_classes: Number of classes that waveforms are given by, of which the network is told as
            a vector of a one among zeros: make it with `context_size=num_classes`. None: there are
            none.
        prior_scale: Scale (a standard deviation) of a normal prior of every parameter, centred at
            zero; None: all values are as likely.
        rate: Samples a second.
        mu_law: Whether levels are those of the mu-law, which suits 256 of them; else they are
            evenly spaced, which suits 65,536, 16-bit samples.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the network is of no sequences, its context is no such vector, or a number
            is not positive.

    References:
        WaveNet: A Generative Model for Raw Audio. A. van den Oord et al., 2016. arXiv:1609.03499.

    Example:
        >>> from ppl_gen.data import cut
        >>> from ppl_gen.models.networks import WaveNet
        >>> network = WaveNet(60, features=8, skip=8, layers=4, cycle=4, context_size=10)
        >>> pair = AutoregressiveAudio(network, num_classes=10)
        >>> recordings, digits = [torch.zeros(100), torch.zeros(50)], torch.tensor([3, 7])
        >>> rows = cut(recordings, network.length, network.receptive_field)
        >>> x, y = pair.encode(rows.x), digits[rows.source]
        >>> pair.log_prob(x, y, rows.mask).shape, pair.sample(digits, seconds=0.01).shape
        (torch.Size([3]), torch.Size([2, 80]))
    """

    unit: ClassVar[str] = "samples"
    rate: int

    def __init__(
        self,
        network: AutoregressiveNetwork,
        num_classes: int | None = None,
        prior_scale: float | None = None,
        rate: int = 8000,
        mu_law: bool = True,
    ) -> None:
        super().__init__(network, num_classes, prior_scale)
        if len(network.event_shape) != 1:
            msg = (
                "network: expected one of sequences, (length,), got "
                f"event_shape={tuple(network.event_shape)}."
            )
            raise ValueError(msg)
        check_count("rate", rate)
        self.rate = rate
        self.mu_law = mu_law

    @property
    def levels(self) -> int:
        """Number of values of a sample."""
        return self.network.elements.highest + 1

    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return the levels of amplitudes.

        Args:
            waveform: Amplitudes in [-1, 1], of any shape, in a floating-point dtype.

        Returns:
            Levels from 0 to `levels` - 1, of that shape, in int64.

        Raises:
            TypeError: If it is no tensor, or one of whole numbers.
            ValueError: If an amplitude is out of range.
        """
        if self.mu_law:
            return mu_law_encode(waveform, self.levels)
        check_amplitudes(waveform)
        half = self.levels // 2  # of 65,536 levels, they are those of 16-bit samples
        places = (at_least_single(waveform) * (self.levels / 2)).round() + half
        return places.clamp(0, self.levels - 1).long()

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the amplitudes of levels.

        Args:
            x: Levels from 0 to `levels` - 1, of any shape.

        Returns:
            Amplitudes in [-1, 1], of that shape.

        Raises:
            TypeError: If it is no tensor.
            ValueError: If a level is out of range or no whole number.
        """
        if self.mu_law:
            return mu_law_decode(x, self.levels)
        check_tensor("level", x)
        check_integers("level", x, self.levels - 1)
        real = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        return (real - self.levels // 2) / (self.levels / 2)

    def model(
        self, x: torch.Tensor, y: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Observe levels given their classes.

        Args:
            x: Levels, `(n, length)`.
            y: Their classes where there are some, `(n,)` integers.
            mask: Which samples are scored, `(n, length)`; None: all.

        Returns:
            The levels.
        """
        if self.prior_scale is not None:
            pyro.factor("parameters", self.log_prior())
        with pyro.plate("data", len(x)):
            values: torch.Tensor = pyro.sample("x", self.distribution(y, mask), obs=x)
        return values

    def guide(
        self, x: torch.Tensor, y: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> None:
        """Draw nothing: there are no latents."""

    def validate(
        self, x: torch.Tensor, y: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> None:
        """Check levels, classes and mask.

        Args:
            x: Levels, `(n, length)`.
            y: Their classes, `(n,)`.
            mask: Which samples are scored, `(n, length)`.

        Raises:
            SiteError: If something is wrong with them.
        """
        super().validate(x, y)
        if mask is None:
            return
        expected = f"booleans of shape {tuple(x.shape)}, as 'x' has"
        if not isinstance(mask, torch.Tensor):
            got, remedy = type(mask).__name__, "Write torch.as_tensor(mask)."
        else:
            got = f"{str(mask.dtype).removeprefix('torch.')} of shape {tuple(mask.shape)}"
            remedy = "Write mask.bool()." if mask.shape == x.shape else "Give one for each sample."
            if mask.shape == x.shape and mask.dtype == torch.bool:
                if bool(mask.any()):
                    return
                got, remedy = "none that is true", "Score some samples, or leave the mask out."
        raise SiteError("mask", expected=expected, got=got, remedy=remedy, what="data")

    def distribution(
        self, y: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> TorchDistribution:
        """Return the distribution of levels given their classes.

        Args:
            y: Classes, `(n,)` integers, where there are some.
            mask: Which samples count in its log probability, `(n, length)`; None: all.

        Returns:
            A distribution with batch shape `(n,)`, or none without classes, and event shape
            `(length,)`.

        Raises:
            ValueError: If only some samples are to count of a network of many orderings.
        """
        whole = super().distribution(y)
        if mask is None:
            return whole
        if not (isinstance(whole, Autoregressive) and whole.network is self.network):
            msg = (
                f"mask: expected none, since a {type(self.network).__name__} takes the samples in "
                "other orders than that of time, and none of them has a density of its own. Leave "
                "it out, or take a network of one order, such as WaveNet."
            )
            raise ValueError(msg)
        return _Scored(whole, mask)

    def log_prob(
        self, x: torch.Tensor, y: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the log probability of each row, without gradients.

        Args:
            x: Levels, `(n, length)`.
            y: Their classes, `(n,)`.
            mask: Which samples are scored, `(n, length)`; None: all.

        Returns:
            Nats, `(n,)`, in float64.

        Raises:
            SiteError: If something is wrong with them.
        """
        self.validate(x, y, mask)
        return self.log_prob_in_parts(x, y, mask)

    def bits_per_sample(
        self, x: torch.Tensor, y: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> float:
        """Return the negative log probability in bits, for each of all the scored samples.

        Args:
            x: Levels, `(n, length)`.
            y: Their classes, `(n,)`.
            mask: Which samples are scored, `(n, length)`; None: all.

        Raises:
            SiteError: If something is wrong with them.
        """
        nats = -float(self.log_prob(x, y, mask).sum())
        count = x.numel() if mask is None else int(mask.sum())
        return nats / (count * math.log(2))

    def sample(
        self,
        rows: int | torch.Tensor,
        seconds: float | None = None,
        *,
        given: torch.Tensor | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        progress: bool = True,
    ) -> torch.Tensor:
        """Return waveforms that are drawn; see `Autoregressive.sample`.

        Args:
            rows: How many, n; where there are classes, the class of each, `(n,)`.
            seconds: How long they are to be; None: as long as the network's sequences are.
            given: Amplitudes of the beginning, of a shape that broadcasts to `(n, sample)`, at
                most as many samples as are drawn.
            temperature: Below 1 likelier values are drawn more often, above 1 less.
            top_p: Only the likeliest values are drawn that together have this share of the
                probability.
            seed: Seed of the draws.
            progress: Whether to show how far and how fast it is, where it takes over two seconds.

        Returns:
            Amplitudes in [-1, 1], `(n, sample)`.

        Raises:
            SiteError: If something is wrong with the classes.
            ValueError: If an option is out of range, or the beginning is too long.
            TypeError: If the beginning is no tensor of amplitudes, or the network has no
                `with_length` to be of other sequences by.
        """
        longer = self if seconds is None else self._lasting(seconds)
        known = None if given is None else longer._beginning(given)
        levels = AutoregressiveLikelihood.sample(
            longer,
            rows,
            given=known,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            progress=progress,
        )
        return self.decode(levels)

    def _lasting(self, seconds: float) -> AutoregressiveAudio:
        """Return the same pair, its weights shared, of sequences of that length."""
        check_positive("seconds", seconds)
        with_length = getattr(self.network, "with_length", None)
        if with_length is None:
            msg = (
                f"network: expected one with a method with_length, as WaveNet has it, got "
                f"{type(self.network).__name__}. Leave seconds out."
            )
            raise TypeError(msg)
        length = max(1, round(seconds * self.rate))
        kept = _of_other_length.get(self.network)
        here = self.network.order.device
        if kept is None or kept.event_shape != (length,) or kept.order.device != here:
            kept = _of_other_length[self.network] = with_length(length)
        return type(self)(**{**pair_config(self), "network": kept})

    def _beginning(self, given: torch.Tensor) -> torch.Tensor:
        """Return the levels of a beginning, and NaN after it."""
        check_tensor("given", given)
        given = torch.atleast_1d(given)
        missing = self.network.event_shape[0] - given.shape[-1]
        if missing < 1:
            msg = (
                f"given: expected fewer than the {self.network.event_shape[0]} samples that are "
                f"drawn, got {given.shape[-1]}. Give a shorter beginning, or more seconds."
            )
            raise ValueError(msg)
        levels = self.encode(given).to(torch.get_default_dtype())
        return F.pad(levels, (0, missing), value=math.nan)


class _Scored(TorchDistribution):
    """A distribution of sequences in whose log probability only some elements count."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - as PyTorch has it

    def __init__(self, whole: Autoregressive, scored: torch.Tensor) -> None:
        self.whole = whole
        self.scored = scored
        super().__init__(scored.shape[:-1], whole.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.whole.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Scored:
        return _Scored(self.whole, self.scored.expand(*batch_shape, -1))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        network, context = self.whole.network, self.whole.context
        shape = torch.broadcast_shapes(value.shape, self.scored.shape)
        rows = value.expand(shape).flatten(end_dim=-2)
        if context is not None:
            context = context.expand(*shape[:-1], -1).flatten(end_dim=-2)
        log_prob = network.elements.log_prob(network.numbers(rows, context), rows).reshape(shape)
        return torch.where(self.scored, log_prob, 0.0).sum(-1)

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008
        return self.whole.expand(self.batch_shape).sample(sample_shape)
