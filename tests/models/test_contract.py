"""What holds for every pair: one table of all of them, through every property and method."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyro.poutine as poutine
import pytest
import torch
from torch import nn

import ppl_gen as pg
import ppl_gen.models
from ppl_gen.core import LogDensity
from ppl_gen.core.description import PAIRS, describe, rebuild
from ppl_gen.core.structure import Unobserve, trace_sites
from ppl_gen.inference import HMC, NUTS, SVI, Gibbs, RandomWalk
from ppl_gen.models import (
    AutoregressiveImage,
    BayesianLastLayer,
    BayesianLinearRegression,
    BayesianLogisticRegression,
    ConditionalVAE,
    EightSchools,
    GaussianMixture,
    PixelVAE,
    SemiSupervisedVAE,
)
from ppl_gen.models.autoregressive_likelihood import AutoregressiveLikelihood
from ppl_gen.models.networks import MADE


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Case:
    """A pair, data for it, and the shapes of its continuous latents."""

    pair: nn.Module
    data: dict[str, torch.Tensor]
    latents: dict[str, tuple[int, ...]]

    @property
    def observed(self) -> str:
        regression = "y" in self.data and not isinstance(self.pair, ConditionalVAE)
        return "y" if regression else "x"


_X = {"x": 2 * uniform(6, 2) - 1}
_LINEAR = {**_X, "y": _X["x"].sum(-1) + 0.3 * uniform(6)}
_LOGISTIC = {**_X, "y": torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])}
_WEIGHTS = {"weights": (2,), "intercept": ()}
_MIXTURE = {"weights": (3,), "locs": (3, 2), "scales": (3, 2)}

CASES = {
    "linear": Case(BayesianLinearRegression(2), _LINEAR, {"noise_scale": (), **_WEIGHTS}),
    "linear, known noise": Case(
        BayesianLinearRegression(2, intercept=False, noise_scale=0.5), _LINEAR, {"weights": (2,)}
    ),
    "logistic": Case(BayesianLogisticRegression(2), _LOGISTIC, _WEIGHTS),
    "eight schools": Case(EightSchools(), EightSchools.data(), {"mu": (), "tau": (), "z": (8,)}),
    "eight schools, centred": Case(
        EightSchools(centered=True, tau_prior="half_normal"),
        EightSchools.data(),
        {"mu": (), "tau": (), "theta": (8,)},
    ),
    "mixture": Case(GaussianMixture(3, 2), _X, _MIXTURE),
    "mixture, full": Case(
        GaussianMixture(3, 2, covariance="full"),
        _X,
        {**_MIXTURE, "correlation_cholesky": (3, 2, 2)},
    ),
}
if hasattr(ppl_gen.models, "VAE"):
    _PIXELS = {"x": uniform(3, 4, 4)}
    CASES["vae"] = Case(
        ppl_gen.models.VAE(image_shape=(4, 4), latent_size=2, hidden_sizes=(5,)),
        _PIXELS,
        {"z": (3, 2)},
    )

_SMALL: dict[str, Any] = {"image_shape": (4, 4), "latent_size": 2, "hidden_sizes": (5,)}
CASES["conditional vae"] = Case(
    ConditionalVAE(condition_size=3, **_SMALL),
    {"x": uniform(3, 4, 4), "y": torch.tensor([0, 2, 1])},
    {"z": (3, 2)},
)
CASES["semi-supervised vae"] = Case(
    SemiSupervisedVAE(num_classes=3, classifier_sizes=(5,), **_SMALL),
    {
        "x": uniform(3, 4, 4),
        "x_labelled": uniform(2, 4, 4),
        "y_labelled": torch.tensor([2, 0]),
    },
    {"z_labelled": (2, 2), "z": (3, 2)},
)

_BINARY = {"x": (uniform(3, 2, 2) < 0.5).float()}
CASES["pixel vae"] = Case(
    PixelVAE((2, 2), latent_size=2, hidden_sizes=(5,), features=2, layers=1, maps=1),
    _BINARY,
    {"z": (3, 2)},
)
CASES["bayesian last layer"] = Case(
    BayesianLastLayer(AutoregressiveImage(MADE((2, 2), (5,)))),
    _BINARY,
    {"log_gain": (), "offset": (1,)},
)

METHODS = {
    "mean_field": SVI(guide="mean_field", steps=3, draws=4),
    "full_rank": SVI(guide="full_rank", steps=3, draws=4),
    "hmc": HMC(chains=2, draws=4, warmup=3, trajectory_length=0.2),
    "nuts": NUTS(chains=2, draws=4, warmup=3, max_tree_depth=3),
    "random walk": RandomWalk(chains=2, draws=4, warmup=3),
    "gibbs": Gibbs(chains=2, draws=4, warmup=3),
}


def has_conditionals(case: Case) -> bool:
    # Those of a correlation matrix are not conjugate.
    return hasattr(case.pair, "conditionals") and "correlation_cholesky" not in case.latents


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def test_every_pair_is_in_the_table() -> None:
    exported = {getattr(ppl_gen.models, name) for name in ppl_gen.models.__all__}
    pairs = {
        kind
        for kind in exported
        if isinstance(kind, type)
        and issubclass(kind, pg.Pair)
        and not issubclass(kind, AutoregressiveLikelihood)  # they have no latents
    }
    assert pairs == {type(case.pair) for case in CASES.values()}


def test_constructor_arguments_survive_json(case: Case) -> None:
    described = describe(case.pair, PAIRS)
    rebuilt = rebuild(json.loads(json.dumps(described)), PAIRS)
    assert describe(rebuilt, PAIRS) == described
    rebuilt.load_state_dict(case.pair.state_dict())
    first, second = LogDensity(case.pair, case.data), LogDensity(rebuilt, case.data)
    vector = torch.linspace(-0.5, 0.5, first.dim, dtype=torch.float64)
    assert torch.equal(first.log_prob(vector), second.log_prob(vector))


def test_latents_and_their_shapes(case: Case) -> None:
    density = LogDensity(case.pair, case.data)
    assert {name: site.shape for name, site in density.sites.items()} == case.latents


def test_observed_values_are_drawn_where_they_are_not_given(case: Case) -> None:
    torch.manual_seed(0)
    given = case.data[case.observed]
    if case.observed == "y":
        data = {name: value for name, value in case.data.items() if name != "y"}
        values = poutine.trace(case.pair.model).get_trace(**data).nodes["y"]["value"]
    else:
        values = trace_sites(case.pair, case.data, "model", Unobserve())["x"].value
    assert values.dtype == given.dtype
    assert values.numel() == given.numel()
    assert bool(values.isfinite().all())
    assert not torch.equal(values.flatten(), given.flatten())


def test_prior_and_posterior_predictive(case: Case) -> None:
    posterior = pg.fit(case.pair, case.data, METHODS["mean_field"], progress=False)
    latents, observed = posterior.prior(draws=3)
    assert set(case.latents) <= set(latents)
    count = case.data[case.observed].numel()
    assert observed[case.observed].shape[:2] == (1, 3)
    assert observed[case.observed][0, 0].numel() == count
    assert posterior.predict(draws=2)[case.observed][0, 0].numel() == count
    pointwise = posterior.log_likelihood()[case.observed]
    assert pointwise.shape == (1, 4, len(case.data[case.observed]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_log_density_and_its_gradient(case: Case, dtype: torch.dtype) -> None:
    density = LogDensity(case.pair, case.data, dtype=dtype)
    vector = torch.linspace(-0.7, 0.9, density.dim, dtype=dtype).requires_grad_()
    log_prob = density.log_prob(vector)
    (gradient,) = torch.autograd.grad(log_prob, vector)
    assert log_prob.dtype == dtype
    assert bool(log_prob.isfinite())
    assert bool(gradient.isfinite().all())
    for name, block in density.blocks.items():
        assert bool((gradient[block.start : block.stop] != 0).all()), name


def test_gradient_is_that_of_finite_differences(case: Case) -> None:
    density = LogDensity(case.pair, case.data)
    vector = torch.linspace(-0.4, 0.6, density.dim, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(density.log_prob(vector), vector)
    with torch.no_grad():
        for i in range(density.dim):
            step = torch.zeros_like(vector)
            step[i] = 1e-5
            slope = (density.log_prob(vector + step) - density.log_prob(vector - step)) / 2e-5
            # The error of a central difference is of the order of step^2 + rounding / step.
            assert float(slope) == pytest.approx(float(gradient[i]), rel=1e-5, abs=1e-5)


def test_density_can_be_vectorised_over_draws(case: Case) -> None:
    density = LogDensity(case.pair, case.data)
    if density.model_sites and any(s.kind == "discrete" for s in density.model_sites.values()):
        pytest.skip("Pyro's summation over discrete sites has no rule for vmap")
    vectors = torch.linspace(-1, 1, 3 * density.dim, dtype=torch.float64).reshape(3, density.dim)
    batched = torch.func.vmap(density.log_prob)(vectors)
    one_by_one = torch.stack([density.log_prob(vector) for vector in vectors])
    assert torch.allclose(batched, one_by_one, rtol=1e-12)


def test_check_finds_nothing(case: Case) -> None:
    assert pg.check(case.pair, case.data).problems == ()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_with_the_same_call(case: Case, method: Any) -> None:
    if isinstance(method, Gibbs) and not has_conditionals(case):
        with pytest.raises(ValueError, match="conditionals"):
            pg.fit(case.pair, case.data, method, progress=False)
        return
    before = {name: value.clone() for name, value in case.pair.state_dict().items()}
    posterior = pg.fit(case.pair, case.data, method, seed=1, progress=False)
    chains = getattr(method, "chains", 1)
    for name, shape in case.latents.items():
        assert posterior[name].shape == (chains, 4, *shape), name
        assert bool(posterior[name].isfinite().all()), name
    assert set(posterior.latents) == set(case.latents)
    after = case.pair.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
