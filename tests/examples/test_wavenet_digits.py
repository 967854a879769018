"""The example of spoken digits, on a few synthetic vowels and with small settings."""

from __future__ import annotations

import json
import math
import signal
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

import ppl_gen as pg
from ppl_gen.data import load_wav, save_wav, synthesize_vowels
from ppl_gen.models import AutoregressiveAudio
from ppl_gen.models.networks import WaveNet

PICTURES = {"loss_curve.png", "spectrograms.png", "waveforms.png"}
SMALL = (
    "--epochs 2 --layers 3 --cycle 3 --features 8 --skip 8 --row-length 400 --batch-size 8 "
    "--each 2 --seconds 0.05 --train-recordings 20"
).split()


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder of recordings, named as the spoken digits are."""
    vowels = synthesize_vowels(each=2, seconds=0.08)
    for number, waveform in enumerate((*vowels.train_waveforms, *vowels.test_waveforms)):
        save_wav(tmp_path / "data" / f"{number % 10}_ada_{number}.wav", waveform, 8000)
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()


def run(example: ModuleType, out: Path, *options: str) -> dict[str, Any]:
    example.main([*SMALL, "--out", str(out), *options])
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


def test_all_that_is_promised_is_written(
    example: ModuleType, tmp_path: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    metrics = run(example, out, "--data-dir", str(recordings), "--mixed-precision")
    expected = PICTURES | {"metrics.json", "posterior", "sounds"}
    assert {path.name for path in out.iterdir()} == expected
    for name in PICTURES:
        pixels = matplotlib.image.imread(out / name)
        assert min(pixels.shape[:2]) > 300, f"{name} is tiny"
        assert float(np.ptp(pixels[..., :3])) > 0.5, f"{name} is empty"
    sounds = sorted((out / "sounds").iterdir())
    assert [path.name for path in sounds[:3]] == ["0_0.wav", "0_1.wav", "1_0.wav"]
    assert len(sounds) == 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an untrained network: they are clipped
        assert {len(load_wav(sound, 8000)[0]) for sound in sounds} == {400}
    assert metrics["dataset"] == "spoken digits"
    assert metrics["interrupted"] is False
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2]
    bits = [epoch[f"{split}_bits"] for epoch in metrics["epochs"] for split in ("train", "test")]
    assert all(0 < each < 8.5 for each in bits)
    told = capsys.readouterr().out
    assert f"{metrics['epochs'][-1]['test_bits']:.3f}" in told
    assert "--mixed-precision is for a GPU" in told or torch.cuda.is_available()

    # The saved model is the one that was scored, each sample of the test recordings once.
    trained = pg.load(out / "posterior").pair
    assert isinstance(trained, AutoregressiveAudio)
    assert isinstance(trained.network, WaveNet)
    dataset = example.load_recordings("digits", recordings)
    assert metrics["test_samples"] == sum(map(len, dataset.test_waveforms))
    nats = 0.0
    for waveform, label in zip(dataset.test_waveforms, dataset.test_labels, strict=True):
        whole = AutoregressiveAudio(trained.network.with_length(len(waveform)), 10)
        nats -= float(whole.log_prob(whole.encode(waveform)[None], label[None]))
    found = nats / math.log(2) / metrics["test_samples"]
    assert found == pytest.approx(metrics["epochs"][-1]["test_bits"], rel=1e-5)


def test_an_interrupted_run_is_gone_on_with(
    example: ModuleType, tmp_path: Path, recordings: Path
) -> None:
    options = ("--data-dir", str(recordings), "--epochs", "3")
    whole = run(example, tmp_path / "whole", *options)
    out = tmp_path / "out"
    score, scored = AutoregressiveAudio.bits_per_sample, []

    def stopping(self: AutoregressiveAudio, **test: torch.Tensor) -> float:
        scored.append(1)
        if len(scored) == 2:
            signal.raise_signal(signal.SIGINT)
        return score(self, **test)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoregressiveAudio, "bits_per_sample", stopping)
        with pytest.raises(SystemExit, match=r"interrupted: go on with it by .* --resume"):
            run(example, out, *options)
    assert json.loads((out / "metrics.json").read_text())["interrupted"] is True
    assert not (out / "sounds").exists()
    gone_on = run(example, out, *options, "--resume")
    assert gone_on["interrupted"] is False
    assert [epoch["epoch"] for epoch in gone_on["epochs"]] == [1, 2, 3]
    for name in ("train_bits", "test_bits"):
        found = [epoch[name] for epoch in gone_on["epochs"]]
        assert found == pytest.approx([epoch[name] for epoch in whole["epochs"]], rel=1e-5)
    for path in (tmp_path / "whole" / "sounds").iterdir():
        assert (out / "sounds" / path.name).read_bytes() == path.read_bytes()


def test_without_recordings_it_says_so_and_takes_vowels(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = run(example, tmp_path / "out", "--epochs", "1", "--data-dir", str(tmp_path / "none"))
    assert metrics["dataset"] == "synthetic vowels"
    told = capsys.readouterr().out
    assert "git clone" in told
    assert "Going on with synthetic vowels" in told
    assert (tmp_path / "out" / "sounds" / "heed_0.wav").exists()
    with pytest.raises(SystemExit, match="error: no spoken digits in"):
        run(example, tmp_path / "other", "--dataset", "digits", "--data-dir", str(tmp_path))


def test_bad_options(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # What is needed only after the training is refused before.
    for name, value in (("--seconds", "0"), ("--temperature", "-1"), ("--top-p", "1.5")):
        with pytest.raises(SystemExit):
            example.parse([name, value])
        assert f"{name}: expected" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        example.parse(["--likelihood", "bernoulli"])
    assert "invalid choice: 'bernoulli'" in capsys.readouterr().err
    for options, message in {
        ("--row-length", "5"): "more than the context",
        ("--learning-rate", "-1"): "learning_rate",
        ("--device", "abacus"): "device",
    }.items():
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            run(example, tmp_path / "out", "--dataset", "vowels", *options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(SystemExit, match="full exists"):
        run(example, tmp_path / "full", "--dataset", "vowels")
