"""An epoch of VAE training, 784-400-20 at batch 128, against hand-written loops.

Five contestants train the same networks on the same images: (a) PyTorch as tutorials write it,
with DataLoader and ToTensor; (b) the same loop on tensors in memory; (c) Pyro's `SVI.step`, on
tensors in memory; (d) `ppl_gen.fit`; (e) the same with matrix products in bfloat16. They take
turns, in an order that moves on each round, so that whatever else the machine does meets all of
them alike; ratios are taken within a round. All make the same number of steps in an epoch, so that
the ratio of two epochs is that of a step. Memory is measured in a process of its own for each.

    python benchmarks/vae_step.py --data-dir DIR    MNIST from DIR/MNIST/raw, else random images
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

BATCH_SIZE = 128
LEARNING_RATE = 1e-3
GOALS = {"time d/a": 0.3, "step d/b": 0.65, "memory d/b": 1.2}
RESULTS = Path(__file__).parent / "results" / "vae_step.json"

# A contestant returns the seconds of a training epoch and its mean loss, in nats per image.
Epoch = Callable[[], tuple[float, float]]


class TutorialVAE(nn.Module):
    """The VAE of PyTorch's own examples."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 400)
        self.fc21 = nn.Linear(400, 20)
        self.fc22 = nn.Linear(400, 20)
        self.fc3 = nn.Linear(20, 400)
        self.fc4 = nn.Linear(400, 784)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = F.relu(self.fc1(x))
        return self.fc21(hidden), self.fc22(hidden)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mu, logvar = self.encode(x.view(-1, 784))
        std = torch.exp(0.5 * logvar)
        return self.decode(mu + torch.randn_like(std) * std), mu, logvar


def loss_function(
    reconstruction: torch.Tensor, x: torch.Tensor, mu: torch.Tensor, logvar: torch.Tensor
) -> torch.Tensor:
    bce = F.binary_cross_entropy(reconstruction, x.view(-1, 784), reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return bce + kld


def train_by_hand(batches: Callable[[], Iterator[torch.Tensor]], num_images: int) -> Epoch:
    torch.manual_seed(0)
    model = TutorialVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def epoch() -> tuple[float, float]:
        model.train()
        train_loss = 0.0
        started = time.perf_counter()
        for x in batches():
            optimizer.zero_grad()
            reconstruction, mu, logvar = model(x)
            loss = loss_function(reconstruction, x, mu, logvar)
            loss.backward()
            train_loss += loss.item()
            optimizer.step()
        return time.perf_counter() - started, train_loss / num_images

    return epoch


def shuffled(images: torch.Tensor) -> Iterator[torch.Tensor]:
    order = torch.randperm(len(images))
    for start in range(0, len(images), BATCH_SIZE):
        yield images[order[start : start + BATCH_SIZE]]


def tutorial_loop(folder: Path) -> Epoch:
    """(a): torchvision's data set, DataLoader and ToTensor."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    dataset = MNIST(str(folder), train=True, transform=ToTensor())
    loader = DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True)
    return train_by_hand(lambda: (x for x, _ in loader), len(dataset))


def in_memory_loop(folder: Path) -> Epoch:
    """(b): the same on a tensor that holds all images."""
    images = load(folder)
    return train_by_hand(lambda: shuffled(images), len(images))


def pyro_svi(folder: Path) -> Epoch:
    """(c): Pyro's SVI on a tensor that holds all images, as its tutorial writes it."""
    import pyro
    import pyro.distributions as dist
    from pyro.infer import SVI, Trace_ELBO

    images = load(folder)
    torch.manual_seed(0)
    network = TutorialVAE()

    def model(x: torch.Tensor) -> None:
        pyro.module("vae", network)
        with pyro.plate("data", len(x)):
            prior = dist.Normal(x.new_zeros(len(x), 20), x.new_ones(len(x), 20)).to_event(1)
            z = pyro.sample("z", prior)
            pixels = dist.Bernoulli(network.decode(z), validate_args=False).to_event(1)
            pyro.sample("x", pixels, obs=x.view(-1, 784))

    def guide(x: torch.Tensor) -> None:
        pyro.module("vae", network)
        with pyro.plate("data", len(x)):
            mu, logvar = network.encode(x.view(-1, 784))
            pyro.sample("z", dist.Normal(mu, torch.exp(0.5 * logvar)).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), loss=Trace_ELBO())

    def epoch() -> tuple[float, float]:
        train_loss = 0.0
        started = time.perf_counter()
        for x in shuffled(images):
            train_loss += svi.step(x)
        return time.perf_counter() - started, train_loss / len(images)

    return epoch


def ppl_gen_fit(folder: Path, **options: Any) -> Epoch:
    """(d): ppl_gen.fit, the epoch after its first one, so that its set-up does not count."""
    import ppl_gen as pg
    from ppl_gen.inference import SVI, EpochInfo
    from ppl_gen.models import VAE

    images = load(folder)

    def epoch() -> tuple[float, float]:
        infos: list[EpochInfo] = []
        method = SVI(
            guide="pair",
            batch_size=BATCH_SIZE,
            epochs=2,
            learning_rate=LEARNING_RATE,
            callback=infos.append,
            **options,
        )
        pg.fit(VAE(), {"x": images}, method, device="cpu", progress=False)
        return infos[1].seconds - infos[0].seconds, infos[0].loss

    return epoch


