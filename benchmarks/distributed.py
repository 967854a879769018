"""How long one process takes for a training or for chains, and how long several under torchrun.

    OMP_NUM_THREADS=1 python benchmarks/distributed.py vae
    OMP_NUM_THREADS=2 python benchmarks/distributed.py vae
    torchrun --nproc-per-node 2 benchmarks/distributed.py vae

and the same with `chains` or `exchange`. Processor time is printed besides: on a machine that
others use as well it says more than the time that has passed.
"""

import os
import sys
import time

import torch

import ppl_gen as pg
from ppl_gen.core.ranks import ranks
from ppl_gen.inference import NUTS, SVI
from ppl_gen.models import VAE, BayesianLogisticRegression

BATCH, BATCHES, EPOCHS = 512, 20, 3


def vae() -> str:
    """The autoencoder 784-400-20 on random binary images; its last two epochs are timed."""
    images = (torch.rand(BATCH * BATCHES, 28, 28) < 0.2).float()
    marks: list[tuple[float, float]] = []
    method = SVI(
        "pair",
        batch_size=BATCH,
        epochs=EPOCHS,
        learning_rate=1e-3,
        callback=lambda _: marks.append((time.perf_counter(), time.process_time())),
    )
    pg.fit(VAE(), {"x": images}, method, progress=False)
    steps = BATCHES * (EPOCHS - 1)
    wall, processor = (
        (last - first) / steps for first, last in zip(marks[0], marks[-1], strict=True)
    )
    return f"{1e3 * wall:.2f} ms a step of {BATCH} rows, {1e3 * processor:.2f} ms of each processor"


def chains() -> str:
    """Sixteen chains of a logistic regression, compiled before."""
    x = torch.randn(1000, 24, dtype=torch.float64)
    y = (torch.rand(1000) < torch.sigmoid(x[:, 0])).double()
    pair, data = BayesianLogisticRegression(24), {"x": x, "y": y}
    pg.fit(pair, data, NUTS(chains=16, draws=1, warmup=1), progress=False)
    started, spent = time.perf_counter(), time.process_time()
    pg.fit(pair, data, NUTS(chains=16, draws=500, warmup=500), progress=False)
    wall, processor = time.perf_counter() - started, time.process_time() - spent
    return f"{wall:.2f} s, {processor:.2f} s of the processor in each process"


def exchange() -> str:
    """The mean of as many numbers as that autoencoder has gradients."""
    numbers = torch.randn(sum(p.numel() for p in VAE().parameters()))
    with ranks().run(""):
        ranks().average_([numbers])
        times, spent = [], time.process_time()
        for _ in range(100):
            started = time.perf_counter()
            ranks().average_([numbers])
            times.append(time.perf_counter() - started)
        spent = 10 * (time.process_time() - spent)
    wall = 1e3 * sorted(times)[50]
    return f"{wall:.2f} ms for {numbers.numel()} numbers (median), {spent:.2f} ms of each processor"


if __name__ == "__main__":
    torch.manual_seed(0)
    said = {"vae": vae, "chains": chains, "exchange": exchange}[sys.argv[1]]()
    if ranks().first:
        load = os.getloadavg()[0]
        threads = torch.get_num_threads()
        print(f"{ranks().size} x {threads} threads, load {load:.1f}: {said}")
