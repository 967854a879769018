"""The semi-supervised VAE: its loss against sums by hand and exact evidence, learning, errors."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

import ppl_gen as pg
from ppl_gen.core import SiteError
from ppl_gen.core.minibatch import MiniBatches
from ppl_gen.core.pair import pair_config
from ppl_gen.core.scope import default_dtype
from ppl_gen.inference import SVI
from ppl_gen.inference.elbo import ReparametrisedELBO
from ppl_gen.inference.objectives import PairObjective
from ppl_gen.models import SemiSupervisedVAE

SHAPE = (2, 3)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with default_dtype(torch.float64):
        yield


def make(**options: Any) -> SemiSupervisedVAE:
    options = {"hidden_sizes": (5,), "classifier_sizes": (4,), "latent_size": 2} | options
    torch.manual_seed(2)
    return SemiSupervisedVAE(SHAPE, num_classes=3, **options)


def data(n: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, labelled = (torch.rand(m, *SHAPE, generator=generator) for m in (n, 4))
    return {"x": x, "x_labelled": labelled, "y_labelled": torch.tensor([0, 2, 1, 2])}


def loss_of(
    pair: SemiSupervisedVAE, given: dict[str, torch.Tensor], **options: Any
) -> torch.Tensor:
    objective = PairObjective(pair, given, 1, **options)
    assert isinstance(objective.elbo, ReparametrisedELBO)
    return objective.loss(given).detach()


def by_hand(pair: SemiSupervisedVAE, x: torch.Tensor, y: int, noise: torch.Tensor) -> torch.Tensor:
    """Return L(x, y) of one image, with the noise that its draw has."""
    loc, scale = pair.encode(x, torch.tensor(y))
    divergence = kl_divergence(Normal(loc, scale), Normal(0.0, 1.0)).sum()
    log_prob = pair.decode(loc + scale * noise, torch.tensor(y)).log_prob(x)
    return -log_prob - math.log(1 / 3) + divergence


@pytest.mark.parametrize("alpha", [0, 0.7])
def test_the_loss_is_the_stated_objective(alpha: float) -> None:
    pair, given = make(alpha=alpha), data()
    objective = PairObjective(pair, given, 1)
    torch.manual_seed(5)
    found = objective.loss(given)
    torch.manual_seed(5)
    for_labelled = torch.randn(4, 2)
    for_others = torch.randn(3, 7, 2)
    total = torch.zeros(())
    for x, y, noise in zip(given["x_labelled"], given["y_labelled"], for_labelled, strict=True):
        total = total + by_hand(pair, x, int(y), noise)
        log_q = pair.class_logits(x.unsqueeze(0)).log_softmax(-1)[0, y]
        total = total - alpha * 7 * log_q / 4
    for i, x in enumerate(given["x"]):
        log_q = pair.class_logits(x.unsqueeze(0)).log_softmax(-1)[0]
        for k in range(3):
            bound = by_hand(pair, x, k, for_others[k, i])
            total = total + log_q[k].exp() * (bound + log_q[k])
    torch.testing.assert_close(found, total)
    gradients = [torch.autograd.grad(value, list(pair.parameters())) for value in (found, total)]
    torch.testing.assert_close(*gradients)
    assert all(bool((gradient != 0).any()) for gradient in gradients[0])


def without_noise(pair: SemiSupervisedVAE) -> SemiSupervisedVAE:
    """Give the guide's latents scales of 1e-9: the loss is the same number each time."""
    last = pair.conditional.encoder.layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight[2:] = 0.0
        last.bias[2:] = math.log(1e-9)
    return pair


