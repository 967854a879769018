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

On two CPU cores the defaults take about ten minutes for each of the three.
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
    add_shared,
    as_json,
    claim_folder,
    load_dataset,
    make_parser,
    mixed_precision,
    one_of_each,
    positive,
    print_contents,
    read_log,
    run_as_command,
    save,
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
    run_as_command(run, parse(arguments), "interrupted: the same command with --resume goes on")


def run(options: argparse.Namespace) -> None:
    models = {"reading_order": 0, **{f"{k}_orderings": k for k in options.num_orderings}}
    out = claim_folder(
        options.out,
        overwrite=options.overwrite,
        resume=options.resume,
        posteriors=[f"{name}/posterior" for name in models],
    )
    dataset = load_dataset(options)
    if options.epochs is None:
        options.epochs = 40 if dataset.name == "MNIST" else 200
    autocast = mixed_precision(options)
    training = dataset.train_images[: options.train_images]
    # Training images are binarized anew for each mini-batch, test images once.
    generator = torch.Generator().manual_seed(options.seed)
    test = torch.bernoulli(dataset.test_images, generator=generator)

    shape, sizes = dataset.image_shape, options.hidden_sizes
    networks: dict[str, AutoregressiveNetwork] = {}
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
        print(f"\n{name}: {count(network):,} parameters, {options.epochs} epochs\n{HEADER}")
        own = argparse.Namespace(**{**vars(options), "out": out / name})
        posterior = fit(network, training, test, own, autocast)
        metrics["seconds"][name] = round(posterior.provenance["seconds"], 2)
        if posterior.interrupted:
            print(f"\nInterrupted. Go on with it by --resume --out {out}")
            return
        assert isinstance(posterior.pair, AutoregressiveImage)
        networks[name] = posterior.pair.network.eval()

    metrics["nats"] = compare(networks, test)
    write_metrics(out, metrics)
    shown = test[one_of_each(dataset.test_labels)]
    save(draw_samples(networks, options.seed), out / "samples.png")
    for name, mask in masks(shown, generator).items():
        save(draw_completions(networks, shown, mask, options.seed), out / f"{name}.png")
    print_contents(out)


# Training


HEADER = "epoch   train, nats    test, nats    seconds"


def fit(
    network: AutoregressiveNetwork,
    training: torch.Tensor,
    test: torch.Tensor,
    options: argparse.Namespace,
    autocast: torch.dtype | None,
) -> pg.Posterior:
    """Train a model, and write its numbers after each epoch beside it."""
    log = read_log(options)
    every = math.ceil(options.epochs / 20)

    def after_epoch(info: EpochInfo) -> None:
        assert isinstance(info.pair, AutoregressiveImage)
        nats = -float(info.pair.log_prob(test[:WATCHED]).mean())
        numbers = {"train": info.loss, "test": nats, "seconds": round(info.seconds, 2)}
        log[info.epoch - 1 :] = [{"epoch": info.epoch, **numbers}]
        write_metrics(options.out, {"epochs": log})
        if info.epoch % every == 0 or info.epoch in (1, options.epochs):
            print(f"{info.epoch:5}{info.loss:13.2f}{nats:14.2f}{info.seconds:11.1f}", flush=True)

    method = SVI(
        guide="pair",
        batch_size=min(options.batch_size, len(training)),
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        autocast=autocast,
        callback=after_epoch,
    )
    return train(AutoregressiveImage(network), {"x": training}, method, options)


def count(network: AutoregressiveNetwork) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


# What is compared


def compare(
    networks: dict[str, AutoregressiveNetwork], test: torch.Tensor
) -> dict[str, dict[str, float]]:
    """Return and print nats of test images, under single orderings and under ensembles."""
    print(
        f"\nNegative log-likelihood of {len(test):,} test images, binarized, in nats\n"
        "trained under       one ordering   a new ordering   ensemble"
    )
    # By another seed than the orderings of the networks.
    new = torch.randperm(test[0].numel(), generator=torch.Generator().manual_seed(1))
    found = {}
    for name, network in networks.items():
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
    parts = [distribution.log_prob(some).double() for some in images.split(1000)]
    return -float(torch.cat(parts).mean())


# Pictures


def draw_samples(networks: dict[str, AutoregressiveNetwork], seed: int) -> Figure:
    """Draw what the models draw: those of several orderings by their ensembles."""
    torch.manual_seed(seed)
    drawn = [network().sample((2, 10)) for network in networks.values()]
    labels = [label for name in networks for label in (name.replace("_", " "), "")]
    return draw_images(torch.cat(drawn), "Draws", row_labels=labels, rows_together=2)


def masks(images: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return by name which pixels of each image are seen."""
    lower_half = torch.zeros_like(images, dtype=torch.bool)
    lower_half[:, images.shape[1] // 2 :] = True
    return {
        "lower_half": lower_half,
        "scattered": torch.rand(images.shape[1:], generator=generator).expand_as(images) < 0.25,
    }


def draw_completions(
    networks: dict[str, AutoregressiveNetwork], images: torch.Tensor, mask: torch.Tensor, seed: int
) -> Figure:
    """Draw images, what is seen of them, and two completions by each model.

    In reading order a pixel is drawn given the seen ones before it alone; else given all.
    """
    seen = torch.where(mask, images, math.nan)
    torch.manual_seed(seed)
    drawn = [network().sample((2, len(images)), given=seen) for network in networks.values()]
    labels = [label for name in networks for label in (name.replace("_", " "), "")]
    return draw_images(
        torch.cat([torch.stack([images, seen.nan_to_num(0.5)]), *drawn]),
        "Completions",
        row_labels=["image", "seen", *labels],
        rows_together=2,
    )


# Command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = make_parser(__doc__)
    names = ("--dataset", "--data-dir", "--train-images", "--seed", "--device", "--mixed-precision")
    add_shared(parser, *names, "--overwrite", "--resume", out="runs/made_orderings")
    parser.add_argument(
        "--hidden-sizes",
        type=positive,
        nargs="*",
        default=[1000],
        help="sizes of the hidden layers",
    )
    parser.add_argument(
        "--num-orderings",
        type=positive,
        nargs="*",
        default=[8, 1024],
        help="numbers of orderings, of an order-agnostic network each",
    )
    parser.add_argument("--epochs", type=positive, help="40 for MNIST, 200 for the few digits")
    parser.add_argument("--batch-size", type=positive, default=100, help="images in a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="first one of Adam")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
