"""What two processes under torchrun fit for `test_ranks.py`: each saves what it gets."""

import contextlib
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from safetensors.torch import load
from torch.utils.data import DataLoader, TensorDataset

import ppl_gen as pg
from ppl_gen.core.ranks import RankError, ranks
from ppl_gen.core.store import save  # which writes in every process
from ppl_gen.inference import NUTS, SVI, EpochInfo, RandomWalk
from ppl_gen.inference.mcmc import stream
from ppl_gen.inference.training import keeper

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
DATA = {"y": Y, "sigma": SIGMA}
# Two seconds or so, a third of it in the warm-up.
LONG = NUTS(chains=5, draws=4000, warmup=4000, thinning=2)


def schools(y: torch.Tensor, sigma: torch.Tensor) -> None:
    """Eight schools, with a deterministic site: diverges now and then."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def two_modes() -> None:
    """Two modes of scale 0.1 around 1 and -1, of which the second weighs e^-60."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1).mask(False))
    heavy, light = -50 * (x[0] - 1) ** 2, -60 - 50 * (x[0] + 1) ** 2
    pyro.factor("modes", torch.logsumexp(torch.stack([heavy, light]), 0))
    pyro.factor("other", -(x[1] ** 2) / 2)


class Injected(pg.Pair):
    """A small autoencoder whose noise is given with the rows of the data, none being drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = torch.nn.Linear(2, 3)
        self.encoder = torch.nn.Linear(3, 2)
        self.prior_loc = torch.nn.Parameter(torch.zeros(2))

    def model(self, x: torch.Tensor, noise: torch.Tensor) -> None:
        # A term that is no row's, to be counted once.
        pyro.factor("decay", -0.5 * self.decoder.weight.square().sum())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.prior_loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: torch.Tensor, noise: torch.Tensor) -> None:
        loc = self.encoder(x)
        with pyro.plate("data", len(x)):
            log_q = dist.Normal(0.0, 1.0).log_prob(noise).sum(-1)
            pyro.sample("z", dist.Delta(loc + noise, log_density=log_q, event_dim=1))


class Normalised(pg.Pair):
    """A regression on batch-normalised features: the running statistics are buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)
        self.loc = torch.nn.Parameter(torch.zeros(2))

    def model(self, x: torch.Tensor, y: torch.Tensor) -> None:
        weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((self.norm(x) * weights).sum(-1), 1.0), obs=y)

    def guide(self, x: torch.Tensor, y: torch.Tensor) -> None:
        pyro.sample("weights", dist.Normal(self.loc, 0.1).to_event(1))


def mean_of_normal(y: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y)


def drawn_with(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def injected() -> Injected:
    pair = Injected().double()
    for number, parameter in enumerate(pair.parameters()):
        parameter.data = 0.3 * drawn_with(number, *parameter.shape)
    return pair


ROWS = {"x": drawn_with(1, 13, 3), "noise": drawn_with(2, 13, 2)}
LOADER = DataLoader(TensorDataset(*ROWS.values()), batch_size=5, shuffle=True)
REGRESSION = {"x": 3.0 + drawn_with(3, 40, 2), "y": drawn_with(4, 40)}
MEASURED = {"y": 0.7 + drawn_with(5, 200, 2)}


def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)


# Method, model, data and seed of each run that two processes are to make as one does.
RUNS: dict[str, tuple[Any, Any, Any, int]] = {
    "nuts": (schools, NUTS(chains=5, draws=150, warmup=200), DATA, 0),
    # Half of its chains begin in the light mode, and start again from one of any process.
    "two modes": (two_modes, NUTS(chains=9, draws=30, warmup=160), {}, 4),
    # 13 rows in batches of 5, 5 and 3, of which the processes have 3 and 2, 2 and 1.
    "one step": (injected(), SVI("pair", steps=1, batch_size=5, optimizer=sgd, draws=1), ROWS, 0),
    "five steps": (injected(), SVI("pair", steps=5, batch_size=5, optimizer=sgd, draws=1), ROWS, 3),
    "loader": (injected(), SVI("pair", steps=5, optimizer=sgd, draws=1), LOADER, 3),
    "normalised": (Normalised().double(), SVI("pair", steps=30, batch_size=8), REGRESSION, 0),
    "whole run": (mean_of_normal, SVI("full_rank", steps=400, batch_size=20), MEASURED, 0),
    "all rows": (mean_of_normal, SVI("full_rank", steps=300), MEASURED, 0),
    "optimised": (mean_of_normal, SVI("mean_field"), MEASURED, 0),
    "random walk": (schools, RandomWalk(chains=2, draws=100, warmup=100, thinning=2), DATA, 1),
}


