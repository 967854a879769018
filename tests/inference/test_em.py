"""EM against scikit-learn, against enumeration, and by closed form against by gradient."""

from __future__ import annotations

import dataclasses
import itertools
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.indexing import Vindex
from scipy import stats
from sklearn import datasets
from sklearn import mixture as sklearn_mixture
from sklearn.exceptions import ConvergenceWarning

import ppl_gen as pg
from ppl_gen import Pair
from ppl_gen.core import Problem, SiteError
from ppl_gen.core.evaluation import eagerly, evaluation
from ppl_gen.core.pair import as_pair
from ppl_gen.core.scope import isolated, unchecked
from ppl_gen.inference import EM
from ppl_gen.inference.em.ascent import GradientAscent, Objective, start_vectors
from ppl_gen.inference.em.responsibilities import responsibilities
from ppl_gen.inference.em.steps import ClosedFormAscent, remaining_gain
from ppl_gen.inference.vi.mode import find_mode
from ppl_gen.models import GaussianMixture
from ppl_gen.models.gaussian_mixture import component_log_prob
from ppl_gen.models.mixture_em import MixtureSteps

ML = "maximum_likelihood"


def table(name: str, *, standardised: bool = False) -> torch.Tensor:
    x = torch.tensor(getattr(datasets, f"load_{name}")()["data"], dtype=torch.float64)
    return (x - x.mean(0)) / x.std(0) if standardised else x


def mixture(components: int, x: torch.Tensor, covariance: str = "diagonal", **o: Any) -> Any:
    return GaussianMixture(components, x.shape[1], covariance=covariance, **o)


def objective(pair: Any, data: dict[str, Any], *, priors: bool) -> Objective:
    problem = Problem(as_pair(pair), data, torch.device("cpu"), 0, False)
    return Objective(problem, priors=priors)


def climbed(ascent: Any, tolerance: float = 1e-6, most: int = 3000) -> Any:
    while not ascent.ended and len(ascent.history) <= most:
        ascent.step(tolerance)
    return ascent


def closed_form(pair: Any, x: torch.Tensor, *, priors: bool, seed: int = 0) -> ClosedFormAscent:
    with isolated(seed, torch.float64), unchecked():
        return ClosedFormAscent(pair.em_steps(priors, x=x), "GaussianMixture")


def covariances(values: Any) -> torch.Tensor:
    tril = values["scales"].diag_embed()
    if "correlation_cholesky" in values:
        tril = tril @ values["correlation_cholesky"]
    return tril @ tril.mT


# --- Against scikit-learn --------------------------------------------------------------------


def by_sklearn(start: Any, x: torch.Tensor, covariance: str, steps: int, tolerance: float) -> Any:
    """Fit by scikit-learn from the same start, without its term on the diagonal."""
    precisions = covariances(start).inverse().numpy()
    diagonal = precisions.diagonal(axis1=1, axis2=2)
    fitted = sklearn_mixture.GaussianMixture(
        len(start["weights"]),
        covariance_type="full" if covariance == "full" else "diag",
        weights_init=start["weights"].numpy(),
        means_init=start["locs"].numpy(),
        precisions_init=precisions if covariance == "full" else diagonal,
        reg_covar=0.0,
        tol=tolerance,
        max_iter=steps,
    )
    return fitted.fit(x.numpy())


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("name", ["iris", "wine"])
def test_every_step_is_that_of_scikit_learn(name: str, covariance: str) -> None:
    """After 20 steps from the same start, long before convergence, to rounding."""
    x = table(name)
    ascent = closed_form(mixture(3, x, covariance), x, priors=False)
    start = ascent.values
    for _ in range(20):
        ascent.step(1e-300)
    with pytest.warns(ConvergenceWarning):
        other = by_sklearn(start, x, covariance, 20, 1e-300)
    values = ascent.values
    found = covariances(values)
    if covariance == "diagonal":
        found = found.diagonal(dim1=1, dim2=2)
    np.testing.assert_allclose(values["weights"], other.weights_, rtol=1e-7)
    np.testing.assert_allclose(values["locs"], other.means_, rtol=1e-7)
    np.testing.assert_allclose(found, other.covariances_, rtol=1e-6, atol=1e-9 * found.max())
    assert ascent.objective == pytest.approx(len(x) * other.score(x.numpy()), rel=1e-9)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("name", ["iris", "wine"])
