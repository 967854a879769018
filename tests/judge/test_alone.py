"""Verdicts without a reference: by importance weights, by short chains, by the optimisation."""

import dataclasses

import pyro
import pyro.distributions as dist
import pytest
import torch
from made import guide, normal, posterior

from ppl_gen import fit
from ppl_gen.core import Posterior
from ppl_gen.inference import SVI
from ppl_gen.judge import Judgement, Verdict, assess


def weighed(scale: float, draws: int = 4000, seed: int = 0, shift: float = 0.0) -> Posterior:
    """Return draws of N(shift, scale^2) with log densities of these and of N(0, 1)."""
    found = guide(shift + scale * normal(seed, scalars=1, draws=draws))
    x = found["x"][..., 0]
    log_q = -0.5 * ((x - shift) / scale) ** 2 - torch.tensor(scale).log()
    return dataclasses.replace(found, sample_stats={"lp": -0.5 * x**2, "log_q": log_q})


def alone(posterior: Posterior) -> Judgement:
    return assess({"svi": posterior}).judgements["svi"]


def test_equal_weights() -> None:
    found = alone(weighed(1.0))
    assert found.verdict is Verdict.NO_PROBLEM_FOUND
    assert "equal weights" in found.sentence


def test_what_weights_mend() -> None:
    # The weights are bounded. The sd is 50 % too large, to within 2 % by 4,000 draws.
    found = alone(weighed(1.5))
    assert found.verdict is Verdict.DO_NOT_TRUST
    assert "the sd of x[0] is " in found.sentence.lower()
    assert found.action == "svi = svi.reweight()"


def test_what_they_do_not() -> None:
    # k is 1 - .4^2 = .84; its estimate from 20,000 draws has a standard error of .08 and is biased
    # low: it is never surely below the threshold, nor is the posterior then.
    for seed in range(3):
        found = alone(weighed(0.4, draws=20000, seed=seed))
        assert found.verdict in (Verdict.DO_NOT_TRUST, Verdict.CANNOT_JUDGE), found.sentence
    # k is .99
    assert alone(weighed(0.1)).verdict is Verdict.DO_NOT_TRUST


def test_a_mode_that_hardly_any_draw_has_seen() -> None:
    """Nearly all weights are equal, and the few that are not are as large as all of these."""
    found = weighed(1.0)
    lp = found.sample_stats["lp"].clone()
    lp[0, ::800] += torch.tensor([8.0, 7.0, 6.0, 5.0, 9.0])
    heavy = dataclasses.replace(found, sample_stats={**found.sample_stats, "lp": lp})
    assert alone(heavy).verdict in (Verdict.DO_NOT_TRUST, Verdict.CANNOT_JUDGE)


def test_densities_that_are_not_finite() -> None:
    found = weighed(1.0)
    lp = found.sample_stats["lp"].clone()
    lp[0, 3] = torch.inf
    judgement = alone(dataclasses.replace(found, sample_stats={**found.sample_stats, "lp": lp}))
    assert judgement.verdict is Verdict.DO_NOT_TRUST
    assert "not finite" in judgement.sentence


def test_an_optimisation_that_did_not_end() -> None:
    ended, unended = (guide(normal(1), provenance={"converged": value}) for value in (True, False))
    assert alone(ended).verdict is Verdict.CANNOT_JUDGE
    found = alone(unended)
    assert found.verdict is Verdict.DO_NOT_TRUST
    assert "did not come to its end" in found.sentence
    # Weights that are right, or a reference, say more than how it was found.
    even = dataclasses.replace(weighed(1.0), provenance={"converged": False})
    assert alone(even).verdict is Verdict.NO_PROBLEM_FOUND
    against = assess({"nuts": posterior(normal(2)), "svi": unended}).judgements["svi"]
    assert against.verdict is Verdict.TRUST
    assert any("did not come to its end" in caveat for caveat in against.caveats)


@pytest.mark.parametrize(("slope", "passed"), [(1.0, False), (0.0, True)])
def test_a_history_tells_where_nothing_else_does(slope: float, passed: bool) -> None:
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    history = slope * torch.linspace(100, 0, 1000) + noise
    found = assess({"svi": guide(normal(3), history=history)})
    gate = next(gate for gate in found.gates if gate.name == "optimisation")
    assert gate.passed is passed


def test_short_chains_see_what_weights_cannot() -> None:
    """A guide that is narrow in a direction: refused with the size of the error."""

    def model() -> None:
        covariance = torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=torch.float64)
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance))

    mean_field = fit(model, {}, SVI(guide="mean_field"), progress=False)
    found = alone(mean_field)
    assert found.verdict is Verdict.DO_NOT_TRUST
    # The sds are sqrt(1 - .95^2) = .31 of what they should be.
    assert "the sd of x[" in found.sentence.lower()
    assert "too small" in found.sentence
    assert found.action == 'svi = pg.fit(pair, data, SVI(guide="full_rank"))'
    full_rank = fit(model, {}, SVI(guide="full_rank"), progress=False)
    assert alone(full_rank).verdict is Verdict.NO_PROBLEM_FOUND
