"""The conditional VAE: densities against closed forms, broadcasting of conditions, errors."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import nn

import ppl_gen as pg
from ppl_gen.core import SiteError
from ppl_gen.core.pair import pair_config
from ppl_gen.inference import SVI
from ppl_gen.models import ConditionalVAE
from ppl_gen.models.networks import image_decoder, image_encoder

NETWORKS = ("mlp", "convolutional")
SHAPE = (6, 5)
Y = torch.tensor([0, 2, 1])


def make(likelihood: str = "bernoulli", network: str = "mlp", **options: Any) -> ConditionalVAE:
    options = {"image_shape": SHAPE, "latent_size": 2, "hidden_sizes": (8,)} | options
    return ConditionalVAE(
        condition_size=3,
        likelihood=likelihood,
        network=network,
        num_categories=4,
        channels=(3, 4),
        **options,
    )


def images(n: int = 3, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


def one_hot(y: torch.Tensor) -> torch.Tensor:
    return F.one_hot(y, 3).float()


@pytest.mark.parametrize("hidden", [(), (7,), (7, 4)])
def test_a_condition_is_the_same_as_more_inputs(hidden: tuple[int, ...]) -> None:
    """The first layer of both, concatenated, has the two layers' weights side by side."""
    x, y, z = images(), one_hot(Y), torch.randn(3, 2)
    encoder = image_encoder("mlp", SHAPE, (), hidden, 4, condition_size=3)
    decoder = image_decoder("mlp", 2, hidden, (), SHAPE, condition_size=3)
    for network, given in ((encoder, x), (decoder, z)):
        first = network.layers[0]
        assert isinstance(first, nn.Linear)
        assert network.condition is not None
        weight = torch.cat([first.weight, network.condition.weight], dim=1)
        joined = F.linear(torch.cat([given.flatten(1), y], dim=1), weight, first.bias)
        for layer in network.layers[1:]:
            joined = layer(joined)
        torch.testing.assert_close(network(given, y).flatten(1), joined)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_class_against_every_image(network: str) -> None:
    pair, x = make(network=network), images()
    loc, scale = pair.encode(x.unsqueeze(1), torch.arange(3))
    z = torch.randn(3, 1, 2)
    decoded = pair.mean_image(z, torch.arange(3))
    assert loc.shape == (3, 3, 2)
    assert decoded.shape == (3, 3, *SHAPE)
    for k in range(3):
        y = torch.full((3,), k)
        one_loc, one_scale = pair.encode(x, y)
        torch.testing.assert_close((loc[:, k], scale[:, k]), (one_loc, one_scale))
        torch.testing.assert_close(decoded[:, k], pair.mean_image(z[:, 0], y))
    assert (decoded[:, 0] - decoded[:, 1]).abs().max() > 1e-3, "the class is not looked at"
    assert (loc[:, 0] - loc[:, 1]).abs().max() > 1e-3, "the class is not looked at"


@pytest.mark.parametrize("network", NETWORKS)
def test_classes_are_vectors_of_a_one_among_zeros(network: str) -> None:
    pair, x = make(network=network), images()
    torch.testing.assert_close(pair.encode(x, Y), pair.encode(x, one_hot(Y)))
    mixed = 0.5 * (one_hot(Y) + one_hot(Y.roll(1)))
    assert pair.reconstruct(x, mixed).shape == x.shape
    assert torch.equal(pair.sample(Y, seed=3), pair.sample(one_hot(Y), seed=3))
    assert not torch.equal(pair.sample(Y, seed=3), pair.sample(Y, seed=4))


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_the_objective_is_the_bound_given_the_class(beta: float) -> None:
    pair, x = make(beta=beta), images()
    z = torch.randn(3, 2)
    model = poutine.trace(poutine.condition(pair.model, {"z": z})).get_trace(x, Y)
    guide = poutine.trace(poutine.condition(pair.guide, {"z": z})).get_trace(x, Y)
    loc, scale = pair.encode(x, Y)
    log_q = dist.Normal(loc, scale).log_prob(z).sum()
    log_p = dist.Normal(0.0, 1.0).log_prob(z).sum()
    p = pair.decoder(z, one_hot(Y)).sigmoid()
    log_x = (x * p.log() + (1 - x) * (1 - p).log()).sum()
    elbo = model.log_prob_sum() - guide.log_prob_sum()
    torch.testing.assert_close(elbo, log_x + beta * (log_p - log_q))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("likelihood", ["binarized", "gaussian", "categorical"])