def test_the_maximum_is_that_of_scikit_learn(name: str, covariance: str) -> None:
    x = table(name)
    ascent = closed_form(mixture(3, x, covariance), x, priors=False)
    start = ascent.values
    climbed(ascent, 1e-9)
    assert ascent.converged
    other = by_sklearn(start, x, covariance, 5000, 1e-13)
    values = ascent.values
    # A gain of 1e-9 nats that is left is an error of 5e-5 standard errors, each about a tenth of
    # a standard deviation.
    close = {"rtol": 1e-4, "atol": 1e-5 * float(x.std())}
    np.testing.assert_allclose(values["weights"], other.weights_, **close)
    np.testing.assert_allclose(values["locs"], other.means_, **close)
    assert ascent.objective == pytest.approx(len(x) * other.score(x.numpy()), rel=1e-6)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_restarts_find_what_those_of_scikit_learn_find(covariance: str) -> None:
    x = table("iris")
    posterior = pg.fit(mixture(3, x, covariance), {"x": x}, EM(estimate=ML), progress=False)
    kind = "full" if covariance == "full" else "diag"
    other = sklearn_mixture.GaussianMixture(3, covariance_type=kind, n_init=10, random_state=0)
    best = len(x) * other.fit(x.numpy()).score(x.numpy())
    assert posterior.provenance["log_likelihood"] > best - 0.01
    assert posterior.provenance["converged"]
    assert posterior.warnings == ()


# --- Never down ------------------------------------------------------------------------------


