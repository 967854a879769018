"""The run-time library of generated code, against multiple precision, torch and LAPACK.

One shared object is compiled for each number type, number of lanes and machine, and holds every
function under its own name. All buffers start one number past an aligned address, since the
library promises to work on any.
"""

import ctypes
import math
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs the compiler g++")

HEADER = Path(__file__).parents[3] / "ppl_gen" / "core" / "compiler"
FLAGS = "-std=c++17 -O2 -ffp-contract=fast -fno-math-errno -fno-trapping-math -shared -fPIC"

UNARY = (
    "abs neg sign sqrt rsqrt reciprocal floor ceil trunc round exp exp2 expm1 log log1p log2 log10 "
    "sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh sigmoid log_sigmoid erf erfc "
    "erfcx erfinv ndtri log_ndtr lgamma digamma trigamma i0 i0e i1 i1e"
).split()
BINARY = "pow atan2 fmod remainder logaddexp xlogy xlog1py maximum minimum".split()
EXPRESSIONS = {
    "polygamma2": "v_polygamma(2, x)",
    "polygamma5": "v_polygamma(5, x)",
    "softplus": "v_softplus(x, 2, 20)",
    "cube": "v_powi(x, 3)",
    "isnan": "from_mask(v_isnan(x))",
    "isfinite": "from_mask(v_isfinite(x))",
    "not": "from_mask(!to_mask(x))",
    "clamp": "v_clamp(x, splat(-1), splat(2))",
    "lane": "([&] { vec r = x; put(r, W - 1, get(x, 0)); return r; })()",
    **{f"pow_scalar_{i}": f"v_pow_scalar(x, {e})" for i, e in enumerate((0.5, -0.5, -2, 2.5))},
}


def _source() -> str:
    functions = {name: f"v_{name}(x)" for name in UNARY} | EXPRESSIONS
    functions |= {name: f"v_{name}(x, y)" for name in BINARY}
    loops = [
        f'extern "C" void f_{name}(long n, const real* a, const real* b, real* out) {{\n'
        f"    for (long i = 0; i < n; i += W) {{ vec x = load(a + i), y = load(b + i); (void)y;\n"
        f"        store(out + i, {expression}); }}\n}}\n"
        for name, expression in functions.items()
    ]
    return (
        '#include "runtime.h"\n'
        + "".join(loops)
        + """
#define PRODUCT(name, A, B)                                                                   \\
    extern "C" void name(vec* out, const A::type* a, long ars, long acs, const B::type* b,    \\
                         long brs, long bcs, long m, long k, long n, int mode) {              \\
        matmul<A, B>(out, a, ars, acs, b, brs, bcs, m, k, n, (update)mode);                   \\
    }
PRODUCT(matmul_each_each, each, each)
PRODUCT(matmul_shared_each, shared, each)
PRODUCT(matmul_each_shared, each, shared)
#define SOLVE(name, T)                                                                        \\
    extern "C" void name(vec* out, const T::type* t, long trs, long tcs, const vec* b,        \\
                         long brs, long bcs, long n, long m, int upper, int unit, int left) { \\
        triangular_solve<T>(out, t, trs, tcs, b, brs, bcs, n, m, upper, unit, left);          \\
    }
SOLVE(solve_each, each)
SOLVE(solve_shared, shared)
extern "C" {
void c_cholesky(vec* out, const vec* a, long ars, long acs, long n) {
    cholesky(out, a, ars, acs, n);
}
void c_lu_factor(vec* lu, vec* piv, const vec* a, long n) { lu_factor(lu, piv, a, n, 1, n); }
void c_lu_solve(vec* out, const vec* lu, const vec* piv, const vec* b, long n, long m, int left,
                int adjoint) {
    lu_solve(out, lu, piv, b, left ? m : n, 1, n, m, left, adjoint);
}
void c_determinant(vec* sign, vec* log_abs, vec* det, const vec* lu, const vec* piv, long n) {
    lu_slogdet(sign, log_abs, lu, piv, n);
    *det = lu_det(lu, piv, n);
}
void c_inverse(vec* out, vec* lu, vec* piv, const vec* a, long n) {
    inverse(out, lu, piv, a, n, 1, n);
}
void c_eigh(vec* w, vec* v, vec* work, const vec* a, long n) { eigh(w, v, work, a, n, 1, n); }
}
"""
    )


