"""Runs in a folder: killed at any moment, interrupted, or out of space, they go on bit for bit."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from runner import DATA, drawn, schools, transitions

from ppl_gen import Posterior, fit, load
from ppl_gen.core import LoadError, LogDensity, Pair
from ppl_gen.core.lock import only_writer
from ppl_gen.core.posterior import Outline
from ppl_gen.core.scope import isolated
from ppl_gen.inference import HMC, NUTS, SVI, RandomWalk
from ppl_gen.inference.mcmc.stream import SiteValues

# About a second: half of it in the warm-up.
LONG: dict[str, Any] = {"chains": 9, "draws": 4000, "warmup": 12000, "thinning": 3}
SHORT: dict[str, Any] = {"chains": 2, "draws": 50, "warmup": 60}


class Runner:
    """Starts fits in other processes, one at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "runner.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.child = 0

    def start(self, **job: Any) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        self.child = int(self._process.stdout.readline())

    def end(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def run(self, **job: Any) -> dict[str, Any]:
        self.start(**job)
        return self.end()

    def stop_when(self, signal_number: int, condition: Callable[[], bool]) -> dict[str, Any]:
        """Send a signal as soon as a condition holds."""
        limit = time.monotonic() + 60
        try:
            while not condition():
                assert time.monotonic() < limit
                time.sleep(0.002)
        except BaseException:
            signal_number = signal.SIGKILL
            raise
        finally:
            os.kill(self.child, signal_number)
            said = self.end()
        return said

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.communicate(timeout=30)


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    started = Runner()
    yield started
    started.close()


def assert_same(a: Posterior, b: Posterior) -> None:
    assert list(a.draws) == list(b.draws)
    assert list(a.sample_stats) == list(b.sample_stats)
    assert a.num_draws == b.num_draws
    for mine, theirs in (
        (a.draws, b.draws),
        (a.sample_stats, b.sample_stats),
        (a.divergences, b.divergences),
    ):
        for name in mine:
            assert mine[name].dtype == theirs[name].dtype
            assert torch.equal(mine[name], theirs[name]), name
    assert a.divergence_chain is not None
    assert b.divergence_chain is not None
    assert torch.equal(a.divergence_chain, b.divergence_chain)
    for name in ("gradient_evaluations", "options", "seed", "engine", "dtype"):
        assert a.provenance[name] == b.provenance[name]


@pytest.fixture(scope="module")
def whole() -> Posterior:
    """The run that nobody stopped, in memory."""
    return fit(schools, DATA, NUTS(**LONG), progress=False)


def test_a_folder_holds_what_memory_would(whole: Posterior, tmp_path: Path) -> None:
    out = tmp_path / "run"
    streamed = fit(schools, DATA, NUTS(**LONG), progress=False, out=out)
    assert_same(streamed, whole)
    assert_same(load(out), whole)
    assert not streamed.interrupted
    assert streamed.warnings == load(out).warnings
    assert streamed.dims == whole.dims
    assert streamed.coords == whole.coords
    assert int(whole.sample_stats["diverging"].sum()) > 0
    assert whole["share"].sum(-1).allclose(torch.ones(1, dtype=torch.float64))


def test_values_do_not_depend_on_the_portions_that_draws_come_in() -> None:
    def model(weights: torch.Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(10), 1.0).to_event(1))
        pyro.sample("share", dist.Dirichlet(torch.ones(4)))
        pyro.deterministic("mean", x @ weights)

    # On other shapes a product of matrices and the end of a vector are rounded differently.
    density = LogDensity(model, {"weights": torch.randn(10, 7, dtype=torch.float64).sin()})
    with isolated(0, torch.float64):
        outline = Outline.of(
            Posterior({}, tuple(density.sites), pair=density.pair, data=density.data)
        )
        vectors = torch.randn(1700, density.dim)
    values = SiteValues(density, outline)
    whole = values(vectors, 0)
    torch.testing.assert_close(whole["mean"], whole["x"] @ density.data["weights"])
    stops = [0, 1, 8, 501, 999, 1003, 1700]
    parts = [values(vectors[a:b], a) for a, b in itertools.pairwise(stops)]
    for site, value in whole.items():
        assert torch.equal(torch.cat([part[site] for part in parts]), value)


