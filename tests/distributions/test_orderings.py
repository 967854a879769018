"""Orderings: of a network that is made for one, of one that takes any, and several as a mixture."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ppl_gen.distributions import Autoregressive, Elements, OrderingEnsemble
from ppl_gen.models.networks import FVBN, MADE, OrderAgnosticMADE

BINARY, FOUR = Elements(), Elements("categorical", 4)
SHAPE = (3, 3)
COUNT = math.prod(SHAPE)


def all_images() -> torch.Tensor:
    """All binary images, (512, 3, 3)."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=COUNT))).reshape(-1, *SHAPE)


def places(images: torch.Tensor) -> torch.Tensor:
    """Return their places among all of them, (n,)."""
    powers = 2 ** torch.arange(COUNT).flip(0)
    return (images.flatten(1).long() * powers).sum(1)


def order_agnostic(*, direct_connections: bool = True) -> OrderAgnosticMADE:
    torch.manual_seed(0)
    network = OrderAgnosticMADE(
        SHAPE, (20, 15), BINARY, direct_connections=direct_connections, num_orderings=4
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4)
    return network.eval()


def fits(counts: torch.Tensor, probabilities: torch.Tensor) -> bool:
    """Return whether counts, (value,), are those of draws of such probabilities."""
    expected = probabilities * counts.sum()
    large = expected > 5
    # Pearson's statistic has a mean of df and a variance of 2 df, about: five sds.
    statistic = ((counts - expected).square() / expected)[large].sum()
    df = int(large.sum())
    return bool(statistic < df + 5 * math.sqrt(2 * df))


def test_an_ordering_is_a_permutation_of_a_network_for_one_order() -> None:
    torch.manual_seed(0)
    network = MADE((3, 2), (20,), FOUR).double()
    ordering = torch.randperm(6)
    x = torch.randint(4, (5, 3, 2))
    plain = network().log_prob(x.flatten(1)[:, ordering].reshape(5, 3, 2))
    assert torch.equal(network(ordering=ordering).log_prob(x), plain)
    drawn = network(ordering=ordering).sample((20_000,)).flatten(1)[:, ordering].double()
    same = network().sample((20_000,)).flatten(1).double()
    # Means of numbers from 0 to 3, whose sd is at most 1.5: five errors of their difference.
    assert ((drawn.mean(0) - same.mean(0)).abs() < 5 * 1.5 * math.sqrt(2 / 20_000)).all()


@pytest.mark.parametrize("ordering", [torch.zeros(6).long(), torch.arange(5), torch.arange(1, 7)])
def test_what_is_no_permutation_is_refused(ordering: torch.Tensor) -> None:
    for network in (MADE((3, 2), (5,)), OrderAgnosticMADE((3, 2), (5,))):
        with pytest.raises(ValueError, match=r"permutation of the numbers from 0 to 5.*randperm"):
            network(ordering=ordering)


@pytest.mark.parametrize("direct_connections", [False, True])
def test_numbers_depend_on_what_comes_before(*, direct_connections: bool) -> None:
    network = order_agnostic(direct_connections=direct_connections).double()
    for ordering in (*network.orderings, torch.arange(COUNT), torch.randperm(COUNT)):
        under = network.under(ordering)
        before = torch.eye(COUNT).bool()
        found = torch.zeros_like(before)
        for x in torch.randint(2, (30, 1, COUNT)).double():
            changed = (x - torch.eye(COUNT)).abs()
            numbers = under.numbers(torch.cat([x, changed]).reshape(-1, *SHAPE)).reshape(-1, COUNT)
            found |= (numbers[1:] - numbers[:1]).abs() > 1e-12
        # (element that was changed, number's element), in the order of the ordering.
        assert torch.equal(found[ordering][:, ordering], torch.ones_like(found).triu(1))


def test_each_ordering_and_their_ensemble_sum_to_one() -> None:
    network = order_agnostic().double()
    every = all_images()
    with torch.no_grad():
        each = [network(ordering=one).log_prob(every) for one in network.orderings]
        ensemble = network().log_prob(every)
    for log_prob in (*each, ensemble):
        assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(ensemble.exp(), torch.stack(each).exp().mean(0))
    # Untrained, orderings differ; Jensen's inequality is strict then.
    assert (each[0] - each[1]).abs().max() > 0.5
    assert (ensemble >= torch.stack(each).mean(0)).all()


