"""Autoregressive networks in Pyro models: plates, handlers, training and sampling of latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, TraceEnum_ELBO

import ppl_gen as pg
from ppl_gen.core import LogDensity
from ppl_gen.core.compiler.compiled import CompiledLogDensity
from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.inference import NUTS, SVI
from ppl_gen.models.networks import FVBN, MADE, GatedPixelCNN, OrderAgnosticMADE, WaveNet

THREE = Elements("categorical", 3)


@pytest.fixture
def network() -> MADE:
    torch.manual_seed(0)
    return MADE((2, 2), (6,), THREE, context_size=2)


def images(*shape: int) -> torch.Tensor:
    return torch.randint(3, (*shape, 2, 2))


def test_in_plates(network: MADE) -> None:
    context, x = torch.randn(4, 2), images(5, 4)

    def model(x: torch.Tensor | None = None) -> torch.Tensor:
        with pyro.plate("rows", 5, dim=-2), pyro.plate("columns", 4, dim=-1):
            value = pyro.sample("x", network(context), obs=x)
        assert value is not None
        return value

    assert model().shape == (5, 4, 2, 2)
    trace = poutine.trace(model).get_trace(x)
    torch.testing.assert_close(trace.log_prob_sum(), network(context).log_prob(x).sum())
    conditioned = poutine.trace(poutine.condition(model, {"x": x})).get_trace()
    torch.testing.assert_close(conditioned.log_prob_sum(), trace.log_prob_sum())
    torch.manual_seed(1)
    drawn = poutine.uncondition(model)(x)
    torch.manual_seed(1)
    assert torch.equal(drawn, model())
    for handler, factor in ((poutine.scale(scale=3.0), 3.0), (poutine.mask(mask=False), 0.0)):
        with handler:
            weighed = poutine.trace(model).get_trace(x).log_prob_sum()
        torch.testing.assert_close(torch.as_tensor(weighed), factor * trace.log_prob_sum())


def test_in_a_subsampled_plate(network: MADE) -> None:
    context, x = torch.randn(20, 2), images(20)

    def model() -> torch.Tensor:
        with pyro.plate("data", 20, subsample_size=5) as rows:
            pyro.sample("x", network(context[rows]), obs=x[rows])
        return rows

    trace = poutine.trace(model).get_trace()
    rows = trace.nodes["_RETURN"]["value"]
    expected = 4 * network(context[rows]).log_prob(x[rows]).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_under_a_mask_of_rows(network: MADE) -> None:
    context, x = torch.randn(4, 2), images(4)
    mask = torch.tensor([True, False, True, False])

    def model() -> None:
        with pyro.plate("data", 4), poutine.mask(mask=mask):
            pyro.sample("x", network(context), obs=x)

    found = poutine.trace(model).get_trace().log_prob_sum()
    torch.testing.assert_close(found, network(context).log_prob(x)[mask].sum())


def test_enumeration_is_refused(network: MADE) -> None:
    def model() -> None:
        pyro.sample("x", network(torch.zeros(2)), infer={"enumerate": "parallel"})

    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    with pytest.raises(
        NotImplementedError, match=r"not summed out: 4 elements of 3 values .* 3\^4"
    ):
        elbo.loss(model, lambda: None)


def test_posterior_predictive(network: MADE) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 3):
            pyro.sample("x", network(z))

    for parallel in (False, True):
        drawn = Predictive(model, num_samples=7, parallel=parallel)()
        assert drawn["x"].reshape(7, 3, 2, 2).dtype == torch.long


@pytest.mark.parametrize("order_agnostic", [False, True])
def test_training_finds_the_frequencies(*, order_agnostic: bool) -> None:
    torch.manual_seed(0)
    # Of two binary elements a fully visible Bayes network has every distribution, so that its
    # maximum of the likelihood is that of the frequencies, under either ordering.
    network: MADE = FVBN((2,))
    if order_agnostic:
        network = OrderAgnosticMADE((2,), (8,), num_orderings=3)
    counts = torch.tensor([40, 10, 20, 30])
    every = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    x = every.repeat_interleave(counts, 0)

    class Pairs(pg.Pair):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def model(self, x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", self.network(), obs=x)

        def guide(self, x: torch.Tensor) -> None:
            pass

    fitted = pg.fit(Pairs(), {"x": x}, SVI(guide="pair", steps=600, learning_rate=0.03)).pair
    assert isinstance(fitted, Pairs)
    assert not fitted.network.training
    with torch.no_grad():
        found = fitted.network().log_prob(every).exp()
    # The last steps are of no size, and the maximum is of a smooth function.
    torch.testing.assert_close(found, counts / 100, rtol=0, atol=0.003)


NETWORKS: dict[str, Callable[[], AutoregressiveNetwork]] = {
    "MADE": lambda: MADE((2, 2), (6,), THREE, 1),
    "OrderAgnosticMADE": lambda: OrderAgnosticMADE((2, 2), (6,), THREE, 1, num_orderings=2).eval(),
    "GatedPixelCNN": lambda: GatedPixelCNN((2, 2), 4, 1, elements=THREE, context_size=1),
    "WaveNet": lambda: WaveNet(4, 4, 4, 2, 2, Elements("logistic_mixture", 3, 2), 1),
}


def of_latent_context(name: str, rows: int) -> LogDensity:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    x = torch.randint(3, (rows, *network.event_shape))

    def model(x: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", network(z.reshape(1)), obs=x)

    return LogDensity(model, {"x": x})


@pytest.mark.parametrize("name", NETWORKS)
def test_the_compiled_density_is_that_of_the_model(name: str) -> None:
    density = of_latent_context(name, 3)
    points = torch.linspace(-1.5, 1.5, 4, dtype=torch.double).unsqueeze(1)
    values, gradients = CompiledLogDensity(density, points[0], lanes=4)(points)
    for point, value, gradient in zip(points, values, gradients, strict=True):
        leaf = point.clone().requires_grad_()
        expected = density.log_prob(leaf)
        (wanted,) = torch.autograd.grad(expected, leaf)
        torch.testing.assert_close(torch.as_tensor(value), expected.detach())
        torch.testing.assert_close(torch.as_tensor(gradient), wanted)


@pytest.mark.parametrize("engine", ["compiled", "eager"])
def test_draws_of_a_latent_context_have_its_moments(engine: Literal["compiled", "eager"]) -> None:
    density = of_latent_context("MADE", 3)
    warmup, draws = (200, 500) if engine == "compiled" else (15, 25)
    method = NUTS(chains=4, draws=draws, warmup=warmup, engine=engine)
    posterior = pg.fit(density.pair, density.data, method)
    # The density on a grid: of a smooth function on all of its mass, exact to rounding.
    grid = torch.linspace(-8, 8, 2001, dtype=torch.double).unsqueeze(1)
    weights = density.log_prob(grid).softmax(0)
    mean = (weights * grid[:, 0]).sum()
    sd = (weights * (grid[:, 0] - mean).square()).sum().sqrt()
    # A fifth of the draws are effective at the least: five errors of the mean, and of the sd, which
    # is that over the square root of two of a normal.
    z = torch.as_tensor(posterior.draws["z"]).flatten()
    error = sd / (len(z) / 5) ** 0.5
    assert abs(z.mean() - mean) < 5 * error
    assert abs(z.std() - sd) < 5 * error
    # The prior has another one, as five hundred draws can tell.
    assert abs(mean) > 5 * error or engine == "eager"


def test_a_network_that_is_random_in_training_has_one_density_and_adds_up() -> None:
    torch.manual_seed(0)
    network = OrderAgnosticMADE((2, 2), (6,), context_size=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4)
    x = torch.randint(2, (70, 2, 2)).float()

    def model(x: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", network(z.reshape(1)), obs=x)

    def guide(x: torch.Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    report = pg.check((model, guide), {"x": x})
    assert report.ok, report
    density, point = LogDensity(model, {"x": x}), torch.zeros(1, dtype=torch.double)
    with torch.no_grad():
        found = {float(density.log_prob(point)) for _ in range(5)}
        ensemble = network.double().eval()(torch.zeros(1, dtype=torch.double))
        expected = float(ensemble.log_prob(x).sum() + dist.Normal(0.0, 1.0).log_prob(point).sum())
    assert len(found) == 1
    assert found.pop() == pytest.approx(expected)
