"""Bayesian logistic regression."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from ppl_gen.core.errors import SiteError, check_count
from ppl_gen.core.pair import Pair
from ppl_gen.models.checks import check_features, check_positive, check_target

__all__ = ["BayesianLogisticRegression"]


class BayesianLogisticRegression(Pair):
    r"""Regression of a response that is 0 or 1.

    .. math::
        w_d \sim \mathrm{Normal}(0, \mathrm{prior\_scale}), \quad
        c \sim \mathrm{Normal}(0, \mathrm{intercept\_scale}), \quad
        y_i \sim \mathrm{Bernoulli}(\mathrm{logit}^{-1}(w \cdot x_i + c)).

    The default prior scales are for features of about unit scale: a weight of 2.5 moves a
    probability from 0.5 to 0.92.

    Sites: "weights" `(num_features,)`; "intercept" `()`, with `intercept=True`; "y", observed, in
    the plate "data".

    Args:
        num_features: Number of columns of `x`.
        intercept: Whether there is an intercept.
        prior_scale: Prior standard deviation of a weight.
        intercept_scale: Prior standard deviation of the intercept.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a size or scale is not positive.

    References:
        Gelman, Jakulin, Pittau and Su, A weakly informative default prior distribution for
        logistic and other regression models (2008), arXiv:0901.4011, for the default scales,
        here of normal instead of Cauchy distributions.

    Example:
        >>> pair = BayesianLogisticRegression(num_features=2)
        >>> pair.model(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        num_features: int,
        *,
        intercept: bool = True,
        prior_scale: float = 2.5,
        intercept_scale: float = 10.0,
    ) -> None:
        super().__init__()
        check_count("num_features", num_features)
        check_positive("prior_scale", prior_scale)
        check_positive("intercept_scale", intercept_scale)
        self.num_features = num_features
        self.intercept = intercept
        self.prior_scale = prior_scale
        self.intercept_scale = intercept_scale

    def validate(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Check the shapes of the data, and that every response is 0 or 1.

        Args:
            x: Features, of shape `(n, num_features)`.
            y: Responses, of shape `(n,)`, or None.

        Raises:
            SiteError: If a shape, a dtype or a response is wrong.
        """
        check_features("x", x, self.num_features)
        if y is None:
            return
        check_target("y", y, len(x), "x")
        wrong = (y != 0) & (y != 1)
        if bool(wrong.any()):
            raise SiteError(
                "y",
                expected="responses that are 0 or 1",
                got=f"{int(wrong.sum())} others, the first {y[wrong][0].item()}",
                remedy="Code one class as 0 and the other as 1, as in (labels == 'yes').float().",
            )

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Run the generative story of the class once.

        Args:
            x: Features, of shape `(n, num_features)`.
            y: Responses, of shape `(n,)`, of any dtype, or None to draw them.

        Returns:
            The responses, in the dtype of `x`.
        """
        zero = x.new_zeros(())
        zeros = x.new_zeros(self.num_features)
        weights = pyro.sample("weights", dist.Normal(zeros, self.prior_scale).to_event(1))
        logits = x @ weights
        if self.intercept:
            logits = logits + pyro.sample("intercept", dist.Normal(zero, self.intercept_scale))
        with pyro.plate("data", len(x)):
            observed = None if y is None else y.to(x.dtype)
            sampled: torch.Tensor = pyro.sample("y", dist.Bernoulli(logits=logits), obs=observed)
        return sampled
