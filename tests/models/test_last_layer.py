"""A Bayesian last layer: its density, and posteriors by several methods against a grid."""

import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

import ppl_gen as pg
from ppl_gen.core import LogDensity, SiteError
from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.inference import NUTS, SVI
from ppl_gen.models import AutoregressiveImage, BayesianLastLayer
from ppl_gen.models.networks import MADE, OrderAgnosticMADE, PixelCNNPlusPlus

SHAPE = (3, 3)


def trained(num_classes: int | None = None, **more: Any) -> AutoregressiveImage:
    torch.manual_seed(0)
    network = MADE(SHAPE, hidden_sizes=(8,), context_size=num_classes, **more)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    return AutoregressiveImage(network, num_classes)


@pytest.fixture(scope="module")
def data() -> dict[str, torch.Tensor]:
    """Give images that are lighter, and less sure, than the network has them."""
    pair = BayesianLastLayer(trained())
    return {"x": pair.distribution(torch.tensor(-0.4), torch.tensor([0.3])).sample((30,))}


@pytest.fixture(scope="module")
def exact(data: dict[str, torch.Tensor]) -> dict[str, tuple[float, float]]:
    """Give mean and sd of both latents on a grid of 201 x 201."""
    pair = BayesianLastLayer(trained().double())
    with torch.no_grad():
        numbers = pair.likelihood.network.numbers(data["x"]).flatten()
        x = data["x"].double().flatten()
        log_gain = torch.linspace(-1.6, 0.8, 201, dtype=torch.float64)
        offset = torch.linspace(-0.7, 1.3, 201, dtype=torch.float64)
        logits = log_gain.exp()[:, None, None] * numbers + offset[:, None]
        bernoulli = torch.distributions.Bernoulli(logits=logits)
        log_p = bernoulli.log_prob(x).sum(-1)
        log_p += -0.5 * (log_gain[:, None] / 0.5) ** 2 - 0.5 * offset**2
        p = (log_p - log_p.max()).exp()
        p /= p.sum()
    assert float(torch.cat([p[0], p[-1], p[:, 0], p[:, -1]]).max()) < 1e-6  # none is left out
    found = {}
    for name, values, weights in (("log_gain", log_gain, p.sum(1)), ("offset", offset, p.sum(0))):
        mean = (weights * values).sum()
        sd = (weights * (values - mean) ** 2).sum().sqrt()
        found[name] = float(mean), float(sd)
    return found


def test_posteriors_are_those_of_a_grid_and_compare_trusts_them(
    data: dict[str, torch.Tensor], exact: dict[str, tuple[float, float]]
) -> None:
    pair = BayesianLastLayer(trained())
    nuts = pg.fit(pair, data, NUTS(chains=4, draws=400, warmup=300), progress=False)
    assert nuts.provenance["engine"] == "compiled"
    full_rank = pg.fit(pair, data, SVI(guide="full_rank"), progress=False)
    for posterior, size in ((nuts, 800), (full_rank, 1000)):
        for name, (mean, sd) in exact.items():
            draws = posterior[name].flatten()
            # Of at least so many effective draws: five standard errors. A normal guide of a skewed
            # posterior errs by itself, here by at most 0.03 sd.
            slack = 0.0 if posterior is nuts else 0.05
            assert abs(float(draws.mean()) - mean) < (5 / math.sqrt(size) + slack) * sd
            ratio = float(draws.std()) / sd
            assert abs(ratio - 1) < 5 / math.sqrt(2 * size) + slack
    comparison = pg.compare({"nuts": nuts, "full-rank": full_rank}, reference="nuts")
    assert "full-rank: TRUST" in str(comparison)


@pytest.mark.parametrize("classes", [None, 3])
def test_the_density_is_that_of_the_adjusted_distribution(classes: int | None) -> None:
    likelihood = trained(classes, elements=Elements("categorical", 3))
    pair = BayesianLastLayer(likelihood, scale=0.7, gain_scale=0.2)
    x = torch.randint(3, (5, *SHAPE), generator=torch.Generator().manual_seed(1))
    y = None if classes is None else torch.tensor([0, 1, 2, 0, 1])
    log_gain, offset = torch.tensor(-0.3), torch.tensor([0.5, -1.0, 0.2])
    given = {"log_gain": log_gain, "offset": offset}
    with torch.no_grad():
        model = poutine.condition(pair.model, given)
        trace = poutine.trace(model).get_trace(**pair.prepare(*([x] if y is None else [x, y])))
        rows = log_gain.expand(5), offset.expand(5, -1)
        expected = pair.distribution(*rows, y).log_prob(x)
        numbers = likelihood.network.numbers(x, None if y is None else likelihood.vectors(y))
        logits = log_gain.exp() * numbers + offset
        direct = torch.distributions.Categorical(logits=logits).log_prob(x).flatten(1).sum(-1)
        prior = pyro.distributions.Normal(0.0, 0.2).log_prob(log_gain)
        prior += pyro.distributions.Normal(0.0, 0.7).log_prob(offset).sum()
    torch.testing.assert_close(expected, direct)
    torch.testing.assert_close(trace.log_prob_sum(), direct.sum() + prior)
    other = (x + 1) % 3  # of which the numbers are not known
    adjusted: Any = trace.nodes["x"]["fn"]
    found = adjusted.log_prob(other)
    torch.testing.assert_close(found, pair.distribution(*rows, y).log_prob(other))


class Counting(AutoregressiveNetwork):
    """A network that counts how often it is run."""

    def __init__(self) -> None:
        super().__init__(SHAPE, Elements())
        self.bias = nn.Parameter(torch.ones(9))
        self.runs: list[int] = []

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        self.runs.append(len(x))
        return self.bias.expand(len(x), -1).reshape(-1, *SHAPE, 1)


