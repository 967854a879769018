"""Variational inference: seconds from the call to convergence, against Pyro's guides and Adam.

python benchmarks/vi.py --data ../shared/data/posteriordb

Pyro runs `AutoNormal` and `AutoMultivariateNormal` with Adam at a step size of 0.01 for 10,000
steps, the usual recipe; its time is extrapolated from a few hundred. `ppl_gen.fit` starts with an
empty cache of compiled files each time, so that compiling counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import SVI as PyroSVI
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_feasible

import ppl_gen as pg
from ppl_gen.core import LogDensity
from ppl_gen.core.evaluation import evaluation
from ppl_gen.core.scope import default_dtype
from ppl_gen.inference import SVI
from ppl_gen.inference.vi.deterministic import _Bound
from ppl_gen.inference.vi.families import MeanField, Normal
from ppl_gen.models import EightSchools

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent / "tests" / "posteriordb"))

STEPS = 10_000
TIMED_STEPS = 100
PARTICLES = 16
AUTOGUIDES = {"mean_field": AutoNormal, "full_rank": AutoMultivariateNormal}

Record = dict[str, Any]


def ours(pair: Any, data: Record, guide: str) -> Record:
    """Fit with an empty cache, and again with a filled one."""
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PPL_GEN_CACHE"] = cache
        for _ in range(2):
            began = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fitted = pg.fit(pair, data, SVI(guide=guide), seed=0, progress=False)  # type: ignore[arg-type]
            seconds.append(time.perf_counter() - began)
    assert fitted.elbo is not None
    return {
        "seconds_cold": seconds[0],
        "seconds_warm": seconds[1],
        "gradients": fitted.provenance["gradient_evaluations"],
        "elbo": fitted.elbo[0],
        "converged": fitted.provenance["converged"],
    }


def pyros(pair: Any, data: Record, guide: str) -> Record:
    """Time steps of Pyro's guide, and say how long all of them would take."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with default_dtype(torch.float64):
        model = pair.model if hasattr(pair, "model") else pair
        autoguide = AUTOGUIDES[guide](model, init_loc_fn=init_to_feasible)
        svi = PyroSVI(model, autoguide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        svi.step(**data)
        began = time.perf_counter()
        for _ in range(TIMED_STEPS):
            svi.step(**data)
        step = (time.perf_counter() - began) / TIMED_STEPS
    pyro.clear_param_store()
    return {"seconds_of_a_step": step, "seconds": step * STEPS}


def one_step(rounds: int) -> Record:
    """Compare a step of a mean-field guide with 16 particles on eight schools."""
    pair, data = EightSchools(), EightSchools.data()
    density = LogDensity(pair, data)
    evaluate = evaluation(density)
    rng = np.random.default_rng(0)
    family = MeanField(density.dim)
    parameters = family.standard()
    guide = Normal(np.zeros(density.dim), np.ones(density.dim))
    times: dict[str, list[float]] = {"ppl_gen": [], "pyro": []}
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(1000):
            noise = rng.normal(size=(PARTICLES, density.dim))
            _, gradient = _Bound(evaluate, family, guide, noise)(parameters)
            parameters = parameters - 1e-3 * gradient
        times["ppl_gen"].append((time.perf_counter() - began) / 1000)
        pyro.clear_param_store()
        elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True)
        svi = PyroSVI(pair.model, AutoNormal(pair.model), pyro.optim.Adam({"lr": 0.01}), elbo)
        svi.step(**data)
        began = time.perf_counter()
        for _ in range(200):
            svi.step(**data)
        times["pyro"].append((time.perf_counter() - began) / 200)
    pyro.clear_param_store()
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {**medians, "ratio": medians["ppl_gen"] / medians["pyro"], "goal": 0.05}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the posteriors")
    parser.add_argument("--only", nargs="+", help="some of the posteriors")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "vi.json")
    options = parser.parse_args()
    from pairs import POSTERIORS

    results: Record = {"step": one_step(options.rounds), "posteriors": {}}
    print(results["step"], flush=True)
    ratios: dict[str, list[float]] = {guide: [] for guide in AUTOGUIDES}
    for name in options.only or POSTERIORS:
        posterior = POSTERIORS[name]
        data = posterior.data(options.data)
        results["posteriors"][name] = {}
        for guide in AUTOGUIDES:
            mine = ours(posterior.pair, data, guide)
            try:
                theirs = pyros(posterior.pair, data, guide)
                ratios[guide].append(mine["seconds_cold"] / theirs["seconds"])
            except Exception as error:  # Pyro's guides refuse some models
                theirs = {"error": str(error).splitlines()[0]}
            results["posteriors"][name][guide] = {"ppl_gen": mine, "pyro": theirs}
            print(name, guide, mine, theirs, flush=True)
    results["ratio_of_seconds"] = {
        guide: statistics.geometric_mean(values) for guide, values in ratios.items() if values
    }
    print(results["ratio_of_seconds"], "goal: at most 0.2")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
