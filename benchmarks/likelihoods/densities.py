"""The models of the table of densities, and what each reaches in the same time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from likelihoods.budget import fit_within
from ppl_gen.core import NonFiniteLossError
from ppl_gen.data import ImageDataset
from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.models import VAE, AutoregressiveImage, PixelVAE
from ppl_gen.models.networks import (
    FVBN,
    MADE,
    NADE,
    DiagonalBiLSTM,
    GatedPixelCNN,
    PixelCNN,
    PixelCNNPlusPlus,
    RowLSTM,
)

Record = dict[str, Any]

KINDS = ("binarized", "grays")
# Of models with latents a bound is estimated, by importance sampling, of so many test images, and
# with so many draws for each.
BOUND_IMAGES = 1000
BOUND_SAMPLES = {"binarized": 50, "grays": 10}
FULL_BATCH = 128


@dataclass(frozen=True)
class Images:
    """Images of one kind, and what their pixels are.

    Args:
        kind: "binarized": probabilities of pixels for training, drawn anew for each mini-batch, and
            one draw of them for testing. "grays": integers.
        train: Training images, `(n, height, width)`.
        test: Test images, `(m, height, width)`.
        levels: Number of values of a gray pixel.
    """

    kind: str
    train: torch.Tensor
    test: torch.Tensor
    levels: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.train.shape[1:])

    @property
    def elements(self) -> Elements:
        if self.kind == "binarized":
            return Elements()
        return Elements("logistic_mixture", self.levels, 5)

    @classmethod
    def of(cls, dataset: ImageDataset, kind: str) -> Images:
        # The small digits have 16 gray levels and black.
        levels = 256 if dataset.name == "MNIST" else 17
        if kind == "binarized":
            generator = torch.Generator().manual_seed(1)
            test = torch.bernoulli(dataset.test_images, generator=generator)
            return cls(kind, dataset.train_images, test, levels)
        grays = [
            (images * (levels - 1)).round().to(torch.uint8)
            for images in (dataset.train_images, dataset.test_images)
        ]
        return cls(kind, *grays, levels)


@dataclass(frozen=True)
class Model:
    """A model of images, small for a CPU or of the published size for a GPU.

    Args:
        make: Makes the pair for images, at full size or not.
        batch_size: Images in a step, on a CPU.
        learning_rate: First step size of Adam.
        dynamic: Published nats on MNIST binarized anew each time it is read.
        fixed: Published nats on MNIST binarized once.
        cifar: Published bits/dim on CIFAR-10: there are none of the grays of MNIST.
        bound: Whether the log density is estimated from below.
    """

    make: Callable[[Images, bool], nn.Module]
    batch_size: int = 16
    learning_rate: float = 2e-3
    dynamic: float | None = None
    fixed: float | None = None
    cifar: float | None = None
    bound: bool = False


def of_network(make: Callable[[Images, bool], AutoregressiveNetwork]) -> Any:
    return lambda images, full: AutoregressiveImage(make(images, full))


def _vae(images: Images, full: bool) -> VAE:
    binarized = images.kind == "binarized"
    return VAE(
        images.shape,
        latent_size=50 if full else 20,
        hidden_sizes=(200, 200) if full else (400,) if binarized else (100,),
        likelihood="binarized" if binarized else "categorical",
        num_categories=images.levels,
    )


def _pixel_vae(images: Images, full: bool) -> PixelVAE:
    return PixelVAE(
        images.shape,
        latent_size=50 if full else 20,
        elements=images.elements,
        features=64 if full else 16,
        layers=4 if full else 3,
    )


def _made(images: Images, full: bool) -> MADE:
    sizes = (2000, 2000) if full else (1000,) if images.kind == "binarized" else (500,)
    return MADE(images.shape, sizes, images.elements)


def _plus_plus(images: Images, full: bool) -> PixelCNNPlusPlus:
    # Dropout is for long trainings.
    return PixelCNNPlusPlus(
        images.shape,
        features=64 if full else 16,
        layers=4 if full else 1,
        dropout=0.3 if full else 0.0,
        elements=images.elements,
    )


def convolutional(
    network: Any, small: tuple[int, int], large: tuple[int, int], **sizes: int
) -> Callable[[Images, bool], AutoregressiveNetwork]:
    """Return what makes a network of so many features and layers."""

    def make(images: Images, full: bool) -> AutoregressiveNetwork:
        features, layers = large if full else small
        made: AutoregressiveNetwork = network(
            images.shape, features=features, layers=layers, elements=images.elements, **sizes
        )
        return made

    return make


MODELS: dict[str, Model] = {
    "FVBN": Model(of_network(lambda i, full: FVBN(i.shape, i.elements)), 100, 1e-3, dynamic=96.58),
    "NADE": Model(
        of_network(lambda i, full: NADE(i.shape, 500 if full else 150, i.elements)),
        20,
        1e-3,
        dynamic=85.65,
        fixed=88.33,
    ),
    "MADE": Model(of_network(_made), 100, 1e-3, dynamic=84.87, fixed=86.64),
    "PixelCNN": Model(
        of_network(convolutional(PixelCNN, (32, 5), (128, 12))),
        dynamic=81.45,
        fixed=81.30,
        cifar=3.14,
    ),
    "gated PixelCNN": Model(
        of_network(convolutional(GatedPixelCNN, (16, 4), (64, 7), kernel_size=7)),
        learning_rate=4e-3,
        dynamic=81.50,
        fixed=80.10,
        cifar=3.03,
    ),
    "row LSTM": Model(of_network(convolutional(RowLSTM, (16, 2), (64, 7))), cifar=3.07),
    "diagonal BiLSTM": Model(
        of_network(convolutional(DiagonalBiLSTM, (16, 2), (64, 7))), fixed=79.20, cifar=3.00
    ),
    "PixelCNN++": Model(of_network(_plus_plus), cifar=2.92),
    "PixelVAE": Model(_pixel_vae, fixed=79.02, bound=True),
    "VAE": Model(_vae, 50, 1e-3, dynamic=86.76, bound=True),
}


class OtherResultsError(ValueError):
    """Results that are there already are not to be mixed with new ones."""


def measure(
    dataset: ImageDataset,
    minutes: float,
    device: str,
    kept: Record,
    only: tuple[str, ...] = tuple(MODELS),
) -> Iterator[Record]:
    """Yield the results after each model, added to those that are there already.

    Raises:
        OtherResultsError: If those are of other images, or of another time or machine.
    """
    facts = {
        "images": dataset.name,
        "minutes": minutes,
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    other = [
        f"{n} {kept[n]} in place of {value}"
        for n, value in facts.items()
        if kept and kept[n] != value
    ]
    if other:
        raise OtherResultsError(f"there are results with {', '.join(other)}")
    rows = kept["rows"] if kept else {kind: {} for kind in KINDS}
    results: Record = {**facts, "rows": rows}
    for kind in KINDS:
        images = Images.of(dataset, kind)
        for name in only:
            if name in results["rows"][kind]:
                print(f"{kind}, {name}: kept", flush=True)
                continue
            print(f"{kind}, {name}: training for {minutes:g} minutes", flush=True)
            results["rows"][kind][name] = one_row(MODELS[name], images, minutes, device)
            yield results
    yield results


def one_row(model: Model, images: Images, minutes: float, device: str) -> Record:
    """Train and score one model on images of one kind."""
    full = device != "cpu"
    torch.manual_seed(0)
    pair = model.make(images, full)
    options: Record = {"batch_size": model.batch_size, "learning_rate": model.learning_rate}
    if full:
        options |= {"batch_size": FULL_BATCH, "autocast": torch.bfloat16}
    parameters = sum(parameter.numel() for parameter in pair.parameters())
    try:
        trained = fit_within(pair, {"x": images.train}, 60 * minutes, device=device, **options)
    except NonFiniteLossError as error:
        return {"parameters": parameters, "failed": str(error)}
    row = {**trained.facts(), **score(model, trained.pair.to(device), images)}
    print(f"  {row['nats']:.2f} nats, {row['bits_per_dim']:.3f} bits/dim", flush=True)
    return row


def score(model: Model, pair: Any, images: Images) -> Record:
    """Return nats and bits per pixel of test images, with standard errors."""
    if model.bound:
        test = images.test[:BOUND_IMAGES]
        log_prob = pair.importance_log_likelihood(test, BOUND_SAMPLES[images.kind])
    else:
        test = images.test
        log_prob = pair.log_prob(test)
    nats = -log_prob.cpu()
    unit = math.prod(images.shape) * math.log(2)
    error = float(nats.std()) / math.sqrt(len(nats))
    return {
        "nats": float(nats.mean()),
        "nats_standard_error": error,
        "bits_per_dim": float(nats.mean()) / unit,
        "bits_per_dim_standard_error": error / unit,
        "test_images": len(test),
        "bound": model.bound,
    }
