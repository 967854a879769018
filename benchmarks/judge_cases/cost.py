"""What a comparison costs: seconds and memory, in a process of its own.

    python benchmarks/judge_cases/cost.py --out report.html
    python benchmarks/judge_cases/cost.py --out report.html --fitted

Without a model a comparison has draws and densities to judge by. With one it also weighs 100,000
fresh draws of each guide, predicts the data, and looks at how well each posterior fits them.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ppl_gen as pg
from ppl_gen.inference import NUTS, SVI
from ppl_gen.models import BayesianLinearRegression

POSTERIORS, CHAINS, DRAWS, PARAMETERS = 5, 4, 1000, 200


def posteriors() -> dict[str, pg.Posterior]:
    """Return one reference and four others, more and more off, with their densities."""
    rng = np.random.default_rng(0)
    loading = rng.normal(size=PARAMETERS) / 4
    found = {}
    for number in range(POSTERIORS):
        common = rng.normal(size=(CHAINS, DRAWS, 1))
        values = rng.normal(size=(CHAINS, DRAWS, PARAMETERS)) + common * loading
        values = (1 + 0.1 * number) * values + 0.1 * number
        is_mcmc = number == 0
        log_prob = -(values**2).sum(axis=-1) / 2
        stats = {"lp": log_prob, "energy": rng.chisquare(PARAMETERS, (CHAINS, DRAWS)) - log_prob}
        if not is_mcmc:
            stats = {"lp": log_prob, "log_q": log_prob / (1 + 0.1 * number) ** 2}
        found["nuts" if is_mcmc else f"guide {number}"] = pg.Posterior(
            draws={"theta": torch.as_tensor(values)},
            latents=("theta",),
            sample_stats={name: torch.as_tensor(value) for name, value in stats.items()},
            is_mcmc=is_mcmc,
            provenance={"method": "NUTS" if is_mcmc else "SVI", "seconds": 1.0, "seed": number},
        )
    return found


def fitted() -> dict[str, pg.Posterior]:
    """Return five posteriors of a regression with so many weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * PARAMETERS, PARAMETERS, generator=generator, dtype=torch.float64)
    x = x + torch.randn(2 * PARAMETERS, 1, generator=generator, dtype=torch.float64)
    y = x[:, :10].sum(dim=1) + torch.randn(len(x), generator=generator, dtype=torch.float64)
    pair = BayesianLinearRegression(PARAMETERS - 1, noise_scale=1.0)
    data = {"x": x[:, 1:], "y": y}
    methods: dict[str, Any] = {"nuts": NUTS(chains=CHAINS, draws=DRAWS)}
    for guide in ("mean_field", "low_rank", "full_rank", "laplace"):
        methods[guide] = SVI(guide=guide, draws=CHAINS * DRAWS)  # type: ignore[arg-type]
    return {
        name: pg.fit(pair, data, method, seed=0, progress=False, device="cpu")
        for name, method in methods.items()
    }


def main() -> None:
    """Compare, save, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, required=True, help="where the report goes")
    parser.add_argument("--fitted", action="store_true", help="posteriors of a model")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    given = fitted() if options.fitted else posteriors()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    comparison = pg.compare(given, reference="nuts", progress=False)
    compared = time.perf_counter()
    comparison.save(options.out)
    ended = time.perf_counter()
    print(
        json.dumps(
            {
                "seconds": ended - began,
                "seconds_compare": compared - began,
                "seconds_report": ended - compared,
                "report_mib": options.out.stat().st_size / 2**20,
                # Linux counts it in KiB.
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "peak_mib_before": before / 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
