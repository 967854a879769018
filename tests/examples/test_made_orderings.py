"""The example of orderings, on the embedded digits with small settings."""

import json
from pathlib import Path
from types import ModuleType

import matplotlib.image
import numpy as np
import pytest
import torch

import ppl_gen as pg
from ppl_gen.models import AutoregressiveImage
from ppl_gen.models.networks import MADE, OrderAgnosticMADE

SMALL = (
    "--dataset digits --hidden-sizes 16 --num-orderings 1 3 --epochs 3 --train-images 300 "
    "--learning-rate 0.01"
).split()


def test_all_that_is_promised_is_written(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "orderings"
    example.main([*SMALL, "--out", str(out)])
    pictures = {"samples.png", "lower_half.png", "scattered.png"}
    models = {"reading_order", "1_orderings", "3_orderings"}
    assert {path.name for path in out.iterdir()} == {"metrics.json", *pictures, *models}
    for name in pictures:
        pixels = matplotlib.image.imread(out / name)
        assert min(pixels.shape[:2]) > 300
        assert float(np.ptp(pixels[..., :3])) > 0.5
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["training_images"] == 300
    for name in models:
        log = json.loads((out / name / "metrics.json").read_text())["epochs"]
        assert [row["epoch"] for row in log] == [1, 2, 3]
    nats = metrics["nats"]
    # An ensemble of one is that one. 64 coins have 44 nats.
    assert nats["1_orderings"]["ensemble"] == pytest.approx(nats["1_orderings"]["one_ordering"])
    assert max(nats["reading_order"]["one_ordering"], nats["3_orderings"]["ensemble"]) < 44
    numbers = nats["3_orderings"].values()
    assert " ".join(f"{number:.2f}" for number in numbers) in " ".join(
        capsys.readouterr().out.split()
    )

    networks = {}
    for name in models:
        pair = pg.load(out / name / "posterior").pair
        assert isinstance(pair, AutoregressiveImage)
        networks[name] = pair.network
    assert type(networks["reading_order"]) is MADE
    loaded = networks["3_orderings"]
    assert isinstance(loaded, OrderAgnosticMADE)
    made = OrderAgnosticMADE((8, 8), (16,), num_orderings=3)
    assert torch.equal(loaded.orderings, made.orderings)

    with pytest.raises(SystemExit, match="--resume to go on"):
        example.main([*SMALL, "--out", str(out)])
    example.main([*SMALL, "--out", str(out), "--resume"])
    assert json.loads((out / "metrics.json").read_text())["nats"] == nats
