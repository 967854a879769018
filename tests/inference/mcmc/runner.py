"""Runs fits in processes of their own that can be killed; each is a fork of one that has imported.

Reads jobs from standard input, a line of JSON each, and writes two lines for each: the process id,
and when it has ended `{"status": ..., ...}`: the exit status, negative for a signal, and what the
fit said of itself.
"""

import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import zarr  # noqa: F401  # so that no fork has to import it
from safetensors.torch import load

import ppl_gen as pg
from ppl_gen.core import progress
from ppl_gen.inference import mcmc
from ppl_gen.inference.mcmc import stream

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
DATA = {"y": Y, "sigma": SIGMA}


def schools(y: torch.Tensor, sigma: torch.Tensor) -> None:
    """Eight schools: diverges now and then; with a deterministic site, and one on a simplex."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("school", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def normal(dim: int) -> None:
    pyro.sample("x", dist.Normal(torch.zeros(dim), 1.0).to_event(1))


def model_and_data(name: str) -> tuple[Any, dict[str, Any]]:
    return (schools, DATA) if name == "schools" else (normal, {"dim": 50})


def run(job: dict[str, Any], answer: int) -> None:
    if job.get("often", True):
        stream._CHECKPOINT_SECONDS, stream._CHECKPOINT_SHARE = 0.02, 1.0
    if "progress" in job:
        progress._QUIET_SECONDS = progress.Display._LINE_SECONDS = 0.02
        sys.stderr = Path(job["progress"]).open("w")
    if "file_size" in job:
        threading.Thread(target=limit, args=(job,), daemon=True).start()
    method = getattr(mcmc, job["method"])(**job["options"])
    model, data = model_and_data(job.get("model", "schools"))
    said: dict[str, Any] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        posterior = pg.fit(
            model,
            data,
            method,
            seed=job.get("seed", 0),
            progress="progress" in job,
            out=job["out"],
            resume=job.get("resume", False),
        )
        if job.get("out") is None:
            posterior.save(job["save"])
        said["draws"], said["interrupted"] = posterior.num_draws, posterior.interrupted
    except (Exception, KeyboardInterrupt) as error:
        said["error"] = f"{type(error).__name__}: {error}"
    said["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    os.write(answer, json.dumps(said).encode())


def limit(job: dict[str, Any]) -> None:
    """Let no file grow beyond a size from the first checkpoint with draws on."""
    while not drawn(Path(job["out"])):
        time.sleep(0.001)
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_size"], resource.RLIM_INFINITY))


def state_of(out: Path) -> dict[str, torch.Tensor]:
    """Return the last checkpoint in a folder; empty where there is none yet."""
    file = out / "state.safetensors"
    try:
        return load(file.read_bytes())
    except FileNotFoundError:  # not yet, or it is just making room for the next one
        return {}


def transitions(out: Path) -> list[int]:
    """Return the number of transitions of each chain at the last checkpoint."""
    state = state_of(out)
    return state["transition"][: len(state["written"])].tolist() if state else []


def drawn(out: Path) -> int:
    """Return the number of draws that every chain has in a folder."""
    state = state_of(out)
    return int(state["written"].min()) if state else 0


def serve() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.close(read)
            code = 1
            try:
                run(job, write)
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        print(child, flush=True)
        with os.fdopen(read, "rb") as answer:
            said = answer.read()
        _, status = os.waitpid(child, 0)
        result = json.loads(said) if said else {}
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), **result}), flush=True)


if __name__ == "__main__":
    serve()