def test_a_density_does_not_run_the_network(data: dict[str, torch.Tensor]) -> None:
    pair = BayesianLastLayer(AutoregressiveImage(Counting()))
    density = LogDensity(pair, data)
    runs = density.pair.likelihood.network.runs  # type: ignore[union-attr]
    before = len(runs)  # type: ignore[arg-type]
    for _ in range(3):
        density.log_prob(torch.zeros(2, dtype=torch.float64))
    assert len(runs) == before  # type: ignore[arg-type]


def test_numbers_that_are_given_are_computed_anew(data: dict[str, torch.Tensor]) -> None:
    pair = BayesianLastLayer(trained())
    density = LogDensity(pair, data)
    other = LogDensity(pair, {**data, "numbers": torch.zeros(30, *SHAPE, 1)})
    vector = torch.tensor([0.2, -0.5], dtype=torch.float64)
    assert torch.equal(density.log_prob(vector), other.log_prob(vector))


def test_draws_of_the_adjusted_distribution_and_predictions(data: dict[str, torch.Tensor]) -> None:
    pair = BayesianLastLayer(trained())
    every = torch.cartesian_prod(*[torch.arange(2)] * 9).reshape(-1, *SHAPE)
    adjusted = pair.distribution(torch.tensor(-0.4), torch.tensor([0.3]))
    with torch.no_grad():
        p = adjusted.log_prob(every).exp()
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-5)
    posterior = pg.fit(pair, data, SVI(guide="full_rank", draws=200), progress=False)
    predicted = posterior.predict()["x"]
    assert predicted.shape == (1, 200, 30, *SHAPE)
    # Predictions of 200 draws of 30 images have the mean of the data within five standard errors
    # of the data's own, which were drawn from the model.
    error = float(data["x"].mean((1, 2)).std()) / math.sqrt(30)
    assert abs(float(predicted.mean()) - float(data["x"].mean())) < 5 * error
    assert posterior.log_likelihood()["x"].shape == (1, 200, 30)


def test_saved_and_loaded(data: dict[str, torch.Tensor], tmp_path: Path) -> None:
    pair = BayesianLastLayer(trained(), scale=0.7)
    posterior = pg.fit(pair, data, SVI(guide="mean_field", draws=7), progress=False)
    loaded = pg.load(posterior.save(tmp_path / "run"))
    assert isinstance(loaded.pair, BayesianLastLayer)
    assert loaded.pair.scale == 0.7
    assert torch.equal(loaded.log_likelihood()["x"], posterior.log_likelihood()["x"])
    assert len(loaded.pair.state_dict()) == len(pair.likelihood.state_dict())


def test_gray_images_are_drawn_once() -> None:
    pair, gray = BayesianLastLayer(trained()), torch.rand(5, *SHAPE)
    drawn = pair.prepare(gray)
    assert set(drawn["x"].unique().tolist()) == {0.0, 1.0}
    with torch.no_grad():
        expected = pair.likelihood.network.numbers(drawn["x"])
    assert torch.equal(drawn["numbers"], expected)


def test_dropout_ends_with_the_fit(data: dict[str, torch.Tensor]) -> None:
    network = PixelCNNPlusPlus(SHAPE, 4, 1, 1, elements=Elements())
    pair = BayesianLastLayer(AutoregressiveImage(network))
    assert pair.training
    method = SVI(guide="mean_field", steps=5, draws=5)
    found = pg.fit(pair, data, method, progress=False).pair
    assert isinstance(found, BayesianLastLayer)
    adjusted = found.distribution(torch.zeros(()), torch.zeros(1))
    assert torch.equal(adjusted.log_prob(data["x"]), adjusted.log_prob(data["x"]))


def test_it_moves_to_a_device_as_a_whole() -> None:
    pair = BayesianLastLayer(trained()).to("meta")
    told = torch.zeros(2, device="meta")
    adjusted = pair.distribution(told, told.unsqueeze(-1))
    assert {value.device.type for value in adjusted.network.buffers()} == {"meta"}


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="expected a trained pair such as AutoregressiveImage"):
        BayesianLastLayer(trained().network)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one order, got a OrderAgnosticMADE"):
        BayesianLastLayer(AutoregressiveImage(OrderAgnosticMADE(SHAPE, (8,))))
    with pytest.raises(ValueError, match="gain_scale"):
        BayesianLastLayer(trained(), gain_scale=0.0)
    pair, gains, offsets = BayesianLastLayer(trained(3)), torch.zeros(5), torch.zeros(5, 1)
    labels = torch.zeros(5).long()
    for arguments, error, message in (
        ((gains.numpy(), offsets, labels), TypeError, "log_gain: expected a tensor, got ndarray"),
        ((gains, offsets.tolist(), labels), TypeError, "offset: expected a tensor, got list"),
        ((gains, offsets[:4], labels), ValueError, r"shapes \(5, 1\) .*got \(4, 1\) of offset"),
        ((gains, offsets, labels[:4]), ValueError, r"\(4,\) of y"),
        ((gains, offsets), SiteError, "integers of shape .*got NoneType. Give the class of each"),
        ((gains, offsets, gains), SiteError, r"float32 of shape \(5,\)\. Write y\.long"),
    ):
        with pytest.raises(error, match=message):
            pair.distribution(*arguments)  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="expected none, since the pair has no classes"):
        BayesianLastLayer(trained()).distribution(gains, offsets, labels)
    with pytest.raises(SiteError, match=r"shape \(n, 3, 3\)"):
        pg.fit(BayesianLastLayer(trained()), {"x": torch.zeros(5, 3, 4)}, SVI(), progress=False)
