"""Mixtures whose labels change places: relabelled by the pair, or judged by values in order."""

import dataclasses

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_gen import fit
from ppl_gen.core import Posterior
from ppl_gen.inference import NUTS
from ppl_gen.judge import Verdict, assess
from ppl_gen.judge.exchangeable import same_density
from ppl_gen.judge.labels import labelled_alike
from ppl_gen.models import GaussianMixture


def points() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(60, 1, generator=generator, dtype=torch.float64)
    return 0.3 * noise + torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(30)[:, None]


def mixture(x: torch.Tensor) -> None:
    """The same model without a way to relabel it."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0, dtype=x.dtype)))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(torch.zeros((), dtype=x.dtype), 1.5))
        scales = pyro.sample("scales", dist.LogNormal(torch.tensor(-0.7, dtype=x.dtype), 0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x[:, 0])


def in_all_labellings(posterior: Posterior) -> Posterior:
    """Give every other chain the labels of the lower component first, the rest the other way."""
    first = posterior["locs"].flatten(2)[..., 0] < 0
    wanted = torch.tensor([True, False, True, False])[:, None]
    flip = first != wanted
    draws = {
        name: torch.where(flip.reshape(4, -1, *[1] * (value.ndim - 2)), value.flip(2), value)
        for name, value in posterior.draws.items()
    }
    return dataclasses.replace(posterior, draws=draws)


@pytest.mark.parametrize("kind", ["relabel", "density", "chains"])
def test_label_switching_is_no_error(kind: str) -> None:
    pair = GaussianMixture(2, 1) if kind == "relabel" else mixture
    fits = [
        fit(pair, {"x": points()}, NUTS(chains=4, draws=500), seed=seed, progress=False)
        for seed in (0, 1)
    ]
    if kind == "chains":
        fits = [dataclasses.replace(p, pair=None, data=None) for p in fits]
    # The two differ in their labels as well as the chains of each.
    other = dataclasses.replace(
        in_all_labellings(fits[1]),
        draws={n: v.flip(2) for n, v in in_all_labellings(fits[1]).draws.items()},
    )
    found = assess({"a": in_all_labellings(fits[0]), "b": other})
    assert found.judgements["a"].verdict is Verdict.NO_PROBLEM_FOUND
    assert found.judgements["b"].verdict is Verdict.TRUST, found.judgements["b"].sentence
    gate = next(gate for gate in found.gates if gate.name == "labels")
    assert gate.passed
    assert ("pair's relabel" if kind == "relabel" else "in order of size") in gate.sentence
    # Negative control: a component that is somewhere else is an error under any labels.
    wrong = {**other.draws, "locs": other["locs"] + 0.3}
    found = assess({"a": in_all_labellings(fits[0]), "b": dataclasses.replace(other, draws=wrong)})
    assert found.judgements["b"].verdict is Verdict.DO_NOT_TRUST


def test_components_that_data_tell_apart_keep_their_labels() -> None:
    """Two schools with other data: a mean in the wrong one is an error, not a label."""

    def schools(y: torch.Tensor) -> None:
        with pyro.plate("school", 2):
            theta = pyro.sample("theta", dist.Normal(torch.zeros((), dtype=y.dtype), 10.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    data = {"y": torch.tensor([-3.0, 3.0], dtype=torch.float64)}
    right = fit(schools, data, NUTS(chains=4, draws=500), progress=False)
    swapped = dataclasses.replace(right, draws={"theta": right["theta"].flip(2)})
    assert labelled_alike({"a": right, "b": swapped}, "a")[1] is None
    found = assess({"a": right, "b": swapped}).judgements["b"]
    assert found.verdict is Verdict.DO_NOT_TRUST


def beside(x: torch.Tensor, u: torch.Tensor, y: torch.Tensor) -> None:
    """The mixture, and a regression on two columns: as many coefficients as components."""
    mixture(x)
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2, dtype=x.dtype), 3.0).to_event(1))
    with pyro.plate("rows", len(u)):
        pyro.sample("y", dist.Normal(u @ slopes, 0.3), obs=y)


def test_a_site_with_as_many_rows_by_chance_keeps_its_own() -> None:
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    data = {"x": points(), "u": u, "y": u @ torch.tensor([1.0, -1.0], dtype=torch.float64)}
    first, second = (
        fit(beside, data, NUTS(chains=4, draws=400), seed=seed, progress=False) for seed in (0, 1)
    )
    # The labels of the mixture alone are exchanged in half of the chains.
    flip = torch.tensor([True, False, True, False])[:, None, None]
    draws = {
        **first.draws,
        **{s: torch.where(flip, first[s].flip(2), first[s]) for s in ("weights", "locs", "scales")},
    }
    switched = dataclasses.replace(first, draws=draws)
    labelled, gate = labelled_alike({"a": switched, "b": second}, "a")
    assert gate is not None
    assert "2 components (weights, locs, scales)" in gate.sentence
    assert torch.equal(labelled["a"]["slopes"], first["slopes"])
    assert bool((labelled["a"]["locs"].diff(dim=2) >= 0).all())
    # Slopes in the wrong places are an error still, with model and data or without.
    wrong = dataclasses.replace(second, draws={**second.draws, "slopes": second["slopes"].flip(2)})
    found = assess({"a": switched, "b": second, "c": wrong})
    assert found.judgements["b"].verdict is Verdict.TRUST, found.judgements["b"].sentence
    assert found.judgements["c"].verdict is Verdict.DO_NOT_TRUST
    assert "slopes" in found.judgements["c"].sentence
    bare = {
        name: dataclasses.replace(p, pair=None, data=None)
        for name, p in (("a", switched), ("b", second))
    }
    labelled, gate = labelled_alike(bare, "a")
    assert gate is not None
    assert torch.equal(labelled["a"]["slopes"], first["slopes"])


def test_what_follows_components_changes_places_with_them() -> None:
    def model(x: torch.Tensor) -> None:
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(torch.zeros((), dtype=x.dtype), 1.5))
        pyro.deterministic("cubes", locs**3)
        pyro.deterministic("ends", torch.stack([locs.min(), locs.max()]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[z.long()], 0.3), obs=x[:, 0])

    posterior = fit(model, {"x": points()}, NUTS(chains=4, draws=200), progress=False)
    flip = (posterior["locs"][..., 0] < 0) != torch.tensor([True, False, True, False])[:, None]
    draws = {
        site: torch.where(flip[..., None], value.flip(2), value) if site != "ends" else value
        for site, value in posterior.draws.items()
    }
    switched = dataclasses.replace(posterior, draws=draws)
    labelled, gate = labelled_alike({"a": switched}, None)
    assert gate is not None
    assert "2 components (locs, cubes)" in gate.sentence
    assert torch.equal(labelled["a"]["cubes"], labelled["a"]["locs"] ** 3)
    assert torch.equal(labelled["a"]["ends"], posterior["ends"])


@pytest.mark.parametrize("means", [(0.0, 0.0), (0.0, 0.1)])
def test_a_large_log_density_hides_no_difference(means: tuple[float, float]) -> None:
    """Of a million nats, those of much data, a tenth of one is more than rounding."""

    def model() -> None:
        prior = torch.tensor(means, dtype=torch.float64)
        pyro.sample("effects", dist.Normal(prior, 1.0).to_event(1))
        pyro.factor("data", torch.tensor(-1e6, dtype=torch.float64))

    posterior = fit(model, {}, NUTS(chains=2, draws=20, warmup=50), progress=False)
    expected = [("effects",)] if means[0] == means[1] else []
    assert same_density(posterior, ["effects"], 2) == expected
