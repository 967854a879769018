"""Variational inference side by side: seconds and errors, of guides by name, Pathfinder, and peers.

    python -m venv .venv-bench && .venv-bench/bin/pip install numpyro blackjax
    python benchmarks/vi.py --data ../shared/data/posteriordb

Three parts, one after the other:

- "step": a step of a mean-field guide on eight schools, against `SVI.step` of Pyro.
- "posteriordb": `mean_field` and `full_rank` on its posteriors, against Pyro's `AutoNormal` and
  `AutoMultivariateNormal`.
- "models": the same on the eight models of the sampler's benchmark, against Pyro's and NumPyro's
  autoguides; and `Pathfinder` against BlackJAX's multi-path Pathfinder. Means and standard
  deviations are compared with those of a long run of NUTS.

Autoguides make 10,000 steps of Adam at a step size of 0.01, the usual recipe; Pyro's time is
extrapolated from a hundred, NumPyro runs all of them in one compiled loop, compiling included.
`ppl_gen.fit` starts with an empty cache of compiled files each time, so that compiling counts.
Peers take turns with ours on each model; ratios are geometric means over models. A peer that is
not installed is left out, and the results say so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import SVI as PyroSVI
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_feasible

import ppl_gen as pg
from ppl_gen.core import LogDensity
from ppl_gen.core.evaluation import evaluation
from ppl_gen.core.scope import default_dtype
from ppl_gen.inference import NUTS, SVI, Pathfinder
from ppl_gen.inference.vi.deterministic import _Bound
from ppl_gen.inference.vi.families import MeanField, Normal
from ppl_gen.models import EightSchools

FOLDER = Path(__file__).parent
WORKER = FOLDER / "vi_peers" / "run_jax.py"
sys.path.insert(0, str(FOLDER.parent / "tests" / "posteriordb"))
sys.path.insert(0, str(FOLDER / "sampler_models"))

PARTS = ("step", "posteriordb", "models")
# What each peer in JAX needs.
PACKAGES = {"numpyro": ("mean_field", "full_rank"), "blackjax": ("pathfinder",)}
RATE = 0.01
DRAWS = 10_000
# The reference: chains, and draws of each.
CHAINS, CHAIN_DRAWS = 4, 5000
STEPS = 10_000
TIMED_STEPS = 100
PARTICLES = 16
AUTOGUIDES = {"mean_field": AutoNormal, "full_rank": AutoMultivariateNormal}

Record = dict[str, Any]
Draws = dict[str, np.ndarray[Any, Any]]


def ours(pair: Any, data: Record, guide: str, moments: Moments | None = None) -> Record:
    """Fit with an empty cache, and again with a filled one."""
    seconds = []
    method: Any = Pathfinder() if guide == "pathfinder" else SVI(guide=guide, draws=DRAWS)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PPL_GEN_CACHE"] = cache
        for _ in range(2):
            began = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fitted = pg.fit(pair, data, method, seed=0, progress=False, device="cpu")
            seconds.append(time.perf_counter() - began)
    assert fitted.elbo is not None
    record = {
        "seconds_cold": seconds[0],
        "seconds_warm": seconds[1],
        "gradients": fitted.provenance["gradient_evaluations"],
        "elbo": fitted.elbo[0],
        "converged": fitted.provenance.get("converged"),
        "warnings": len(fitted.warnings),
    }
    if moments is not None:
        record |= moments.errors({name: fitted[name][0].numpy() for name in moments.mean})
    return record


@dataclass(frozen=True)
class Moments:
    """Means and standard deviations by site, as a long run of NUTS found them."""

    mean: Draws
    sd: Draws

    @classmethod
    def of(cls, pair: Any, data: Record, sites: tuple[str, ...]) -> Moments:
        method = NUTS(chains=CHAINS, draws=CHAIN_DRAWS)
        run = pg.fit(pair, data, method, seed=0, progress=False, device="cpu")
        drawn = {name: run[name].flatten(0, 1).numpy() for name in sites}
        return cls(
            {name: value.mean(axis=0) for name, value in drawn.items()},
            {name: value.std(axis=0) for name, value in drawn.items()},
        )

    def errors(self, draws: Draws) -> Record:
        """Return the largest error of a mean, in sds, and the largest relative one of an sd."""
        means, sds = [], []
        for name, mean in self.mean.items():
            sd = self.sd[name]
            means.append(np.abs(draws[name].mean(axis=0) - mean) / sd)
            sds.append(np.abs(draws[name].std(axis=0) / sd - 1))
        worst = [float(max(np.max(part) for part in parts)) for parts in (means, sds)]
        return {"error_of_means": worst[0], "error_of_sds": worst[1]}


def pyros(pair: Any, data: Record, guide: str) -> Record:
    """Time steps of Pyro's guide, and say how long all of them would take."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    try:
        with default_dtype(torch.float64):
            model = pair.model if hasattr(pair, "model") else pair
            discrete = [
                n
                for n, site in LogDensity(pair, data).model_sites.items()
                if site.kind == "discrete"
            ]
            autoguide = AUTOGUIDES[guide](
                pyro.poutine.block(model, hide=discrete), init_loc_fn=init_to_feasible
            )
            elbo = TraceEnum_ELBO(max_plate_nesting=1) if discrete else Trace_ELBO()
            svi = PyroSVI(model, autoguide, pyro.optim.Adam({"lr": RATE}), elbo)
            svi.step(**data)
            began = time.perf_counter()
            for _ in range(TIMED_STEPS):
                svi.step(**data)
            step = (time.perf_counter() - began) / TIMED_STEPS
    except Exception as error:  # Pyro's guides refuse some models
        return {"error": str(error).splitlines()[0]}
    finally:
        pyro.clear_param_store()
    return {"seconds_of_a_step": step, "seconds_cold": step * STEPS}


