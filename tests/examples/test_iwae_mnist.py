"""The example of importance-weighted autoencoders, on the embedded digits with small settings."""

import json
from pathlib import Path
from types import ModuleType

import matplotlib.image
import numpy as np
import pytest

import ppl_gen as pg
from ppl_gen.models import VAE

SMALL = (
    "--dataset digits --k 1 4 --epochs 2 --hidden-sizes 16 --latent-size 3 --train-images 200 "
    "--test-images 20 --samples 10"
).split()


def test_all_that_is_promised_is_written(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "iwae"
    example.main([*SMALL, "--out", str(out)])
    assert {path.name for path in out.iterdir()} == {"metrics.json", "iwae.png", "k1", "k4"}
    pixels = matplotlib.image.imread(out / "iwae.png")
    assert min(pixels.shape[:2]) > 300
    assert float(np.ptp(pixels[..., :3])) > 0.5
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["training_images"] == 200
    for k, result in metrics["results"].items():
        assert len(result["negative_bound"]) == 2
        assert len(result["variances"]) == 3
        assert 0 <= result["active"] <= 3
        assert 10 < result["negative_log_likelihood"] < 64
        assert result["published"] is None
        trained = pg.load(out / f"k{k}")
        assert isinstance(trained.pair, VAE)
        assert trained.provenance["options"]["objective"] == f"ImportanceWeighted(samples={k})"
    nats = [metrics["results"][k]["negative_log_likelihood"] for k in ("1", "4")]
    assert metrics["results"]["4"]["gain"] == pytest.approx(nats[0] - nats[1])
    assert "k = 1, epoch 2: negative bound" in capsys.readouterr().out

    # Models that are there are scored again, and not trained.
    example.main([*SMALL, "--out", str(out)])
    said = capsys.readouterr().out
    assert "epoch 2: negative bound" not in said
    assert json.loads((out / "metrics.json").read_text())["results"] == metrics["results"]
    with pytest.raises(SystemExit, match=r"holds another run:\n  option 'epochs' was 2, is 3"):
        example.main([*SMALL, "--out", str(out), "--epochs", "3"])
