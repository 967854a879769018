"""Each objective's value and gradient against exact ones, by quadrature or by enumeration.

The pairs are small enough for the expectation over all draws of k = 2 samples to be computed. An
estimate is the mean of independent ones; the tolerance is 4.5 of its standard errors, which the
same estimates give: fewer than one in 100,000 normal errors is larger.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO
from torch import nn
from torch.distributions import Bernoulli, Normal

from ppl_gen import Pair
from ppl_gen.core import LogDensity
from ppl_gen.core.minibatch import MiniBatches, ScalePlate
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.scope import default_dtype
from ppl_gen.inference.bounds import (
    ELBO,
    ImportanceWeighted,
    Objective,
    Renyi,
    ReweightedWakeSleep,
)
from ppl_gen.inference.guides import GaussianGuide
from ppl_gen.inference.objectives import GaussianObjective, PairObjective

X = torch.tensor([0.4, -1.5, 2.2], dtype=torch.float64)
NOISE = 0.6


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with default_dtype(torch.float64):
        yield


def number(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value))


class Rows(Pair):
    """x_i ~ N(w z_i, 0.6), z_i ~ N(0, 1) local: the evidence is that of N(0, w^2 + 0.36)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = number(1.3)
        self.slope = number(0.4)
        self.log_scale = number(-0.2)

    def rows(self, x: torch.Tensor) -> Any:
        return pyro.plate("data", len(x))

    def model(self, x: torch.Tensor) -> None:
        with self.rows(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(self.w * z, NOISE), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        with self.rows(x):
            pyro.sample("z", dist.Normal(self.slope * x, self.log_scale.exp()))

    def evidence(self, x: torch.Tensor) -> torch.Tensor:
        return Normal(0.0, (self.w**2 + NOISE**2).sqrt()).log_prob(x).sum()

    def log_densities(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return log p and log q at the draws that noise makes, (k, nodes, rows)."""
        q = Normal(self.slope * x, self.log_scale.exp())
        z = q.loc + q.scale * noise.unsqueeze(-1)
        log_p = Normal(0.0, 1.0).log_prob(z) + Normal(self.w * z, NOISE).log_prob(x)
        return log_p, q.log_prob(z)


class Hierarchy(Pair):
    """u ~ N(0, 1) for all rows, z_i ~ N(u, 1) and x_i ~ N(z_i, 0.6) for each."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = number(0.3)
        self.log_scale_u = number(-0.7)
        self.slope = number(0.5)
        self.pull = number(0.9)
        self.log_scale = number(-0.9)

    def model(self, x: torch.Tensor) -> None:
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(u, 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        u = pyro.sample("u", dist.Normal(self.loc, self.log_scale_u.exp()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x + self.pull * u, self.log_scale.exp()))

    def evidence(self, x: torch.Tensor) -> torch.Tensor:
        n = len(x)
        covariance = (1 + NOISE**2) * torch.eye(n) + torch.ones(n, n)
        return torch.distributions.MultivariateNormal(torch.zeros(n), covariance).log_prob(x)


class Helmholtz(Pair):
    """Two binary causes of three pixels: four states, so that all is known by enumeration."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.prior = nn.Parameter(torch.tensor([0.3, -0.4]))
        self.generative = nn.Parameter(torch.randn(2, 3, generator=generator))
        self.recognition = nn.Parameter(0.5 * torch.randn(3, 2, generator=generator))

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior.expand(len(x), 2)).to_event(1))
            logits = 2 * (z - 0.5) @ self.generative
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=x @ self.recognition).to_event(1))

    def log_densities(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log p(x, z) and log q(z | x) of all states, (state, row)."""
        z = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2))).unsqueeze(1)
        logits = 2 * (z - 0.5) @ self.generative
        log_p = Bernoulli(logits=self.prior).log_prob(z).sum(-1)
        log_p = log_p + Bernoulli(logits=logits).log_prob(x).sum(-1)
        return log_p, Bernoulli(logits=x @ self.recognition).log_prob(z).sum(-1)


PIXELS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)


