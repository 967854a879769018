"""`Posterior.extend`: bit for bit what a longer run would have drawn, in memory and in a folder."""

import dataclasses
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from runner import DATA, schools

from ppl_gen import Posterior, fit, load
from ppl_gen.core import Pair
from ppl_gen.core.archive import StoredDraws
from ppl_gen.inference import HMC, NUTS, SVI, RandomWalk
from ppl_gen.models import BayesianLinearRegression

METHODS: list[Any] = [
    NUTS(draws=100, warmup=150),
    NUTS(chains=9, draws=101, warmup=150, thinning=3, metric="diag"),
    HMC(chains=3, draws=100, warmup=150, metric="low_rank"),
    RandomWalk(chains=1, draws=100, warmup=150),
    NUTS(chains=2, draws=8, warmup=12, engine="eager", max_tree_depth=4),
    NUTS(chains=2, draws=100, warmup=150, dtype=torch.float32),
]


def assert_same(a: Posterior, b: Posterior) -> None:
    for mine, theirs in (
        (a.draws, b.draws),
        (a.sample_stats, b.sample_stats),
        (a.divergences, b.divergences),
        (a.checkpoint, b.checkpoint),
    ):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if name != "seconds":
                assert torch.equal(mine[name], theirs[name]), name
    assert list(a.draws) == list(b.draws)
    for name in ("gradient_evaluations", "options", "seed", "engine", "dtype", "method"):
        assert a.provenance[name] == b.provenance[name]
    assert a.warnings == b.warnings
    assert a.dims == b.dims


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_more_draws_are_those_of_a_longer_run(method: Any, tmp_path: Path) -> None:
    longer = dataclasses.replace(method, draws=method.draws + 17)
    whole = fit(schools, DATA, longer, seed=3, progress=False)
    short = fit(schools, DATA, method, seed=3, progress=False)
    before = short["mu"].clone()
    extended = short.extend(10, progress=False).extend(7, progress=False)
    assert_same(extended, whole)
    assert short.num_draws == method.draws
    assert torch.equal(short["mu"], before)
    # In a folder that was saved, and in one that was streamed to.
    short.save(tmp_path / "saved")
    fit(schools, DATA, method, seed=3, progress=False, out=tmp_path / "streamed")
    for name in ("saved", "streamed"):
        loaded = load(tmp_path / name, pair=schools)
        extended = loaded.extend(17, progress=False)
        assert isinstance(extended.draws, StoredDraws)
        assert_same(extended, whole)
        assert_same(load(tmp_path / name), whole)
        assert loaded.num_draws == method.draws
        assert torch.equal(loaded["mu"], before)
    # Where the run began, it goes on as well: the very same folder, in either way.
    again = fit(
        schools, DATA, longer, seed=3, progress=False, out=tmp_path / "streamed", resume=True
    )
    assert_same(again, whole)


def test_more_draws_by_resume(tmp_path: Path) -> None:
    method = NUTS(draws=100, warmup=150)
    longer = dataclasses.replace(method, draws=300)
    fit(schools, DATA, method, progress=False, out=tmp_path / "run")
    grown = fit(schools, DATA, longer, progress=False, out=tmp_path / "run", resume=True)
    assert_same(grown, fit(schools, DATA, longer, progress=False))


def test_seconds_and_settings_are_those_of_the_whole(tmp_path: Path) -> None:
    start = fit(schools, DATA, SVI(steps=200), progress=False)
    method = NUTS(draws=50, warmup=50, init=start)
    short = fit(schools, DATA, method, progress=False)
    extended = short.extend(50, progress=False)
    assert extended.provenance["seconds"] > short.provenance["seconds"]
    assert extended.provenance["options"]["init"] == short.provenance["options"]["init"]
    assert extended.provenance["options"]["init"].startswith("Posterior by SVI")
    for name in ("seconds_to_first_draw", "compile_seconds"):
        assert extended.provenance[name] == short.provenance[name]


def test_prepared_data_are_not_prepared_again() -> None:
    class Noisy(Pair):
        def prepare(self, y: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": y + torch.rand_like(y)}

        def model(self, y: torch.Tensor) -> None:
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", len(y)):
                pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    data = {"y": torch.zeros(5)}
    short = fit(Noisy(), data, NUTS(draws=50, warmup=50), progress=False)
    whole = fit(Noisy(), data, NUTS(draws=80, warmup=50), progress=False)
    assert_same(short.extend(30, progress=False), whole)


def test_what_cannot_be_extended(tmp_path: Path) -> None:
    x = torch.linspace(-1.0, 1.0, 8).unsqueeze(-1)
    pair, data = BayesianLinearRegression(num_features=1), {"x": x, "y": x[:, 0]}
    with pytest.raises(ValueError, match=r"by SVI cannot be extended.*posterior.sample\(draws"):
        fit(pair, data, SVI(steps=2, draws=3), progress=False).extend(10)
    pyros = fit(pair, data, NUTS(chains=1, draws=3, warmup=3, engine="pyro"), progress=False)
    with pytest.raises(ValueError, match="keeps no state to go on from"):
        pyros.extend(10)
    short = fit(pair, data, NUTS(draws=10, warmup=20), progress=False)
    with pytest.raises(ValueError, match="draws: expected at least 1"):
        short.extend(0)
    other = dataclasses.replace(short, draws={**short.draws, "weights": short["weights"] + 1})
    with pytest.raises(ValueError, match="draws of 'weights' are not those"):
        other.extend(10)
    moved = dataclasses.replace(short, data={"x": x, "y": 3 * x[:, 0]})
    with pytest.raises(ValueError, match="the model is not the one"):
        moved.extend(10)
    path = fit(schools, DATA, NUTS(draws=10, warmup=20), progress=False).save(tmp_path / "run")
    with pytest.raises(ValueError, match=r"pg\.load\(path, pair=pair\)"):
        load(path).extend(10)
