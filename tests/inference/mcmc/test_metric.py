"""Metrics against the covariances of Gaussians, where the Fisher rule is exact."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ppl_gen.inference.mcmc.metric import (
    Dense,
    Diagonal,
    Kind,
    LowRank,
    Metric,
    Rule,
    estimate,
    initial,
)

Array = NDArray[np.float64]
KINDS: tuple[Kind, ...] = ("diag", "dense", "low_rank")
RULES: tuple[Rule, ...] = ("variance", "fisher")
# Small enough that what it biases is below the tolerances.
EXACT = {"regularization": 1e-14}


def rotated(eigenvalues: Array, rng: np.random.Generator) -> Array:
    rotation = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))[0]
    return (rotation * eigenvalues) @ rotation.T


def correlated_pairs(dim: int, correlations: list[float]) -> Array:
    """Return a covariance where coordinates 0 and 1, 2 and 3, ... are correlated."""
    covariance = np.eye(dim)
    for i, correlation in enumerate(correlations):
        covariance[2 * i, 2 * i + 1] = covariance[2 * i + 1, 2 * i] = correlation
    return covariance


def points(covariance: Array, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return draws of a normal off the origin, and the gradients of its log density there."""
    centred = rng.normal(size=(n, len(covariance))) @ np.linalg.cholesky(covariance).T
    return centred + 3.0, -np.linalg.solve(covariance, centred.T).T


def whitened(metric: Metric, covariance: Array) -> Array:
    """Return the covariance that the sampler sees, the identity if the metric is exact."""
    matrix = metric.dense()
    return np.linalg.solve(matrix, np.linalg.solve(matrix, covariance).T)


def condition(metric: Metric, covariance: Array) -> float:
    return float(np.linalg.cond(whitened(metric, covariance)))


def is_sound(metric: Metric) -> bool:
    """Every array is finite, and the map has an inverse."""
    arrays = [value for value in vars(metric).values() if isinstance(value, np.ndarray)]
    finite = all(np.isfinite(array).all() for array in arrays)
    # The diagonal and the eigenvalues may span 40 orders: the determinant's sign says more than
    # a rank with a tolerance.
    if isinstance(metric, Diagonal):
        return finite and bool((metric.scale > 0).all())
    if isinstance(metric, Dense):
        upper = np.triu(metric.factor, 1)
        return finite and not upper.any() and bool((np.diag(metric.factor) > 0).all())
    assert isinstance(metric, LowRank)
    used = metric.stretch != 1.0
    gram = metric.directions.T @ metric.directions
    return (
        finite
        and bool((metric.scale > 0).all() and (metric.stretch > 0).all())
        and np.allclose(gram, np.diag(used.astype(float)), atol=1e-10)
    )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def some_metrics(rng: np.random.Generator) -> list[Metric]:
    directions = np.zeros((4, 3))
    directions[:, :2] = np.linalg.qr(rng.normal(size=(4, 2)))[0]
    return [
        Diagonal(np.array([1.0, 2.0, 0.5, 3.0])),
        Dense(np.tril(rng.normal(size=(4, 4))) + 3.0 * np.eye(4)),
        LowRank(np.array([1.0, 2.0, 0.5, 3.0]), directions, np.array([5.0, 0.2, 1.0])),
    ]


def test_the_products_are_those_with_the_matrix(rng: np.random.Generator) -> None:
    vectors = rng.normal(size=(5, 4))
    for metric in some_metrics(rng):
        matrix = metric.dense()
        assert metric.dim == 4
        np.testing.assert_allclose(metric.apply(vectors), vectors @ matrix.T, rtol=1e-12)
        np.testing.assert_allclose(metric.apply_transposed(vectors), vectors @ matrix, rtol=1e-12)
        np.testing.assert_allclose(metric.apply(vectors[0]), matrix @ vectors[0], rtol=1e-12)
        np.testing.assert_allclose(
            metric.apply_transposed(vectors[0]), matrix.T @ vectors[0], rtol=1e-12
        )


