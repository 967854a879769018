"""Learn to read digits from 100 labels, and 60,000 images without any.

Two models are stacked (Kingma, Rezende, Mohamed and Welling 2014, "M1+M2"). A variational
autoencoder learns, from all images and no label, a few numbers that describe an image. A
semi-supervised one learns, from those numbers and a few labels, which images are the same digit:
the class of an image without label is a latent variable, and is summed out.

    python examples/semi_supervised_mnist.py                      download MNIST
    python examples/semi_supervised_mnist.py --data-dir DIR       use the copy in DIR/MNIST/raw
    python examples/semi_supervised_mnist.py --alpha 0            without the classification loss

prints the test accuracy after each epoch, and writes into runs/semi_supervised_mnist:

    labelled.png     the images whose labels were given
    accuracy.png     test accuracy by epoch
    confusion.png    which digit was taken for which
    samples.png      digits of each class, made by both models
    uncertain.png    the test images that the classifier is least sure of
    metrics.json     the numbers
    vae/, posterior/ both models: pg.load("runs/semi_supervised_mnist/posterior").pair
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from sklearn.linear_model import LogisticRegression

import ppl_gen as pg
from common import (
    EpochTable,
    add_shared,
    claim_folder,
    draw_curves,
    facts_of,
    load_dataset,
    make_parser,
    positive,
    print_contents,
    run_as_command,
    save,
    write_metrics,
)
from ppl_gen.data import ImageDataset
from ppl_gen.inference import SVI, EpochInfo
from ppl_gen.models import VAE, SemiSupervisedVAE
from ppl_gen.report.images import draw_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(argv: Sequence[str] | None = None) -> None:
    run_as_command(run, parse(argv))


def run(options: argparse.Namespace) -> None:
    claim_folder(options.out, overwrite=options.overwrite, posteriors=("vae", "posterior"))
    dataset = load_dataset(options)
    is_mnist = dataset.name == "MNIST"
    labelled = choose(dataset.train_labels, options.labels, options.seed)
    given = dataset.train_labels[labelled]

    torch.manual_seed(options.seed)  # the first weights
    pair = SemiSupervisedVAE(
        image_shape=(options.features,),
        num_classes=10,
        latent_size=options.latent_size,
        hidden_sizes=[200],
        classifier_sizes=[200],
        likelihood="gaussian",
        pixel_scale=1.0,
        alpha=options.alpha,
    )

    # What describes an image, learned without labels.
    vae = learn_to_describe(dataset, options, epochs=options.vae_epochs or (6 if is_mnist else 200))
    features, test_features = (
        describe(vae, dataset.train_images),
        describe(vae, dataset.test_images),
    )
    alone = LogisticRegression(max_iter=1000).fit(features[labelled].numpy(), given.numpy())
    baseline = float(alone.score(test_features.numpy(), dataset.test_labels.numpy()))
    print(f"\nTest accuracy of a logistic regression on the {len(given)} labels: {baseline:.2%}")

    # The class, learned from what describes an image and few labels.
    options.epochs = options.epochs or (6 if is_mnist else 60)
    data = {"x": features, "x_labelled": features[labelled], "y_labelled": given}
    print(
        f"Semi-supervised VAE: {len(features):,} training images, {len(given)} of them with a "
        f"label, {options.epochs} epochs."
    )
    table = EpochTable(options, HEADER, ROW)

    def after_epoch(info: EpochInfo) -> None:
        assert isinstance(info.pair, SemiSupervisedVAE)
        right = info.pair.classify(test_features).argmax(-1).cpu() == dataset.test_labels
        table.add(info, loss=info.loss, test_accuracy=float(right.float().mean()))

    method = SVI(
        guide="pair",
        batch_size=min(options.batch_size, len(features)),
        plate="data",
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        callback=after_epoch,
    )
    posterior = pg.fit(pair, data, method, seed=options.seed)
    trained = posterior.pair
    assert isinstance(trained, SemiSupervisedVAE)

    posterior.save(options.out / "posterior", overwrite=options.overwrite)
    probs = trained.classify(test_features)
    accuracy = float((probs.argmax(-1) == dataset.test_labels).float().mean())
    metrics = facts_of(posterior, dataset, options)
    metrics |= {
        "labels": len(given),
        "training_images": len(features),
        "test_images": len(test_features),
        "test_accuracy": accuracy,
        "test_accuracy_of_labels_alone": baseline,
        "epochs": table.epochs,
    }
    write_metrics(options.out, metrics)
    save(draw_labelled(dataset.train_images[labelled], given), options.out / "labelled.png")
    save(draw_accuracy(table.epochs, baseline, len(given)), options.out / "accuracy.png")
    save(draw_confusion(probs, dataset.test_labels), options.out / "confusion.png")
    save(draw_samples(vae, trained), options.out / "samples.png")
    save(draw_uncertain(dataset, probs), options.out / "uncertain.png")
    print(f"\nTest accuracy from {len(given)} labels: {accuracy:.2%}")
    print_contents(options.out)


HEADER = "epoch      loss  test accuracy    seconds"
ROW = "{epoch:5.0f}{loss:10.2f}{test_accuracy:15.2%}{seconds:11.1f}"


def choose(labels: torch.Tensor, each: int, seed: int) -> torch.Tensor:
    """Return the index of so many images of each class, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        found = (labels == label).nonzero()[:, 0]
        chosen.append(found[torch.randperm(len(found), generator=generator)[:each]])
    return torch.cat(chosen)


