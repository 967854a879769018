"""Train a variational autoencoder on MNIST, and see what it has learned.

    python examples/vae_mnist.py                            download MNIST
    python examples/vae_mnist.py --data-dir DIR             use the copy in DIR/MNIST/raw
    python examples/vae_mnist.py --likelihood binarized     a likelihood to compare with papers

Pictures, numbers and the trained model go to runs/vae_mnist; --help lists all options.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track

import ppl_gen as pg
from ppl_gen.data import DatasetUnavailableError, ImageDataset, load_images
from ppl_gen.inference import SVI, EpochInfo
from ppl_gen.models import VAE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    try:
        run(options)
    except (DatasetUnavailableError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace) -> None:
    out = claim_folder(options.out, overwrite=options.overwrite)
    dataset = load_images(options.dataset, options.data_dir)
    if dataset.note:
        print(f"Note: {dataset.note}\n")

    # The model, and the images in the form that its likelihood is for.
    pair = VAE(
        image_shape=dataset.image_shape,
        latent_size=options.latent_size,
        hidden_sizes=options.hidden_sizes,
        likelihood=options.likelihood,
        network=options.network,
        beta=options.beta,
        num_categories=options.num_categories,
    )
    train = as_pixels(dataset.train_images[: options.train_images], pair)
    test = as_pixels(dataset.test_images, pair)
    # What is scored after each epoch: as many training images as there are test images, and
    # where binary images are modelled, one fixed draw of them.
    train_scored = scorable(train[: len(test)], pair, options.seed)
    test_scored = scorable(test, pair, options.seed + 1)
    print(describe(pair, dataset.name, len(train), len(test), options))

    # Training.
    log: list[dict[str, float]] = []

    def after_epoch(info: EpochInfo) -> None:
        log.append(score(info, train_scored, test_scored))
        print(row(log[-1]), flush=True)

    print(f"\n{HEADER}")
    posterior = pg.fit(
        pair,
        {"x": train},
        SVI(
            guide="pair",
            batch_size=min(options.batch_size, len(train)),
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            callback=after_epoch,
        ),
        seed=options.seed,
        device=options.device,
    )
    trained = posterior.pair
    assert isinstance(trained, VAE)

    # Results are written before the long last step, so that stopping it loses nothing.
    posterior.save(out / "posterior", overwrite=options.overwrite)
    metrics = {
        "dataset": dataset.name,
        "note": dataset.note,
        "options": {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()},
        "parameters": sum(parameter.numel() for parameter in trained.parameters()),
        "training_images": len(train),
        "test_images": len(test),
        "epochs": log,
        "seconds": round(posterior.provenance["seconds"], 2),
        "interrupted": posterior.interrupted,
        "log_likelihood": None,
    }
    write_metrics(out, metrics)
    labels = dataset.test_labels
    draw_pictures(out, trained, test, test_scored, labels, log, options.seed)
    if posterior.interrupted:
        print(f"\nInterrupted. What was done so far is in {out}, marked as interrupted.")
        return

    try:
        found = log_likelihood(trained, test_scored[: options.test_images], options)
        metrics["log_likelihood"] = found
        unit = "" if options.likelihood in ("binarized", "categorical") else UNITS[pair.likelihood]
        print(
            f"\nlog-likelihood of {found['images']} test images by importance sampling, "
            f"k = {found['samples']}: {found['mean']:.2f} +- {found['standard_error']:.2f} nats"
            f"{unit}"
        )
    except KeyboardInterrupt:
        metrics["interrupted"] = True
        print("\nInterrupted: no log-likelihood.")
    write_metrics(out, metrics)
    print(f"\nIn {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


HEADER = (
    "        train, nats per image                test, nats per image\n"
    "epoch   -ELBO = reconstruction +    KL       -ELBO = reconstruction +    KL    seconds"
)
UNITS = {
    "bernoulli": " (of gray pixels scored as Bernoulli: no density, not for tables of binary MNIST)",
    "gaussian": " (a density: it depends on the unit of the pixels)",
}


def row(numbers: dict[str, float]) -> str:
    """Return the line of one epoch in the table."""
    parts = [
        f"{numbers[f'{split}_negative_elbo']:8.2f}  {numbers[f'{split}_reconstruction']:14.2f}  "
        f"{numbers[f'{split}_kl']:6.2f}"
        for split in ("train", "test")
    ]
    return f"{numbers['epoch']:5.0f}{parts[0]}    {parts[1]}  {numbers['seconds']:9.1f}"


def score(info: EpochInfo, train: torch.Tensor, test: torch.Tensor) -> dict[str, float]:
    """Return the parts of -ELBO on training and test images, in nats per image."""
    pair = info.pair
    assert isinstance(pair, VAE)
    numbers: dict[str, float] = {"epoch": info.epoch, "step": info.step, "loss": info.loss}
    for split, images in (("train", train), ("test", test)):
        terms = pair.elbo_terms(images, seed=info.epoch)
        numbers[f"{split}_negative_elbo"] = float(terms.negative_elbo.mean())
        numbers[f"{split}_reconstruction"] = float(terms.reconstruction.mean())
        numbers[f"{split}_kl"] = float(terms.kl.mean())
    return {**numbers, "seconds": round(info.seconds, 2)}


def log_likelihood(
    pair: VAE, images: torch.Tensor, options: argparse.Namespace
) -> dict[str, float]:
    """Return the mean log-likelihood of images by importance sampling, with its standard error."""
    # The pair comes back on the CPU: the thousands of decoded images want the GPU, if there is one.
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    pair.to(device)
    chunks = images.split(50)
    parts = [
        pair.importance_log_likelihood(chunk, options.importance_samples, seed=options.seed + i)
        for i, chunk in enumerate(
            track(chunks, "Importance sampling", console=Console(stderr=True), transient=True)
        )
    ]
    pair.to("cpu")
    values = torch.cat(parts).cpu()
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {
        "mean": float(values.mean()),
        "standard_error": error,
        "images": len(values),
        "samples": options.importance_samples,
    }


def as_pixels(images: torch.Tensor, pair: VAE) -> torch.Tensor:
    """Return images in [0, 1] as the pair's likelihood takes them."""
    if pair.likelihood == "categorical":
        return (images * (pair.num_categories - 1)).round().to(torch.uint8)
    return images


