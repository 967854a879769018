"""Joint distributions that no copula gives: two modes, a funnel, a banana, eight schools, ..."""

from __future__ import annotations

import functools

import numpy as np
from scipy import special, stats

from judge_cases.distributions import PROBABILITIES, Array, Copula, Distribution, Moments
from judge_cases.marginals import Normal, mixture, of_scipy, student_t

_LOG_2PI = float(np.log(2 * np.pi))


def _log_normal(x: Array, mean: Array | float, sd: Array | float) -> Array:
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * _LOG_2PI


class TwoModes(Distribution):
    """A mixture of two normals.

    Args:
        weight: Probability of the first.
        means: Of either, (2, parameter).
        sds: Of either, (2, parameter).
        correlation: Of both.
    """

    def __init__(self, weight: float, means: Array, sds: Array, correlation: Array) -> None:
        self.weight, self.means, self.sds, self.correlation = weight, means, sds, correlation
        self.sites = {"theta": (means.shape[1],)}
        self.noise = means.shape[1] + 1

    def mode(self, which: int) -> Copula:
        """Return one of the two alone."""
        pairs = zip(self.means[which], self.sds[which], strict=True)
        return Copula([Normal(m, s) for m, s in pairs], self.correlation)

    def transform(self, z: Array) -> Array:
        first = special.ndtr(z[:, :1]) < self.weight
        return np.where(first, self.mode(0).transform(z[:, 1:]), self.mode(1).transform(z[:, 1:]))

    def log_prob(self, x: Array) -> Array:
        parts = np.stack([self.mode(k).log_prob(x) for k in (0, 1)])
        weights = np.array([self.weight, 1 - self.weight])
        return np.asarray(special.logsumexp(parts, axis=0, b=weights[:, None]))


class NormalInverseGamma(Distribution):
    """The posterior of a regression with unknown noise.

    Coefficients given the variance are Normal(mean, variance * scatter), the variance is
    InverseGamma(a, b).
    """

    def __init__(self, mean: Array, scatter: Array, a: float, b: float) -> None:
        self.mean, self.scatter, self.a, self.b = mean, scatter, a, b
        self.sites = {"beta": (len(mean),), "variance": ()}
        self.noise = len(mean) + 1
        self._variance = of_scipy(stats.invgamma(a, scale=b))
        spread = np.sqrt(np.diag(scatter))
        self._correlation = scatter / np.outer(spread, spread)
        self._spread = spread

    def transform(self, z: Array) -> Array:
        variance = self._variance.from_normal(z[:, -1])
        beta = z[:, :-1] @ np.linalg.cholesky(self.scatter).T * np.sqrt(variance)[:, None]
        return np.column_stack([self.mean + beta, variance])

    def log_prob(self, x: Array) -> Array:
        beta, variance = x[:, :-1] - self.mean, x[:, -1]
        positive = variance > 0
        scale = np.sqrt(np.where(positive, variance, 1.0))
        tril = np.linalg.cholesky(self.scatter)
        white = np.linalg.solve(tril, (beta / scale[:, None]).T)
        given = _log_normal(white, 0.0, 1.0).sum(axis=0) - np.log(np.diag(tril)).sum()
        given -= len(self.mean) * np.log(scale)
        return np.where(positive, given + self._variance.log_density(variance), -np.inf)

    @functools.cached_property
    def moments(self) -> Moments:
        """Student t distributions and an inverse gamma; dependence from many draws."""
        scale = self._spread * np.sqrt(self.b / self.a)
        betas = [student_t(2 * self.a, m, s) for m, s in zip(self.mean, scale, strict=True)]
        margins = [*betas, self._variance]
        return Moments(
            np.array([m.mean for m in margins]),
            np.array([m.sd for m in margins]),
            np.stack([m.quantile(PROBABILITIES) for m in margins], axis=1),
            super().moments.correlation,
        )

    def mean_field(self) -> Copula:
        """Return the best product of one distribution of all coefficients and one of the variance.

        Its inverse gamma has the shape a + p/2 and the scale b (a + p/2) / a, and the
        coefficients are normal with covariance `scatter * b / a`.
        """
        a, b, count = self.a, self.b, len(self.mean)
        normals = [
            Normal(m, s * np.sqrt(b / a)) for m, s in zip(self.mean, self._spread, strict=True)
        ]
        shape = a + count / 2
        variance = of_scipy(stats.invgamma(shape, scale=b * shape / a))
        correlation = np.eye(count + 1)
        correlation[:-1, :-1] = self._correlation
        return Copula([*normals, variance], correlation, self.sites)


