"""The example of the conditional VAE, run on the embedded digits with small settings."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

import ppl_gen as pg
from ppl_gen.data import load_digits8x8
from ppl_gen.models import ConditionalVAE

PICTURES = {"classes.png", "reconstructions.png", "style_transfer.png"}
SMALL = "--dataset digits --epochs 2 --latent-size 2 --hidden-sizes 16 --train-images 300".split()


def run(example: ModuleType, out: Path, *options: str) -> dict[str, Any]:
    example.main([*SMALL, "--out", str(out), *options])
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


def test_all_that_is_promised_is_written(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    metrics = run(example, out)
    assert {path.name for path in out.iterdir()} == PICTURES | {"metrics.json", "posterior"}
    for name in PICTURES:
        pixels = matplotlib.image.imread(out / name)
        assert min(pixels.shape[:2]) > 300, f"{name} is tiny"
        assert float(np.ptp(pixels[..., :3])) > 0.5, f"{name} is empty"
    last = metrics["epochs"][-1]
    assert last["epoch"] == 2
    parts = last["test_reconstruction"] + last["test_kl"]
    assert last["test_negative_elbo"] == pytest.approx(parts)
    assert f"{last['test_negative_elbo']:.2f}" in capsys.readouterr().out

    # The saved model is the one that was scored.
    pair = pg.load(out / "posterior").pair
    assert isinstance(pair, ConditionalVAE)
    dataset = load_digits8x8()
    terms = pair.elbo_terms(dataset.test_images, dataset.test_labels, seed=2)
    assert float(terms.negative_elbo.mean()) == pytest.approx(last["test_negative_elbo"])


def test_a_style_is_the_same_latents_under_every_class(example: ModuleType) -> None:
    pair = ConditionalVAE((4, 4), condition_size=10, latent_size=2, hidden_sizes=(5,))
    figure = example.draw_style_transfer(pair, torch.rand(20, 4, 4), torch.arange(10).repeat(2))
    (canvas,) = (np.ma.filled(image.get_array(), np.nan) for image in figure.axes[0].images)
    # Ten rows and, beside image and gap, ten columns of 4 x 4 pixels with a pixel between them.
    assert canvas.shape == (49, 59)
    assert np.isnan(canvas[:, 4:10]).all()
    assert not np.isnan(canvas[:4, 10:14]).any()


def test_bad_options_and_folders(example: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*Did you mean 'mnist'"):
        run(example, tmp_path / "out", "--dataset", "mnst")
    (tmp_path / "out" / "file").write_text("in the way")
    with pytest.raises(SystemExit, match=r"out exists\. .*--overwrite"):
        run(example, tmp_path / "out")
    with pytest.raises(SystemExit, match="cannot write to"):
        run(example, tmp_path / "out" / "file" / "below")
