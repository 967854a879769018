"""How fast the sampler draws, beside a network that is run anew for each element."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.distributions.sampling.draw import Options, draw
from ppl_gen.distributions.sampling.jacobi import draw_by_iteration
from ppl_gen.models.networks import (
    MADE,
    DiagonalBiLSTM,
    GatedPixelCNN,
    PixelCNN,
    PixelCNNPlusPlus,
    RowLSTM,
    WaveNet,
)

Record = dict[str, Any]

RATE = 8000
# Elements that the plain way is timed on, of one row and of several: it takes as long for each.
TIMED, TIMED_TOGETHER = 3, 1
# Rows that are checked at a time.
_CHECKED = 4
# Longer than what the check of a new plan runs the network on, which takes memory of its own.
LENGTHS = (16_000, 160_000)
GRAYS = Elements("logistic_mixture", 256, 10)


@dataclass(frozen=True)
class Case:
    """A network, how many are drawn together, and how much faster that is to be than the plain way.

    Args:
        make: Makes the network.
        rows: Numbers of rows that are drawn together.
        window: What the plain way runs for each element: the network over as many elements as it
            sees. None: the network itself.
        ratio: Goals, by number of rows: times as fast as the plain way.
        rate: Goals, by number of rows: elements a second.
    """

    make: Callable[[], AutoregressiveNetwork]
    rows: tuple[int, ...]
    window: Callable[[], AutoregressiveNetwork] | None = None
    ratio: tuple[tuple[int, float], ...] = ()
    rate: tuple[tuple[int, float], ...] = ()


def wavenet(length: int, layers: int = 20) -> WaveNet:
    return WaveNet(length, features=64, skip=64, layers=layers)


def window(layers: int = 20) -> WaveNet:
    return wavenet(wavenet(1, layers).receptive_field, layers)


CASES: dict[str, Case] = {
    "WaveNet, 20 layers, 64 features, one second": Case(
        lambda: wavenet(RATE),
        (1, 64),
        window,
        ratio=((1, 300.0),),
        rate=((1, RATE), (64, 40_000.0)),
    ),
    "gated PixelCNN, 7 layers, 64 features, 28 x 28": Case(
        lambda: GatedPixelCNN((28, 28), features=64, layers=7),
        (1, 64),
        ratio=((1, 50.0), (64, 150.0)),
    ),
    "PixelCNN, 7 blocks, 64 features, 28 x 28": Case(
        lambda: PixelCNN((28, 28), features=64, layers=7), (1, 64)
    ),
    "PixelCNN++, 32 features, 2 blocks of 3 sizes, grays": Case(
        lambda: PixelCNNPlusPlus((28, 28), features=32, layers=2, elements=GRAYS), (1, 64)
    ),
    "row LSTM, 3 layers, 32 features, 28 x 28": Case(
        lambda: RowLSTM((28, 28), features=32, layers=3), (1, 64)
    ),
    "diagonal BiLSTM, 3 layers, 32 features, 28 x 28": Case(
        lambda: DiagonalBiLSTM((28, 28), features=32, layers=3), (1, 64)
    ),
    "MADE, 500 units, 28 x 28": Case(lambda: MADE((28, 28), hidden_sizes=(500,)), (1, 64)),
}
ON_GPU: dict[str, Case] = {
    "WaveNet, 30 layers, 64 features, one second at 16 kHz": Case(
        lambda: wavenet(16_000, 30), (1, 64), lambda: window(30), rate=((1, 16_000.0),)
    ),
}


def measure(rounds: int, device: str, only: str | None = None) -> Record:
    """Return what each case took, both ways in turns, and the memory of the sampler."""
    cases = CASES if device == "cpu" else ON_GPU
    with tempfile.TemporaryDirectory() as cache:
        before = os.environ.get("PPL_GEN_CACHE")
        os.environ["PPL_GEN_CACHE"] = cache  # so that compiling counts
        try:
            found: Record = {"compile_seconds": compile_seconds(device), "cases": {}}
            for name, case in cases.items():
                if only is None or only in name:
                    found["cases"][name] = one_case(case, rounds, device)
                    print(told(name, found["cases"][name]), flush=True)
        finally:
            os.environ.pop("PPL_GEN_CACHE")
            if before is not None:
                os.environ["PPL_GEN_CACHE"] = before
    if device == "cpu" and only is None:
        found["memory"] = {str(length): peak_of(length) for length in LENGTHS}
        print("memory of one stream, MiB by length:", found["memory"], flush=True)
    return found


def compile_seconds(device: str) -> float:
    """Return the seconds of the first draws there are, of a network that needs no planning."""
    network = MADE((8, 8), hidden_sizes=(4,)).to(device)
    network().sample((64,))
    began = time.perf_counter()
    for rows in (1, 16, 64):  # for each of which there is a program of its own
        network().sample((rows,))
    spent = time.perf_counter() - began
    return round(spent, 2)


def one_case(case: Case, rounds: int, device: str) -> Record:
    torch.manual_seed(0)
    network = case.make().eval().to(device)
    count = network.order.numel()
    record: Record = {"elements": count, "rows": {}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        began = time.perf_counter()
        network().sample()
        first = time.perf_counter() - began
    slow = [str(each.message) for each in caught if "which is slow" in str(each.message)]
    if slow:
        return {**record, "cannot": slow[0]}
    naive = network if case.window is None else case.window().eval().to(device)
    for rows in case.rows:
        ours, plain, ratios = [], [], []
        for _ in range(rounds):
            ours.append(timed(partial(network().sample, (rows,)), device))
            few = TIMED if rows == 1 else TIMED_TOGETHER
            run = partial(plain_elements, naive, rows, few)
            plain.append(timed(run, device) / few * count)
            ratios.append(plain[-1] / ours[-1])
        seconds = statistics.median(ours)
        record["rows"][str(rows)] = {
            "seconds": seconds,
            "per_second": rows * count / seconds,
            "plain_seconds": statistics.median(plain),
            "ratio": statistics.median(ratios),
            "ratios": [round(ratio, 1) for ratio in ratios],
            "goal_of_ratio": dict(case.ratio).get(rows),
            "goal_per_second": dict(case.rate).get(rows),
            "ties": ties(network, rows),
        }
    alone = record["rows"].get("1")
    record["planning_seconds"] = max(first - (alone["seconds"] if alone else 0.0), 0.0)
    return record


def timed(call: Callable[[], Any], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.no_grad()
def plain_elements(network: AutoregressiveNetwork, rows: int, few: int) -> None:
    """Draw a few elements the plain way: a run of the network for each."""
    like = next(network.parameters())
    x = torch.zeros(rows, *network.event_shape, dtype=like.dtype, device=like.device)
    uniform = torch.rand(rows, dtype=like.dtype, device=like.device)
    for place in network.order[-few:].tolist():
        numbers = network.numbers(x).reshape(rows, -1, network.elements.num_outputs)
        x.view(rows, -1)[:, place] = network.elements.draw(numbers[:, place], uniform, 1.0, 1.0)


@torch.no_grad()
def ties(network: AutoregressiveNetwork, rows: int) -> dict[str, int]:
    """Return at how many elements the network itself, given the others, draws another value.

    Where it is none, the draws are those of the plain way: its first element is the same, so its
    second, and so on. One run of the network checks all of them.
    """
    like = next(network.parameters())
    uniforms = torch.rand(rows, network.order.numel(), dtype=like.dtype, device=like.device)
    drawn = draw(network, uniforms, None, None, Options())
    count = 0
    for some, uniform in zip(drawn.split(_CHECKED), uniforms.split(_CHECKED), strict=True):
        numbers = network.numbers(some.reshape(-1, *network.event_shape))
        flat = numbers.reshape(*some.shape, network.elements.num_outputs)
        count += int((network.elements.draw(flat, uniform, 1.0, 1.0) != some).sum())
    return {"count": count, "of": drawn.numel()}


def jacobi(network: AutoregressiveNetwork, rows: int = 16) -> Record:
    """Return how many runs of the network over all elements at once end at its draws.

    Each starts from the elements of the one before; the first i are right after i runs.
    """
    count = network.order.numel()
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(rows, count, generator=generator)
    _, passes = draw_by_iteration(network, uniforms, None, None, Options())
    return {"passes": passes, "elements": count, "rows": rows}


def told(name: str, record: Record) -> str:
    if "cannot" in record:
        return f"{name}: {record['cannot']}"
    lines = [f"{name}: planned in {record['planning_seconds']:.2f} s"]
    for rows, found in record["rows"].items():
        lines.append(
            f"  {rows:>2} together: {found['per_second']:,.0f} elements a second, "
            f"{found['ratio']:,.0f} times the plain way; ties {found['ties']['count']} of "
            f"{found['ties']['of']:,}"
        )
    return "\n".join(lines)


# Memory, in a process of its own


def peak_of(length: int) -> float:
    """Return by how much a stream of that length raises the peak memory of a process, MiB."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from likelihoods.sampling import grown; grown(int(sys.argv[2]))"
    )
    folder = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", code, folder, str(length)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(json.loads(output.splitlines()[-1]))


def grown(length: int) -> None:
    """Print the memory that planning and sampling took beyond what was there before, MiB."""
    wavenet(64, 2)().sample()
    torch.manual_seed(0)
    network = wavenet(length)
    before = peak()
    network().sample()
    print(json.dumps(round(peak() - before, 1)))


def peak() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
