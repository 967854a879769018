"""The commands that judge runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ppl_gen as pg
from ppl_gen.cli.runs import name_runs
from ppl_gen.inference import NUTS, SVI
from ppl_gen.models import BayesianLinearRegression, EightSchools

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on the eight schools: NUTS, and two guides of the centred form, which is a funnel."""
    folder = tmp_path_factory.mktemp("runs")
    pair, data = EightSchools(centered=True), EightSchools.data()
    good = NUTS(chains=4, draws=1000, target_accept=0.99)
    pg.fit(EightSchools(), data, good, progress=False).save(folder / "nuts")
    pg.fit(pair, data, SVI("mean_field"), progress=False).save(folder / "mean_field")
    return folder


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on a regression with known noise, whose posterior is normal: NUTS and a full guide."""
    import torch

    folder = tmp_path_factory.mktemp("exact")
    x = torch.linspace(-1.0, 1.0, 20).unsqueeze(-1)
    data = {"x": x, "y": 2.0 * x[:, 0] + 0.1}
    pair = BayesianLinearRegression(num_features=1, noise_scale=0.5)
    for name, method in (("nuts", NUTS(chains=4, draws=1000)), ("svi", SVI("full_rank"))):
        pg.fit(pair, data, method, progress=False).save(folder / name)
    return folder


def test_a_good_run_is_fine(cli: Cli, exact: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    ended = cli(
        *("compare", exact / "nuts", exact / "svi", "--reference", exact / "nuts"),
        *("--report", report),
    )
    assert ended.code == 0, ended.out + ended.err
    assert "TRUST" in ended.out
    assert report.read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert f"The report is in {report}" in ended.err
    again = cli("compare", exact / "nuts", exact / "svi", "--report", report, "-q")
    assert (again.code, again.err) == (0, "")


def test_a_bad_run_is_not(cli: Cli, runs: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    ended = cli(
        *("compare", runs / "nuts", f"bad={runs / 'mean_field'}", "--reference", "nuts"),
        *("--report", report, "--json", "-q"),
    )
    assert (ended.code, ended.err) == (1, "")
    expected = pg.compare(
        {"nuts": pg.load(runs / "nuts"), "bad": pg.load(runs / "mean_field")}, reference="nuts"
    )
    assert ended.document == expected.to_dict()
    assert json.loads(report.read_text(encoding="utf-8")) == ended.document


def test_a_reference_that_is_no_run_of_the_list_joins_it(cli: Cli, exact: Path) -> None:
    words = ["compare", exact / "svi", "--reference", exact / "nuts", "--json", "-q"]
    ended = cli(*words)
    assert ended.code == 0, ended.err
    assert ended.document["reference"] == "nuts"


def test_one_run_is_judged_without_a_reference(cli: Cli, exact: Path, runs: Path) -> None:
    ended = cli("judge", exact / "svi")
    assert ended.code == 0, ended.out + ended.err
    assert "NO PROBLEM FOUND BY THESE CHECKS" in ended.out
    ended = cli("judge", runs / "mean_field")
    assert ended.code == 1


def test_a_run_of_a_pair_in_a_file_is_given_it_again(
    cli: Cli, folder: Path, tmp_path: Path
) -> None:
    pair, out = f"{folder / 'pairs.py'}:Line", tmp_path / "line"
    words = ["--data", folder / "line.csv", "--method", "svi", "--arg", "slope_scale=2", "-q"]
    assert cli("fit", pair, *words, "--out", out).code == 0
    (tmp_path / "elsewhere").mkdir()
    without = cli("judge", out)
    assert "give it by --model MODEL" in without.err
    given = cli("judge", out, "--model", pair, "--arg", "slope_scale=2")
    assert given.code == 0, given.err
    assert "give it by --model" not in given.err
    other = cli("judge", out, "--model", f"{folder / 'pairs.py'}:Network", "--arg", "size=2")
    assert other.code == 2
    assert "holds a Line, got a Network" in other.err
    alone = cli("judge", out, "--arg", "slope_scale=2")
    assert alone.code == 2
    assert "--arg goes with --model" in alone.err


def test_a_pair_that_is_known_is_not_given(cli: Cli, exact: Path) -> None:
    """It would take the place of the one in the folder, whose arguments may be others."""
    ended = cli("judge", exact / "svi", "--model", "eight_schools")
    assert ended.code == 2
    assert "--model: the pairs of these runs are built in, and known" in ended.err


def test_repair_makes_a_run_trustworthy(cli: Cli, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "better"
    words = ["repair", runs / "mean_field", "--seconds", "60", "--out", out]
    ended = cli(*words)
    assert ended.code == 0, ended.out + ended.err
    # Whether it was written non-centred or not, its pair is given as it was.
    known = pg.load(out).pair is not None
    assert ("Give its pair, as it was, to judge it: --model" in ended.err) is not known
    pair = [] if known else ["--model", "eight_schools", "--arg", "centered=true"]
    judged = cli("judge", out, *pair)
    assert judged.code == 0, judged.out + judged.err
    again = cli(*words)
    assert again.code == 2
    assert "it exists. Choose another folder" in again.err


def test_sbc_tells_a_right_method_from_a_wrong_one(cli: Cli, tmp_path: Path) -> None:
    """A normal prior of known noise: full-rank guides are exact, one step of a guide is not."""
    (tmp_path / "normal.py").write_text(
        "import pyro, torch\n"
        "import pyro.distributions as dist\n"
        "def model(y=None):\n"
        "    mean = pyro.sample('mean', dist.Normal(0.0, 1.0))\n"
        "    return pyro.sample('y', dist.Normal(mean, 1.0), obs=y)\n"
        "def guide(y=None):\n"
        "    pyro.sample('mean', dist.Normal(pyro.param('loc', torch.zeros(())), 0.1))\n"
        "pair = (model, guide)\n"
    )
    pair = f"{tmp_path / 'normal.py'}:pair"
    words = ["--method", "svi", "--workers", "1", "--json", "-q"]
    right = ["--option", "guide=full_rank", "--out", tmp_path / "ranks.jsonl"]
    part = cli("sbc", pair, *words, *right, "--replicates", "5")
    assert part.code == 0, part.out + part.err
    good = cli("sbc", pair, *words, *right, "--replicates", "20", "--resume")
    assert good.code == 0, good.out + good.err
    assert good.document["data_sets"] == 20
    assert good.document["passes"]
    assert {row["quantity"] for row in good.document["quantities"]} == {"mean", "log_joint"}
    fixed = ["--option", "guide=pair", "--option", "steps=1", "--option", "draws=200"]
    bad = cli("sbc", pair, *words, *fixed, "--replicates", "20")
    assert bad.code == 1, bad.out + bad.err
    assert not bad.document["passes"]


def test_a_damaged_run_is_wrong_use(cli: Cli, exact: Path, tmp_path: Path) -> None:
    shutil.copytree(exact / "svi", tmp_path / "svi")
    manifest = tmp_path / "svi" / "posterior.json"
    manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 1'))
    ended = cli("judge", tmp_path / "svi")
    assert ended.code == 2
    assert "has format 1" in ended.err


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("report.pdf", "ends in .html or .htm or .json, got '.pdf'"),
        ("there/report.html", "there is no folder"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_at_once(
    cli: Cli, report: str, message: str, tmp_path: Path
) -> None:
    """Before the runs, which are not there, are even looked for."""
    ended = cli("compare", tmp_path / "a", tmp_path / "b", "--report", tmp_path / report)
    assert ended.code == 2
    assert message in ended.err


def test_runs_of_other_models_are_wrong_use(cli: Cli, exact: Path, runs: Path) -> None:
    ended = cli("compare", runs / "nuts", f"other={exact / 'nuts'}")
    assert ended.code == 2, ended.out
    assert "Error: " in ended.err


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["runs/a", "runs/b/"], ["a", "b"]),
        (["x=runs/a", "runs/b"], ["x", "b"]),
        (["1/nuts", "2/nuts", "svi"], ["1/nuts", "2/nuts", "svi"]),
    ],
)
def test_runs_are_named_by_their_folders(texts: list[str], names: list[str]) -> None:
    assert list(name_runs(texts)) == names


def test_runs_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two runs are named 'a'"):
        name_runs(["a=runs/a", "a=runs/b"])


def test_an_unknown_reference_is_refused(cli: Cli, exact: Path) -> None:
    ended = cli("compare", exact / "nuts", exact / "svi", "--reference", "nut")
    assert ended.code == 2
    assert "unknown reference 'nut'" in ended.err
    assert "'nuts'" in ended.err
