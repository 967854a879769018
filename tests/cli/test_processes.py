"""The command as a shell runs it: exit codes, what goes where, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import ppl_gen as pg

PROGRAM = [sys.executable, "-c", "from ppl_gen.cli import main; main()"]
HEAVY = {
    "arviz",
    "pyro",
    "torch",
    "matplotlib",
    "pandas",
    "scipy",
    "sklearn",
    "torchvision",
    "xarray",
}
ESCAPE = "\x1b"


def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *(str(word) for word in words)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_installed_command_is_this_one(root: Path) -> None:
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = settings["project"]["scripts"]["ppl-gen"].partition(":")
    assert callable(getattr(import_module(module), function))


def test_help_loads_nothing_heavy() -> None:
    """Nothing beyond what the package itself loads; importing pandas shows that this is seen."""
    script = (
        "import sys\n"
        "import ppl_gen\n"
        "before = set(sys.modules)\n"
        "from ppl_gen.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    print(end.code, *set(sys.modules) - before)\n"
        "sys.modules.pop('pandas', None)\nimport pandas\nprint(*sys.modules)\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded, control = (set(line.split()) for line in done.stdout.splitlines()[-2:])
    assert "0" in loaded
    assert "ppl_gen.cli" in loaded
    assert not HEAVY & loaded
    assert "pandas" in control
    assert ESCAPE not in done.stdout


def test_json_is_all_that_reaches_standard_output(folder: Path) -> None:
    """Also where file and model print, and a model's output would come in between."""
    done = run(
        *("fit", f"{folder / 'pairs.py'}:Line", "--data", folder / "line.csv", "--json"),
        *("--method", "svi", "--option", "draws=50"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["draws"] == 50
    assert "printed by the file" in done.stderr
    assert "printed by the model" in done.stderr
    assert ESCAPE not in done.stdout + done.stderr


def test_wrong_use_in_a_shell() -> None:
    done = run("fit", "eight_schools", "--json", "--no-such-option")
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such option" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another one there")
def test_ctrl_c_keeps_the_draws(tmp_path: Path) -> None:
    out = tmp_path / "run"
    # So many draws that it cannot be done before it is stopped.
    options = ("chains=2", "warmup=100", "thinning=1000", "draws=1_000_000")
    words = ["fit", "eight_schools", "--out", str(out), *(f"--option={o}" for o in options)]
    process = subprocess.Popen(
        [*PROGRAM, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        state = out / "state.safetensors"
        deadline = time.monotonic() + 60
        while not state.is_file() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        time.sleep(1.0)  # until there are draws
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "The same command with --resume goes on" in errors
    assert "Traceback" not in errors
    stopped = pg.load(out)
    assert stopped.interrupted
    assert 0 < stopped.num_draws < 1_000_000


def test_ctrl_c_before_there_is_anything_to_keep(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [*PROGRAM, "check", f"{tmp_path / 'slow.py'}:model"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors == "Interrupted.\n"