def ppl_gen_bfloat16(folder: Path) -> Epoch:
    """(e): the same, with matrix products in bfloat16."""
    return ppl_gen_fit(folder, autocast=torch.bfloat16)


LABELS = {
    "a": "PyTorch by hand, DataLoader and ToTensor",
    "b": "PyTorch by hand, images in memory",
    "c": "Pyro's SVI.step, images in memory",
    "d": "ppl_gen.fit",
    "e": "ppl_gen.fit, products in bfloat16",
}
CONTESTANTS: dict[str, Callable[[Path], Epoch]] = {
    "a": tutorial_loop,
    "b": in_memory_loop,
    "c": pyro_svi,
    "d": ppl_gen_fit,
    "e": ppl_gen_bfloat16,
}


def load(folder: Path) -> torch.Tensor:
    """Return the training images, which all contestants but the tutorial's get alike."""
    from ppl_gen.data import load_mnist

    return load_mnist(folder).train_images


def write_random_images(folder: Path, num_images: int) -> None:
    """Write random images in torchvision's layout, as many as MNIST has."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", num_images), ("t10k", 10)):
        pixels = torch.randint(256, (count, 784), generator=generator, dtype=torch.uint8)
        header = struct.pack(">iiii", 2051, count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.numpy().tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">ii", 2049, count) + bytes(count)
        )


def peak_mebibytes() -> float:
    """Return the most memory that this process has held.

    Linux starts `ru_maxrss` of a new process at the peak of the one that started it; the high-water
    mark of the process's own memory does not have that.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure_memory(name: str, folder: Path) -> dict[str, float]:
    """Return peak memory after imports and after an epoch, from a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, "--data-dir", str(folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


def memory_of(name: str, folder: Path) -> dict[str, float]:
    """Run one contestant for an epoch; this is all that its own process does."""
    import torchvision.datasets

    assert torchvision.datasets
    if name == "c":
        import pyro.infer

        assert pyro.infer
    if name in "de":
        import ppl_gen.inference
        import ppl_gen.models

        assert ppl_gen.inference
        assert ppl_gen.models
    imports = peak_mebibytes()
    CONTESTANTS[name](folder)()
    return {"peak": round(peak_mebibytes(), 1), "imports": round(imports, 1)}


def spread(values: list[float], digits: int = 3) -> dict[str, float]:
    """Return median, least and greatest."""
    numbers = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in numbers.items()}


def run(folder: Path, images: str, rounds: int) -> dict[str, Any]:
    epochs = {name: make(folder) for name, make in CONTESTANTS.items()}
    names = list(epochs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, float] = {}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            elapsed, loss = epochs[name]()
            seconds[name].append(elapsed)
            losses.setdefault(name, round(loss, 2))
        now = ", ".join(f"{name} {seconds[name][-1]:.2f} s" for name in names)
        print(f"round {turn + 1} of {rounds}: {now}", flush=True)
    memory = {name: measure_memory(name, folder) for name in names}

    def ratios(one: str, other: str) -> list[float]:
        return [ours / theirs for ours, theirs in zip(seconds[one], seconds[other], strict=True)]

    peak = {name: values["peak"] for name, values in memory.items()}
    net = {name: values["peak"] - values["imports"] for name, values in memory.items()}
    measured = {
        "time d/a": ratios("d", "a"),
        "step d/b": ratios("d", "b"),
        "memory d/b": [peak["d"] / peak["b"]],
    }
    return {
        "images": images,
        "contestants": LABELS,
        "epoch_seconds": {name: spread(values) for name, values in seconds.items()},
        "loss_of_first_epoch": losses,
        "memory_mebibytes": memory,
        "ratios": {
            **{name: {**spread(values), "goal": GOALS[name]} for name, values in measured.items()},
            "step d/c": spread(ratios("d", "c")),
            "time e/a": spread(ratios("e", "a")),
            "step e/b": spread(ratios("e", "b")),
            "memory d/b, imports taken off": spread([net["d"] / net["b"]]),
        },
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def report(results: dict[str, Any]) -> None:
    print(
        f"\nVAE 784-400-20, batch {BATCH_SIZE}, {results['images']}, {results['threads']} threads"
    )
    print(f"{'':46}seconds an epoch         peak MiB (imports)")
    for name, label in results["contestants"].items():
        spent, memory = results["epoch_seconds"][name], results["memory_mebibytes"][name]
        print(
            f"({name}) {label:42}{spent['median']:6.2f} ({spent['min']:.2f} to {spent['max']:.2f})"
            f"    {memory['peak']:7.0f} ({memory['imports']:.0f})"
        )
    print("\nratio                            median (min to max)       goal")
    for name, ratio in results["ratios"].items():
        goal = ""
        if "goal" in ratio:
            met = "met" if ratio["median"] <= ratio["goal"] else "MISSED"
            goal = f"at most {ratio['goal']:g}: {met}"
        print(
            f"{name:32} {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})    {goal}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--num-images", type=int, default=60_000, help="of the random images")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the results")
    parser.add_argument("--memory-of", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(memory_of(options.memory_of, options.data_dir)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder, images = options.data_dir, "MNIST"
        if folder is None:
            folder, images = Path(scratch), f"{options.num_images:,} random images"
            write_random_images(folder, options.num_images)
        results = run(folder, images, options.rounds)
    report(results)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
