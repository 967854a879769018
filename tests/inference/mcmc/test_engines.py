"""The sampler in C++ and the one in PyTorch: against each other, Stan's recursion and exact draws.

Adaptation and statistics are compared number by number between the engines; that the transitions
themselves are right is shown by a recursive reference for the trees and by chains that start in
exact draws and must stay distributed so. Faults planted in the C++ show what these would find.
"""

import copy
import ctypes
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from ppl_gen.core.compiler.build import NoCompiler, build, compiler
from ppl_gen.core.compiler.compiled import CompiledLogDensity
from ppl_gen.core.log_density import LogDensity
from ppl_gen.inference.mcmc import native
from ppl_gen.inference.mcmc.eager import EagerEngine, Purpose, uniform
from ppl_gen.inference.mcmc.native import OPTIONS, NativeEngine
from ppl_gen.inference.mcmc.state import (
    Kernel,
    MetricKind,
    Phase,
    State,
    Statistic,
    new_state,
    struct_declaration,
)
from ppl_gen.models import EightSchools


def _has_compiler() -> bool:
    try:
        compiler()
    except NoCompiler:
        return False
    return True


needs_compiler = pytest.mark.skipif(not _has_compiler(), reason="needs a C++ compiler")
both_engines = pytest.mark.parametrize(
    "engine", [pytest.param("native", marks=needs_compiler), "eager"]
)
Engine = NativeEngine | EagerEngine

# ---- densities and states


def gaussian(dim: int) -> LogDensity:
    """A normal distribution with correlations and scales from 0.3 to 3."""
    precision = torch.from_numpy(gaussian_precision(dim))

    def model() -> None:
        mean = torch.zeros(dim, dtype=torch.float64)
        pyro.sample("x", dist.MultivariateNormal(mean, precision_matrix=precision))

    return LogDensity(model, {})


def gaussian_precision(dim: int) -> np.ndarray:
    scale = np.geomspace(0.3, 3.0, dim)
    correlation = 0.8 ** np.abs(np.subtract.outer(np.arange(dim), np.arange(dim)))
    return np.linalg.inv(correlation * np.outer(scale, scale))


def eight_schools() -> LogDensity:
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    return LogDensity(EightSchools(), {"y": y, "sigma": sigma})


def skewed() -> LogDensity:
    """log g of a gamma variable g, left-skewed, and a normal variable around half of it."""

    def model() -> None:
        g = pyro.sample("g", dist.Gamma(2.0, 1.0))
        pyro.sample("y", dist.Normal(0.5 * torch.log(g), 1.0))

    return LogDensity(model, {})


DENSITIES: dict[str, Callable[[], LogDensity]] = {
    "gaussian": lambda: gaussian(5),
    "eight_schools": eight_schools,
    "skewed": skewed,
}


@cache
def density(name: str) -> LogDensity:
    return DENSITIES[name]()


@cache
def compiled(name: str, lanes: int) -> CompiledLogDensity:
    one = density(name)
    return CompiledLogDensity(one, torch.zeros(one.dim), lanes)


