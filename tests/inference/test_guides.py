"""Guides: what they share, and weights of latents, which are no part of a bound."""

import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_gen as pg
from ppl_gen import Pair
from ppl_gen.inference import SVI
from ppl_gen.inference.guides import GaussianGuide, Unweighted
from ppl_gen.inference.vi.vector_guide import VectorGuide
from ppl_gen.models import VAE

Y = 2**0.5 * torch.randn(300, generator=torch.Generator().manual_seed(1))


class Weighed(Pair):
    """z_i ~ N(0, 1), y_i ~ N(z_i, 1), with a weight of the divergence from the prior."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.slope = nn.Parameter(torch.tensor(0.1))
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def model(self, y: torch.Tensor) -> None:
        with pyro.plate("data", len(y)):
            with pyro.poutine.scale(scale=self.beta):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(self, y: torch.Tensor) -> None:
        with pyro.plate("data", len(y)), pyro.poutine.scale(scale=self.beta):
            pyro.sample("z", dist.Normal(self.slope * y, self.log_scale.exp()))


@pytest.mark.parametrize("batch_size", [10, None])
def test_the_bound_of_a_weighed_pair_is_that_without_the_weight(batch_size: int | None) -> None:
    beta = 0.25
    steps = {"epochs": 30} if batch_size else {"steps": 600}
    method = SVI(guide="pair", batch_size=batch_size, learning_rate=0.05, draws=2000, **steps)  # type: ignore[arg-type]
    posterior = pg.fit(Weighed(beta), {"y": Y}, method, progress=False)
    assert posterior.pair is not None
    slope, log_scale = (p.detach().double() for _, p in posterior.pair.named_parameters())
    # The weight has its effect on the fit: the optimum of slope and variance is 1 / (1 + beta) and
    # beta / (1 + beta), where that of the bound itself is a half each.
    assert slope.item() == pytest.approx(0.8, abs=0.05)
    assert (2 * log_scale).exp().item() == pytest.approx(0.2, abs=0.05)
    y, variance = Y.double(), (2 * log_scale).exp()
    mean = slope * y
    fit = -0.5 * (math.log(2 * math.pi) + (y - mean) ** 2 + variance).sum()
    divergence = 0.5 * (variance + mean**2 - 1 - 2 * log_scale).sum()
    assert posterior.elbo is not None
    estimate, error = posterior.elbo
    # Its standard error is itself estimated, from 30 batches or 2,000 draws.
    assert estimate == pytest.approx(float(fit - divergence), abs=6 * error)
    # Negative control: with the weight it would be far above, and no bound.
    assert float((1 - beta) * divergence) > 20 * error


def test_the_bound_of_a_vae_is_that_of_its_own_terms() -> None:
    images = torch.rand(64, 4, 4, generator=torch.Generator().manual_seed(2))
    pair = VAE(image_shape=(4, 4), latent_size=2, hidden_sizes=(8,), beta=5.0)
    method = SVI(guide="pair", batch_size=4, epochs=2)
    posterior = pg.fit(pair, {"x": images}, method, progress=False)
    assert isinstance(posterior.pair, VAE)
    terms = [posterior.pair.elbo_terms(images, seed=seed) for seed in range(50)]
    sums = torch.stack([one.negative_elbo.sum() for one in terms])
    divergence = terms[0].kl.sum()
    assert posterior.elbo is not None
    estimate, error = posterior.elbo
    own = float(sums.std()) / math.sqrt(50)
    assert estimate == pytest.approx(-float(sums.mean()), abs=6 * math.hypot(error, own))
    assert float(4 * divergence) > 10 * math.hypot(error, own)


def test_what_a_plate_scales_stays() -> None:
    def model() -> None:
        with pyro.plate("rows", 10, subsample_size=5), pyro.poutine.scale(scale=3.0):
            pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("b", dist.Normal(0.0, 1.0))

    with Unweighted(["a"]):
        trace = pyro.poutine.trace(model).get_trace()
    assert trace.nodes["a"]["scale"] == 2.0
    assert trace.nodes["b"]["scale"] == 6.0


def test_a_gaussian_guide_comes_back_from_a_folder(tmp_path: Path) -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    before = pg.fit(model, {}, SVI(guide="full_rank", draws=10), progress=False)
    after = pg.load(before.save(tmp_path / "run"), pair=model)
    assert isinstance(after.guide, GaussianGuide)
    assert isinstance(after.guide, VectorGuide)
    mine, theirs = (posterior.sample(draws=5, seed=1) for posterior in (before, after))
    assert torch.equal(mine["x"], theirs["x"])
    assert mine.elbo == theirs.elbo