def random_table(seed: int) -> tuple[torch.Tensor, int]:
    """Return data of any scale, some with copied rows or columns nearly alike, and a K."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    n, features, components = integer(6, 60), integer(1, 5), integer(1, 6)
    x = torch.randn(n, features, generator=generator, dtype=torch.float64)
    x = x + 3 * torch.randint(3, (n, 1), generator=generator)
    if seed % 3 == 0:
        x[: n // 2] = x[0]
    if seed % 4 == 0 and features > 1:
        x[:, 1] = x[:, 0] + 1e-9 * x[:, 1]
    return x * 10.0 ** integer(-4, 5) + integer(-50, 50), components


@pytest.mark.parametrize(
    ("covariance", "priors"), [("diagonal", False), ("full", False), ("diagonal", True)]
)
def test_no_step_goes_down(covariance: str, priors: bool) -> None:
    """A step that goes down is an error; here also by far less than that tolerates."""
    for seed in range(40):
        x, components = random_table(seed)
        pair = mixture(components, x, covariance)
        ascent = climbed(closed_form(pair, x, priors=priors, seed=seed), most=60)
        gains = np.diff(ascent.history)
        assert gains.min() >= -1e-10 * (1 + abs(ascent.objective)), seed
        assert all(bool(value.isfinite().all()) for value in ascent.values.values()), seed


class Unbiased(MixtureSteps):
    """The sample variance in place of the likeliest one."""

    def maximise(self, expectations: torch.Tensor, values: Any) -> Any:
        counts = expectations.sum(0).unsqueeze(-1)
        found = dict(super().maximise(expectations, values))
        return found | {"scales": found["scales"] * (counts / (counts - 1)).sqrt()}


class WrongLocations(MixtureSteps):
    """Locations of other components."""

    def maximise(self, expectations: torch.Tensor, values: Any) -> Any:
        return {**super().maximise(expectations, values), "locs": values["locs"].flip(0)}


class Unweighted(MixtureSteps):
    """An E step that forgets the weights."""

    def expect(self, values: Any) -> Any:
        return super().expect({**values, "weights": torch.ones_like(values["weights"])})


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (WrongLocations, "lowered what they are to maximise"),
        (Unweighted, "not those of its model: at a start of theirs the log-likelihood"),
    ],
)
def test_wrong_steps_are_refused(steps: Any, words: str) -> None:
    class Wrong(GaussianMixture):
        def em_steps(self, priors: bool, /, x: torch.Tensor) -> Any:
            return steps(self, x, priors=priors)

    x = table("iris")
    with pytest.raises(ValueError, match=words):
        pg.fit(Wrong(3, 4), {"x": x}, EM(estimate=ML, restarts=1), progress=False)


def test_a_small_slip_still_climbs_and_shows_against_scikit_learn() -> None:
    """The blind spot of what is checked in a run, and the negative control of the tests above."""
    x = table("iris")
    pair = mixture(3, x)
    with isolated(0, torch.float64), unchecked():
        right = ClosedFormAscent(MixtureSteps(pair, x, priors=False), "")
    with isolated(0, torch.float64), unchecked():
        slip = ClosedFormAscent(Unbiased(pair, x, priors=False), "")
    for ascent in (right, slip):
        climbed(ascent, 1e-9)
    other = by_sklearn(right.values, x, "diagonal", 5000, 1e-13)
    best = len(x) * other.score(x.numpy())
    assert right.objective == pytest.approx(best, rel=1e-6)
    assert slip.objective < best - 0.01


def test_a_missing_site_is_refused() -> None:
    class Missing(MixtureSteps):
        def start(self) -> Any:
            found = dict(super().start())
            del found["weights"]
            return found

    class Wrong(GaussianMixture):
        def em_steps(self, priors: bool, /, x: torch.Tensor) -> Any:
            return Missing(self, x, priors=priors)

    with pytest.raises(SiteError, match=r"site 'weights': expected a value of shape \(3,\)"):
        pg.fit(Wrong(3, 4), {"x": table("iris")}, EM(), progress=False)


def test_what_is_left_to_gain() -> None:
    assert remaining_gain([0.0, 1.0]) == math.inf
    # Gains 2^-i add up to what the last one was.
    assert remaining_gain([0.0, 1.0, 1.5, 1.75]) == pytest.approx(0.25)
    # One that has just fallen by much is not believed.
    assert remaining_gain([0.0, 1.0, 1.001]) == pytest.approx(0.001)
    # Away from a saddle gains grow, however small they are.
    assert remaining_gain([0.0, 1e-9, 3e-9]) == math.inf
    assert remaining_gain([0.0, 1.0, 1.0]) == 0.0


# --- By gradient -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("covariance", "priors"), [("diagonal", False), ("full", False), ("diagonal", True)]
)
def test_by_gradient_it_comes_to_the_same_optimum(covariance: str, priors: bool) -> None:
    x = table("iris", standardised=True)
    pair = mixture(2, x, covariance)
    exact = closed_form(pair, x, priors=priors)
    density = objective(pair, {"x": x}, priors=priors)
    start = density.unconstrain(exact.values)
    climbed(exact, 1e-10)
    evaluate = eagerly(density)
    ascent = climbed(GradientAscent(density, evaluate, start, lambda: None))
    assert exact.converged
    assert ascent.converged
    assert ascent.history[0] == pytest.approx(exact.history[0], rel=1e-10)
    assert ascent.objective == pytest.approx(exact.objective, rel=1e-8)
    for name, value in exact.values.items():
        torch.testing.assert_close(ascent.values[name], value, rtol=1e-4, atol=1e-4)


def test_the_mode_under_priors_of_full_covariances() -> None:
    """At a mode the equations of weights and locations hold, whatever the scales are."""
    x = table("iris", standardised=True)
    pair = mixture(2, x, "full", weights_concentration=3.0, locs_scale=0.7)
    posterior = pg.fit(pair, {"x": x}, EM(restarts=4), progress=False)
    assert posterior.provenance["converged"]
    values = {name: posterior[name][0, 0] for name in posterior.latents}
    r = component_log_prob(x, values).softmax(-1)
    counts = r.sum(0)
    weights = (counts + 2.0) / (counts + 2.0).sum()
    torch.testing.assert_close(values["weights"], weights, rtol=1e-4, atol=1e-4)
    precision = covariances(values).inverse()
    prior = torch.eye(4, dtype=torch.float64) / 0.7**2
    locs = torch.linalg.solve(
        counts[:, None, None] * precision + prior, (precision @ (r.mT @ x)[..., None])
    )
    torch.testing.assert_close(values["locs"], locs[..., 0], rtol=1e-4, atol=1e-4)


def test_scales_under_priors_are_at_the_mode() -> None:
    """The closed form by Wright's omega function against a fine grid, from no points to many."""
    pair = GaussianMixture(1, 1, scales_median=0.7, scales_spread=0.4)
    for x in (torch.zeros(3, 1), torch.randn(5, 1), 20 * torch.randn(2000, 1) + 3):
        x = x.double()
        values = climbed(closed_form(pair, x, priors=True), 1e-9).values
        log_scales = values["scales"].log() + torch.linspace(-0.01, 0.01, 2001)[:, None, None]
        grid = {name: value.expand(2001, *value.shape) for name, value in values.items()}
        grid["scales"] = log_scales.exp().double()
        best = int(pair.log_joint(grid, x).argmax())
        assert abs(best - 1000) <= 1  # the grid's step is 1e-5


