"""Train a PixelCNN on MNIST, one pixel after the other, and see what it has learned.

    python examples/pixelcnn_mnist.py                        download MNIST
    python examples/pixelcnn_mnist.py --data-dir DIR         use the copy in DIR/MNIST/raw
    python examples/pixelcnn_mnist.py --network made         another network of the same kind
    python examples/pixelcnn_mnist.py --likelihood categorical    gray pixels
    python examples/pixelcnn_mnist.py --resume               go on where it was stopped

It is told which digit it draws, unless --no-class-conditional. Into runs/pixelcnn_mnist go

    samples.png       digits that it draws
    completions.png   what it makes of the upper halves of test images
    loss_curve.png    training and test images over the epochs
    metrics.json      the numbers
    posterior/        the trained model: pg.load("runs/pixelcnn_mnist/posterior").pair

On two cores of a CPU the defaults are for ten minutes. The setting of the papers, for a GPU, is
--features 64 --layers 7 --epochs 100 --mixed-precision.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from common import (
    add_shared,
    as_json,
    claim_folder,
    draw_curves,
    load_dataset,
    make_parser,
    mixed_precision,
    one_of_each,
    positive,
    positive_real,
    print_contents,
    read_log,
    run_as_command,
    save,
    share,
    train,
    write_metrics,
)
from ppl_gen.core.errors import unknown
from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.inference import SVI, EpochInfo
from ppl_gen.models import AutoregressiveImage
from ppl_gen.models.networks import (
    MADE,
    DiagonalBiLSTM,
    GatedPixelCNN,
    PixelCNN,
    PixelCNNPlusPlus,
    RowLSTM,
)
from ppl_gen.report.images import draw_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By name: the class, and its sizes, of which --features and --layers replace theirs.
NETWORKS: dict[str, tuple[Any, dict[str, int]]] = {
    "gated_pixelcnn": (GatedPixelCNN, {"features": 16, "layers": 4, "kernel_size": 7}),
    "pixelcnn": (PixelCNN, {"features": 32, "layers": 6}),
    "pixelcnn_pp": (PixelCNNPlusPlus, {"features": 16, "layers": 1}),
    "row_lstm": (RowLSTM, {"features": 16, "layers": 2}),
    "diagonal_bilstm": (DiagonalBiLSTM, {"features": 16, "layers": 2}),
    "made": (MADE, {"features": 1000, "layers": 1}),
}


def main(argv: Sequence[str] | None = None) -> None:
    run_as_command(run, parse(argv), "interrupted: the same command with --resume goes on")


def run(options: argparse.Namespace) -> None:
    claim_folder(options.out, overwrite=options.overwrite, resume=options.resume)
    dataset = load_dataset(options)
    epochs = options.epochs or (3 if dataset.name == "MNIST" else 60)

    # The model, and the images in the form that its pixels are of.
    torch.manual_seed(options.seed)  # the first weights
    classes = 10 if options.class_conditional else None
    network = make_network(dataset.image_shape, classes, options)
    pair = AutoregressiveImage(network, classes)
    training = as_data(dataset.train_images[: options.train_images], dataset.train_labels, pair)
    # One fixed draw of binary pixels; what is drawn anew in each step are those of training images.
    noise = torch.Generator().manual_seed(options.seed)
    images = dataset.test_images
    if options.likelihood == "binarized":
        images = torch.bernoulli(images, generator=noise)
    test = as_data(images[: options.test_images], dataset.test_labels, pair)
    steps = math.ceil(len(training["x"]) / options.batch_size)
    count = sum(parameter.numel() for parameter in network.parameters())
    print(
        f"{type(network).__name__} ({count:,} parameters, pixels {options.likelihood}"
        f"{', told the digit' if classes else ''}) on {dataset.name}: {len(training['x']):,} "
        f"training and {len(test['x']):,} test images, {epochs} epochs of {steps:,} steps."
    )

    log = read_log(options)
    dims = math.prod(dataset.image_shape)

    def after_epoch(info: EpochInfo) -> None:
        assert isinstance(info.pair, AutoregressiveImage)
        nats = -float(info.pair.log_prob(**test).mean())
        log[info.epoch - 1 :] = [
            {
                "epoch": info.epoch,
                "step": info.step,
                "train_nats": info.loss,
                "test_nats": nats,
                "test_bits_per_dim": nats / dims / math.log(2),
                "seconds": round(info.seconds, 2),
            }
        ]
        write_metrics(options.out, {"epochs": log})
        if info.epoch % math.ceil(epochs / 20) == 0 or info.epoch in (1, epochs):
            print(ROW.format(**log[-1]), flush=True)

    print(f"\n{HEADER}")
    method = SVI(
        guide="pair",
        batch_size=min(options.batch_size, len(training["x"])),
        epochs=epochs,
        learning_rate=options.learning_rate,
        autocast=mixed_precision(options),
        callback=after_epoch,
    )
    posterior = train(pair, training, method, options)
    trained = posterior.pair
    assert isinstance(trained, AutoregressiveImage)

    metrics: dict[str, Any] = {
        "dataset": dataset.name,
        "note": dataset.note,
        "options": as_json(options),
        "parameters": count,
        "training_images": len(training["x"]),
        "test_images": len(test["x"]),
        "epochs": log,
        "seconds": round(posterior.provenance["seconds"], 2),
        "interrupted": posterior.interrupted,
    }
    write_metrics(options.out, metrics)
    if log:
        curves = {"train": "train_nats", "test": "test_nats"}
        save(draw_curves(log, "Nats for each image", **curves), options.out / "loss_curve.png")
    if posterior.interrupted:
        print(f"\nInterrupted. Go on with it by --resume --out {options.out}")
        return

    started = time.perf_counter()
    save(draw_samples(trained, options), options.out / "samples.png")
    print(f"\n100 samples in {time.perf_counter() - started:.1f} s, the sampler's making included")
    save(draw_completions(trained, options, **test), options.out / "completions.png")
    if classes:
        few = {name: value[: options.classified_images] for name, value in test.items()}
        metrics |= score_classes(trained, **few)
        print(
            f"all digits being as likely, {len(few['x']):,} test images: "
            f"{metrics['nats_without_class']:.2f} nats without being told the digit, and "
            f"{metrics['accuracy']:.1%} of the digits found"
        )
        write_metrics(options.out, metrics)
    print_contents(options.out)


HEADER = "        train      test, on fixed draws\nepoch    nats      nats   bits/dim    seconds"
ROW = "{epoch:5.0f}{train_nats:8.2f}{test_nats:10.2f}{test_bits_per_dim:11.4f}{seconds:11.1f}"


# Model and data


def make_network(
    image_shape: tuple[int, ...], classes: int | None, options: argparse.Namespace
) -> AutoregressiveNetwork:
    """Return a network with random weights."""
    if options.network not in NETWORKS:
        raise unknown("network", options.network, NETWORKS)
    if options.likelihood not in ("binarized", "categorical", "logistic_mixture"):
        likelihoods = ("binarized", "categorical", "logistic_mixture")
        raise unknown("likelihood", options.likelihood, likelihoods)
    elements = Elements()
    if options.likelihood != "binarized":
        elements = Elements(options.likelihood, options.num_categories)
    kind, defaults = NETWORKS[options.network]
    sizes: dict[str, Any] = dict(defaults)
    for name in ("features", "layers"):
        sizes[name] = getattr(options, name) or sizes[name]
    if kind is MADE:
        sizes = {"hidden_sizes": [sizes["features"]] * sizes["layers"]}
    network: AutoregressiveNetwork = kind(
        image_shape, elements=elements, context_size=classes, **sizes
    )
    return network


def as_data(
    images: torch.Tensor, labels: torch.Tensor, pair: AutoregressiveImage
) -> dict[str, torch.Tensor]:
    """Return images in [0, 1] as the pair takes them, with their labels where it has classes."""
    elements = pair.network.elements
    if elements.likelihood != "bernoulli":
        images = (images * elements.highest).round().to(torch.uint8)
    return {"x": images, "y": labels[: len(images)]} if pair.num_classes else {"x": images}


def score_classes(pair: AutoregressiveImage, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """Return -log p(x), the sum over digits, and how often the likeliest digit is the right one."""
    assert pair.num_classes is not None
    digits = range(pair.num_classes)
    of_each = torch.stack([pair.log_prob(x, torch.full_like(y, digit)) for digit in digits])
    log_prob = of_each.logsumexp(0) - math.log(pair.num_classes)
    right = of_each.argmax(0).cpu() == y.cpu()
    return {
        "nats_without_class": -float(log_prob.mean()),
        "accuracy": float(right.double().mean()),
        "classified_images": len(x),
    }


# Pictures


def gray(images: torch.Tensor, pair: AutoregressiveImage) -> torch.Tensor:
    """Return images of a pair on a scale from 0 to 1."""
    return images.float().cpu() / pair.network.elements.highest


def draw_samples(pair: AutoregressiveImage, options: argparse.Namespace) -> Figure:
    """Draw ten samples of each digit, or a hundred."""
    rows = 100 if pair.num_classes is None else torch.arange(10).repeat(10)
    drawn = pair.sample(
        rows, temperature=options.temperature, top_p=options.top_p, seed=options.seed
    )
    return draw_images(
        gray(drawn, pair).unflatten(0, (10, 10)),
        "Samples" if pair.num_classes is None else "Samples of each digit",
        column_labels=() if pair.num_classes is None else [str(digit) for digit in range(10)],
    )


def draw_completions(
    pair: AutoregressiveImage,
    options: argparse.Namespace,
    x: torch.Tensor,
    y: torch.Tensor | None = None,
) -> Figure:
    """Draw test images, their upper halves, and what is made of each."""
    images = x[:10] if y is None else x[one_of_each(y)]
    labels = None if y is None else y[one_of_each(y)]
    half = images.float().clone()
    half[:, half.shape[1] // 2 :] = math.nan
    times = 8
    drawn = pair.sample(
        len(images) * times if labels is None else labels.repeat_interleave(times),
        given=half.repeat_interleave(times, 0),
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
    )
    completions = gray(drawn, pair).unflatten(0, (-1, times))
    given = [gray(part, pair).unsqueeze(1) for part in (images, half)]
    return draw_images(
        torch.cat([*given, completions], dim=1),
        "Completions of the upper halves of test images",
        column_labels=["image", "given", *["drawn"] * times],
    )


# Command line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--network", default="gated_pixelcnn", help=", ".join(NETWORKS))
    add("--likelihood", default="binarized", help="binarized, categorical or logistic_mixture")
    add("--num-categories", type=positive, default=256, help="values of a pixel of the latter two")
    add("--features", type=positive, help="features of a layer, in place of the network's own")
    add("--layers", type=positive, help="layers, in place of the network's own number")
    add("--class-conditional", action=argparse.BooleanOptionalAction, default=True,
        help="tell the network which digit it draws")  # fmt: skip
    add("--epochs", type=positive, help="passes over the images; 3 for MNIST, 60 for digits")
    add("--batch-size", type=positive, default=32, help="images in a step")
    add("--learning-rate", type=float, default=3e-3, help="first step size of Adam")
    add("--test-images", type=positive, default=2000, help="scored after each epoch")
    add("--classified-images", type=positive, default=500, help="of these, scored as every digit")
    add("--temperature", type=positive_real, default=1.0, help="below 1: likely values more often")
    add("--top-p", type=share, default=1.0, help="share of the likeliest values to draw from")
    names = ("--dataset", "--data-dir", "--train-images", "--seed", "--device")
    modes = ("--mixed-precision", "--overwrite", "--resume")
    add_shared(parser, *names, *modes, out="runs/pixelcnn_mnist")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
