"""Flow guides: densities, bounds that reach the evidence, and nothing global left changed."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray

import ppl_gen as pg
from ppl_gen.core.evaluation import Evaluate
from ppl_gen.inference import SVI
from ppl_gen.inference.vi.deterministic import Fit, fit_normal
from ppl_gen.inference.vi.families import FullRank, MeanField, Normal
from ppl_gen.inference.vi.flow import FlowFit, FlowGuide, fit_flow

Array = NDArray[np.float64]
LogProb = Callable[[torch.Tensor], torch.Tensor]


def evaluation_of(log_prob: LogProb) -> Evaluate:
    def evaluate(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = vectors.detach().clone().requires_grad_()
        values = log_prob(leaf)
        (slopes,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), slopes

    return evaluate


def normal_density(r: float) -> LogProb:
    covariance = torch.tensor([[1.0, r], [r, 1.0]], dtype=torch.float64)
    return torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance).log_prob


def banana(u: torch.Tensor) -> torch.Tensor:
    """A standard normal, and one about the square of the first; normalised."""
    first = dist.Normal(0.0, 1.0).log_prob(u[:, 0])
    return first + dist.Normal(u[:, 0] ** 2 - 1.0, 0.5).log_prob(u[:, 1])


def mixture(u: torch.Tensor) -> torch.Tensor:
    """The skewed mixture of Giordano et al. (2018); normalised."""
    left = dist.Normal(0.0, math.sqrt(1 / 1.5)).log_prob(u[:, 0])
    right = dist.Normal(2.5, math.sqrt(2.0)).log_prob(u[:, 0])
    return torch.logaddexp(left, right) - math.log(2.0)


def fitted(log_prob: LogProb, dim: int, most_windows: int) -> tuple[Fit, FlowFit]:
    rng = np.random.default_rng(0)
    evaluate = evaluation_of(log_prob)
    start = Normal(np.zeros(dim), np.ones(dim))
    normal = fit_normal(evaluate, FullRank, start, rng)
    return normal, fit_flow(evaluate, normal.normal, rng, most_windows=most_windows)


def bent(dim: int, family: str = "full_rank") -> FlowGuide:
    """Return a flow that is far from the identity."""
    rng = np.random.default_rng(1)
    factor = np.exp(0.3 * rng.normal(size=dim))
    if family == "full_rank":
        factor = np.diag(factor) + np.tril(rng.normal(size=(dim, dim)), -1)
    guide = FlowGuide.of(Normal(rng.normal(size=dim), factor))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in guide.bends.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return guide


@pytest.mark.parametrize("family", ["mean_field", "full_rank"])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_density_is_that_of_the_draws(dim: int, family: str) -> None:
    guide = bent(dim, family)
    noise = torch.randn(20, dim, dtype=torch.float64)
    with torch.no_grad():
        vectors, log_q = guide.forward_and_log_prob(noise)
        torch.testing.assert_close(guide.log_prob(vectors), log_q, rtol=1e-9, atol=1e-9)
    # The change of variables, by the Jacobian of the map itself.
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: guide(z[None])[0]))(noise)
    base = -0.5 * noise.square().sum(1) - 0.5 * dim * math.log(2 * math.pi)
    torch.testing.assert_close(log_q, base - jacobian.slogdet()[1], rtol=1e-8, atol=1e-8)
    # It is bent indeed: its Jacobian is not the same everywhere.
    assert jacobian.std(0).max() > 0.01


@pytest.mark.parametrize("dim", [1, 2])
def test_density_integrates_to_one(dim: int) -> None:
    guide = bent(dim)
    with torch.no_grad():
        draws = guide.rsample(10_000)
        low, high = draws.amin(0) - 5, draws.amax(0) + 5
        ends = zip(low.tolist(), high.tolist(), strict=True)
        axes = [torch.linspace(*pair, 301, dtype=torch.float64) for pair in ends]
        points = torch.cartesian_prod(*axes).reshape(-1, dim)
        volume = math.prod(float(axis[1] - axis[0]) for axis in axes)
        total = float(guide.log_prob(points).exp().sum()) * volume
    # Sums over a grid of steps far below the scales; the splines' second derivatives jump.
    assert total == pytest.approx(1.0, abs=1e-3)


def test_it_starts_as_the_normal_guide() -> None:
    normal = Normal(np.array([1.0, 2.0, -1.0]), np.tril(np.full((3, 3), 0.5)) + np.eye(3))
    guide = FlowGuide.of(normal)
    noise = np.random.default_rng(3).normal(size=(50, 3))
    with torch.no_grad():
        vectors, log_q = guide.forward_and_log_prob(torch.from_numpy(noise))
    np.testing.assert_allclose(vectors.numpy(), normal.draw(noise), rtol=1e-12)
    truth = torch.distributions.MultivariateNormal(
        torch.from_numpy(normal.mean), scale_tril=torch.from_numpy(normal.factor)
    )
    torch.testing.assert_close(log_q, truth.log_prob(vectors), rtol=1e-10, atol=1e-10)


def test_an_exact_guide_stays_exact() -> None:
    evaluate = evaluation_of(normal_density(0.8))
    rng = np.random.default_rng(0)
    normal = fit_normal(evaluate, FullRank, Normal(np.zeros(2), np.ones(2)), rng)
    flow = fit_flow(evaluate, normal.normal, rng)
    assert flow.converged
    assert len(flow.history) == 1  # not a step was made
    # The log evidence is 0: all that is left is where the optimiser of the full-rank guide stops.
    assert abs(flow.elbo[0]) < 1e-3
    assert flow.elbo[1] < 1e-3
    assert flow.lead == (0.0, 0.0)


def test_what_the_normal_guide_cannot_do_is_made_up_for() -> None:
    # A guide without the correlation is below the evidence by its divergence.
    evaluate = evaluation_of(normal_density(0.8))
    rng = np.random.default_rng(0)
    mean_field = fit_normal(evaluate, MeanField, Normal(np.zeros(2), np.ones(2)), rng)
    assert mean_field.elbo[0] == pytest.approx(math.log(1 - 0.8**2) / 2, abs=1e-2)
    flow = fit_flow(evaluate, mean_field.normal, rng)
    assert flow.converged
    assert flow.lead[0] == pytest.approx(flow.elbo[0] - mean_field.elbo[0], abs=0.02)
    # It has arrived when about 0.01 nats are left.
    assert -0.02 < flow.elbo[0] < 3 * flow.elbo[1]


def test_a_flow_that_was_stopped_says_so() -> None:
    _, flow = fitted(banana, 2, most_windows=1)
    assert not flow.converged
    assert flow.reason.startswith("The flow was stopped after 100 steps")
    assert flow.elbo[0] < 3 * flow.elbo[1]


def test_without_a_bound_there_is_nothing_to_raise() -> None:
    def cut(u: torch.Tensor) -> torch.Tensor:
        """Half of a normal distribution: no normal guide has a bound."""
        inside = dist.Normal(0.0, 1.0).log_prob(u[:, 0])
        return torch.where(u[:, 0] > -1.0, inside, -torch.inf)

    rng = np.random.default_rng(0)
    flow = fit_flow(evaluation_of(cut), Normal(np.zeros(1), np.ones(1)), rng)
    assert not flow.converged
    assert flow.reason.startswith("No flow was fitted")
    assert len(flow.history) == 1  # not a step was made


def test_banana() -> None:
    normal, flow = fitted(banana, 2, most_windows=4)
    error = math.hypot(normal.elbo[1], flow.elbo[1])
    assert flow.elbo[0] - normal.elbo[0] > 20 * error
    assert normal.elbo[0] < -0.5
    # The log evidence is 0, and no bound is above it.
    assert -0.02 < flow.elbo[0] < 3 * flow.elbo[1]
    torch.manual_seed(4)
    with torch.no_grad():
        draws = flow.guide.rsample(100_000).numpy()
    # A divergence of 0.02 is that of normals whose means are 0.2 sd apart, or whose sds differ by
    # 14 %. Monte Carlo errors of 100,000 draws are ten times smaller.
    sd = np.array([1.0, 1.5])
    np.testing.assert_allclose(draws.mean(axis=0) / sd, 0.0, atol=0.2)
    np.testing.assert_allclose(draws.std(axis=0), sd, rtol=0.14)
    assert normal.normal.sd[1] < 0.8 * sd[1]  # the full-rank guide's
    # The third moment that bends it, E[x² y] = 2, which any normal guide has 0 of.
    assert np.mean(draws[:, 0] ** 2 * draws[:, 1]) == pytest.approx(2.0, rel=0.25)


def test_skewed_mixture() -> None:
    normal, flow = fitted(mixture, 1, most_windows=30)
    assert flow.converged
    assert flow.elbo[0] - normal.elbo[0] > 20 * math.hypot(normal.elbo[1], flow.elbo[1])
    assert -2e-3 < flow.elbo[0] < 3 * flow.elbo[1]
    torch.manual_seed(5)
    with torch.no_grad():
        draws = flow.guide.rsample(100_000).numpy()
    # Mean 1.25 and variance 2.8958; the standard errors are sqrt(2.9 / n) = 0.005 and, of the
    # variance, 0.013. The optimal normal has 1.3557 and 2.5497.
    assert draws.mean() == pytest.approx(1.25, abs=0.03)
    assert draws.var() == pytest.approx(2.8958, abs=0.1)
    assert abs(normal.normal.mean[0] - 1.25) > 0.09


SCRIPT = """
import json, random, sys, warnings
import numpy, pyro, torch
from pyro.distributions import Normal
from torch.distributions import Distribution, transforms
from ppl_gen.inference.vi.flow import import_zuko

