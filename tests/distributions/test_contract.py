"""What torch.distributions asks of every distribution, asked of each of ours.

A case joins by one line of `CASES`.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import TorchDistribution

from ppl_gen.distributions import (
    AutoregressiveNetwork,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Elements,
    MuLawCategorical,
)
from ppl_gen.models.networks import (
    FVBN,
    MADE,
    NADE,
    DiagonalBiLSTM,
    GatedPixelCNN,
    MultiScale,
    OrderAgnosticMADE,
    PixelCNN,
    PixelCNNPlusPlus,
    RowLSTM,
    WaveNet,
)

BATCH = 3
BINARY, THREE, MIXED = Elements(), Elements("categorical", 3), Elements("logistic_mixture", 3, 2)


@dataclass
class Case:
    """How a distribution of batch shape (3,) is made, and of what."""

    make: Callable[..., TorchDistribution]
    tensors: tuple[torch.Tensor, ...]
    network: AutoregressiveNetwork | None = None

    @property
    def distribution(self) -> TorchDistribution:
        parts = self.tensors if self.network is None else (self.network, *self.tensors)
        return self.make(*parts)

    def to(self, where: torch.device | torch.dtype) -> Case:
        """Return a case of the same on another device, or in another precision."""
        network = None if self.network is None else copy.deepcopy(self.network).to(where)
        return Case(self.make, tuple(tensor.to(where) for tensor in self.tensors), network)

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [*self.tensors, *(self.network.parameters() if self.network is not None else ())]

    def values(self) -> torch.Tensor:
        """All values, (value, *event_shape)."""
        if self.network is None:
            return self.distribution.enumerate_support(expand=False).flatten()
        event = self.network.event_shape
        every = itertools.product(range(self.network.elements.highest + 1), repeat=math.prod(event))
        return torch.tensor(list(every), dtype=self.tensors[0].dtype).reshape(-1, *event)


def univariate(make: Callable[..., TorchDistribution], *shapes: tuple[int, ...]) -> Case:
    return Case(make, tuple(torch.randn(BATCH, *shape).double() for shape in shapes))


def networked(network: AutoregressiveNetwork, **options: Any) -> Case:
    with torch.no_grad():  # members of the batch are to differ
        for parameter in network.parameters():
            parameter.mul_(2)
    network = network.double().eval()
    context = torch.tensor([[6.0, 0.0], [0.0, 6.0], [-4.0, -4.0]]).double()
    return Case(lambda network, context: network(context, **options), (context,), network)


CASES: dict[str, Callable[[], Case]] = {
    "DiscretizedLogistic": lambda: univariate(
        lambda loc, log_scale: DiscretizedLogistic(loc, log_scale, bins=5), (), ()
    ),
    "DiscretizedLogisticMixture": lambda: univariate(
        lambda *three: DiscretizedLogisticMixture(*three, bins=6), (2,), (2,), (2,)
    ),
    "MuLawCategorical": lambda: univariate(MuLawCategorical, (7,)),
    "FVBN": lambda: networked(FVBN((2, 2), THREE, 2)),
    "NADE": lambda: networked(NADE((2, 2), 5, BINARY, 2)),
    "MADE": lambda: networked(MADE((2, 2), (9, 8), THREE, 2)),
    "MADE, mixture of logistics": lambda: networked(MADE((3,), (9,), MIXED, 2)),
    "MADE, an ordering": lambda: networked(
        MADE((2, 2), (9,), THREE, 2), ordering=torch.tensor([2, 0, 3, 1])
    ),
    "OrderAgnosticMADE, an ordering": lambda: networked(
        OrderAgnosticMADE((2, 2), (9,), THREE, 2), ordering=torch.tensor([2, 0, 3, 1])
    ),
    "OrderingEnsemble": lambda: networked(
        OrderAgnosticMADE((2, 2), (9,), BINARY, 2, num_orderings=3)
    ),
    "PixelCNN": lambda: networked(PixelCNN((2, 2), 6, 2, BINARY, 2)),
    "PixelCNN of colours": lambda: networked(PixelCNN((3, 1, 1), 6, 2, THREE, 2)),
    "GatedPixelCNN": lambda: networked(
        GatedPixelCNN((2, 2), 6, 2, elements=BINARY, context_size=2)
    ),
    "RowLSTM": lambda: networked(RowLSTM((2, 2), 4, 1, elements=BINARY, context_size=2)),
    "DiagonalBiLSTM": lambda: networked(DiagonalBiLSTM((2, 2), 4, 1, BINARY, 2)),
    "PixelCNNPlusPlus": lambda: networked(
        PixelCNNPlusPlus((2, 2), 6, 1, 2, 0.0, BINARY, context_size=2)
    ),
    "MultiScale": lambda: networked(
        MultiScale(
            GatedPixelCNN((1, 2), 6, 1, elements=BINARY, context_size=2),
            GatedPixelCNN((2, 3), 6, 2, elements=BINARY, context_maps=3),
            6,
        )
    ),
    "WaveNet": lambda: networked(WaveNet(4, 4, 4, 2, 2, THREE, 2)),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CASES[request.param]()


def total(case: Case) -> torch.Tensor:
    """Return the sum of the probabilities of all values, (batch,)."""
    values = case.values()
    by_value = values.reshape(len(values), 1, *values.shape[1:])
    return case.distribution.log_prob(by_value).exp().sum(0)


def test_it_sums_to_one(case: Case) -> None:
    with torch.no_grad():
        torch.testing.assert_close(total(case), torch.ones(BATCH).double(), rtol=0, atol=1e-12)


def test_draws_are_as_frequent_as_they_are_probable(case: Case) -> None:
    count = 4000
    values = case.values()
    with torch.no_grad():
        probable = case.distribution.log_prob(values.unsqueeze(1)).exp()  # (value, batch)
    drawn = case.distribution.sample((count,))
    assert drawn.shape == (count, BATCH, *values.shape[1:])
    pairs = drawn.to(values).reshape(count, BATCH, 1, -1), values.reshape(len(values), -1)
    same = (pairs[0] - pairs[1]).abs().amax(-1) < 1e-9
    counts = same.sum(0).T.double()  # (value, batch)
    assert (counts.sum(0) == count).all()

    def distance(expected: torch.Tensor) -> torch.Tensor:
        """Return Pearson's statistic in standard deviations from its mean, (batch,)."""
        # Rare values are taken together, so that the statistic is about chi-squared: its mean
        # is df and its variance 2 df.
        rare = expected < 5
        cells = [(counts - expected).square() / expected.clamp(min=5) * ~rare]
        left = [(part * rare).sum(0, keepdim=True) for part in (counts, expected)]
        cells.append((left[0] - left[1]).square() / left[1].clamp(min=1))
        df = (~rare).sum(0).clamp(min=1)
        return (torch.cat(cells).sum(0) - df) / (2 * df).sqrt()

    # Of fifty statistics none is six sds out by chance: a chi-squared of 3 df at 17.7 has a tail
    # of 5e-4, one of 80 df of 1e-7.
    assert (distance(probable * count) < 6).all()
    # Draws of another member of the batch are told from these.
    assert (distance(probable.roll(1, 1) * count) > 6).any()


