"""Train MADE on binarized MNIST in one ordering of the pixels and in many, and compare.

    python examples/made_orderings.py                   download MNIST
    python examples/made_orderings.py --data-dir DIR    use the copy in DIR/MNIST/raw

Networks of the same size are trained: one in reading order, and others that take the pixels in any,
as an ordering drawn for each mini-batch has taught them, one of 8, or one of 1024. Of these each
ordering is a model of its own, and several together are a better one, their ensemble. Few orderings
are learned better; many let it complete any part of an image. Written into runs/made_orderings:

    samples.png                         draws of each
    lower_half.png, scattered.png       what is seen of test images, and completions of it
    metrics.json                        nats of test images
    reading_order/, 8_orderings/, ...   the trained models, and their numbers after each epoch

On two CPU cores the defaults take about five minutes. All models gain from more --epochs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

import ppl_gen as pg
from common import (
    RESUME,
    EpochTable,
    add_shared,
    as_json,
    claim_folder,
    count_parameters,
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
from ppl_gen.distributions import AutoregressiveNetwork
from ppl_gen.inference import SVI, EpochInfo
from ppl_gen.models import AutoregressiveImage
from ppl_gen.models.networks import MADE, OrderAgnosticMADE
from ppl_gen.report.images import draw_images

# Test images that are scored after each epoch; at the end all of them are.
WATCHED = 1000


def main(arguments: Sequence[str] | None = None) -> None:
    run_as_command(run, parse(arguments), RESUME)


def run(options: argparse.Namespace) -> None:
    models = {"reading_order": 0, **{f"{k}_orderings": k for k in options.num_orderings}}
    out = claim_folder(
        options.out,
        overwrite=options.overwrite,
        resume=options.resume,
        posteriors=[f"{name}/posterior" for name in models],
    )
    dataset = load_dataset(options)
    options.epochs = options.epochs or (8 if dataset.name == "MNIST" else 200)
    autocast = mixed_precision(options)
    training = dataset.train_images[: options.train_images]
    # Training images are binarized anew for each mini-batch, test images once.
    generator = torch.Generator().manual_seed(options.seed)
    test = torch.bernoulli(dataset.test_images, generator=generator)

    shape, sizes = dataset.image_shape, options.hidden_sizes
    trained: dict[str, AutoregressiveImage] = {}
    metrics: dict[str, Any] = {
        "dataset": dataset.name,
        "options": as_json(options),
        "training_images": len(training),
        "test_images": len(test),
        "seconds": {},
    }
    for name, orderings in models.items():
        torch.manual_seed(options.seed)  # the first weights
        network = (
            OrderAgnosticMADE(shape, sizes, num_orderings=orderings)
            if orderings
            else MADE(shape, sizes)
        )
        print(
            f"\n{name.replace('_', ' ')}: {count_parameters(network):,} parameters, "
            f"{len(training):,} training images, epochs: {options.epochs}"
        )
        own = argparse.Namespace(**{**vars(options), "out": out / name})
        posterior = fit(network, training, test, own, autocast)
        metrics["seconds"][name] = round(posterior.provenance["seconds"], 2)
        if posterior.interrupted:
            raise KeyboardInterrupt
        assert isinstance(posterior.pair, AutoregressiveImage)
        trained[name] = posterior.pair

    metrics["nats"] = compare(trained, test)
    write_metrics(out, metrics)
    shown = test[one_of_each(dataset.test_labels)]
    save(draw_samples(trained, options.seed), out / "samples.png")
    for name, seen in masks(shown, generator).items():
        save(draw_completions(trained, shown, seen, options.seed), out / f"{name}.png")
    print_contents(out)


# Training


HEADER = "epoch   train, nats    test, nats    seconds"
ROW = "{epoch:5}{train_nats:14.2f}{test_nats:14.2f}{seconds:11.1f}"


def fit(
    network: AutoregressiveNetwork,
    training: torch.Tensor,
    test: torch.Tensor,
    options: argparse.Namespace,
    autocast: torch.dtype | None,
) -> pg.Posterior:
    """Train a model, and write its numbers after each epoch beside it."""
    table = EpochTable(options, HEADER, ROW)

    def after_epoch(info: EpochInfo) -> None:
        assert isinstance(info.pair, AutoregressiveImage)
        nats = -float(info.pair.log_prob(test[:WATCHED]).mean())
        table.add(info, train_nats=info.loss, test_nats=nats)

    method = SVI(
        guide="pair",
        batch_size=min(options.batch_size, len(training)),
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        autocast=autocast,
        callback=after_epoch,
    )
    return train(AutoregressiveImage(network), {"x": training}, method, options)


# What is compared


def compare(
    trained: dict[str, AutoregressiveImage], test: torch.Tensor
) -> dict[str, dict[str, float]]:
    """Return and print nats of test images, under single orderings and under ensembles."""
    print(
        f"\nNegative log-likelihood of {len(test):,} test images, binarized, in nats\n"
        "trained under       one ordering   a new ordering   ensemble"
    )
    # By another seed than the orderings of the networks.
    new = torch.randperm(test[0].numel(), generator=torch.Generator().manual_seed(1))
    found = {}
    for name, pair in trained.items():
        network = pair.network
        with torch.no_grad():
            if isinstance(network, OrderAgnosticMADE):
                found[name] = {
                    "one_ordering": nats_of(network(ordering=network.orderings[0]), test),
                    "new_ordering": nats_of(network(ordering=new), test),
                    "ensemble": nats_of(network(), test),
                }
            else:
                found[name] = {"one_ordering": nats_of(network(), test)}
        cells = list(found[name].values())
        widths = zip(cells, (16, 17, 11), strict=False)
        print(f"{name:16}" + "".join(f"{cell:{width}.2f}" for cell, width in widths))
    return found


def nats_of(distribution: Any, images: torch.Tensor) -> float:
    """Return the mean negative log-likelihood of images."""
    parts = show_progress(images.split(1000), "Test images")
    return -float(torch.cat([distribution.log_prob(some).double() for some in parts]).mean())


# Pictures


def draw_samples(trained: dict[str, AutoregressiveImage], seed: int) -> Figure:
    """Draw what the models draw: those of several orderings by their ensembles."""
    drawn = [pair.sample(20, seed=seed).unflatten(0, (2, 10)) for pair in trained.values()]
    labels = [label for name in trained for label in (name.replace("_", " "), "")]
    return draw_images(torch.cat(drawn), "Samples", row_labels=labels, rows_together=2)


def masks(images: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return by name which pixels of each image are seen."""
    lower_half = torch.zeros_like(images, dtype=torch.bool)
    lower_half[:, images.shape[1] // 2 :] = True
    return {
        "lower_half": lower_half,
        "scattered": torch.rand(images.shape[1:], generator=generator).expand_as(images) < 0.25,
    }


def draw_completions(
    trained: dict[str, AutoregressiveImage], images: torch.Tensor, seen: torch.Tensor, seed: int
) -> Figure:
    """Draw images, what is seen of them, and two completions by each model.

    In reading order a pixel is drawn given the seen ones before it alone; else given all.
    """
    given = torch.where(seen, images, math.nan)
    twice = given.repeat(2, 1, 1)
    drawn = [
        pair.sample(len(twice), given=twice, seed=seed).unflatten(0, (2, -1))
        for pair in trained.values()
    ]
    labels = [label for name in trained for label in (name.replace("_", " "), "")]
    rows = torch.cat([torch.stack([images, given]), *drawn])
    marked = (~seen).expand_as(rows).clone()
    marked[0] = False
    return draw_images(
        rows,
        "Completions: what is seen in black and white, what is drawn in blue",
        row_labels=["image", "seen", *labels],
        rows_together=2,
        marked=marked,
    )


# Command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--num-orderings", type=positive, nargs="*", default=[8, 1024],
        help="numbers of orderings, of an order-agnostic network each")  # fmt: skip
    add("--epochs", type=positive, help="passes over the images; 8 for MNIST, 200 for digits")
    names = ("--hidden-sizes", "--batch-size", "--learning-rate", "--dataset", "--data-dir")
    modes = ("--train-images", "--seed", "--device", "--mixed-precision", "--overwrite", "--resume")
    defaults = {"hidden_sizes": [1000], "batch_size": 100, "learning_rate": 1e-3}
    add_shared(parser, *names, *modes, out="runs/made_orderings", **defaults)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
