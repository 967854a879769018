"""Recorded steps against the pair itself, and what must not be recorded.

A recording runs the operators of the pair, in its order, on its random numbers: in float32 and
float64 alike, loss and gradients are equal to the last bit.
"""

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from ppl_gen import Pair
from ppl_gen.core import LogDensity
from ppl_gen.core.minibatch import ScalePlate
from ppl_gen.core.pair import as_pair
from ppl_gen.core.scope import default_dtype, unchecked
from ppl_gen.inference.bounds import (
    ELBO,
    ImportanceWeighted,
    Linear,
    Renyi,
    ReweightedWakeSleep,
)
from ppl_gen.inference.guides import GaussianGuide
from ppl_gen.inference.objectives import GaussianObjective, PairObjective
from ppl_gen.inference.training.compiled import LossAndGradients
from ppl_gen.models import VAE

State = list[torch.Tensor | None]


def step_of(pair: nn.Module, batch: Any, **options: Any) -> LossAndGradients:
    pair.train()
    particles = options.pop("particles", 1)
    objective = PairObjective(pair, batch, particles, **options)
    return LossAndGradients(objective, [p for _, p in objective.named_parameters()])


def eager(step: LossAndGradients, batch: Any, progress: float) -> State:
    """Return loss, gradients, buffers and random state after a run of the pair itself."""
    for parameter in step.parameters:
        parameter.grad = None
    with unchecked():
        loss = step.objective.loss(batch, progress)
        loss.backward()
    return [loss.detach(), *state(step)]


def state(step: LossAndGradients) -> State:
    buffers = [b.clone() for module in step.objective.modules for b in module.buffers()]
    return [*(p.grad for p in step.parameters), *buffers, torch.get_rng_state()]


def both(
    step: LossAndGradients, batch: Any, progress: float = 0.0, seed: int = 3
) -> tuple[State, State]:
    """Return all that a recorded step leaves behind, and all that the pair itself does."""
    buffers = [b for module in step.objective.modules for b in module.buffers()]
    values = [b.clone() for b in buffers]
    torch.manual_seed(seed)
    recorded = [step(batch, progress), *state(step)]
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
    torch.manual_seed(seed)
    return recorded, eager(step, batch, progress)


def assert_equal(step: LossAndGradients, *batches: Any) -> None:
    """Compare several calls, which recorded steps without a comparison of their own are among."""
    for call in range(6):
        recorded, itself = both(step, batches[call % len(batches)], call / 6, seed=call)
        assert step.reason is None, step.reason
        torch.testing.assert_close(recorded, itself, rtol=0, atol=0)
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in step.parameters)


def images(rows: int, seed: int = 0, *, integer: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, 6, 6, generator=generator)
    return {"x": (x * 3.99).long() if integer else x}


@pytest.mark.parametrize("likelihood", ["bernoulli", "binarized", "gaussian", "categorical"])
@pytest.mark.parametrize("network", ["mlp", "convolutional"])
def test_a_vae_and_its_short_last_batch(likelihood: str, network: str) -> None:
    torch.manual_seed(0)
    pair = VAE((6, 6), 2, (8,), likelihood, network, num_categories=4, channels=(3,))
    integer = likelihood == "categorical"
    step = step_of(pair, images(5, integer=integer), scale=ScalePlate("data", 7))
    assert_equal(step, images(5, 1, integer=integer), images(3, 2, integer=integer))
    assert len(step._programs) == 2


@pytest.mark.parametrize(
    "objective",
    [
        ELBO(beta=0.3),
        ELBO(sticking=True),
        ImportanceWeighted(samples=3),
        Renyi(samples=3),
    ],
    ids=repr,
)
def test_every_objective(objective: Any) -> None:
    torch.manual_seed(0)
    pair = VAE((6, 6), 2, (8,))
    step = step_of(pair, images(5), objective=objective, scale=ScalePlate("data", 7))
    assert_equal(step, images(5, 1), images(5, 2))


def test_the_weight_of_an_annealed_kl_part_is_followed() -> None:
    torch.manual_seed(0)
    step = step_of(VAE((6, 6), 2, (8,)), images(5), objective=ELBO(beta=Linear(0.1, 0.5)))
    for call, progress in enumerate([0.0, 0.1, 0.2, 0.3, 0.9, 0.05]):
        recorded, itself = both(step, images(5, call), progress)
        # The weight is a tensor in one and a number in the other: products round once more.
        torch.testing.assert_close(recorded, itself, rtol=1e-5, atol=1e-4)
    assert step.reason is None
    assert len(step._programs) == 1
    early, late = both(step, images(5), 0.0)[0][0], both(step, images(5), 0.4)[0][0]
    assert early is not None
    assert late is not None
    assert late > early + 0.01  # nats; the KL part is positive