class Funnel(Distribution):
    """`v ~ Normal(centre, spread)`, `x_j ~ Normal(0, width * exp(v / 2))`."""

    def __init__(self, count: int, centre: float, spread: float, width: float) -> None:
        self.count, self.centre, self.spread, self.width = count, centre, spread, width
        self.sites = {"v": (), "x": (count,)}
        self.noise = count + 1

    def transform(self, z: Array) -> Array:
        v = self.centre + self.spread * z[:, :1]
        return np.concatenate([v, self.width * np.exp(v / 2) * z[:, 1:]], axis=1)

    def log_prob(self, x: Array) -> Array:
        v = x[:, 0]
        given = _log_normal(x[:, 1:], 0.0, self.width * np.exp(v / 2)[:, None]).sum(axis=1)
        return _log_normal(v, self.centre, self.spread) + given

    def mean_field(self) -> Copula:
        """Return the best independent normals, in closed form."""
        spread = (1 / self.spread**2 + self.count / 2) ** -0.5
        width = self.width * np.exp(self.centre / 2 - spread**2 / 4)
        return Copula(
            [Normal(self.centre, spread)] + [Normal(0.0, width)] * self.count, sites=self.sites
        )

    def margins(self) -> Copula:
        """Return the same marginals, independent: a normal and a mixture of normals by scale."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        kept = weights / weights.sum() > 1e-12
        v = self.centre + self.spread * nodes[kept]
        sds = self.width * np.exp(v / 2)
        share = weights[kept] / weights[kept].sum()
        wide = mixture(share, np.zeros_like(sds), sds)
        return Copula([Normal(self.centre, self.spread)] + [wide] * self.count, sites=self.sites)


class Banana(Distribution):
    """`x ~ Normal(0, 1)`, `y = bend * (x^2 - 1) + scale * noise`."""

    def __init__(self, bend: float, scale: float) -> None:
        self.bend, self.scale = bend, scale
        self.sites = {"x": (), "y": ()}
        self.noise = 2

    def transform(self, z: Array) -> Array:
        return np.column_stack([z[:, 0], self.bend * (z[:, 0] ** 2 - 1) + self.scale * z[:, 1]])

    def log_prob(self, x: Array) -> Array:
        y = x[:, 1] - self.bend * (x[:, 0] ** 2 - 1)
        return _log_normal(x[:, 0], 0.0, 1.0) + _log_normal(y, 0.0, self.scale)

    def moment_matched(self) -> Copula:
        """Return the normal with the same means and covariances, which is independent."""
        sd = float(np.hypot(np.sqrt(2) * self.bend, self.scale))
        return Copula([Normal(), Normal(0.0, sd)], sites=self.sites)


_EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
_ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
_PRIOR_SCALE = 5.0
_LOG_TAU = np.linspace(-9.0, 7.0, 16_001)


class EightSchools(Distribution):
    """The posterior of eight schools, exact draws by quadrature over tau."""

    sites = {"mu": (), "tau": (), "theta": (8,)}  # noqa: RUF012 - it is never changed
    noise = 10

    def transform(self, z: Array) -> Array:
        tau = np.exp(np.interp(special.ndtr(z[:, 0]), self._below, _LOG_TAU))
        mean, precision = _mu_given(tau)
        mu = mean + z[:, 1] / np.sqrt(precision)
        share = tau[:, None] ** 2 / (tau[:, None] ** 2 + _ERRORS**2)
        centre = share * _EFFECTS + (1 - share) * mu[:, None]
        theta = centre + np.sqrt(share) * _ERRORS * z[:, 2:]
        return np.column_stack([mu, tau, theta])

    def log_prob(self, x: Array) -> Array:
        mu, tau, theta = x[:, 0], x[:, 1], x[:, 2:]
        prior = _log_normal(mu, 0.0, _PRIOR_SCALE) + _log_half_cauchy(tau)
        effects = _log_normal(theta, mu[:, None], tau[:, None]).sum(axis=1)
        likelihood = _log_normal(_EFFECTS, theta, _ERRORS).sum(axis=1)
        return prior + effects + likelihood - self.log_evidence

    @functools.cached_property
    def _log_weights(self) -> Array:
        """The log joint density of the data and log tau on the grid."""
        tau = np.exp(_LOG_TAU)
        mean, precision = _mu_given(tau)
        sd = np.sqrt(_ERRORS**2 + tau[:, None] ** 2)
        fit = _log_normal(_EFFECTS, mean[:, None], sd).sum(axis=1)
        fit += _log_normal(mean, 0.0, _PRIOR_SCALE) + 0.5 * (_LOG_2PI - np.log(precision))
        return fit + _log_half_cauchy(tau) + _LOG_TAU

    @functools.cached_property
    def log_evidence(self) -> float:
        step = _LOG_TAU[1] - _LOG_TAU[0]
        return float(special.logsumexp(self._log_weights) + np.log(step))

    @functools.cached_property
    def _below(self) -> Array:
        weights = np.exp(self._log_weights - self._log_weights.max())
        total = np.concatenate([[0.0], np.cumsum((weights[1:] + weights[:-1]) / 2)])
        return total / total[-1]


def _mu_given(tau: Array) -> tuple[Array, Array]:
    """Return mean and precision of mu given tau."""
    inverse = 1 / (_ERRORS**2 + tau[:, None] ** 2)
    precision = 1 / _PRIOR_SCALE**2 + inverse.sum(axis=1)
    return (inverse @ _EFFECTS) / precision, precision


def _log_half_cauchy(tau: Array) -> Array:
    return np.log(2 / (np.pi * _PRIOR_SCALE)) - np.log1p((tau / _PRIOR_SCALE) ** 2)


class SchoolsGuide(Distribution):
    """Independent normals for mu, log tau and, centred or not, the effects.

    Args:
        means: Of mu, log tau and the effects or their standardised form, (10,).
        sds: The same.
        centered: Which of the two forms.
    """

    sites = EightSchools.sites
    noise = 10

    def __init__(self, means: Array, sds: Array, *, centered: bool) -> None:
        self.means, self.sds, self.centered = means, sds, centered

    @classmethod
    def matched(cls, target: EightSchools, *, centered: bool, factor: float = 1.0) -> SchoolsGuide:
        """Return the guide with the posterior's means and sds, these times a factor."""
        x = target.transform(np.random.default_rng(0).normal(size=(200_000, 10)))
        mu, tau, theta = x[:, :1], x[:, 1:2], x[:, 2:]
        effects = theta if centered else (theta - mu) / tau
        x = np.concatenate([mu, np.log(tau), effects], axis=1)
        return cls(x.mean(axis=0), factor * x.std(axis=0), centered=centered)

    def transform(self, z: Array) -> Array:
        y = self.means + self.sds * z
        mu, tau, effects = y[:, :1], np.exp(y[:, 1:2]), y[:, 2:]
        theta = effects if self.centered else mu + tau * effects
        return np.concatenate([mu, tau, theta], axis=1)

    def log_prob(self, x: Array) -> Array:
        mu, tau, theta = x[:, :1], x[:, 1:2], x[:, 2:]
        effects = theta if self.centered else (theta - mu) / tau
        y = np.concatenate([mu, np.log(tau), effects], axis=1)
        jacobian = np.log(tau[:, 0]) * (1 if self.centered else 9)
        return _log_normal(y, self.means, self.sds).sum(axis=1) - jacobian