def value_and_gradient(
    density: LogDensity, points: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = points.clone().requires_grad_()
    values = density.log_prob(leaf)
    (gradients,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradients


def state_of_zeros(chains: int, dim: int, device: str = "cpu", **options: Any) -> State:
    defaults = {
        "warmup": 0,
        "thinning": 1,
        "kernel": Kernel.NUTS,
        "metric": MetricKind.DIAG,
        "max_tree_depth": 10,
        "max_steps": 100,
        "max_rank": 0,
        "chunk": 1,
        "memory": 0,
        "divergence_capacity": 10,
        "target_accept": 0.8,
        "path_length": 1.5,
        "max_energy_error": 1000.0,
    }
    return new_state(torch.device(device), chains=chains, dim=dim, **(defaults | options))


def begin(
    density: LogDensity, points: torch.Tensor, *, device: str = "cpu", **options: Any
) -> State:
    """Return a state of chains at start points, with the identity as metric."""
    chains, dim = points.shape
    state = state_of_zeros(chains, dim, device, **options)
    random = torch.Generator().manual_seed(1)
    state.key[:] = torch.randint(-(2**63), 2**63 - 1, (chains,), generator=random)
    state.tree_position[:] = points
    values, gradients = value_and_gradient(density, points)
    state.tree_log_prob[:], state.tree_gradient[:] = values, gradients
    state.step_size[:] = 1.0
    state.scale[:] = 1.0
    if state.metric == MetricKind.DENSE:
        state.factor[:] = torch.eye(dim)
    return state


def set_random_metric(state: State) -> None:
    """Give each chain a metric of its own, far from the identity."""
    random = np.random.default_rng(2)
    for chain in range(state.chains):
        state.scale[chain] = torch.from_numpy(np.exp(random.normal(0.0, 0.5, state.dim)))
        if state.metric == MetricKind.DENSE:
            root = random.normal(size=(state.dim, state.dim)) / state.dim
            covariance = np.eye(state.dim) + root @ root.T
            state.factor[chain] = torch.from_numpy(np.linalg.cholesky(covariance))
        if state.metric == MetricKind.LOW_RANK:
            used = 1 + chain % state.max_rank
            directions = np.linalg.qr(random.normal(size=(state.dim, used)))[0].T
            state.rank[chain] = used
            state.directions[chain, :used] = torch.from_numpy(directions.copy())
            state.stretch[chain, :used] = torch.from_numpy(random.uniform(0.3, 3.0, used))


def make_engine(kind: str, name: str, state: State, lanes: int = 4) -> Engine:
    if kind == "eager":
        return EagerEngine(density(name), state)
    return NativeEngine(compiled(name, lanes), state)


def run(engine: Engine, state: State, last: int, steps: int = 10**6) -> list[torch.Tensor]:
    """Run all chains to their last transition, a number of steps at a time; return what they kept.

    Args:
        engine: What advances them.
        state: The chains: new ones, or those of a run that is resumed.
        last: Number of transitions.
        steps: Of one call.

    Returns:
        Draws and statistics side by side, one tensor for each chain.
    """
    taken: list[list[torch.Tensor]] = [[] for _ in range(state.chains)]
    for group in range(state.chains // engine.group_size):
        members = range(group * engine.group_size, (group + 1) * engine.group_size)
        while bool((state.phase[members.start : members.stop] != Phase.DONE).any()):
            engine.advance(group, steps)
            for chain in members:
                if state.phase[chain] != Phase.WAITING:
                    continue
                kept = int(state.kept[chain])
                parts = state.draws[chain, :kept], state.statistics[chain, :kept]
                taken[chain].append(torch.cat(parts, dim=-1))
                state.kept[chain] = 0
                if state.transition[chain] == last:
                    state.phase[chain] = Phase.DONE
                    continue
                if state.transition[chain] == state.warmup:
                    state.step_size[chain] = torch.exp(state.log_step_average[chain])
                    state.next_stop[chain] = last
                engine.begin_transition(chain)
    return [torch.cat(parts) for parts in taken]


def one_transition(engine: Engine, state: State, transitions: int = 1) -> None:
    """Make so many transitions of each chain, without warm-up."""
    state.next_stop[:] = transitions
    for chain in range(state.chains):
        engine.begin_transition(chain)
    for group in range(state.chains // engine.group_size):
        members = slice(group * engine.group_size, (group + 1) * engine.group_size)
        while bool((state.phase[members] != Phase.WAITING).any()):
            engine.advance(group, 10**6)


# ---- the engines against each other


def start_of_comparison(
    name: str, kernel: Kernel, metric: MetricKind, device: str = "cpu"
) -> State:
    """Return 4 chains before a warm-up of 10 transitions and 5 draws of every second one."""
    one = density(name)
    random = torch.Generator().manual_seed(3)
    points = torch.randn(4, one.dim, generator=random, dtype=torch.float64)
    state = begin(
        one,
        points,
        device=device,
        warmup=10,
        thinning=2,
        kernel=kernel,
        metric=metric,
        max_tree_depth=4,  # reached by some trees
        max_steps=6,  # of some paths
        max_rank=3 if metric == MetricKind.LOW_RANK else 0,
        chunk=3,
        memory=7,  # less than the warm-up, so that the ring goes round
    )
    set_random_metric(state)
    state.next_stop[:] = state.warmup
    return state


def run_comparison(engine: Engine, state: State, steps: int = 10**6) -> list[torch.Tensor]:
    for chain in range(state.chains):
        engine.begin_search(chain)
    return run(engine, state, 20, steps)


def assert_same_states(a: State, b: State, tolerance: float) -> None:
    for field in fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        # Work space, which the C++ alone uses.
        if isinstance(left, torch.Tensor) and field.name != "scratch":
            torch.testing.assert_close(
                left, right, rtol=tolerance, atol=tolerance, equal_nan=True, msg=field.name
            )


@needs_compiler
@pytest.mark.parametrize("metric", list(MetricKind))
@pytest.mark.parametrize("kernel", list(Kernel))
@pytest.mark.parametrize("name", ["gaussian", "eight_schools"])
def test_the_engines_agree(name: str, kernel: Kernel, metric: MetricKind) -> None:
    in_cpp = start_of_comparison(name, kernel, metric)
    in_torch = copy.deepcopy(in_cpp)
    expected = run_comparison(make_engine("native", name, in_cpp), in_cpp)
    got = run_comparison(make_engine("eager", name, in_torch), in_torch)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == (5, density(name).dim + len(Statistic))
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    assert_same_states(in_torch, in_cpp, 1e-7)


@both_engines
@pytest.mark.parametrize("kernel", list(Kernel))
def test_a_run_is_the_same_to_the_last_bit_however_it_is_cut(engine: str, kernel: Kernel) -> None:
    whole = start_of_comparison("gaussian", kernel, MetricKind.DENSE)
    cut = copy.deepcopy(whole)
    expected = run_comparison(make_engine(engine, "gaussian", whole), whole)
    made = run_comparison(make_engine(engine, "gaussian", cut), cut, steps=1)
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))

    stopped = start_of_comparison("gaussian", kernel, MetricKind.DENSE)
    before = make_engine(engine, "gaussian", stopped)
    for chain in range(stopped.chains):
        before.begin_search(chain)
    before.advance(0, 9)
    resumed = copy.deepcopy(stopped)
    made = run(make_engine(engine, "gaussian", resumed), resumed, 20)
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


@both_engines
@pytest.mark.parametrize("thinning", [1, 3])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_no_draw_is_written_where_there_is_no_room(engine: str, chunk: int, thinning: int) -> None:
    """A chain with all places full waits, and nothing lets it go on before they are empty."""
    points = torch.zeros(4, 5, dtype=torch.float64)
    options = {"chunk": chunk, "thinning": thinning, "memory": 4, "warmup": 4}
    state = begin(density("gaussian"), points, max_tree_depth=3, **options)
    state.next_stop[:] = 10**6
    made = make_engine(engine, "gaussian", state)
    for chain in range(4):
        made.begin_search(chain)
    for _ in range(100 * chunk * thinning):
        made.advance(0, 10**6)
        assert bool((state.kept <= chunk).all())
    assert state.phase.tolist() == [Phase.WAITING] * 4
    assert state.kept.tolist() == [chunk] * 4
    assert state.transition.tolist() == [4 + chunk * thinning] * 4
    draws = state.draws.clone()
    for go_on in (made.begin_transition, made.begin_search):
        with pytest.raises(AssertionError, match="the draws of chain 2 were not taken away"):
            go_on(2)
    assert made.advance(0, 10**6) == 0
    assert torch.equal(state.draws, draws)
    state.kept[2] = 0
    made.begin_transition(2)
    while state.phase[2] != Phase.WAITING:
        made.advance(0, 10**6)
    assert state.kept.tolist() == [chunk] * 4
    assert torch.equal(state.draws[3], draws[3])
    assert not torch.equal(state.draws[2], draws[2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("metric", list(MetricKind))
@pytest.mark.parametrize("kernel", list(Kernel))
def test_the_eager_engine_is_the_same_on_a_gpu(kernel: Kernel, metric: MetricKind) -> None:
    state = start_of_comparison("gaussian", kernel, metric)
    on_gpu = start_of_comparison("gaussian", kernel, metric, "cuda")
    precision = torch.from_numpy(gaussian_precision(5)).cuda()

    def model() -> None:
        pyro.sample(
            "x", dist.MultivariateNormal(precision.new_zeros(5), precision_matrix=precision)
        )

    expected = run_comparison(EagerEngine(density("gaussian"), state), state)
    got = run_comparison(EagerEngine(LogDensity(model, {}, device="cuda"), on_gpu), on_gpu)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-8, atol=1e-8)


# ---- random numbers

ALPHA = 1e-4  # of each test of a distribution; seeds are fixed


@cache
def sampler_text() -> str:
    return (Path(native.__file__).parent / "sampler.cpp").read_text(encoding="utf-8")


@needs_compiler
def test_uniform_numbers_are_those_of_the_cpp_to_the_last_bit() -> None:
    exported = """
extern "C" void uniforms(const long* arguments, double* out, long n) {
    for (long i = 0; i < n; ++i, arguments += 4)
        out[i] = uniform((word)arguments[0], arguments[1], (int)arguments[2], arguments[3]);
}
"""
    library = build(struct_declaration() + sampler_text() + exported, *OPTIONS)
    random = torch.Generator().manual_seed(4)
    arguments = torch.stack(
        [
            torch.randint(-(2**63), 2**63 - 1, (10_000,), generator=random),
            torch.randint(10**9, (10_000,), generator=random),
            torch.randint(len(Purpose), (10_000,), generator=random),
            torch.randint(2**40, (10_000,), generator=random),
        ],
        dim=-1,
    )
    expected = torch.empty(10_000, dtype=torch.float64)
    pointers = (ctypes.c_void_p(x.data_ptr()) for x in (arguments, expected))
    library.uniforms(*pointers, ctypes.c_long(10_000))
    assert torch.equal(uniform(*arguments.unbind(-1)), expected)  # type: ignore[arg-type]


def test_uniform_numbers_are_uniform_and_independent_along_every_axis() -> None:
    # 16 chains with neighbouring keys, as bad as keys can be.
    sizes = 16, 16, len(Purpose), 64
    axes = [
        torch.arange(n).reshape([-1 if i == k else 1 for i in range(4)])
        for k, n in enumerate(sizes)
    ]
    keys, transitions, purposes, counts = axes
    u = torch.stack(
        [uniform(keys, transitions, int(p), counts)[:, :, 0] for p in purposes.flatten()], 2
    )
    numbers = u.numpy()
    assert numbers.shape == sizes
    assert numbers.min() > 0
    assert numbers.max() < 1
    assert len(np.unique(numbers)) == numbers.size
    for scale in (1.0, 2.0**20, 2.0**40):  # high, middle and low bits
        assert stats.kstest((numbers * scale % 1.0).ravel(), "uniform").pvalue > ALPHA
    for axis in range(4):
        even = np.take(numbers, range(0, sizes[axis] - 1, 2), axis).ravel()
        odd = np.take(numbers, range(1, sizes[axis], 2), axis).ravel()
        table = np.histogram2d(even, odd, bins=16, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(table.ravel()).pvalue > ALPHA


@both_engines
def test_momenta_are_standard_normal_and_independent(engine: str) -> None:
    dim, chains = 2001, 16  # odd: the last pair is cut
    state = state_of_zeros(chains, dim, kernel=Kernel.RANDOM_WALK)
    state.key[:] = torch.arange(chains)
    # No step is made, so that the density does not matter.
    made = make_engine(engine, "skewed", state)
    momenta = []
    for transition in range(2):
        state.transition[:] = transition
        for chain in range(chains):
            made.begin_transition(chain)
        momenta.append(state.momentum.clone().numpy())
    r = np.stack(momenta)
    assert stats.kstest(r.ravel(), "norm").pvalue > ALPHA
    bound = stats.norm.isf(ALPHA / 2)
    for power in range(1, 5):  # E r^k is 0, 1, 0, 3; E r^2k is 1, 3, 15, 105
        mean, square = ((0, 1), (1, 3), (0, 15), (3, 105))[power - 1]
        error = math.sqrt((square - mean**2) / r.size)
        assert abs((r**power).mean() - mean) < bound * error
    neighbours = [
        (r[0], r[1]),
        (r[:, 0::2], r[:, 1::2]),
        (r[:, :, 0:-1:2], r[:, :, 1::2]),  # sine and cosine
        (r[:, :, 1:-1:2], r[:, :, 2::2]),
    ]
    for (a, b), power in itertools.product(neighbours, (1, 2)):
        x, y = (a**power).ravel(), (b**power).ravel()
        assert stats.pearsonr(x, y).pvalue > ALPHA


# ---- trees, against the recursion of Stan's base_nuts.hpp


@dataclass
class Subtree:
    """The momenta at both ends of a subtree, and the sum of all."""

    begin: np.ndarray
    end: np.ndarray
    rho: np.ndarray


class Recursion:
    """Stan's NUTS on a normal distribution, in coordinates that are not whitened."""

    def __init__(self, precision: np.ndarray, inverse_mass: np.ndarray, step: float) -> None:
        self.precision = precision
        self.inverse_mass = inverse_mass
        self.step = step
        self.leaves = 0
        self.diverges = False
        # Where the branch in progress has got to.
        self.q = self.p = np.zeros(0)

    def energy(self, q: np.ndarray, p: np.ndarray) -> float:
        return float(q @ self.precision @ q + p @ self.inverse_mass @ p) / 2

    def persists(self, begin: np.ndarray, end: np.ndarray, rho: np.ndarray) -> bool:
        sharp = self.inverse_mass @ rho
        return bool(begin @ sharp > 0 and end @ sharp > 0)

    def build(self, depth: int, direction: int) -> Subtree | None:
        """Return a subtree that continues the branch, or None if it turns or diverges."""
        if depth == 0:
            step = direction * self.step
            self.p = self.p - step / 2 * self.precision @ self.q
            self.q = self.q + step * self.inverse_mass @ self.p
            self.p = self.p - step / 2 * self.precision @ self.q
            self.leaves += 1
            self.diverges = self.energy(self.q, self.p) - self.start > 1000
            return None if self.diverges else Subtree(self.p, self.p, self.p)
        first = self.build(depth - 1, direction)
        second = self.build(depth - 1, direction) if first is not None else None
        return None if second is None else self.join(first, second)

    def join(self, a: Subtree | None, b: Subtree) -> Subtree | None:
        assert a is not None
        whole = Subtree(a.begin, b.end, a.rho + b.rho)
        persists = (
            self.persists(whole.begin, whole.end, whole.rho)
            and self.persists(a.begin, b.begin, a.rho + b.begin)
            and self.persists(a.end, b.end, b.rho + a.end)
        )
        return whole if persists else None

    def transition(
        self, q: np.ndarray, p: np.ndarray, rights: Sequence[bool], max_depth: int
    ) -> tuple[str, int]:
        """Build a tree; return how it ended and its depth, with the branch that came last."""
        self.start = self.energy(q, p)
        self.ends = {True: (q, p), False: (q, p)}
        tree = Subtree(p, p, p)
        for depth in range(max_depth):
            right = rights[depth]
            self.q, self.p = self.ends[right]
            branch = self.build(depth, 1 if right else -1)
            if branch is None:
                return "diverges" if self.diverges else "branch turns", depth
            self.ends[right] = self.q, self.p
            # From left to right.
            back = Subtree(branch.end, branch.begin, branch.rho)
            joined = self.join(tree, branch) if right else self.join(back, tree)
            if joined is None:
                return "tree turns", depth + 1
            tree = joined
        return "deep enough", max_depth


TREES = 1000
DEPTH = 6


def grow_trees(kind: str, fault: str = "none") -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Grow trees by an engine and by the recursion.

    Returns:
        Depth, leaves, divergence and both ends of each tree, by the engine and by the recursion,
        and how the latter's ended.
    """
    dim = density("gaussian").dim
    random = torch.Generator().manual_seed(5)
    points = 2 * torch.randn(TREES, dim, generator=random, dtype=torch.float64)
    state = begin(density("gaussian"), points, metric=MetricKind.DENSE, max_tree_depth=DEPTH)
    set_random_metric(state)
    # The exact metric, under which a trajectory comes back all at once and checks across count.
    covariance = np.linalg.inv(gaussian_precision(dim))
    state.factor[1::2] = torch.from_numpy(np.linalg.cholesky(covariance))
    state.step_size[:] = torch.exp(
        torch.empty(TREES, dtype=torch.float64).uniform_(math.log(0.01), 0.0, generator=random)
    )
    state.step_size[::5] += 0.5  # some beyond what is stable
    engine = make_engine(kind, "gaussian", state)
    plant(engine, fault)
    one_transition(engine, state)
    zero = torch.zeros(TREES, dtype=torch.int64)
    rights = torch.stack(
        [uniform(state.key, zero, Purpose.DIRECTION, zero + depth) < 0.5 for depth in range(DEPTH)],
        -1,
    )
    count = torch.arange(dim + 1)
    u = uniform(state.key.unsqueeze(-1), zero.unsqueeze(-1), Purpose.MOMENTUM, count).numpy()
    radius, angle = np.sqrt(-2 * np.log(u[:, 0::2])), 2 * np.pi * u[:, 1::2]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(TREES, -1)
    expected, endings = [], []
    for chain in range(TREES):
        factor = state.factor[chain].numpy()
        step_size = float(state.statistics[chain, 0, Statistic.STEP_SIZE])  # one in 20 is smaller
        reference = Recursion(gaussian_precision(dim), factor @ factor.T, step_size)
        momentum = np.linalg.solve(factor.T, normal[chain, :dim])
        ending, depth = reference.transition(
            points[chain].numpy(), momentum, rights[chain].tolist(), DEPTH
        )
        ends = reference.ends[False][0], reference.ends[True][0]
        row = np.concatenate([[depth, reference.leaves, reference.diverges], *ends])
        expected.append(row)
        endings.append(ending)
    columns = [Statistic.TREE_DEPTH, Statistic.N_STEPS, Statistic.DIVERGING]
    parts = state.statistics[:, 0, columns], state.left_position, state.right_position
    return torch.cat(parts, dim=-1).numpy(), np.stack(expected), endings


@both_engines
def test_trees_are_those_of_the_recursion(engine: str) -> None:
    got, expected, endings = grow_trees(engine)
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8)
    counts = {ending: endings.count(ending) for ending in set(endings)}
    assert len(counts) == 4, counts
    assert min(counts.values()) >= 10, counts


# ---- faults in the C++


@dataclass(frozen=True)
class Fault:
    """A place in the C++, an expression in it and a wrong one."""

    place: str
    right: str
    wrong: str


SEAM = """old_far <= 0 || old_first <= 0 ||
                     new_outer <= 0 || new_last <= 0"""
FAULTS = {
    "none": Fault("", "", ""),
    "flipped U-turn": Fault(
        "if (whole_first <= 0 || whole_last <= 0) return",
        "whole_first <= 0 || whole_last <= 0",
        "whole_first >= 0 || whole_last >= 0",
    ),
    "no check of subtrees": Fault(
        "leaf % 2 == 1 && turns_within_branch(leaf)",
        "leaf % 2 == 1 && turns_within_branch(leaf)",
        "false",
    ),
    "no check across halves of a subtree": Fault("if (halves && (", "halves", "false"),
    "no check across the seam": Fault(
        f"|| {SEAM};",
        SEAM,
        "false",
    ),
    "wrong sign of the weights": Fault(
        "log_weight = s.energy[c] - energy;", "s.energy[c] - energy", "energy - s.energy[c]"
    ),
    "last leaf": Fault(
        "share = exp(log_weight - s.branch_log_weight[c])",
        "exp(log_weight - s.branch_log_weight[c])",
        "1.0",
    ),
    "no refresh": Fault(
        "draw_normal(r, MOMENTUM, 0)", "draw_normal(r, MOMENTUM, 0)", "void(s.steps[c])"
    ),
    "wrong sign of HMC": Fault(
        "log_ratio = s.energy[c] - energy;", "s.energy[c] - energy", "energy - s.energy[c]"
    ),
    "all accepted": Fault(
        "random(ACCEPT, 0) < acceptance", "random(ACCEPT, 0) < acceptance", "true"
    ),
    "wrong sign of the random walk": Fault(
        "log_ratio = s.log_prob[c] - s.tree_log_prob[c]",
        "s.log_prob[c] - s.tree_log_prob[c]",
        "s.tree_log_prob[c] - s.log_prob[c]",
    ),
}


@cache
def faulty_library() -> Any:
    """Build one library of all faults, of which `set_fault` chooses."""
    text = sampler_text()
    for number, fault in enumerate(FAULTS.values()):
        if number == 0:
            continue
        assert text.count(fault.place) == 1, fault
        either = f"(fault == {number} ? ({fault.wrong}) : ({fault.right}))"
        text = text.replace(fault.place, fault.place.replace(fault.right, either))
    chosen = "static long fault = 0;\n" + 'extern "C" void set_fault(long f) { fault = f; }\n'
    library = build(struct_declaration() + chosen + text, *OPTIONS)
    pointer, long = ctypes.c_void_p, ctypes.c_long
    library.advance.restype = long
    library.advance.argtypes = [pointer, long, long, long, pointer, pointer]
    for function in (library.begin_search, library.begin_transition):
        function.restype = None
        function.argtypes = [pointer, long]
    return library


def plant(engine: Engine, fault: str) -> None:
    if fault != "none":
        assert isinstance(engine, NativeEngine)
        engine._library = faulty_library()
        engine._library.set_fault(list(FAULTS).index(fault))


@needs_compiler
@pytest.mark.parametrize(
    "fault",
    [
        "flipped U-turn",
        "no check of subtrees",
        "no check across halves of a subtree",
        "no check across the seam",
    ],
)
def test_trees_of_a_wrong_rule_are_others(fault: str) -> None:
    got, expected, _ = grow_trees("native", fault)
    wrong = (got[:, :3] != expected[:, :3]).any(axis=1)
    assert wrong.any()


# ---- chains that start in exact draws


def p_values(kind: str, kernel: Kernel, chains: int, fault: str = "none") -> dict[str, float]:
    """Test whether chains from exact draws are still distributed so after three transitions.

    Both coordinates are mapped to uniform ones by their exact distribution functions: that of
    log g, and that of y given g.
    """
    random = np.random.default_rng(6)
    g = random.gamma(2.0, size=chains)
    y = random.normal(0.5 * np.log(g), 1.0)
    points = torch.from_numpy(np.stack([np.log(g), y], axis=-1))
    state = begin(density("skewed"), points, kernel=kernel, thinning=3)
    # Large steps, whose energy errors matter.
    state.step_size[:] = {Kernel.NUTS: 0.9, Kernel.HMC: 1.0, Kernel.RANDOM_WALK: 1.5}[kernel]
    engine = make_engine(kind, "skewed", state, lanes=16)
    plant(engine, fault)
    one_transition(engine, state, 3)
    moved = state.draws[:, 0].numpy()
    u = stats.gamma.cdf(np.exp(moved[:, 0]), 2.0)
    v = stats.norm.cdf(moved[:, 1] - 0.5 * moved[:, 0])
    table = np.histogram2d(u, v, bins=8, range=[[0, 1], [0, 1]])[0]
    return {
        "log g": float(stats.kstest(u, "uniform").pvalue),
        "y": float(stats.kstest(v, "uniform").pvalue),
        "both": float(stats.chisquare(table.ravel()).pvalue),
    }


CHAINS = {"native": 16_000, "eager": 2_000}


@both_engines
@pytest.mark.parametrize("kernel", list(Kernel))
def test_exact_draws_stay_exact(engine: str, kernel: Kernel) -> None:
    found = p_values(engine, kernel, CHAINS[engine])
    assert min(found.values()) > ALPHA, found


@needs_compiler
@pytest.mark.parametrize(
    ("fault", "kernel"),
    [
        # A flipped U-turn rule is a legal one, only a poor one: all trees that hold the same points
        # still agree on it. The recursion above is what finds it.
        ("no check of subtrees", Kernel.NUTS),
        ("wrong sign of the weights", Kernel.NUTS),
        ("last leaf", Kernel.NUTS),
        ("no refresh", Kernel.NUTS),
        ("no refresh", Kernel.HMC),
        ("wrong sign of HMC", Kernel.HMC),
        ("all accepted", Kernel.HMC),
        ("all accepted", Kernel.RANDOM_WALK),
        ("wrong sign of the random walk", Kernel.RANDOM_WALK),
    ],
)
def test_exact_draws_do_not_stay_exact_under_a_fault(fault: str, kernel: Kernel) -> None:
    found = p_values("native", kernel, CHAINS["native"], fault)
    assert min(found.values()) < 1e-5, found


# ---- what a density may do to a chain


def edge(kind: str) -> LogDensity:
    """Two standard normal variables, with a border at 1 for the first."""

    def model() -> None:
        # The prior, from which the model is run once, hardly ever gets to the border.
        both = pyro.sample("x", dist.Normal(torch.zeros(2), 0.2).to_event(1))
        pyro.factor("wider", (both**2).sum() * (0.5 / 0.2**2 - 0.5))
        x = both[0]
        inside = x < 1
        if kind == "infinite density":
            pyro.factor("border", torch.where(inside, 0.0, -torch.inf))
        elif kind == "NaN density":
            pyro.factor("border", torch.where(inside, 0.0, torch.nan))
        elif kind == "NaN gradient":
            # The usual slip: the branch that is not taken has a slope of NaN.
            pyro.factor("border", torch.where(inside, torch.sqrt(1 - x), 0.0))
        else:
            matrix = torch.eye(2) * (1 - x)
            pyro.factor("border", 0.0 * torch.linalg.cholesky(matrix)[0, 0])

    return LogDensity(model, {})


@both_engines
@pytest.mark.parametrize("kernel", [Kernel.NUTS, Kernel.HMC])
@pytest.mark.parametrize(
    "kind", ["infinite density", "NaN density", "NaN gradient", "failing factorisation"]
)
def test_a_chain_diverges_at_a_border_and_goes_on(engine: str, kind: str, kernel: Kernel) -> None:
    one = edge(kind)
    points = torch.tensor([[0.0, 0.0], [-1.0, 1.0], [0.5, 0.0], [-0.5, -1.0]], dtype=torch.float64)
    state = begin(one, points, kernel=kernel, warmup=5, chunk=20, memory=5)
    state.next_stop[:] = state.warmup
    made: Engine
    if engine == "native":
        made = NativeEngine(CompiledLogDensity(one, torch.zeros(2), 4), state)
    else:
        made = EagerEngine(one, state)
    for chain in range(4):
        made.begin_search(chain)
    rows = torch.stack(run(made, state, 25))
    draws, statistics = rows[..., :2], rows[..., 2:]
    assert bool(torch.isfinite(rows).all())
    assert bool((draws[..., 0] < 1).all())
    assert bool((draws.std(dim=1) > 0.1).all())
    diverging = statistics[..., Statistic.DIVERGING]
    assert float(diverging.sum()) > 0
    assert torch.equal(diverging.sum(dim=1).long(), state.divergences)
    # Noted where they were last in order.
    for chain, count in enumerate(state.divergences.tolist()):
        assert bool((state.divergence_positions[chain, :count, 0] < 1).all())
