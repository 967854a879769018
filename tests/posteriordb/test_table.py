"""The table: what it counts, what it says of good and of bad draws, and the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import table
import torch
from agreement import threshold
from pairs import POSTERIORS

import ppl_gen as pg
from ppl_gen.inference import NUTS

NAME = "mesquite-logmesquite"
LIMIT = threshold(460)


@pytest.fixture
def perfect(posteriordb: Path) -> pg.Posterior:
    """Four of the ten chains of the reference, as a posterior."""
    latents = POSTERIORS[NAME].reference_latents(posteriordb)
    return pg.Posterior(
        draws={site: value[:4].clone() for site, value in latents.items()},
        latents=tuple(latents),
        sample_stats={"diverging": torch.zeros(4, 1000)},
        provenance={"seconds": 1.25, "gradient_evaluations": 12_345},
    )


def test_good_draws_agree(perfect: pg.Posterior, posteriordb: Path) -> None:
    row = table.judge(POSTERIORS[NAME], posteriordb, perfect)
    assert row.complaints(LIMIT) == []
    assert (row.dim, row.divergences) == (8, 0)
    assert len(row.comparisons) == len(row.exact) == 16
    page = table.markdown([row], LIMIT, 460)
    assert f"| {NAME} | 8 | 1.2 | 12,345 | " in page
    assert "| agrees |" in page
    # A table of Markdown has as many cells in each line.
    assert len({line.count("|") for line in page.splitlines() if line.startswith("|")}) == 1


def test_shifted_draws_do_not(perfect: pg.Posterior, posteriordb: Path) -> None:
    perfect.draws["beta"][:, :, 2] += 0.1  # half an sd
    row = table.judge(POSTERIORS[NAME], posteriordb, perfect)
    first, second = row.complaints(LIMIT)
    assert first.startswith("mean of beta[3], z ")
    assert first.endswith("(exact)")
    assert second.endswith("(reference)")


def test_a_chain_apart_fails_by_r_hat(perfect: pg.Posterior, posteriordb: Path) -> None:
    perfect.draws["sigma"][0] += 0.04  # one sd
    row = table.judge(POSTERIORS[NAME], posteriordb, perfect)
    assert row.complaints(LIMIT)[0].startswith("R-hat 1.")


def test_draws_that_are_not_finite_fail(perfect: pg.Posterior, posteriordb: Path) -> None:
    perfect.draws["sigma"][0, 0] = torch.nan
    row = table.judge(POSTERIORS[NAME], posteriordb, perfect)
    complaints = row.complaints(LIMIT)
    assert complaints[0] == "R-hat nan"
    assert "mean of sigma, z inf (exact)" in complaints
    assert row.cells(LIMIT)[-1].endswith("; 2 more")
    assert replace(row, max_rhat=1.0).complaints(LIMIT) == complaints[1:]


def test_number_of_comparisons(posteriordb: Path) -> None:
    # 133 parameters by mean and sd, 2 by five quantiles; 90 with exact moments.
    assert table.number_of_comparisons(posteriordb) == 2 * 135 + 2 * 5 + 2 * 90


def test_command(
    posteriordb: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(table, "METHOD", NUTS(chains=2, draws=20, warmup=20))
    out = tmp_path / "docs" / "table.md"
    name = "gp_pois_regr-gp_regr"
    failed = table.main(["--data", str(posteriordb), "--out", str(out), "--only", name])
    assert failed == 1  # R-hat, after so few draws
    assert f"| {name} | 3 | " in out.read_text()
    assert f"1/1 {name}" in capsys.readouterr().out
