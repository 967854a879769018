"""Which metric, estimated how: effective draws per gradient over the reference posteriors.

python benchmarks/metrics.py --data ../shared/data/posteriordb
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch

import ppl_gen as pg
from ppl_gen.diagnostics import ess_bulk
from ppl_gen.inference import NUTS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "posteriordb"))
METRICS = tuple(product(("diag", "low_rank", "dense"), ("variance", "fisher")))


def efficiency(fitted: pg.Posterior) -> float:
    """Return the smallest bulk ESS of a scalar for 1,000 gradients, warm-up included."""
    smallest = np.inf
    for site in fitted.latents:
        columns = fitted[site].flatten(2) if fitted[site].ndim > 2 else fitted[site].unsqueeze(-1)
        for column in columns.unbind(-1):
            if column.std() > 0:
                smallest = min(smallest, float(ess_bulk(column.numpy())))
    return 1000 * smallest / fitted.provenance["gradient_evaluations"]


def main() -> None:
    """Fit every posterior with every metric, and write the table."""
    from pairs import POSTERIORS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / ".." / "shared/data/posteriordb")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    table: dict[str, dict[str, float]] = {}
    for name, posterior in POSTERIORS.items():
        data = posterior.data(options.data)
        init = "prior" if "lotka" in name else "uniform"
        table[name] = {}
        for metric, adaptation in METRICS:
            method = NUTS(metric=metric, adaptation=adaptation, init=init)
            found = [
                efficiency(pg.fit(posterior.pair, data, method, seed=seed, progress=False))
                for seed in range(options.seeds)
            ]
            table[name][f"{metric}, {adaptation}"] = float(np.median(found))
        row = "  ".join(f"{value:8.2f}" for value in table[name].values())
        print(f"{name:45s} {row}", flush=True)
    names = list(next(iter(table.values())))
    means = {n: float(np.exp(np.mean([np.log(row[n]) for row in table.values()]))) for n in names}
    print(f"{'geometric mean':45s} " + "  ".join(f"{value:8.2f}" for value in means.values()))
    results = {
        "what": "smallest bulk ESS of a scalar for 1,000 gradients, warm-up included; "
        f"NUTS, 4 x (1000 + 1000), median of {options.seeds} seeds",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "geometric_mean": means,
        "posteriors": table,
    }
    target = ROOT / "benchmarks" / "results" / "metrics.json"
    target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
