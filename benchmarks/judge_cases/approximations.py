"""Kinds of approximations: each function returns a target and an approximation of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from scipy import stats

from judge_cases.distributions import Array, Copula, Distribution
from judge_cases.hierarchies import (
    Banana,
    EightSchools,
    Funnel,
    NormalInverseGamma,
    SchoolsGuide,
    TwoModes,
)
from judge_cases.marginals import (
    Marginal,
    Normal,
    laplace_of,
    moved,
    of_scipy,
    skewed_mixture,
    student_t,
    truncated,
    variational_optimum_of,
    wide_mixture,
)

Pair: TypeAlias = tuple[Distribution, Distribution]
Maker: TypeAlias = Callable[[np.random.Generator], Pair]

_SIZES = (1, 2, 3, 5, 8, 10, 15, 20, 30, 50)
_SCHOOLS = EightSchools()


# Targets.


def _size(rng: np.random.Generator, least: int = 1, most: int = 50) -> int:
    return int(rng.choice([size for size in _SIZES if least <= size <= most]))


def _correlation(rng: np.random.Generator, dim: int) -> Array:
    """Return a random correlation matrix: one factor, a chain of neighbours, or a regression's."""
    kind = rng.integers(3)
    strength = rng.uniform(0.2, 0.95)
    if kind == 0:
        loading = np.sqrt(strength) * rng.choice([-1.0, 1.0], size=dim)
        correlation = np.outer(loading, loading)
    elif kind == 1:
        distance = np.abs(np.subtract.outer(np.arange(dim), np.arange(dim)))
        correlation = strength**distance
    else:
        # Precision S0^-1 + X'X / s^2 with features that share a factor and a large mean.
        x = rng.normal(size=(4 * dim + 10, dim)) + 2 * strength * rng.normal(size=(4 * dim + 10, 1))
        covariance = np.linalg.inv(np.eye(dim) + x.T @ x)
        sd = np.sqrt(np.diag(covariance))
        correlation = covariance / np.outer(sd, sd)
    np.fill_diagonal(correlation, 1.0)
    return np.asarray(correlation)


def _scaled_up(rng: np.random.Generator, marginal: Marginal) -> Marginal:
    """Return a marginal in other units."""
    sd = 10 ** rng.uniform(-2, 2)
    return moved(marginal, rng.normal(0, 3), sd / marginal.sd)


def _normal_target(rng: np.random.Generator, dim: int, *, dependent: bool = True) -> Copula:
    sds = 10 ** rng.uniform(-2, 2, size=dim)
    marginals = [Normal(float(s * rng.normal(0, 3)), float(s)) for s in sds]
    return Copula(marginals, _correlation(rng, dim) if dependent and dim > 1 else None)


def _marginal(rng: np.random.Generator) -> Marginal:
    """Return a posterior marginal of a random conjugate or other model."""
    kind = rng.integers(6)
    if kind == 0:  # Gamma-Poisson: shape 1 + the sum of counts
        return of_scipy(stats.gamma(rng.uniform(2, 30), scale=10 ** rng.uniform(-2, 1)))
    if kind == 1:  # Beta-Bernoulli
        return of_scipy(stats.beta(*rng.uniform(1.5, 20, size=2)))
    if kind == 2:
        return _scaled_up(rng, skewed_mixture())
    if kind == 3:
        return _scaled_up(rng, wide_mixture())
    if kind == 4:
        return student_t(float(rng.uniform(5, 30)), rng.normal(), 10 ** rng.uniform(-1, 1))
    return of_scipy(stats.lognorm(rng.uniform(0.2, 0.8), scale=10 ** rng.uniform(-1, 1)))


def _skewed_target(rng: np.random.Generator, most: int = 10) -> Copula:
    dim = _size(rng, 1, most)
    dependent = dim > 1 and rng.random() < 0.5
    return Copula(
        [_marginal(rng) for _ in range(dim)], _correlation(rng, dim) if dependent else None
    )


def _copula_target(rng: np.random.Generator) -> Copula:
    if rng.random() < 0.6:
        return _normal_target(rng, _size(rng), dependent=rng.random() < 0.7)
    return _skewed_target(rng)


