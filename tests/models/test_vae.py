"""The VAE: densities against closed forms, shapes under every handler, errors."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine

import ppl_gen as pg
from ppl_gen.core import SiteError
from ppl_gen.inference import SVI
from ppl_gen.models import VAE

LIKELIHOODS = ("bernoulli", "binarized", "gaussian", "categorical")
NETWORKS = ("mlp", "convolutional")
SHAPE = (6, 5)


def make(likelihood: str = "bernoulli", network: str = "mlp", **options: Any) -> VAE:
    options = {"image_shape": SHAPE, "latent_size": 2, "hidden_sizes": (8,)} | options
    return VAE(likelihood=likelihood, network=network, num_categories=4, channels=(3, 4), **options)


def images(likelihood: str, n: int = 3, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if likelihood == "categorical":
        return torch.randint(4, (n, *shape), generator=generator)
    x = torch.rand(n, *shape, generator=generator)
    return x.round() if likelihood == "binarized" else x


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_model_scores_images_by_their_likelihood(likelihood: str, network: str) -> None:
    pair, x = make(likelihood, network), images(likelihood)
    z = torch.randn(3, 2)
    trace = poutine.trace(poutine.condition(pair.model, {"z": z})).get_trace(x)
    trace.compute_log_prob()
    numbers = pair.decoder(z)
    if likelihood == "gaussian":
        scale = F.softplus(pair.pixels.raw_scale) + 0.5 / 255
        expected = -0.5 * ((x - numbers) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    elif likelihood == "categorical":
        expected = numbers.log_softmax(-1).gather(-1, x[..., None])[..., 0]
    else:
        p = numbers.sigmoid()
        expected = x * p.log() + (1 - x) * (1 - p).log()
    torch.testing.assert_close(
        trace.nodes["x"]["log_prob"], expected.sum((-2, -1)), rtol=1e-5, atol=1e-4
    )
    torch.testing.assert_close(
        trace.nodes["z"]["log_prob"], -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
    )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_parameter_of_both_networks_is_trained(likelihood: str, network: str) -> None:
    pair, x = make(likelihood, network), images(likelihood)
    before = {name: value.clone() for name, value in pair.named_parameters()}
    posterior = pg.fit(pair, {"x": x}, SVI(guide="pair", batch_size=2, steps=2), progress=False)
    trained = dict(posterior.pair.named_parameters())
    for name, value in before.items():
        assert not torch.equal(trained[name], value), name
        assert torch.equal(dict(pair.named_parameters())[name], value), f"fit changed {name}"


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_density_of_latents_under_vmap_and_in_float64(likelihood: str, network: str) -> None:
    """What MCMC does: many chains by vmap, gradients by grad, everything in float64."""
    pair, x = make(likelihood, network).double(), images(likelihood)
    x = x.double() if x.is_floating_point() else x
    z = torch.randn(4, 3, 2, dtype=torch.float64)

    def log_prob(z: torch.Tensor) -> torch.Tensor:
        trace = poutine.trace(poutine.condition(pair.model, {"z": z})).get_trace(x)
        total: torch.Tensor = trace.log_prob_sum()
        return total

    with pyro.validation_enabled(False):
        gradients, values = torch.func.vmap(torch.func.grad_and_value(log_prob))(z)
        looped = torch.stack([log_prob(latents) for latents in z])
    torch.testing.assert_close(values, looped)
    step = 1e-6 * torch.ones_like(z)
    with pyro.validation_enabled(False):
        slope = (torch.func.vmap(log_prob)(z + step) - torch.func.vmap(log_prob)(z - step)) / 2e-6
    # A ReLU's kink between the two points would show; the seed has none.
    torch.testing.assert_close(gradients.sum((1, 2)), slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (3, 6, 5)])
def test_any_leading_axes(likelihood: str, network: str, shape: tuple[int, ...]) -> None:
    pair = make(likelihood, network, image_shape=shape)
    x = images(likelihood, 4, shape)
    loc, scale = pair.encode(x.reshape(2, 2, *shape))
    assert loc.shape == scale.shape == (2, 2, 2)
    flat, _ = pair.encode(x)
    torch.testing.assert_close(loc.reshape(4, 2), flat)
    images_of = pair.decode(loc)
    assert images_of.batch_shape == (2, 2)
    assert images_of.event_shape == shape
    assert images_of.sample().shape == (2, 2, *shape)
    torch.testing.assert_close(pair.mean_image(loc).reshape(x.shape), pair.mean_image(flat))
    assert pair.reconstruct(x).shape == x.shape


def test_mean_of_categorical_pixels_is_on_the_scale_of_the_data() -> None:
    pair = make("categorical")
    z = torch.randn(1, 2)
    probs = pair.decoder(z).softmax(-1)
    expected = probs[..., 1] + 2 * probs[..., 2] + 3 * probs[..., 3]
    torch.testing.assert_close(pair.mean_image(z), expected)


def test_networks_are_those_of_the_usual_tutorial() -> None:
    sizes = {name: tuple(value.shape) for name, value in VAE().named_parameters()}
    weights = [shape for name, shape in sizes.items() if name.endswith("weight")]
    assert weights == [(400, 784), (40, 400), (400, 20), (784, 400)]


def test_binarized_images_are_drawn_anew_and_shared_by_model_and_guide() -> None:
    pair = make("binarized")
    gray = torch.full((200, *SHAPE), 0.3)
    first, second = pair.prepare(gray)["x"], pair.prepare(gray)["x"]
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    # 6,000 draws: standard error sqrt(.3 * .7 / 6000) = 0.0059, five of them.
    assert abs(float(first.mean()) - 0.3) < 0.03
    assert torch.equal(pair.prepare(first)["x"], first)
    assert make("bernoulli").prepare(gray)["x"] is gray


def test_training_sees_binary_pixels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    encode = VAE.encode

    def record(self: VAE, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(x)
        return encode(self, x)

    monkeypatch.setattr(VAE, "encode", record)
    gray = torch.full((20, *SHAPE), 0.3)
    pg.fit(
        make("binarized"), {"x": gray}, SVI(guide="pair", batch_size=10, steps=2), progress=False
    )
    assert seen
    assert all(set(x.unique().tolist()) == {0.0, 1.0} for x in seen)


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_beta_weighs_the_divergence_only(beta: float) -> None:
    pair, x = make(beta=beta), images("bernoulli")
    z = torch.randn(3, 2)
    guide = poutine.trace(poutine.condition(pair.guide, {"z": z})).get_trace(x)
    model = poutine.trace(poutine.condition(pair.model, {"z": z})).get_trace(x)
    loc, scale = pair.encode(x)
    log_q = dist.Normal(loc, scale).log_prob(z).sum()
    log_p = dist.Normal(0.0, 1.0).log_prob(z).sum()
    log_x = pair.decode(z).log_prob(x).sum()
    elbo = model.log_prob_sum() - guide.log_prob_sum()
    torch.testing.assert_close(elbo, log_x + beta * (log_p - log_q))


def test_elbo_terms_agree_with_their_definition() -> None:
    pair, x = make(beta=3.0), images("bernoulli")
    terms = pair.elbo_terms(x, seed=5)
    loc, scale = pair.encode(x)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(loc, scale), torch.distributions.Normal(0.0, 1.0)
    ).sum(-1)
    torch.testing.assert_close(terms.kl, exact.double().detach())
    draws = torch.stack([pair.elbo_terms(x, seed=seed).reconstruction for seed in range(200)])
    z = loc + scale * torch.randn(20_000, 3, 2)
    direct = -pair.decode(z).log_prob(x).double().detach()
    # Standard error of the mean of 200 draws; that of 20,000 adds half a per cent to it.
    error = draws.std(0) / math.sqrt(200)
    assert bool(((draws.mean(0) - direct.mean(0)).abs() < 5 * error).all())
    assert torch.equal(terms.negative_elbo, terms.reconstruction + terms.kl)
    assert torch.equal(pair.elbo_terms(x, seed=5).reconstruction, terms.reconstruction)


def linear_gaussian(beta: float = 1.0) -> tuple[VAE, torch.Tensor, torch.Tensor]:
    """A VAE without hidden layers, whose evidence is normal: x ~ N(W z + b, s^2)."""
    pair = VAE(
        image_shape=(3,), latent_size=2, hidden_sizes=(), likelihood="gaussian", beta=beta
    ).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    weight, bias = pair.decoder.layers[0].weight, pair.decoder.layers[0].bias
    with torch.no_grad():
        pair.pixels.raw_scale.fill_(1.0)
        scale = F.softplus(pair.pixels.raw_scale) + 0.5 / 255
        covariance = weight @ weight.T + scale**2 * torch.eye(3, dtype=torch.float64)
        evidence = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)
        # The encoder's best: the posterior mean; its scales stay those of a mean-field guide.
        gain = weight.T @ covariance.inverse()
        posterior = torch.eye(2, dtype=torch.float64) - gain @ weight
        layer = pair.encoder.layers[0]
        layer.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
        layer.bias.copy_(torch.cat([-gain @ bias, 0.5 * posterior.diagonal().log()]))
    return pair, x, evidence


@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_importance_sampling_finds_the_exact_log_likelihood(beta: float) -> None:
    pair, x, evidence = linear_gaussian(beta)
    found = pair.importance_log_likelihood(x, num_samples=20_000)
    assert found.dtype == torch.float64
    # The weights' relative sd is below 1 with the exact marginals as scales (checked below), so
    # that the log of the mean of 20,000 has a standard error below 0.0071: five of them.
    torch.testing.assert_close(found, evidence, rtol=0, atol=0.036)
    loc, scale = pair.encode(x)
    z = loc + scale * torch.randn(20_000, 4, 2, dtype=torch.float64)
    log_weights = (
        pair.decode(z).log_prob(x)
        + dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
        - dist.Normal(loc, scale).log_prob(z).sum(-1)
    )
    assert float(log_weights.detach().sub(evidence).exp().std(0).max()) < 1.0
    one = pair.importance_log_likelihood(x, num_samples=1)
    assert bool((one - evidence).abs().max() > 0.036), "one draw cannot be this good"


def test_importance_sampling_does_not_depend_on_how_it_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair, x, evidence = linear_gaussian()
    # Rows of 3 values: 1,000 at a time are a twentieth of the draws for one image.
    monkeypatch.setattr("ppl_gen.models.scoring._CHUNK", 3_000)
    found = pair.importance_log_likelihood(x, num_samples=20_000)
    torch.testing.assert_close(found, evidence, rtol=0, atol=0.036)


def test_scoring_leaves_the_random_state_alone(
    rng_unchanged: Callable[..., AbstractContextManager[None]],
) -> None:
    pair, x = make(), images("bernoulli")
    with rng_unchanged():
        pair.elbo_terms(x)
        pair.importance_log_likelihood(x, 3)
        pair.reconstruct(x)


def test_binary_likelihoods_sum_to_one_over_all_images() -> None:
    """The importance estimate of all 2^4 images of 2 x 2 pixels adds up to 1."""
    pair = VAE(image_shape=(2, 2), latent_size=1, hidden_sizes=(3,), likelihood="binarized")
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4).reshape(16, 2, 2)
    total = pair.importance_log_likelihood(every, 4000).exp().sum()
    # An untrained encoder is near the prior: relative sd of a weight below 1, thus of the sum's
    # 16 independent terms of about 1/16 each below 1/sqrt(16 * 4000) = 0.004.
    assert abs(float(total) - 1.0) < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_size": 0}, "latent_size: expected at least 1, got 0"),
        ({"latent_size": -3}, "latent_size"),
        ({"hidden_sizes": (400, 0)}, r"hidden_sizes\[1\]"),
        ({"image_shape": (28, -28)}, r"image_shape\[1\]"),
        ({"image_shape": ()}, "image_shape: expected at least 1 number"),
        ({"beta": 0.0}, "beta"),
        ({"beta": -1.0}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"num_categories": 1}, "num_categories: expected at least 2"),
        ({"channels": ()}, "channels"),
        ({"likelihood": "bernouli"}, "unknown likelihood 'bernouli'.*Did you mean 'bernoulli'"),
        ({"network": "conv"}, "unknown network 'conv'.*expected one of mlp, convolutional"),
        ({"network": "convolutional", "image_shape": (9,)}, "expected .height, width."),
        ({"network": "convolutional", "image_shape": (3, 9)}, "at least 4 x 4 pixels"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAE(**options)


@pytest.mark.parametrize(
    "options", [{"hidden_sizes": 400}, {"latent_size": 2.0}, {"image_shape": "28"}, {"beta": "1"}]
)
def test_options_of_a_wrong_type(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        VAE(**options)


@pytest.mark.parametrize(
    ("likelihood", "x", "message"),
    [
        ("bernoulli", torch.rand(3, 6, 5) + 0.5, r"pixels between 0 and 1, got values from"),
        ("bernoulli", torch.rand(3, 6, 5) - 0.5, "expected pixels between 0 and 1"),
        ("binarized", torch.rand(3, 6, 5) * 255, "x / 255"),
        ("bernoulli", torch.zeros(3, 6, 5, dtype=torch.uint8), "x.float"),
        ("gaussian", torch.zeros(3, 6, 5, dtype=torch.int64), "x.float"),
        ("categorical", torch.rand(3, 6, 5), "integers from 0 to 3"),
        ("categorical", torch.full((3, 6, 5), 4), "num_categories=5"),
        ("categorical", torch.full((3, 6, 5), -1), "from -1"),
        ("bernoulli", torch.rand(3, 30), r"reshape\(-1, 6, 5\)"),
        ("bernoulli", torch.rand(3, 1, 6, 5), r"reshape\(-1, 6, 5\)"),
        ("bernoulli", torch.rand(6, 5), r"x\[None\]"),
        ("bernoulli", torch.rand(3, 8, 8), r"image_shape=\(8, 8\)"),
        ("bernoulli", torch.rand(0, 6, 5), "at least one"),
        ("bernoulli", torch.full((3, 6, 5), math.nan), "values from nan"),
    ],
)
def test_bad_images(likelihood: str, x: torch.Tensor, message: str) -> None:
    pair = make(likelihood)
    with pytest.raises(SiteError, match=message):
        pair.validate(x)
    with pytest.raises(SiteError):
        pair.elbo_terms(x)
    with pytest.raises(SiteError):
        pg.fit(pair, {"x": x}, SVI(guide="pair", steps=1), progress=False)


def test_images_that_are_no_tensor() -> None:
    with pytest.raises(SiteError, match="got list"):
        make().validate([[0.0]])  # type: ignore[arg-type]


def test_gray_images_have_no_likelihood_when_binary_ones_were_modelled() -> None:
    pair, gray = make("binarized"), images("bernoulli")
    pair.validate(gray)  # to train on them is right
    for score in (pair.elbo_terms, pair.importance_log_likelihood):
        with pytest.raises(SiteError, match="expected binary pixels"):
            score(gray)
    with pytest.raises(ValueError, match="num_samples"):
        pair.importance_log_likelihood(gray.round(), num_samples=0)
    assert bool(torch.isfinite(pair.importance_log_likelihood(gray.round(), 2)).all())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_constructor_arguments_rebuild_the_pair(likelihood: str, network: str) -> None:
    from ppl_gen.core.pair import pair_config

    pair, x = make(likelihood, network), images(likelihood)
    other = VAE(**pair_config(pair))
    other.load_state_dict(pair.state_dict())
    assert torch.equal(other.reconstruct(x), pair.reconstruct(x))


def test_training_finds_the_evidence_of_a_linear_gaussian_model() -> None:
    """With a linear decoder the bound's optimum is a probabilistic PCA, known in closed form."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(400, 1, generator=generator)
    x = factors * torch.tensor([1.0, -1.0, 0.5]) + 0.3 * torch.randn(400, 3, generator=generator)
    pair = VAE(image_shape=(3,), latent_size=1, hidden_sizes=(), likelihood="gaussian")
    method = SVI(guide="pair", batch_size=100, epochs=100, learning_rate=0.05)
    posterior = pg.fit(pair, {"x": x}, method, progress=False)
    # Maximum likelihood (Tipping and Bishop 1999): one factor, the rest of the variance is noise.
    # One latent makes the mean-field guide exact, so that the bound is tight at the optimum.
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0).double())
    noise = values[:2].mean()
    log_det = values[2].log() + 2 * noise.log()
    best = -0.5 * (3 * math.log(2 * math.pi) + log_det + 3)
    trained = posterior.pair
    assert isinstance(trained, VAE)
    terms = torch.stack([trained.elbo_terms(x, seed=s).negative_elbo.mean() for s in range(20)])
    # Standard error of the 20 repeats, and 0.02 nats for what Adam leaves.
    assert -float(terms.mean()) < float(best) + 5 * float(terms.std()) / math.sqrt(20)
    assert -float(terms.mean()) > float(best) - 0.02 - 5 * float(terms.std()) / math.sqrt(20)