def test_every_parameter_is_trained(likelihood: str, network: str) -> None:
    pair = make(likelihood, network)
    x = (3 * images()).long() if likelihood == "categorical" else images()
    method = SVI(guide="pair", batch_size=2, steps=4)
    posterior = pg.fit(pair, {"x": x, "y": Y}, method, progress=False)
    trained = dict(posterior.pair.named_parameters())
    for name, value in pair.named_parameters():
        assert not torch.equal(trained[name], value), name


def linear_gaussian() -> tuple[ConditionalVAE, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Without hidden layers the evidence is normal: x ~ N(W z + V y + b, s^2)."""
    pair = ConditionalVAE((3,), 2, 2, hidden_sizes=(), likelihood="gaussian", pixel_scale=1.0)
    pair = pair.double()
    x = torch.randn(4, 3, dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0])
    first, given = pair.decoder.layers[0], pair.decoder.condition
    inward, told = pair.encoder.layers[0], pair.encoder.condition
    assert isinstance(first, nn.Linear)
    assert isinstance(inward, nn.Linear)
    assert given is not None
    assert told is not None
    with torch.no_grad():
        weight = first.weight
        covariance = weight @ weight.T + torch.eye(3, dtype=torch.float64)
        mean = first.bias + given.weight.T[y]
        evidence = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)
        # The encoder's best: the posterior mean, with the scales of its marginals.
        gain = weight.T @ covariance.inverse()
        posterior = torch.eye(2, dtype=torch.float64) - gain @ weight
        inward.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
        inward.bias.copy_(torch.cat([-gain @ first.bias, 0.5 * posterior.diagonal().log()]))
        told.weight.copy_(torch.cat([-gain @ given.weight, torch.zeros(2, 2)]))
    return pair, x, y, evidence


def test_importance_sampling_finds_the_exact_log_likelihood() -> None:
    pair, x, y, evidence = linear_gaussian()
    found = pair.importance_log_likelihood(x, y, num_samples=20_000)
    # The weights' relative sd is below 1, as checked: five standard errors of 1 / sqrt(20,000).
    torch.testing.assert_close(found, evidence, rtol=0, atol=0.036)
    loc, scale = (value.detach() for value in pair.encode(x, y))
    z = loc + scale * torch.randn(20_000, 4, 2, dtype=torch.float64)
    log_weights = pair.decode(z, y).log_prob(x).detach() + dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_weights = log_weights - dist.Normal(loc, scale).log_prob(z).sum(-1)
    assert float((log_weights - evidence).exp().std(0).max()) < 1.0
    # The negative control: of the other class it is another number.
    other = pair.importance_log_likelihood(x, 1 - y, num_samples=20_000)
    assert bool(((other - evidence).abs() > 0.036).any())


def test_the_terms_of_the_bound_add_up_to_less_than_the_evidence() -> None:
    pair, x, y, evidence = linear_gaussian()
    terms = [pair.elbo_terms(x, y, seed=seed) for seed in range(400)]
    loc, scale = (value.detach() for value in pair.encode(x, y))
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(loc, scale), torch.distributions.Normal(0.0, 1.0)
    ).sum(-1)
    torch.testing.assert_close(terms[0].kl, exact)
    bounds = -torch.stack([term.negative_elbo for term in terms])
    error = bounds.std(0) / math.sqrt(400)
    assert bool((bounds.mean(0) < evidence + 4 * error).all())
    # Independent coordinates lose little here, and another class a lot.
    assert float((evidence - bounds.mean(0)).max()) < 0.5
    wrong = -pair.elbo_terms(x, 1 - y).negative_elbo
    assert bool((wrong < evidence).any())


def test_the_log_likelihoods_of_all_images_of_a_class_sum_to_one() -> None:
    pair = ConditionalVAE((2, 2), 2, 1, hidden_sizes=(3,), likelihood="binarized")
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4).reshape(16, 2, 2)
    for label in range(2):
        y = torch.full((16,), label)
        total = pair.importance_log_likelihood(every, y, 4000).exp().sum()
        # 16 terms of about 1/16, relative sd of a weight below 1: error below 0.004.
        assert abs(float(total) - 1.0) < 0.02


def test_binarized_images_are_drawn_anew() -> None:
    pair, gray = make("binarized"), torch.full((200, *SHAPE), 0.3)
    prepared = pair.prepare(gray, Y)
    assert prepared["y"] is Y
    assert set(prepared["x"].unique().tolist()) == {0.0, 1.0}
    with pytest.raises(SiteError, match="expected binary pixels"):
        pair.elbo_terms(gray, torch.zeros(200, dtype=torch.long))


def test_it_learns_what_the_class_says() -> None:
    """Images of two classes that differ by their level: the class says it, and the latent need not.

    Given the class there is one direction of variation left, so that the bound is tight, and its
    optimum known (Tipping and Bishop 1999): one factor, the rest of the variance is noise.
    """
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 2
    x = torch.randn(400, 1, generator=generator) * torch.tensor([1.0, -1.0, 0.5])
    x = x + 0.3 * torch.randn(400, 3, generator=generator) + 2.0 * y.unsqueeze(-1)
    pair = ConditionalVAE((3,), 2, 1, hidden_sizes=(), likelihood="gaussian")
    method = SVI(guide="pair", batch_size=100, epochs=100, learning_rate=0.05)
    trained = pg.fit(pair, {"x": x, "y": y}, method, progress=False).pair
    assert isinstance(trained, ConditionalVAE)
    centred = torch.cat([x[y == k] - x[y == k].mean(0) for k in range(2)])
    values = torch.linalg.eigvalsh((centred.T @ centred / 400).double())
    noise = values[:2].mean()
    best = -0.5 * (3 * math.log(2 * math.pi) + values[2].log() + 2 * noise.log() + 3)
    terms = torch.stack([trained.elbo_terms(x, y, seed=s).negative_elbo.mean() for s in range(20)])
    # Standard error of the 20 repeats, and 0.03 nats for what Adam leaves.
    error = 5 * float(terms.std()) / math.sqrt(20)
    assert float(best) - 0.03 - error < -float(terms.mean()) < float(best) + error
    means = trained.sample(y).mean(-1)
    assert float(means[y == 1].mean() - means[y == 0].mean()) == pytest.approx(2.0, abs=0.2)


def test_scoring_leaves_the_random_state_alone(
    rng_unchanged: Callable[..., AbstractContextManager[None]],
) -> None:
    pair, x = make(), images()
    with rng_unchanged():
        pair.elbo_terms(x, Y)
        pair.importance_log_likelihood(x, Y, 3)
        pair.reconstruct(x, Y)
        pair.sample(Y)


def test_constructor_arguments_rebuild_the_pair() -> None:
    pair = make("gaussian", "convolutional", pixel_scale=0.7)
    other = ConditionalVAE(**pair_config(pair))
    other.load_state_dict(pair.state_dict())
    assert torch.equal(other.sample(Y), pair.sample(Y))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition_size": 0}, "condition_size: expected at least 1"),
        ({"latent_size": 0}, "latent_size"),
        ({"hidden_sizes": (4, 0)}, r"hidden_sizes\[1\]"),
        ({"beta": -1.0}, "beta"),
        ({"pixel_scale": 0.0}, "pixel_scale"),
        ({"pixel_scale": 1e-4}, "pixel_scale: expected more than 0.002"),
        ({"likelihood": "bernouli"}, "Did you mean 'bernoulli'"),
        ({"network": "conv"}, "unknown network 'conv'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConditionalVAE(**options)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 1, 3]), "expected classes from 0 to 2, got 0 to 3"),
        (torch.tensor([-1, 1, 2]), "got -1 to 2"),
        (torch.tensor([0, 1]), "Give 'x' and 'y' equally many rows"),
        (torch.tensor([0.0, 1.0, 2.0]), r"Write y.long\(\) for classes"),
        (torch.zeros(3, 4), r"expected integers of shape \(3,\) or real numbers of shape \(3, 3\)"),
        (torch.zeros(3, 3, dtype=torch.long), r"Write y.float\(\)"),
        (torch.zeros(3, dtype=torch.bool), "got bool"),
        (torch.zeros(0, dtype=torch.long), "equally many"),
        ([0, 1, 2], r"Write torch.as_tensor\(y\)"),
    ],
)
def test_bad_conditions(y: Any, message: str) -> None:
    pair, x = make(), images()
    for check in (pair.validate, pair.elbo_terms, pair.reconstruct):
        with pytest.raises(SiteError, match=message):
            check(x, y)


def test_bad_images_and_bad_conditions_of_samples() -> None:
    pair = make()
    with pytest.raises(SiteError, match="pixels between 0 and 1"):
        pg.fit(pair, {"x": images() + 1, "y": Y}, SVI(guide="pair", steps=1), progress=False)
    with pytest.raises(SiteError, match="expected classes from 0 to 2"):
        pair.sample(torch.tensor([5]))
    with pytest.raises(SiteError, match="Give at least one"):
        pair.sample(torch.zeros(0, dtype=torch.long))
