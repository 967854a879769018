"""NUTS of ppl-gen against Pyro, NumPyro and nutpie on eight posteriors, side by side in one run.

Each engine samples each posterior in a process of its own: once cold (compiling included, imports
apart) and again with another seed (warm). The engines take turns, in an order that moves on each
round; ratios are taken within a round, and medians over rounds are reported. All engines sample
the same posterior with 1,000 transitions of warm-up and 1,000 draws a chain, in float64; that they
agree is tested by the draws themselves. Every effective sample size is computed in this process,
by the same function, as the least over all elements of the latent sites.

NumPyro comes twice: "numpyro" calls `MCMC.run` again on the same object, as its documentation
does, which compiles anew for each key; "numpyro_jit" has the whole run under `jax.jit`, the
fastest that NumPyro can do. Pyro would take hours: a short run of one chain measures what a
gradient costs, and it is taken to need as many gradients, for as many effective draws, as NumPyro,
whose algorithm is the same, and to draw its chains one after another, as it does where chains
outnumber processors.

    python -m venv .venv-bench && .venv-bench/bin/pip install numpyro nutpie pymc
    python benchmarks/sampler.py                        everything: hours
    python benchmarks/sampler.py --models logistic --engines ppl_gen nutpie --rounds 1
    python benchmarks/sampler.py --scaling              cost of a leapfrog step by number of chains
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from ppl_gen.diagnostics.mcmc import ess_bulk, mcse_mean, rhat

FOLDER = Path(__file__).parent
WORKERS = FOLDER / "sampler_models"
sys.path.insert(0, str(WORKERS))

from posteriors import POSTERIORS  # noqa: E402

OURS = "ppl_gen"
PEERS = ("numpyro", "numpyro_jit", "nutpie")
ENGINES = (OURS, "pyro", *PEERS)
# Engines that keep what they compiled on disk.
CACHING = (OURS, "nutpie")
SCALING_MODELS = ("eight_schools", "logistic")
SCALING_CHAINS = (1, 4, 16, 64, 256, 1024)
FALSE_ALARM = 1e-3

Record = dict[str, Any]
Draws = dict[str, np.ndarray[Any, Any]]


class Bench:
    """Runs workers, each with the caches that it is given."""

    def __init__(self, scratch: Path, peers_python: str, timeout: float) -> None:
        self.scratch = scratch
        self.peers_python = peers_python
        self.timeout = timeout
        for name, posterior in POSTERIORS.items():
            np.savez(self.data(name), **posterior.make())

    def data(self, model: str) -> Path:
        return self.scratch / f"data_{model}.npz"

    def draws(self, engine: str) -> Path:
        return self.scratch / f"draws_{engine}.npz"

    def work(self, engine: str, model: str, caches: Path, *options: object) -> Record:
        """Return what a worker's process reports, or its error."""
        python = self.peers_python if engine in PEERS else sys.executable
        script = WORKERS / f"run_{engine}.py"
        given = ["--model", model, "--data", self.data(model), *options]
        environment = {
            **os.environ,
            "PPL_GEN_CACHE": str(caches / "ppl_gen"),
            "PYTENSOR_FLAGS": f"base_compiledir={caches / 'pytensor'}",
        }
        if engine in ("pyro", "nutpie"):
            # nutpie's chains take all cores already, and Pyro's operations are small: with more
            # threads both were several times slower on every model.
            environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [python, str(script), *map(str, given)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, timeout=self.timeout
            )
        except subprocess.TimeoutExpired:
            return {"error": f"more than {self.timeout:g} s"}
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        result: Record = json.loads(done.stdout.splitlines()[-1])
        return result

    def measure(
        self, engine: str, model: str, chains: int, warmup: int, draws: int, turn: int
    ) -> Record:
        """Run an engine cold and warm, and once more from its filled cache where it keeps one."""
        size: tuple[object, ...] = ("--chains", chains, "--warmup", warmup, "--draws", draws)
        seed, load = 1000 * turn, round(os.getloadavg()[0], 2)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            caches = Path(folder)
            if engine == "pyro":
                short = ("--warmup", 100, "--draws", 50, "--seed", seed)
                record = self.work(engine, model, caches, *short)
            else:
                last = ("--seed", seed, "--out", self.draws(engine))
                # A run apart, so once is enough.
                counting = ("--count-warmup",) if engine == "numpyro_jit" and turn == 0 else ()
                record = self.work(engine, model, caches, *size, *last, *counting)
                if engine in CACHING and "error" not in record:
                    again = ("--seed", seed, "--again", 0)
                    second = self.work(engine, model, caches, *size, *again)
                    record["seconds_second_process"] = second.get("seconds_cold")
                    record["details_second_process"] = second.get("details_cold")
        named = {"engine": engine, "model": model, "chains": chains, "round": turn}
        return {**named, "load_average_before": load, **record}