def test_mini_batches_add_up_to_the_whole() -> None:
    """Batches of 3, 3 and 1: their mean is the loss of all, labelled images in each of them."""
    pair, given = without_noise(make(alpha=2.0)), data()
    whole = loss_of(pair, given)
    batches = MiniBatches(given, ("x",), "data", 7, 3)
    losses = [loss_of(pair, batch, scale=batches.scale) for batch in batches.epoch()]
    assert len(losses) == 3
    torch.testing.assert_close(torch.stack(losses).mean(), whole, rtol=1e-6, atol=0.0)
    # The negative control: all of them scaled by 7 / 3 would be off.
    wrong = sum(
        loss_of(pair, batch, scale=type(batches.scale)("data", 7 / 3)) for batch in batches.epoch()
    )
    assert abs(float(wrong / 3 - whole)) > 1e-3 * float(whole)


def exact_pair() -> tuple[SemiSupervisedVAE, torch.Tensor]:
    """A decoder that looks at the class alone: mixtures of products, whose posterior is known.

    log p(x, y) is linear in x, and so is a classifier without hidden layers.
    """
    pair = make(hidden_sizes=(), classifier_sizes=(), likelihood="binarized", alpha=0)
    decoder, classifier = pair.conditional.decoder, pair.class_logits.layers[0]
    first, encoder = decoder.layers[0], pair.conditional.encoder
    assert isinstance(first, nn.Linear)
    assert isinstance(classifier, nn.Linear)
    assert decoder.condition is not None
    with torch.no_grad():
        first.weight.zero_()
        decoder.condition.weight.mul_(4.0)
        for parameter in encoder.parameters():  # the guide is the prior
            parameter.zero_()
        logits = first.bias + decoder.condition.weight.T
        classifier.weight.copy_(logits)
        classifier.bias.copy_(-torch.nn.functional.softplus(logits).sum(-1))
    return pair, logits


def test_the_bound_is_the_evidence_where_the_guide_is_the_posterior() -> None:
    pair, logits = exact_pair()
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)))
    by_class = torch.distributions.Bernoulli(logits=logits).log_prob(x.unsqueeze(1)).sum(-1)
    evidence = (by_class - math.log(3)).logsumexp(-1)
    torch.testing.assert_close(evidence.exp().sum(), torch.ones(()))
    images = x.reshape(-1, *SHAPE)
    torch.testing.assert_close(pair.classify(images), by_class.softmax(-1))
    given = {"x": images, "x_labelled": images[:1], "y_labelled": torch.tensor([1])}
    labelled = by_class[0, 1] - math.log(3)
    torch.testing.assert_close(-loss_of(pair, given), evidence.sum() + labelled)
    # The negative control: with another classifier, the bound is lower by its divergence.
    with torch.no_grad():
        pair.class_logits.layers[0].weight += 0.3  # type: ignore[operator]
        pair.class_logits.layers[0].bias += torch.tensor([0.5, 0.0, -0.5])  # type: ignore[operator]
    q = pair.classify(images)
    lost = (q * (q.log() - by_class.log_softmax(-1))).sum()
    assert float(lost) > 0.1
    torch.testing.assert_close(-loss_of(pair, given), evidence.sum() + labelled - lost)


@pytest.mark.parametrize("network", ["mlp", "convolutional"])
def test_every_parameter_is_trained(network: str) -> None:
    torch.manual_seed(0)
    pair = SemiSupervisedVAE(
        (6, 5),
        num_classes=3,
        latent_size=2,
        hidden_sizes=(8,),
        likelihood="binarized",
        network=network,
        classifier=network,
        classifier_sizes=(6,),
        channels=(3, 4),
    )
    given = {"x": torch.rand(9, 6, 5), "x_labelled": torch.rand(3, 6, 5)}
    given["y_labelled"] = torch.arange(3)
    method = SVI(guide="pair", batch_size=4, plate="data", steps=6)
    posterior = pg.fit(pair, given, method, progress=False)
    trained = dict(posterior.pair.named_parameters())
    for name, value in pair.named_parameters():
        assert not torch.equal(trained[name], value), name
    assert set(posterior.latents) == {"z_labelled"}
    assert pair.reconstruct(given["x"]).shape == (9, 6, 5)
    assert pair.sample(torch.tensor([2, 0])).shape == (2, 6, 5)
    torch.testing.assert_close(pair.classify(given["x"]).sum(-1), torch.ones(9))


