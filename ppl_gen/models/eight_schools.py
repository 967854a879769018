"""Eight schools: the small hierarchical model, in its centred and non-centred forms."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from ppl_gen.core.errors import SiteError, unknown
from ppl_gen.core.pair import Pair
from ppl_gen.models.checks import check_positive, check_target

__all__ = ["EightSchools"]

_TAU_PRIORS = {"half_cauchy": dist.HalfCauchy, "half_normal": dist.HalfNormal}


class EightSchools(Pair):
    r"""Effects of a coaching programme in several schools, partially pooled.

    .. math::
        \mu \sim \mathrm{Normal}(0, \mathrm{mu\_scale}), \quad
        \tau \sim \mathrm{HalfCauchy}(\mathrm{tau\_scale}), \quad
        \theta_j \sim \mathrm{Normal}(\mu, \tau), \quad
        y_j \sim \mathrm{Normal}(\theta_j, \sigma_j).

    The non-centred form draws :math:`z_j \sim \mathrm{Normal}(0, 1)` and sets
    :math:`\theta_j = \mu + \tau z_j`: the same posterior, without the funnel between
    :math:`\tau` and :math:`\theta` that is hard on samplers and guides where the data say little.

    Sites: "mu" `()`; "tau" `()`; "theta" `(schools,)`, a latent in the centred form, else
    deterministic, with the latent "z" `(schools,)`; "y", observed. The last three are in the
    plate "school".

    Args:
        centered: Whether the effects themselves are latent, instead of `z`.
        mu_scale: Prior standard deviation of the mean effect, in points of the test.
        tau_scale: Prior scale of the standard deviation between schools, in points of the test.
        tau_prior: "half_cauchy" or "half_normal".

    Raises:
        TypeError: If a scale is no number.
        ValueError: If a scale is not positive, or the prior is unknown.

    References:
        Rubin, Estimation in parallel randomized experiments (1981), Journal of Educational
        Statistics 6(4), 377-401.
        Papaspiliopoulos, Roberts and Sköld, A general framework for the parametrization of
        hierarchical models (2007), Statistical Science 22(1), 59-73, arXiv:0708.3797.

    Example:
        >>> pair = EightSchools()
        >>> pair.model(**EightSchools.data()).shape
        torch.Size([8])
    """

    def __init__(
        self,
        *,
        centered: bool = False,
        mu_scale: float = 5.0,
        tau_scale: float = 5.0,
        tau_prior: str = "half_cauchy",
    ) -> None:
        super().__init__()
        check_positive("mu_scale", mu_scale)
        check_positive("tau_scale", tau_scale)
        if tau_prior not in _TAU_PRIORS:
            raise unknown("tau_prior", tau_prior, _TAU_PRIORS)
        self.centered = centered
        self.mu_scale = mu_scale
        self.tau_scale = tau_scale
        self.tau_prior = tau_prior

    @staticmethod
    def data() -> dict[str, torch.Tensor]:
        """Return Rubin's data: estimated effects `y` and their standard errors `sigma`.

        Example:
            >>> EightSchools.data()["y"].tolist()
            [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
        """
        return {
            "sigma": torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
            "y": torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
        }

    def validate(self, sigma: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Check the shapes of the data, and that every standard error is positive.

        Args:
            sigma: Standard errors, of shape `(schools,)`.
            y: Estimated effects, of shape `(schools,)`, or None.

        Raises:
            SiteError: If a shape or a standard error is wrong.
        """
        if not isinstance(sigma, torch.Tensor) or sigma.ndim != 1 or len(sigma) == 0:
            got = f"shape {tuple(sigma.shape)}" if isinstance(sigma, torch.Tensor) else repr(sigma)
            raise SiteError(
                "sigma",
                expected="a tensor of shape (schools,)",
                got=got,
                remedy="Give one standard error for each school.",
            )
        if not sigma.is_floating_point():
            raise SiteError(
                "sigma",
                expected="floating-point numbers",
                got=str(sigma.dtype),
                remedy="Write sigma.float().",
            )
        if bool((sigma <= 0).any()):
            raise SiteError(
                "sigma",
                expected="positive standard errors",
                got=f"{float(sigma.min()):g} as the smallest",
                remedy="Give standard deviations; remove schools that have none.",
            )
        if y is not None:
            check_target("y", y, len(sigma), "sigma")

    def model(self, sigma: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Run the generative story of the class once.

        Args:
            sigma: Standard errors, of shape `(schools,)`.
            y: Estimated effects, of shape `(schools,)`, or None to draw them.

        Returns:
            The estimated effects.
        """
        zero, one = sigma.new_zeros(()), sigma.new_ones(())
        mu = pyro.sample("mu", dist.Normal(zero, self.mu_scale))
        tau = pyro.sample("tau", _TAU_PRIORS[self.tau_prior](self.tau_scale * one))
        with pyro.plate("school", len(sigma)):
            if self.centered:
                theta = pyro.sample("theta", dist.Normal(mu, tau))
            else:
                z = pyro.sample("z", dist.Normal(zero, one))
                theta = pyro.deterministic("theta", mu + tau * z, event_dim=0)
            observed = None if y is None else y.to(sigma.dtype)
            sampled: torch.Tensor = pyro.sample("y", dist.Normal(theta, sigma), obs=observed)
        return sampled
