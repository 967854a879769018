"""The bound of reparametrised guides against Pyro's own estimators, draw for draw."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from ppl_gen import Pair
from ppl_gen.inference.elbo import ReparametrisedELBO
from ppl_gen.inference.objectives import PairObjective
from ppl_gen.inference.together import run_together


class Hierarchy(Pair):
    """A global latent, a local one, masks and scales: each kind of term that a bound has."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.3))
        self.slope = nn.Parameter(torch.tensor(0.7))

    def model(self, y: torch.Tensor) -> None:
        top = pyro.sample("top", dist.LogNormal(0.0, 1.0))
        pyro.factor("tilt", -0.1 * top)
        with pyro.plate("data", len(y)), poutine.scale(scale=2.0):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(y), 2), top).to_event(1))
            with poutine.mask(mask=y > 0):
                pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)

    def guide(self, y: torch.Tensor) -> None:
        pyro.sample("top", dist.LogNormal(self.loc, 0.2))
        with pyro.plate("data", len(y)), poutine.scale(scale=2.0):
            loc = self.slope * y.unsqueeze(-1).expand(-1, 2)
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))


Y = torch.tensor([1.0, -2.0, 0.5])


def loss_and_gradient(elbo: Any, pair: Pair) -> list[torch.Tensor]:
    torch.manual_seed(5)
    loss = elbo.differentiable_loss(pair.model, pair.guide, y=Y)
    return [loss.detach(), *torch.autograd.grad(loss, list(pair.parameters()))]


@pytest.mark.parametrize(("analytic", "pyros"), [(True, TraceMeanField_ELBO), (False, Trace_ELBO)])
def test_it_equals_pyros_estimator(analytic: bool, pyros: Any) -> None:
    pair = Hierarchy()
    ours = loss_and_gradient(ReparametrisedELBO(1, analytic=analytic), pair)
    theirs = loss_and_gradient(pyros(num_particles=1), pair)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


class Counted(Hierarchy):
    """Counts the runs of its model."""

    runs = 0

    def model(self, y: torch.Tensor) -> None:
        type(self).runs += 1
        super().model(y)


class ReadsANumber(Counted):
    def guide(self, y: torch.Tensor) -> None:
        super().guide(y)
        self.loc.detach().item()


class Branches(Counted):
    """What it does depends on a draw."""

    def model(self, y: torch.Tensor) -> None:
        type(self).runs += 1
        top = pyro.sample("top", dist.LogNormal(0.0, 1.0))
        sign = 1.0 if top > 1.2 else -1.0
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(torch.full((len(y), 2), sign), 1.0).to_event(1))


class Dropout(Counted):
    """Its guide gives another density in every run."""

    def guide(self, y: torch.Tensor) -> None:
        kept = torch.rand_like(self.slope)
        pyro.sample("top", dist.LogNormal(self.loc, 0.2))
        with pyro.plate("data", len(y)), poutine.scale(scale=2.0):
            loc = kept * self.slope * y.unsqueeze(-1).expand(-1, 2)
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))


@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize(
    ("kind", "batched"),
    [(Counted, True), (ReadsANumber, True), (Branches, False), (Dropout, False)],
)
def test_draws_at_once_where_that_gives_the_same(
    kind: type[Counted], batched: bool, analytic: bool
) -> None:
    pair, elbo = kind(), ReparametrisedELBO(3, analytic=analytic)
    noise = torch.get_rng_state()
    first = loss_and_gradient(elbo, pair)
    kind.runs = 0
    # To find out which it is takes no numbers of the generator.
    torch.testing.assert_close(first, loss_and_gradient(elbo, pair), rtol=0, atol=0)
    assert kind.runs == (1 if batched else 3)
    torch.manual_seed(5)
    if batched:
        run = partial(elbo._one, pair.model, pair.guide, {"y": Y})
        losses, draws = run_together(lambda: run({}), 3)
        alone = torch.stack([run({n: v[i] for n, v in draws.items()})[0] for i in range(3)]).mean()
        gradients = torch.autograd.grad(alone, list(pair.parameters()))
        torch.testing.assert_close(first, [alone.detach(), *gradients], rtol=1e-5, atol=1e-5)
        assert losses.std() > 1e-3
        assert all(value.shape[0] == 3 and value.std(0).min() > 0 for value in draws.values())
    torch.set_rng_state(noise)


def test_more_particles_have_less_noise() -> None:
    """The mean stays; the variance of a mean of eight is an eighth.

    The ratio of two variances of 400 normal numbers has a relative standard error of
    (2/400 + 2/400)**0.5 = 0.1; losses have heavier tails, so that 40 % is some three of them.
    """
    pair, values = Hierarchy(), {}
    for particles in (1, 8):
        elbo = ReparametrisedELBO(particles)
        torch.manual_seed(7)
        with torch.no_grad():
            values[particles] = torch.stack(
                [elbo.differentiable_loss(pair.model, pair.guide, y=Y) for _ in range(400)]
            )
    one, eight = values[1], values[8]
    error = (one.var() / 400 + eight.var() / 400).sqrt()
    assert (one.mean() - eight.mean()).abs() < 4 * error
    assert 0.6 < one.var() / (8 * eight.var()) < 1.4


def test_the_two_forms_differ_draw_for_draw_and_agree_on_average() -> None:
    pair = Hierarchy()
    analytic = loss_and_gradient(ReparametrisedELBO(1), pair)[0]
    sampled = loss_and_gradient(ReparametrisedELBO(1, analytic=False), pair)[0]
    assert (analytic - sampled).abs() > 1e-3
    many = {}
    for form in (True, False):
        elbo, losses = ReparametrisedELBO(1, analytic=form), []
        torch.manual_seed(6)
        with torch.no_grad():
            for _ in range(2000):
                losses.append(elbo.differentiable_loss(pair.model, pair.guide, y=Y))
        values = torch.stack(losses)
        many[form] = values.mean(), values.std() / 2000**0.5
    (a, a_error), (b, b_error) = many.values()
    assert (a - b).abs() < 4 * (a_error**2 + b_error**2).sqrt()


def test_which_bound_is_taken() -> None:
    class ScoreFunction(Hierarchy):
        def guide(self, y: torch.Tensor) -> None:
            with poutine.reparam(config={}):
                pyro.sample("top", dist.LogNormal(self.loc, 0.2).has_rsample_(False))
            with pyro.plate("data", len(y)):
                pyro.sample("z", dist.Normal(torch.zeros(len(y), 2), 0.5).to_event(1))

    class OtherOrder(Hierarchy):
        def guide(self, y: torch.Tensor) -> None:
            with pyro.plate("data", len(y)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(y), 2), 0.5).to_event(1))
            pyro.sample("top", dist.LogNormal(self.loc + z.mean(), 0.2))

    ours = PairObjective(Hierarchy(), {"y": Y}, 1).elbo
    assert isinstance(ours, ReparametrisedELBO)
    assert ours.analytic
    assert isinstance(PairObjective(ScoreFunction(), {"y": Y}, 1).elbo, Trace_ELBO)
    # The divergences of conditionals add up only in the order in which the model samples.
    other = PairObjective(OtherOrder(), {"y": Y}, 1).elbo
    assert isinstance(other, ReparametrisedELBO)
    assert not other.analytic
