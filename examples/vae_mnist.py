"""Train a variational autoencoder on MNIST, and see what it has learned.

    python examples/vae_mnist.py                            download MNIST
    python examples/vae_mnist.py --data-dir DIR             use the copy in DIR/MNIST/raw
    python examples/vae_mnist.py --likelihood binarized     a likelihood to compare with papers

Pictures, numbers and the trained model go to runs/vae_mnist; --help lists all options.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import ppl_gen as pg
from common import (
    EpochTable,
    add_shared,
    claim_folder,
    facts_of,
    load_dataset,
    log_likelihoods,
    make_parser,
    one_of_each,
    positive,
    print_contents,
    run_as_command,
    save,
    style_epochs,
    write_metrics,
)
from ppl_gen.core import NonFiniteLossError
from ppl_gen.inference import SVI, EpochInfo
from ppl_gen.models import VAE
from ppl_gen.report.images import draw_images


def main(argv: Sequence[str] | None = None) -> None:
    run_as_command(run, parse(argv), "interrupted before there was anything to keep")


def run(options: argparse.Namespace) -> None:
    out = claim_folder(options.out, overwrite=options.overwrite)
    dataset = load_dataset(options)
    options.epochs = options.epochs or (10 if dataset.name == "MNIST" else 200)

    # The model, and the images in the form that its likelihood is for.
    torch.manual_seed(options.seed)  # the first weights
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
    table = EpochTable(options, HEADER, ROW)

    def after_epoch(info: EpochInfo) -> None:
        table.add(info, **score(info, train_scored, test_scored))

    method = SVI(
        guide="pair",
        batch_size=min(options.batch_size, len(train)),
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        callback=after_epoch,
    )
    failure = ""
    try:
        posterior = pg.fit(pair, {"x": train}, method, seed=options.seed, device=options.device)
    except NonFiniteLossError as error:
        if error.posterior is None:
            raise
        posterior, failure = error.posterior, str(error)
    trained = posterior.pair
    assert isinstance(trained, VAE)

    # Results are written before the long last step, so that stopping it loses nothing.
    posterior.save(out / "posterior", overwrite=options.overwrite)
    metrics = facts_of(posterior, dataset, options)
    metrics |= {"training_images": len(train), "test_images": len(test), "epochs": table.epochs}
    metrics |= {"failure": failure, "log_likelihood": None}
    write_metrics(out, metrics)
    draw_pictures(out, trained, test_scored, dataset.test_labels, table.epochs)
    if failure:
        sys.exit(f"error: {failure}\nThe last good state is in {out}.")
    if posterior.interrupted:
        print(f"\nInterrupted. What was done so far is in {out}, marked as interrupted.")
        return

    try:
        found = log_likelihood(trained, test_scored[: options.test_images], options)
        metrics["log_likelihood"] = found
        print(
            f"\nlog-likelihood of {found['images']} test images by importance sampling, "
            f"k = {found['samples']}: {found['mean']:.2f} +- {found['standard_error']:.2f} nats"
            f"{CAUTION.get(pair.likelihood, '')}"
        )
    except KeyboardInterrupt:
        metrics["interrupted"] = True
        print("\nInterrupted: no log-likelihood.")
    write_metrics(out, metrics)
    print_contents(out)


HEADER = (
    "        train, nats per image                test, nats per image\n"
    "epoch   -ELBO = reconstruction +    KL       -ELBO = reconstruction +    KL    seconds"
)
ROW = (
    "{epoch:5}{train_negative_elbo:8.2f}  {train_reconstruction:14.2f}  {train_kl:6.2f}    "
    "{test_negative_elbo:8.2f}  {test_reconstruction:14.2f}  {test_kl:6.2f}  {seconds:9.1f}"
)
CAUTION = {
    "bernoulli": " (gray pixels scored as Bernoulli: not to be compared with binary images)",
    "gaussian": " (a density: it depends on the unit of the pixels)",
}


def score(info: EpochInfo, train: torch.Tensor, test: torch.Tensor) -> dict[str, float]:
    """Return the parts of -ELBO on training and test images, in nats per image."""
    pair = info.pair
    assert isinstance(pair, VAE)
    numbers: dict[str, float] = {"loss": info.loss}
    for split, images in (("train", train), ("test", test)):
        terms = pair.elbo_terms(images, seed=info.epoch)
        numbers[f"{split}_negative_elbo"] = float(terms.negative_elbo.mean())
        numbers[f"{split}_reconstruction"] = float(terms.reconstruction.mean())
        numbers[f"{split}_kl"] = float(terms.kl.mean())
    return numbers


def log_likelihood(
    pair: VAE, images: torch.Tensor, options: argparse.Namespace
) -> dict[str, float]:
    """Return the mean log-likelihood of images by importance sampling, with its standard error."""
    # The pair comes back on the CPU: the thousands of decoded images want the GPU, if there is one.
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    pair.to(device)
    count, seed = options.importance_samples, options.seed
    values = log_likelihoods(pair, images, count, seed, together=50).cpu()
    pair.to("cpu")
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {
        "mean": float(values.mean()),
        "standard_error": error,
        "images": len(values),
        "samples": count,
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
        f"Scored after each epoch: {min(num_train, num_test):,} training and all test images."
    )


# Pictures


def draw_pictures(
    out: Path, pair: VAE, test: torch.Tensor, labels: torch.Tensor, log: list[dict[str, float]]
) -> None:
    """Write all pictures into a folder."""
    draw_reconstructions(out / "reconstructions.png", pair, test, labels)
    draw_prior_samples(out / "prior_samples.png", pair)
    draw_traversal(out / "traversal.png", pair, test)
    draw_interpolation(out / "interpolation.png", pair, test, labels)
    draw_latent_map(out / "latent_map.png", pair, test, labels)
    if log:
        draw_loss_curve(out / "loss_curve.png", log)


def draw_reconstructions(path: Path, pair: VAE, test: torch.Tensor, labels: torch.Tensor) -> None:
    """Draw test images, each above the mean image that the model makes of its latents."""
    rows = []
    for number in range(3):
        chosen = test[one_of_each(labels, number)]
        rows += [gray(chosen, pair), gray(pair.reconstruct(chosen), pair)]
    figure = draw_images(
        torch.stack(rows),
        "Test images and their reconstructions",
        row_labels=["image", "reconstruction"] * 3,
        rows_together=2,
    )
    save(figure, path)


def draw_prior_samples(path: Path, pair: VAE) -> None:
    """Draw the mean images of latents from the prior."""
    z = torch.randn(100, pair.latent_size, generator=torch.Generator().manual_seed(0))
    images = gray(pair.mean_image(z), pair).unflatten(0, (10, 10))
    save(draw_images(images, "Samples from the prior (mean images)"), path)


def draw_traversal(path: Path, pair: VAE, test: torch.Tensor) -> None:
    """Draw what each of the most used latents does when it alone moves through its prior."""
    kl = latent_kl(pair, test)
    order = kl.argsort(descending=True)[:10]
    values = 0.6 * torch.arange(-5.0, 6.0)
    z = torch.zeros(len(order), len(values), pair.latent_size)
    for position, latent in enumerate(order):
        z[position, :, latent] = values
    figure = draw_images(
        gray(pair.mean_image(z), pair),
        "Traversal of single latents, the others at 0",
        row_labels=[f"z[{int(i)}]  KL {float(kl[i]):.2f}" for i in order],
        column_labels=[f"{float(value):+.1f}" for value in values],
    )
    save(figure, path)


def draw_interpolation(path: Path, pair: VAE, test: torch.Tensor, labels: torch.Tensor) -> None:
    """Draw the way between pairs of test images, straight in the space of the latents."""
    start, end = test[one_of_each(labels, 3)], test[one_of_each(labels, 4).roll(-1)]
    first, last = pair.encode(start)[0], pair.encode(end)[0]
    steps = torch.linspace(0.0, 1.0, 9)
    between = torch.lerp(first[:, None], last[:, None], steps[:, None])
    made = pair.mean_image(between)
    images = torch.cat([start[:, None], made, end[:, None]], dim=1)
    figure = draw_images(
        gray(images, pair),
        "Interpolation between the latents of two test images",
        column_labels=["image", *[f"{float(step):.3g}" for step in steps], "image"],
    )
    save(figure, path)


def draw_latent_map(path: Path, pair: VAE, test: torch.Tensor, labels: torch.Tensor) -> None:
    """Draw the latent means of test images in two dimensions, coloured by label."""
    from matplotlib.figure import Figure

    with torch.no_grad():
        means = torch.cat([pair.encode(images)[0] for images in test.split(1000)])
    names = ["z[0]", "z[1]"]
    title = f"Latent means of {len(test):,} test images"
    if pair.latent_size == 1:
        means = torch.stack([means[:, 0], labels.to(means)], dim=1)
        names[1] = "label"
    elif pair.latent_size > 2:
        variances, directions = torch.linalg.eigh(torch.cov(means.T))
        means = (means - means.mean(0)) @ directions[:, -2:].flip(-1)
        shares = (variances / variances.sum()).flip(0)
        names = [f"principal component {i + 1} ({shares[i]:.0%} of variance)" for i in range(2)]
        title += f"\nfirst two of {pair.latent_size} principal components"
    figure = Figure(figsize=(7.2, 6.2), layout="constrained")
    axes = figure.add_subplot()
    # In random order, so that the last digit does not cover the others.
    order = torch.randperm(len(means), generator=torch.Generator().manual_seed(0))
    points = axes.scatter(
        means[order, 0].numpy(),
        means[order, 1].numpy(),
        c=labels[order].numpy(),
        cmap="tab10",
        vmin=-0.5,
        vmax=9.5,
        s=4,
    )
    figure.colorbar(points, ticks=range(10), label="digit", shrink=0.8)
    axes.set_title(title)
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def draw_loss_curve(path: Path, log: list[dict[str, float]]) -> None:
    """Draw -ELBO and its two parts over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    figure.suptitle("Negative evidence lower bound and its parts")
    epochs = [numbers["epoch"] for numbers in log]
    panels = {"negative_elbo": "-ELBO", "reconstruction": "reconstruction", "kl": "KL"}
    for axes, (part, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for split, style in (("train", "o--"), ("test", "o-")):
            curve = [numbers[f"{split}_{part}"] for numbers in log]
            axes.plot(epochs, curve, style, markersize=3, label=split)
        axes.set_title(title, fontsize="medium")
        style_epochs(axes)
        if part == "negative_elbo":
            axes.set_ylabel("nats per image")
            axes.legend(frameon=False)
    save(figure, path)


def gray(images: torch.Tensor, pair: VAE) -> torch.Tensor:
    """Return images on the scale of the data as gray levels in [0, 1]."""
    highest = pair.num_categories - 1 if pair.likelihood == "categorical" else 1
    return (images / highest).clamp(0.0, 1.0)


def latent_kl(pair: VAE, images: torch.Tensor) -> torch.Tensor:
    """Return how much each latent is used: its mean divergence from the prior, in nats."""
    with torch.no_grad():
        loc, scale = pair.encode(images[:2000])
    return (0.5 * (loc.square() + scale.square() - 1) - scale.log()).mean(0)


# Command line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--likelihood", default="bernoulli",
        help="bernoulli (gray pixels), binarized, gaussian or categorical")  # fmt: skip
    add("--num-categories", type=positive, default=16,
        help="gray levels for --likelihood categorical")  # fmt: skip
    add("--network", default="mlp", help="mlp or convolutional")
    add("--beta", type=float, default=1.0, help="weight of the KL divergence")
    add("--epochs", type=positive, help="passes over the images; 10 for MNIST, 200 for digits")
    add("--test-images", type=positive, default=1000,
        help="test images for the importance-sampled log-likelihood")  # fmt: skip
    add("--importance-samples", type=positive, default=500, help="samples for each of them")
    names = ("--latent-size", "--hidden-sizes", "--batch-size", "--learning-rate", "--dataset")
    more = ("--data-dir", "--train-images", "--seed", "--device", "--overwrite")
    defaults = {"latent_size": 20, "hidden_sizes": [400]}
    defaults |= {"batch_size": 128, "learning_rate": 1e-3}
    add_shared(parser, *names, *more, out="runs/vae_mnist", **defaults)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
