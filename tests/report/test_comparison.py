"""What a user sees of a comparison: its text, its numbers and its files."""

import json
import math
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ppl_gen.core import Posterior
from ppl_gen.judge.findings import Assessment, Thresholds, Verdict
from ppl_gen.report import Comparison, compare
from ppl_gen.report.numbers import NOT_APPLICABLE
from ppl_gen.report.tables import Cell, method_table, parameter_table
from ppl_gen.report.view import View

Draw = Callable[..., Posterior]
Assess = Callable[..., Assessment]


@pytest.fixture
def comparison(posterior: Draw, by_hand: Assess) -> Comparison:
    wrong = posterior(1, shift=1.0, scale=0.5, chains=1, elbo=(-33.4156, 0.0123))
    return Comparison(by_hand({"svi": wrong, "nuts": posterior(2)}, "nuts"))


def test_posteriors_are_judged_and_the_reference_is_the_first_mcmc_one(posterior: Draw) -> None:
    posteriors = {
        "svi": posterior(3, chains=1),
        "narrow": posterior(8, scale=0.3, chains=1),
        "nuts": posterior(4, draws=4000),
        "hmc": posterior(5, draws=4000),
    }
    comparison = compare(posteriors, progress=False)
    assert comparison.reference == "nuts"
    assert list(comparison.verdicts) == list(posteriors)
    # A third of the sd is far beyond red (0.25), its Monte Carlo error of 5 % far below it.
    assert comparison.verdicts["narrow"] in (Verdict.DO_NOT_TRUST, Verdict.MEANS_ONLY)
    assert comparison.verdicts["hmc"] is Verdict.TRUST
    other = compare(posteriors, "hmc", thresholds=Thresholds(sd_red=0.99), progress=False)
    assert other.reference == "hmc"
    # Green to amber at least, but no red at so generous a threshold.
    assert "red" not in set(other.table["grade_of_sd"])
    with pytest.raises(ValueError, match="Did you mean 'nuts'"):
        compare(posteriors, "nut", progress=False)
    with pytest.raises(ValueError, match="at least one posterior"):
        compare({}, progress=False)


def test_without_a_reference_nothing_is_trusted(posterior: Draw) -> None:
    guides = {"a": posterior(6, chains=1), "b": posterior(7, chains=1)}
    comparison = compare(guides, progress=False)
    assert comparison.reference is None
    assert Verdict.TRUST not in comparison.verdicts.values()
    assert "no reference" in repr(comparison)


def broken(kind: str) -> Posterior:
    draws = torch.randn(1, 200, generator=torch.Generator().manual_seed(1))
    if kind == "nan":
        draws[0, 3] = math.nan
    if kind == "constant":
        draws[:] = 1.0
    kept = {} if kind == "empty" else {"mu": draws}
    return Posterior(draws=kept, latents=tuple(kept), is_mcmc=kind == "nan")


