"""What the examples share: options, the folder of the results, numbers, curves, how a run ends.

    from common import add_shared, claim_folder, load_dataset, run_as_command, save

Python finds it because a script's own folder is the first place that it looks in.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

import ppl_gen as pg
from ppl_gen.core import LoadError, Method, NonFiniteLossError
from ppl_gen.core.progress import ProgressBar
from ppl_gen.data import AudioDataset, DatasetUnavailableError, ImageDataset, load_images
from ppl_gen.inference import EpochInfo
from ppl_gen.models import VAE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Item = TypeVar("Item")


# Command line


def positive(text: str) -> int:
    """Return a number of things, of which there is at least one: a type for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def positive_real(text: str) -> float:
    """Return an amount of something: a type for argparse."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, got {value:g}")
    return value


def share(text: str) -> float:
    """Return a share of a whole, which is not nothing: a type for argparse."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected more than 0 and up to 1, got {value:g}")
    return value


# Options that mean the same in every example that has them.
SHARED: dict[str, dict[str, Any]] = {
    "--dataset": {
        "default": "auto",
        "help": "auto, mnist or digits; auto takes digits if there is no MNIST",
    },
    "--data-dir": {
        "type": Path,
        "help": "folder with a local copy, as MNIST/raw; else it is downloaded",
    },
    "--train-images": {"type": positive, "help": "use only so many training images"},
    "--latent-size": {"type": positive, "help": "latent variables of an image"},
    "--hidden-sizes": {"type": positive, "nargs": "+", "help": "sizes of the hidden layers"},
    "--batch-size": {"type": positive, "help": "images, or rows, in a step"},
    "--learning-rate": {"type": float, "help": "first step size of Adam"},
    "--temperature": {
        "type": positive_real,
        "default": 1.0,
        "help": "of samples; below 1: likely values more often",
    },
    "--top-p": {
        "type": share,
        "default": 1.0,
        "help": "of samples; share of the likeliest values that they are drawn from",
    },
    "--chains": {"type": positive, "default": 4, "help": "chains of HMC and NUTS"},
    "--draws": {"type": positive, "help": "draws of each chain"},
    "--warmup": {"type": positive, "help": "warm-up of each chain"},
    "--steps": {"type": positive, "help": "steps of SVI"},
    "--seed": {"type": int, "default": 0, "help": "seed of everything random"},
    "--device": {"default": "auto", "help": "cpu, cuda, or auto: a GPU where there is one"},
    "--mixed-precision": {
        "action": "store_true",
        "help": "matrix products and convolutions in bfloat16, for a GPU",
    },
    "--out": {"type": Path, "help": "folder for the results"},
    "--overwrite": {"action": "store_true", "help": "write into an existing folder"},
    "--resume": {
        "action": "store_true",
        "help": "go on with the training in an existing folder; after its end, write the rest anew",
    },
}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Tells the defaults of options, but not that nothing is given or switched on."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is None or action.default is False
        return action.help if nothing else super()._get_help_string(action)


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser that describes a script by the first line of its docstring."""
    return argparse.ArgumentParser(
        description=(doc or "").split("\n", 1)[0],
        formatter_class=HelpFormatter,
    )


def add_shared(parser: argparse.ArgumentParser, *names: str, out: str, **defaults: Any) -> None:
    """Add --out and some of the other shared options by name, with defaults of their own."""
    parser.add_argument("--out", default=Path(out), **SHARED["--out"])
    # Results that are there are either replaced or gone on with.
    either = [name for name in names if name in ("--overwrite", "--resume")]
    existing = parser.add_mutually_exclusive_group() if either else parser
    for name in names:
        place = existing if name in either else parser
        place.add_argument(name, **SHARED[name])
    parser.set_defaults(**defaults)


def as_json(options: argparse.Namespace) -> dict[str, Any]:
    """Return options as JSON can hold them."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()}


# A run, from its folder to its end


RESUME = "interrupted: go on with it by the same options and --resume, in place of --overwrite"


