"""The mixture's densities against enumeration of all assignments, and its relabelling."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro.poutine as poutine
import pytest
import torch
from scipy import stats
from torch.distributions import biject_to

from ppl_gen.core import LogDensity, Posterior, SiteError
from ppl_gen.diagnostics import rhat
from ppl_gen.models import GaussianMixture
from ppl_gen.models.gaussian_mixture import component_log_prob
from ppl_gen.models.relabelling import align, permute

SHAPES = [
    pytest.param(1, 2, "diagonal", id="one component"),
    pytest.param(3, 1, "diagonal", id="one dimension"),
    pytest.param(3, 1, "full", id="one dimension, full"),
    pytest.param(2, 3, "diagonal", id="diagonal"),
    pytest.param(3, 2, "full", id="full"),
]


def prior_draw(pair: Any, x: Any, seed: Any = 0) -> Any:
    """Return one draw of the continuous sites, in the dtype of x."""
    torch.manual_seed(seed)
    trace = poutine.trace(pair.model).get_trace(x)
    return {name: trace.nodes[name]["value"] for name in pair._sites}


def points(n: Any, dimensions: Any, seed: Any = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dimensions, generator=generator, dtype=torch.float64)


def covariances(draw: Any) -> Any:
    tril = draw["scales"].diag_embed()
    if "correlation_cholesky" in draw:
        tril = tril @ draw["correlation_cholesky"]
    return tril @ tril.mT


def log_terms(draw: Any, x: Any) -> Any:
    """Return log weight + log density of each point under each component, by SciPy."""
    return [
        [
            math.log(draw["weights"][k])
            + stats.multivariate_normal(draw["locs"][k], covariances(draw)[k]).logpdf(point)
            for k in range(len(draw["weights"]))
        ]
        for point in x.numpy()
    ]


def log_prior(pair: Any, draw: Any) -> Any:
    total = stats.dirichlet([pair.weights_concentration] * pair.num_components).logpdf(
        draw["weights"].numpy() / float(draw["weights"].sum())
    )
    total += stats.norm(0, pair.locs_scale).logpdf(draw["locs"]).sum()
    scales = stats.lognorm(pair.scales_spread, scale=pair.scales_median)
    total += scales.logpdf(draw["scales"]).sum()
    if "correlation_cholesky" in draw:
        # In two dimensions with concentration 2 the LKJ density of a correlation r is
        # 3/4 (1 - r^2), and the Cholesky factor's free element is r with the same density.
        assert pair.num_features == 2
        r = draw["correlation_cholesky"][:, 1, 0]
        total += float((0.75 * (1 - r**2)).log().sum())
    return float(total)


@pytest.mark.parametrize(("components", "dimensions", "covariance"), SHAPES)
def test_assignments_are_summed_out_exactly(
    components: Any, dimensions: Any, covariance: Any
) -> None:
    x = points(4, dimensions)
    pair = GaussianMixture(components, dimensions, covariance=covariance)
    draw = prior_draw(pair, x)
    terms = log_terms(draw, x)
    by_assignment = [
        sum(term[k] for term, k in zip(terms, assignment, strict=True))
        for assignment in itertools.product(range(components), repeat=len(x))
    ]
    expected = log_prior(pair, draw) + float(torch.tensor(by_assignment).logsumexp(0))
    assert float(pair.log_joint(draw, x)) == pytest.approx(expected, rel=1e-9)

    density = LogDensity(pair, {"x": x})
    jacobian = 0.0
    for name, site in density.sites.items():
        bijection = biject_to(site.support)
        unconstrained = bijection.inv(draw[name])
        jacobian += float(bijection.log_abs_det_jacobian(unconstrained, draw[name]).sum())
    summed_out = float(density.log_prob(density.unconstrain(draw)))
    assert summed_out == pytest.approx(expected + jacobian, rel=1e-9)


def test_density_of_the_model_with_given_assignments() -> None:
    x = points(3, 2)
    pair = GaussianMixture(3, 2, covariance="full")
    draw = prior_draw(pair, x)
    assignment = torch.tensor([2, 0, 2])
    values = {**draw, "assignment": assignment}
    trace = poutine.trace(poutine.condition(pair.model, values)).get_trace(x)
    terms = log_terms(draw, x)
    expected = log_prior(pair, draw) + sum(terms[i][k] for i, k in enumerate(assignment.tolist()))
    assert float(trace.log_prob_sum()) == pytest.approx(expected, rel=1e-9)


def posterior_of(pair: Any, draws: Any, x: Any) -> Any:
    return Posterior(draws=draws, latents=tuple(draws), pair=pair, data={"x": x})


@pytest.fixture
def separated() -> Any:
    """A full-covariance mixture of three, and draws about its truth with random labels."""
    generator = torch.Generator().manual_seed(4)
    pair = GaussianMixture(3, 2, covariance="full")
    truth = {
        "weights": torch.tensor([0.5, 0.3, 0.2]),
        "locs": torch.tensor([[-1.5, 0.0], [0.0, 1.0], [1.5, -0.5]]),
        "scales": torch.tensor([[0.3, 0.5], [0.4, 0.2], [0.3, 0.3]]),
        "correlation_cholesky": torch.linalg.cholesky(
            torch.tensor([[[1.0, r], [r, 1.0]] for r in (0.6, -0.4, 0.1)])
        ),
    }
    truth = {name: value.double() for name, value in truth.items()}
    which = torch.multinomial(truth["weights"], 60, replacement=True, generator=generator)
    tril = truth["scales"].diag_embed() @ truth["correlation_cholesky"]
    noise = torch.randn(60, 2, 1, generator=generator, dtype=torch.float64)
    x = truth["locs"][which] + (tril[which] @ noise)[..., 0]

    def jitter(shape: Any) -> Any:
        return 0.05 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = (4, 50)
    weights = truth["weights"] * jitter((*shape, 3)).exp()
    draws = {
        "weights": weights / weights.sum(-1, keepdim=True),
        "locs": truth["locs"] + jitter((*shape, 3, 2)),
        "scales": truth["scales"] * jitter((*shape, 3, 2)).exp(),
        "correlation_cholesky": truth["correlation_cholesky"].expand(*shape, 3, 2, 2).clone(),
    }
    order = torch.argsort(torch.rand(200, 3, generator=generator), dim=1)
    switched = {
        name: permute(value.flatten(0, 1), order).reshape(value.shape)
        for name, value in draws.items()
    }
    return pair, truth, draws, switched, x


def test_relabelling_undoes_label_switching(separated: Any) -> None:
    pair, _, draws, switched, x = separated
    relabelled = pair.relabel(posterior_of(pair, switched, x))
    assert not torch.equal(switched["locs"], draws["locs"])
    for name, value in draws.items():
        assert torch.equal(relabelled[name], value), name


def test_relabelling_changes_no_density(separated: Any) -> None:
    pair, _, _, switched, x = separated
    before = posterior_of(pair, switched, x)
    after = pair.relabel(before)
    joint = pair.log_joint(before.draws, x)
    assert joint.shape == (4, 50)
    assert torch.allclose(pair.log_joint(after.draws, x), joint, rtol=1e-12)
    assert before.draws["locs"] is switched["locs"]


def test_relabelling_mends_r_hat(separated: Any) -> None:
    pair, _, draws, _, x = separated
    # Each chain in labels of its own, as chains of a sampler are.
    orders = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0]])
    switched = {
        name: torch.stack([chain[:, order] for chain, order in zip(value, orders, strict=True)])
        for name, value in draws.items()
    }
    posterior = posterior_of(pair, switched, x)
    assert rhat(posterior["locs"][..., 0, 0].numpy()) > 1.5
    # 200 independent draws: R-hat exceeds 1.05 in fewer than one of a thousand runs.
    assert rhat(pair.relabel(posterior)["locs"][..., 0, 0].numpy()) < 1.05


def test_relabelling_twice_changes_nothing(separated: Any) -> None:
    pair, _, _, switched, x = separated
    once = pair.relabel(posterior_of(pair, switched, x))
    twice = pair.relabel(once)
    assert all(torch.equal(once[name], twice[name]) for name in switched)


def test_labels_of_another_posterior_are_taken_over(separated: Any) -> None:
    pair, _, draws, switched, x = separated
    order = [2, 0, 1]
    like = posterior_of(pair, {name: value[:, :5, order] for name, value in draws.items()}, x)
    relabelled = pair.relabel(posterior_of(pair, switched, x), like=like)
    assert all(torch.equal(relabelled[name], draws[name][:, :, order]) for name in draws)


def test_relabelling_needs_the_data(separated: Any) -> None:
    pair, _, draws, switched, x = separated
    without = Posterior(draws=switched, latents=tuple(switched))
    with pytest.raises(SiteError, match=r"relabel\(posterior, x=x\)"):
        pair.relabel(without)
    assert torch.equal(pair.relabel(without, x=x)["locs"], draws["locs"])


def test_relabelling_by_spread_where_the_locations_are_the_same() -> None:
    # Sorting by location could not tell these two apart.
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([[0.1], [1.0]]).double().expand(2, 20, 2, 1)
    draws = {
        "weights": torch.full((2, 20, 2), 0.5).double(),
        "locs": 0.01 * torch.randn(2, 20, 2, 1, generator=generator, dtype=torch.float64),
        "scales": torch.stack([scales[0], scales[1].flip(-2)]),
    }
    pair = GaussianMixture(2, 1)
    relabelled = pair.relabel(posterior_of(pair, draws, torch.linspace(-2, 2, 30)[:, None]))
    assert len(relabelled["scales"][..., 0, 0].unique()) == 1


def test_alignment_is_the_best_of_all_permutations() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(6, 9, 4, generator=generator).softmax(-1)
    target = torch.rand(9, 4, generator=generator).softmax(-1)
    for each, order in zip(drawn, align(drawn, target), strict=True):
        best = max(
            itertools.permutations(range(4)),
            key=lambda order: float((each[:, list(order)] * target).sum()),
        )
        assert tuple(order.tolist()) == best


def test_responsibilities_are_the_marginals_of_all_assignments() -> None:
    x = points(4, 2)
    pair = GaussianMixture(3, 2, covariance="full")
    found = [prior_draw(pair, x, seed) for seed in range(6)]
    draws = {
        name: torch.stack([draw[name] for draw in found]).unflatten(0, (2, 3)) for name in found[0]
    }
    posterior = posterior_of(pair, draws, x)
    responsibilities = pair.responsibilities(posterior, x)
    assert responsibilities.shape == (2, 3, 4, 3)
    for i, draw in enumerate(found):
        terms = torch.tensor(log_terms(draw, x), dtype=torch.float64)
        weights = torch.zeros(4, 3, dtype=torch.float64)
        for assignment in itertools.product(range(3), repeat=4):
            probability = terms[range(4), list(assignment)].sum().exp()
            weights[range(4), list(assignment)] += probability
        expected = weights / weights.sum(-1, keepdim=True)
        assert torch.allclose(responsibilities[i // 3, i % 3], expected, rtol=1e-9)
    average = pair.responsibilities(posterior, x, average=True)
    assert torch.allclose(average, responsibilities.mean((0, 1)), rtol=1e-12)


def test_chunks_of_draws_make_no_difference(separated: Any, monkeypatch: Any) -> None:
    pair, _, draws, _, x = separated
    posterior = posterior_of(pair, draws, x)

    def results() -> Any:
        return [
            pair.responsibilities(posterior, x),
            pair.responsibilities(posterior, x, average=True),
            pair.predictive_log_prob(posterior, x),
            pair.log_joint(draws, x),
            pair.sample_assignments(posterior, x),
            pair.relabel(posterior)["locs"],
        ]

    whole = results()
    monkeypatch.setattr("ppl_gen.models.gaussian_mixture._CHUNK_ELEMENTS", 7 * 60 * 3 * 2)
    for one, other in zip(whole, results(), strict=True):
        assert torch.allclose(one, other, rtol=1e-12)


def test_assignments_are_drawn_with_the_responsibilities() -> None:
    x = torch.tensor([[-1.0], [0.1], [2.0]]).double()
    draw = {
        "weights": torch.tensor([0.3, 0.7]).double(),
        "locs": torch.tensor([[-0.5], [0.5]]).double(),
        "scales": torch.ones(2, 1).double(),
    }
    draws = {name: value.expand(2, 4000, *value.shape) for name, value in draw.items()}
    pair = GaussianMixture(2, 1)
    posterior = posterior_of(pair, draws, x)
    state = torch.get_rng_state()
    drawn = pair.sample_assignments(posterior, x, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert drawn.shape == (2, 4000, 3)
    expected = component_log_prob(x, draw).softmax(-1)[:, 1]
    # Standard error of a fraction of 8,000: at most 0.0056; 4 of them.
    assert torch.allclose((drawn == 1).double().mean((0, 1)), expected, atol=4 * 0.0056)


def test_predictive_density_integrates_to_one_and_knows_no_labels(separated: Any) -> None:
    pair, _, draws, switched, x = separated
    few = {name: value[:, :5] for name, value in draws.items()}
    other = {name: value[:, :5] for name, value in switched.items()}
    axis = torch.linspace(-5.0, 5.0, 101, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_density = pair.predictive_log_prob(posterior_of(pair, few, x), grid)
    # The trapezoidal rule with a step of 0.1 and scales of at least 0.15.
    assert float(log_density.exp().sum()) * 0.01 == pytest.approx(1.0, abs=1e-4)
    assert torch.allclose(
        log_density, pair.predictive_log_prob(posterior_of(pair, other, x), grid), rtol=1e-10
    )


def test_plates_name_the_axes() -> None:
    density = LogDensity(GaussianMixture(2, 3, covariance="full"), {"x": points(4, 3)})
    assert density.sites["locs"].dims == ("components", "locs_dim_1")
    assert density.sites["correlation_cholesky"].dims[0] == "components"
    assert density.sites["weights"].shape == (2,)
    assert density.model_sites["assignment"].kind == "discrete"


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(4, 3), "num_features=3"),
        (torch.zeros(4), r"\(n, 2\)"),
        (torch.zeros(4, 2, dtype=torch.int32), r"x\.float"),
    ],
)
def test_bad_data(x: Any, words: Any) -> None:
    with pytest.raises(SiteError, match=words):
        GaussianMixture(3, 2).validate(x)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_components": 0, "num_features": 2}, ValueError, "num_components"),
        ({"num_components": 2, "num_features": -1}, ValueError, "num_features"),
        ({"num_components": 2.5, "num_features": 1}, TypeError, "num_components"),
        ({"num_components": 2, "num_features": 1, "covariance": "ful"}, ValueError, "'full'"),
        ({"num_components": 2, "num_features": 1, "locs_scale": 0.0}, ValueError, "locs_scale"),
        ({"num_components": 2, "num_features": 1, "scales_median": -1.0}, ValueError, "median"),
    ],
)
def test_bad_options(options: Any, error: Any, words: Any) -> None:
    with pytest.raises(error, match=words):
        GaussianMixture(**options)


def test_posterior_of_another_pair(separated: Any) -> None:
    pair, _, draws, _, x = separated
    posterior = posterior_of(pair, draws, x)
    with pytest.raises(ValueError, match=r"posterior\.pair"):
        GaussianMixture(2, 2, covariance="full").responsibilities(posterior, x)
    other = Posterior(draws={"mu": torch.zeros(1, 5)}, latents=("mu",), data={"x": x})
    with pytest.raises(ValueError, match="weights, locs, scales"):
        pair.relabel(other)
