"""What two processes under torchrun do for `test_ranks.py`: each writes what it saw to a file."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch.distributed.elastic.utils.distributed import get_free_port

import ppl_gen as pg
from ppl_gen.core import watch
from ppl_gen.core.ranks import RankError, ranks
from ppl_gen.inference import NUTS


def collectives() -> dict[str, Any]:
    here = ranks()
    index = here.index
    values = [
        torch.tensor([1.0, 10.0]) * index,
        torch.tensor(float(index), dtype=torch.float64),
        torch.full((2, 1), 4.0 * index).mT,  # not contiguous
    ]
    parameter = torch.nn.Parameter(torch.tensor([float(index)]))
    here.average_([*values, parameter.detach()])
    copied = [torch.tensor([index, 5]), torch.tensor([True, index == 0])]
    here.broadcast_(copied)
    rows = torch.full((index, 2), index)
    equal = {"a": torch.ones(3), "b": torch.zeros(2), "c": torch.tensor([torch.nan])}
    return {
        "size": here.size,
        "means": [value.tolist() for value in [*values, parameter]],
        "copied": [value.tolist() for value in copied],
        "gathered": [part.decode() for part in here.gather(b"ab" * index)],
        "to_first": [part.decode() for part in here.gather(b"x" * (2 - index), everywhere=False)],
        "joined": here.joined(rows).tolist(),
        "empty": list(here.joined(torch.zeros(index, 0)).shape),
        "from_first": here.from_first({"rank": index, "text": "ü"}),
        "differing": [here.differing(equal), here.differing(equal | {"b": torch.ones(2) * index})],
        "seeds": [here.own_seed(0), here.own_seed(0, 1), here.own_seed(1)],
        "chains": list(here.share(5)),
    }


def model(y: torch.Tensor, broken: bool = False) -> None:
    if broken and ranks().index == 1:
        raise ZeroDivisionError("the model of one rank is broken")
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def error_of(**changes: Any) -> list[Any]:
    """Return kind, message and seconds of the error of a fit, and the rank that it names."""
    method = changes.pop("method", NUTS(chains=2, draws=10, warmup=10))
    seed = changes.pop("seed", 0)
    started = time.monotonic()
    try:
        pg.fit(model, {"y": torch.tensor(1.0), **changes}, method, seed=seed, progress=False)
    except Exception as error:
        rank = error.rank if isinstance(error, RankError) else None
        return [type(error).__name__, str(error), time.monotonic() - started, rank]
    return []


def stopped(pids: list[int]) -> list[Any]:
    """One rank stands still, as one whose machine is out of reach; then it goes on."""
    here = ranks()
    watch._SILENT_SECONDS = 1.0
    try:
        with here.run("Begin anew."):
            here.barrier()
            if here.index == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            here.barrier()
    except RankError as error:
        os.kill(pids[1], signal.SIGCONT)
        return [str(error), error.rank]
    return []


def ends(victim: int) -> list[Any]:
    """One of two ranks that nobody looks after is killed; the other one says what it hears."""
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port())}
    read, write = os.pipe()
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            os.environ["RANK"] = str(rank)
            killed_while_the_other_waits(victim, write)
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        said: list[Any] = json.loads(answer.read())
    for child in children:
        os.waitpid(child, 0)
    return said


def killed_while_the_other_waits(victim: int, answer: int) -> None:
    if victim == 1:  # as a user may do
        torch.distributed.init_process_group("gloo")
    here, started = ranks(), time.monotonic()
    try:
        with here.run("Begin anew."):
            here.barrier()
            if here.index == victim:
                os.kill(os.getpid(), signal.SIGKILL)
            here.barrier()
    except RankError as error:
        said = [str(error), error.rank, time.monotonic() - started]
        os.write(answer, json.dumps(said).encode())


def main(folder: Path) -> None:
    environment = dict(os.environ)
    # Before there are threads.
    killed = [ends(victim) for victim in range(2)] if environment["RANK"] == "0" else []
    os.environ.clear()
    os.environ |= environment
    index = ranks().index
    with ranks().run("Begin anew."):
        said = collectives()
        pids = [int(part) for part in ranks().gather(str(os.getpid()).encode())]
    said["another seed"] = error_of(seed=index)
    said["other data"] = error_of(y=torch.tensor(float(index)))
    said["broken"] = error_of(broken=True)
    said["too few"] = error_of(method=NUTS(chains=1))
    said["stopped"] = stopped(pids)
    said["afterwards"] = error_of()
    said["killed"] = killed
    said["loopback"] = "GLOO_SOCKET_IFNAME" in os.environ
    said["handler"] = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    (folder / f"{index}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
