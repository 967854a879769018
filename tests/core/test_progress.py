"""Progress: what a terminal shows, what a log shows, and when neither shows anything."""

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from ppl_gen.core import progress
from ppl_gen.core.progress import Display, ProgressBar, Speed, announced, clock
from ppl_gen.inference.mcmc.progress import ChainProgress
from ppl_gen.inference.mcmc.state import Kernel, State, new_state


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return Terminal()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    # Rich alone would take this for a terminal.
    monkeypatch.setenv("FORCE_COLOR", "1")
    return io.StringIO()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which the test sets."""
    seconds = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    return seconds


def chains_at(transitions: list[int], kernel: Kernel = Kernel.NUTS) -> State:
    count = len(transitions)
    state = new_state(
        torch.device("cpu"),
        dim=1,
        # Lanes that only fill up a vector come after those that run.
        chains=count + 3,
        warmup=1000,
        thinning=2,
        kernel=int(kernel),
        metric=0,
        max_tree_depth=1,
        max_steps=1,
        max_rank=0,
        chunk=1,
        memory=1,
        divergence_capacity=1,
        target_accept=0.8,
        path_length=1.0,
        max_energy_error=1000.0,
    )
    state.transition[:count] = torch.tensor(transitions)
    state.divergences[:count] = torch.arange(count)
    state.step_size[:count] = torch.linspace(0.1, 0.5, count, dtype=torch.float64)
    return state


def rendered(display: Display, width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(display.table(width))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_short_run_shows_nothing(terminal: Terminal, now: list[float]) -> None:
    with redirect_stderr(terminal), ProgressBar("SVI", 100, enabled=True) as bar:
        for _ in range(100):
            now[0] += 0.0199
            bar.advance()
    assert terminal.getvalue() == ""


def test_nothing_is_shown_unless_enabled(terminal: Terminal, now: list[float]) -> None:
    with redirect_stderr(terminal), ProgressBar("SVI", 100, enabled=False) as bar:
        for _ in range(100):
            now[0] += 1.0
            assert not bar.due()
            bar.advance()
    assert bar.done == 100
    assert terminal.getvalue() == ""


def test_a_terminal_has_a_bar_that_ends_where_the_run_ended(
    terminal: Terminal, now: list[float]
) -> None:
    with unchanged(), redirect_stderr(terminal), ProgressBar("SVI", 100, enabled=True) as bar:
        for step in range(60):
            now[0] = 0.1 * (step + 1)
            bar.advance(f"loss {step}")
    frames = terminal.getvalue()
    assert "\x1b[?25h" in frames  # the cursor is back
    assert "20/100 loss 19 10 steps/s 0:00:08" in frames
    assert "60/100 loss 5" in strip(frames).splitlines()[-1]
    # At most five frames a second after the first two seconds.
    assert frames.count("SVI") <= 22


def test_the_bar_is_left_in_order_by_an_error(terminal: Terminal, now: list[float]) -> None:
    def run() -> None:
        with redirect_stderr(terminal), ProgressBar("SVI", 100, enabled=True) as bar:
            now[0] += 3.0
            bar.advance()
            raise KeyboardInterrupt

    with unchanged(), pytest.raises(KeyboardInterrupt):
        run()
    assert "\x1b[?25h" in terminal.getvalue()


def test_a_log_has_a_line_every_thirty_seconds_and_one_at_the_end(
    log: io.StringIO, now: list[float]
) -> None:
    with redirect_stderr(log), ProgressBar("SVI", 1000, enabled=True) as bar:
        for step in range(700):
            now[0] = 0.1 * (step + 1)
            bar.advance(f"loss {step}")
    assert log.getvalue().splitlines() == [
        "SVI: 300 of 1000 steps, loss 299, 10 steps/s, 0:01:10 left",
        "SVI: 600 of 1000 steps, loss 599, 10 steps/s, 0:00:40 left",
        "SVI: 700 of 1000 steps, loss 599, 10 steps/s, 0:00:30 left",
    ]


def test_a_log_of_half_a_minute_has_no_line(log: io.StringIO, now: list[float]) -> None:
    with redirect_stderr(log), ProgressBar("SVI", 1000, enabled=True) as bar:
        for _ in range(290):
            now[0] += 0.1
            bar.advance()
    assert log.getvalue() == ""


def test_steps_have_a_name_and_a_speed_in_real_time(log: io.StringIO, now: list[float]) -> None:
    with (
        redirect_stderr(log),
        ProgressBar("Sampling", 80_000, enabled=True, unit="samples", real_time=8_000) as bar,
    ):
        for done in range(0, 80_000, 200):
            now[0] += 0.1
            bar.update(done)
    assert log.getvalue().splitlines()[0] == (
        "Sampling: 59800 of 80000 samples, 1,993 samples/s, 0.25 x real time, 0:00:10 left"
    )


def test_up_to_four_chains_have_a_line_each(now: list[float]) -> None:
    state = chains_at([0, 0, 0, 0])
    display = ChainProgress("NUTS", state, 4, 1000, enabled=True)
    now[0] = 10.0
    state.transition[:4] = torch.tensor([500, 1500, 3000, 1000])
    head, *rows = rendered(display)
    assert head.split() == "NUTS of 3000 draws divergences step size draws/s time left".split()
    assert [row.replace("━", "").replace("╸", "").replace("╺", "").split() for row in rows] == [
        ["chain", "1", "warm-up", "500", "0", "0.100", "50", "0:00:50"],
        ["chain", "2", "sampling", "1500", "1", "0.233", "150", "0:00:10"],
        ["chain", "3", "done", "3000", "2", "0.367", "300", "0:00:00"],
        ["chain", "4", "sampling", "1000", "3", "0.500", "100", "0:00:20"],
    ]


def test_many_chains_have_one_line_with_least_median_and_most(now: list[float]) -> None:
    state = chains_at([0] * 65)
    display = ChainProgress("NUTS", state, 65, 1000, enabled=True)
    now[0] = 10.0
    state.transition[:65] = torch.arange(500, 1150, 10)
    _, row = rendered(display)
    assert row.split() == [
        *("65", "chains", "warm-up", "500<820<1140", "2080"),
        *("0.10<0.30<0.50", "5.33k", "0:00:50"),
    ]
    assert display.line() == (
        "NUTS: 65 chains warm-up, 500<820<1140 of 3000 draws, divergences 2080, "
        "step size 0.10<0.30<0.50, draws/s 5.33k, time left 0:00:50"
    )


@pytest.mark.parametrize("chains", [1, 4, 64])
@pytest.mark.parametrize("width", [80, 200])
def test_nothing_is_cut_off(chains: int, width: int, now: list[float]) -> None:
    display = ChainProgress("RandomWalk", chains_at([999] * chains), chains, 1000, enabled=True)
    lines = rendered(display, width)
    assert len(lines) == 1 + (chains if chains <= 4 else 1)
    assert not any("…" in line for line in lines)
    assert all(len(line) <= width for line in lines)


def test_a_random_walk_has_no_divergences(now: list[float]) -> None:
    display = ChainProgress("RandomWalk", chains_at([0], Kernel.RANDOM_WALK), 1, 5, enabled=True)
    assert "divergences" not in "".join(rendered(display)) + display.line()
    assert display.line() == (
        "RandomWalk: 1 chain warm-up, 0 of 1010 draws, step size 0.10, draws/s 0, time left -:--:--"
    )


def test_chains_are_shown_as_they_advance(terminal: Terminal, now: list[float]) -> None:
    state = chains_at([0, 0])
    display = ChainProgress("NUTS", state, 2, 1000, enabled=True)
    with redirect_stderr(terminal), display:
        for _ in range(100):
            now[0] += 0.1
            state.transition[:2] += 10
            display.update()
    text = strip(terminal.getvalue())
    assert "chain 2" in text
    assert " 1000 " in text.splitlines()[-1]


def test_the_speed_is_that_of_the_last_ten_seconds(now: list[float]) -> None:
    speed = Speed([0, 100])
    now[0] = 1.0
    assert speed([5, 100]) == [5.0, 0.0]
    now[0] = 12.0
    assert speed([16, 210]) == [pytest.approx(1.0), pytest.approx(10.0)]
    # The second has ended, and keeps its speed.
    now[0] = 24.0
    assert speed([40, 210]) == [pytest.approx(2.0), pytest.approx(10.0)]


def test_the_clock() -> None:
    assert clock(0, 0.0) == "0:00:00"
    assert clock(5, 0.0) == "-:--:--"
    assert clock(36_610, 10.0) == "1:01:01"


def test_an_announcement_comes_after_a_while_only(
    log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redirect_stderr(log):
        with announced("compiling", enabled=True):
            pass
        monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.01)
        with announced("compiling", enabled=False):
            time.sleep(0.1)
        assert log.getvalue() == ""
        with announced("compiling", enabled=True):
            time.sleep(0.1)
    assert log.getvalue() == "compiling\n"


def test_an_announcement_leaves_a_terminal_as_it_was(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.01)

    def run() -> None:
        with redirect_stderr(terminal), announced("compiling", enabled=True):
            time.sleep(0.3)
            raise ZeroDivisionError

    with unchanged(), pytest.raises(ZeroDivisionError):
        run()
    assert "compiling" in terminal.getvalue()
    assert terminal.getvalue().rstrip().endswith("\x1b[2K")  # the line is erased


@contextmanager
def unchanged() -> Iterator[None]:
    """Check that standard output and error are what they were."""
    before = sys.stdout, sys.stderr
    yield
    assert (sys.stdout, sys.stderr) == before


def strip(text: str) -> str:
    """Return what a terminal is sent, without the codes for colours and places."""
    from rich.text import Text

    return Text.from_ansi(text).plain
