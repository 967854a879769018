"""Train importance-weighted autoencoders on MNIST, and set them beside the published ones.

The VAE of Burda, Grosse and Salakhutdinov (2016, arXiv:1509.00519), with one stochastic layer of 50
latents and two hidden layers of 200, on images binarized anew each time they are read, is trained
by bounds of k = 1 and k = 50 draws. What is compared is neither bound, but the log-likelihood of
test images, by importance sampling with 5,000 draws.

    python examples/iwae_mnist.py --epochs 100     hours: k = 50 costs about four times k = 1

Both go through the images equally often. A training that was stopped or killed goes on with the
same command, and one that has ended is not made again. Into runs/iwae_mnist/ go:

    iwae.png               log-likelihoods beside the published ones, training, and active latents
    metrics.json           the numbers
    k1/, k50/              the trained models
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import ppl_gen as pg
from common import (
    add_shared,
    as_json,
    claim_folder,
    load_dataset,
    log_likelihoods,
    make_parser,
    positive,
    run_as_command,
    save,
    write_metrics,
)
from ppl_gen.inference import SVI, EpochInfo, ImportanceWeighted
from ppl_gen.models import VAE

# Negative log-likelihoods in nats, with 3,280 epochs of training: Burda et al., table 1.
PUBLISHED = {1: 86.76, 5: 85.54, 50: 84.78}
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC3377")
# A latent is active if its posterior mean varies by more than this from image to image.
LEAST_VARIANCE = 0.01


def main(arguments: list[str] | None = None) -> None:
    run_as_command(run, parse(arguments), "interrupted: the same command goes on")


def run(options: argparse.Namespace) -> None:
    claim_folder(options.out, resume=True)
    dataset = load_dataset(options)
    images = dataset.train_images[: options.train_images]
    options.batch_size = min(options.batch_size, len(images))
    test = torch.bernoulli(
        dataset.test_images[: options.test_images],
        generator=torch.Generator().manual_seed(options.seed),
    )
    results: dict[int, dict[str, Any]] = {}
    values: dict[int, torch.Tensor] = {}
    for k in options.k:
        posterior = train(images, k, options)
        pair = posterior.pair
        assert isinstance(pair, VAE)
        assert posterior.history is not None
        values[k] = log_likelihoods(pair, test, options.samples, options.seed, together=20)
        results[k] = {
            "negative_log_likelihood": -float(values[k].mean()),
            "standard_error": float(values[k].std()) / math.sqrt(len(test)),
            "published": PUBLISHED.get(k) if dataset.name == "MNIST" else None,
            "negative_bound": by_epoch(posterior.history, options.epochs, len(images)),
            "variances": variances(pair, test),
            "minutes": round(posterior.provenance["seconds"] / 60, 1),
        }
        results[k]["active"] = sum(v > LEAST_VARIANCE for v in results[k]["variances"])
        print(report(k, results[k], options), flush=True)
    for k in options.k[1:]:
        # Of the same images, so that what they have in common cancels.
        gain = values[k] - values[options.k[0]]
        results[k]["gain"] = float(gain.mean())
        results[k]["gain_standard_error"] = float(gain.std()) / math.sqrt(len(gain))
        print(
            f"k = {k} over k = {options.k[0]}: {results[k]['gain']:.2f} +- "
            f"{results[k]['gain_standard_error']:.2f} nats"
        )
    metrics = {
        "dataset": dataset.name,
        "training_images": len(images),
        "test_images": len(test),
        "options": as_json(options),
        "results": results,
    }
    write_metrics(options.out, metrics)
    save(draw(results, options), options.out / "iwae.png")
    print(f"Written: metrics.json and iwae.png in {options.out}")


def train(images: torch.Tensor, k: int, options: argparse.Namespace) -> pg.Posterior:
    """Train the VAE by the bound of k draws, or go on with what is in its folder."""
    torch.manual_seed(options.seed)  # the first weights, the same for every k
    pair = VAE(
        tuple(images.shape[1:]),
        latent_size=options.latent_size,
        hidden_sizes=options.hidden_sizes,
        likelihood="binarized",
    )

    def after_epoch(info: EpochInfo) -> None:
        print(
            f"k = {k}, epoch {info.epoch}: negative bound {info.loss:.2f} nats, "
            f"{info.seconds:.0f} s",
            flush=True,
        )

    method = SVI(
        guide="pair",
        objective=ImportanceWeighted(k),
        batch_size=options.batch_size,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        callback=after_epoch,
    )
    folder = options.out / f"k{k}"
    posterior = pg.fit(pair, {"x": images}, method, seed=options.seed, out=folder, resume=True)
    if posterior.interrupted:
        sys.exit(f"interrupted in the training with k = {k}: the same command goes on with it")
    return posterior


def by_epoch(history: torch.Tensor, epochs: int, num_images: int) -> list[float]:
    """Return the mean loss of each epoch, for an image."""
    means: list[float] = (history.unflatten(0, (epochs, -1)).mean(1) / num_images).tolist()
    return means


def variances(pair: VAE, images: torch.Tensor) -> list[float]:
    """Return the variance of each latent's posterior mean over images, largest first."""
    with torch.no_grad():
        means, _ = pair.encode(images)
    found: list[float] = means.var(0).sort(descending=True).values.tolist()
    return found