def load(path: Path) -> Draws:
    with np.load(path) as stored:
        return dict(stored)


def element(draws: Draws, name: str) -> np.ndarray[Any, Any]:
    """Return the draws of an element, such as "mu" or "weights[0]"."""
    site, _, index = name.partition("[")
    place = tuple(int(i) for i in index.rstrip("]").split(",")) if index else ()
    column: np.ndarray[Any, Any] = draws[site][(slice(None), slice(None), *place)]
    return column


def judge(record: Record, draws: Draws) -> None:
    """Add to a record how well the chains mixed and what they found."""
    ess = float(min(np.nanmin(ess_bulk(value)) for value in draws.values()))
    record["min_bulk_ess"] = round(ess, 1)
    record["max_rhat"] = round(float(max(np.nanmax(rhat(v)) for v in draws.values())), 4)
    record["ess_per_second"] = ess / record["seconds_warm"]
    record["ess_per_gradient_of_draws"] = ess / record["gradients"]
    if record["gradients_warmup"] is not None:
        record["ess_per_gradient"] = ess / (record["gradients"] + record["gradients_warmup"])
    record["found"] = {
        name: {
            "mean": float(column.mean()),
            "sd": float(column.std()),
            "mcse": float(mcse_mean(column)),
        }
        for name in POSTERIORS[record["model"]].shown
        for column in [element(draws, name)]
    }


def extrapolate(pyro: Record, numpyro: Record) -> Record:
    """Return Pyro's record of a full run, from its cost of a gradient and NumPyro's statistics."""
    counts = {key: numpyro[key] for key in ("gradients", "gradients_warmup")}
    seconds = pyro["seconds_per_gradient"] * sum(counts.values())
    return {
        **pyro,
        "chains": numpyro["chains"],
        "extrapolated": True,
        **counts,
        "seconds_cold": seconds,
        "seconds_warm": seconds,
        "ess_per_second": numpyro["min_bulk_ess"] / seconds,
        "ess_per_gradient": numpyro["ess_per_gradient"],
    }


def agreement(draws: dict[str, Draws]) -> Record:
    """Test that all engines have the same means and the same standard deviations.

    Means of each element and of its square, both centred and scaled by the first engine's draws,
    are compared in units of their Monte Carlo standard errors. The bound is Bonferroni's over all
    comparisons.
    """
    first = next(iter(draws.values()))
    moments: dict[str, list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]] = {}
    for engine, sites in draws.items():
        moments[engine] = []
        for name, value in sites.items():
            centre, spread = first[name].mean((0, 1)), first[name].std((0, 1))
            scaled = (value - centre) / spread
            for power in (scaled, scaled**2):
                moments[engine].append((power.mean((0, 1)), mcse_mean(power)))
    z: dict[str, float] = {}
    tests = 0
    for a, b in itertools.combinations(draws, 2):
        worst = 0.0
        for (mean_a, error_a), (mean_b, error_b) in zip(moments[a], moments[b], strict=True):
            scores = np.abs(mean_a - mean_b) / np.hypot(error_a, error_b)
            worst = max(worst, float(np.nanmax(scores)))
            tests += scores.size
        z[f"{a}, {b}"] = round(worst, 2)
    bound = NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * max(tests, 1)))
    return {
        "max_abs_z": z,
        "bound": round(bound, 2),
        "tests": tests,
        "agree": all(value < bound for value in z.values()),
    }


