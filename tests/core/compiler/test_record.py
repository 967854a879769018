"""What recording sees of a model: values, memory, branches, and the lines that it names."""

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_gen.core.compiler.compiled import CannotCompile, CompiledLogDensity
from ppl_gen.core.compiler.record import Recording, record
from ppl_gen.core.compiler.rules import is_known, lower
from ppl_gen.core.log_density import LogDensity

POINT = torch.tensor([0.3, -0.5, 0.7], dtype=torch.float64)


def recorded(function: Callable[[Tensor], Tensor]) -> Recording:
    return record(function, POINT, is_known)


def names(recording: Recording) -> list[str]:
    return [operation.name for operation in recording.operations]


def test_what_does_not_depend_on_the_vector_is_not_recorded() -> None:
    weights = torch.ones(3, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        scale = weights.exp().sum().sqrt()
        return (x * scale).sum()

    recording = recorded(function)
    assert names(recording) == ["aten.mul.Tensor", "aten.sum.default", "aten.copy_.default"]


def test_what_nothing_needs_is_left_out_of_the_program() -> None:
    def function(x: Tensor) -> Tensor:
        unused = x.exp() @ x.sin()
        unused.mul_(2)
        return (x * x).sum()

    expressions = " ".join(str(s) for s in lower(recorded(function)).statements)
    assert "v_exp" not in expressions
    assert "v_sin" not in expressions


def test_gradient_of_a_linear_function_is_a_constant() -> None:
    recording = recorded(lambda x: x.sum())
    assert recording.gradient.live
    assert lower(recording).gradient.shape == (3,)


def test_views_of_the_vector_cost_nothing() -> None:
    recording = recorded(lambda x: x[1:].reshape(2, 1).t().squeeze(0).expand(4, 2).sum())
    assert "aten.sum.default" in names(recording)
    assert not any("view" in n or "reshape" in n or "expand" in n for n in names(recording)[:1])


def test_nothing_is_changed_by_recording() -> None:
    constant = torch.ones(3, dtype=torch.float64)
    point = POINT.clone()
    record(lambda x: (x * constant).sum().exp(), point, is_known)
    assert torch.equal(point, POINT)
    assert not point.requires_grad
    assert torch.equal(constant, torch.ones(3, dtype=torch.float64))


def test_a_function_without_latents_is_refused() -> None:
    with pytest.raises(CannotCompile, match="does not depend on the latent sites"):
        recorded(lambda x: x.detach().sum())
    with pytest.raises(CannotCompile, match="does not depend on the latent sites"):
        recorded(lambda x: torch.ones(()))


# --- branches and plain numbers


def branch(x: Tensor) -> Tensor:
    if x[0] > 0:
        return x.sum()
    return -x.sum()


def loop(x: Tensor) -> Tensor:
    y = x.sum()
    while y < 10:
        y = y * 2 + 1
    return y


def equality(x: Tensor) -> Tensor:
    return x.sum() if torch.equal(x, x + 1) else x.prod()


def number(x: Tensor) -> Tensor:
    return x.sum() * float(x[0])


def item(x: Tensor) -> Tensor:
    return x.sum() * x[1].item()


def in_tensor(x: Tensor) -> Tensor:
    return x.sum() * torch.tensor([x[0], 2.0])[0]


def in_nested_tensor(x: Tensor) -> Tensor:
    return (x.sum() * torch.tensor([[1.0, x[0].detach()]])).sum()


def as_tensor(x: Tensor) -> Tensor:
    return (x * torch.as_tensor([x[0], x[1], x[2]])).sum()


def new_tensor(x: Tensor) -> Tensor:
    return (x * x.new_tensor([x[0], 1.0, 1.0])).sum()


def to_list(x: Tensor) -> Tensor:
    return x.sum() * sum(x.tolist())


def numpy(x: Tensor) -> Tensor:
    return x.sum() * np.exp(x.detach().numpy()).sum()


def array(x: Tensor) -> Tensor:
    return x.sum() * float(np.asarray(x.detach())[0])


def index(x: Tensor) -> Tensor:
    return x[int(x[0])] * x.sum()


def inside_vmap(x: Tensor) -> Tensor:
    return (
        torch.vmap(lambda row: row * torch.tensor([float(POINT[0])]))(x[:, None]).sum()
        * x[0].item()
    )


NUMBERS = (
    branch,
    loop,
    equality,
    number,
    item,
    in_tensor,
    in_nested_tensor,
    as_tensor,
    new_tensor,
    to_list,
    numpy,
    array,
    index,
    inside_vmap,
)


@pytest.mark.parametrize("function", NUMBERS, ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_numbers_made_of_latents_are_refused_with_their_line(
    function: Callable[[Tensor], Tensor],
) -> None:
    first = function.__code__.co_firstlineno
    with pytest.raises(CannotCompile, match="latent site") as caught:
        recorded(function)
    assert f"({function.__name__})" in str(caught.value)
    line = int(str(caught.value).split("line ")[1].split(" ")[0])
    assert first < line < first + 6
    assert "test_record.py" in str(caught.value)


def test_numbers_made_of_constants_and_prints_are_allowed() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        print(x)
        assert str(x.sum())
        scale = float(weights[1]) + weights.tolist()[0] + float(weights.numpy()[2])
        if weights.sum() > 0:
            scale += torch.tensor([weights[0], 1.0]).sum().item()
        return (x * scale).sum() * len(x)

    assert recorded(function).value.live


def test_random_numbers_are_refused_before_any_is_drawn(rng_unchanged: Any) -> None:
    def function(x: Tensor) -> Tensor:
        return (x * torch.randn(3)).sum()

    with rng_unchanged(), pytest.raises(CannotCompile, match=r"random numbers.*\(function\)"):
        recorded(function)


# --- the line of an error


def test_an_operator_without_rule_is_named_with_its_line() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.reshape(1, 3)
        return torch.linalg.svdvals(y).sum()

    line = function.__code__.co_firstlineno + 2
    with pytest.raises(
        CannotCompile, match=rf"_linalg_svd.*test_record.py, line {line} \(function"
    ):
        recorded(function)


def test_an_operator_of_the_backward_pass_names_the_line_of_the_forward_one() -> None:
    def function(x: Tensor) -> Tensor:
        y = x[:1].reshape(1, 1).exp()
        factors, _ = torch.linalg.lu_factor(y + 2)  # only its derivative has no rule
        return (factors * y).sum()

    line = function.__code__.co_firstlineno + 2
    with pytest.raises(CannotCompile, match=rf"lu_unpack.*test_record.py, line {line} \(function"):
        recorded(function)


def test_an_argument_without_rule_is_named_with_its_line() -> None:
    def function(x: Tensor) -> Tensor:
        chosen = x[x > 0]
        return chosen.sum()

    line = function.__code__.co_firstlineno + 1
    with pytest.raises(CannotCompile, match=rf"mask.*line {line} \(function"):
        lower(recorded(function))


def test_the_line_is_the_models_not_that_of_the_caller() -> None:
    def model() -> None:
        rate = pyro.sample("rate", dist.Exponential(1.0))
        pyro.sample("y", dist.Poisson(rate * 2), obs=torch.tensor(3.0))
        if rate > 1:
            pyro.sample("z", dist.Normal(rate, 1.0), obs=torch.tensor(0.0))

    line = model.__code__.co_firstlineno + 3
    density = LogDensity(model, {})
    with pytest.raises(CannotCompile, match=rf"test_record.py, line {line} \(model"):
        record(density.log_prob, torch.zeros(1, dtype=torch.float64), is_known)


# --- models


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs the compiler g++")
def test_a_density_in_single_precision() -> None:
    x, y = torch.randn(20, 3), torch.randn(20)

    def model() -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(torch.ones(())))
        pyro.sample("y", dist.StudentT(4.0, x @ weight, scale).to_event(1), obs=y)

    density = LogDensity(model, {}, dtype=torch.float32)
    points = 0.5 * torch.randn(4, density.dim)
    compiled = CompiledLogDensity(density, points[0], lanes=8)
    values, gradients = compiled(points)
    compiled.check(points.double())
    for point, value, gradient in zip(points, values, gradients, strict=True):
        leaf = point.clone().requires_grad_()
        want = density.log_prob(leaf)
        (slope,) = torch.autograd.grad(want, leaf)
        # A sum of 24 terms of size 1 to 10, each rounded to 6e-8.
        torch.testing.assert_close(value.float(), want.detach(), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(gradient.float(), slope, rtol=1e-4, atol=1e-4)


class Network(torch.nn.Module):
    """A little of everything that networks in models are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 4)
        self.hidden = torch.nn.Linear(4, 6)
        self.norm = torch.nn.LayerNorm(6)
        self.cell = torch.nn.GRUCell(6, 3)
        self.out = torch.nn.Sequential(
            torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Dropout(0.5)
        )
        self.eval()

    def forward(self, tokens: Tensor, shift: Tensor) -> Tensor:
        state = torch.zeros(len(tokens), 3) + shift
        for step in range(tokens.shape[1]):
            x = self.embedding(tokens[:, step]) * shift[:1].exp()
            state = self.cell(torch.relu(self.norm(self.hidden(x))), state)
        result = self.out(state)
        assert isinstance(result, Tensor)
        return result


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs the compiler g++")
def test_models_with_networks_loops_and_detached_parts() -> None:
    network = Network()
    tokens = torch.tensor([[0, 3, 1], [4, 4, 2]])
    observed = torch.tensor([[0.3, -0.2], [0.1, 0.6]], dtype=torch.float64)

    def model() -> None:
        shift = pyro.sample("shift", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        weight = pyro.sample("weight", dist.Normal(torch.zeros(6, 4), 1.0).to_event(2))
        mean = network(tokens, shift)
        with torch.no_grad():
            offset = (shift * 2).tanh()
        rows = torch.vmap(lambda row: torch.einsum("j,ij->i", row, weight))(torch.ones(2, 4))
        again = torch.utils.checkpoint.checkpoint(
            lambda s: (s.exp() * s).sum(), shift, use_reentrant=False
        )
        history = torch.zeros(5)
        for t in range(1, 5):
            history[t] = 0.5 * history[t - 1].clone() + shift[t % 3] + offset[0] * again.detach()
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(2), obs=observed)
        pyro.sample("z", dist.Normal(history, 1.0).to_event(1), obs=torch.ones(5))
        pyro.factor("w", -0.1 * rows.square().sum() - 0.01 * again)

    density = LogDensity(model, {})
    points = 0.3 * torch.randn(3, density.dim, dtype=torch.float64)
    compiled = CompiledLogDensity(density, points[0], lanes=4)
    values, gradients = compiled(points)
    for point, value, gradient in zip(points, values, gradients, strict=True):
        leaf = point.clone().requires_grad_()
        want = density.log_prob(leaf)
        (slope,) = torch.autograd.grad(want, leaf)
        torch.testing.assert_close(value, want.detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-10)
