"""What networks reach in so many seconds, on real data."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from likelihoods.budget import Trained, fit_within
from likelihoods.sampling import jacobi
from ppl_gen.data import ImageDataset, load_mnist
from ppl_gen.distributions import AutoregressiveNetwork
from ppl_gen.models import AutoregressiveImage
from ppl_gen.models.networks import MADE, GatedPixelCNN

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import made_orderings  # noqa: E402
import wavenet_digits  # noqa: E402

Record = dict[str, Any]

# Seconds of a training.
SECONDS, SECONDS_ON_GPU = 600.0, 1800.0
GOALS = {"made": 92.0, "wavenet": 4.6}
GOALS_ON_GPU = {"gated": 82.0, "wavenet": 4.0}
ON_GPU = {"autocast": torch.bfloat16}


def measure(
    seconds: float | None, data_dir: Path | None, audio_dir: Path | None, device: str
) -> Record:
    """Return what each training came to.

    Raises:
        DatasetUnavailableError: If there is no MNIST.
    """
    dataset = load_mnist(data_dir)
    found: Record = {}
    if device == "cpu":
        seconds = SECONDS if seconds is None else seconds
        found["made"] = of_made(dataset, seconds)
        found["small images"] = small_images(dataset, seconds)
    else:
        seconds = SECONDS_ON_GPU if seconds is None else seconds
        found["gated"] = of_gated(dataset, seconds, device)
    found["wavenet"] = of_wavenet(seconds, audio_dir, device)
    return found


def of_made(dataset: ImageDataset, seconds: float) -> Record:
    """MADE as the example of orderings has it."""
    options = made_orderings.parse([])
    torch.manual_seed(options.seed)
    network = MADE(dataset.image_shape, options.hidden_sizes)
    chosen = {"batch_size": options.batch_size, "learning_rate": options.learning_rate}
    trained, nats = trained_on(dataset.train_images, dataset.test_images, network, seconds, chosen)
    return reported("MADE", {**trained.facts(), **mean(nats), "goal": GOALS["made"]})


def of_gated(dataset: ImageDataset, seconds: float, device: str) -> Record:
    """A gated PixelCNN of the published size, for a GPU."""
    torch.manual_seed(0)
    network = GatedPixelCNN(dataset.image_shape, features=64, layers=7, kernel_size=7)
    chosen = {"batch_size": 128, "learning_rate": 2e-3, **ON_GPU}
    images = dataset.train_images, dataset.test_images
    trained, nats = trained_on(*images, network, seconds, chosen, device)
    goal = GOALS_ON_GPU["gated"]
    return reported("gated PixelCNN", {**trained.facts(), **mean(nats), "goal": goal})


def small_images(dataset: ImageDataset, seconds: float) -> Record:
    """A gated PixelCNN on images of half the size, beside MADE trained as long."""
    images = [
        F.avg_pool2d(whole.unsqueeze(1), 2).squeeze(1)
        for whole in (dataset.train_images, dataset.test_images)
    ]
    shape = tuple(images[0].shape[1:])
    ways: dict[str, tuple[Callable[[], AutoregressiveNetwork], Record]] = {
        "MADE": (
            lambda: MADE(shape, hidden_sizes=(500,)),
            {"batch_size": 100, "learning_rate": 1e-3},
        ),
        "gated PixelCNN": (
            lambda: GatedPixelCNN(shape, features=16, layers=4, kernel_size=7),
            {"batch_size": 16, "learning_rate": 4e-3},
        ),
    }
    record: Record = {"image_shape": list(shape)}
    scores = {}
    for name, (make, chosen) in ways.items():
        torch.manual_seed(0)
        trained, scores[name] = trained_on(*images, make(), seconds, chosen)
        network = trained.pair.network
        record[name] = reported(
            f"{name} on {shape}",
            {**trained.facts(), **mean(scores[name]), "jacobi": jacobi(network)},
        )
    # Of the same images, so that what they have in common cancels.
    gain = scores["MADE"] - scores["gated PixelCNN"]
    return {**record, "gain": mean(gain)}


def of_wavenet(seconds: float, audio_dir: Path | None, device: str) -> Record:
    """The WaveNet of the example; on a GPU a larger one."""
    arguments = [] if audio_dir is None else ["--data-dir", str(audio_dir)]
    if device != "cpu":
        sizes = "--layers 20 --cycle 10 --features 64 --skip 128 --row-length 6144 --batch-size 8"
        arguments += [*sizes.split(), "--learning-rate", "2e-3"]
    options = wavenet_digits.parse(arguments)
    dataset = wavenet_digits.load_recordings(options.dataset, options.data_dir)
    torch.manual_seed(options.seed)
    pair = wavenet_digits.make_pair(dataset, options)
    data = wavenet_digits.rows_of(pair, dataset.train_waveforms, dataset.train_labels)
    test = wavenet_digits.rows_of(pair, dataset.test_waveforms, dataset.test_labels)
    chosen = {"batch_size": options.batch_size, "learning_rate": options.learning_rate}
    extra = {} if device == "cpu" else ON_GPU
    trained = fit_within(pair, data, seconds, device=device, **chosen, **extra)
    goals = GOALS if device == "cpu" else GOALS_ON_GPU
    return reported(
        "WaveNet",
        {
            **trained.facts(),
            "dataset": dataset.name,
            "bits": trained.pair.bits_per_sample(**test),
            "goal": goals["wavenet"] if dataset.name == "spoken digits" else None,
        },
    )


def trained_on(
    images: torch.Tensor,
    test: torch.Tensor,
    network: AutoregressiveNetwork,
    seconds: float,
    chosen: Record,
    device: str = "cpu",
) -> tuple[Trained, torch.Tensor]:
    """Train on images binarized anew for each batch; return the nats of test images as well."""
    trained = fit_within(
        AutoregressiveImage(network), {"x": images}, seconds, device=device, **chosen
    )
    binary = torch.bernoulli(test, generator=torch.Generator().manual_seed(1))
    return trained, -trained.pair.to(device).log_prob(binary).cpu()


def mean(nats: torch.Tensor) -> Record:
    return {
        "nats": float(nats.mean()),
        "standard_error": float(nats.std()) / math.sqrt(len(nats)),
        "images": len(nats),
    }


def reported(name: str, record: Record) -> Record:
    what = (
        f"{record['bits']:.3f} bits a sample" if "bits" in record else f"{record['nats']:.2f} nats"
    )
    print(f"{name}: {what} after {record['seconds']:.0f} s, {record['steps']} steps", flush=True)
    return record