def test_a_low_rank_metric_is_what_its_docstring_says(rng: np.random.Generator) -> None:
    metric = some_metrics(rng)[2]
    assert isinstance(metric, LowRank)
    u, stretch = metric.directions, metric.stretch
    expected = np.diag(metric.scale) @ (np.eye(4) + u @ np.diag(stretch - 1.0) @ u.T)
    np.testing.assert_allclose(metric.dense(), expected, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 50])
def test_fisher_diagonal_is_exact_on_independent_coordinates(
    n: int, rng: np.random.Generator
) -> None:
    scale = np.logspace(-8, 8, 9)
    metric = estimate("diag", *points(np.diag(scale**2), n, rng))
    # Draws lie 3 off the origin: at a scale of 1e-8 they keep 8 of their 16 digits.
    assert isinstance(metric, Diagonal)
    np.testing.assert_allclose(metric.scale, scale, rtol=1e-6)


@pytest.mark.parametrize("decades", [2, 4, 6])
def test_fisher_dense_is_exact_on_gaussians(decades: int, rng: np.random.Generator) -> None:
    dim = 30
    covariance = rotated(np.logspace(-decades / 2, decades / 2, dim), rng)
    # Means take one point, so dim + 1 span the space. Their sample covariance is off by a factor
    # of a thousand in places, and no more than rounding and the regularisation may show.
    metric = estimate("dense", *points(covariance, dim + 1, rng), **EXACT)
    np.testing.assert_allclose(whitened(metric, covariance), np.eye(dim), atol=1e-4)


def test_fisher_low_rank_with_all_directions_is_exact_on_gaussians(
    rng: np.random.Generator,
) -> None:
    covariance = rotated(np.logspace(-2, 2, 20), rng)
    metric = estimate("low_rank", *points(covariance, 21, rng), cutoff=1.0, **EXACT)
    np.testing.assert_allclose(whitened(metric, covariance), np.eye(20), atol=1e-6)


def test_fisher_low_rank_is_exact_where_few_directions_matter(rng: np.random.Generator) -> None:
    covariance = correlated_pairs(40, [0.9, -0.99, 0.9999])
    draws, gradients = points(covariance, 60, rng)
    metric = estimate("low_rank", draws, gradients, rank=8, cutoff=1.0001, **EXACT)
    assert isinstance(metric, LowRank)
    assert metric.directions.shape == (40, 8)
    assert (metric.stretch != 1.0).sum() == 6
    # All of the padding comes last.
    assert not metric.directions[:, 6:].any()
    np.testing.assert_allclose(whitened(metric, covariance), np.eye(40), atol=1e-4)


def test_fisher_low_rank_finds_the_scales_around_its_directions(rng: np.random.Generator) -> None:
    # Five directions stand out by up to 100 in standard deviation. The diagonal rule takes part of
    # that for scale, and the directions left by a single fit have a condition number of 190 to 310
    # over 60 seeds; with the scales fitted again it is 9 to 49.
    scale = np.exp(rng.normal(size=100))
    dominant = rotated(np.concatenate([np.ones(95), np.logspace(2, 4, 5)]), rng)
    covariance = scale[:, None] * dominant * scale
    draws, gradients = points(covariance, 200, rng)
    assert condition(estimate("diag", draws, gradients), covariance) > 5000
    assert condition(estimate("low_rank", draws, gradients, rank=8), covariance) < 80


def test_fewer_points_than_coordinates_are_better_than_the_diagonal(
    rng: np.random.Generator,
) -> None:
    time = np.arange(50)
    covariance = 0.98 ** np.abs(time[:, None] - time)
    draws, gradients = points(covariance, 20, rng)
    diagonal = condition(estimate("diag", draws, gradients), covariance)
    for kind in ("dense", "low_rank"):
        assert condition(estimate(kind, draws, gradients), covariance) < diagonal / 10


