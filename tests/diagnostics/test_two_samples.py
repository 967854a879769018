"""Joint distances: closed forms, nulls that are right, power, and what is refused."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.spatial.distance import pdist
from scipy.special import gamma
from scipy.stats import wasserstein_distance

from ppl_gen.diagnostics.two_samples import (
    Distance,
    joint_wasserstein,
    mmd,
    sliced_wasserstein,
    thin,
)

Array = NDArray[np.float64]

ALL: dict[str, Callable[..., Distance]] = {
    "joint_wasserstein": joint_wasserstein,
    "sliced_wasserstein": sliced_wasserstein,
    "mmd": mmd,
}
each = pytest.mark.parametrize("distance", ALL.values(), ids=ALL.keys())


def two_samples(seed: int, n: int, m: int, d: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d))


def assert_uniform(p_values: Array, level: float = 0.1) -> None:
    """Assert that p-values are uniform, as far as so many can tell.

    Each bound is four standard errors wide: of the share below the level, and of the mean.
    """
    count = len(p_values)
    share = np.mean(p_values <= level)
    assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / count), share
    assert abs(np.mean(p_values) - 0.5) < 4 / np.sqrt(12 * count), np.mean(p_values)


@each
def test_p_values_are_uniform_for_two_samples_of_one_posterior(
    distance: Callable[..., Distance],
) -> None:
    found = [
        distance(*two_samples(seed, 40, 60, 3), permutations=49, seed=seed) for seed in range(200)
    ]
    assert_uniform(np.array([one.p_value for one in found]))
    # Half are above the median of the null, a twentieth above its 95 % quantile, by chance alone:
    # 100 +- 4 * 7.1 and 10 + 4 * 3.1, and what 49 permutations do not tell.
    assert abs(sum(one.excess > 0 for one in found) - 100) < 32
    assert sum(one.value > one.upper for one in found) < 26


@each
@pytest.mark.parametrize("fault", ["shifted", "scaled", "rotated", "one mode", "heavy tails"])
def test_wrong_samples_are_found(distance: Callable[..., Distance], fault: str) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 1000, 2))
    if fault == "shifted":
        x[:, 0] += 0.5
    elif fault == "scaled":
        x[:, 0] *= 0.6
    elif fault == "rotated":
        y[:, 1] = 0.9 * y[:, 0] + np.sqrt(1 - 0.9**2) * y[:, 1]
    elif fault == "one mode":
        y[:500] += 4.0
    else:
        x = 0.5 * rng.standard_cauchy(size=(1000, 2))
    found = distance(x, y)
    assert found.p_value <= 0.01
    assert found.value > found.upper > found.floor
    assert found.excess > 0


def test_joint_wasserstein_of_a_moved_sample_is_the_way_it_moved() -> None:
    # Of a translation no assignment is shorter than each draw to its own image.
    x, _ = two_samples(2, 200, 1, 4)
    moved = x + np.array([1.0, 2.0, 0.0, -2.0])
    found = joint_wasserstein(x, moved)
    assert found.value == pytest.approx(3.0, rel=1e-9)
    assert found.draws == (200, 200)


def test_joint_wasserstein_of_one_scalar_is_the_area_between_distribution_functions() -> None:
    x, y = two_samples(3, 100, 100, 1)
    expected = wasserstein_distance(x[:, 0], 2.0 * y[:, 0])
    assert joint_wasserstein(x, 2.0 * y).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(100, 100), (80, 130)])
def test_sliced_wasserstein_of_one_scalar_is_the_area_too(n: int, m: int) -> None:
    x, y = two_samples(4, n, m, 1)
    expected = wasserstein_distance(x[:, 0], y[:, 0])
    assert sliced_wasserstein(x, y).value == pytest.approx(expected, rel=1e-9)


def test_sliced_wasserstein_of_a_moved_sample() -> None:
    # In a random direction u of d a shift of length r is r |u_1| long, on average r times
    # gamma(d / 2) / (sqrt(pi) gamma((d + 1) / 2)), with an sd below .8 of it: 4 * .8 / sqrt(2000).
    x, _ = two_samples(5, 50, 1, 10)
    shift = np.zeros(10)
    shift[3] = 2.0
    found = sliced_wasserstein(x, x + shift, projections=2000, permutations=9)
    expected = 2.0 * gamma(5.0) / (np.sqrt(np.pi) * gamma(5.5))
    assert found.value == pytest.approx(expected, rel=0.072)


def test_mmd_of_shifted_normals() -> None:
    # Of N(0, I) and N(a, I) in d dimensions, with the Gaussian kernel of bandwidth h:
    # 2 (h^2 / (h^2 + 2))^(d/2) (1 - exp(-|a|^2 / (2 (h^2 + 2)))). The estimate's sd is below
    # 2 sqrt(2 * value / 1000) * sd of the witness function, which is below .2: .02.
    x, y = two_samples(6, 1000, 1000, 2)
    x += [1.0, 0.0]
    squared = np.median(pdist(np.concatenate([x, y]), "sqeuclidean"))
    expected = 2 * squared / (squared + 2) * (1 - np.exp(-1.0 / (2 * (squared + 2))))
    assert mmd(x, y).value == pytest.approx(expected, abs=0.02)
    assert expected > 0.1


def test_mmd_is_the_sum_over_pairs() -> None:
    x, y = two_samples(7, 11, 14, 3)
    pooled = np.concatenate([x, y])
    bandwidth = np.median(pdist(pooled, "sqeuclidean"))

    def kernel(a: Array, b: Array) -> float:
        return float(np.exp(-np.sum((a - b) ** 2) / (2 * bandwidth)))

    def mean(a: Array, b: Array) -> float:
        return float(np.mean([kernel(p, q) for p in a for q in b if p is not q]))

    rows_x, rows_y = list(x), list(y)
    expected = mean(rows_x, rows_x) + mean(rows_y, rows_y) - 2 * mean(rows_x, rows_y)  # type: ignore[arg-type]
    assert mmd(x, y).value == pytest.approx(expected, rel=1e-9)


@each
def test_no_place_no_rotation_and_no_order_matters(distance: Callable[..., Distance]) -> None:
    x, y = two_samples(8, 60, 60, 3)
    before = distance(x, y, permutations=19)
    moved = distance(x + 5.0, y + 5.0, permutations=19)
    assert moved.value == pytest.approx(before.value, rel=1e-6)
    assert moved.p_value == before.p_value
    shuffled = distance(x[::-1], y, permutations=19)
    assert shuffled.value == pytest.approx(before.value, rel=1e-6)
    if distance is not sliced_wasserstein:
        turn = np.linalg.qr(np.random.default_rng(9).normal(size=(3, 3)))[0]
        turned = distance(x @ turn, y @ turn, permutations=19)
        assert turned.value == pytest.approx(before.value, rel=1e-6)


@each
def test_the_seed_says_all(distance: Callable[..., Distance]) -> None:
    x, y = two_samples(10, 50, 50, 4)
    assert distance(x, y, permutations=29, seed=3) == distance(x, y, permutations=29, seed=3)
    assert distance(x, y, permutations=29, seed=3) != distance(x, y, permutations=29, seed=4)


@each
def test_draws_at_one_point(distance: Callable[..., Distance]) -> None:
    _, y = two_samples(11, 1, 100, 3)
    point = np.zeros((100, 3))
    assert distance(point, y, permutations=99).p_value == 0.01
    same = distance(point, point, permutations=19)
    assert same.value == pytest.approx(0.0, abs=1e-12)
    assert same.p_value == 1.0


@each
def test_many_draws_take_little_memory(distance: Callable[..., Distance]) -> None:
    x, y = two_samples(12, 20_000, 30_000, 20)
    tracemalloc.start()
    found = distance(x, y, permutations=9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * 2**20
    assert max(found.draws) <= 1000


def test_thinned_chains_have_the_right_null_and_whole_ones_have_not() -> None:
    # AR(1) with a = .8: 1800 draws are worth 1800 * .2 / 1.8 = 200.
    rng = np.random.default_rng(13)
    chains = lfilter([0.6], [1.0, -0.8], rng.normal(size=(100, 1900, 2)), axis=1)[:, 100:]
    reference = rng.normal(size=(100, 200, 2))
    options = {"permutations": 49}
    thinned = [
        mmd(thin(x, 200), y, **options).p_value for x, y in zip(chains, reference, strict=True)
    ]
    assert_uniform(np.array(thinned))
    whole = [mmd(x[:200], y, **options).p_value for x, y in zip(chains, reference, strict=True)]
    assert np.mean(np.array(whole) <= 0.1) > 0.4


def test_thin_keeps_the_ends_and_never_makes_draws() -> None:
    draws = np.arange(100.0)[:, None]
    assert thin(draws, 3.9).ravel().tolist() == [0.0, 50.0, 99.0]
    assert len(thin(draws, 1e9)) == 100
    assert len(thin(draws, 0.3)) == 1
    with pytest.raises(ValueError, match=r"effective: expected a number of draws above 0, got nan"):
        thin(draws, np.nan)
    with pytest.raises(
        ValueError, match=r"draws: expected axes \(draw, scalar\), got shape \(5,\)"
    ):
        thin(np.zeros(5), 2)


@each
@pytest.mark.parametrize(
    ("draws", "reference", "message"),
    [
        (np.zeros(20), np.zeros((20, 1)), r"draws: expected axes \(draw, scalar\)"),
        (np.zeros((20, 0)), np.zeros((20, 0)), r"draws: expected axes \(draw, scalar\)"),
        (np.zeros((20, 2)), np.zeros((1, 2)), r"reference: expected at least 10 .* draws, got 1"),
        (np.zeros((20, 2)), np.zeros((20, 3)), r"draws: expected the 3 scalars .* got 2"),
        (np.full((20, 2), np.nan), np.zeros((20, 2)), r"NaN or infinity in 20 of 20 draws"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    distance: Callable[..., Distance], draws: Array, reference: Array, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        distance(draws, reference)
