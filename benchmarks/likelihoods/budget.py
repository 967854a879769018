"""Training for so many seconds: the speed is measured first, and the number of steps follows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

import ppl_gen as pg
from ppl_gen.inference import SVI, EpochInfo

# Share of the time that is not planned for, since no machine keeps its speed.
_SPARE = 0.06
# Seconds over which the speed is measured, and steps that are made at first to find out how many
# that takes.
_MEASURED, _FIRST = 5.0, 4
_LEAST = 40.0


@dataclass(frozen=True)
class Trained:
    """What came out of a training.

    Args:
        pair: The trained pair.
        steps: Number of steps.
        epochs: Number of passes over the data.
        seconds: Seconds of all, the choice of the number of steps included.
        parameters: Number of parameters.
    """

    pair: Any
    steps: int
    epochs: float
    seconds: float
    parameters: int

    def facts(self) -> dict[str, Any]:
        """Return all but the pair."""
        return {
            "parameters": self.parameters,
            "steps": self.steps,
            "epochs": round(self.epochs, 2),
            "seconds": round(self.seconds, 1),
        }


def fit_within(
    pair: Any,
    data: Mapping[str, torch.Tensor],
    seconds: float,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
    **options: Any,
) -> Trained:
    """Train a pair by as many steps as there is time for, the last half of them ever smaller.

    A training that is cut off has had no small steps; so their number has to be known before.

    Args:
        pair: The pair, with its own guide.
        data: Its data, a row for each observation.
        seconds: Seconds for all of it.
        seed: Of the training.
        device: Where to train.
        progress: Whether to show a progress bar.
        options: Of `SVI`, among them `batch_size`.
    """
    began = time.perf_counter()
    rows = len(next(iter(data.values())))
    options["batch_size"] = min(options["batch_size"], rows)
    step = seconds_of_step(pair, data, min(_MEASURED, seconds / _LEAST), seed, device, options)
    left = seconds * (1 - _SPARE) - (time.perf_counter() - began)
    steps = max(1, int(left / step))
    method = SVI(guide="pair", steps=steps, **options)
    fitted = pg.fit(pair, dict(data), method, seed=seed, device=device, progress=progress)
    if fitted.interrupted:
        raise KeyboardInterrupt
    return Trained(
        pair=fitted.pair,
        steps=steps,
        epochs=steps * options["batch_size"] / rows,
        seconds=time.perf_counter() - began,
        parameters=sum(parameter.numel() for parameter in pair.parameters()),
    )


def seconds_of_step(
    pair: Any,
    data: Mapping[str, torch.Tensor],
    least: float,
    seed: int,
    device: str,
    options: Mapping[str, Any],
) -> float:
    """Return the seconds of a step, measured over at least so many, set-up apart."""
    rows = len(next(iter(data.values())))
    steps = min(_FIRST, max(rows // options["batch_size"], 1))
    while True:
        infos: list[EpochInfo] = []
        count = min(steps * options["batch_size"], rows)
        some = {name: value[:count] for name, value in data.items()}
        method = SVI(guide="pair", epochs=3, callback=infos.append, **options)
        pg.fit(pair, some, method, seed=seed, device=device, progress=False)
        # The first epoch has the set-up in it.
        spent, made = infos[-1].seconds - infos[0].seconds, infos[-1].step - infos[0].step
        largest = rows // options["batch_size"]
        if spent >= least / 2 or steps >= largest:
            return spent / made
        steps = min(max(2 * steps, int(steps * least / max(spent, 1e-3))), largest)