def geometric_mean(values: Iterable[float]) -> float:
    return statistics.geometric_mean(list(values))


def median_of(records: list[Record], key: str) -> float | None:
    values = [record[key] for record in records if record.get(key) is not None]
    return statistics.median(values) if values else None


MEDIANS = (
    "seconds_cold",
    "seconds_second_process",
    "seconds_warm",
    "processor_seconds_cold",
    "processor_seconds_warm",
    "gradients",
    "gradients_warmup",
    "min_bulk_ess",
    "ess_per_second",
    "ess_per_gradient",
    "ess_per_gradient_of_draws",
    "max_rhat",
    "divergences",
    "peak_mebibytes",
)


def summarise(records: list[Record]) -> Record:
    """Return medians over rounds by chains, model and engine."""
    table: Record = {}
    for record in records:
        by_model = table.setdefault(str(record["chains"]), {}).setdefault(record["model"], {})
        by_model.setdefault(record["engine"], []).append(record)
    return {
        chains: {
            model: {
                engine: {key: median_of(runs, key) for key in MEDIANS}
                for engine, runs in engines.items()
            }
            for model, engines in models.items()
        }
        for chains, models in table.items()
    }


def compare(records: list[Record], base: str) -> Record:
    """Return an engine's ratios to the others, medians of the rounds and geometric means."""
    found = {(r["chains"], r["model"], r["engine"], r["round"]): r for r in records}
    result: Record = {}
    keys = sorted({(chains, engine) for chains, _, engine, _ in found if engine != base})
    for chains, peer in keys:
        by_model: Record = {}
        for model in POSTERIORS:
            speed, cold = [], []
            for (n, m, engine, turn), theirs in found.items():
                ours = found.get((chains, model, base, turn))
                if (n, m, engine) != (chains, model, peer) or ours is None:
                    continue
                if "ess_per_second" in ours and "ess_per_second" in theirs:
                    speed.append(ours["ess_per_second"] / theirs["ess_per_second"])
                    cold.append(ours["seconds_cold"] / theirs["seconds_cold"])
            if speed:
                by_model[model] = {
                    "ess_per_second": statistics.median(speed),
                    "seconds_cold": statistics.median(cold),
                }
        if not by_model:
            continue
        large = [by_model[m] for m in by_model if POSTERIORS[m].rows >= 1000]
        result.setdefault(str(chains), {})[peer] = {
            "models": by_model,
            "geometric_mean": {
                key: geometric_mean(ratio[key] for ratio in by_model.values())
                for key in ("ess_per_second", "seconds_cold")
            },
            "geometric_mean_of_1000_rows_or_more": {
                key: geometric_mean(ratio[key] for ratio in large) if large else None
                for key in ("ess_per_second", "seconds_cold")
            },
        }
    return result


def goals(ratios: Record) -> list[Record]:
    """Return the goals that can be judged by what was measured."""
    wanted = [
        ("4", "pyro", "geometric_mean", "ess_per_second", 50.0),
        ("4", "numpyro", "geometric_mean", "ess_per_second", 3.0),
        ("4", "numpyro_jit", "geometric_mean", "ess_per_second", 3.0),
        ("4", "nutpie", "geometric_mean", "ess_per_second", 0.3),
        ("4", "nutpie", "geometric_mean_of_1000_rows_or_more", "ess_per_second", 1.0),
        ("4", "numpyro", "geometric_mean", "seconds_cold", -1.0),
        ("4", "numpyro_jit", "geometric_mean", "seconds_cold", -1.0),
        ("64", "numpyro", "geometric_mean", "ess_per_second", 2.0),
        ("64", "numpyro_jit", "geometric_mean", "ess_per_second", 2.0),
    ]
    judged = []
    for chains, peer, mean, key, goal in wanted:
        value = ratios.get(chains, {}).get(peer, {}).get(mean, {}).get(key)
        if value is None:
            continue
        met = value <= -goal if goal < 0 else value >= goal
        bound = f"at most {-goal:g}" if goal < 0 else f"at least {goal:g}"
        name = f"{key}, ppl_gen / {peer}, {chains} chains, {mean.replace('_', ' ')}"
        judged.append({"goal": name, "bound": bound, "value": value, "met": met})
    return judged