def hidden_markov(y: torch.Tensor) -> None:
    """Series in rows: two states that last, and noise about a location of each."""
    initial = pyro.sample("initial", dist.Dirichlet(torch.ones(2)))
    transition = pyro.sample("transition", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 3.0))
    with pyro.plate("series", len(y)):
        state: Any = None
        for t in pyro.markov(range(y.shape[1])):
            law = initial if t == 0 else Vindex(transition)[state]
            state = pyro.sample(f"state_{t}", dist.Categorical(law))
            pyro.sample(f"y_{t}", dist.Normal(locs[state], scale), obs=y[:, t])


TRUTH = {
    "initial": torch.tensor([0.7, 0.3]),
    "transition": torch.tensor([[0.85, 0.15], [0.3, 0.7]]),
    "locs": torch.tensor([-1.0, 1.5]),
    "scale": torch.tensor(0.8),
}


def simulated(series: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    state = torch.multinomial(TRUTH["initial"], series, replacement=True, generator=generator)
    columns = []
    for _ in range(length):
        noise = TRUTH["scale"] * torch.randn(series, generator=generator)
        columns.append(TRUTH["locs"][state] + noise)
        law = TRUTH["transition"][state]
        state = torch.multinomial(law, 1, generator=generator)[:, 0]
    return torch.stack(columns, -1).double()


def forward_log_likelihood(y: torch.Tensor, values: Any) -> float:
    """Return the log-likelihood by the forward algorithm."""
    emission = stats.norm(values["locs"].numpy(), float(values["scale"])).pdf(y.numpy()[..., None])
    forward, total = values["initial"].numpy() * emission[:, 0], 0.0
    for t in range(1, y.shape[1]):
        norm = forward.sum(-1, keepdims=True)
        total += float(np.log(norm).sum())
        forward = (forward / norm) @ values["transition"].numpy() * emission[:, t]
    return total + float(np.log(forward.sum(-1)).sum())


def test_a_hidden_markov_model_is_recovered() -> None:
    y = simulated(150, 8)
    posterior = pg.fit(hidden_markov, {"y": y}, EM(restarts=4), progress=False)
    assert posterior.provenance["converged"]
    assert posterior.warnings == ()
    assert posterior.history is not None
    assert bool((posterior.history.diff() <= 0).all())
    assert float(posterior.history[0] - posterior.history[-1]) > 10
    order = posterior["locs"][0, 0].argsort()
    values = {
        "initial": posterior["initial"][0, 0][order],
        "transition": posterior["transition"][0, 0][order][:, order],
        "locs": posterior["locs"][0, 0][order],
        "scale": posterior["scale"][0, 0],
    }
    facts = posterior.provenance
    assert facts["log_likelihood"] == pytest.approx(forward_log_likelihood(y, values), rel=1e-9)
    density = objective(hidden_markov, {"y": y}, priors=True)
    truth = {name: value.double() for name, value in TRUTH.items()}
    assert facts["log_joint"] > density.at(truth, priors=True)
    # The error of a mode is normal with the inverse Hessian as its covariance, for many data: its
    # squared length by the Hessian is chi-squared with as many degrees of freedom as there are
    # coordinates. It is exceeded with a chance of 1e-3.
    point, true = density.unconstrain(values), density.unconstrain(truth)
    mode = find_mode(evaluation(density), point.numpy())
    error = (true - point).numpy()
    assert error @ mode.precision @ error < stats.chi2.isf(1e-3, density.dim)
    # Swapped states are far out: the test can fail.
    swapped = {name: value.flip(0) if value.ndim else value for name, value in values.items()}
    wrong = (true - density.unconstrain(swapped)).numpy()
    assert wrong @ mode.precision @ wrong > 100 * stats.chi2.isf(1e-3, density.dim)
    states = posterior.discrete(seed=1)
    assert states["state_3"].shape == (1, 1, 150)


def test_no_round_by_gradient_goes_down() -> None:
    """From ten starts, some of them far out."""
    y = simulated(40, 5)
    density = objective(hidden_markov, {"y": y}, priors=True)
    evaluate = evaluation(density)
    with isolated(3, torch.float64):
        starts = start_vectors(density, evaluate, 10)
    rounds = 0
    for start in starts:
        ascent = climbed(GradientAscent(density, evaluate, start, lambda: None))
        assert min(np.diff(ascent.history)) >= -1e-10 * abs(ascent.objective)
        assert ascent.history[0] == pytest.approx(float(density.log_prob(start)), rel=1e-9)
        assert ascent.history[-1] == pytest.approx(density.at(ascent.values, priors=True), rel=1e-9)
        rounds += len(ascent.history) - 1
    assert rounds > 10


def test_an_unbounded_likelihood_is_said_so() -> None:
    """Without priors, one point that a component can shrink to, by gradient."""
    x = torch.tensor([[-1.0], [-0.5], [0.4], [1.2], [0.1], [30.0]], dtype=torch.float64)
    pair = GaussianMixture(2, 1)
    method = EM(estimate=ML, restarts=1)
    posterior = pg.fit(pair.model, {"x": x}, method, progress=False)
    assert not posterior.provenance["converged"]
    assert "EM came to no mode" in posterior.warnings[0]


# --- Responsibilities ------------------------------------------------------------------------


def test_responsibilities_of_a_mixture_by_enumeration() -> None:
    x = table("iris")[::20]
    pair = mixture(3, x)
    values = dict(closed_form(pair, x, priors=True).values)
    found = responsibilities(objective(pair, {"x": x}, priors=True), values)["assignment"]
    log_prob = component_log_prob(x, values)
    expected = torch.zeros(len(x), 3, dtype=torch.float64)
    for path in itertools.product(range(3), repeat=len(x)):
        expected[range(len(x)), path] += log_prob[range(len(x)), path].sum().exp()
    torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True))


