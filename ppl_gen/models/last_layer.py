"""A few global latents over an autoregressive network that stays as it is."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints

from ppl_gen.core.pair import Pair, prepare
from ppl_gen.core.scope import evaluating
from ppl_gen.distributions import Autoregressive, AutoregressiveNetwork
from ppl_gen.distributions.discrete import check_tensor
from ppl_gen.models.autoregressive_likelihood import AutoregressiveLikelihood
from ppl_gen.models.checks import check_positive

__all__ = ["BayesianLastLayer"]


class BayesianLastLayer(Pair):
    r"""An autoregressive likelihood whose last layer is shifted and scaled by unknown amounts.

    With :math:`f_i` the numbers that a trained network has for element i,

    .. math::
        \log g \sim \mathrm{Normal}(0, s_g), \qquad b_k \sim \mathrm{Normal}(0, s), \qquad
        x_i \sim p(x_i \mid g f_i(x_1, \ldots, x_{i - 1}) + b).

    The few latents are what a small data set, of another source than the network was trained on,
    can tell: whether the network is too sure of itself (g < 1), and which values are more frequent.
    The network stays fixed. Its numbers for the data are computed once (`prepare`), so that a
    density costs no run of the network: SVI, NUTS and every other method can be compared on it.

    Sites: "log_gain" `()`, "offset" `(elements.num_outputs,)` and "x" `event_shape`, observed, in
    the plate "data".

    Args:
        likelihood: A trained pair, such as `AutoregressiveImage`, whose parameters are constants.
        scale: Scale (a standard deviation) of the prior of offsets.
        gain_scale: Scale of the prior of the gain's logarithm.

    Raises:
        TypeError: If the likelihood is no such pair.
        ValueError: If its network takes elements in many orders, or a scale is not positive.

    Example:
        >>> from ppl_gen.models import AutoregressiveImage
        >>> from ppl_gen.models.networks import MADE
        >>> pair = BayesianLastLayer(AutoregressiveImage(MADE((3, 3), (8,))))
        >>> gains, offsets = torch.zeros(5), torch.zeros(5, 1)  # as draws of a posterior have them
        >>> pair.distribution(gains, offsets).sample((2,)).shape
        torch.Size([2, 5, 3, 3])
    """

    def __init__(
        self,
        likelihood: AutoregressiveLikelihood,
        scale: float = 1.0,
        gain_scale: float = 0.5,
    ) -> None:
        super().__init__()
        if not isinstance(likelihood, AutoregressiveLikelihood):
            msg = (
                "likelihood: expected a trained pair such as AutoregressiveImage, got "
                f"{type(likelihood).__name__}. Give posterior.pair of its fit."
            )
            raise TypeError(msg)
        network = likelihood.network
        if network.under(network.order) is not None:
            msg = (
                f"likelihood: expected one whose network has one order, got a "
                f"{type(network).__name__}, which has other numbers in each. Train a network such "
                "as MADE."
            )
            raise ValueError(msg)
        check_positive("scale", scale)
        check_positive("gain_scale", gain_scale)
        self.likelihood = likelihood
        self.scale = scale
        self.gain_scale = gain_scale
        # In a tuple: its parameters are those of the likelihood, and would be saved twice.
        self._apart = (_Adjusted(network),)

    def model(
        self,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        numbers: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the generative story of the class once.

        Args:
            x: Values, `(n, *event_shape)`.
            y: Their classes, `(n,)`, where there are some.
            numbers: What the network has for them, which `prepare` computes.

        Returns:
            The values.
        """
        outputs = self.likelihood.network.elements.num_outputs
        like = self.likelihood.like
        zero, one = like.new_zeros(()), like.new_ones(())
        log_gain = pyro.sample("log_gain", dist.Normal(zero, self.gain_scale * one))
        prior = dist.Normal(zero, self.scale * one).expand([outputs]).to_event(1)
        offset = pyro.sample("offset", prior)
        if numbers is None:
            numbers = self._numbers(x, y)
        context = self.likelihood.context(y)
        with pyro.plate("data", len(x)):
            adjusted = _WithNumbers(self._adjusted, context, log_gain, offset, x, numbers)
            values: torch.Tensor = pyro.sample("x", adjusted, obs=x)
        return values

    def prepare(
        self,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        numbers: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """Compute the network's numbers; first what the trained pair itself does with a batch.

        Args:
            x: Values, `(n, *event_shape)`.
            y: Their classes, `(n,)`.
            numbers: Not looked at.

        Returns:
            All by the names of the arguments.
        """
        given = prepare(self.likelihood, {"x": x} if y is None else {"x": x, "y": y})
        return {**given, "numbers": self._numbers(**given)}

    def validate(
        self,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        numbers: torch.Tensor | None = None,
    ) -> None:
        """Check values and classes.

        Args:
            x: Values, `(n, *event_shape)`.
            y: Their classes, `(n,)`.
            numbers: Not looked at.

        Raises:
            SiteError: If something is wrong with them.
        """
        self.likelihood.validate(x, y)

    def distribution(
        self, log_gain: torch.Tensor, offset: torch.Tensor, y: torch.Tensor | None = None
    ) -> Autoregressive:
        """Return the distribution of observations given the latents.

        Args:
            log_gain: Logarithms of gains, `(*batch,)`, such as draws of a posterior.
            offset: Offsets, `(*batch, num_outputs)`.
            y: Classes, `(*batch,)` integers, where there are some.

        Returns:
            A distribution with batch shape `batch`.

        Raises:
            SiteError: If classes are missing, not wanted, or of another type.
            TypeError: If gains or offsets are no tensors.
            ValueError: If shapes do not fit together.
        """
        check_tensor("log_gain", log_gain)
        check_tensor("offset", offset)
        outputs = self.likelihood.network.elements.num_outputs
        batch = tuple(log_gain.shape)
        if offset.shape != (*batch, outputs) or (y is not None and y.shape != batch):
            told = "" if y is None else f", and {tuple(y.shape)} of y"
            msg = (
                f"offset and y: expected shapes {(*batch, outputs)} and {batch}, as log_gain has "
                f"{batch}, got {tuple(offset.shape)} of offset{told}."
            )
            raise ValueError(msg)
        context = self.likelihood.context(y)
        return Autoregressive(self._adjusted, _joined(context, log_gain, offset))

    @property
    def _adjusted(self) -> _Adjusted:
        """The network that values are drawn from, on the device of the likelihood's."""
        (adjusted,) = self._apart
        order = self.likelihood.network.order
        if adjusted.order.device != order.device:
            adjusted.order = order
        return adjusted

    def _numbers(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Return the network's numbers, `(n, *event_shape, num_outputs)`."""
        context = self.likelihood.context(y)
        with torch.no_grad(), evaluating(self.likelihood):
            return self.likelihood.network.numbers(x, context)


class _Adjusted(AutoregressiveNetwork):
    """A network whose numbers are shifted and scaled by what comes last in its context."""

    def __init__(self, network: AutoregressiveNetwork) -> None:
        self.told = 0 if network.context_shape is None else network.context_shape[0]
        size = self.told + 1 + network.elements.num_outputs
        super().__init__(network.event_shape, network.elements, (size,), network.order)
        self.network = network

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        assert context is not None
        told = context[:, : self.told] if self.told else None
        axes = (len(context), *(1,) * len(self.event_shape), -1)
        gain = context[:, self.told].exp().reshape(axes)
        offset = context[:, self.told + 1 :].reshape(axes)
        return gain * self.network.numbers(x, told) + offset


class _WithNumbers(TorchDistribution):
    """The adjusted distribution of values for which the network's numbers are known.

    Args:
        adjusted: The network that values are drawn from.
        context: What the network itself is told, `(n, size)`; None: nothing.
        log_gain: Logarithm of the gain, ().
        offset: Offsets, `(num_outputs,)`.
        x: The values, `(n, *event_shape)`.
        numbers: The network's numbers for them, `(n, *event_shape, num_outputs)`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - as PyTorch has it

    def __init__(
        self,
        adjusted: _Adjusted,
        context: torch.Tensor | None,
        log_gain: torch.Tensor,
        offset: torch.Tensor,
        x: torch.Tensor,
        numbers: torch.Tensor,
    ) -> None:
        self.parts = adjusted, context, log_gain, offset
        self.x, self.numbers = x, numbers
        super().__init__(torch.Size((len(x),)), adjusted.event_shape, validate_args=False)

    def whole(self) -> Autoregressive:
        """Return the same distribution, of any values."""
        adjusted, context, log_gain, offset = self.parts
        rows = self.batch_shape
        joined = _joined(context, log_gain.expand(rows), offset.expand(*rows, -1))
        return Autoregressive(adjusted, joined)

    @property
    def support(self) -> constraints.Constraint:
        return self.whole().support

    def expand(self, batch_shape: Any, _instance: Any = None) -> TorchDistribution:
        return (
            self
            if torch.Size(batch_shape) == self.batch_shape
            else self.whole().expand(batch_shape)
        )

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if value is not self.x:
            return self.whole().log_prob(value)
        adjusted, _, log_gain, offset = self.parts
        numbers = log_gain.exp() * self.numbers + offset
        return adjusted.elements.log_prob(numbers, value).flatten(1).sum(-1)

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008
        with torch.no_grad():
            return self.whole().sample(sample_shape)


def _joined(
    context: torch.Tensor | None, log_gain: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    """Return the context of an adjusted network, `(*batch, size)`."""
    own = torch.cat([log_gain.unsqueeze(-1), offset], dim=-1)
    return own if context is None else torch.cat([context, own], dim=-1)