class Globals(Pair):
    """A global latent, local ones, a mask, a scale, a factor, and a `pyro.param`."""

    def model(self, y: torch.Tensor, weight: float = 1.0) -> None:
        top = pyro.sample("top", dist.LogNormal(0.0, 1.0))
        pyro.factor("tilt", -0.1 * weight * top)
        with pyro.plate("data", len(y)), poutine.scale(scale=2.0):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(y), 2), top).to_event(1))
            with poutine.mask(mask=y > 0):
                pyro.sample("y", dist.StudentT(3.0, z.sum(-1), 1.0), obs=y)

    def guide(self, y: torch.Tensor, weight: float = 1.0) -> None:
        loc = pyro.param("loc", torch.tensor(0.3))
        scale = pyro.param("scale", torch.tensor(0.2), constraint=dist.constraints.positive)
        pyro.sample("top", dist.LogNormal(loc, scale))
        with pyro.plate("data", len(y)), poutine.scale(scale=2.0):
            slope = pyro.param("slope", torch.tensor(0.7)) * y.unsqueeze(-1).expand(-1, 2)
            pyro.sample("z", dist.Normal(slope, 0.5).to_event(1))


Y = torch.tensor([1.0, -2.0, 0.5])


@pytest.mark.parametrize("particles", [1, 3])
def test_globals_plates_masks_and_pyro_params(particles: int) -> None:
    step = step_of(Globals(), {"y": Y}, particles=particles)
    assert_equal(step, {"y": Y}, {"y": Y + 0.3})
    recorded, itself = both(step, {"y": Y, "weight": 3.0})  # a number is part of the batch
    torch.testing.assert_close(recorded, itself, rtol=0, atol=0)


class Subsampled(Globals):
    """Its plate draws rows of its own, and another one is a loop."""

    def model(self, y: torch.Tensor) -> None:
        top = pyro.sample("top", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=2) as chosen:
            pyro.sample("y", dist.Normal(top, 1.0), obs=y[chosen])
        for i in pyro.plate("loop", 2):
            pyro.sample(f"y_{i}", dist.Normal(top, 1.0 + i), obs=y[i])

    def guide(self, y: torch.Tensor) -> None:
        pyro.sample("top", dist.LogNormal(pyro.param("loc", torch.tensor(0.3)), 0.2))


def test_plates_that_draw_rows_and_plates_that_are_loops() -> None:
    assert_equal(step_of(Subsampled(), {"y": Y}), {"y": Y}, {"y": Y.exp()})


class Mixture(Pair):
    """A discrete latent that the guide leaves out, so that it is summed out."""

    def model(self, y: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("y", dist.Normal(loc[k], 1.0), obs=y)

    def guide(self, y: torch.Tensor) -> None:
        centre = pyro.param("centre", torch.tensor([-1.0, 1.0]))
        pyro.sample("loc", dist.Normal(centre, 0.3).to_event(1))


def test_discrete_latents_that_are_summed_out() -> None:
    assert_equal(step_of(Mixture(), {"y": Y}), {"y": Y}, {"y": Y.flip(0) + 1})


class Score(Pair):
    """A discrete latent in the guide: Pyro's score function, or reweighted wake-sleep."""

    def model(self, y: torch.Tensor) -> None:
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(2.0 * k, pyro.param("noise", torch.tensor(1.1))), obs=y)

    def guide(self, y: torch.Tensor) -> None:
        logits = pyro.param("slope", torch.tensor(0.4)) * y
        with pyro.plate("data", len(y)):
            pyro.sample("k", dist.Bernoulli(logits=logits))


@pytest.mark.parametrize("objective", [ELBO(), ReweightedWakeSleep(samples=3)], ids=repr)
def test_guides_that_gradients_cannot_pass_through(objective: Any) -> None:
    """Pyro's score function reads numbers, which is nothing to warn of."""
    step = step_of(Score(), {"y": Y}, objective=objective)
    assert_equal(step, {"y": Y}, {"y": Y.flip(0)})
    assert bool(step._programs) is isinstance(objective, ReweightedWakeSleep)


