"""Imputation against exact conditionals: in closed form, and by quadrature over the latents.

A row is given many times over. Its copies are imputed independently of each other, and their spread
tells the Monte Carlo error of their mean: tolerances are 4.5 standard errors. Errors relative to a
standard error of 50 copies have a t distribution, of which one in 20,000 is larger.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_gen as pg
from ppl_gen.core import Posterior, SiteError
from ppl_gen.inference import SVI, Imputation, impute
from ppl_gen.inference.imputation import _CHUNK
from ppl_gen.models import VAE, BayesianLinearRegression

COPIES = 50
SCALE = 0.5
LINE = torch.tensor(
    [[1.5, 1.2], [1.0, 1.3], [-0.8, -0.6], [0.5, 0.9], [2.0, 1.5], [0.3, -0.4]],
    dtype=torch.float64,
)
OFFSET = torch.tensor([0.2, -0.5, 1.0, 0.0, 0.3, -1.0], dtype=torch.float64)
ROW = torch.tensor([2.0, 0.7, -0.3, 1.0, 2.9, -1.2], dtype=torch.float64)
SEEN = torch.tensor([True, False, True, False, False, True])


def posterior_of(pair: nn.Module) -> Posterior:
    return Posterior(draws={}, latents=(), pair=pair)


def linear_pair() -> VAE:
    """x = W z + b + noise, with the best guide of independent coordinates for whole rows.

    The latents of a row correlate at about -0.9, so that this guide is far too narrow.
    """
    pair = VAE(
        (6,), latent_size=2, hidden_sizes=(), likelihood="gaussian", pixel_scale=SCALE
    ).double()
    (decoder,), (encoder,) = pair.decoder.layers, pair.encoder.layers
    assert isinstance(decoder, nn.Linear)
    assert isinstance(encoder, nn.Linear)
    precision = torch.eye(2) + LINE.T @ LINE / SCALE**2
    to_loc = torch.linalg.solve(precision, LINE.T / SCALE**2)
    with torch.no_grad():
        decoder.weight.copy_(LINE)
        decoder.bias.copy_(OFFSET)
        encoder.weight.copy_(torch.cat([to_loc, torch.zeros(2, 6)]))
        encoder.bias.copy_(torch.cat([-to_loc @ OFFSET, -0.5 * precision.diagonal().log()]))
    return pair


def exact() -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return mean and covariance of what is missing given what is seen, and its log density."""
    covariance = LINE @ LINE.T + SCALE**2 * torch.eye(6, dtype=torch.float64)
    of_seen, across = covariance[SEEN][:, SEEN], covariance[~SEEN][:, SEEN]
    gain = across @ torch.linalg.inv(of_seen)
    log_prob = dist.MultivariateNormal(OFFSET[SEEN], of_seen).log_prob(ROW[SEEN])
    return (
        OFFSET[~SEEN] + gain @ (ROW[SEEN] - OFFSET[SEEN]),
        covariance[~SEEN][:, ~SEEN] - gain @ across.T,
        float(log_prob),
    )


def assert_right(draws: torch.Tensor) -> None:
    """Check draws of what is missing, (draw, copy, missing), against the exact conditional."""
    mean, covariance, _ = exact()
    gaps = draws.double() - mean
    products = gaps.unsqueeze(-1) * gaps.unsqueeze(-2)
    assert_within_error(gaps.mean(0), torch.zeros(3))
    assert_within_error(products.mean(0), covariance)


def assert_within_error(by_copy: torch.Tensor, expected: torch.Tensor) -> None:
    error = by_copy.std(0) / math.sqrt(len(by_copy))
    distance = (by_copy.mean(0) - expected).abs() / error
    assert (distance < 4.5).all(), f"{float(distance.max()):.1f} standard errors away"


@pytest.fixture(scope="module")
def linear() -> Imputation:
    x = ROW.masked_fill(~SEEN, math.nan).repeat(COPIES, 1)
    return impute(posterior_of(linear_pair()), x, SEEN, draws=200, seed=1, progress=False)


