"""Models that no guide by name can hold: each says so, in bounded time."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import ppl_gen as pg
from ppl_gen.core import SiteError
from ppl_gen.inference import SVI, Pathfinder
from ppl_gen.inference.vi.run import NORMAL_GUIDES

METHODS: dict[str, Any] = {
    **{guide: SVI(guide=guide) for guide in NORMAL_GUIDES},
    "mean_field by steps": SVI(steps=10),
    "pathfinder": Pathfinder(paths=3),
}
Y = {"y": torch.tensor([1.0, 2.0, 0.5])}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Any:
    return METHODS[request.param]


def counts(y: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        jumps = pyro.sample("jumps", dist.Poisson(2.0))
        pyro.sample("y", dist.Normal(mu + jumps, 1.0), obs=y)


def test_a_discrete_latent_without_end_is_named(method: Any) -> None:
    with pytest.raises(SiteError, match="jumps") as error:
        pg.fit(counts, Y, method, progress=False)
    assert "Poisson" in str(error.value)
    assert "truncate it to a Categorical" in str(error.value)


def nothing(y: torch.Tensor) -> None:
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def only_discrete(y: torch.Tensor) -> None:
    with pyro.plate("rows", len(y)):
        side = pyro.sample("side", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(side, 1.0), obs=y)


@pytest.mark.parametrize("model", [nothing, only_discrete])
def test_without_continuous_latents_there_is_nothing_to_infer(method: Any, model: Any) -> None:
    with pytest.raises(
        ValueError, match=r"no (continuous )?latent site: there is nothing to infer"
    ):
        pg.fit(model, Y, method, progress=False)


def flat(name: str, support: constraints.Constraint = constraints.real) -> torch.Tensor:
    value: torch.Tensor = pyro.sample(name, dist.ImproperUniform(support, (), ()))
    return value


def ridge(y: torch.Tensor) -> None:
    """Only the sum of two flat latents is known."""
    known = pyro.sample("known", dist.Normal(0.0, 1.0))
    mean = flat("left") + flat("right") + known
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def growing(y: torch.Tensor) -> None:
    """Nothing depends on a flat positive latent, of which the density grows on the log scale."""
    flat("scale", constraints.positive)
    mean = flat("mean")
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def groups(y: torch.Tensor) -> None:
    """Only the sums of a flat mean and flat effects in a plate are known."""
    mean = flat("mean")
    with pyro.plate("rows", len(y)):
        effect = pyro.sample("effect", dist.ImproperUniform(constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mean + effect, 1.0), obs=y)


SITES = {ridge: ("'left'", "'right'"), growing: ("'scale'",), groups: ("'mean'", "'effect'")}


@pytest.mark.parametrize("model", SITES)
@pytest.mark.parametrize("guide", NORMAL_GUIDES)
def test_improper_posteriors_are_told_of(guide: str, model: Any) -> None:
    if (guide, model) == ("delta", growing):
        pytest.skip("with no Jacobian the density has a mode there, and is flat along the scale")
    posterior = pg.fit(model, Y, METHODS[guide], progress=False)
    assert not posterior.provenance["converged"]
    assert "improper" in posterior.warnings[0]
    assert all(site in posterior.warnings[0] for site in SITES[model])
    assert "proper prior" in posterior.warnings[0]
    # Not a hundredth of what the optimiser's limits would let it take.
    assert posterior.provenance["gradient_evaluations"] < 1_000_000


def test_pathfinder_tells_of_paths_without_end() -> None:
    posterior = pg.fit(growing, Y, Pathfinder(paths=3), progress=False)
    assert posterior.warnings[0].startswith("3 of 3 paths go on without end")
    assert posterior.provenance["gradient_evaluations"] < 100_000
    # One that is flat, and does not grow, is told of by its weights.
    assert pg.fit(ridge, Y, Pathfinder(paths=3), progress=False).warnings


@pytest.mark.parametrize("name", ["full_rank", "delta", "pathfinder"])
def test_a_density_that_depends_on_nothing_is_refused(name: str) -> None:
    def constant() -> None:
        flat("a")
        flat("b")

    with pytest.raises(ValueError, match="the same whatever the values of 'a', 'b'"):
        pg.fit(constant, {}, METHODS[name], progress=False)


def test_a_wide_proper_prior_is_fine() -> None:
    """Negative control: the difference of the two is known to 1,000 standard deviations."""

    def wide(y: torch.Tensor) -> None:
        left = pyro.sample("left", dist.Normal(0.0, 1000.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(left + flat("right"), 1.0), obs=y)

    posterior = pg.fit(wide, Y, SVI(guide="full_rank", draws=4000), progress=False)
    assert posterior.provenance["converged"]
    assert posterior.warnings == ()
    assert posterior["left"].std() == pytest.approx(1000.0, rel=5 / (2 * 4000) ** 0.5)