@pytest.mark.parametrize("family", ["mean_field", "full_rank"])
def test_a_gaussian_guide_on_mini_batches(family: Any) -> None:
    def model(y: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, scale), obs=y)

    density = LogDensity(as_pair(model), {"y": Y})
    guide = GaussianGuide(density.dim, family)
    y = Y.double()
    with default_dtype(torch.float64):
        objective = GaussianObjective(density, guide, 4, ScalePlate("data", 5))
        assert_equal(LossAndGradients(objective, list(guide.parameters())), {"y": y}, {"y": y + 1})
        whole = GaussianObjective(density, guide, 4)
        assert_equal(LossAndGradients(whole, list(guide.parameters())), None)


class Network(Pair):
    """A pair around a network in its guide, and whatever a test does in the model."""

    def __init__(
        self, *layers: nn.Module, inside: Callable[["Network", Any], Any] | None = None
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), *layers, nn.Linear(8, 2))
        self.inside = inside
        self.level = 1.0
        self.register_buffer("offset", torch.zeros(()))

    def model(self, x: torch.Tensor) -> None:
        factor = 1.0 if self.inside is None else self.inside(self, x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(factor * z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        loc = self.layers(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))


def rows(seed: int = 0, shift: float = 0.0) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(6, 3, generator=torch.Generator().manual_seed(seed)) + shift}


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.5), nn.BatchNorm1d(8), nn.LayerNorm(8), nn.GELU()], ids=repr
)
@pytest.mark.parametrize("particles", [1, 2])
def test_layers_with_noise_and_buffers_of_their_own(layer: nn.Module, particles: int) -> None:
    pair = Network(layer)
    assert_equal(step_of(pair, rows(), particles=particles), rows(1), rows(2))