def test_xarray_reads_the_draws(tmp_path: Path) -> None:
    out = tmp_path / "run"
    posterior = fit(schools, DATA, NUTS(**SHORT), progress=False, out=out)
    with xarray.open_zarr(out / "draws.zarr", group="posterior", consolidated=False) as read:
        assert read["theta"].dims == ("chain", "draw", "school")
        assert read["theta"].shape == (2, 50, 8)
        assert torch.equal(torch.from_numpy(read["theta"].values), posterior["theta"])
    with xarray.open_zarr(out / "draws.zarr", group="sample_stats", consolidated=False) as read:
        assert read["energy"].dims == ("chain", "draw")
        assert read["diverging"].dtype == bool


@pytest.mark.parametrize("phase", ["warm-up", "sampling"])
def test_a_killed_run_goes_on_bit_for_bit(
    phase: str, whole: Posterior, runner: Runner, tmp_path: Path
) -> None:
    out = tmp_path / "run"

    def reached() -> bool:
        made = transitions(out)
        if not made:
            return False
        return phase == "warm-up" or min(made) > LONG["warmup"] + 300

    runner.start(out=str(out), method="NUTS", options=LONG)
    assert runner.stop_when(signal.SIGKILL, reached)["status"] == -signal.SIGKILL
    made = transitions(out)
    assert min(made) < LONG["warmup"] if phase == "warm-up" else min(made) > LONG["warmup"]
    count = drawn(out)
    if phase == "sampling":
        # What is there can be looked at, with nothing but the folder.
        part = load(out)
        assert part.interrupted
        assert 0 < part.num_draws == count < LONG["draws"]
        assert torch.equal(part["theta"], whole["theta"][:, :count])
        assert part.provenance["seconds"] > 0
    else:
        with pytest.raises(LoadError, match="no draws yet"):
            load(out)
    # A different number of threads, because this process may have more or fewer processors.
    assert_same(fit(schools, DATA, NUTS(**LONG), progress=False, out=out, resume=True), whole)
    assert_same(load(out), whole)