def report(k: int, result: dict[str, Any], options: argparse.Namespace) -> str:
    """Return what came out for one k in words."""
    published = "" if result["published"] is None else f", published {result['published']}"
    return (
        f"k = {k}: negative log-likelihood {result['negative_log_likelihood']:.2f} +- "
        f"{result['standard_error']:.2f} nats (IS-{options.samples}){published}; "
        f"{result['active']} of {options.latent_size} latents active; trained for "
        f"{options.epochs} epochs in {result['minutes']} minutes"
    )


def draw(results: dict[int, dict[str, Any]], options: argparse.Namespace) -> Figure:
    """Draw log-likelihoods, the course of the training, and how much each latent is used."""
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    points, curves, latents = figure.subplots(1, 3)
    for i, (k, result) in enumerate(results.items()):
        color, nats = COLORS[i % len(COLORS)], result["negative_log_likelihood"]
        points.errorbar(i, nats, 2 * result["standard_error"], fmt="o", color=color)
        points.annotate(f"{nats:.2f}", (i, nats), (8, 0), textcoords="offset points", va="center")
        if result["published"] is not None:
            points.plot([i - 0.2, i + 0.2], [result["published"]] * 2, color="black", linewidth=1.5)
        epochs = range(1, options.epochs + 1)
        curves.plot(epochs, result["negative_bound"], "o-", markersize=3, color=color)
        last = (options.epochs, result["negative_bound"][-1])
        curves.annotate(
            f"k = {k}", last, (6, 0), textcoords="offset points", va="center", color=color
        )
        order = range(1, len(result["variances"]) + 1)
        label = f"k = {k}: {result['active']} active"
        latents.semilogy(order, result["variances"], "o-", markersize=3, color=color, label=label)
    points.set_xticks(range(len(results)), [f"k = {k}" for k in results])
    points.set_xlim(-0.5, len(results) - 0.3)
    published = any(result["published"] is not None for result in results.values())
    lines = "\nlines: published, after 3,280 epochs" if published else ""
    points.set_title(f"Test negative log-likelihood, nats{lines}", fontsize="medium")
    gains = [
        f"{result['gain']:.2f} ± {result['gain_standard_error']:.2f}"
        for result in results.values()
        if "gain" in result
    ]
    if gains:
        points.set_xlabel(
            f"better than k = {options.k[0]} on the same images by\n{', '.join(gains)}"
        )
    curves.set_title("Negative bound of k draws in training, nats", fontsize="medium")
    curves.set_xlabel("epoch")
    curves.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    curves.set_xlim(right=options.epochs + 0.3 * max(options.epochs - 1, 1))
    latents.axhline(LEAST_VARIANCE, color="black", linewidth=0.8, linestyle=":")
    latents.set_title("Variance of each latent's posterior mean", fontsize="medium")
    latents.set_xlabel("latent, in order")
    latents.legend(frameon=False)
    for axes in (points, curves, latents):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--k", type=positive, nargs="+", default=[1, 50], help="draws under the logarithm")
    add("--epochs", type=positive, default=20, help="passes over the images")
    add("--test-images", type=positive, default=1000, help="images that are scored")
    add("--samples", type=positive, default=5000, help="importance samples for each of them")
    names = ("--latent-size", "--hidden-sizes", "--batch-size", "--learning-rate", "--dataset")
    defaults = {"latent_size": 50, "hidden_sizes": [200, 200]}
    defaults |= {"batch_size": 20, "learning_rate": 1e-3}
    more = ("--data-dir", "--train-images", "--seed")
    add_shared(parser, *names, *more, out="runs/iwae_mnist", **defaults)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
