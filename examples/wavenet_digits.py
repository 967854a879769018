"""Train a WaveNet on spoken digits, and hear what it has learned.

    python examples/wavenet_digits.py --data-dir DIR      recordings in DIR or DIR/recordings
    python examples/wavenet_digits.py --dataset vowels    synthetic vowels: no recordings needed

The recordings are those of https://github.com/Jakobovski/free-spoken-digit-dataset. It is told
which digit it says. Into runs/wavenet_digits go

    sounds/            digits to listen to: 7_0.wav is a seven
    waveforms.png      test recordings beside generated sounds
    spectrograms.png   how strong each frequency is in them over time
    loss_curve.png     training and test recordings over the epochs
    metrics.json       the numbers
    posterior/         the trained model: pg.load("runs/wavenet_digits/posterior").pair

On two cores of a CPU the defaults take about ten minutes. That is enough for sounds as loud and as
deep as speech, some of them silent, as recordings begin, but not for words. A larger network, for
a GPU, is --layers 20 --cycle 10 --features 64 --skip 128 --row-length 6144 --batch-size 8
--learning-rate 2e-3 --epochs 100 --mixed-precision.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from common import (
    RESUME,
    EpochTable,
    add_shared,
    claim_folder,
    count_parameters,
    draw_curves,
    facts_of,
    make_parser,
    mixed_precision,
    one_of_each,
    positive,
    positive_real,
    print_contents,
    run_as_command,
    save,
    train,
    write_metrics,
)
from ppl_gen.data import (
    AudioDataset,
    DatasetUnavailableError,
    cut,
    load_spoken_digits,
    save_wav,
    synthesize_vowels,
)
from ppl_gen.distributions import Elements
from ppl_gen.inference import SVI, EpochInfo
from ppl_gen.models import AutoregressiveAudio
from ppl_gen.models.networks import WaveNet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Bits a sample of the spoken digits' test split by a table of how often three levels follow.
TRIGRAM = 5.26


def main(argv: Sequence[str] | None = None) -> None:
    run_as_command(run, parse(argv), RESUME)


def run(options: argparse.Namespace) -> None:
    out = claim_folder(options.out, overwrite=options.overwrite, resume=options.resume)
    dataset = load_recordings(options.dataset, options.data_dir)
    if dataset.note:
        print(f"Note: {dataset.note}\n")

    torch.manual_seed(options.seed)  # the first weights
    pair = make_pair(dataset, options)
    training = rows_of(pair, *some(dataset, options.train_recordings))
    test = rows_of(pair, dataset.test_waveforms, dataset.test_labels)
    print(describe(pair, dataset, training, test, options))

    # Training.
    table = EpochTable(options, HEADER, ROW)

    def after_epoch(info: EpochInfo) -> None:
        assert isinstance(info.pair, AutoregressiveAudio)
        bits = info.loss * len(training["x"]) / samples(training) / math.log(2)
        table.add(info, train_bits=bits, test_bits=info.pair.bits_per_sample(**test))

    method = SVI(
        guide="pair",
        batch_size=min(options.batch_size, len(training["x"])),
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        autocast=mixed_precision(options),
        callback=after_epoch,
    )
    posterior = train(pair, training, method, options)
    trained = posterior.pair
    assert isinstance(trained, AutoregressiveAudio)
    metrics = facts_of(posterior, dataset, options)
    metrics |= {"training_samples": samples(training), "test_samples": samples(test)}
    metrics["epochs"] = table.epochs
    write_metrics(out, metrics)
    if table.epochs:
        save(draw_loss_curve(table.epochs, dataset), out / "loss_curve.png")
    if posterior.interrupted:
        raise KeyboardInterrupt

    # Sounds: some of each class.
    started = time.perf_counter()
    labels = torch.arange(len(dataset.labels)).repeat_interleave(options.each)
    sounds = trained.sample(
        labels,
        options.seconds,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
    )
    taken = time.perf_counter() - started
    print(
        f"\n{len(sounds)} sounds of {options.seconds:g} s each in {taken:.1f} s, "
        "the sampler's making included"
    )
    write_sounds(out / "sounds", sounds, labels, dataset)
    shown = one_of_each(dataset.test_labels)
    columns = {
        "test recordings": [dataset.test_waveforms[i] for i in shown.tolist()],
        "generated": list(sounds[options.each * dataset.test_labels[shown]]),
    }
    names = [dataset.labels[i] for i in dataset.test_labels[shown].tolist()]
    save(draw_waveforms(columns, names, dataset.rate), out / "waveforms.png")
    save(draw_spectrograms(columns, names, dataset.rate), out / "spectrograms.png")
    print_contents(out)


# Data, model, and what is printed


def load_recordings(dataset: str, data_dir: Path | None) -> AudioDataset:
    """Return spoken digits, or where there are none and none were asked for, vowels."""
    if dataset == "vowels":
        return synthesize_vowels()
    folder = data_dir or Path("free-spoken-digit-dataset")
    try:
        return load_spoken_digits(folder)
    except DatasetUnavailableError as error:
        if dataset == "digits":
            raise
        vowels = synthesize_vowels()
        return dataclasses.replace(vowels, note=f"{error}\nGoing on with synthetic vowels instead.")


def some(dataset: AudioDataset, count: int | None) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return so many training recordings with their classes, spread over all; None: all."""
    whole = len(dataset.train_waveforms)
    chosen = torch.linspace(0, whole - 1, min(count or whole, whole)).round().long()
    return [dataset.train_waveforms[i] for i in chosen.tolist()], dataset.train_labels[chosen]


