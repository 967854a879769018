"""The bound of reparametrised guides against Pyro's own estimators, draw for draw."""

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


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize(("analytic", "pyros"), [(True, TraceMeanField_ELBO), (False, Trace_ELBO)])
def test_it_equals_pyros_estimator(particles: int, analytic: bool, pyros: Any) -> None:
    pair = Hierarchy()
    ours = loss_and_gradient(ReparametrisedELBO(particles, analytic=analytic), pair)
    theirs = loss_and_gradient(pyros(num_particles=particles), pair)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


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