def test_chance_directions_are_not_kept(rng: np.random.Generator) -> None:
    # Independent coordinates with heavy tails: whatever stands out among few points is chance.
    # Without the other half's word for it a fit keeps dozens of directions.
    draws = rng.standard_t(5, size=(150, 400))
    gradients = -6 * draws / (5 + np.square(draws))
    metric = estimate("low_rank", draws, gradients)
    assert isinstance(metric, LowRank)
    assert (metric.stretch != 1.0).sum() <= 1


def test_a_nearly_singular_correlation(rng: np.random.Generator) -> None:
    scale = np.array([30.0, 0.01])
    covariance = scale[:, None] * correlated_pairs(2, [-0.99999]) * scale
    draws, gradients = points(covariance, 100, rng)
    assert condition(estimate("diag", draws, gradients), covariance) > 1e5
    for kind in ("dense", "low_rank"):
        # At the default regularisation, so not 1.
        assert condition(estimate(kind, draws, gradients), covariance) < 3


def test_the_cutoff_is_one_of_eigenvalues(rng: np.random.Generator) -> None:
    # Standardised, a correlated pair has the eigenvalues r and 1 / r.
    def correlation(r: float) -> float:
        return (r**2 - 1) / (r**2 + 1)

    covariance = correlated_pairs(6, [correlation(1.9), correlation(2.1)])
    metric = estimate("low_rank", *points(covariance, 5000, rng))
    assert isinstance(metric, LowRank)
    kept = metric.stretch[metric.stretch != 1.0]
    # The scales come from sample variances, which moves the eigenvalues by a few percent.
    np.testing.assert_allclose(np.sort(kept**2), [1 / 2.1, 2.1], rtol=0.04)


def test_a_constant_coordinate_is_scaled_by_its_gradients(rng: np.random.Generator) -> None:
    # The mean of many 0.1 is not 0.1: the rounding must not pass for a variance.
    gradients = 5.0 * rng.normal(size=(1000, 2))
    metric = estimate("diag", np.full((1000, 2), 0.1), gradients)
    assert isinstance(metric, Diagonal)
    np.testing.assert_allclose(metric.scale, 1.0 / gradients.std(axis=0), rtol=1e-12)


def test_regularisation_does_not_grow_with_the_number_of_points(rng: np.random.Generator) -> None:
    covariance = correlated_pairs(2, [0.999])
    n, ridge = 200, 0.1
    draws, gradients = points(covariance, n, rng)
    metric = estimate("dense", draws, gradients, regularization=ridge)
    scale = estimate("diag", draws, gradients).dense()
    # The equation that defines the geometric mean, with the ridge in standardised coordinates.
    inner = np.linalg.solve(scale, metric.dense())
    mean = inner @ inner.T
    covariances = [
        np.cov(part.T, bias=True) + ridge * np.eye(2)
        for part in (draws @ np.linalg.inv(scale), gradients @ scale)
    ]
    np.testing.assert_allclose(mean @ covariances[1] @ mean, covariances[0], rtol=1e-8)


def test_gradients_of_the_inverse_covariance_fail(rng: np.random.Generator) -> None:
    # The negative control: what a rule that forgets to invert the gradients' covariance would do.
    covariance = rotated(np.logspace(-1, 1, 10), rng)
    draws, _ = points(covariance, 100, rng)
    gradients = -(draws - 3.0) @ covariance
    for kind in ("dense", "low_rank"):
        metric = estimate(kind, draws, gradients, cutoff=1.0, **EXACT)
        assert condition(metric, covariance) > 50