def test_draws_of_an_ensemble_are_as_frequent_as_they_are_probable() -> None:
    network = order_agnostic()
    with torch.no_grad():
        probabilities = network().log_prob(all_images()).exp()
        of_one = network(ordering=network.orderings[0]).log_prob(all_images()).exp()
    counts = torch.bincount(places(network().sample((40_000,))), minlength=2**COUNT)
    assert fits(counts, probabilities)
    assert not fits(counts, of_one)


def test_training_mode_draws_an_ordering_anew() -> None:
    network = order_agnostic()
    x = all_images()[300:301]
    with torch.no_grad():
        each = {float(network(ordering=o).log_prob(x)) for o in network.orderings}
        network.train()
        found = {float(network().log_prob(x)) for _ in range(60)}
    assert isinstance(network(), Autoregressive)
    # That one of four is missed in 60 draws has a probability of 1e-7.
    assert found == each
    network.eval()().sample((2,))
    assert not network.training


def test_given_elements_come_first_in_an_order_agnostic_network() -> None:
    network = order_agnostic()
    image = torch.tensor([[math.nan, 1, math.nan], [0, math.nan, 1], [math.nan, 1, 0]])
    known = ~image.isnan()
    agrees = (all_images()[:, known] == image[known]).all(1)
    first = torch.cat([known.flatten().nonzero()[:, 0], (~known).flatten().nonzero()[:, 0]])
    with torch.no_grad():
        joint = network(ordering=first).log_prob(all_images()).exp() * agrees
    conditional = joint / joint.sum()
    natural = network(ordering=torch.arange(COUNT))
    counts = torch.bincount(places(natural.sample((20_000,), given=image)), minlength=2**COUNT)
    assert fits(counts, conditional)
    # In a network for one order elements are drawn given those before them alone.
    plain = MADE(SHAPE, (20, 15), BINARY)
    plain.load_state_dict(network.state_dict())
    counts = torch.bincount(places(plain().sample((20_000,), given=image)), minlength=2**COUNT)
    assert (counts[~agrees] == 0).all()
    assert not fits(counts, conditional)


def test_rows_may_have_other_known_elements() -> None:
    network = order_agnostic()
    given = torch.full((40, *SHAPE), math.nan)
    there = torch.rand(given.shape) < torch.rand(40, 1, 1)
    there[0], there[1] = True, False
    given[there] = torch.randint(2, given.shape).float()[there]
    for images in (network(), network(ordering=torch.randperm(COUNT)), network.train()()):
        drawn = images.sample((40,), given=given)
        assert torch.equal(drawn[there], given[there])
        assert 0 < drawn[~there].mean() < 1


def test_networks_of_different_orderings_make_an_ensemble() -> None:
    torch.manual_seed(0)
    networks = [FVBN(SHAPE).double() for _ in range(2)]
    members = [networks[0](), networks[1](ordering=torch.randperm(COUNT))]
    images = OrderingEnsemble(members)
    with torch.no_grad():
        assert float(images.log_prob(all_images()).exp().sum()) == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match="at least one"):
        OrderingEnsemble([])
    with pytest.raises(TypeError, match=r"members: expected Autoregressive .*, got FVBN\. A netw"):
        OrderingEnsemble(networks)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"event shape \(3, 3\), as the first, got .* \(2, 2\)"):
        OrderingEnsemble([networks[0](), FVBN((2, 2))()])


def test_orderings_follow_from_their_seed() -> None:
    one, same, other = (OrderAgnosticMADE(SHAPE, (4,), ordering_seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.orderings, same.orderings)
    assert not torch.equal(one.orderings, other.orderings)
    for name in ("num_orderings", "ensemble_size"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
            OrderAgnosticMADE(SHAPE, (4,), **{name: 0})


@pytest.mark.parametrize(("size", "expected"), [(2, 2), (20, 5)])
def test_an_ensemble_has_the_first_orderings(size: int, expected: int) -> None:
    network = OrderAgnosticMADE(SHAPE, (4,), num_orderings=5, ensemble_size=size).eval()
    members = network().members
    assert len(members) == expected
    for member, ordering in zip(members, network.orderings, strict=False):
        assert torch.equal(member.network.order, ordering)
