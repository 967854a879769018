"""Train a variational autoencoder on digits that is told which digit it sees.

What the class says the latents need not say again: they come to hold the style. Drawing every digit
from the same latents shows it.

    python examples/conditional_vae_mnist.py                      download MNIST
    python examples/conditional_vae_mnist.py --data-dir DIR       use the copy in DIR/MNIST/raw

prints -ELBO of training and test images after each epoch, and writes into
runs/conditional_vae_mnist:

    classes.png          digits of each class, a draw of the latents in each row
    style_transfer.png   the style of a test image given to every digit
    reconstructions.png  test images, and what is made of them
    metrics.json         the numbers
    posterior/           the trained model: pg.load("runs/conditional_vae_mnist/posterior").pair
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

import ppl_gen as pg
from common import (
    EpochTable,
    add_shared,
    claim_folder,
    facts_of,
    load_dataset,
    make_parser,
    one_of_each,
    positive,
    print_contents,
    run_as_command,
    save,
    write_metrics,
)
from ppl_gen.inference import SVI, EpochInfo
from ppl_gen.models import ConditionalVAE
from ppl_gen.report.images import draw_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(argv: Sequence[str] | None = None) -> None:
    run_as_command(run, parse(argv))


def run(options: argparse.Namespace) -> None:
    claim_folder(options.out, overwrite=options.overwrite)
    dataset = load_dataset(options)
    options.epochs = options.epochs or (10 if dataset.name == "MNIST" else 200)
    train = {"x": dataset.train_images, "y": dataset.train_labels}
    test = {"x": dataset.test_images, "y": dataset.test_labels}
    if options.train_images is not None:
        train = {name: value[: options.train_images] for name, value in train.items()}

    torch.manual_seed(options.seed)  # the first weights
    pair = ConditionalVAE(
        image_shape=dataset.image_shape,
        condition_size=10,
        latent_size=options.latent_size,
        hidden_sizes=options.hidden_sizes,
    )
    print(
        f"Conditional VAE, {options.latent_size} latents, on {dataset.name}: "
        f"{len(train['x']):,} training and {len(test['x']):,} test images, {options.epochs} epochs."
    )

    table = EpochTable(options, HEADER, ROW)
    scored = {name: value[: len(test["x"])] for name, value in train.items()}

    def after_epoch(info: EpochInfo) -> None:
        assert isinstance(info.pair, ConditionalVAE)
        ours = info.pair.elbo_terms(**scored, seed=info.epoch)
        others = info.pair.elbo_terms(**test, seed=info.epoch)
        table.add(
            info,
            train_negative_elbo=float(ours.negative_elbo.mean()),
            test_negative_elbo=float(others.negative_elbo.mean()),
            test_reconstruction=float(others.reconstruction.mean()),
            test_kl=float(others.kl.mean()),
        )

    method = SVI(
        guide="pair",
        batch_size=min(options.batch_size, len(train["x"])),
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        callback=after_epoch,
    )
    posterior = pg.fit(pair, train, method, seed=options.seed)
    trained = posterior.pair
    assert isinstance(trained, ConditionalVAE)

    posterior.save(options.out / "posterior", overwrite=options.overwrite)
    metrics = facts_of(posterior, dataset, options)
    metrics |= {"training_images": len(train["x"]), "test_images": len(test["x"])}
    write_metrics(options.out, {**metrics, "epochs": table.epochs})
    save(draw_classes(trained), options.out / "classes.png")
    save(draw_style_transfer(trained, **test), options.out / "style_transfer.png")
    save(draw_reconstructions(trained, **test), options.out / "reconstructions.png")
    print_contents(options.out)


HEADER = (
    "        train, nats per image    test, nats per image\n"
    "epoch   -ELBO                    -ELBO = reconstruction +    KL    seconds"
)
ROW = (
    "{epoch:5.0f}{train_negative_elbo:8.2f}             {test_negative_elbo:17.2f}  "
    "{test_reconstruction:14.2f}  {test_kl:6.2f}  {seconds:9.1f}"
)


# Pictures


def draw_classes(pair: ConditionalVAE) -> Figure:
    """Draw every digit from each of ten draws of the latents."""
    styles = torch.randn(10, 1, pair.latent_size, generator=torch.Generator().manual_seed(0))
    return draw_images(
        pair.mean_image(styles, torch.arange(10)),
        "Each row: one draw of the latents, every digit",
        column_labels=[str(digit) for digit in range(10)],
    )


def draw_style_transfer(pair: ConditionalVAE, x: torch.Tensor, y: torch.Tensor) -> Figure:
    """Draw test images, and every digit from the latents of each."""
    chosen = one_of_each(y, 0)
    loc, _ = pair.encode(x[chosen], y[chosen])
    made = pair.mean_image(loc.unsqueeze(1), torch.arange(10))
    gap = torch.full_like(made[:, :1], torch.nan)
    return draw_images(
        torch.cat([x[chosen].unsqueeze(1), gap, made], dim=1),
        "Left: a test image. Right: its latents, as every digit",
        column_labels=["image", "", *[str(digit) for digit in range(10)]],
    )


def draw_reconstructions(pair: ConditionalVAE, x: torch.Tensor, y: torch.Tensor) -> Figure:
    """Draw test images, each above the mean image that the model makes of its latents."""
    rows = []
    for number in range(1, 4):
        chosen = one_of_each(y, number)
        rows += [x[chosen], pair.reconstruct(x[chosen], y[chosen])]
    return draw_images(
        torch.stack(rows),
        "Test images and their reconstructions",
        row_labels=["image", "reconstruction"] * 3,
        rows_together=2,
    )


# Command line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = make_parser(__doc__)
    epochs = "passes over the images; 10 for MNIST, 200 for digits"
    parser.add_argument("--epochs", type=positive, help=epochs)
    names = ("--latent-size", "--hidden-sizes", "--batch-size", "--learning-rate", "--dataset")
    more = ("--data-dir", "--train-images", "--seed", "--overwrite")
    defaults = {"latent_size": 8, "hidden_sizes": [400, 400]}
    defaults |= {"batch_size": 128, "learning_rate": 3e-3}
    add_shared(parser, *names, *more, out="runs/conditional_vae_mnist", **defaults)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