def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    values = case.distribution.sample()
    parameters = case.parameters
    before = [p.detach().clone() for p in parameters]
    for parameter in parameters:
        parameter.requires_grad_()
    gradients = torch.autograd.grad(
        case.distribution.log_prob(values).sum(), parameters, allow_unused=True
    )
    assert all(g is not None for g in gradients[: len(case.tensors)])
    directions = [torch.randn_like(p) for p in parameters]
    found = sum(
        float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None
    )

    def moved(step: float) -> float:
        with torch.no_grad():
            for parameter, start, direction in zip(parameters, before, directions, strict=True):
                parameter.copy_(start + step * direction)
            return float(case.distribution.log_prob(values).sum())

    # Rounding of 1e-14 over a step of 1e-6 leaves 1e-8, and the third derivative 1e-12.
    expected = (moved(1e-6) - moved(-1e-6)) / 2e-6
    moved(0.0)
    for parameter in case.tensors:
        parameter.requires_grad_(False)
    assert abs(expected) > 1e-3
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_shapes_and_expansion(case: Case) -> None:
    distribution = case.distribution
    event = case.values().shape[1:]
    assert (distribution.batch_shape, distribution.event_shape) == ((BATCH,), event)
    assert distribution.sample((2, 4)).shape == (2, 4, BATCH, *event)
    if case.network is not None:  # of none, PyTorch's Categorical has no draws
        assert distribution.sample((0,)).shape == (0, BATCH, *event)
    value = distribution.sample()
    log_prob = distribution.log_prob(value)
    for wide, shape in (
        (distribution.expand((2, BATCH)), (2, BATCH)),
        (distribution.expand((1, BATCH)).expand((4, 2, BATCH)), (4, 2, BATCH)),
    ):
        assert type(wide) is type(distribution)
        assert (wide.batch_shape, wide.event_shape) == (shape, event)
        assert wide.sample((5,)).shape == (5, *shape, *event)
        torch.testing.assert_close(wide.log_prob(value), log_prob.expand(shape))
        # Its members are independent of each other.
        drawn = wide.sample((50,)).reshape(50, -1, BATCH, *event)
        assert (drawn[:, 0] != drawn[:, 1]).any()
    with pytest.raises(RuntimeError):
        distribution.expand((BATCH + 1,))
    wanted = distribution.expand((5, BATCH)).log_prob(value.unsqueeze(0))
    torch.testing.assert_close(wanted, log_prob.expand(5, BATCH))