def hermite(nodes: int, axes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return nodes (axis, node) and weights (node,) of the mean over independent normals."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid = torch.tensor(list(itertools.product(points, repeat=axes))).T
    product = torch.tensor(list(itertools.product(weights / weights.sum(), repeat=axes)))
    return grid, product.prod(-1)


def of_order(log_weights: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return Rényi's bound by its definition, over the first axis."""
    if alpha == 1:
        return log_weights.mean(0)
    return ((1 - alpha) * log_weights).exp().mean(0).log() / (1 - alpha)


def gradient(value: torch.Tensor, pair: nn.Module) -> torch.Tensor:
    if not any(True for _ in pair.parameters()):
        return torch.zeros(0)
    found = torch.autograd.grad(value, list(pair.parameters()), allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for p, g in zip(pair.parameters(), found, strict=True)
        ]
    )


def exact_rows(pair: Rows, alpha: float, x: torch.Tensor = X) -> torch.Tensor:
    """Return the expected bound of two draws for each row."""
    noise, weights = hermite(50, 2)
    log_p, log_q = pair.log_densities(x, noise)
    return (weights.unsqueeze(-1) * of_order(log_p - log_q, alpha)).sum()


def exact_hierarchy(pair: Hierarchy, alpha: float) -> torch.Tensor:
    noise, weights = hermite(24, 3)
    u = pair.loc + pair.log_scale_u.exp() * noise[0]
    outside = Normal(0.0, 1.0).log_prob(u) - Normal(pair.loc, pair.log_scale_u.exp()).log_prob(u)
    q = Normal(pair.slope * X + pair.pull * u.unsqueeze(-1), pair.log_scale.exp())
    z = q.loc + q.scale * noise[1:].unsqueeze(-1)
    log_p = Normal(u.unsqueeze(-1), 1.0).log_prob(z) + Normal(z, NOISE).log_prob(X)
    return (weights * (outside + of_order(log_p - q.log_prob(z), alpha).sum(-1))).sum()


def estimates(
    pair: nn.Module, data: dict[str, Any], objective: Objective, repeats: int, **options: Any
) -> torch.Tensor:
    """Return independent estimates of bound and gradient, (repeat, 1 + parameters)."""
    target = PairObjective(pair, data, 1, objective=objective, **options)
    found = []
    for _ in range(repeats):
        bound = -target.loss(data)
        found.append(torch.cat([bound.detach().reshape(1), gradient(bound, pair)]))
    return torch.stack(found)


def assert_mean(found: torch.Tensor, exact: torch.Tensor) -> None:
    error = found.std(0) / len(found) ** 0.5
    off = (found.mean(0) - exact).abs()
    assert (off <= 4.5 * error + 1e-9).all(), f"{off} with errors {error}"


def many(x: torch.Tensor, copies: int = 400) -> torch.Tensor:
    """Return rows many times over: as many independent estimates at once."""
    return x.repeat(copies)


BY_GRADIENT = [ImportanceWeighted(2), Renyi(0.5, 2), Renyi(2.0, 2)]


@pytest.mark.parametrize("objective", BY_GRADIENT, ids=str)
def test_local_latents_against_quadrature(objective: Objective) -> None:
    pair = Rows()
    exact = exact_rows(pair, objective.alpha)
    truth = torch.cat([exact.detach().reshape(1), gradient(exact, pair)])
    found = estimates(pair, {"x": many(X)}, objective, 60) / 400
    assert_mean(found, truth)
    # What it would be without the second factor on the paths is told apart.
    wrong = exact_rows(pair, 1.0)
    other = torch.cat([wrong.detach().reshape(1), gradient(wrong, pair)])
    with pytest.raises(AssertionError):
        assert_mean(found, other)


@pytest.mark.parametrize("objective", BY_GRADIENT, ids=str)
def test_latents_inside_and_outside_of_the_plate_against_quadrature(objective: Objective) -> None:
    pair = Hierarchy()
    exact = exact_hierarchy(pair, objective.alpha)
    truth = torch.cat([exact.detach().reshape(1), gradient(exact, pair)])
    found = estimates(pair, {"x": X}, objective, 250)
    assert_mean(found, truth)
    assert exact < pair.evidence(X)
    assert exact > exact_hierarchy(pair, 1.0) or objective.alpha > 1


def test_the_gradient_of_a_hierarchy_draw_for_draw() -> None:
    """The formula by its parts: latents above reach the rows by the model and by the draws."""
    pair, k = Hierarchy(), 6
    found = same_draws(pair, X, Renyi(0.3, k))
    pyro.set_rng_seed(4)
    shared, _ = torch.randn(()), torch.randn(3)  # the second is for rows that are not used
    u = pair.loc + pair.log_scale_u.exp() * shared
    q_loc, q_scale = pair.slope * X + pair.pull * u, pair.log_scale.exp()
    z = q_loc + q_scale * torch.randn(k, 3)

    def log_p(z: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return Normal(u, 1.0).log_prob(z) + Normal(z, NOISE).log_prob(X)

    constant = Normal(q_loc.detach(), q_scale.detach())
    log_weights = (log_p(z, u) - constant.log_prob(z)).detach()
    weights = (0.7 * log_weights).softmax(0)
    by_model = weights * log_p(z.detach(), u)
    paths = log_p(z, u.detach()) - constant.log_prob(z)
    by_draws = weights * (0.3 + 0.7 * weights) * paths
    q_u = Normal(pair.loc, pair.log_scale_u.exp())
    outside = -torch.distributions.kl_divergence(q_u, Normal(0.0, 1.0))
    value = of_order(log_weights, 0.3).sum() + outside.detach()
    update = gradient(by_model.sum() + by_draws.sum() + outside, pair)
    torch.testing.assert_close(found, torch.cat([value.reshape(1), update]))


def test_the_bound_rises_with_the_number_of_draws_up_to_the_evidence() -> None:
    pair = Rows()
    means, errors = [], []
    for k in (1, 2, 8, 32, 256):
        found = estimates(pair, {"x": many(X)}, ImportanceWeighted(k), 12)[:, 0] / 400
        means.append(found.mean().item())
        errors.append(found.std().item() / len(found) ** 0.5)
    for i in range(4):
        assert means[i + 1] - means[i] > 4.5 * math.hypot(errors[i], errors[i + 1]) - 1e-3
    assert means[3] - means[0] > 0.1
    # The gap of k draws is near var(w) / 2k: 256 draws leave less than 0.01 here.
    assert means[-1] == pytest.approx(pair.evidence(X).item(), abs=4.5 * errors[-1] + 0.01)
    assert means[-1] < pair.evidence(X) + 4.5 * errors[-1]


class Subsampled(Rows):
    """The rows' plate is told how many there are in all."""

    def rows(self, x: torch.Tensor) -> Any:
        return pyro.plate("data", 7, subsample_size=len(x))


@pytest.mark.parametrize("kind", [Rows, Subsampled, Hierarchy])
def test_an_epoch_of_mini_batches_is_the_whole(kind: type[Pair]) -> None:
    """Batches of 3, 3 and 1: their mean has the expectation of the whole data."""
    pair = kind()
    x = torch.linspace(-2.0, 2.0, 7)
    batches = MiniBatches({"x": x}, ("x",), "data", 7, 3)
    of_epoch = []
    for batch in batches.epoch():
        scale = batches.scale
        of_epoch.append(estimates(pair, batch, ImportanceWeighted(3), 100, scale=scale))
    whole = estimates(pair, {"x": x}, ImportanceWeighted(3), 100)
    parts = torch.stack(of_epoch).mean(0)
    error = ((whole.var(0) + parts.var(0)) / 100).sqrt()
    assert ((whole.mean(0) - parts.mean(0)).abs() <= 4.5 * error + 1e-9).all()
    # Batches that were scaled by 7 / 3, the short one by 7, would be off by far more.
    assert error[0] < 0.05 * whole[:, 0].mean().abs()


def test_what_is_outside_of_the_plate_is_not_scaled() -> None:
    """Three times the rows, less once the rows, leaves the divergence of u, in closed form."""
    pair, objective = Hierarchy(), ImportanceWeighted(3)
    once, three = (same_draws(pair, X, objective, scale) for scale in (None, ScalePlate("data", 3)))
    q = Normal(pair.loc, pair.log_scale_u.exp())
    outside = -torch.distributions.kl_divergence(q, Normal(0.0, 1.0))
    truth = torch.cat([outside.detach().reshape(1), gradient(outside, pair)])
    torch.testing.assert_close(1.5 * once - 0.5 * three, truth)


def test_scales_inside_of_the_logarithm_exceed_the_evidence() -> None:
    """The negative control: Pyro's RenyiELBO takes the logarithm of scaled sums over all rows."""
    x = torch.linspace(-2.0, 2.0, 8)
    pair = Rows()
    batches = MiniBatches({"x": x}, ("x",), "data", 8, 1)
    pyros = RenyiELBO(alpha=0.0, num_particles=20)
    wrong, right = [], []
    for batch in batches.epoch():
        target = PairObjective(pair, batch, 8, batches.scale, objective=ImportanceWeighted(20))
        losses = []
        for _ in range(8):
            with AnswerParams(pair), batches.scale:
                losses.append(-pyros.loss(pair.model, pair.guide, **batch))
        wrong.append(sum(losses) / 8)
        right.append(-target.loss(batch).item())
    evidence = pair.evidence(x).item()
    assert sum(wrong) / 8 > evidence + 1.0
    assert evidence - 1.5 < sum(right) / 8 < evidence + 0.5


class Weighted(Rows):
    """Rows that count several times, and rows that are masked."""

    def __init__(self, weight: Any = 1.0, mask: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.mask = mask

    def model(self, x: torch.Tensor) -> None:
        with poutine.scale(scale=self.weight), poutine.mask(mask=self._mask(x)):
            super().model(x)

    def guide(self, x: torch.Tensor) -> None:
        with poutine.scale(scale=self.weight), poutine.mask(mask=self._mask(x)):
            super().guide(x)

    def _mask(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(x), dtype=torch.bool) if self.mask is None else self.mask


def same_draws(
    pair: Pair,
    x: torch.Tensor,
    objective: Objective,
    scale: ScalePlate | None = None,
    *,
    analytic: bool = True,
) -> torch.Tensor:
    """Return one estimate of bound and gradient, by the same noise for all pairs."""
    target = PairObjective(pair, {"x": x}, 1, scale, objective)
    assert target.bound is not None
    target.bound.analytic = analytic
    pyro.set_rng_seed(4)
    bound = -target.loss({"x": x})
    return torch.cat([bound.detach().reshape(1), gradient(bound, pair)])


@pytest.mark.parametrize("objective", [ImportanceWeighted(4), Renyi(0.3, 4)], ids=str)
def test_weights_of_rows_stay_outside_of_the_logarithm(objective: Objective) -> None:
    plain = same_draws(Rows(), X, objective)
    torch.testing.assert_close(same_draws(Weighted(3.0), X, objective), 3 * plain)
    each = torch.tensor([1.0, 0.5, 2.0])
    rows = [same_draws(Weighted(mask=torch.arange(3) == i), X, objective) for i in range(3)]
    torch.testing.assert_close(torch.stack(rows).sum(0), plain)
    weighted = (each.unsqueeze(-1) * torch.stack(rows)).sum(0)
    torch.testing.assert_close(same_draws(Weighted(each), X, objective), weighted)
    assert all(row[0].abs() > 0.1 for row in rows)


def test_masked_rows_have_no_say() -> None:
    pair = Weighted(mask=torch.tensor([True, False, True]))
    objective = ImportanceWeighted(4)
    other = X.clone()
    other[1] = 100.0
    torch.testing.assert_close(same_draws(pair, X, objective), same_draws(pair, other, objective))


def test_a_weight_of_one_site_tempers_its_density() -> None:
    """The likelihood twice: the bound of rows whose two observations agree."""

    class Tempered(Rows):
        def model(self, x: torch.Tensor) -> None:
            with self.rows(x):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
                with poutine.scale(scale=2.0):
                    pyro.sample("x", dist.Normal(self.w * z, NOISE), obs=x)

    class Twice(Rows):
        def model(self, x: torch.Tensor) -> None:
            with self.rows(x):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
                for name in ("x", "again"):
                    pyro.sample(name, dist.Normal(self.w * z, NOISE), obs=x)

    objective = ImportanceWeighted(4)
    tempered, twice = (same_draws(pair, X, objective) for pair in (Tempered(), Twice()))
    torch.testing.assert_close(tempered, twice)


def test_the_doubly_reparametrised_gradient_against_the_bounds_own() -> None:
    """Less noise, and a signal-to-noise ratio that does not fall with k (Tucker et al. 2019)."""

    def ratio(k: int, doubly: bool) -> tuple[torch.Tensor, torch.Tensor]:
        pair, data = Rows(), {"x": X}
        target = PairObjective(pair, data, 1, objective=ImportanceWeighted(k))
        assert target.bound is not None
        assert target.bound.doubly
        target.bound.doubly = doubly
        found = torch.stack([gradient(target.loss(data), pair) for _ in range(120)])[:, 1:]
        return found.mean(0).abs() / found.std(0), found.std(0)

    pyro.set_rng_seed(1)
    (few, _), (lots, lots_sd) = ratio(2, True), ratio(128, True)
    (own_few, _), (own_lots, own_sd) = ratio(2, False), ratio(128, False)
    assert (lots_sd < 0.7 * own_sd).all()
    assert (own_lots < 0.6 * own_few).all()
    assert (lots > 0.8 * few).all()


def test_sticking_the_landing_has_no_noise_at_the_posterior() -> None:
    pair = Rows()
    with torch.no_grad():
        precision = 1 + pair.w**2 / NOISE**2
        pair.slope.copy_(pair.w / NOISE**2 / precision)
        pair.log_scale.copy_(-0.5 * precision.log())
    of_guide = slice(2, None)
    sticking = estimates(pair, {"x": X}, ELBO(sticking=True), 20)[:, of_guide]
    ordinary = estimates(pair, {"x": X}, ELBO(), 200)[:, of_guide]
    assert sticking.abs().max() < 1e-10
    assert ordinary.std(0).min() > 0.1
    assert_mean(ordinary, torch.zeros(2))


def test_particles_are_independent_estimates() -> None:
    for objective in (ELBO(sticking=True), ImportanceWeighted(2)):
        sds = []
        for particles in (1, 25):
            target = PairObjective(Rows(), {"x": X}, particles, objective=objective)
            sds.append(torch.stack([target.loss({"x": X}).detach() for _ in range(30)]).std())
        # A ratio of 5, with a relative error of 0.18: the sd of 30 normals has one of 0.13.
        assert 2.5 < sds[0] / sds[1] < 10


def test_sticking_the_landing_has_the_elbos_gradient() -> None:
    pair: Pair = Rows()
    exact = exact_rows(pair, 1.0)
    truth = torch.cat([exact.detach().reshape(1), gradient(exact, pair)])
    assert_mean(estimates(pair, {"x": many(X)}, ELBO(sticking=True), 40) / 400, truth)
    pair = Hierarchy()
    exact = exact_hierarchy(pair, 1.0)
    truth = torch.cat([exact.detach().reshape(1), gradient(exact, pair)])
    assert_mean(estimates(pair, {"x": X}, ELBO(sticking=True), 200), truth)


@pytest.mark.parametrize("sticking", [False, True])
def test_the_weight_of_the_kl_part(sticking: bool) -> None:
    """E log p(x|z) - beta KL, in closed form, and by the share of the steps that are done."""
    pair = Rows()
    q = Normal(pair.slope * X, pair.log_scale.exp())
    closed = torch.distributions.kl_divergence(q, Normal(0.0, 1.0)).sum()
    misfit = (X - pair.w * q.loc) ** 2 + pair.w**2 * q.scale**2
    fit = (-0.5 * misfit / NOISE**2 - math.log(NOISE) - 0.5 * math.log(2 * math.pi)).sum()
    data = {"x": many(X)}
    for beta, progress, weight in ((0.25, 1.0, 0.25), (lambda done: 2 * done, 0.75, 1.5)):
        target = PairObjective(pair, data, 1, objective=ELBO(beta, sticking=sticking))
        found = []
        for _ in range(60):
            bound = -target.loss(data, progress) / 400
            found.append(torch.cat([bound.detach().reshape(1), gradient(bound, pair)]))
        exact = fit - weight * closed
        slopes = torch.autograd.grad(exact, list(pair.parameters()), retain_graph=True)
        truth = torch.stack([exact.detach(), *slopes])
        assert_mean(torch.stack(found), truth)
        elbo = torch.stack([-target.negative_elbo(data).detach() / 400 for _ in range(60)])
        assert_mean(elbo.unsqueeze(-1), (fit - closed).detach().reshape(1))


def exact_wake_sleep(pair: Helmholtz) -> torch.Tensor:
    """Return expected value and update for k = 2, over all sixteen pairs of states."""
    total = torch.zeros(1 + sum(p.numel() for p in pair.parameters()))
    for a, b in itertools.product(range(4), repeat=2):
        log_p, log_q = pair.log_densities(PIXELS)
        chance = (log_q[a] + log_q[b]).exp().detach()
        both_p, both_q = log_p[[a, b]], log_q[[a, b]]
        weights = (both_p - both_q).softmax(0).detach()
        followed = (chance * (weights * (both_p + both_q)).sum(0)).sum()
        value = (chance * of_order((both_p - both_q).detach(), 0.0)).sum()
        total += torch.cat([value.reshape(1), gradient(followed, pair)])
    return total


def test_reweighted_wake_sleep_against_enumeration() -> None:
    pair = Helmholtz()
    data = {"x": PIXELS.repeat(100, 1)}
    found = estimates(pair, data, ReweightedWakeSleep(2), 60) / 100
    assert_mean(found, exact_wake_sleep(pair))
    evidence = pair.log_densities(PIXELS)[0].logsumexp(0).sum()
    assert exact_wake_sleep(pair)[0] < evidence - 0.05
    # The gap of k draws, to the first order in 1 / k: half the relative variance of the weights.
    log_p, log_q = pair.log_densities(PIXELS)
    squares = (2 * log_p - log_q).logsumexp(0) - 2 * log_p.logsumexp(0)
    gap = (squares.exp() - 1).sum() / 200
    lots = estimates(pair, data, ReweightedWakeSleep(100), 20)[:, :1] / 100
    assert 0.03 < gap < 0.1
    assert_mean(lots, (evidence - gap).detach().reshape(1))


def test_wake_sleep_of_a_hierarchy_lets_no_gradient_through_draws() -> None:
    """Both sites are reparametrised: the update must not differ from that of densities alone."""

    class Deep(Rows):
        def model(self, x: torch.Tensor) -> None:
            with self.rows(x):
                top = pyro.sample("top", dist.Normal(torch.zeros(len(x)), 1.0))
                z = pyro.sample("z", dist.Normal(top, 1.0))
                pyro.sample("x", dist.Normal(self.w * z, NOISE), obs=x)

        def guide(self, x: torch.Tensor) -> None:
            with self.rows(x):
                top = pyro.sample("top", dist.Normal(self.slope * x, 1.0))
                pyro.sample("z", dist.Normal(top, self.log_scale.exp()))

    pair, objective = Deep(), ReweightedWakeSleep(6)
    found = same_draws(pair, X, objective)
    pyro.set_rng_seed(4)
    noise = [torch.randn(6, 3) for _ in range(2)]
    with torch.no_grad():
        top = pair.slope * X + noise[0]
        z = top + pair.log_scale.exp() * noise[1]
    log_p = Normal(0.0, 1.0).log_prob(top) + Normal(top, 1.0).log_prob(z)
    log_p = log_p + Normal(pair.w * z, NOISE).log_prob(X)
    log_q = Normal(pair.slope * X, 1.0).log_prob(top)
    log_q = log_q + Normal(top, pair.log_scale.exp()).log_prob(z)
    weights = (log_p - log_q).softmax(0).detach()
    update = gradient((weights * (log_p + log_q)).sum(), pair)
    torch.testing.assert_close(found[1:], update)


class Enumerated(Pair):
    """A weight p of two components, whose assignments are summed out: 12 points."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = number(0.2)
        self.log_scale = number(-0.1)
        self.distance = number(1.1)

    def model(self, y: torch.Tensor) -> None:
        logit = pyro.sample("logit", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Bernoulli(logits=logit))
            pyro.sample("y", dist.Normal(self.distance * (2 * k - 1), 1.0), obs=y)

    def guide(self, y: torch.Tensor) -> None:
        pyro.sample("logit", dist.Normal(self.loc, self.log_scale.exp()))

    def log_weight(self, y: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
        logit = logit.unsqueeze(-1)
        ends = [
            nn.functional.logsigmoid(sign * logit) + Normal(sign * self.distance, 1.0).log_prob(y)
            for sign in (-1, 1)
        ]
        prior = Normal(0.0, 1.0).log_prob(logit[..., 0])
        q = Normal(self.loc, self.log_scale.exp()).log_prob(logit[..., 0])
        return torch.logaddexp(*ends).sum(-1) + prior - q


Y = torch.tensor([-1.2, -0.7, -2.0, 0.3, -1.5, 1.8, -0.9, 0.1, 1.1, -1.4, -0.2, -2.2])


@pytest.mark.parametrize(
    "objective", [ELBO(), ELBO(sticking=True), ImportanceWeighted(2), Renyi(0.5, 2)], ids=str
)
def test_summed_out_latents_against_quadrature(objective: Objective) -> None:
    pair, y = Enumerated(), Y.double()
    noise, weights = hermite(60, 2)
    logits = pair.loc + pair.log_scale.exp() * noise
    exact = (weights * of_order(pair.log_weight(y, logits), objective.alpha)).sum()
    truth = torch.cat([exact.detach().reshape(1), gradient(exact, pair)])
    assert_mean(estimates(pair, {"y": y}, objective, 150), truth)


def test_summed_out_latents_of_rows() -> None:
    """A local class is summed out under each row's own logarithm, the latent above it outside."""

    class Classes(Hierarchy):
        def model(self, x: torch.Tensor) -> None:
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                k = pyro.sample("k", dist.Bernoulli(0.3 * torch.ones(len(x))))
                z = pyro.sample("z", dist.Normal(k + u, 1.0))
                pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    class ByHand(Hierarchy):
        def model(self, x: torch.Tensor) -> None:
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(u, 1.0))
                # From N(u, 1) to 0.7 N(u, 1) + 0.3 N(u + 1, 1).
                pyro.factor("mixing", torch.log(0.7 + 0.3 * (z - u - 0.5).exp()))
                pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    for scale in (None, ScalePlate("data", 3)):
        classes, by_hand = (
            same_draws(pair, X, ImportanceWeighted(4), scale, analytic=False)
            for pair in (Classes(), ByHand())
        )
        torch.testing.assert_close(classes, by_hand)


def chain(kind: str) -> Pair:
    """Return a pair whose guide is of the kind named, with two latents, one above the other."""

    class Chain(Rows):
        def model(self, x: torch.Tensor) -> None:
            with self.rows(x):
                top = pyro.sample("top", dist.Normal(torch.zeros(len(x)), 1.0))
                z = pyro.sample("z", dist.Normal(top, 1.0))
                if kind == "branch" and not isinstance(z.sum().item(), float):
                    raise AssertionError
                pyro.sample("x", dist.Normal(self.w * z, NOISE), obs=x)

        def guide(self, x: torch.Tensor) -> None:
            with self.rows(x):
                if kind == "delta":
                    name = {"infer": {"is_auxiliary": True}}
                    noise = pyro.sample("noise", dist.Normal(torch.zeros(len(x)), 1.0), **name)
                    top = self.slope * x + self.log_scale.exp() * noise
                    density = -self.log_scale.expand(len(x))
                    pyro.sample("top", dist.Delta(top, log_density=density))
                else:
                    top = pyro.sample("top", dist.Normal(self.slope * x, self.log_scale.exp()))
                shared = self.w if kind == "shared" else 0.5
                pyro.sample("z", dist.Normal(shared * (top + self.slope), 0.8))

    return Chain()


@pytest.mark.parametrize("kind", ["plain", "shared", "delta", "branch"])
def test_latents_above_others_against_a_simulated_bound(kind: str) -> None:
    """The gradient of both estimators, against that of the plain bound of very many draws.

    "shared": a parameter of both model and guide; "delta": a guide that makes its draws from
    noise; "branch": a model that reads a number, and has to be run draw by draw.
    """
    pair = chain(kind)
    k, data = 3, {"x": X.repeat(20)}
    objective = Renyi(0.4, k)
    found = estimates(pair, data, objective, 60) / 20
    target = PairObjective(pair, data, 1, objective=objective).bound
    assert target is not None
    assert target.doubly is (kind != "delta")
    assert target.batched is (kind != "branch")
    pyro.set_rng_seed(9)
    simulated = []
    for _ in range(100):
        top = pair.slope * X + pair.log_scale.exp() * torch.randn(k, 200, 3)
        shared = pair.w if kind == "shared" else torch.tensor(0.5)
        z = shared * (top + pair.slope) + 0.8 * torch.randn(k, 200, 3)
        log_w = Normal(0.0, 1.0).log_prob(top) + Normal(top, 1.0).log_prob(z)
        log_w = log_w + Normal(pair.w * z, NOISE).log_prob(X)
        log_w = log_w - Normal(pair.slope * X, pair.log_scale.exp()).log_prob(top)
        log_w = log_w - Normal(shared * (top + pair.slope), 0.8).log_prob(z)
        bound = of_order(log_w, 0.4).mean(0).sum()
        simulated.append(torch.cat([bound.detach().reshape(1), gradient(bound, pair)]))
    truth = torch.stack(simulated)
    error = (found.var(0) / len(found) + truth.var(0) / len(truth)).sqrt()
    assert ((found.mean(0) - truth.mean(0)).abs() <= 4.5 * error + 1e-9).all()


def test_a_guide_with_noise_of_its_own_gets_the_ordinary_gradient() -> None:
    """A second run of it would have another density: by it the bound would be wrong."""

    class Dropout(Rows):
        def guide(self, x: torch.Tensor) -> None:
            with self.rows(x):
                slope = self.slope * (torch.rand(len(x)) < 0.5)
                pyro.sample("z", dist.Normal(slope * x, self.log_scale.exp()))

    pair = Dropout()
    target = PairObjective(pair, {"x": X}, 1, objective=ImportanceWeighted(2))
    assert target.bound is not None
    assert not target.bound.doubly
    found = estimates(pair, {"x": many(X)}, ImportanceWeighted(2), 40)[:, 0] / 400
    assert found.mean() < pair.evidence(X)


def test_rows_that_a_plate_draws_are_the_same_for_all() -> None:
    """Model and guide have to see the rows that one of them drew, and every draw of k the same."""

    class Drawn(Rows):
        def model(self, x: torch.Tensor) -> None:
            with pyro.plate("data", len(x), subsample_size=2) as rows:
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))
                pyro.sample("x", dist.Normal(self.w * z, NOISE), obs=x[rows])

        def guide(self, x: torch.Tensor) -> None:
            with pyro.plate("data", len(x), subsample_size=2) as rows:
                pyro.sample("z", dist.Normal(self.slope * x[rows], self.log_scale.exp()))

    pair = Drawn()
    for objective in (ELBO(), ImportanceWeighted(2)):
        exact = exact_rows(pair, objective.alpha)
        truth = torch.cat([exact.detach().reshape(1), gradient(exact, pair)])
        assert_mean(estimates(pair, {"x": X}, objective, 300), truth)


