"""Where divergences are: places are found, and chance is not taken for one."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ppl_gen.diagnostics import gathering

Array = NDArray[np.float64]


def autoregressive(coefficient: float, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Draw stationary AR(1) chains with variance one along axis 1."""
    draws = rng.normal(size=shape)
    for t in range(1, shape[1]):
        noise = np.sqrt(1 - coefficient**2) * draws[:, t]
        draws[:, t] = coefficient * draws[:, t - 1] + noise
    return draws


def test_divergences_anywhere_are_rarely_called_gathered() -> None:
    """Also those that follow one another, in chains that move slowly.

    P-values are uniform, so that 300 have 15 below 0.05, with an sd of 3.8. As places, whose draws
    are taken for independent, the same divergences would often be called gathered: the negative
    control of moving them along the chain.
    """
    rng, p, naive = np.random.default_rng(0), [], []
    for seed in range(300):
        draws = autoregressive(0.9, (4, 250, 3), rng)
        flags = autoregressive(0.9, (4, 250), rng) > 1.9
        found = gathering(draws, flags, seed=seed)
        p.append(found.p_value)
        naive.append(gathering(draws, places=draws[flags], seed=seed).p_value)
    values = np.array(p)[~np.isnan(p)]
    assert len(values) > 250
    assert (values <= 0.05).mean() < 0.05 + 4 * np.sqrt(0.05 * 0.95 / len(values))
    assert (np.array(naive) <= 0.05).mean() > 0.3


@pytest.mark.parametrize(
    ("condition", "scalar", "side"),
    [
        (lambda x: x[..., 2] < -2, 2, "small"),
        (lambda x: x[..., 0] > 2, 0, "large"),
        (lambda x: (np.abs(x[..., 1]) < 0.1) & (x[..., 0] > 0), 1, "middle"),
        (lambda x: np.abs(x[..., 1]) > 2.2, 1, "ends"),
    ],
)
def test_the_scalar_and_the_side_are_named(condition: object, scalar: int, side: str) -> None:
    assert callable(condition)
    draws = autoregressive(0.5, (4, 1000, 4), np.random.default_rng(1))
    found = gathering(draws, condition(draws))
    assert found.gathered()
    assert (found.scalar, found.side) == (scalar, side)
    assert found.divergences == int(condition(draws).sum())


def test_the_neck_of_a_funnel() -> None:
    rng = np.random.default_rng(2)
    log_scale = 1.5 * rng.normal(size=(4, 1000))
    x = np.exp(log_scale)[..., None] * rng.normal(size=(4, 1000, 8))
    draws = np.concatenate([x, log_scale[..., None]], axis=-1)
    found = gathering(draws, (log_scale < -2) & (rng.random((4, 1000)) < 0.2))
    assert found.gathered()
    assert found.shift < -0.35
    assert (found.scalar, found.side) == (8, "small")
    assert found.there < -2 < found.elsewhere


def test_a_place_that_no_scalar_shows_alone() -> None:
    """In 200 scalars at once, each of which is a little nearer to its median than elsewhere."""
    draws = np.random.default_rng(3).normal(size=(4, 1000, 200))
    distance = (draws**2).sum(axis=-1)
    flags = distance < np.sort(distance, axis=None)[20]
    assert gathering(draws, flags).gathered()
    assert not gathering(draws[..., :1], flags).gathered()


def test_one_or_two_divergences_are_anywhere() -> None:
    draws = np.random.default_rng(4).normal(size=(4, 500, 2))
    flags = np.zeros((4, 500), dtype=bool)
    assert not gathering(draws, flags).gathered()
    flags.flat[draws[..., 0].argmin()] = flags.flat[draws[..., 0].argmax()] = True
    found = gathering(draws, flags)
    assert found.divergences == 2
    assert np.isnan(found.p_value)
    assert found.scalar is None
    assert np.isnan(gathering(draws, np.ones((4, 500))).p_value)


def test_places_instead_of_draws() -> None:
    draws = np.random.default_rng(5).normal(size=(4, 500, 3))
    places = np.random.default_rng(6).normal(size=(20, 3))
    assert not gathering(draws, places=places).gathered()
    places[:, 1] = -2.5
    places[:, 2] = np.nan  # not known
    found = gathering(draws, places=places)
    assert found.gathered()
    assert (found.scalar, found.side, found.there) == (1, "small", -2.5)


def test_many_divergences_and_useless_scalars() -> None:
    draws = np.random.default_rng(7).normal(size=(4, 1000, 3))
    flags = draws[..., 2] < 0
    draws[..., 0] = 1.0
    draws[0, 0, 1] = np.inf
    found = gathering(draws, flags)
    assert found.gathered()
    assert (found.divergences, found.scalar) == (int(flags.sum()), 2)
    assert np.isnan(gathering(draws[..., :2], flags).p_value)


def test_the_same_seed_gives_the_same_answer() -> None:
    draws = np.random.default_rng(8).normal(size=(2, 300, 2))
    flags = np.random.default_rng(9).random((2, 300)) < 0.03
    assert gathering(draws, flags, seed=1) == gathering(draws, flags, seed=1)


def test_refuses_what_does_not_match() -> None:
    draws = np.zeros((2, 10, 3))
    with pytest.raises(ValueError, match="either diverging or places, got both or neither"):
        gathering(draws)
    with pytest.raises(ValueError, match=r"of \(2, 10\), got shape \(20,\)"):
        gathering(draws, np.zeros(20))
    with pytest.raises(ValueError, match=r"with 3 scalars, got shape \(4, 2\)"):
        gathering(draws, places=np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"\(chain, draw, scalar\), got shape \(2, 10\)"):
        gathering(draws[..., 0], np.zeros((2, 10)))
