"""Each fault that `check` promises to find, planted on purpose; and none found where none is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import nn

from ppl_gen import Pair, check, fit
from ppl_gen.core import SiteError
from ppl_gen.inference import SVI

Y = torch.tensor([1.0, 2.0, 3.0, 4.0])


class Good(Pair):
    """A hierarchical pair with nothing wrong; subclasses plant one fault each."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.1))

    def top(self) -> torch.Tensor:
        return pyro.sample("scale", dist.HalfNormal(1.0))

    def model(self, y: torch.Tensor) -> None:
        scale = self.top()
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(self.loc, scale))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(self, y: torch.Tensor) -> None:
        pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 2, 1.0))


class MissesLatent(Good):
    def guide(self, y: torch.Tensor) -> None:
        pyro.sample("scale", dist.LogNormal(0.0, 0.1))


class AddsLatent(Good):
    def guide(self, y: torch.Tensor) -> None:
        super().guide(y)
        pyro.sample("extra", dist.Normal(0.0, 1.0))


class OtherShape(Good):
    def guide(self, y: torch.Tensor) -> None:
        pyro.sample("scale", dist.LogNormal(torch.zeros(2), 0.1).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 2, 1.0))


class OtherPlate(Good):
    def guide(self, y: torch.Tensor) -> None:
        pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        with pyro.plate("rows", len(y)):
            pyro.sample("z", dist.Normal(y / 2, 1.0))


class OtherSupport(Good):
    def guide(self, y: torch.Tensor) -> None:
        pyro.sample("scale", dist.Normal(1.0, 0.1))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 2, 1.0))


class SamplesObserved(Good):
    def guide(self, y: torch.Tensor) -> None:
        super().guide(y)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, 1.0))


class OtherArguments(Good):
    def guide(self, x: torch.Tensor) -> None:  # type: ignore[override]
        super().guide(x)


class NoGradient(Good):
    def __init__(self) -> None:
        super().__init__()
        self.forgotten = nn.Parameter(torch.zeros(2))


class NotFinite(Good):
    def model(self, y: torch.Tensor) -> None:
        super().model(y)
        pyro.factor("wrong", torch.tensor(float("-inf")))


class OutsideSupport(Good):
    def model(self, y: torch.Tensor) -> None:
        rate = self.top()
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Exponential(rate), obs=-y)


class OutsideThePlate(Good):
    guide = None  # type: ignore[assignment]

    def model(self, y: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        pyro.sample("again", dist.Normal(mean, 1.0).expand(y.shape).to_event(1), obs=y)


class WrongScale(OutsideThePlate):
    def model(self, y: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)), pyro.poutine.scale(scale=100.0 / len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


FAULTS: dict[type[Pair], str] = {
    MissesLatent: "site 'z': expected to be sampled in the guide, got no such site",
    AddsLatent: "site 'extra': .*a site that the model has not",
    OtherShape: r"site 'scale': expected shape \(\).*got shape \(2,\)",
    OtherPlate: r"site 'z': expected the plates \['data'\].*\['rows'\]",
    OtherSupport: r"site 'scale': expected the model's support .*Normal",
    SamplesObserved: "site 'y': .*observed in the model",
    OtherArguments: r"the model's arguments \(y\), got \(x\)",
    NoGradient: "site 'forgotten': .*got no gradient",
    NotFinite: "site 'wrong': expected a finite log density",
    OutsideSupport: r"site 'y': .*4 outside of it, the first at index \(0,\): -1.0",
    OutsideThePlate: "scaled wrongly: site 'again': .*inside plate 'data'",
    WrongScale: "scaled wrongly",
}


@pytest.mark.parametrize("pair", FAULTS)
def test_each_fault_is_found_alone(pair: type[Pair]) -> None:
    import re

    problems = check(pair(), {"y": Y}).problems
    assert len(problems) == 1, problems
    assert re.search(FAULTS[pair], problems[0])


@pytest.mark.parametrize(
    "pair", [p for p in FAULTS if p in (MissesLatent, AddsLatent, OtherShape, OtherSupport)]
)
def test_fit_refuses_what_check_finds_in_a_guide(pair: type[Pair]) -> None:
    with pytest.raises(SiteError):
        fit(pair(), {"y": Y}, SVI(guide="pair", steps=1), progress=False)


def test_a_good_pair_is_found_good() -> None:
    report = check(Good(), {"y": Y})
    assert report.ok, report
    assert "Nothing is wrong" in str(report)
    assert "z: latent Normal, shape (4,) in data" in str(report)


def test_long_data_are_looked_at_in_part() -> None:
    seen = []

    class Watched(Good):
        def model(self, y: torch.Tensor) -> None:
            seen.append(len(y))
            super().model(y)

    assert check(Watched(), {"y": torch.zeros(100_000)}).ok
    assert max(seen) < 100


def test_bad_data_and_models_without_latents() -> None:
    cases: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
        (Good().model, {"x": Y}, "data has 'x'"),
        (Good().model, {"y": torch.full((4,), float("nan"))}, "NaN"),
        (lambda y: None, {"y": Y}, "no latent site"),
        (lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), {}, "observes nothing"),
    ]
    for model, data, message in cases:
        assert any(message in p for p in check(model, data).problems)