def test_a_buffer_that_the_model_writes_to() -> None:
    def moving_mean(pair: Network, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            pair.offset.mul_(0.9).add_(x.mean(), alpha=0.1)
        return 1 + pair.offset

    pair = Network(inside=moving_mean)
    assert_equal(step_of(pair, rows()), rows(1), rows(2))
    assert pair.offset != 0


def test_noise_of_the_models_own() -> None:
    """Two draws of one distribution are two, and one that is not used is drawn all the same."""

    def noise(_: Network, x: torch.Tensor) -> torch.Tensor:
        torch.rand(3)
        half = torch.full_like(x, 0.5)
        return 1 + (torch.bernoulli(half) - 2 * torch.bernoulli(half)).mean()

    assert_equal(step_of(Network(inside=noise), rows()), rows(1), rows(2))


def test_a_constant_that_the_model_writes_to_starts_anew_in_each_step() -> None:
    def count(_: Network, x: torch.Tensor) -> torch.Tensor:
        total = torch.tensor(1.0)
        total += x.abs().mean()
        return total

    assert_equal(step_of(Network(inside=count), rows()), rows(1), rows(2))


def test_a_run_that_goes_on_elsewhere_is_the_same() -> None:
    """Neither the first run of a shape nor a comparison leaves a trace."""

    def train(step: LossAndGradients, numbers: range) -> list[float]:
        losses = []
        for number in numbers:
            losses.append(step(rows(number), number / 9).item())
            torch.optim.SGD(step.parameters, 1e-3).step()
        return losses

    whole, parts = (Network(nn.BatchNorm1d(8), nn.Dropout(0.2)) for _ in range(2))
    step = step_of(whole, rows(), particles=2)
    torch.manual_seed(1)
    losses = train(step, range(9))
    whole_buffers = state(step)
    step = step_of(parts, rows(), particles=2)
    torch.manual_seed(1)
    found = train(step, range(5))
    noise, values = torch.get_rng_state(), {n: v.clone() for n, v in parts.state_dict().items()}
    step = step_of(parts, rows(), particles=2)  # in another process: it draws numbers of its own
    parts.load_state_dict(values)
    torch.set_rng_state(noise)
    found += train(step, range(5, 9))
    assert step.reason is None
    assert found == losses
    torch.testing.assert_close(state(step), whole_buffers, rtol=0, atol=0)
    torch.testing.assert_close(whole.state_dict(), parts.state_dict(), rtol=0, atol=0)


# ---- what cannot be recorded


def branch(_: Network, x: torch.Tensor) -> float:
    return 2.0 if x.mean() > 0 else 0.5


def number(_: Network, x: torch.Tensor) -> float:
    return x.std().item()


def rebuilt(_: Network, x: torch.Tensor) -> torch.Tensor:
    return torch.tensor([x.mean(), 2.0]).sum()


def chosen(_: Network, x: torch.Tensor) -> torch.Tensor:
    return x[x > 0].sum()


def as_list(_: Network, x: torch.Tensor) -> float:
    return sum(x.flatten().tolist())


def of_a_parameter(pair: Network, _: torch.Tensor) -> float:
    return float(pair.layers[0].bias.detach()[0]) + 1.0


def foreign_noise(_: Network, x: torch.Tensor) -> float:
    return 1.0 + random.random()


def own_generator(_: Network, x: torch.Tensor) -> torch.Tensor:
    return 1 + torch.rand((), generator=torch.Generator().manual_seed(3))


def counter(pair: Network, x: torch.Tensor) -> float:
    pair.level += 0.1
    return pair.level


def replaced_buffer(pair: Network, x: torch.Tensor) -> torch.Tensor:
    pair.offset = 0.9 * pair.offset + 0.1 * x.mean().detach()
    return 1 + pair.offset


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        (branch, "course depends on values of tensors .* in test_compiled.py, line .*branch"),
        (number, "depends on values of tensors .*number"),
        (rebuilt, "makes plain numbers of tensors .*rebuilt"),
        (chosen, "the shape of a tensor depends on values .*chosen"),
        (as_list, "makes plain numbers of tensors .*as_list"),
        (of_a_parameter, "depends on values of tensors .*of_a_parameter"),
        (foreign_noise, "Python's or NumPy's generator"),
        (own_generator, "a generator of the model's own .*own_generator"),
        (counter, "changes an attribute of the pair .level"),
        (replaced_buffer, "changes an attribute of the pair .offset"),
    ],
)
def test_what_cannot_be_recorded_is_run_as_it_is(
    inside: Callable[[Network, Any], Any], reason: str
) -> None:
    pair = Network(inside=inside)
    step = step_of(pair, rows())
    python = random.getstate()
    with pytest.warns(UserWarning, match=reason):
        step(rows(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in range(4):
            pair.level = 1.0
            random.seed(call)
            recorded = [step(rows(call, shift=call - 1.5)), *(p.grad for p in step.parameters)]
            assert all(g is not None for g in recorded)
    random.setstate(python)
    pair.level = 1.0
    recorded, itself = [], []
    for shift in (-1.0, 1.0):
        for results, run in ((recorded, step), (itself, lambda b: eager(step, b, 0.0)[0])):
            torch.manual_seed(0)
            random.seed(0)
            pair.level = 1.0
            pair.offset = torch.zeros(())
            results.append(run(rows(7, shift)))
    random.setstate(python)
    assert recorded == itself


LEVEL = [1.0]


def of_a_global(_: Network, x: torch.Tensor) -> float:
    return LEVEL[0]


@pytest.fixture
def _level() -> Iterator[None]:
    yield
    LEVEL[0] = 1.0


@pytest.mark.usefixtures("_level")
def test_a_number_from_outside_is_not_frozen_for_good() -> None:
    step = step_of(Network(inside=of_a_global), rows())
    step(rows(1))
    LEVEL[0] = 3.0
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="another loss or gradient than the pair"):
        found = step(rows(2))
    torch.manual_seed(0)
    assert found == eager(step, rows(2), 0.0)[0]


def test_a_counter_goes_on_as_if_nothing_had_been_tried() -> None:
    pair = Network(inside=counter)
    step = step_of(pair, rows())
    pair.level = 1.0
    with pytest.warns(UserWarning, match="changes an attribute"):
        step(rows(1))
    assert pair.level == pytest.approx(1.1)
    step(rows(2))
    assert pair.level == pytest.approx(1.2)


def test_attributes_are_followed() -> None:
    """A callback may change the pair between two steps."""
    pair = Network(nn.Dropout(0.5), inside=lambda pair, _: pair.level)
    step = step_of(pair, rows())
    assert_equal(step, rows(1))
    changes: list[Callable[[], object]] = [
        lambda: setattr(pair, "level", 2.0),
        pair.eval,
        pair.train,
        lambda: pair.layers[0].requires_grad_(False),
    ]
    for change in changes:
        before = both(step, rows(1))[0][0]
        change()
        recorded, itself = both(step, rows(1))
        torch.testing.assert_close(recorded, itself, rtol=0, atol=0)
        assert step.reason is None
        if change is changes[0]:
            assert recorded[0] != before


def test_a_constant_that_was_looked_at_is_watched() -> None:
    switch = torch.ones(3)
    pair = Network(inside=lambda _, x: 2.0 if switch.sum() > 0 else x.abs().mean())
    step = step_of(pair, rows())
    assert_equal(step, rows(1))
    switch.neg_()
    assert_equal(step, rows(2))


def test_parameters_whose_memory_is_replaced() -> None:
    """As `nn.utils.vector_to_parameters` does."""
    step = step_of(Network(), rows())
    assert_equal(step, rows(1))
    for parameter in step.parameters:
        parameter.data = 2 * parameter.data
    assert_equal(step, rows(1))


def test_too_many_shapes() -> None:
    step = step_of(VAE((6, 6), 2, (8,)), images(5))
    for size in range(1, 7):
        step(images(size))
    with pytest.warns(UserWarning, match="more than 6 shapes"):
        step(images(7))
    recorded, itself = both(step, images(9))
    torch.testing.assert_close(recorded, itself, rtol=0, atol=0)


def test_an_error_of_the_model_is_its_own() -> None:
    def fails(_: Network, x: torch.Tensor) -> float:
        raise ZeroDivisionError("of the user's")

    pair = Network()
    step = step_of(pair, rows())
    pair.inside = fails
    with pytest.raises(ZeroDivisionError, match="of the user's"):
        step(rows(1))


def test_no_gradients_share_memory() -> None:
    """What clips one gradient in place must leave the others alone."""

    class Twins(Network):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Parameter(torch.zeros(2)) for _ in range(2))
            self.unused = nn.Parameter(torch.zeros(2))

        def guide(self, x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                loc = self.layers(x) + (self.first + self.second)
                pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    pair = Twins()
    step = step_of(pair, rows())
    assert_equal(step, rows(1))
    step(rows(2))
    assert pair.unused.grad is None
    assert pair.first.grad is not None
    expected = pair.second.grad.clone()  # type: ignore[union-attr]
    pair.first.grad.zero_()
    assert torch.equal(pair.second.grad, expected)  # type: ignore[arg-type]
    addresses = {p.grad.untyped_storage().data_ptr() for p in step.parameters if p.grad is not None}
    assert len(addresses) == sum(p.grad is not None for p in step.parameters)
    for parameter in step.parameters:
        assert parameter.grad is None or parameter.grad.stride() == parameter.stride()


# ---- options


def test_products_in_bfloat16() -> None:
    torch.manual_seed(0)
    pair = VAE((6, 6), 2, (32,)).train()
    exact = step_of(pair, images(16))
    step = LossAndGradients(exact.objective, exact.parameters, autocast=torch.bfloat16)
    for call in range(4):
        torch.manual_seed(call)
        rounded = [step(images(16, call)), *(p.grad for p in step.parameters)]
        torch.manual_seed(call)
        itself = [exact(images(16, call)), *(p.grad for p in exact.parameters)]
        assert step.reason is None
        for ours, theirs in zip(rounded, itself, strict=True):
            assert ours is not None
            assert theirs is not None
            assert ours.dtype == torch.float32
            # A factor in bfloat16 is rounded by up to 2**-9 of itself: five products in a row, with
            # factors of either sign and some ReLUs switched, leave some 30 times that.
            assert (ours - theirs).norm() < 0.06 * theirs.norm()
            assert not torch.equal(ours, theirs)
    code = next(iter(step._programs.values())).recording.module.code
    assert code.count("torch.bfloat16") > 4


def test_compiled_by_inductor() -> None:
    pair = Network(nn.BatchNorm1d(8), nn.Dropout(0.3))
    plain = step_of(pair, rows())
    step = LossAndGradients(plain.objective, plain.parameters, compile=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call in range(4):
            recorded, itself = both(step, rows(call))
            assert step.reason is None
            torch.testing.assert_close(recorded, itself, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
def test_one_cuda_graph() -> None:
    pair = VAE((6, 6), 2, (8,)).cuda()
    on_device = [{"x": images(5, seed)["x"].cuda()} for seed in range(4)]
    step = step_of(pair, on_device[0])
    for batch in on_device:
        torch.cuda.manual_seed(0)
        recorded = [step(batch), *(p.grad for p in step.parameters)]
        torch.cuda.manual_seed(0)
        itself = eager(step, batch, 0.0)[: len(recorded)]
        assert step.reason is None
        torch.testing.assert_close(recorded, itself, rtol=1e-5, atol=1e-5)
