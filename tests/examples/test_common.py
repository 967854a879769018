"""What the examples share."""

import argparse
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ppl_gen.inference import SVI, EpochInfo
from ppl_gen.models import VAE


def test_only_a_folder_that_is_empty_is_taken_without_being_told(
    example: ModuleType, tmp_path: Path
) -> None:
    out = tmp_path / "a" / "b"
    assert example.claim_folder(out) == out
    assert not list(out.iterdir())
    assert example.claim_folder(out) == out
    (out / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"b exists\. .* add --overwrite\.$"):
        example.claim_folder(out)
    with pytest.raises(FileExistsError, match=r"--overwrite, or --resume to go on"):
        example.claim_folder(out, resume=False)
    example.claim_folder(out, resume=True)
    example.claim_folder(out, overwrite=True)
    assert (out / "mine.txt").read_text() == "mine"
    with pytest.raises(FileExistsError, match="is a file"):
        example.claim_folder(out / "mine.txt", overwrite=True)
    with pytest.raises(OSError, match=r"cannot write to .*below \(Not a directory\)"):
        example.claim_folder(out / "mine.txt" / "below")


def test_only_a_posterior_is_overwritten(example: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    example.claim_folder(tmp_path, overwrite=True)
    with pytest.raises(FileExistsError, match="holds no saved posterior"):
        example.claim_folder(tmp_path, overwrite=True, posteriors=("vae", "posterior"))
    (tmp_path / "vae" / "posterior.json").write_text("{}")
    example.claim_folder(tmp_path, overwrite=True, posteriors=("vae", "posterior"))


def test_options(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    parser = example.make_parser("Does a thing.\n\nAt length.")
    example.add_shared(parser, "--seed", "--overwrite", "--resume", "--draws", out="o", draws=7)
    found = parser.parse_args(["--seed", "3"])
    assert found == argparse.Namespace(
        out=Path("o"), seed=3, overwrite=False, resume=False, draws=7
    )
    assert example.as_json(found)["out"] == "o"
    for wrong, message in [
        (["--overwrite", "--resume"], "not allowed with"),
        (["--draws", "0"], "--draws: expected at least 1, got 0"),
    ]:
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    described = capsys.readouterr().out
    assert "draws of each chain (default: 7)" in described
    assert "default: False" not in described
    assert "Does a thing." in described
    assert "At length." not in described


def test_real_options(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--length", type=example.positive_real)
    parser.add_argument("--share", type=example.share)
    found = parser.parse_args(["--length", "2.5", "--share", "1"])
    assert (found.length, found.share) == (2.5, 1.0)
    for name, value, message in [
        ("--length", "0", "expected a positive number, got 0"),
        ("--length", "nan", "expected a positive number, got nan"),
        ("--length", "inf", "expected a positive number, got inf"),
        ("--length", "long", "invalid positive_real value"),
        ("--share", "0", "expected more than 0 and up to 1, got 0"),
        ("--share", "1.01", "expected more than 0 and up to 1, got 1.01"),
    ]:
        with pytest.raises(SystemExit):
            parser.parse_args([name, value])
        assert f"{name}: {message}" in capsys.readouterr().err


def test_numbers_are_replaced_in_one_step(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example.write_metrics(tmp_path, {"epochs": [{"epoch": 1}]})
    write_text = Path.write_text

    def killed(self: Path, text: str, **options: Any) -> int:
        write_text(self, text[: len(text) // 2], **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            example.write_metrics(tmp_path, {"epochs": [{"epoch": 1}, {"epoch": 2}]})
    options = argparse.Namespace(out=tmp_path, resume=True)
    assert example.EpochTable(options, "", "").epochs == [{"epoch": 1}]
    example.write_metrics(tmp_path, {"epochs": []})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_a_training_goes_on_or_starts_anew(example: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pair = VAE((2, 2), latent_size=1, hidden_sizes=(2,))
    data = {"x": torch.rand(8, 2, 2)}
    options = argparse.Namespace(
        out=tmp_path, seed=0, device="cpu", overwrite=False, resume=False, mixed_precision=False
    )
    epochs: list[int] = []

    def method(count: int) -> SVI:
        return SVI(
            guide="pair", epochs=count, batch_size=4, callback=lambda i: epochs.append(i.epoch)
        )

    first = example.train(pair, data, method(2), options)
    with pytest.raises(FileExistsError):
        example.train(pair, data, method(2), options)
    options.resume = True
    again = example.train(pair, data, method(2), options)
    assert torch.equal(again.history, first.history)
    assert epochs == [1, 2]
    options.resume, options.overwrite = False, True
    assert len(example.train(pair, data, method(3), options).history) == 6
    assert epochs == [1, 2, 1, 2, 3]


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (ValueError("epochs: expected 1"), "error: epochs: expected 1"),
        (OSError("disk full"), "error: disk full"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_what_a_user_can_mend_ends_a_run_with_a_line(
    example: ModuleType, raised: BaseException, told: str
) -> None:
    def run(_: argparse.Namespace) -> None:
        raise raised

    with pytest.raises(SystemExit) as ended:
        example.run_as_command(run, argparse.Namespace(), "stopped")
    assert ended.value.code == told


def test_a_mistake_of_ours_is_not_hidden(example: ModuleType) -> None:
    def run(_: argparse.Namespace) -> None:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        example.run_as_command(run, argparse.Namespace())


def test_one_image_of_each_class(example: ModuleType) -> None:
    labels = torch.tensor([2, 0, 2, 1, 0])
    assert example.one_of_each(labels).tolist() == [1, 3, 0]
    # The second of each, from the start again where there is but one.
    assert example.one_of_each(labels, 1).tolist() == [4, 3, 2]


def test_mixed_precision_is_for_a_gpu(
    example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def chosen(device: str, *, mixed: bool) -> object:
        return example.mixed_precision(argparse.Namespace(device=device, mixed_precision=mixed))

    assert chosen("cuda:0", mixed=True) == torch.bfloat16
    assert chosen("cuda:0", mixed=False) is None
    assert capsys.readouterr().out == ""
    assert chosen("cpu", mixed=True) is None
    assert "none in use" in capsys.readouterr().out


def test_numbers_of_epochs_are_printed_and_found_again(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = argparse.Namespace(out=tmp_path, epochs=60, resume=False)
    table = example.EpochTable(options, "epoch  loss", "{epoch:5}{loss:6.1f}")
    for epoch in range(1, 61):
        info = EpochInfo(epoch, 10 * epoch, 0.0, torch.nn.Identity(), seconds=0.125)
        table.add(info, loss=1 / epoch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["", "epoch  loss"]
    assert [int(line.split()[0]) for line in lines[2:]] == [1, *range(3, 61, 3)]
    assert table.epochs[-1] == {"epoch": 60, "step": 600, "loss": 1 / 60, "seconds": 0.12}

    # Where it goes on from epoch 41, what was there of this and later ones is replaced.
    options.resume = True
    again = example.EpochTable(options, "", "{epoch}")
    assert again.epochs == table.epochs
    again.add(EpochInfo(41, 410, 0.0, torch.nn.Identity(), 0.5), loss=7.0)
    assert [row["epoch"] for row in again.epochs] == list(range(1, 42))
    assert again.epochs[-1]["loss"] == 7.0
    assert again.epochs[-1]["seconds"] == 0.12 + 0.5
    options.resume = False
    assert example.EpochTable(options, "", "").epochs == []
    options.resume = True
    example.write_metrics(tmp_path, {"nats": 80.0})  # of another example
    assert example.EpochTable(options, "", "").epochs == []


def test_curves_have_axes_and_labels(example: ModuleType) -> None:
    epochs = [{"epoch": 1, "train": 3.0, "test": 4.0}, {"epoch": 2, "train": 2.0, "test": 3.5}]
    curves = {"training": "train", "held out": "test"}
    figure = example.draw_curves(epochs, "Loss", "nats", curves, ("coins", 5.0))
    (axes,) = figure.axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("Loss", "epoch", "nats")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["training", "held out", "coins"]
    first, second, level = (line.get_xydata().tolist() for line in axes.lines)
    assert (first, second) == ([[1, 3], [2, 2]], [[1, 4], [2, 3.5]])
    assert {y for _, y in level} == {5.0}