def _buffer(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An array that starts one number past a multiple of 64 bytes."""
    size = math.prod(shape)
    raw = np.zeros((size + 1) * dtype.itemsize + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64 + dtype.itemsize
    return raw[start : start + size * dtype.itemsize].view(dtype).reshape(shape)


def _copy(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    out = _buffer(values.shape, dtype)
    out[...] = values
    return out


@dataclass
class Runtime:
    """The compiled library for one number type and number of lanes."""

    library: ctypes.CDLL
    lanes: int
    dtype: np.dtype[Any]

    @property
    def eps(self) -> float:
        """Distance of 1 from the next number."""
        return float(np.finfo(self.dtype).eps)

    def call(self, name: str, *arguments: "np.ndarray | int") -> None:
        """Call a function; arrays go as pointers, numbers as long."""
        types = [ctypes.c_void_p if isinstance(a, np.ndarray) else ctypes.c_long for a in arguments]
        values = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
        function = getattr(self.library, name)
        function.argtypes, function.restype = types, None
        function(*values)

    def map(self, name: str, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
        """Return a function's values, element by element."""
        size = -(-len(x) // self.lanes) * self.lanes
        a, b, out = (_buffer((size,), self.dtype) for _ in range(3))
        a[: len(x)] = x
        b[: len(x)] = x if y is None else y
        self.call(f"f_{name}", size, a, b, out)
        return out[: len(x)].copy()

    def array(self, values: np.ndarray) -> np.ndarray:
        """Copy values, lanes last, to where the library reads them."""
        return _copy(values, self.dtype)

    def empty(self, *shape: int) -> np.ndarray:
        """Return room for a matrix of every lane."""
        out = _buffer((*shape, self.lanes), self.dtype)
        out[...] = 7.0
        return out

    def normal(self, *shape: int, seed: int = 0) -> np.ndarray:
        """Return a random matrix for each lane."""
        return self.array(np.random.default_rng(seed).normal(size=(*shape, self.lanes)))


# The last ones: vectors wider than the machine's registers, and machines without FMA or AVX.
CONFIGURATIONS = [
    ("double", 1, "native"),
    ("double", 2, "native"),
    ("double", 4, "native"),
    ("double", 8, "native"),
    ("float", 8, "native"),
    ("double", 16, "native"),
    ("double", 4, "x86-64"),
]


@pytest.fixture(scope="module", params=CONFIGURATIONS, ids=lambda c: f"{c[0]}-{c[1]}-{c[2]}")
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """The library, compiled once for each configuration."""
    real, lanes, machine = request.param
    folder = tmp_path_factory.mktemp("runtime")
    source, target = folder / "runtime.cpp", folder / "runtime.so"
    source.write_text(_source())
    if machine != "native" and "x86-64" not in _machine():
        pytest.skip("needs an x86-64 processor")
    command = f"g++ {FLAGS} -march={machine} -DW={lanes} -DREAL={real} -I{HEADER} {source}"
    started = time.perf_counter()
    subprocess.run([*command.split(), "-o", str(target), *_mvec()], check=True)
    print(f"\neverything, {real} x {lanes}: {time.perf_counter() - started:.2f} s of compiling")
    dtype = np.dtype(np.float64 if real == "double" else np.float32)
    return Runtime(ctypes.CDLL(str(target)), lanes, dtype)


def _machine() -> str:
    run = subprocess.run(["g++", "-dumpmachine"], capture_output=True, text=True, check=True)
    return run.stdout.replace("_", "-")


def _mvec() -> list[str]:
    return ["-lmvec"] if "x86-64-linux-gnu" in _machine() else []


# ---- Values ---------------------------------------------------------------------------------


def _log_ndtr(x: mpmath.mpf) -> mpmath.mpf:
    below = mpmath.erfc(abs(x) / mpmath.sqrt(2)) / 2
    return mpmath.log1p(-below) if x > 0 else mpmath.log(below)


def _ndtri(p: mpmath.mpf) -> mpmath.mpf:
    """The normal quantile by Newton's method on the log of the smaller tail."""
    if p == 0.5:
        return mpmath.mpf(0)
    tail, sign = (p, -1) if p < 0.5 else (1 - p, 1)
    x = mpmath.mpf(float(-torch.special.ndtri(torch.tensor(float(tail), dtype=torch.float64))))
    for _ in range(4):
        value = mpmath.erfc(x / mpmath.sqrt(2)) / 2
        slope = -mpmath.exp(-x * x / 2) / mpmath.sqrt(2 * mpmath.pi)
        x -= (mpmath.log(value) - mpmath.log(tail)) * value / slope
    return sign * x


def _log_gamma(x: mpmath.mpf) -> mpmath.mpf:
    return mpmath.log(abs(mpmath.gamma(x))) if abs(x) < 1e4 else mpmath.loggamma(x).real


_ALL = "real"
# Name: (reference, domain, ulps allowed, floor). The error is counted in ulps of the larger of
# |reference| and the floor, which is 0 where the relative error is small everywhere.
REFERENCES: dict[str, tuple[Callable[[Any], Any], str, float, float]] = {
    "sqrt": (mpmath.sqrt, "positive", 0.51, 0),
    "rsqrt": (lambda x: 1 / mpmath.sqrt(x), "positive", 1.6, 0),
    "reciprocal": (lambda x: 1 / x, _ALL, 0.51, 0),
    "exp": (mpmath.exp, _ALL, 4, 0),
    "exp2": (lambda x: mpmath.mpf(2) ** x, _ALL, 4, 0),
    "expm1": (mpmath.expm1, _ALL, 4, 0),
    "log": (mpmath.log, "positive", 4, 0),
    "log1p": (mpmath.log1p, "above -1", 4, 0),
    "log2": (lambda x: mpmath.log(x, 2), "positive", 4, 0),
    "log10": (mpmath.log10, "positive", 4, 0),
    "sin": (mpmath.sin, _ALL, 4, 0),
    "cos": (mpmath.cos, _ALL, 4, 0),
    "tan": (mpmath.tan, _ALL, 4, 0),
    "asin": (mpmath.asin, "unit", 4, 0),
    "acos": (mpmath.acos, "unit", 4, 0),
    "atan": (mpmath.atan, _ALL, 4, 0),
    "sinh": (mpmath.sinh, _ALL, 4, 0),
    "cosh": (mpmath.cosh, _ALL, 4, 0),
    "tanh": (mpmath.tanh, _ALL, 4, 0),
    "asinh": (mpmath.asinh, _ALL, 4, 0),
    "acosh": (mpmath.acosh, "above 1", 4, 0),
    "atanh": (mpmath.atanh, "unit", 4, 0),
    "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), _ALL, 4, 0),
    "log_sigmoid": (lambda x: -mpmath.log1p(mpmath.exp(-x)), _ALL, 4, 0),
    "softplus": (lambda x: x if x > 10 else mpmath.log1p(mpmath.exp(2 * x)) / 2, "moderate", 5, 0),
    "erf": (mpmath.erf, _ALL, 4, 0),
    "erfc": (mpmath.erfc, "moderate", 4, 0),
    "erfcx": (lambda x: mpmath.exp(x * x) * mpmath.erfc(x), "moderate", 8, 0),
    "erfinv": (lambda x: _ndtri((1 + x) / 2) / mpmath.sqrt(2), "unit", 8, 0),
    "ndtri": (_ndtri, "probability", 8, 0),
    "log_ndtr": (_log_ndtr, "moderate", 8, 0),
    "lgamma": (_log_gamma, "positive", 8, 0),
    "digamma": (mpmath.digamma, "positive", 6, 1),
    "trigamma": (lambda x: mpmath.psi(1, x), "positive", 8, 0),
    "polygamma2": (lambda x: mpmath.psi(2, x), "gamma", 16, 0),
    "polygamma5": (lambda x: mpmath.psi(5, x), "gamma", 16, 0),
    "i0": (lambda x: mpmath.besseli(0, x), "moderate", 12, 0),
    "i0e": (lambda x: mpmath.besseli(0, x) * mpmath.exp(-abs(x)), "moderate", 8, 0),
    "i1": (lambda x: mpmath.besseli(1, x), "moderate", 12, 0),
    "i1e": (lambda x: mpmath.besseli(1, x) * mpmath.exp(-abs(x)), "moderate", 8, 0),
    "cube": (lambda x: x**3, _ALL, 2, 0),
    "pow_scalar_0": (mpmath.sqrt, "positive", 0.51, 0),
    "pow_scalar_1": (lambda x: 1 / mpmath.sqrt(x), "positive", 1.6, 0),
    "pow_scalar_2": (lambda x: 1 / x**2, _ALL, 2, 0),
    "pow_scalar_3": (lambda x: x ** mpmath.mpf(2.5), "positive", 4, 0),
}
# Beyond their poles and roots these have an absolute error: ulps of the larger of |value| and 1,
# and of what a rounding of the argument by half an ulp does to the value.
REFLECTED = {
    "lgamma": _log_gamma,
    "digamma": mpmath.digamma,
    "trigamma": lambda x: mpmath.psi(1, x),
    "polygamma2": lambda x: mpmath.psi(2, x),
}


def _domains() -> dict[str, np.ndarray]:
    """Points that single precision holds, so that both number types see the same."""
    rng = np.random.default_rng(0)
    small = rng.normal(size=20) * 1e-4
    positive = np.exp(np.r_[rng.uniform(-60, 60, 60), rng.uniform(-3, 3, 120)])
    points = {
        "real": np.r_[rng.uniform(-80, 80, 60), rng.normal(size=100), small],
        "moderate": np.r_[rng.uniform(-24, 24, 100), rng.normal(size=60) * 2, small],
        "positive": np.r_[positive, 1 + small, 2 + small, np.arange(1, 20) / 2],
        "gamma": np.exp(rng.uniform(-5, 5, 80)),
        "above -1": np.r_[rng.uniform(-1, 3, 60), small, np.exp(rng.uniform(1, 60, 40))],
        "above 1": 1 + np.exp(rng.uniform(-10, 40, 80)),
        "unit": np.r_[rng.uniform(-1, 1, 120), small],
        "probability": np.r_[rng.uniform(0, 1, 100), np.exp(rng.uniform(-80, -1, 60))],
        "negative": -rng.uniform(0, 12, 80),
    }
    return {name: x.astype(np.float32).astype(np.float64) for name, x in points.items()}


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[np.ndarray, list[Any]]]:
    """Points and references of every function, to 120 bits."""
    domains = _domains()
    with mpmath.workprec(120):
        table = {
            name: (domains[domain], [mpmath.mpf(f(mpmath.mpf(float(v)))) for v in domains[domain]])
            for name, (f, domain, _, _) in REFERENCES.items()
        }
        x = domains["negative"]
        for name, f in REFLECTED.items():
            points = [mpmath.mpf(float(v)) for v in x]
            table[f"{name} reflected"] = (x, [mpmath.mpf(f(v)) for v in points])
            step = mpmath.mpf(2) ** -50
            slopes = [abs(f(v + step) - f(v - step)) / (2 * step) for v in points]
            table[f"{name} slope"] = (x, slopes)
    return table


def _ulps(got: np.ndarray, reference: list[Any], floor: float) -> np.ndarray:
    """Errors in ulps of got's type; where the reference overflows, infinity has none."""
    rounded = np.array([float(r) for r in reference]).astype(got.dtype)
    spacing = np.spacing(np.maximum(np.abs(rounded), got.dtype.type(floor))).astype(np.float64)
    with mpmath.workprec(120):
        errors = [
            0.0
            if v == r
            else float(abs(mpmath.mpf(float(v)) - e)) / s
            if np.isfinite(v)
            else np.inf
            for v, r, e, s in zip(got, rounded, reference, spacing, strict=True)
        ]
    return np.array(errors)


def test_values(runtime: Runtime, expected: dict[str, tuple[np.ndarray, list[Any]]]) -> None:
    """Each function is within its stated number of ulps of the exact value."""
    failures = {}
    for name, (_, _, allowed, floor) in REFERENCES.items():
        x, reference = expected[name]
        if runtime.dtype == np.float32:
            allowed = max(1.6, allowed / 4)  # computed in double, or a few roundings in single
        with np.errstate(over="ignore", under="ignore"):
            errors = _ulps(runtime.map(name, x), reference, floor)
        worst = int(np.argmax(errors))
        print(f"{name}: {errors[worst]:.2f} ulp at {x[worst]!r}")
        if errors[worst] > allowed:
            failures[name] = (errors[worst], x[worst])
    assert not failures


def test_values_of_negative_arguments(
    runtime: Runtime, expected: dict[str, tuple[np.ndarray, list[Any]]]
) -> None:
    """The reflection formulas: a few roundings of the argument and of the terms."""
    for name in REFLECTED:
        x, exact = expected[f"{name} reflected"]
        _, slopes = expected[f"{name} slope"]
        got = runtime.map(name, x).astype(np.float64)
        for point, value, reference, slope in zip(x, got, exact, slopes, strict=True):
            scale = max(abs(reference), 1) + 12 * slope + 30
            assert abs(value - reference) <= 4 * runtime.eps * scale, (name, point)


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 2.5, -2.5, 3.0, 1e-30, -1e-30, 1e30, -1e30]
SPECIAL += [1000.0, -1000.0, 88.0, -104.0, math.inf, -math.inf, math.nan]
# Only doubles: near the ends of their range.
EXTREME = [5e-324, -5e-324, 1e-310, 1e308, -1e308, 709.7, 711.0, -708.0, -745.0, -746.0]