def fit(name: str, **options: Any) -> pg.Posterior:
    model, method, data, seed = RUNS[name]
    return pg.fit(model, data, method, seed=seed, progress=False, **options)


def both(folder: Path) -> None:
    """Fit everything, and save what this process gets."""
    mine = folder / str(ranks().index)
    for name in RUNS:
        # What ranks do together they do in their fits: each saves by itself.
        save(fit(name), mine / name)
    interrupted_and_gone_on_with(folder, mine)
    said = {
        "drift": error_of(callback=drift, batch_size=5),
        "short": error_of(batch_size=4),
        "other rows": error_of(Unlike()),
    }
    (mine / "errors.json").write_text(json.dumps(said))
    posterior = fit("nuts", out=folder / "out")
    save(posterior, mine / "streamed")
    save(posterior.extend(30, progress=False), mine / "extended")


STOP_AT = [0]


def stop(info: EpochInfo) -> None:
    if info.epoch == STOP_AT[0]:
        raise InterruptedError


def interrupted_and_gone_on_with(folder: Path, mine: Path) -> None:
    """End a training in its fourth epoch, as if it had been killed, and go on with it."""
    keeper._SECONDS, keeper._SHARE = 0.0, math.inf
    method = SVI("full_rank", steps=60, batch_size=20, callback=stop)
    options: dict[str, Any] = {"progress": False, "seed": 4}
    save(pg.fit(mean_of_normal, MEASURED, method, **options), mine / "uninterrupted")
    STOP_AT[0] = 4
    with contextlib.suppress(InterruptedError, RankError):
        pg.fit(mean_of_normal, MEASURED, method, out=folder / "svi", **options)
    STOP_AT[0] = 0
    resumed = pg.fit(mean_of_normal, MEASURED, method, out=folder / "svi", resume=True, **options)
    save(resumed, mine / "resumed")


def drift(info: EpochInfo) -> None:
    """Change a parameter in one process only."""
    with torch.no_grad():
        next(info.pair.parameters()).add_(1e-6 * ranks().index)


class Unlike:
    """Batches that are not the same in both processes from the second epoch on."""

    def __init__(self) -> None:
        self.epoch = 0

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        shift = ranks().index * (self.epoch > 1)
        for first in (0, 6):
            yield {name: rows.roll(shift, 0)[first : first + 6] for name, rows in ROWS.items()}

    def set_epoch(self, number: int) -> None:
        self.epoch = number


def error_of(data: Any = ROWS, **options: Any) -> str:
    """Return what is said where a training fails."""
    try:
        method = SVI("pair", steps=6, optimizer=sgd, **options)
        pg.fit(injected(), data, method, progress=False)
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def drawn(out: Path) -> int:
    """Return the number of draws that every chain has at the last checkpoint in a folder."""
    file = out / "state.safetensors"
    state = load(file.read_bytes()) if file.exists() else {}
    return int(state["written"].min()) if state else 0


def killed_and_gone_on_with(folder: Path) -> None:
    """Be killed in the first attempt, which torchrun starts again."""
    stream._CHECKPOINT_SECONDS, stream._CHECKPOINT_SHARE = 0.05, 1.0
    out = folder / "out"
    rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
    if (rank, attempt) == ("1", "0"):
        threading.Thread(target=kill_when_drawn, args=(out,), daemon=True).start()
    if (rank, attempt) == ("0", "1"):  # for one process to go on with
        shutil.copytree(out, folder / "left")
    posterior = pg.fit(schools, DATA, LONG, progress=False, out=out, resume=True)
    save(posterior, folder / rank)


def kill_when_drawn(out: Path) -> None:
    while drawn(out) < 10:
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    {"both": both, "killed": killed_and_gone_on_with}[sys.argv[1]](Path(sys.argv[2]))
