"""Plain functions as pairs, and parameters that stay in the pair."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from ppl_gen import Pair, fit
from ppl_gen.inference import NUTS, SVI

Y = torch.tensor([1.0, 2.0, 3.0])
PAIR_GUIDE = SVI(guide="pair", steps=20, draws=5, learning_rate=0.1)


def state(module: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return len(before) == len(after) and all(map(torch.equal, before, after))


def coin_model(y: torch.Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def coin_guide(y: torch.Tensor) -> None:
    loc = pyro.param("a.loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("mean", dist.Normal(loc, scale))


def test_pyro_params_of_functions_are_trained_in_the_posteriors_pair() -> None:
    posterior = fit((coin_model, coin_guide), {"y": Y}, PAIR_GUIDE, progress=False)
    assert posterior.pair is not None
    values = dict(posterior.pair.named_parameters())
    assert set(values) == {"pyro_params.a%2Eloc", "pyro_params.scale"}
    assert values["pyro_params.a%2Eloc"].item() > 0.5
    assert not dict(pyro.get_param_store().items())


def test_modules_that_functions_close_over_are_copied() -> None:
    net = nn.Linear(1, 1)

    def model(y: torch.Tensor) -> None:
        pyro.module("net", net)
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(net(z), 1.0), obs=y)

    def guide(y: torch.Tensor) -> None:
        pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    before = state(net)
    posterior = fit((model, guide), {"y": Y}, PAIR_GUIDE, progress=False)
    assert same(before, state(net))
    assert posterior.pair is not None
    trained = dict(posterior.pair.named_parameters())["_used.0.bias"]
    assert trained.item() != net.bias.item()
    # The posterior predictive uses the trained module: its mean is net(z) of the copy.
    weight = dict(posterior.pair.named_parameters())["_used.0.weight"]
    mean = posterior["z"] * weight.detach() + trained.detach()
    noise = posterior.predict()["y"] - mean
    # 15 standard normals: a mean below 4 / sqrt(15) but for one in 15,000.
    assert noise.mean().abs() < 4 / 15**0.5


class Net(PyroModule):
    """A Bayesian layer with a learned scale, as a plain Pyro module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = PyroSample(dist.Normal(0.0, 1.0))
        self.scale = PyroParam(torch.tensor(2.0), constraint=dist.constraints.positive)

    def forward(self, y: torch.Tensor) -> None:
        mean = self.weight
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, self.scale), obs=y)


def test_pyro_modules_are_pairs_too() -> None:
    module = Net()
    posterior = fit(module, {"y": Y}, SVI(steps=20, draws=5), progress=False)
    assert posterior["weight"].shape == (1, 5)
    assert module.scale.item() == pytest.approx(2.0)

    def guide(y: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("weight", dist.Normal(loc, 0.1))

    trained = fit((module, guide), {"y": Y}, PAIR_GUIDE, progress=False).pair
    assert trained is not None
    assert module.scale.item() == pytest.approx(2.0)
    scales = [v for n, v in trained.named_parameters() if n.endswith("scale_unconstrained")]
    assert not torch.allclose(scales[0], torch.tensor(2.0).log())


class Trained(Pair):
    """A pair with its own parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.5))

    def model(self, y: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(self.shift, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(self, y: torch.Tensor) -> None:
        pyro.sample("mean", dist.Normal(self.shift, 1.0))


@pytest.mark.parametrize("method", [PAIR_GUIDE, SVI(steps=3), NUTS(chains=1, draws=3, warmup=3)])
def test_fit_never_changes_the_pair(method: SVI | NUTS) -> None:
    pair = Trained()
    before = state(pair)
    posterior = fit(pair, {"y": Y}, method, progress=False)
    assert same(before, state(pair))
    assert pair.training
    assert pair.shift.dtype == torch.float32
    # To everything but the pair's own guide its parameters are constants.
    assert posterior.pair is not None
    assert same(before, state(posterior.pair)) == (method is not PAIR_GUIDE)


def test_a_pair_without_a_model_or_guide() -> None:
    with pytest.raises(ValueError, match="has no model"):
        fit(Pair(), {}, SVI())
    with pytest.raises(ValueError, match="has no guide"):
        fit(coin_model, {"y": Y}, PAIR_GUIDE)
