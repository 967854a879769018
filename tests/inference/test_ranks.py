"""Fits by two real processes under torchrun: what one process gets, both get."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from fits_script import DATA, LONG, MEASURED, RUNS, drawn, fit, schools
from safetensors.torch import load_file
from torch.testing import assert_close

import ppl_gen as pg
from ppl_gen import Posterior, load


def torchrun(mode: str, folder: Path, *options: str) -> str:
    """Run the script by two processes; return what they said on standard error."""
    script = Path(__file__).parent / "fits_script.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *options]
    command += ["--nproc-per-node", "2", str(script), mode, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def assert_same(mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    assert list(mine) == list(theirs)
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype
        assert torch.equal(mine[name], theirs[name]), name


def assert_same_posterior(a: Posterior, b: Posterior) -> None:
    assert_same(a.draws, b.draws)
    assert_same(a.sample_stats, b.sample_stats)
    assert_same(a.divergences, b.divergences)
    if a.divergence_chain is not None and b.divergence_chain is not None:
        assert torch.equal(a.divergence_chain, b.divergence_chain)
    assert a.warnings == b.warnings
    assert (a.dims, a.coords, a.interrupted) == (b.dims, b.coords, b.interrupted)
    for name in ("gradient_evaluations", "options", "seed", "engine", "dtype"):
        assert a.provenance.get(name) == b.provenance.get(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have saved, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun("both", folder)
    return folder


def test_both_get_the_same_posterior(folder: Path) -> None:
    for name in (*RUNS, "streamed", "extended", "resumed"):
        first, second = (load(folder / str(rank) / name) for rank in range(2))
        assert_same_posterior(first, second)
        assert first.provenance == second.provenance
        assert first.provenance["processes"] == 2
        assert_same(*(load_file(folder / str(r) / name / "weights.safetensors") for r in range(2)))


@pytest.mark.parametrize("name", ["nuts", "two modes", "random walk"])
def test_chains_are_those_of_one_process(name: str, folder: Path) -> None:
    alone = fit(name)
    assert_same_posterior(load(folder / "1" / name), alone)
    assert any("has no weight" in text for text in alone.warnings) == (name == "two modes")


def test_a_folder_is_written_by_both(folder: Path) -> None:
    alone = fit("nuts")
    assert_same_posterior(load(folder / "0" / "streamed"), alone)
    longer = alone.extend(30, progress=False)
    assert_same_posterior(load(folder / "0" / "extended"), longer)
    assert_same_posterior(load(folder / "out"), longer)


@pytest.mark.parametrize("name", ["one step", "five steps", "loader"])
def test_steps_are_those_of_one_process(name: str, folder: Path) -> None:
    alone = fit(name)
    assert alone.pair is not None
    # In double precision, where only the order of sums differs.
    for rank in range(2):
        both = load_file(folder / str(rank) / name / "weights.safetensors")
        for parameter, value in alone.pair.state_dict().items():
            torch.testing.assert_close(both[f"pair.{parameter}"], value, rtol=1e-12, atol=1e-12)
        assert_close(load(folder / str(rank) / name).history, alone.history)
    start, end = RUNS[name][0].state_dict(), alone.pair.state_dict()
    assert all(bool((start[p] - end[p]).abs().max() > 1e-3) for p in start), "a step was made"


@pytest.mark.parametrize("name", ["whole run", "all rows", "optimised"])
def test_whole_runs_find_the_exact_posterior(name: str, folder: Path) -> None:
    """Normal with precision n + 1, as one process finds it too.

    The noise of the steps and of the draws leaves, over 12 seeds of one process, an error of 0.05
    sd (rms) in a mean and 0.05 in the log of a scale. Five of them are allowed; rows that count for
    half as much, as without the factor of the number of processes, make it 0.35.
    """
    y = MEASURED["y"]
    loc, scale = y.sum(0) / (len(y) + 1), (len(y) + 1) ** -0.5
    draws = load(folder / "0" / name)["mu"][0].double()
    assert ((draws.mean(0) - loc) / scale).abs().max() < 0.25
    assert (draws.std(0) / scale).log().abs().max() < 0.25


def test_a_training_goes_on_in_both(folder: Path) -> None:
    for rank in range(2):
        whole, resumed = (load(folder / str(rank) / n) for n in ("uninterrupted", "resumed"))
        assert_same(whole.draws, resumed.draws)
        assert whole.history is not None
        assert resumed.history is not None
        assert torch.equal(whole.history, resumed.history)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("drift", "parameter 'prior_loc' is no longer the same in all processes"),
        ("short", "has 1 rows, and 2 processes cannot share them. Give batch_size=5, so"),
        ("other rows", "'x' of the first mini-batch of an epoch is not the same for all processes"),
    ],
)
def test_what_would_train_wrongly_is_refused(what: str, said: str, folder: Path) -> None:
    for rank in range(2):
        assert said in json.loads((folder / str(rank) / "errors.json").read_text())[what]


def test_running_statistics_are_those_of_the_first(folder: Path) -> None:
    weights = load_file(folder / "1" / "normalised" / "weights.safetensors")
    # Of features around 3, by steps of 0.1 from 0.
    assert (weights["pair.norm.running_mean"] > 2.0).all()


def test_a_killed_process_ends_the_other_and_torchrun_goes_on_with_both(tmp_path: Path) -> None:
    said = torchrun("killed", tmp_path, "--max-restarts", "1")
    assert "RankError: rank 1 has died. Start them again with resume=True" in said
    whole = pg.fit(schools, DATA, LONG, progress=False)
    assert 10 <= drawn(tmp_path / "left") < LONG.draws
    for rank in range(2):
        assert_same_posterior(load(tmp_path / str(rank)), whole)
    # One process goes on as well with what two have left.
    alone = pg.fit(schools, DATA, LONG, progress=False, out=tmp_path / "left", resume=True)
    assert_same_posterior(alone, whole)