def _regression(rng: np.random.Generator) -> NormalInverseGamma:
    """Return the posterior of a regression with unknown noise."""
    dim = int(rng.choice([1, 2, 4, 8]))
    rows = dim + int(rng.choice([6, 20, 100]))
    x = rng.normal(size=(rows, dim)) + rng.uniform(0, 2)
    scatter = np.linalg.inv(0.01 * np.eye(dim) + x.T @ x)
    a = 2.5 + rows / 2
    return NormalInverseGamma(rng.normal(size=dim), scatter, a, a * 10 ** rng.uniform(-1, 1))


def _two_modes(rng: np.random.Generator) -> TwoModes:
    dim = _size(rng, 1, 20)
    apart = rng.uniform(3, 8)
    direction = rng.normal(size=dim)
    direction *= apart / np.linalg.norm(direction)
    sds = np.exp(rng.normal(0, 0.15, size=(2, dim)))
    correlation = _correlation(rng, dim) if dim > 1 else np.eye(1)
    weight = float(rng.uniform(0.2, 0.8))
    return TwoModes(weight, np.stack([np.zeros(dim), direction]), sds, correlation)


def _funnel(rng: np.random.Generator) -> Funnel:
    return Funnel(int(rng.choice([1, 3, 9])), 0.0, float(rng.choice([0.3, 0.6, 1.0])), 1.0)


def _any_target(rng: np.random.Generator) -> Distribution:
    kind = rng.choice(5, p=[0.6, 0.1, 0.1, 0.1, 0.1])
    makers: list[Callable[[np.random.Generator], Distribution]] = [
        _copula_target,
        _regression,
        _two_modes,
        _funnel,
        lambda _: _SCHOOLS,
    ]
    return makers[kind](rng)


# Approximations.


def _change(target: Copula, change: Callable[[int, Marginal], Marginal]) -> Copula:
    """Return a target with its marginals changed and its dependence kept."""
    marginals = [change(j, m) for j, m in enumerate(target.marginals)]
    return _like(target, marginals)


def _like(target: Copula, marginals: list[Marginal]) -> Copula:
    return Copula(marginals, None if target.independent else target.normal_correlation)