def state():
    classes = [c for c in vars(transforms).values() if isinstance(c, type)] + [Distribution]
    generators = [torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()]
    return {
        "validation": [Distribution._validate_args, Normal._validate_args],
        "settings": str(pyro.settings.get()),
        "attributes": sorted(f"{c!r} {c.__name__}.{name} {value!r}"
                             for c in classes for name, value in vars(c).items()),
        "torch": [str(torch.get_default_dtype()), torch.get_num_threads(), torch.is_grad_enabled()],
        "random": str(generators),
        "warnings": [str(f) for f in warnings.filters],
        "numpy": [str(numpy.geterr()), str(numpy.get_printoptions())],
    }

def changes(statement):
    before = state()
    exec(statement)
    after = state()
    return {
        "added": sorted(set(after["attributes"]) - set(before["attributes"])),
        "lost": sorted(set(before["attributes"]) - set(after["attributes"])),
        "others": [k for k in before if k != "attributes" and before[k] != after[k]],
    }

guarded = changes("import_zuko()")
loaded = [name for name in sys.modules if name.split(".")[0] == "zuko"]
for name in loaded:
    del sys.modules[name]
print(json.dumps({"loaded": loaded, "guarded": guarded, "bare": changes("import zuko")}))
"""


def test_importing_zuko_changes_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert "zuko" in found["loaded"]
    assert found["guarded"]["lost"] == []
    assert found["guarded"]["others"] == []
    # One more method of PyTorch's transforms, which zuko calls.
    assert all(".call_and_ladj " in line for line in found["guarded"]["added"])
    # Negative control: this is seen where the import is not guarded.
    assert found["bare"]["others"] == ["validation", "settings"]
    assert any("arg_constraints" in line for line in found["bare"]["lost"])
    assert any("_InverseTransform" in line for line in found["bare"]["lost"])


def model(y: torch.Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)


def test_fit_save_and_load(tmp_path: Path) -> None:
    data = {"y": torch.tensor([0.3, -2.0, 0.7])}
    with pyro.validation_enabled(True):
        before = pg.fit(model, data, SVI(guide="flow", draws=50), seed=0, progress=False)
        assert torch.distributions.Distribution._validate_args
    assert before.elbo is not None
    # By quadrature over log scale.
    grid = torch.linspace(-12.0, 12.0, 20_001, dtype=torch.float64)
    log_joint = dist.Normal(0.0, grid.exp()[:, None]).log_prob(data["y"].double()).sum(1)
    log_joint = log_joint + dist.HalfCauchy(1.0).log_prob(grid.exp()) + grid
    evidence = float(log_joint.logsumexp(0)) + math.log(float(grid[1] - grid[0]))
    assert before.elbo[0] == pytest.approx(evidence, abs=0.01)
    assert before.provenance["converged"]
    again = pg.load(before.save(tmp_path / "run"), pair=model)
    assert isinstance(again.guide, FlowGuide)
    mine, theirs = (p.sample(draws=4, seed=1)["scale"] for p in (before, again))
    assert torch.equal(mine, theirs)