def learn_to_describe(dataset: ImageDataset, options: argparse.Namespace, epochs: int) -> VAE:
    """Return a variational autoencoder of the images, binarized anew each time they are read."""
    print(f"VAE: {options.features} numbers for each image of {dataset.name}, {epochs} epochs.")
    torch.manual_seed(options.seed)
    vae = VAE(dataset.image_shape, latent_size=options.features, likelihood="binarized")
    method = SVI(guide="pair", batch_size=128, epochs=epochs)
    posterior = pg.fit(vae, {"x": dataset.train_images}, method, seed=options.seed)
    posterior.save(options.out / "vae", overwrite=options.overwrite)
    if posterior.interrupted:
        raise KeyboardInterrupt
    assert isinstance(posterior.pair, VAE)
    return posterior.pair


@torch.no_grad()
def describe(vae: VAE, images: torch.Tensor) -> torch.Tensor:
    """Return the means of the latents of images."""
    return torch.cat([vae.encode(some)[0] for some in images.split(1000)])


# Pictures


def draw_labelled(images: torch.Tensor, labels: torch.Tensor) -> Figure:
    """Draw the first ten images of each class of which the label was given."""
    each = min(10, len(labels) // 10)
    first = [images[labels == digit][:each] for digit in range(10)]
    title = f"{10 * each} of the {len(labels)} images with a label"
    return draw_images(
        torch.stack(first, dim=1),
        f"The {len(labels)} images with a label" if 10 * each == len(labels) else title,
        column_labels=[str(digit) for digit in range(10)],
    )


def draw_accuracy(epochs: list[dict[str, float]], baseline: float, labels: int) -> Figure:
    """Draw the test accuracy by epoch, above that of the labels alone."""
    from matplotlib.ticker import PercentFormatter

    title = f"Test accuracy from {labels} labels"
    level = ("logistic regression on labels", baseline)
    curves = {"semi-supervised VAE": "test_accuracy"}
    figure = draw_curves(epochs, title, "right among test images", curves, level)
    figure.axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def draw_confusion(probs: torch.Tensor, labels: torch.Tensor) -> Figure:
    """Draw how many test images of each digit were taken for which."""
    from matplotlib.figure import Figure

    counts = torch.zeros(10, 10, dtype=torch.long)
    counts.index_put_((labels, probs.argmax(-1)), torch.ones_like(labels), accumulate=True)
    shares = counts / counts.sum(1, keepdim=True)
    figure = Figure(figsize=(5.6, 5.4), layout="constrained")
    axes = figure.add_subplot()
    # The root lets the few errors be seen beside the many that are right.
    axes.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0.0, vmax=1.0)
    for row in range(10):
        for column in range(10):
            ink = "white" if shares[row, column] > 0.4 else "black"
            text = str(int(counts[row, column])) if counts[row, column] else ""
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
    axes.set_title(f"{int(counts.diagonal().sum()):,} of {len(labels):,} test images right")
    axes.set_xlabel("taken for")
    axes.set_ylabel("digit")
    axes.set_xticks(range(10))
    axes.set_yticks(range(10))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def draw_samples(vae: VAE, pair: SemiSupervisedVAE) -> Figure:
    """Draw digits of each class: the second model describes them, the first draws them."""
    features = pair.sample(torch.arange(10).repeat(8), seed=1)
    return draw_images(
        vae.mean_image(features).unflatten(0, (8, 10)),
        "Samples of each class",
        column_labels=[str(digit) for digit in range(10)],
    )


def draw_uncertain(dataset: ImageDataset, probs: torch.Tensor) -> Figure:
    """Draw the test images whose two most probable classes are nearest to each other."""
    rows, columns = 4, 8
    best, classes = probs.topk(2, dim=-1)
    order = (best[:, 0] - best[:, 1]).argsort()[: rows * columns]
    texts = [
        f"{int(a)} {p:.0%}, {int(b)} {q:.0%}"
        for (a, b), (p, q) in zip(classes[order], best[order], strict=True)
    ]
    return draw_images(
        dataset.test_images[order].unflatten(0, (rows, columns)),
        "The test images that the classifier is least sure of, and its two best guesses",
        captions=[texts[row * columns : (row + 1) * columns] for row in range(rows)],
    )


# Command line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--labels", type=positive, default=10, help="labelled images of each digit")
    add("--alpha", type=float, default=1.0, help="weight of the classification loss")
    add("--features", type=positive, default=30, help="latent variables of the first model")
    add("--latent-size", type=positive, default=5,
        help="latent variables of the second one, besides the class")  # fmt: skip
    add("--vae-epochs", type=positive, help="epochs of the first; 6 for MNIST, 200 for digits")
    add("--epochs", type=positive, help="epochs of the second; 6 for MNIST, 60 for digits")
    names = ("--batch-size", "--learning-rate", "--dataset", "--data-dir", "--seed", "--overwrite")
    defaults = {"batch_size": 100, "learning_rate": 6e-3}
    add_shared(parser, *names, out="runs/semi_supervised_mnist", **defaults)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