def test_the_variance_rule_meets_the_covariance(rng: np.random.Generator) -> None:
    n, dim = 4000, 10
    covariance = rotated(np.logspace(-1, 1, dim), rng)
    draws, gradients = points(covariance, n, rng)
    # Stan shrinks by n / (n + 5) towards 1e-3, which is 0.1 % here. A variance has a relative
    # standard error of sqrt(2 / n), a scale half of that; a whitened covariance at most the same.
    error = np.sqrt(2.0 / n)
    diagonal = estimate("diag", draws, gradients, rule="variance")
    assert isinstance(diagonal, Diagonal)
    np.testing.assert_allclose(
        diagonal.scale, np.sqrt(np.diag(covariance)), rtol=5 * error / 2 + 1e-3
    )
    dense = estimate("dense", draws, gradients, rule="variance")
    np.testing.assert_allclose(whitened(dense, covariance), np.eye(dim), atol=5 * error + 1e-3)


def test_the_variance_rule_is_that_of_stan(rng: np.random.Generator) -> None:
    draws = rng.normal(size=(7, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 2.0, 0.0], [0.3, 0.0, 1.0]])
    expected = 7 / 12 * np.cov(draws.T) + 1e-3 * 5 / 12 * np.eye(3)
    dense = estimate("dense", draws, draws, rule="variance").dense()
    np.testing.assert_allclose(dense @ dense.T, expected, rtol=1e-10)
    diagonal = estimate("diag", draws, draws, rule="variance").dense()
    np.testing.assert_allclose(diagonal @ diagonal.T, np.diag(np.diag(expected)), rtol=1e-10)


def test_the_variance_rule_finds_a_direction(rng: np.random.Generator) -> None:
    n, dim = 2000, 50
    direction = np.ones(dim) / np.sqrt(dim)
    covariance = np.eye(dim) + 99.0 * np.outer(direction, direction)
    metric = estimate("low_rank", *points(covariance, n, rng), rule="variance")
    assert isinstance(metric, LowRank)
    found = metric.directions[:, 0]
    # A spike of l against unit noise is found within an angle of sqrt(dim / (n l)), here 0.016;
    # the standardised eigenvalue is 100 / (1 + 99 / 50), its relative standard error sqrt(2 / n).
    assert abs(found @ direction) > 1.0 - 0.05**2
    assert metric.stretch[0] ** 2 == pytest.approx(100 / 2.98, rel=5 * np.sqrt(2 / n))
    # The other eigenvalues are all 1 / 2.98: none stands out.
    assert (metric.stretch[1:] <= 1.0).all()


def test_the_variance_rule_takes_no_noise_for_directions(rng: np.random.Generator) -> None:
    # The sample covariance of 20 draws in 100 dimensions has eigenvalues up to 10.
    metric = estimate("low_rank", *points(np.eye(100), 20, rng), rule="variance")
    assert isinstance(metric, LowRank)
    assert (metric.stretch == 1.0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [5, 30])
def test_the_fisher_rule_does_not_depend_on_units(
    kind: Kind, n: int, rng: np.random.Generator
) -> None:
    covariance = rotated(np.logspace(-2, 2, 12), rng)
    draws, gradients = points(covariance, n, rng)
    # Powers of two: exact in floating point, from 1e-8 to 1e8.
    units = 2.0 ** rng.integers(-26, 27, size=12)
    plain = estimate(kind, draws, gradients)
    scaled = estimate(kind, draws * units, gradients / units)
    np.testing.assert_allclose(scaled.dense() / units[:, None], plain.dense(), rtol=1e-8, atol=1e-8)


def test_the_fisher_rule_does_not_depend_on_the_mean(rng: np.random.Generator) -> None:
    draws, gradients = points(rotated(np.logspace(-1, 1, 8), rng), 30, rng)
    for kind in KINDS:
        moved = estimate(kind, draws + 100.0, gradients - 7.0)
        np.testing.assert_allclose(
            moved.dense(), estimate(kind, draws, gradients).dense(), rtol=1e-8, atol=1e-10
        )