TORCH: dict[str, Callable[..., torch.Tensor]] = {
    "lane": lambda x: x,
    "cube": lambda x: x * x * x,
    "isnan": lambda x: x.isnan().to(x.dtype),
    "isfinite": lambda x: x.isfinite().to(x.dtype),
    "not": lambda x: (x == 0).to(x.dtype),
    "clamp": lambda x: x.clamp(-1, 2),
    "softplus": lambda x: torch.nn.functional.softplus(x, 2, 20),
    "log_sigmoid": torch.nn.functional.logsigmoid,
    "trigamma": lambda x: torch.polygamma(1, x),
    "polygamma2": lambda x: torch.polygamma(2, x),
    "polygamma5": lambda x: torch.polygamma(5, x),
    **{
        f"pow_scalar_{i}": (lambda x, e=e: torch.pow(x, e))
        for i, e in enumerate((0.5, -0.5, -2, 2.5))
    },
}


def _torch(name: str) -> Callable[..., torch.Tensor]:
    found = TORCH.get(name) or getattr(torch, name, None) or getattr(torch.special, name)
    return found


def _assert_same(
    name: str,
    got: np.ndarray,
    reference: np.ndarray,
    points: np.ndarray,
    *,
    rtol: float,
    atol: float,
) -> None:
    both_nan = np.isnan(got) & np.isnan(reference)
    with np.errstate(invalid="ignore", over="ignore"):
        close = np.isclose(got, reference, rtol=rtol, atol=atol)
    wrong = ~(both_nan | (got == reference) | (np.isfinite(reference) & close))
    assert not wrong.any(), (name, points[wrong], got[wrong], reference[wrong])


