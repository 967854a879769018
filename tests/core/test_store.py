"""Saving and loading: everything comes back, nothing is executed, and damage is seen."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray

from ppl_gen import Posterior, fit, load
from ppl_gen.core import LoadError
from ppl_gen.inference import NUTS, SVI
from ppl_gen.models import BayesianLinearRegression

X = torch.linspace(-1.0, 1.0, 8).unsqueeze(-1)
DATA = {"x": X, "y": 2.0 * X[:, 0]}
PAIR = BayesianLinearRegression(num_features=1)


def model(y: torch.Tensor, note: str = "") -> None:
    mean = pyro.sample("a/mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def guide(y: torch.Tensor, note: str = "") -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("a/mean", dist.Normal(loc, scale))


@pytest.mark.parametrize(
    "method", [SVI(guide="full_rank", steps=5, draws=7), NUTS(chains=2, draws=3, warmup=3)]
)
def test_everything_comes_back(method: SVI | NUTS, tmp_path: Path) -> None:
    before = fit(PAIR, DATA, method, progress=False)
    after = load(before.save(tmp_path / "run"))
    assert list(after.draws) == list(before.draws)
    for mine, theirs in ((before.draws, after.draws), (before.sample_stats, after.sample_stats)):
        for name in mine:
            assert mine[name].dtype == theirs[name].dtype
            assert torch.equal(mine[name], theirs[name])
    for name in (
        "latents",
        "observed",
        "dims",
        "coords",
        "is_mcmc",
        "elbo",
        "interrupted",
        "local_plate",
    ):
        assert getattr(after, name) == getattr(before, name)
    assert after.provenance == json.loads(json.dumps(before.provenance))
    assert (before.history is None) == (after.history is None)
    if before.history is not None and after.history is not None:
        assert torch.equal(before.history, after.history)
    assert after.warnings == before.warnings
    assert after.checkpoint.keys() == before.checkpoint.keys()
    for name, tensor in before.checkpoint.items():
        assert torch.equal(after.checkpoint[name], tensor)
    for site, places in before.divergences.items():
        assert torch.equal(after.divergences[site], places)
    assert torch.equal(before.predict(draws=3)["y"], after.predict(draws=3)["y"])
    if before.guide is not None:
        again = after.sample(draws=4, seed=1)["weights"]
        assert torch.equal(again, before.sample(draws=4, seed=1)["weights"])


def test_a_users_pair_is_passed_in(tmp_path: Path) -> None:
    data = {"y": torch.ones(4), "note": "kept"}
    method = SVI(guide="pair", steps=20, draws=5, learning_rate=0.1)
    before = fit((model, guide), data, method, progress=False)
    path = before.save(tmp_path / "run")
    alone = load(path)
    assert torch.equal(alone["a/mean"], before["a/mean"])
    assert alone.data is not None
    assert alone.data["note"] == "kept"
    with pytest.raises(ValueError, match=r"pg\.load\(path, pair=pair\)"):
        alone.predict()
    after = load(path, (model, guide))
    assert torch.equal(after.sample(draws=4)["a/mean"], before.sample(draws=4)["a/mean"])
    with pytest.raises(LoadError, match=r"holds a FunctionPair, got a BayesianLinearRegression"):
        load(path, PAIR)
    with pytest.raises(LoadError, match="parameters differ in"):
        load(path, torch.nn.Linear(1, 1))


def test_no_folder_is_overwritten_unasked(tmp_path: Path) -> None:
    posterior = fit(PAIR, DATA, SVI(steps=1, draws=2), progress=False)
    path = posterior.save(tmp_path / "deep" / "run")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        posterior.save(path)
    assert posterior.save(path, overwrite=True) == path
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="Choose another folder"):
        posterior.save(other, overwrite=True)
    assert (other / "thesis.txt").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "mine"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    posterior = fit(PAIR, DATA, SVI(steps=1, draws=2), progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot save to .*Choose a folder you can write to"):
        posterior.save(tmp_path / "file" / "run")


def damage_file(file: Path, damage: str) -> None:
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        half = len(content) // 2
        tail = b"" if damage == "truncated" else bytes([content[half] ^ 1]) + content[half + 1 :]
        file.write_bytes(content[:half] + tail)


@pytest.mark.parametrize(
    "name",
    [
        "weights.safetensors",
        "data.safetensors",
        "state.safetensors",
        "draws.zarr/posterior/zarr.json",
        "draws.zarr/posterior/weights/zarr.json",
    ],
)
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_damage_is_seen(name: str, damage: str, tmp_path: Path) -> None:
    path = fit(PAIR, DATA, SVI(steps=1, draws=2), progress=False).save(tmp_path / "run")
    damage_file(path / name, damage)
    with pytest.raises(LoadError, match=rf"damaged: {name}"):
        load(path)


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_damage_of_draws_is_seen_before_they_are_used(damage: str, tmp_path: Path) -> None:
    path = fit(PAIR, DATA, SVI(steps=1, draws=200), progress=False).save(tmp_path / "run")
    before = load(path)
    damage_file(path / "draws.zarr/posterior/weights/c/0/0/0", damage)
    with pytest.raises(LoadError, match=f"damaged: draws.zarr: .* 'weights' .*{damage}"):
        _ = before["weights"]
    with pytest.raises(LoadError, match=f"damaged: draws.zarr: .* 'weights' .*{damage}"):
        _ = load(path)["weights"]
    assert before["intercept"].shape == (1, 200)


def test_draws_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    path = fit(PAIR, DATA, SVI(steps=1, draws=20), progress=False).save(tmp_path / "run")
    posterior = load(path)
    shutil.rmtree(path / "draws.zarr/posterior/weights/c")
    assert posterior.num_draws == 20
    assert "weights (1,)" in repr(posterior)
    intercept = posterior["intercept"]
    assert posterior["intercept"] is intercept  # not read twice
    with pytest.raises(LoadError, match="'weights' is missing"):
        _ = posterior["weights"]


def test_names_that_files_and_xarray_cannot_have(tmp_path: Path) -> None:
    names = ["a/b", "a.b", "draw", "__x", "school"]

    def odd() -> None:
        for name in names:
            with pyro.plate("school", 3):
                pyro.sample(name, dist.Normal(0.0, 1.0))

    before = fit(odd, {}, NUTS(chains=2, draws=3, warmup=3), progress=False, out=tmp_path / "run")
    after = load(tmp_path / "run", pair=odd)
    assert list(after.draws) == names
    for name in names:
        assert torch.equal(after[name], before[name])
        assert after.dims[name] == ("school",)
    with xarray.open_zarr(
        tmp_path / "run" / "draws.zarr", group="posterior", consolidated=False
    ) as read:
        assert len(read.data_vars) == 5


def test_a_damaged_manifest_and_another_version(tmp_path: Path) -> None:
    path = fit(PAIR, DATA, SVI(steps=1, draws=2), progress=False).save(tmp_path / "run")
    manifest = path / "posterior.json"
    text = manifest.read_text()
    manifest.write_text(text[:100])
    with pytest.raises(LoadError, match="truncated or was changed"):
        load(path)
    manifest.write_text(text.replace('"format": 2', '"format": 99'))
    with pytest.raises(LoadError, match="format 99"):
        load(path)
    with pytest.raises(FileNotFoundError, match="no posterior in"):
        load(tmp_path / "nothing")


def test_nothing_that_a_folder_names_is_imported(tmp_path: Path) -> None:
    path = fit(PAIR, DATA, SVI(steps=1, draws=2), progress=False).save(tmp_path / "run")
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path('ran').write_text('x')")
    manifest = json.loads((path / "posterior.json").read_text())
    for name in ("evil.Evil", "os", "__import__", "checks"):
        manifest["pair"]["class"] = name
        (path / "posterior.json").write_text(json.dumps(manifest))
        code = "import sys, ppl_gen; ppl_gen.load(sys.argv[1])"
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert "unknown class" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_no_file_holds_a_pickle(tmp_path: Path) -> None:
    path = fit(PAIR, DATA, SVI(steps=1, draws=2), progress=False).save(tmp_path / "run")
    names = sorted(p.name for p in path.iterdir())
    assert names == [
        "data.safetensors",
        "draws.zarr",
        "posterior.json",
        "state.safetensors",
        "weights.safetensors",
    ]
    # A pickle starts with its protocol opcode, a zip archive of torch.save with PK.
    files = [p for p in path.rglob("*") if p.is_file()]
    assert len(files) > 10
    assert all(p.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x04", b"PK") for p in files)


def test_an_interrupted_posterior_stays_marked(tmp_path: Path) -> None:
    posterior = fit(PAIR, DATA, SVI(steps=1, draws=2), progress=False)
    import dataclasses

    stopped: Posterior = dataclasses.replace(posterior, interrupted=True)
    assert load(stopped.save(tmp_path / "run")).interrupted


def test_tensors_inside_of_dictionaries_come_back(tmp_path: Path) -> None:
    def nested(rows: dict[str, Any]) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(rows["x"])):
            pyro.sample("y", dist.Normal(w * rows["x"], rows["more"][1]), obs=rows["y"])

    x = torch.linspace(-1.0, 1.0, 4)
    data = {"rows": {"x": x, "y": 2 * x, "more": ["text", torch.tensor(0.5)]}}
    before = fit(nested, data, SVI(steps=5, draws=5), progress=False)
    after = load(before.save(tmp_path / "run"), pair=nested)
    assert after.data is not None
    torch.testing.assert_close(after.data["rows"]["x"], x.double())
    assert after.data["rows"]["more"][0] == "text"
    torch.testing.assert_close(after.log_likelihood()["y"], before.log_likelihood()["y"])


def test_autoguides_make_their_parameters_before_they_are_filled(tmp_path: Path) -> None:
    from pyro.infer.autoguide import AutoNormal

    method = SVI(guide="pair", steps=20, draws=5)
    data = {"y": torch.ones(4)}
    before = fit((model, AutoNormal(model)), data, method, progress=False)
    after = load(before.save(tmp_path / "run"), pair=(model, AutoNormal(model)))
    assert torch.equal(after.sample(draws=4)["a/mean"], before.sample(draws=4)["a/mean"])