def scorable(images: torch.Tensor, pair: VAE, seed: int) -> torch.Tensor:
    """Return images as they are, or one fixed draw of binary ones."""
    if pair.likelihood == "binarized":
        return torch.bernoulli(images, generator=torch.Generator().manual_seed(seed))
    return images


def describe(
    pair: VAE, name: str, num_train: int, num_test: int, options: argparse.Namespace
) -> str:
    """Return in words what is about to be trained on what."""
    sizes = "-".join(str(n) for n in (math.prod(pair.image_shape), *pair.hidden_sizes))
    network = f"{pair.network} {sizes}-{pair.latent_size}"
    return (
        f"VAE ({network}, likelihood {pair.likelihood}, beta {pair.beta:g}) on {name}: "
        f"{num_train:,} training and {num_test:,} test images, {options.epochs} epochs.\n"
        f"Scored after each epoch: {min(num_train, num_test):,} training images and all test images."
    )


def claim_folder(out: Path, *, overwrite: bool) -> Path:
    """Make the output folder before any training, and see that it can be written to."""
    if out.exists() and not out.is_dir():
        msg = f"{out} is a file. Choose another folder by --out."
        raise FileExistsError(msg)
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            msg = f"the folder {out} exists. Choose another one by --out, or add --overwrite."
            raise FileExistsError(msg)
        saved = out / "posterior"
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


def write_metrics(out: Path, metrics: dict[str, Any]) -> None:
    """Write the numbers as JSON."""
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


# Pictures


def draw_pictures(
    out: Path,
    pair: VAE,
    test: torch.Tensor,
    test_scored: torch.Tensor,
    labels: torch.Tensor,
    log: list[dict[str, float]],
    seed: int,
) -> None:
    """Write all pictures into a folder."""
    draw_reconstructions(out / "reconstructions.png", pair, test_scored, labels)
    draw_prior_samples(out / "prior_samples.png", pair, seed)
    draw_traversal(out / "traversal.png", pair, test_scored)
    draw_interpolation(out / "interpolation.png", pair, test_scored, labels)
    draw_latent_map(out / "latent_map.png", pair, test_scored, labels)
    if log:
        draw_loss_curve(out / "loss_curve.png", log, pair.beta)


def draw_reconstructions(path: Path, pair: VAE, test: torch.Tensor, labels: torch.Tensor) -> None:
    """Draw test images above the means that the model makes of their latents."""
    chosen = torch.cat([test[examples(labels, skip)] for skip in range(3)])
    made = pair.reconstruct(chosen)
    images = torch.stack(
        [half for i in range(0, 30, 10) for half in (as_float(chosen, pair)[i : i + 10], as_float(made, pair)[i : i + 10])]
    )
    figure, axes = image_grid(images, "Test images, each above its reconstruction", pairs=True)
    row_labels(axes, images, ["image", "reconstruction"] * 3, pairs=True)
    save(figure, path)


def draw_prior_samples(path: Path, pair: VAE, seed: int) -> None:
    """Draw means of images whose latents come from the prior."""
    noise = torch.randn(100, pair.latent_size, generator=torch.Generator().manual_seed(seed))
    images = as_float(pair.mean_image(noise), pair).unflatten(0, (10, 10))
    figure, _ = image_grid(images, "Samples from the prior: mean images")
    save(figure, path)