def hostile(name: str, rng: np.random.Generator) -> tuple[Array, Array]:
    draws = rng.normal(size=(20, 6))
    gradients = -draws.copy()
    match name:
        case "constant draws":
            draws[:] = 0.1
        case "constant gradients":
            gradients[:] = 0.1
        case "a chain that never moved":
            draws[:], gradients[:] = 0.1, -7.0
        case "zero gradients":
            gradients[:] = 0.0
        case "one constant coordinate":
            draws[:, 2], gradients[:, 2] = 1e5, 1e-5
        case "NaN draws":
            draws[3, 1] = np.nan
        case "infinite gradients":
            gradients[4, 5] = -np.inf
        case "nothing finite":
            draws[:] = np.nan
        case "astronomical":
            draws *= 1e200
        case "large":
            draws, gradients = draws * 1e45, gradients * 1e45
        case "tiny":
            draws, gradients = draws * 1e-200, gradients * 1e-200
        case "all scales":
            scale = np.logspace(-8, 8, 6)
            draws, gradients = draws * scale, gradients / scale
        case "gradients of another density":
            gradients = rng.standard_cauchy(size=gradients.shape) ** 3
        case "large, at right angles":
            draws = 1e45 * draws[:, :1] * np.ones(6)
            gradients = 1e45 * gradients[:, 1:2] * np.array([1.0, -1.0] * 3)
        case "two equal coordinates":
            draws[:, 1] = draws[:, 0]
        case _:
            n = int(name.split()[0])
            draws, gradients = draws[:n], gradients[:n]
    return draws, gradients


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "0 points",
        "1 point",
        "2 points",
        "3 points",
        "constant draws",
        "constant gradients",
        "a chain that never moved",
        "zero gradients",
        "one constant coordinate",
        "NaN draws",
        "infinite gradients",
        "nothing finite",
        "astronomical",
        "large",
        "tiny",
        "all scales",
        "gradients of another density",
        "large, at right angles",
        "two equal coordinates",
    ],
)
def test_metrics_are_finite_and_positive_whatever_the_points(
    name: str, kind: Kind, rule: Rule, rng: np.random.Generator
) -> None:
    draws, gradients = hostile(name, rng)
    before = draws.copy(), gradients.copy()
    metric = estimate(kind, draws, gradients, rule=rule)
    assert is_sound(metric)
    np.testing.assert_array_equal((draws, gradients), before)
    if isinstance(metric, Diagonal | LowRank):
        assert (metric.scale >= 1e-10).all()
        assert (metric.scale <= 1e10).all()
    if isinstance(metric, LowRank):
        assert (metric.stretch >= 1e-10).all()
        assert (metric.stretch <= 1e10).all()


@pytest.mark.parametrize("kind", KINDS)
def test_points_that_are_not_finite_are_left_out(kind: Kind, rng: np.random.Generator) -> None:
    draws, gradients = points(np.eye(4), 20, rng)
    clean = estimate(kind, draws, gradients).dense()
    draws = np.insert(draws, 7, [np.nan, 0.0, 0.0, 0.0], axis=0)
    gradients = np.insert(gradients, 7, np.ones(4), axis=0)
    draws = np.insert(draws, 11, np.ones(4), axis=0)
    gradients = np.insert(gradients, 11, [0.0, np.inf, 0.0, 0.0], axis=0)
    np.testing.assert_array_equal(estimate(kind, draws, gradients).dense(), clean)


