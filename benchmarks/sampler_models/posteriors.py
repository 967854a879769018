"""The posteriors that every engine samples: their data, by fixed seeds, and what is compared.

The models themselves are in `pyro_models`, `numpyro_models` and `pymc_models`, one function for
each name below, with the same sites.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["POSTERIORS", "Data", "Posterior"]

Data = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Posterior:
    """A posterior of the benchmark.

    Args:
        data: Makes the data from a generator.
        rows: Number of observations.
        sites: The latent sites, whose draws are compared.
        shown: Elements whose mean and standard deviation are kept in the results.
    """

    data: Callable[[np.random.Generator], Data]
    rows: int
    sites: tuple[str, ...]
    shown: tuple[str, ...]

    def make(self) -> Data:
        """Return the data, the same in every process."""
        return self.data(np.random.default_rng(20240607))


def eight_schools(rng: np.random.Generator) -> Data:
    """Rubin's eight schools, non-centred."""
    return {
        "sigma": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
        "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    }


def logistic(rng: np.random.Generator) -> Data:
    """Logistic regression on 24 columns."""
    x = rng.normal(size=(1000, 24))
    logits = 0.5 + x @ rng.normal(scale=0.5, size=24)
    return {"x": x, "y": (rng.uniform(size=1000) < 1 / (1 + np.exp(-logits))).astype(float)}


def regression(rng: np.random.Generator) -> Data:
    """Linear regression with many rows."""
    x = rng.normal(size=(100_000, 10))
    return {"x": x, "y": 1.0 + x @ rng.normal(size=10) + rng.normal(scale=1.5, size=100_000)}


def hierarchical(rng: np.random.Generator) -> Data:
    """1,000 groups of one to ten observations, non-centred."""
    group = np.repeat(np.arange(1000), rng.integers(1, 11, size=1000))
    effect = 1.0 + 0.5 * rng.normal(size=1000)
    return {"group": group, "y": rng.normal(effect[group], 1.0)}


def mixture(rng: np.random.Generator) -> Data:
    """Two normal components that overlap."""
    first = rng.uniform(size=500) < 0.35
    return {"x": np.where(first, rng.normal(-1.5, 0.8, 500), rng.normal(1.5, 1.2, 500))}


def hidden_markov(rng: np.random.Generator) -> Data:
    """A chain of three states that emits normal values, 100 steps."""
    transition = np.array([[0.8, 0.1, 0.1], [0.15, 0.7, 0.15], [0.1, 0.2, 0.7]])
    state, states = 0, []
    for _ in range(100):
        state = rng.choice(3, p=transition[state])
        states.append(state)
    return {"y": rng.normal(np.array([-3.0, 0.0, 3.0])[states], 0.8)}


def gaussian_process(rng: np.random.Generator) -> Data:
    """A smooth function at 60 points with noise."""
    x = np.sort(rng.uniform(0, 10, size=60))
    return {"x": x, "y": np.sin(x) + 0.5 * np.cos(2.3 * x) + rng.normal(scale=0.3, size=60)}


def normal(rng: np.random.Generator) -> Data:
    """A normal distribution whose covariance has the condition number 1e4, rotated at random."""
    rotation, _ = np.linalg.qr(rng.normal(size=(100, 100)))
    covariance = (rotation * np.geomspace(1e-2, 1e2, 100)) @ rotation.T
    return {"scale_tril": np.linalg.cholesky(covariance)}


POSTERIORS = {
    "eight_schools": Posterior(eight_schools, 8, ("mu", "tau", "z"), ("mu", "tau", "z[0]")),
    "logistic": Posterior(
        logistic, 1000, ("intercept", "weights"), ("intercept", "weights[0]", "weights[23]")
    ),
    "regression": Posterior(
        regression, 100_000, ("intercept", "weights", "noise"), ("intercept", "weights[0]", "noise")
    ),
    "hierarchical": Posterior(
        hierarchical, 5000, ("mu", "tau", "sigma", "z"), ("mu", "tau", "sigma")
    ),
    "mixture": Posterior(
        mixture, 500, ("weights", "locs", "scales"), ("weights[0]", "locs[0]", "scales[1]")
    ),
    "hidden_markov": Posterior(
        hidden_markov, 100, ("transition", "locs", "scale"), ("transition[0,0]", "locs[0]", "scale")
    ),
    "gaussian_process": Posterior(
        gaussian_process,
        60,
        ("amplitude", "lengthscale", "noise"),
        ("amplitude", "lengthscale", "noise"),
    ),
    "normal": Posterior(normal, 0, ("x",), ("x[0]", "x[50]", "x[99]")),
}