@pytest.mark.parametrize(
    "objective",
    [ELBO(sticking=True), ImportanceWeighted(2), Renyi(0.5, 2), ReweightedWakeSleep(2)],
    ids=str,
)
@pytest.mark.parametrize("family", ["mean_field", "full_rank"])
def test_a_gaussian_guide_against_quadrature(family: Any, objective: Objective) -> None:
    """All latents are under one logarithm; the log density is that of a correlated normal."""

    def model(y: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(), 0.9), obs=y)

    y = torch.tensor(1.2)
    density = LogDensity(model, {"y": y})
    guide = GaussianGuide(2, family)
    with torch.no_grad():
        guide.loc.copy_(torch.tensor([0.3, 0.6]))
        guide.log_scale.fill_(-0.4)
    noise, weights = hermite(12, 4)
    draws = guide.loc + noise.reshape(2, 2, -1).mT @ guide.scale_tril.mT
    wake = isinstance(objective, ReweightedWakeSleep)
    at = draws.detach() if wake else draws
    log_p = Normal(0.0, 1.0).log_prob(at).sum(-1) + Normal(at.sum(-1), 0.9).log_prob(y)
    log_q = torch.stack([guide.log_prob(one) for one in at])
    exact = (weights * of_order(log_p - log_q, objective.alpha)).sum()
    followed = exact
    if wake:
        share = (log_p - log_q).softmax(0).detach()
        followed = (weights * (share * (log_p + log_q)).sum(0)).sum()
    truth = torch.cat([exact.detach().reshape(1), gradient(followed, guide)])
    target = GaussianObjective(density, guide, 50, objective=objective)
    found = []
    for _ in range(60):
        bound = -target.loss(None)
        found.append(torch.cat([bound.detach().reshape(1), gradient(bound, guide)]))
    assert_mean(torch.stack(found), truth)