def test_the_bound_that_a_posterior_reports_is_without_the_classification() -> None:
    given = data()
    method = SVI(guide="pair", steps=1, learning_rate=1e-9, draws=2)
    elbos = [
        pg.fit(without_noise(make(alpha=a)), given, method, progress=False).elbo for a in (0, 9)
    ]
    assert elbos[0] is not None
    assert elbos[1] is not None
    assert elbos[0][0] == pytest.approx(elbos[1][0], rel=1e-5)


def clusters() -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Three groups of points on circles about their centres; one label for each group."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 3
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    angle = 2 * math.pi * torch.rand(300, generator=generator)
    circle = torch.stack([angle.cos(), angle.sin()], dim=-1)
    x = centres[y] + 0.8 * circle + 0.1 * torch.randn(300, 2, generator=generator)
    return {"x": x, "x_labelled": x[:3], "y_labelled": y[:3]}, x, y


@pytest.mark.parametrize("alpha", [1.0, 0])
def test_one_label_of_each_class_is_enough_with_the_classification_loss_alone(alpha: float) -> None:
    given, x, y = clusters()
    torch.manual_seed(3)
    pair = SemiSupervisedVAE(
        (2,),
        num_classes=3,
        latent_size=1,
        hidden_sizes=(32,),
        classifier_sizes=(16,),
        likelihood="gaussian",
        pixel_scale=1.0,
        alpha=alpha,
    )
    method = SVI(guide="pair", batch_size=100, plate="data", epochs=40, learning_rate=0.02)
    trained = pg.fit(pair, given, method, progress=False).pair
    assert isinstance(trained, SemiSupervisedVAE)
    accuracy = float((trained.classify(x).argmax(-1) == y).float().mean())
    assert accuracy > 0.95 if alpha else accuracy < 0.7


def test_constructor_arguments_rebuild_the_pair() -> None:
    pair = make(alpha=0.3, pixel_scale=0.7, likelihood="gaussian")
    other = SemiSupervisedVAE(**pair_config(pair))
    other.load_state_dict(pair.state_dict())
    assert torch.equal(other.classify(data()["x"]), pair.classify(data()["x"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes: expected at least 1"),
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"classifier_sizes": (4, -1)}, r"classifier_sizes\[1\]"),
        ({"classifier": "cnn"}, "unknown network 'cnn'"),
        ({"likelihood": "bernouli"}, "Did you mean 'bernoulli'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SemiSupervisedVAE(**options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", torch.rand(7, 2, 3) + 1, "site 'x': expected pixels between 0 and 1"),
        ("x_labelled", torch.rand(4, 3, 2), r"order. Write x_labelled.movedim\(-1, 1\)"),
        ("x_labelled", torch.rand(4, 6), r"Write x_labelled.reshape\(-1, 2, 3"),
        ("x_labelled", torch.zeros(4, 2, 3, dtype=torch.uint8), "Write x_labelled.float"),
        ("y_labelled", torch.tensor([0, 1, 2]), "'y_labelled': .*one value for each row"),
        ("y_labelled", torch.tensor([0, 1, 2, 3]), "expected classes from 0 to 2, got 0 to 3"),
        ("y_labelled", torch.zeros(4), r"Write y_labelled.long\(\)"),
    ],
)
def test_bad_data(name: str, value: torch.Tensor, message: str) -> None:
    pair, given = make(), {**data(), name: value}
    with pytest.raises(SiteError, match=message):
        pair.validate(**given)
    with pytest.raises(SiteError, match=message):
        pg.fit(pair, given, SVI(guide="pair", steps=1), progress=False)


def test_as_many_images_with_labels_as_without_cannot_be_told_apart_in_batches() -> None:
    """Both would be cut: the labelled ones would count too little, without a word."""
    method = SVI(guide="pair", batch_size=2, plate="data", steps=1)
    with pytest.raises(ValueError, match="labelled"):
        pg.fit(make(), data(4), method, progress=False)