def run_as_command(
    run: Callable[[argparse.Namespace], None],
    options: argparse.Namespace,
    interrupted: str = "interrupted",
) -> None:
    """Run, and end with one line and exit code 1 where the user can mend it or pressed Ctrl-C."""
    try:
        run(options)
    except (DatasetUnavailableError, LoadError, NonFiniteLossError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(interrupted)


def claim_folder(
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool | None = None,
    posteriors: Sequence[str] = ("posterior",),
) -> Path:
    """Make the folder of the results before any work, and see that it can be written to.

    Args:
        out: The folder.
        overwrite: Whether it may hold something.
        resume: The same, to go on with what it holds; None where a script cannot do that.
        posteriors: Names in it at which posteriors will be saved; nothing else is overwritten.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file. Choose another folder by --out.")
    if out.is_dir() and any(out.iterdir()) and not resume:
        if not overwrite:
            go_on = "" if resume is None else ", or --resume to go on with its training"
            msg = f"{out} exists. Choose another folder by --out, or add --overwrite{go_on}."
            raise FileExistsError(msg)
        for saved in (out / name for name in posteriors):
            if saved.exists() and not (saved / "posterior.json").is_file():
                msg = f"{saved} holds no saved posterior, and is not overwritten. Remove it."
                raise FileExistsError(msg)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        msg = f"cannot write to {out} ({error.strerror}). Choose another folder by --out."
        raise OSError(msg) from error
    return out


def load_dataset(options: argparse.Namespace) -> ImageDataset:
    """Return the images that --dataset and --data-dir name, and print what there is to know."""
    print("Loading images; a download is given up after 30 seconds.", flush=True)
    dataset = load_images(options.dataset, options.data_dir)
    if dataset.note:
        print(f"Note: {dataset.note}\n")
    return dataset


def train(
    pair: pg.Pair, data: dict[str, torch.Tensor], method: Method, options: argparse.Namespace
) -> pg.Posterior:
    """Fit a pair, with checkpoints in --out, where --resume goes on; --overwrite starts anew."""
    folder = options.out / "posterior"
    if options.overwrite and folder.exists():
        shutil.rmtree(folder)  # a posterior, as `claim_folder` has seen
    return pg.fit(
        pair,
        data,
        method,
        seed=options.seed,
        device=options.device,
        out=folder,
        resume=options.resume,
    )


def mixed_precision(options: argparse.Namespace) -> torch.dtype | None:
    """Return what to compute products in by --mixed-precision, which is for a GPU."""
    on_gpu = options.device.startswith("cuda") or (
        options.device == "auto" and torch.cuda.is_available()
    )
    if options.mixed_precision and not on_gpu:
        print("Note: --mixed-precision is for a GPU, and there is none in use: left out.\n")
    return torch.bfloat16 if options.mixed_precision and on_gpu else None


class EpochTable:
    """Numbers of each epoch: kept in metrics.json, where --resume finds them, and printed.

    Args:
        options: Those of the run, --out and --epochs among them.
        header: What is printed above the first row.
        row: How the numbers of an epoch are printed; where there are many, of each twentieth part.
    """

    def __init__(self, options: argparse.Namespace, header: str, row: str) -> None:
        self.options, self.header, self.row = options, f"\n{header}\n", row
        self.epochs: list[dict[str, float]] = []
        self.before: float | None = None  # seconds before --resume
        path = options.out / "metrics.json"
        if getattr(options, "resume", False) and path.exists():
            self.epochs = json.loads(path.read_text(encoding="utf-8")).get("epochs", [])

    def add(self, info: EpochInfo, **numbers: float) -> None:
        """Add an epoch and its numbers, over what is there of it from before --resume."""
        earlier = self.epochs[: info.epoch - 1]
        if self.before is None:
            self.before = earlier[-1]["seconds"] if earlier else 0.0
        seconds = round(self.before + info.seconds, 2)
        row = {"epoch": info.epoch, "step": info.step, **numbers, "seconds": seconds}
        self.epochs = [*earlier, row]
        write_metrics(self.options.out, {"epochs": self.epochs})
        last = self.options.epochs
        if info.epoch % math.ceil(last / 20) == 0 or info.epoch in (1, last):
            print(self.header + self.row.format(**row), flush=True)
            self.header = ""


def facts_of(
    posterior: pg.Posterior, dataset: ImageDataset | AudioDataset, options: argparse.Namespace
) -> dict[str, Any]:
    """Return what was trained on what, for metrics.json."""
    assert posterior.pair is not None
    return {
        "dataset": dataset.name,
        "note": dataset.note,
        "options": as_json(options),
        "parameters": count_parameters(posterior.pair),
        "seconds": round(posterior.provenance["seconds"], 2),
        "interrupted": posterior.interrupted,
    }


def count_parameters(network: torch.nn.Module) -> int:
    """Return how many numbers are learned."""
    return sum(parameter.numel() for parameter in network.parameters())


def log_likelihoods(
    pair: VAE, images: torch.Tensor, samples: int, seed: int, *, together: int
) -> torch.Tensor:
    """Return the log-likelihood of each image by importance sampling, so many images together."""
    parts = [
        pair.importance_log_likelihood(some, samples, seed=seed + i)
        for i, some in enumerate(show_progress(images.split(together), "Importance sampling"))
    ]
    return torch.cat(parts)


def show_progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Go through items with a progress bar on standard error, where they take over two seconds."""
    with ProgressBar(what, len(items), enabled=True, unit="parts") as bar:
        for item in items:
            yield item
            bar.advance()


def fit_all(
    pair: pg.Pair,
    data: dict[str, torch.Tensor],
    methods: dict[str, Method],
    seed: int,
    folder: Path,
) -> dict[str, pg.Posterior]:
    """Fit a pair by each method and save what comes out; Ctrl-C loses nothing."""
    posteriors: dict[str, pg.Posterior] = {}
    for name, method in methods.items():
        posteriors[name] = pg.fit(pair, data, method, seed=seed)
        posteriors[name].save(folder / name, overwrite=True)
        if posteriors[name].interrupted:
            sys.exit(f"interrupted: what was done so far is in {folder}, {name} marked as stopped")
    return posteriors


# What is written


def write_metrics(out: Path, metrics: dict[str, Any]) -> None:
    """Write the numbers as metrics.json into the folder of the results."""
    # In one step: a run that is killed meanwhile leaves the numbers before, for --resume.
    scratch = out / ".metrics.json.new"
    scratch.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    os.replace(scratch, out / "metrics.json")


def save(figure: Figure, path: Path) -> None:
    """Write a figure."""
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15)


