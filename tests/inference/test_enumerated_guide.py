"""Discrete sites of the guide that ask for the exact sum, against enumeration by hand."""

import itertools
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import nn

import ppl_gen as pg
from ppl_gen import Pair
from ppl_gen.core import SiteError
from ppl_gen.core.minibatch import ScalePlate
from ppl_gen.core.scope import default_dtype
from ppl_gen.inference import SVI, ImportanceWeighted
from ppl_gen.inference.elbo import ReparametrisedELBO
from ppl_gen.inference.objectives import PairObjective

X = torch.tensor([0.4, -1.5, 2.2, 0.1], dtype=torch.float64)
SUM: dict[str, Any] = {"enumerate": "parallel"}


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with default_dtype(torch.float64):
        yield


def normal(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


class Chain(Pair):
    """A class for all rows, and two for each row, the second given both others: no continuous one.

    u ~ Cat(2); a_i | u ~ Cat(3), b_i | a_i, u ~ Cat(2), x_i ~ N(loc[a_i, b_i], 1).
    """

    def __init__(self, infer: dict[str, Any] | None = None, mask: Any = True) -> None:
        super().__init__()
        self.infer, self.mask = SUM if infer is None else infer, mask
        self.top = normal(2, seed=1)
        self.a, self.b, self.loc = normal(2, 3, seed=2), normal(2, 3, 2, seed=3), normal(3, 2)
        self.q_top = normal(2, seed=4)
        self.q_a, self.q_b = normal(2, 3, seed=5), normal(2, 3, 2, seed=6)

    def model(self, x: torch.Tensor) -> None:
        u = pyro.sample("u", dist.Categorical(logits=self.top))
        with pyro.plate("data", len(x)), poutine.mask(mask=self.mask):
            a = pyro.sample("a", dist.Categorical(logits=self.a[u]))
            b = pyro.sample("b", dist.Categorical(logits=self.b[u, a]))
            pyro.sample("x", dist.Normal(self.loc[a, b], 1.0), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        u = pyro.sample("u", dist.Categorical(logits=self.q_top), infer=dict(self.infer))
        with pyro.plate("data", len(x)), poutine.mask(mask=self.mask):
            logits = self.q_a[u] + x.sign().unsqueeze(-1) * self.q_a[0]
            a = pyro.sample("a", dist.Categorical(logits=logits), infer=dict(self.infer))
            pyro.sample("b", dist.Categorical(logits=self.q_b[u, a]), infer=dict(self.infer))

    def bound(self, x: torch.Tensor, rows: torch.Tensor | float = 1.0) -> torch.Tensor:
        """Return the bound by loops over all values; each row counts `rows` times."""
        log_q_u, log_p_u = self.q_top.log_softmax(-1), self.top.log_softmax(-1)
        total = torch.zeros(())
        for u in range(2):
            of_rows = torch.zeros(len(x))
            log_q_a = (self.q_a[u] + x.sign().unsqueeze(-1) * self.q_a[0]).log_softmax(-1)
            for a, b in itertools.product(range(3), range(2)):
                log_q = log_q_a[:, a] + self.q_b[u, a].log_softmax(-1)[b]
                log_p = self.a[u].log_softmax(-1)[a] + self.b[u, a].log_softmax(-1)[b]
                log_p = log_p + torch.distributions.Normal(self.loc[a, b], 1.0).log_prob(x)
                of_rows = of_rows + log_q.exp() * (log_p - log_q)
            total = total + log_q_u[u].exp() * (log_p_u[u] - log_q_u[u] + (rows * of_rows).sum())
        return total


def with_gradient(value: torch.Tensor, pair: nn.Module) -> list[torch.Tensor]:
    return [value.detach(), *torch.autograd.grad(value, list(pair.parameters()))]


@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("scale", [None, 3.0])
def test_the_bound_and_its_gradient_are_exact(scale: float | None, analytic: bool) -> None:
    pair = Chain()
    target = PairObjective(pair, {"x": X}, 1, None if scale is None else ScalePlate("data", scale))
    assert isinstance(target.elbo, ReparametrisedELBO)
    target.elbo.analytic = analytic
    found = with_gradient(-target.loss({"x": X}), pair)
    expected = with_gradient(pair.bound(X, scale or 1.0), pair)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert all(bool((gradient != 0).all()) for gradient in expected)


def test_without_the_mark_it_is_an_estimate() -> None:
    """The negative control: values that are drawn give another number each time."""
    pair = Chain(infer={})
    target = PairObjective(pair, {"x": X}, 1)
    assert isinstance(target.elbo, Trace_ELBO)
    losses = torch.stack([-target.loss({"x": X}).detach() for _ in range(20)])
    assert bool(((losses - pair.bound(X)).abs() > 1e-3).all())


def test_masked_rows_have_no_say() -> None:
    keep = torch.tensor([True, False, True, True])
    pair = Chain(mask=keep)
    found = with_gradient(-PairObjective(pair, {"x": X}, 1).loss({"x": X}), pair)
    torch.testing.assert_close(found, with_gradient(pair.bound(X, keep.double()), pair))


class Clusters(Chain):
    """A class and a continuous latent for each row: z_i | a_i ~ N(loc[a_i], 1), x_i ~ N(z_i, 1)."""

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=self.a[0]))
            z = pyro.sample("z", dist.Normal(self.loc[a, 0], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            logits = self.q_a[1] + x.unsqueeze(-1) * self.q_a[0]
            a = pyro.sample("a", dist.Categorical(logits=logits), infer=dict(self.infer))
            pyro.sample("z", dist.Normal(0.4 * x + self.q_b[0, a, 0], 0.8))


def test_latents_given_the_class_draw_for_draw() -> None:
    pair = Clusters()
    target = PairObjective(pair, {"x": X}, 1)
    torch.manual_seed(3)
    found = target.loss({"x": X})
    torch.manual_seed(3)
    noise = torch.randn(3, 4)
    probs = (pair.q_a[1] + X.unsqueeze(-1) * pair.q_a[0]).softmax(-1).T
    loc = 0.4 * X + pair.q_b[0, :, :1]
    terms = torch.distributions.Normal(loc + 0.8 * noise, 1.0).log_prob(X)
    q, p = (torch.distributions.Normal(m, s) for m, s in ((loc, 0.8), (pair.loc[:, :1], 1.0)))
    terms = terms - torch.distributions.kl_divergence(q, p)
    terms = terms + pair.a[0].log_softmax(-1).unsqueeze(-1) - probs.log()
    torch.testing.assert_close(found, -(probs * terms).sum())


def test_it_agrees_with_pyros_estimator_on_average() -> None:
    pair, rows = Clusters(), X.repeat(25)
    ours, theirs = PairObjective(pair, {"x": X}, 1).elbo, TraceEnum_ELBO(max_plate_nesting=1)
    found = {}
    for name, elbo in (("ours", ours), ("theirs", theirs)):
        losses = [elbo.differentiable_loss(pair.model, pair.guide, x=rows) for _ in range(60)]
        values = torch.stack(losses).detach()
        found[name] = values.mean(), values.std() / 60**0.5
    (a, a_error), (b, b_error) = found.values()
    assert (a - b).abs() < 4.5 * (a_error**2 + b_error**2).sqrt()
    assert a_error < b_error, "the exact divergence makes less noise"


def test_a_value_of_no_probability_has_no_say() -> None:
    class Sure(Clusters):
        def guide(self, x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                logits = torch.tensor([0.0, -torch.inf, -torch.inf])
                a = pyro.sample("a", dist.Categorical(logits=logits), infer=dict(SUM))
                # Of the classes that cannot be, the model says what is not finite.
                pyro.sample("z", dist.Normal(torch.where(a == 0, x, torch.inf), 0.8))

    target = PairObjective(Sure(), {"x": X}, 1)
    with pyro.validation_enabled(False):
        assert bool(target.loss({"x": X}).isfinite())


def test_which_bound_is_taken() -> None:
    class Drawn(Clusters):
        """One class is summed out, the other is drawn."""

        def model(self, x: torch.Tensor) -> None:
            pyro.sample("u", dist.Categorical(logits=self.top))
            super().model(x)

        def guide(self, x: torch.Tensor) -> None:
            pyro.sample("u", dist.Categorical(logits=self.q_top))
            super().guide(x)

    class Markov(Chain):
        """Sites that take turns on two axes."""

        def model(self, x: torch.Tensor) -> None:
            state = torch.tensor(0)
            for t in pyro.markov(range(4)):
                logits = self.a[:, :2][state]
                state = pyro.sample(f"s{t}", dist.Categorical(logits=logits))
                pyro.sample(f"x{t}", dist.Normal(self.loc[state, 0], 1.0), obs=x[t])

        def guide(self, x: torch.Tensor) -> None:
            state = torch.tensor(0)
            for t in pyro.markov(range(4)):
                logits = self.q_a[:, :2][state]
                state = pyro.sample(f"s{t}", dist.Categorical(logits=logits), infer=dict(SUM))

    for pair in (Drawn(), Markov()):
        target = PairObjective(pair, {"x": X}, 1)
        assert isinstance(target.elbo, TraceEnum_ELBO)
        assert bool(target.loss({"x": X}).isfinite())


def test_check_and_fit_go_through() -> None:
    assert pg.check(Chain(), {"x": X.float()}).problems == ()
    found = pg.fit(Chain(), {"x": X}, SVI(guide="pair", steps=3, draws=5), progress=False)
    assert set(found.latents) == {"u", "a", "b"}


def test_sites_that_cannot_be_summed_over() -> None:
    class Endless(Chain):
        def model(self, x: torch.Tensor) -> None:
            pyro.sample("n", dist.Poisson(2.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.loc[0, 0], 1.0), obs=x)

        def guide(self, x: torch.Tensor) -> None:
            pyro.sample("n", dist.Poisson(self.q_top.exp()[0]), infer=dict(SUM))

    with pytest.raises(SiteError, match=r"site 'n': expected .* finitely many .* got Poisson"):
        PairObjective(Endless(), {"x": X}, 1)

    class Above(Chain):
        """The sum over rows of a class that each of them has: 3^4 combinations."""

        def model(self, x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Categorical(logits=self.a[0]))
            pyro.sample("x", dist.Normal(a.double().sum(-1, keepdim=True), 1.0), obs=x[0])

        def guide(self, x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("a", dist.Categorical(logits=self.q_a[0]), infer=dict(SUM))

    with pytest.raises(ValueError, match="'x' depends on 'a', and is outside of its plate 'data'"):
        PairObjective(Above(), {"x": X}, 1).loss({"x": X})

    with pytest.raises(SiteError, match="draws that gradients can pass through"):
        PairObjective(Clusters(), {"x": X}, 1, objective=ImportanceWeighted(2))
