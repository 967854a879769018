"""Bayesian linear regression, and its posterior in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import PowerTransform

from ppl_gen.core.errors import check_count
from ppl_gen.core.pair import Pair
from ppl_gen.models.checks import check_features, check_positive, check_target

__all__ = ["BayesianLinearRegression", "NormalInverseGammaPosterior", "NormalPosterior"]


@dataclass(frozen=True)
class NormalPosterior:
    """The exact posterior of a linear regression whose noise is known: a normal distribution.

    Its vectors hold the weights first and, where there is one, the intercept last.

    Args:
        mean: Posterior mean, of shape `(num_coefficients,)`, in float64.
        covariance: Posterior covariance, of shape `(num_coefficients, num_coefficients)`.
        log_evidence: `log p(y | x)`, in nats.
        intercept: Whether the last coefficient is an intercept.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    log_evidence: float
    intercept: bool

    def coefficients(self) -> dist.MultivariateNormal:
        """Return the joint distribution of weights and intercept."""
        return dist.MultivariateNormal(self.mean, self.covariance)

    def log_prob(self, draws: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the log posterior density of named values.

        Args:
            draws: Values of the latent sites: "weights" of shape `(*batch, num_features)` and,
                with an intercept, "intercept" of shape `(*batch,)`.

        Returns:
            Log densities of shape `(*batch,)`.
        """
        log_prob: torch.Tensor = self.coefficients().log_prob(_join(draws, self.intercept))
        return log_prob

    def sample(self, draws: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
        """Return independent draws of the latent sites.

        Args:
            draws: How many.
            seed: Seed of their own generator.

        Returns:
            Values by site, with the draws along the first axis.
        """
        check_count("draws", draws)
        noise = _standard_normal(draws, self.mean, _generator(seed))
        tril = torch.linalg.cholesky(self.covariance)
        return _split(self.mean + noise @ tril.mT, self.intercept)


@dataclass(frozen=True)
class NormalInverseGammaPosterior:
    r"""The exact posterior of a linear regression whose noise is unknown.

    With coefficients :math:`\beta` and noise variance :math:`\sigma^2`

    .. math::
        \sigma^2 \sim \mathrm{InverseGamma}(a, b), \qquad
        \beta \mid \sigma^2 \sim \mathrm{Normal}(m, \sigma^2 V),

    so that :math:`\beta` alone has a Student t distribution with :math:`2 a` degrees of freedom.
    Its vectors hold the weights first and, where there is one, the intercept last.

    Args:
        mean: Location :math:`m`, of shape `(num_coefficients,)`, in float64.
        relative_covariance: :math:`V`, the covariance given the noise divided by its variance,
            of shape `(num_coefficients, num_coefficients)`.
        concentration: :math:`a`.
        rate: :math:`b`.
        log_evidence: `log p(y | x)`, in nats.
        intercept: Whether the last coefficient is an intercept.

    References:
        Gelman, Carlin, Stern, Dunson, Vehtari and Rubin, Bayesian Data Analysis, 3rd edition
        (2013), chapter 14.
    """

    mean: torch.Tensor
    relative_covariance: torch.Tensor
    concentration: float
    rate: float
    log_evidence: float
    intercept: bool

    @property
    def covariance(self) -> torch.Tensor:
        """Covariance of the coefficients, the noise integrated out; infinite if it is undefined."""
        if self.concentration <= 1.0:
            return torch.full_like(self.relative_covariance, math.inf)
        return self.relative_covariance * (self.rate / (self.concentration - 1.0))

    def coefficients(self) -> dist.MultivariateStudentT:
        """Return the joint distribution of weights and intercept, the noise integrated out."""
        tril = torch.linalg.cholesky(self.relative_covariance * (self.rate / self.concentration))
        degrees = torch.as_tensor(2.0 * self.concentration, dtype=tril.dtype)
        return dist.MultivariateStudentT(degrees, self.mean, tril)

    def noise_variance(self) -> dist.InverseGamma:
        """Return the distribution of the noise variance, the square of the site "noise_scale"."""
        return dist.InverseGamma(
            self.mean.new_tensor(self.concentration), self.mean.new_tensor(self.rate)
        )

    def log_prob(self, draws: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the joint log posterior density of named values.

        Args:
            draws: Values of the latent sites: "weights" of shape `(*batch, num_features)`,
                "noise_scale" and, with an intercept, "intercept" of shape `(*batch,)`.

        Returns:
            Log densities of shape `(*batch,)`.
        """
        scale = draws["noise_scale"].to(self.mean.dtype)
        tril = torch.linalg.cholesky(self.relative_covariance)
        given_noise = dist.MultivariateNormal(
            self.mean, scale_tril=scale[..., None, None] * tril
        ).log_prob(_join(draws, self.intercept))
        of_noise = _noise_scale(self.mean, self.concentration, self.rate).log_prob(scale)
        log_prob: torch.Tensor = given_noise + of_noise
        return log_prob

    def sample(self, draws: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
        """Return independent draws of the latent sites.

        Args:
            draws: How many.
            seed: Seed of their own generator.

        Returns:
            Values by site, with the draws along the first axis.
        """
        check_count("draws", draws)
        generator = _generator(seed)
        # torch's distributions cannot be given a generator; the primitive below can.
        concentration = self.mean.new_full((draws,), self.concentration)
        scale = (self.rate / torch._standard_gamma(concentration, generator=generator)).sqrt()
        noise = _standard_normal(draws, self.mean, generator)
        tril = torch.linalg.cholesky(self.relative_covariance)
        values = _split(self.mean + scale[:, None] * (noise @ tril.mT), self.intercept)
        return {**values, "noise_scale": scale}


class BayesianLinearRegression(Pair):
    r"""Linear regression with normal noise, the noise known or unknown; its posterior is exact.

    With known noise :math:`\sigma` (`noise_scale` is a number), `prior_scale` is the prior
    standard deviation of each weight :math:`w_d` and `intercept_scale` that of the intercept
    :math:`c`:

    .. math::
        w_d \sim \mathrm{Normal}(0, \mathrm{prior\_scale}), \quad
        c \sim \mathrm{Normal}(0, \mathrm{intercept\_scale}), \quad
        y_i \sim \mathrm{Normal}(w \cdot x_i + c, \sigma).

    With unknown noise (`noise_scale=None`, the default), both scales count in units of the noise,
    which makes the prior conjugate, and makes it follow the unit that `y` is measured in:

    .. math::
        1 / \sigma^2 \sim \mathrm{Gamma}(\mathrm{noise\_concentration}, \mathrm{noise\_rate}), \quad
        w_d \sim \mathrm{Normal}(0, \sigma\, \mathrm{prior\_scale}), \quad
        c \sim \mathrm{Normal}(0, \sigma\, \mathrm{intercept\_scale}), \quad
        y_i \sim \mathrm{Normal}(w \cdot x_i + c, \sigma).

    The defaults suit raw data: the noise has a prior median of 0.21 and a Cauchy-like tail, so
    that noise anywhere above about 0.02 is left to the data, and the intercept has a wide prior.

    Sites: "weights" `(num_features,)`; "intercept" `()`, with `intercept=True`; "noise_scale" `()`,
    where it is unknown; "y", observed, in the plate "data".

    Args:
        num_features: Number of columns of `x`.
        intercept: Whether there is an intercept. Without one the regression goes through zero.
        prior_scale: Prior standard deviation of a weight, in units of the noise if that is unknown.
        intercept_scale: Prior standard deviation of the intercept, likewise.
        noise_scale: Standard deviation of the noise, or None where it is to be inferred.
        noise_concentration: Concentration of the Gamma prior of `1 / noise_scale**2`.
        noise_rate: Rate of the same.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a size, scale, rate or concentration is not positive.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> y = torch.tensor([1.0, 3.0, 5.0])
        >>> pair = BayesianLinearRegression(num_features=1, noise_scale=0.1)
        >>> [round(value, 2) for value in pair.exact_posterior(x, y).mean.tolist()]
        [2.0, 1.0]
    """

    def __init__(
        self,
        num_features: int,
        *,
        intercept: bool = True,
        prior_scale: float = 10.0,
        intercept_scale: float = 100.0,
        noise_scale: float | None = None,
        noise_concentration: float = 0.5,
        noise_rate: float = 0.01,
    ) -> None:
        super().__init__()
        check_count("num_features", num_features)
        check_positive("prior_scale", prior_scale)
        check_positive("intercept_scale", intercept_scale)
        check_positive("noise_concentration", noise_concentration)
        check_positive("noise_rate", noise_rate)
        if noise_scale is not None:
            check_positive("noise_scale", noise_scale)
        self.num_features = num_features
        self.intercept = intercept
        self.prior_scale = prior_scale
        self.intercept_scale = intercept_scale
        self.noise_scale = noise_scale
        self.noise_concentration = noise_concentration
        self.noise_rate = noise_rate

    def validate(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Check the shapes of the data.

        Args:
            x: Features, of shape `(n, num_features)`.
            y: Responses, of shape `(n,)`, or None.

        Raises:
            SiteError: If a shape or a dtype is wrong.
        """
        check_features("x", x, self.num_features)
        if y is not None:
            check_target("y", y, len(x), "x")

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Run the generative story of the class once.

        Args:
            x: Features, of shape `(n, num_features)`.
            y: Responses, of shape `(n,)`, or None to draw them.

        Returns:
            The responses.
        """
        unit: torch.Tensor | float = 1.0  # what the prior scales are measured in
        noise_scale: torch.Tensor | float | None = self.noise_scale
        if noise_scale is None:
            prior = _noise_scale(x, self.noise_concentration, self.noise_rate)
            noise_scale = unit = pyro.sample("noise_scale", prior)
        zero = x.new_zeros(())
        zeros = x.new_zeros(self.num_features)
        weights = pyro.sample("weights", dist.Normal(zeros, self.prior_scale * unit).to_event(1))
        mean = x @ weights
        if self.intercept:
            mean = mean + pyro.sample("intercept", dist.Normal(zero, self.intercept_scale * unit))
        with pyro.plate("data", len(x)):
            observed = None if y is None else y.to(x.dtype)
            sampled: torch.Tensor = pyro.sample("y", dist.Normal(mean, noise_scale), obs=observed)
        return sampled

    def exact_posterior(
        self, x: torch.Tensor, y: torch.Tensor
    ) -> NormalPosterior | NormalInverseGammaPosterior:
        r"""Return the posterior in closed form, computed in float64.

        With :math:`X` the features (and a column of ones for the intercept), :math:`S` the prior
        covariance of the coefficients and :math:`\sigma` known,

        .. math::
            V^{-1} = S^{-1} + X^T X / \sigma^2, \qquad m = V X^T y / \sigma^2, \qquad
            \log p(y) = -\tfrac{1}{2} \Big( n \log 2 \pi \sigma^2 + \log \frac{|S|}{|V|}
            + \frac{|y - X m|^2}{\sigma^2} + m^T S^{-1} m \Big).

        With :math:`\sigma` unknown the same holds in units of :math:`\sigma`, and
        :math:`a = a_0 + n / 2`, :math:`b = b_0 + (|y - X m|^2 + m^T S^{-1} m) / 2`.

        Args:
            x: Features, of shape `(n, num_features)`.
            y: Responses, of shape `(n,)`.

        Returns:
            A `NormalPosterior` where the noise is known, else a `NormalInverseGammaPosterior`.

        Raises:
            SiteError: If a shape or a dtype is wrong.
        """
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        self.validate(x, y)
        x, y = x.detach().cpu().double(), y.detach().cpu().double()
        scales = x.new_full((self.num_features,), self.prior_scale)
        if self.intercept:
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
            scales = torch.cat([scales, scales.new_tensor([self.intercept_scale])])
        unit = 1.0 if self.noise_scale is None else self.noise_scale
        # Least squares with the prior as further rows, solved by QR: the normal equations would
        # square the condition number, and raw data are badly conditioned.
        rows = torch.cat([x / unit, torch.diag(1.0 / scales)])
        values = torch.cat([y / unit, y.new_zeros(len(scales))])
        q, r = torch.linalg.qr(rows)
        mean = torch.linalg.solve_triangular(r, (q.mT @ values)[:, None], upper=True)[:, 0]
        root = torch.linalg.solve_triangular(r, torch.eye(len(r), dtype=r.dtype), upper=True)
        misfit = float((values - rows @ mean).square().sum())
        # log |V| / 2 - log |S| / 2
        volume = float(-r.diagonal().abs().log().sum() - scales.log().sum())
        constant = volume - 0.5 * len(y) * math.log(2.0 * math.pi)
        if self.noise_scale is not None:
            log_evidence = constant - len(y) * math.log(self.noise_scale) - 0.5 * misfit
            return NormalPosterior(mean, root @ root.mT, log_evidence, self.intercept)
        concentration = self.noise_concentration + 0.5 * len(y)
        rate = self.noise_rate + 0.5 * misfit
        log_evidence = (
            constant
            + self.noise_concentration * math.log(self.noise_rate)
            - math.lgamma(self.noise_concentration)
            - concentration * math.log(rate)
            + math.lgamma(concentration)
        )
        return NormalInverseGammaPosterior(
            mean, root @ root.mT, concentration, rate, log_evidence, self.intercept
        )


def _noise_scale(
    like: torch.Tensor, concentration: float, rate: float
) -> dist.TransformedDistribution:
    """Return the distribution of s where 1 / s**2 has a Gamma distribution."""
    precision = dist.Gamma(like.new_full((), concentration), like.new_full((), rate))
    return dist.TransformedDistribution(precision, PowerTransform(like.new_full((), -0.5)))


def _join(draws: dict[str, torch.Tensor], intercept: bool) -> torch.Tensor:
    weights = draws["weights"].double()
    if not intercept:
        return weights
    return torch.cat([weights, draws["intercept"].double()[..., None]], dim=-1)


def _split(coefficients: torch.Tensor, intercept: bool) -> dict[str, torch.Tensor]:
    if not intercept:
        return {"weights": coefficients}
    return {"weights": coefficients[..., :-1], "intercept": coefficients[..., -1]}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _standard_normal(draws: int, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(draws, len(like), dtype=like.dtype, generator=generator)