def test_its_wrappers_of_pyro(case: Case) -> None:
    distribution = case.distribution
    value = distribution.sample()
    log_prob = distribution.log_prob(value)
    together = distribution.to_event(1)
    torch.testing.assert_close(together.log_prob(value), log_prob.sum())
    assert together.sample().shape == value.shape
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(distribution.mask(mask).log_prob(value), log_prob * mask)
    assert distribution.support.check(value).all()


def test_draws_without_gradients_are_refused(case: Case) -> None:
    assert not case.distribution.has_rsample
    with pytest.raises(
        NotImplementedError, match=r"no gradient goes through its draws.*sample\(\)"
    ):
        case.distribution.rsample()


def test_all_values_are_listed_or_their_number_is_named(case: Case) -> None:
    distribution = case.distribution
    if case.network is None:
        assert distribution.has_enumerate_support
        every = distribution.enumerate_support()
        assert every.shape[1:] == (BATCH,)
        assert torch.equal(every[:, 0], distribution.enumerate_support(expand=False)[:, 0])
        return
    assert not distribution.has_enumerate_support
    elements = math.prod(case.network.event_shape)
    values = case.network.elements.highest + 1
    with pytest.raises(
        NotImplementedError, match=rf"is not summed out: .* make {values}\^{elements}"
    ):
        distribution.enumerate_support()


def test_moments_are_those_of_all_values(case: Case) -> None:
    distribution = case.distribution
    if case.network is not None:
        with pytest.raises(NotImplementedError):
            _ = distribution.mean
        return
    values = case.values().unsqueeze(1).double()
    probabilities = distribution.log_prob(values).exp()
    mean = (probabilities * values).sum(0)
    variance = (probabilities * (values - mean).square()).sum(0)
    torch.testing.assert_close(distribution.mean, mean)
    torch.testing.assert_close(distribution.variance, variance)


def test_what_is_no_value_is_refused(case: Case) -> None:
    distribution = case.distribution
    for wrong in (99.0, -1.5, 0.123, math.nan):
        value = distribution.sample().double()
        value.view(-1)[0] = wrong
        with pytest.raises(ValueError, match=f"{wrong:g}"):
            distribution.log_prob(value)
    event = case.values().shape[1:]
    for shape in ((BATCH + 1, *event), (BATCH, *event[:-1], 7) if event else (2,)):
        # Zero is a value of each. PyTorch writes shapes in brackets.
        with pytest.raises(ValueError, match=rf"[\[(]{', '.join(map(str, shape))}"):
            distribution.log_prob(torch.zeros(shape).double())


def test_copies_and_precisions(case: Case) -> None:
    value = case.distribution.sample()
    expected = case.distribution.log_prob(value).detach()
    assert torch.equal(copy.deepcopy(case.distribution).log_prob(value), expected)
    single = case.to(torch.float32).distribution
    found = single.log_prob(value.float() if value.is_floating_point() else value)
    assert found.dtype == torch.float32
    assert single.sample().dtype in (torch.float32, torch.int64)
    # Sums of a few numbers of about 1, from products of a few dozen, with a rounding of 6e-8 each.
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_nothing_but_a_draw_takes_random_numbers(
    case: Case, rng_unchanged: Callable[..., Any]
) -> None:
    distribution = case.distribution
    torch.manual_seed(1)
    value = distribution.sample((2,))
    torch.manual_seed(1)
    assert torch.equal(distribution.sample((2,)), value)
    with rng_unchanged("log_prob"):
        case.distribution.expand((2, BATCH)).log_prob(value)
        _ = distribution.support


@pytest.mark.parametrize(
    "device",
    [
        "meta",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
    ],
)
def test_it_is_on_the_device_of_what_it_is_made_of(case: Case, device: str) -> None:
    value = case.distribution.sample()
    expected = case.distribution.log_prob(value)
    moved = case.to(torch.device(device))
    with pyro.validation_enabled(device != "meta"):  # where there are no values to look at
        found = moved.distribution.log_prob(value.to(device))
        assert found.device.type == device
        assert found.shape == expected.shape
        if device != "meta":
            torch.testing.assert_close(found.cpu(), expected)
            assert moved.distribution.sample((2,)).device.type == device