class Globals(Pair):
    """A latent for all rows, and none inside of the plate."""

    def model(self, x: torch.Tensor) -> None:
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(u, 1.0), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        pyro.sample("u", dist.Normal(0.0, 1.0))


class Collected(Rows):
    """What is observed outside of the plate depends on the latents inside."""

    def model(self, x: torch.Tensor) -> None:
        with self.rows(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(self.w * z, NOISE), obs=x)
        pyro.factor("total", -(z.sum() ** 2))


class InnerRows(Rows):
    """Pixels of which each step sees a part."""

    def model(self, x: torch.Tensor) -> None:
        with self.rows(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(self.w * z, NOISE), obs=x)
            with pyro.plate("pixels", 10, subsample_size=2, dim=-2):
                pyro.sample("pixel", dist.Normal(z, 1.0), obs=torch.zeros(2, len(x)))


class Mixed(Hierarchy):
    """A latent outside of the plate, a discrete one inside."""

    def model(self, x: torch.Tensor) -> None:
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5 * torch.ones(len(x))))
            pyro.sample("x", dist.Normal(u + k, NOISE), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        pyro.sample("u", dist.Normal(self.loc, self.log_scale_u.exp()))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=self.slope * x))


BATCHES = ScalePlate("data", 4)


@pytest.mark.parametrize(
    ("kind", "objective", "scale", "message"),
    [
        (Globals, ImportanceWeighted(), BATCHES, "no latent in the mini-batched plate 'data'"),
        (Collected, ImportanceWeighted(), BATCHES, r"outside of plate 'data' \(total\) depends"),
        (InnerRows, Renyi(), None, "plate 'pixels': expected all of its rows"),
        (Helmholtz, ImportanceWeighted(), None, "site 'z': .*Take objective=ReweightedWakeSleep"),
        (Helmholtz, ELBO(sticking=True), None, "site 'z': expected draws that gradients"),
        (Mixed, ReweightedWakeSleep(), None, "site 'u': expected all latents.*inside of plate"),
    ],
)
def test_what_is_no_bound_is_refused(
    kind: type[Pair], objective: Objective, scale: ScalePlate | None, message: str
) -> None:
    x = PIXELS if kind is Helmholtz else X
    with pytest.raises(ValueError, match=message):
        PairObjective(kind(), {"x": x}, 1, scale, objective)


def test_with_all_of_the_data_latents_are_weighed_together_where_rows_cannot_be() -> None:
    for pair in (Globals(), Collected()):
        target = PairObjective(pair, {"x": X}, 1, objective=ImportanceWeighted(4))
        assert target.bound is not None
        assert target.bound.plate is None
    found = estimates(Globals(), {"x": X}, ImportanceWeighted(500), 20)
    covariance = torch.eye(3) + 1.0
    evidence = torch.distributions.MultivariateNormal(torch.zeros(3), covariance).log_prob(X)
    assert found[:, 0].mean() == pytest.approx(evidence.item(), abs=0.05)
