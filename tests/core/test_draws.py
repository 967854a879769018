"""Functions over many draws: distributions draw all at once, each draw its own numbers."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from ppl_gen.core.draws import map_draws
from ppl_gen.core.scope import unchecked
from ppl_gen.core.structure import DrawSimplices

# Chance that one of the tests fails although all is right; seeds are fixed.
ALPHA = 1e-4
DRAWS = 4000

one = torch.tensor(1.0, dtype=torch.float64)
DISTRIBUTIONS: dict[str, Callable[[], Any]] = {
    "Normal": lambda: dist.Normal(2 * one, 3 * one),
    "LogNormal": lambda: dist.LogNormal(one, one),
    "HalfNormal": lambda: dist.HalfNormal(2 * one),
    "HalfCauchy": lambda: dist.HalfCauchy(2 * one),
    "Cauchy": lambda: dist.Cauchy(one, 2 * one),
    "StudentT": lambda: dist.StudentT(3 * one, one, 2 * one),
    "Laplace": lambda: dist.Laplace(one, 2 * one),
    "Logistic": lambda: dist.Logistic(one, 2 * one),
    "Gumbel": lambda: dist.Gumbel(one, 2 * one),
    "Exponential": lambda: dist.Exponential(2 * one),
    "Gamma": lambda: dist.Gamma(2 * one, 3 * one),
    "InverseGamma": lambda: dist.InverseGamma(3 * one, 2 * one),
    "Chi2": lambda: dist.Chi2(3 * one),
    "Beta": lambda: dist.Beta(2 * one, 3 * one),
    "Uniform": lambda: dist.Uniform(-one, 3 * one),
    "Pareto": lambda: dist.Pareto(one, 3 * one),
    "Weibull": lambda: dist.Weibull(2 * one, 3 * one),
    "Dirichlet": lambda: dist.Dirichlet(torch.stack([one, 2 * one])),
    "MultivariateNormal": lambda: dist.MultivariateNormal(one.expand(2), torch.eye(2).double()),
    "betas in a plate": lambda: dist.Beta(2 * one, 3 * one).expand([3]).to_event(1),
    "simplices in a plate": lambda: dist.Dirichlet(torch.stack([one, 2 * one])).expand([3]),
    "Bernoulli": lambda: dist.Bernoulli(0.3 * one),
    "Categorical": lambda: dist.Categorical(torch.stack([one, 2 * one, 3 * one])),
    "Poisson": lambda: dist.Poisson(4 * one),
    "Binomial": lambda: dist.Binomial(10, 0.3 * one),
    "NegativeBinomial": lambda: dist.NegativeBinomial(5 * one, 0.4 * one),
    "Geometric": lambda: dist.Geometric(0.3 * one),
    "Mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.stack([one, 2 * one])),
        dist.Normal(torch.stack([-3 * one, one]), one),
    ),
    "in a plate": lambda: dist.Normal(one, 2 * one).expand([3]),
}


def drawn(make: Callable[[], Any], count: int = DRAWS) -> tuple[torch.Tensor, int]:
    """Return draws by `map_draws`, (draw, *shape), and the number of calls that they took."""
    calls = []

    def draw(_: object) -> dict[str, torch.Tensor]:
        calls.append(None)
        with DrawSimplices():
            return {"x": pyro.sample("x", make())}

    with unchecked():
        return map_draws(draw, {}, num_draws=count)["x"], len(calls)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_draws_are_made_together(name: str) -> None:
    make = DISTRIBUTIONS[name]
    values, calls = drawn(make)
    assert calls == 2  # one to see what comes back
    with unchecked():
        expected = make().sample((DRAWS,))
    assert values.shape == expected.shape
    assert values.dtype == expected.dtype
    a, b = values.reshape(DRAWS, -1)[:, 0].numpy(), expected.reshape(DRAWS, -1)[:, 0].numpy()
    if values.is_floating_point() and len(set(b)) == DRAWS:
        assert len(set(a)) == DRAWS  # each draw its own numbers
    assert stats.ks_2samp(a, b).pvalue > ALPHA
    # Nor has one to do with the next one.
    ranks = stats.rankdata(a)
    if len(set(a)) > 1:
        assert stats.pearsonr(ranks[:-1], ranks[1:]).pvalue > ALPHA
