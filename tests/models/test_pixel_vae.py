"""A VAE around a PixelCNN: likelihoods against quadrature, and whether its latents are used."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ppl_gen as pg
from ppl_gen.core import SiteError
from ppl_gen.distributions import Elements
from ppl_gen.inference import SVI
from ppl_gen.inference.objectives import PairObjective
from ppl_gen.models import VAE, PixelVAE, sampling

SHAPE = (2, 3)


def made(**more: Any) -> PixelVAE:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "image_shape": SHAPE,
        "latent_size": 2,
        "hidden_sizes": (8,),
        "features": 4,
        "layers": 2,
    }
    return PixelVAE(**options | more)


def images(n: int = 5, levels: int = 2) -> torch.Tensor:
    return torch.randint(levels, (n, *SHAPE), generator=torch.Generator().manual_seed(1))


def grid(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return nodes, (size^2, 2), and log weights of a standard normal distribution."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(size)
    z = torch.cartesian_prod(*[torch.from_numpy(nodes)] * 2)
    pairs = torch.cartesian_prod(*[torch.from_numpy(weights)] * 2).prod(-1)
    return z, (pairs / pairs.sum()).log()


@pytest.fixture(scope="module")
def telling() -> PixelVAE:
    """Give a pair in float64 whose latents say much of the images."""
    pair = made().double()
    with torch.no_grad():
        for parameter in (*pair.decoder.parameters(), *pair.pixels.parameters()):
            parameter.mul_(2)
    return pair


def exact_log_prob(pair: PixelVAE, x: torch.Tensor) -> torch.Tensor:
    z, log_weights = grid(24)
    with torch.no_grad():
        given_z = pair.decode(z[:, None].expand(-1, len(x), -1)).log_prob(x)
    return (given_z + log_weights[:, None]).logsumexp(0)


def test_bound_and_importance_sampling_against_quadrature(telling: PixelVAE) -> None:
    every = torch.cartesian_prod(*[torch.arange(2)] * 6).reshape(-1, *SHAPE)
    log_prob = exact_log_prob(telling, every)
    assert float(log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-6)
    with torch.no_grad():
        given_z = telling.decode(torch.zeros(2, dtype=torch.float64)).log_prob(every)
    assert float((given_z - log_prob).abs().max()) > 0.1  # the latents matter

    with torch.no_grad():
        loc, scale = telling.encode(every)
        nodes, log_weights = grid(20)
        z = loc + scale * nodes[:, None]
        expected = (log_weights.exp()[:, None] * telling.decode(z).log_prob(every)).sum(0)
    terms = [telling.elbo_terms(every, seed=seed) for seed in range(30)]
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(loc, scale), torch.distributions.Normal(0.0, 1.0)
    ).sum(-1)
    torch.testing.assert_close(terms[0].kl, kl)
    costs = torch.stack([one.reconstruction for one in terms])
    error = costs.std(0) / math.sqrt(len(terms))
    assert bool(((costs.mean(0) + expected).abs() < 5 * error + 1e-9).all())
    assert bool((expected - kl < log_prob).all())

    estimate = telling.importance_log_likelihood(every, 1000)
    with torch.no_grad():
        z = loc + scale * torch.randn(1000, *loc.shape, dtype=torch.float64)
        ratio = telling.decode(z).log_prob(every) - 0.5 * z.square().sum(-1)
        ratio += 0.5 * ((z - loc) / scale).square().sum(-1) + scale.log().sum(-1)
    # The standard error of the log of a mean is about that of the weights over their mean.
    weights = (ratio - log_prob).exp()
    error = weights.std(0) / math.sqrt(1000)
    assert bool(((estimate - log_prob).abs() < 6 * error).all())
    # Importance sampling removes what the bound lacks.
    assert float((estimate - log_prob).abs().mean()) < 0.3 * float(
        (log_prob - expected + kl).mean()
    )


@pytest.mark.parametrize("free_nats", [0.01, 50.0])
def test_what_is_free_costs_nothing_in_training_alone(free_nats: float) -> None:
    pair, x = made(free_nats=free_nats), images()
    objective = PairObjective(pair.train(), {"x": x}, 1)

    def loss() -> tuple[float, float, float]:
        torch.manual_seed(3)
        found = objective.loss({"x": x})
        torch.manual_seed(3)
        loc, scale = pair.encode(x)
        cost = -pair.decode(loc + scale * torch.randn_like(loc)).log_prob(x).sum()
        kl = (0.5 * (loc**2 + scale**2 - 1) - scale.log()).sum(-1).mean()
        return found.item(), cost.item(), kl.item()

    found, cost, kl = loss()
    assert 0.01 < kl < 50.0
    assert found == pytest.approx(cost + len(x) * max(free_nats, kl), rel=1e-5)
    objective = PairObjective(pair.eval(), {"x": x}, 1)
    found, cost, kl = loss()
    assert found == pytest.approx(cost + len(x) * kl, rel=1e-5)


@pytest.mark.parametrize("free_nats", [0.0, 0.5])
def test_latents_that_are_not_needed_are_used_only_where_that_is_free(free_nats: float) -> None:
    """All pixels of an image are alike: the first tells the others, and needs one bit."""
    x = torch.tensor([0, 1]).repeat(32)[:, None, None].expand(-1, *SHAPE).float()
    pair = made(free_nats=free_nats, latent_size=1)
    method = SVI(guide="pair", steps=300, learning_rate=0.02)
    posterior = pg.fit(pair, {"x": x}, method, progress=False)
    trained = posterior.pair
    assert isinstance(trained, PixelVAE)
    terms = trained.elbo_terms(x)
    kl, log_two = float(terms.kl.mean()), math.log(2)
    if free_nats:
        assert 0.4 < kl < 1.0
    else:
        assert kl < 0.05
    # Either way the images are known as well as they can be, but for what using latents costs.
    assert log_two - 0.02 < float(terms.negative_elbo.mean()) < log_two + 0.4
    assert posterior.elbo is not None
    assert -posterior.elbo[0] / 64 == pytest.approx(float(terms.negative_elbo.mean()), abs=0.3)


@pytest.mark.parametrize(
    ("elements", "levels", "shape"),
    [
        (Elements(), 2, SHAPE),
        (Elements("categorical", 4), 4, SHAPE),
        (Elements("logistic_mixture", 256, 2), 256, SHAPE),
        (Elements("categorical", 4), 4, (2, 3, 4)),
    ],
)
def test_draws_and_reconstructions(
    elements: Elements, levels: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    pair = made(elements=elements, image_shape=shape)
    x = torch.randint(levels, (5, *shape), generator=torch.Generator().manual_seed(1))
    drawn = pair.sample(6, seed=2)
    assert drawn.shape == (6, *shape)
    pair.validate(drawn)
    assert torch.equal(drawn, pair.sample(6, seed=2))
    assert pair.reconstruct(x).shape == x.shape
    assert pair.importance_log_likelihood(x, 3).shape == (5,)
    posterior = pg.fit(pair, {"x": x}, SVI(guide="pair", steps=2), progress=False)
    trained, loaded = posterior.pair, pg.load(posterior.save(tmp_path / "run")).pair
    assert isinstance(trained, PixelVAE)
    assert isinstance(loaded, PixelVAE)
    assert torch.equal(loaded.elbo_terms(x).kl, trained.elbo_terms(x).kl)
    assert torch.equal(loaded.sample(3), trained.sample(3))


def test_draws_tell_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    class Recorded(sampling.ProgressBar):
        def update(self, done: int) -> None:
            told.append(done)
            super().update(done)

    monkeypatch.setattr(sampling, "ProgressBar", Recorded)
    made().sample(5)
    assert told[-1] == 5 * math.prod(SHAPE)
    made().reconstruct(images(3))
    assert told[-1] == 3 * math.prod(SHAPE)


def test_convolutions() -> None:
    pair = made(image_shape=(8, 9), network="convolutional", channels=(3, 4), maps=2)
    x = torch.zeros(5, 8, 9)
    assert pair.elbo_terms(x).kl.shape == (5,)
    assert pair.sample(2).shape == (2, 8, 9)


def test_binary_pixels_are_drawn_anew() -> None:
    pair, gray = made(), torch.rand(50, *SHAPE)
    first, second = (pair.prepare(gray)["x"] for _ in range(2))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    pg.fit(pair, {"x": gray}, SVI(guide="pair", epochs=1, batch_size=16), progress=False)
    with pytest.raises(SiteError, match="Draw binary ones first"):
        pair.elbo_terms(gray)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="free_nats"):
        made(free_nats=-1.0)
    with pytest.raises(ValueError, match="maps"):
        made(maps=0)
    with pytest.raises(SiteError, match=r"shape \(n, 2, 3\).*Create .* image_shape=\(4, 3\)"):
        made().elbo_terms(torch.zeros(5, 4, 3))
    with pytest.raises(TypeError, match="elements: expected Elements, got 'categorical'"):
        made(elements="categorical")
    with pytest.raises(SiteError, match="from 0 to 1, got values from 0 to 3"):
        made().importance_log_likelihood(images(levels=4))
    for pair in (made(), VAE(SHAPE, 2)):
        with pytest.raises(ValueError, match=r"z: expected shape \(\*batch, 2\), got \(5, 3\)"):
            pair.decode(torch.zeros(5, 3))
        with pytest.raises(TypeError, match="z: expected a tensor, got ndarray"):
            pair.decode(np.zeros((5, 2)))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="x: expected a tensor, got ndarray"):
            pair.encode(np.zeros((5, 2, 3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rows"):
        made().sample(0)
