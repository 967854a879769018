"""The objectives of SVI: which bound of the log evidence is maximised, and by which gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from ppl_gen.core.errors import check_count

__all__ = [
    "ELBO",
    "ImportanceWeighted",
    "Linear",
    "Objective",
    "Renyi",
    "ReweightedWakeSleep",
]


@dataclass(frozen=True)
class Linear:
    """A weight that rises in a straight line to 1, and stays there: to anneal the KL part.

    Args:
        start: Weight at the start, at least 0.
        until: Share of the steps after which it is 1, in (0, 1].

    Raises:
        ValueError: If an option is out of range.

    References:
        Bowman et al. (2016), Generating Sentences from a Continuous Space, arXiv:1511.06349.

    Example:
        >>> weight = Linear(start=0.0, until=0.5)
        >>> [weight(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 1.0]
    """

    start: float = 0.0
    until: float = 0.5

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        _check_weight("start", self.start)
        if not 0 < self.until <= 1:
            msg = f"until: expected a share of the steps in (0, 1], got {self.until}."
            raise ValueError(msg)

    def __call__(self, progress: float) -> float:
        """Return the weight at a share of the steps, in [0, 1]."""
        return self.start + (1.0 - self.start) * min(progress / self.until, 1.0)


@dataclass(frozen=True)
class ELBO:
    r"""The evidence lower bound, its KL part weighed where that is asked for.

    .. math::
        \mathbb{E}_q[\log p(x \mid z)] + \beta \, \mathbb{E}_q[\log p(z) - \log q(z)]

    With a weight other than 1 it is no bound of the evidence; the ELBO that a fit reports is always
    the one with weight 1.

    Args:
        beta: Weight of the KL part, at least 0: a number, or a function of the share of the steps
            that are done, such as `Linear`.
        sticking: Whether to leave the score of the guide, whose mean is zero, out of the gradient
            ("sticking the landing"). The noise of the gradient then vanishes where the guide is
            the posterior. KL divergences in closed form, which it replaces, cost less, and make
            less noise while the guide is far from the posterior.

    Raises:
        ValueError: If the weight is negative or not finite.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114. Higgins et al.
        (2017), beta-VAE, ICLR. Roeder, Wu and Duvenaud (2017), Sticking the Landing,
        arXiv:1703.09194.

    Example:
        >>> ELBO(beta=Linear(until=0.2)).weight(0.1)
        0.5
    """

    beta: float | Callable[[float], float] = 1.0
    sticking: bool = False

    alpha: ClassVar[float] = 1.0
    samples: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        if not callable(self.beta):
            _check_weight("beta", self.beta)

    def weight(self, progress: float) -> float:
        """Return the weight of the KL part at a share of the steps, in [0, 1].

        Raises:
            ValueError: If a schedule of the user returns a weight out of range.
        """
        if not callable(self.beta):
            return self.beta
        weight = self.beta(progress)
        _check_weight(f"beta({progress:.3g})", weight)
        return weight


@dataclass(frozen=True)
class Renyi:
    r"""Rényi's bound of order alpha, between the log evidence and beyond the ELBO.

    .. math::
        \frac{1}{1 - \alpha} \, \mathbb{E} \log \frac{1}{k} \sum_{j=1}^k
        \Big( \frac{p(x, z_j)}{q(z_j)} \Big)^{1 - \alpha}, \qquad z_j \sim q

    A lower bound of the log evidence for every order: tightest at 0, which is `ImportanceWeighted`,
    the ELBO in the limit of 1, and looser than that above, where the guide is drawn to a mode.
    Local latents are weighed row by row, as `ImportanceWeighted` describes.

    Args:
        alpha: The order, at least 0, and not 1.
        samples: Number of draws k under the logarithm.

    Raises:
        ValueError: If an option is out of range.

    References:
        Li and Turner (2016), Rényi Divergence Variational Inference, arXiv:1602.02311. The
        gradient: Tucker et al. (2019), arXiv:1810.04152, carried over to every order.
    """

    alpha: float = 0.5
    samples: int = 8

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check_count("samples", self.samples)
        if self.alpha == 1:
            msg = "alpha: the bound of order 1 is the ELBO: take objective=ELBO()."
            raise ValueError(msg)
        if not 0 <= self.alpha < math.inf:
            msg = (
                f"alpha: expected at least 0, got {self.alpha}. Of a negative order it is no lower "
                "bound."
            )
            raise ValueError(msg)


@dataclass(frozen=True)
class ImportanceWeighted:
    r"""The importance-weighted bound: the log of the mean of k importance weights.

    .. math::
        \mathbb{E} \log \frac{1}{k} \sum_{j=1}^k \frac{p(x, z_j)}{q(z_j)}, \qquad z_j \sim q

    It is the ELBO for k = 1, and rises to the log evidence with k. What is under the logarithm
    depends on the plates, and never on whether the data come in mini-batches:

    - Where a plate holds every observation and latents of the guide, its elements (the rows) are
      independent given all that is outside. Each row gets a logarithm of its own, over its own k
      draws, and what a mini-batch scales is the sum over rows: for rows :math:`i`, their latents
      :math:`z_i` and latents :math:`u` outside of the plate, of which one draw is made,

      .. math::
          \mathbb{E}_{q(u)} \Big[ \log \frac{p(u)}{q(u)} + \sum_i \mathbb{E}_{q(z_i \mid u)}
          \log \frac{1}{k} \sum_{j=1}^k \frac{p(x_i, z_{ij} \mid u)}{q(z_{ij} \mid u)} \Big].

      Jensen's inequality, for each row and then for :math:`u`, makes this a lower bound. Latents
      outside of the plate thus have an ordinary ELBO, and the rows a tighter one.
    - Otherwise all latents are weighed together, under one logarithm. A mini-batch then gives no
      bound, since the logarithm of a mean of noisy estimates is too large, and is refused.

    A weight (`poutine.scale`) that a row's sites share stays outside of the logarithm.

    The gradient is doubly reparametrised, so that its signal does not drown in noise as k grows.
    Where that cannot be (a guide with point masses, or with dropout or other noise of its own), it
    is the bound's own.

    Args:
        samples: Number of draws k under the logarithm.

    Raises:
        ValueError: If it is below 1.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders, arXiv:1509.00519.
        Tucker, Lawson, Gu and Maddison (2019), Doubly Reparameterized Gradient Estimators for
        Monte Carlo Objectives, arXiv:1810.04152. Rainforth et al. (2018), Tighter Variational
        Bounds are Not Necessarily Better, arXiv:1802.04537.
    """

    samples: int = 8

    alpha: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check_count("samples", self.samples)


@dataclass(frozen=True)
class ReweightedWakeSleep:
    r"""Reweighted wake-sleep: for guides that gradients cannot pass through.

    With the normalised importance weights :math:`\tilde w_j` of k draws from the guide, the model
    follows the gradient of the importance-weighted bound, and the guide that of the divergence
    from the posterior to itself (the wake phase of both):

    .. math::
        \nabla_\theta: \sum_j \tilde w_j \nabla \log p_\theta(x, z_j), \qquad
        \nabla_\phi: \sum_j \tilde w_j \nabla \log q_\phi(z_j \mid x).

    No gradient passes through a draw, so that latents may be discrete, as in a Helmholtz machine,
    and no score is multiplied by a noisy bound. The guide's gradient is biased by self-normalised
    weights, the less so the larger k is. Local latents are weighed row by row, as
    `ImportanceWeighted` describes; the loss is the negative of that bound.

    Args:
        samples: Number of draws k, at least 2.

    Raises:
        ValueError: If it is below 2.

    References:
        Bornschein and Bengio (2015), Reweighted Wake-Sleep, arXiv:1406.2751. Le, Kosiorek,
        Siddharth, Teh and Wood (2019), Revisiting Reweighted Wake-Sleep, arXiv:1805.10469.
    """

    samples: int = 8

    alpha: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check_count("samples", self.samples)
        if self.samples < 2:
            msg = "samples: expected at least 2, got 1: one draw has no weights to learn from."
            raise ValueError(msg)


Objective: TypeAlias = ELBO | ImportanceWeighted | Renyi | ReweightedWakeSleep


def _check_weight(name: str, weight: object) -> None:
    if not isinstance(weight, int | float) or isinstance(weight, bool):
        msg = f"{name}: expected a number, got {weight!r}."
        raise TypeError(msg)
    if not 0 <= weight < math.inf:
        msg = f"{name}: expected a weight of at least 0, got {weight}."
        raise ValueError(msg)
