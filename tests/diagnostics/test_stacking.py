"""Stacking weights where they are known, and the condition that the best ones fulfil."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_gen.core import Pair, Posterior
from ppl_gen.diagnostics import elpd_difference, loo, stacking_weights


class Line(Pair):
    """y ~ N(slope x^power, 1), slope ~ N(0, 100), whose posterior is normal."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        slope = pyro.sample("slope", dist.Normal(torch.tensor(0.0, dtype=x.dtype), 100.0))
        with pyro.plate("data", len(x)):
            # The slope of each draw, however many are taken at once.
            pyro.sample("y", dist.Normal(slope * x**self.power, 1.0), obs=y)

    def posterior(self, x: torch.Tensor, y: torch.Tensor) -> Posterior:
        feature = x**self.power
        precision = float(feature @ feature) + 1e-4
        noise = torch.randn(4, 500, generator=torch.Generator().manual_seed(0)).double()
        slope = float(feature @ y) / precision + noise / math.sqrt(precision)
        return Posterior(
            draws={"slope": slope}, latents=("slope",), pair=self, data={"x": x, "y": y}
        )


@pytest.mark.parametrize("share", [0.3, 0.5, 0.75])
def test_two_models_that_are_right_about_different_observations(share: float) -> None:
    """A share of observations has densities (a, b) under the two models, the others (b, a).

    The derivative of share log(w a + (1 - w) b) + (1 - share) log(w b + (1 - w) a) is 0 where
    w a + (1 - w) b = share (a + b).
    """
    a, b, count = 0.8, 0.1, 1000
    first = np.arange(count) < share * count
    densities = np.stack([np.where(first, a, b), np.where(first, b, a)])
    expected = (share * (a + b) - b) / (a - b)
    found = stacking_weights(np.log(densities))
    np.testing.assert_allclose(found, [expected, 1 - expected], atol=1e-4)


def test_a_model_that_is_worse_everywhere_gets_nothing() -> None:
    pointwise = np.random.default_rng(0).normal(size=(1, 200)) - [[0.0], [0.5], [3.0]]
    np.testing.assert_allclose(stacking_weights(pointwise), [1.0, 0.0, 0.0], atol=1e-6)
    assert stacking_weights([[-1.0, -2.0]]).tolist() == [1.0]


def test_no_other_weights_are_better() -> None:
    """The gradient of a concave function bounds how much better any others could be."""
    rng = np.random.default_rng(1)
    for models, count in [(2, 20), (5, 300), (10, 2000)]:
        pointwise = rng.normal(size=(models, count)) * rng.uniform(0.5, 3, size=(models, 1)) - 50
        weights = stacking_weights(pointwise)
        assert weights.sum() == pytest.approx(1.0)
        assert (weights >= 0).all()
        densities = np.exp(pointwise + 50)
        gap = (densities / (weights @ densities)).mean(axis=1).max() - 1
        assert gap < 1e-5


def test_equal_models_share_their_weight() -> None:
    pointwise = np.random.default_rng(2).normal(size=(2, 100)).repeat(2, axis=0)
    weights, pair = stacking_weights(pointwise), stacking_weights(pointwise[::2])
    assert weights[:2].sum() == pytest.approx(pair[0], abs=1e-4)


def test_impossible_observations() -> None:
    # Each model finds one impossible, and only a mixture finds both possible.
    found = stacking_weights([[-np.inf, -1.0], [-1.0, -np.inf]])
    np.testing.assert_allclose(found, 0.5, atol=1e-5)
    with pytest.raises(ValueError, match="all models give observation 1 the density 0"):
        stacking_weights([[-1.0, -np.inf], [-2.0, -np.inf]])
    with pytest.raises(ValueError, match="got 1 that are not"):
        stacking_weights([[-1.0, np.nan], [-2.0, -1.0]])
    with pytest.raises(ValueError, match=r"\(model, observation\)"):
        stacking_weights([-1.0, -2.0])


def test_the_error_of_a_difference_is_that_of_its_scatter() -> None:
    """Of 400 repetitions the sd of z-scores has a standard error of 0.035."""
    rng, z = np.random.default_rng(3), []
    for _ in range(400):
        common = rng.normal(size=200)
        difference, error = elpd_difference(common + 0.1 * rng.normal(size=200), common)
        z.append(difference / error)
    assert np.std(z) == pytest.approx(1.0, abs=4 * 0.035)
    assert elpd_difference([-1.0], [-3.0])[0] == 2.0
    assert np.isnan(elpd_difference([-1.0], [-3.0])[1])
    with pytest.raises(ValueError, match=r"got shapes \(2,\) and \(3,\)"):
        elpd_difference([1, 2], [1, 2, 3])


def test_models_are_compared_by_their_posteriors() -> None:
    """The one that made the data gets nearly all of the weight, whichever it is."""
    x = torch.linspace(-2.0, 2.0, 101, dtype=torch.float64)
    noise = torch.randn(101, generator=torch.Generator().manual_seed(1)).double()
    straight, curved = Line(1), Line(2)

    def weights(y: torch.Tensor) -> list[float]:
        found = [loo(p.posterior(x, y).log_likelihood()["y"]) for p in (straight, curved)]
        assert [each.bad for each in found] == [0, 0]
        return list(stacking_weights([each.pointwise for each in found]))

    # Signals of up to 4 sds: the wrong model gets a weight only where noise is in its favour.
    assert weights(2 * x + noise)[0] > 0.9
    assert weights(x**2 + noise)[1] > 0.9
