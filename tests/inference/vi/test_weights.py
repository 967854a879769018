"""What weights say of a guide: errors that are known, and none where there is none."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray

import ppl_gen as pg
from ppl_gen.inference import SVI
from ppl_gen.inference.vi.weights import judge

Array = NDArray[np.float64]
SIZE = 10_000


def normal(
    mean: float, sd: float, seed: int = 0, dim: int = 1
) -> tuple[dict[str, torch.Tensor], Array]:
    """Return draws of a guide whose first coordinate is wrong, for a standard normal target."""
    draws = np.random.default_rng(seed).normal(size=(SIZE, dim))
    log_q = -0.5 * np.square(draws).sum(axis=1) - math.log(sd)
    draws[:, 0] = mean + sd * draws[:, 0]
    ratios = -0.5 * np.square(draws).sum(axis=1) - log_q
    return {"x": torch.from_numpy(draws), "c": torch.ones(SIZE)}, ratios


@pytest.mark.parametrize(
    ("mean", "sd", "words"),
    [
        (0.6, 1.0, "mean of 'x[0]' is 0.6 standard deviations too high"),
        (-0.6, 1.0, "mean of 'x[0]' is 0.6 standard deviations too low"),
        (0.0, 1.4, "standard deviation of 'x[0]' is 40% too large"),
        (0.0, 0.75, "standard deviation of 'x[0]' is 2"),  # 25 % but for some noise
    ],
)
def test_the_worst_error_is_told(mean: float, sd: float, words: str) -> None:
    values, ratios = normal(mean, sd, dim=3)
    judgement = judge(values, ratios, "NUTS")
    assert judgement.facts["pareto_k"] < 0.7
    (warning,) = judgement.warnings
    assert words in warning
    assert warning.endswith("Take NUTS.")


def test_small_errors_are_not() -> None:
    """Over 20 guides each: none is told of that is good, all are that are not."""
    for mean, sd, told in ((0.0, 1.0, 0), (0.15, 1.0, 0), (0.0, 1.07, 0), (0.5, 1.2, 20)):
        found = [judge(*normal(mean, sd, seed, dim=5), "NUTS").warnings for seed in range(20)]
        assert sum(map(bool, found)) == told


def test_heavy_weights_are_told_by_k_hat() -> None:
    values, _ = normal(0.0, 1.0)
    ratios = 1.2 * np.random.default_rng(1).exponential(size=SIZE)  # k is 1.2
    judgement = judge(values, ratios, "NUTS")
    assert judgement.facts["pareto_k"] == pytest.approx(1.2, abs=0.4)
    assert "k-hat" in judgement.warnings[0]


def test_a_heavy_tail_of_no_weight_is_not() -> None:
    # Student's t with 20 degrees of freedom, and a normal of nearly its scale: the weights of
    # single draws grow without bound, and all in all they hardly vary.
    draws = 1.05 * np.random.default_rng(0).normal(size=SIZE)
    log_q = -0.5 * (draws / 1.05) ** 2 - math.log(1.05)
    heavy = torch.distributions.StudentT(20.0).log_prob(torch.from_numpy(draws)).numpy()
    ratios = heavy - log_q
    judgement = judge({"x": torch.from_numpy(draws)}, ratios, "NUTS")
    assert judgement.facts["pareto_k"] > 0.9
    assert judgement.facts["importance_ess"] > 0.9 * SIZE
    assert judgement.warnings == ()


def test_draws_without_density() -> None:
    values, ratios = normal(0.0, 1.0)
    ratios[:30] = -np.inf
    (warning,) = judge(values, ratios, "NUTS").warnings
    assert "not finite at 30 of 10,000 draws" in warning
    ratios[:] = np.nan
    (warning,) = judge(values, ratios, "NUTS").warnings
    assert "no approximation" in warning


def test_values_that_are_not_finite_say_nothing() -> None:
    values, ratios = normal(0.0, 1.0)
    values["far"] = torch.full((SIZE, 2), torch.inf)
    assert judge(values, ratios, "NUTS").warnings == ()


def test_many_sites_of_few_draws_worth_are_not_told_of_by_chance() -> None:
    """As many errors as elements: the largest of forty is no error."""
    found = []
    for seed in range(20):
        draws = np.random.default_rng(seed).normal(size=(SIZE, 40))
        # Weights that depend on nothing: draws are worth exp(-1.5²) of their number.
        ratios = 1.5 * np.random.default_rng(100 + seed).normal(size=SIZE)
        found.append(judge({"x": torch.from_numpy(draws)}, ratios, "NUTS").warnings)
    assert sum(map(bool, found)) <= 3  # a false alarm in 5 % of runs at most


def exponential() -> None:
    pyro.sample("x", dist.Exponential(1.0))


def test_a_mode_that_is_far_from_the_mean_is_told() -> None:
    """Laplace's approximation of an exponential distribution is log-normal, of mean exp(1/2)."""
    laplace = pg.fit(exponential, {}, SVI(guide="laplace"), progress=False)
    (warning,) = laplace.warnings
    assert "mean of 'x' is 0.6 standard deviations too high" in warning
    assert "standard deviation of 'x' is 1" in warning  # sqrt(e (e - 1)) = 2.16 for 1
    # Negative control: a guide that is right.
    assert pg.fit(exponential, {}, SVI(guide="flow"), progress=False).warnings == ()
