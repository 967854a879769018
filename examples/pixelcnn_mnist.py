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

On two cores of a CPU the defaults take about ten minutes. A pixel is drawn by the 12 rows above it,
so that here and there a stroke begins anew at the lower edge; more --layers see further. The
setting of the papers, for a GPU, is --features 64 --layers 7 --epochs 100 --mixed-precision.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from common import (
    RESUME,
    EpochTable,
    add_shared,
    claim_folder,
    count_parameters,
    draw_curves,
    facts_of,
    load_dataset,
    make_parser,
    mixed_precision,
    one_of_each,
    positive,
    print_contents,
    run_as_command,
    save,
    show_progress,
    train,
    write_metrics,
)
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
LIKELIHOODS = ("binarized", "categorical", "logistic_mixture")


def main(argv: Sequence[str] | None = None) -> None:
    run_as_command(run, parse(argv), RESUME)


def run(options: argparse.Namespace) -> None:
    claim_folder(options.out, overwrite=options.overwrite, resume=options.resume)
    dataset = load_dataset(options)
    options.epochs = options.epochs or (3 if dataset.name == "MNIST" else 60)

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
    print(
        f"{type(network).__name__} ({count_parameters(network):,} parameters, pixels "
        f"{options.likelihood}{', told the digit' if classes else ''}) on {dataset.name}: "
        f"{len(training['x']):,} training and {len(test['x']):,} test images, "
        f"epochs: {options.epochs}, of {steps:,} steps."
    )

    # Training.
    table = EpochTable(options, HEADER, ROW)
    dims = math.prod(dataset.image_shape)

    def after_epoch(info: EpochInfo) -> None:
        assert isinstance(info.pair, AutoregressiveImage)
        nats = -float(info.pair.log_prob(**test).mean())
        bits = nats / dims / math.log(2)
        table.add(info, train_nats=info.loss, test_nats=nats, test_bits_per_dim=bits)

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
    assert isinstance(trained, AutoregressiveImage)

    metrics = facts_of(posterior, dataset, options)
    metrics |= {"training_images": len(training["x"]), "test_images": len(test["x"])}
    metrics["epochs"] = table.epochs
    write_metrics(options.out, metrics)
    if table.epochs:
        save(draw_loss_curve(table.epochs), options.out / "loss_curve.png")
    if posterior.interrupted:
        raise KeyboardInterrupt

    # What it has learned.
    started = time.perf_counter()
    save(draw_samples(trained, options), options.out / "samples.png")
    print(f"\n100 samples in {time.perf_counter() - started:.1f} s, the sampler's making included")
    save(draw_completions(trained, options, **test), options.out / "completions.png")
    if classes:
        few = {name: value[: options.classified_images] for name, value in test.items()}
        metrics |= score_classes(trained, **few)
        print(
            f"{len(few['x']):,} test images, all digits being as likely: "
            f"{metrics['nats_without_class']:.2f} nats without being told the digit; the digit "
            f"under which an image is likeliest is the right one for {metrics['accuracy']:.1%}"
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
    digits = show_progress(range(pair.num_classes), "Every digit")
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
    shown = torch.cat(
        [*(gray(part, pair).unsqueeze(1) for part in (images, half)), completions], dim=1
    )
    marked = half.isnan().unsqueeze(1).expand_as(shown).clone()
    marked[:, 0] = False
    return draw_images(
        shown,
        "Test images, and completions of their upper halves, in blue",
        column_labels=["image", "given", *["drawn"] * times],
        marked=marked,
    )


def draw_loss_curve(epochs: Sequence[dict[str, float]]) -> Figure:
    """Draw the nats of training and test images over the epochs."""
    curves = {"test images, after each epoch": "test_nats"}
    curves["training images, during it"] = "train_nats"
    return draw_curves(epochs, "Negative log-likelihood", "nats an image", curves)


# Command line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--network", default="gated_pixelcnn", choices=NETWORKS, help="what is trained")
    add("--likelihood", default="binarized", choices=LIKELIHOODS, help="what a pixel is")
    add("--num-categories", type=positive, default=256,
        help="gray levels, unless pixels are binarized")  # fmt: skip
    add("--features", type=positive, help="features of a layer, in place of the network's own")
    add("--layers", type=positive, help="layers, in place of the network's own number")
    add("--class-conditional", action=argparse.BooleanOptionalAction, default=True,
        help="tell the network which digit it draws")  # fmt: skip
    add("--epochs", type=positive, help="passes over the images; 3 for MNIST, 60 for digits")
    add("--test-images", type=positive, default=2000, help="scored after each epoch")
    add("--classified-images", type=positive, default=500, help="of these, scored as every digit")
    names = ("--batch-size", "--learning-rate", "--temperature", "--top-p", "--dataset")
    more = ("--data-dir", "--train-images", "--seed", "--device", "--mixed-precision")
    defaults = {"batch_size": 32, "learning_rate": 3e-3}
    existing = ("--overwrite", "--resume")
    add_shared(parser, *names, *more, *existing, out="runs/pixelcnn_mnist", **defaults)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
