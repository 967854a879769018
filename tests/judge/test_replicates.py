"""Replicates in parallel, stopped, killed and gone on with: the ranks are always the same."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import exact_normal
import pytest
import torch
from exact_normal import DATA, Exact, calibrate, normal

from ppl_gen.core.errors import LoadError
from ppl_gen.core.lock import only_writer
from ppl_gen.inference import NUTS, SVI
from ppl_gen.judge.calibration import Calibration, simulation_based_calibration
from ppl_gen.judge.replicates import seeds_of
from ppl_gen.judge.workers import spread

linux = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(),
    reason="processes are forked on Linux without a GPU only",
)


def same(one: Calibration, other: Calibration) -> bool:
    return (
        one.names == other.names
        and one.ranks.tolist() == other.ranks.tolist()
        and one.independent_draws.tolist() == other.independent_draws.tolist()
        and one.failures == other.failures
    )


# ---- in parallel


@linux
@pytest.mark.parametrize("workers", [2, 3])
def test_ranks_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    method = Exact(correlation=0.9, is_mcmc=True, fails_above=2.0)
    alone = calibrate(method, replicates=25, workers=1)
    assert alone.failures
    assert same(alone, calibrate(method, replicates=25, workers=workers))


@linux
@pytest.mark.parametrize(
    "method",
    [NUTS(chains=2, draws=50, warmup=50), SVI(steps=20, draws=100)],
    ids=["NUTS", "SVI"],
)
def test_nor_do_those_of_real_methods(method: Any) -> None:
    """The model is defined here: nothing of it can be pickled."""
    offset = torch.tensor(1.0)

    def model(noise: torch.Tensor, y: torch.Tensor | None = None) -> None:
        normal(noise, None if y is None else y + 0 * offset)

    found = [
        simulation_based_calibration(
            model, DATA, method, replicates=4, workers=workers, progress=False
        )
        for workers in (1, 2)
    ]
    assert same(*found)


@linux
def test_workers_run_at_the_same_time() -> None:
    """Each of two waits for the other one's file."""

    def meet(task: int) -> int:
        (folder / str(task)).touch()
        limit = time.monotonic() + 20
        while len(os.listdir(folder)) < 2:
            assert time.monotonic() < limit
            time.sleep(0.01)
        return os.getpid()

    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with spread(meet, [0, 1], workers=2) as done:
            found = set(done)
    assert len(found) == 2
    assert os.getpid() not in found
    assert multiprocessing.active_children() == []


@linux
def test_a_process_that_dies_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"at work on replicate \d+ has died of signal SIGKILL"):
        calibrate(Exact(signal_above=1.5), replicates=40, workers=2)
    assert multiprocessing.active_children() == []


@linux
def test_an_error_of_the_code_is_told_with_its_trace() -> None:
    def wrong(task: int) -> int:
        return {"a": 1}["b" * task]  # type: ignore[no-any-return]

    with pytest.raises(RuntimeError, match="replicate 2 failed: KeyError: 'bb'") as caught:
        with spread(wrong, [2, 3], workers=2) as done:
            list(done)
    assert "in wrong" in caught.value.__notes__[0]
    assert multiprocessing.active_children() == []


@linux
def test_ctrl_c_ends_the_workers_and_keeps_what_was_done() -> None:
    method = Exact(signal_above=2.0, signal=signal.SIGINT, to_parent=True)
    found = calibrate(method, replicates=70, workers=2)
    assert found.interrupted
    assert 0 < len(found.ranks) < 70
    assert "It was stopped before its end." in str(found)
    assert multiprocessing.active_children() == []
    whole = calibrate(Exact(), replicates=70)
    assert all(rank in whole.ranks.tolist() for rank in found.ranks.tolist())


@linux
def test_gradients_after_a_trace_do_not_keep_workers_from_theirs() -> None:
    script = """
        import torch
        from torch.fx.experimental.proxy_tensor import make_fx
        from ppl_gen.judge.workers import spread

        def slope(number):
            x = torch.tensor(float(number), requires_grad=True)
            x.square().backward()
            return x.grad.item()

        make_fx(torch.exp)(torch.ones(3))
        assert slope(1) == 2
        with spread(slope, [2, 3], workers=2) as done:
            print(sorted(done))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[4.0, 6.0]", done.stderr


def test_where_processes_cannot_be_forked_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.warns(RuntimeWarning, match="one after the other in this process, because"):
        found = calibrate(Exact(), replicates=5, workers=2)
    assert same(found, calibrate(Exact(), replicates=5))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=linux)])
def test_sums_are_those_of_one_thread(workers: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with spread(lambda _: torch.get_num_threads(), [0, 1], workers) as done:
            assert list(done) == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_no_random_numbers_are_used_twice() -> None:
    seeds = [seed for run in (0, 1) for index in (0, 1) for seed in seeds_of(run, index)]
    assert len(set(seeds)) == 12


SLEEP = """
import os, time
from ppl_gen.judge.replicates import seeds_of
from ppl_gen.judge.workers import spread
def work(task):
    print(os.getpid(), flush=True)
    time.sleep(100)
with spread(work, [0, 1], 2) as done:
    list(done)