# Where torch itself is not exact, or a convention of its own is not followed: skipped points.
NOT_AS_TORCH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    # Subnormal results, and poles that torch smears by sin(pi x) != 0.
    "trigamma": lambda x: (x < 0) | (x > 1e300),
    "polygamma2": lambda x: (x <= 0) | np.isinf(x) | (np.abs(x) > 1e3) | (np.abs(x) < 1e-3),
    "polygamma5": lambda x: (x <= 0) | np.isinf(x) | (np.abs(x) > 1e3) | (np.abs(x) < 1e-3),
}


def test_special_values(runtime: Runtime) -> None:
    """Zeros, infinities, NaN, overflow and underflow come out as in torch."""
    all_points = np.array(SPECIAL + (EXTREME if runtime.dtype == np.float64 else []))
    for name in (*UNARY, *EXPRESSIONS):
        if name == "lane" and runtime.lanes > 1:
            continue  # exchanges lanes on purpose: see test_lanes_are_apart
        points = all_points.astype(runtime.dtype)
        if name in NOT_AS_TORCH:
            points = points[~NOT_AS_TORCH[name](points.astype(np.float64))]
        # Single precision is computed in double: torch's single values are the less exact ones.
        single = name in ("rsqrt", "reciprocal", "sqrt")
        inputs = torch.from_numpy(points if single else points.astype(np.float64))
        with np.errstate(over="ignore"):
            reference = _torch(name)(inputs).numpy().astype(runtime.dtype)
        # torch's trigamma has ten digits.
        rtol = max(1e-8 if name == "trigamma" else 0.0, 64 * runtime.eps)
        # digamma's error is absolute; torch loses subnormal results.
        atol = 8 * runtime.eps if name == "digamma" else float(np.finfo(runtime.dtype).tiny)
        _assert_same(name, runtime.map(name, points), reference, points, rtol=rtol, atol=atol)


