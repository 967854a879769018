"""The numbers of the methods side by side."""

from dataclasses import replace

import pytest

from ppl_gen.judge.findings import Assessment, Grade
from ppl_gen.report.overview import overview
from ppl_gen.report.tables import Cell
from ppl_gen.report.view import View


def cells(assessment: Assessment, name: str) -> dict[str, Cell]:
    view = View(assessment)
    rows = {row.name: row.cells for block in overview(view) for row in block.rows}
    return dict(zip(view.judged, rows[name], strict=True))


def test_an_elpd_whose_weights_fail_is_marked(assessment: Assessment) -> None:
    fits = dict(assessment.fits)
    fits["mean-field"] = replace(fits["mean-field"], bad_k=3)
    found = cells(replace(assessment, fits=fits), "elpd")
    assert found["mean-field"].grade is Grade.AMBER
    assert found["mean-field"].note == "not reliable: k-hat too high at 3 observations"
    assert found["nuts"] == Cell("-30.70 ±1.4")


@pytest.mark.parametrize("name", ["1-Wasserstein distance", "MMD", "classifier test (C2ST)"])
def test_floors_of_distances_are_bounds_as_all_floors_are(
    assessment: Assessment, name: str
) -> None:
    # Half of all right samples are above the median, 0.1, and a twentieth above the bound.
    assert cells(assessment, name)["flow"].note == "floor 0.2"


def test_evidence_of_the_chains_is_told_apart(assessment: Assessment) -> None:
    none = (float("nan"), float("nan"))
    weights = dict(assessment.weights)
    weights["flow"] = replace(weights["flow"], log_evidence=none, elbo_gap=0.31)
    weights["full-rank"] = replace(weights["full-rank"], log_evidence=none, elbo_gap=float("nan"))
    bridged = replace(assessment, weights=weights, evidence={"nuts": (-31.3, 0.02)})
    found = cells(bridged, "log evidence")
    assert found["nuts"] == Cell("-31.30 ±0.02", note="by bridge sampling")
    assert found["mean-field"] == Cell("-31.31 ±0.02")
    assert found["flow"].text == "-"
    gaps = cells(bridged, "ELBO gap")
    assert gaps["flow"] == Cell("0.31", note="by bridge sampling")
    assert gaps["mean-field"] == Cell("0.28")
    assert gaps["full-rank"] == Cell("-")
