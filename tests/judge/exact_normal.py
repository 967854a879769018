"""A model whose posterior is normal, and a method that draws from it, rightly or wrongly.

Run as a script it calibrates: python exact_normal.py FILE REPLICATES WORKERS.
"""

import math
import os
import signal
import sys
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from scipy import signal as filters

from ppl_gen.core import Problem, Result
from ppl_gen.judge.calibration import Calibration, simulation_based_calibration

DATA = {"noise": torch.tensor([0.5, 1.0, 2.0])}


def normal(noise: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """A mean of prior N(0, 1), observed three times with different errors."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros_like(noise[0]), 1.0))
    with pyro.plate("row", len(noise)):
        pyro.sample("y", dist.Normal(mean, noise), obs=y)


@dataclass(frozen=True)
class Exact:
    """Draws from the posterior of `normal`, which is normal, or from something near it.

    Args:
        shift: Added to the draws, in posterior standard deviations.
        stretch: What the standard deviation is multiplied by.
        beyond: Only where the first observation is larger.
        prior: Whether to draw from the prior instead.
        correlation: Of successive draws.
        is_mcmc: Whether the draws are said to be a Markov chain.
        draws: Number of draws.
        fails_above: The first observation above which the fit fails.
        signal_above: The one above which this process sends `signal`.
        signal: Number of the signal.
        to_parent: Whether it goes to the process that has forked this one.
    """

    shift: float = 0.0
    stretch: float = 1.0
    beyond: float = -math.inf
    prior: bool = False
    correlation: float = 0.0
    is_mcmc: bool = False
    draws: int = 400
    fails_above: float = math.inf
    signal_above: float = math.inf
    signal: int = signal.SIGKILL
    to_parent: bool = False

    def run(self, problem: Problem) -> Result:
        weights = problem.data["noise"].double() ** -2
        first = float(problem.data["y"][0])
        if first > self.fails_above:
            msg = f"{first:.3f} is too large"
            raise ArithmeticError(msg)
        if first > self.signal_above:
            os.kill(os.getppid() if self.to_parent else os.getpid(), self.signal)
        precision = 1 + weights.sum()
        mean, sd = (weights * problem.data["y"]).sum() / precision, precision**-0.5
        if self.prior:
            mean, sd = torch.tensor(0.0), torch.tensor(1.0)
        noise = torch.randn(1, self.draws, dtype=torch.float64).numpy()
        noise[:, 1:] *= math.sqrt(1 - self.correlation**2)  # stationary from the first draw on
        draws = torch.from_numpy(filters.lfilter([1.0], [1.0, -self.correlation], noise))
        if first > self.beyond:
            draws = self.shift + self.stretch * draws
        return Result(draws={"mean": mean + sd * draws})


def calibrate(method: Exact, **options: object) -> Calibration:
    """Calibrate the method on the model."""
    return simulation_based_calibration(normal, DATA, method, progress=False, **options)  # type: ignore[arg-type]


if __name__ == "__main__":
    file, replicates, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    calibrate(Exact(), replicates=replicates, workers=workers, out=file)
