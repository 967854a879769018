"""A training step by `pg.fit`, beside the same network in a loop as one writes it by hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import ppl_gen as pg
from ppl_gen.distributions import AutoregressiveNetwork
from ppl_gen.inference import SVI, EpochInfo
from ppl_gen.models import AutoregressiveAudio, AutoregressiveImage
from ppl_gen.models.networks import GatedPixelCNN, WaveNet

Record = dict[str, Any]
GOAL = 1.05
LEARNING_RATE = 1e-3
# Steps of an epoch. The third one is timed: the recorded operators are compared with a run of the
# pair in steps 2, 4, 8, 16 and so on, later in every 512th, of which steps 17 to 24 are free.
STEPS, EPOCHS = 8, 3


@dataclass(frozen=True)
class Case:
    """A network, its pair, random data, and the loss that one writes by hand.

    Args:
        make: Makes the network.
        pair: Makes the pair of a network.
        data: Makes so many rows of data.
        batch_size: Rows in a step.
        loss: The loss of a mini-batch, summed.
    """

    make: Callable[[], AutoregressiveNetwork]
    pair: Callable[[AutoregressiveNetwork], nn.Module]
    data: Callable[[int], torch.Tensor]
    batch_size: int
    loss: Callable[[AutoregressiveNetwork, torch.Tensor], torch.Tensor]


def of_pixels(network: AutoregressiveNetwork, x: torch.Tensor) -> torch.Tensor:
    """Binary pixels, drawn anew each time."""
    pixels = torch.bernoulli(x)
    logits = network.numbers(pixels).squeeze(-1)
    return F.binary_cross_entropy_with_logits(logits, pixels, reduction="sum")


def of_samples(network: AutoregressiveNetwork, x: torch.Tensor) -> torch.Tensor:
    numbers = network.numbers(x)
    return F.cross_entropy(numbers.flatten(0, 1), x.flatten(), reduction="sum")


CASES: dict[str, Case] = {
    "gated PixelCNN, 7 layers, 64 features, 28 x 28, batch 16": Case(
        lambda: GatedPixelCNN((28, 28), features=64, layers=7),
        AutoregressiveImage,
        lambda rows: torch.rand(rows, 28, 28),
        16,
        of_pixels,
    ),
    "WaveNet, 20 layers, 64 features, 4 x 4,000 samples": Case(
        lambda: WaveNet(4000, features=64, skip=64, layers=20),
        AutoregressiveAudio,
        lambda rows: torch.randint(256, (rows, 4000)),
        4,
        of_samples,
    ),
}


def measure(rounds: int, device: str) -> Record:
    """Return seconds of a step of each case, both ways in turns."""
    found: Record = {"goal": GOAL, "cases": {}}
    for name, case in CASES.items():
        found["cases"][name] = one_case(case, rounds, device)
        record = found["cases"][name]
        print(
            f"{name}: a step {record['seconds']['fit']:.3f} s, by hand "
            f"{record['seconds']['by_hand']:.3f} s, ratio {record['ratio']:.3f} "
            f"({min(record['ratios']):.3f} to {max(record['ratios']):.3f})",
            flush=True,
        )
    return found


def one_case(case: Case, rounds: int, device: str, steps: int = STEPS) -> Record:
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    data = case.data(steps * case.batch_size).to(device)
    torch.set_rng_state(generator_state)
    ways = {
        "fit": lambda: fit_epoch(case, data, device),
        "by_hand": lambda: epoch_by_hand(case, data, device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            seconds[name].append(ways[name]() / steps)
    ratios = [a / b for a, b in zip(seconds["fit"], seconds["by_hand"], strict=True)]
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "rounds": rounds,
    }


def fit_epoch(case: Case, data: torch.Tensor, device: str) -> float:
    """Return the seconds of the last epoch; the first has the set-up in it."""
    torch.manual_seed(0)
    pair = case.pair(case.make())
    infos: list[EpochInfo] = []
    method = SVI(
        guide="pair",
        batch_size=case.batch_size,
        epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        draws=1,
        callback=infos.append,
    )
    pg.fit(pair, {"x": data}, method, device=device, progress=False)
    return infos[-1].seconds - infos[-2].seconds


def epoch_by_hand(case: Case, data: torch.Tensor, device: str) -> float:
    """Return the same of a loop on tensors in memory."""
    torch.manual_seed(0)
    network = case.make().to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    started, total = 0.0, 0.0
    for epoch in range(EPOCHS):
        if epoch == EPOCHS - 1:
            started = time.perf_counter()
        order = torch.randperm(len(data), device=data.device)
        for chosen in order.split(case.batch_size):
            optimizer.zero_grad()
            loss = case.loss(network, data[chosen])
            loss.backward()
            optimizer.step()
            total += loss.item()
    return time.perf_counter() - started
