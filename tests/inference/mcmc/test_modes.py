"""Chains in regions of no weight: found by their weights, started again, and told of."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from test_stream import assert_same

from ppl_gen import Posterior, fit
from ppl_gen.core.store import Run
from ppl_gen.inference import HMC, NUTS
from ppl_gen.inference.mcmc import driver, stream
from ppl_gen.inference.mcmc.modes import restarts
from ppl_gen.inference.mcmc.warmup import meeting, stages

DIM = 6
DRAWS = 200

# ---- which chains


def normal_chains(*log_weights: float, scale: float = 1.0, seed: int = 0) -> tuple[Any, Any]:
    """Return log densities and log volumes of chains in normal modes of given log weights.

    Args:
        *log_weights: One for each chain.
        scale: Standard deviation in each direction of every second mode; of the others one.
        seed: Of the draws.
    """
    scales = np.where(np.arange(len(log_weights)) % 2, scale, 1.0)
    squares = np.random.default_rng(seed).chisquare(DIM, size=(len(log_weights), DRAWS))
    log_volumes = DIM * np.log(scales)
    peaks = np.array(log_weights) - log_volumes
    return peaks[:, None] - squares / 2, log_volumes


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_weights_are_those_of_the_modes(scale: float) -> None:
    found = restarts(*normal_chains(0.0, -50.0, 0.0, -400.0, scale=scale), DIM)
    assert [r.chain for r in found] == [1, 3]
    # The mean of 200 log densities has a standard error of sqrt(DIM / 2 / 200) = 0.12, and two of
    # them are compared: five standard errors are 0.9.
    assert [r.log_weight for r in found] == pytest.approx([-50.0, -400.0], abs=0.9)


def test_volume_makes_up_for_density() -> None:
    log_probs, log_volumes = normal_chains(0.0, 0.0, 0.0, 0.0, scale=1e6)
    assert log_probs[0].mean() > log_probs[1].mean() + 80  # 6 dimensions of 14 nats
    assert restarts(log_probs, log_volumes, DIM) == []
    # By density alone, those in the wide mode would be lost.
    assert [r.chain for r in restarts(log_probs, 0 * log_volumes, DIM)] == [1, 3]


def test_only_what_weighs_nothing_is_left_out() -> None:
    limit = 20.0 + DIM
    for log_weight, hopeless in ((-limit + 2, False), (-limit - 2, True)):
        found = restarts(*normal_chains(0.0, 0.0, log_weight, 0.0), DIM)
        assert [r.chain for r in found] == ([2] if hopeless else [])


@pytest.mark.parametrize(
    ("log_weights", "expected"),
    [
        ((0.0, 0.0, 0.0, 0.0), {}),
        ((-100.0, -100.0, -100.0, 0.0), {0: 3, 1: 3, 2: 3}),
        ((0.0, -100.0, 0.0, -90.0, -50.0), {1: 0, 3: 2, 4: 0}),  # each of the donors in turn
        ((0.0, -15.0, -100.0, 0.0), {2: 0}),  # nobody starts where there is little
        ((0.0, 0.0, -100.0), {}),  # three are too few
        ((-1e5, -1e5 - 100.0, -1e5, -1e5), {1: 0}),
    ],
)
def test_where_hopeless_chains_start(
    log_weights: tuple[float, ...], expected: dict[int, int]
) -> None:
    found = restarts(*normal_chains(*log_weights), DIM)
    assert {r.chain: r.donor for r in found} == expected


def climbing() -> np.ndarray:
    return np.linspace(-200.0, -100.0, DRAWS) + np.random.default_rng(1).normal(size=DRAWS)


def stuck() -> np.ndarray:
    return np.repeat([-100.0, -101.0, -99.5, -100.5], DRAWS // 4)


def swinging() -> np.ndarray:
    return -100.0 + np.random.default_rng(1).normal(size=DRAWS).cumsum()


@pytest.mark.parametrize(
    "make",
    [climbing, stuck, swinging, lambda: np.zeros(DRAWS)],
    ids=["climbing", "stuck", "swinging", "constant"],
)
def test_a_chain_that_is_not_at_rest_has_a_wide_margin(make: Callable[[], np.ndarray]) -> None:
    lost = make() - make().max()
    log_probs, log_volumes = normal_chains(0.0, 0.0, 0.0, 0.0)
    log_volumes[3] = -1e6  # what it says means nothing
    # The mean of a normal log density is DIM / 2 below its peak.
    limit = 20.0 + 6 * DIM + DIM / 2
    log_probs[3] = lost - limit + 1
    assert restarts(log_probs, log_volumes, DIM) == []
    log_probs[3] = lost - limit - 1
    assert [r.chain for r in restarts(log_probs, log_volumes, DIM)] == [3]
    # It is itself no measure for others, and none of them starts from it.
    log_probs[3] = lost + 1000
    assert restarts(log_probs, log_volumes, DIM) == []
    log_probs[0] -= 100
    assert [(r.chain, r.donor) for r in restarts(log_probs, log_volumes, DIM)] == [(0, 1)]
    # Without any at rest there is none.
    log_probs[:] = lost - 100 * np.arange(4)[:, None]
    assert restarts(log_probs, log_volumes, DIM) == []


def test_false_alarms_and_misses() -> None:
    # Of 1,000 sets of chains none is judged wrongly 5 nats from the limit: weights of chains that
    # are compared have an error of 0.17.
    limit = 20.0 + DIM
    for seed in range(1000):
        assert restarts(*normal_chains(0.0, 0.0, 5 - limit, 0.0, seed=seed), DIM) == []
        found = restarts(*normal_chains(0.0, 0.0, -5 - limit, 0.0, seed=seed), DIM)
        assert [r.chain for r in found] == [2]


def test_where_chains_meet() -> None:
    for warmup, stop, window in ((1000, 516, 300), (500, 216, 133), (200, 83, 58)):
        found = meeting(stages(warmup), 4)
        assert found is not None
        assert (found.stop, found.window) == (stop, window)
        assert found.stop < stages(warmup)[-1].stop
    assert meeting(stages(1000), 3) is None
    for warmup in (1, 10, 50, 150):
        assert meeting(stages(warmup), 4) is None


# ---- runs


def two_modes(log_weight: float) -> None:
    """Two normal modes of scale 0.1 around 1 and -1, the second of a weight of its own.

    A start point uniform on (-2, 2) belongs to either with a chance of a half, and no trajectory
    crosses the 50 nats between them.
    """
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1).mask(False))
    squares = 50 * torch.stack([((x[0] - 1) ** 2), ((x[0] + 1) ** 2)])
    pyro.factor("modes", torch.logsumexp(torch.stack([-squares[0], log_weight - squares[1]]), 0))
    pyro.factor("other", -(x[1] ** 2) / 2)


def draws_of(method: Any, log_weight: float = -60.0, seed: int = 0) -> Posterior:
    return fit(two_modes, {"log_weight": log_weight}, method, seed=seed, progress=False)


def in_light_mode(posterior: Posterior) -> list[int]:
    below = posterior["x"][..., 0] < 0
    assert bool((below.all(dim=1) | ~below.any(dim=1)).all())
    return below[:, 0].nonzero().flatten().tolist()


SEED = 2
# Enough for chains to meet, and too short for it.
MEETS: dict[str, Any] = {"warmup": 160, "draws": 40}
DOES_NOT: dict[str, Any] = {"warmup": 100, "draws": 40}


@pytest.mark.parametrize("metric", ["diag", "dense", "low_rank"])
@pytest.mark.parametrize("kind", [NUTS, HMC])  # a random walk jumps across
def test_a_mode_without_weight_is_left(kind: Any, metric: Any) -> None:
    left = 0
    for seed in range(4):
        method = kind(chains=9, metric=metric, **MEETS)
        before = in_light_mode(draws_of(kind(chains=9, metric=metric, **DOES_NOT), seed=seed))
        posterior = draws_of(method, seed=seed)
        after = in_light_mode(posterior)
        told = [text for text in posterior.warnings if "has no weight" in text]
        if 0 < len(before) < 9:
            left += 1
            assert after == []
            # Each goes its own way from where it starts again.
            assert len(posterior["x"][:, -1].unique(dim=0)) == 9
            assert all(f"{chain + 1}" in told[0] for chain in before)
        else:
            assert after == before
            assert told == []
    assert left > 0


def test_a_light_mode_that_could_matter_is_kept() -> None:
    # Estimated to within a nat, e-18 is more than the limit of e-22 in two dimensions.
    for seed in range(3):
        posterior = draws_of(NUTS(chains=9, **MEETS), log_weight=-18.0, seed=seed)
        assert in_light_mode(posterior) != []
        assert not any("has no weight" in text for text in posterior.warnings)


def test_the_warning_says_how_little_the_region_weighs() -> None:
    posterior = draws_of(NUTS(chains=9, **MEETS | {"warmup": 500}), seed=SEED)
    text = next(text for text in posterior.warnings if "has no weight" in text)
    found = re.search(r"about e(-\d+) times that of where", text)
    assert found is not None
    # Of 133 draws in two dimensions, worth 60 or more, the mean log density has a standard error
    # of 0.13 or less, the log volume a smaller one, and the text is rounded to a nat.
    assert abs(int(found[1]) + 60) <= 1
    # It is there in any later look at the run.
    assert posterior.extend(10, progress=False).warnings[-1] == posterior.warnings[-1]


def test_the_eager_engine_does_the_same() -> None:
    method = NUTS(chains=9, max_tree_depth=5, engine="eager", **MEETS | {"draws": 5})
    posterior = draws_of(method, seed=SEED)
    assert in_light_mode(posterior) == []
    assert any("has no weight" in text for text in posterior.warnings)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_number_of_threads_does_not_matter(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method = NUTS(chains=25, **MEETS)  # four groups
    expected = draws_of(method, seed=SEED)
    assert any("has no weight" in text for text in expected.warnings)
    monkeypatch.setattr(driver, "processors", lambda: count)
    assert_same(draws_of(method, seed=SEED), expected)


def test_killed_at_any_moment_it_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the folder at a checkpoint is what a process leaves that is killed after it."""
    method = NUTS(chains=25, **MEETS)
    data = {"log_weight": -60.0}
    expected = draws_of(method, seed=SEED)
    kept: dict[str, Path] = {}
    save_state = Run.save_state

    def save_and_copy(run: Run, state: Any) -> None:
        save_state(run, state)
        at = state["transition"][:25] - 83  # where they meet
        # Behind, there or ahead: where the hindmost and the foremost are.
        moment = f"{int(at.min().sign())} {int(at.max().sign())}"
        if moment not in kept:
            kept[moment] = tmp_path / moment
            shutil.copytree(run.path, kept[moment])

    monkeypatch.setattr(stream, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(stream, "_CHECKPOINT_SHARE", 1e9)
    monkeypatch.setattr(driver, "processors", lambda: 1)  # so that groups are far apart
    with monkeypatch.context() as patched:
        patched.setattr(Run, "save_state", save_and_copy)
        whole = fit(two_modes, data, method, seed=SEED, progress=False, out=tmp_path / "x")
    assert_same(whole, expected)
    assert {"-1 0", "0 0", "0 1"} <= kept.keys()
    for folder in kept.values():
        resumed = fit(two_modes, data, method, seed=SEED, progress=False, out=folder, resume=True)
        assert_same(resumed, expected)
        assert resumed.warnings == expected.warnings
