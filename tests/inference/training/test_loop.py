"""Training by steps: options, what is skipped, restarts, and runs that are killed."""

import functools
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_gen as pg
from ppl_gen.core import NonFiniteLossError
from ppl_gen.core.errors import LoadError
from ppl_gen.core.store import Run, read
from ppl_gen.inference import SVI, EpochInfo
from ppl_gen.models import BayesianLinearRegression, EightSchools

X = torch.linspace(-1, 1, 60)
NOISE = torch.randn(60, generator=torch.Generator().manual_seed(3))


class Line(pg.Pair):
    """y ~ N(slope x, 1), slope ~ N(0, 1): posterior N(x'y / (x'x + 1), 1 / (x'x + 1))."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0))
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def model(self, x: torch.Tensor, y: torch.Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    def guide(self, x: torch.Tensor, y: torch.Tensor) -> None:
        pyro.sample("slope", dist.Normal(self.loc, self.log_scale.exp()))


DATA = {"x": X, "y": 2 * X + NOISE}
PRECISION = float(X @ X + 1)
MEAN, SD = float(X @ DATA["y"]) / PRECISION, PRECISION**-0.5


def params(posterior: pg.Posterior) -> dict[str, torch.Tensor]:
    assert posterior.pair is not None
    return {name: value.detach() for name, value in posterior.pair.named_parameters()}


@pytest.mark.parametrize("batch_size", [None, 20])
def test_without_options_it_finds_its_steps(batch_size: int | None) -> None:
    """Held to a KL divergence of ten times the tolerance, 0.1 nats: 0.45 sd, or 25 % of the sd."""
    posterior = pg.fit(Line(), DATA, SVI(guide="pair", batch_size=batch_size), progress=False)
    assert posterior.provenance["converged"] is True
    assert not posterior.warnings
    found = params(posterior)
    assert found["loc"].item() == pytest.approx(MEAN, abs=0.45 * SD)
    assert found["log_scale"].exp().item() == pytest.approx(SD, rel=0.25)


def test_too_few_steps_are_told() -> None:
    method = SVI(guide="pair", steps=600, learning_rate=1e-3)
    pair = Line()
    with torch.no_grad():
        pair.log_scale.fill_(-3.0)  # else its noise hides what happens
    posterior = pg.fit(pair, {"x": X, "y": 20 * X}, method, progress=False)
    assert posterior.provenance["converged"] is False
    assert "still falling when the step size began to shrink" in posterior.warnings[0]


def test_standardised_steps_fit_raw_scales() -> None:
    """Features of scales from 0.01 to 100: one step size suits none without units.

    Stochastic steps leave up to 0.1 sd and 10 %, of which the draws make 0.04 sd and 3 %.
    """
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 2, generator=generator) * torch.tensor([100.0, 0.01])
    y = x @ torch.tensor([0.01, 50.0]) + torch.randn(200, generator=generator)
    pair = BayesianLinearRegression(
        num_features=2, intercept=False, noise_scale=1.0, prior_scale=100.0
    )
    exact = pair.exact_posterior(x, y)
    method = SVI(guide="full_rank", batch_size=50, steps=1500)
    draws = pg.fit(pair, {"x": x, "y": y}, method, progress=False)["weights"][0]
    sd = exact.covariance.diagonal().sqrt()
    assert ((draws.mean(0) - exact.mean) / sd).abs().max() < 0.14
    torch.testing.assert_close(draws.std(0), sd, rtol=0.13, atol=0.0)


def test_the_optimizer_and_scheduler_of_the_user() -> None:
    rates: list[float] = []

    def note(info: EpochInfo) -> None:
        rates.append(info.loss)

    method = SVI(
        guide="pair",
        steps=300,
        optimizer=functools.partial(torch.optim.SGD, lr=0.02, momentum=0.5),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99),
        clip_norm=5.0,
        callback=note,
    )
    posterior = pg.fit(Line(), DATA, method, progress=False)
    assert params(posterior)["loc"].item() == pytest.approx(MEAN, abs=0.5 * SD)
    assert len(rates) == 3


def test_gradients_are_clipped() -> None:
    """With plain steps of size 1 the parameters move by the clipped norm, no further."""
    method = SVI(
        guide="pair",
        steps=1,
        optimizer=functools.partial(torch.optim.SGD, lr=1.0),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        clip_norm=0.25,
    )
    moved = torch.stack(list(params(pg.fit(Line(), DATA, method, progress=False)).values()))
    assert moved.norm().item() == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)},
            TypeError,
            "makes",
        ),
        ({"optimizer": torch.optim.SGD, "learning_rate": 0.1}, ValueError, "both given"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm: expected a positive number"),
        ({"restarts": 0}, ValueError, "restarts: expected at least 1"),
    ],
)
def test_options_that_do_not_go(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SVI(guide="pair", **options)


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    pair = Line()
    method = SVI(
        guide="pair", steps=3, optimizer=lambda _: torch.optim.Adam(pair.parameters(), lr=0.1)
    )
    with pytest.raises(ValueError, match="2 of its 2 parameters are not those of the copy"):
        pg.fit(pair, DATA, method, progress=False)
    with pytest.raises(TypeError, match="got NoneType from it"):
        pg.fit(pair, DATA, SVI(guide="pair", steps=3, optimizer=lambda _: None), progress=False)  # type: ignore[arg-type,return-value]


class Hiccup(Line):
    """Its loss is NaN in some of its runs."""

    def __init__(self, bad: tuple[int, ...]) -> None:
        super().__init__()
        self.bad = bad
        self.runs = 0

    def guide(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.runs += 1
        broken = float("nan") if self.runs in self.bad else 1.0
        pyro.sample("slope", dist.Normal(self.loc * broken, self.log_scale.exp()))


@pytest.mark.filterwarnings("ignore:.*runs model and guide anew")  # for its counter
def test_a_step_whose_loss_is_not_finite_is_skipped() -> None:
    method = SVI(guide="pair", steps=60, learning_rate=0.05)
    posterior = pg.fit(Hiccup((20, 21, 30)), DATA, method, progress=False)
    assert posterior.history is not None
    # A look at what was not finite runs the guide again, and may meet the next fault.
    skipped = 60 - len(posterior.history)
    assert 1 <= skipped <= 3
    assert any(f"{skipped} of 60 steps were skipped" in text for text in posterior.warnings)
    with pytest.raises(NonFiniteLossError, match=r"site 'slope'.*More steps were no better"):
        pg.fit(Hiccup(tuple(range(20, 90))), DATA, method, progress=False)


def test_restarts_return_the_best_and_tell_of_the_others() -> None:
    class Folded(pg.Pair):
        """Two modes, of which the guide finds one by where its network starts."""

        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Linear(1, 1)
            self.log_scale = nn.Parameter(torch.tensor(-2.0))

        def model(self) -> None:
            mixture = dist.Categorical(torch.tensor([0.98, 0.02]))
            parts = dist.Normal(torch.tensor([4.0, -4.0]), 0.5)
            pyro.sample("z", dist.MixtureSameFamily(mixture, parts))

        def guide(self) -> None:
            loc = 4 * self.place(torch.ones(1))[0]
            pyro.sample("z", dist.Normal(loc, self.log_scale.exp()))

    torch.manual_seed(0)
    pair = Folded()
    with torch.no_grad():
        pair.place.weight.fill_(-0.6)
        pair.place.bias.fill_(-0.4)
    method = SVI(guide="pair", steps=300, learning_rate=0.05, restarts=6)
    posterior = pg.fit(pair, {}, method, progress=False)
    assert posterior["z"].mean().item() == pytest.approx(4.0, abs=0.3)
    bounds = posterior.provenance["elbos_of_restarts"]
    assert len(bounds) == 6
    assert bounds[0] < -3
    assert posterior.elbo is not None
    assert posterior.elbo[0] == max(bounds)
    assert any("restarts ended in a worse optimum" in text for text in posterior.warnings)
    assert params(posterior)["place.bias"].item() != pytest.approx(-0.4)


def test_plain_vi_fits_a_density_without_a_mode() -> None:
    """Centred eight schools: the density grows without bound as tau goes to zero.

    The optimum of the mean-field guide is known: a gap of 2.10 nats to the evidence. 1,000 draws
    have an error of 0.03 in it.
    """
    posterior = pg.fit(EightSchools(centered=True), EightSchools.data(), SVI(), progress=False)
    assert posterior.elbo is not None
    assert -31.31135 - posterior.elbo[0] == pytest.approx(2.10, abs=0.1)


# Runs that are killed.

SCRIPT = """
    import sys, time
    import torch
    import ppl_gen as pg
    from ppl_gen.inference import SVI
    from ppl_gen.inference.training import keeper
    sys.path.insert(0, {tests!r})
    from test_loop import DATA, Line, slow

    keeper._SECONDS = keeper._SHARE = 1e-9  # after every step
    pg.fit(Line(), DATA, slow({options}), out={out!r}, progress=False)