def test_draws_are_of_the_exact_conditional(linear: Imputation) -> None:
    assert_right(linear.draws[:, :, ~SEEN])
    mean, _, log_prob = exact()
    assert_within_error(linear.mean[:, ~SEEN], mean)
    # The particles choose the powers themselves, which makes the estimate too low by a part that
    # falls with their number: here less than a hundredth.
    ratio = (linear.log_likelihood - log_prob).exp()
    assert abs(float(ratio.mean()) - 1) < 0.01 + 4.5 * float(ratio.std()) / math.sqrt(COPIES)
    assert ((linear.acceptance > 0.6) & (linear.acceptance < 0.98)).all()


def test_the_effective_sample_size_tells_the_error_of_the_mean(linear: Imputation) -> None:
    mean, covariance, _ = exact()
    # What the latents leave open; pixel noise has no part in the mean.
    variance = (covariance - SCALE**2 * torch.eye(3)).diagonal().sum()
    squares = (linear.mean[:, ~SEEN] - mean).square().sum(-1)
    ess = float(variance / squares.mean())
    told = float(1 / (1 / linear.ess).mean())
    # Two independent estimates, of 50 squares of 3 correlated numbers each: about 20 % each.
    assert 0.5 < told / ess < 2
    assert told > 60


def test_filling_and_encoding_in_turn_is_biased_and_fails_the_same_test() -> None:
    """The negative control: pseudo-Gibbs with the best guide of its kind."""
    pair = linear_pair()
    generator = torch.Generator().manual_seed(0)
    x = ROW.expand(200, COPIES, 6)
    with torch.no_grad():
        for _ in range(200):
            loc, scale = pair.encode(x)
            z = loc + scale * torch.randn(loc.shape, generator=generator, dtype=loc.dtype)
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x = torch.where(SEEN, ROW, pair.decode(z).mean + SCALE * noise)
    with pytest.raises(AssertionError, match="standard errors away"):
        assert_right(x[..., ~SEEN])


LIKELIHOODS = ("bernoulli", "binarized", "gaussian", "categorical")
SHAPE = (6, 5)


def random_pair(likelihood: str, network: str = "mlp") -> VAE:
    torch.manual_seed(2)
    pair = VAE(
        SHAPE, 2, (8,), likelihood, network, num_categories=4, channels=(3, 4), pixel_scale=1.0
    )
    with torch.no_grad():
        for parameter in pair.decoder.parameters():
            parameter.mul_(2.5)  # latents that matter, far from normal given an image
    return pair