class Peers:
    """Runs the peers in JAX, each in a process of its own.

    Args:
        python: The Python that has them, or None.
        scratch: A folder for data and draws.
        timeout: Seconds of one process at most.
    """

    def __init__(self, python: Path | None, scratch: Path, timeout: float) -> None:
        self.python = python
        self.scratch = scratch
        self.timeout = timeout
        self.missing = {name for name in PACKAGES if not self._has(name)}

    def _has(self, package: str) -> bool:
        if self.python is None or not self.python.exists():
            return False
        command = [str(self.python), "-c", f"import {package}"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def run(self, package: str, method: str, model: str, data: Draws, moments: Moments) -> Record:
        """Return what a peer reports, with its errors; or why it does not."""
        if package in self.missing:
            return {"error": f"{package} is not installed in {self.python}"}
        given, out = self.scratch / "data.npz", self.scratch / "draws.npz"
        np.savez(given, **data)
        options = {
            "--model": model,
            "--method": method,
            "--data": given,
            "--steps": STEPS,
            "--rate": RATE,
            "--draws": 1000 if method == "pathfinder" else DRAWS,
            "--seed": 0,
            "--out": out,
        }
        words = [str(word) for pair in options.items() for word in pair]
        command = [str(self.python), str(WORKER), *words]
        # What this process imports from is nothing to the other Python.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                env=environment,
                timeout=self.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"more than {self.timeout:g} s"}
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        record: Record = json.loads(done.stdout.splitlines()[-1])
        with np.load(out) as stored:
            return record | moments.errors(dict(stored))


def on_models(names: list[str], guides: list[str], peers: Peers) -> Record:
    """Compare all on the models of the sampler's benchmark."""
    from posteriors import POSTERIORS
    from pyro_models import MODELS

    results: Record = {}
    for name in names:
        arrays = POSTERIORS[name].make()
        data = {key: torch.as_tensor(value) for key, value in arrays.items()}
        moments = Moments.of(MODELS[name], data, POSTERIORS[name].sites)
        results[name] = {}
        for guide in guides:
            found = {"ppl_gen": ours(MODELS[name], data, guide, moments)}
            if guide in AUTOGUIDES:
                found["pyro"] = pyros(MODELS[name], data, guide)
            package = next(p for p, methods in PACKAGES.items() if guide in methods)
            found[package] = peers.run(package, guide, name, arrays, moments)
            results[name][guide] = found
            for engine, record in found.items():
                print(line(name, guide, engine, record), flush=True)
    return results


