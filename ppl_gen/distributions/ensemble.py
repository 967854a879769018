"""Several orderings of the same elements, taken together as one distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributions import constraints

from ppl_gen.distributions.autoregressive import Autoregressive, checked_size
from ppl_gen.distributions.discrete import DiscreteDistribution
from ppl_gen.distributions.sampling.draw import Options, Progress, running_total

__all__ = ["OrderingEnsemble"]


class OrderingEnsemble(DiscreteDistribution):
    r"""The mean of the densities under several orderings.

    .. math::
        p(x) = \frac{1}{K} \sum_k \prod_i p(x_{o_{ki}} \mid x_{o_{k1}}, \ldots, x_{o_{k (i - 1)}})

    It is a mixture of them, and so a distribution itself: the mean density of values is exact, and
    they are drawn by drawing an ordering first. By Jensen's inequality its log density is at least
    the mean of theirs.

    Args:
        members: The distributions, of one event shape and batch shape: those of an order-agnostic
            network under several orderings, or of networks that were trained under different ones.

    Raises:
        TypeError: If one is no such distribution.
        ValueError: If there are none, or their shapes differ.

    References:
        A Deep and Tractable Density Estimator. Uria, Murray and Larochelle, 2014. arXiv:1310.1757.
        MADE: Masked Autoencoder for Distribution Estimation. Germain, Gregor, Murray and
        Larochelle, 2015. arXiv:1502.03509.

    Example:
        >>> from ppl_gen.models.networks import OrderAgnosticMADE
        >>> network = OrderAgnosticMADE((4, 4), (16,))
        >>> members = [network(ordering=torch.randperm(16)) for _ in range(3)]
        >>> images = OrderingEnsemble(members)
        >>> images.log_prob(images.sample((5,))).shape
        torch.Size([5])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - as PyTorch has it

    def __init__(
        self, members: Sequence[Autoregressive], validate_args: bool | None = None
    ) -> None:
        if not members:
            raise ValueError("members: expected at least one distribution, got none.")
        self.members = tuple(members)
        first = self.members[0]
        for member in self.members:
            if not isinstance(member, Autoregressive):
                msg = (
                    f"members: expected Autoregressive distributions, got {type(member).__name__}. "
                    "A network gives one when it is called."
                )
                raise TypeError(msg)
            if (member.batch_shape, member.event_shape) != (first.batch_shape, first.event_shape):
                msg = (
                    f"members: expected all of batch shape {tuple(first.batch_shape)} and event "
                    f"shape {tuple(first.event_shape)}, as the first, got "
                    f"{tuple(member.batch_shape)} and {tuple(member.event_shape)}."
                )
                raise ValueError(msg)
        super().__init__(first.batch_shape, first.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """That of its members."""
        return self.members[0].support

    def expand(self, batch_shape: Any, _instance: Any = None) -> OrderingEnsemble:
        """Return it with another batch shape, of independent variables."""
        made: Any = self
        new: OrderingEnsemble = made._get_checked_instance(OrderingEnsemble, _instance)
        new.members = tuple(member.expand(batch_shape) for member in self.members)
        super(OrderingEnsemble, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def enumerate_support(self, expand: bool = True) -> Any:
        """Refuse to list all values, as its members do."""
        return self.members[0].enumerate_support(expand)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Return the log of the mean density of values; see `Autoregressive.log_prob`."""
        log_probs = torch.stack([member.log_prob(value) for member in self.members])
        return log_probs.logsumexp(0) - math.log(len(self.members))

    def sample(
        self,
        sample_shape: Any = torch.Size(),  # noqa: B008
        *,
        given: torch.Tensor | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Return draws, `(*sample_shape, *batch_shape, *event_shape)`, each by one of its members.

        The options are those of `Autoregressive.sample`. Where elements are given, each draw is
        one of a member that is drawn without regard to them.
        """
        shape = checked_size(sample_shape) + self.batch_shape
        first = self.members[0]
        count = math.prod(shape)
        if not count:
            return first.sample(sample_shape)
        chosen = torch.randint(len(self.members), (count,))
        total = math.prod(shape + self.event_shape)
        options = Options(temperature, top_p, running_total(progress, total))
        known = None if given is None else first.known(given, shape)
        rows_of = [(chosen == number).nonzero()[:, 0] for number in range(len(self.members))]
        drawn = [
            member.rows(shape, rows, None if known is None else known[rows], options)
            for member, rows in zip(self.members, rows_of, strict=True)
            if len(rows)
        ]
        values = torch.cat(drawn)[torch.cat(rows_of).argsort()]
        return values.reshape(shape + self.event_shape)