@pytest.mark.parametrize("kind", ["nan", "constant", "empty"])
@pytest.mark.parametrize("role", ["method", "reference", "alone"])
def test_posteriors_without_usable_draws_get_their_verdict_in_every_form(
    tmp_path: Path, kind: str, role: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = Posterior(draws={"mu": torch.randn(4, 500, generator=generator)}, latents=("mu",))
    posteriors = {"<broken>": broken(kind)} | ({} if role == "alone" else {"whole": whole})
    reference = {"method": "whole", "reference": "<broken>", "alone": None}[role]
    comparison = compare(posteriors, reference, progress=False)
    assert not comparison.verdicts["<broken>"].is_fine
    assert f"<broken>{' (reference)' * (role == 'reference')}: " in str(comparison)
    assert "&lt;broken&gt;" in comparison._repr_html_()
    assert len(comparison.to_dataframe()) == (0 if role == "alone" else 1)
    assert json.loads(comparison.save(tmp_path / "r.json").read_text("utf-8"))
    page = comparison.save(tmp_path / "r.html", progress=False).read_text("utf-8")
    assert page.count("<article") == len(posteriors)


def test_verdicts_come_first(comparison: Comparison) -> None:
    text = str(comparison)
    judgement = comparison.assessment.judgements["svi"]
    places = [
        text.index(piece)
        for piece in (
            "svi: DO NOT TRUST",
            judgement.sentence,
            f"Next: {judgement.action}",
            "nuts (reference): TRUST",
            "MCSE",
        )
    ]
    assert places == sorted(places)
    assert judgement.caveats[0] in text


def test_printed_table(comparison: Comparison) -> None:
    text = str(comparison)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    rows = {}
    parameter = ""
    for line in lines:
        cells = re.split(r"  +", line.strip())
        if cells[0] in comparison.assessment.measurements.parameters:
            parameter, *cells = cells
        rows[parameter, cells[0]] = cells[1:]
    table = comparison.table.set_index(["parameter", "method"])
    row = table.loc[("mu", "svi")]
    mean, sd, error, ratio, *chains = rows["mu", "svi"]
    assert float(mean) == pytest.approx(row["mean"], abs=0.006)
    assert float(sd) == pytest.approx(row["sd"], abs=0.006)
    value, uncertainty = error.split(" ±")
    assert float(value) == pytest.approx(row["error_of_mean"], abs=0.006)
    assert float(uncertainty) == pytest.approx(row["error_of_mean_mcse"], abs=0.006)
    assert float(ratio) == pytest.approx(row["sd_ratio"], abs=0.006)
    assert chains == [NOT_APPLICABLE] * 4
    reference = table.loc[("weights[1, 0]", "nuts")]
    _, _, error, ratio, r_hat, bulk, tail, mcse = rows["weights[1, 0]", "nuts (ref)"]
    assert (error, ratio) == (NOT_APPLICABLE, NOT_APPLICABLE)
    assert float(r_hat) == pytest.approx(reference["r_hat"], abs=0.0006)
    assert int(bulk) == pytest.approx(reference["ess_bulk"], abs=0.6)
    assert int(tail) == pytest.approx(reference["ess_tail"], abs=0.6)
    assert float(mcse) == pytest.approx(reference["mcse"], rel=0.06)
    assert "-33.42 ±0.012" in text
    assert repr(comparison) == "Comparison of svi, nuts in 6 parameters (reference: nuts)"


def test_page_has_the_worst_quantile_and_the_grades(comparison: Comparison) -> None:
    view = View(comparison.assessment)
    table = parameter_table(view, ["mu"])
    svi, nuts = table.groups[0].rows
    place = list(table.headings).index("worst quantile")
    # N(1, 0.5) for N(0, 1): the 5 % quantile is 1 + 0.5 * 1.645 too high, the others less.
    error = comparison.table["error_of_q5"].iloc[0]
    assert error == pytest.approx(1.82, abs=0.3)
    assert svi[place].text == f"{error:+.2f} at 5 %"
    assert [cell.grade.value for cell in svi[place - 2 : place + 1]] == ["red"] * 3
    assert nuts[place] == Cell(NOT_APPLICABLE)
    assert "worst quantile" not in table.without("worst quantile").headings
    assert len(table.without("worst quantile").groups[0].rows[0]) == len(svi) - 1


def test_text_needs_no_terminal_and_no_colour(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = str(comparison)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert str(comparison) == plain
    assert "\x1b" not in plain


def test_long_names_and_markup_are_printed_whole(by_hand: Assess) -> None:
    name = "[red]a_site_with_a_name_of_more_than_forty_characters[/red]"
    draws = Posterior(draws={name: torch.randn(4, 100, 2)}, latents=(name,))
    text = str(Comparison(by_hand({"[bold]one_method_with_a_long_name[/bold]" * 2: draws}, None)))
    assert max(map(len, text.splitlines())) <= 100
    # Names are folded within their column.
    heading = next(line for line in text.splitlines() if "parameter" in line)
    width = heading.index("method")
    column = "".join(line[:width].strip() for line in text.splitlines())
    assert f"{name}[0]" in column
    assert f"{name}[1]" in column


def test_many_parameters_are_cut_and_counted_the_worst_kept(by_hand: Assess) -> None:
    good = torch.randn(2, 50, 45)
    bad = good.clone()
    bad[..., 44] += 10.0
    text = str(
        Comparison(
            by_hand(
                {
                    "bad": Posterior(draws={"x": bad}, latents=("x",)),
                    "good": Posterior(draws={"x": good}, latents=("x",)),
                },
                "good",
            )
        )
    )
    assert "x[44]" in text
    assert len(re.findall(r"x\[\d+\] ", text)) == 40
    assert "5 more parameters are in comparison.table." in text


def test_what_was_left_out_is_said(posterior: Draw, by_hand: Assess) -> None:
    a, b = posterior(8), posterior(9)
    a.draws["extra"] = torch.zeros(4, 200)
    assert "Left out: extra (not in b)." in str(Comparison(by_hand({"a": a, "b": b}, "b")))


def test_one_posterior_has_nothing_to_be_compared_with(posterior: Draw, by_hand: Assess) -> None:
    view = View(by_hand({"nuts": posterior(10)}, None))
    table = parameter_table(view, view.worst_first)
    # A column of errors would be empty.
    assert table.headings == ["method", "mean", "sd", "R-hat", "ESS bulk", "ESS tail", "MCSE"]
    assert table.groups[0].rows[0][0].text == "nuts"
    assert Cell(NOT_APPLICABLE) not in table.groups[0].rows[0]


@pytest.mark.parametrize(
    ("mean", "sd", "expected"),
    [
        (123.456, 1.2345, ("123.46", "1.23")),
        (0.0012345, 0.0123, ("0.0012", "0.0123")),
        (123456.7, 1500.0, ("123457", "1500")),
        (1e-9, 2e-9, ("1e-09", "2e-09")),
        (3e12, 2e10, ("3e+12", "2e+10")),
        (-1e-7, 1.5, ("0.00", "1.50")),
    ],
)
def test_sensible_digits(
    by_hand: Assess, mean: float, sd: float, expected: tuple[str, str]
) -> None:
    # Two chains of draws at mean ± sd * sqrt((n - 1) / n), so that mean and sd are exact.
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(2, 50)
    draws = mean + sd * math.sqrt(199 / 200) * signs
    view = View(by_hand({"a": Posterior(draws={"mu": draws}, latents=("mu",))}, None))
    row = parameter_table(view, ["mu"]).groups[0].rows[0]
    assert tuple(cell.text for cell in row[1:3]) == expected


def test_missing_facts_are_blank(by_hand: Assess) -> None:
    bare = Posterior(draws={"mu": torch.randn(4, 50)}, latents=("mu",))
    row = method_table(View(by_hand({"a": bare}, None))).groups[0].rows[0]
    texts = [cell.text for cell in row]
    assert texts[:5] == [NOT_APPLICABLE, "4 × 50", NOT_APPLICABLE, NOT_APPLICABLE, NOT_APPLICABLE]
    assert texts[-1] == NOT_APPLICABLE


def test_notebook_gets_escaped_verdicts_and_tables(by_hand: Assess) -> None:
    hostile = '<img src=x onerror="alert(1)">'
    draws = Posterior(draws={hostile: torch.randn(4, 50)}, latents=(hostile,))
    html = Comparison(by_hand({hostile: draws, "b": draws}, "b"))._repr_html_()
    assert "<img" not in html
    assert html.count("&lt;img") >= 3
    assert html.count("<table") == 2
    assert html.count("<div") == html.count("</div>")
    assert "DO NOT TRUST" in html


def test_data_frame_has_every_row_and_the_verdict(comparison: Comparison) -> None:
    frame = comparison.to_dataframe()
    assert len(frame) == 12
    verdicts = frame.groupby("method")["verdict"].unique()
    assert verdicts["svi"].tolist() == ["DO NOT TRUST"]
    assert verdicts["nuts"].tolist() == ["TRUST"]
    assert "verdict" not in comparison.table


def test_json_is_the_dictionary(comparison: Comparison, tmp_path: Path) -> None:
    path = comparison.save(tmp_path / "report.json")
    assert json.loads(path.read_text("utf-8")) == comparison.to_dict()
    assert comparison.to_dict()["reference"] == "nuts"


@pytest.mark.parametrize("name", ["report", "report.pdf", "report.html.txt", ".html"])
def test_wrong_ending(comparison: Comparison, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"ends in \.html, \.htm or \.json"):
        comparison.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["html", "json"])
def test_folder_that_is_missing_or_is_the_path(
    comparison: Comparison, tmp_path: Path, ending: str
) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing. Make it first"):
        comparison.save(tmp_path / "missing" / f"report.{ending}")
    (tmp_path / f"folder.{ending}").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        comparison.save(tmp_path / f"folder.{ending}")


def test_path_that_cannot_be_written_is_refused_before_any_work(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(self: Comparison) -> dict[str, object]:
        raise AssertionError("it was begun")

    monkeypatch.setattr(Comparison, "to_dict", work)
    with pytest.raises(OSError, match=r"cannot write .*: File name too long. Choose"):
        comparison.save(tmp_path / f"{300 * 'r'}.json")
    with pytest.raises(AssertionError, match="it was begun"):  # the control
        comparison.save(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(*args: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"cannot write .*report.json: No space left on device"):
        comparison.save(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_file_may_be_read_as_any_new_file(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    saved = comparison.save(tmp_path / "report.json")
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
