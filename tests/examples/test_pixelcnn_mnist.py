"""The example of a PixelCNN, run on the embedded digits with small settings."""

import json
import math
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

import ppl_gen as pg
from ppl_gen.data import load_digits8x8
from ppl_gen.models import AutoregressiveImage

PICTURES = {"completions.png", "loss_curve.png", "samples.png"}
SMALL = (
    "--dataset digits --epochs 2 --train-images 64 --batch-size 32 --features 6 --layers 2 "
    "--test-images 40 --classified-images 12"
).split()


def run(example: ModuleType, out: Path, *options: str) -> dict[str, Any]:
    example.main([*SMALL, "--out", str(out), *options])
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


def test_all_that_is_promised_is_written(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "pixelcnn"
    metrics = run(example, out, "--mixed-precision")
    assert {path.name for path in out.iterdir()} == PICTURES | {"metrics.json", "posterior"}
    for name in PICTURES:
        pixels = matplotlib.image.imread(out / name)
        assert min(pixels.shape[:2]) > 300, f"{name} is tiny"
        assert float(np.ptp(pixels[..., :3])) > 0.5, f"{name} is empty"
    assert metrics["interrupted"] is False
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2]
    told = capsys.readouterr().out
    assert f"{metrics['epochs'][-1]['test_nats']:.2f}" in told
    assert f"{metrics['nats_without_class']:.2f} nats without being told" in told
    assert "--mixed-precision is for a GPU" in told or torch.cuda.is_available()

    # The saved model is the one that was scored, on one fixed draw of binary pixels.
    trained = pg.load(out / "posterior").pair
    assert isinstance(trained, AutoregressiveImage)
    dataset = load_digits8x8()
    noise = torch.Generator().manual_seed(0)
    x = torch.bernoulli(dataset.test_images, generator=noise)[:40]
    y = dataset.test_labels[:40]
    last = metrics["epochs"][-1]
    assert -float(trained.log_prob(x, y).mean()) == pytest.approx(last["test_nats"])
    bits = float(trained.bits_per_dim(x, y).mean())
    assert bits == pytest.approx(last["test_bits_per_dim"])
    # p(x) is the mean of p(x | digit).
    each = [trained.log_prob(x[:12], torch.full((12,), d)).exp() for d in range(10)]
    mean = torch.stack(each).mean(0).log().mean()
    assert -float(mean) == pytest.approx(metrics["nats_without_class"])


@pytest.mark.parametrize(
    "options",
    [
        "--network made --no-class-conditional",
        "--network pixelcnn --features 4 --likelihood categorical --num-categories 5",
        "--network pixelcnn_pp --features 4 --layers 1 --likelihood logistic_mixture",
        "--network row_lstm --features 4 --layers 1 --no-class-conditional",
        "--network diagonal_bilstm --features 4 --layers 1",
    ],
)
def test_networks_and_likelihoods(example: ModuleType, tmp_path: Path, options: str) -> None:
    metrics = run(example, tmp_path / "out", *options.split(), "--epochs", "1")
    assert PICTURES < {path.name for path in (tmp_path / "out").iterdir()}
    assert ("accuracy" in metrics) == ("--no-class" not in options)
    assert math.isfinite(metrics["epochs"][-1]["test_nats"])


def test_upper_halves_are_kept(example: ModuleType) -> None:
    torch.manual_seed(0)
    options = example.parse([*SMALL])
    pair = AutoregressiveImage(example.make_network((8, 8), 10, options), 10)
    dataset = load_digits8x8()
    figure = example.draw_completions(
        pair, options, dataset.test_images.round(), dataset.test_labels
    )
    canvas, blue = (picture.get_array() for picture in figure.axes[0].images)
    image, drawn = canvas[:4, :8], canvas[:4, 18:26]
    assert np.array_equal(image, drawn)
    assert np.array_equal(canvas[:8, :8], dataset.test_images.round()[dataset.test_labels == 0][0])
    assert np.isnan(np.ma.filled(canvas[4:8, 9:17], np.nan)).all()
    # Blue is what was not given: nothing of the image, the lower halves of all beside it.
    assert not blue[:8, :8, 3].any()
    assert not blue[:4, 9:, 3].any()
    assert blue[4:8, 18:26, 3].all()


def test_a_run_that_was_stopped_is_gone_on_with(example: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = run(example, tmp_path / "whole")
    log_prob = AutoregressiveImage.log_prob
    stops = [1]

    def stopping(self: AutoregressiveImage, *args: Any, **kwargs: Any) -> torch.Tensor:
        if stops:
            stops.pop()
            signal.raise_signal(signal.SIGINT)
        return log_prob(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoregressiveImage, "log_prob", stopping)
        with pytest.raises(SystemExit, match=r"interrupted: go on with it by .* --resume"):
            run(example, out)
    assert json.loads((out / "metrics.json").read_text())["interrupted"]
    with pytest.raises(SystemExit, match="--overwrite, or --resume"):
        run(example, out)
    resumed = run(example, out, "--resume")
    assert [epoch["epoch"] for epoch in resumed["epochs"]] == [1, 2]
    assert resumed["epochs"][-1]["test_nats"] == whole["epochs"][-1]["test_nats"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--likelihood", "categorical", "--num-categories", "1"], "categories"),
        (["--dataset", "mnst"], "Did you mean 'mnist'"),
        (["--learning-rate", "-1"], "learning_rate"),
    ],
)
def test_bad_options(example: ModuleType, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run(example, tmp_path / "out", "--epochs", "1", *options)


def test_choices(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for option, wrong, right in [
        ("--network", "pixelcn", "pixelcnn"),
        ("--likelihood", "gray", "categorical"),
    ]:
        with pytest.raises(SystemExit):
            example.parse([option, wrong])
        told = capsys.readouterr().err
        assert f"invalid choice: '{wrong}'" in told
        assert right in told
