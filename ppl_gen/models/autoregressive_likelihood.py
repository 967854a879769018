"""What pairs of an autoregressive network share: maximum likelihood, with or without classes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.runtime import am_i_wrapped

from ppl_gen.core.errors import SiteError, check_count
from ppl_gen.core.pair import Pair
from ppl_gen.core.scope import evaluating
from ppl_gen.distributions import AutoregressiveNetwork
from ppl_gen.distributions.discrete import check_tensor
from ppl_gen.models.checks import (
    check_categories,
    check_classes,
    check_events,
    check_positive,
)
from ppl_gen.models.sampling import sampling

__all__ = ["AutoregressiveLikelihood"]

# Numbers of a network that are computed at a time where nothing is trained: 16 MiB in float32.
_CHUNK = 2**22
# Features of a layer, of which networks tell nothing, where there are fewer outputs.
_FEATURES = 32


class AutoregressiveLikelihood(Pair):
    r"""Observations by the chain rule, each conditional from one network.

    .. math::
        \log p(x \mid y) = \sum_i \log p(x_i \mid x_1, \ldots, x_{i - 1}, y)

    There are no latents: `SVI(guide="pair")` maximizes the likelihood of the network's parameters,
    which to MCMC are constants. With `prior_scale` it maximizes their posterior density.

    Site: "x" `network.event_shape`, observed, in the plate "data".

    Args:
        network: The network; it is trained in a copy.
        num_classes: Number of classes that observations are given by, of which the network is
            told as a vector of a one among zeros: its context. None: there are none.
        prior_scale: Scale (a standard deviation) of a normal prior of every parameter, centred at
            zero; None: all values are as likely.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the network's context is no such vector, or a number is not positive.
    """

    unit: ClassVar[str] = "elements"
    """What a progress bar calls them."""
    rate: int | None = None
    """Elements a second, of what is heard."""

    def __init__(
        self,
        network: AutoregressiveNetwork,
        num_classes: int | None = None,
        prior_scale: float | None = None,
    ) -> None:
        super().__init__()
        _check_network(network, num_classes)
        if prior_scale is not None:
            check_positive("prior_scale", prior_scale)
        self.network = network
        self.num_classes = num_classes
        self.prior_scale = prior_scale

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Observe values given their classes.

        Args:
            x: Values, `(n, *event_shape)`.
            y: Their classes where there are some, `(n,)` integers.

        Returns:
            The values.
        """
        if self.prior_scale is not None:
            pyro.factor("parameters", self.log_prior())
        with pyro.plate("data", len(x)):
            values: torch.Tensor = pyro.sample("x", self.distribution(y), obs=x)
        return values

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Draw nothing: there are no latents."""

    def validate(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Check values and classes.

        Args:
            x: Values, `(n, *event_shape)`.
            y: Their classes, `(n,)`.

        Raises:
            SiteError: If something is wrong with them.
        """
        self.check_values(x)
        self.check_labels(y, len(x))

    def check_values(self, x: torch.Tensor) -> None:
        """Refuse values of another shape, or that are no categories of the network's elements.

        Args:
            x: Values, `(n, *event_shape)`.

        Raises:
            SiteError: If something is wrong with them.
        """
        check_events("x", x, self.network.event_shape, "Make the network for ")
        check_categories("x", x, self.network.elements.highest)

    def check_labels(self, y: Any, length: int | None = None) -> None:
        """Refuse what are not the classes of so many observations.

        Args:
            y: What should be labels, `(length,)`, or None where there are no classes.
            length: Number of observations; None: any.

        Raises:
            SiteError: If they are missing, not wanted, of another number or type, or out of range.
        """
        if y is None and self.num_classes is None:
            return
        if self.num_classes is None:
            raise SiteError(
                "y",
                expected="none, since the pair has no classes",
                got=type(y).__name__,
                remedy="Leave it out; or give num_classes to the pair, and context_size to the "
                "network.",
            )
        rows = "n" if length is None else str(length)
        expected = f"integers of shape ({rows},) from 0 to {self.num_classes - 1}"
        got, remedy = type(y).__name__, "Give the class of each."
        if isinstance(y, torch.Tensor):
            got = f"{str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}"
            if y.ndim == 1 and len(y) > 0 and length in (None, len(y)):
                if _are_integers(y):
                    return check_classes("y", y, self.num_classes)
                remedy = "Write y.long()."
            elif y.ndim == 2 and y.shape[1] in (1, self.num_classes):
                remedy = "Write y.squeeze(1)." if y.shape[1] == 1 else "Write y.argmax(1)."
            elif length is not None:
                remedy = "Give one for each row of 'x'."
        elif hasattr(y, "__len__"):
            remedy = "Write torch.as_tensor(y)."
        raise SiteError("y", expected=expected, got=got, remedy=remedy)

    def log_prior(self) -> torch.Tensor:
        """Return the log density of the parameters under the normal prior, ()."""
        assert self.prior_scale is not None
        trained = [p for p in self.network.parameters() if p.requires_grad]
        squares = torch.stack([p.square().sum() for p in trained]).sum()
        count = sum(p.numel() for p in trained)
        constant = count * (math.log(self.prior_scale) + 0.5 * math.log(2 * math.pi))
        return -0.5 * squares / self.prior_scale**2 - constant

    def distribution(self, y: torch.Tensor | None = None) -> TorchDistribution:
        """Return the distribution of observations given their classes.

        Args:
            y: Classes, `(*batch,)` integers, where there are some.

        Returns:
            A distribution with batch shape `batch` and event shape `network.event_shape`.
        """
        images: TorchDistribution = self.network(self.context(y))
        return images

    def context(self, y: torch.Tensor | None) -> torch.Tensor | None:
        """Return what the network is told of classes; None where there are none.

        Args:
            y: Classes, `(*batch,)` integers, or None.

        Raises:
            SiteError: If they are missing, not wanted, of another type, or out of range.
        """
        return None if y is None and self.num_classes is None else self.vectors(y)

    def log_prob(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Return the log probability of each observation, without gradients.

        Memory is bounded, whatever the number of observations. Networks that behave differently in
        training, as by dropout, are evaluated.

        Args:
            x: Values, `(n, *event_shape)`.
            y: Their classes, `(n,)`.

        Returns:
            Nats, `(n,)`, in float64.

        Raises:
            SiteError: If something is wrong with values or classes.
        """
        self.check_values(x)
        self.check_labels(y, len(x))
        return self.log_prob_in_parts(x, y)

    def log_prob_in_parts(self, x: torch.Tensor, *given: torch.Tensor | None) -> torch.Tensor:
        """Return the log probability of values that were checked, a number of rows at a time.

        Args:
            x: Values, `(n, *event_shape)`.
            given: What `distribution` takes, `(n, ...)` each, or None.

        Returns:
            Nats, `(n,)`, in float64.
        """
        device = self.like.device
        width = math.prod(self.network.event_shape)
        rows = max(1, _CHUNK // (width * max(self.network.elements.num_outputs, _FEATURES)))
        parts = []
        with torch.no_grad(), evaluating(self):
            for start in range(0, len(x), rows):
                part = slice(start, start + rows)
                some = [None if value is None else value[part].to(device) for value in given]
                parts.append(self.distribution(*some).log_prob(x[part].to(device)).double())
        return torch.cat(parts)

    def bits_per_dim(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Return the negative log probability of each observation, in bits for each element.

        Args:
            x: Values, `(n, *event_shape)`.
            y: Their classes, `(n,)`.

        Returns:
            Bits, `(n,)`, in float64.

        Raises:
            SiteError: If something is wrong with values or classes.
        """
        return -self.log_prob(x, y) / (math.prod(self.network.event_shape) * math.log(2))

    def sample(
        self,
        rows: int | torch.Tensor,
        *,
        given: torch.Tensor | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        progress: bool = True,
    ) -> torch.Tensor:
        """Return draws; see `Autoregressive.sample`.

        Args:
            rows: How many, n; where there are classes, the class of each, `(n,)`.
            given: Elements that are known, and NaN where they are to be drawn, of a shape that
                broadcasts to `(n, *event_shape)`.
            temperature: Below 1 likelier values are drawn more often, above 1 less.
            top_p: Only the likeliest values are drawn that together have this share of the
                probability.
            seed: Seed of the draws.
            progress: Whether to show how far and how fast it is, where it takes over two seconds.

        Returns:
            Values, `(n, *event_shape)`.

        Raises:
            SiteError: If something is wrong with the classes.
            TypeError: If what is known is no tensor.
            ValueError: If an option is out of range, or something is wrong with what is known.
        """
        labels, shape = None, torch.Size()
        if self.num_classes is None and not isinstance(rows, torch.Tensor):
            check_count("rows", rows)
            shape = torch.Size((rows,))
        else:
            self.check_labels(rows)
            assert isinstance(rows, torch.Tensor)
            labels = rows
        if given is not None:
            check_tensor("given", given)
            given = given.to(self.like.device)
        count = rows if isinstance(rows, int) else len(rows)
        options: dict[str, Any] = {"given": given, "temperature": temperature, "top_p": top_p}
        with sampling(
            self,
            count * math.prod(self.network.event_shape),
            unit=self.unit,
            real_time=None if self.rate is None else count * self.rate,
            seed=seed,
            progress=progress,
        ) as tell:
            distribution: Any = self.distribution(labels)
            drawn: torch.Tensor = distribution.sample(shape, progress=tell, **options)
            return drawn

    def vectors(self, y: torch.Tensor | None) -> torch.Tensor:
        """Return classes as vectors of a one among zeros, as the network is told of them.

        Args:
            y: Classes, `(*batch,)` integers.

        Returns:
            Vectors, `(*batch, num_classes)`.

        Raises:
            SiteError: If they are missing, not wanted, of another type, or out of range.
        """
        # Those of a model or guide that runs were checked before, and may be batched by vmap.
        if not (am_i_wrapped() and _are_integers(y)) or self.num_classes is None:
            self.check_labels(y.flatten() if isinstance(y, torch.Tensor) else y)
        assert self.num_classes is not None
        assert y is not None
        classes = torch.arange(self.num_classes, device=self.like.device)
        return (y.to(classes.device).unsqueeze(-1) == classes).to(self.like.dtype)

    @property
    def like(self) -> torch.Tensor:
        """A tensor of the network's dtype and device."""
        return next(self.network.parameters())


def _are_integers(y: Any) -> bool:
    return isinstance(y, torch.Tensor) and not (
        y.is_floating_point() or y.is_complex() or y.dtype == torch.bool
    )


def _check_network(network: Any, num_classes: int | None) -> None:
    if not isinstance(network, AutoregressiveNetwork):
        msg = (
            f"network: expected an AutoregressiveNetwork, such as MADE((28, 28)) of "
            f"ppl_gen.models.networks, got {type(network).__name__}."
        )
        raise TypeError(msg)
    if num_classes is not None:
        check_count("num_classes", num_classes)
    wanted = None if num_classes is None else torch.Size((num_classes,))
    if network.context_shape != wanted:
        got = "none" if network.context_shape is None else f"shape {tuple(network.context_shape)}"
        msg = (
            f"network: expected a context of shape ({num_classes},) for {num_classes} classes, got "
            f"{got}. Make the network with context_size={num_classes}."
            if wanted is not None
            else f"network: expected no context, since the pair has no classes, got {got}. Give "
            "num_classes to the pair, or make the network with context_size=None."
        )
        raise ValueError(msg)
