"""Pathfinder: normal approximations along the paths of optimisers, pooled and resampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ppl_gen.core import LogDensity, Problem, Result
from ppl_gen.core.errors import check_count
from ppl_gen.core.evaluation import Evaluate, evaluation
from ppl_gen.core.progress import ProgressBar, announced
from ppl_gen.diagnostics import Smoothed, psis, resample
from ppl_gen.inference.guides import NormalMixtureGuide
from ppl_gen.inference.start import refuse_constant
from ppl_gen.inference.vi.pathfinder import (
    Best,
    approximations,
    best_of,
    climb,
    goes_on,
)

__all__ = ["Pathfinder"]

# Draws that are worth a smaller part of their number get a warning.
_LEAST_ESS = 0.1


@dataclass(frozen=True)
class Pathfinder:
    """Pathfinder: a quick approximation, on any pair with continuous latents.

    From each of several random points it climbs towards a mode by L-BFGS. Of the normal
    approximations that the optimiser's estimates of the curvature give along its path, the one of
    the highest evidence lower bound is kept. The draws of all paths are pooled, weighted by
    Pareto-smoothed importance sampling against their mixture, and resampled. k-hat, kept in the
    provenance as `pareto_k`, says whether these are draws of the posterior, about; whether they are
    or not, they are good points to start `NUTS` from. It speaks only of where the paths came: in
    the neck of a funnel none draws, and k-hat can come out below its threshold.

    The posterior's guide is the mixture, before weighting: `posterior.sample` draws from it, `elbo`
    is its bound, and the statistic `log_q` its density at each draw. The posterior's own draws are
    weighted already: `lp - log_q` is an importance ratio only of draws by `posterior.sample`. Draws
    are weighted against the mixture's worst as well as its best normals: the bound can be far below
    the evidence where the draws are right. It is -inf, with an error of NaN, where the log density
    is not finite at a draw of the pool, which then has no weight.

    Args:
        paths: Number of paths.
        draws: Number of draws to return; each path adds as many to the pool.
        elbo_draws: Draws that an approximation's bound is estimated from.
        max_steps: Steps of a path at most.
        dtype: What the log density is computed in.

    Raises:
        ValueError: If an option is out of range.

    References:
        Zhang, Carpenter, Gelman and Vehtari (2022), Pathfinder: Parallel quasi-Newton variational
        inference, arXiv:2108.03782. Unlike there, each path is followed in units of the density's
        widths at its start, and in up to 100 dimensions remembers more steps; all draws are
        weighted by the density of the mixture, not by that of their own path; they are resampled
        systematically, so that none is repeated but for a weight above one in `draws`; and all
        approximations of a path are judged by the same noise.

    Example:
        >>> Pathfinder(paths=4).draws
        1000
    """

    paths: int = 8
    draws: int = 1000
    elbo_draws: int = 25
    max_steps: int = 1000
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        for name in ("paths", "draws", "elbo_draws", "max_steps"):
            check_count(name, getattr(self, name))
        if self.dtype not in (torch.float32, torch.float64):
            msg = f"dtype: expected torch.float64 or torch.float32, got {self.dtype}."
            raise ValueError(msg)

    @property
    def is_mcmc(self) -> bool:
        """Its draws are independent: no Markov chains."""
        return False

    def run(self, problem: Problem) -> Result:
        """Follow the paths, pool their draws and resample; see `ppl_gen.fit`."""
        density = LogDensity(
            problem.pair,
            problem.data,
            dtype=self.dtype,
            device=problem.device,
            prepared=problem.prepared,
        )
        refuse_constant(density)
        with announced("compiling the log density", enabled=problem.progress):
            evaluate = evaluation(density)
        found, endless, evaluations = self._follow(density, evaluate, problem.progress)
        normals = [best.normal for best in found if best.normal is not None]
        if not normals:
            raise self._nothing_found()
        guide = NormalMixtureGuide.of(normals)
        vectors = guide.rsample_each([self.draws] * len(normals))
        log_prob = evaluate(vectors)[0]
        # What is not finite is an overflow: such draws get no weight.
        log_prob = torch.where(log_prob.isfinite(), log_prob, -torch.inf)
        log_q = guide.log_prob(vectors)
        ratios = log_prob - log_q
        weights = psis(ratios.numpy())
        generator = np.random.default_rng(int(torch.randint(2**62, ())))
        chosen = torch.from_numpy(resample(weights.log_weights, self.draws, generator))
        values = density.constrain(vectors[chosen].to(density.device, density.dtype))
        return Result(
            draws={name: value.detach().unsqueeze(0) for name, value in values.items()},
            sample_stats={
                "lp": log_prob[chosen].unsqueeze(0),
                "log_q": log_q[chosen].unsqueeze(0),
            },
            data=density.data,
            guide=guide.to(problem.device, self.dtype),
            elbo=(float(ratios.mean()), float(ratios.std()) / len(ratios) ** 0.5),
            gradient_evaluations=evaluations + len(vectors),
            dtype=self.dtype,
            warnings=self._warnings(weights, len(normals), endless),
            facts={
                "pareto_k": weights.pareto_k,
                "pareto_k_error": weights.pareto_k_error,
                "importance_ess": weights.ess,
                "path_elbos": [best.elbo for best in found],
            },
        )

    def _follow(
        self, density: LogDensity, evaluate: Evaluate, progress: bool
    ) -> tuple[list[Best], int, int]:
        """Return the best approximation of each path; how many paths have no end; the gradients."""
        from ppl_gen.inference.mcmc.init import start_points

        starts, _, _ = start_points(density, evaluate, self.paths, "uniform")
        found, endless, evaluations = [], 0, 0
        with ProgressBar("Pathfinder", self.paths, enabled=progress) as bar:
            for start in starts.cpu().numpy():
                path = climb(evaluate, start, self.max_steps)
                shape = self.elbo_draws, density.dim
                noise = torch.randn(shape, dtype=torch.float64, device="cpu")
                best = best_of(evaluate, approximations(path), noise)
                found.append(best)
                endless += goes_on(path, best)
                evaluations += path.evaluations + best.evaluations
                bar.advance(f"ELBO {best.elbo:.5g}")
        return found, endless, evaluations

    def _nothing_found(self) -> ValueError:
        return ValueError(
            f"no approximation has a finite bound on any of {self.paths} paths: the log density is "
            "not finite at some of the draws of each. Look for values that overflow by "
            "pg.check(pair, data), or take NUTS()."
        )

    def _warnings(self, weights: Smoothed, found: int, endless: int) -> tuple[str, ...]:
        warnings = []
        if endless:
            warnings.append(
                f"{endless} of {self.paths} paths go on without end: the posterior is improper, or "
                "its density unbounded. Look for a site without a proper prior."
            )
        if found < self.paths:
            warnings.append(
                f"{self.paths - found} of {self.paths} paths were left out: the log density is not "
                "finite at some of the draws of each of their approximations."
            )
        if not weights.reliable:
            k = f"{weights.pareto_k:.2f}"
            if weights.pareto_k_error:
                k += f" ± {weights.pareto_k_error:.2f}"
            warnings.append(
                f"Pareto k-hat is {k}, where {weights.threshold:.2f} would do: the paths' normals "
                "are too far from the posterior for weights to mend it. Take these draws for a "
                "start, and no more: pg.fit(pair, data, NUTS(init=posterior))."
            )
        elif weights.ess < _LEAST_ESS * self.draws:
            warnings.append(
                f"The draws are worth no more than {weights.ess:.0f} independent ones: a few of "
                "the pool carry most of the weight. Take more paths, or start NUTS from here: "
                "pg.fit(pair, data, NUTS(init=posterior))."
            )
        return tuple(warnings)
