"""The command line in this process, and pairs and runs for it to work on."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.style  # noqa: F401 - it draws a random number when it is first imported
from typer.testing import CliRunner

from ppl_gen.cli import app

PAIRS = '''
"""Pairs of a user."""

import pyro
import pyro.distributions as dist
import torch

import ppl_gen as pg
from helper import SCALE

print("printed by the file")


class Line(pg.Pair):
    def __init__(self, slope_scale=5.0):
        super().__init__()
        self.slope_scale = slope_scale

    def model(self, x, y=None):
        print("printed by the model")
        slope = pyro.sample("slope", dist.Normal(0.0, self.slope_scale))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, SCALE), obs=y)


class Network(pg.Pair):
    def __init__(self, size):
        super().__init__()
        self.weights = torch.nn.Linear(size, 1)

    def model(self, x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.weights(x).squeeze(-1) + shift, 1.0), obs=x[:, 0])


def model(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 0.5), obs=y)


def guide(x, y=None):
    pyro.sample("slope", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))


def wrong_guide(x, y=None):
    pyro.sample("slop", dist.Normal(torch.zeros(()), 1.0))


def faulty(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    return slope.there_is_no_such_thing


both = (model, guide)
mismatch = (model, wrong_guide)
made = Line(2.0)
number = 3
'''


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def _imports_restored() -> Iterator[None]:
    """Files with pairs become modules, and their folders are searched: of one test alone."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name == "helper" or name.startswith("file of pairs"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def cli() -> Callable[..., Ended]:
    """Runs a command as the shell would, with the words given."""

    def run(*words: object) -> Ended:
        result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pairs.py` and its data: y = 2 x, with noise of scale 0.5."""
    made = tmp_path_factory.mktemp("pairs")
    (made / "pairs.py").write_text(PAIRS, encoding="utf-8")
    (made / "helper.py").write_text("SCALE = 0.5\n", encoding="utf-8")
    generator = np.random.default_rng(0)
    x = np.linspace(-1.0, 1.0, 20)
    y = 2.0 * x + 0.5 * generator.standard_normal(20)
    rows = [f"{a},{b}" for a, b in zip(x, y, strict=True)]
    (made / "line.csv").write_text("\n".join(["x,y", *rows]) + "\n", encoding="utf-8")
    return made