def image_and_mask(likelihood: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(SHAPE, generator=generator) < 0.4
    if likelihood == "categorical":
        return torch.randint(4, SHAPE, generator=generator, dtype=torch.uint8), mask
    image = torch.rand(SHAPE, generator=generator)
    return image.round() if likelihood == "binarized" else image, mask


def quadrature(
    pair: VAE, image: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the expected image given what is seen, and the log density of that."""
    axis = torch.linspace(-6.0, 6.0, 241)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_prob = pair.decode(z).base_dist.log_prob(image)
        weights = (log_prob * mask).flatten(1).double().sum(-1) - 0.5 * z.double().square().sum(-1)
        mean = (weights.softmax(0) @ pair.mean_image(z).flatten(1).double()).reshape(SHAPE)
    area = float(axis[1] - axis[0]) ** 2
    return mean, weights.logsumexp(0) + math.log(area / (2 * math.pi))


@pytest.mark.parametrize("network", ["mlp", "convolutional"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_and_network_against_quadrature(likelihood: str, network: str) -> None:
    pair = random_pair(likelihood, network)
    image, mask = image_and_mask(likelihood)
    x = image.expand(COPIES, *SHAPE)
    found = impute(posterior_of(pair), x, mask, draws=20, seed=4, progress=False)
    mean, log_prob = quadrature(pair, image, mask)
    assert torch.equal(found.draws[..., mask], x[:, mask].expand(20, COPIES, -1))
    assert torch.equal(found.mean[:, mask], x[:, mask].to(found.mean.dtype))
    assert found.draws.dtype == image.dtype
    assert_within_error(found.mean.double()[:, ~mask], mean[~mask])
    assert_within_error(found.draws.double().mean(0)[:, ~mask], mean[~mask])
    # With 100 particles the choice of powers costs a few hundredths.
    ratio = (found.log_likelihood - log_prob).exp()
    assert abs(float(ratio.mean()) - 1) < 0.05 + 4.5 * float(ratio.std()) / math.sqrt(COPIES)


def test_modes_are_found_with_their_weights() -> None:
    """The observed pixel is |z|, the missing one z: no local move changes its sign.

    Positive latents are made three times as likely as negative ones by a second observed pixel.
    """
    pair = VAE((3,), latent_size=1, hidden_sizes=(2,), likelihood="gaussian", pixel_scale=0.1)
    first, _, last = pair.decoder.layers
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [-1.0]]))  # max(z, 0) and max(-z, 0)
        first.bias.zero_()
        mode = 1.5 / (1 + 0.1**2)
        slope = 0.1**2 * math.log(3.0) / (2 * 0.1 * mode)
        last.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0], [slope, -slope]]))
        last.bias.zero_()
    x = torch.tensor([1.5, math.nan, 0.1]).repeat(COPIES, 1)
    found = impute(posterior_of(pair), x, ~x[0].isnan(), draws=100, moves=1, seed=5, progress=False)
    assert (found.draws[..., 1].abs() > 0.5).all()  # seven standard deviations from the modes
    positive = (found.draws[..., 1] > 0).double().mean(0)
    assert_within_error(positive.unsqueeze(-1), torch.tensor([0.75]))


def test_nothing_and_everything_observed() -> None:
    pair = random_pair("bernoulli")
    x = torch.rand(COPIES, *SHAPE)
    nothing = torch.zeros(SHAPE, dtype=torch.bool)
    found = impute(posterior_of(pair), x, nothing, draws=100, progress=False)
    assert_within_error(found.latents.mean(0), torch.zeros(2))
    assert_within_error(found.latents.square().mean(0), torch.ones(2))
    assert (found.log_likelihood == 0).all()
    assert (found.ess > 50).all()
    assert set(found.draws.unique().tolist()) == {0.0, 1.0}

    found = impute(posterior_of(pair), x, ~nothing, draws=3, progress=False)
    assert torch.equal(found.draws, x.expand(3, *x.shape))
    assert torch.equal(found.mean, x)
    assert (found.ess == 100).all()


def test_rows_with_masks_of_their_own_whatever_is_in_the_holes() -> None:
    pair = random_pair("bernoulli")
    x = torch.rand(7, *SHAPE)
    mask = torch.rand(7, *SHAPE) < 0.5
    mask[0], mask[1] = True, False
    results = [
        impute(posterior_of(pair), x.masked_fill(~mask, hole), mask, draws=4, progress=False)
        for hole in (math.nan, -1000.0)
    ]
    for first, second in zip(vars(results[0]).values(), vars(results[1]).values(), strict=True):
        assert torch.equal(first, second)
        assert first.isfinite().all()
    assert torch.equal(results[0].draws[0][mask], x[mask])
    as_arrays = impute(posterior_of(pair), x.numpy(), mask.numpy(), draws=4, progress=False)
    assert as_arrays.draws.shape == (4, 7, *SHAPE)


def test_the_seed_alone_decides_and_nothing_is_changed(
    rng_unchanged: Callable[..., AbstractContextManager[None]], tmp_path: Path
) -> None:
    x = torch.rand(20, 8, 8)
    method = SVI(guide="pair", batch_size=10, epochs=1)
    posterior = pg.fit(VAE((8, 8), 2, (16,)), {"x": x}, method, progress=False)
    mask = torch.rand(20, 8, 8) < 0.5
    before = {n: p.clone() for n, p in posterior.pair.state_dict().items()}
    with rng_unchanged("impute"):
        first = impute(posterior, x, mask, draws=3, seed=7, progress=False)
    again = impute(pg.load(posterior.save(tmp_path / "p")), x, mask, draws=3, seed=7)
    other = impute(posterior, x, mask, draws=3, seed=8, progress=False)
    assert torch.equal(first.draws, again.draws)
    assert not torch.equal(first.latents, other.latents)
    assert all(torch.equal(before[n], p) for n, p in posterior.pair.state_dict().items())


class Watched(VAE):
    """Notes how many images are decoded at once."""

    largest = 0

    def decode(self, z: torch.Tensor) -> dist.TorchDistribution:
        Watched.largest = max(Watched.largest, z[..., 0].numel())
        return super().decode(z)


@pytest.mark.parametrize(("n", "draws"), [(1, 3000), (40, 100)])
def test_no_more_is_decoded_at_once_than_fits_into_memory(n: int, draws: int) -> None:
    pair = Watched((28, 28), latent_size=1, hidden_sizes=(2,))
    Watched.largest = 0
    x = torch.zeros(n, 28, 28)
    found = impute(posterior_of(pair), x, x.bool(), draws=draws, moves=1, progress=False)
    assert found.draws.shape == (draws, n, 28, 28)
    assert 1000 < Watched.largest <= _CHUNK // 784
    assert n * draws > Watched.largest


X = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1))
MASK = X < 0.5


@pytest.mark.parametrize(
    ("likelihood", "x", "mask", "message"),
    [
        ("bernoulli", X, MASK.float(), r"argument 'mask': expected booleans.*mask.bool\(\)"),
        ("bernoulli", X, MASK[:2], r"expected the shape \(4, 6, 5\) of 'x', or \(6, 5\) for all"),
        ("bernoulli", X[:, :5], MASK[:, :5], r"expected a tensor of shape \(n, 6, 5\)"),
        ("bernoulli", X[:0], MASK[:0], "at least one"),
        ("bernoulli", X.log().log(), MASK, "expected finite values where the mask is True"),
        ("bernoulli", 255 * X, MASK, "expected pixels between 0 and 1"),
        ("binarized", X, MASK, r"some that its `prepare` changes.*torch.bernoulli\(x\)"),
        ("categorical", X, MASK, "expected integers from 0 to 3"),
    ],
)
def test_bad_data(likelihood: str, x: torch.Tensor, mask: torch.Tensor, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        impute(posterior_of(random_pair(likelihood)), x, mask, progress=False)


@pytest.mark.parametrize("option", ["draws", "moves"])
def test_numbers_out_of_range(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}: expected at least 1, got 0"):
        impute(posterior_of(random_pair("bernoulli")), X, MASK, **{option: 0})


class Chain(pg.Pair):
    """Two latents for each row, and pixels that are not independent."""

    def __init__(self, *, sites: int = 1) -> None:
        super().__init__()
        self.sites = sites

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            for i in range(self.sites):
                z = pyro.sample(f"z{i}", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", self.decode(z), obs=x)

    def decode(self, z: torch.Tensor) -> Any:
        return dist.MultivariateNormal(z, torch.eye(3))


class Conditional(Chain):
    def model(self, x: torch.Tensor, y: torch.Tensor) -> None:
        super().model(x)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (BayesianLinearRegression(num_features=1), "has no method `decode`: impute.. needs a pair"),
        (Conditional(), "Conditional.model takes x, y"),
        (Chain(), "Chain.decode: expected independent pixels.*MultivariateNormal"),
        (Chain(sites=2), r"one continuous latent site.*the model has 'z0' \(1, 3\), 'z1' \(1, 3\)"),
    ],
)
def test_pairs_of_another_kind(pair: pg.Pair, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        impute(posterior_of(pair), np.zeros((2, 3), "float32"), torch.ones(3).bool())


def test_a_posterior_without_its_pair() -> None:
    with pytest.raises(ValueError, match=r"loaded without its pair: pg.load\(path, pair=pair\)"):
        impute(Posterior(draws={}, latents=()), X, MASK)


def test_a_likelihood_that_is_nowhere_finite() -> None:
    pair = random_pair("bernoulli")
    with torch.no_grad():
        next(pair.decoder.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="finite at no draw from the prior"):
        impute(posterior_of(pair), X, MASK, progress=False)
