"""Short chains against approximations whose errors are known."""

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_gen import Posterior, fit
from ppl_gen.inference import NUTS, SVI
from ppl_gen.judge.short_chains import ShortChains, short_chains
from ppl_gen.models import EightSchools


def normal(correlation: float) -> Any:
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)

    def model() -> None:
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance))

    return model


def exact(scale: float, shift: float = 0.0, seed: int = 0, draws: int = 1000) -> Posterior:
    """Draws of N(shift, scale^2) in ten coordinates, of a posterior that is N(0, 1)."""

    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(10), 1.0).to_event(1))

    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, draws, 10, generator=generator, dtype=torch.float64)
    fitted = fit(model, {}, SVI(draws=2), progress=False)
    return Posterior(
        draws={"x": shift + scale * noise},
        latents=("x",),
        pair=fitted.pair,
        data={},
        is_mcmc=False,
    )


def test_right_draws_show_no_error() -> None:
    """All bounds hold together in 95 of 100 cases: in more than 3 of 12 not with chance .002."""
    found = [short_chains(exact(1.0, seed=seed, draws=500), seed=seed) for seed in range(12)]
    clean = [not one.mean_bounds.any() and not one.sd_bounds.any() for one in found]
    assert sum(clean) >= 9
    assert max(one.sd_bounds.max() for one in found) < 0.05
    assert all(one.mixed for one in found)
    assert all(0.5 < one.acceptance < 0.99 for one in found)
    quiet = found[clean.index(True)]
    assert "found no error" in quiet.sentence
    assert "would have shown" in quiet.sentence


@pytest.mark.parametrize("scale", [0.7, 1.4])
def test_a_wrong_scale_is_found(scale: float) -> None:
    """The error of an sd is known to 1 / sqrt(2 chains) on either side: 3 %, and 4 together."""
    found = short_chains(exact(scale))
    assert found.sd_errors == pytest.approx(np.full(10, scale - 1), abs=5 * 0.032 * scale)
    assert (found.sd_bounds > 0).all()
    assert (found.sd_bounds < np.abs(found.sd_errors)).all()
    assert found.worst()[0] == "sd"
    assert ("too small" if scale < 1 else "too large") in found.sentence
    assert not found.mean_bounds.any()


def test_a_shifted_mean_is_found() -> None:
    found = short_chains(exact(1.0, shift=0.4))
    assert found.mean_errors == pytest.approx(np.full(10, 0.4), abs=5 * math.sqrt(2 / 1000))
    assert (found.mean_bounds > 0).all()
    kind, name, error, bound = found.worst()
    assert (kind, name[:2]) == ("mean", "x[")
    assert 0 < bound < error
    assert "sd too large" in found.sentence
    assert "x[" in str(found)
    assert list(found.table()["mean_bound"]) == sorted(found.mean_bounds, reverse=True)


def test_mean_field_on_correlated_normals() -> None:
    """Its sds are sqrt(1 - r^2): .436 for r = .9, and .0045 for r = .99999."""
    for r in (0.9, 0.99999):
        posterior = fit(normal(r), {}, SVI(guide="mean_field"), progress=False)
        found = short_chains(posterior)
        assert (found.sd_bounds > 0.4).all(), found
        assert (found.sd_errors > -1).all()
        # The truth is a bound of the bounds.
        assert (found.sd_bounds < 1 - math.sqrt(1 - r**2)).all()
    full = fit(normal(0.99999), {}, SVI(guide="full_rank"), progress=False)
    assert not short_chains(full).sd_bounds.any()


def test_eight_schools_centred_mean_field() -> None:
    """The sd of log tau is 80 % too small, its mean .83 sd too high: seen on tau's own scale."""
    pair, data = EightSchools(centered=True), EightSchools.data()
    found = short_chains(fit(pair, data, SVI(guide="mean_field"), progress=False))
    assert max(found.sd_bounds.max() / 0.25, found.mean_bounds.max() / 0.3) > 1
    assert set(found.parameters) == {"mu", "tau", *(f"theta[{i}]" for i in range(8))}


def test_chains_that_do_not_get_far_say_so() -> None:
    parts = ShortChains(
        parameters=("a", "b"),
        mean_errors=np.zeros(2),
        mean_bounds=np.zeros(2),
        sd_errors=np.zeros(2),
        sd_bounds=np.zeros(2),
        correlations=np.array([0.02, 0.7]),
        resolution=(0.1, 0.1),
        chains=1000,
        transitions=30,
        acceptance=0.8,
    )
    assert not parts.mixed
    assert "b still depends" in parts.sentence


def test_one_mode_of_two_is_not_seen_and_starts_are_remembered_across_modes() -> None:
    """What short chains cannot see: another mode. Of draws in both, each stays where it is."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 5.0))
        parts = dist.Normal(torch.tensor([-4.0, 4.0]), 0.2)
        pyro.factor("data", parts.log_prob(x).logsumexp(0))

    fitted = fit(model, {}, SVI(draws=2), progress=False)
    noise = 0.2 * torch.randn(1, 400, dtype=torch.float64)
    sides = torch.where(torch.arange(400) % 2 == 0, -4.0, 4.0)

    def judged(draws: torch.Tensor) -> ShortChains:
        return short_chains(
            Posterior({"x": draws}, ("x",), pair=fitted.pair, data={}, is_mcmc=False)
        )

    assert not judged(noise + 4.0).sd_bounds.any()
    both = judged(noise + sides)
    assert both.correlations[0] > 0.5
    assert not both.mixed


def test_bad_input() -> None:
    model = normal(0.5)
    with pytest.raises(ValueError, match="by NUTS are Markov chains"):
        short_chains(fit(model, {}, NUTS(chains=1, draws=5, warmup=5), progress=False))
    with pytest.raises(ValueError, match="one point"):
        short_chains(fit(model, {}, SVI(guide="delta"), progress=False))
    with pytest.raises(ValueError, match="at least 64 draws"):
        short_chains(fit(model, {}, SVI(draws=20), progress=False))
    with pytest.raises(ValueError, match="without its pair"):
        short_chains(Posterior({"x": torch.randn(1, 90, 2)}, ("x",), is_mcmc=False))
    posterior = exact(1.0)
    bad = {"x": posterior["x"].clone()}
    bad["x"][0, :990] = torch.nan
    broken = Posterior(bad, ("x",), pair=posterior.pair, data={}, is_mcmc=False)
    with pytest.raises(ValueError, match="990 of 1000 draws"):
        short_chains(broken)


def test_the_same_seed_gives_the_same() -> None:
    posterior = exact(1.2)
    first, again, other = (short_chains(posterior, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.sd_errors, again.sd_errors)
    assert not np.array_equal(first.sd_errors, other.sd_errors)