def test_functions_of_two_arguments(runtime: Runtime) -> None:
    """Every pair of special values and random ones agrees with torch in double precision."""
    rng = np.random.default_rng(1)
    special = np.array([*SPECIAL, 3.5, -3.0, 0.25, 1e5])
    grid = (a.ravel() for a in np.meshgrid(special, special))
    pairs = np.c_[tuple(grid)].astype(np.float32)
    pairs = np.r_[pairs, (rng.normal(size=(200, 2)) * 3).astype(np.float32)]
    for name in BINARY:
        points = pairs
        if name in ("fmod", "remainder"):  # quotients of too many digits for torch
            points = pairs[~((np.abs(pairs[:, 0]) > 1e20) & (np.abs(pairs[:, 1]) < 1e20))]
        x, y = points.T
        both = (torch.from_numpy(a.astype(np.float64)) for a in (x, y))
        with np.errstate(over="ignore"):
            reference = _torch(name)(*both).numpy().astype(runtime.dtype)
        got = runtime.map(name, x.astype(runtime.dtype), y.astype(runtime.dtype))
        atol = 2 * runtime.eps if name == "logaddexp" else 0.0  # it has a root
        _assert_same(name, got, reference, points, rtol=8 * runtime.eps, atol=atol)


def test_lanes_are_apart(runtime: Runtime) -> None:
    """A lane's result is bitwise the same whatever the other lanes hold."""
    rng = np.random.default_rng(2)
    x = np.r_[np.array(SPECIAL), rng.normal(size=74) * 4].astype(runtime.dtype)
    order = rng.permutation(len(x))
    for name in (*UNARY, *EXPRESSIONS):
        if name != "lane":
            straight, shuffled = runtime.map(name, x), runtime.map(name, x[order])
            np.testing.assert_array_equal(straight[order], shuffled, err_msg=name)
    if runtime.lanes > 1:
        swapped = runtime.map("lane", x[: runtime.lanes])
        np.testing.assert_array_equal(swapped[-1], x[0])
        np.testing.assert_array_equal(swapped[:-1], x[: runtime.lanes - 1])


