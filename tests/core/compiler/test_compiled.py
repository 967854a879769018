"""Compiled log densities: equal to the eager ones, or refused with the reason and the line."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_gen import fit
from ppl_gen.core import LogDensity
from ppl_gen.core.compiler import compiled as compiled_module
from ppl_gen.core.compiler.compiled import CannotCompile, CompiledLogDensity
from ppl_gen.inference import NUTS


def compile_and_check(model: Any, data: dict[str, Any], dtype: torch.dtype = torch.float64) -> None:
    """Compile, and compare value and gradient with the eager ones."""
    density = LogDensity(model, data, dtype=dtype)
    points = torch.linspace(-0.5, 0.5, 5 * density.dim, dtype=torch.float64).reshape(5, -1)
    CompiledLogDensity(density, points[0], lanes=4).check(points)


def arma(y: torch.Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.HalfCauchy(2.5))
    error = y[0] - mean - phi * mean
    errors = [error]
    for t in range(1, len(y)):
        error = y[t] - (mean + phi * y[t - 1] + theta * error)
        errors.append(error)
    pyro.sample(
        "errors", dist.Normal(0.0, scale).expand([len(y)]).to_event(1), obs=torch.stack(errors)
    )


def markov(y: torch.Tensor) -> None:
    transition = pyro.sample("transition", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    means = pyro.sample("means", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    state: Any = 0
    for t in pyro.markov(range(len(y))):
        state = pyro.sample(
            f"state_{t}", dist.Categorical(transition[state]), infer={"enumerate": "parallel"}
        )
        pyro.sample(f"y_{t}", dist.Normal(means[state], 1.0), obs=y[t])


def random_walk(y: torch.Tensor) -> None:
    """One latent site a step, written into a tensor in place."""
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    steps = pyro.sample("steps", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1))
    level = torch.zeros(len(y))
    level[0] = steps[0]
    for t in range(1, len(y)):
        level[t] = level[t - 1] + scale * steps[t]
    pyro.sample("y", dist.Normal(level, 1.0).to_event(1), obs=y)


@pytest.mark.parametrize(("model", "length"), [(arma, 200), (markov, 30), (random_walk, 60)])
def test_time_series_compile(model: Callable[..., None], length: int) -> None:
    compile_and_check(model, {"y": torch.sin(torch.arange(float(length)))})


def test_float32(tmp_path: Any) -> None:
    compile_and_check(arma, {"y": torch.sin(torch.arange(20.0))}, torch.float32)


def test_new_data_of_the_same_shape_take_the_same_library(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PPL_GEN_CACHE", str(tmp_path))
    compile_and_check(arma, {"y": torch.sin(torch.arange(20.0))})
    compile_and_check(arma, {"y": torch.cos(torch.arange(20.0))})
    compile_and_check(arma, {"y": torch.cos(torch.arange(60.0, dtype=torch.float64))[30:50]})
    assert len(list(tmp_path.glob("*.so"))) == 1


def branches(y: torch.Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    if x > 0:
        pyro.factor("positive", -x)


def reads(y: torch.Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(torch.tensor([float(x)]), 1.0).to_event(1), obs=y[:1])


def draws(y: torch.Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x + 0.001 * torch.rand(()), 1.0), obs=y[0])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (branches, r"depends on the value of a latent site.*See test_compiled\.py, line \d+"),
        (reads, r"depends on the value of a latent site.*See test_compiled\.py, line \d+"),
        (draws, r"draws random numbers.*See test_compiled\.py, line \d+"),
    ],
)
def test_what_cannot_be_compiled_says_why_and_where(model: Any, reason: str) -> None:
    density = LogDensity(model, {"y": torch.zeros(3)})
    with pytest.raises(CannotCompile, match=reason):
        CompiledLogDensity(density, torch.zeros(1, dtype=torch.float64), lanes=4)


def test_a_branch_on_a_latent_runs_eagerly_with_a_warning() -> None:
    method = NUTS(chains=2, draws=5, warmup=5)
    with pytest.warns(RuntimeWarning, match=r"eager engine, which is much slower: the course"):
        posterior = fit(branches, {"y": torch.zeros(3)}, method, progress=False)
    assert posterior["x"].shape == (2, 5)


def test_a_compiler_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong gradient under a right value, as a compiler once made it."""
    emit = compiled_module.emit

    def faulty(scheduled: Any) -> Any:
        source = emit(scheduled)
        text = source.text.replace("gradients[l * 4 + d] = ", "gradients[l * 4 + d] = 1.001 * ")
        assert text != source.text
        source.text = text
        return source

    monkeypatch.setattr(compiled_module, "emit", faulty)
    density = LogDensity(arma, {"y": torch.sin(torch.arange(20.0))})
    points = torch.full((2, 4), 0.1, dtype=torch.float64)
    compiled = CompiledLogDensity(density, points[0], lanes=4)
    with pytest.raises(CannotCompile, match="compiled gradient differs from the eager one"):
        compiled.check(points)


def test_lanes_do_not_depend_on_each_other() -> None:
    density = LogDensity(arma, {"y": torch.sin(torch.arange(20.0))})
    compiled = CompiledLogDensity(density, torch.zeros(4, dtype=torch.float64), lanes=4)
    points = torch.linspace(-0.4, 0.4, 28, dtype=torch.float64).reshape(7, 4)
    values, gradients = compiled(points)
    for i in range(7):
        value, gradient = compiled(points[i : i + 1])
        assert torch.equal(value[0], values[i])
        assert torch.equal(gradient[0], gradients[i])


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 23])
def test_any_number_of_vectors(threads: bool, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_module, "_SECONDS_OF_THREADS", 0.0 if threads else 1e9)
    monkeypatch.setattr(compiled_module, "processors", lambda: 3)
    y = torch.tensor([0.5, -1.0, 2.0, 0.3])
    density = LogDensity(random_walk, {"y": y})
    compiled = CompiledLogDensity(density, torch.zeros(density.dim), lanes=4)
    compiled(torch.zeros(1, density.dim))  # which tells how long a call takes
    vectors = torch.randn(count, density.dim, dtype=torch.float64)
    values, gradients = compiled(vectors)
    assert values.shape == (count,)
    assert gradients.shape == (count, density.dim)
    if count:
        leaf = vectors.clone().requires_grad_()
        expected = density.log_prob(leaf)
        (slopes,) = torch.autograd.grad(expected.sum(), leaf)
        torch.testing.assert_close(values, expected.detach())
        torch.testing.assert_close(gradients, slopes)
