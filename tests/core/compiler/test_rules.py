"""Every operator that the compiler knows, against eager PyTorch: value and gradient.

A run of the C++ compiler costs more than many operators, so that one compiled function holds a
whole table of cases: the sum over cases of w * sum(weights * outputs). Each case has arguments of
its own and its own w, whose derivative is the case's value: both value and gradient of a case are
parts of the compiled gradient, and a wrong one names its case.
"""

import ctypes
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ppl_gen.core.compiler.build import build
from ppl_gen.core.compiler.compiled import CannotCompile, CompiledLogDensity
from ppl_gen.core.compiler.decompositions import _OURS
from ppl_gen.core.compiler.emit import emit
from ppl_gen.core.compiler.record import base_name, record
from ppl_gen.core.compiler.rules import is_known, lower
from ppl_gen.core.compiler.rules.lowering import _RULES
from ppl_gen.core.compiler.schedule import schedule
from ppl_gen.core.compiler.simplify import simplify

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs the compiler g++")

POINTS = 3
LANES = 4


@dataclass(frozen=True)
class Operand:
    """A live argument: its shape, and how its elements are drawn."""

    shape: tuple[int, ...]
    draw: Callable[[Tensor], Tensor]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def real(*shape: int) -> Operand:
    return Operand(shape, lambda u: torch.special.ndtri(0.05 + 0.9 * u))


def between(low: float, high: float, *shape: int) -> Operand:
    return Operand(shape, lambda u: low + (high - low) * u)


def positive(*shape: int) -> Operand:
    return between(0.2, 3.0, *shape)


@dataclass(frozen=True)
class Case:
    """A function of live tensors that returns one tensor or several."""

    name: str
    function: Callable[..., Any]
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class Function:
    """What a log density is to the compiler."""

    log_prob: Callable[[Tensor], Tensor]
    dim: int
    dtype: torch.dtype = torch.float64


def case(name: str, function: Callable[..., Any], *operands: Operand) -> Case:
    return Case(name, function, operands)


def fixed(*shape: int) -> Tensor:
    """Return constants of no pattern, between -1 and 1."""
    count = math.prod(shape)
    return torch.sin(torch.arange(1, count + 1, dtype=torch.float64) * 2.3).reshape(shape)


def _outputs(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in _outputs(part)]


def _weighted(result: Any) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for position, output in enumerate(_outputs(result)):
        weights = fixed(*output.shape) + 0.3 * (position + 1)
        total = total + (output.to(weights.dtype) * weights).sum()
    return total


def _function(cases: Sequence[Case]) -> Function:
    def value(vector: Tensor) -> Tensor:
        total, start = vector.new_zeros(()), 0
        for one in cases:
            arguments = []
            for operand in one.operands:
                part = vector[start : start + operand.size]
                arguments.append(part.reshape(operand.shape).clone())
                start += operand.size
            total = total + vector[start] * _weighted(one.function(*arguments))
            start += 1
        return total

    return Function(value, sum(_size(one) for one in cases))


def _size(one: Case) -> int:
    return sum(operand.size for operand in one.operands) + 1


