"""The tables of the measurements of autoregressive likelihoods."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

MACHINE = {
    "cores": 2,
    "threads": 2,
    "load_average_before": 0.1,
    "versions": {"torch": "2.15.0+cpu"},
}


def results() -> dict[str, Any]:
    """Return results of all parts, as the script has them."""

    def trained(nats: float, **more: Any) -> dict[str, Any]:
        facts = {"parameters": 1000, "steps": 20, "epochs": 0.5, "seconds": 590.0}
        return {**facts, "nats": nats, "standard_error": 0.25, "images": 100, **more}

    jacobi = {"passes": 30, "elements": 196, "rows": 16}
    rows = {
        "1": {
            "per_second": 9000.4,
            "ratio": 299.4,
            "goal_of_ratio": 300.0,
            "goal_per_second": 8000,
            "ties": {"count": 1, "of": 8000},
        }
    }
    case = {"rows": rows, "planning_seconds": 1.26}
    slow = {"cannot": "it sorts", "rows": {}}
    return {
        "sampling": {
            "machine": MACHINE,
            "compile_seconds": 5.2,
            "cases": {"WaveNet": case, "another": slow},
            "memory": {"8000": 61.0, "80000": 62.4},
        },
        "training": {
            "machine": MACHINE,
            "goal": 1.05,
            "cases": {
                "WaveNet": {
                    "seconds": {"fit": 0.2, "by_hand": 0.19},
                    "ratio": 1.051,
                    "ratios": [1.0, 1.1],
                }
            },
        },
        "truth": {
            "machine": MACHINE,
            "made": trained(91.5, goal=92.0),
            "small images": {
                "image_shape": [14, 14],
                "MADE": trained(35.0, jacobi=jacobi),
                "gated PixelCNN": trained(34.0, jacobi=jacobi),
                "gain": {"nats": 1.0, "standard_error": 0.1},
            },
            "wavenet": {**trained(0.0), "bits": 4.61, "goal": 4.6, "dataset": "spoken digits"},
        },
    }


def test_goals_are_met_or_missed(bench: SimpleNamespace) -> None:
    goal = bench.tables.goal
    assert goal(4.6, 4.6) == "at most 4.6: met"
    assert goal(4.61, 4.6) == "at most 4.6: missed"
    assert goal(40_000, 40_000, at_least=True) == "at least 40,000: met"
    assert goal(39_999, 40_000, " a second", at_least=True) == "at least 40,000 a second: missed"
    assert goal(1.0, None) == ""


def test_every_number_comes_from_the_results(
    bench: SimpleNamespace, root: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text((root / "docs" / "autoregressive.md").read_text("utf-8"), "utf-8")
    bench.pages.write_tables(results(), page, bench.tables.TABLES)
    text = page.read_text("utf-8")
    assert "Not measured." not in text
    for line in (
        "| WaveNet | 1 | 9,000 | 299 | at least 8,000 a second: met; at least 300 times: missed "
        "| 1 of 8,000 |",
        "| another | | it sorts | | | |",
        "| WaveNet | 0.200 | 0.190 | 1.051 (1.000 to 1.100) | at most 1.05: missed |",
        "| gated PixelCNN on 14 x 14 pixels | 34.00 ± 0.25 nats | 1,000 | 20 | 590 | better than "
        "MADE: met |",
        "| WaveNet on spoken digits | 4.61 bits a sample | 1,000 | 20 | 590 "
        "| at most 4.6: missed |",
    ):
        assert line in text.splitlines()
    assert "1.13 times as fast as it sounds" in text
    assert "61 MiB at 8,000 samples, 62 MiB at 80,000 samples" in text


def test_what_is_timed_is_a_run_of_the_network(bench: SimpleNamespace) -> None:
    runs = []

    class Counted(bench.sampling.MADE):  # type: ignore[name-defined, misc]
        def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
            runs.append(len(x))
            numbers: torch.Tensor = super().numbers(x, context)
            return numbers

    bench.sampling.plain_elements(Counted((3, 3), (4,)), 5, 2)
    assert runs == [5, 5]


@pytest.mark.parametrize("name", ["WaveNet", "gated PixelCNN"])
def test_both_ways_train_on_the_same(bench: SimpleNamespace, name: str) -> None:
    """The loss by hand is the pair's own."""
    (case,) = (c for title, c in bench.training.CASES.items() if title.startswith(name))
    torch.manual_seed(0)
    network, data = case.make(), case.data(1)
    data = data.round() if data.is_floating_point() else data
    pair = case.pair(network)
    with torch.no_grad():
        by_hand = float(case.loss(network, data))
    assert by_hand == pytest.approx(-float(pair.log_prob(data).sum()), rel=1e-5)
