"""Fill in missing pixels of handwritten digits by a variational autoencoder.

Whole digits are learned; then the lower half of test images is hidden, or a square in the middle,
or 70 % of the pixels at random, and drawn from what the rest says of them.

    python examples/inpainting_mnist.py                     train a VAE on MNIST first
    python examples/inpainting_mnist.py --posterior DIR     take one that was saved, such as by
                                                            vae_mnist.py --likelihood binarized

prints how well hidden pixels are predicted, and writes into runs/inpainting_mnist/:

    lower_half.png, square.png, scattered.png   images, what is seen of them, draws, and their mean
    metrics.json                                the numbers
    posterior/                                  the VAE, where it was trained here
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

import ppl_gen as pg
from common import (
    add_shared,
    claim_folder,
    load_dataset,
    make_parser,
    one_of_each,
    positive,
    run_as_command,
    save,
    write_metrics,
)
from ppl_gen.data import ImageDataset
from ppl_gen.inference import SVI, Imputation, impute
from ppl_gen.models import VAE
from ppl_gen.report.images import draw_images

TITLES = {
    "lower_half": "the lower half",
    "square": "a square in the middle",
    "scattered": "70 % of the pixels, at random",
}


def main(arguments: list[str] | None = None) -> None:
    run_as_command(run, parse(arguments))


def run(options: argparse.Namespace) -> None:
    out = claim_folder(options.out, overwrite=options.overwrite)
    dataset = load_dataset(options)
    posterior = load(options.posterior) if options.posterior else train(dataset, options, out)
    pair = posterior.pair
    assert isinstance(pair, VAE)
    if pair.image_shape != dataset.image_shape:
        sys.exit(
            f"error: the VAE in {options.posterior} is of images {pair.image_shape}, and those of "
            f"{dataset.name} are {dataset.image_shape}. Choose others by --dataset."
        )

    generator = torch.Generator().manual_seed(options.seed)
    images = dataset.test_images[: options.images]
    average = dataset.train_images.mean(0)
    if pair.likelihood == "binarized":
        images = torch.bernoulli(images, generator=generator)
    shown = one_of_each(dataset.test_labels[: len(images)])
    whole = pair.importance_log_likelihood(images, options.importance_samples, seed=options.seed)

    metrics = {}
    print(
        f"\n{len(images)} test images of {dataset.name}, nats for each hidden pixel\n"
        f"{'hidden':32}VAE, pixel by pixel   VAE, jointly   pixel means   ESS of {options.draws}"
    )
    for name, mask in masks(images, generator).items():
        filled = impute(posterior, images, mask, draws=options.draws, seed=options.seed)
        metrics[name] = score(filled, images, mask, average, whole)
        print(f"{TITLES[name]:32}{row(metrics[name])}", flush=True)
        title = f"Hidden, in blue: {TITLES[name]}"
        figure = draw_picture(title, pair, images[shown], mask[shown], pick(filled, shown))
        save(figure, out / f"{name}.png")
    write_metrics(out, metrics)
    print(f"\nWritten: the numbers and {len(metrics)} pictures in {out}")


def train(dataset: ImageDataset, options: argparse.Namespace, out: Path) -> pg.Posterior:
    """Train a VAE of binary images, and save it."""
    torch.manual_seed(options.seed)  # the first weights
    pair = VAE(
        dataset.image_shape,
        latent_size=options.latent_size,
        hidden_sizes=options.hidden_sizes,
        likelihood="binarized",
    )
    epochs = options.epochs or (10 if dataset.name == "MNIST" else 200)
    print(f"Training a VAE on {len(dataset.train_images):,} images, {epochs} epochs", flush=True)
    method = SVI(guide="pair", batch_size=128, epochs=epochs)
    posterior = pg.fit(pair, {"x": dataset.train_images}, method, seed=options.seed)
    posterior.save(out / "posterior", overwrite=options.overwrite)
    if posterior.interrupted:
        sys.exit(f"interrupted: what was trained so far is in {out / 'posterior'}")
    return posterior


def load(folder: Path) -> pg.Posterior:
    """Return a saved VAE of binary or gray images."""
    posterior = pg.load(folder)
    pair = posterior.pair
    if not isinstance(pair, VAE) or pair.likelihood not in ("bernoulli", "binarized"):
        sys.exit(
            f"error: {folder} holds no VAE of binary images. Save one by examples/vae_mnist.py "
            "with --likelihood binarized."
        )
    return posterior


def masks(images: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return by name which pixels of each image are seen."""
    height, width = images.shape[1:]
    lower_half, square = torch.ones(2, height, width, dtype=torch.bool)
    lower_half[height // 2 :] = False
    square[height // 4 : -(height // 4), width // 4 : -(width // 4)] = False
    return {
        "lower_half": lower_half.expand(images.shape),
        "square": square.expand(images.shape),
        "scattered": torch.rand(images.shape, generator=generator) < 0.3,
    }


def score(
    filled: Imputation,
    images: torch.Tensor,
    mask: torch.Tensor,
    average: torch.Tensor,
    whole: torch.Tensor,
) -> dict[str, float]:
    """Return the mean negative log-likelihoods of hidden pixels, with standard errors."""

    def by_image(probabilities: torch.Tensor) -> torch.Tensor:
        # A pixel that is never white in training may be so once.
        p = probabilities.double().clamp(1e-4, 1 - 1e-4)
        nats = -(images * p.log() + (1 - images) * (1 - p).log())
        return (nats * ~mask).sum((1, 2)) / (~mask).sum((1, 2))

    # log p(hidden | seen) = log p(whole) - log p(seen)
    jointly = (filled.log_likelihood - whole) / (~mask).sum((1, 2))
    found = {
        "pixel_by_pixel": by_image(filled.mean),
        "jointly": jointly,
        "pixel_means": by_image(average.expand(images.shape)),
    }
    numbers = {name: float(nats.mean()) for name, nats in found.items()}
    for name, nats in found.items():
        numbers[f"{name}_standard_error"] = float(nats.std()) / math.sqrt(len(nats))
    return {
        **numbers,
        "images": len(images),
        "median_ess": float(filled.ess.median()),
        "least_ess": float(filled.ess.min()),
        "acceptance": float(filled.acceptance.mean()),
    }


def row(numbers: dict[str, float]) -> str:
    """Return the line of one mask in the table."""
    cells = [
        f"{numbers[name]:.4f} +- {numbers[f'{name}_standard_error']:.4f}"
        for name in ("pixel_by_pixel", "jointly", "pixel_means")
    ]
    return "  ".join(cells) + f"   {numbers['median_ess']:.0f} (least {numbers['least_ess']:.0f})"


def pick(filled: Imputation, rows: torch.Tensor) -> Imputation:
    """Return some rows of an imputation."""
    return Imputation(
        filled.draws[:, rows],
        filled.mean[rows],
        filled.latents[:, rows],
        filled.log_likelihood[rows],
        filled.ess[rows],
        filled.acceptance[rows],
    )


def draw_picture(
    title: str, pair: VAE, images: torch.Tensor, mask: torch.Tensor, filled: Imputation
) -> Figure:
    """Draw images, what is seen of them, draws of the rest and its mean, a row for each image."""
    # Draws without pixel noise: the expected pixels at each draw of the latents.
    draws = torch.where(mask, images, pair.mean_image(filled.latents[:7]))
    seen = torch.where(mask, images, math.nan)
    shown = torch.stack([images, seen, *draws, filled.mean], dim=1)
    labels = ["image", "seen", *["drawn"] * len(draws), "mean"]
    return draw_images(shown, title, column_labels=labels, marked=shown.isnan())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--posterior", type=Path, help="folder of a saved VAE; else one is trained")
    add("--epochs", type=positive, help="passes over the images: 10 for MNIST, 200 for digits")
    add("--images", type=positive, default=100, help="test images to hide pixels of")
    add("--draws", type=positive, default=100, help="draws for each of them")
    add("--importance-samples", type=positive, default=1000, help="for whole images")
    names = ("--latent-size", "--hidden-sizes", "--dataset", "--data-dir", "--seed", "--overwrite")
    defaults = {"latent_size": 20, "hidden_sizes": [400]}
    add_shared(parser, *names, out="runs/inpainting_mnist", **defaults)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
