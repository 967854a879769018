"""The main example, run on the embedded digits with small settings."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

import ppl_gen as pg
from ppl_gen.models import VAE

PICTURES = {
    "interpolation.png",
    "latent_map.png",
    "loss_curve.png",
    "prior_samples.png",
    "reconstructions.png",
    "traversal.png",
}
SMALL = (
    "--dataset digits --epochs 2 --train-images 256 --batch-size 64 --hidden-sizes 16 "
    "--latent-size 3 --importance-samples 5 --test-images 20"
).split()


def run(example: ModuleType, out: Path, *options: str) -> dict[str, Any]:
    example.main([*SMALL, "--out", str(out), *options])
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


@pytest.mark.parametrize("likelihood", ["bernoulli", "binarized", "gaussian", "categorical"])
def test_all_that_is_promised_is_written(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], likelihood: str
) -> None:
    out = tmp_path / "runs" / "vae"
    metrics = run(example, out, "--likelihood", likelihood, "--num-categories", "4")
    assert {path.name for path in out.iterdir()} == PICTURES | {"metrics.json", "posterior"}
    for name in PICTURES:
        pixels = matplotlib.image.imread(out / name)
        assert min(pixels.shape[:2]) > 300, f"{name} is tiny"
        assert float(np.ptp(pixels[..., :3])) > 0.5, f"{name} is empty"
    assert metrics["dataset"] == "8x8 digits"
    assert metrics["interrupted"] is False
    assert metrics["training_images"] == 256
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2]
    assert metrics["log_likelihood"]["images"] == 20
    assert metrics["log_likelihood"]["samples"] == 5
    for epoch in metrics["epochs"]:
        for split in ("train", "test"):
            parts = epoch[f"{split}_reconstruction"] + epoch[f"{split}_kl"]
            assert epoch[f"{split}_negative_elbo"] == pytest.approx(parts)
            assert epoch[f"{split}_kl"] > 0
    table = capsys.readouterr().out
    assert f"{metrics['epochs'][-1]['test_negative_elbo']:.2f}" in table
    assert f"k = 5: {metrics['log_likelihood']['mean']:.2f}" in table

    trained = pg.load(out / "posterior").pair
    assert isinstance(trained, VAE)
    assert trained.likelihood == likelihood
    assert trained.hidden_sizes == (16,)


def test_the_saved_model_is_the_one_that_was_scored(example: ModuleType, tmp_path: Path) -> None:
    from ppl_gen.data import load_digits8x8

    metrics = run(example, tmp_path / "out")
    trained = pg.load(tmp_path / "out" / "posterior").pair
    assert isinstance(trained, VAE)
    terms = trained.elbo_terms(load_digits8x8().test_images, seed=2)
    found = metrics["epochs"][-1]["test_negative_elbo"]
    assert float(terms.negative_elbo.mean()) == pytest.approx(found)


@pytest.mark.parametrize("latent_size", ["1", "2"])
def test_convolutions_and_few_latents(
    example: ModuleType, tmp_path: Path, latent_size: str
) -> None:
    options = ["--network", "convolutional", "--latent-size", latent_size, "--epochs", "1"]
    run(example, tmp_path / "out", *options)
    assert PICTURES < {path.name for path in (tmp_path / "out").iterdir()}


def test_a_folder_that_exists_is_an_error_before_any_training(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = run(example, out, "--epochs", "1")
    with monkeypatch.context() as patch:
        patch.setattr(example.pg, "fit", lambda *_, **__: pytest.fail("trained all the same"))
        with pytest.raises(SystemExit, match=r"out exists. .*--overwrite"):
            run(example, out)
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(SystemExit, match=r"is a file. Choose another folder"):
            run(example, tmp_path / "file")
        with pytest.raises(SystemExit, match="cannot write to"):
            run(example, tmp_path / "file" / "below")
        (tmp_path / "other" / "posterior").mkdir(parents=True)
        with pytest.raises(SystemExit, match="holds no saved posterior"):
            run(example, tmp_path / "other", "--overwrite")
    assert json.loads((out / "metrics.json").read_text()) == first
    assert len(run(example, out, "--overwrite")["epochs"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--likelihood", "bernouli"], "Did you mean 'bernoulli'"),
        (["--dataset", "mnst"], "Did you mean 'mnist'"),
        (["--network", "cnn"], "unknown network 'cnn'"),
        (["--beta", "-1"], "beta"),
        (["--learning-rate", "-1"], "learning_rate"),
        (["--device", "abacus"], "device"),
    ],
)
def test_bad_options(example: ModuleType, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run(example, tmp_path / "out", *options)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("option", ["--epochs", "--batch-size", "--latent-size", "--train-images"])
def test_sizes_that_are_not_positive(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    with pytest.raises(SystemExit):
        run(example, tmp_path / "out", option, "0")
    assert f"{option}: expected at least 1, got 0" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_done(
    example: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    score = example.score

    def stop_in_second_epoch(info: Any, *images: torch.Tensor) -> dict[str, float]:
        if info.epoch == 2:
            raise KeyboardInterrupt
        numbers: dict[str, float] = score(info, *images)
        return numbers

    monkeypatch.setattr(example, "score", stop_in_second_epoch)
    metrics = run(example, tmp_path / "out", "--epochs", "50")
    assert metrics["interrupted"] is True
    assert len(metrics["epochs"]) == 1
    assert "Interrupted" in capsys.readouterr().out
    posterior = pg.load(tmp_path / "out" / "posterior")
    assert posterior.interrupted
    assert PICTURES < {path.name for path in (tmp_path / "out").iterdir()}


def test_ctrl_c_in_the_importance_sampling(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(example, "log_likelihood", stop)
    metrics = run(example, tmp_path / "out")
    assert metrics["interrupted"] is True
    assert metrics["log_likelihood"] is None
    assert len(metrics["epochs"]) == 2


def test_without_mnist_it_says_so_and_takes_the_digits(
    example: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No connection can be made: requests go to a port that nobody listens on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    out = tmp_path / "out"
    metrics = run(example, out, "--dataset", "auto", "--epochs", "1")
    assert metrics["dataset"] == "8x8 digits"
    assert "Note: MNIST could not be downloaded" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: no MNIST in"):
        run(example, out, "--dataset", "mnist", "--data-dir", str(tmp_path), "--overwrite")


def test_real_mnist(example: ModuleType, tmp_path: Path, shared_data: Path) -> None:
    options = ["--dataset", "mnist", "--data-dir", str(shared_data), "--hidden-sizes", "100"]
    options += ["--train-images", "5000", "--epochs", "3"]
    metrics = run(example, tmp_path / "out", *options, "--learning-rate", "0.01")
    assert metrics["dataset"] == "MNIST"
    assert metrics["test_images"] == 10_000
    # Independent pixels with the training means cost about 206 nats; three latents do better.
    assert metrics["epochs"][-1]["test_negative_elbo"] < 206