"""


class _Slow:
    """Takes its time at each epoch, so that a run can be killed in the middle of it."""

    def __call__(self, info: EpochInfo) -> None:
        if "PPL_GEN_SLOW" in os.environ:
            print(info.step, flush=True)
            signal.pause() if info.epoch == 5 else None

    def __repr__(self) -> str:
        return "slow"


def slow(**options: Any) -> SVI:
    return SVI(guide="pair", batch_size=16, callback=_Slow(), draws=50, **options)


@pytest.mark.parametrize("options", [{"epochs": 12}, {}])
def test_a_killed_run_ends_with_the_very_numbers(options: dict[str, Any], tmp_path: Path) -> None:
    """Killed by SIGKILL in its fifth epoch; the last checkpoint is then spoilt as well."""
    out = tmp_path / "run"
    listed = ", ".join(f"{name}={value}" for name, value in options.items())
    script = SCRIPT.format(tests=str(Path(__file__).parent), options=listed, out=str(out))
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PPL_GEN_SLOW": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "20":  # four steps an epoch
            break
    process.kill()
    process.wait()
    process.stdout.close()
    with pytest.raises(LoadError, match="no draws yet"):
        pg.load(out, Line())
    newest = out / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.warns(RuntimeWarning, match="The checkpoint before it is used"):
        resumed = pg.fit(Line(), DATA, slow(**options), out=out, resume=True, progress=False)
    whole = pg.fit(Line(), DATA, slow(**options), progress=False)
    assert resumed.history is not None
    assert whole.history is not None
    assert torch.equal(resumed.history, whole.history)
    assert torch.equal(resumed["slope"], whole["slope"])
    assert all(
        torch.equal(a, b)
        for a, b in zip(params(resumed).values(), params(whole).values(), strict=True)
    )
    assert resumed.elbo == whole.elbo
    assert torch.equal(pg.load(out, Line())["slope"], whole["slope"])


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    def interrupt(info: EpochInfo) -> None:
        if info.epoch == 3 and not (tmp_path / "again").exists():
            signal.raise_signal(signal.SIGINT)

    method = SVI(guide="pair", steps=700, callback=interrupt, draws=20)
    stopped = pg.fit(Line(), DATA, method, out=tmp_path / "run", progress=False)
    assert stopped.interrupted
    assert stopped.history is not None
    assert len(stopped.history) == 300
    with pytest.raises(ValueError, match="cannot be extended"):
        stopped.extend(10)
    (tmp_path / "again").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = pg.fit(Line(), DATA, method, out=tmp_path / "run", resume=True, progress=False)
    whole = pg.fit(Line(), DATA, method, progress=False)
    assert torch.equal(resumed["slope"], whole["slope"])
    assert not resumed.interrupted


def test_a_run_of_another_model_is_not_gone_on_with(tmp_path: Path) -> None:
    method = SVI(guide="pair", steps=5)
    pg.fit(Line(), DATA, method, out=tmp_path / "run", progress=False)
    other = {"x": X, "y": DATA["y"] + 1}
    with pytest.raises(ValueError, match="data 'y' was"):
        pg.fit(Line(), other, method, out=tmp_path / "run", resume=True, progress=False)
    pair = Line()
    with torch.no_grad():
        pair.loc.fill_(1.0)
    with pytest.raises(ValueError, match="parameter 'loc' was"):
        pg.fit(pair, DATA, method, out=tmp_path / "run", resume=True, progress=False)


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    posterior = pg.fit(Line(), DATA, SVI(guide="pair", steps=2), out=tmp_path, progress=False)
    assert torch.equal(pg.load(tmp_path, Line())["slope"], posterior["slope"])


def test_a_step_size_that_fails_is_not_the_end() -> None:
    """The scale becomes negative under the larger steps that are tried."""

    class Raw(Line):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.05))
            del self.log_scale

        def guide(self, x: torch.Tensor, y: torch.Tensor) -> None:
            pyro.sample("slope", dist.Normal(self.loc, self.scale))

    posterior = pg.fit(Raw(), DATA, SVI(guide="pair"), progress=False)
    assert posterior.provenance["converged"] is True
    assert params(posterior)["scale"].item() == pytest.approx(SD, rel=0.25)


@pytest.mark.filterwarnings("ignore:.*runs model and guide anew")  # for its branch
def test_ctrl_c_in_the_middle_of_a_step_waits_for_its_end(tmp_path: Path) -> None:
    runs, out = 0, tmp_path / "run"

    class Stopped(Line):
        def guide(self, x: torch.Tensor, y: torch.Tensor) -> None:
            nonlocal runs
            slope = pyro.sample("slope", dist.Normal(self.loc, self.log_scale.exp()))
            if slope.item() > 1e6:  # a branch, so that each step runs the guide
                raise AssertionError
            runs += 1
            if runs == 77:
                signal.raise_signal(signal.SIGINT)

    method = SVI(guide="pair", steps=150, learning_rate=0.01, draws=20)
    stopped = pg.fit(Stopped(), DATA, method, out=out, progress=False)
    assert stopped.interrupted
    assert stopped.history is not None
    assert 50 < len(stopped.history) < 100
    resumed = pg.fit(Stopped(), DATA, method, out=out, resume=True, progress=False)
    whole = pg.fit(Stopped(), DATA, method, progress=False)
    assert torch.equal(resumed["slope"], whole["slope"])


def test_a_folder_taken_up_again_keeps_its_checkpoint(tmp_path: Path) -> None:
    def interrupt(info: EpochInfo) -> None:
        signal.raise_signal(signal.SIGINT)

    method = SVI(guide="pair", steps=300, callback=interrupt)
    pg.fit(Line(), DATA, method, out=tmp_path / "run", progress=False)
    Run.reopen(tmp_path / "run")  # and killed before it could write anything
    kept = read(tmp_path / "run", Line())
    assert kept is not None
    assert kept.checkpoint


def test_an_interrupted_restart_is_told() -> None:
    calls = 0

    def interrupt(info: EpochInfo) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            signal.raise_signal(signal.SIGINT)

    method = SVI(guide="pair", steps=200, restarts=4, callback=interrupt)
    posterior = pg.fit(Line(), DATA, method, progress=False)
    assert posterior.interrupted
    assert "Interrupted in restart 2 of 4." in posterior.warnings


def test_a_scheduler_that_looks_at_the_loss() -> None:
    method = SVI(
        guide="pair",
        steps=50,
        optimizer=functools.partial(torch.optim.SGD, lr=0.01),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
    )
    posterior = pg.fit(Line(), DATA, method, progress=False)
    assert posterior.history is not None
    assert len(posterior.history) == 50


def test_a_callback_leaves_the_mode_of_the_modules() -> None:
    pair = Line().eval()
    method = SVI(guide="mean_field", steps=100, callback=lambda info: None)
    posterior = pg.fit(pair, DATA, method, progress=False)
    assert posterior.pair is not None
    assert not posterior.pair.training


def test_rows_with_gaps_between_them() -> None:
    """A model that puts rows together reshapes what is no longer one piece of memory."""

    class Tokens(pg.Pair):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Linear(3, 1)

        def model(self, x: torch.Tensor) -> None:
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("fit", -self.loc(x.reshape(-1, 3)).square().sum())

        def guide(self, x: torch.Tensor) -> None:
            pyro.sample("z", dist.Normal(self.loc.bias[0], 1.0))

    x = torch.randn(40, 5, 3, generator=torch.Generator().manual_seed(0))[0::2]
    found = [
        pg.fit(Tokens(), {"x": data}, SVI(guide="pair", steps=5), progress=False).history
        for data in (x, x.contiguous())
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert len(found[0]) == len(found[1]) == 5


def test_precision_that_is_not_there_to_leave() -> None:
    method = SVI(guide="full_rank", batch_size=10, autocast=torch.bfloat16)
    with pytest.raises(ValueError, match=r"this one is in float64. Give dtype=torch.float32"):
        pg.fit(Line(), DATA, method, progress=False)
