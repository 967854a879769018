"""The example of missing pixels, on the embedded digits with small settings."""

import json
import math
from pathlib import Path
from types import ModuleType

import matplotlib.image
import numpy as np
import pytest
import torch

import ppl_gen as pg
from ppl_gen.inference import SVI
from ppl_gen.models import VAE, EightSchools

SMALL = (
    "--dataset digits --epochs 100 --hidden-sizes 64 --latent-size 6 --images 12 --draws 20 "
    "--importance-samples 50"
).split()
PICTURES = {"lower_half.png", "square.png", "scattered.png"}


def test_all_that_is_promised_is_written(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "inpainting"
    example.main([*SMALL, "--out", str(out)])
    assert {path.name for path in out.iterdir()} == PICTURES | {"metrics.json", "posterior"}
    for name in PICTURES:
        pixels = matplotlib.image.imread(out / name)
        assert min(pixels.shape[:2]) > 300, f"{name} is tiny"
        assert float(np.ptp(pixels[..., :3])) > 0.5, f"{name} is empty"
    metrics = json.loads((out / "metrics.json").read_text())
    table = capsys.readouterr().out
    for numbers in metrics.values():
        assert numbers["images"] == 12
        assert all(math.isfinite(number) for number in numbers.values())
        assert f"{numbers['pixel_by_pixel']:.4f} +- " in table
    # Even a small model knows more of most pixels than their means say.
    assert metrics["scattered"]["pixel_by_pixel"] < metrics["scattered"]["pixel_means"]

    # The model that was saved is taken, and says the same.
    again = tmp_path / "again"
    example.main([*SMALL, "--out", str(again), "--posterior", str(out / "posterior")])
    assert json.loads((again / "metrics.json").read_text()) == metrics
    with pytest.raises(SystemExit, match=r"exists. Choose another folder by --out"):
        example.main([*SMALL, "--out", str(again)])


def test_posteriors_of_another_kind(example: ModuleType, tmp_path: Path) -> None:
    schools = pg.fit(
        EightSchools(), EightSchools.data(), SVI(guide="laplace", draws=5), progress=False
    )
    schools.save(tmp_path / "schools")
    small = pg.fit(
        VAE((4, 4), latent_size=1, hidden_sizes=(2,)),
        {"x": torch.rand(4, 4, 4)},
        SVI(guide="pair", batch_size=2, steps=1),
        progress=False,
    )
    small.save(tmp_path / "small")
    for name, message in [
        ("schools", "holds no VAE of binary images"),
        ("small", r"is of images \(4, 4\), and those of 8x8 digits are \(8, 8\)"),
        ("nothing", "nothing"),
    ]:
        with pytest.raises(SystemExit, match=message):
            example.main(
                [
                    *SMALL,
                    "--out",
                    str(tmp_path / f"out_{name}"),
                    "--posterior",
                    str(tmp_path / name),
                ]
            )
