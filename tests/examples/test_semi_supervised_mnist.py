"""The example of learning from few labels, run on the embedded digits with small settings."""

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
from ppl_gen.models import VAE, SemiSupervisedVAE

PICTURES = {"accuracy.png", "confusion.png", "labelled.png", "samples.png", "uncertain.png"}
SMALL = "--dataset digits --vae-epochs 3 --epochs 2 --features 4 --latent-size 2".split()


def run(example: ModuleType, out: Path, *options: str) -> dict[str, Any]:
    example.main([*SMALL, "--out", str(out), *options])
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


def test_all_that_is_promised_is_written(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    metrics = run(example, out, "--labels", "3")
    expected = PICTURES | {"metrics.json", "posterior", "vae"}
    assert {path.name for path in out.iterdir()} == expected
    for name in PICTURES:
        pixels = matplotlib.image.imread(out / name)
        assert min(pixels.shape[:2]) > 300, f"{name} is tiny"
        assert float(np.ptp(pixels[..., :3])) > 0.5, f"{name} is empty"
    assert metrics["labels"] == 30
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2]
    assert f"{metrics['test_accuracy']:.2%}" in capsys.readouterr().out

    # The saved models are those that were scored.
    vae, pair = (pg.load(out / name).pair for name in ("vae", "posterior"))
    assert isinstance(vae, VAE)
    assert isinstance(pair, SemiSupervisedVAE)
    dataset = load_digits8x8()
    probs = pair.classify(example.describe(vae, dataset.test_images))
    right = (probs.argmax(-1) == dataset.test_labels).float().mean()
    assert float(right) == pytest.approx(metrics["test_accuracy"])


def test_labels_are_drawn_class_by_class(example: ModuleType) -> None:
    labels = torch.arange(10).repeat(20)
    first, second = (example.choose(labels, 3, seed) for seed in (0, 1))
    for chosen in (first, second):
        assert labels[chosen].bincount().tolist() == [3] * 10
        assert len(set(chosen.tolist())) == 30
    assert not torch.equal(first, second)
    assert torch.equal(first, example.choose(labels, 3, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "mnst"], "Did you mean 'mnist'"),
        (["--alpha", "-1"], "alpha"),
        (["--learning-rate", "-1"], "learning_rate"),
    ],
)
def test_bad_options(example: ModuleType, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run(example, tmp_path / "out", "--vae-epochs", "1", *options)


def test_a_folder_that_exists_is_an_error(example: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "something").write_text("kept")
    with pytest.raises(SystemExit, match=r"out exists\. .*--overwrite"):
        run(example, tmp_path / "out")
    with pytest.raises(SystemExit, match="cannot write to"):
        run(example, tmp_path / "out" / "something" / "below")