@pytest.mark.parametrize("rule", RULES)
def test_several_chains_are_centred_each_at_its_own_mean(
    rule: Rule, rng: np.random.Generator
) -> None:
    covariance = rotated(np.logspace(-1, 1, 12), rng)
    draws, gradients = (part.reshape(4, 500, 12) for part in points(covariance, 2000, rng))
    # As for chains in modes far apart: the same shape, at different places.
    apart = draws + 50.0 * np.arange(4)[:, None, None]
    for kind in KINDS:
        metric = estimate(kind, apart, gradients, rule=rule)
        together = estimate(kind, draws, gradients, rule=rule)
        np.testing.assert_allclose(metric.dense(), together.dense(), rtol=1e-8, atol=1e-10)
    # Within a Monte Carlo error of 5 sqrt(2 / n) on eigenvalues, or exactly.
    dense = estimate("dense", apart, gradients, rule=rule)
    assert condition(dense, covariance) < 1.6
    # The negative control: put together without centring, they are not.
    naive = estimate("dense", apart.reshape(-1, 12), gradients.reshape(-1, 12), rule=rule)
    assert condition(naive, covariance) > 10


def test_chains_without_usable_points_are_left_out(rng: np.random.Generator) -> None:
    draws, gradients = (part.reshape(2, 10, 4) for part in points(np.eye(4), 20, rng))
    for kind in KINDS:
        pair = estimate(kind, draws, gradients).dense()
        lost = np.full((1, 10, 4), np.nan)
        three = estimate(kind, np.concatenate([draws, lost]), np.concatenate([gradients, lost]))
        np.testing.assert_array_equal(three.dense(), pair)
        np.testing.assert_array_equal(estimate(kind, lost, lost).dense(), np.eye(4))


def test_without_points_the_metric_is_the_identity() -> None:
    for kind in KINDS:
        metric = estimate(kind, np.empty((0, 3)), np.empty((0, 3)))
        np.testing.assert_array_equal(metric.dense(), np.eye(3))


@pytest.mark.parametrize("rule", RULES)
def test_a_low_rank_metric_never_forms_a_full_matrix(rule: Rule, rng: np.random.Generator) -> None:
    dim = 3000
    draws = rng.normal(size=(30, dim))
    tracemalloc.start()
    metric = estimate("low_rank", draws, -draws, rule=rule)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(metric, LowRank)
    assert metric.directions.shape == (dim, 32)
    assert peak < dim * dim * 8 / 2


def test_many_points_in_many_dimensions_are_thinned(rng: np.random.Generator) -> None:
    covariance = correlated_pairs(400, [0.99])
    draws, gradients = points(covariance, 450, rng)
    metric = estimate("low_rank", draws, gradients)
    assert is_sound(metric)
    thinned = np.linspace(0, 449, 150).astype(int)
    same = estimate("low_rank", draws[thinned], gradients[thinned])
    np.testing.assert_array_equal(metric.dense(), same.dense())
    # 199 with the diagonal one.
    assert condition(metric, covariance) < 50


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_metric_is_that_of_the_gradient(kind: Kind) -> None:
    gradient = np.array([4.0, -0.01, 0.0, np.nan, np.inf, 1e300, 1e-300])
    metric = initial(kind, gradient)
    expected = [0.5, 10.0, 1.0, 1.0, 1.0, 1e-10, 1e10]
    np.testing.assert_allclose(metric.dense(), np.diag(expected), rtol=1e-12)
    assert is_sound(metric)


def test_the_rank_is_at_most_the_dimension(rng: np.random.Generator) -> None:
    draws, gradients = points(np.eye(3), 10, rng)
    for metric in (estimate("low_rank", draws, gradients), initial("low_rank", gradients[0])):
        assert isinstance(metric, LowRank)
        assert metric.directions.shape == (3, 3)
        assert metric.stretch.shape == (3,)


def test_bad_input_is_refused() -> None:
    wrong: Any = "full"
    draws = np.zeros((3, 2))
    with pytest.raises(ValueError, match="full"):
        estimate(wrong, draws, draws)
    with pytest.raises(ValueError, match="full"):
        estimate("diag", draws, draws, rule=wrong)
    with pytest.raises(ValueError, match="full"):
        initial(wrong, draws[0])
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(2, 2\)"):
        estimate("diag", draws, draws[:2])
    with pytest.raises(ValueError, match="same shape"):
        estimate("diag", draws[0], draws[0])