# ---- Matrices -------------------------------------------------------------------------------

SHAPES = [(1, 1, 1), (3, 0, 2), (1, 9, 1), (7, 5, 1), (24, 300, 1), (140, 24, 1), (1, 3, 150)]
SHAPES += [(5, 6, 7), (130, 131, 3)]


def _matrix(runtime: Runtime, rows: int, columns: int, *, shared: bool, transposed: bool) -> Any:
    """A random matrix as (buffer, its strides in elements, its values with lanes first)."""
    shape = (columns, rows) if transposed else (rows, columns)
    rng = np.random.default_rng(rows + 31 * columns + shared)
    buffer = runtime.array(rng.normal(size=shape if shared else (*shape, runtime.lanes)))
    values = buffer if shared else np.moveaxis(buffer, -1, 0)
    strides = (1, rows) if transposed else (columns, 1)
    return buffer, strides, np.swapaxes(values, -1, -2) if transposed else values


@pytest.mark.parametrize("kind", ["each_each", "shared_each", "each_shared"])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True)])
def test_products(runtime: Runtime, kind: str, transposed: tuple[bool, bool]) -> None:
    """Products are NumPy's up to the rounding of each sum, for any strides and block."""
    first, second = (part == "shared" for part in kind.split("_"))
    for m, k, n in SHAPES:
        a, a_strides, a_values = _matrix(runtime, m, k, shared=first, transposed=transposed[0])
        b, b_strides, b_values = _matrix(runtime, k, n, shared=second, transposed=transposed[1])
        product = a_values.astype(np.float64) @ b_values.astype(np.float64)
        size = np.abs(a_values).astype(np.float64) @ np.abs(b_values).astype(np.float64)
        start = runtime.normal(m, n)
        for mode, sign, base in ((0, 1, 0), (1, 1, 1), (2, -1, 1)):
            out = runtime.array(start)
            runtime.call(f"matmul_{kind}", out, a, *a_strides, b, *b_strides, m, k, n, mode)
            old = base * np.moveaxis(start, -1, 0)
            bound = (k + 2) * runtime.eps * (size + np.abs(old))
            error = np.abs(np.moveaxis(out, -1, 0) - (old + sign * product))
            assert (error <= bound).all(), (m, k, n, mode)


