"""EM in closed form: what a pair offers for it, and the climb that checks each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import torch

__all__ = ["ClosedFormAscent", "EMSteps", "HasEMSteps", "Values", "remaining_gain"]

Values: TypeAlias = Mapping[str, torch.Tensor]

# Rounding of a sum over the data, of its size; a step that is wrong loses more than that.
_ROUNDING = 1e-9


class EMSteps(Protocol):
    """The steps of EM for one pair on given data.

    What they maximise is the log joint density of continuous latents and data, or the
    log-likelihood without the priors of the continuous latents, as `HasEMSteps.em_steps` was
    asked. Values are by site, on the sites' own supports, without an axis of draws.
    """

    def start(self) -> Values:
        """Return values to start from, another draw of torch's generator each time."""
        ...

    def expect(self, values: Values) -> tuple[Any, torch.Tensor]:
        """Return what the M step needs, and the objective at the same values, of shape ().

        Args:
            values: Values of the continuous latent sites.
        """
        ...

    def maximise(self, expectations: Any, values: Values) -> Values:
        """Return values that maximise the expected log density, or at least raise it.

        Args:
            expectations: What `expect` returned first.
            values: The values that they belong to.
        """
        ...

    def flaws(self, values: Values) -> tuple[str, ...]:
        """Return in plain words what makes a maximum worthless, such as a collapsed component.

        Args:
            values: Values of the continuous latent sites.
        """
        ...


class HasEMSteps(Protocol):
    """A pair whose E and M steps are written down.

    Example:
        Which of two coins was tossed ten times in each row? The priors are flat here, so that
        both kinds of estimate are the same.

        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from ppl_gen import Pair, fit
        >>> from ppl_gen.inference import EM
        >>> class CoinSteps:
        ...     def __init__(self, heads):
        ...         self.heads = heads
        ...
        ...     def start(self):
        ...         return {"bias": torch.rand(2)}
        ...
        ...     def expect(self, values):
        ...         log_prob = dist.Binomial(10, values["bias"]).log_prob(self.heads[:, None])
        ...         log_prob = log_prob - math.log(2)
        ...         return log_prob.softmax(-1), log_prob.logsumexp(-1).sum()
        ...
        ...     def maximise(self, responsibilities, values):
        ...         tosses = 10 * responsibilities.sum(0)
        ...         return {"bias": self.heads @ responsibilities / tosses}
        ...
        ...     def flaws(self, values):
        ...         return ()
        >>> class TwoCoins(Pair):
        ...     def model(self, heads):
        ...         bias = pyro.sample("bias", dist.Uniform(torch.zeros(2), 1.0).to_event(1))
        ...         with pyro.plate("data", len(heads)):
        ...             coin = pyro.sample("coin", dist.Bernoulli(0.5)).long()
        ...             pyro.sample("heads", dist.Binomial(10, bias[coin]), obs=heads)
        ...
        ...     def em_steps(self, priors, /, heads):
        ...         return CoinSteps(heads)
        >>> heads = torch.tensor([5.0, 9.0, 8.0, 4.0, 7.0])
        >>> bias = fit(TwoCoins(), {"heads": heads}, EM(), progress=False)["bias"]
        >>> [round(float(one), 2) for one in bias.flatten().sort().values]
        [0.52, 0.8]
    """

    def em_steps(self, priors: bool, /, **data: Any) -> EMSteps | None:
        """Return the steps, or None where there are none in closed form for these options.

        Args:
            priors: Whether the priors of the continuous latents are part of the objective.
            **data: The data, by the names of the model's arguments.
        """
        ...


class ClosedFormAscent:
    """A climb by steps in closed form.

    Args:
        steps: The pair's steps.
        kind: The pair's name, for errors.
    """

    evaluations = 0

    def __init__(self, steps: EMSteps, kind: str) -> None:
        self._steps = steps
        self._kind = kind
        self.values = steps.start()
        self._expectations, objective = steps.expect(self.values)
        self.history = [float(objective)]
        self.converged = False

    @property
    def objective(self) -> float:
        """The objective by now."""
        return self.history[-1]

    @property
    def ended(self) -> bool:
        """Whether another step is of no use."""
        return self.converged

    @property
    def sound(self) -> bool:
        """Whether nothing has collapsed."""
        return not self.flaws()

    def flaws(self) -> tuple[str, ...]:
        """Return what is wrong with where it is."""
        return self._steps.flaws(self.values)

    def step(self, tolerance: float) -> None:
        """Make one E and one M step.

        Args:
            tolerance: It has converged once all further steps together are to gain less.

        Raises:
            ValueError: If the step lowers the objective, which a right one cannot.
        """
        values = self._steps.maximise(self._expectations, self.values)
        expectations, objective = self._steps.expect(values)
        before, after = self.objective, float(objective)
        if not after >= before - _ROUNDING * (1 + abs(before)):  # also NaN
            msg = (
                f"the EM steps of {self._kind} lowered what they are to maximise from "
                f"{before:.10g} to {after:.10g} in step {len(self.history)}. Compare `maximise` "
                "with the maximum of the expected log density, and `expect` with the model."
            )
            raise ValueError(msg)
        self.values, self._expectations = values, expectations
        self.history.append(after)
        self.converged = remaining_gain(self.history) <= tolerance


def remaining_gain(history: list[float]) -> float:
    """Return what further steps of EM are to gain, infinite where that cannot be told yet.

    EM converges linearly: near a maximum each gain is the same fraction of the one before, so
    that the rest is a geometric series. Small gains that grow, as near a saddle, are no end.

    Args:
        history: The objective at the start and after each step.

    References:
        Böhning, Dietz, Schaub, Schlattmann and Lindsay, The distribution of the likelihood ratio
        for mixtures of densities from the one-parameter exponential family (1994), Annals of the
        Institute of Statistical Mathematics 46(2), 373-388, section 2 (Aitken's acceleration).

    Example:
        >>> remaining_gain([0.0, 8.0, 12.0])  # 2 + 1 + 1/2 + ...
        4.0
    """
    if len(history) < 3:
        return math.inf
    earlier, gain = history[-2] - history[-3], history[-1] - history[-2]
    if abs(gain) <= 16 * math.ulp(history[-1]):  # nothing but rounding
        return 0.0
    if not 0 < gain < earlier:
        return math.inf
    rate = gain / earlier
    return gain * max(1.0, rate / (1 - rate))
