"""Plain functions as pairs, and parameters that stay in the pair."""

import functools
import types
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from ppl_gen import Pair, check, fit
from ppl_gen.core.closure import captured
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


def net_model(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(net(x)[:, 0], scale), obs=y)


def net_guide(x: torch.Tensor, y: torch.Tensor) -> None:
    pyro.sample("scale", dist.LogNormal(pyro.param("loc", torch.tensor(0.0)), 0.1))


class NetObject:
    """A model written as a class of its own, without `nn.Module`."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        net_model(self.net, x, y)

    def method(self, x: torch.Tensor, y: torch.Tensor) -> None:
        net_model(self.net, x, y)


def wrapped(net: nn.Module) -> Any:
    """Return a model under a decorator, around a helper that uses the net."""

    def predict(x: torch.Tensor) -> torch.Tensor:
        return net(x)  # type: ignore[no-any-return]

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        net_model(predict, x, y)  # type: ignore[arg-type]

    @functools.wraps(model)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        model(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    "make",
    [
        lambda net: functools.partial(net_model, net),
        lambda net: NetObject(net),
        lambda net: NetObject(net).method,
        wrapped,
        lambda net: poutine.scale(wrapped(net), scale=1.0),
    ],
    ids=["partial", "object", "method", "wrapped", "handler"],
)
def test_a_net_is_trained_in_a_copy_wherever_the_model_has_it_from(make: Any) -> None:
    net = nn.Linear(1, 1)
    before = state(net)
    x = torch.linspace(-1.0, 1.0, 20).unsqueeze(-1)
    method = SVI(guide="pair", steps=400, draws=5, learning_rate=0.05)
    result = fit((make(net), net_guide), {"x": x, "y": 3 * x[:, 0]}, method, progress=False)
    assert same(before, state(net))
    assert net.weight.grad is None
    assert result.pair is not None
    weight = next(p for name, p in result.pair.named_parameters() if name.endswith("weight"))
    assert weight.item() == pytest.approx(3.0, abs=0.05)


def test_a_function_is_not_blamed_for_globals_that_share_a_name_with_an_attribute() -> None:
    """`y.T` of a model is no use of a global `T`."""

    def model(y: torch.Tensor) -> None:
        pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y.SHARED)

    globals_of_one = {**globals(), "SHARED": torch.zeros(3)}
    function = types.FunctionType(model.__code__, globals_of_one, "model")
    assert "SHARED" not in dict(captured(function))
    assert "pyro" in dict(captured(function))


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal])
def test_pyros_autoguides_are_guides(make: Any) -> None:
    guide = make(coin_model)
    method = SVI(guide="pair", steps=1500, draws=4000, learning_rate=0.05)
    posterior = fit((coin_model, guide), {"y": Y}, method, progress=False)
    # The posterior is N(3/2, 1/2); the exact evidence is that of N(0, 1 + 1 1').
    assert posterior["mean"].mean().item() == pytest.approx(1.5, abs=0.1)
    assert posterior["mean"].std().item() == pytest.approx(0.5, abs=0.07)
    covariance = torch.eye(3) + 1.0
    evidence = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(Y).item()
    assert posterior.elbo is not None
    assert posterior.elbo[0] == pytest.approx(evidence, abs=0.05)
    assert check((coin_model, guide), {"y": Y}).ok
    assert guide.model(Y) is None  # to copy a guide of Pyro takes its model away, for a moment