def machine() -> Record:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((line.split(": ")[1] for line in lines if "model name" in line), model)
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version()}


def run(bench: Bench, options: argparse.Namespace) -> Iterator[Record]:
    """Yield the results so far after each model, so that a run that is stopped leaves some."""
    records: list[Record] = []
    agreements: Record = {}
    for chains, model in itertools.product(options.chains, options.models):
        counted: int | None = None
        for turn in range(options.rounds):
            start = turn % len(options.engines)
            by_engine: dict[str, Record] = {}
            draws: dict[str, Draws] = {}
            for engine in options.engines[start:] + options.engines[:start]:
                record = bench.measure(engine, model, chains, options.warmup, options.draws, turn)
                by_engine[engine] = record
                if engine != "pyro" and "error" not in record:
                    draws[engine] = load(bench.draws(engine))
            # NumPyro's steps of warm-up are counted once, in a run apart.
            counted = by_engine.get("numpyro_jit", {}).get("gradients_warmup") or counted
            for engine, record in by_engine.items():
                if engine in ("numpyro", "numpyro_jit") and "error" not in record:
                    record["gradients_warmup"] = counted
                if engine in draws:
                    judge(record, draws[engine])
            like = by_engine.get("numpyro_jit", {})
            if "seconds_per_gradient" in by_engine.get("pyro", {}) and "ess_per_gradient" in like:
                by_engine["pyro"] = extrapolate(by_engine["pyro"], like)
            if turn == 0 and len(draws) > 1:
                agreements.setdefault(str(chains), {})[model] = agreement(draws)
            for record in by_engine.values():
                records.append(record)
                print(line(record), flush=True)
        yield assemble(records, agreements, options)


def assemble(records: list[Record], agreements: Record, options: argparse.Namespace) -> Record:
    ratios = compare(records, OURS)
    versions: dict[str, str] = {}
    for record in records:
        versions.update(record.get("versions", {}))
    return {
        "machine": machine(),
        "versions": versions,
        "settings": {"warmup": options.warmup, "draws": options.draws, "rounds": options.rounds},
        "summary": summarise(records),
        "ratios": ratios,
        "ratios_of_peers": {peer: compare(records, peer) for peer in PEERS},
        "goals": goals(ratios),
        "agreement": agreements,
        "runs": [{k: v for k, v in record.items() if k != "versions"} for record in records],
    }


def number(value: float | None, form: str) -> str:
    """Return a number in a form, or blanks of the same width."""
    width = int(form.split(".")[0])
    return " " * width if value is None else format(value, form)


def line(record: Record) -> str:
    name = f"{record['chains']:4} {record['model']:17} {record['engine']:12}"
    if "error" in record:
        return f"{name} failed: {record['error']}"
    cells = [
        number(record.get("seconds_cold"), "9.2f"),
        number(record.get("seconds_second_process"), "9.2f"),
        number(record.get("seconds_warm"), "9.2f"),
        number(record.get("gradients"), "10.0f"),
        number(record.get("min_bulk_ess"), "8.0f"),
        number(record.get("ess_per_second"), "11.1f"),
        number(record.get("ess_per_gradient"), "10.5f"),
        number(record.get("max_rhat"), "7.3f"),
        number(record.get("divergences"), "6.0f"),
    ]
    return name + "".join(cells)