"""


@linux
def test_copies_of_a_process_that_is_killed_end_with_it() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        copies = [int(process.stdout.readline()) for _ in range(2)]
        assert all(map(is_alive, copies))
        process.kill()
    limit = time.monotonic() + 20
    while any(map(is_alive, copies)):
        assert time.monotonic() < limit
        time.sleep(0.01)


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


# ---- on disk


@linux
def test_a_calibration_that_was_killed_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "ranks.jsonl"
    script = str(Path(exact_normal.__file__))
    process = subprocess.Popen([sys.executable, script, str(out), "100", "2"])
    limit = time.monotonic() + 100
    while not out.exists() or out.read_bytes().count(b"\n") < 10:
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.005)
    process.kill()
    process.wait()
    done = out.read_bytes().count(b"\n") - 1
    assert 9 <= done < 100
    assert Calibration.load(out).interrupted
    # Its copies have died with it, and let go of the file.
    while True:
        try:
            with only_writer(out):
                break
        except BlockingIOError:
            assert time.monotonic() < limit
    found = calibrate(Exact(), replicates=100, out=out, resume=True)
    assert same(found, calibrate(Exact(), replicates=100))
    assert same(found, Calibration.load(out))
    assert not Calibration.load(out).interrupted
    # What had been done was not done again.
    assert out.read_bytes().count(b"\n") == 101


def test_replicates_may_grow(tmp_path: Path) -> None:
    out = tmp_path / "folder" / "ranks.jsonl"
    method = Exact(fails_above=2.0)
    calibrate(method, replicates=12, out=out)
    whole = out.read_bytes()
    out.write_bytes(whole[:-10])  # the system has crashed
    calibrate(method, replicates=12, out=out, resume=True)
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())
    grown = calibrate(method, replicates=30, out=out, resume=True)
    assert same(grown, calibrate(method, replicates=30))
    assert same(grown, Calibration.load(out))
    again = calibrate(method, replicates=12, out=out, resume=True)
    assert same(again, calibrate(method, replicates=12))


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "ranks.jsonl"
    calibrate(Exact(), replicates=3, out=out, resume=True)
    before = out.read_bytes()
    with pytest.raises(FileExistsError, match=r"holds a calibration\. Pass resume=True"):
        calibrate(Exact(), replicates=3, out=out)
    assert out.read_bytes() == before
    other = tmp_path / "notes.txt"
    other.write_text("notes\n")
    for path in (other, tmp_path):
        with pytest.raises(FileExistsError, match="exists and cannot be gone on with"):
            calibrate(Exact(), replicates=3, out=path, resume=True)
    assert other.read_text() == "notes\n"
    with only_writer(out), pytest.raises(BlockingIOError, match="is writing to"):
        calibrate(Exact(), replicates=3, out=out, resume=True)


def wider(noise: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """As `normal`, with another prior: to be seen from what is simulated only."""
    normal(1.0 * noise, y)
    import pyro

    pyro.sample("other", pyro.distributions.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": {"noise": torch.tensor([0.5, 1.0, 3.0])}}, "data 'noise' was"),
        ({"method": Exact(stretch=2.0)}, "option 'stretch' was 1.0, is 2.0"),
        ({"method": NUTS(chains=1, draws=5, warmup=5)}, "option 'method' was Exact, is NUTS"),
        ({"seed": 1}, "option 'seed' was 0, is 1"),
        ({"max_rank": 49}, "option 'max_rank' was 99, is 49"),
        ({"pair": wider}, "simulation 'first data set' was"),
        (
            {"quantities": {"square": lambda values, data: values["mean"] ** 2}},
            "option 'quantities' was none, is square",
        ),
    ],
)
def test_another_calibration_is_refused(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"pair": normal, "data": DATA, "method": Exact(), "replicates": 3}
    options |= {"out": tmp_path / "ranks.jsonl", "progress": False}
    simulation_based_calibration(**options)
    with pytest.raises(ValueError, match="holds another calibration:") as caught:
        simulation_based_calibration(**{**options, "resume": True, **changed})
    assert message in str(caught.value)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "ranks.jsonl"
    calibrate(Exact(), replicates=3, out=out)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(lines[0])
    with pytest.raises(LoadError, match="no replicate is done yet"):
        Calibration.load(out)
    out.write_bytes(b"".join([lines[0], b"\0\0\0\n", *lines[2:]]))
    with pytest.raises(LoadError, match=r"line 2 of .* is damaged"):
        Calibration.load(out)
    out.write_bytes(b"".join([lines[0].replace(b": 1,", b": 2,", 1), *lines[1:]]))
    with pytest.raises(LoadError, match="another version"):
        Calibration.load(out)
    with pytest.raises(FileNotFoundError):
        Calibration.load(tmp_path / "none")


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    out = tmp_path / "ranks.jsonl"
    calibrate(Exact(fails_above=2.0), replicates=15, out=out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0]["max_rank"] == 99
    assert {tuple(line) for line in lines[1:]} == {
        ("replicate", "seed", "ranks", "independent_draws"),
        ("replicate", "seed", "failed"),
    }


# ---- fits that fail


def test_failed_fits_are_named_and_left_out() -> None:
    """The first observation is N(0, 1.25): 4 % are above 2."""
    found = calibrate(Exact(fails_above=2.0), replicates=60)
    whole = calibrate(Exact(), replicates=60)
    failed = [failure.replicate for failure in found.failures]
    assert failed
    assert found.ranks.tolist() == [
        r for i, r in enumerate(whole.ranks.tolist()) if i not in failed
    ]
    first = found.failures[0]
    assert first.message.startswith("ArithmeticError: ")
    assert f"{len(failed)} of 60 fits failed: replicate {first.replicate} (seed {first.seed})" in (
        str(found)
    )


def test_too_many_failed_fits_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"of \d+ fits failed, and more than 10% of 20 may not"):
        calibrate(Exact(fails_above=0.0), replicates=20)


def test_nan_among_the_draws_is_a_failed_fit() -> None:
    with pytest.raises(ValueError, match="'mean' is NaN among the draws"):
        calibrate(Exact(shift=float("nan")), replicates=20)