def _points(cases: Sequence[Case]) -> Tensor:
    generator = torch.Generator().manual_seed(20)
    rows = []
    for _ in range(POINTS):
        parts: list[Tensor] = []
        for one in cases:
            for operand in one.operands:
                u = torch.rand(operand.size, dtype=torch.float64, generator=generator)
                parts.append(operand.draw(u))
            parts.append(torch.ones(1, dtype=torch.float64))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def _gradient(function: Function, point: Tensor) -> tuple[Tensor, Tensor]:
    leaf = point.clone().requires_grad_()
    value = function.log_prob(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def assert_compiled_like_eager(cases: Sequence[Case], tolerance: float = 1e-9) -> None:
    """Compile a sum over cases, and compare each case's value and gradient with eager ones."""
    function, points = _function(cases), _points(cases)
    compiled = CompiledLogDensity(function, points[0], LANES)  # type: ignore[arg-type]
    values, gradients = compiled(points)
    wrong = []
    for point, value, gradient in zip(points, values, gradients, strict=True):
        want, slope = _gradient(function, point)
        assert torch.isfinite(want), "the cases must be finite where they are compared"
        start = 0
        for one in cases:
            part = slice(start, start + _size(one))
            start += _size(one)
            error = (gradient[part] - slope[part]).abs().max()
            if not error <= tolerance * (1 + slope[part].abs().max()):
                wrong.append(f"{one.name}: {gradient[part].tolist()}, not {slope[part].tolist()}")
        size = 1 + float(slope.abs().sum())
        if not abs(float(value - want)) <= tolerance * size:
            wrong.append(f"the sum is {float(value)}, not {float(want)}")
    assert not wrong, "\n".join(dict.fromkeys(wrong))


def assert_refused(function: Callable[[Tensor], Any], reason: str, size: int = 4) -> None:
    point = torch.linspace(0.1, 0.9, size, dtype=torch.float64)
    with pytest.raises(CannotCompile, match=reason):
        lower(record(lambda x: _weighted(function(x)) + x.sum(), point, is_known))


# --- one element from one element


def _unary() -> Iterable[Case]:
    names = (
        "abs asinh atan ceil cos cosh deg2rad erf erfc exp exp2 expm1 floor frac neg rad2deg "
        "reciprocal relu round sgn sigmoid sign sin sinh square tan tanh trunc i0 isnan isinf "
        "isfinite isposinf isneginf sinc nan_to_num logical_not"
    ).split()
    for name in names:
        yield case(name, getattr(torch, name), real(5))
    for name in "digamma lgamma log log10 log1p log2 rsqrt sqrt".split():
        yield case(name, getattr(torch, name), positive(5))
    for name in "acos asin atanh erfinv".split():
        yield case(name, getattr(torch, name), between(-0.9, 0.9, 5))
    yield case("acosh", torch.acosh, between(1.2, 4, 5))
    for name in "erfcx i0e i1 i1e log_ndtr ndtr expit psi gammaln".split():
        special = getattr(torch.special, name)
        yield case(name, special, positive(5))
        yield case(f"{name} below", lambda x, f=special: f(-x), positive(5))
    for name in "ndtri logit entr".split():
        yield case(name, getattr(torch.special, name), between(0.01, 0.99, 5))
    yield case(
        "entr at the ends", lambda x: torch.special.entr(x.floor().detach()) * x, positive(5)
    )
    yield case("logit clamped", lambda x: torch.logit(x, eps=0.2), between(0.01, 0.99, 6))
    yield case("round to two decimals", lambda x: torch.round(x, decimals=2), real(5))
    for order in (0, 1, 2, 3):
        yield case(f"polygamma {order}", lambda x, n=order: torch.polygamma(n, x), positive(4))
    yield case("multigammaln", lambda x: torch.special.multigammaln(x + 2, 3), positive(3))
    for exponent in (-2, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 2.7, -7):
        yield case(f"power {exponent}", lambda x, e=exponent: x**e, positive(4))
    yield case("power of a number", lambda x: 2.5**x, real(4))
    yield case("infinite power", lambda x: (x.detach() / 4) ** math.inf * x, positive(4))
    for name in (
        "celu elu gelu hardswish hardtanh leaky_relu logsigmoid mish relu6 selu silu "
        "softplus softshrink softsign tanhshrink"
    ).split():
        yield case(name, getattr(functional, name), real(6))
    yield case("gelu by tanh", lambda x: functional.gelu(x, approximate="tanh"), real(4))
    yield case("softplus of scale", lambda x: functional.softplus(9 * x, 2, 5), real(6))
    yield case("threshold", lambda x: functional.threshold(x, 0.1, 0.5), real(6))
    yield case("detach", lambda x: x * x.detach(), real(3))
    yield case("no_grad", _without_gradient, real(3))


def _without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x.exp()
        y += 1
    return x * y


def test_functions_of_one_argument() -> None:
    assert_compiled_like_eager(list(_unary()))


def _binary() -> Iterable[Case]:
    functions: dict[str, Callable[..., Tensor]] = {
        "add": torch.add,
        "add with alpha": lambda a, b: torch.add(a, b, alpha=2.5),
        "sub": torch.sub,
        "sub with alpha": lambda a, b: torch.sub(a, b, alpha=-0.5),
        "rsub": lambda a, b: torch.rsub(a, b),
        "mul": torch.mul,
        "div": torch.div,
        "floor_divide": lambda a, b: torch.floor_divide(a.detach(), b.detach()) * a,
        "div rounded down": lambda a, b: torch.div(a, b, rounding_mode="floor"),
        "div truncated": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
        "remainder": torch.remainder,
        "fmod": torch.fmod,
        "pow": lambda a, b: a.abs() ** b,
        "float_power": lambda a, b: torch.float_power(a.abs(), b),
        "atan2": torch.atan2,
        "hypot": torch.hypot,
        "copysign": torch.copysign,
        "maximum": torch.maximum,
        "minimum": torch.minimum,
        "fmax": torch.fmax,
        "fmin": torch.fmin,
        "max of two": torch.max,
        "logaddexp": torch.logaddexp,
        "logaddexp2": torch.logaddexp2,
        "xlogy": lambda a, b: torch.xlogy(a, b.abs()),
        "xlog1py": lambda a, b: torch.special.xlog1py(a, b.abs()),
        "eq": lambda a, b: torch.eq(a.round(), b.round()),
        "ne": lambda a, b: torch.ne(a.round(), b.round()),
        "lt": torch.lt,
        "le": torch.le,
        "gt": torch.gt,
        "ge": torch.ge,
        "and": lambda a, b: (a > 0) & (b > 0),
        "or": lambda a, b: (a > 0) | (b > 0),
        "xor": lambda a, b: (a > 0) ^ (b > 0),
        "logical_and": lambda a, b: torch.logical_and(a.round(), b.round()),
        "logical_or": lambda a, b: torch.logical_or(a.round(), b.round()),
        "logical_xor": lambda a, b: torch.logical_xor(a.round(), b.round()),
        "sum of truths": lambda a, b: (a > 0) + (b > 0),
        "not": lambda a, b: ~(a > b),
        "where": lambda a, b: torch.where(a > b, a, b),
        "where of numbers": lambda a, b: torch.where(a > b, 1.5, -2.5),
        "masked_fill": lambda a, b: a.masked_fill(a > b, 0.7),
        "clamp": lambda a, b: torch.clamp(a, b - 0.2, b + 0.2),
        "clamp by numbers": lambda a, b: torch.clamp(a * b, -0.3, 0.4),
        "clamp_min": lambda a, b: a.clamp(min=b),
        "clamp_max": lambda a, b: a.clamp(max=b),
        "clamp_max by a number": lambda a, b: torch.clamp_max(a * b, 0.1),
        "lerp": lambda a, b: torch.lerp(a, b, 0.3),
        "lerp by a tensor": lambda a, b: torch.lerp(a, b, a * b),
        "addcmul": lambda a, b: torch.addcmul(a, a, b, value=0.5),
        "addcdiv": lambda a, b: torch.addcdiv(a, a, b, value=0.5),
        "heaviside": lambda a, b: torch.heaviside(a.trunc().detach(), b.detach()) * b,
        "dist": torch.dist,
        "mse_loss": functional.mse_loss,
        "smooth_l1_loss": functional.smooth_l1_loss,
        "huber_loss": functional.huber_loss,
        "kl_div": lambda a, b: functional.kl_div(a, b.abs(), reduction="batchmean"),
        "binary_cross_entropy": lambda a, b: functional.binary_cross_entropy(
            a.sigmoid(), b.sigmoid()
        ),
        "binary_cross_entropy_with_logits": lambda a, b: (
            functional.binary_cross_entropy_with_logits(a, b.sigmoid())
        ),
        "kron": torch.kron,
        "outer": lambda a, b: torch.outer(a.flatten(), b.flatten()),
    }
    for name, function in functions.items():
        yield case(name, function, real(2, 3), real(2, 3))
        if name in ("add", "sub", "mul", "div", "pow", "maximum", "lt", "where", "clamp", "lerp"):
            yield case(f"{name}, left live", lambda a, f=function: f(a, fixed(2, 3)), real(2, 3))
            yield case(f"{name}, right live", lambda b, f=function: f(fixed(2, 3), b), real(2, 3))


def test_functions_of_two_arguments() -> None:
    assert_compiled_like_eager(list(_binary()))


LAYOUTS: dict[str, tuple[Operand, Callable[[Tensor], Tensor]]] = {
    "plain": (real(2, 3), lambda x: x),
    "transposed": (real(3, 2), lambda x: x.t()),
    "sliced": (real(4, 5), lambda x: x[1::2, 0:5:2]),
    "expanded": (real(1, 3), lambda x: x.expand(2, 3)),
    "permuted": (real(3, 2, 2), lambda x: x.permute(2, 1, 0)[1]),
    "view of a view": (real(24), lambda x: x.reshape(2, 12)[:, 2:].unflatten(1, (2, 5))[:, 1, 1:4]),
    "unfolded": (real(4), lambda x: x.unfold(0, 3, 1)),
    "diagonal": (real(3, 3, 2), lambda x: x.diagonal().contiguous()),
    "as_strided": (real(9), lambda x: x.as_strided((2, 3), (3, 1), 2)),
}


def _layouts() -> Iterable[Case]:
    for name, (operand, view) in LAYOUTS.items():
        yield case(f"exp of {name}", lambda x, v=view: v(x).exp(), operand)
        yield case(f"row + {name}", lambda x, r, v=view: v(x) * r, operand, real(3))
        yield case(f"column / {name}", lambda x, c, v=view: c / v(x), operand, real(2, 1))
        yield case(f"sum of {name}", lambda x, v=view: v(x).sum(0), operand)
        yield case(f"copy of {name}", lambda x, v=view: v(x).contiguous().view(-1), operand)
        yield case(f"product of {name}", lambda x, v=view: v(x) @ fixed(3, 2), operand)
        yield case(f"cat of {name}", lambda x, v=view: torch.cat([v(x), v(x)], 1), operand)
        yield case(f"index of {name}", lambda x, v=view: v(x)[:, [2, 0, 2]], operand)
        yield case(f"softmax of {name}", lambda x, v=view: v(x).softmax(0), operand)
        yield case(f"cumsum of {name}", lambda x, v=view: v(x).cumsum(1), operand)
    yield case("number and tensor", lambda x, y: x * y, real(), real(2, 3))
    yield case("numbers", lambda x, y: x.exp() * y, real(), real())
    yield case("size one", lambda x, y: x * y, real(1, 3, 1), real(2, 1, 1))
    yield case("five axes", lambda x, y: x * y, real(2, 1, 3, 1, 2), real(1, 2, 1, 2, 1))
    yield case("expand of a number", lambda x: x.expand(2, 3).exp(), real())
    yield case("expand along", lambda x: x[:, None].expand(2, 3, 2).sum((0, 2)), real(2, 2))
    yield case("nothing", lambda x: (x[:0].exp(), x[:0].sum(), torch.cat([x[:0], x])), real(3))
    yield case("broadcast_tensors", lambda x, y: torch.broadcast_tensors(x, y), real(3), real(2, 1))


def test_layouts_and_broadcasting() -> None:
    assert_compiled_like_eager(list(_layouts()))


# --- reductions


def _reductions() -> Iterable[Case]:
    axes: list[tuple[Any, bool]] = [
        (None, False),
        (0, False),
        ((0, 2), False),
        (-1, True),
        ((0, 1, 2), True),
    ]
    several = {
        "sum": torch.sum,
        "mean": torch.mean,
        "amax": torch.amax,
        "amin": torch.amin,
        "logsumexp": torch.logsumexp,
        "var": torch.var,
        "std": torch.std,
        "norm": torch.linalg.vector_norm,
        "nansum": torch.nansum,
        "count_nonzero": lambda x, dim, keepdim=False: torch.count_nonzero(x.round(), dim),
    }
    for name, function in several.items():
        for axis, keep in axes:
            if axis is None and name in ("amax", "amin", "logsumexp"):
                axis = (0, 1, 2)
            yield case(
                f"{name} over {axis}{', kept' * keep}",
                lambda x, f=function, d=axis, k=keep: f(x, dim=d, keepdim=k),
                real(2, 3, 2),
            )
    for name in ("sum", "mean", "prod", "var", "std", "max", "min", "norm", "any", "all"):
        yield case(f"{name} of all", lambda x, n=name: getattr(torch, n)(x), real(2, 3))
        yield case(f"{name} of one", lambda x, n=name: getattr(torch, n)(x[:2]), real(2))
    for axis, keep in ((0, False), (-1, False), (1, True)):
        for name in ("max", "min", "prod", "any", "all", "argmax", "argmin"):
            yield case(
                f"{name} over {axis}{', kept' * keep}",
                lambda x, n=name, d=axis, k=keep: getattr(torch, n)(x, d, k),
                real(2, 3, 2),
            )
        for name in ("softmax", "log_softmax", "cumsum", "cumprod", "logcumsumexp"):
            yield case(
                f"{name} along {axis}", lambda x, n=name, d=axis: getattr(x, n)(d), real(2, 3, 2)
            )
    yield case("argmax of all", lambda x: x.argmax() * x, real(2, 3))
    yield case("prod with a zero", lambda x: (x * torch.tensor([1.0, 0.0, 1.0])).prod(), real(3))
    yield case("cumprod of a number", lambda x: x.cumprod(0), real())
    yield case("sum to integers", lambda x: x.detach().sum(dtype=torch.int64) * x, real(3))
    yield case("norms", lambda x: [x.norm(p) for p in (1, 2, 3, math.inf)], real(2, 3))
    yield case("matrix norm", lambda x: torch.linalg.norm(x), real(2, 3))
    yield case("var_mean", lambda x: torch.var_mean(x, 1), real(2, 3))
    yield case("variance by n", lambda x: x.var(0, unbiased=False), real(3, 2))
    yield case("cov", torch.cov, real(3, 4))
    yield case("corrcoef", torch.corrcoef, real(3, 4))
    yield case("logsumexp of -inf", _log_sum_of_nothing, real(3))
    yield case("diff", lambda x: (x.diff(), x.diff(n=2, dim=0)), real(3, 4))
    yield case("trapezoid", lambda x: torch.trapezoid(x, dx=0.5), real(2, 4))
    yield case("aminmax", lambda x: tuple(torch.aminmax(x, dim=0)), real(3, 2))
    yield case("trace", torch.trace, real(3, 3))
    yield case("cosine_similarity", functional.cosine_similarity, real(2, 3), real(2, 3))
    yield case("normalize", functional.normalize, real(2, 3))
    yield case("cdist", torch.cdist, real(3, 2), real(4, 2))
    yield case("cdist, p = 1", lambda x, y: torch.cdist(x, y, p=1), real(3, 2), real(4, 2))


def _log_sum_of_nothing(x: Tensor) -> Tensor:
    impossible = torch.full((3,), -math.inf, dtype=torch.float64)
    return torch.stack([x, torch.where(x > 9, x, impossible)], 1).logsumexp(1)


def test_reductions() -> None:
    assert_compiled_like_eager(list(_reductions()))


# --- moving elements


_INDEX = torch.tensor([2, 0, 2, 1])
_MASK = torch.tensor([[True, False, True], [False, False, True]])


def _movements() -> Iterable[Case]:
    yield case("cat", lambda x, y: torch.cat([x, fixed(2, 1), y], 1), real(2, 3), real(2, 2))
    yield case("stack", lambda x, y: torch.stack([x, y, fixed(2, 3)], -1), real(2, 3), real(2, 3))
    yield case("hstack, vstack", lambda x: (torch.hstack([x, x]), torch.vstack([x, x])), real(3))
    yield case("flip", lambda x: x.flip(0, 2) * x, real(2, 3, 2))
    yield case("roll", lambda x: (x.roll(1), x.roll((1, -1), (0, 1))), real(3, 4))
    yield case("repeat", lambda x: x.repeat(2, 3), real(3))
    yield case("tile", lambda x: x.tile(2), real(2, 2))
    yield case("repeat_interleave", lambda x: x.repeat_interleave(2, 0), real(3, 2))
    yield case(
        "repeat_interleave by counts",
        lambda x: x.repeat_interleave(torch.tensor([2, 0, 1]), 0),
        real(3, 2),
    )
    yield case("rot90", lambda x: torch.rot90(x), real(2, 3))
    yield case("tril, triu", lambda x: (x.tril(-1), x.triu(1), x.tril()), real(2, 3, 3))
    yield case("diag_embed", lambda x: torch.diag_embed(x, 1), real(2, 3))
    yield case("diag", lambda x: (x.diag(), x[0].diag()), real(3, 3))
    yield case("block_diag", torch.block_diag, real(2, 2), real(1, 3))
    yield case("pad", lambda x: functional.pad(x, (1, 2, -1, 1), value=0.5), real(3, 2))
    yield case("pad by reflection", lambda x: functional.pad(x, (1, 2), mode="reflect"), real(1, 4))
    yield case(
        "split, chunk, unbind", lambda x: (*x.split(2), *x.chunk(2, 1), *x.unbind()), real(3, 4)
    )
    yield case("meshgrid", lambda x, y: torch.meshgrid(x, y, indexing="ij"), real(2), real(3))
    yield case("movedim", lambda x: x.movedim(0, -1).contiguous(), real(2, 3, 2))
    yield case("unfold", lambda x: x.unfold(1, 3, 2), real(2, 7))
    yield case("select_scatter", lambda x, y: x.select_scatter(y, 1, 2), real(2, 3), real(2))
    yield case("slice_scatter", lambda x, y: x.slice_scatter(y, 1, 0, 3, 2), real(2, 3), real(2, 2))
    yield case("diagonal_scatter", lambda x, y: x.diagonal_scatter(y), real(2, 3), real(2))
    # Constant indices.
    yield case("index", lambda x: x[_INDEX], real(3, 2))
    yield case("index pair", lambda x: x[_INDEX, _INDEX % 2], real(3, 2))
    yield case("index apart", lambda x: x[_INDEX, :, _INDEX % 2], real(3, 2, 2))
    yield case("index inside", lambda x: x[:, _INDEX.reshape(2, 2)], real(2, 3))
    yield case("index from the end", lambda x: x[torch.tensor([-1, -3])], real(3))
    yield case("mask", lambda x: (x[_MASK], x[:, _MASK[0]]), real(2, 3))
    yield case("masked_select", lambda x: x.masked_select(_MASK), real(2, 3))
    yield case("masked_scatter", lambda x, y: x.masked_scatter(_MASK, y), real(2, 3), real(4))
    yield case("gather", lambda x: x.gather(0, torch.tensor([[1, 0], [2, 2]])), real(3, 2))
    yield case("take", lambda x: x.take(torch.tensor([[0, 5], [3, 3]])), real(2, 3))
    yield case("take_along_dim", lambda x: x.take_along_dim(_INDEX[:3, None] % 2, 0), real(2, 3))
    yield case("index_select", lambda x: x.index_select(1, _INDEX), real(2, 3))
    yield case("scatter", lambda x: x.scatter(0, torch.tensor([[1, 0]]), 0.5), real(2, 3))
    yield case(
        "scatter of a tensor",
        lambda x, y: x.scatter(1, torch.tensor([[1, 0], [2, 1]]), y),
        real(2, 3),
        real(2, 2),
    )
    yield case(
        "scatter_add",
        lambda x, y: x.scatter_add(0, torch.tensor([[1, 1, 0], [0, 1, 0]]), y),
        real(2, 3),
        real(2, 3),
    )
    yield case(
        "index_add", lambda x, y: x.index_add(0, _INDEX, y, alpha=0.5), real(3, 2), real(4, 2)
    )
    yield case("index_copy", lambda x, y: x.index_copy(0, _INDEX[:2], y), real(3, 2), real(2, 2))
    yield case("index_fill", lambda x: x.index_fill(0, _INDEX[:2], 0.5), real(3, 2))
    yield case("embedding", lambda x: functional.embedding(_INDEX.reshape(2, 2), x), real(3, 2))
    yield case(
        "embedding with padding",
        lambda x: functional.embedding(_INDEX, x, padding_idx=2),
        real(3, 2),
    )
    yield case("one_hot", lambda x: functional.one_hot(_INDEX, 3).double() @ x, real(3))
    # Indices that depend on the vector.
    yield case("value at a maximum", lambda x: x.gather(1, x.argmax(1, keepdim=True)), real(3, 4))
    yield case(
        "beside a maximum",
        lambda x, y: y.gather(0, x.argmax(0, keepdim=True).expand(2, 3)),
        real(2, 3),
        real(2, 3),
    )
    yield case("at a maximum", lambda x, y: y[x.argmax(0)], real(2, 3), real(2, 3))
    yield case("inside, at a maximum", lambda x, y: y[:, x.argmax(0)], real(3, 4), real(2, 3, 2))
    yield case("change point", lambda x, y: y[(torch.arange(6) > x).long()], between(0, 5), real(2))
    yield case(
        "from the end", lambda x, y: y[-(torch.arange(3) > x).long() - 1], real(), real(2, 2)
    )
    yield case(
        "index_select, live", lambda x, y: y.index_select(1, x.argmax(0)), real(3, 2), real(2, 3)
    )
    yield case(
        "embedding, live", lambda x, y: functional.embedding(x.argmax(0), y), real(3, 2), real(3, 2)
    )
    yield case("put at a maximum", _put_at_maximum, real(3, 2), real(2))
    yield case("add at a maximum", _add_at_maximum, real(3, 4), real(4))
    yield case(
        "scatter at a maximum",
        lambda x, y: y.scatter(0, x.argmax(0, keepdim=True), x[:1]),
        real(3, 2),
        real(3, 2),
    )
    yield case(
        "scatter_add at a maximum",
        lambda x, y: y.scatter_add(1, x.argmax(0)[None], x[:1]),
        real(3, 2),
        real(2, 3),
    )
    yield case(
        "searchsorted on constants",
        lambda x: x * torch.searchsorted(fixed(4).sort()[0], fixed(3)),
        real(3),
    )


def _put_at_maximum(x: Tensor, y: Tensor) -> Tensor:
    z = x.clone()
    z[x.argmax(0)] = y
    return z


def _add_at_maximum(x: Tensor, y: Tensor) -> Tensor:
    return torch.zeros(3, dtype=x.dtype).index_put((x.argmax(0),), y, accumulate=True)


def test_movements() -> None:
    assert_compiled_like_eager(list(_movements()))


# --- writing in place


def _in_place() -> Iterable[Case]:
    def into(write: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
        def function(x: Tensor, y: Tensor) -> Tensor:
            z = x * 1.5
            write(z, y)
            return z * x

        return function

    def of_constant(write: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Any]:
        def function(x: Tensor, y: Tensor) -> Any:
            buffer = fixed(2, 3)
            before = (buffer + x).exp()
            write(buffer, y)
            return before, (buffer + x).exp(), buffer.t()[1:].exp()

        return function

    writes: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "add_": lambda z, y: z.add_(y, alpha=2),
        "sub_": lambda z, y: z.sub_(y),
        "mul_": lambda z, y: z.mul_(y),
        "div_": lambda z, y: z.div_(y),
        "pow_": lambda z, y: z.abs_().pow_(2.5).add_(y),
        "+= of a slice": lambda z, y: z[:, 1:].add_(y[:, 1:]),
        "copy_": lambda z, y: z.copy_(y),
        "copy_ of a row": lambda z, y: z.copy_(y[0]),
        "element": lambda z, y: z.__setitem__((1, 2), y[0, 0]),
        "row": lambda z, y: z.__setitem__(0, y[1]),
        "number in a column": lambda z, y: z[:, 1].fill_(0.5),
        "slice of a slice": lambda z, y: z[1:][:, ::2].copy_(y[:1, :2]),
        "transposed": lambda z, y: z.t()[1:].copy_(y.t()[1:]),
        "masked_fill_": lambda z, y: z.masked_fill_(_MASK, 0.7).add_(y),
        "masked_fill_, live": lambda z, y: z.masked_fill_(y > 0, 0.7),
        "mask = number": lambda z, y: z.__setitem__(y > 0, 0.7),
        "row mask = number": lambda z, y: z.__setitem__(y[:, 0] > 0, 0.7),
        "constant mask": lambda z, y: z.__setitem__(_MASK, y[0]),
        "index_put_": lambda z, y: z.index_put_((torch.tensor([1, 0]),), y),
        "index_put_ adding": lambda z, y: z.index_put_(
            (torch.tensor([1, 1]), torch.tensor([2, 2])), y[0, :2], accumulate=True
        ),
        "index_add_": lambda z, y: z.index_add_(0, torch.tensor([1, 1]), y),
        "index_copy_": lambda z, y: z.index_copy_(1, torch.tensor([2, 0]), y[:, :2]),
        "index_fill_": lambda z, y: z.index_fill_(1, torch.tensor([2, 0]), 0.4).mul_(y),
        "scatter_": lambda z, y: z.scatter_(1, torch.tensor([[2, 0]]), y[:1, :2]),
        "scatter_add_": lambda z, y: z.scatter_add_(1, torch.tensor([[2, 2]]), y[:1, :2]),
        "zero_": lambda z, y: z[0].zero_(),
        "clamp_": lambda z, y: z.clamp_(-0.3, 0.3).add_(y),
        "exp_": lambda z, y: z.mul_(y).exp_(),
        "sigmoid_": lambda z, y: z.mul_(y).sigmoid_(),
        "cumsum_": lambda z, y: z.mul_(y).cumsum_(1),
        "tril_": lambda z, y: z.tril_().add_(y),
        "addcmul_": lambda z, y: z.addcmul_(y, y, value=0.5),
        "addmm_": lambda z, y: z.addmm_(fixed(2, 2), y, beta=0.5),
        "lerp_": lambda z, y: z.lerp_(y, 0.3),
        "fill_ by a tensor": lambda z, y: z[1].fill_(y[0, 0]),
        "diagonal": lambda z, y: z.diagonal().copy_(y[0, :2]),
        "swap": lambda z, y: z.copy_(torch.cat([z[1:], z[:1]]) * y),
        "leaky_relu_": lambda z, y: functional.leaky_relu_(z.mul_(y), 0.2),
        "normalising": lambda z, y: z.sub_(z.mean()).mul_(y),
        "unsqueeze_": lambda z, y: z.add_(y.clone().unsqueeze_(0).squeeze_(0)),
        "detached write": lambda z, y: z.detach()[0].mul_(2),
    }
    for name, write in writes.items():
        yield case(name, into(write), real(2, 3), real(2, 3))
        yield case(f"{name} of a constant", of_constant(write), real(2, 3), real(2, 3))
    yield case("recursion", _recursion, real(6), between(0.1, 0.9))
    yield case("constant changed after use", _constant_changed, real(3))
    yield case("live buffer overwritten", _overwritten, real(3))
    yield case("buffer shared by views", _shared, real(2, 3))
    yield case("counter", _counter, real(3))
    yield case("out argument", _out_argument, real(3))


def _recursion(x: Tensor, a: Tensor) -> Tensor:
    state = torch.zeros(7, dtype=x.dtype)
    for t in range(6):
        state[t + 1] = a * state[t].clone() + x[t]
    return state


def _constant_changed(x: Tensor) -> Any:
    buffer = fixed(3)
    first = (buffer + x).exp()
    buffer.mul_(2).add_(1)
    second = (buffer + x).exp()
    buffer[1] = 7.0
    return first, second, buffer * x


def _overwritten(x: Tensor) -> Any:
    buffer = torch.empty(3, dtype=x.dtype)
    buffer.copy_(x)
    with torch.no_grad():
        first = buffer * 2
        buffer.fill_(2.0)
        buffer[1:] = fixed(2)
    return first, (buffer * x.detach()).sum() * x


def _shared(x: Tensor) -> Any:
    z = x.clone()
    row, column, whole = z[0], z[:, 1], z.view(-1)
    row.mul_(2)
    column.add_(row[0])
    whole[3:].mul_(whole[:3].clone())
    return z, row * 1.0, column * whole[0]


def _counter(x: Tensor) -> Tensor:
    count, total = torch.zeros(1, dtype=torch.int64), torch.zeros_like(x)
    for _ in range(3):
        count += 1
        total = total + x * count.double()
    return total


def _out_argument(x: Tensor) -> Tensor:
    buffer = torch.empty(3, dtype=x.dtype)
    with torch.no_grad():
        torch.mul(x, x + 1, out=buffer)
        torch.add(buffer, 1.5, out=buffer)
    return buffer * x


def test_writing_in_place() -> None:
    assert_compiled_like_eager(list(_in_place()))


# --- matrices


def _well(x: Tensor) -> Tensor:
    """Return matrices far from singular."""
    return x + 3 * torch.eye(x.shape[-1], dtype=x.dtype)


def _definite(x: Tensor) -> Tensor:
    return x @ x.mT + torch.eye(x.shape[-1], dtype=x.dtype)


def _matrices() -> Iterable[Case]:
    products: dict[str, tuple[Callable[..., Any], Operand, Operand]] = {
        "mm": (torch.mm, real(2, 3), real(3, 4)),
        "mm transposed": (lambda a, b: a.t() @ b.t(), real(3, 2), real(4, 3)),
        "mm long": (lambda a, b: a @ b, real(2, 70), real(70, 1)),
        "mv": (torch.mv, real(2, 3), real(3)),
        "mv long": (torch.mv, real(3, 70), real(70)),
        "vm": (lambda a, b: a @ b, real(3), real(3, 2)),
        "vm long": (lambda a, b: a @ b, real(70), real(70, 3)),
        "dot": (torch.dot, real(3), real(3)),
        "vdot": (torch.vdot, real(3), real(3)),
        "dot long": (torch.dot, real(70), real(70)),
        "bmm": (torch.bmm, real(2, 2, 3), real(2, 3, 2)),
        "matmul over batches": (torch.matmul, real(2, 1, 2, 3), real(3, 3, 2)),
        "addmm": (
            lambda a, b: torch.addmm(a[0, :2], a, b, beta=2, alpha=0.5),
            real(2, 3),
            real(3, 2),
        ),
        "addmv": (lambda a, b: torch.addmv(a[:, 0], a, b), real(2, 3), real(3)),
        "baddbmm": (
            lambda a, b: torch.baddbmm(a[:, :, :2], a, b, alpha=2),
            real(2, 2, 3),
            real(2, 3, 2),
        ),
        "addr": (lambda a, b: torch.addr(fixed(2, 3), a, b), real(2), real(3)),
        "inner": (torch.inner, real(2, 3), real(4, 3)),
        "tensordot": (lambda a, b: torch.tensordot(a, b, 2), real(2, 3, 2), real(3, 2, 2)),
        "einsum": (lambda a, b: torch.einsum("bij,bkj->ik", a, b), real(2, 3, 2), real(2, 4, 2)),
        "einsum of a trace": (lambda a, b: torch.einsum("ii,i->i", a, b), real(3, 3), real(3)),
        "chain": (lambda a, b: torch.linalg.multi_dot([a, b, a]), real(2, 3), real(3, 2)),
        "cross": (lambda a, b: torch.linalg.cross(a, b), real(2, 3), real(2, 3)),
        "linear": (functional.linear, real(2, 3), real(4, 3)),
        "bilinear": (
            lambda a, b: functional.bilinear(a, b, fixed(2, 3, 4)),
            real(2, 3),
            real(2, 4),
        ),
        "no columns": (lambda a, b: a[:, :0] @ b[:0], real(2, 3), real(3, 2)),
    }
    for name, (function, left, right) in products.items():
        a, b = fixed(*left.shape), fixed(*right.shape)
        yield case(name, function, left, right)
        yield case(f"{name}, left live", lambda x, f=function, b=b: f(x, b), left)
        yield case(f"{name}, right live", lambda x, f=function, a=a: f(a, x), right)
    yield case("matrix_power", lambda x: torch.linalg.matrix_power(x, 3), real(2, 2))
    yield case("cholesky", lambda x: torch.linalg.cholesky(_definite(x)), real(3, 3))
    yield case(
        "cholesky over batches", lambda x: torch.linalg.cholesky(_definite(x)), real(2, 2, 3, 3)
    )
    yield case(
        "cholesky, upper", lambda x: torch.linalg.cholesky(_definite(x), upper=True), real(2, 3, 3)
    )
    yield case("cholesky of one", lambda x: torch.linalg.cholesky(x[:, None, None]), positive(3))
    for upper in (False, True):
        for left in (False, True):
            for unit in (False, True):

                def solve(a: Tensor, b: Tensor, u=upper, s=left, d=unit) -> Tensor:  # noqa: ANN001
                    b = b if s else b.mT
                    return torch.linalg.solve_triangular(a, b, upper=u, left=s, unitriangular=d)

                name = f"triangular solve {'upper ' * upper}{'left ' * left}{'unit' * unit}"
                yield case(name, lambda a, b, f=solve: f(_well(a), b), real(3, 3), real(3, 2))
                yield case(
                    f"{name}, right live", lambda b, f=solve: f(_well(fixed(3, 3)), b), real(3, 2)
                )
                yield case(
                    f"{name}, left live", lambda a, f=solve: f(_well(a), fixed(3, 2)), real(3, 3)
                )
    yield case(
        "triangular solve over batches",
        lambda a, b: torch.linalg.solve_triangular(_well(a), b, upper=False),
        real(2, 1, 2, 2),
        real(3, 2, 1),
    )
    yield case(
        "old triangular solve",
        lambda b, a: torch.triangular_solve(b, _well(a), transpose=True)[0],
        real(3, 2),
        real(3, 3),
    )
    yield case(
        "cholesky_solve",
        lambda b, a: torch.cholesky_solve(b, _well(a).tril()),
        real(3, 2),
        real(3, 3),
    )
    yield case(
        "cholesky_solve, upper",
        lambda b, a: torch.cholesky_solve(b, _well(a).triu(), upper=True),
        real(3, 2),
        real(3, 3),
    )
    yield case("cholesky_inverse", lambda a: torch.cholesky_inverse(_well(a).tril()), real(3, 3))
    one_matrix = {
        "inverse": torch.linalg.inv,
        "determinant": torch.linalg.det,
        "slogdet": lambda a: tuple(torch.linalg.slogdet(a)),
        "logdet": torch.logdet,
        "eigenvalues": lambda a: torch.linalg.eigvalsh(a),
        "eigenvectors": _by_eigenvectors,
        "eigenvectors, upper": lambda a: torch.linalg.eigh(a, UPLO="U")[0],
        "solve": lambda a: torch.linalg.solve(a, fixed(3, 2)),
        "solve by factors": _by_factors,
        "solve for a vector": lambda a: torch.linalg.solve(a, fixed(3)),
        "solve from the right": lambda a: torch.linalg.solve(
            a, fixed(2, 3).expand(*a.shape[:-2], 2, 3), left=False
        ),
    }
    for name, single in one_matrix.items():
        yield case(name, lambda x, f=single: f(_well(x)), real(3, 3))
        yield case(f"{name}, transposed", lambda x, f=single: f(_well(x).mT), real(3, 3))
        yield case(f"{name} over batches", lambda x, f=single: f(_well(x)), real(2, 3, 3))
        yield case(f"{name} of rows exchanged", lambda x, f=single: f(_exchanged(x)), real(3, 3))
    yield case("solve, right live", lambda b: torch.linalg.solve(_well(fixed(3, 3)), b), real(3, 2))


def _exchanged(x: Tensor) -> Tensor:
    """Return matrices of positive determinant whose elimination exchanges rows."""
    return 0.1 * x + 2 * torch.eye(3, dtype=x.dtype)[[1, 2, 0]]


def _by_factors(a: Tensor) -> Tensor:
    factors, pivots = torch.linalg.lu_factor(a.detach())
    right = fixed(3, 2).expand(*a.shape[:-2], 3, 2)
    return a @ torch.linalg.lu_solve(factors, pivots, right)


def _by_eigenvectors(a: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(a)
    return vectors @ torch.diag_embed(values.exp()) @ vectors.mT


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
def test_matrices() -> None:
    assert_compiled_like_eager(list(_matrices()))


# --- networks


def _networks() -> Iterable[Case]:
    yield case("conv1d", functional.conv1d, real(2, 2, 6), real(3, 2, 2), real(3))
    yield case(
        "conv1d with all options",
        lambda x, w: functional.conv1d(x, w, stride=2, padding=3, dilation=2, groups=2),
        real(2, 4, 7),
        real(6, 2, 3),
    )
    yield case("conv1d of constants", lambda w: functional.conv1d(fixed(1, 1, 9), w), real(1, 1, 3))
    yield case("conv1d by constants", lambda x: functional.conv1d(x, fixed(1, 2, 3)), real(1, 2, 5))
    yield case(
        "conv2d",
        lambda x, w, b: functional.conv2d(x, w, b, stride=(1, 2), padding=(1, 0)),
        real(1, 2, 4, 5),
        real(2, 2, 2, 3),
        real(2),
    )
    yield case("layer_norm", lambda x, w: functional.layer_norm(x, (3,), w), real(2, 3), real(3))
    yield case("group_norm", lambda x: functional.group_norm(x, 2), real(2, 4, 3))
    yield case(
        "batch_norm",
        lambda x, w: functional.batch_norm(x, fixed(3), fixed(3).abs() + 1, w),
        real(4, 3),
        real(3),
    )
    yield case("cross_entropy", lambda x: functional.cross_entropy(x, _INDEX), real(4, 3))
    yield case("nll_loss", lambda x: functional.nll_loss(x, _INDEX, reduction="sum"), real(4, 3))
    yield case("glu", functional.glu, real(2, 4))
    yield case("prelu", functional.prelu, real(2, 3), positive(1))
    yield case("gru cell", _gru_cell, real(2, 3), real(2, 2))
    yield case("lstm cell", _lstm_cell, real(2, 3), real(2, 2))
    yield case(
        "attention",
        lambda q, k: functional.softmax(q @ k.mT / 1.7, -1) @ k,
        real(1, 3, 2),
        real(1, 4, 2),
    )
    yield case("vmap", _by_vmap, real(3, 2), real(2))
    yield case("derivative inside", _derivative_inside, real(3))
    yield case("checkpoint", _checkpointed, real(3))
    yield case("own backward", _Cube.apply, real(3))
    yield case("conversions", _conversions, real(4))


def _gru_cell(x: Tensor, h: Tensor) -> Tensor:
    weights = fixed(6, 3), fixed(6, 2), fixed(6), fixed(6)
    for _ in range(2):
        h = torch.gru_cell(x, h, *weights)
    return h


def _lstm_cell(x: Tensor, h: Tensor) -> Any:
    return torch.lstm_cell(x, (h, h.exp()), fixed(8, 3), fixed(8, 2), fixed(8), fixed(8))


def _by_vmap(x: Tensor, y: Tensor) -> Tensor:
    return torch.vmap(lambda row: (row * y).exp().sum() + row @ fixed(2, 2) @ row)(x)


def _derivative_inside(x: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.grad(lambda u: u.sin() * u.exp()))(x)


def _checkpointed(x: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    result = checkpoint(lambda u: (u.exp() * u).sin(), x, use_reentrant=False)
    assert isinstance(result, Tensor)
    return result


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * 3 * x**2 + 1  # not the derivative: the function's own is taken


def _conversions(x: Tensor) -> Any:
    return (
        x.long(),
        (3 * x).to(torch.int32) // 2,
        x.bool(),
        (x > 0).double() * x,
        x.round().to(torch.bool).float(),
        torch.zeros(4, dtype=torch.int64).copy_(3 * x),
        x.type(torch.float64) * 2,
        x.new_tensor([1.0, 2.0, 3.0, 4.0]) * x,
        torch.as_tensor(x) * 2,
    )


def test_networks() -> None:
    assert_compiled_like_eager(list(_networks()))


# --- what is the same at many steps of a loop


def _written_over(x: Tensor) -> Tensor:
    y = x.exp().expand(3, 4).log1p()
    y[1] = x[2] * 5
    return y * 2


def _repeated() -> Iterable[Case]:
    views: dict[str, Callable[[Tensor], Any]] = {
        "as it is": lambda y: y,
        "transposed": lambda y: y.T,
        "rows": lambda y: y[1:],
        "every other row": lambda y: y[::2],
        "columns": lambda y: y[:, 1:3],
        "every other column": lambda y: y[:, 1::2],
        "a row": lambda y: y[2],
        "a column": lambda y: y[:, 2],
        "an element": lambda y: y[2, 1],
        "flat": lambda y: y.reshape(-1),
        "a part of it flat": lambda y: y.reshape(-1)[3:14],
        "in other rows": lambda y: y.reshape(5, 4),
        "diagonal": lambda y: y.diagonal(),
        "windows": lambda y: y.unfold(0, 2, 1),
        "by index": lambda y: y[[0, 3, 3], [2, 0, 0]],
        "flipped": lambda y: y.flip(0),
        "sums": lambda y: (y.sum(0), y.sum(1)),
        "running sums": lambda y: y.cumsum(0),
        "largest": lambda y: y.amax(1),
        "a product": lambda y: y @ y.T,
        "a vector's product": lambda y: y @ fixed(5),
        "determinant": lambda y: torch.linalg.slogdet(y @ y.T + torch.eye(4))[1],
    }
    spread: dict[str, tuple[Callable[[Tensor], Tensor], Operand]] = {
        "a number": (lambda x: x.expand(4, 5), positive()),
        "a row": (lambda x: x.expand(4, 5), positive(5)),
        "a column": (lambda x: x.expand(4, 5), positive(4, 1)),
    }
    for what, (expand, operand) in spread.items():
        for how, view in views.items():
            yield case(
                f"{what} repeated and read {how}",
                lambda x, e=expand, v=view: (
                    v(1 / (e(x).log1p() + fixed(1)) / 3).mul(e(x)[0, 0])
                    if isinstance(v(e(x)), Tensor)
                    else v(e(x).log1p())
                ),
                operand,
            )
    yield case("written over", _written_over, positive(4))
    yield case("division by a number", lambda x, s: x / s, real(9), positive())
    yield case("division by a row", lambda x, s: x / s, real(6, 2), positive(2))
    yield case("division by a column", lambda x, s: x / s, real(2, 6), positive(2, 1))
    yield case("division by two of three", lambda x, s: x / s, real(2, 5, 3), positive(2, 1, 3))
    yield case("two divisions", lambda x, s: (x / s, x.cos() / s), real(9), positive())
    yield case("division by constants", lambda x: x / (fixed(9) + 2), real(9))
    yield case("division by equal constants", lambda x: x / torch.full((9,), 3.0), real(9))
    yield case("division by a literal", lambda x: (x / 7, x / -0.1, x / 1e200), real(9))
    yield case("division by what changes", _changing_divisor, real(9), positive())


def _changing_divisor(x: Tensor, s: Tensor) -> Tensor:
    x, divisor = x.detach(), s.detach().clone()
    first = x / divisor
    divisor *= 3.0
    return first + x.cos() / divisor


def test_what_is_the_same_at_many_steps() -> None:
    assert_compiled_like_eager(list(_repeated()))


def test_what_is_the_same_at_many_steps_is_computed_once() -> None:
    def value(vector: Tensor) -> Tensor:
        loc, scale = vector[:3], vector[3].exp()
        group = torch.arange(60) % 3
        normal = torch.distributions.Normal(loc[group], scale, validate_args=False)
        return normal.log_prob(fixed(60)).sum()

    program = lower(record(value, torch.zeros(4, dtype=torch.float64), is_known))
    simplify(program)
    steps = {"v_log": 0, "/": 0}
    for statement in program.statements:
        for operator in steps:
            if operator in getattr(statement, "expression", ""):
                steps[operator] += math.prod(statement.shape)
    # The logarithm of the scale, and reciprocals of it and of twice its square.
    assert steps == {"v_log": 1, "/": 3}


def test_division_by_zero_or_by_what_has_no_reciprocal() -> None:
    def value(vector: Tensor) -> Tensor:
        tiny = torch.tensor([1e-320, 0.0, 1.0, -0.0], dtype=torch.float64)
        return (vector[:4] / vector[4] + vector[:4] / tiny[2]).sum() + (
            vector[2:4] * tiny[:2]
        ).sum()

    function = Function(value, 5)
    compiled = CompiledLogDensity(function, torch.ones(5, dtype=torch.float64), LANES)  # type: ignore[arg-type]
    points = torch.ones(3, 5, dtype=torch.float64)
    points[:, 4] = torch.tensor([0.0, -0.0, math.inf])
    values, _ = compiled(points)
    assert values.tolist() == [value(point).item() for point in points]


# --- special values and other types


def test_special_values_are_those_of_pytorch() -> None:
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-320, 1e308, -1.5])
    names = "exp log log1p sqrt tanh sigmoid erf lgamma abs sign relu round reciprocal".split()

    def outputs(x: Tensor) -> list[Tensor]:
        y = x * 1.0
        return [
            *(getattr(torch, name)(y) for name in names),
            torch.maximum(y, fixed(8)),
            torch.minimum(fixed(8), y),
            y.clamp(-1, 1),
            torch.logaddexp(y, y),
            torch.xlogy(y, y),
            y == y,
            y != y,
            y.isnan(),
            y.isinf(),
            torch.where(y.isnan(), 0.0, y),
            torch.nan_to_num(y),
            torch.nan_to_num(y, 1.0, 2.0, 3.0),
            torch.fmax(y, fixed(8)),
            torch.special.entr(y),
            torch.copysign(torch.ones(8, dtype=torch.float64), y),
            functional.softplus(y),
            functional.logsigmoid(y),
            y.amax(0, keepdim=True),
            y.logsumexp(0, keepdim=True),
            torch.div(y, 0.0, rounding_mode="floor"),
        ]

    flat = torch.cat([output.double() for output in outputs(special.double())])

    def value(vector: Tensor) -> Tensor:
        x, chosen = vector[:8], vector[8:]
        every = torch.cat([output.double() for output in outputs(x)])
        return torch.where(chosen != 0, every, 0.0).sum()  # one output element in each lane

    size = 8 + len(flat)
    compiled = CompiledLogDensity(
        Function(value, size),  # type: ignore[arg-type]
        torch.ones(size, dtype=torch.float64),
        LANES,
    )
    rows = torch.zeros(len(flat), size, dtype=torch.float64)
    rows[:, :8] = special
    rows[:, 8:] = torch.eye(len(flat), dtype=torch.float64)
    values, _ = compiled(rows)
    torch.testing.assert_close(values, flat, rtol=1e-12, atol=1e-300, equal_nan=True)


def test_single_precision() -> None:
    cases = [*_unary(), *_reductions()][::7]
    eager = _function(cases)
    function = Function(lambda x: eager.log_prob(x), eager.dim, torch.float32)
    points = _points(cases)
    compiled = CompiledLogDensity(function, points[0].double(), 8)  # type: ignore[arg-type]
    values, gradients = compiled(points)
    for point, value, gradient in zip(points, values, gradients, strict=True):
        want, slope = _gradient(eager, point)
        # Rounding of the arguments to single precision, 6e-8, times condition numbers.
        torch.testing.assert_close(gradient, slope, rtol=2e-4, atol=2e-4)
        torch.testing.assert_close(value, want, rtol=2e-4, atol=2e-3)


def test_every_number_of_lanes_gives_the_same() -> None:
    cases = [*_movements(), *_in_place()][::9]
    function, points = _function(cases), _points(cases)
    answers = [
        CompiledLogDensity(function, points[0], lanes)(points)  # type: ignore[arg-type]
        for lanes in (1, 8)
    ]
    for values, gradients in answers[1:]:
        torch.testing.assert_close(values, answers[0][0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(gradients, answers[0][1], rtol=1e-13, atol=1e-13)


# --- what is refused, and how it is said

REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "sort": (lambda x: x.sort()[0], "are sorted.*aten.sort.*test_rules.py, line"),
    "topk": (lambda x: x.topk(2)[0], "are sorted"),
    "median": (lambda x: x.median(), "are sorted"),
    "quantile": (lambda x: x.quantile(0.3), "are sorted"),
    "kthvalue": (lambda x: x.kthvalue(2)[0], "are sorted"),
    "unique": (lambda x: x.unique(), "shape of a tensor depends"),
    "nonzero": (lambda x: (x > 0).nonzero(), "shape of a tensor depends"),
    "mask of latents": (lambda x: x[x > 0.5], "a mask of aten.index.*depends on a latent site"),
    "masked_select": (lambda x: x.masked_select(x > 0), "shape of a tensor depends"),
    "two indices": (lambda x: x.reshape(2, 2)[x.argmax() // 2, x.argmax() % 2], "latent site"),
    "mask = tensor": (lambda x: _assigned(x), "a mask of aten.index_put_"),
    "scatter_reduce": (lambda x: _reduced(x), "has no rule"),
    "scatter with reduce": (
        lambda x: x.detach().scatter(0, torch.tensor([0]), 2.0, reduce="multiply") * x,
        "has no rule",
    ),
    "complex numbers": (lambda x: torch.fft.rfft(x).abs(), "complex"),
    "matrix_exp": (lambda x: torch.linalg.matrix_exp(x.reshape(2, 2)), "no rule|latent site"),
    "svd": (lambda x: torch.linalg.svdvals(x.reshape(2, 2)), "has no rule"),
    "qr": (lambda x: torch.linalg.qr(x.reshape(2, 2))[1], "has no rule"),
    "incomplete gamma": (lambda x: torch.special.gammainc(torch.tensor(2.0), x), "igamma.*no rule"),
    "zeta": (lambda x: torch.special.zeta(torch.tensor(2.0), x), "has no rule"),
    "bits of integers": (lambda x: x.long() & 1, "of integers"),
    "transposed convolution": (
        lambda x: functional.conv_transpose1d(x[None, None], fixed(1, 1, 2)),
        "has no rule",
    ),
    "reinterpreted memory": (lambda x: x.view(torch.int64), "memory of"),
    "dropout": (lambda x: functional.dropout(x), "draws random numbers"),
    "noise": (lambda x: x + torch.randn(4), "draws random numbers"),
    "noise like": (lambda x: torch.rand_like(x) * x, "draws random numbers"),
    "latent probabilities": (lambda x: torch.bernoulli(x) * x, "draws random numbers"),
}


def _assigned(x: Tensor) -> Tensor:
    z = x.clone()
    z[x > 0.5] = torch.ones(2, dtype=x.dtype)
    return z


def _reduced(x: Tensor) -> Tensor:
    return x.scatter_reduce(0, torch.tensor([0, 1, 0, 1]), x, "amax")


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_by_name(name: str) -> None:
    function, reason = REFUSED[name]
    assert_refused(function, reason)


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
def test_every_rule_is_met() -> None:
    """A rule that no case above reaches is not tested."""
    met: set[str] = set()

    def known(name: str) -> bool:
        met.update((name, base_name(name)))
        return is_known(name)

    tables = (_unary, _binary, _layouts, _reductions, _movements, _in_place, _matrices, _networks)
    for table in tables:
        cases = list(table())
        record(_function(cases).log_prob, _points(cases)[0], known)
    unmet = {*_RULES, *_OURS} - met
    assert not unmet, sorted(unmet)


def test_the_compiler_keeps_every_call() -> None:
    """With these options g++ 12 drops calls of loops that it takes for functions without effect."""
    (one,) = (one for one in _matrices() if one.name == "solve for a vector over batches")
    function, points = _function([one]), _points([one])
    program = lower(record(function.log_prob, points[0], is_known))
    simplify(program)
    source = emit(schedule(program))
    library = build(source.text, "-O1", "-fno-inline", "-DW=1", "-DREAL=double")
    memory = torch.zeros(source.workspace, dtype=torch.float64)
    pointers = [memory.data_ptr(), source.constants.ctypes.data, source.tables.ctypes.data]
    context = (ctypes.c_void_p * 3)(*pointers)
    value, gradient = torch.zeros(1, dtype=torch.float64), torch.zeros_like(points[0])
    addresses = (tensor.data_ptr() for tensor in (points[0], value, gradient))
    library.log_density(context, *(ctypes.c_void_p(address) for address in addresses))
    torch.testing.assert_close(gradient, _gradient(function, points[0])[1])