def make_pair(dataset: AudioDataset, options: argparse.Namespace) -> AutoregressiveAudio:
    """Return a WaveNet with random weights that is told which digit it is."""
    network = WaveNet(
        options.row_length,
        features=options.features,
        skip=options.skip,
        layers=options.layers,
        cycle=options.cycle,
        elements=Elements(options.likelihood, 256),
        context_size=len(dataset.labels),
    )
    return AutoregressiveAudio(network, len(dataset.labels), rate=dataset.rate)


def rows_of(
    pair: AutoregressiveAudio, waveforms: Sequence[torch.Tensor], labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return recordings in rows of the length of the network, as the pair takes them."""
    network = pair.network
    assert isinstance(network, WaveNet)
    rows = cut(waveforms, network.length, network.receptive_field)
    x = pair.encode(rows.x).to(torch.uint8)
    return {"x": x, "y": labels[rows.source], "mask": rows.mask}


def samples(data: dict[str, torch.Tensor]) -> int:
    """Return the number of samples that are scored."""
    return int(data["mask"].sum())


def describe(
    pair: AutoregressiveAudio,
    dataset: AudioDataset,
    training: dict[str, torch.Tensor],
    test: dict[str, torch.Tensor],
    options: argparse.Namespace,
) -> str:
    """Return in words what is about to be trained on what."""
    network = pair.network
    assert isinstance(network, WaveNet)
    seen = 1000 * network.receptive_field / pair.rate
    steps = math.ceil(len(training["x"]) / options.batch_size)
    return (
        f"WaveNet ({count_parameters(network):,} parameters, sees {seen:.0f} ms) on "
        f"{dataset.name}: {samples(training):,} training and {samples(test):,} test samples, "
        f"epochs: {options.epochs}, of {steps:,} steps."
    )


HEADER = "epoch   bits a sample: train     test    seconds"
ROW = "{epoch:5}{train_bits:23.3f}{test_bits:9.3f}{seconds:11.1f}"


# Sounds and pictures


def write_sounds(
    folder: Path, sounds: torch.Tensor, labels: torch.Tensor, dataset: AudioDataset
) -> None:
    """Write waveforms as {class}_{number}.wav."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.wav"):  # of another run
        old.unlink()
    for label, name in enumerate(dataset.labels):
        for number, sound in enumerate(sounds[labels == label]):
            save_wav(folder / f"{name}_{number}.wav", sound, dataset.rate)