def test_a_run_killed_again_and_again_at_random(
    whole: Posterior, runner: Runner, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    moments = random.Random(0)
    for _ in range(7):
        runner.start(out=str(out), method="NUTS", options=LONG, resume=True)
        time.sleep(moments.uniform(0.0, 0.4))
        os.kill(runner.child, signal.SIGKILL)
        runner.end()
    assert runner.run(out=str(out), method="NUTS", options=LONG, resume=True)["status"] == 0
    assert_same(load(out), whole)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("NUTS", {"chains": 2, "draws": 15, "warmup": 25, "engine": "eager", "max_tree_depth": 4}),
        ("HMC", LONG | {"metric": "diag"}),
        ("RandomWalk", LONG | {"chains": 3, "draws": 20000, "metric": "low_rank"}),
        ("NUTS", LONG | {"metric": "low_rank", "adaptation": "variance"}),
    ],
)
def test_every_engine_and_kernel_goes_on(
    name: str, options: dict[str, Any], runner: Runner, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    method = {"NUTS": NUTS, "HMC": HMC, "RandomWalk": RandomWalk}[name](**options)
    runner.start(out=str(out), method=name, options=options)
    runner.stop_when(signal.SIGKILL, lambda: bool(transitions(out)))
    runner.start(out=str(out), method=name, options=options, resume=True)
    before = transitions(out)
    runner.stop_when(signal.SIGKILL, lambda: sum(transitions(out)) > sum(before))
    resumed = fit(schools, DATA, method, progress=False, out=out, resume=True)
    assert_same(resumed, fit(schools, DATA, method, progress=False))


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    out = tmp_path / "run"
    whole = fit(schools, DATA, NUTS(**SHORT), progress=False, out=out)
    manifest = json.loads((out / "posterior.json").read_text())
    (out / "posterior.json").write_text(json.dumps(manifest | {"counts": None, "files": {}}))
    from safetensors.torch import save_file

    save_file({}, out / "state.safetensors")
    with pytest.raises(LoadError, match="no draws yet"):
        load(out)
    assert_same(fit(schools, DATA, NUTS(**SHORT), progress=False, out=out, resume=True), whole)


def test_a_second_process_is_refused_and_a_killed_one_lets_go(
    whole: Posterior, runner: Runner, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    lock = tmp_path / ".run.lock"
    runner.start(out=str(out), method="NUTS", options=LONG)

    def refused_here() -> bool:
        if not transitions(out):
            return False
        for resume in (True, False):
            with pytest.raises(BlockingIOError, match=rf"process \(id {runner.child}\) is writing"):
                fit(schools, DATA, NUTS(**LONG), progress=False, out=out, resume=resume)
        return True

    assert runner.stop_when(signal.SIGKILL, refused_here)["status"] == -signal.SIGKILL
    assert lock.exists()
    assert_same(fit(schools, DATA, NUTS(**LONG), progress=False, out=out, resume=True), whole)
    assert list(tmp_path.iterdir()) == [out]


def test_two_processes_cannot_make_one_folder(
    whole: Posterior, runner: Runner, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    runner.start(out=str(out), method="NUTS", options=LONG)
    errors = []
    try:  # at the same time: either may be the first
        fit(schools, DATA, NUTS(**LONG), progress=False, out=out)
    except OSError as error:
        errors.append(str(error))
    errors += [text for key, text in runner.end().items() if key == "error"]
    assert len(errors) == 1, errors
    assert "is writing to" in errors[0] or "holds a run" in errors[0]
    assert_same(load(out), whole)


def test_a_folder_is_not_extended_by_two(whole: Posterior, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(schools, DATA, NUTS(**SHORT), progress=False, out=out)
    loaded = load(out, pair=schools)
    with only_writer(out), pytest.raises(BlockingIOError, match=f"id {os.getpid()}"):
        loaded.extend(3, progress=False)
    assert loaded.extend(3, progress=False).num_draws == SHORT["draws"] + 3


def test_other_versions_are_told(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(schools, DATA, NUTS(**SHORT), progress=False, out=out)
    manifest = json.loads((out / "posterior.json").read_text())
    versions = manifest["provenance"]["versions"]
    assert {"ppl-gen", "torch", "numpy", "pyro-ppl"} <= versions.keys()
    manifest["provenance"]["versions"] = {**versions, "torch": "2.9.1", "ppl-gen": "0.0.9"}
    (out / "posterior.json").write_text(json.dumps(manifest))
    # What is there already is as it was.
    fit(schools, DATA, NUTS(**SHORT), progress=False, out=out, resume=True)
    loaded = load(out, pair=schools)
    told = r"made with ppl-gen 0\.0\.9 \(now .*\), torch 2\.9\.1 \(now .*\): the draws to come"
    with pytest.warns(RuntimeWarning, match=told):
        fit(schools, DATA, NUTS(**SHORT | {"draws": 60}), progress=False, out=out, resume=True)
    with pytest.warns(RuntimeWarning, match=told):
        loaded.extend(20, progress=False)


def test_ctrl_c_while_sampling_keeps_what_there_is_in_the_folder(
    whole: Posterior, runner: Runner, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    runner.start(out=str(out), method="NUTS", options=LONG)
    said = runner.stop_when(signal.SIGINT, lambda: drawn(out) > 20)
    assert said["interrupted"], said
    part = load(out)
    assert part.interrupted
    assert 20 < part.num_draws == said["draws"] < LONG["draws"]
    for site in whole.draws:
        assert torch.equal(part[site], whole[site][:, : part.num_draws])
    assert_same(fit(schools, DATA, NUTS(**LONG), progress=False, out=out, resume=True), whole)


def test_ctrl_c_while_sampling_in_memory(runner: Runner, tmp_path: Path) -> None:
    options = {"chains": 9, "draws": 200_000, "warmup": 50}  # ten seconds or so
    shown = tmp_path / "progress"
    shown.touch()
    runner.start(
        out=None,
        save=str(tmp_path / "saved"),
        progress=str(shown),
        method="NUTS",
        options=options,
    )
    said = runner.stop_when(signal.SIGINT, lambda: "chains sampling" in shown.read_text())
    assert said["interrupted"], said
    part = load(tmp_path / "saved", pair=schools)
    assert part.interrupted
    assert 0 < part.num_draws == said["draws"] < 200_000
    few = min(part.num_draws, 500)
    first = fit(schools, DATA, NUTS(chains=9, draws=few, warmup=50), progress=False)
    for site in first.draws:
        assert torch.equal(part[site][:, :few], first[site])
    with pytest.raises(ValueError, match="It was interrupted"):
        part.extend(10)


def test_ctrl_c_in_warm_up(whole: Posterior, runner: Runner, tmp_path: Path) -> None:
    out = tmp_path / "run"
    runner.start(out=str(out), method="NUTS", options=LONG)
    said = runner.stop_when(signal.SIGINT, lambda: bool(transitions(out)))
    assert said["error"].startswith("KeyboardInterrupt: NUTS was interrupted in warm-up"), said
    assert "resume=True" in said["error"]
    assert_same(fit(schools, DATA, NUTS(**LONG), progress=False, out=out, resume=True), whole)


@pytest.mark.parametrize("how", ["full", "limit"])
def test_a_full_disk(how: str, runner: Runner, tmp_path: Path) -> None:
    out = tmp_path / "disk" / "run"
    out.parent.mkdir()
    options = {"chains": 2, "draws": 40_000, "warmup": 300}  # 18 MB of draws
    job: dict[str, Any] = {"out": str(out), "method": "NUTS", "options": options}
    whole = fit(schools, DATA, NUTS(**options), progress=False)
    if how == "limit":
        job["file_size"] = 1000
    else:
        mount = ["mount", "-t", "tmpfs", "-o", "size=14m", "tmpfs", str(out.parent)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a small disk")
    try:
        said = runner.run(**job)
        count = drawn(out)
        assert "resume=True" in said.get("error", ""), said
        assert f": {count} draws of each chain are kept in {out}" in said.get("error", ""), said
        assert ("No space left" if how == "full" else "File too large") in said["error"]
        part = load(out)
        assert 0 < part.num_draws == count < 40_000
        for site in whole.draws:
            assert torch.equal(part[site], whole[site][:, :count])
        if how == "full":
            subprocess.run(["mount", "-o", "remount,size=100m", str(out.parent)], check=True)
        assert runner.run(**job | {"resume": True, "file_size": 10**9})["status"] == 0
        assert_same(load(out), whole)
    finally:
        if how == "full":
            subprocess.run(["umount", "-l", str(out.parent)], check=True)


def test_memory_does_not_grow_with_the_draws(runner: Runner, tmp_path: Path) -> None:
    # 50 numbers and 7 statistics in each of 2 chains: 9 MB of draws, and 90 MB. Many pieces are
    # read at a time, few where there are few. In memory the longer run takes 240 MB more.
    options = {"chains": 2, "warmup": 100, "metric": "diag"}
    used = []
    for draws in (10_000, 100_000):
        said = runner.run(
            out=str(tmp_path / str(draws)),
            method="NUTS",
            options=options | {"draws": draws},
            model="normal",
            often=False,
        )
        assert said.get("draws") == draws, said
        used.append(said["memory"] / 1024)
    assert used[1] < used[0] + 80, used
    posterior = load(tmp_path / "100000")
    assert posterior["x"].shape == (2, 100_000, 50)
    assert abs(float(posterior["x"].mean())) < 0.01


def reworded(y: torch.Tensor, sigma: torch.Tensor) -> None:
    """As `schools`, but for one number in the code."""
    mu = pyro.sample("mu", dist.Normal(0.0, 6.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("school", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def smaller(y: torch.Tensor, sigma: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("school", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def test_another_run_is_refused_with_the_difference(tmp_path: Path) -> None:
    out = tmp_path / "run"
    method = NUTS(**SHORT)
    fit(schools, DATA, method, progress=False, out=out)

    def resume(
        model: Any = schools, data: Any = DATA, method: Any = method, seed: int = 0
    ) -> Posterior:
        return fit(model, data, method, seed=seed, progress=False, out=out, resume=True)

    changed = DATA | {"y": DATA["y"] + torch.eye(8)[0]}
    with pytest.raises(ValueError, match=r"data 'y' was \(8,\) float32 with digest") as refused:
        resume(data=changed)
    assert "sigma" not in str(refused.value)
    with pytest.raises(ValueError, match=r"option 'seed' was 0, is 1"):
        resume(seed=1)
    with pytest.raises(ValueError, match=r"option 'target_accept' was 0.8, is 0.9"):
        resume(method=NUTS(**SHORT, target_accept=0.9))
    with pytest.raises(ValueError, match=r"option 'draws' was 50, is 40"):
        resume(method=NUTS(**SHORT | {"draws": 40}))
    with pytest.raises(ValueError, match=r"option 'method' was NUTS, is HMC"):
        resume(method=HMC(**SHORT))
    with pytest.raises(ValueError, match=r"site 'tau' was latent HalfCauchy .*, is none"):
        resume(model=smaller)
    with pytest.raises(ValueError, match=r"where chain 0 is, its log density was"):
        resume(model=reworded)
    with pytest.raises(FileExistsError, match=r"holds a run. Pass resume=True"):
        fit(schools, DATA, method, progress=False, out=out)
    assert resume().num_draws == 50


def test_parameters_of_the_pair_are_compared(tmp_path: Path) -> None:
    class Scaled(Pair):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(scale))

        def model(self, y: torch.Tensor) -> None:
            x = pyro.sample("x", dist.Normal(0.0, self.scale))
            with pyro.plate("rows", len(y)):
                pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    out = tmp_path / "run"
    data = {"y": torch.ones(3)}
    fit(Scaled(1.0), data, NUTS(**SHORT), progress=False, out=out)
    with pytest.raises(ValueError, match=r"parameter 'scale' was \(\) float32 with digest"):
        fit(Scaled(2.0), data, NUTS(**SHORT), progress=False, out=out, resume=True)


def test_folders_that_are_no_run(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    posterior = fit(schools, DATA, NUTS(**SHORT), progress=False, out=mine)  # it is empty
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match="exists and is no run"):
            fit(
                schools,
                DATA,
                NUTS(**SHORT),
                progress=False,
                out=tmp_path / "other",
                resume=resume,
            )
    saved = posterior.save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"written by posterior.save\(\)"):
        fit(schools, DATA, NUTS(**SHORT), progress=False, out=saved, resume=True)
    again = fit(schools, DATA, NUTS(**SHORT), progress=False, out=tmp_path / "x", resume=True)
    assert_same(again, posterior)


def test_svi_and_pyros_kernels_write_theirs_at_the_end(tmp_path: Path) -> None:
    methods: list[Any] = [
        SVI(steps=5, draws=7),
        NUTS(chains=2, draws=3, warmup=3, engine="pyro"),
    ]
    for number, method in enumerate(methods):
        out = tmp_path / str(number)
        first = fit(schools, DATA, method, progress=False, out=out)
        assert torch.equal(load(out)["mu"], first["mu"])
        again = fit(schools, DATA, method, progress=False, out=out, resume=True)
        assert torch.equal(again["mu"], first["mu"])
        with pytest.raises(FileExistsError):
            fit(schools, DATA, method, progress=False, out=out)
        with pytest.raises(ValueError, match="option 'seed'"):
            fit(schools, DATA, method, seed=1, progress=False, out=out, resume=True)
        with pytest.raises(ValueError, match="cannot be extended here"):
            again.extend(3)


def test_provenance_says_which_engine_ran_and_how_long(tmp_path: Path) -> None:
    facts = fit(schools, DATA, NUTS(**SHORT), progress=False, out=tmp_path / "run").provenance
    assert facts["engine"] == "compiled"
    assert 0 < facts["compile_seconds"] < facts["seconds_to_first_draw"] < facts["seconds"]


def test_divergences_are_where_the_sampler_left_the_typical_set(whole: Posterior) -> None:
    assert whole.divergence_chain is not None
    count = len(whole.divergence_chain)
    assert count > 0
    for site, value in whole.divergences.items():
        assert value.shape == (count, *whole[site].shape[2:])
        assert torch.isfinite(value).all()
    assert (whole.divergences["tau"] > 0).all()
    sums = (
        whole.divergences["mu"][:, None]
        + whole.divergences["tau"][:, None] * whole.divergences["z"]
    )
    torch.testing.assert_close(whole.divergences["theta"], sums)
    # Those of transitions that thinning left out are among them.
    kept = whole.sample_stats["diverging"].sum(dim=1)
    assert (torch.bincount(whole.divergence_chain, minlength=9) >= kept.clamp(max=200)).all()
