"""The commands that look at pairs and fit them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ppl_gen as pg
from ppl_gen.inference import NUTS
from ppl_gen.models import EightSchools

Cli = Callable[..., Any]
TINY = ["--option", "chains=2", "--option", "draws=50", "--option", "warmup=50"]


def test_models_lists_every_pair_with_arguments_and_data(cli: Cli) -> None:
    found = cli("models", "--json").document["models"]
    assert found["eight_schools"]["data"] == ["sigma", "y"]
    assert found["eight_schools"]["has_own_data"]
    assert found["eight_schools"]["arguments"]["centered"] == "False"
    assert found["bayesian_linear_regression"]["arguments"]["num_features"] == "required"
    assert not found["bayesian_linear_regression"]["has_own_data"]
    text = cli("models").out
    assert all(name in text for name in found)
    assert "sigma, y (has data of its own)" in text


def test_check_passes_a_good_pair(cli: Cli, folder: Path) -> None:
    ended = cli("check", f"{folder / 'pairs.py'}:Line", "--data", folder / "line.csv")
    assert ended.code == 0
    assert "slope: latent Normal" in ended.out
    assert cli("check", "eight_schools").code == 0


def test_check_finds_a_guide_that_misses_a_site(cli: Cli, folder: Path) -> None:
    words = ["check", f"{folder / 'pairs.py'}:mismatch", "--data", folder / "line.csv"]
    ended = cli(*words)
    assert ended.code == 1
    assert "site 'slope': expected to be sampled in the guide" in ended.out
    ended = cli(*words, "--json")
    assert ended.code == 1
    assert not ended.document["ok"]
    assert len(ended.document["problems"]) == 2


def test_check_names_data_that_do_not_fit(cli: Cli, folder: Path) -> None:
    ended = cli("check", f"{folder / 'pairs.py'}:Line", "--set", "z=3")
    assert ended.code == 1
    assert "data has 'z', which the model does not take" in ended.out


def test_fit_gives_what_the_function_gives(cli: Cli, tmp_path: Path) -> None:
    """The draws of a command are those of `pg.fit` with the same options and seed."""
    out = tmp_path / "run"
    ended = cli(
        *("fit", "eight_schools", "--method", "nuts", *TINY, "--seed", 3, "--out", out),
        *("--arg", "tau_prior=half_normal", "--quiet"),
    )
    assert ended.code == 0, ended.err
    assert ended.out.startswith("eight_schools by NUTS: 2 x 50 draws")
    assert {"mu", "tau", "theta[7]"} <= {line.split("  ")[0] for line in ended.out.splitlines()}
    method = NUTS(chains=2, draws=50, warmup=50)
    pair = EightSchools(tau_prior="half_normal")
    expected = pg.fit(pair, EightSchools.data(), method, seed=3, progress=False)
    loaded = pg.load(out)
    assert torch.equal(loaded["mu"], expected["mu"])
    assert loaded.pair is not None
    assert loaded.pair.tau_prior == "half_normal"


def test_fit_of_a_pair_in_a_file_finds_the_posterior_mean(cli: Cli, folder: Path) -> None:
    """Known noise 0.5 and prior scale 2: precision x'x / 0.25 + 1 / 4, mean x'y / 0.25 / that."""
    words = [f"{folder / 'pairs.py'}:Line", "--data", folder / "line.csv", "--arg", "slope_scale=2"]
    ended = cli("fit", *words, "--method", "svi", "--option", "guide=full_rank", "--json", "-q")
    assert ended.code == 0, ended.err
    x, y = np.loadtxt(folder / "line.csv", delimiter=",", skiprows=1).T
    precision = x @ x / 0.25 + 1 / 4
    found = ended.document["summary"]["slope"]
    # A normal guide of a normal posterior is exact; 1,000 independent draws of it are 5 standard
    # errors off with probability 6e-7.
    assert abs(found["mean"] - x @ y / 0.25 / precision) < 5 / np.sqrt(1000 * precision)
    assert ended.document["method"] == "SVI"
    assert ended.document["elbo"] is not None


def test_fit_takes_a_tuple_of_functions_with_its_guide(cli: Cli, folder: Path) -> None:
    ended = cli(
        *("fit", f"{folder / 'pairs.py'}:both", "--data", folder / "line.csv"),
        *("--method", "svi", "--option", "guide=pair", "--option", "steps=3", "--json", "-q"),
    )
    assert ended.code == 0, ended.err
    # The guide's own scale is 1, the posterior's 0.18. The sd of 1,000 draws has a standard error
    # of 1 / sqrt(2000); it is 5 of them off with probability 6e-7.
    assert abs(ended.document["summary"]["slope"]["sd"] - 1.0) < 5 / np.sqrt(2000)


def test_built_in_arguments_follow_from_columns(cli: Cli, folder: Path) -> None:
    ended = cli(
        *("fit", "bayesian_linear_regression", "--data", folder / "line.csv"),
        *("--columns", "x=x,", "--columns", "y=y", "--method", "svi", "--json", "-q"),
    )
    assert ended.code == 0, ended.err
    assert set(ended.document["summary"]) == {"weights[0]", "intercept", "noise_scale"}


def test_a_run_goes_on_with_resume(cli: Cli, tmp_path: Path) -> None:
    words = ["fit", "eight_schools", *TINY, "--out", tmp_path / "run"]
    assert cli(*words, "-q").code == 0
    again = cli(*words, "-q")
    assert again.code == 2
    assert f"--out {tmp_path / 'run'}: it exists. Go on with the run there by --resume" in again.err
    longer = [str(word).replace("draws=50", "draws=80") for word in words]
    ended = cli(*longer, "--resume", "--json", "-q")
    assert (ended.code, ended.document["draws"]) == (0, 80)
    other = cli(*words, "--resume", "--seed", 1)
    assert other.code == 2
    assert "option 'seed' was 0, is 1" in other.err


def test_warnings_of_a_run_stay_where_it_is_quiet(cli: Cli) -> None:
    """A mean-field guide of the centred form misses a part of the posterior, and says so."""
    words = ["--method", "svi", "--option", "guide=mean_field", "--arg", "centered=true", "-q"]
    ended = cli("fit", "eight_schools", *words)
    assert ended.code == 0
    assert ended.err.startswith("Warning: The guide misses a part of the posterior")
    assert len(ended.err.splitlines()) == len(
        cli("fit", "eight_schools", *words, "--json").document["warnings"]
    )


def test_resume_needs_a_folder(cli: Cli) -> None:
    ended = cli("fit", "eight_schools", "--resume")
    assert ended.code == 2
    assert "name it by --out" in ended.err


def test_a_broken_objective_is_not_to_be_trusted(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import pyro, torch\n"
        "import pyro.distributions as dist\n"
        "def model():\n"
        "    pyro.sample('x', dist.Normal(0.0, 1.0))\n"
        "    pyro.sample('y', dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))\n"
        "def guide():\n"
        "    root = pyro.param('root', torch.zeros(()))\n"
        "    # Its value is fine at zero, its gradient infinite.\n"
        "    pyro.sample('x', dist.Normal(root.sqrt(), 1.0))\n"
        "pair = (model, guide)\n"
    )
    words = ["--method", "svi", "--option", "guide=pair", "--option", "steps=5", "-q"]
    ended = cli("fit", f"{tmp_path / 'broken.py'}:pair", *words)
    assert ended.code == 1, ended.err
    assert ended.err.startswith("Error: ")
    assert "root" in ended.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit"], "Missing argument 'MODEL'"),
        (["fit", "eight_schools", "--methods", "nuts"], "No such option"),
        (["fit", "eight_schools", "--seed", "-1"], "--seed"),
        (["fit", "eight_school"], "unknown model 'eight_school'"),
        (["fit", "eight_schools", "--method", "nutz"], "unknown method 'nutz'"),
        (["fit", "eight_schools", "--option", "draws"], "--option: expected NAME=VALUE"),
        (["fit", "eight_schools", "--option", "draws=none"], "draws: expected a whole number"),
        (["fit", "eight_schools", "--data", "there.npz"], "there.npz: no such file"),
        (["fit", "eight_schools", "--set", "y=3"], "data lacks 'sigma'"),
        (["fit", "eight_schools", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["fit", "vae"], "data lacks 'x'"),
        (["fit", "autoregressive_image"], "--arg network=CLASS, such as GatedPixelCNN"),
        (["fit", "there.py:Line"], "there.py: no such file"),
        (["sbc", "eight_schools", "--resume"], "name it by --out"),
        (["judge", "there"], "there: no such folder"),
        (["repair", "there"], "there: no such folder"),
        (["no-such-command"], "No such command"),
        ([], "Usage: "),
    ],
)
def test_wrong_use_is_one_message_and_exit_code_2(
    cli: Cli, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli(*words)
    assert ended.code == 2
    assert message in ended.err + ended.out
    assert "Traceback" not in ended.err
    assert not [path for path in tmp_path.iterdir() if path.name != "there"]


def test_an_error_in_the_model_is_named_with_its_line(cli: Cli, folder: Path) -> None:
    line = (
        (folder / "pairs.py")
        .read_text()
        .splitlines()
        .index("    return slope.there_is_no_such_thing")
    )
    ended = cli("fit", f"{folder / 'pairs.py'}:faulty", "--data", folder / "line.csv")
    assert ended.code == 2
    assert "there_is_no_such_thing" in ended.err
    assert f"pairs.py, line {line + 1}" in ended.err
    assert "Traceback" not in ended.err


def test_the_traceback_is_there_for_those_who_ask(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPL_GEN_DEBUG", "1")
    ended = cli("fit", f"{folder / 'pairs.py'}:faulty", "--data", folder / "line.csv")
    assert ended.code == 2
    assert "Traceback" in ended.err


def test_values_that_are_not_finite_are_null(cli: Cli) -> None:
    """One draw has no standard deviation: JSON knows no NaN."""
    ended = cli(
        "fit", "eight_schools", "--method", "svi", "--option", "guide=delta", "--json", "-q"
    )
    assert ended.code == 0, ended.err

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(ended.out, parse_constant=refuse)
    assert found["summary"]["mu"]["sd"] is None


@pytest.mark.parametrize("command", ["models", "check", "fit", "compare", "judge", "repair", "sbc"])
def test_every_command_explains_itself(cli: Cli, command: str) -> None:
    ended = cli(command, "--help")
    assert ended.code == 0
    assert f"Example: ppl-gen {command}" in " ".join(ended.out.split())
    assert "--json" in ended.out


def test_the_version_is_that_of_the_package(cli: Cli) -> None:
    from importlib import metadata

    assert cli("--version").out == f"ppl-gen {metadata.version('ppl-gen')}\n"
