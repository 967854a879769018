"""The table of densities, made with tiny settings, and the places that results are written to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ppl_gen.data import ImageDataset, load_digits8x8
from ppl_gen.models.networks import FVBN, MADE


@pytest.fixture
def digits() -> ImageDataset:
    """A few digits."""
    whole = load_digits8x8()
    return dataclasses.replace(
        whole, train_images=whole.train_images[:100], test_images=whole.test_images[:20]
    )


def row(bits: float, *, bound: bool = False) -> dict[str, Any]:
    return {
        "parameters": 1234567,
        "epochs": 2.04,
        "seconds": 61.2,
        "nats": 100 * bits,
        "nats_standard_error": 0.5,
        "bits_per_dim": bits,
        "bits_per_dim_standard_error": 0.005,
        "test_images": 10,
        "bound": bound,
    }


def results(images: str = "MNIST") -> dict[str, Any]:
    return {
        "images": images,
        "minutes": 1,
        "device": "cpu",
        "cores": 2,
        "threads": 2,
        "rows": {
            "binarized": {"MADE": row(0.9), "VAE": row(1.01, bound=True)},
            "grays": {"MADE": row(1.5), "FVBN": {"parameters": 7, "failed": "a NaN"}},
        },
    }


def line(lines: list[str], name: str) -> list[str]:
    (found,) = (text for text in lines if text.startswith(f"| {name} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_numbers_stand_beside_published_ones_of_the_same_quantity(bench: SimpleNamespace) -> None:
    tables = bench.density_tables
    binary, gray = tables.binarized(results()), tables.grays(results())
    cells = ["90.00 ± 0.50", "1,234,567", "2.0", "61"]
    assert line(binary, "MADE") == ["MADE", *cells, "84.87", "86.64"]
    # A density that is bounded from below is a negative one bounded from above.
    assert line(binary, "VAE")[1] == "≤ 101.00 ± 0.50"
    assert line(binary, "FVBN")[1:] == ["not measured", "", "", "", "96.58", ""]
    assert line(gray, "MADE")[1] == "1.500 ± 0.005"
    assert line(gray, "FVBN")[1:] == ["the loss became infinite", "7", "", "", ""]
    assert line(gray, "PixelCNN++")[-1] == "2.92"
    assert not any("84.87" in text for text in gray)
    assert {text.count("|") for text in binary} == {8}
    assert {text.count("|") for text in gray} == {7}


def test_other_images_have_no_published_numbers(bench: SimpleNamespace) -> None:
    tables = bench.density_tables
    found = results("8x8 digits")
    assert len(line(tables.binarized(found), "MADE")) == 5
    assert len(line(tables.grays(found), "MADE")) == 5
    assert "8x8 digits" in tables.about(found)[0]
    assert "not the images of MNIST" in tables.about(found)[-1]
    assert not any("left out" in text for text in tables.about(results()))


def test_a_page_keeps_what_is_not_a_table(bench: SimpleNamespace, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- a -->\nold\n<!-- end -->\nBetween\n<!-- b -->\n<!-- end -->\nEnd")
    tables = {"a": lambda found: [f"| {found['a']} |"], "b": lambda found: [found["b"]]}
    bench.pages.write_tables({"a": 1}, page, tables)
    written = page.read_text()
    assert [text for text in written.splitlines() if text] == [
        *("Before", "<!-- a -->", "| 1 |", "<!-- end -->", "Between"),
        *("<!-- b -->", "Not measured.", "<!-- end -->", "End"),
    ]
    bench.pages.write_tables({"a": 1}, page, tables)
    assert page.read_text() == written
    with pytest.raises(ValueError, match="'<!-- c -->' for a table, found none"):
        bench.pages.write_tables({}, page, {"c": tables["a"]})


@pytest.mark.parametrize("name", ["densities", "autoregressive"])
def test_every_table_has_its_place(
    bench: SimpleNamespace, root: Path, tmp_path: Path, name: str
) -> None:
    tables = {"densities": bench.density_tables, "autoregressive": bench.tables}[name].TABLES
    page = tmp_path / "page.md"
    page.write_text((root / "docs" / f"{name}.md").read_text(encoding="utf-8"), encoding="utf-8")
    bench.pages.write_tables({}, page, tables)
    assert page.read_text(encoding="utf-8").count("Not measured.") == len(tables)


def test_models_are_trained_scored_and_kept(bench: SimpleNamespace, digits: ImageDataset) -> None:
    only = ("FVBN", "VAE")
    *_, found = bench.densities.measure(digits, 0.002, "cpu", {}, only)
    assert json.loads(json.dumps(found)) == found
    for kind in ("binarized", "grays"):
        assert list(found["rows"][kind]) == list(only)
        for name, made in found["rows"][kind].items():
            assert made["steps"] >= 1
            assert made["bits_per_dim"] == pytest.approx(made["nats"] / 64 / 0.693147, rel=1e-5)
            assert made["bound"] == (name == "VAE")
            assert made["test_images"] == 20
    # An untrained guess of 17 values has log2(17) = 4.09 bits, and of two values one bit.
    assert 0 < found["rows"]["binarized"]["FVBN"]["bits_per_dim"] < 1.5
    assert 1.5 < found["rows"]["grays"]["VAE"]["bits_per_dim"] < 4.5

    (again,) = bench.densities.measure(digits, 0.002, "cpu", found, only)
    assert again == found
    # Numbers of another time are neither mixed with these nor dropped.
    with pytest.raises(ValueError, match=r"minutes 0.002 in place of 0.003"):
        next(bench.densities.measure(digits, 0.003, "cpu", found, only))


def test_the_number_of_steps_fits_the_time(bench: SimpleNamespace) -> None:
    pair = bench.densities.MODELS["FVBN"].make(
        SimpleNamespace(shape=(3, 3), elements=FVBN((3, 3)).elements), False
    )
    data = {"x": torch.rand(40, 3, 3)}
    trained = bench.budget.fit_within(pair, data, 0.01, batch_size=100, progress=False)
    # More rows than there are make one step an epoch.
    assert trained.epochs == trained.steps >= 1
    assert trained.parameters == 90
    assert trained.facts().keys() == {"parameters", "steps", "epochs", "seconds"}


def test_draws_of_the_sampler_are_those_of_the_network(bench: SimpleNamespace) -> None:
    torch.manual_seed(0)
    found = bench.sampling.ties(MADE((8, 9), hidden_sizes=(20,)).double(), 6)
    assert found == {"count": 0, "of": 432}
