"""Worker: what a gradient costs in Pyro's own NUTS, from a short run of one chain.

A full run takes minutes to hours. Pyro draws chains one after another where there are fewer
processors than chains and one more, so that the cost of a gradient says what a full run takes.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pyro
import torch
from posteriors import POSTERIORS
from pyro.infer import MCMC, NUTS
from pyro_models import MODELS


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=list(POSTERIORS), required=True)
    parser.add_argument("--data", type=Path, required=True, help="an .npz file")
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--draws", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    with np.load(options.data) as stored:
        data = {name: torch.as_tensor(value) for name, value in stored.items()}
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(options.seed)

    # Every gradient runs the model once; so does each of the few calls of the set-up.
    starts: list[float] = []

    def counted(**data: torch.Tensor) -> None:
        starts.append(time.perf_counter())
        MODELS[options.model](**data)

    counted.__name__ = options.model
    after: list[tuple[int, float]] = []

    def remember(kernel: NUTS, samples: object, stage: str, i: int) -> None:
        after.append((len(starts), time.perf_counter()))

    mcmc = MCMC(
        NUTS(counted),
        num_samples=options.draws,
        warmup_steps=options.warmup,
        num_chains=1,
        disable_progbar=True,
        hook_fn=remember,
    )
    started = time.perf_counter()
    mcmc.run(**data)
    (calls, at), (calls_at_end, end) = after[options.warmup - 1], after[-1]
    result = {
        "seconds_per_gradient": (end - at) / (calls_at_end - calls),
        "gradients_measured": calls_at_end - calls,
        "gradients_measured_warmup": calls,
        "seconds_measured": end - started,
        "measured": f"1 chain, {options.warmup} + {options.draws} transitions",
        "versions": {name: metadata.version(name) for name in ("pyro-ppl", "torch", "numpy")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