def test_responsibilities_of_a_chain_by_enumeration() -> None:
    """States that depend on each other, in series of which one is scaled, which plays no role."""
    y = simulated(2, 6)
    truth = {name: value.double() for name, value in TRUTH.items()}

    def scaled(y: torch.Tensor) -> None:
        with pyro.poutine.scale(scale=3.0):
            hidden_markov(y)

    found = responsibilities(objective(scaled, {"y": y}, priors=True), truth)
    expected = torch.zeros(2, 6, 2, dtype=torch.float64)
    apart = torch.zeros(2, 6, 2, dtype=torch.float64)
    density = dist.Normal(truth["locs"], truth["scale"]).log_prob(y[..., None]).exp()
    for path in itertools.product(range(2), repeat=6):
        weight = truth["initial"][path[0]]
        for before, after in itertools.pairwise(path):
            weight = weight * truth["transition"][before, after]
        weight = weight * density[:, range(6), path].prod(-1)
        expected[:, range(6), path] += weight.unsqueeze(-1)
    expected = expected / expected.sum(-1, keepdim=True)
    apart = density / density.sum(-1, keepdim=True)
    got = torch.stack([found[f"state_{t}"] for t in range(6)], 1)
    torch.testing.assert_close(got, expected)
    # That each state has its own data only would be seen.
    assert float((apart - expected).abs().max()) > 0.05