def draw_curves(
    epochs: Sequence[dict[str, float]],
    title: str,
    unit: str,
    curves: dict[str, str],
    level: tuple[str, float] | None = None,
) -> Figure:
    """Draw numbers of each epoch, by the labels of curves and the names of numbers.

    Args:
        epochs: The numbers of each epoch by name.
        title: What they are.
        unit: Their unit.
        curves: Names of numbers by the labels of their curves, up to three.
        level: A label and a number to compare them with.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.9), layout="constrained")
    axes = figure.add_subplot()
    for (label, name), style in zip(curves.items(), ("o-", "o--", "o:"), strict=False):
        points = [(numbers["epoch"], numbers[name]) for numbers in epochs]
        axes.plot(*zip(*points, strict=True), style, markersize=3, label=label)
    if level is not None:
        axes.axhline(level[1], color="gray", linewidth=1, label=level[0])
    axes.set_title(title)
    axes.set_ylabel(unit)
    style_epochs(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def style_epochs(axes: Axes) -> None:
    """Label the axis of epochs, at whole numbers, and leave out what is not needed."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def print_contents(out: Path) -> None:
    """Print what is in the folder of the results."""
    print(f"\nIn {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def one_of_each(labels: torch.Tensor, number: int = 0) -> torch.Tensor:
    """Return the index of the image of that number (from 0) with each label there is."""
    found = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    return torch.stack([indices[number % len(indices)] for indices in found])
