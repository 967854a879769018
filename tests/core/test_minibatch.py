"""Mini-batches: summed over an epoch they are the whole, exactly, a short last batch included."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from ppl_gen.core import Pair, fit
from ppl_gen.core.minibatch import MiniBatches, ScalePlate, split
from ppl_gen.core.pair import as_pair
from ppl_gen.inference import (
    ELBO,
    SVI,
    ImportanceWeighted,
    Renyi,
    ReweightedWakeSleep,
)
from ppl_gen.inference.bounds import Objective
from ppl_gen.inference.objectives import PairObjective

N, BATCH = 10, 4  # batches of 4, 4 and 2


class Line(Pair):
    """A line through weighted points; its guide is a point mass, so that the ELBO is exact."""

    def __init__(self, plate: str = "natural") -> None:
        super().__init__()
        self.plate = plate
        self.at = torch.nn.Parameter(torch.tensor([0.3, -0.2]))

    def rows(self, x: torch.Tensor) -> Any:
        if self.plate == "natural":
            return pyro.plate("data", len(x))
        return pyro.plate("data", N, subsample_size=len(x))

    def model(self, x: torch.Tensor, y: torch.Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with self.rows(x):
            pyro.sample("y", dist.Normal(w[0] + w[1] * x, 0.5), obs=y)

    def guide(self, x: torch.Tensor, y: torch.Tensor) -> None:
        pyro.sample("w", dist.Delta(self.at, event_dim=1))


def data() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(N, generator=generator) for name in ("x", "y")}


def gradient(pair: Line, batch: dict[str, Any], scale: Messenger | None) -> torch.Tensor:
    objective = PairObjective(pair, batch, particles=1, scale=scale)
    (value,) = torch.autograd.grad(objective.loss(batch), [pair.at])
    return value


@pytest.mark.parametrize("plate", ["natural", "subsample_size"])
def test_the_mean_gradient_of_an_epoch_is_that_of_the_whole_data(plate: str) -> None:
    pair = Line(plate)
    whole = gradient(pair, data(), None)
    batches = MiniBatches(data(), ("x", "y"), "data", N, BATCH)
    parts = [gradient(pair, batch, batches.scale) for batch in batches.epoch()]
    assert len(parts) == batches.num_batches == 3
    torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-5, atol=1e-5)


def test_scaling_each_batch_by_its_own_size_is_found_wrong() -> None:
    """The negative control: what a plate with subsample_size does on its own."""
    pair = Line("subsample_size")
    whole = gradient(pair, data(), None)
    batches = MiniBatches(data(), ("x", "y"), "data", N, BATCH)
    parts = [gradient(pair, batch, None) for batch in batches.epoch()]
    assert (torch.stack(parts).mean(0) - whole).abs().max() > 0.1


def test_an_epoch_has_each_row_once() -> None:
    rows = {"x": torch.arange(N), "other": torch.zeros(3)}
    batches = MiniBatches(rows, ("x",), "data", N, BATCH)
    epoch = [batch["x"] for batch in batches.epoch(1)]
    assert [len(batch) for batch in epoch] == [4, 4, 2]
    assert sorted(torch.cat(epoch).tolist()) == list(range(N))
    assert torch.cat(epoch).tolist() != list(range(N))


def test_the_plate_over_the_data_is_found_among_others() -> None:
    def model(x: torch.Tensor, groups: torch.Tensor) -> None:
        with pyro.plate("group", len(groups)):
            level = pyro.sample("level", dist.Normal(groups, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(level[0], 1.0), obs=x)

    from ppl_gen.core.pair import as_pair

    values = {"x": torch.zeros(N), "groups": torch.zeros(3)}
    assert split(as_pair(model), values, BATCH).plate == "rows"
    assert split(as_pair(model), values, 2, "group").names == ("groups",)
    with pytest.raises(ValueError, match=r"plate 'row' is not over.*Did you mean 'rows'"):
        split(as_pair(model), values, BATCH, "row")
    with pytest.raises(ValueError, match=r"larger than the data, which has 10 rows. Give at most"):
        split(as_pair(model), values, 11)
    # A plate without data is not taken for that of the rows, whichever comes first.
    assert split(as_pair(model), dict(reversed(values.items())), 2).plate == "rows"


def test_the_order_of_an_epoch_follows_from_the_seed_and_its_number() -> None:
    batches = MiniBatches({"x": torch.arange(N)}, ("x",), "data", N, BATCH)

    def order(*epoch: int) -> list[int]:
        return torch.cat([batch["x"] for batch in batches.epoch(*epoch)]).tolist()

    state = torch.get_rng_state()
    orders = [order(number, seed) for number in (1, 2) for seed in (0, 1)]
    assert len({tuple(rows) for rows in orders}) == 4
    assert order(2, 1) == orders[-1]
    assert torch.equal(torch.get_rng_state(), state)
    assert order() == list(range(N))


class Codes(Pair):
    """A latent for each row, which the guide knows for certain: every objective is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.4, 0.7], dtype=torch.float64))

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(self.weight[0] * z, 0.5), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(self.weight[1] * x))