def _positive_definite(runtime: Runtime, n: int) -> np.ndarray:
    x = np.moveaxis(np.random.default_rng(n).normal(size=(n, n + 3, runtime.lanes)), -1, 0)
    return np.moveaxis(x @ np.swapaxes(x, -1, -2) + 0.1 * np.eye(n), 0, -1)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_cholesky(runtime: Runtime, n: int) -> None:
    """The factor times its transpose is the matrix; only the lower triangle is read."""
    a = runtime.array(_positive_definite(runtime, n))
    upper = np.triu_indices(n, 1)
    a[upper] = np.nan
    out = runtime.empty(n, n)
    runtime.call("c_cholesky", out, a, n, 1, n)
    factor = np.moveaxis(out, -1, 0).astype(np.float64)
    matrix = np.moveaxis(a, -1, 0).astype(np.float64)
    full = np.where(np.isnan(matrix), np.swapaxes(matrix, -1, -2), matrix)
    reference = torch.linalg.cholesky(torch.from_numpy(full)).numpy()
    condition = np.linalg.cond(full).max()
    assert (out[upper] == 0).all()
    np.testing.assert_allclose(
        factor @ np.swapaxes(factor, -1, -2), full, atol=4 * n * runtime.eps * np.abs(full).max()
    )
    np.testing.assert_allclose(
        factor, reference, atol=4 * n * runtime.eps * condition * np.abs(reference).max()
    )


@pytest.mark.parametrize("bad", [-1.0, 0.0, math.nan])
def test_cholesky_of_a_lane_that_is_not_positive_definite(runtime: Runtime, bad: float) -> None:
    """That lane's triangle is NaN, the others are as they are without it."""
    n, lane = 6, runtime.lanes - 1
    a = runtime.array(_positive_definite(runtime, n))
    good, out = runtime.empty(n, n), runtime.empty(n, n)
    runtime.call("c_cholesky", good, a, n, 1, n)
    if bad == 0.0:  # singular: the last row and column vanish
        a[-1, :, lane] = a[:, -1, lane] = 0.0
    else:
        a[3, 3, lane] = bad
    runtime.call("c_cholesky", out, a, n, 1, n)
    lower = np.tril_indices(n)
    assert np.isnan(out[lower][:, lane]).all()
    others = [other for other in range(runtime.lanes) if other != lane]
    np.testing.assert_array_equal(out[..., others], good[..., others])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("upper", [False, True])
def test_triangular_solve(runtime: Runtime, shared: bool, left: bool, upper: bool) -> None:
    """Backward stability: the residual is of the size of a few roundings."""
    for n, m in ((1, 1), (3, 2), (17, 1), (9, 20)):
        for transposed in (False, True):
            for unit in (False, True):
                t, strides, values = _matrix(runtime, n, n, shared=shared, transposed=transposed)
                diagonal = np.arange(n)
                t[diagonal, diagonal] = 2 + np.abs(t[diagonal, diagonal])
                t[~np.eye(n, dtype=bool)] /= n
                b = runtime.normal(n, m) if left else runtime.normal(m, n)
                out = runtime.array(b)
                name = "solve_shared" if shared else "solve_each"
                arguments = (*strides, b, b.shape[1], 1, n, m, int(upper), int(unit), int(left))
                runtime.call(name, out, t, *arguments)
                triangle = (np.triu if upper else np.tril)(values).astype(np.float64)
                if unit:
                    triangle[..., diagonal, diagonal] = 1
                x, right = (np.moveaxis(v, -1, 0).astype(np.float64) for v in (out, b))
                residual = (triangle @ x if left else x @ triangle) - right
                scale = np.abs(triangle).max() * np.abs(x).max()
                assert np.abs(residual).max() <= 4 * n * runtime.eps * scale


