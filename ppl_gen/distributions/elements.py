"""What the elements of an autoregressive variable are, given a network's numbers for each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch.distributions import Bernoulli, Categorical, Distribution

from ppl_gen.core.errors import check_count, unknown
from ppl_gen.distributions.discretized_logistic import DiscretizedLogisticMixture

__all__ = ["LEAST_LOG_SCALE", "MOST_LOG_SCALE", "Elements", "Likelihood"]

Likelihood = Literal["bernoulli", "categorical", "logistic_mixture"]
LEAST_LOG_SCALE = -7.0
"""Of a component of a mixture: exp(-7) is a tenth of a grey level of 8 bits."""
MOST_LOG_SCALE = 20.0
"""Of a component: the first and the last value have half of it each; beyond, gradients end."""
_LIKELIHOODS = ("bernoulli", "categorical", "logistic_mixture")


@dataclass(frozen=True)
class Elements:
    """The kind of distribution that each element has.

    Args:
        likelihood: "bernoulli": 0 or 1. "categorical": integers, each a class of its own.
            "logistic_mixture": integers that are rounded values, by a `DiscretizedLogisticMixture`.
        categories: Number of values, of the latter two.
        components: Number of components of the mixture.

    Raises:
        ValueError: If the likelihood is unknown, or a number is too small.

    Example:
        >>> Elements("categorical", 4).distribution(torch.zeros(5, 4)).batch_shape
        torch.Size([5])
    """

    likelihood: Likelihood = "bernoulli"
    categories: int = 256
    components: int = 10

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        if self.likelihood not in _LIKELIHOODS:
            raise unknown("likelihood", self.likelihood, _LIKELIHOODS)
        check_count("components", self.components)
        check_count("categories", self.categories)
        if self.categories < 2:
            raise ValueError(f"categories: expected at least 2, got {self.categories}.")

    @property
    def num_outputs(self) -> int:
        """How many numbers a network has to give for each element."""
        return {
            "bernoulli": 1,
            "categorical": self.categories,
            "logistic_mixture": 3 * self.components,
        }[self.likelihood]

    @property
    def highest(self) -> int:
        """The largest value; the smallest is 0."""
        return 1 if self.likelihood == "bernoulli" else self.categories - 1

    def distribution(self, numbers: torch.Tensor) -> Distribution:
        """Return the distribution of elements.

        Args:
            numbers: Unbounded numbers, `(*batch, num_outputs)`.

        Returns:
            A univariate distribution with batch shape `batch`.
        """
        if self.likelihood == "bernoulli":
            return Bernoulli(logits=numbers.squeeze(-1), validate_args=False)
        if self.likelihood == "categorical":
            return Categorical(logits=numbers, validate_args=False)
        logits, loc, log_scale = _components(numbers)
        return DiscretizedLogisticMixture(
            logits, loc, log_scale, self.categories, validate_args=False
        )

    def log_prob(self, numbers: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the log probability of each element.

        Args:
            numbers: Unbounded numbers, `(*batch, num_outputs)`.
            x: Values, `(*batch,)`, real or integer.
        """
        # Not summed up in the half precision that layers may be run in.
        numbers = numbers.to(torch.promote_types(numbers.dtype, torch.float32))
        if self.likelihood == "categorical":
            # Convolutions leave the numbers of an element far apart. Summed up where they are, they
            # take a quarter of the time.
            axis = -1 if numbers.ndim == 1 or numbers.stride(-1) == 1 else 1
            value = x.long().expand(numbers.shape[:-1]).unsqueeze(axis)
            log_probs = numbers.movedim(-1, axis).log_softmax(axis)
            return log_probs.gather(axis, value).squeeze(axis)
        value = x.to(numbers.dtype) if self.likelihood == "bernoulli" else x
        log_prob: torch.Tensor = self.distribution(numbers).log_prob(value)
        return log_prob

    def draw(
        self, numbers: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float
    ) -> torch.Tensor:
        """Return the smallest values whose cumulative probability exceeds uniform numbers.

        Two samplers that are given the same numbers thus give the same draws.

        Args:
            numbers: Unbounded numbers, `(*batch, num_outputs)`.
            uniforms: Numbers in [0, 1), `(*batch,)`.
            temperature: What logits are divided by, and scales multiplied.
            top_p: Share of the probability of the values that are kept.

        Raises:
            ValueError: If a probability is not a number.
        """
        # As for their log probabilities: in half precision most of a small one is lost.
        numbers = numbers.to(torch.promote_types(numbers.dtype, torch.float32))
        if self.likelihood == "logistic_mixture":
            logits, loc, log_scale = _components(numbers)
            spread = log_scale + math.log(temperature)
            grey = DiscretizedLogisticMixture(
                logits / temperature, loc, spread, self.categories, validate_args=False
            )
            every = grey.enumerate_support(expand=False)
            probabilities = grey.log_prob(every).exp().movedim(0, -1)
        elif self.likelihood == "categorical":
            probabilities = (numbers / temperature).softmax(-1)
        else:
            one = (numbers.squeeze(-1) / temperature).sigmoid()
            check_numbers(one)
            if top_p < 1:  # the likelier value alone, where its share is enough
                sure = torch.maximum(one, 1 - one) >= top_p
                one = torch.where(sure & (one != 0.5), one.round(), one)
            return (uniforms >= 1 - one).to(numbers.dtype)
        if top_p < 1:
            ordered = probabilities.sort(-1, descending=True).values
            kept = ordered.cumsum(-1) - ordered < top_p
            least = ordered.masked_fill(~kept, math.inf).amin(-1, keepdim=True)
            probabilities = probabilities.masked_fill(probabilities < least, 0.0)
        cumulative = probabilities.cumsum(-1)
        check_numbers(cumulative[..., -1])
        level = uniforms.unsqueeze(-1) * cumulative[..., -1:]
        found = (cumulative <= level).sum(-1).clamp(max=self.categories - 1)
        return found.to(numbers.dtype)

    def features(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return values on a scale from -1 to 1, as a network sees them.

        Args:
            x: Values, of any shape.
            like: A tensor of the network.
        """
        return x.to(like) * (2 / self.highest) - 1


def _components(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits, locations and logarithms of the scales of a mixture's components."""
    logits, loc, log_scale = numbers.chunk(3, dim=-1)
    return logits, loc, log_scale.clamp(LEAST_LOG_SCALE, MOST_LOG_SCALE)


def check_numbers(tensor: torch.Tensor) -> None:
    """Refuse to draw where there are no numbers.

    Args:
        tensor: Probabilities, draws by them, or what they are made of, of any shape.

    Raises:
        ValueError: If one is NaN.
    """
    if bool(tensor.isnan().any()):
        msg = (
            "There are no probabilities to draw by: the network has or gives numbers that are not "
            "finite. Look for NaN and infinity in its weights and in its context."
        )
        raise ValueError(msg)