@pytest.mark.parametrize(
    "objective",
    [
        ELBO(),
        ELBO(beta=0.5),
        ELBO(sticking=True),
        ImportanceWeighted(3),
        Renyi(0.5, 3),
        ReweightedWakeSleep(3),
    ],
    ids=repr,
)
def test_a_short_last_batch_counts_for_its_rows_under_every_objective(objective: Objective) -> None:
    pair = Codes()
    x = data()["x"].double()

    def loss(batch: dict[str, Any], scale: ScalePlate | None) -> torch.Tensor:
        target = PairObjective(pair, batch, 1, scale, objective)
        value = target.loss(batch, progress=0.5)
        found = torch.autograd.grad(value, list(pair.parameters()), allow_unused=True)
        return torch.cat([value.detach().reshape(1), *(g for g in found if g is not None)])

    batches = MiniBatches({"x": x}, ("x",), "data", N, BATCH)
    whole = loss({"x": x}, None)
    parts = [loss(batch, batches.scale) for batch in batches.epoch()]
    assert whole.shape == (3,)
    torch.testing.assert_close(torch.stack(parts).mean(0), whole)
    # The negative control: each batch scaled by N over its own size.
    sizes = [len(batch["x"]) for batch in batches.epoch()]
    own = [loss(b, ScalePlate("data", N / n)) for b, n in zip(batches.epoch(), sizes, strict=True)]
    assert (torch.stack(own).mean(0) - whole).abs().max() > 0.1


def test_a_plate_that_draws_rows_of_its_own_is_refused() -> None:
    """Its 3 rows would count for 3 of those of the mini-batch, which are more."""

    def model(x: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=3) as index:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[index])

    with pytest.raises(ValueError, match=r"plate 'data' draws rows of its own.*subsample_size out"):
        split(as_pair(model), {"x": torch.zeros(N)}, 5)


def test_a_plate_of_a_fixed_size_is_refused() -> None:
    def model(x: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"(?s)cannot be run .* have to follow the rows"):
        split(as_pair(model), {"x": torch.zeros(N)}, BATCH)


def test_a_model_without_a_plate_over_its_rows_is_refused() -> None:
    def model(x: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean, 1.0).expand(x.shape).to_event(1), obs=x)

    from ppl_gen.core.pair import as_pair

    with pytest.raises(ValueError, match="need a plate over the rows"):
        split(as_pair(model), {"x": torch.zeros(N)}, BATCH)


def test_options_of_mini_batches() -> None:
    for options in ({"epochs": 3}, {"plate": "data"}):
        with pytest.raises(ValueError, match="give batch_size"):
            fit(Line(), data(), SVI(guide="pair", **options), progress=False)
    with pytest.raises(ValueError, match="give one of them"):
        SVI(epochs=3, steps=4, batch_size=2)


def test_two_plates_over_the_rows_are_refused() -> None:
    """Only one of them would be scaled, and the other's rows count for too little."""

    def model(y: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        for name in ("first", "second"):
            with pyro.plate(name, len(y)):
                pyro.sample(f"y_{name}", dist.Normal(mean, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"plates first, second.*one plate"):
        split(as_pair(model), {"y": torch.zeros(N)}, BATCH)


def test_a_scale_of_the_models_prior_alone_stays_with_the_prior() -> None:
    """The guide's density is not scaled: -ELBO = -(5 log p(z) + log p(y|z) - log q(z))."""

    class Scaled(Pair):
        def model(self, y: torch.Tensor) -> None:
            with poutine.scale(scale=5.0):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

        def guide(self, y: torch.Tensor) -> None:
            pyro.sample("z", dist.Normal(0.5, 0.1))

    data = {"y": torch.tensor(2.0)}
    objective = PairObjective(Scaled(), data, particles=4000)
    loss = objective.loss(data).item()
    # E q of z is 1/2 and of z**2 0.26; all terms but the constants of three normals.
    moments = 5 * 0.5 * 0.26 + 0.5 * (4 - 2 * 2 * 0.5 + 0.26) - 0.5
    constants = 5 * 0.5 * math.log(2 * math.pi) - math.log(0.1)
    # The sd of one particle is below 0.2: five errors of the mean of 4,000 are 0.016.
    assert loss == pytest.approx(moments + constants, abs=0.016)


def test_a_site_with_rows_outside_of_the_plate_is_refused() -> None:
    """A likelihood that lost its indentation would not be scaled, the latents would."""

    def model(y: torch.Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y)):
            w = pyro.sample("w", dist.Normal(a, 1.0))
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    from ppl_gen.core.pair import as_pair

    with pytest.raises(ValueError, match=r"site 'y': .*inside plate 'data'"):
        split(as_pair(model), {"y": torch.zeros(N)}, BATCH)


def test_why_a_model_cannot_be_run_on_a_mini_batch() -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    from ppl_gen.core.pair import as_pair

    with pytest.raises(ValueError, match=r"x has 10, y has 8 rows.*the model failed"):
        split(as_pair(model), {"x": torch.zeros(N), "y": torch.zeros(8)}, BATCH)
    with pytest.raises(ValueError, match="at least two rows"):
        split(as_pair(model), {"x": torch.zeros(1), "y": torch.zeros(1)}, 1)