def draw_waveforms(columns: dict[str, list[torch.Tensor]], names: list[str], rate: int) -> Figure:
    """Draw recordings beside generated sounds, a row for each class."""
    loudest = max(float(sound.abs().max()) for sounds in columns.values() for sound in sounds)
    title = f"Waveforms, each row from {-loudest:.2f} to {loudest:.2f} of full scale"
    figure, grid = columns_of(columns, names, title, rate)
    for axes, waveforms in zip(grid, columns.values(), strict=True):
        for place, waveform in enumerate(waveforms):
            seconds = torch.arange(len(waveform)) / rate
            height = place - 0.45 / loudest * waveform
            axes.plot(seconds.numpy(), height.numpy(), "C0", linewidth=0.4)
    return figure


def draw_spectrograms(
    columns: dict[str, list[torch.Tensor]], names: list[str], rate: int
) -> Figure:
    """Draw how strong each frequency is over time, likewise, over 70 decibels."""
    title = f"Spectrograms, each row from 0 to {rate / 2000:g} kHz"
    figure, grid = columns_of(columns, names, title, rate)
    window = torch.hann_window(200)  # 25 ms
    for axes, waveforms in zip(grid, columns.values(), strict=True):
        for place, waveform in enumerate(waveforms):
            spectrum = torch.stft(
                waveform, 256, 50, 200, window, pad_mode="constant", return_complex=True
            )
            level = 20 * spectrum.abs().clamp(min=1e-6).log10()
            picture = axes.imshow(
                (level - level.max()).numpy(),
                origin="lower",
                aspect="auto",
                extent=(0, len(waveform) / rate, place + 0.45, place - 0.45),
                vmin=-70,
                vmax=0,
                cmap="magma",
            )
    label = "decibels, below the loudest of each"
    figure.colorbar(picture, ax=list(grid), label=label, shrink=0.5, aspect=30)
    return figure


def columns_of(
    columns: dict[str, list[torch.Tensor]], names: list[str], title: str, rate: int
) -> tuple[Figure, list[Axes]]:
    """Return a figure with axes for each column, on which place i is for the i-th class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 0.8 * len(names) + 1.2), layout="constrained")
    figure.suptitle(title)
    grid = list(figure.subplots(1, len(columns), sharey=True))
    longest = max(len(waveform) for waveforms in columns.values() for waveform in waveforms)
    for axes, name in zip(grid, columns, strict=True):
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("seconds")
        axes.set_xlim(0, longest / rate)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("class")
    return figure, grid


def draw_loss_curve(epochs: Sequence[dict[str, float]], dataset: AudioDataset) -> Figure:
    """Draw the bits of a sample over the epochs."""
    curves = {"test recordings, after each epoch": "test_bits"}
    curves["training recordings, during it"] = "train_bits"
    level = ("a table of trigrams, test", TRIGRAM) if dataset.name == "spoken digits" else None
    return draw_curves(epochs, "Negative log-likelihood", "bits a sample", curves, level)


# Command line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--dataset", default="auto", choices=("auto", "digits", "vowels"), help="auto: digits, or "
        "vowels where there are none")  # fmt: skip
    add("--data-dir", type=Path, help="folder with the recordings")
    add("--train-recordings", type=positive, help="use only so many training recordings")
    add("--layers", type=positive, default=9, help="dilated convolutions")
    add("--cycle", type=positive, default=9, help="layers after which dilations start again at 1")
    add("--features", type=positive, default=32, help="features of a layer")
    add("--skip", type=positive, default=64, help="features that go from each layer to the end")
    add("--likelihood", default="categorical", choices=("categorical", "logistic_mixture"),
        help="what one of the 256 levels is drawn by")  # fmt: skip
    add("--row-length", type=positive, default=2048, help="samples in a row, its past included")
    add("--epochs", type=positive, default=3, help="passes over the recordings")
    add("--each", type=positive, default=2, help="sounds of each class to generate")
    add("--seconds", type=positive_real, default=0.6, help="length of a generated sound")
    names = ("--batch-size", "--learning-rate", "--temperature", "--top-p", "--seed", "--device")
    modes = ("--mixed-precision", "--overwrite", "--resume")
    defaults = {"batch_size": 2, "learning_rate": 4e-3}
    add_shared(parser, *names, *modes, out="runs/wavenet_digits", **defaults)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