@pytest.mark.parametrize("n", [1, 2, 6, 15])
def test_lu(runtime: Runtime, n: int) -> None:
    """Factors, pivots, determinants, solutions and inverses are LAPACK's."""
    a = runtime.normal(n, n, seed=n)
    lu, pivots = runtime.empty(n, n), runtime.empty(n)
    runtime.call("c_lu_factor", lu, pivots, a, n)
    matrix = torch.from_numpy(np.moveaxis(a, -1, 0).astype(np.float64))
    reference = torch.linalg.lu_factor(matrix)
    tolerance = 64 * n * runtime.eps * float(torch.linalg.cond(matrix).max())
    np.testing.assert_array_equal(np.moveaxis(pivots, -1, 0), reference.pivots.numpy())
    np.testing.assert_allclose(np.moveaxis(lu, -1, 0), reference.LU.numpy(), atol=tolerance)

    sign, log_abs, determinant = (runtime.empty() for _ in range(3))
    runtime.call("c_determinant", sign, log_abs, determinant, lu, pivots, n)
    torch_sign, torch_log = torch.linalg.slogdet(matrix)
    np.testing.assert_array_equal(sign, torch_sign.numpy())
    np.testing.assert_allclose(log_abs, torch_log.numpy(), atol=tolerance)
    np.testing.assert_allclose(determinant, torch.linalg.det(matrix).numpy(), rtol=tolerance)

    inverse = runtime.empty(n, n)
    runtime.call("c_inverse", inverse, lu, pivots, a, n)
    exact = torch.linalg.inv(matrix).numpy()
    np.testing.assert_allclose(
        np.moveaxis(inverse, -1, 0), exact, atol=tolerance * np.abs(exact).max()
    )
    for left in (False, True):
        for adjoint in (False, True):
            b = runtime.normal(n, 3, seed=5) if left else runtime.normal(3, n, seed=5)
            out = runtime.empty(*b.shape[:2])
            runtime.call("c_lu_solve", out, lu, pivots, b, n, 3, int(left), int(adjoint))
            right = torch.from_numpy(np.moveaxis(b, -1, 0).astype(np.float64))
            solved = torch.linalg.solve(matrix.mT if adjoint else matrix, right, left=left).numpy()
            np.testing.assert_allclose(
                np.moveaxis(out, -1, 0), solved, atol=tolerance * np.abs(solved).max()
            )


def test_determinant_of_a_singular_lane(runtime: Runtime) -> None:
    """It is 0 there, with sign 0 and logarithm minus infinity, and nothing else changes."""
    n, lane = 4, runtime.lanes - 1
    a = runtime.normal(n, n)
    a[:, 1, lane] = 0.0
    lu, pivots = runtime.empty(n, n), runtime.empty(n)
    sign, log_abs, determinant = (runtime.empty() for _ in range(3))
    runtime.call("c_lu_factor", lu, pivots, a, n)
    runtime.call("c_determinant", sign, log_abs, determinant, lu, pivots, n)
    assert (sign[lane], log_abs[lane], determinant[lane]) == (0.0, -math.inf, 0.0)
    assert np.isfinite(lu).all()
    assert (sign[:lane] != 0).all()


@pytest.mark.parametrize("n", [1, 2, 7, 12])
def test_eigenvalues(runtime: Runtime, n: int) -> None:
    """Eigenvalues ascend and are LAPACK's; the vectors are orthonormal and restore the matrix."""
    x = np.random.default_rng(n).normal(size=(n, n, runtime.lanes))
    a = runtime.array(x + np.swapaxes(x, 0, 1))
    a[..., 0] = np.eye(n) * 3.0  # all eigenvalues the same
    values, vectors, work = runtime.empty(n), runtime.empty(n, n), runtime.empty(n, n)
    runtime.call("c_eigh", values, vectors, work, a, n)
    matrix, v = (np.moveaxis(m, -1, 0).astype(np.float64) for m in (a, vectors))
    w = np.moveaxis(values, -1, 0).astype(np.float64)
    tolerance = 32 * n * runtime.eps * np.abs(matrix).max()
    np.testing.assert_allclose(w, np.linalg.eigvalsh(matrix), atol=tolerance)
    np.testing.assert_allclose(
        np.swapaxes(v, 1, 2) @ v, np.broadcast_to(np.eye(n), v.shape), atol=tolerance
    )
    np.testing.assert_allclose((v * w[:, None]) @ np.swapaxes(v, 1, 2), matrix, atol=tolerance)


def test_compile_time_of_the_header(tmp_path: Path) -> None:
    """A file that only includes the header compiles; the time is printed."""
    source = tmp_path / "empty.cpp"
    source.write_text('#include "runtime.h"\n')
    command = f"g++ {FLAGS} -Wall -Wextra -Werror -march=native -DW=4 -DREAL=double -I{HEADER}"
    started = time.perf_counter()
    subprocess.run([*command.split(), str(source), "-o", str(tmp_path / "empty.so")], check=True)
    print(f"\nthe header alone: {time.perf_counter() - started:.3f} s of compiling")