def _chosen(rng: np.random.Generator, dim: int) -> Array:
    """Return which parameters are changed: one, half of them, or all."""
    order = rng.permutation(dim)
    count = int(rng.choice([1, (dim + 1) // 2, dim]))
    return np.isin(np.arange(dim), order[:count])


def correct(rng: np.random.Generator) -> Pair:
    target = _any_target(rng)
    return target, target


def perturbed(rng: np.random.Generator) -> Pair:
    target = _copula_target(rng)
    shifts = rng.uniform(-0.04, 0.04, size=target.dim)
    factors = rng.uniform(0.96, 1.04, size=target.dim)
    return target, _change(target, lambda j, m: moved(m, shifts[j], factors[j]))


def scaled(rng: np.random.Generator) -> Pair:
    target = _copula_target(rng)
    factor = float(rng.choice([0.5, 0.6, 0.65, 0.7, 0.8, 0.9, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]))
    which = _chosen(rng, target.dim)
    return target, _change(target, lambda j, m: moved(m, 0.0, factor) if which[j] else m)


def shifted(rng: np.random.Generator) -> Pair:
    target = _copula_target(rng)
    shift = float(rng.choice([0.05, 0.1, 0.15, 0.25, 0.35, 0.45, 0.5, 0.6, 0.8, 1.0]))
    signs = shift * rng.choice([-1.0, 1.0], size=target.dim) * _chosen(rng, target.dim)
    return target, _change(target, lambda j, m: moved(m, float(signs[j])))


def correlation_lost(rng: np.random.Generator) -> Pair:
    """Keep the marginals and lose some or all of the correlation, or turn one of its signs."""
    target = _normal_target(rng, _size(rng, 2))
    kept = float(rng.choice([0.0, 0.5, 0.9, -1.0]))
    correlation = target.normal_correlation.copy()
    if kept < 0:
        correlation[0, 1:] *= -1
        correlation[1:, 0] *= -1
    else:
        correlation = kept * correlation + (1 - kept) * np.eye(target.dim)
    return target, Copula(target.marginals, correlation)


def mean_field(rng: np.random.Generator) -> Pair:
    """Return the independent normals nearest to a normal: their precisions are its diagonal."""
    target = _normal_target(rng, _size(rng, 2))
    inverse = np.diag(np.linalg.inv(target.normal_correlation))
    factors = inverse**-0.5
    return target, Copula(
        [Normal(m.mean, m.sd * f) for m, f in zip(target.marginals, factors, strict=True)]
    )


def truncation(rng: np.random.Generator) -> Pair:
    target = _copula_target(rng)
    share = float(rng.choice([0.005, 0.02, 0.05, 0.1, 0.2, 0.3]))
    ends = (share, 1.0) if rng.random() < 0.5 else (0.0, 1 - share)
    which = _chosen(rng, target.dim)
    return target, _change(target, lambda j, m: truncated(m, *ends) if which[j] else m)


def heavy_tails(rng: np.random.Generator) -> Pair:
    """Put Student t distributions in place of normals, of the same scale or the same sd."""
    target = _normal_target(rng, _size(rng, 1, 20))
    degrees = float(rng.choice([2.2, 2.5, 3.0, 4.0, 6.0, 10.0, 30.0]))
    factor = 1.0 if rng.random() < 0.5 else ((degrees - 2) / degrees) ** 0.5
    which = _chosen(rng, target.dim)
    return target, _change(
        target, lambda j, m: student_t(degrees, m.mean, m.sd * factor) if which[j] else m
    )


def one_mode(rng: np.random.Generator) -> Pair:
    target = _two_modes(rng)
    return target, target.mode(int(rng.integers(2)))


def weights_of_modes(rng: np.random.Generator) -> Pair:
    target = _two_modes(rng)
    weight = float(rng.choice([0.1, 0.3, 0.5, 0.7, 0.9]))
    return target, TwoModes(weight, target.means, target.sds, target.correlation)


def gaussian(rng: np.random.Generator) -> Pair:
    """Put normals with the right moments and dependence in place of other marginals."""
    target = _skewed_target(rng)
    return target, _change(target, lambda _, m: Normal(m.mean, m.sd))


def laplace(rng: np.random.Generator) -> Pair:
    target = _skewed_target(rng, most=5)
    return target, _like(target, [laplace_of(m) for m in target.marginals])


def variational(rng: np.random.Generator) -> Pair:
    """Return the best normals of independent marginals with support on the whole line."""
    kinds = (skewed_mixture(), wide_mixture(), student_t(float(rng.uniform(5, 30))))
    best = {m: variational_optimum_of(m) for m in kinds}
    chosen = [kinds[int(k)] for k in rng.integers(3, size=int(rng.choice([1, 2, 5])))]
    return Copula(chosen), Copula([best[m] for m in chosen])


def regression(rng: np.random.Generator) -> Pair:
    target = _regression(rng)
    return target, target.mean_field()


def funnel(rng: np.random.Generator) -> Pair:
    """Approximate a funnel: centred mean field, its marginals alone, or a funnel somewhat off."""
    target = _funnel(rng)
    kind = rng.integers(3)
    if kind == 0:
        return target, target.mean_field()
    if kind == 1:
        return target, target.margins()
    factors = np.exp(rng.normal(0, 0.15, size=2))
    centre = float(rng.normal(0, 0.2) * target.spread)
    return target, Funnel(
        target.count, centre, target.spread * factors[0], target.width * factors[1]
    )


def schools(rng: np.random.Generator) -> Pair:
    factor = float(rng.uniform(0.6, 1.2))
    guide = SchoolsGuide.matched(_SCHOOLS, centered=bool(rng.integers(2)), factor=factor)
    return _SCHOOLS, guide


def banana(rng: np.random.Generator) -> Pair:
    target = Banana(float(rng.choice([0.1, 0.3, 1.0])), float(rng.choice([0.3, 1.0])))
    return target, target.moment_matched()


# In turn.
MAKERS: tuple[Maker, ...] = (
    correct,
    scaled,
    perturbed,
    shifted,
    mean_field,
    one_mode,
    perturbed,
    truncation,
    correct,
    correlation_lost,
    heavy_tails,
    shifted,
    perturbed,
    weights_of_modes,
    gaussian,
    correct,
    laplace,
    variational,
    scaled,
    regression,
    perturbed,
    shifted,
    funnel,
    correct,
    schools,
    mean_field,
    banana,
    truncation,
    weights_of_modes,
    correlation_lost,
)