def report(results: Record) -> None:
    print(
        f"\n{'chains, model, engine':35}{'cold s':>9}{'second s':>9}{'warm s':>9}{'gradients':>10}"
        f"{'min ESS':>8}{'ESS/s':>11}{'ESS/grad':>10}{'R-hat':>7}{'div.':>6}"
    )
    for chains, models in results["summary"].items():
        for model, engines in models.items():
            for engine, medians in engines.items():
                print(line({"chains": int(chains), "model": model, "engine": engine, **medians}))
    for chains, peers in results["ratios"].items():
        print(f"\nppl_gen / peer, {chains} chains: {'ESS/s':>24}{'cold s':>9}")
        for peer, ratios in peers.items():
            rows = {**ratios["models"], "geometric mean": ratios["geometric_mean"]}
            rows["1,000 rows or more"] = ratios["geometric_mean_of_1000_rows_or_more"]
            for name, ratio in rows.items():
                speed, cold = ratio["ess_per_second"], ratio["seconds_cold"]
                print(f"{peer:14}{name:20} {number(speed, '18.3f')}{number(cold, '9.3f')}")
    for goal in results["goals"]:
        met = "met" if goal["met"] else "MISSED"
        print(f"{goal['goal']}: {goal['value']:.3f}, {goal['bound']}: {met}")
    for chains, models in results["agreement"].items():
        for model, test in models.items():
            verdict = "agree" if test["agree"] else "DISAGREE"
            worst = max(test["max_abs_z"].values())
            print(f"{chains:>4} {model:17} {verdict}: |z| {worst:.2f}, bound {test['bound']:.2f}")


def scale(bench: Bench, options: argparse.Namespace) -> Iterator[Record]:
    """Measure ppl-gen's cost of a leapfrog step, and its memory, by number of chains."""
    rows: list[Record] = []
    settings = {"warmup": options.warmup, "draws": options.draws}
    with tempfile.TemporaryDirectory(dir=bench.scratch) as caches:
        for model, chains in itertools.product(SCALING_MODELS, SCALING_CHAINS):
            size = ("--chains", chains, "--warmup", options.warmup, "--draws", options.draws)
            record = bench.work(OURS, model, Path(caches), *size, "--seed", 0)
            rows.append({"model": model, "chains": chains, **cost(record)})
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
            yield {"machine": machine(), "settings": settings, "scaling": rows}


def cost(record: Record) -> Record:
    """Return what a gradient of one chain costs in a warm run, or why that is not known."""
    if "error" in record:
        return record
    # What comes before the first transition is no cost of a step.
    seconds = record["seconds_warm"] - record["details"].get("seconds_to_first_draw", 0.0)
    gradients = record["gradients"] + record["gradients_warmup"]
    return {
        "microseconds_per_gradient": round(1e6 * seconds / gradients, 4),
        "gradients": gradients,
        "seconds": round(seconds, 3),
        "peak_mebibytes": record["peak_mebibytes"],
        "peak_mebibytes_over_imports": round(
            record["peak_mebibytes"] - record["peak_mebibytes_imports"], 1
        ),
    }


def find_peers(given: str | None) -> str:
    """Return the Python that has the peers."""
    own = FOLDER.parent / ".venv-bench" / "bin" / "python"
    candidates = [given] if given else [str(own), sys.executable]
    for python in candidates:
        if Path(python).exists():
            found = subprocess.run([python, "-c", "import numpyro, nutpie, pymc"], check=False)
            if found.returncode == 0:
                return python
    sys.exit(
        f"No peers in {' or '.join(candidates)}. Make an environment for them:\n"
        "  python -m venv .venv-bench && .venv-bench/bin/pip install numpyro nutpie pymc\n"
        "or leave them out: --engines ppl_gen pyro"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=POSTERIORS, default=list(POSTERIORS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--chains", nargs="+", type=int, default=[4, 64])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each engine")
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds of one process")
    parser.add_argument("--peers-python", help="the Python that has numpyro, nutpie and pymc")
    parser.add_argument("--scaling", action="store_true", help="cost of a step by chains, only")
    parser.add_argument("--out", type=Path, help="file for the results")
    options = parser.parse_args()
    needs_peers = not options.scaling and not set(PEERS).isdisjoint(options.engines)
    peers_python = find_peers(options.peers_python) if needs_peers else sys.executable
    name = "sampler_scaling.json" if options.scaling else "sampler.json"
    out = options.out or FOLDER / "results" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), peers_python, options.timeout)
        for results in scale(bench, options) if options.scaling else run(bench, options):
            out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if not options.scaling:
        report(results)


if __name__ == "__main__":
    main()
