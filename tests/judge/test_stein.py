"""The kernel Stein test without a reference: how often it is wrong, and what it sees."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from ppl_gen import fit
from ppl_gen.inference import SVI
from ppl_gen.judge import Grade, Verdict, assess
from ppl_gen.judge.short_chains import short_chains
from ppl_gen.judge.stein import of_stein, stein_of

RNG = np.random.default_rng(0)
# A ridge a thousand times as long as wide, at an angle.
RIDGE = np.array([[1.0, -0.001], [1.0, 0.001]])
PRECISION = np.linalg.inv(RIDGE @ RIDGE.T)


def test_right_draws_are_told_apart_at_the_stated_rate() -> None:
    """At 1 %: more than 3 of 40 in one case of ten thousand. The p-values are spread evenly."""
    found = []
    for seed in range(40):
        draws = RNG.normal(size=(400, 2)) @ RIDGE.T
        found.append(stein_of(draws, -draws @ PRECISION, seed))
    p_values = np.array([each.p_value for each in found if each is not None])
    assert len(p_values) == 40
    assert (p_values <= 0.01).sum() <= 3
    assert 0.3 < p_values.mean() < 0.7
    assert of_stein(found[int(p_values.argmax())]).grade is Grade.GREEN  # type: ignore[arg-type]


def test_wrong_draws_are_seen_across_the_ridge_as_along_it() -> None:
    for direction in (0, 1):
        shift = np.eye(2)[direction] * 0.3
        draws = (RNG.normal(size=(1000, 2)) + shift) @ RIDGE.T
        found = stein_of(draws, -draws @ PRECISION, 0)
        assert found is not None
        assert found.p_value <= 0.01
        assert "tells them from the model's posterior (p = 0.002)" in of_stein(found).sentence


def test_what_it_cannot_be_asked() -> None:
    wide = RNG.normal(size=(1000, 101))
    assert stein_of(wide, -wide, 0) is None
    few = RNG.normal(size=(20, 10))
    assert stein_of(few, -few, 0) is None
    broken = RNG.normal(size=(100, 2))
    assert stein_of(broken, np.full_like(broken, np.nan), 0) is None


def banana() -> None:
    """A right mean and sd of each scalar leave a normal guide wrong in the joint."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(0.4 * x**2, 1.0))


def test_it_is_told_with_the_verdict() -> None:
    posterior = fit(banana, {}, SVI(guide="full_rank"), progress=False)
    found = assess({"svi": posterior}).judgements["svi"]
    reason = next(reason for reason in found.reasons if reason.kind == "stein")
    assert reason.grade is Grade.AMBER
    # Weights mend it; draws that they have chosen more than once are not looked at.
    mended = short_chains(posterior.reweight()).stein
    assert mended is not None
    assert mended.p_value > 0.01
    assert short_chains(posterior.reweight(100_000)).stein is None

    def normal() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    right = fit(normal, {}, SVI(guide="full_rank"), progress=False)
    found = assess({"svi": right}).judgements["svi"]
    assert found.verdict is Verdict.NO_PROBLEM_FOUND
    reason = next(reason for reason in found.reasons if reason.kind == "stein")
    assert reason.grade is Grade.GREEN
