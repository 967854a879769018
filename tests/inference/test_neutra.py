"""NUTS on a flow's noise against posteriors whose moments are known."""

import dataclasses
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_gen import Posterior, fit
from ppl_gen.core import LogDensity
from ppl_gen.diagnostics import ess_bulk, mcse_mean, rhat
from ppl_gen.inference import SVI, NeuTra
from ppl_gen.inference.guides import FlowGuide
from ppl_gen.inference.neutra import FlowDensity


def banana() -> None:
    """E y = 1 / 4, Var y = 1 + Var(x^2) / 16 = 1.125."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x**2 / 4, 1.0))


def bent_guide() -> FlowGuide:
    """A small flow that bends at random: draws through it are right whatever it is worth."""
    guide = FlowGuide(2, layers=2, bins=4, hidden=8)
    generator = torch.Generator().manual_seed(5)
    for parameter in guide.bends.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    guide.loc.copy_(torch.tensor([0.2, 0.0]))
    guide.scale.copy_(torch.tensor([[0.8, 0.0], [0.3, 1.2]]))
    return guide


@pytest.fixture(scope="module")
def flow() -> Posterior:
    posterior = fit(banana, {}, SVI(guide="full_rank", draws=50), progress=False)
    return dataclasses.replace(posterior, guide=bent_guide())


def test_the_density_of_the_noise() -> None:
    """That of the vector times the determinant of the flow, by autograd; its gradient too."""
    density = LogDensity(banana, {})
    guide = bent_guide().requires_grad_(False)
    space = FlowDensity(density, guide)
    noise = torch.randn(3, 2, dtype=torch.float64).requires_grad_()
    found = space.log_prob(noise)

    def direct(one: torch.Tensor) -> torch.Tensor:
        jacobian = torch.func.jacrev(lambda z: guide(z.unsqueeze(0))[0])(one)
        return density.log_prob(guide(one.unsqueeze(0))[0]) + torch.linalg.slogdet(jacobian)[1]

    expected = torch.stack([direct(one) for one in noise])
    assert torch.allclose(found, expected)
    (slope,) = torch.autograd.grad(found.sum(), noise)
    (by_hand,) = torch.autograd.grad(expected.sum(), noise)
    assert torch.allclose(slope, by_hand)
    assert torch.allclose(space.log_prob(noise[0]), found[0])
    values = space.constrain(noise.detach())
    assert torch.equal(values["y"], density.constrain(guide(noise.detach()))["y"])


def test_a_banana(flow: Posterior) -> None:
    """Its moments within 5 standard errors: sd / sqrt(ess), of a variance 2 / ess."""
    posterior = fit(banana, {}, NeuTra(flow, chains=16, draws=60, warmup=60), progress=False)
    assert posterior.is_mcmc
    assert posterior.latents == ("x", "y")
    assert posterior["x"].shape == (16, 60)
    for site, mean, sd in (("x", 0.0, 1.0), ("y", 0.25, 1.125**0.5)):
        draws = posterior[site].numpy()
        assert float(rhat(draws)) < 1.1
        ess = float(ess_bulk(draws))
        assert ess > 150
        assert draws.mean() == pytest.approx(mean, abs=5 * sd / math.sqrt(ess))
        assert draws.var() == pytest.approx(sd**2, rel=5 * math.sqrt(3 / ess))
    assert not posterior.checkpoint
    with pytest.raises(ValueError, match="cannot be extended"):
        posterior.extend(10)
    assert set(posterior.sample_stats) >= {"lp", "diverging", "energy"}


def test_moments_through_a_trained_flow() -> None:
    """Of a banana too strong for any normal, y = x^2 + noise: products of x and y as well.

    Over 18 runs on a funnel, a banana and a correlated normal, 84 moments in all, the errors in
    units of their standard errors had an sd of .93, and 5 % were beyond 2.
    """

    def strong() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x**2, 1.0))

    trained = fit(strong, {}, SVI(guide="flow", draws=20), progress=False)
    posterior = fit(strong, {}, NeuTra(trained, draws=500, warmup=300), progress=False)
    assert posterior.provenance["engine"] == "compiled"
    x, y = (posterior[site].numpy() for site in "xy")
    assert float(rhat(y)) < 1.03
    # E x^2 y = E x^4 = 3, E y^2 = 3 + 1.
    for draws, mean in ((x, 0), (x**2, 1), (y, 1), (y**2, 4), (x * y, 0), (x**2 * y, 3)):
        assert draws.mean() == pytest.approx(mean, abs=4 * float(mcse_mean(draws)))


def test_bad_input(flow: Posterior) -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"expected one of 3 coordinates.*got one of 2"):
        fit(model, {}, NeuTra(flow), progress=False)
    plain = fit(banana, {}, SVI(draws=2), progress=False)
    with pytest.raises(TypeError, match='expected a posterior by SVI\\(guide="flow"\\)'):
        NeuTra(plain)
    wrong: Any = "flow"
    with pytest.raises(TypeError, match="got flow"):
        NeuTra(wrong)
    with pytest.raises(ValueError, match="chains: expected at least 1"):
        NeuTra(chains=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        NeuTra(target_accept=1.0)