def on_posteriordb(names: list[str] | None, folder: Path) -> Record:
    """Compare with Pyro's guides on posteriordb."""
    from pairs import POSTERIORS

    results: Record = {}
    for name in names or list(POSTERIORS):
        posterior = POSTERIORS[name]
        data = posterior.data(folder)
        results[name] = {}
        for guide in AUTOGUIDES:
            found = {
                "ppl_gen": ours(posterior.pair, data, guide),
                "pyro": pyros(posterior.pair, data, guide),
            }
            results[name][guide] = found
            for engine, record in found.items():
                print(line(name, guide, engine, record), flush=True)
    return results


def line(name: str, guide: str, engine: str, record: Record) -> str:
    """Return a record in a line."""
    head = f"{name[:30]:30} {guide:11} {engine:9}"
    if "error" in record:
        return f"{head} {record['error']}"
    text = f"{head} {record['seconds_cold']:8.2f} s cold"
    for key, form in (
        ("seconds_warm", "{:8.2f} s warm"),
        ("elbo", "ELBO {:.2f}"),
        ("error_of_means", "mean off {:.2f} sd"),
        ("error_of_sds", "sd off {:.0%}"),
    ):
        if record.get(key) is not None:
            text += ", " + form.format(record[key])
    return text


def ratios_of(results: Record) -> Record:
    """Return our seconds over each peer's, cold and warm, geometric means over the models."""
    found: dict[str, dict[str, list[float]]] = {}
    for guides in results.values():
        for guide, engines in guides.items():
            mine = engines["ppl_gen"]
            for engine, theirs in engines.items():
                if engine == "ppl_gen" or "error" in theirs:
                    continue
                by_key = found.setdefault(f"{guide}, {engine}", {})
                for key in ("seconds_cold", "seconds_warm"):
                    if key in theirs:
                        by_key.setdefault(key, []).append(mine[key] / theirs[key])
    return {
        name: {
            **{key: statistics.geometric_mean(values) for key, values in by_key.items()},
            "models": len(by_key["seconds_cold"]),
        }
        for name, by_key in found.items()
    }


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


def find_peers(given: Path | None) -> Path | None:
    """Return the Python that has the peers in JAX."""
    own = FOLDER.parent / ".venv-bench" / "bin" / "python"
    return given or (own if own.exists() else None)


def main() -> None:
    """Run it."""
    from posteriors import POSTERIORS

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the posteriors of posteriordb")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", nargs="+", help="some of the posteriors of posteriordb")
    parser.add_argument("--models", nargs="+", choices=POSTERIORS, default=list(POSTERIORS))
    guides = [*AUTOGUIDES, "pathfinder"]
    parser.add_argument("--guides", nargs="+", choices=guides, default=guides, help="of the models")
    parser.add_argument("--peers-python", type=Path, help="the Python with numpyro and blackjax")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds of one process")
    parser.add_argument("--rounds", type=int, default=3, help="of the part step")
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "vi.json")
    options = parser.parse_args()
    if "posteriordb" in options.parts and options.data is None:
        parser.error("--data: the part posteriordb needs the folder of its posteriors, or --parts")
    cores = {"cores": os.cpu_count(), "python": platform.python_version()}
    results: Record = {"machine": cores, "load_average_before": os.getloadavg()[0]}
    if "step" in options.parts:
        results["step"] = one_step(options.rounds)
        print(results["step"], flush=True)
    if "posteriordb" in options.parts:
        found = on_posteriordb(options.only, options.data)
        results["posteriors"] = found
        results["ratio_of_seconds"] = ratios_of(found)
    if "models" in options.parts:
        with tempfile.TemporaryDirectory() as scratch:
            peers = Peers(find_peers(options.peers_python), Path(scratch), options.timeout)
            for name in sorted(peers.missing):
                print(f"{name} is missing and left out: pip install {name}, or --peers-python")
            found = on_models(options.models, options.guides, peers)
        results["models"] = found
        results["ratio_of_seconds_on_models"] = ratios_of(found)
    for key in ("ratio_of_seconds", "ratio_of_seconds_on_models"):
        for name, ratio in results.get(key, {}).items():
            print(f"{key} {name}: {ratio}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