class Countless(Good):
    """A discrete latent that neither the guide samples nor enumeration can sum out."""

    def model(self, y: torch.Tensor) -> None:
        super().model(y)
        pyro.sample("count", dist.Poisson(2.0))


def test_a_discrete_latent_without_end_is_found() -> None:
    assert any("'count'" in problem for problem in check(Countless(), {"y": Y}).problems)
    assert any("'count'" in problem for problem in check(Countless().model, {"y": Y}).problems)


def test_arrays_of_another_dtype_are_cast_as_a_fit_casts_them() -> None:
    net = nn.Linear(1, 1)

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(net(x)[:, 0], scale), obs=y)

    assert check(model, {"x": np.zeros((3, 1)), "y": np.ones(3)}).problems == ()


def test_a_sequential_plate_is_no_fault() -> None:
    def model(y: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", len(y)):
            scale = pyro.sample(f"scale_{i}", dist.HalfNormal(1.0))
            pyro.sample(f"y_{i}", dist.Normal(mean, scale), obs=y[i])

    assert check(model, {"y": Y}).problems == ()


class Interval(Good):
    """A guide that scales to the support, of which PyTorch says that it is real."""

    high = 2.0

    def top(self) -> torch.Tensor:
        return pyro.sample("scale", dist.Uniform(0.0, 2.0))

    def guide(self, y: torch.Tensor) -> None:
        parts = [
            dist.transforms.SigmoidTransform(),
            dist.transforms.AffineTransform(0.0, self.high),
        ]
        pyro.sample("scale", dist.TransformedDistribution(dist.Normal(0.0, 1.0), parts))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 2, 1.0))


class Beyond(Interval):
    high = 1e6


def test_a_guide_that_scales_to_the_support_is_no_fault() -> None:
    assert check(Interval(), {"y": Y}).problems == ()
    assert any("support" in problem for problem in check(Beyond(), {"y": Y}).problems)


def test_a_likelihood_outside_of_its_plate_is_a_problem_and_no_crash() -> None:
    class Dedented(Good):
        def model(self, y: torch.Tensor) -> None:
            scale = self.top()
            with pyro.plate("data", len(y)):
                z = pyro.sample("z", dist.Normal(self.loc, scale))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    report = check(Dedented(), {"y": Y})
    assert len(report.problems) == 1
    assert "'y'" in report.problems[0] or '"y"' in report.problems[0]


def test_hints_in_the_messages() -> None:
    class Typo(Good):
        def guide(self, y: torch.Tensor) -> None:
            pyro.sample("scael", dist.LogNormal(0.0, 0.1))
            with pyro.plate("data", len(y)):
                pyro.sample("z", dist.Normal(y / 2, 1.0))

    assert "Did you mean 'scael'?" in check(Typo(), {"y": Y}).problems[0]

    class Layer(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = PyroSample(dist.Normal(0.0, 1.0))

        def model(self, y: torch.Tensor) -> None:
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(self.weight, 1.0), obs=y)

    assert "pyro_method" in check(Layer(), {"y": Y}).problems[0]

    def without_event(y: torch.Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(y), 2), 1.0))
            pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)

    assert "to_event" in check(without_event, {"y": Y}).problems[0]