def test_responsibilities_in_nested_plates() -> None:
    def nested(y: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("group", 2, dim=-2):
            kind = pyro.sample("kind", dist.Bernoulli(0.3))
            with pyro.plate("row", 3, dim=-1):
                odd = pyro.sample("odd", dist.Bernoulli(0.1 + 0.5 * kind))
                pyro.sample("y", dist.Normal(loc + odd, 1.0), obs=y)

    y = torch.tensor([[0.3, 1.5, 0.9], [-0.5, 0.2, 2.1]], dtype=torch.float64)
    loc = torch.tensor(0.2, dtype=torch.float64)
    found = responsibilities(objective(nested, {"y": y}, priors=True), {"loc": loc})
    kinds, odds = torch.zeros(2, 2).double(), torch.zeros(2, 3, 2).double()
    for g in range(2):
        for kind, *odd in itertools.product((0, 1), repeat=4):
            weight = 0.3 if kind else 0.7
            for j, one in enumerate(odd):
                p = 0.1 + 0.5 * kind
                weight *= (p if one else 1 - p) * stats.norm.pdf(float(y[g, j]), 0.2 + one, 1.0)
            kinds[g, kind] += weight
            for j, one in enumerate(odd):
                odds[g, j, one] += weight
    torch.testing.assert_close(found["kind"].squeeze(), kinds / kinds.sum(-1, keepdim=True))
    torch.testing.assert_close(found["odd"], odds / odds.sum(-1, keepdim=True))


# --- What comes back -------------------------------------------------------------------------


def test_the_posterior_of_a_point(tmp_path: Path) -> None:
    x = table("iris", standardised=True)
    pair = mixture(3, x)
    posterior = pg.fit(pair, {"x": x.float()}, EM(restarts=3), seed=5, progress=False)
    again = pg.fit(pair, {"x": x.float()}, EM(restarts=3), seed=5, progress=False)
    assert posterior["locs"].shape == (1, 1, 3, 4)
    assert posterior["locs"].dtype == torch.float64
    assert all(torch.equal(posterior[name], again[name]) for name in posterior.latents)
    facts = posterior.provenance
    assert len(facts["restarts"]) == 3
    assert facts["log_joint"] == pytest.approx(max(facts["restarts"]), rel=1e-10)
    joint = float(pair.log_joint(posterior.draws, x.float().double()))
    assert facts["log_joint"] == pytest.approx(joint, rel=1e-10)
    draw = {name: posterior[name][0, 0] for name in posterior.latents}
    likelihood = float(component_log_prob(x.float().double(), draw).logsumexp(-1).sum())
    assert facts["log_likelihood"] == pytest.approx(likelihood, rel=1e-10)
    assert posterior.history is not None
    assert float(posterior.history[-1]) == pytest.approx(-joint, rel=1e-10)
    assert not posterior.is_mcmc
    assert posterior.is_point
    with pytest.raises(ValueError, match="a posterior by EM is one point"):
        posterior.sample()
    with pytest.raises(ValueError, match="one point, to which no draws can be added"):
        posterior.extend(10)
    assert posterior.discrete()["assignment"].shape == (1, 1, 150)
    assert posterior.predict()["x"].shape == (1, 1, 150, 4)
    loaded = pg.load(posterior.save(tmp_path / "saved"))
    assert torch.equal(loaded["scales"], posterior["scales"])
    assert loaded.provenance["restarts"] == facts["restarts"]


def test_assignments_are_drawn_with_the_responsibilities() -> None:
    x = torch.tensor([[-1.0], [-0.6], [0.0], [0.1], [0.7], [1.3]], dtype=torch.float64)
    pair = GaussianMixture(2, 1)
    posterior = pg.fit(pair, {"x": x}, EM(), progress=False)
    expected = pair.responsibilities(posterior, x)[0, 0, :, 1]
    draws = {
        name: value.expand(1, 4000, *value.shape[2:]) for name, value in posterior.draws.items()
    }
    many = dataclasses.replace(posterior, draws=draws).discrete()["assignment"]
    # A frequency of 4,000 draws has a standard error of 0.008 at most: 4 of them.
    assert float((many[0].double().mean(0) - expected).abs().max()) < 0.032


def test_the_scale_of_the_data_plays_no_role_for_maximum_likelihood() -> None:
    x = table("wine")[:, :4]
    units = torch.tensor([1e-3, 1.0, 50.0, 1e4], dtype=torch.float64)
    pair = mixture(3, x, "full")
    one = pg.fit(pair, {"x": x}, EM(estimate=ML, restarts=2), progress=False)
    other = pg.fit(pair, {"x": x * units + 7}, EM(estimate=ML, restarts=2), progress=False)
    torch.testing.assert_close(one["locs"] * units + 7, other["locs"], rtol=1e-5, atol=1e-5)


def test_a_collapsed_component_is_not_the_best_of_restarts() -> None:
    """One far point that a component of maximum likelihood shrinks to, at no bound but ours."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    x[20:] += 4
    x = torch.cat([x, torch.tensor([[40.0]], dtype=torch.float64)])
    alone = pg.fit(GaussianMixture(2, 1), {"x": x}, EM(estimate=ML, restarts=1), progress=False)
    assert "has collapsed" in alone.warnings[0]
    assert float(alone["scales"].min()) == pytest.approx(1e-3 * float(x.std(unbiased=False)))


def test_a_sound_restart_is_taken_before_a_higher_one() -> None:
    """Starts by turns: the higher maximum is a component about one point."""
    x = torch.linspace(-1.5, 1.5, 20, dtype=torch.float64)[:, None]

    class Turns(MixtureSteps):
        count = 0

        def start(self) -> Any:
            Turns.count += 1
            if Turns.count % 2:
                return super().start()
            locs = torch.stack([x[7], x.mean(0)])
            scales = torch.tensor([[1e-3], [1.0]])
            return {"weights": torch.tensor([0.05, 0.95]), "locs": locs, "scales": scales}

    class Pair(GaussianMixture):
        def em_steps(self, priors: bool, /, x: torch.Tensor) -> Any:
            return Turns(self, x, priors=priors)

    posterior = pg.fit(Pair(2, 1), {"x": x}, EM(estimate=ML, restarts=4), progress=False)
    assert posterior.warnings == ()
    assert float(posterior["scales"].min()) > 0.3
    assert posterior.provenance["log_likelihood"] < max(posterior.provenance["restarts"]) - 1


def test_values_that_are_not_used_are_said_so() -> None:
    def outliers(x: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.9, 0.05, 0.05])))
            scales = torch.tensor([1.0, 10.0, 1000.0])
            pyro.sample("x", dist.Normal(loc, scales[kind]), obs=x)

    x = torch.tensor([0.3, -0.8, 1.1, 0.4, -0.2, 25.0, -31.0], dtype=torch.float64)
    posterior = pg.fit(outliers, {"x": x}, EM(restarts=2), progress=False)
    (warning,) = posterior.warnings
    assert warning.startswith("Less than one of 7 elements of 'kind' is expected to have value 2:")


def test_too_few_steps_are_said_so() -> None:
    x = table("iris")
    method = EM(estimate=ML, restarts=1, max_steps=3)
    posterior = pg.fit(mixture(3, x), {"x": x}, method, progress=False)
    assert posterior.history is not None
    assert len(posterior.history) == 4
    assert not posterior.provenance["converged"]
    assert "has not converged in 3 steps" in posterior.warnings[0]


# --- Ctrl-C ----------------------------------------------------------------------------------


class Interrupted(MixtureSteps):
    """Stops at an E step."""

    last = 6

    def expect(self, values: Any) -> Any:
        Interrupted.last -= 1
        if Interrupted.last == 0:
            signal.raise_signal(signal.SIGINT)
        return super().expect(values)


class Stopped(GaussianMixture):
    def em_steps(self, priors: bool, /, x: torch.Tensor) -> Any:
        return Interrupted(self, x, priors=priors)


def test_an_interrupted_run_keeps_what_there_is() -> None:
    x = table("iris")
    Interrupted.last = 6
    posterior = pg.fit(Stopped(3, 4), {"x": x}, EM(estimate=ML), progress=False)
    assert posterior.interrupted
    assert posterior.history is not None
    # One E step compares with the model, one is at the start, three are of steps.
    assert len(posterior.history) == 4
    assert bool((posterior.history.diff() < 0).all())


def test_an_interrupted_round_keeps_its_highest_point() -> None:
    x = table("iris", standardised=True)
    density = objective(mixture(2, x), {"x": x}, priors=True)
    seen: list[float] = []

    def evaluate(vectors: torch.Tensor) -> Any:
        if len(seen) == 20:
            signal.raise_signal(signal.SIGINT)
        found = eagerly(density)(vectors)
        seen.append(float(found[0][0]))
        return found

    start = torch.linspace(-1, 1, density.dim, dtype=torch.float64)
    ascent = GradientAscent(density, evaluate, start, lambda: None)
    with pytest.raises(KeyboardInterrupt):
        ascent.step(1e-6)
    assert ascent.history == [seen[0], max(seen)]
    assert density.at(ascent.values, priors=True) == pytest.approx(max(seen), rel=1e-9)
    assert not ascent.sound


def test_an_interrupted_start_leaves_nothing() -> None:
    Interrupted.last = 2
    with pytest.raises(KeyboardInterrupt, match="before its first step"):
        pg.fit(Stopped(3, 4), {"x": table("iris")}, EM(estimate=ML), progress=False)


# --- Bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"estimate": "mle"}, ValueError, "unknown estimate 'mle': expected one of map, max"),
        ({"restarts": 0}, ValueError, "restarts: expected at least 1, got 0"),
        ({"max_steps": 1.5}, TypeError, "max_steps: expected a whole number"),
        ({"tolerance": 0.0}, ValueError, "tolerance: expected a positive number of nats"),
    ],
)
def test_bad_options(options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        EM(**options)


def bad(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[2, 1] = math.nan
    return x


IRIS = table("iris")


@pytest.mark.parametrize(
    ("pair", "x", "method", "words"),
    [
        (GaussianMixture(4, 4), IRIS[:3], EM(), "one row for each of 4 components, got 3 rows"),
        (GaussianMixture(2, 4), bad(IRIS), EM(), "data 'x': expected finite values"),
        (
            GaussianMixture(2, 4, weights_concentration=0.5),
            IRIS,
            EM(),
            "weights_concentration=0.5: the prior is unbounded",
        ),
        (
            GaussianMixture(2, 4),
            IRIS * torch.tensor([1, 1, 0, 1]),
            EM(estimate=ML),
            "the same value everywhere in column 2",
        ),
    ],
)
def test_bad_data(pair: Any, x: torch.Tensor, method: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pg.fit(pair, {"x": x}, method, progress=False)


def test_a_pair_without_discrete_latents() -> None:
    class Normal(Pair):
        def model(self, x: torch.Tensor) -> None:
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    with pytest.raises(ValueError, match=r'Normal has none.*SVI\(guide="laplace"\)'):
        pg.fit(Normal(), {"x": torch.ones(3)}, EM(), progress=False)


def test_a_site_that_the_likelihood_does_not_depend_on() -> None:
    def hierarchical(x: torch.Tensor) -> None:
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), spread).to_event(1))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    x = torch.tensor([-1.0, 2.0, 1.8])
    with pytest.raises(SiteError, match=r"site 'spread'.*EM\(estimate=\"map\"\)"):
        pg.fit(hierarchical, {"x": x}, EM(estimate=ML), progress=False)
