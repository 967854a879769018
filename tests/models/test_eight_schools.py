"""Eight schools against quadrature of its own density, and the two forms against each other."""

from __future__ import annotations

import math
from typing import Any

import pyro.poutine as poutine
import pytest
import torch
from scipy import integrate, stats

from ppl_gen.core import LogDensity, SiteError
from ppl_gen.models import EightSchools


def terms(pair: Any, data: Any, values: Any) -> Any:
    trace = poutine.trace(poutine.condition(pair.model, values)).get_trace(**data)
    trace.compute_log_prob()
    return {name: trace.nodes[name]["log_prob"] for name in (*values, "y")}


def quadrature(pair: Any) -> Any:
    """Return the log evidence and a function giving posterior expectations of mu and tau.

    The schools are independent given mu and tau, so that each z is integrated on its own; the
    trapezoidal rule is exact to rounding for smooth densities that vanish at both ends.
    """
    data = {name: value.double() for name, value in EightSchools.data().items()}
    mu = torch.linspace(-45.0, 55.0, 100, dtype=torch.float64)
    log_tau = torch.linspace(-14.0, 6.0, 100, dtype=torch.float64)
    grid_mu, grid_log_tau = (g.reshape(-1, 1) for g in torch.meshgrid(mu, log_tau, indexing="ij"))
    nodes = torch.linspace(-8.0, 8.0, 161, dtype=torch.float64)
    prior, likelihood = None, []
    for node in nodes:
        values = {"mu": grid_mu, "tau": grid_log_tau.exp(), "z": node.expand(1, 8)}
        found = terms(pair, data, values)
        prior = found["mu"] + found["tau"] + grid_log_tau  # density of log tau
        likelihood.append(found["z"] + found["y"])
    step = float((mu[1] - mu[0]) * (log_tau[1] - log_tau[0]))
    schools = torch.stack(likelihood).logsumexp(0) + math.log(float(nodes[1] - nodes[0]))
    log_joint = prior[:, 0] + schools.sum(-1) + math.log(step)
    weights = log_joint.softmax(0)

    def moments(values: Any) -> Any:
        mean = float((weights * values).sum())
        return mean, float((weights * (values - mean) ** 2).sum()) ** 0.5

    return float(log_joint.logsumexp(0)), moments, grid_mu[:, 0], grid_log_tau[:, 0]


def test_evidence_and_moments_with_the_usual_priors() -> None:
    log_evidence, moments, mu, log_tau = quadrature(EightSchools())
    assert log_evidence == pytest.approx(-31.31135, abs=1e-4)
    assert moments(mu) == pytest.approx((4.3968, 3.3177), abs=1e-3)
    assert moments(log_tau.exp()) == pytest.approx((3.5977, 3.2200), abs=2e-3)
    assert moments(log_tau) == pytest.approx((0.8021, 1.1712), abs=1e-3)


def test_evidence_and_moments_with_wide_half_normal_priors() -> None:
    pair = EightSchools(mu_scale=50.0, tau_scale=25.0, tau_prior="half_normal")
    log_evidence, moments, mu, log_tau = quadrature(pair)
    assert log_evidence == pytest.approx(-33.42568, abs=1e-4)
    assert moments(mu) == pytest.approx((7.8345, 4.9724), abs=1e-3)
    assert moments(log_tau.exp()) == pytest.approx((6.0802, 4.9756), abs=2e-3)


def test_wrong_priors_give_another_evidence() -> None:
    log_evidence, *_ = quadrature(EightSchools(tau_scale=4.0))
    assert abs(log_evidence + 31.31135) > 1e-2


def test_centred_density_is_the_non_centred_one_times_the_jacobian() -> None:
    data = EightSchools.data()
    mu, tau = torch.tensor(3.0), torch.tensor(2.5)
    z = torch.linspace(-1.0, 1.5, 8)
    plain = terms(EightSchools(), data, {"mu": mu, "tau": tau, "z": z})
    centred = terms(
        EightSchools(centered=True), data, {"mu": mu, "tau": tau, "theta": mu + tau * z}
    )
    difference = sum(t.sum() for t in plain.values()) - sum(t.sum() for t in centred.values())
    assert float(difference) == pytest.approx(8 * math.log(2.5), rel=1e-5)


def test_centred_density() -> None:
    data = EightSchools.data()
    theta = torch.linspace(0.0, 7.0, 8, dtype=torch.float64)
    density = LogDensity(EightSchools(centered=True), data)
    values = {"mu": torch.tensor(3.0), "tau": torch.tensor(2.0), "theta": theta}
    expected = (
        stats.norm(0, 5).logpdf(3.0)
        + stats.halfcauchy(scale=5).logpdf(2.0)
        + math.log(2.0)  # Jacobian of tau = exp(u)
        + stats.norm(3.0, 2.0).logpdf(theta).sum()
        + stats.norm(theta, data["sigma"]).logpdf(data["y"]).sum()
    )
    assert float(density.log_prob(density.unconstrain(values))) == pytest.approx(expected, 1e-8)


def test_sites() -> None:
    data = EightSchools.data()
    plain, centred = (LogDensity(EightSchools(centered=c), data) for c in (False, True))
    assert list(plain.sites) == ["mu", "tau", "z"]
    assert list(centred.sites) == ["mu", "tau", "theta"]
    assert plain.model_sites["theta"].kind == "deterministic"
    assert plain.model_sites["theta"].dims == ("school",)


def test_prior_predictive_has_the_prior_spread() -> None:
    # Given mu and tau, sd(y_j)^2 = tau^2 + sigma_j^2; over the prior the median absolute value of
    # y_j is found by quadrature. 4,000 draws put the fraction below it at 1/2 +- 0.008.
    pair, sigma = EightSchools(), EightSchools.data()["sigma"]
    torch.manual_seed(0)
    drawn = torch.stack([pair.model(sigma) for _ in range(500)])

    def below(bound: Any, scale: Any) -> Any:
        def given(tau: Any) -> Any:
            sd = math.sqrt(25.0 + tau**2 + scale**2)
            return (2 * stats.norm.cdf(bound / sd) - 1) * stats.halfcauchy(scale=5).pdf(tau)

        return integrate.quad(given, 0, math.inf, limit=200)[0]

    expected = sum(below(12.0, float(scale)) for scale in sigma) / 8
    # The 8 schools of a draw share mu and tau: at worst there are 500 independent values.
    assert float((drawn.abs() < 12.0).float().mean()) == pytest.approx(
        expected, abs=3.5 * 0.5 / 500**0.5
    )


@pytest.mark.parametrize(
    ("sigma", "y", "words"),
    [
        (torch.tensor([1.0, 0.0]), None, "positive standard errors, got 0"),
        (torch.tensor([1.0, -2.0]), None, "got -2"),
        (torch.ones(2, 2), None, r"\(schools,\)"),
        (torch.ones(0), None, "each school"),
        (torch.ones(2, dtype=torch.int64), None, r"sigma\.float"),
        ([1.0], None, "each school"),
        (torch.ones(3), torch.zeros(2), "'y'.*equally many"),
    ],
)
def test_bad_data(sigma: Any, y: Any, words: Any) -> None:
    with pytest.raises(SiteError, match=words):
        EightSchools().validate(sigma, y)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tau_prior": "half_cauchi"}, "Did you mean 'half_cauchy'"),
        ({"mu_scale": 0.0}, "mu_scale"),
        ({"tau_scale": -1}, "tau_scale"),
    ],
)
def test_bad_options(options: Any, words: Any) -> None:
    with pytest.raises(ValueError, match=words):
        EightSchools(**options)
